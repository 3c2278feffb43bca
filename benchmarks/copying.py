"""Answers into Postgres, rows a second, against psycopg2's execute_values and a bare COPY.

    python -m benchmarks.copying

All three write the same 100,000 answers (the five best of 101 classes) into the table `answers` of
an embedded Postgres, checks, key and all, each in a transaction that is rolled back. regraft starts
from the arrays that a network's answers are, execute_values from Python rows that are ready, the
bare COPY from bytes that are ready: it is the limit that formatting can only come close to.
"""

import hashlib
import time
from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
from psycopg2.extras import execute_values

from benchmarks import bench
from benchmarks.figures import Goal, Part, Row, take_turns
from benchmarks.services import services

ROWS = 100_000
CLASSES = 101
BEST = 5
ROUNDS = 3
COLUMNS = (
    "evaluation_id", "sha256", "label", "predicted", "correct", "confidence", "label_confidence",
    "top_labels", "top_confidences",
)  # fmt: skip


def main() -> None:
    """Let the three take turns."""
    given = bench.arguments("copy")
    with services(prefect=False):
        answers = made_up()
        evaluation = an_evaluation()
        figures = take_turns(
            {
                "regraft": lambda: rate(lambda session: ours(session, evaluation, answers)),
                "psycopg2 execute_values": values_contender(evaluation, answers),
                "bare COPY": bare_contender(evaluation, answers),
            },
            "rows/s", ROUNDS,
        )  # fmt: skip
        formatting = formatted_alone(answers)
    row = Row(
        f"{ROWS:,} answers, the {BEST} best of {CLASSES} classes each",
        figures["regraft"],
        (figures["psycopg2 execute_values"], figures["bare COPY"]),
        (Goal("bare COPY", 0.7, "at least 0.7 x a bare COPY of bytes that are ready"),),
    )
    note = (
        "Everything is in the time but the arrays themselves: escaping, formatting, transport, the "
        "table's checks and its key. Formatting alone, into nothing, makes "
        f"{formatting:,.0f} rows/s; it runs while Postgres stores the block before. A confidence "
        "is written with nine digits, from which Postgres reads the very same float32; names of "
        "classes are escaped once for all rows."
    )
    Part("copy", "Answers into Postgres", (row,), (note,), (), bench.facts()).save(
        "cuda" if given.gpu else "cpu"
    )


def made_up() -> Any:
    """Answers as a network gives them: distinct images, descending confidences."""
    from vision.answers import Answers

    random = np.random.default_rng(0)
    confidences = np.sort(random.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32), axis=1)
    top = np.argsort(random.random((ROWS, CLASSES)), axis=1)[:, :BEST]
    names = tuple(f"sea lion {number:03d}" for number in range(CLASSES))
    best = np.ascontiguousarray(confidences[:, :-BEST - 1:-1])
    return Answers(
        images=tuple(hashlib.sha256(b"%d" % number).hexdigest() for number in range(ROWS)),
        labels=tuple(names[place] for place in top[:, 0]),
        class_names=names,
        top=top,
        confidences=best,
        label_confidence=best[:, 0],
    )


def an_evaluation() -> int:
    """The row that answers belong to, with the rows that it needs."""
    from infra import database

    with database.connect().transaction() as session:
        for statement in EVALUATION:
            session.connection().exec_driver_sql(statement)
        found = session.connection().exec_driver_sql("SELECT max(id) FROM evaluations")
        return int(found.scalar_one())


EVALUATION = (
    "INSERT INTO runs (purpose, state, host, pid, plan, ended_at) "
    "VALUES ('nightly', 'completed', 'here', 1, '{}', now())",
    "INSERT INTO snapshots (digest, key, policy, cutoff, images, classes) "
    "VALUES ('d', 'k', 'p', 1, 1, 1)",
    "INSERT INTO versions (purpose, state, run_id, snapshot_digest, plan, plan_digest, "
    "architecture, class_names, class_names_digest, checkpoint_digest, machine) "
    "SELECT 'nightly', 'trained', max(id), 'd', '{}', 'p', 'a', '{}', 'n', 'c', '{}' FROM runs",
    "INSERT INTO evaluations (version_id, checkpoint_digest, subject, images, accuracy, "
    "accuracy_low, accuracy_high, runtime) "
    "SELECT id, 'c', 'test', 1, 1, 1, 1, '{}' FROM versions",
)


class Back(Exception):
    """Leaves a transaction without keeping what it did."""


def rate(act: Callable[[Any], None]) -> float:
    """Rows a second of one act in a transaction that is rolled back; the table is left small."""
    from infra import database

    seconds = 0.0
    try:
        with database.connect().transaction() as session:
            session.connection()  # connected before the clock starts
            begun = time.perf_counter()
            act(session)
            seconds = time.perf_counter() - begun
            raise Back
    except Back:
        pass
    with database.connect().engine.connect().execution_options(
        isolation_level="AUTOCOMMIT"
    ) as connection:
        connection.exec_driver_sql("VACUUM (TRUNCATE) answers")
    return ROWS / seconds


def ours(session: Any, evaluation: int, answers: Any) -> None:
    """As `records.evaluations.record` writes them."""
    from infra.database import copy_lines
    from records.evaluations import answer_lines

    copy_lines(session, "answers", COLUMNS, answer_lines(evaluation, answers))


def formatted_alone(answers: Any) -> float:
    """Rows a second of our formatting, into nothing."""
    from records.evaluations import answer_lines

    begun = time.perf_counter()
    for _ in answer_lines(1, answers):
        pass
    return len(answers.images) / (time.perf_counter() - begun)


def values_contender(evaluation: int, answers: Any) -> Callable[[], float]:
    """psycopg2's fastest INSERT, a thousand rows a page."""
    names = answers.class_names
    rows = [
        (evaluation, sha256, label, names[top[0]], names[top[0]] == label, best[0], own,
         [names[place] for place in top], best)
        for sha256, label, top, best, own in zip(
            answers.images, answers.labels, answers.top.tolist(), answers.confidences.tolist(),
            answers.label_confidence.tolist(), strict=True,
        )
    ]  # fmt: skip
    statement = f"INSERT INTO answers ({', '.join(COLUMNS)}) VALUES %s"  # noqa: S608  (our names)

    def act(session: Any) -> None:
        raw = session.connection().connection.driver_connection
        with closing(raw.cursor()) as cursor:
            execute_values(cursor, statement, rows, page_size=1000)

    return lambda: rate(act)


def bare_contender(evaluation: int, answers: Any) -> Callable[[], float]:
    """COPY of bytes that are ready, by copy_expert."""
    from records.evaluations import answer_lines

    lines = answer_lines(evaluation, answers)
    body = b"".join(iter(lambda: "".join(islice(lines, 1000)).encode(), b""))
    statement = f"COPY answers ({', '.join(COLUMNS)}) FROM STDIN"

    def act(session: Any) -> None:
        raw = session.connection().connection.driver_connection
        with closing(raw.cursor()) as cursor:
            cursor.copy_expert(statement, BytesIO(body), size=1 << 16)

    return lambda: rate(act)


if __name__ == "__main__":
    main()
