"""Snapshots: which images one version trains on, chosen by rule and frozen by digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from infra.database import copy_out
from records.tables import LibraryAct, Snapshot, SnapshotChoice, SnapshotClass

# Part of every digest: a changed rule of choosing must never pass for an unchanged snapshot.
POLICY = "newest-by-batch/1"


@dataclass(frozen=True)
class SnapshotRow:
    """One frozen snapshot."""

    digest: str
    key: str
    policy: str
    images: int
    classes: int


@dataclass(frozen=True)
class ClassCount:
    """What a class has for a snapshot; `lacks` above 0 leaves it out.

    It lacks what is missing to the cutoff, and at least one image for each of the two splits,
    training and validation, in which it has none.
    """

    class_name: str
    usable: int
    lacks: int
    train: int
    validation: int
    test: int

    @property
    def wanting(self) -> str:
        """What a class that is left out lacks, in words; where a split is empty, with the mend."""
        empty = _empty_splits(self.train, self.validation)
        if self.lacks > len(empty):
            return f"lacks {self.lacks}"
        kinds = " and 1 more ".join(empty)
        return f"needs 1 more {kinds} image: add real images that are near none of its others"


def counted(
    rows: Iterable[tuple[str, int, int, int, int]], cutoff: int
) -> list[ClassCount]:
    """The counts of classes, from rows of name, usable, and those of each split that would do."""
    return [
        ClassCount(
            name, usable, max(0, cutoff - usable, len(_empty_splits(train, validation))),
            train, validation, test,
        )
        for name, usable, train, validation, test in rows
    ]  # fmt: skip


def _empty_splits(train: int, validation: int) -> list[str]:
    """A class is learned from one, and judged by the other."""
    held = {"training": train, "validation": validation}
    return [split for split, images in held.items() if not images]


# What a snapshot may choose, as a condition on images i.
USABLE = "i.withdrawn_at IS NULL AND i.split <> 'held'"

# A class's newest images are those of its newest batches; within a batch the digest decides.
# No clock and no listing order has a part in it, so a repeated run chooses the same images. The
# index ix_images_choice holds them in this very order, so `most` reads no more than it takes.
_KEPT = f"""
    SELECT i.sha256, i.split FROM images i WHERE i.class_id = c.id AND {USABLE}
    ORDER BY i.batch_id DESC, i.sha256
"""  # noqa: S608  (constants of this module, here and below)


def export(
    session: Session, class_names: list[str], most: int | None, take: Callable[[bytes], object]
) -> None:
    """Hand the images of these classes, at most `most` of each, to `take`, ordered by sha256.

    In blocks of lines `sha256 <tab> class <tab> split`, where a backslash in a class's name is
    doubled; nothing grows with the rows.
    """
    # Without `most` nothing has to be ranked, and several processes of Postgres sort together.
    source = f"images i ON i.class_id = c.id AND {USABLE}"
    if most is not None:
        source = f"LATERAL ({_KEPT} LIMIT %(most)s) i ON true"
    session.execute(text("SET LOCAL work_mem = '64MB'"))  # to sort a million in few pieces
    copy_out(
        session,
        f"""
        SELECT i.sha256, c.name, i.split FROM classes c JOIN {source}
        WHERE c.name = ANY(%(names)s) ORDER BY i.sha256 COLLATE "C"
        """,  # noqa: S608
        {"names": class_names, "most": most},
        take,
    )


def counts(session: Session, cutoff: int, most: int | None) -> list[ClassCount]:
    """Every class with what it has and what it lacks to be trained."""
    rows = session.execute(
        text(
            f"""
            SELECT c.name, u.usable, k.train, k.validation, k.test
            FROM classes c
            CROSS JOIN LATERAL (
                SELECT count(*) AS usable FROM images i
                WHERE i.class_id = c.id AND {USABLE}) u
            CROSS JOIN LATERAL (
                SELECT count(*) FILTER (WHERE split = 'train') AS train,
                       count(*) FILTER (WHERE split = 'validation') AS validation,
                       count(*) FILTER (WHERE split = 'test') AS test
                FROM ({_KEPT} LIMIT CAST(:most AS bigint)) kept) k
            WHERE u.usable > 0 ORDER BY c.name
            """  # noqa: S608
        ),
        {"most": most},
    )
    return counted(rows.tuples(), cutoff)


def revision(session: Session) -> int:
    """How often the library has changed: equal numbers, equal choices.

    Ask before choosing. What is committed between the two then counts as later, and is chosen
    again at worst; it is never missed.
    """
    return session.scalar(select(func.count()).select_from(LibraryAct)) or 0


def chosen_at(session: Session, revision: int, cutoff: int, most: int | None) -> SnapshotRow | None:
    """The snapshot that was chosen at this revision by this rule, if one was."""
    columns = [getattr(Snapshot, name) for name in SnapshotRow.__dataclass_fields__]
    query = select(*columns).join(SnapshotChoice, SnapshotChoice.snapshot_digest == Snapshot.digest)
    row = session.execute(
        query.where(
            SnapshotChoice.revision == revision,
            SnapshotChoice.policy == POLICY,
            SnapshotChoice.cutoff == cutoff,
            SnapshotChoice.most.is_not_distinct_from(most),
        )
    ).first()
    return SnapshotRow(*row) if row else None


def keep_choice(
    session: Session, revision: int, cutoff: int, most: int | None, digest: str
) -> None:
    """Remember what was chosen at a revision."""
    session.execute(
        upsert(SnapshotChoice)
        .values(revision=revision, policy=POLICY, cutoff=cutoff, most=most, snapshot_digest=digest)
        .on_conflict_do_nothing()
    )


def record(
    session: Session,
    digest: str,
    key: str,
    policy: str,
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
            policy=policy,
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


def class_names(session: Session, digest: str) -> list[str]:
    """The classes that a snapshot trains, in the order in which a network knows them."""
    return sorted(one.class_name for one in class_counts(session, digest) if one.lacks == 0)


def get(session: Session, digest: str) -> SnapshotRow:
    """One frozen snapshot; whoever knows its digest has it from a row that refers to it."""
    columns = [getattr(Snapshot, name) for name in SnapshotRow.__dataclass_fields__]
    return SnapshotRow(*session.execute(select(*columns).where(Snapshot.digest == digest)).one())
