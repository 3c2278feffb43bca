"""Intake by hand: objects put into S3, taken in and judged, without the rest of a night."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import nights
import pictures
from sqlalchemy import text

from infra.database import Database
from infra.storage import Storage
from records import objects, runs
from tasks.expectations import Rules
from tasks.intake import Intake, take_in_new_images
from tasks.validation import Checked, check_batch, settle_gone

PLAN = nights.TINY_PLAN


@dataclass(frozen=True)
class Taken:
    """What one intake came to; `checked` is None when nothing was new."""

    run_id: int
    intake: Intake
    checked: Checked | None


def begin(database: Database) -> int:
    """Open a run, as a night does."""
    with database.transaction() as session:
        return runs.begin(session, "nightly", PLAN.to_dict(), None)


def take_in(database: Database, rules: Rules = Rules()) -> Taken:  # noqa: B008  (it is frozen)
    """List, fetch, judge and settle, as a night does before it freezes its snapshot."""
    run_id = begin(database)
    intake = take_in_new_images.fn(run_id, PLAN)
    checked = None
    if intake.batch_id is not None:
        checked = check_batch.fn(run_id, intake.batch_id, rules)
    if checked is None or not checked.refused:
        settle_gone.fn(run_id)
    with database.transaction() as session:
        runs.close(session, run_id, "completed", None)
    return Taken(run_id, intake, checked)


def put(storage: Storage, key: str, body: bytes) -> None:
    """Write under any key at all: `Storage.write` refuses those outside our alphabet."""
    storage._client.put_object(Bucket=storage.bucket, Key=key, Body=body)


def remove(storage: Storage, key: str) -> None:
    """Delete an object."""
    storage._client.delete_object(Bucket=storage.bucket, Key=key)


def picture(seed: int, name: str = "ring") -> bytes:
    """A picture under 64 pixels, of which none is near another."""
    return pictures.png(pictures.shape(name, seed, side=48))


def csv(rows: Iterable[Sequence[str]], header: str = "key,label") -> bytes:
    """A CSV manifest."""
    return "\n".join([header, *(",".join(row) for row in rows), ""]).encode()


def jsonl(*rows: dict[str, Any]) -> bytes:
    """A JSONL manifest, with escapes for whatever is not ASCII."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def query(database: Database, statement: str, **values: Any) -> list[Any]:
    """The rows that a statement gives."""
    with database.transaction() as session:
        return list(session.execute(text(statement), values))


def state(database: Database, key: str) -> str | None:
    """The state of the object that lies under this key now."""
    found = query(
        database, "SELECT state FROM objects WHERE key = :key AND gone_at IS NULL", key=key
    )
    return found[0].state if found else None


def reasons(database: Database, key: str) -> dict[str, str]:
    """Why an object, or a manifest row of its key, is in quarantine: expectation and sentence."""
    found = query(database, "SELECT expectation, sentence FROM quarantine WHERE key = :k", k=key)
    return {row.expectation: row.sentence for row in found}


def label(database: Database, key: str) -> tuple[str, str, str] | None:
    """Class, sub-class and split of the usable image that lies under this key now."""
    found = query(
        database,
        """
        SELECT c.name, i.sub_class, i.split FROM objects o JOIN images i USING (sha256)
        JOIN classes c ON c.id = i.class_id
        WHERE o.key = :key AND o.gone_at IS NULL AND o.state = 'accepted'
          AND i.withdrawn_at IS NULL
        """,
        key=key,
    )
    return (found[0].name, found[0].sub_class, found[0].split) if found else None


def all_accounted(database: Database, storage: Storage) -> bool:
    """Whether every object that S3 lists under labelled/ has exactly one known state."""
    listed = sum(bool(one.size) or one.key[-1] != "/" for one in storage.list(objects.LABELLED))
    with database.transaction() as session:
        return sum(objects.states(session).values()) == listed
