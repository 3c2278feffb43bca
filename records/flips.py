"""Flips: benchmark images that candidate and champion answered differently, one of them rightly.

Among all classes, as people see them; the gate's `no worse` counts those among shared classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from records.deployments import VerdictRow


@dataclass(frozen=True)
class Flip:
    """One image of a class that both versions know; confidences are those of what was answered."""

    sha256: str
    source_key: str
    label: str
    gained: bool
    champion_said: str
    champion_confidence: float
    candidate_said: str
    candidate_confidence: float


def of_verdict(session: Session, judged: VerdictRow) -> list[Flip]:
    """The flips behind a verdict: those lost first, each the surest first; none for a first one."""
    rows = session.execute(
        text(
            """
            WITH named AS (  -- what each of the two versions calls a class, and all call it today
                SELECT v.id, coalesce(n.today, known.name) AS today
                FROM versions v, unnest(v.class_names) known (name)
                LEFT JOIN class_names n USING (name) WHERE v.id IN (:version, :champion)),
            told AS (
                SELECT e.version_id, b.sha256, b.source_key, a.predicted, a.confidence,
                       coalesce(c.today, b.class_name) AS label,
                       coalesce(p.today, a.predicted) = coalesce(c.today, b.class_name) AS correct
                FROM evaluations e JOIN answers a ON a.evaluation_id = e.id
                JOIN benchmark_images b ON b.sha256 = a.sha256
                LEFT JOIN class_names c ON c.name = b.class_name
                LEFT JOIN class_names p ON p.name = a.predicted
                WHERE e.version_id IN (:version, :champion) AND e.subject = 'benchmark'
                  AND e.benchmark_version = :benchmark)
            SELECT now.sha256, now.source_key, now.label, now.correct, was.predicted,
                   was.confidence, now.predicted, now.confidence
            FROM told now JOIN told was ON was.sha256 = now.sha256
            WHERE now.version_id = :version AND was.version_id = :champion
              AND now.correct <> was.correct
              AND now.label IN (
                  SELECT today FROM named WHERE id = :version
                  INTERSECT SELECT today FROM named WHERE id = :champion)
            ORDER BY now.correct, now.confidence DESC, now.sha256
            """
        ),
        {
            "version": judged.version_id,
            "champion": judged.champion_id,
            "benchmark": judged.benchmark_version,
        },
    )
    return [Flip(*row) for row in rows]
