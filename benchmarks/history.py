"""History on 10,000,000 transactions, 500 versions and 1,500 classes: p50 and p95 of each question.

    python -m benchmarks.history

Everything lies in an embedded Postgres as nights, serving and reviewers leave it: a version a night
for 500 days with its evaluations (three sets of images, 1,500 classes each), transactions of 20
clients in monthly partitions with the daily counts of `records.transactions`, and random reviews of
about 0.5% of them. Transactions come in by COPY, a tenth first; then everything is asked, the rest
comes in, and everything is asked again. Each round asks for another version, class and window.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np

from benchmarks import bench
from benchmarks.figures import Figure, Goal, Part, Row
from benchmarks.finding import explained
from benchmarks.services import services

TRANSACTIONS = 10_000_000
FIRST = date(2025, 1, 6)
CLIENTS = 20
FORMER = 20  # names that classes had once
ANSWERING = 50  # versions whose answers on the benchmark are kept image by image
BENCHMARK = 5  # images of each class
ROUNDS = 40
WISHED = 100.0  # milliseconds
TOGETHER = 100_000


@dataclass(frozen=True)
class Scale:
    """How much there is; a day for each version."""

    transactions: int
    versions: int
    classes: int

    @property
    def last(self) -> date:
        """The last day on which anything was asked."""
        return FIRST + timedelta(days=self.versions - 1)


def main() -> None:
    """Fill the tables with a tenth and with all, and ask each question at both."""
    given = bench.arguments("history", TRANSACTIONS)
    scale = Scale(given.size, max(4, min(500, given.size // 2000)), min(1500, given.size // 600))
    with services(prefect=False):
        tune()
        begun = time.perf_counter()
        past(scale)
        serve(scale, 0, given.size // 10)
        say(f"{given.size // 10:,} transactions", begun)
        before = measured(scale)
        begun = time.perf_counter()
        serve(scale, given.size // 10, given.size)
        say(f"{given.size:,} transactions", begun)
        after = measured(scale)
        name, slowest = max(after.items(), key=lambda one: one[1].p95)
        plan = explained(*slowest.statement)
        sizes = stored()
    rows = tuple(row(name, found, before[name], given.size) for name, found in after.items())
    notes = (
        f"{scale.versions} versions, {scale.classes:,} classes, {sizes}. The whole act is timed, "
        f"from the question to its rows in Python; p50 and p95 are of {ROUNDS} rounds. All but "
        "`history.transactions` rest on what is counted as rows come in (by day, client, version, "
        "class and band; by evaluation and class), which is why ten times the transactions cost "
        "next to nothing; what grows are random reviews, of which there are ten times as many.",
        f"The plan of the slowest, {name!r}:\n\n```\n{plan}\n```",
    )
    title = f"History on {given.size:,} transactions"
    part = Part("history", title, rows, notes, (), bench.facts())
    if given.size == TRANSACTIONS:
        part.save("cuda" if given.gpu else "cpu")
    else:
        print("\n\n".join(notes))


def say(what: str, begun: float) -> None:
    """Tell how long something took."""
    print(f"{what} ({time.perf_counter() - begun:.0f} s)", flush=True)


# --- filling ----------------------------------------------------------------------------------


def tune() -> None:
    """Let the loading wait for no disk; questions are not touched by it."""
    act("ALTER SYSTEM SET synchronous_commit = off", "ALTER SYSTEM SET max_wal_size = '8GB'",
        "SELECT pg_reload_conf()")  # fmt: skip


def act(*statements: str, **values: Any) -> None:
    """Run statements, each in a transaction of its own."""
    from infra import database

    engine = database.connect().engine
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("SET session_replication_role = replica")  # keys are right
        for statement in statements:
            connection.exec_driver_sql(statement, values)


# What five hundred nights leave, but for transactions.
PAST = (
    "INSERT INTO classes (name) SELECT 'sea lion ' || c FROM generate_series(1, %(classes)s) c",
    "INSERT INTO classes (name, became_id) SELECT 'once ' || id, id FROM classes "
    "WHERE id <= %(former)s",
    """
    INSERT INTO snapshots (digest, key, policy, cutoff, images, classes, created_at)
    SELECT 's' || v, 'k' || v, 'p', 40, 100 * v, %(classes)s, %(first)s + v * interval '1 day'
    FROM generate_series(0, %(versions)s - 1) v
    """,
    """
    INSERT INTO snapshot_classes
    SELECT 's' || v, 'sea lion ' || c, 20 + c %% 300, greatest(0, 20 - c %% 300), c %% 240,
           c %% 30, c %% 30
    FROM generate_series(0, %(versions)s - 1) v, generate_series(1, %(classes)s) c
    """,
    """
    INSERT INTO versions (id, purpose, state, run_id, snapshot_digest, plan, plan_digest,
        architecture, class_names, class_names_digest, checkpoint_digest, machine, created_at,
        trained_at)
    OVERRIDING SYSTEM VALUE
    SELECT v, 'nightly', 'trained', 1, 's' || v - 1, '{}', v::text, 'a',
           ARRAY(SELECT name FROM classes WHERE became_id IS NULL ORDER BY id), 'n', 'c' || v, '{}',
           %(first)s + (v - 1) * interval '1 day', %(first)s + (v - 1) * interval '1 day'
    FROM generate_series(1, %(versions)s) v
    """,
    "INSERT INTO benchmarks (version, digest, images, classes, frozen_by, why, power) "
    "VALUES (1, 'b', %(classes)s * %(benchmark)s, %(classes)s, 'ann', 'first', '{}')",
    """
    INSERT INTO evaluations (id, version_id, checkpoint_digest, subject, benchmark_version, images,
        accuracy, accuracy_low, accuracy_high, calibration_error, calibration_by_chance, runtime,
        created_at)
    OVERRIDING SYSTEM VALUE
    SELECT 3 * v + s - 3, v, 'c' || v, (ARRAY['validation', 'test', 'benchmark'])[s],
           CASE s WHEN 3 THEN 1 END, 15000, 0.9, 0.89, 0.91, 0.01, 0.01, '{}',
           %(first)s + (v - 1) * interval '1 day'
    FROM generate_series(1, %(versions)s) v, generate_series(1, 3) s
    """,
    """
    INSERT INTO evaluation_classes (evaluation_id, class_name, images, correct, predicted,
        precision, recall, f1, recall_low, recall_high, precision_low, precision_high)
    SELECT e.id, 'sea lion ' || c, 10, 9, 10, 0.9, 0.5 + (e.id * c %% 50) / 100.0, 0.9, 0.6, 1,
           0.6, 1
    FROM evaluations e, generate_series(1, %(classes)s) c
    """,
    """
    INSERT INTO evaluation_groups
    SELECT e.id, 'sea lion ' || c, o.origin, o.sub_class, 5, 4
    FROM evaluations e, generate_series(1, %(classes)s) c,
         (VALUES ('real', ''), ('real', 'juvenile'), ('staged', '')) o (origin, sub_class)
    WHERE e.subject <> 'benchmark' AND (o.origin || o.sub_class = 'real' OR c %% 10 = 0)
    """,
    "INSERT INTO evaluation_origins SELECT evaluation_id, origin, sum(images), sum(correct) "
    "FROM evaluation_groups GROUP BY evaluation_id, origin",
    """
    INSERT INTO reliability_bins (evaluation_id, low, high, images, confidence, accuracy,
        accuracy_low, accuracy_high)
    SELECT e.id, b / 15.0, (b + 1) / 15.0, 1000, (b + 0.5) / 15, (b + 0.5) / 15, b / 15.0,
           (b + 1) / 15.0
    FROM evaluations e, generate_series(0, 14) b
    """,
    """
    INSERT INTO thresholds (version_id, wished, subject, benchmark_version, confidence, precision,
        precision_low, precision_high, answered, images, fitted_at)
    SELECT version_id, 0.95, subject, benchmark_version, 0.7, 0.95, 0.94, 0.96, 12000, 15000,
           created_at
    FROM evaluations
    """,
    """
    INSERT INTO benchmark_images (sha256, class_name, source_key, key, added_in)
    SELECT encode(sha256(n::text::bytea), 'hex'), 'sea lion ' || 1 + n %% %(classes)s,
           'benchmark/' || n, 'frozen/' || n, 1
    FROM generate_series(1, %(classes)s * %(benchmark)s) n
    """,
    """
    INSERT INTO answers
    SELECT e.id, b.sha256, b.class_name,
           CASE WHEN right_ THEN b.class_name ELSE 'sea lion 1' END, right_, 0.9, 0.5,
           ARRAY['a', 'b', 'c', 'd', 'e'], ARRAY[0.9, 0.05, 0.03, 0.01, 0.01]::real[]
    FROM evaluations e
    CROSS JOIN LATERAL (SELECT *, b.class_name = 'sea lion 1' OR
                               hashtext(e.id || b.sha256) %% 10 <> 0 AS right_
                        FROM benchmark_images b) b
    WHERE e.subject = 'benchmark' AND e.version_id > %(versions)s - %(answering)s
    """,
    """
    INSERT INTO verdicts (id, version_id, checkpoint_digest, champion_id, benchmark_version,
        benchmark_digest, passed, shared_drop, limits)
    OVERRIDING SYSTEM VALUE
    SELECT v, v, 'c' || v, nullif(v - 1, 0), 1, 'b', true, 0, '{}'
    FROM generate_series(1, %(versions)s) v
    """,
    """
    INSERT INTO checks SELECT v, c, 'check ' || c, CASE WHEN c = 3 AND v %% 20 = 0 THEN 'overridden'
        ELSE 'passed' END, '{}', 'a sentence'
    FROM generate_series(1, %(versions)s) v, generate_series(0, 11) c
    """,
    """
    INSERT INTO deployments (id, version_id, purpose, previous_id, verdict_id, kind, deployed_by,
        why, deployed_at)
    OVERRIDING SYSTEM VALUE
    SELECT v, v, 'nightly', nullif(v - 1, 0), v, 'promotion', 'night', 'passed 12 checks',
           %(first)s + (v - 1) * interval '1 day' + interval '3 hours'
    FROM generate_series(1, %(versions)s) v
    """,
)
# The counts that records.transactions keeps as rows come in, day by day, and what people said of
# those drawn.
COUNTED = (
    "DELETE FROM usage_days", "DELETE FROM predicted_days", "DELETE FROM reviews",
    """
    INSERT INTO usage_days (day, version_id, client, transactions, shown, confidence_sum,
        latency_sum, latency_max)
    SELECT (at AT TIME ZONE 'UTC')::date, version_id, client, count(*),
           count(*) FILTER (WHERE shown), sum(confidence::float8), sum(latency_seconds::float8),
           max(latency_seconds)
    FROM transactions GROUP BY 1, 2, 3 ORDER BY 1
    """,
    """
    INSERT INTO predicted_days (day, version_id, predicted, band, transactions, confidence_sum)
    SELECT (at AT TIME ZONE 'UTC')::date, version_id, predicted, least(floor(confidence * 10), 9),
           count(*), sum(confidence::float8)
    FROM transactions GROUP BY 1, 2, 3, 4 ORDER BY 1
    """,
    """
    INSERT INTO reviews (subject, transaction_id, transaction_at, version_id, sha256, predicted,
        confidence, verdict, label, blind, stream, probability, reviewed_by, reviewed_at)
    SELECT 'transaction', id, at, version_id, sha256, predicted, confidence, verdict,
           CASE verdict WHEN 'right' THEN predicted END, false, 'random', draw, 'ann', at
    FROM (SELECT *, CASE WHEN hashtext(id::text) % 50 = 0 THEN 'cannot tell'
                         WHEN abs(hashtext(sha256)) % 1000 < 1000 * confidence THEN 'right'
                         ELSE 'wrong' END AS verdict
          FROM transactions WHERE draw IS NOT NULL) drawn
    """,
    # a tenth is looked at by a second person, and as many again come from queues of doubt
    """
    INSERT INTO reviews (subject, transaction_id, transaction_at, version_id, sha256, predicted,
        confidence, verdict, label, blind, stream, probability, reviewed_by, reviewed_at)
    SELECT subject, transaction_id, transaction_at, version_id, sha256, predicted, confidence,
           verdict, label, true, stream, probability, 'bob', reviewed_at
    FROM reviews WHERE hashtext(transaction_id::text) % 10 = 0
    """,
    """
    INSERT INTO reviews (subject, transaction_id, transaction_at, version_id, sha256, predicted,
        confidence, verdict, blind, stream, reviewed_by, reviewed_at)
    SELECT 'transaction', id, at, version_id, sha256, predicted, confidence, 'wrong', false,
           'doubt', 'ann', at
    FROM transactions WHERE confidence < 0.3 AND draw IS NULL
      AND hashtext(id::text) % 4 = 0
    """,
)


def past(scale: Scale) -> None:
    """All that nights leave, and a partition for each month."""
    act(
        *PAST, first=FIRST, versions=scale.versions, classes=scale.classes, former=FORMER,
        benchmark=BENCHMARK, answering=ANSWERING,
    )  # fmt: skip
    month = FIRST.replace(day=1)
    while month <= scale.last + timedelta(days=1):
        after = (month + timedelta(days=31)).replace(day=1)
        act(f"CREATE TABLE transactions_{month:%Y_%m} PARTITION OF transactions "
            f"FOR VALUES FROM ('{month} 00:00+00') TO ('{after} 00:00+00')")  # fmt: skip
        month = after


def serve(scale: Scale, begin: int, end: int) -> None:
    """Copy the transactions of these numbers in, spread over all days; then count all there are."""
    from infra import database
    from infra.database import copy_lines

    columns = [
        "id", "at", "client", "version_id", "sha256", "width", "height", "predicted", "confidence",
        "top_labels", "top_confidences", "shown", "latency_seconds", "image_key", "draw",
    ]  # fmt: skip
    with database.connect().transaction() as session:
        session.connection().exec_driver_sql("SET LOCAL session_replication_role = replica")
        copy_lines(session, "transactions", columns, lines(scale, begin, end))
    act(*(one.replace("%", "%%") for one in COUNTED), "VACUUM ANALYZE")


def lines(scale: Scale, begin: int, end: int) -> Iterator[str]:
    """Transactions as COPY's text, in the order of time; classes and clients are few or many."""
    random = np.random.default_rng(begin)
    classes = 1 / np.arange(1, scale.classes + 1) ** 0.9
    clients = 1 / np.arange(1, CLIENTS + 1)
    start = datetime(FIRST.year, FIRST.month, FIRST.day, 3, tzinfo=UTC)
    seconds = np.sort(random.uniform(0, 86400 * scale.versions - 4 * 3600, end - begin))
    for first in range(begin, end, TOGETHER):
        some = seconds[first - begin : first - begin + TOGETHER]
        count = len(some)
        predicted = random.choice(scale.classes, count, p=classes / classes.sum()) + 1
        client = random.choice(CLIENTS, count, p=clients / clients.sum())
        confidence = np.round(random.beta(4, 1, count), 4).clip(0.05, 0.9999)
        chance = np.where(confidence < 0.5, 0.02, 0.004)
        drawn = random.random(count) < chance
        for number, second, name, who, sure, one, chosen in zip(
            range(first, first + count), some.tolist(), predicted.tolist(), client.tolist(),
            confidence.tolist(), chance.tolist(), drawn.tolist(), strict=True,
        ):  # fmt: skip
            at = start + timedelta(seconds=second)
            image = f"served/{number}\t{one}" if chosen else "\\N\t\\N"
            yield (
                f"{number:032x}\t{at}\tclient {who}\t{int(second // 86400) + 1}\t{number:064x}"
                f"\t640\t480\tsea lion {name}\t{sure}\t{{sea lion {name},b,c,d,e}}"
                f"\t{{{sure},0.01,0.01,0.01,0.01}}\t{'t' if sure > 0.7 else 'f'}"
                f"\t{0.01 + sure / 50:.4f}\t{image}\n"
            )


def stored() -> str:
    """How many rows the tables that are asked hold."""
    from infra import database

    with database.connect().transaction() as session:
        [row] = session.connection().exec_driver_sql(
            "SELECT (SELECT count(*) FROM reviews WHERE stream = 'random'), "
            "(SELECT count(*) FROM predicted_days), (SELECT count(*) FROM usage_days), "
            "(SELECT count(*) FROM evaluation_classes), (SELECT count(*) FROM answers)"
        )
    names = ("random reviews", "counts by day and class", "counts by day and client",
             "classes of evaluations", "answers")  # fmt: skip
    return ", ".join(f"{number:,} {name}" for number, name in zip(row, names, strict=True))


# --- asking -----------------------------------------------------------------------------------


def asked(scale: Scale) -> dict[str, Callable[[int], Any]]:
    """Each question by its name, for the number of a round."""
    from records import history

    random = np.random.default_rng(0)
    versions = random.integers(1, scale.versions + 1, ROUNDS + 1).tolist()
    recent = random.integers(max(2, scale.versions - ANSWERING + 2), scale.versions + 1,
                             ROUNDS + 1).tolist()  # fmt: skip
    names = [f"sea lion {one}" for one in random.integers(1, scale.classes + 1, ROUNDS + 1)]
    names[::10] = [f"once {1 + one % FORMER}" for one in range(len(names[::10]))]
    days = random.integers(0, scale.versions, ROUNDS + 1).tolist()
    ends = [FIRST + timedelta(days=one) for one in days]

    def quarter(turn: int) -> tuple[date, date]:
        return ends[turn] - timedelta(days=90), ends[turn]

    return {
        "accuracy: the benchmark's of all versions": lambda turn: history.accuracy(
            subject="benchmark"),
        "accuracy: all of 90 days": lambda turn: history.accuracy(*quarter(turn)),
        "classes: of what serves": lambda turn: history.classes(),
        "classes: of a version on test": lambda turn: history.classes(
            version=versions[turn], subject="test", most=2000),
        "classes: a class over all versions": lambda turn: history.classes(
            class_name=names[turn], subject="test"),
        "bands: of a version": lambda turn: history.bands(version=versions[turn]),
        "origins: the newest 200": lambda turn: history.origins(subject="test", most=200),
        "sub-classes: of a version": lambda turn: history.sub_classes(
            version=versions[turn], subject="test"),
        "sub-classes: a class over all versions": lambda turn: history.sub_classes(
            class_name=names[turn]),
        "thresholds: of all versions": lambda turn: history.thresholds(subject="test"),
        "compare: two versions": lambda turn: history.compare(recent[turn], recent[turn] - 1),
        "flips: two versions": lambda turn: history.flips(recent[turn], recent[turn] - 1),
        "in use: all versions, all time": lambda turn: history.in_use(),
        "in use: 90 days": lambda turn: history.in_use(*quarter(turn)),
        "in use by class: all time": lambda turn: history.in_use_classes(most=2000),
        "in use by class: 90 days": lambda turn: history.in_use_classes(*quarter(turn)),
        "in use by band: all time": lambda turn: history.in_use_bands(),
        "in use by band: a version": lambda turn: history.in_use_bands(version=versions[turn]),
        "calibration: all weeks": lambda turn: history.calibration(),
        "calibration: 90 days": lambda turn: history.calibration(*quarter(turn)),
        "usage: 30 days": lambda turn: history.usage(ends[turn] - timedelta(days=30), ends[turn]),
        "usage: a client over all time": lambda turn: history.usage(client=f"client {turn % 20}"),
        "predicted: all classes, a week": lambda turn: history.predicted(until=ends[turn]),
        "predicted: a class over all time": lambda turn: history.predicted(class_name=names[turn]),
        "live: all": lambda turn: history.live(),
        "growth: all": lambda turn: history.growth(),
        "class growth: a class over all time": lambda turn: history.class_growth(names[turn]),
        "class growth: all in the newest": lambda turn: history.class_growth(most=2000),
    }  # fmt: skip


@dataclass(frozen=True)
class Timed:
    """Milliseconds of each round, the most rows of one, and the slowest round's statement."""

    values: tuple[float, ...]
    rows: int
    statement: tuple[str, Any]

    @property
    def p95(self) -> float:
        """Nearest rank: at most one in twenty is slower."""
        return sorted(self.values)[-(-95 * len(self.values) // 100) - 1]


def measured(scale: Scale) -> dict[str, Timed]:
    """Every question, in as many rounds."""
    from infra import database
    from records import history

    found: dict[str, Timed] = {}
    for name, ask in asked(scale).items():
        values, rows = [], 0
        slowest: tuple[float, Any] = (0.0, None)
        for turn in range(ROUNDS + 1):
            question = ask(turn)
            with database.connect().transaction() as session:
                session.connection()  # connected before the clock starts
                begun = time.perf_counter()
                answer = history.answered(session, question)
                value = 1000 * (time.perf_counter() - begun)
            if turn:  # the first has what follows read from disk
                values.append(value)
                slowest = max(slowest, (value, question), key=lambda one: one[0])
            rows = max(rows, len(answer))
        statement = slowest[1].sql, dict(slowest[1].values)
        found[name] = Timed(tuple(values), rows, statement)
        print(f"  {name}: p50 {statistics.median(values):.1f} ms, p95 {found[name].p95:.1f} ms, "
              f"{rows} rows", flush=True)  # fmt: skip
    return found


def row(name: str, found: Timed, before: Timed, count: int) -> Row:
    """A row of the page: p95 of all beside that of a tenth, and the wish."""
    middle = statistics.median(found.values)
    ours = Figure("p95", "ms", (found.p95,), f"p50 {middle:.1f} ms, up to {found.rows:,} rows")
    tenth = Figure(f"p95 of {count // 10:,} transactions", "ms", (before.p95,),
                   f"p50 {statistics.median(before.values):.1f} ms")  # fmt: skip
    wish = Figure("wished", "ms", (WISHED,))
    goal = Goal("wished", 1.0, f"p95 under {WISHED:.0f} ms")
    return Row(name, ours, (tenth, wish), (goal,))


if __name__ == "__main__":
    main()
