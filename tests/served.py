"""What a server hands to the log: a version that answered, rows, and a log to put them into."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text

from infra.database import Database
from infra.storage import Storage
from records import snapshots, versions
from records.transactions import Transaction, new_id
from vision.plan import Plan
from web.keeping import Keeping
from web.transaction_log import TransactionLog

PLAN = Plan(architecture="test_resnet", image_size=32, precision="float32", dropout=0.0)
NAMES = ("circle", "cross", 'a "ring", of\\sorts', "square")
AT = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
NOTHING = Keeping(review_share=0, doubtful_share=0, doubtful_below=0, image_share=0)
EVERYTHING = Keeping(review_share=0, doubtful_share=1, doubtful_below=0, image_share=1)


def version(database: Database, storage: Storage) -> int:
    """Write down a version that may be said to have answered."""
    # Prefect comes with it, which a process that only logs must not wait for.
    import pyarrow.parquet as pq

    from tasks.snapshot import SCHEMA

    empty = hashlib.sha256(f"{snapshots.POLICY}\n".encode()).hexdigest()
    listed = io.BytesIO()
    pq.write_table(SCHEMA.empty_table(), listed)
    storage.write("snapshots/none.parquet", listed.getvalue())
    with database.transaction() as session:
        run = session.scalar(text(
            "INSERT INTO runs (purpose, state, host, pid, plan, ended_at) "
            "VALUES ('nightly', 'completed', 'here', 1, '{}', now()) RETURNING id"
        ))  # fmt: skip
        session.execute(
            text("INSERT INTO snapshots (digest, key, policy, cutoff, images, classes) "
                 "VALUES (:digest, 'snapshots/none.parquet', :policy, 1, 0, 0)"),
            {"digest": empty, "policy": snapshots.POLICY},
        )  # fmt: skip
        assert run is not None
        return versions.candidate(
            session, run, "nightly", None, empty, PLAN.to_dict(), PLAN.digest(), list(NAMES)
        )


def row(number: int = 0, **changes: Any) -> Transaction:
    """A row like no other number gives; each is a second after the one before it."""
    at = changes.pop("at", AT + timedelta(seconds=number))
    confidence = round(0.05 + number * 0.0937 % 0.9, 4)
    made = Transaction(
        id=new_id(at, "shop"),
        at=at,
        client="shop",
        version=1,
        sha256=f"{number:064x}",
        width=640,
        height=480,
        top_labels=(NAMES[number % 4], NAMES[(number + 1) % 4]),
        top_confidences=(confidence, round(confidence / 3, 4)),
        shown=(True, False, None)[number % 3],
        latency_seconds=round(0.01 + number % 7 / 1000, 4),
    )
    return replace(made, **changes)


@contextmanager
def logging(
    database: Database, storage: Storage, folder: Path, keeping: Keeping = NOTHING, **bounds: int
) -> Iterator[TransactionLog]:
    """A log for the block, closed at its end."""
    log = TransactionLog(database, storage, folder, keeping, **bounds)
    try:
        yield log
    finally:
        log.close()
