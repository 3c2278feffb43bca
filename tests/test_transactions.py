"""Transactions in Postgres: each once, whoever writes with it, counted, and kept for a while."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
import served
import worlds
from served import AT, row
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from worlds import World

from infra.database import Busy, Database
from infra.embedded import Addresses
from infra.storage import Storage
from records import classes, labels, pools, reviews, transactions
from records.labels import Wish
from records.pools import ReadObject
from records.transactions import Gap, Transaction, image_key, line, new_id
from tasks import retention

USED = "SELECT * FROM usage_days ORDER BY day, version_id, client"
TOLD = "SELECT * FROM predicted_days ORDER BY day, version_id, predicted, band"


@pytest.fixture
def world(
    services: Addresses, database: Database, storage: Storage, tmp_path: Path
) -> World:
    """Have a database with one version, and a bucket."""
    served.version(database, storage)
    return World(services, database.url, storage.bucket, tmp_path)


def append(database: Database, *rows: Transaction) -> int:
    """Write rows in one transaction; how many came in."""
    with database.transaction() as session:
        return transactions.append(session, [line(one) for one in rows])


def test_rows_come_back_as_they_were(database: Database, world: World) -> None:
    """Every field, of two months, the newest first; names may hold anything."""
    rows = [row(number, client='tab\there, "{\\N}" \u2028') for number in range(7)]
    rows[3] = replace(rows[3], image_key="transactions/2026/12/01/x.jpg", draw=0.25)
    assert append(database, *rows) == 7
    tables = world.ask("SELECT DISTINCT tableoid::regclass::text FROM transactions ORDER BY 1")
    assert tables == [("transactions_2026_11",), ("transactions_2026_12",)]
    with database.transaction() as session:
        assert transactions.listed(session) == rows[::-1]
        assert transactions.listed(session, most=4) == rows[:2:-1]
        wanted = rows[5]
        found = transactions.listed(
            session, version=1, client=wanted.client,
            predicted=wanted.top_labels[0], below=wanted.top_confidences[0] + 1e-4,
        )  # fmt: skip
        assert found == [
            one for one in rows[::-1] if one.top_labels[0] == wanted.top_labels[0]
            and one.top_confidences[0] <= wanted.top_confidences[0]
        ]  # fmt: skip
        assert transactions.listed(session, kept=True, drawn=True) == [rows[3]]
    world.act("DELETE FROM usage_days")
    with pytest.raises(AssertionError, match="a month of transactions is not what was counted"):
        world.check()


def test_what_is_sent_again_changes_nothing(database: Database, world: World) -> None:
    """Of rows that came in before, wholly or partly, neither row nor count comes twice."""
    rows = [row(number) for number in range(50)]
    assert append(database, *rows[:30]) == 30
    assert append(database, *rows[:30]) == 0
    assert append(database, *rows[10:], rows[40]) == 20
    used, told = world.ask(USED), world.ask(TOLD)
    assert append(database, *rows) == 0
    assert (world.ask(USED), world.ask(TOLD)) == (used, told)
    of_november = [one for one in rows if one.at.month == 11]
    assert [one[:5] for one in used] == [
        (date(2026, 11, 30), 1, "shop", 1, 1),
        (date(2026, 12, 1), 1, "shop", 49, sum(one.shown is True for one in rows[1:])),
    ]
    assert len(of_november) == 1
    confidences = [one.top_confidences[0] for one in rows]
    latencies = [one.latency_seconds for one in rows]
    assert sum(one[5] for one in used) == pytest.approx(sum(confidences), rel=1e-6)
    assert sum(one[6] for one in used) == pytest.approx(sum(latencies), rel=1e-6)
    assert max(one[7] for one in used) == pytest.approx(max(latencies), rel=1e-6)
    assert sum(one[4] for one in told) == 50
    assert {(one[2], one[3]) for one in told} == {
        (row.top_labels[0], int(row.top_confidences[0] * 10)) for row in rows
    }
    world.check()


def test_processes_that_write_at_once(database: Database, world: World) -> None:
    """Months that none has yet are made once, and no two writers get into each other's way."""
    def write(writer: int) -> int:
        rows = [
            row(number, at=AT + timedelta(days=29 * (number % 6), seconds=100 * writer + number),
                client=f"client {number % 3}")
            for number in range(60)
        ]  # fmt: skip
        own = Database(database.url)
        try:
            return append(own, *(rows if writer % 2 else rows[::-1]))
        finally:
            own.engine.dispose()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(write, range(8))) == [60] * 8
    with database.transaction() as session:
        months = transactions.months(session)
    assert sum(month.rows for month in months) == 480
    assert len(months) == 6
    world.check()


def test_a_request_is_answered_once(database: Database, world: World) -> None:
    """Of processes that answer one named request at the same time, one comes in, with all rows."""
    def answer(process: int) -> int:
        at = AT + timedelta(microseconds=process)
        own = Database(database.url)
        try:
            return append(own, *(
                row(number, at=at, id=new_id(at, "shop", "order 7", number), ordinal=number,
                    request_id="order 7", body_digest="d" * 64)
                for number in range(3)
            ))  # fmt: skip
        finally:
            own.engine.dispose()

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(answer, range(8))) == [0] * 7 + [3]
    with database.transaction() as session:
        found = transactions.of_request(session, "shop", "order 7")
        assert transactions.of_request(session, "shop", "order 8") is None
        assert transactions.of_request(session, "another shop", "order 7") is None
    assert found is not None
    assert found.body_digest == "d" * 64
    assert [one.ordinal for one in found.rows] == [0, 1, 2]
    assert len({one.at for one in found.rows}) == 1
    world.check()
    world.act("DELETE FROM served_requests")
    with pytest.raises(AssertionError, match="a named request that is not known"):
        world.check()


def test_numbers_follow_time_or_name() -> None:
    """Those of a named request are the same everywhere; others are of version 7, none twice."""
    assert new_id(AT, "a", "b", 1) == new_id(AT + timedelta(days=1), "a", "b", 1)
    assert len({new_id(AT, *names) for names in (("a", "b"), ("ab", ""), ("a", "b", 1))}) == 3
    made = [new_id(AT + timedelta(milliseconds=number), "a") for number in range(100)]
    assert made == sorted(made)
    assert {(one.version, one.variant) for one in made} == {(7, "specified in RFC 4122")}
    assert len({new_id(AT, "a") for _ in range(1000)}) == 1000
    assert made[0].int >> 80 == int(AT.timestamp() * 1000)


def test_a_gap_is_told_once(database: Database, world: World) -> None:
    """A gap that is sent again after a kill is the same gap."""
    gap = Gap(AT, AT + timedelta(seconds=3), 12, "the disk was full")
    other = replace(gap, dropped=13)
    for one in (gap, other, gap):
        with database.transaction() as session:
            transactions.add_gap(session, one)
    with database.transaction() as session:
        assert transactions.gaps(session) == [other, gap]


@pytest.fixture
def year(database: Database, storage: Storage, world: World) -> dict[str, Transaction]:
    """Have a row on the 10th of each of 14 months, its picture kept, and a named request each."""
    rows = {}
    for number in range(14):
        at = datetime(2025 + (9 + number) // 12, (9 + number) % 12 + 1, 10, 12, tzinfo=UTC)
        body = f"\xff\xd8\xff picture {number}".encode("latin-1")
        one = row(
            number, at=at, id=new_id(at, "shop", f"{at:%Y-%m}"), request_id=f"{at:%Y-%m}",
            body_digest="d" * 64, image_key=image_key(at, f"{number:064x}", body),
        )  # fmt: skip
        assert one.image_key is not None
        storage.write(one.image_key, body)
        rows[f"{at:%Y-%m}"] = one
    append(database, *rows.values())
    return rows


def test_the_service_appends_and_rewrites_nothing(database: Database, world: World) -> None:
    """By the rights of its role: rows of any month and reviews come in, and none is changed.

    Nor does it lift a trigger, make a key, or decide what is kept; it reads every table there is.
    """
    serving = worlds.as_server(world)
    rows = [row(number) for number in range(7)]  # of two months
    with serving.transaction() as session:
        assert transactions.append(session, [line(one) for one in rows]) == 7
        reviews.say(session, reviews.of_transaction(session, rows[0].id), "Ann", "cannot tell")
    for statement in (
        "UPDATE transactions SET draw = 1", "DELETE FROM transactions", "TRUNCATE transactions",
        "SELECT * FROM transactions_2026_11", "DROP TABLE transactions_2026_11",
        "UPDATE reviews SET verdict = 'right'", "DELETE FROM reviews", "TRUNCATE reviews",
        "ALTER TABLE reviews DISABLE TRIGGER ALL", "SET session_replication_role = replica",
        "DELETE FROM log_gaps", "DELETE FROM deployments", "CREATE TABLE mine ()",
        "UPDATE alembic_version SET version_num = '1'", "UPDATE api_keys SET scopes = '{admin}'",
        "INSERT INTO api_keys (name, digest, scopes, made_by) "
        "VALUES ('x', repeat('0', 64), '{admin}', 'x')",
    ):  # fmt: skip
        with (
            pytest.raises(DBAPIError, match=r"permission denied|must be owner"),
            serving.transaction() as session,
        ):
            session.execute(text(statement))
    with (
        pytest.raises(DBAPIError, match="permission denied"), serving.transaction() as session,
    ):  # fmt: skip
        transactions.retain(session, date(2026, 12, 1), AT, "Ann")
    assert world.ask(
        """
        SELECT oid::regclass FROM pg_class WHERE relkind IN ('r', 'p', 'v') AND NOT relispartition
          AND relnamespace IN ('public'::regnamespace, 'history'::regnamespace)
          AND NOT has_table_privilege('regraft_server', oid, 'SELECT')
        """
    ) == []
    # where a trigger keeps rows from an update; who locks the deployment log must be able to try
    assert world.ask(
        """
        SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger
        WHERE tgfoid = 'refuse_change'::regproc AND tgtype & 17 = 17
          AND has_table_privilege('regraft_server', tgrelid, 'UPDATE')
        """
    ) == [("deployments",)]


def test_retention_drops_months_and_pictures(
    database: Database, storage: Storage, world: World, year: dict[str, Transaction]
) -> None:
    """What is too old goes as whole months and days; counts stay, and a repeat finds all done."""
    used, told, today = world.ask(USED), world.ask(TOLD), date(2026, 11, 22)
    plan = retention.retain(3, 43, "Ann", dry_run=True, today=today)
    assert (len(plan.months), plan.transactions, plan.images) == (11, 11, 13)
    assert world.ask("SELECT count(*) FROM transactions") == [(14,)]

    done = retention.retain(3, 43, "Ann", today=today)
    assert done == replace(plan, dry_run=False)
    assert f"dropped {done.months[0]:%Y-%m}" in done.sentence
    assert done.months[-1] == date(2026, 8, 1)
    with database.transaction() as session:
        assert [month.first.month for month in transactions.months(session)] == [9, 10, 11]
        assert transactions.of_request(session, "shop", "2026-08") is None
        assert transactions.of_request(session, "shop", "2026-09") is not None
        # the first day that is kept is the 11th of October
        kept = transactions.listed(session, kept=True)
    assert kept == [replace(year["2026-11"], body_digest=None)]
    assert [one.key for one in storage.list("transactions/")] == [year["2026-11"].image_key]
    assert (world.ask(USED), world.ask(TOLD)) == (used, told)
    again = retention.retain(3, 43, "Ann", today=today)
    assert again.sentence == "nothing is old enough to be dropped"
    world.check()
    # a late one makes its month again
    assert append(database, replace(year["2026-08"], client="late")) == 1
    storage.delete(year["2026-11"].image_key or "")
    with pytest.raises(AssertionError, match="pictures of transactions are not in S3"):
        world.check()


def test_retention_does_not_wait_for_readers(
    database: Database, year: dict[str, Transaction]
) -> None:
    """While somebody reads, nothing is dropped, nothing else waits, and the reason is told."""
    with database.transaction() as reader:
        reader.execute(text("SELECT count(*) FROM transactions"))
        with pytest.raises(Busy, match="somebody reads the transactions"):
            retention.retain(3, 43, "Ann", today=date(2026, 11, 22))
    with database.transaction() as session:
        assert len(transactions.months(session)) == 14


def test_retention_copies_what_people_have_labelled(
    database: Database, storage: Storage, year: dict[str, Transaction], world: World
) -> None:
    """A picture that is to train is copied before it goes; pools offer none that went."""
    body = storage.read(year["2025-10"].image_key or "")
    pool = [
        ReadObject(one.key, one.etag, one.size, sha256(storage.read(one.key)).hexdigest(), None,
                   48, 48)
        for one in list(storage.list("transactions/"))[:3]
    ]  # fmt: skip
    with database.transaction() as session:
        classes.make(session, "ring", "Ann")
        pools.record(session, pools.enter(session, "transactions/"), pool)
        wishes = [Wish("a test", image=one.sha256, label="ring") for one in pool[:2]]
        labels.label(session, wishes, "Ann")
    storage.write(pool[1].key, b"other bytes by now")  # so that there is nothing to copy
    retention.retain(3, 43, "Ann", today=date(2026, 11, 22))
    assert storage.read(f"labelled/ring/{pool[0].sha256}.jpg") == body
    kept = [pool[1].key, year["2026-11"].image_key]
    assert [one.key for one in storage.list("transactions/")] == kept
    gone = world.ask("SELECT key FROM pool_objects WHERE gone_at IS NOT NULL ORDER BY key")
    assert gone == [(pool[0].key,), (pool[2].key,)]


def test_transactions_are_read_and_written_while_names_are_deleted(
    database: Database, year: dict[str, Transaction]
) -> None:
    """Deleting the names of many requests takes long, for which nobody waits."""
    with ThreadPoolExecutor(1) as thread:
        with database.transaction() as holder:
            holder.execute(text("SELECT 1 FROM served_requests ORDER BY at LIMIT 1 FOR UPDATE"))
            done = thread.submit(retention.retain, 3, 43, "Ann", False, date(2026, 11, 22))
            waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            while not holder.scalar(waits):
                assert not done.done()
            with database.transaction() as session:
                session.execute(text("SET LOCAL lock_timeout = '1s'"))
                assert session.scalar(text("SELECT count(*) FROM transactions")) == 14
        assert len(done.result().months) == 11
    with database.transaction() as session:
        assert len(transactions.months(session)) == 3


def test_verbs(
    year: dict[str, Transaction], database: Database, terminal: Callable[..., str]
) -> None:
    """The command line lists, shows how the log stands, and retains."""
    listed = json.loads(terminal("transactions", "list", "--limit", "2", "--json"))
    assert [one["request_id"] for one in listed] == ["2026-11", "2026-10"]
    assert "shop" in terminal("transactions", "list", "--below", "0.9", "--kept")
    with database.transaction() as session:
        transactions.add_gap(session, Gap(AT, AT, 12, "the [disk] was full"))
        transactions.add_gap(session, Gap(AT, AT, 7, transactions.UNDRAWN))
    assert "the [disk] was full" in terminal("transactions", "status")
    stands = json.loads(terminal("transactions", "status", "--json"))
    assert (len(stands["months"]), stands["waiting"]) == (14, 0)
    assert [(one["dropped"], one["lost"]) for one in stands["gaps"]] == [(7, False), (12, True)]
    told = terminal("transactions", "retain", "--months", "600", "--image-days", "20000")
    assert "nothing is old enough" in told
    assert "0 transactions came in" in terminal("transactions", "replay")
