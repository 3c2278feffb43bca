"""Evaluations: what a version answered on a set of images, kept image by image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from infra.database import copy_lines, copy_text
from records.tables import Evaluation, EvaluationClass, GradCam
from vision.answers import Answers, BadAnswers
from vision.scores import ClassScore, Scores


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
    loss: float | None
    calibration_error: float | None
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
            images=scores.images,
            accuracy=scores.accuracy,
            accuracy_low=scores.accuracy_low,
            accuracy_high=scores.accuracy_high,
            top5_accuracy=scores.top5_accuracy,
            loss=scores.loss,
            calibration_error=scores.calibration_error,
            runtime=runtime,
        )
        .returning(Evaluation.id)
    ).scalar_one()
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
    return evaluation_id


def answer_lines(evaluation_id: int, answers: Answers) -> Iterator[str]:
    """Rows of `answers` as COPY's text: each name is escaped once, each row is one format."""
    names = [copy_text(name) for name in answers.class_names]
    elements = [copy_text(_element(name)) for name in answers.class_names]
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


def _element(word: str) -> str:
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
    rows = session.execute(
        text(
            """
            SELECT class_name, images, correct, predicted, precision, recall, f1, recall_low,
                   recall_high
            FROM evaluation_classes WHERE evaluation_id = :evaluation
            ORDER BY recall NULLS LAST, class_name
            """
        ),
        {"evaluation": evaluation_id},
    )
    return [ClassScore(*row) for row in rows]


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
