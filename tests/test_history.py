"""History: every question on rows whose answers can be counted by hand, asked in every way."""

import base64
import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from PIL import Image
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from flows.cli import charts, questions
from infra.database import Database
from infra.embedded import Addresses
from records import deployments, evaluations, flips, history
from records.history import BadQuestion, Question
from vision.images import thumbnail
from vision.scores import ClassTransfer, estimate, interval, sums, transfer
from web import sheet
from web.thumbnails import encoded

ROOT = Path(__file__).resolve().parent.parent
FREE = "SET LOCAL session_replication_role = replica"  # as if there were no triggers and keys

# Two versions: 1 knew the class as `horse`, which is called `zebra` since; 2 knows `okapi`, too.
FILLED = [
    FREE,
    "INSERT INTO classes (name) VALUES ('zebra'), ('okapi'), ('lion')",
    "INSERT INTO classes (name, became_id) SELECT 'horse', id FROM classes WHERE name = 'zebra'",
    """
    INSERT INTO snapshots (digest, key, policy, cutoff, images, classes, created_at) VALUES
        ('s1', 'k1', 'p', 40, 100, 2, '2026-01-01 00:00+00'),
        ('s2', 'k2', 'p', 40, 160, 3, '2026-02-01 00:00+00'),
        ('set', 'k3', 'p', 40, 900, 9, '2026-01-15 00:00+00')
    """,
    """
    INSERT INTO snapshot_classes VALUES
        ('s1', 'horse', 50, 0, 40, 5, 5), ('s1', 'lion', 50, 0, 40, 5, 5),
        ('s1', 'okapi', 30, 10, 0, 0, 0),
        ('s2', 'zebra', 60, 0, 50, 5, 5), ('s2', 'lion', 50, 0, 40, 5, 5),
        ('s2', 'okapi', 50, 0, 40, 5, 5)
    """,
    """
    INSERT INTO versions (id, purpose, state, run_id, snapshot_digest, plan, plan_digest,
        architecture, class_names, class_names_digest, checkpoint_digest, machine, trained_at)
    OVERRIDING SYSTEM VALUE VALUES
        (1, 'nightly', 'trained', 1, 's1', '{}', 'p', 'a', '{horse,lion}', 'n', 'c1', '{}',
         '2026-01-01 01:00+00'),
        (2, 'nightly', 'trained', 1, 's2', '{}', 'p', 'a', '{lion,okapi,zebra}', 'n', 'c2', '{}',
         '2026-02-01 01:00+00'),
        (3, 'pretrain', 'trained', 1, 'set', '{}', 'p', 'a', '{a,b}', 'n', 'c3', '{}',
         '2026-01-15 01:00+00')
    """,
    "INSERT INTO benchmarks (version, digest, images, classes, frozen_by, why, power) "
    "VALUES (1, 'b1', 5, 3, 'ann', 'first', '{}')",
    """
    INSERT INTO evaluations (id, version_id, checkpoint_digest, subject, benchmark_version, images,
        accuracy, accuracy_low, accuracy_high, calibration_error, calibration_by_chance, runtime,
        created_at)
    OVERRIDING SYSTEM VALUE VALUES
        (1, 1, 'c1', 'test', NULL, 10, 0.8, 0.5, 0.9, 0.1, 0.1, '{}', '2026-01-01 02:00+00'),
        (2, 1, 'c1', 'benchmark', 1, 5, 0.4, 0.1, 0.8, NULL, NULL, '{}', '2026-01-01 03:00+00'),
        (3, 2, 'c2', 'test', NULL, 15, 0.9, 0.6, 1, 0.1, 0.1, '{}', '2026-02-01 02:00+00'),
        (4, 2, 'c2', 'benchmark', 1, 5, 0.6, 0.2, 0.9, NULL, NULL, '{}', '2026-02-01 03:00+00')
    """,
    """
    INSERT INTO evaluation_classes (evaluation_id, class_name, images, correct, predicted, recall,
        recall_low, recall_high) VALUES
        (1, 'horse', 5, 3, 4, 0.6, 0.2, 0.9), (1, 'lion', 5, 5, 6, 1, 0.6, 1),
        (3, 'zebra', 5, 4, 5, 0.8, 0.3, 0.9), (3, 'lion', 5, 5, 5, 1, 0.6, 1),
        (3, 'okapi', 5, 4, 5, 0.8, 0.3, 0.9)
    """,
    """
    INSERT INTO evaluation_groups VALUES
        (1, 'horse', 'real', '', 5, 3), (1, 'lion', 'real', 'male', 2, 2),
        (1, 'lion', 'staged', 'female', 3, 3), (3, 'zebra', 'real', '', 5, 4),
        (3, 'lion', 'real', 'male', 5, 5), (3, 'okapi', 'real', '', 5, 4)
    """,
    "INSERT INTO evaluation_origins SELECT evaluation_id, origin, sum(images), sum(correct) "
    "FROM evaluation_groups GROUP BY evaluation_id, origin",
    """
    INSERT INTO reliability_bins (evaluation_id, low, high, images, confidence, accuracy,
        accuracy_low, accuracy_high) VALUES
        (1, 0.6, 0.8, 4, 0.7, 0.5, 0.1, 0.9), (1, 0.8, 1, 6, 0.9, 1, 0.6, 1),
        (3, 0.8, 1, 15, 0.95, 0.9, 0.6, 1)
    """,
    """
    INSERT INTO thresholds (version_id, wished, subject, confidence, precision, precision_low,
        precision_high, answered, images, fitted_at) VALUES
        (1, 0.95, 'validation', 0.7, 0.96, 0.7, 1, 8, 10, '2026-01-01 02:00+00'),
        (2, 0.95, 'validation', NULL, NULL, NULL, NULL, 0, 15, '2026-02-01 02:00+00')
    """,
    """
    INSERT INTO benchmark_images (sha256, class_name, source_key, key, added_in)
    SELECT lpad(n::text, 64, '0'), 'x', 'benchmark/' || n || '.jpg', 'frozen/' || n, 1
    FROM generate_series(1, 5) n
    """,
    # 1: both right. 2: gained. 3: lost. 4: both wrong. 5: a class that version 1 does not know.
    """
    INSERT INTO answers
    SELECT e, lpad(n::text, 64, '0'), label, predicted, label = predicted, 0.9, 0.5, '{}', '{}'
    FROM (VALUES (2, 1, 'horse', 'horse'), (2, 2, 'horse', 'lion'), (2, 3, 'lion', 'lion'),
                 (2, 4, 'lion', 'horse'), (2, 5, 'okapi', 'horse'),
                 (4, 1, 'zebra', 'zebra'), (4, 2, 'zebra', 'zebra'), (4, 3, 'lion', 'okapi'),
                 (4, 4, 'lion', 'zebra'), (4, 5, 'okapi', 'okapi')) a (e, n, label, predicted)
    """,
    """
    INSERT INTO verdicts (id, version_id, checkpoint_digest, champion_id, benchmark_version,
        benchmark_digest, passed, shared_drop, limits) OVERRIDING SYSTEM VALUE VALUES
        (1, 1, 'c1', NULL, 1, 'b1', true, NULL, '{}'), (2, 2, 'c2', 1, 1, 'b1', true, 0.1, '{}')
    """,
    "INSERT INTO checks VALUES (2, 0, 'no worse', 'overridden', '{}', 'worse')",
    """
    INSERT INTO deployments (id, version_id, purpose, previous_id, verdict_id, kind, deployed_by,
        why, deployed_at) OVERRIDING SYSTEM VALUE VALUES
        (1, 1, 'nightly', NULL, 1, 'promotion', 'night', 'first', '2026-01-01 04:00+00'),
        (2, 2, 'nightly', 1, 2, 'approval', 'ann', 'okapis', '2026-02-01 04:00+00'),
        (3, 1, 'nightly', 2, 1, 'rollback', 'bob', 'lions lost', '2026-02-03 04:00+00')
    """,
    # 2026-02-02 is a Monday.
    """
    INSERT INTO usage_days (day, version_id, client, transactions, shown, confidence_sum,
        latency_sum, latency_max) VALUES
        ('2026-02-01', 1, 'app', 10, 5, 8, 1, 0.2), ('2026-02-02', 2, 'app', 20, 10, 18, 2, 0.3),
        ('2026-02-02', 2, 'kiosk', 20, 20, 19, 2, 0.4), ('2026-02-03', 1, 'app', 5, 4, 4, 1, 0.2)
    """,
    """
    INSERT INTO predicted_days VALUES
        ('2026-02-01', 1, 'horse', 9, 10, 9.5), ('2026-02-02', 2, 'zebra', 8, 30, 25),
        ('2026-02-02', 2, 'zebra', 9, 10, 9.5), ('2026-02-03', 1, 'lion', 9, 5, 4.8)
    """,
]  # fmt: skip
REVIEW = text(
    """
    INSERT INTO reviews (subject, transaction_id, transaction_at, version_id, sha256, predicted,
        confidence, verdict, label, blind, stream, probability, reviewed_by)
    VALUES ('transaction', CAST(lpad(:number, 32, '0') AS uuid), :at, :version, repeat('a', 64),
        :predicted, :confidence, :verdict, CASE :verdict WHEN 'right' THEN :predicted END, false,
        :stream, :chance, :by)
    """
)


def review(
    database: Database,
    number: int,
    at: str,
    verdict: str,
    chance: float | None = 0.5,
    version: int = 2,
    predicted: str = "zebra",
    confidence: float = 0.95,
    by: str = "ann",
) -> None:
    """Let somebody say something of a transaction; without a chance, from the queue of doubts."""
    with database.transaction() as session:
        session.execute(
            REVIEW,
            {
                "number": str(number), "at": datetime.fromisoformat(at), "version": version,
                "predicted": predicted, "confidence": confidence, "verdict": verdict,
                "stream": "doubt" if chance is None else "random", "chance": chance, "by": by,
            },
        )  # fmt: skip


@pytest.fixture
def past(database: Database) -> Database:
    """A little history: two versions, a rollback, a renamed class, three days of use."""
    with database.transaction() as session:
        for statement in FILLED:
            session.execute(text(statement))
    review(database, 1, "2026-02-01T23:59:59.9+00:00", "right", 0.5, 1, "horse")
    review(database, 2, "2026-02-02T00:00:00+00:00", "right")
    review(database, 3, "2026-02-02T12:00:00+00:00", "wrong", 0.25, predicted="lion")
    review(database, 4, "2026-02-02T13:00:00+00:00", "cannot tell")
    return database


def ask(database: Database, question: Question[Any]) -> list[Any]:
    """Its rows, asked in a session."""
    with database.transaction() as session:
        return history.answered(session, question)


def every() -> Iterator[tuple[str, Question[Any]]]:
    """Each question once, without a window."""
    yield "accuracy", history.accuracy()
    yield "classes", history.classes()
    yield "bands", history.bands()
    yield "origins", history.origins()
    yield "sub_classes", history.sub_classes()
    yield "thresholds", history.thresholds()
    yield "compared", history.compare(2, 1)
    yield "flips", history.flips(2, 1)
    yield "in_use", history.in_use()
    yield "in_use_classes", history.in_use_classes()
    yield "in_use_bands", history.in_use_bands()
    yield "calibration", history.calibration()
    yield "usage", history.usage()
    yield "predicted", history.predicted(class_name="zebra")
    yield "live", history.live()
    yield "growth", history.growth()
    yield "class_growth", history.class_growth()


def test_each_question_is_answered_alike(past: Database) -> None:
    """In a session, at once, and by the view itself, as somebody who may read the views alone."""
    for name, question in every():
        rows = ask(past, question)
        assert rows, name
        assert rows == history.at_once(question), name
        columns = ", ".join(one.name for one in dataclasses.fields(question.row))
        with past.transaction() as session:
            session.execute(text("SET LOCAL ROLE regraft_reader"))
            seen = session.execute(text(f"SELECT {columns} FROM history.{name}"))  # noqa: S608
            assert {str(tuple(row)) for row in seen} >= {
                str(tuple(getattr(row, one.name) for one in dataclasses.fields(row)))
                for row in rows
            }, name


def test_readers_see_no_table(past: Database) -> None:
    """Who reads history reads no keys, no transactions' pictures, and writes nothing."""
    for statement in (
        "SELECT * FROM api_keys", "SELECT image_key FROM transactions",
        "DELETE FROM history.usage",
    ):  # fmt: skip
        with past.transaction() as session:
            session.execute(text("SET LOCAL ROLE regraft_reader"))
            with pytest.raises(DBAPIError, match="permission denied"), session.begin_nested():
                session.execute(text(statement))


def test_versions_and_classes_over_time(past: Database) -> None:
    """Newest first; by version, set and window; classes by any name, of what serves by default."""
    rows = ask(past, history.accuracy())
    assert [(one.version_id, one.subject) for one in rows] == [
        (2, "benchmark"), (2, "test"), (1, "benchmark"), (1, "test"),
    ]  # fmt: skip
    assert rows[-1].first_live == datetime(2026, 1, 1, 4, tzinfo=UTC)
    [only] = ask(past, history.accuracy(until=date(2026, 1, 1), subject="test"))
    assert (only.version_id, only.accuracy) == (1, 0.8)
    assert ask(past, history.accuracy(since=date(2026, 2, 2))) == []
    # version 1 serves again; the weakest first
    assert [one.called for one in ask(past, history.classes())] == ["horse", "lion"]
    for name in ("zebra", "horse"):
        found = ask(past, history.classes(class_name=name))
        assert [(one.version_id, one.class_name, one.called) for one in found] == [
            (2, "zebra", "zebra"), (1, "zebra", "horse"),
        ]  # fmt: skip
    origins = ask(past, history.origins(version=1))
    assert [(one.origin, one.images, one.correct) for one in origins] == [
        ("real", 7, 5), ("staged", 3, 3),
    ]  # fmt: skip
    assert (origins[0].accuracy_low, origins[0].accuracy_high) == pytest.approx(interval(5, 7))
    lions = ask(past, history.sub_classes(class_name="lion", version=1))
    assert [(one.sub_class, one.origin, one.images) for one in lions] == [
        ("female", "staged", 3), ("male", "real", 2),
    ]  # fmt: skip
    fits = {one.version_id: one for one in ask(past, history.thresholds())}
    assert fits[1].coverage == pytest.approx(0.8)
    assert fits[1].shown_in_use == pytest.approx(9 / 15)
    assert fits[2].confidence is None


def test_two_versions_on_the_same_images(past: Database) -> None:
    """Images of classes that both know, whatever they called them; each flip both ways."""
    [both] = ask(past, history.compare(2, 1))
    assert (both.subject, both.images, both.correct, both.other_correct) == ("benchmark", 4, 2, 2)
    assert (both.gained, both.lost, both.change) == (1, 1, 0)
    told = transfer([ClassTransfer("all", 4, 2, 2, 1, 1)])
    assert told is not None
    assert (both.change_low, both.change_high) == pytest.approx((told.change_low, told.change_high))
    rows = ask(past, history.flips(2, 1))
    assert [(one.gained, one.source_key, one.class_name) for one in rows] == [
        (False, "benchmark/3.jpg", "lion"), (True, "benchmark/2.jpg", "zebra"),
    ]  # fmt: skip
    assert (rows[0].predicted, rows[0].other_predicted) == ("okapi", "lion")
    assert [one.gained for one in ask(past, history.flips(1, 2))] == [False, True]


MERGED = """
    UPDATE classes SET became_id = (SELECT id FROM classes WHERE name = 'zebra')
    WHERE name IN ('horse', 'lion')
"""
NAMED = """
    UPDATE benchmark_images b SET class_name = a.label FROM answers a
    WHERE a.sha256 = b.sha256 AND a.evaluation_id = 2
"""


def test_what_merged_classes_were_taken_for_is_no_mistake(past: Database) -> None:
    """Both versions are right by today's names: compared, flips of a verdict and forgetting."""
    with past.transaction() as session:
        for statement in (FREE, NAMED, MERGED):
            session.execute(text(statement))
        judged = deployments.verdict(session, 2)
        assert judged is not None
        turned = flips.of_verdict(session, judged)
        told = evaluations.transfer_between(session, 2, 1, "benchmark")
    [both] = ask(past, history.compare(2, 1))
    assert (both.correct, both.other_correct, both.gained, both.lost) == (3, 4, 0, 1)
    assert [one.source_key for one in ask(past, history.flips(2, 1))] == ["benchmark/3.jpg"]
    assert [(one.source_key, one.gained) for one in turned] == [("benchmark/3.jpg", False)]
    assert told is not None
    assert (told.now, told.before, told.gained, told.lost) == (3, 4, 0, 1)


def test_only_the_random_stream_estimates_accuracy_in_use(past: Database) -> None:
    """Weighted by chance, each person's newest word; what doubt picked out counts nothing."""
    champion, first = ask(past, history.in_use())
    assert (champion.version_id, champion.transactions, champion.reviewed) == (2, 40, 2)
    assert champion.undecided == 1
    assert champion.accuracy == pytest.approx(2 / 6)  # one of weight 2 right, one of 4 wrong
    assert champion.mean_confidence == pytest.approx(37 / 40)
    assert (champion.test_accuracy, champion.benchmark_accuracy) == (0.9, 0.6)
    assert (first.accuracy, first.reviewed) == (1, 1)
    assert (first.accuracy_low, first.accuracy_high) == pytest.approx(interval(1, 1))
    review(past, 9, "2026-02-02T14:00:00+00:00", "wrong", chance=None)
    review(past, 2, "2026-02-02T00:00:00+00:00", "wrong", by="bob")  # ann and bob disagree
    assert ask(past, history.in_use(version=2))[0].accuracy == pytest.approx(1 / 6)
    review(past, 2, "2026-02-02T00:00:00+00:00", "wrong")  # ann has changed her mind
    [now] = ask(past, history.in_use(version=2))
    assert (now.accuracy, now.reviewed) == (0, 2)
    # under today's name, whatever the version called it
    by_class = {one.class_name: one for one in ask(past, history.in_use_classes())}
    assert (by_class["zebra"].reviewed, by_class["zebra"].accuracy) == (2, 0.5)
    assert [one.class_name for one in ask(past, history.in_use_classes(class_name="horse"))] == [
        "zebra"
    ]


def test_windows_are_days_of_utc(past: Database) -> None:
    """Both days included, the first to its first moment and the last to its last."""
    first, second = date(2026, 2, 1), date(2026, 2, 2)
    assert [one.version_id for one in ask(past, history.in_use(until=first))] == [1]
    [only] = ask(past, history.in_use(since=second, until=second))
    assert (only.version_id, only.transactions, only.reviewed) == (2, 40, 2)
    assert {one.day for one in ask(past, history.usage(until=second))} == {first, second}
    weeks = ask(past, history.calibration())
    assert [one.week for one in weeks] == [date(2026, 2, 2), date(2026, 1, 26)]
    assert (weeks[0].transactions, weeks[0].versions, weeks[0].reviewed) == (45, 2, 2)
    assert weeks[0].mean_confidence == pytest.approx(41 / 45)
    assert weeks[0].gap == pytest.approx(0.95 - 2 / 6, abs=1e-6)
    # 40 of version 2 (0.95 - 0.9 on test images) and 5 of version 1 (0.82 - 0.8)
    assert weeks[0].test_gap == pytest.approx((40 * 0.05 + 5 * 0.02) / 45)
    assert [one.week for one in ask(past, history.calibration(version=1))] == [
        date(2026, 2, 2), date(2026, 1, 26),
    ]  # fmt: skip
    served = ask(past, history.live(since=second, until=second))
    assert [(one.version_id, one.kind, one.overridden) for one in served] == [
        (2, "approval", ["no worse"])
    ]
    assert ask(past, history.live())[0].live_until is None
    with past.transaction() as session:
        session.execute(text("SET LOCAL timezone = 'Pacific/Auckland'"))
        assert history.answered(session, history.in_use(since=second, until=second)) == [only]
        assert history.answered(session, history.calibration()) == weeks


def test_use_and_growth(past: Database) -> None:
    """Who asked how much, what was answered how often, how many images a class had."""
    [kiosk] = ask(past, history.usage(client="kiosk"))
    assert (kiosk.transactions, kiosk.mean_latency_seconds, kiosk.shown) == (20, 0.1, 20)
    zebras = ask(past, history.predicted(class_name="horse"))
    assert [(one.day.day, one.called, one.transactions) for one in zebras] == [
        (2, "zebra", 40), (1, "horse", 10),
    ]  # fmt: skip
    assert zebras[0].mean_confidence == pytest.approx(34.5 / 40)
    assert len(ask(past, history.predicted(until=date(2026, 2, 9)))) == 1  # the last week of it
    assert ask(past, history.predicted(until=date(2026, 2, 10))) == []
    newest, oldest = ask(past, history.growth())  # a set of pretraining is no library
    assert (newest.version_id, newest.classes, newest.under_cutoff) == (2, 3, 0)
    assert (oldest.images, oldest.under_cutoff) == (100, 1)
    assert [one.usable for one in ask(past, history.class_growth("okapi"))] == [50, 30]
    assert {one.version_id for one in ask(past, history.class_growth())} == {2}
    assert ask(past, history.class_growth(until=date(2026, 1, 31)))[0].called == "okapi"


def estimated(database: Database, samples: list[Any]) -> list[tuple[float, float, float]]:
    """What Postgres estimates of samples, given by their sums."""
    names = ("sampled", "w", "wy", "ww", "wwy", "wwyy")
    columns = [[getattr(one, name) for one in samples] for name in names]
    with database.transaction() as session:
        rows = session.connection().exec_driver_sql(
            """
            SELECT e.share, e.low, e.high
            FROM unnest(%s::bigint[], %s::float8[], %s::float8[], %s::float8[], %s::float8[],
                        %s::float8[]) WITH ORDINALITY s (n, w, wy, ww, wwy, wwyy, place)
            CROSS JOIN LATERAL history.estimate(n, w, wy, ww, wwy, wwyy) e ORDER BY place
            """,
            tuple(columns),
        )
        return [tuple(row) for row in rows]


@pytest.mark.parametrize(
    ("if_right", "if_wrong", "off"), [(0.01, 0.04, -0.15), (0.04, 0.01, 0.05), (0.015, 0.015, 0)]
)
def test_the_estimate_covers_what_it_estimates(
    database: Database, if_right: float, if_wrong: float, off: float
) -> None:
    """Of 20,000 transactions some are drawn, by chances that favour the wrong or the right ones.

    The plain share of those drawn is far off; the interval covers the truth at least as often as it
    says, and Postgres gives the very figures of `vision.scores.estimate`.
    """
    random = np.random.default_rng(6)
    right = random.random(20_000) < 0.92
    chances = np.where(right, if_right, if_wrong) * random.uniform(0.5, 1.5, len(right))
    drawn = [random.random(len(right)) < chances for _ in range(400)]
    samples = [sums(right[one], chances[one]) for one in drawn]
    told = estimated(database, samples)
    for sample, row in zip(samples, told, strict=True):
        ours = estimate(sample)
        assert ours is not None
        assert row == pytest.approx((ours.share, ours.low, ours.high))
    truth = right.mean()
    assert np.mean([right[one].mean() for one in drawn]) - truth == pytest.approx(off, abs=0.03)
    assert np.mean([share for share, _, _ in told]) == pytest.approx(truth, abs=0.003)
    assert np.mean([low <= truth <= high for _, low, high in told]) >= 0.93


def test_the_estimate_is_wilsons_for_equal_chances(database: Database) -> None:
    """Also where all are right, or there is one alone."""
    for correct, images in ((7, 9), (9, 9), (0, 4), (1, 1)):
        same = [sums([1.0] * correct + [0.0] * (images - correct), [0.125] * images)]
        [(share, low, high)] = estimated(database, same)
        assert (share, low, high) == pytest.approx((correct / images, *interval(correct, images)))


@pytest.mark.parametrize(
    ("ask_wrongly", "said"),
    [
        (lambda: history.accuracy(date(2026, 2, 2), date(2026, 2, 1)), "ends before it begins"),
        (lambda: history.in_use(date(2026, 2, 2), date(2026, 2, 1)), "ends before it begins"),
        (lambda: history.accuracy(subject="tset"), "'tset' is no set of images"),
        (lambda: history.accuracy(version=2**63), "is no version"),
        (lambda: history.usage(most=0), "ask for 1 to"),
        (lambda: history.usage(client="a\x00b"), "is no text"),
        (lambda: history.classes(class_name="\ud800"), "is no text"),
        (lambda: history.compare(3, 3), "against itself"),
    ],
)
def test_what_cannot_be_asked_is_said(ask_wrongly: Callable[[], object], said: str) -> None:
    """One line that names the value and the mend, before Postgres is asked."""
    with pytest.raises(BadQuestion, match=said) as caught:
        ask_wrongly()
    assert "\n" not in str(caught.value)


def test_odd_values_are_values(past: Database) -> None:
    """The ends of time and SQL in a name find nothing and break nothing."""
    assert ask(past, history.accuracy(date.min, date.max))
    assert ask(past, history.in_use(date.min, date.max))
    assert ask(past, history.predicted(until=date.min)) == []
    for name in ("'; DROP TABLE reviews; --", "%(since)s", "100%", ""):
        assert ask(past, history.classes(class_name=name)) == []
        assert ask(past, history.usage(client=name)) == []
        assert ask(past, history.in_use_classes(class_name=name)) == []


def test_history_on_the_command_line(
    past: Database, terminal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows as a table of 80 columns, as CSV and as JSON; plots are pictures."""
    monkeypatch.setenv("COLUMNS", "80")
    for name, question in every():
        verb = {"compared": "compare"}.get(name, name).replace("_", "-")
        words = ["history", verb]
        words += ["2", "1"] if verb in ("compare", "flips") else []
        words += ["--class", "zebra"] if verb == "predicted" else []
        rows = ask(past, question)
        shown = terminal(*words)
        assert max(map(len, shown.splitlines())) <= 80
        assert len(shown.splitlines()) > len(rows)
        as_json = json.loads(terminal(*words, "--json"))
        assert as_json == [
            json.loads(json.dumps(dataclasses.asdict(row), default=questions._plain))
            for row in rows
        ]
        as_csv = list(csv.DictReader(io.StringIO(terminal(*words, "--csv"))))
        assert [list(one) for one in as_csv] == [list(one) for one in as_json]
        if question.row in charts._draw.registry:
            terminal(*words, "--plot", str(tmp_path / f"{name}.png"))
            Image.open(tmp_path / f"{name}.png").load()
    assert "nothing in the history" in terminal("history", "usage", "--client", "nobody")
    assert "the first 1 rows" in terminal("history", "live", "--limit", "1")


def test_history_over_http(past: Database) -> None:
    """The same rows as JSON and CSV; what cannot be asked is one sentence; no key, no history."""
    from fastapi.testclient import TestClient

    from web.app import create_app
    from web.rules import Rules

    client = TestClient(create_app(), base_url="http://127.0.0.1")
    for name, question in every():
        path = f"/v1/history/{ {'compared': 'compare'}.get(name, name).replace('_', '-') }"
        pair = {"version": 2, "other": 1} if name in ("compared", "flips") else {}
        values = {"class_name": "zebra"} if name == "predicted" else pair
        answer = client.get(path, params=values)
        assert answer.status_code == 200, answer.text
        rows = [dataclasses.asdict(row) for row in ask(past, question)]
        told = json.loads(answer.text.replace('Z"', '+00:00"'))
        assert told == json.loads(json.dumps(rows, default=questions._plain))
        written = client.get(path, params={**values, "format": "csv"})
        assert written.headers["content-type"] == "text/csv; charset=utf-8"
        assert len(list(csv.DictReader(io.StringIO(written.text)))) == len(rows)
    for asked, said in (
        ("accuracy?since=2026-02-02&until=2026-02-01", "ends before it begins"),
        ("accuracy?since=yesterday", "since"), ("usage?client=%00", "no text"),
        ("compare?version=1", "other"), ("live?most=0", "ask for 1"),
        ("live?most=10001", "`regraft history` gives more"),
    ):  # fmt: skip
        refused = client.get(f"/v1/history/{asked}")
        assert refused.status_code == 422
        assert said in refused.json()["detail"]
    stranger = TestClient(create_app(Rules(loopback=False)), base_url="http://127.0.0.1")
    assert stranger.get("/v1/history/usage").status_code == 401


def test_the_dashboard_asks_what_there_is(past: Database) -> None:
    """Every query of the Grafana dashboard is answered, as the role that reads history alone."""
    dashboard = json.loads((ROOT / "infra" / "grafana" / "regraft.json").read_text())
    asked = [target["rawSql"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [one["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    assert len(asked) >= 12
    for query in asked:
        within = r"\1 BETWEEN $__timeFrom() AND $__timeTo()"
        plain = re.sub(r"\$__timeFilter\((\w+)\)", within, query)
        plain = plain.replace("$__timeFrom()", "'2026-01-01T00:00:00Z'")
        plain = plain.replace("$__timeTo()", "'2026-03-01T00:00:00Z'").replace("$version", "1")
        with past.transaction() as session:
            session.execute(text("SET LOCAL ROLE regraft_reader"))
            assert session.connection().exec_driver_sql(plain).all(), query


def test_the_page_names_every_column(database: Database) -> None:
    """docs/history.md has each view with all its columns, and examples that Postgres answers."""
    page = (ROOT / "docs" / "history.md").read_text()
    with database.transaction() as session:
        columns = session.execute(
            text(
                "SELECT table_name, array_agg(column_name::text ORDER BY ordinal_position) "
                "FROM information_schema.columns WHERE table_schema = 'history' GROUP BY 1"
            )
        ).all()
    assert len(columns) >= 20
    for view, names in columns:
        section = page.partition(f"### history.{view}\n")[2].partition("\n### ")[0]
        missing = [name for name in names if f"`{name}`" not in section]
        assert not missing, f"history.{view} in docs/history.md lacks {missing}"
    examples = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        if example.lstrip().upper().startswith("SELECT"):
            with database.transaction() as session:
                session.execute(text("SET LOCAL ROLE regraft_reader"))
                session.connection().exec_driver_sql(example)


def test_real_nights_have_a_history(
    services: Addresses, template: str, prefect_server: str
) -> None:
    """What two nights left is counted as it was measured, by other code, when they were played."""
    with worlds.story(services, template).done.transaction() as session:
        newest, oldest = history.answered(session, history.accuracy(subject="test"))
        assert (newest.version_id, oldest.version_id) == (2, 1)
        for one in (newest, oldest):
            assert one.first_live is not None
            origins = history.answered(session, history.origins(version=one.version_id,
                                                                subject="test"))  # fmt: skip
            assert sum(row.images for row in origins) == one.images
            assert sum(row.correct for row in origins) == round(one.accuracy * one.images)
        served = history.answered(session, history.live())
        assert [row.version_id for row in served] == [2, 1]
        assert served[1].live_until == served[0].live_from
        compared = history.answered(session, history.compare(2, 1))
        assert {row.subject for row in compared} >= {"test", "benchmark"}
        for row in compared:
            if row.subject == "batch":
                continue
            told = evaluations.transfer_between(session, 2, 1, row.subject)
            assert told is not None
            assert (row.images, row.gained, row.lost) == (told.images, told.gained, told.lost)
            assert (row.change_low, row.change_high) == pytest.approx(
                (told.change_low, told.change_high)
            )
        assert [row.version_id for row in history.answered(session, history.growth())] == [2, 1]


def test_flips_stand_on_a_sheet_with_their_pictures(
    services: Addresses, template: str, prefect_server: str, terminal: Callable[..., str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Every picture that turned, in the order of the rows, with what both versions said of it."""
    world = worlds.story(services, template).done
    page, drawing = tmp_path / "flips.html", tmp_path / "flips.png"
    with worlds.inside(world):
        rows = history.at_once(history.flips(2, 1, most=100))
        assert rows
        for path in (page, drawing):
            told = terminal("history", "flips", "2", "1", "--limit", "100", "--sheet", str(path))
            assert f"wrote {path}" in told
        pictures = [thumbnail(world.storage.read(row.key), sheet.SIDE) for row in rows]
    tiles = re.findall(
        r'<img src="data:image/jpeg;base64,(.*?)" alt="(.*?)".*?<small>(.*?)</small>'
        r"<small>(.*?)</small>", page.read_text(), re.DOTALL,
    )  # fmt: skip
    assert len(tiles) == len(rows)
    for (data, alt, first, second), row, picture in zip(tiles, rows, pictures, strict=True):
        assert alt == f"{row.class_name}: {row.source_key}"
        assert first == f"version 2: {row.predicted} {row.confidence:.0%}"
        assert second == f"version 1: {row.other_predicted} {row.other_confidence:.0%}"
        assert base64.b64decode(data) == encoded(picture)
    sections = re.findall(r"<h2>(\w+) by version 2 on (\w+)", page.read_text())
    assert sections == list(dict.fromkeys(
        ("gained" if row.gained else "lost", row.subject) for row in rows
    ))  # fmt: skip
    drawn, first_picture = Image.open(drawing), pictures[0]
    assert drawn.format == "PNG"
    left = sheet.GAP + (sheet.SIDE - first_picture.width) // 2
    top = 2 * (sheet.LINE + sheet.GAP) + (sheet.SIDE - first_picture.height) // 2
    box = (left, top, left + first_picture.width, top + first_picture.height)
    assert np.array_equal(np.asarray(drawn.crop(box)), np.asarray(first_picture))
