"""Benchmark: freeze images that no training may see, grow them for new classes, withdraw some."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy.orm import Session

from infra import database, storage
from infra.storage import Listed, bad_key
from records import benchmark, deployments, evaluations
from records.benchmark import BadBenchmark, BenchmarkRow, Frozen, Member, as_member
from records.deployments import Champion
from records.objects import normalised
from tasks import checkpoints
from tasks.evaluation import answer, choose_engine, runtime, settle_thresholds
from tasks.fetching import by_threads
from tasks.progress import progress
from vision.answers import Answers
from vision.gate import USUAL_DISCORDANCE, power
from vision.images import examine
from vision.runtime import Engine
from vision.scores import score

BENCHMARK = "benchmark/"


@dataclass(frozen=True)
class Frozenness:
    """What freezing or growing did; `refused` says for each image left out why."""

    benchmark: BenchmarkRow
    added: int
    refused: tuple[str, ...]


@dataclass(frozen=True)
class _Scored:
    """What the champion answered before the version that it was asked about exists."""

    champion: Champion
    answers: Answers
    engine: Engine


def freeze(by: str, why: str) -> Frozenness:
    """Freeze everything under `benchmark/<class>/<name>` as version 1."""
    with database.connect().transaction() as session:
        known = benchmark.listed(session)
    if known:
        raise BadBenchmark(
            f"benchmark version {known[0].version} is frozen already: add to it with "
            "`regraft benchmark grow`"
        )
    return _add(by, why)


def grow(by: str, why: str) -> Frozenness:
    """Append a version with what was added under `benchmark/`; the champion is scored on it first.

    Images that the library holds, exact or near, are refused: whatever any version has trained
    on came from there, the champion's ancestors included, and stays there.
    """
    with database.connect().transaction() as session:
        benchmark.current(session)  # raises when there is nothing to grow
    return _add(by, why)


def withdraw(words: list[str], by: str, why: str) -> BenchmarkRow:
    """Append a version without these images (keys or digests), whose label is wrong perhaps.

    They stay frozen: no training may see them, and they cannot come back under another label. The
    champion is scored on the version first.
    """
    _say_who(by, why)
    with database.connect().transaction() as session:
        gone = {one.sha256 for one in benchmark.find(session, words)}
        whole = benchmark.members(session, benchmark.current(session).version)
    if len(gone) == len(whole):
        raise BadBenchmark("a benchmark needs images: none would be left")
    scored = _champion_answers([one for one in whole if one.sha256 not in gone])
    with database.connect().transaction() as session:
        images = benchmark.find(session, words)
        kept = [
            one for one in benchmark.members(session, benchmark.current(session).version)
            if one.sha256 not in gone
        ]  # fmt: skip
        row = benchmark.withdraw(session, images, by, why, _power(session, kept, scored))
        _keep(session, scored, row.version)
    _verify_thresholds(scored)
    return row


def _add(by: str, why: str) -> Frozenness:
    _say_who(by, why)
    fresh, refused, listed = _read()
    with database.connect().transaction() as session:
        known = _members(session)
    # A leak that is refused below is answered for nothing; the lock is not held that long.
    new = {one.sha256 for one in known}
    scored = _champion_answers(known + [as_member(one) for one in fresh if one.sha256 not in new])
    with database.connect().transaction() as session:
        leaks = benchmark.leaks(session, fresh)
        added = [one for one in fresh if one.sha256 not in leaks]
        here = "already in the benchmark"
        told = [one for one in fresh if leaks.get(one.sha256, here) != here]
        refused += [f"{one.source_key}: {leaks[one.sha256]}" for one in told]
        if not added:
            raise BadBenchmark(
                f"none of {listed} images can be added"
                + (f": {refused[0]}" if refused else ": the benchmark has them all")
            )
        whole = _members(session) + [as_member(one) for one in added]
        row = benchmark.freeze(session, added, by, why, _power(session, whole, scored))
        _keep(session, scored, row.version)
    _verify_thresholds(scored)
    return Frozenness(row, len(added), tuple(refused))


def _say_who(by: str, why: str) -> None:
    if not by.strip() or not why.strip():
        raise BadBenchmark("say who freezes and why: --by NAME --why TEXT")


def _members(session: Session) -> list[Member]:
    """The images of the newest version, none where nothing was frozen yet."""
    known = benchmark.listed(session)
    return benchmark.members(session, known[0].version) if known else []


def _read() -> tuple[list[Frozen], list[str], int]:
    """What lies under `benchmark/`: each content once, what is refused, and how many there are."""
    store = storage.connect()
    listed = [one for one in store.list(BENCHMARK) if not one.key.endswith("/")]
    if not listed:
        raise BadBenchmark(
            f"nothing lies under {BENCHMARK}<class>/<name>: name a folder to load, or upload there"
        )
    with progress("read benchmark images", len(listed)) as advance:
        read = []
        for done, one in enumerate(by_threads(listed, _examined), start=1):
            read.append(one)
            advance(done)
    refused = [one for one in read if isinstance(one, str)]
    fresh, doubled = _once([one for one in read if isinstance(one, Frozen)])
    return fresh, refused + doubled, len(listed)


def _champion_answers(whole: list[Member]) -> _Scored | None:
    """The champion's answers for the images of a version to come; None while nothing serves."""
    with database.connect().transaction() as session:
        champion = deployments.champion(session)
    if champion is None:
        return None
    loaded = checkpoints.load(champion.version_id)
    engine = choose_engine(loaded, len(whole))
    sources = {one.sha256: (one.key, None) for one in whole}
    names, labels = [one.sha256 for one in whole], [one.class_name for one in whole]
    return _Scored(champion, answer(loaded, sources, names, labels, engine), engine)


def _keep(session: Session, scored: _Scored | None, version: int) -> None:
    """Keep the champion's answers in the transaction that makes the version the newest."""
    champion = deployments.champion(session)
    if champion != (scored.champion if scored else None):
        raise BadBenchmark("another version came to serve meanwhile: do it once more")
    if scored is None:
        return
    answers = scored.answers.only(one.sha256 for one in benchmark.members(session, version))
    evaluations.record(
        session, scored.champion.version_id, scored.champion.checkpoint_digest, "benchmark",
        answers, score(answers), runtime(scored.engine), benchmark_version=version,
    )  # fmt: skip


def _verify_thresholds(scored: _Scored | None) -> None:
    """Tell what the champion's thresholds are worth on the newest version, too."""
    if scored:
        settle_thresholds(scored.champion.version_id)


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


def _power(session: Session, whole: list[Member], scored: _Scored | None) -> dict[str, Any]:
    """Which drop a version will notice, by the limits of the last night.

    From the champion's accuracy on the classes that it knows and from how often the verdicts
    before saw an answer turn; as assumed by `power` while there is no champion, no verdict.
    """
    counts = Counter(one.class_name for one in whole)
    turned = deployments.discordance(session)
    found = power(
        [counts[name] for name in sorted(counts)],
        deployments.limits_of_nights(session),
        accuracy=_accuracy(scored.answers.only(one.sha256 for one in whole)) if scored else None,
        discordance=USUAL_DISCORDANCE if turned is None else turned,
    )
    return asdict(found)


def _accuracy(answers: Answers) -> float | None:
    """On the images of classes that the version knows; None without any."""
    names = set(answers.class_names)
    right = answers.correct[[label in names for label in answers.labels]]
    return float(right.mean()) if len(right) else None
