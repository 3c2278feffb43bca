"""The library: every labelled image known, how it came in, and the acts that change it."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.orm import Session

from infra.database import copy_rows
from records.tables import Batch, Class, Manifest, Object, Refusal, Validation

LABELLED = "labelled/"
MANIFESTS = "manifests/"

# An image's place in its class's sequence gives its split: the first three images of a class
# land in three different splits, so no class lacks one, and it settles at 80 / 10 / 10.
SPLIT_CYCLE = ("train", "validation", "test", *["train"] * 7)

# Two pictures are near when their 64-bit dHashes differ in at most this many bits. Re-encoding
# and resizing change up to 3; unrelated photographs differ in 14 or more.
NEAR_BITS = 3

_BAND = "(({alias}.{column} >> {shift}) & 65535)"


class ClassVanished(RuntimeError):
    """A class that the champion serves has no object left in S3."""


class BenchmarkGrew(RuntimeError):
    """The benchmark took in an image of a batch while that was being judged."""


class UnknownBatch(LookupError):
    """No such batch, or it is in a state that the act does not fit."""


@dataclass(frozen=True)
class ListedObject:
    """One labelled object as S3 lists it, with the label its key gives."""

    key: str
    etag: str
    size: int
    modified: datetime
    label: str | None
    sub_label: str
    problem: str | None


@dataclass(frozen=True)
class ListingCount:
    """What one listing found against what was known."""

    listed: int
    new: int
    gone: int
    returned: int


@dataclass(frozen=True)
class ManifestEntry:
    """One row of a manifest; `problem` says why it cannot be used."""

    row: int
    key: str
    label: str | None
    sub_label: str
    origin: str
    group_name: str | None
    labelled_by: str | None
    box: tuple[float, float, float, float] | None
    problem: str | None


@dataclass(frozen=True)
class Newcomer:
    """An object that has been listed and not yet fetched."""

    object_id: int
    key: str
    etag: str
    size: int


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


@dataclass(frozen=True)
class ClassRow:
    """How many usable images a class has, by split."""

    name: str
    usable: int
    train: int
    validation: int
    test: int
    held: int
    withdrawn: int


def normalised(label: str) -> str:
    """One spelling for one name: Unicode NFC, single spaces, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", label).split())


def label_of(key: str) -> tuple[str | None, str]:
    """Class and sub-class that a key `labelled/<class>[/<sub-class>]/<name>` gives."""
    parts = key.removeprefix(LABELLED).split("/")
    if not key.startswith(LABELLED) or len(parts) not in (2, 3) or not all(parts):
        return None, ""
    return normalised(parts[0]), normalised(parts[1]) if len(parts) == 3 else ""


# --- intake ---------------------------------------------------------------------------------


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


def record_listing(
    session: Session, bucket: str, batch_id: int, listed: Iterable[ListedObject]
) -> ListingCount:
    """Compare a whole listing with what is known, by key and ETag, inside Postgres.

    The listing is streamed through COPY, so memory stays flat. What is new becomes `pending`
    in the batch when its label is known (from its key or from a manifest row) or its key is
    refused; an object without any label waits without a batch. What is no longer listed gets
    `gone_at`; what is listed again loses it and, had it been accepted, is judged again if its
    bytes may have carried another label meanwhile.
    """
    session.execute(
        text(
            """
            CREATE TEMP TABLE listing (
                key text, etag text, size bigint, modified timestamptz,
                label text, sub_label text, problem text
            ) ON COMMIT DROP
            """
        )
    )
    columns = ["key", "etag", "size", "modified", "label", "sub_label", "problem"]
    rows = (tuple(getattr(one, name) for name in columns) for one in listed)
    copy_rows(session, "listing", columns, rows)
    session.execute(text("CREATE INDEX ON listing (key, etag)"))
    session.execute(text("ANALYZE listing"))
    parameters = {"bucket": bucket, "batch": batch_id}
    new = session.execute(
        text(
            """
            INSERT INTO objects (bucket, key, etag, size, modified, label, sub_label, facts)
            SELECT DISTINCT ON (key, etag)
                   :bucket, key, etag, size, modified, label, sub_label,
                   CASE WHEN problem IS NOT NULL
                        THEN jsonb_build_object('key_problem', problem) END
            FROM listing
            ON CONFLICT (bucket, key, etag) DO NOTHING
            """
        ),
        parameters,
    ).rowcount  # type: ignore[attr-defined]  # a CursorResult, which the stubs do not say
    gone = session.execute(
        text(
            """
            UPDATE objects o SET gone_at = now()
            WHERE bucket = :bucket AND gone_at IS NULL AND NOT EXISTS (
                SELECT 1 FROM listing l WHERE l.key = o.key AND l.etag = o.etag)
            """
        ),
        parameters,
    ).rowcount  # type: ignore[attr-defined]
    session.execute(
        text(
            """
            UPDATE objects o SET state = 'pending', batch_id = NULL FROM listing l
            WHERE o.bucket = :bucket AND o.gone_at IS NOT NULL AND o.state = 'accepted'
              AND l.key = o.key AND l.etag = o.etag
              AND (EXISTS (SELECT 1 FROM images i
                           WHERE i.sha256 = o.sha256 AND i.withdrawn_at IS NOT NULL)
                   -- another copy has spoken for the image until now
                   OR EXISTS (SELECT 1 FROM objects p
                              WHERE p.sha256 = o.sha256 AND p.id <> o.id
                                AND p.state = 'accepted'
                                AND (p.gone_at IS NULL OR p.gone_at = now())))
            """
        ),
        parameters,
    )
    returned = session.execute(
        text(
            """
            UPDATE objects o SET gone_at = NULL FROM listing l
            WHERE o.bucket = :bucket AND o.gone_at IS NOT NULL
              AND l.key = o.key AND l.etag = o.etag
            """
        ),
        parameters,
    ).rowcount  # type: ignore[attr-defined]
    _reconsider_mended(session, parameters)
    session.execute(
        text(
            """
            UPDATE objects o SET batch_id = :batch
            WHERE bucket = :bucket AND batch_id IS NULL AND gone_at IS NULL
              AND state = 'pending'
              AND (label IS NOT NULL OR facts ? 'key_problem'
                   OR EXISTS (SELECT 1 FROM manifest_rows m WHERE m.key = o.key))
            """
        ),
        parameters,
    )
    count = session.scalar(text("SELECT count(*) FROM listing")) or 0
    return ListingCount(listed=count, new=new, gone=gone, returned=returned)


# Reasons for quarantine that a newer manifest row, or deleting the other copy, can take away.
MENDED_BY_MANIFEST = (
    "labelled", "label_spelt", "label_allowed", "labelled_by_person", "one_label", "origin",
    "subject", "text_clean",
)  # fmt: skip


def _reconsider_mended(session: Session, parameters: Mapping[str, Any]) -> None:
    """Let objects out of quarantine whose reason was mended, to be judged again.

    These are: what a manifest of this batch describes anew, what was refused for its second
    label while another copy of its bytes has been deleted since, and what was gone or
    overwritten when it was to be read and is listed as it was once more. What else is mended has
    other bytes, hence another ETag, and is a new object anyhow.
    """
    found = session.scalars(
        text(
            """
            SELECT o.id FROM objects o
            WHERE bucket = :bucket AND state = 'quarantined' AND gone_at IS NULL AND (
                (sha256 IS NULL AND facts->>'readable' = 'false')
                OR (EXISTS (SELECT 1 FROM manifest_rows m WHERE m.batch_id = :batch
                            AND m.key = o.key)
                    AND NOT EXISTS (SELECT 1 FROM quarantine q WHERE q.object_id = o.id
                                    AND q.expectation <> ALL(:mended)))
                OR (EXISTS (SELECT 1 FROM quarantine q
                            WHERE q.object_id = o.id AND q.expectation = 'one_label')
                    -- now() is the time of this transaction: those this very listing missed
                    AND EXISTS (SELECT 1 FROM objects other
                                WHERE other.sha256 = o.sha256 AND other.gone_at = now())))
            """
        ),
        {**parameters, "mended": list(MENDED_BY_MANIFEST)},
    ).all()
    if not found:
        return
    session.execute(delete(Refusal).where(Refusal.object_id.in_(found)))
    session.execute(
        text(
            """
            UPDATE objects SET state = 'pending', batch_id = NULL,
                   facts = CASE WHEN sha256 IS NOT NULL THEN facts END
            WHERE id = ANY(:found)
            """
        ),
        {"found": list(found)},
    )


def refuse_vanished_classes(session: Session, served: Iterable[str]) -> None:
    """Raise `ClassVanished` when a served class had accepted objects and now has none.

    Deleting a few images is housekeeping; a whole class gone, or renamed, is far more often a
    wrong prefix or a broken sync, and a network trained without it would forget it.
    """
    rows = session.execute(
        text(
            """
            SELECT c.name, count(*) FROM objects o
            JOIN images i ON i.sha256 = o.sha256 JOIN classes c ON c.id = i.class_id
            WHERE o.state <> 'quarantined' AND c.name = ANY(:served)
            GROUP BY c.name HAVING count(*) FILTER (WHERE o.gone_at IS NULL) = 0
            ORDER BY c.name
            """
        ),
        {"served": list(served)},
    ).all()
    if rows:
        names = ", ".join(f"{name!r} ({count})" for name, count in rows[:5])
        raise ClassVanished(
            f"every object of {names} has vanished from {LABELLED} though the champion serves "
            "it: put the objects back, then run again; nothing was changed"
        )


def manifest_is_known(session: Session, key: str, etag: str) -> bool:
    """Whether this manifest, in these bytes, has been read before."""
    query = select(Manifest.id).where(Manifest.key == key, Manifest.etag == etag)
    return session.scalar(query) is not None


def record_manifest(
    session: Session, batch_id: int, key: str, etag: str, entries: list[ManifestEntry]
) -> None:
    """Keep a manifest's rows and take the objects they name into the batch."""
    manifest_id = session.execute(
        insert(Manifest).values(key=key, etag=etag, rows=len(entries)).returning(Manifest.id)
    ).scalar_one()
    columns = [
        "manifest_id", "row", "key", "label", "sub_label", "origin", "group_name",
        "labelled_by", "box", "problem", "batch_id",
    ]  # fmt: skip
    rows = (
        (
            manifest_id,
            entry.row,
            entry.key,
            entry.label,
            entry.sub_label,
            entry.origin,
            entry.group_name,
            entry.labelled_by,
            None if entry.box is None else "{" + ",".join(map(str, entry.box)) + "}",
            entry.problem,
            batch_id,
        )
        for entry in entries
    )
    copy_rows(session, "manifest_rows", columns, rows)


def waiting(session: Session, batch_id: int) -> list[Newcomer]:
    """Objects of the batch that are still to be fetched, in the order of their keys."""
    query = (
        select(Object.id, Object.key, Object.etag, Object.size)
        .where(Object.batch_id == batch_id, Object.state == "pending")
        .where(Object.facts.is_(None), Object.gone_at.is_(None))
        .order_by(Object.key, Object.id)
    )
    return [Newcomer(*row) for row in session.execute(query)]


def store_facts(
    session: Session, rows: Iterable[tuple[int, str | None, Mapping[str, Any]]]
) -> None:
    """Keep what was measured of fetched objects: (object id, sha256, facts)."""
    session.execute(
        text("CREATE TEMP TABLE measured (id bigint, sha256 text, facts jsonb) ON COMMIT DROP")
    )
    encoded = ((number, sha256, json.dumps(dict(facts))) for number, sha256, facts in rows)
    copy_rows(session, "measured", ["id", "sha256", "facts"], encoded)
    session.execute(
        text(
            "UPDATE objects o SET sha256 = m.sha256, facts = m.facts FROM measured m "
            "WHERE m.id = o.id"
        )
    )


def drop_gone(session: Session, batch_id: int) -> int:
    """Leave objects that were deleted before they could be taken in out of the batch."""
    result = session.execute(
        text(
            """
            UPDATE objects SET batch_id = NULL
            WHERE batch_id = :batch AND state = 'pending' AND gone_at IS NOT NULL
            """
        ),
        {"batch": batch_id},
    )
    return result.rowcount  # type: ignore[attr-defined, no-any-return]


def _near_benchmark(table: str, identity: str) -> str:
    """SQL for (identity, key) of images in a table that nearly repeat a benchmark image."""
    return " UNION ".join(
        f"""
        SELECT n.{identity}, b.source_key
        FROM {table} n JOIN benchmark_images b
          ON {_BAND.format(alias="b", column="dhash", shift=shift)}
           = {_BAND.format(alias="n", column=column, shift=shift)}
        WHERE bit_count((b.dhash # n.{column})::bit(64)) <= {NEAR_BITS}
        """  # noqa: S608  (constants of this module)
        for column in ("dhash", "dhash_mirror")
        for shift in (48, 32, 16, 0)
    )


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
    objects = session.execute(
        text(
            f"""
            WITH said AS (
                SELECT DISTINCT ON (m.key) m.* FROM manifest_rows m
                WHERE m.key IN (SELECT o.key FROM objects o WHERE o.batch_id = :batch)
                ORDER BY m.key, m.manifest_id DESC, m.row DESC
            ), near AS ({_near_benchmark("newcomers", "id")})
            SELECT o.id AS object_id, NULL::bigint AS manifest_row_id, o.key, o.sha256, o.facts,
                   o.label AS folder_label, o.sub_label AS folder_sub_label,
                   m.id IS NOT NULL AS in_manifest, m.label AS manifest_label,
                   m.sub_label AS manifest_sub_label, m.origin, m.group_name, m.labelled_by,
                   m.box, m.problem AS row_problem, NULL::bigint AS relabels,
                   b.sha256 IS NOT NULL AS in_benchmark,
                   (SELECT min(near.source_key) FROM near WHERE near.id = o.id) AS near_benchmark,
                   c.name AS library_label,
                   EXISTS (SELECT 1 FROM objects p WHERE p.sha256 = o.sha256 AND p.id <> o.id
                           AND p.state = 'accepted' AND p.gone_at IS NULL) AS library_live
            FROM objects o
            LEFT JOIN said m ON m.key = o.key
            LEFT JOIN benchmark_images b ON b.sha256 = o.sha256
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
                           AND p.key NOT IN (SELECT key FROM said)) AS library_live
            FROM said m
            JOIN objects o ON o.key = m.key AND o.state = 'accepted' AND o.gone_at IS NULL
            JOIN images i ON i.sha256 = o.sha256 AND i.withdrawn_at IS NULL
            JOIN classes c ON c.id = i.class_id
            WHERE m.batch_id = :batch AND m.problem IS NULL
              AND (m.label <> c.name OR m.sub_label NOT IN ('', i.sub_class))
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
                   false AS library_live
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


def class_names(session: Session) -> set[str]:
    """Every class name the library knows."""
    return set(session.scalars(select(Class.name)))


def class_mix(session: Session) -> dict[str, int]:
    """How many usable images each class has."""
    rows = session.execute(
        text(
            """
            SELECT c.name, count(*) FROM images i JOIN classes c ON c.id = i.class_id
            WHERE i.withdrawn_at IS NULL GROUP BY c.name
            """
        )
    )
    return {name: count for name, count in rows}  # noqa: C416  (dict(Row) is typed less well)


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
    class_ids = _classes(session, batch_id, {one.label for one in accepted})
    known = _known_images(session, [one.sha256 for one in accepted])
    first: dict[str, Accepted] = {}
    for one in sorted(accepted, key=lambda one: (one.sha256, one.object_id)):
        first.setdefault(one.sha256, one)  # a thousand copies of one image count once
    for sha256, one in first.items():
        if sha256 in known:
            _welcome_back(session, run_id, batch_id, one, known[sha256], class_ids[one.label])
    fresh = [one for sha256, one in first.items() if sha256 not in known]
    _load_newcomers(session, fresh)
    _refuse_leaks(session)
    placed = _places(session, fresh, class_ids)
    columns = [
        "sha256", "class_id", "sub_class", "origin", "group_name", "split", "sequence", "width",
        "height", "format", "bytes", "dhash", "labelled_by", "batch_id",
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


def _refuse_leaks(session: Session) -> None:
    """Refuse what the benchmark has come to hold since the batch was compared with it."""
    exact = "SELECT n.sha256, b.source_key FROM fresh n JOIN benchmark_images b USING (sha256)"
    near = f"{exact} UNION {_near_benchmark('fresh', 'sha256')}"
    found = session.execute(text(near)).first()
    if found:
        raise BenchmarkGrew(
            f"{found.source_key} came into the benchmark while image {found.sha256[:12]}… of this "
            "batch, which it repeats, was judged: run again, and that image is refused"
        )


def _classes(session: Session, batch_id: int, names: set[str]) -> dict[str, int]:
    rows = session.execute(select(Class.name, Class.id).where(Class.name.in_(names)))
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
    _log_change(session, run_id, one.sha256, kind, old_label, one.label)
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


def _log_change(
    session: Session,
    run_id: int | None,
    sha256: str,
    kind: str,
    from_class: str | None,
    to_class: str | None,
) -> None:
    session.execute(
        text(
            """
            INSERT INTO label_changes (sha256, kind, from_class, to_class, run_id)
            VALUES (:sha, :kind, :from, :to, :run)
            """
        ),
        {"sha": sha256, "kind": kind, "from": from_class, "to": to_class, "run": run_id},
    )


@dataclass(frozen=True)
class _Place:
    group_name: str
    split: str
    sequence: int | None


def _places(
    session: Session, fresh: list[Accepted], class_ids: dict[str, int]
) -> dict[str, _Place]:
    """Give each new image its group and split.

    Images that are near each other, or that share a group's name, form one group and get one
    split. A group that touches older images takes their split; if those disagree it is held
    out, because either side would leak. Only a group that is wholly new draws from the class's
    sequence, by its first real image.
    """
    by_sha = {one.sha256: one for one in fresh}
    leader = {sha: sha for sha in by_sha}

    def find(sha: str) -> str:
        while leader[sha] != sha:
            leader[sha] = leader[leader[sha]]
            sha = leader[sha]
        return sha

    for a, b in _near_newcomers(session):
        low, high = sorted((find(a), find(b)))
        leader[high] = low
    named: dict[str, str] = {}
    for one in fresh:
        if one.group_name:
            other = named.setdefault(one.group_name, one.sha256)
            low, high = sorted((find(other), find(one.sha256)))
            leader[high] = low
    groups: dict[str, list[Accepted]] = defaultdict(list)
    for sha in sorted(by_sha):
        groups[find(sha)].append(by_sha[sha])

    older = _older_neighbours(session)
    next_number = _next_numbers(session, class_ids)
    placed: dict[str, _Place] = {}
    for head, members in sorted(groups.items()):
        splits = {split for one in members for split, _ in older.get(one.sha256, [])}
        names = {name for one in members for _, name in older.get(one.sha256, [])}
        names |= {one.group_name for one in members if one.group_name}
        group_name = min(names) if names else head
        drawn_by = next((one for one in members if one.origin == "real"), None)
        sequence = None
        if len(splits) > 1:
            split = "held"
        elif splits:
            split = splits.pop()
        elif drawn_by is None:
            split = "train"
        else:
            line = (class_ids[drawn_by.label], drawn_by.sub_label)
            sequence = next_number[line]
            next_number[line] += 1
            split = SPLIT_CYCLE[sequence % len(SPLIT_CYCLE)]
        for one in members:
            # Staged and synthetic images only train; beside held-out neighbours they would leak.
            made = one.origin != "real" and split != "train"
            placed[one.sha256] = _Place(
                group_name=group_name,
                split="held" if made else split,
                sequence=sequence if one is drawn_by else None,
            )
    return placed


def _next_numbers(session: Session, class_ids: dict[str, int]) -> defaultdict[tuple[int, str], int]:
    rows = session.execute(
        text(
            """
            SELECT class_id, sub_class, max(sequence) + 1 FROM images
            WHERE class_id = ANY(:ids) AND sequence IS NOT NULL GROUP BY class_id, sub_class
            """
        ),
        {"ids": list(class_ids.values())},
    )
    numbers: defaultdict[tuple[int, str], int] = defaultdict(int)
    for class_id, sub_class, number in rows:
        numbers[class_id, sub_class] = number
    return numbers


def _load_newcomers(session: Session, fresh: list[Accepted]) -> None:
    session.execute(text("DROP TABLE IF EXISTS fresh"))
    session.execute(
        text(
            """
            CREATE TEMP TABLE fresh (sha256 text, dhash bigint, dhash_mirror bigint,
                                     group_name text) ON COMMIT DROP
            """
        )
    )
    rows = (
        (one.sha256, one.facts["dhash"], one.facts["dhash_mirror"], one.group_name)
        for one in fresh
    )
    copy_rows(session, "fresh", ["sha256", "dhash", "dhash_mirror", "group_name"], rows)
    for shift in (48, 32, 16, 0):
        band = _BAND.format(alias="fresh", column="dhash", shift=shift).replace("fresh.", "")
        session.execute(text(f"CREATE INDEX ON fresh ({band})"))
    session.execute(text("ANALYZE fresh"))


def _near_newcomers(session: Session) -> list[tuple[str, str]]:
    """Pairs of the images in `fresh` that are near each other, mirrored or not."""
    branches = " UNION ".join(
        f"""
        SELECT a.sha256, b.sha256 FROM fresh a JOIN fresh b
          ON {_BAND.format(alias="a", column="dhash", shift=shift)}
           = {_BAND.format(alias="b", column=column, shift=shift)}
        WHERE a.sha256 <> b.sha256 AND bit_count((a.dhash # b.{column})::bit(64)) <= {NEAR_BITS}
        """  # noqa: S608  (constants of this module)
        for column in ("dhash", "dhash_mirror")
        for shift in (48, 32, 16, 0)
    )
    return [(a, b) for a, b in session.execute(text(branches))]


def _older_neighbours(session: Session) -> dict[str, list[tuple[str, str]]]:
    """For each new image the (split, group) of library images near it or in its named group.

    Hashes are cut into four bands of 16 bits: a pair within 3 bits agrees in at least one band,
    so four index look-ups find every neighbour without reading the library.
    """
    branches = [
        f"""
        SELECT n.sha256, i.split, i.group_name FROM fresh n JOIN images i
          ON {_BAND.format(alias="i", column="dhash", shift=shift)}
           = {_BAND.format(alias="n", column=column, shift=shift)}
        WHERE bit_count((i.dhash # n.{column})::bit(64)) <= {NEAR_BITS}
        """  # noqa: S608  (constants of this module)
        for column in ("dhash", "dhash_mirror")
        for shift in (48, 32, 16, 0)
    ]
    branches.append(
        "SELECT n.sha256, i.split, i.group_name FROM fresh n "
        "JOIN images i ON i.group_name = n.group_name"
    )
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for sha256, split, group_name in session.execute(text(" UNION ".join(branches))):
        found[sha256].append((split, group_name))
    return found


def settle_gone(session: Session, run_id: int | None) -> Counter[str]:
    """Withdraw images whose last object is gone, and bring back those whose object returned."""
    changes: Counter[str] = Counter()
    gone = session.execute(
        text(
            """
            UPDATE images i SET withdrawn_at = now(), withdrawn_why = 'deleted'
            WHERE withdrawn_at IS NULL
              AND EXISTS (SELECT 1 FROM objects o WHERE o.sha256 = i.sha256
                          AND o.gone_at IS NOT NULL)
              AND NOT EXISTS (SELECT 1 FROM objects o WHERE o.sha256 = i.sha256
                              AND o.state = 'accepted' AND o.gone_at IS NULL)
            RETURNING sha256, (SELECT name FROM classes c WHERE c.id = i.class_id)
            """
        )
    ).all()
    back = session.execute(
        text(
            """
            UPDATE images i SET withdrawn_at = NULL, withdrawn_why = NULL
            WHERE withdrawn_why = 'deleted'
              AND EXISTS (SELECT 1 FROM objects o WHERE o.sha256 = i.sha256
                          AND o.state = 'accepted' AND o.gone_at IS NULL)
            RETURNING sha256, (SELECT name FROM classes c WHERE c.id = i.class_id)
            """
        )
    ).all()
    for sha256, name in gone:
        _log_change(session, run_id, sha256, "deleted", name, None)
        changes["deleted"] += 1
    for sha256, name in back:
        _log_change(session, run_id, sha256, "returned", name, name)
        changes["returned"] += 1
    return changes


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
        _log_change(session, run_id, sha256, "conflict", name, None)
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


# --- acts of people -------------------------------------------------------------------------


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


# --- questions ------------------------------------------------------------------------------


def batches(session: Session, most: int = 20) -> list[BatchRow]:
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


def batch(session: Session, batch_id: int) -> BatchRow:
    """One batch with its counts; raises `UnknownBatch`."""
    rows = [row for row in batches(session, most=batch_id) if row.id == batch_id]
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


def classes(session: Session) -> list[ClassRow]:
    """Every class with its usable images by split."""
    rows = session.execute(
        text(
            """
            SELECT c.name,
                   count(*) FILTER (WHERE usable AND split <> 'held'),
                   count(*) FILTER (WHERE usable AND split = 'train'),
                   count(*) FILTER (WHERE usable AND split = 'validation'),
                   count(*) FILTER (WHERE usable AND split = 'test'),
                   count(*) FILTER (WHERE usable AND split = 'held'),
                   count(*) FILTER (WHERE NOT usable)
            FROM classes c
            JOIN (SELECT *, withdrawn_at IS NULL AS usable FROM images) i ON i.class_id = c.id
            GROUP BY c.name ORDER BY c.name
            """
        )
    )
    return [ClassRow(*row) for row in rows]


def object_states(session: Session) -> dict[str, int]:
    """How many listed objects are pending, accepted and quarantined; they sum to all listed."""
    rows = session.execute(
        text("SELECT state, count(*) FROM objects WHERE gone_at IS NULL GROUP BY state")
    )
    counts = {"pending": 0, "accepted": 0, "quarantined": 0}
    return counts | {state: count for state, count in rows}  # noqa: C416


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


def label_changes(session: Session, most: int = 100) -> list[dict[str, Any]]:
    """The newest label changes first."""
    rows = session.execute(
        text(
            """
            SELECT sha256, kind, from_class, to_class, run_id, noticed_at FROM label_changes
            ORDER BY id DESC LIMIT :most
            """
        ),
        {"most": most},
    )
    return [dict(row._mapping) for row in rows]


def sources(session: Session, digests: list[str]) -> dict[str, tuple[str, str]]:
    """Key and ETag under which each image's bytes lie now; images without one are left out."""
    rows = session.execute(
        text(
            """
            SELECT DISTINCT ON (sha256) sha256, key, etag FROM objects
            WHERE sha256 = ANY(:digests) AND gone_at IS NULL AND state <> 'quarantined'
            ORDER BY sha256, id
            """
        ),
        {"digests": digests},
    )
    return {sha256: (key, etag) for sha256, key, etag in rows}


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
