"""Glances: the few figures that a person wants to see first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from sqlalchemy import text
from sqlalchemy.orm import Session

from records import transactions


@dataclass(frozen=True)
class Day:
    """What was served on one day (UTC); shown: answers that were sure enough."""

    day: date
    transactions: int
    shown: int


def days(session: Session, since: date) -> list[Day]:
    """Usage by day, the oldest first; days without any are left out."""
    rows = session.execute(
        text(
            """
            SELECT day, sum(transactions), sum(shown) FROM history.usage
            WHERE day >= :since GROUP BY day ORDER BY day
            """
        ),
        {"since": since},
    )
    return [Day(day, int(asked), int(shown)) for day, asked, shown in rows]


@dataclass(frozen=True)
class Client:
    """What one client asked over some days, first and last of those on which it did (UTC)."""

    client: str
    transactions: int
    shown: int
    mean_latency_seconds: float
    max_latency_seconds: float
    first: date
    last: date


def clients(
    session: Session,
    since: date | None = None,
    until: date | None = None,
    version_id: int | None = None,
    most: int = 1000,
) -> list[Client]:
    """Usage by client in a window (days of UTC, both included), the busiest first."""
    rows = session.execute(
        text(
            """
            SELECT client, sum(transactions), sum(shown),
                   sum(mean_latency_seconds * transactions) / sum(transactions),
                   max(max_latency_seconds), min(day), max(day)
            FROM history.usage
            WHERE (CAST(:since AS date) IS NULL OR day >= :since)
              AND (CAST(:until AS date) IS NULL OR day <= :until)
              AND (CAST(:version AS bigint) IS NULL OR version_id = :version)
            GROUP BY client HAVING sum(transactions) > 0
            ORDER BY sum(transactions) DESC, client LIMIT :most
            """
        ),
        {"since": since, "until": until, "version": version_id, "most": most},
    )
    return [Client(name, int(asked), int(shown), *rest) for name, asked, shown, *rest in rows]


@dataclass(frozen=True)
class Waiting:
    """What waits for a person's word.

    refused_version: the newest version, where the gate refused it and nobody has said anything
    since; refused_batch: the newest batch, where it was refused as a whole. quarantined: objects;
    drawn: transactions of the random stream whose picture is kept and of which nobody has spoken,
    counted to `MOST`.
    """

    refused_version: int | None
    refused_batch: int | None
    refused_why: str | None
    quarantined: int
    drawn: int


MOST = 1000


def waiting(session: Session) -> Waiting:
    """What waits for a person's word now."""
    row = session.execute(
        text(
            """
            WITH newest AS (
                SELECT d.version_id, d.passed FROM verdicts d JOIN versions v ON v.id = d.version_id
                WHERE v.purpose IN ('nightly', 'control', 'bakeoff') AND d.id = (
                    SELECT max(id) FROM verdicts WHERE run_id IS NOT NULL)
            ), batch AS (SELECT id, state, reason FROM batches ORDER BY id DESC LIMIT 1)
            SELECT (SELECT version_id FROM newest n WHERE NOT passed
                    AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.version_id = n.version_id)
                    AND NOT EXISTS (SELECT 1 FROM deployments p WHERE p.version_id = n.version_id)),
                   (SELECT id FROM batch WHERE state = 'refused'),
                   (SELECT reason FROM batch WHERE state = 'refused'),
                   (SELECT count(*) FROM objects WHERE state = 'quarantined' AND gone_at IS NULL),
                   (SELECT count(*) FROM (
                        SELECT 1 FROM transactions t
                        WHERE t.draw IS NOT NULL AND t.image_key IS NOT NULL AND t.at >= :since
                          AND NOT EXISTS (
                            SELECT 1 FROM reviews r
                            WHERE r.transaction_id = t.id AND r.stream = 'random')
                        LIMIT :most) few)
            """
        ),
        {"most": MOST, "since": transactions.images_since(session)},
    ).one()
    return Waiting(*row)
