"""Postgres: transactions, COPY, migrations, and the lock that only one process can hold."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError

from infra import database as database_module
from infra import embedded, settings
from infra.database import (
    Busy,
    Database,
    SchemaMismatch,
    Unreachable,
    alembic_config,
    copy_rows,
    migrate,
    migration_state,
    require_migrated,
    run_lock,
)

ROOT = Path(__file__).resolve().parent.parent
PLANTED = "geheim-4711-geheim"


@pytest.fixture
def empty(empty_database_url: str) -> Database:
    """Have a database without any table."""
    return Database(empty_database_url)


def test_transaction_is_all_or_nothing(empty: Database) -> None:
    """What fails midway leaves nothing; what ends is there for others."""
    with empty.transaction() as session:
        session.execute(text("CREATE TABLE thing (name text PRIMARY KEY)"))
        session.execute(text("INSERT INTO thing VALUES ('kept')"))
    with pytest.raises(IntegrityError), empty.transaction() as session:
        session.execute(text("INSERT INTO thing VALUES ('lost'), ('kept')"))
    with empty.transaction() as session:
        assert session.scalars(text("SELECT name FROM thing")).all() == ["kept"]


def test_times_are_utc(empty: Database) -> None:
    """Times come back aware and in UTC, whatever the server's zone is."""
    with empty.transaction() as session:
        assert session.scalar(text("SHOW timezone")) == "UTC"
        now = session.scalar(text("SELECT now()"))
    assert now.utcoffset().total_seconds() == 0


def test_engine_survives_a_fork(empty: Database) -> None:
    """A forked worker gets connections of its own and leaves the parent's alone."""
    # In a process of its own: other tests have started threads here, which do not survive a fork.
    script = """
import multiprocessing, sys
from sqlalchemy import text
from infra.database import Database
database = Database(sys.argv[1])
def mine():
    with database.transaction() as session:
        return session.scalar(text("SELECT pg_backend_pid()"))
ours = mine()
context = multiprocessing.get_context("fork")
answers = context.SimpleQueue()
worker = context.Process(target=lambda: answers.put(mine()))
worker.start()
worker.join(30)
assert worker.exitcode == 0
assert answers.get() != ours
assert mine() == ours
"""
    subprocess.run([sys.executable, "-c", script, empty.url], check=True, timeout=60)


def test_lost_connections_are_replaced(empty: Database) -> None:
    """A server that was restarted between two transactions is not noticed."""
    with empty.transaction() as session:
        session.execute(text("SELECT 1"))
    with Database(empty.url).transaction() as session:
        session.execute(
            text(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    with empty.transaction() as session:
        assert session.scalar(text("SELECT 1")) == 1


def use(database: Database) -> None:
    """Ask anything of a database."""
    with database.transaction() as session:
        session.execute(text("SELECT 1"))


def lock(database: Database) -> None:
    """Take the lock and give it back."""
    with run_lock(database):
        pass


def test_unreachable_is_one_line(empty: Database) -> None:
    """No server, a wrong password and a missing database each say where and the mend."""
    url = make_url(empty.url)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        port = reserved.getsockname()[1]
        for wrong, words in (
            (url.set(port=port, password=PLANTED), (str(port), "regraft up")),
            (url.set(password=PLANTED), (str(url.port), "REGRAFT_DATABASE_URL")),
            (url.set(database="nothing"), (str(url.port), "nothing", "REGRAFT_DATABASE_URL")),
        ):
            stranger = Database(wrong.render_as_string(hide_password=False))
            for request in (use, lock):
                with pytest.raises(Unreachable) as caught:
                    request(stranger)
                message = str(caught.value)
                assert "\n" not in message
                assert PLANTED not in message + repr(stranger)
                assert all(word in message for word in words)


NASTY = [
    "",
    " ",
    "\\N",
    "\\.",
    "\\",
    "\\\\x00",
    "tab\there",
    "line\nfeed\r\n",
    "\b\f\v\x01\x7f",
    "'; DROP TABLE thing; --",
    '"quoted", {braces}',
    "Käse 数 🐈 \u2028 \u00a0",
    "x" * 300_000,
    None,
]


def test_copied_text_comes_back_as_it_was(empty: Database) -> None:
    """COPY keeps every text, however it looks, and None stays apart from the empty one."""
    with empty.transaction() as session:
        session.execute(text('CREATE TABLE "odd table" (number int, "odd column" text)'))
        count = copy_rows(session, "odd table", ["number", "odd column"], iter(enumerate(NASTY)))
        assert count == len(NASTY)
    with empty.transaction() as session:
        found = session.execute(text('SELECT "odd column" FROM "odd table" ORDER BY number'))
        assert found.scalars().all() == NASTY


def test_copied_values_of_every_kind(empty: Database) -> None:
    """Numbers, times, bytes and the rest arrive as themselves, numpy's too."""
    moment = datetime(2026, 3, 29, 1, 30, 0, 5, tzinfo=UTC)
    identity = UUID(int=7)
    row = (
        *(2**62, np.int64(-5), 0.1, np.float32(0.5), np.float64(1e-300), Decimal("1.10")),
        *(True, False, bytes(range(256)), moment, date(2026, 3, 29), identity),
        *({"a": "\\n\t\n"}, '{"x\\"y",NULL}'),
    )
    with empty.transaction() as session:
        session.execute(
            text(
                "CREATE TABLE kinds (a bigint, b int, c float8, d real, e float8, f numeric,"
                " g bool, h bool, i bytea, j timestamptz, k date, l uuid, m jsonb, n text[])"
            )
        )
        copy_rows(session, "public.kinds", list("abcdefghijklmn"), [row])
        (found,) = session.execute(text("SELECT * FROM kinds")).all()
    assert found[:6] == (2**62, -5, 0.1, 0.5, 1e-300, Decimal("1.10"))
    assert found[6:8] == (True, False)
    assert bytes(found[8]) == row[8]
    assert found[9:11] == (moment, date(2026, 3, 29))
    assert str(found[11]) == str(identity)
    assert found[12] == {"a": "\\n\t\n"}
    assert found[13] == ['x"y', None]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("a\0b",), ("row 2", "name", "NUL")),
        (("\ud800",), ("row 2", "name", "surrogate")),
        (("a", "b"), ("row 2", "2 values")),
        ((datetime(2026, 1, 1),), ("row 2", "name", "time zone")),
        ((object(),), ("row 2", "name", "object")),
    ],
)
def test_what_postgres_cannot_hold_is_named(
    row: tuple[object, ...], words: tuple[str, ...], empty: Database
) -> None:
    """A value that cannot be stored names its row and column, and nothing is stored."""
    with empty.transaction() as session:
        session.execute(text("CREATE TABLE thing (name text)"))
    with pytest.raises(ValueError, match=words[0]) as caught, empty.transaction() as session:
        copy_rows(session, "thing", ["name"], [("good",), row])
    assert all(word in str(caught.value) for word in words)
    with empty.transaction() as session:
        assert session.scalar(text("SELECT count(*) FROM thing")) == 0


def test_refused_rows_raise_what_inserts_raise(empty: Database) -> None:
    """A broken constraint is SQLAlchemy's error; an error of the caller's rows is his own."""
    with empty.transaction() as session:
        session.execute(text("CREATE TABLE thing (name text PRIMARY KEY)"))
    with pytest.raises(IntegrityError), empty.transaction() as session:
        copy_rows(session, "thing", ["name"], [("twice",), ("twice",)])
    with pytest.raises(ZeroDivisionError), empty.transaction() as session:
        copy_rows(session, "thing", ["name"], ((str(1 // (5 - n)),) for n in range(10)))


def test_migrations_are_repeatable_and_complete(empty: Database) -> None:
    """Migrating an empty database gives the tables of the program; doing it again nothing."""
    migrate(empty.url)
    migrate(empty.url)
    current, head = migration_state(empty.url)
    assert current == head
    require_migrated(empty)


def test_two_migrations_at_once(empty: Database) -> None:
    """Two processes that start together migrate once."""
    code = f"from infra.database import migrate; migrate({empty.url!r})"
    racers = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    assert [racer.wait(60) for racer in racers] == [0, 0]
    require_migrated(empty)


def test_newer_tables_are_refused(database: Database) -> None:
    """A program that is older than its tables does not start, and does not touch them."""
    with database.transaction() as session:
        session.execute(
            text("CREATE TABLE IF NOT EXISTS alembic_version (version_num varchar(32))")
        )
        session.execute(text("DELETE FROM alembic_version"))
        session.execute(text("INSERT INTO alembic_version VALUES ('from_the_future')"))
    for request in (
        lambda: require_migrated(database),
        lambda: migrate(database.url),
        database_module.connect,
    ):
        with pytest.raises(SchemaMismatch, match="from_the_future") as caught:
            request()
        assert "\n" not in str(caught.value)


def test_older_tables_are_refused(
    empty: Database, monkeypatch: pytest.MonkeyPatch, services: embedded.Addresses
) -> None:
    """A configured database is never migrated without being asked; `up` is the asking."""
    if ScriptDirectory.from_config(alembic_config()).get_current_head() is None:
        pytest.skip("there is no migration yet")
    monkeypatch.setenv("REGRAFT_DATABASE_URL", empty.url)
    database_module.connect.cache_clear()
    with pytest.raises(SchemaMismatch, match="regraft up"):
        database_module.connect()
    embedded.up(settings.load(), prefect=False)
    assert database_module.connect().url == empty.url
    database_module.connect().engine.dispose()
    database_module.connect.cache_clear()


def test_connect_gives_the_configured_database(database: Database) -> None:
    """Steps that ask for the database get the one that the settings name, always the same."""
    assert database_module.connect().url == database.url
    assert database_module.connect() is database_module.connect()


def test_alembic_command_finds_its_configuration(database: Database) -> None:
    """The command `alembic` works from the repository, and the tables match the migrations."""
    if ScriptDirectory.from_config(alembic_config()).get_current_head() is None:
        pytest.skip("there is no migration yet")
    result = subprocess.run(
        [sys.executable, "-m", "alembic.config", "-x", f"url={database.url}", "check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_lock_excludes_and_names_its_holder(empty: Database) -> None:
    """While one holds the lock another is told who; other names and later ones are free."""
    with run_lock(empty) as held:
        assert held.still_held()
        with pytest.raises(Busy, match=f"process {os.getpid()} on {socket.gethostname()[:8]}"):
            lock(Database(empty.url))
        with run_lock(empty, "another"):
            pass
    lock(empty)


def test_lost_lock_is_noticed(empty: Database) -> None:
    """A holder whose connection was cut can find out that the lock is gone."""
    with run_lock(empty) as held:
        with empty.transaction() as session:
            session.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'regraft-night%'"
                )
            )
        assert not held.still_held()
        with run_lock(empty):
            pass


HOLD = """
import os, sys
from infra.database import Database, run_lock
with run_lock(Database(sys.argv[1])):
    if os.fork() == 0:
        sys.stdin.read()  # a worker that outlives its parent
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_killed_holder_frees_the_lock(empty: Database) -> None:
    """SIGKILL of the holder frees the lock although its forked worker lives on."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, empty.url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(Busy), run_lock(empty):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    deadline = time.monotonic() + 10
    while True:  # Postgres needs a moment to see that the connection ended
        try:
            with run_lock(empty):
                break
        except Busy:
            assert time.monotonic() < deadline
    holder.stdin.close()
    holder.stdout.close()
