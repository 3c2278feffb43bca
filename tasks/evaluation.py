"""Evaluation: what a version answers on validation, test, benchmark and the night's new images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from infra import database, settings
from records import batches, benchmark, evaluations, objects, runs, versions
from tasks import checkpoints, pixels, snapshot
from tasks.snapshot import Listed
from tasks.step import reading, timed
from tasks.training import machine
from vision.answers import Answers
from vision.calibration import Calibration
from vision.network import Loaded
from vision.prediction import Forward, latency, predict
from vision.runtime import Engine, choose, named, ready
from vision.scores import score

Sources = Mapping[str, tuple[str, str | None]]
Keep = Callable[..., None]

LATENCY_ROUNDS = 3


@dataclass(frozen=True)
class Answering:
    """A loaded version, made ready to answer in one engine."""

    loaded: Loaded
    engine: Engine
    forward: Forward


@reading("evaluate")
def evaluate(run_id: int, version_id: int, champion_id: int | None) -> None:
    """Score the candidate everywhere and the champion on the benchmark, in one process.

    Both answer the benchmark here, image by image and in one engine, so that nothing but the
    weights differs.
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
    with timed(run_id, "latency"):
        _measure_latency(run_id, loaded)


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
    run_id: int,
    version_id: int,
    listed: Listed,
    new: Mapping[int, list[tuple[str, str, str]]],
    candidate: Answering,
    keep: Keep,
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
    answers = answers_of(candidate, sources, list(labels), list(labels.values()))
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


def evaluate_benchmark(
    version_id: int, loaded: Loaded, benchmark_version: int, run_id: int | None = None
) -> int:
    """Answer every image of a benchmark version and keep the answers; answers how many."""
    with database.connect().transaction() as session:
        images = len(benchmark.members(session, benchmark_version))
    answering = start(loaded, choose_engine(loaded, images))
    return _evaluate_benchmark(version_id, answering, benchmark_version, run_id, store)


def _evaluate_benchmark(
    version_id: int, answering: Answering, benchmark_version: int, run_id: int | None, keep: Keep
) -> int:
    with database.connect().transaction() as session:
        members = benchmark.members(session, benchmark_version)
    answers = answers_of(
        answering,
        {one.sha256: (one.key, None) for one in members},
        [one.sha256 for one in members],
        [one.class_name for one in members],
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
    answering: Answering, sources: Sources, images: list[str], labels: list[str]
) -> Answers:
    """Answers for images that S3 or the pixel cache holds, by a version that is ready."""
    loaded = answering.loaded
    with pixels.streamed(loaded.plan.geometry, {one: sources[one] for one in images}) as held:
        return predict(
            loaded.network,
            loaded.class_names,
            held,
            images,
            labels,
            loaded.plan,
            settings.load().device,
            forward=answering.forward,
        )


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


def _measure_latency(run_id: int, loaded: dict[int, Loaded]) -> None:
    """Time each version in turn, several times; the best of each is what the network costs.

    In turn, because another process may be busy for a while: it must not make the one version
    look slower than the other.
    """
    best: dict[int, float] = {}
    for _ in range(LATENCY_ROUNDS):
        for version_id, one in loaded.items():
            seconds = latency(one.network, one.plan, "cpu")
            best[version_id] = min(seconds, best.get(version_id, seconds))
    with database.connect().transaction() as session:
        runs.fence(session, run_id)
        for version_id, seconds in best.items():
            versions.measured(session, version_id, seconds)
