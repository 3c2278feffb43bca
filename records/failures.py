"""Failures: what a version is too sensitive to, confuses and contradicts, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from records import classes, tables, versions
from vision.failures import Change, Derived, Sensitivity, aimed
from vision.plan import Augmentation, Plan


class NotAnalysed(LookupError):
    """A version whose failures nobody has looked at; the message is one line with the mend."""


@dataclass(frozen=True)
class AnalysisRow:
    """One analysis; doubted: how many labels of which subject were held against answers."""

    version_id: int
    checkpoint_digest: str
    images: int
    runtime: dict[str, Any]
    augmentation: dict[str, Any]
    class_augmentation: dict[str, Any]
    doubted: dict[str, int]
    created_at: datetime


@dataclass(frozen=True)
class DoubtRow:
    """One doubtful label, and which version's answer contradicts it."""

    sha256: str
    subject: str
    answered_by: int
    label: str
    suggested: str
    score: float
    confidence: float


@dataclass(frozen=True)
class ConfusionRow:
    """How many images of one class were answered with another, of all images of that class."""

    label: str
    predicted: str
    images: int
    of: int


def record(
    session: Session,
    version_id: int,
    checkpoint_digest: str,
    images: int,
    runtime: dict[str, Any],
    found: Sequence[Sensitivity],
    derived: Derived,
    doubts: Sequence[DoubtRow],
    doubted: dict[str, int],
) -> None:
    """Keep an analysis whole, in place of the one that the version had.

    Of a class with too few images only the counts at each grade are kept, and no figure.
    """
    session.execute(
        text("DELETE FROM failure_analyses WHERE version_id = :version"), {"version": version_id}
    )
    session.execute(
        insert(tables.FailureAnalysis).values(
            version_id=version_id,
            checkpoint_digest=checkpoint_digest,
            images=images,
            runtime=runtime,
            augmentation=asdict(derived.augmentation),
            class_augmentation={
                name: asdict(one) for name, one in derived.class_augmentation.items()
            },
            doubted=doubted,
        )
    )
    changes = [asdict(one) | {"ordinal": place} for place, one in enumerate(derived.changes)]
    _add(session, tables.Sensitivity, version_id, [asdict(one) for one in found])
    _add(session, tables.AugmentationChange, version_id, changes)
    _add(session, tables.LabelDoubt, version_id, [asdict(one) for one in doubts])


def _add(
    session: Session, table: type[tables.Base], version_id: int, rows: list[dict[str, Any]]
) -> None:
    if rows:
        session.execute(insert(table), [row | {"version_id": version_id} for row in rows])


def find(session: Session, version_id: int) -> AnalysisRow | None:
    """The analysis of a version, if there is one."""
    columns = [getattr(tables.FailureAnalysis, name) for name in AnalysisRow.__dataclass_fields__]
    query = select(*columns).where(tables.FailureAnalysis.version_id == version_id)
    row = session.execute(query).first()
    return AnalysisRow(*row) if row else None


def get(session: Session, version_id: int) -> AnalysisRow:
    """The analysis of a version; raises `NotAnalysed`."""
    found = find(session, version_id)
    if found is None:
        raise NotAnalysed(
            f"the failures of version {version_id} were not analysed: "
            f"`regraft failures {version_id} --analyse`"
        )
    return found


def sensitivities(session: Session, version_id: int) -> list[Sensitivity]:
    """What each grade costs: all classes first, then class by class."""
    columns = [getattr(tables.Sensitivity, name) for name in Sensitivity.__dataclass_fields__]
    query = select(*columns).where(tables.Sensitivity.version_id == version_id)
    query = query.order_by(tables.Sensitivity.class_name.nulls_first(), tables.Sensitivity.id)
    return [Sensitivity(*row) for row in session.execute(query)]


def derived(session: Session, version_id: int) -> Derived:
    """How the next plan should bend pictures, and why; raises `NotAnalysed`."""
    found = get(session, version_id)
    columns = [getattr(tables.AugmentationChange, name) for name in Change.__dataclass_fields__]
    query = select(*columns).where(tables.AugmentationChange.version_id == version_id)
    query = query.order_by(tables.AugmentationChange.ordinal)
    return Derived(
        Augmentation.from_dict(found.augmentation),
        {name: Augmentation.from_dict(one) for name, one in found.class_augmentation.items()},
        tuple(Change(*row) for row in session.execute(query)),
    )


def next_plan(
    session: Session,
    version_id: int,
    plan: Plan | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[Plan, list[str]]:
    """A plan, by default the version's own, aimed at what the version fails at, and the reasons.

    class_names: what the plan will train, by default the version's classes. Raises `NotAnalysed`.
    """
    version = versions.get(session, version_id)
    found = derived(session, version_id)
    asked = Plan.from_dict(version.plan) if plan is None else plan
    if class_names is not None:  # as they are called today, and the version was trained before
        now = classes.today(session)
        own = {now.get(name, name): wide for name, wide in found.class_augmentation.items()}
        found = replace(found, class_augmentation=own)
    names = version.class_names if class_names is None else class_names
    return aimed(asked, found, names), [one.sentence for one in found.changes]


def doubts(session: Session, version_id: int) -> list[DoubtRow]:
    """The doubtful labels that a version's analysis found, the most doubtful first."""
    columns = [getattr(tables.LabelDoubt, name) for name in DoubtRow.__dataclass_fields__]
    query = select(*columns).where(tables.LabelDoubt.version_id == version_id)
    query = query.order_by(tables.LabelDoubt.score, tables.LabelDoubt.sha256)
    return [DoubtRow(*row) for row in session.execute(query)]


def confusions(session: Session, version_id: int, subject: str, most: int) -> list[ConfusionRow]:
    """The pairs of classes that a version confuses most often on a subject."""
    rows = session.execute(
        text(
            """
            WITH told AS (
                SELECT a.label, a.predicted, a.correct FROM answers a
                JOIN evaluations e ON e.id = a.evaluation_id
                WHERE e.version_id = :version AND e.subject = :subject)
            SELECT label, predicted, count(*) AS images,
                   (SELECT count(*) FROM told b WHERE b.label = t.label)
            FROM told t WHERE NOT correct
            GROUP BY label, predicted ORDER BY count(*) DESC, label, predicted LIMIT :most
            """
        ),
        {"version": version_id, "subject": subject, "most": most},
    )
    return [ConfusionRow(*row) for row in rows]


def new_to(session: Session, version_id: int, parent_id: int) -> list[tuple[str, str]]:
    """(sha256, class) of training images that a version's parent cannot have trained on.

    They came with batches that the version has answered, and were not in the library yet when the
    parent's snapshot was chosen, hence not when those of its ancestors were.
    """
    rows = session.execute(
        text(
            """
            SELECT i.sha256, c.name FROM evaluations e
            JOIN images i ON i.batch_id = e.batch_id AND i.withdrawn_at IS NULL
            JOIN classes c ON c.id = i.class_id
            JOIN versions p ON p.id = :parent AND c.name IN (
                SELECT coalesce(n.today, known.name) FROM unnest(p.class_names) known (name)
                LEFT JOIN class_names n USING (name))
            WHERE e.version_id = :version AND e.subject = 'batch' AND i.split = 'train'
              AND i.added_at > p.created_at
            ORDER BY i.sha256
            """
        ),
        {"version": version_id, "parent": parent_id},
    )
    return [(sha256, name) for sha256, name in rows]
