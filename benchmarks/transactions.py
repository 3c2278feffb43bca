"""The log of what is served: rows a second, and what a request pays for it.

    python -m benchmarks.transactions

All write transactions (the five best of 101 classes) into the same partitioned table of an embedded
Postgres, with its checks, keys and indexes, and commit. regraft is given one request at a time, as
by a server: its time goes to the last row in Postgres, spool, sync and daily counts included.
`INSERT per request` is a handler that writes its own row before it answers. The bare COPY has its
bytes ready, in batches as large as ours, and counts nothing: it is the limit.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bench
from benchmarks.copying import BEST, CLASSES, EVALUATION
from benchmarks.figures import Figure, Goal, Part, Row, take_turns
from benchmarks.services import services

ROWS = 50_000
INSERTED = 3000  # by single requests, which take longer
BATCH = 1000
ROUNDS = 3
FROM = datetime(2026, 11, 3, tzinfo=UTC)


def main() -> None:
    """Let the three take turns."""
    given = bench.arguments("log")
    with services(prefect=False):
        version = a_version()
        costs: list[float] = []
        figures = take_turns(
            {
                "regraft": lambda: ours(version, costs),
                "INSERT per request": lambda: inserting(version),
                "bare COPY": lambda: copying(version),
            },
            "rows/s", ROUNDS,
        )  # fmt: skip
    waits = Figure("regraft", "s", tuple(costs))
    waiting = Figure(
        "INSERT per request", "s", tuple(1 / rate for rate in figures["INSERT per request"].values)
    )
    rows = (
        Row(
            f"{ROWS:,} transactions, the {BEST} best of {CLASSES} classes each",
            figures["regraft"], (figures["INSERT per request"], figures["bare COPY"]),
            (Goal("bare COPY", 0.4, "at least 0.4 x a bare COPY, which counts nothing"),),
        ),
        Row(
            "what one request waits for its log", waits, (waiting,),
            (Goal("INSERT per request", 0.05, "at most 0.05 x a row written by the handler"),),
        ),
    )  # fmt: skip
    note = (
        "regraft's rows go through a file that is synced, a temporary table, and two daily counts "
        "in the same transaction. All but the put is done by threads beside the server's own, in "
        "the same process."
    )
    Part("log", "The log of what is served", rows, (note,), (), bench.facts()).save(
        "cuda" if given.gpu else "cpu"
    )


def a_version() -> int:
    """A version that may be said to have answered."""
    from infra import database

    with database.connect().transaction() as session:
        for statement in EVALUATION[:3]:
            session.connection().exec_driver_sql(statement)
        found = session.connection().exec_driver_sql("SELECT max(id) FROM versions")
        return int(found.scalar_one())


def made_up(version: int, count: int) -> list[Any]:
    """Rows that no other call gives."""
    from records.transactions import Transaction, new_id

    random = np.random.default_rng(time.time_ns())
    confidences = np.sort(random.dirichlet(np.ones(CLASSES), count), axis=1)[:, :-BEST - 1:-1]
    top = np.argsort(random.random((count, CLASSES)), axis=1)[:, :BEST].tolist()
    names = [f"sea lion {number:03d}" for number in range(CLASSES)]
    rows = []
    for number, (places, best) in enumerate(zip(top, confidences.tolist(), strict=True)):
        at = FROM + timedelta(milliseconds=number)
        rows.append(Transaction(
            id=new_id(at, "camera"), at=at, client=f"camera {number % 20}", version=version,
            sha256=f"{number:064x}", width=640, height=480,
            top_labels=tuple([names[place] for place in places]), top_confidences=tuple(best),
            shown=best[0] > 0.05, latency_seconds=0.012,
        ))  # fmt: skip
    return rows


def ours(version: int, costs: list[float]) -> float:
    """Rows a second through the log; what a put costs is added to the costs, in seconds."""
    from infra import database, storage
    from web.keeping import Keeping
    from web.transaction_log import TransactionLog

    rows = made_up(version, ROWS)
    with tempfile.TemporaryDirectory() as folder:
        log = TransactionLog(
            database.connect(), storage.connect(), Path(folder),
            Keeping(review_share=0, doubtful_share=0, doubtful_below=0, image_share=0),
            most_waiting=ROWS,
        )  # fmt: skip
        begun = time.perf_counter()
        for row in rows:
            log.put((row,), (None,))
        costs.append((time.perf_counter() - begun) / ROWS)
        while log.counts.written < ROWS:
            time.sleep(0.005)
        seconds = time.perf_counter() - begun
        log.close()
    emptied()
    return ROWS / seconds


def inserting(version: int) -> float:
    """Rows a second where each request writes and commits its own."""
    from records.transactions import COLUMNS

    statement = (
        f"INSERT INTO transactions ({', '.join(COLUMNS)}) "  # noqa: S608  (our names)
        f"VALUES ({', '.join(['%s'] * len(COLUMNS))})"
    )
    values = [
        (str(row.id), row.at, None, 0, row.client, version, row.sha256, row.width, row.height,
         row.top_labels[0], row.top_confidences[0], list(row.top_labels),
         list(row.top_confidences), row.shown, row.latency_seconds, None, None)
        for row in made_up(version, INSERTED)
    ]  # fmt: skip

    def act(cursor: Any) -> None:
        for one in values:
            cursor.execute(statement, one)
            cursor.connection.commit()

    return INSERTED / timed(version, act)


def copying(version: int) -> float:
    """Rows a second of batches whose bytes are ready, each committed."""
    from records.transactions import COLUMNS, line

    lines = [line(row).rsplit("\t", 1)[0] + "\n" for row in made_up(version, ROWS)]
    batches = [
        "".join(lines[start : start + BATCH]).encode() for start in range(0, ROWS, BATCH)
    ]
    statement = f"COPY transactions ({', '.join(COLUMNS)}) FROM STDIN"

    def act(cursor: Any) -> None:
        for batch in batches:
            cursor.copy_expert(statement, BytesIO(batch), size=1 << 16)
            cursor.connection.commit()

    return ROWS / timed(version, act)


def timed(version: int, act: Callable[[Any], None]) -> float:
    """Seconds of an act with a cursor, into a table that has its month and nothing else."""
    from infra import database
    from records import transactions

    with database.connect().transaction() as session:  # the month's partition
        row = made_up(version, 1)[0]
        transactions.append(session, [transactions.line(row)])
    raw = database.connect().engine.raw_connection()
    try:
        with closing(raw.cursor()) as cursor:
            begun = time.perf_counter()
            act(cursor)
            seconds = time.perf_counter() - begun
    finally:
        raw.close()
    emptied()
    return seconds


def emptied() -> None:
    """Take every contender's rows away."""
    from infra import database

    with database.connect().transaction() as session:
        for table in ("transactions", "usage_days", "predicted_days"):
            session.connection().exec_driver_sql(f"TRUNCATE {table}")


if __name__ == "__main__":
    main()
