"""Explanation: Grad-CAM maps of what went wrong, of what changed, and of a sample of each class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np
from PIL import Image
from sqlalchemy.orm import Session

from infra import database, settings
from records import benchmark, evaluations, objects, runs, versions
from records.evaluations import GradCamRow, Told
from tasks import checkpoints, pixels
from tasks.step import reading, timed
from vision.gate import flips
from vision.gradcam import Map, maps, overlay
from vision.network import Loaded

WORST_ERRORS = 24
MOST_FLIPS = 24
SAMPLES_PER_CLASS = 1
AT_A_TIME = 256  # images whose pixels are in memory at once


@dataclass(frozen=True)
class Wanted:
    """One map to make: of which image, for which class, and why."""

    sha256: str
    target: str
    subject: str
    reason: str
    label: str
    predicted: str
    confidence: float


@reading("explain")
def explain(run_id: int, version_id: int, champion_id: int | None) -> None:
    """Keep maps of this night's candidate, and of the champion where the two differ."""
    with timed(run_id, "explain") as facts:
        facts["maps"] = explain_now(version_id, champion_id, run_id)


def explain_now(version_id: int, champion_id: int | None, run_id: int | None = None) -> int:
    """Keep maps of the benchmark's worst errors and flips and of a test sample of each class.

    An error gets two maps: for the class that was answered and for the true one. Flips are shown
    for champion and candidate, so that the two can be laid side by side. Answers how many maps.
    """
    with database.connect().transaction() as session:
        wanted = _wanted(session, version_id, champion_id)
        beside = _flips(session, champion_id, version_id) if champion_id else []
    rows = _explained(version_id, wanted)
    old = _explained(champion_id, beside) if champion_id and beside else []
    with database.connect().transaction() as session:
        if run_id is not None:
            runs.fence(session, run_id)
        evaluations.record_gradcams(session, version_id, rows)
        if champion_id and old:
            evaluations.add_gradcams(session, champion_id, old)
    return len(rows) + len(old)


def _wanted(session: Session, version_id: int, champion_id: int | None) -> list[Wanted]:
    chosen: list[Wanted] = []
    latest = benchmark.current(session).version
    on_benchmark = evaluations.find(session, version_id, "benchmark", benchmark_version=latest)
    if on_benchmark:
        for worst in evaluations.worst_errors(session, on_benchmark.id, WORST_ERRORS):
            chosen += _both_classes(_wish(worst, "benchmark", "worst error"))
    if champion_id:
        chosen += _flips(session, version_id, champion_id)
    on_test = evaluations.find(session, version_id, "test")
    if on_test:
        samples = evaluations.samples_per_class(session, on_test.id, SAMPLES_PER_CLASS)
        chosen += [replace(_wish(one, "test", "sample"), target=one.label) for one in samples]
    return _known_targets(session, version_id, chosen)


def _wish(one: Told, subject: str, reason: str) -> Wanted:
    return Wanted(one.sha256, "", subject, reason, one.label, one.predicted, one.confidence)


def _flips(session: Session, version_id: int, other_id: int) -> list[Wanted]:
    """Benchmark images that one of the two versions had right and the other wrong."""
    latest = benchmark.current(session).version
    both = []
    for one in (version_id, other_id):
        found = evaluations.find(session, one, "benchmark", benchmark_version=latest)
        names = versions.get(session, one).class_names
        both.append(evaluations.answers(session, found.id, names) if found else None)
    mine, theirs = both
    if mine is None or theirs is None:
        return []
    # A class that only one of them knows flips by itself, and shows nothing.
    shared = set(mine.class_names) & set(theirs.class_names)
    mine, theirs = (
        one.select(np.array([label in shared for label in one.labels])) for one in both if one
    )
    turned = flips(mine, theirs)
    some = [*turned.lost[: MOST_FLIPS // 2], *turned.gained[: MOST_FLIPS // 2]]
    place = {sha256: row for row, sha256 in enumerate(mine.images)}
    chosen = []
    for sha256 in some:
        row = place[sha256]
        told = Told(sha256, mine.labels[row], mine.predicted[row], float(mine.confidence[row]))
        chosen += _both_classes(_wish(told, "benchmark", "flip"))
    return _known_targets(session, version_id, chosen)


def _both_classes(one: Wanted) -> list[Wanted]:
    targets = dict.fromkeys((one.predicted, one.label))
    return [replace(one, target=target) for target in targets]


def _known_targets(session: Session, version_id: int, chosen: Iterable[Wanted]) -> list[Wanted]:
    """Each image and class once, and only classes that the version knows."""
    names = set(versions.get(session, version_id).class_names)
    once: dict[tuple[str, str], Wanted] = {}
    for one in chosen:
        if one.target in names:
            once.setdefault((one.sha256, one.target), one)
    return list(once.values())


def _explained(version_id: int, wanted: list[Wanted]) -> list[GradCamRow]:
    loaded = checkpoints.load(version_id)
    sources = sources_of([one.sha256 for one in wanted])
    wanted = [one for one in wanted if one.sha256 in sources]
    held = pixels.opened(loaded.plan.geometry, sources)
    column = {name: place for place, name in enumerate(loaded.class_names)}
    rows = []
    for start in range(0, len(wanted), AT_A_TIME):
        some = wanted[start : start + AT_A_TIME]
        found = maps(
            loaded.network,
            held.gather([one.sha256 for one in some]),
            [column[one.target] for one in some],
            loaded.plan,
            settings.load().device,
        )
        rows += [_row(version_id, one, each) for one, each in zip(some, found, strict=True)]
    return rows


def sources_of(images: list[str]) -> dict[str, tuple[str, str | None]]:
    """Where the bytes of these images lie, whether library or benchmark has them."""
    found: dict[str, tuple[str, str | None]] = {}
    with database.connect().transaction() as session:
        found.update(objects.sources(session, images))
        found.update({sha: (key, None) for sha, key in benchmark.keys(session, images).items()})
    return found


def _row(version_id: int, one: Wanted, explained: Map) -> GradCamRow:
    facts = {
        name: value
        for name, value in asdict(explained).items()
        if name not in ("values", "positive")
    }
    height, width = explained.values.shape
    return GradCamRow(
        version_id=version_id,
        height=height,
        width=width,
        cells=explained.values.astype("<f2").tobytes(),
        positive=explained.positive,
        facts=facts,
        **asdict(one),
    )


def drawn(loaded: Loaded, row: GradCamRow) -> Image.Image:
    """The stored map drawn over its picture."""
    held = pixels.opened(loaded.plan.geometry, sources_of([row.sha256]))
    values = np.frombuffer(row.cells, "<f2").reshape(row.height, row.width)
    return overlay(held.gather([row.sha256])[0], Map(values, row.positive, **row.facts))
