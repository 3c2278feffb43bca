"""Identifications: one version answers a pool, shard by shard, each picture exactly once.

A shard is claimed by one process at a time. Whoever finishes it writes all its rows in the one
transaction that closes it, so that a process killed before has left nothing, and one whose claim
was taken over writes nothing.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from infra.database import copy_lines, copy_rows, copy_text
from records import pools, versions
from records.evaluations import array_element
from records.pools import ListedObject, ReadObject
from records.tables import Identification
from vision.answers import Identified

# Objects that are claimed, written and, after a kill, answered again together.
SHARD = 256
# Confidences of targets from which on they are worth ranking.
RANKED_FROM = 0.01


class LostClaim(RuntimeError):
    """A shard was taken over by another process: what this one made of it is not needed."""


class UnknownIdentification(LookupError):
    """No such identification."""


@dataclass(frozen=True)
class IdentificationRow:
    """One identification as it stands; what its columns mean says `records.tables`.

    objects: how many of the shards' objects are done; the four after it say what became of them.
    """

    id: int
    pool_id: int
    prefix: str
    version_id: int
    state: str
    targets: list[str]
    wished: float | None
    threshold: float | None
    listed: int
    known: int
    listed_at: datetime | None
    started_at: datetime
    ended_at: datetime | None
    objects: int
    answered: int
    repeated: int
    unreadable: int
    missing: int

    @property
    def done(self) -> int:
        """Objects that need nothing more."""
        return self.known + self.objects

    @property
    def total(self) -> int | None:
        """All objects of the pool; None while it is being listed."""
        return self.listed if self.listed_at else None


@dataclass(frozen=True)
class Claim:
    """A shard that one process has claimed, with what it must read: (key, ETag, size)."""

    shard_id: int
    ordinal: int
    objects: tuple[tuple[str, str, int], ...]


def begin(
    session: Session,
    pool_id: int,
    version_id: int,
    targets: Sequence[str] = (),
    wished: float | None = None,
    threshold: float | None = None,
    flow_run_id: str | None = None,
) -> int:
    """The identification of a pool by a version that is under way, or a new one.

    targets, wished and threshold are those of the one that began it.
    """
    going = select(Identification.id).where(
        Identification.pool_id == pool_id,
        Identification.version_id == version_id,
        Identification.state == "running",
    )
    # Two that begin at once would both find none.
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('regraft-identification'))"))
    known = session.scalar(going)
    if known is not None:
        return known
    pools.mark_anew(session)
    statement = insert(Identification).values(
        pool_id=pool_id,
        version_id=version_id,
        checkpoint_digest=versions.get(session, version_id).checkpoint_digest,
        targets=list(targets),
        wished=wished,
        threshold=threshold,
        flow_run_id=flow_run_id,
    )
    return session.execute(statement.returning(Identification.id)).scalar_one()


_ROWS = """
    SELECT i.id, i.pool_id, p.prefix, i.version_id, i.state, i.targets, i.wished, i.threshold,
           i.listed, i.known, i.listed_at, i.started_at, i.ended_at,
           s.objects, s.answered, s.repeated, s.unreadable, s.missing
    FROM identifications i JOIN pools p ON p.id = i.pool_id, LATERAL (
        SELECT coalesce(sum(objects), 0) AS objects, coalesce(sum(answered), 0) AS answered,
               coalesce(sum(repeated), 0) AS repeated, coalesce(sum(unreadable), 0) AS unreadable,
               coalesce(sum(missing), 0) AS missing
        FROM shards WHERE identification_id = i.id AND state = 'done') s
"""


def get(session: Session, identification_id: int) -> IdentificationRow:
    """One identification as it stands; raises `UnknownIdentification`."""
    row = session.execute(
        text(f"{_ROWS} WHERE i.id = :id"), {"id": identification_id}
    ).first()
    if row is None:
        raise UnknownIdentification(
            f"there is no identification {identification_id}: `regraft identify POOL` makes one"
        )
    return IdentificationRow(*row)


def listed(session: Session, most: int = 20) -> list[IdentificationRow]:
    """The newest identifications first."""
    rows = session.execute(text(f"{_ROWS} ORDER BY i.id DESC LIMIT :most"), {"most": most})
    return [IdentificationRow(*row) for row in rows]


def wrote(session: Session, flow_run_id: str) -> bool:
    """Whether a flow run began an identification, or a shard's newest claim is signed with it."""
    found = session.scalar(
        text(
            """
            SELECT EXISTS (SELECT 1 FROM identifications WHERE flow_run_id = :id)
                OR EXISTS (SELECT 1 FROM shards WHERE claimed_by LIKE '%:' || :id)
            """
        ),
        {"id": flow_run_id},
    )
    return bool(found)


def signature(flow_run_id: str | None) -> str:
    """What this process signs its claims with: host, process, and its flow run, if it is one."""
    return f"{socket.gethostname()}:{os.getpid()}:{flow_run_id or uuid.uuid4().hex[:8]}"


# --- the listing ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """How far a pool's listing has come: to which key, or to its end."""

    listed_to: str | None
    complete: bool


def hold_listing(session: Session, identification_id: int) -> Listing | None:
    """How far the listing has come; nobody else moves it on until commit. None: somebody does."""
    row = session.execute(
        text(
            """
            SELECT listed_to, listed_at IS NOT NULL FROM identifications WHERE id = :id
            FOR NO KEY UPDATE SKIP LOCKED
            """
        ),
        {"id": identification_id},
    ).first()
    return Listing(*row) if row else None


def add_page(
    session: Session,
    identification_id: int,
    after: str | None,
    page: Sequence[ListedObject],
    last: bool,
) -> None:
    """Take in one page of the pool's listing, which goes on after a key; call `hold_listing` first.

    What the version has answered before, or is known to hold no picture, is only counted. The rest
    becomes shards.
    """
    row = get(session, identification_id)
    pools.compare_page(session, row.pool_id, after, page, last)
    refused = [
        ReadObject(one.key, one.etag, one.size, None, one.problem) for one in page if one.problem
    ]
    pools.record(session, row.pool_id, refused)
    values = {"id": identification_id, "pool": row.pool_id, "version": row.version_id}
    known = session.execute(
        text(
            """
            DELETE FROM page USING pool_objects o
            WHERE o.pool_id = :pool AND o.key = page.key AND o.etag = page.etag
              AND (o.problem IS NOT NULL OR EXISTS (
                  SELECT 1 FROM pool_answers a
                  WHERE a.version_id = :version AND a.sha256 = o.sha256))
            """
        ),
        values,
    ).rowcount  # type: ignore[attr-defined]
    session.execute(
        text(
            """
            INSERT INTO shards (identification_id, ordinal, objects, keys, etags, sizes)
            SELECT :id, before.shards + place / :shard, count(*), array_agg(key ORDER BY key),
                   array_agg(etag ORDER BY key), array_agg(size ORDER BY key)
            FROM (SELECT *, row_number() OVER (ORDER BY key) - 1 AS place FROM page) page,
                 (SELECT count(*) AS shards FROM shards WHERE identification_id = :id) before
            GROUP BY before.shards, place / :shard
            """
        ),
        values | {"shard": SHARD},
    )
    session.execute(
        text(
            """
            UPDATE identifications SET listed = listed + :listed, known = known + :known,
                   listed_to = coalesce(:to, listed_to),
                   listed_at = CASE WHEN :last THEN now() END
            WHERE id = :id
            """
        ),
        values
        | {"listed": len(page), "known": known, "to": page[-1].key if page else None, "last": last},
    )


# --- shards ---------------------------------------------------------------------------------


def claim(
    session: Session, identification_id: int, worker: str, lease_seconds: float
) -> Claim | None:
    """Claim the next shard that nobody has, or whose process was heard of too long ago."""
    row = session.execute(
        text(
            """
            UPDATE shards SET state = 'claimed', claimed_by = :worker,
                   lease_until = clock_timestamp() + make_interval(secs => :seconds)
            WHERE id = (
                SELECT id FROM shards WHERE identification_id = :id AND state <> 'done'
                  AND (state = 'open' OR lease_until < clock_timestamp())
                ORDER BY ordinal LIMIT 1 FOR UPDATE SKIP LOCKED)
            RETURNING id, ordinal, keys, etags, sizes
            """
        ),
        {"id": identification_id, "worker": worker, "seconds": lease_seconds},
    ).first()
    if row is None:
        return None
    shard_id, ordinal, keys, etags, sizes = row
    return Claim(shard_id, ordinal, tuple(zip(keys, etags, sizes, strict=True)))


def renew(session: Session, worker: str, lease_seconds: float) -> None:
    """Keep what a process has claimed, before it lapses."""
    session.execute(
        text(
            """
            UPDATE shards SET lease_until = clock_timestamp() + make_interval(secs => :seconds)
            WHERE claimed_by = :worker AND state = 'claimed'
            """
        ),
        {"worker": worker, "seconds": lease_seconds},
    )


def release(session: Session, worker: str) -> None:
    """Give back what a process has claimed and will not finish."""
    session.execute(
        text(
            """
            UPDATE shards SET state = 'open', claimed_by = NULL, lease_until = NULL
            WHERE claimed_by = :worker AND state = 'claimed'
            """
        ),
        {"worker": worker},
    )


def answered(session: Session, version_id: int, digests: Collection[str]) -> set[str]:
    """Which of these pictures a version has answered in any pool."""
    rows = session.scalars(
        text(
            """
            SELECT sha256 FROM pool_answers
            WHERE version_id = :version AND sha256 = ANY(:digests)
            """
        ),
        {"version": version_id, "digests": list(digests)},
    )
    return set(rows)


def settle(
    session: Session,
    identification_id: int,
    claim: Claim,
    worker: str,
    engine: str,
    read: Sequence[ReadObject],
    answers: Identified,
) -> None:
    """Write down all that came of a shard, and close it.

    read: each of its objects; answers: of those of their pictures that had none. Raises `LostClaim`
    when another process has taken it over. Where another one brings the same picture at the same
    moment, Postgres raises an IntegrityError: settle again in a new transaction.
    """
    held = session.execute(
        text(
            """
            SELECT i.pool_id, i.version_id, i.threshold
            FROM shards s JOIN identifications i ON i.id = s.identification_id
            WHERE s.id = :shard AND s.state = 'claimed' AND s.claimed_by = :worker
            FOR NO KEY UPDATE OF s
            """
        ),
        {"shard": claim.shard_id, "worker": worker},
    ).first()
    if held is None:
        raise LostClaim(f"shard {claim.ordinal} was taken over: its lease had run out")
    pools.record(session, held.pool_id, read)
    before = answered(session, held.version_id, answers.images)
    fresh = answers.only([sha256 for sha256 in sorted(answers.images) if sha256 not in before])
    store(session, identification_id, held.version_id, held.threshold, fresh)
    missing = sum(one.sha256 is None for one in read)
    unreadable = sum(one.problem is not None for one in read) - missing
    session.execute(
        text(
            """
            UPDATE shards SET state = 'done', done_at = now(), lease_until = NULL, engine = :engine,
                   keys = NULL, etags = NULL, sizes = NULL, answered = :answered,
                   repeated = objects - :answered - :unreadable - :missing,
                   unreadable = :unreadable, missing = :missing
            WHERE id = :shard
            """
        ),
        {
            "shard": claim.shard_id, "engine": engine, "answered": len(fresh.images),
            "unreadable": unreadable, "missing": missing,
        },
    )  # fmt: skip


def store(
    session: Session,
    identification_id: int,
    version_id: int,
    threshold: float | None,
    answers: Identified,
) -> None:
    """Append answers with all that belongs to them; none may be there already."""
    columns = [
        "version_id", "identification_id", "sha256", "predicted", "confidence", "top_labels",
        "top_confidences", "target_confidences", "entropy", "shown",
    ]  # fmt: skip
    lines = answer_lines(version_id, identification_id, threshold, answers)
    copy_lines(session, "pool_answers", columns, lines)
    copy_lines(
        session,
        "embeddings",
        ["version_id", "sha256", "features"],
        (
            f"{version_id}\t{sha256}\t\\\\x{features.tobytes().hex()}\n"
            for sha256, features in zip(answers.images, answers.features, strict=True)
        ),
    )
    ranked = np.argwhere(answers.target_confidences >= RANKED_FROM)
    copy_rows(
        session,
        "target_scores",
        ["version_id", "sha256", "class_name", "confidence"],
        (
            (version_id, answers.images[row], answers.targets[column],
             float(answers.target_confidences[row, column]))
            for row, column in ranked.tolist()
        ),
    )  # fmt: skip


def answer_lines(
    version_id: int, identification_id: int, threshold: float | None, answers: Identified
) -> Iterator[str]:
    """Rows of `pool_answers` as COPY's text."""
    names = [copy_text(name) for name in answers.class_names]
    elements = [copy_text(array_element(name)) for name in answers.class_names]
    # Nine digits are enough to give back the very same float32.
    numbers = ",".join(["%.9g"] * answers.top.shape[1])
    targets = ",".join(["%.9g"] * len(answers.targets))
    line = (
        f"{version_id}\t{identification_id}\t%s\t%s\t%.9g\t{{%s}}\t{{{numbers}}}\t{{{targets}}}"
        "\t%.9g\t%s\n"
    )
    for sha256, best, confidences, of_targets, entropy in zip(
        answers.images,
        answers.top.tolist(),
        answers.confidences.tolist(),
        answers.target_confidences.tolist(),
        answers.entropy.tolist(),
        strict=True,
    ):
        shown = "\\N" if threshold is None else "t" if confidences[0] >= threshold else "f"
        yield line % (
            sha256,
            names[best[0]],
            confidences[0],
            ",".join([elements[place] for place in best]),
            *confidences,
            *of_targets,
            entropy,
            shown,
        )


def complete(session: Session, identification_id: int) -> bool:
    """Close the identification if nothing of it is left to do; True when it is closed."""
    session.execute(
        text(
            """
            UPDATE identifications SET state = 'completed', ended_at = now()
            WHERE id = :id AND state = 'running' AND listed_at IS NOT NULL
              AND NOT EXISTS (SELECT 1 FROM shards
                              WHERE identification_id = :id AND state <> 'done')
            """
        ),
        {"id": identification_id},
    )
    state = select(Identification.state).where(Identification.id == identification_id)
    return session.scalar(state) == "completed"


def unscored(session: Session, identification_id: int) -> int:
    """Pictures that the version had answered before, without being asked for these targets.

    Of them no confidence of a target is kept where another class was more likely.
    """
    found = session.scalar(
        text(
            """
            SELECT count(DISTINCT a.sha256) FROM identifications i
            JOIN pool_objects o ON o.pool_id = i.pool_id AND o.gone_at IS NULL
            JOIN pool_answers a ON a.version_id = i.version_id AND a.sha256 = o.sha256
            JOIN identifications b ON b.id = a.identification_id
            WHERE i.id = :id AND NOT b.targets @> i.targets
            """
        ),
        {"id": identification_id},
    )
    return found or 0


@dataclass(frozen=True)
class Worth:
    """What an identification answered: how many may be shown, and how many are known already.

    shown: None without a threshold; marks: pictures by their mark.
    """

    shown: int | None
    marks: dict[str, int]


def worth(session: Session, identification_id: int) -> Worth:
    """Counts over the answers of an identification; seconds, for a million."""
    values = {"id": identification_id}
    marks = session.execute(
        text(
            """
            SELECT p.mark, count(*) FROM pool_answers a JOIN pool_images p USING (sha256)
            WHERE a.identification_id = :id AND p.mark IS NOT NULL GROUP BY p.mark ORDER BY p.mark
            """
        ),
        values,
    )
    shown = session.scalar(
        text(
            """
            SELECT count(*) FILTER (WHERE shown) FROM pool_answers
            WHERE identification_id = :id AND shown IS NOT NULL HAVING count(*) > 0
            """
        ),
        values,
    )
    return Worth(shown, dict(marks.tuples().all()))
