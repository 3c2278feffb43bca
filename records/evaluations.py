"""Evaluations: what a version answered on a set of images, kept image by image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from infra.database import copy_lines, copy_text
from records.classes import ALIKE
from records.tables import Evaluation, EvaluationClass, GradCam, ReliabilityBin
from records.tables import Threshold as ThresholdTable
from vision.answers import Answers, BadAnswers
from vision.scores import (
    Bin,
    ClassScore,
    ClassTransfer,
    Confusion,
    Scores,
    Threshold,
    Transfer,
    transfer,
)

# the overall figures of `Scores` that are columns of their own
FIGURES = (
    "images", "accuracy", "accuracy_low", "accuracy_high", "top5_accuracy", "top5_low",
    "top5_high", "mean_recall", "mean_f1", "loss", "calibration_error", "calibration_by_chance",
)  # fmt: skip


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluation with its overall figures."""

    id: int
    version_id: int
    checkpoint_digest: str
    subject: str
    benchmark_version: int | None
    batch_id: int | None
    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    top5_accuracy: float | None
    top5_low: float | None
    top5_high: float | None
    mean_recall: float | None
    mean_f1: float | None
    loss: float | None
    calibration_error: float | None
    calibration_by_chance: float | None
    runtime: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class GradCamRow:
    """One stored map; `cells` is height x width float16 in 0..1, row by row."""

    version_id: int
    sha256: str
    target: str
    subject: str
    reason: str
    label: str
    predicted: str
    confidence: float
    height: int
    width: int
    cells: bytes
    positive: bool
    facts: dict[str, Any]


def record(
    session: Session,
    version_id: int,
    checkpoint_digest: str,
    subject: str,
    answers: Answers,
    scores: Scores,
    runtime: dict[str, Any],
    benchmark_version: int | None = None,
    batch_id: int | None = None,
) -> int:
    """Keep an evaluation with every answer; one that was there before is replaced whole."""
    session.execute(
        text(
            """
            DELETE FROM evaluations WHERE version_id = :version AND subject = :subject
              AND benchmark_version IS NOT DISTINCT FROM :benchmark
              AND batch_id IS NOT DISTINCT FROM :batch
            """
        ),
        {
            "version": version_id,
            "subject": subject,
            "benchmark": benchmark_version,
            "batch": batch_id,
        },
    )
    evaluation_id = session.execute(
        insert(Evaluation)
        .values(
            version_id=version_id,
            checkpoint_digest=checkpoint_digest,
            subject=subject,
            benchmark_version=benchmark_version,
            batch_id=batch_id,
            runtime=runtime,
            **{name: getattr(scores, name) for name in FIGURES},
        )
        .returning(Evaluation.id)
    ).scalar_one()
    if scores.bins:
        session.execute(
            insert(ReliabilityBin),
            [{"evaluation_id": evaluation_id, **asdict(one)} for one in scores.bins],
        )
    if scores.classes:
        session.execute(
            insert(EvaluationClass),
            [
                {"evaluation_id": evaluation_id, "class_name": name, **figures}
                for name, figures in (_split_name(one) for one in scores.classes)
            ],
        )
    columns = [
        "evaluation_id", "sha256", "label", "predicted", "correct", "confidence",
        "label_confidence", "top_labels", "top_confidences",
    ]  # fmt: skip
    copy_lines(session, "answers", columns, answer_lines(evaluation_id, answers))
    session.execute(text(_GROUPED), {"evaluation": evaluation_id})
    return evaluation_id


# Counted once: later the images may be others, and every page would count millions of answers.
_GROUPED = """
    WITH groups AS (
        INSERT INTO evaluation_groups
            (evaluation_id, class_name, origin, sub_class, images, correct)
        SELECT a.evaluation_id, a.label, i.origin, i.sub_class, count(*),
               count(*) FILTER (WHERE a.correct)
        FROM answers a JOIN images i USING (sha256) WHERE a.evaluation_id = :evaluation
        GROUP BY a.evaluation_id, a.label, i.origin, i.sub_class
        RETURNING evaluation_id, origin, images, correct)
    INSERT INTO evaluation_origins (evaluation_id, origin, images, correct)
    SELECT evaluation_id, origin, sum(images), sum(correct) FROM groups
    GROUP BY evaluation_id, origin
"""


def answer_lines(evaluation_id: int, answers: Answers) -> Iterator[str]:
    """Rows of `answers` as COPY's text: each name is escaped once, each row is one format."""
    names = [copy_text(name) for name in answers.class_names]
    elements = [copy_text(array_element(name)) for name in answers.class_names]
    labels = {label: copy_text(label) for label in set(answers.labels)}
    # Nine digits are enough to give back the very same float32.
    numbers = ",".join(["%.9g"] * answers.top.shape[1])
    line = f"{evaluation_id}\t%s\t%s\t%s\t%s\t%.9g\t%.9g\t{{%s}}\t{{{numbers}}}\n"
    for sha256, label, best, confidences, own in zip(
        answers.images,
        answers.labels,
        answers.top.tolist(),
        answers.confidences.tolist(),
        answers.label_confidence.tolist(),
        strict=True,
    ):
        predicted = answers.class_names[best[0]]
        yield line % (
            copy_text(sha256),
            labels[label],
            names[best[0]],
            "t" if predicted == label else "f",
            confidences[0],
            own,
            ",".join([elements[place] for place in best]),
            *confidences,
        )


def _split_name(one: ClassScore) -> tuple[str, dict[str, Any]]:
    figures = asdict(one)
    return figures.pop("name"), figures


def array_element(word: str) -> str:
    """A text as one element of Postgres's array text."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def find(
    session: Session,
    version_id: int,
    subject: str,
    benchmark_version: int | None = None,
    batch_id: int | None = None,
) -> EvaluationRow | None:
    """The evaluation of a version on a subject, if there is one."""
    columns = [getattr(Evaluation, name) for name in EvaluationRow.__dataclass_fields__]
    query = select(*columns).where(
        Evaluation.version_id == version_id,
        Evaluation.subject == subject,
        Evaluation.benchmark_version.is_not_distinct_from(benchmark_version),
        Evaluation.batch_id.is_not_distinct_from(batch_id),
    )
    row = session.execute(query).first()
    return EvaluationRow(*row) if row else None


def newest_benchmark(session: Session, version_id: int) -> int | None:
    """The newest benchmark version that a version has answered."""
    query = select(func.max(Evaluation.benchmark_version))
    return session.scalar(query.where(Evaluation.version_id == version_id))


def unanswered_batches(session: Session) -> list[int]:
    """Accepted batches with usable images that no judged version has answered yet, oldest first."""
    rows = session.scalars(
        text(
            """
            SELECT b.id FROM batches b
            WHERE b.state = 'accepted'
              AND EXISTS (SELECT 1 FROM images i
                          WHERE i.batch_id = b.id AND i.withdrawn_at IS NULL)
              AND NOT EXISTS (SELECT 1 FROM evaluations e JOIN verdicts d USING (version_id)
                              WHERE e.batch_id = b.id)
            ORDER BY b.id
            """
        )
    )
    return list(rows)


def of_version(session: Session, version_id: int) -> list[EvaluationRow]:
    """Every evaluation of a version."""
    columns = [getattr(Evaluation, name) for name in EvaluationRow.__dataclass_fields__]
    query = select(*columns).where(Evaluation.version_id == version_id).order_by(Evaluation.id)
    return [EvaluationRow(*row) for row in session.execute(query)]


def answers(session: Session, evaluation_id: int, class_names: list[str]) -> Answers | None:
    """The stored answers of an evaluation, by digest; None when not one is left.

    Raises `BadAnswers` for rows that cannot be what a version answered.
    """
    rows = session.execute(
        text(
            """
            SELECT sha256, label, label_confidence, top_labels, top_confidences
            FROM answers WHERE evaluation_id = :evaluation ORDER BY sha256
            """
        ),
        {"evaluation": evaluation_id},
    ).all()
    if not rows:
        return None
    column = {name: place for place, name in enumerate(class_names)}
    unknown = {name for row in rows for name in row[3]} - set(column)
    if unknown:
        raise BadAnswers(
            f"evaluation {evaluation_id} answers {min(unknown)!r}, which its version does not "
            "know: evaluate again"
        )
    return Answers(
        images=tuple(row[0] for row in rows),
        labels=tuple(row[1] for row in rows),
        class_names=tuple(class_names),
        top=np.array([[column[name] for name in row[3]] for row in rows], dtype=np.int64),
        confidences=np.array([row[4] for row in rows], dtype=np.float32),
        label_confidence=np.array([row[2] for row in rows], dtype=np.float32),
    )


def class_scores(session: Session, evaluation_id: int) -> list[ClassScore]:
    """The per-class figures of an evaluation, the weakest recall first."""
    names = [name for name in ClassScore.__dataclass_fields__ if name != "name"]
    columns = [EvaluationClass.class_name, *(getattr(EvaluationClass, name) for name in names)]
    query = select(*columns).where(EvaluationClass.evaluation_id == evaluation_id)
    query = query.order_by(EvaluationClass.recall.nulls_last(), EvaluationClass.class_name)
    return [ClassScore(*row) for row in session.execute(query)]


def reliability(session: Session, evaluation_id: int) -> list[Bin]:
    """How sure and how right an evaluation's answers were, from the least sure to the surest."""
    columns = [getattr(ReliabilityBin, name) for name in Bin.__dataclass_fields__]
    query = select(*columns).where(ReliabilityBin.evaluation_id == evaluation_id)
    return [Bin(*row) for row in session.execute(query.order_by(ReliabilityBin.low))]


def confusions(session: Session, evaluation_id: int, most: int | None = None) -> list[Confusion]:
    """Each pair of true and wrongly answered class, the most frequent first."""
    rows = session.execute(
        text(
            """
            SELECT label, predicted, count(*) AS images,
                   count(*)::double precision / (SELECT images FROM evaluation_classes c
                       WHERE c.evaluation_id = a.evaluation_id AND c.class_name = a.label)
            FROM answers a WHERE evaluation_id = :evaluation AND NOT correct
            GROUP BY evaluation_id, label, predicted
            ORDER BY images DESC, label COLLATE "C", predicted COLLATE "C" LIMIT :most
            """
        ),
        {"evaluation": evaluation_id, "most": most},
    )
    return [Confusion(*row) for row in rows]


@dataclass(frozen=True)
class SplitScore:
    """How much of one split of the library was answered right, of the classes the version knows.

    split: as the image was given it at intake; `train` is in-sample: the version or one of its
    ancestors may have learned these very images.
    """

    split: str
    images: int
    correct: int


def by_split(session: Session, evaluation_id: int, class_names: list[str]) -> list[SplitScore]:
    """An evaluation of library images, split by split."""
    rows = session.execute(
        text(
            """
            SELECT i.split, count(*), count(*) FILTER (WHERE a.correct)
            FROM answers a JOIN images i USING (sha256)
            WHERE a.evaluation_id = :evaluation AND a.label = ANY(:known)
            GROUP BY i.split
            ORDER BY array_position(ARRAY['train', 'validation', 'test', 'held'], i.split)
            """
        ),
        {"evaluation": evaluation_id, "known": class_names},
    )
    return [SplitScore(*row) for row in rows]


def transfer_between(
    session: Session, version_id: int, parent_id: int, subject: str
) -> Transfer | None:
    """What a version lost and gained against its parent on the images of a subject.

    Only images whose stored answers of both have the same label, of a class that both know; labels
    and answers by today's names; of the benchmark, each version's newest answers. None where they
    have no image in common.
    """
    rows = session.execute(
        text(
            f"""
            WITH newest AS (
                SELECT DISTINCT ON (version_id) version_id, id FROM evaluations
                WHERE subject = :subject AND version_id IN (:version, :parent)
                ORDER BY version_id, benchmark_version DESC, id DESC),
            known AS (
                SELECT v.id, coalesce(n.today, one.name) AS today
                FROM versions v, unnest(v.class_names) one (name)
                LEFT JOIN class_names n USING (name) WHERE v.id IN (:version, :parent)),
            {ALIKE},
            told AS (
                SELECT coalesce(n.today, now.label) AS label, coalesce(m.today, was.label) AS other,
                       now.correct
                           OR (now.predicted, now.label) IN (SELECT * FROM alike) AS correct,
                       was.correct
                           OR (was.predicted, was.label) IN (SELECT * FROM alike) AS before
                FROM newest mine JOIN newest theirs ON theirs.version_id = :parent
                JOIN answers now ON now.evaluation_id = mine.id
                JOIN answers was ON was.evaluation_id = theirs.id AND was.sha256 = now.sha256
                LEFT JOIN class_names n ON n.name = now.label
                LEFT JOIN class_names m ON m.name = was.label
                WHERE mine.version_id = :version),
            shared AS (
                SELECT today FROM known WHERE id = :version
                INTERSECT SELECT today FROM known WHERE id = :parent)
            SELECT label, count(*), count(*) FILTER (WHERE before),
                   count(*) FILTER (WHERE correct),
                   count(*) FILTER (WHERE before AND NOT correct),
                   count(*) FILTER (WHERE correct AND NOT before)
            -- in a CASE, since Postgres takes one equality in two hundred for true, and would go
            -- through all shared classes for each answer
            FROM told WHERE CASE WHEN label = other THEN label IN (SELECT today FROM shared) END
            GROUP BY label
            """  # noqa: S608
        ),
        {"version": version_id, "parent": parent_id, "subject": subject},
    )
    return transfer(ClassTransfer(*row) for row in rows)


@dataclass(frozen=True)
class ThresholdRow:
    """A version's threshold for a wished precision, and what it is worth on one set of images.

    The row of `validation` is the fit; its confidence is None where none reaches the wish. The
    figures are None where no answer is so sure.
    """

    wished: float
    subject: str
    benchmark_version: int | None
    confidence: float | None
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    answered: int
    images: int
    fitted_at: datetime

    @property
    def coverage(self) -> float:
        """The share of the images that is answered, 0..1."""
        return self.answered / self.images if self.images else 0.0

    @property
    def sentence(self) -> str:
        """What a person needs to know, with counts."""
        on = self.subject
        if self.benchmark_version is not None:
            on = f"benchmark {self.benchmark_version}"
        if self.confidence is None:
            return (f"No confidence reaches a precision of {self.wished:.1%} on the {self.images} "
                    "validation images: there is no threshold.")  # fmt: skip
        at = f"At a confidence of {self.confidence:.3f} or more"
        if self.precision is None or self.precision_low is None or self.precision_high is None:
            return f"{at} none of the {self.images} images of {on} is answered."
        verdict = "which it was fitted to"
        if self.subject != "validation":
            verdict = "not told apart from"
            verdict = "above" if self.precision_low > self.wished else verdict
            verdict = "BELOW" if self.precision_high < self.wished else verdict
            verdict = f"{verdict} the wished {self.wished:.1%}"
        return (
            f"{at} the precision on {on} is {self.precision:.1%} [{self.precision_low:.1%}, "
            f"{self.precision_high:.1%}], coverage {self.coverage:.1%} ({self.answered} of "
            f"{self.images}): {verdict}."
        )


def wishes(session: Session, version_id: int) -> set[float]:
    """The precisions for which a version has thresholds, or is known to have none."""
    return set(
        session.scalars(
            text("SELECT DISTINCT wished FROM thresholds WHERE version_id = :version"),
            {"version": version_id},
        )
    )


def record_threshold(
    session: Session,
    version_id: int,
    wished: float,
    fitted: Threshold | None,
    validation_images: int,
    verified: Mapping[tuple[str, int | None], Threshold],
) -> None:
    """Keep a threshold in place of the one it had: its fit, and its worth by (subject, version)."""
    session.execute(
        text("DELETE FROM thresholds WHERE version_id = :version AND wished = :wished"),
        {"version": version_id, "wished": wished},
    )
    rows: dict[tuple[str, int | None], Threshold | None] = {("validation", None): fitted}
    rows |= dict(sorted(verified.items(), key=lambda one: (one[0][1] or 0)))
    for (subject, benchmark_version), one in rows.items():
        session.execute(
            insert(ThresholdTable).values(
                version_id=version_id,
                wished=wished,
                subject=subject,
                benchmark_version=benchmark_version,
                confidence=one.confidence if one else None,
                precision=one.precision if one else None,
                precision_low=one.precision_low if one else None,
                precision_high=one.precision_high if one else None,
                answered=one.answered if one else 0,
                images=one.images if one else validation_images,
            )
        )


def thresholds(session: Session, version_id: int) -> list[ThresholdRow]:
    """A version's thresholds, wish by wish: the fit, then the test split, then the benchmarks."""
    columns = [getattr(ThresholdTable, name) for name in ThresholdRow.__dataclass_fields__]
    query = select(*columns).where(ThresholdTable.version_id == version_id)
    query = query.order_by(ThresholdTable.wished, ThresholdTable.id)
    return [ThresholdRow(*row) for row in session.execute(query)]


@dataclass(frozen=True)
class Told:
    """One stored answer: the true class, the one answered, and how surely."""

    sha256: str
    label: str
    predicted: str
    confidence: float


def worst_errors(session: Session, evaluation_id: int, most: int) -> list[Told]:
    """The most confident wrong answers."""
    rows = session.execute(
        text(
            """
            SELECT sha256, label, predicted, confidence FROM answers
            WHERE evaluation_id = :evaluation AND NOT correct
            ORDER BY confidence DESC, sha256 LIMIT :most
            """
        ),
        {"evaluation": evaluation_id, "most": most},
    )
    return [Told(*row) for row in rows]


def samples_per_class(session: Session, evaluation_id: int, each: int) -> list[Told]:
    """Some right answers of every class."""
    rows = session.execute(
        text(
            """
            SELECT sha256, label, predicted, confidence FROM (
                SELECT *, row_number() OVER (PARTITION BY label ORDER BY sha256) AS place
                FROM answers WHERE evaluation_id = :evaluation AND correct) ranked
            WHERE place <= :each ORDER BY label, sha256
            """
        ),
        {"evaluation": evaluation_id, "each": each},
    )
    return [Told(*row) for row in rows]


def record_gradcams(session: Session, version_id: int, rows: list[GradCamRow]) -> None:
    """Keep a version's maps in place of those it had."""
    session.execute(
        text("DELETE FROM gradcams WHERE version_id = :version"), {"version": version_id}
    )
    add_gradcams(session, version_id, rows)


def add_gradcams(session: Session, version_id: int, rows: list[GradCamRow]) -> None:
    """Add maps to those a version has; one of the same image and class is replaced."""
    for row in rows:
        values = dict(row.__dict__) | {"version_id": version_id}
        statement = upsert(GradCam).values(values)
        session.execute(
            statement.on_conflict_do_update(
                index_elements=["version_id", "sha256", "target"], set_=values
            )
        )


def gradcams(session: Session, version_id: int) -> list[GradCamRow]:
    """A version's maps: worst errors, then flips, then samples."""
    columns = [getattr(GradCam, name) for name in GradCamRow.__dataclass_fields__]
    query = select(*columns).where(GradCam.version_id == version_id)
    query = query.order_by(GradCam.reason.desc(), GradCam.confidence.desc(), GradCam.sha256)
    return [GradCamRow(*row) for row in session.execute(query)]


def gradcam(session: Session, version_id: int, sha256: str, target: str) -> GradCamRow | None:
    """The map that is kept of one image for one class, if one is."""
    columns = [getattr(GradCam, name) for name in GradCamRow.__dataclass_fields__]
    query = select(*columns).where(
        GradCam.version_id == version_id, GradCam.sha256 == sha256, GradCam.target == target
    )
    row = session.execute(query).first()
    return GradCamRow(*row) if row else None
