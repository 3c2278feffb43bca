"""Versions: every trained model, its parent, snapshot, plan and figures."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.orm import Session

from records.tables import Epoch, Export, Version
from vision.plan import Plan

CHECKPOINTS = "checkpoints/"
EXPORTS = "exports/"


class UnknownVersion(LookupError):
    """No such version."""


class Swept(LookupError):
    """A throw-away version whose checkpoint and embeddings were removed."""


class NoRoot(ValueError):
    """A version that no lineage can begin with; the message says why and the mend."""


@dataclass(frozen=True)
class VersionRow:
    """One version as people ask for it.

    plan: as it was asked for; resolved: `plan` with nothing left open, `start` (fingerprint of the
    weights before the first step), `kept_classes` (rows of the head taken from the parent) and
    `saved` (last or average: which weights were validated, judged, saved and are inherited); None
    for versions of before it was kept.
    """

    id: int
    purpose: str
    state: str
    reason: str | None
    run_id: int
    parent_id: int | None
    snapshot_digest: str
    plan: dict[str, Any]
    plan_digest: str
    architecture: str
    class_names: list[str]
    checkpoint_digest: str | None
    resolved: dict[str, Any] | None
    machine: dict[str, Any] | None
    training_accuracy: float | None
    validation_accuracy: float | None
    latency_seconds: float | None
    latency_machine: str | None
    temperature: float | None
    created_at: datetime
    trained_at: datetime | None
    swept_at: datetime | None


@dataclass(frozen=True)
class EpochRow:
    """The figures of one epoch."""

    number: int
    phase: str
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    seconds: float
    images_per_second: float


def checkpoint_key(digest: str) -> str:
    """Where a checkpoint lies in S3: its key is its digest."""
    return f"{CHECKPOINTS}{digest}.safetensors"


def export_key(digest: str) -> str:
    """Where a file that serves lies in S3."""
    return f"{EXPORTS}{digest}.onnx"


def class_names_digest(class_names: list[str]) -> str:
    """Digest of the ordered class names, to the bit as `vision.network.save` writes it."""
    return hashlib.sha256(json.dumps(class_names).encode()).hexdigest()


def candidate(
    session: Session,
    run_id: int,
    purpose: str,
    parent_id: int | None,
    snapshot_digest: str,
    plan: dict[str, Any],
    plan_digest: str,
    class_names: list[str],
) -> int:
    """The version for this snapshot, plan and parent: the one a killed run began, or a new one."""
    parent_purpose = None
    if parent_id is not None:
        parent_purpose = get(session, parent_id).purpose
    same = select(Version.id).where(
        Version.purpose == purpose,
        Version.snapshot_digest == snapshot_digest,
        Version.plan_digest == plan_digest,
        Version.parent_id.is_not_distinct_from(parent_id),
        Version.state != "failed",
        Version.swept_at.is_(None),
    )
    known = session.scalar(same)
    if known is not None:
        return known
    statement = insert(Version).values(
        purpose=purpose,
        run_id=run_id,
        parent_id=parent_id,
        parent_purpose=parent_purpose,
        snapshot_digest=snapshot_digest,
        plan=plan,
        plan_digest=plan_digest,
        architecture=plan["architecture"],
        class_names=class_names,
        class_names_digest=class_names_digest(class_names),
    )
    return session.execute(statement.returning(Version.id)).scalar_one()


def settled(session: Session, plan: Plan, parent_id: int | None) -> Plan:
    """The plan with its network named, the parent's where it is open; raises `UnknownVersion`."""
    if parent_id is None:
        return plan.settled()
    return plan.settled(Plan.from_dict(get(session, parent_id).plan))


def trained(
    session: Session,
    version_id: int,
    checkpoint_digest: str,
    resolved: dict[str, Any],
    machine: dict[str, Any],
    training_accuracy: float,
    validation_accuracy: float | None,
    temperature: float | None = None,
) -> None:
    """Write the finished training down; the checkpoint must lie in S3 before.

    temperature: what the head's weights were divided by; None where they were left as they are.
    """
    session.execute(
        update(Version)
        .where(Version.id == version_id, Version.state == "training")
        .values(
            state="trained",
            checkpoint_digest=checkpoint_digest,
            resolved=resolved,
            machine=machine,
            training_accuracy=training_accuracy,
            validation_accuracy=validation_accuracy,
            temperature=temperature,
            trained_at=func.now(),
        )
    )


def measured(session: Session, version_id: int, seconds: float, processor: str) -> None:
    """Keep the measured seconds of one answer at batch 1, and on which processor it was given."""
    session.execute(
        update(Version)
        .where(Version.id == version_id)
        .values(latency_seconds=seconds, latency_machine=processor)
    )


@dataclass(frozen=True)
class ExportRow:
    """The file that serves a version, and the checkpoint that it was written from."""

    version_id: int
    checkpoint_digest: str
    digest: str
    bytes: int
    made_at: datetime


def exported(session: Session, version_id: int) -> ExportRow | None:
    """The newest file that serves a version, or None before there is one."""
    columns = [getattr(Export, name) for name in ExportRow.__dataclass_fields__]
    query = select(*columns).where(Export.version_id == version_id)
    row = session.execute(query.order_by(Export.id.desc()).limit(1)).first()
    return ExportRow(*row) if row else None


def record_export(
    session: Session, version_id: int, checkpoint_digest: str, digest: str, size: int
) -> None:
    """Keep which file serves a version; it must lie in S3 before."""
    session.execute(
        insert(Export).values(
            version_id=version_id, checkpoint_digest=checkpoint_digest, digest=digest, bytes=size
        )
    )


def failed(session: Session, version_id: int, reason: str) -> None:
    """Close a candidate whose training cannot succeed; a later night begins a new one."""
    session.execute(
        update(Version)
        .where(Version.id == version_id, Version.state == "training")
        .values(state="failed", reason=reason)
    )


def add_epoch(session: Session, version_id: int, figures: EpochRow) -> None:
    """Keep one epoch's figures; an epoch repeated after a kill replaces its row."""
    session.execute(
        text("DELETE FROM epochs WHERE version_id = :version AND number >= :number"),
        {"version": version_id, "number": figures.number},
    )
    session.execute(insert(Epoch).values(version_id=version_id, **asdict(figures)))


def epochs(session: Session, version_id: int) -> list[EpochRow]:
    """The epochs of one version in order."""
    columns = [getattr(Epoch, name) for name in EpochRow.__dataclass_fields__]
    query = select(*columns).where(Epoch.version_id == version_id).order_by(Epoch.number)
    return [EpochRow(*row) for row in session.execute(query)]


def get(session: Session, version_id: int) -> VersionRow:
    """One version; raises `UnknownVersion`."""
    columns = [getattr(Version, name) for name in VersionRow.__dataclass_fields__]
    row = session.execute(select(*columns).where(Version.id == version_id)).first()
    if row is None:
        raise UnknownVersion(f"there is no version {version_id}: `regraft versions` lists them")
    return VersionRow(*row)


def unswept(session: Session, version_id: int) -> VersionRow:
    """One version that still has all that was kept of it; raises `UnknownVersion`, `Swept`."""
    version = get(session, version_id)
    if version.swept_at is not None:
        raise Swept(
            f"version {version_id} was a throw-away version and was swept on "
            f"{version.swept_at:%Y-%m-%d}: its checkpoint and embeddings are gone; "
            "`regraft throwaway` trains another one"
        )
    return version


def latest(session: Session) -> int | None:
    """The newest version that a night has trained, whether it serves or not."""
    newest: int | None = session.scalar(text("SELECT version_id FROM latest"))
    return newest


def root(session: Session, version_id: int) -> VersionRow:
    """A pretrained version, for a lineage to begin with; raises `UnknownVersion`, `NoRoot`."""
    version = get(session, version_id)
    if version.purpose != "pretrain":
        raise NoRoot(
            f"version {version_id} is a {version.purpose} version: a lineage begins with a "
            "`pretrain` version, from `regraft pretrain SET`"
        )
    if version.state != "trained":
        raise NoRoot(
            f"version {version_id} is {version.state}: run its `regraft pretrain` again to the end"
        )
    return version


@dataclass(frozen=True)
class Ancestor:
    """One version of a lineage with what its training took; seconds count validation in."""

    id: int
    purpose: str
    parent_id: int | None
    plan: dict[str, Any]
    epochs: int
    seconds: float


def lineage(session: Session, version_id: int) -> list[Ancestor]:
    """A version and those whose weights it goes back to, the newest first.

    One that was trained from scratch is the last: whatever it was compared with left it no weights.
    """
    rows = session.execute(
        text(
            """
            WITH RECURSIVE line AS (
                SELECT v.id, v.purpose, v.parent_id, v.plan, 0 AS back
                FROM versions v WHERE v.id = :version
                UNION ALL
                SELECT p.id, p.purpose, p.parent_id, p.plan, line.back + 1
                FROM line JOIN versions p ON p.id = line.parent_id
                WHERE line.plan->>'recipe' <> 'scratch')
            SELECT line.id, line.purpose, line.parent_id, line.plan,
                   (SELECT count(*) FROM epochs e WHERE e.version_id = line.id),
                   (SELECT coalesce(sum(seconds), 0) FROM epochs e WHERE e.version_id = line.id)
            FROM line ORDER BY back
            """
        ),
        {"version": version_id},
    )
    return [Ancestor(*row) for row in rows]
