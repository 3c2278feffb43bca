"""Shortlists: what a throw-away version found for classes near the cutoff, and what people said.

Nothing of it is stored: the run, its snapshot, the answers and the acts are, and a shortlist is
asked of them anew each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.orm import Session

from records import snapshots


class NoShortlist(LookupError):
    """No throw-away run has this number, or none has come to a version."""


@dataclass(frozen=True)
class ShortlistRun:
    """A throw-away run: its version, trained from `cutoff` on, and the cutoff to be reached.

    pools: the prefixes that the version has answered, with how far it is, `completed` or `running`.
    since: when it began to answer; only what people said after that is a judgement of its answers.
    """

    run_id: int
    version_id: int
    snapshot_digest: str
    cutoff: int
    wanted: int
    state: str
    swept_at: datetime | None
    pools: dict[str, str]
    since: datetime | None


@dataclass(frozen=True)
class Need:
    """A class near the cutoff.

    had: usable images when the snapshot was frozen; has: now; coming: confirmed in any pool, and
    not taken in yet; confirmed: by people among all that the version has answered.
    """

    class_name: str
    had: int
    has: int
    coming: int
    confirmed: int


@dataclass(frozen=True)
class Tally:
    """Candidates of one class in one band of scores, the lowest 1; `right` of `judged` are it."""

    class_name: str
    band: int
    waiting: int
    judged: int
    right: int


@dataclass(frozen=True)
class Candidate:
    """A picture that may be of a class, by its score; said: what the version thinks it is.

    state: waiting, or what people said: confirmed, another class's name, dismissed, unknown. The
    first four are what `regraft label --from` reads.
    """

    sha256: str
    key: str
    label: str
    version: int
    score: float
    said: str
    confidence: float
    state: str


def run(session: Session, run_id: int | None = None) -> ShortlistRun:
    """A throw-away run, or the newest; raises `NoShortlist`."""
    row = session.execute(
        text(
            """
            SELECT r.id, v.id, v.snapshot_digest, CAST(v.plan->>'cutoff' AS int),
                   CAST(r.plan->>'cutoff' AS int), v.state, v.swept_at, i.pools, i.since
            FROM runs r JOIN versions v ON v.id = r.version_id, LATERAL (
                SELECT coalesce(jsonb_object_agg(p.prefix, i.state ORDER BY i.id), '{}') AS pools,
                       min(i.started_at) AS since
                FROM identifications i JOIN pools p ON p.id = i.pool_id
                WHERE i.version_id = v.id) i
            WHERE r.purpose = 'throwaway' AND (r.id = :run OR CAST(:run AS bigint) IS NULL)
            ORDER BY r.id DESC LIMIT 1
            """
        ),
        {"run": run_id},
    ).first()
    if row is None:
        which = "no throw-away run has found anything" if run_id is None else (
            f"run {run_id} is no throw-away run that came to a version"
        )  # fmt: skip
        raise NoShortlist(f"{which}: `regraft throwaway --cutoff N --pool P` makes a shortlist")
    return ShortlistRun(*row)


@dataclass(frozen=True)
class NearClass:
    """A class that nights leave out for want of a few images.

    new: a throw-away run would learn it, and the newest one has not.
    """

    run_id: int
    class_name: str
    has: int
    lacks: int
    new: bool


def near_cutoff(session: Session, flow_run_id: str, share: float) -> list[NearClass]:
    """Classes that now have this share of a flow run's cutoff, and not all of it, fullest first."""
    row = session.execute(
        text(
            """
            SELECT id, CAST(plan->>'cutoff' AS int), CAST(plan->>'most' AS int) FROM runs
            WHERE flow_run_id = :flow
            """
        ),
        {"flow": flow_run_id},
    ).first()
    if row is None:
        return []
    run_id, cutoff, most = row
    lower, learned = session.execute(
        text(
            """
            SELECT CAST(plan->>'cutoff' AS int), class_names FROM versions
            WHERE purpose = 'throwaway' AND state = 'trained' ORDER BY id DESC LIMIT 1
            """
        )
    ).first() or (0, [])
    # Counted anew: the same snapshot is frozen again when only classes left out of it have grown.
    near = [one for one in snapshots.counts(session, lower, most)
            if share * cutoff <= one.usable < cutoff]  # fmt: skip
    return [
        NearClass(run_id, one.class_name, one.usable, cutoff - one.usable,
                  one.class_name not in learned and one.lacks <= 0)
        for one in sorted(near, key=lambda one: (-one.usable, one.class_name))
    ]  # fmt: skip


# What a person said of a picture last; a label that was dismissed no longer stands. Of the names
# of a class, which may have changed since, both sides mean today's.
_STANDING = """
    standing AS MATERIALIZED (
        SELECT DISTINCT ON (sha256) sha256, act, coalesce(n.today, class_name) AS class_name,
               version_id, predicted, done_at
        FROM pool_acts LEFT JOIN class_names n ON n.name = class_name
        WHERE act IN ('label', 'dismiss', 'unknown') ORDER BY sha256, id DESC)
"""
# All that might be of a class: by the score that was kept for it as a target, or because the
# version thinks so; who identified a pool before may have named no targets.
_FOUND = """
    found AS MATERIALIZED (
        SELECT found.*, coalesce(n.today, class_name) AS today FROM (
            SELECT sha256, class_name, confidence FROM target_scores
            WHERE version_id = :version AND class_name = ANY(:classes) AND confidence >= :from
            UNION
            SELECT sha256, predicted, confidence FROM pool_answers
            WHERE version_id = :version AND predicted = ANY(:classes) AND confidence >= :from
        ) found LEFT JOIN class_names n ON n.name = class_name)
"""
# What another version took for a gazelle, and was none, may still be an okapi.
_SPOKEN = """
    (s.act IS NOT NULL AND (s.act <> 'dismiss' OR s.version_id = :version
                            OR coalesce(s.predicted, f.class_name) = f.class_name))
"""
_WAITS = f"""
    NOT {_SPOKEN}
    AND EXISTS (SELECT 1 FROM pool_images p WHERE p.sha256 = f.sha256 AND p.mark IS NULL)
    AND EXISTS (SELECT 1 FROM pool_objects o WHERE o.sha256 = f.sha256 AND o.gone_at IS NULL
                AND o.problem IS NULL)
"""  # noqa: S608  (constants of this module, here and below)
_JUDGED = f"({_SPOKEN} AND s.done_at >= :since)"


def needs(session: Session, of: ShortlistRun) -> list[Need]:
    """The classes from the run's cutoff to the wanted one, those that had most first."""
    rows = session.execute(
        text(
            f"""
            WITH {_STANDING}
            SELECT c.class_name, c.usable, library.usable, coming.images, confirmed.images
            FROM snapshot_classes c LEFT JOIN class_names n ON n.name = c.class_name
            CROSS JOIN LATERAL (
                SELECT count(*) AS usable FROM images i JOIN classes k ON k.id = i.class_id
                WHERE k.name = coalesce(n.today, c.class_name) AND i.withdrawn_at IS NULL
                  AND i.split <> 'held'
            ) library
            CROSS JOIN LATERAL (
                SELECT count(*) AS images FROM standing s
                WHERE s.act = 'label' AND s.class_name = coalesce(n.today, c.class_name)
                  AND NOT EXISTS (SELECT 1 FROM images i WHERE i.sha256 = s.sha256)
                  AND NOT EXISTS (SELECT 1 FROM objects o
                                  WHERE o.sha256 = s.sha256 AND o.state = 'quarantined')
            ) coming
            CROSS JOIN LATERAL (
                SELECT count(*) AS images FROM standing s
                JOIN pool_answers a ON a.version_id = :version AND a.sha256 = s.sha256
                WHERE s.act = 'label' AND s.class_name = coalesce(n.today, c.class_name)
                  AND s.done_at >= :since
            ) confirmed
            WHERE c.snapshot_digest = :snapshot AND c.lacks = 0 AND c.usable < :wanted
            ORDER BY c.usable DESC, c.class_name
            """  # noqa: S608
        ),
        {
            "version": of.version_id, "snapshot": of.snapshot_digest, "wanted": of.wanted,
            "since": of.since,
        },
    )  # fmt: skip
    return [Need(*row) for row in rows]


def tallies(
    session: Session, of: ShortlistRun, classes: Sequence[str], bands: Sequence[float]
) -> list[Tally]:
    """Candidates of these classes by the band of their score; bands: where each begins."""
    rows = session.execute(
        text(
            f"""
            WITH {_STANDING}, {_FOUND}
            SELECT f.class_name, width_bucket(f.confidence, CAST(:bands AS real[])),
                   count(*) FILTER (WHERE {_WAITS}), count(*) FILTER (WHERE {_JUDGED}),
                   count(*) FILTER (WHERE {_JUDGED} AND s.act = 'label'
                                    AND s.class_name = f.today)
            FROM found f LEFT JOIN standing s USING (sha256) GROUP BY 1, 2 ORDER BY 1, 2
            """  # noqa: S608
        ),
        _values(of, classes, bands[0]) | {"bands": list(bands)},
    )
    return [Tally(*row) for row in rows]


def candidates(
    session: Session, of: ShortlistRun, class_name: str, lowest: float, most: int | None = None
) -> list[Candidate]:
    """The candidates of a class, the surest first, waiting or judged."""
    rows = session.execute(
        text(
            f"""
            WITH {_STANDING}, {_FOUND}
            SELECT f.sha256, o.key, f.class_name, a.version_id, f.confidence, a.predicted,
                   a.confidence,
                   CASE WHEN NOT {_SPOKEN} THEN 'waiting' WHEN s.act = 'dismiss' THEN 'dismissed'
                        WHEN s.act = 'unknown' THEN 'unknown'
                        WHEN s.class_name = f.today THEN 'confirmed'
                        ELSE s.class_name END
            FROM found f
            JOIN pool_answers a ON a.version_id = :version AND a.sha256 = f.sha256
            JOIN LATERAL (SELECT key FROM pool_objects o WHERE o.sha256 = f.sha256
                          ORDER BY gone_at NULLS FIRST, id LIMIT 1) o ON true
            LEFT JOIN standing s ON s.sha256 = f.sha256
            WHERE ({_WAITS}) OR {_JUDGED}
            ORDER BY f.confidence DESC, f.sha256 LIMIT :most
            """  # noqa: S608
        ),
        _values(of, [class_name], lowest) | {"most": most},
    )
    return [Candidate(*row) for row in rows]


def _values(of: ShortlistRun, classes: Sequence[str], lowest: float) -> dict[str, object]:
    return {
        "version": of.version_id, "classes": list(classes), "from": lowest, "since": of.since,
    }  # fmt: skip
