"""Evaluation: what a version answers on validation, test, benchmark and the night's new images."""

from __future__ import annotations

from typing import Any

from infra import database, settings
from records import batches, benchmark, evaluations, objects, runs, versions
from tasks import checkpoints, pixels, snapshot
from tasks.step import reading, timed
from tasks.training import machine
from vision.answers import Answers
from vision.network import Loaded
from vision.prediction import latency, predict
from vision.scores import score

LATENCY_ROUNDS = 3


@reading("evaluate")
def evaluate(run_id: int, version_id: int, champion_id: int | None) -> None:
    """Score the candidate everywhere and the champion on the benchmark, in one process.

    Both answer the benchmark here, image by image, so that nothing but the weights differs.
    """
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
        frozen = benchmark.current(session)
        # Not only this night's: one that died after its intake has left its batch unanswered.
        batches = evaluations.unanswered_batches(session)
    loaded = checkpoints.load(version_id)
    with timed(run_id, "evaluate") as facts:
        facts["images"] = _evaluate_splits(run_id, version_id, version.snapshot_digest, loaded)
        for batch_id in batches:
            facts["images"] += _evaluate_batch(run_id, version_id, batch_id, loaded)
    with timed(run_id, "benchmark") as facts:
        facts["images"] = evaluate_benchmark(version_id, loaded, frozen.version, run_id)
        if champion_id is not None:
            evaluate_benchmark(
                champion_id, checkpoints.load(champion_id), frozen.version, run_id
            )
    _measure_latency(run_id, [version_id] if champion_id is None else [version_id, champion_id])


def _evaluate_splits(run_id: int, version_id: int, digest: str, loaded: Loaded) -> int:
    listed = snapshot.read(digest)
    count = 0
    for split in ("validation", "test"):
        images = listed.images[split]
        with database.connect().transaction() as session:
            sources = objects.sources(session, images)
        answers = answer(loaded, dict(sources), images, listed.labels[split])
        _keep(run_id, version_id, split, answers)
        count += len(images)
    return count


def _evaluate_batch(run_id: int, version_id: int, batch_id: int, loaded: Loaded) -> int:
    """New images; those of them that trained flatter, and the test split does not."""
    with database.connect().transaction() as session:
        rows = list(batches.images_of_batch(session, batch_id))
        sources = objects.sources(session, [sha256 for sha256, _, _ in rows])
    rows = [row for row in rows if row[0] in sources]
    if not rows:
        return 0
    answers = answer(loaded, dict(sources), [row[0] for row in rows], [row[1] for row in rows])
    _keep(run_id, version_id, "batch", answers, batch_id=batch_id)
    return len(rows)


def evaluate_benchmark(
    version_id: int, loaded: Loaded, benchmark_version: int, run_id: int | None = None
) -> int:
    """Answer every image of a benchmark version and keep the answers; answers how many."""
    with database.connect().transaction() as session:
        members = benchmark.members(session, benchmark_version)
    answers = answer(
        loaded,
        {one.sha256: (one.key, None) for one in members},
        [one.sha256 for one in members],
        [one.class_name for one in members],
    )
    _keep(run_id, version_id, "benchmark", answers, benchmark_version=benchmark_version)
    return len(members)


def answer(
    loaded: Loaded,
    sources: dict[str, tuple[str, str | None]],
    images: list[str],
    labels: list[str],
) -> Answers:
    """A version's answers for images that S3 or the pixel cache holds."""
    held = pixels.opened(loaded.plan.geometry, sources)
    device = settings.load().device
    return predict(
        loaded.network, loaded.class_names, held, images, labels, loaded.plan, device
    )


def _keep(
    run_id: int | None,
    version_id: int,
    subject: str,
    answers: Answers,
    benchmark_version: int | None = None,
    batch_id: int | None = None,
) -> None:
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
            runtime(),
            benchmark_version=benchmark_version,
            batch_id=batch_id,
        )


def runtime() -> dict[str, Any]:
    """What decides the last digits of an answer: device, processor and libraries."""
    here = machine()
    return {
        "device": settings.load().device,
        **{name: here[name] for name in ("processor", "gpu", "libraries")},
    }


def told(facts: dict[str, Any]) -> str:
    """A runtime as one text, to compare with another."""
    parts: list[str] = []
    for name, value in sorted(facts.items()):
        if isinstance(value, dict):
            parts += [f"{inner} {its}" for inner, its in sorted(value.items())]
        elif value is not None:
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def _measure_latency(run_id: int, version_ids: list[int]) -> None:
    """Time each version in turn, several times; the best of each is what the network costs.

    In turn, because another process may be busy for a while: it must not make the one version
    look slower than the other.
    """
    loaded = {version_id: checkpoints.load(version_id) for version_id in version_ids}
    best: dict[int, float] = {}
    for _ in range(LATENCY_ROUNDS):
        for version_id, one in loaded.items():
            seconds = latency(one.network, one.plan, "cpu")
            best[version_id] = min(seconds, best.get(version_id, seconds))
    with database.connect().transaction() as session:
        runs.fence(session, run_id)
        for version_id, seconds in best.items():
            versions.measured(session, version_id, seconds)
