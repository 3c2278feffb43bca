"""Sweeping: what is kept of throw-away versions that nobody has used for long, and may go.

A version is marked as swept before anything of it is removed, so that a kill in between leaves
things that the next sweep removes, and never a version that names what is gone.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

# Rows that are deleted in one transaction.
AT_ONCE = 10_000

# The constraints allow none of the last two; that nothing else is swept rests not on them alone.
_DUE = """
    SELECT v.id FROM versions v
    WHERE v.purpose = 'throwaway' AND v.state = 'trained' AND v.swept_at IS NULL
      AND greatest(v.trained_at, (
              SELECT max(greatest(i.started_at, i.ended_at, s.done_at, s.lease_until))
              FROM identifications i LEFT JOIN shards s ON s.identification_id = i.id
              WHERE i.version_id = v.id)) < now() - :age
      AND NOT EXISTS (SELECT 1 FROM deployments p WHERE p.version_id = v.id)
      AND NOT EXISTS (SELECT 1 FROM versions c WHERE c.parent_id = v.id)
"""


def due(session: Session, age: timedelta) -> list[int]:
    """Throw-away versions that were trained, and last answered a pool, longer ago than this."""
    return list(session.scalars(text(f"{_DUE} ORDER BY v.id"), {"age": age}))


def mark(session: Session, age: timedelta) -> list[int]:
    """Write down that those which are due are swept; answers which."""
    rows = session.scalars(
        text(f"UPDATE versions SET swept_at = now() WHERE id IN ({_DUE}) RETURNING id"),  # noqa: S608
        {"age": age},
    )
    return sorted(rows)


def checkpoints(session: Session, also: list[int]) -> set[str]:
    """Digests that swept versions and these alone name; another one may have the same bytes."""
    rows = session.scalars(
        text(
            """
            SELECT checkpoint_digest FROM versions WHERE checkpoint_digest IS NOT NULL
            GROUP BY checkpoint_digest HAVING bool_and(swept_at IS NOT NULL OR id = ANY(:also))
            """
        ),
        {"also": also},
    )
    return set(rows)


def embeddings(session: Session, also: list[int]) -> tuple[int, int]:
    """How many embeddings swept versions and these still have, and their bytes."""
    row = session.execute(
        text(
            """
            SELECT count(*), coalesce(sum(length(e.features)), 0) FROM embeddings e
            JOIN versions v ON v.id = e.version_id
            WHERE v.swept_at IS NOT NULL OR v.id = ANY(:also)
            """
        ),
        {"also": also},
    ).one()
    return row[0], row[1]


def delete_embeddings(session: Session) -> int:
    """Delete some embeddings of swept versions; answers how many, 0 when none is left."""
    deleted: int = session.execute(
        text(
            """
            DELETE FROM embeddings e USING (
                SELECT e.version_id, e.sha256 FROM versions v
                JOIN embeddings e ON e.version_id = v.id
                WHERE v.swept_at IS NOT NULL LIMIT :most) batch
            WHERE e.version_id = batch.version_id AND e.sha256 = batch.sha256
            """
        ),
        {"most": AT_ONCE},
    ).rowcount  # type: ignore[attr-defined]
    return deleted
