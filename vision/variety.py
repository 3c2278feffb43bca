"""Which of many pictures to look at: copies once, no burst instead of a choice, likes together.

numpy and scipy alone, no torch: pages and the command line ask it. What it does grows with
the square of the pictures, so callers bring some thousands at most.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

# Pictures that are a group, at least; fewer are each for itself.
SMALLEST_GROUP = 5
# The share of the median distance up to which pictures are alike (docs/log.md has others).
ALIKE = 0.75


def unit(rows: Sequence[bytes | None]) -> Features:
    """Stored features (float16, little-endian) as vectors of length one, float32 [N, width].

    A picture without features is a vector of zeros, which is like no other. If none has any the
    width is 1.
    """
    width = next((len(row) // 2 for row in rows if row is not None), 1)
    found = np.zeros((len(rows), width), np.float32)
    for place, row in enumerate(rows):
        if row is not None:
            found[place] = np.frombuffer(row, "<f2")
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    np.divide(found, lengths, out=found, where=lengths > 0)
    return found


def firsts(hashes: Sequence[int | None], mirrors: Sequence[int | None], bits: int) -> Indices:
    """For each picture the first one that it is a copy of, itself if of none; int64 [N].

    hashes, mirrors: 64-bit difference hashes of pictures and their mirror images, as signed
    integers; None is near nothing. bits: how many may differ.
    """
    ours, theirs = _words(hashes), _words(mirrors)
    hashed = np.array([one is not None for one in hashes], dtype=np.bool_)
    first = np.full(len(hashes), -1, np.int64)
    for place in range(len(hashes)):
        if first[place] >= 0:
            continue
        first[place] = place
        if hashed[place]:
            near = (np.bitwise_count(ours ^ ours[place]) <= bits) | (
                np.bitwise_count(theirs ^ ours[place]) <= bits
            )
            first[near & hashed & (first < 0)] = place
    return first


def _words(hashes: Sequence[int | None]) -> npt.NDArray[np.uint64]:
    return np.array([one or 0 for one in hashes], dtype=np.int64).view(np.uint64)


def varied(features: Features, worth: npt.NDArray[np.float32], most: int) -> Indices:
    """At most so many pictures, each worth much and unlike those before it; int64, in that order.

    Greedy k-center with a weight: next comes the picture whose worth times its distance (one minus
    the cosine, at most 1) to the nearest chosen one is largest. Plain k-center would begin with
    whatever lies far out, which is seldom what was looked for.

    features: as from `unit`. worth: float32 [N], positive.
    """
    gap = np.ones(len(features), np.float32)
    left = np.ones(len(features), np.bool_)
    chosen: list[int] = []
    for _ in range(min(most, len(features))):
        best = int(np.where(left, worth * gap, -1.0).argmax())
        chosen.append(best)
        left[best] = False
        np.minimum(gap, np.clip(1.0 - features @ features[best], 0.0, 1.0), out=gap)
    return np.array(chosen, dtype=np.int64)


def groups(features: Features) -> list[Indices]:
    """Pictures that are like each other, as indices, each from its most typical on; largest first.

    Average linkage on the distances of cosines, cut at `ALIKE` times their median. A picture that
    is in no group is like no others. features: as from `unit`.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    known = np.flatnonzero(features.any(axis=1))
    if len(known) < 2 * SMALLEST_GROUP:
        return []
    some = features[known]
    gaps = np.clip(1.0 - some @ some.T, 0.0, None)[np.triu_indices(len(known), 1)]
    labels = fcluster(linkage(gaps, "average"), ALIKE * np.median(gaps), "distance")
    sets = [known[labels == label] for label in range(1, labels.max() + 1)]
    found = [_typical_first(features, one) for one in sets if len(one) >= SMALLEST_GROUP]
    return sorted(found, key=lambda members: (-len(members), int(members[0])))


def _typical_first(features: Features, members: Indices) -> Indices:
    return members[np.argsort(-(features[members] @ features[members].sum(axis=0)), kind="stable")]
