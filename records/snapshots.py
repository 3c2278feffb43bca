"""Snapshots: which images one version trains on, chosen by rule and frozen by digest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import insert, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from records.tables import Snapshot, SnapshotClass

# Part of every digest: a changed rule of choosing must never pass for an unchanged snapshot.
POLICY = "newest-by-batch/1"


@dataclass(frozen=True)
class Chosen:
    """One image of a snapshot."""

    sha256: str
    class_name: str
    split: str


@dataclass(frozen=True)
class ClassCount:
    """What a class has for a snapshot; `lacks` above 0 leaves it out."""

    class_name: str
    usable: int
    lacks: int
    train: int
    validation: int
    test: int


# A class's newest images are those of its newest batches; within a batch the digest decides.
# No clock and no listing order has a part in it, so a repeated run chooses the same images.
_RANKED = """
    SELECT i.sha256, c.name AS class_name, i.split,
           count(*) OVER (PARTITION BY i.class_id) AS usable,
           row_number() OVER (PARTITION BY i.class_id ORDER BY i.batch_id DESC, i.sha256) AS place
    FROM images i JOIN classes c ON c.id = i.class_id
    WHERE i.withdrawn_at IS NULL AND i.split <> 'held'
"""


def choose(session: Session, cutoff: int, most: int | None) -> Iterator[Chosen]:
    """Stream the images of the classes that have at least `cutoff`, at most `most` of each.

    Ordered by sha256; read through a server-side cursor, so memory does not grow with the rows.
    """
    result = session.connection().execute(
        text(
            f"""
            SELECT sha256, class_name, split FROM ({_RANKED}) ranked
            WHERE usable >= :cutoff AND (CAST(:most AS bigint) IS NULL OR place <= :most)
            ORDER BY sha256 COLLATE "C"
            """  # noqa: S608  (a constant of this module)
        ),
        {"cutoff": cutoff, "most": most},
        execution_options={"stream_results": True, "yield_per": 10_000},
    )
    for row in result:
        yield Chosen(*row)


def counts(session: Session, cutoff: int, most: int | None) -> list[ClassCount]:
    """Every class with what it has and what it lacks to be trained."""
    rows = session.execute(
        text(
            f"""
            SELECT class_name, max(usable), greatest(:cutoff - max(usable), 0),
                   count(*) FILTER (WHERE split = 'train' AND kept),
                   count(*) FILTER (WHERE split = 'validation' AND kept),
                   count(*) FILTER (WHERE split = 'test' AND kept)
            FROM (SELECT *, CAST(:most AS bigint) IS NULL OR place <= :most AS kept
                  FROM ({_RANKED}) ranked) counted
            GROUP BY class_name ORDER BY class_name
            """  # noqa: S608  (a constant of this module)
        ),
        {"cutoff": cutoff, "most": most},
    )
    return [ClassCount(*row) for row in rows]


def record(
    session: Session,
    digest: str,
    key: str,
    cutoff: int,
    most: int | None,
    images: int,
    classes: list[ClassCount],
) -> None:
    """Write a snapshot down, once: the same digest is the same snapshot."""
    added = session.execute(
        upsert(Snapshot)
        .values(
            digest=digest,
            key=key,
            policy=POLICY,
            cutoff=cutoff,
            most=most,
            images=images,
            classes=sum(one.lacks == 0 for one in classes),
        )
        .on_conflict_do_nothing()
    ).rowcount  # type: ignore[attr-defined]
    if added and classes:
        session.execute(
            insert(SnapshotClass),
            [{"snapshot_digest": digest, **one.__dict__} for one in classes],
        )


def class_counts(session: Session, digest: str) -> list[ClassCount]:
    """What each class had when this snapshot was frozen, those left out included."""
    rows = session.execute(
        text(
            """
            SELECT class_name, usable, lacks, train, validation, test FROM snapshot_classes
            WHERE snapshot_digest = :digest ORDER BY class_name
            """
        ),
        {"digest": digest},
    )
    return [ClassCount(*row) for row in rows]


def key_of(session: Session, digest: str) -> str:
    """Where in S3 the list of a snapshot lies."""
    return str(
        session.scalar(text("SELECT key FROM snapshots WHERE digest = :d"), {"d": digest}) or ""
    )
