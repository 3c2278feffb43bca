"""Pretraining sets: what was read of them, apart from the library, and which of it may train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from infra.database import copy_out, copy_rows
from records.nearness import near
from records.snapshots import ClassCount, counted
from records.splits import SPLIT_CYCLE

# Part of the digest of every list that is chosen here, as `records.snapshots.POLICY` is there.
POLICY = "set-by-digest/1"


@dataclass(frozen=True)
class SetObject:
    """One object of a set as S3 lists it."""

    key: str
    etag: str
    label: str


@dataclass(frozen=True)
class ReadObject:
    """One object of a set as it was read; problem: why it cannot be used, if so."""

    key: str
    etag: str
    label: str
    sha256: str
    dhash: int | None
    dhash_mirror: int | None
    problem: str | None


# What may train: listed now, without a problem, and under one label only. Copies count once.
_USABLE = """
    SELECT s.sha256, min(s.label) AS label, min(s.split) AS split
    FROM set_images s JOIN listing USING (key, etag)
    WHERE s.set_prefix = %(prefix)s AND s.problem IS NULL
    GROUP BY s.sha256 HAVING count(DISTINCT s.label) = 1
"""

# A set has no newest images: of a class that has more than `most`, the digests decide.
_RANKED = f"""
    SELECT *, row_number() OVER (PARTITION BY label ORDER BY sha256) AS place,
           count(*) OVER (PARTITION BY label) AS usable FROM ({_USABLE}) usable
"""  # noqa: S608  (constants of this module, here and below)


def compare(session: Session, listed: Iterable[SetObject]) -> None:
    """Bring a set's whole listing into this transaction, which the others here ask."""
    session.execute(
        text("CREATE TEMP TABLE listing (key text, etag text, label text) ON COMMIT DROP")
    )
    rows = ((one.key, one.etag, one.label) for one in listed)
    copy_rows(session, "listing", ["key", "etag", "label"], rows)
    session.execute(text("ANALYZE listing"))


def unread(session: Session, prefix: str) -> list[SetObject]:
    """The objects of the compared listing that were never read, by key."""
    rows = session.execute(
        text(
            """
            SELECT l.key, l.etag, l.label FROM listing l
            WHERE NOT EXISTS (SELECT 1 FROM set_images s WHERE s.set_prefix = :prefix
                              AND s.key = l.key AND s.etag = l.etag)
            ORDER BY l.key
            """
        ),
        {"prefix": prefix},
    )
    return [SetObject(*row) for row in rows]


def record(session: Session, prefix: str, read: Sequence[ReadObject]) -> None:
    """Write down what was read, each image with its split, given here and never again.

    What the benchmark or the library has, exact or near, is kept with that as its problem: no
    training may see the one, and the other's held-out images must stay unseen. The leak lock is
    held until commit, so that no benchmark takes one in meanwhile.
    """
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('regraft-leak'))"))
    taken = _taken(session, read)
    drawn = _drawn(session, prefix)
    splits = _splits_given(session, prefix, read)
    rows = []
    for one in sorted(read, key=lambda one: (one.sha256, one.key)):
        problem = one.problem or taken.get(one.sha256)
        split = None
        if problem is None:
            # a copy has the split of the first, or a training image would be held out as well
            split = splits.setdefault(one.sha256, SPLIT_CYCLE[drawn[one.label] % len(SPLIT_CYCLE)])
            drawn[one.label] += 1
        rows.append((prefix, one.key, one.etag, one.label, one.sha256, one.dhash, split, problem))
    columns = ["set_prefix", "key", "etag", "label", "sha256", "dhash", "split", "problem"]
    copy_rows(session, "set_images", columns, rows)


def _drawn(session: Session, prefix: str) -> Counter[str]:
    """How many images of each class have drawn their split."""
    rows = session.execute(
        text(
            """
            SELECT label, count(*) FROM set_images
            WHERE set_prefix = :prefix AND problem IS NULL GROUP BY label
            """
        ),
        {"prefix": prefix},
    )
    return Counter(dict(rows.tuples().all()))


def _taken(session: Session, read: Sequence[ReadObject]) -> dict[str, str]:
    """Which of these images benchmark or library have, exact or near, and the sentence for it."""
    session.execute(
        text(
            """
            CREATE TEMP TABLE fresh_set (sha256 text, dhash bigint, dhash_mirror bigint)
            ON COMMIT DROP
            """
        )
    )
    rows = ((one.sha256, one.dhash, one.dhash_mirror) for one in read)
    copy_rows(session, "fresh_set", ["sha256", "dhash", "dhash_mirror"], rows)
    session.execute(text("ANALYZE fresh_set"))
    found: dict[str, str] = {}
    for table, name in (("images", "library"), ("benchmark_images", "benchmark")):
        why = f"n.sha256, 'near ' || s.sha256 || ' of the {name}'"
        found |= dict(session.execute(text(near(why, "fresh_set", table))).tuples().all())
        exact = f"SELECT sha256, 'in the {name}' FROM fresh_set JOIN {table} USING (sha256)"  # noqa: S608
        found |= dict(session.execute(text(exact)).tuples().all())
    return found


def _splits_given(session: Session, prefix: str, read: Sequence[ReadObject]) -> dict[str, str]:
    rows = session.execute(
        text(
            """
            SELECT DISTINCT sha256, split FROM set_images
            WHERE set_prefix = :prefix AND problem IS NULL AND sha256 = ANY(:digests)
            """
        ),
        {"prefix": prefix, "digests": [one.sha256 for one in read]},
    )
    return dict(rows.tuples().all())


def counts(session: Session, prefix: str, cutoff: int, most: int | None) -> list[ClassCount]:
    """Every class of the compared listing with what it has and what it lacks to be trained."""
    rows = session.connection().exec_driver_sql(
        f"""
        SELECT label, max(usable), count(*) FILTER (WHERE split = 'train'),
               count(*) FILTER (WHERE split = 'validation'),
               count(*) FILTER (WHERE split = 'test')
        FROM ({_RANKED}) ranked
        WHERE %(most)s::bigint IS NULL OR place <= %(most)s GROUP BY label ORDER BY label
        """,  # noqa: S608
        {"prefix": prefix, "most": most},
    )
    return counted(rows.tuples(), cutoff)


def export(
    session: Session,
    prefix: str,
    class_names: list[str],
    most: int | None,
    take: Callable[[bytes], object],
) -> None:
    """Hand the images of these classes to `take`, as `records.snapshots.export` does."""
    copy_out(
        session,
        f"""
        SELECT sha256, label, split FROM ({_RANKED}) ranked
        WHERE label = ANY(%(names)s) AND (%(most)s::bigint IS NULL OR place <= %(most)s)
        ORDER BY sha256 COLLATE "C"
        """,  # noqa: S608
        {"prefix": prefix, "names": class_names, "most": most},
        take,
    )


def left_out(session: Session, prefix: str) -> list[str]:
    """Why each object of the compared listing that does not train is left out, by key."""
    rows = session.scalars(
        text(
            """
            SELECT s.key || ': ' || coalesce(s.problem, 'the same bytes have another label, too')
            FROM set_images s JOIN listing USING (key, etag)
            WHERE s.set_prefix = :prefix AND (s.problem IS NOT NULL OR s.sha256 IN (
                SELECT o.sha256 FROM set_images o JOIN listing USING (key, etag)
                WHERE o.set_prefix = :prefix AND o.problem IS NULL
                GROUP BY o.sha256 HAVING count(DISTINCT o.label) > 1))
            ORDER BY s.key
            """
        ),
        {"prefix": prefix},
    )
    return list(rows)
