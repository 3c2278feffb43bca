"""Summaries: what the command line lists, asked through the driver alone to start at once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from infra import reading


@dataclass(frozen=True)
class Summary:
    """One line of the list of versions: what it is, how it did, what became of it."""

    id: int
    purpose: str
    state: str
    parent_id: int | None
    architecture: str
    classes: int
    images: int
    test_accuracy: float | None
    benchmark_accuracy: float | None
    verdict: str | None
    reason: str | None
    serves: bool
    deployed_at: datetime | None
    created_at: datetime


_VERSIONS = """
    SELECT v.id, v.purpose, CASE WHEN v.swept_at IS NULL THEN v.state ELSE 'swept' END,
           v.parent_id, v.architecture,
           cardinality(v.class_names), s.images, test.accuracy, benchmark.accuracy,
           CASE WHEN d.id IS NULL THEN NULL WHEN d.passed THEN 'passed' ELSE 'refused' END,
           coalesce(v.reason, (SELECT string_agg(c.sentence, ' · ' ORDER BY c.ordinal)
                FROM checks c WHERE c.verdict_id = d.id AND c.verdict = 'failed')),
           coalesce(v.id = (SELECT version_id FROM champion), false),
           (SELECT max(p.deployed_at) FROM deployments p WHERE p.version_id = v.id),
           v.created_at
    FROM versions v
    JOIN snapshots s ON s.digest = v.snapshot_digest
    LEFT JOIN LATERAL (SELECT * FROM verdicts d WHERE d.version_id = v.id
                       ORDER BY d.id DESC LIMIT 1) d ON true
    LEFT JOIN evaluations test ON test.version_id = v.id AND test.subject = 'test'
    LEFT JOIN LATERAL (SELECT accuracy FROM evaluations e WHERE e.version_id = v.id
                       AND e.subject = 'benchmark'
                       ORDER BY e.benchmark_version DESC LIMIT 1) benchmark ON true
    WHERE CAST(%(purpose)s AS text) IS NULL OR v.purpose = %(purpose)s
    ORDER BY v.id DESC LIMIT %(most)s
"""


def of_versions(most: int = 50, purpose: str | None = None) -> list[Summary]:
    """The newest versions first, of all purposes or of one, each with what became of it."""
    return [Summary(*row) for row in reading.rows(_VERSIONS, {"most": most, "purpose": purpose})]


@dataclass(frozen=True)
class Decided:
    """One decision about what serves.

    kind: promotion | approval | adoption | rollback | rejection. until: when something else came
    to serve; None while it serves, and for a rejection. overridden: checks that were let pass.
    """

    decided_at: datetime
    version_id: int
    kind: str
    serves: bool
    until: datetime | None
    decided_by: str
    why: str
    overridden: list[str]
    benchmark_version: int | None


_DECISIONS = """
    SELECT * FROM (
        SELECT d.deployed_at, d.version_id, d.kind, lead(d.id) OVER log IS NULL,
               lead(d.deployed_at) OVER log, d.deployed_by, d.why,
               ARRAY(SELECT c.name FROM checks c WHERE c.verdict_id = d.verdict_id
                     AND c.verdict = 'overridden' AND d.kind <> 'rollback' ORDER BY c.ordinal),
               v.benchmark_version
        FROM deployments d JOIN verdicts v ON v.id = d.verdict_id
        WINDOW log AS (ORDER BY d.id)
        UNION ALL
        SELECT rejected_at, version_id, 'rejection', false, NULL, rejected_by, why, '{}', NULL
        FROM rejections
    ) decisions ORDER BY 1 DESC LIMIT %(most)s
"""


def of_decisions(most: int = 20) -> list[Decided]:
    """The newest decisions first: what came to serve, by whom and why, and what was rejected."""
    return [Decided(*row) for row in reading.rows(_DECISIONS, {"most": most})]
