"""Shortlists: what a throw-away version found for classes near the cutoff, and what people said.

Nothing of it is stored: the run, its snapshot, the answers and the acts are, and a shortlist is
asked of them anew each time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from records import snapshots
from records.labels import STANDING
from records.nearness import NEAR_BITS
from vision import variety


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
    """Candidates of one class in one band of scores, the lowest 1; `right` of `judged` are it.

    Near copies count once.
    """

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


# What people said and what stands of it: of which class it is said, in a label or a dismissal. Of
# the names of a class, which may have changed since, both sides mean today's.
_STANDING = f"""
    standing AS MATERIALIZED (
        SELECT id, sha256, act, coalesce(n.today, word) AS class_name, done_at
        FROM pool_acts said
        CROSS JOIN LATERAL (SELECT coalesce(said.class_name, offered, predicted) AS word) w
        LEFT JOIN class_names n ON n.name = word WHERE {STANDING})
"""  # noqa: S608  (constants of ours, here and below)
# All that might be of a class: by the score that was kept for it as a target, or because the
# version thinks so; who identified a pool before may have named no targets. With what was said of
# it: what is no gazelle may still be an okapi.
_FOUND = """
    found AS MATERIALIZED (
        SELECT DISTINCT ON (f.sha256, f.class_name) f.*, s.act, s.class_name AS called, s.done_at
        FROM (
            SELECT f.*, coalesce(n.today, class_name) AS today FROM (
                SELECT sha256, class_name, confidence FROM target_scores
                WHERE version_id = :version AND class_name = ANY(:classes) AND confidence >= :from
                UNION
                SELECT sha256, predicted, confidence FROM pool_answers
                WHERE version_id = :version AND predicted = ANY(:classes) AND confidence >= :from
            ) f LEFT JOIN class_names n ON n.name = class_name
        ) f
        LEFT JOIN standing s ON s.sha256 = f.sha256
          AND (s.act <> 'dismiss' OR coalesce(s.class_name = f.today, true))
        ORDER BY f.sha256, f.class_name, s.id DESC)
"""
# Judged, or waiting.
_LISTED = """
    (f.done_at >= :since OR f.act IS NULL
     AND EXISTS (SELECT 1 FROM pool_images p WHERE p.sha256 = f.sha256 AND p.mark IS NULL)
     AND EXISTS (SELECT 1 FROM pool_objects o WHERE o.sha256 = f.sha256 AND o.gone_at IS NULL
                 AND o.problem IS NULL))
"""


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
    """Candidates of these classes by the band of their score; bands: where each begins.

    Copies of one picture tell no more than one of them: the surest that was judged, or else that
    waits, stands for all.
    """
    rows = session.execute(
        text(
            f"""
            WITH {_STANDING}, {_FOUND}
            SELECT f.class_name, width_bucket(f.confidence, CAST(:bands AS real[])) AS band,
                   f.act IS NOT NULL AS judged,
                   coalesce(f.act = 'label' AND f.called = f.today, false) AS is_right,
                   p.dhash, p.dhash_mirror
            FROM found f JOIN pool_images p USING (sha256) WHERE {_LISTED}
            ORDER BY f.class_name, judged DESC, f.confidence DESC, f.sha256
            """  # noqa: S608
        ),
        _values(of, classes, bands[0]) | {"bands": list(bands)},
    )
    found = []
    for name, its in itertools.groupby(rows, key=lambda row: row.class_name):
        distinct = _without_copies(list(its))
        for band in sorted({row.band for row in distinct}):
            judged = [row.is_right for row in distinct if row.band == band and row.judged]
            waiting = sum(row.band == band and not row.judged for row in distinct)
            found.append(Tally(name, band, waiting, len(judged), sum(judged)))
    return found


def _without_copies(rows: Sequence[Row[Any]]) -> list[Row[Any]]:
    """The first of each set of near pictures."""
    first = variety.firsts(
        [row.dhash for row in rows], [row.dhash_mirror for row in rows], NEAR_BITS
    )
    return [row for place, row in enumerate(rows) if first[place] == place]


def candidates(
    session: Session, of: ShortlistRun, class_name: str, lowest: float, most: int | None = None
) -> list[Candidate]:
    """The candidates of a class, the surest first, waiting or judged; copies, too."""
    rows = session.execute(
        text(
            f"""
            WITH {_STANDING}, {_FOUND}
            SELECT f.sha256, o.key, f.class_name, a.version_id, f.confidence, a.predicted,
                   a.confidence,
                   CASE WHEN f.act IS NULL THEN 'waiting' WHEN f.act = 'dismiss' THEN 'dismissed'
                        WHEN f.act = 'unknown' THEN 'unknown'
                        WHEN f.called = f.today THEN 'confirmed'
                        ELSE f.called END
            FROM found f
            JOIN pool_answers a ON a.version_id = :version AND a.sha256 = f.sha256
            JOIN LATERAL (SELECT key FROM pool_objects o WHERE o.sha256 = f.sha256
                          ORDER BY gone_at NULLS FIRST, id LIMIT 1) o ON true
            WHERE {_LISTED}
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
