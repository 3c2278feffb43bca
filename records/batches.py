"""Batches: what came in together, is judged together, and can be taken back together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.orm import Session

from infra.database import copy_rows
from records import labels
from records.library import log_change
from records.nearness import near
from records.splits import places
from records.tables import Batch, Class, Object, Refusal, Validation


class BenchmarkGrew(RuntimeError):
    """The benchmark took in an image of a batch while that was being judged."""


class UnknownBatch(LookupError):
    """No such batch, or it is in a state that the act does not fit."""


@dataclass(frozen=True)
class Refused:
    """One reason why one newcomer is refused."""

    object_id: int | None
    manifest_row_id: int | None
    key: str
    expectation: str
    sentence: str


@dataclass(frozen=True)
class BatchRow:
    """One batch with its counts."""

    id: int
    state: str
    reason: str | None
    started_at: datetime
    pending: int
    accepted: int
    quarantined: int
    images: int


def open_batch(session: Session) -> int:
    """The open batch: the one a killed run left behind, or a new one."""
    known = session.scalar(select(Batch.id).where(Batch.state == "open"))
    if known is not None:
        return known
    return session.execute(insert(Batch).returning(Batch.id)).scalar_one()


def drop_empty_batch(session: Session, batch_id: int) -> bool:
    """Delete an open batch that nothing came into; True when it was empty.

    One that was judged before (refused, let in by a person, then emptied) is closed instead: its
    stored validation stays.
    """
    found = session.scalar(
        text(
            """
            SELECT EXISTS (SELECT 1 FROM objects WHERE batch_id = :batch)
                OR EXISTS (SELECT 1 FROM manifest_rows WHERE batch_id = :batch)
            """
        ),
        {"batch": batch_id},
    )
    if found:
        return False
    judged = select(Validation.id).where(Validation.batch_id == batch_id).limit(1)
    if session.scalar(judged) is not None:
        closed = {"state": "accepted", "reason": "its objects were deleted", "ended_at": func.now()}
        session.execute(update(Batch).where(Batch.id == batch_id).values(**closed))
        return True
    session.execute(text("UPDATE runs SET batch_id = NULL WHERE batch_id = :b"), {"b": batch_id})
    session.execute(text("DELETE FROM batches WHERE id = :b AND state = 'open'"), {"b": batch_id})
    return True


def frame_rows(session: Session, batch_id: int) -> list[dict[str, Any]]:
    """One row for each newcomer of the batch, with everything that validation asks about.

    Objects come with the newest manifest row of their key. Manifest rows of the batch that name
    no object, or cannot be used, come alone; those that change the label of an image which is in
    the library already come with that image and with `relabels`, the number of its object.
    """
    session.execute(text("DROP TABLE IF EXISTS newcomers"))
    session.execute(
        text(
            """
            CREATE TEMP TABLE newcomers ON COMMIT DROP AS
            SELECT o.id, o.sha256, (o.facts->>'dhash')::bigint AS dhash,
                   (o.facts->>'dhash_mirror')::bigint AS dhash_mirror
            FROM objects o WHERE o.batch_id = :batch AND o.state = 'pending'
            """
        ),
        {"batch": batch_id},
    )
    session.execute(text("ANALYZE newcomers"))
    objects = session.execute(
        text(
            f"""
            WITH said AS (
                SELECT DISTINCT ON (m.key) m.* FROM manifest_rows m
                WHERE m.key IN (SELECT o.key FROM objects o WHERE o.batch_id = :batch)
                ORDER BY m.key, m.manifest_id DESC, m.row DESC
            ), near AS MATERIALIZED (  -- once, and not once for each newcomer
                SELECT id, min(source_key) AS source_key
                FROM ({near("n.id, s.source_key", "newcomers", "benchmark_images")}) pairs
                GROUP BY id
            )
            SELECT o.id AS object_id, NULL::bigint AS manifest_row_id, o.key, o.sha256, o.facts,
                   o.label AS folder_label, o.sub_label AS folder_sub_label,
                   m.id IS NOT NULL AS in_manifest, m.label AS manifest_label,
                   m.sub_label AS manifest_sub_label, m.origin, m.group_name, m.labelled_by,
                   m.box, m.problem AS row_problem, NULL::bigint AS relabels,
                   b.sha256 IS NOT NULL AS in_benchmark,
                   near.source_key AS near_benchmark, c.name AS library_label,
                   EXISTS (SELECT 1 FROM objects p WHERE p.sha256 = o.sha256 AND p.id <> o.id
                           AND p.state = 'accepted' AND p.gone_at IS NULL) AS library_live,
                   (SELECT format('%s removed it on %s (%s)', a.done_by, a.done_at::date, a.why)
                    FROM image_acts a
                    WHERE a.sha256 = i.sha256 AND i.withdrawn_why = 'removed' AND a.act = 'remove'
                    ORDER BY a.id DESC LIMIT 1) AS removed
            FROM objects o
            LEFT JOIN said m ON m.key = o.key
            LEFT JOIN benchmark_images b ON b.sha256 = o.sha256
            LEFT JOIN near ON near.id = o.id
            LEFT JOIN images i ON i.sha256 = o.sha256
            LEFT JOIN classes c ON c.id = i.class_id
            WHERE o.batch_id = :batch AND o.state = 'pending'
            ORDER BY o.key, o.id
            """  # noqa: S608  (constants of this module)
        ),
        {"batch": batch_id},
    )
    relabelled = session.execute(
        text(
            """
            WITH said AS (
                SELECT DISTINCT ON (m.key) m.* FROM manifest_rows m
                WHERE m.key IN (SELECT key FROM manifest_rows WHERE batch_id = :batch)
                ORDER BY m.key, m.manifest_id DESC, m.row DESC
            )
            SELECT NULL::bigint AS object_id, m.id AS manifest_row_id, o.key, o.sha256, o.facts,
                   o.label AS folder_label, o.sub_label AS folder_sub_label,
                   true AS in_manifest, m.label AS manifest_label,
                   m.sub_label AS manifest_sub_label, m.origin, m.group_name, m.labelled_by,
                   m.box, NULL::text AS row_problem, o.id AS relabels, false AS in_benchmark,
                   NULL::text AS near_benchmark, c.name AS library_label,
                   EXISTS (SELECT 1 FROM objects p WHERE p.sha256 = o.sha256 AND p.id <> o.id
                           AND p.state = 'accepted' AND p.gone_at IS NULL
                           AND p.key NOT IN (SELECT key FROM said)) AS library_live,
                   NULL::text AS removed
            FROM said m
            JOIN objects o ON o.key = m.key AND o.state = 'accepted' AND o.gone_at IS NULL
            JOIN images i ON i.sha256 = o.sha256 AND i.withdrawn_at IS NULL
            JOIN classes c ON c.id = i.class_id
            WHERE m.batch_id = :batch AND m.problem IS NULL
              AND (coalesce((SELECT today FROM class_names n WHERE n.name = m.label), m.label)
                   <> c.name OR m.sub_label NOT IN ('', i.sub_class))
            ORDER BY m.key
            """
        ),
        {"batch": batch_id},
    )
    alone = session.execute(
        text(
            """
            SELECT NULL::bigint AS object_id, m.id AS manifest_row_id, m.key, NULL AS sha256,
                   NULL::jsonb AS facts, NULL AS folder_label, '' AS folder_sub_label,
                   true AS in_manifest, m.label AS manifest_label,
                   m.sub_label AS manifest_sub_label, m.origin, m.group_name, m.labelled_by,
                   m.box, m.problem AS row_problem, NULL::bigint AS relabels,
                   false AS in_benchmark, NULL AS near_benchmark, NULL AS library_label,
                   false AS library_live, NULL::text AS removed
            FROM manifest_rows m
            WHERE m.batch_id = :batch AND CASE WHEN m.problem IS NULL
                THEN NOT EXISTS (
                    SELECT 1 FROM objects o WHERE o.key = m.key AND o.gone_at IS NULL)
                -- An object of this batch is refused with its row: one thing, one line.
                ELSE NOT EXISTS (SELECT 1 FROM objects o WHERE o.key = m.key
                                 AND o.batch_id = :batch AND o.state = 'pending') END
            ORDER BY m.manifest_id, m.row
            """
        ),
        {"batch": batch_id},
    )
    return [dict(row._mapping) for found in (objects, relabelled, alone) for row in found]


def store_validation(
    session: Session, batch_id: int, suite: str, passed: bool, results: dict[str, Any]
) -> int:
    """Keep the result of one suite as it came; answers its id."""
    statement = insert(Validation).values(
        batch_id=batch_id, suite=suite, passed=passed, results=results
    )
    return session.execute(statement.returning(Validation.id)).scalar_one()


def refuse_batch(session: Session, batch_id: int, reason: str) -> None:
    """Close a batch as refused: its objects stay pending in it until a person decides."""
    session.execute(
        update(Batch)
        .where(Batch.id == batch_id, Batch.state == "open")
        .values(state="refused", reason=reason, ended_at=func.now())
    )


def quarantine(session: Session, refused: Iterable[Refused], validation_id: int | None) -> int:
    """Put newcomers into quarantine, each with every reason; answers how many reasons."""
    rows = [
        {
            "object_id": one.object_id,
            "manifest_row_id": one.manifest_row_id,
            "validation_id": validation_id,
            "key": one.key,
            "expectation": one.expectation,
            "sentence": one.sentence,
        }
        for one in refused
    ]
    if rows:
        session.execute(insert(Refusal), rows)
    session.execute(
        text(
            """
            UPDATE objects SET state = 'quarantined'
            WHERE id = ANY(:ids) AND state <> 'quarantined'
            """
        ),
        {"ids": [one.object_id for one in refused if one.object_id is not None]},
    )
    return len(rows)


@dataclass(frozen=True)
class Accepted:
    """One newcomer that passed, as it enters the library."""

    object_id: int
    sha256: str
    label: str
    sub_label: str
    origin: str
    group_name: str | None
    labelled_by: str
    facts: Mapping[str, Any]
    relabels: bool = False  # it is in the library already, and a manifest renames it
    mined: bool = False  # a version found it and a person labelled it: `accept_batch` knows


def accept_batch(
    session: Session, run_id: int | None, batch_id: int, accepted: list[Accepted]
) -> int:
    """Take the newcomers into the library, each image with its split; answers how many are new.

    One transaction, a pure function of the rows: the order in which S3 listed or threads fetched
    has no part in it. Takes the leak lock, so that no benchmark image slips in beside it. Raises
    `BenchmarkGrew` when one did since validation, and `UnknownBatch` when the batch was decided
    on meanwhile.
    """
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('regraft-leak'))"))
    accepted = _as_people_said(session, accepted)
    class_ids = _classes(session, batch_id, {one.label for one in accepted})
    known = _known_images(session, [one.sha256 for one in accepted])
    first: dict[str, Accepted] = {}
    for one in sorted(accepted, key=lambda one: (one.sha256, one.object_id)):
        first.setdefault(one.sha256, one)  # a thousand copies of one image count once
    for sha256, one in first.items():
        if sha256 in known:
            _welcome_back(session, run_id, batch_id, one, known[sha256], class_ids[one.label])
    fresh = [one for sha256, one in first.items() if sha256 not in known]
    placed = places(session, fresh, class_ids)
    _refuse_leaks(session)
    columns = [
        "sha256", "class_id", "sub_class", "origin", "mined", "group_name", "split", "sequence",
        "width", "height", "format", "bytes", "dhash", "labelled_by", "batch_id",
    ]  # fmt: skip
    copy_rows(
        session,
        "images",
        columns,
        (
            (
                one.sha256,
                class_ids[one.label],
                one.sub_label,
                one.origin,
                one.mined,
                placed[one.sha256].group_name,
                placed[one.sha256].split,
                placed[one.sha256].sequence,
                one.facts["width"],
                one.facts["height"],
                one.facts["format"],
                one.facts["bytes"],
                one.facts["dhash"],
                one.labelled_by,
                batch_id,
            )
            for one in fresh
        ),
    )
    session.execute(
        text("UPDATE objects SET state = 'accepted' WHERE id = ANY(:ids)"),
        {"ids": [one.object_id for one in accepted]},
    )
    closed = session.execute(
        update(Batch)
        .where(Batch.id == batch_id, Batch.state == "open")
        .values(state="accepted", ended_at=func.now())
    ).rowcount  # type: ignore[attr-defined]
    if not closed and accepted:
        raise UnknownBatch(f"batch {batch_id} was reverted while it was judged: start a new run")
    return len(fresh)


def _as_people_said(session: Session, accepted: list[Accepted]) -> list[Accepted]:
    """Mark what came from a pool as mined, by whoever labelled it.

    The copy of a label that no longer stands waits without a batch, until it is taken away or its
    label stands again; and so does what was removed while it was judged, until it is judged again.
    """
    stale = labels.taken_back(session, [one.object_id for one in accepted])
    session.execute(
        text("UPDATE objects SET batch_id = NULL WHERE id = ANY(:ids) AND state = 'pending'"),
        {"ids": list(stale)},
    )
    by = labels.labelled_by(session, [one.sha256 for one in accepted])
    return [
        replace(one, mined=True, labelled_by=f"person:{by[one.sha256]}")
        if one.sha256 in by
        else one
        for one in accepted
        if one.object_id not in stale
    ]


def _refuse_leaks(session: Session) -> None:
    """Refuse what the benchmark has come to hold since the batch was compared with it.

    Looks at the table `fresh`, which holds the new images while they are given their places.
    """
    exact = "SELECT n.sha256, b.source_key FROM fresh n JOIN benchmark_images b USING (sha256)"
    copies = near("n.sha256, s.source_key", "fresh", "benchmark_images")
    found = session.execute(text(f"{exact} UNION {copies}")).first()
    if found:
        raise BenchmarkGrew(
            f"{found.source_key} came into the benchmark while image {found.sha256[:12]}… of this "
            "batch, which it repeats, was judged: run again, and that image is refused"
        )


def _classes(session: Session, batch_id: int, names: set[str]) -> dict[str, int]:
    """The number of each class, new ones made; of a name that a class once had, that class's."""
    number_today = func.coalesce(Class.became_id, Class.id)
    rows = session.execute(select(Class.name, number_today).where(Class.name.in_(names)))
    known = {name: number for name, number in rows}  # noqa: C416  (dict(Row) is typed less well)
    for name in sorted(names - set(known)):
        statement = insert(Class).values(name=name, batch_id=batch_id).returning(Class.id)
        known[name] = session.execute(statement).scalar_one()
    return known


def _known_images(session: Session, digests: list[str]) -> dict[str, tuple[str, str, bool]]:
    rows = session.execute(
        text(
            """
            SELECT i.sha256, c.name, i.sub_class, i.withdrawn_at IS NOT NULL
            FROM images i JOIN classes c ON c.id = i.class_id WHERE i.sha256 = ANY(:digests)
            """
        ),
        {"digests": digests},
    )
    return {sha256: (name, sub, withdrawn) for sha256, name, sub, withdrawn in rows}


def _welcome_back(
    session: Session,
    run_id: int | None,
    batch_id: int,
    one: Accepted,
    known: tuple[str, str, bool],
    class_id: int,
) -> None:
    """Log an image seen again: moved to another class or sub-class, renamed, or put back."""
    old_label, old_sub_label, withdrawn = known
    # A copy in the class's own folder says nothing about the sub-class.
    same = old_label == one.label and one.sub_label in ("", old_sub_label)
    if same and not withdrawn:
        return
    kind = "returned" if same else "relabelled" if one.relabels else "moved"
    sub_label = old_sub_label if same else one.sub_label
    log_change(session, run_id, one.sha256, kind, old_label, one.label)
    if withdrawn:
        _found_or_brought(session, one)
    session.execute(
        text(
            """
            UPDATE images SET class_id = :class, sub_class = :sub,
                   -- Its place belongs to the class that gave it; its split it keeps.
                   sequence = CASE WHEN class_id = :class AND sub_class = :sub THEN sequence END,
                   batch_id = CASE WHEN withdrawn_at IS NULL THEN batch_id ELSE :batch END,
                   withdrawn_at = NULL, withdrawn_why = NULL
            WHERE sha256 = :sha
            """
        ),
        {"class": class_id, "sub": sub_label, "batch": batch_id, "sha": one.sha256},
    )


def _found_or_brought(session: Session, one: Accepted) -> None:
    """Say of a withdrawn image whether this time a version found it.

    In validation or test nothing is mined: what was given its place there before any version saw it
    returns to it as what it was.
    """
    session.execute(
        text(
            """
            UPDATE images SET mined = :mined
            WHERE sha256 = :sha AND (NOT :mined OR split IN ('train', 'held'))
            """
        ),
        {"mined": one.mined, "sha": one.sha256},
    )


def withdraw_conflicts(session: Session, run_id: int | None, digests: list[str]) -> None:
    """Withdraw library images whose bytes now carry a second label: neither can be trusted."""
    rows = session.execute(
        text(
            """
            UPDATE images i SET withdrawn_at = now(), withdrawn_why = 'two labels'
            WHERE sha256 = ANY(:digests) AND withdrawn_at IS NULL
            RETURNING sha256, (SELECT name FROM classes c WHERE c.id = i.class_id)
            """
        ),
        {"digests": digests},
    ).all()
    for sha256, name in rows:
        log_change(session, run_id, sha256, "conflict", name, None)
    objects = session.execute(
        text("SELECT id, key FROM objects WHERE sha256 = ANY(:d) AND state = 'accepted'"),
        {"d": [sha256 for sha256, _ in rows]},
    ).all()
    quarantine(
        session,
        [
            Refused(
                number,
                None,
                key,
                "one_label",
                "the same bytes came with another label: delete one",
            )
            for number, key in objects
        ],
        validation_id=None,
    )


def revert_batch(session: Session, batch_id: int, by: str, why: str) -> int:
    """Withdraw a batch from every later snapshot; answers how many images that takes out.

    Its objects go to quarantine with the reason, so that no later night takes them in again;
    versions that were trained on them stay as they are. An image of which another batch brought
    a copy stays: that copy has its own word for it.
    """
    state = session.scalar(select(Batch.state).where(Batch.id == batch_id).with_for_update())
    if state is None:
        raise UnknownBatch(f"there is no batch {batch_id}: `regraft status` lists the batches")
    if state == "reverted":
        return 0
    withdrawn = session.execute(
        text(
            """
            UPDATE images i SET withdrawn_at = now(), withdrawn_why = 'batch reverted'
            WHERE withdrawn_at IS NULL
              -- It may have come with an older batch, and been moved or put back by this one.
              AND (batch_id = :batch OR EXISTS (
                  SELECT 1 FROM objects o WHERE o.batch_id = :batch AND o.sha256 = i.sha256
                  AND o.state = 'accepted'))
              AND NOT EXISTS (
                  SELECT 1 FROM objects o WHERE o.batch_id <> :batch AND o.sha256 = i.sha256
                  AND o.state = 'accepted' AND o.gone_at IS NULL)
            """
        ),
        {"batch": batch_id},
    ).rowcount  # type: ignore[attr-defined]
    session.execute(
        text(
            """
            UPDATE images i SET batch_id = (
                SELECT min(o.batch_id) FROM objects o WHERE o.batch_id <> :batch
                AND o.sha256 = i.sha256 AND o.state = 'accepted' AND o.gone_at IS NULL)
            WHERE batch_id = :batch AND withdrawn_at IS NULL
            """
        ),
        {"batch": batch_id},
    )
    rows = session.execute(
        select(Object.id, Object.key).where(
            Object.batch_id == batch_id, Object.state != "quarantined"
        )
    ).all()
    sentence = f"batch {batch_id} was reverted by {by}: {why}"
    quarantine(
        session,
        [Refused(number, None, key, "batch_reverted", sentence) for number, key in rows],
        validation_id=None,
    )
    session.execute(
        update(Batch)
        .where(Batch.id == batch_id)
        .values(state="reverted", reason=why, decided_by=by, ended_at=func.now())
    )
    return int(withdrawn)


def reopen_batch(session: Session, batch_id: int, by: str, why: str) -> None:
    """Let a refused batch in by a person's word: the next night takes it past the batch checks."""
    other = session.scalar(select(Batch.id).where(Batch.state == "open"))
    if other is not None:
        raise UnknownBatch(
            f"batch {other} is still open: let the next night take it in, then accept {batch_id}"
        )
    changed = session.execute(
        update(Batch)
        .where(Batch.id == batch_id, Batch.state == "refused")
        .values(state="open", reason=why, decided_by=by, ended_at=None)
    ).rowcount  # type: ignore[attr-defined]
    if not changed:
        raise UnknownBatch(
            f"batch {batch_id} is not a refused batch: `regraft status` lists those that are"
        )


def decided_by(session: Session, batch_id: int) -> str | None:
    """Who let the batch in past the batch checks, if anybody did."""
    return session.scalar(select(Batch.decided_by).where(Batch.id == batch_id))


def newest(session: Session, most: int = 20) -> list[BatchRow]:
    """The newest batches first, with their counts."""
    rows = session.execute(
        text(
            """
            SELECT b.id, b.state, b.reason, b.started_at,
                   count(o.id) FILTER (WHERE o.state = 'pending'),
                   count(o.id) FILTER (WHERE o.state = 'accepted'),
                   count(o.id) FILTER (WHERE o.state = 'quarantined'),
                   (SELECT count(*) FROM images i WHERE i.batch_id = b.id)
            FROM batches b LEFT JOIN objects o ON o.batch_id = b.id
            GROUP BY b.id ORDER BY b.id DESC LIMIT :most
            """
        ),
        {"most": most},
    )
    return [BatchRow(*row) for row in rows]


def get(session: Session, batch_id: int) -> BatchRow:
    """One batch with its counts; raises `UnknownBatch`."""
    rows = [row for row in newest(session, most=batch_id) if row.id == batch_id]
    if not rows:
        raise UnknownBatch(f"there is no batch {batch_id}: `regraft status` lists the batches")
    return rows[0]


def refusals(session: Session, batch_id: int) -> list[Refused]:
    """Everything of a batch that is in quarantine, each with its reason."""
    rows = session.execute(
        text(
            """
            SELECT q.object_id, q.manifest_row_id, q.key, q.expectation, q.sentence
            FROM quarantine q
            LEFT JOIN objects o ON o.id = q.object_id
            LEFT JOIN manifest_rows m ON m.id = q.manifest_row_id
            WHERE coalesce(o.batch_id, m.batch_id) = :batch ORDER BY q.key, q.id
            """
        ),
        {"batch": batch_id},
    )
    return [Refused(*row) for row in rows]


def validations(session: Session, batch_id: int) -> list[tuple[str, dict[str, Any]]]:
    """The newest stored result of each suite over a batch."""
    rows = session.execute(
        text(
            """
            SELECT DISTINCT ON (suite) suite, results FROM validations
            WHERE batch_id = :batch ORDER BY suite, id DESC
            """
        ),
        {"batch": batch_id},
    )
    return [(suite, results) for suite, results in rows]


def quarantine_reasons(session: Session, batch_id: int | None = None) -> list[tuple[str, int, str]]:
    """Expectation, how many objects it refused, and one sentence as an example."""
    rows = session.execute(
        text(
            """
            SELECT q.expectation, count(*), min(q.sentence) FROM quarantine q
            LEFT JOIN objects o ON o.id = q.object_id
            LEFT JOIN manifest_rows m ON m.id = q.manifest_row_id
            WHERE CAST(:batch AS bigint) IS NULL OR coalesce(o.batch_id, m.batch_id) = :batch
            GROUP BY q.expectation ORDER BY count(*) DESC, q.expectation
            """
        ),
        {"batch": batch_id},
    )
    return [(name, count, sentence) for name, count, sentence in rows]


@dataclass(frozen=True)
class Held:
    """One object or manifest row in quarantine, for one reason. sha256: None where unread."""

    key: str
    expectation: str
    sentence: str
    sha256: str | None
    batch_id: int | None
    since: datetime


def in_quarantine(
    session: Session, expectation: str | None = None, batch_id: int | None = None, most: int = 60
) -> list[Held]:
    """What is in quarantine, the newest first."""
    rows = session.execute(
        text(
            """
            SELECT q.key, q.expectation, q.sentence, o.sha256, coalesce(o.batch_id, m.batch_id),
                   q.created_at
            FROM quarantine q
            LEFT JOIN objects o ON o.id = q.object_id
            LEFT JOIN manifest_rows m ON m.id = q.manifest_row_id
            WHERE (CAST(:expectation AS text) IS NULL OR q.expectation = :expectation)
              AND (CAST(:batch AS bigint) IS NULL OR coalesce(o.batch_id, m.batch_id) = :batch)
            ORDER BY q.id DESC LIMIT :most
            """
        ),
        {"expectation": expectation, "batch": batch_id, "most": most},
    )
    return [Held(*row) for row in rows]


@dataclass(frozen=True)
class Waiting:
    """One object of a batch that was refused as a whole: it waits for a person's word."""

    sha256: str
    label: str
    sub_label: str
    key: str


def waiting(session: Session, batch_id: int, most: int = 60) -> list[Waiting]:
    """What of a batch waits, some of each class; what could not be read is left out."""
    rows = session.execute(
        text(
            """
            SELECT sha256, label, sub_label, key FROM (
                SELECT *, row_number() OVER (PARTITION BY label ORDER BY id) AS place FROM objects
                WHERE batch_id = :batch AND state = 'pending' AND sha256 IS NOT NULL
                  AND label IS NOT NULL AND gone_at IS NULL
                ORDER BY place, label LIMIT :most) first_of_each
            ORDER BY label, place
            """
        ),
        {"batch": batch_id, "most": most},
    )
    return [Waiting(*row) for row in rows]


def images_of_batch(session: Session, batch_id: int) -> Iterator[tuple[str, str, str]]:
    """(sha256, class, split) of the images that came in with one batch and are usable."""
    rows = session.execute(
        text(
            """
            SELECT i.sha256, c.name, i.split FROM images i JOIN classes c ON c.id = i.class_id
            WHERE i.batch_id = :batch AND i.withdrawn_at IS NULL ORDER BY i.sha256
            """
        ),
        {"batch": batch_id},
    )
    for row in rows:
        yield row.sha256, row.name, row.split
