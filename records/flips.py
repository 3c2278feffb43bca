"""Flips: benchmark images that candidate and champion answered differently, one of them rightly.

Among all classes, as people see them; the gate's `no worse` counts those among shared classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from records.classes import ALIKE
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
            f"""
            WITH named AS (  -- what each of the two versions calls a class, and all call it today
                SELECT v.id, coalesce(n.today, known.name) AS today
                FROM versions v, unnest(v.class_names) known (name)
                LEFT JOIN class_names n USING (name) WHERE v.id IN (:version, :champion)),
            {ALIKE},
            told AS (
                SELECT now.sha256, b.source_key, coalesce(c.today, b.class_name) AS label,
                       now.correct
                           OR (now.predicted, now.label) IN (SELECT * FROM alike) AS correct,
                       was.correct
                           OR (was.predicted, was.label) IN (SELECT * FROM alike) AS before,
                       was.predicted AS champion_said, was.confidence AS champion_confidence,
                       now.predicted, now.confidence
                FROM evaluations mine
                JOIN evaluations theirs ON theirs.version_id = :champion
                    AND theirs.subject = 'benchmark' AND theirs.benchmark_version = :benchmark
                JOIN answers now ON now.evaluation_id = mine.id
                JOIN answers was ON was.evaluation_id = theirs.id AND was.sha256 = now.sha256
                JOIN benchmark_images b ON b.sha256 = now.sha256
                LEFT JOIN class_names c ON c.name = b.class_name
                WHERE mine.version_id = :version AND mine.subject = 'benchmark'
                  AND mine.benchmark_version = :benchmark)
            SELECT sha256, source_key, label, correct, champion_said, champion_confidence,
                   predicted, confidence
            FROM told
            WHERE correct <> before
              AND label IN (
                  SELECT today FROM named WHERE id = :version
                  INTERSECT SELECT today FROM named WHERE id = :champion)
            ORDER BY correct, confidence DESC, sha256
            """  # noqa: S608
        ),
        {
            "version": judged.version_id,
            "champion": judged.champion_id,
            "benchmark": judged.benchmark_version,
        },
    )
    return [Flip(*row) for row in rows]
