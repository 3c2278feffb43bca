"""Evaluation: what a version answers on validation, test, benchmark and the night's new images.

On request also on the whole library, and again with another wished precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infra import database, settings
from records import batches, benchmark, classes, evaluations, library, objects, runs, versions
from tasks import checkpoints, pixels, serving, snapshot
from tasks.progress import progress
from tasks.snapshot import Listed
from tasks.step import reading, timed
from tasks.training import machine
from vision.answers import Answers
from vision.calibration import Calibration
from vision.network import Loaded
from vision.prediction import Forward, Gatherable, predict
from vision.runtime import Engine, choose, named, ready
from vision.scores import PRECISION, Threshold, at_or_above, score, threshold
from vision.serving import Served

Sources = Mapping[str, tuple[str, str | None]]
Keep = Callable[..., None]
Advance = Callable[[int], None]

LATENCY_ROUNDS = 3


@dataclass(frozen=True)
class Answering:
    """A loaded version, made ready to answer in one engine."""

    loaded: Loaded
    engine: Engine
    forward: Forward


@reading("evaluate")
def evaluate(
    run_id: int, version_id: int, champion_id: int | None, precision: float = PRECISION
) -> None:
    """Score the candidate everywhere and the champion on the benchmark, in one process.

    Both answer the benchmark here, image by image and in one engine, so that nothing but the
    weights differs. precision: what the candidate's threshold shall reach, above 0, at most 1.
    """
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
        frozen = benchmark.current(session)
        # Not only this night's: one that died after its intake has left its batch unanswered.
        batch_ids = evaluations.unanswered_batches(session)
        new = {batch_id: list(batches.images_of_batch(session, batch_id)) for batch_id in batch_ids}
    listed = snapshot.read(version.snapshot_digest)
    both = [version_id] if champion_id is None else [version_id, champion_id]
    loaded = {one: checkpoints.load(one) for one in both}
    images = sum(len(listed.images[split]) for split in ("validation", "test"))
    images += sum(map(len, new.values())) + frozen.images * len(both)
    engine = choose_engine(loaded[version_id], images, len(both))
    candidate = start(loaded[version_id], engine)
    with timed(run_id, "evaluate") as facts, storing() as keep:
        facts["engine"] = engine.name
        facts["images"] = _evaluate_library(run_id, version_id, listed, new, candidate, keep)
    with timed(run_id, "benchmark") as facts, storing() as keep:
        facts["images"] = _evaluate_benchmark(version_id, candidate, frozen.version, run_id, keep)
        if champion_id is not None:
            champion = start(loaded[champion_id], engine)
            _evaluate_benchmark(champion_id, champion, frozen.version, run_id, keep)
    with timed(run_id, "thresholds"):
        settle_thresholds(version_id, precision, run_id)
        if champion_id is not None:
            settle_thresholds(champion_id, None, run_id)
    with timed(run_id, "latency"):
        _measure_latency(run_id, loaded)


def evaluate_again(version_id: int, precision: float, by: str) -> int:
    """Score a version on validation, test and the newest benchmark; answers how many images.

    Its threshold for this precision is fitted anew. For versions of any purpose and age: those of
    before a benchmark grew, or that no night has judged. by: who looks, which is counted.
    """
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
        frozen = benchmark.current(session)
    loaded = checkpoints.load(version_id)
    listed = snapshot.read(version.snapshot_digest)
    images = sum(len(listed.images[split]) for split in ("validation", "test")) + frozen.images
    answering = start(loaded, choose_engine(loaded, images))
    with progress("evaluate", images) as advance:
        done = _evaluate_library(None, version_id, listed, {}, answering, store, advance)
        _evaluate_benchmark(
            version_id, answering, frozen.version, None, store, lambda more: advance(done + more)
        )
    settle_thresholds(version_id, precision)
    with database.connect().transaction() as session:
        benchmark.look(session, version_id, "evaluation", by)
    return images


def evaluate_whole_library(version_id: int) -> int:
    """Score a version on every usable image of the library; answers how many there are.

    Images of the training split are in-sample: it or an ancestor may have learned them by heart,
    so that their answers prove nothing about new images, and hide wrong labels.
    """
    with database.connect().transaction() as session:
        rows = library.usable(session)
    loaded = checkpoints.load(version_id)
    answering = start(loaded, choose_engine(loaded, len(rows)))
    sources = {sha256: (key, etag) for sha256, _, key, etag in rows}
    with progress("score the library", len(rows)) as advance:
        answers = answers_of(
            answering, sources, list(sources), [name for _, name, _, _ in rows], advance
        )
    store(None, version_id, "library", answers, answering.engine)
    return len(rows)


def settle_thresholds(
    version_id: int, precision: float | None = None, run_id: int | None = None
) -> None:
    """Fit a version's thresholds on its validation answers, and verify them on all others stored.

    For this precision and for each that was wished of the version before.
    """
    with database.connect().transaction() as session:
        if run_id is not None:
            runs.fence(session, run_id)
        names = versions.get(session, version_id).class_names
        wished = evaluations.wishes(session, version_id)
        wished |= {precision} if precision is not None else set()
        found = {
            (one.subject, one.benchmark_version): evaluations.answers(session, one.id, names)
            for one in evaluations.of_version(session, version_id)
            if wished and one.subject in ("validation", "test", "benchmark")
        }
        validation = found.pop(("validation", None), None)
        if validation is None:
            return
        for one in sorted(wished):
            fitted = threshold(validation, one)
            evaluations.record_threshold(
                session, version_id, one, fitted, len(validation), _verified(fitted, found)
            )


def _verified(
    fitted: Threshold | None, found: Mapping[tuple[str, int | None], Answers | None]
) -> dict[tuple[str, int | None], Threshold]:
    if fitted is None:
        return {}
    measured = {
        where: at_or_above(answers, fitted.confidence)
        for where, answers in found.items()
        if answers is not None
    }
    return {where: one for where, one in measured.items() if one is not None}


@reading("evaluate held-out images")
def evaluate_held_out(run_id: int, version_id: int) -> None:
    """Score a version on validation and test images of its own snapshot, and time it.

    For one whose classes are not the benchmark's: a stage of pretraining.
    """
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
    listed = snapshot.read(version.snapshot_digest)
    loaded = checkpoints.load(version_id)
    images = sum(len(listed.images[split]) for split in ("validation", "test"))
    answering = start(loaded, choose_engine(loaded, images))
    with timed(run_id, "evaluate") as facts, storing() as keep:
        facts["engine"] = answering.engine.name
        facts["images"] = _evaluate_library(run_id, version_id, listed, {}, answering, keep)
    with timed(run_id, "latency"):
        _measure_latency(run_id, {version_id: loaded})


def is_scored(version_id: int) -> bool:
    """Whether a version has its figures on held-out images and its latency, the last of them."""
    with database.connect().transaction() as session:
        timed_too = versions.get(session, version_id).latency_seconds is not None
        return timed_too and evaluations.find(session, version_id, "test") is not None


def is_scored_on_benchmark(version_id: int) -> bool:
    """Whether it has these and those on the newest benchmark."""
    with database.connect().transaction() as session:
        newest = benchmark.current(session).version
        answered = evaluations.find(session, version_id, "benchmark", benchmark_version=newest)
    return answered is not None and is_scored(version_id)


def _evaluate_library(
    run_id: int | None,
    version_id: int,
    listed: Listed,
    new: Mapping[int, list[tuple[str, str, str]]],
    candidate: Answering,
    keep: Keep,
    advance: Advance | None = None,
) -> int:
    """Validation, test and new images, each answered once; answers how many there are.

    New images that trained flatter, and the test split does not.
    """
    labels: dict[str, str] = {}
    for split in ("validation", "test"):
        labels |= zip(listed.images[split], listed.labels[split], strict=True)
    fresh = {sha256: name for rows in new.values() for sha256, name, _ in rows}
    with database.connect().transaction() as session:
        sources = dict(objects.sources(session, [*labels, *fresh]))
    labels |= {sha256: name for sha256, name in fresh.items() if sha256 in sources}
    answers = answers_of(candidate, sources, list(labels), list(labels.values()), advance)
    for split in ("validation", "test"):
        keep(run_id, version_id, split, answers.only(listed.images[split]), candidate.engine)
    for batch_id, rows in new.items():
        there = [sha256 for sha256, _, _ in rows if sha256 in sources]
        if there:
            keep(
                run_id, version_id, "batch", answers.only(there), candidate.engine,
                batch_id=batch_id,
            )  # fmt: skip
    return len(labels)


def evaluate_together(version_ids: list[int], benchmark_version: int) -> None:
    """Have versions answer a benchmark version in one process and one engine, and time them.

    What the gate compares, for acts that people begin outside a night.
    """
    with database.connect().transaction() as session:
        images = len(benchmark.members(session, benchmark_version))
    loaded = {one: checkpoints.load(one) for one in version_ids}
    engine = choose_engine(loaded[version_ids[0]], images * len(loaded), len(loaded))
    for version_id, one in loaded.items():
        _evaluate_benchmark(version_id, start(one, engine), benchmark_version, None, store)
        settle_thresholds(version_id)
    _measure_latency(None, loaded)


def _evaluate_benchmark(
    version_id: int,
    answering: Answering,
    benchmark_version: int,
    run_id: int | None,
    keep: Keep,
    advance: Advance | None = None,
) -> int:
    with database.connect().transaction() as session:
        members = benchmark.members(session, benchmark_version)
    answers = answers_of(
        answering,
        {one.sha256: (one.key, None) for one in members},
        [one.sha256 for one in members],
        [one.class_name for one in members],
        advance,
    )
    keep(
        run_id, version_id, "benchmark", answers, answering.engine,
        benchmark_version=benchmark_version,
    )  # fmt: skip
    return len(members)


def choose_engine(loaded: Loaded, images: int, networks: int = 1) -> Engine:
    """The engine for so many answers of versions like this one, as this machine was measured."""
    known = settings.load()
    calibration = Calibration(known.cache_dir / "calibration.json")
    return choose(loaded.network, loaded.plan, known.device, images, calibration, networks)


def start(loaded: Loaded, engine: Engine) -> Answering:
    """Make a version ready to answer in this engine."""
    forward = ready(engine, loaded.network, loaded.plan, settings.load().device)
    return Answering(loaded, engine, forward)


def answer(
    loaded: Loaded,
    sources: Sources,
    images: list[str],
    labels: list[str],
    engine: Engine | None = None,
) -> Answers:
    """A version's answers for images that S3 or the pixel cache holds."""
    return answers_of(
        start(loaded, engine or choose_engine(loaded, len(images))), sources, images, labels
    )


def answers_of(
    answering: Answering,
    sources: Sources,
    images: list[str],
    labels: list[str],
    advance: Advance | None = None,
) -> Answers:
    """Answers for images that S3 or the pixel cache holds, by a version that is ready.

    labels: in the words of any time; the answers have them in those of the version. advance: is
    told how many images have been gathered so far.
    """
    loaded = answering.loaded
    if not set(labels) <= set(loaded.class_names):
        with database.connect().transaction() as session:
            labels = classes.as_known_to(loaded.class_names, labels, classes.today(session))
    with pixels.streamed(loaded.plan.geometry, {one: sources[one] for one in images}) as held:
        return predict(
            loaded.network,
            loaded.class_names,
            Counted(held, advance) if advance else held,
            images,
            labels,
            loaded.plan,
            settings.load().device,
            forward=answering.forward,
        )


class Counted:
    """Pixels that tell how many pictures were asked for so far."""

    def __init__(self, pixels: Gatherable, advance: Advance) -> None:
        self._pixels, self._advance = pixels, advance
        self._done = 0

    def gather(self, images: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Pixels uint8 [N, side, side, 3] of these pictures, in their order."""
        gathered = self._pixels.gather(images)
        self._done += len(images)
        self._advance(self._done)
        return gathered


@contextmanager
def storing() -> Iterator[Keep]:
    """Keep answers in a thread of its own, while the next ones are computed; its errors count."""
    with ThreadPoolExecutor(1, "regraft-keep") as thread:
        kept: list[Future[None]] = []

        def keep(*given: Any, **named: Any) -> None:
            kept.append(thread.submit(store, *given, **named))

        yield keep
        for one in kept:
            one.result()


def store(
    run_id: int | None,
    version_id: int,
    subject: str,
    answers: Answers,
    engine: Engine,
    benchmark_version: int | None = None,
    batch_id: int | None = None,
) -> None:
    """Keep answers with their scores and with what computed them."""
    with database.connect().transaction() as session:
        if run_id is not None:
            runs.fence(session, run_id)
        version = versions.get(session, version_id)
        if version.checkpoint_digest is None:
            raise ValueError(f"version {version_id} is {version.state}: nothing to evaluate")
        evaluations.record(
            session,
            version_id,
            version.checkpoint_digest,
            subject,
            answers,
            score(answers),
            runtime(engine),
            benchmark_version=benchmark_version,
            batch_id=batch_id,
        )


def runtime(engine: Engine) -> dict[str, Any]:
    """What decides the last digits of an answer: engine, device, processor and libraries."""
    here = machine()
    return {
        "engine": engine.name,
        "device": settings.load().device,
        **{name: here[name] for name in ("processor", "gpu")},
        "libraries": here["libraries"] | engine.libraries,
    }


def engine_of(facts: dict[str, Any]) -> Engine | None:
    """The engine of a recorded runtime; None where none was recorded. Raises `NoEngine`."""
    return named(facts["engine"]) if "engine" in facts else None


def told(facts: dict[str, Any]) -> str:
    """A runtime as one text, to compare with another."""
    parts: list[str] = []
    for name, value in sorted(facts.items()):
        if isinstance(value, dict):
            parts += [f"{inner} {its}" for inner, its in sorted(value.items())]
        elif value is not None:
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def _measure_latency(run_id: int | None, loaded: dict[int, Loaded]) -> None:
    """Time each version as it would serve, in turn and several times; the best is what it costs.

    In turn, because another process may be busy for a while: it must not make the one version
    look slower than the other.
    """
    with database.connect().transaction() as session:
        digests = {one: versions.get(session, one).checkpoint_digest for one in loaded}
    served = {
        version_id: Served(serving.written(one, digests[version_id] or "").read_bytes(), threads=1)
        for version_id, one in loaded.items()
    }
    best: dict[int, float] = {}
    for _ in range(LATENCY_ROUNDS):
        for version_id, one in served.items():
            best[version_id] = min(one.latency(), best.get(version_id, float("inf")))
    with database.connect().transaction() as session:
        if run_id is not None:
            runs.fence(session, run_id)
        for version_id, seconds in best.items():
            versions.measured(session, version_id, seconds, machine()["processor"])
