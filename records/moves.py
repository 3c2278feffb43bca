"""Moves: what acts on pools still owe to S3.

An act and its move are written in one transaction; the move is made after it, at once on the
command line, by the next act or night after a kill, and forgotten when it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from records.labels import SAYING
from records.tables import PoolMove


@dataclass(frozen=True)
class Owed:
    """One act whose objects are still to follow.

    put: where the labelled copy belongs, if the picture has a label; take: copies of labels that
    no longer stand. sources: keys that held the picture, or a copy of it. key, to_key: from where a
    removed or restored object goes where, unless another act has overtaken this one.
    """

    act_id: int
    sha256: str
    act: str
    put: str | None = None
    take: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    key: str | None = None
    to_key: str | None = None


def owing(session: Session) -> int:
    """How many acts have moves that are still to be made."""
    return session.scalar(select(func.count()).select_from(PoolMove)) or 0


def owed(session: Session, after: int, most: int) -> list[Owed]:
    """The oldest acts after this one that owe a move; nobody else is given any until commit."""
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('regraft-pool-moves'))"))
    rows = session.execute(
        text(
            """
            SELECT a.id, a.sha256, a.act, a.key, a.to_key,
                   CASE WHEN said.act = 'label' THEN said.to_key END AS put,
                   ARRAY(SELECT DISTINCT to_key FROM pool_acts l
                         WHERE l.sha256 = a.sha256 AND l.act = 'label'
                           AND (said.act <> 'label' OR l.to_key <> said.to_key)) AS take,
                   ARRAY(SELECT key FROM pool_objects o WHERE o.sha256 = a.sha256
                         ORDER BY gone_at NULLS FIRST, key)
                   || ARRAY(SELECT to_key FROM pool_acts r
                            WHERE r.sha256 = a.sha256 AND r.act = 'remove')
                   || ARRAY(SELECT to_key FROM pool_acts l
                            WHERE l.sha256 = a.sha256 AND l.act = 'label') AS sources,
                   overtaken.id IS NOT NULL AS overtaken
            FROM pool_moves m JOIN pool_acts a ON a.id = m.act_id
            LEFT JOIN LATERAL (
                SELECT act, to_key FROM pool_acts s
                WHERE s.sha256 = a.sha256 AND s.act = ANY(:saying)
                ORDER BY s.id DESC LIMIT 1) said ON true
            LEFT JOIN LATERAL (
                SELECT id FROM pool_acts b WHERE b.sha256 = a.sha256 AND b.id > a.id
                  AND a.act IN ('remove', 'restore') AND b.act IN ('remove', 'restore')
                  AND (b.key = a.to_key OR b.to_key = a.to_key) LIMIT 1) overtaken ON true
            WHERE m.act_id > :after ORDER BY m.act_id LIMIT :most
            """
        ),
        {"after": after, "most": most, "saying": list(SAYING)},
    )
    result = []
    for row in rows:
        if row.act in SAYING:
            result.append(Owed(row.id, row.sha256, row.act, row.put, tuple(row.take),
                               tuple(dict.fromkeys(row.sources))))  # fmt: skip
        elif row.overtaken:
            result.append(Owed(row.id, row.sha256, row.act))
        else:
            result.append(Owed(row.id, row.sha256, row.act, key=row.key, to_key=row.to_key))
    return result


def sources(session: Session, begin: str, end: str) -> list[str]:
    """Keys from `begin` until `end` of objects whose picture an act still has to copy or move."""
    query = """
        SELECT DISTINCT o.key FROM pool_moves m JOIN pool_acts a ON a.id = m.act_id
        JOIN pool_objects o ON o.sha256 = a.sha256 WHERE o.key >= :begin AND o.key < :end
    """
    return list(session.scalars(text(query), {"begin": begin, "end": end}))


def settled(session: Session, act_ids: Sequence[int]) -> None:
    """Note that these acts owe nothing more."""
    session.execute(
        text("DELETE FROM pool_moves WHERE act_id = ANY(:ids)"), {"ids": list(act_ids)}
    )
