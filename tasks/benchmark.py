"""Benchmark: freeze images that no training may see, and grow them for new classes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from infra import database, settings, storage
from infra.storage import Listed, bad_key
from records import benchmark, deployments
from records.benchmark import BadBenchmark, BenchmarkRow, Frozen
from records.objects import normalised
from tasks import checkpoints
from tasks.evaluation import evaluate_benchmark
from tasks.progress import progress
from vision.gate import Limits, power
from vision.images import examine

BENCHMARK = "benchmark/"


@dataclass(frozen=True)
class Frozenness:
    """What freezing or growing did; `refused` says for each image left out why."""

    benchmark: BenchmarkRow
    added: int
    refused: tuple[str, ...]


def freeze(by: str, why: str) -> Frozenness:
    """Freeze everything under `benchmark/<class>/<name>` as version 1."""
    with database.connect().transaction() as session:
        known = benchmark.listed(session)
    if known:
        raise BadBenchmark(
            f"benchmark version {known[0].version} is frozen already: add to it with "
            "`regraft benchmark grow`"
        )
    return _append(by, why)


def grow(by: str, why: str) -> Frozenness:
    """Append a version with what was added under `benchmark/`; the champion is scored on it first.

    Images that the library holds, exact or near, are refused: some version may have trained on
    them.
    """
    with database.connect().transaction() as session:
        benchmark.current(session)  # raises when there is nothing to grow
        champion = deployments.champion(session)
    grown = _append(by, why)
    if champion:
        loaded = checkpoints.load(champion.version_id)
        evaluate_benchmark(champion.version_id, loaded, grown.benchmark.version)
    return grown


def _append(by: str, why: str) -> Frozenness:
    if not by.strip() or not why.strip():
        raise BadBenchmark("say who freezes and why: --by NAME --why TEXT")
    store = storage.connect()
    listed = [one for one in store.list(BENCHMARK) if not one.key.endswith("/")]
    if not listed:
        raise BadBenchmark(
            f"nothing lies under {BENCHMARK}<class>/<name>: name a folder to load, or upload there"
        )
    with (
        ThreadPoolExecutor(settings.load().workers) as pool,
        progress("read benchmark images", len(listed)) as advance,
    ):
        read = []
        for done, one in enumerate(pool.map(_examined, listed), start=1):
            read.append(one)
            advance(done)
    refused = [one for one in read if isinstance(one, str)]
    fresh, doubled = _once([one for one in read if isinstance(one, Frozen)])
    with database.connect().transaction() as session:
        leaks = benchmark.leaks(session, fresh)
        added = [one for one in fresh if one.sha256 not in leaks]
        here = "already in the benchmark"
        told = [one for one in fresh if leaks.get(one.sha256, here) != here]
        refused += doubled + [f"{one.source_key}: {leaks[one.sha256]}" for one in told]
        if not added:
            raise BadBenchmark(
                f"none of {len(listed)} images can be added"
                + (f": {refused[0]}" if refused else ": the benchmark has them all")
            )
        row = benchmark.freeze(session, added, by, why, _power(session, added))
    return Frozenness(row, len(added), tuple(refused))


def _examined(listed: Listed) -> Frozen | str:
    """An image ready to freeze, its bytes kept under their digest, or why it is refused."""
    if problem := bad_key(listed.key):
        return f"{listed.key!r}: {problem}"
    parts = PurePosixPath(listed.key.removeprefix(BENCHMARK)).parts
    if len(parts) < 2:
        return f"{listed.key}: no class: put it under {BENCHMARK}<class>/"
    store = storage.connect()
    body = store.read(listed.key, listed.etag)
    facts, _ = examine(body, None)
    if not facts.readable:
        return f"{listed.key}: {facts.problem}"
    # What was judged must stay what was frozen, whatever happens to the key it came from.
    key = f"benchmark-images/{facts.sha256}"
    store.write_once(key, body, facts.sha256)
    return Frozen(
        facts.sha256, normalised(parts[0]), listed.key, key, facts.dhash, facts.dhash_mirror
    )


def _once(images: list[Frozen]) -> tuple[list[Frozen], list[str]]:
    """Each content once; the same bytes under two classes are refused, both."""
    classes: dict[str, set[str]] = {}
    for one in images:
        classes.setdefault(one.sha256, set()).add(one.class_name)
    kept: dict[str, Frozen] = {}
    refused = []
    for one in sorted(images, key=lambda one: one.source_key):
        if len(classes[one.sha256]) > 1:
            names = " and ".join(sorted(classes[one.sha256]))
            refused.append(f"{one.source_key}: the same bytes are labelled {names}")
        else:
            kept.setdefault(one.sha256, one)
    return list(kept.values()), refused


def _power(session: Any, added: list[Frozen]) -> dict[str, Any]:
    """Which drop the whole new benchmark will notice, at the gate's default limits."""
    known = benchmark.listed(session)
    whole = [one.class_name for one in added]
    if known:
        whole += [one.class_name for one in benchmark.members(session, known[0].version)]
    counts = [whole.count(name) for name in sorted(set(whole))]
    return asdict(power(counts, Limits()))
