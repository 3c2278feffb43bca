"""Objects: what S3 lists and manifests say, compared with what is known."""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import delete, insert, select, text
from sqlalchemy.orm import Session

from infra.database import copy_rows
from records.tables import Manifest, Object, Refusal

T = TypeVar("T")

LABELLED = "labelled/"

MANIFESTS = "manifests/"

# Reasons for quarantine that a newer manifest row, or deleting the other copy, can take away.
MENDED_BY_MANIFEST = (
    "labelled", "label_spelt", "label_allowed", "labelled_by_person", "one_label", "origin",
    "subject", "text_clean",
)  # fmt: skip


class ClassVanished(RuntimeError):
    """A class that the champion serves has no object left in S3."""


class ListedObject(NamedTuple):
    """One labelled object as S3 lists it, with the label its key gives; there are very many."""

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


@functools.lru_cache(10_000)  # a listing names few classes, each very often
def normalised(label: str) -> str:
    """One spelling for one name: Unicode NFC, single spaces, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", label).split())


def label_of(key: str) -> tuple[str | None, str]:
    """Class and sub-class that a key `labelled/<class>[/<sub-class>]/<name>` gives."""
    parts = key.removeprefix(LABELLED).split("/")
    if not key.startswith(LABELLED) or len(parts) not in (2, 3) or not all(parts):
        return None, ""
    return normalised(parts[0]), normalised(parts[1]) if len(parts) == 3 else ""


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
    count = copy_rows(session, "listing", ListedObject._fields, _ahead(listed))
    parameters = {"bucket": bucket, "batch": batch_id}
    new, gone, returned = _compare(session, parameters)
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
    return ListingCount(listed=count, new=new, gone=gone, returned=returned)


def _ahead(items: Iterable[T], block: int = 1000) -> Iterator[T]:
    """The same items, the next block of them fetched while this one is used."""
    rest = iter(items)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(list, islice(rest, block))
        while some := coming.result():
            coming = pool.submit(list, islice(rest, block))
            yield from some


def _compare(session: Session, parameters: Mapping[str, Any]) -> tuple[int, int, int]:
    """Bring `objects` up to the table `listing`: how many are new, gone and returned.

    One pass over both finds what differs, so that no row is written, or even looked up, of which
    nothing has changed.
    """
    # Enough to hash a hundred thousand keys in memory; what is more goes through files.
    session.execute(text("SET LOCAL work_mem = '64MB'"))
    session.execute(
        text(
            """
            CREATE TEMP TABLE differing ON COMMIT DROP AS
            SELECT l.*, o.id AS gone_id
            FROM listing l FULL JOIN (
                SELECT id, key, etag FROM objects WHERE bucket = :bucket AND gone_at IS NULL) o
              ON o.key = l.key AND o.etag = l.etag
            WHERE o.id IS NULL OR l.key IS NULL
            """
        ),
        parameters,
    )
    if not session.scalar(text("SELECT count(*) FROM differing")):
        return 0, 0, 0
    session.execute(text("ANALYZE differing"))
    new = session.execute(
        text(
            """
            INSERT INTO objects (bucket, key, etag, size, modified, label, sub_label, facts)
            SELECT DISTINCT ON (key, etag)
                   :bucket, key, etag, size, modified, label, sub_label,
                   CASE WHEN problem IS NOT NULL
                        THEN jsonb_build_object('key_problem', problem) END
            FROM differing WHERE gone_id IS NULL
            ON CONFLICT (bucket, key, etag) DO NOTHING
            """
        ),
        parameters,
    ).rowcount  # type: ignore[attr-defined]  # a CursorResult, which the stubs do not say
    gone = session.execute(
        text(
            """
            UPDATE objects SET gone_at = now()
            WHERE id IN (SELECT gone_id FROM differing WHERE gone_id IS NOT NULL)
            """
        )
    ).rowcount  # type: ignore[attr-defined]
    session.execute(
        text(
            """
            UPDATE objects o SET state = 'pending', batch_id = NULL FROM differing l
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
            UPDATE objects o SET gone_at = NULL FROM differing l
            WHERE o.bucket = :bucket AND o.gone_at IS NOT NULL
              AND l.key = o.key AND l.etag = o.etag
            """
        ),
        parameters,
    ).rowcount  # type: ignore[attr-defined]
    return new, gone, returned


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
            "it: put the objects back, or retire the class (`regraft nightly --retire CLASS`); "
            "nothing was changed"
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
    session.execute(text("ANALYZE measured"))  # or Postgres may read all objects to find a few
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


def states(session: Session) -> dict[str, int]:
    """How many listed objects are pending, accepted and quarantined; they sum to all listed."""
    rows = session.execute(
        text("SELECT state, count(*) FROM objects WHERE gone_at IS NULL GROUP BY state")
    )
    counts = {"pending": 0, "accepted": 0, "quarantined": 0}
    return counts | {state: count for state, count in rows}  # noqa: C416


def sources(session: Session, digests: list[str]) -> dict[str, tuple[str, str]]:
    """Key and ETag under which each image's bytes lie now; images without one are left out.

    Images of the library and of pretraining sets alike: the same digest is the same bytes.
    """
    rows = session.execute(
        text(
            """
            SELECT DISTINCT ON (sha256) sha256, key, etag FROM (
                SELECT sha256, key, etag, id AS place FROM objects
                WHERE sha256 = ANY(:digests) AND gone_at IS NULL AND state <> 'quarantined'
                UNION ALL
                SELECT sha256, key, etag, NULL FROM set_images
                WHERE sha256 = ANY(:digests) AND problem IS NULL) known
            ORDER BY sha256, place NULLS LAST, key
            """
        ),
        {"digests": digests},
    )
    return {sha256: (key, etag) for sha256, key, etag in rows}
