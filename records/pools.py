"""Pools: unlabelled images under a prefix, what was read of them, and which are known already."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from infra.database import copy_rows
from records.nearness import near
from records.tables import Identification, Pool

# What a transaction brought in counts from its begin, and none of ours takes a day to its end.
OVERLAP = timedelta(days=1)


@dataclass(frozen=True)
class PoolRow:
    """One pool."""

    id: int
    prefix: str
    created_at: datetime


class ListedObject(NamedTuple):
    """One object of a pool as S3 lists it; problem: why such a key cannot be read everywhere."""

    key: str
    etag: str
    size: int
    problem: str | None


@dataclass(frozen=True)
class ReadObject:
    """One object of a pool as it was read; without a digest its bytes could not be had.

    problem: why there is no picture in it; else it has its size and, if large enough, its hashes.
    """

    key: str
    etag: str
    size: int
    sha256: str | None
    problem: str | None
    width: int | None = None
    height: int | None = None
    dhash: int | None = None
    dhash_mirror: int | None = None


@dataclass(frozen=True)
class Unreadable:
    """One object of a pool without an answer, and why."""

    key: str
    problem: str


def enter(session: Session, prefix: str) -> int:
    """The number of the pool under this prefix; a new one gets one."""
    session.execute(insert(Pool).values(prefix=prefix).on_conflict_do_nothing())
    return session.execute(select(Pool.id).where(Pool.prefix == prefix)).scalar_one()


def listed(session: Session) -> list[PoolRow]:
    """Every pool that was ever identified, the newest first."""
    query = select(Pool.id, Pool.prefix, Pool.created_at).order_by(Pool.id.desc())
    return [PoolRow(*row) for row in session.execute(query)]


def unreadable(session: Session, pool_id: int, most: int | None = None) -> list[Unreadable]:
    """The objects of a pool that hold no picture or could not be had, by key."""
    rows = session.execute(
        text(
            """
            SELECT key, problem FROM pool_objects
            WHERE pool_id = :pool AND problem IS NOT NULL AND gone_at IS NULL
            ORDER BY key LIMIT :most
            """
        ),
        {"pool": pool_id, "most": most},
    )
    return [Unreadable(*row) for row in rows]


def compare_page(
    session: Session, pool_id: int, after: str | None, page: Sequence[ListedObject], last: bool
) -> None:
    """Bring what is known of a pool up to one page of its listing, which goes on after a key.

    What was read before and is not listed any more is gone, or is back; but of what a person
    removed or restored the act speaks, until its object has followed. What could not be had is
    forgotten, and so read again if it is still there. The page stays as the table `page`.
    """
    session.execute(
        text(
            """
            CREATE TEMP TABLE IF NOT EXISTS page (key text COLLATE "C", etag text, size bigint)
            ON COMMIT DROP
            """
        )
    )
    copy_rows(
        session, "page", ["key", "etag", "size"], ((one.key, one.etag, one.size) for one in page)
    )
    session.execute(text("ANALYZE page"))
    within = "o.pool_id = :pool AND o.key > :after AND (:last OR o.key <= :to)"
    settled = """
        NOT EXISTS (SELECT 1 FROM pool_moves m JOIN pool_acts a ON a.id = m.act_id
                    WHERE a.sha256 = o.sha256 AND o.key IN (a.key, a.to_key))
    """
    values = {
        "pool": pool_id, "after": after or "", "last": last, "to": page[-1].key if page else "",
    }  # fmt: skip
    for statement in (
        f"DELETE FROM pool_objects o WHERE {within} AND sha256 IS NULL",  # noqa: S608  (constants)
        f"""
        UPDATE pool_objects o SET gone_at = now() WHERE {within} AND gone_at IS NULL
          AND NOT EXISTS (SELECT 1 FROM page WHERE page.key = o.key AND page.etag = o.etag)
          AND {settled}
        """,  # noqa: S608
        f"""
        UPDATE pool_objects o SET gone_at = NULL FROM page
        WHERE {within} AND gone_at IS NOT NULL AND page.key = o.key AND page.etag = o.etag
          AND {settled}
        """,  # noqa: S608
    ):
        session.execute(text(statement), values)


def record(session: Session, pool_id: int, read: Sequence[ReadObject]) -> None:
    """Write down what was read, once: each object, each picture with its mark.

    An object that was read before and can no longer be had is gone.

    Two who read the same at once wait for each other here, and the second gets an IntegrityError,
    or Postgres finds a deadlock: it asks again in a new transaction.
    """
    if not read:
        return
    images = {one.sha256: one for one in read if one.sha256 and not one.problem}
    fresh = _absent(session, images)
    marks = _marks(
        session,
        [(sha256, images[sha256].dhash, images[sha256].dhash_mirror) for sha256 in fresh],
    )
    copy_rows(
        session,
        "pool_images",
        ["sha256", "width", "height", "dhash", "dhash_mirror", "mark", "mark_sha256"],
        (  # in one order, or two who bring the same could wait for each other in a circle
            (
                sha256,
                images[sha256].width,
                images[sha256].height,
                images[sha256].dhash,
                images[sha256].dhash_mirror,
                *marks.get(sha256, (None, None)),
            )
            for sha256 in sorted(fresh)
        ),
    )
    known = _known_objects(session, pool_id, read)
    session.execute(
        text(
            """
            UPDATE pool_objects o SET gone_at = now() FROM (
                SELECT id FROM pool_objects
                WHERE pool_id = :pool AND gone_at IS NULL AND key = ANY(:keys)
                ORDER BY key, id FOR NO KEY UPDATE) gone
            WHERE o.id = gone.id
            """
        ),
        {"pool": pool_id, "keys": [one.key for one in read if one.sha256 is None]},
    )
    copy_rows(
        session,
        "pool_objects",
        ["pool_id", "key", "etag", "size", "sha256", "problem"],
        (
            (pool_id, one.key, one.etag, one.size, one.sha256, one.problem)
            for one in sorted(read, key=lambda one: (one.key, one.etag))
            if (one.key, one.etag) not in known
        ),
    )


def lose(session: Session, begin: str, end: str, spared: Collection[str]) -> None:
    """Write down that the objects with keys from `begin` until `end` are gone, but for a few."""
    session.execute(
        text(
            """
            UPDATE pool_objects o SET gone_at = now() FROM (
                SELECT id FROM pool_objects
                WHERE key >= :begin AND key < :end AND gone_at IS NULL AND key <> ALL(:spared)
                ORDER BY key, id FOR NO KEY UPDATE) gone
            WHERE o.id = gone.id
            """
        ),
        {"begin": begin, "end": end, "spared": list(spared)},
    )


def _absent(session: Session, digests: Collection[str]) -> set[str]:
    rows = session.scalars(
        text("SELECT sha256 FROM pool_images WHERE sha256 = ANY(:digests)"),
        {"digests": list(digests)},
    )
    return set(digests) - set(rows)


def _known_objects(
    session: Session, pool_id: int, read: Sequence[ReadObject]
) -> set[tuple[str, str]]:
    rows = session.execute(
        text("SELECT key, etag FROM pool_objects WHERE pool_id = :pool AND key = ANY(:keys)"),
        {"pool": pool_id, "keys": [one.key for one in read]},
    )
    return {(key, etag) for key, etag in rows}


# Which mark counts when a picture has several, the first one.
_SEVERITY = "array_position(ARRAY['benchmark', 'library', 'near benchmark', 'near library'], mark)"


# What was withdrawn is known to nobody: it may be offered again.
_LIBRARY = "(SELECT sha256, dhash FROM images WHERE withdrawn_at IS NULL)"


def _marks(
    session: Session, images: Collection[tuple[str, int | None, int | None]]
) -> dict[str, tuple[str, str]]:
    """By digest how library or benchmark know a picture, and the image it repeats there.

    images: digest, dHash and that of the mirror image.
    """
    hashed = any(dhash is not None for _, dhash, _ in images)
    found = _matches("fresh", _LIBRARY, "benchmark_images", hashed)
    rows = session.execute(
        text(
            f"""
            WITH fresh AS MATERIALIZED (
                SELECT * FROM unnest(
                    CAST(:digests AS text[]), CAST(:hashes AS bigint[]), CAST(:mirrors AS bigint[])
                ) AS one (sha256, dhash, dhash_mirror)
            )
            SELECT DISTINCT ON (sha256) sha256, mark, mark_sha256 FROM ({found}) found
            ORDER BY sha256, {_SEVERITY}, mark_sha256
            """  # noqa: S608  (constants of this module)
        ),
        {
            "digests": [sha256 for sha256, _, _ in images],
            "hashes": [dhash for _, dhash, _ in images],
            "mirrors": [mirror for _, _, mirror in images],
        },
    )
    return {sha256: (mark, repeated) for sha256, mark, repeated in rows}


def _matches(seeking: str, library: str, benchmark: str, hashed: bool) -> str:
    """SQL for every (sha256, mark, mark_sha256) of these tables; `hashed` looks for near ones."""
    parts = []
    for table, name in ((library, "library"), (benchmark, "benchmark")):
        both = f"{seeking} n JOIN {table} s ON s.sha256 = n.sha256"
        parts.append(f"SELECT n.sha256, '{name}', s.sha256 FROM {both}")  # noqa: S608
        if hashed:
            pairs = f"n.sha256, 'near {name}', s.sha256"
            parts.append(f"({near(pairs, seeking, table)})")
    return f"SELECT * FROM ({' UNION ALL '.join(parts)}) pairs (sha256, mark, mark_sha256)"  # noqa: S608


_SINCE = "coalesce(CAST(:since AS timestamptz), '-infinity')"


def mark_anew(session: Session) -> None:
    """Mark older pictures that library or benchmark have come to hold, and no longer what left.

    Looks at what came in, or came back, since the newest identification began, which had looked
    before.
    """
    _lift(session)
    newest = session.scalar(select(func.max(Identification.started_at)))
    found = _matches("unmarked", "brought", "frozen", hashed=True)
    session.execute(
        text(
            f"""
            WITH unmarked AS MATERIALIZED (
                SELECT sha256, dhash, dhash_mirror FROM pool_images
                WHERE mark IS NULL OR mark LIKE 'near %'
            ), brought AS MATERIALIZED (
                SELECT sha256, dhash FROM images WHERE withdrawn_at IS NULL AND (
                    added_at > {_SINCE}
                    OR sha256 IN (SELECT sha256 FROM label_changes WHERE noticed_at > {_SINCE}))
            ), frozen AS MATERIALIZED (
                SELECT sha256, dhash FROM benchmark_images b JOIN benchmarks v
                  ON v.version = b.added_in WHERE v.frozen_at > {_SINCE}
            ), best AS (
                SELECT DISTINCT ON (sha256) sha256, mark, mark_sha256 FROM ({found}) found
                ORDER BY sha256, {_SEVERITY}, mark_sha256
            )
            UPDATE pool_images p SET mark = best.mark, mark_sha256 = best.mark_sha256 FROM best
            WHERE p.sha256 = best.sha256 AND p.mark IS DISTINCT FROM best.mark
              AND (p.mark IS NULL OR best.mark NOT LIKE 'near %')
            """  # noqa: S608  (constants of this module)
        ),
        {"since": newest - OVERLAP if newest else None},
    )


def _lift(session: Session) -> None:
    """Give pictures that repeat a withdrawn image the mark that is left to them, if any."""
    rows = session.execute(
        text(
            """
            UPDATE pool_images p SET mark = NULL, mark_sha256 = NULL FROM images i
            WHERE p.mark IN ('library', 'near library') AND i.sha256 = p.mark_sha256
              AND i.withdrawn_at IS NOT NULL
            RETURNING p.sha256, p.dhash, p.dhash_mirror
            """
        )
    )
    marks = _marks(session, rows.tuples().all())
    session.execute(
        text(
            """
            UPDATE pool_images p SET mark = found.mark, mark_sha256 = found.mark_sha256
            FROM unnest(CAST(:digests AS text[]), CAST(:marks AS text[]), CAST(:repeated AS text[]))
                 AS found (sha256, mark, mark_sha256)
            WHERE p.sha256 = found.sha256
            """
        ),
        {
            "digests": list(marks),
            "marks": [mark for mark, _ in marks.values()],
            "repeated": [repeated for _, repeated in marks.values()],
        },
    )
