"""Failure analysis: what a version is too sensitive to, which labels it contradicts, what follows.

Sensitivities are measured on validation images alone: the test split and the benchmark must not
have a say in how the next version is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from sqlalchemy.orm import Session

from infra import database, settings
from records import evaluations, failures, objects, runs, snapshots, versions
from records.failures import DoubtRow
from records.versions import VersionRow
from tasks import checkpoints, pixels, snapshot
from tasks.evaluation import answer, choose_engine, runtime, start
from tasks.progress import progress
from tasks.step import reading, timed
from vision.answers import Answers
from vision.doubts import doubts
from vision.failures import GRADES, derive, evenly, sensitivities
from vision.grades import answered
from vision.network import BadCheckpoint
from vision.plan import Plan
from vision.prediction import device_named

log = logging.getLogger("regraft")

# Of a large validation split a part is tried, evenly over the classes.
MOST_IMAGES = 1000
# A night answers at most so many bent pictures for each picture that it trained on. A gradient step
# costs three answers, so this is at most a tenth of the time of its training.
NIGHTLY_SHARE = 0.3


@reading("analyse failures")
def analyse_failures(run_id: int, version_id: int) -> None:
    """Keep what this night's version is too sensitive to, and which labels it contradicts."""
    with timed(run_id, "analyse failures") as facts:
        with database.connect().transaction() as session:
            version = versions.get(session, version_id)
            counts = snapshots.class_counts(session, version.snapshot_digest)
        trained = sum(one.train for one in counts if one.lacks == 0) * version.plan["epochs"]
        most = min(MOST_IMAGES, int(NIGHTLY_SHARE * trained / (1 + len(GRADES))))
        facts["tried"] = analyse(version_id, most, run_id)
        facts["images"] = facts["tried"] * (1 + len(GRADES))


def analyse(version_id: int, most: int = MOST_IMAGES, run_id: int | None = None) -> int:
    """Analyse a version on at most so many validation images; answers how many they were.

    Done again, it replaces what was found before. Raises `BadCheckpoint` for an untrained version.
    """
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
    if version.checkpoint_digest is None:
        raise BadCheckpoint(f"version {version_id} is {version.state}: it has no checkpoint")
    listed = snapshot.read(version.snapshot_digest)
    chosen = evenly(listed.labels["validation"], most)
    labelled = {listed.images["validation"][row]: listed.labels["validation"][row]
                for row in chosen}  # fmt: skip
    sources = _sources(labelled)
    images = list(sources)  # without those that are gone since
    labels = [labelled[sha256] for sha256 in images]
    loaded = checkpoints.load(version_id)
    answers = len(images) * (1 + len(GRADES))
    engine = choose_engine(loaded, answers)
    with (
        progress("try bent pictures", answers) as advance,
        pixels.streamed(loaded.plan.geometry, sources) as held,
    ):
        plain, bent = answered(
            start(loaded, engine).forward,
            loaded.class_names,
            held,
            images,
            labels,
            loaded.plan.image_size,
            device_named(settings.load().device),
            on_picture=advance,
        )
    found = sensitivities(plain, bent, labels)
    doubtful, doubted = _doubts(version)
    with database.connect().transaction() as session:
        if run_id is not None:
            runs.fence(session, run_id)
        failures.record(
            session,
            version_id,
            version.checkpoint_digest,
            len(images),
            runtime(engine),
            found,
            derive(found, loaded.plan),
            doubtful,
            doubted,
        )
    return len(images)


def _sources(images: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """Where the bytes of these images lie, in their order; those that are gone are left out."""
    wanted = list(images)
    with database.connect().transaction() as session:
        found = objects.sources(session, wanted)
    return {sha256: found[sha256] for sha256 in wanted if sha256 in found}


def _doubts(version: VersionRow) -> tuple[list[DoubtRow], dict[str, int]]:
    """Labels that out-of-sample answers contradict, and how many labels were looked at.

    Validation and test answers are those that the evaluation kept. The night's new training images
    are answered by the parent, which has never seen them; the version itself has learned them.
    """
    with database.connect().transaction() as session:
        held_out = {
            subject: found
            for subject in ("validation", "test")
            if (found := _stored(session, version, subject)) is not None
        }
        parent = version.parent_id
        fresh = failures.new_to(session, version.id, parent) if parent is not None else []
    rows = []
    for subject, one in held_out.items():
        rows += _rows(one, subject, version.id)
    doubted = {subject: len(one) for subject, one in held_out.items()}
    if parent is not None and fresh:
        labels, sources = dict(fresh), _sources(sha256 for sha256, _ in fresh)
        told = answer(
            checkpoints.load(parent), sources, list(sources), [labels[one] for one in sources]
        )
        rows += _rows(told, "batch", parent)
        doubted["batch"] = len(told)
    return rows, doubted


def _stored(session: Session, version: VersionRow, subject: str) -> Answers | None:
    found = evaluations.find(session, version.id, subject)
    return evaluations.answers(session, found.id, version.class_names) if found else None


def _rows(told: Answers, subject: str, answered_by: int) -> list[DoubtRow]:
    return [
        DoubtRow(one.image, subject, answered_by, one.label, one.suggested, one.score,
                 one.confidence)
        for one in doubts(told)
    ]  # fmt: skip


@reading("aim")
def aim(run_id: int, snapshot_digest: str, plan: Plan, parent_id: int | None) -> Plan:
    """The plan with its bends widened by what its parent fails at, if it asks for that.

    A parent that was never analysed is analysed now.
    """
    if not plan.targeted or parent_id is None:
        return plan
    with timed(run_id, "aim") as facts:
        with database.connect().transaction() as session:
            known = failures.find(session, parent_id)
        if known is None:
            analyse(parent_id, run_id=run_id)
        with database.connect().transaction() as session:
            class_names = snapshots.class_names(session, snapshot_digest)
            aimed, reasons = failures.next_plan(session, parent_id, plan, class_names)
        facts.update(parent=parent_id, reasons=reasons)
        log.info("aimed at %d failures of version %d", len(reasons), parent_id)
    return aimed
