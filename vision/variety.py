"""Which of many pictures to look at: copies once, no burst instead of a choice, likes together.

numpy and scipy alone, no torch: pages and the command line ask it. Copies are looked up, however
many pictures there are; groups grow with the square of the pictures and a choice with the pictures
times the chosen ones, so callers bring some thousands at most.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

# Pictures that are a group, at least; fewer are each for itself.
SMALLEST_GROUP = 5
# The share of the median distance up to which pictures are alike (docs/log.md has others).
ALIKE = 0.75
# Hashes that are compared each with each, and pairs of others that are looked at in one go.
TOGETHER = 512
COMPARED = 1 << 20
# What a pair that is looked up costs, measured in pairs that are compared without looking.
LOOK_UP = 10


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

    In their order: a picture is a copy of the first one before it that it, or its mirror image, is
    near and that is itself no copy. hashes, mirrors: 64-bit difference hashes of pictures and their
    mirror images, as signed integers; None is near nothing. bits: how many may differ.
    """
    hashed = np.flatnonzero([one is not None for one in hashes])
    ours, theirs = _words(hashes)[hashed], _words(mirrors)[hashed]
    first = np.arange(len(hashed))
    listing = _listing(ours, theirs, bits) if len(hashed) > TOGETHER else []
    for start in range(0, len(hashed), TOGETHER):
        block = np.arange(start, min(start + TOGETHER, len(hashed)))
        block = block[first[block] == block]
        _settle(first, block, ours[block], theirs[block], bits)
        leading = block[first[block] == block]
        end = start + TOGETHER
        rest = end + np.flatnonzero(first[end:] >= end)
        if not len(rest):
            break
        agreeing = [band.agreeing(ours[leading]) for band in listing]
        looked_at = sum(int((high - low).sum()) for low, high in agreeing)
        if looked_at * LOOK_UP < len(leading) * len(rest):
            for band, (low, high) in zip(listing, agreeing, strict=True):
                for leader, copy in band.near(leading, ours[leading], low, high, bits):
                    np.minimum.at(first, copy, leader)
        else:  # pictures of one place, or flat ones, agree in whole bands without being near
            _compare(first, leading, ours[leading], rest, ours[rest], theirs[rest], bits)
    found = np.arange(len(hashes))
    found[hashed] = hashed[first]
    return found


def _words(hashes: Sequence[int | None]) -> Words:
    return np.array([one or 0 for one in hashes], dtype=np.int64).view(np.uint64)


def _settle(first: Indices, block: Indices, ours: Words, theirs: Words, bits: int) -> None:
    """Find the firsts of some pictures among these alone, each compared with each."""
    near = np.bitwise_count(ours[:, None] ^ ours) <= bits
    near |= np.bitwise_count(theirs[:, None] ^ ours) <= bits
    near = np.tril(near, -1)
    leads = ~near.any(axis=1)
    for place in np.flatnonzero(~leads):
        before = np.flatnonzero(near[place] & leads)
        if len(before):
            first[block[place]] = block[before[0]]
        else:
            leads[place] = True


def _compare(
    first: Indices, leading: Indices, heads: Words, rest: Indices, ours: Words, theirs: Words,
    bits: int,
) -> None:
    """Compare each of some that lead with all that are left."""
    for leader, head in zip(leading, heads, strict=True):
        near = np.bitwise_count(ours ^ head) <= bits
        near |= np.bitwise_count(theirs ^ head) <= bits
        first[rest[near]] = np.minimum(first[rest[near]], leader)


@dataclass(frozen=True)
class _Band:
    """All hashes, those of mirror images behind the others, sorted by some of their bits."""

    mask: np.uint64
    words: Words
    order: Indices
    keys: Words

    def agreeing(self, ours: Words) -> tuple[Indices, Indices]:
        """Where those begin and end that agree with each of these in the bits."""
        wanted = ours & self.mask
        low, high = (np.searchsorted(self.keys, wanted, side) for side in ("left", "right"))
        return low, high

    def near(
        self, leading: Indices, ours: Words, low: Indices, high: Indices, bits: int
    ) -> Iterator[tuple[Indices, Indices]]:
        """Pictures with those near them among the ones that agree with them, some at a time."""
        ends = np.cumsum(high - low)
        cuts = np.searchsorted(ends, np.arange(COMPARED, ends.max(initial=0), COMPARED))
        for some in np.split(np.arange(len(leading)), cuts):
            counts = high[some] - low[some]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            entry = self.order[np.repeat(low[some], counts) + within]
            near = np.bitwise_count(self.words[entry] ^ np.repeat(ours[some], counts)) <= bits
            yield (
                np.repeat(leading[some], counts)[near],
                entry[near] % (len(self.words) // 2),
            )


def _listing(ours: Words, theirs: Words, bits: int) -> list[_Band]:
    """Where to look for what is near: hashes that differ in few bits agree in whole bands.

    Cut into bits + 2 bands, they agree in two of them. One band alone, as in Postgres, holds a
    quarter of the bits, and a quarter of a picture is often as empty as another's.
    """
    words = np.concatenate([ours, theirs])
    edges = np.linspace(0, 64, bits + 3).astype(int).tolist()
    bands = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
    listing = []
    for one, other in itertools.combinations(bands, 2):
        mask = np.uint64(one | other)
        order = np.argsort(words & mask)
        listing.append(_Band(mask, words, order, (words & mask)[order]))
    return listing


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
