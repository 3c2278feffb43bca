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
            SELECT b.sha256, b.source_key, b.class_name, now.correct,
                   was.predicted, was.confidence, now.predicted, now.confidence
            FROM evaluations mine
            JOIN evaluations theirs ON theirs.version_id = :champion
                AND theirs.subject = 'benchmark' AND theirs.benchmark_version = :benchmark
            JOIN answers now ON now.evaluation_id = mine.id
            JOIN answers was ON was.evaluation_id = theirs.id AND was.sha256 = now.sha256
            JOIN benchmark_images b ON b.sha256 = now.sha256
            JOIN versions candidate ON candidate.id = mine.version_id
            JOIN versions champion ON champion.id = theirs.version_id
            WHERE mine.version_id = :version AND mine.subject = 'benchmark'
              AND mine.benchmark_version = :benchmark AND now.correct <> was.correct
              AND b.class_name = ANY (candidate.class_names)
              AND b.class_name = ANY (champion.class_names)
            ORDER BY now.correct, now.confidence DESC, b.sha256
            """
        ),
        {
            "version": judged.version_id,
            "champion": judged.champion_id,
            "benchmark": judged.benchmark_version,
        },
    )
    return [Flip(*row) for row in rows]
