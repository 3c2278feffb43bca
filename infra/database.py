"""Postgres: connections, transactions, bulk loading, migrations and the lock of the night."""

import functools
import hashlib
import io
import json
import numbers
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg2
import psycopg2.extensions
from psycopg2 import sql
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from infra import embedded, settings
from infra.reading import newest_migration

if TYPE_CHECKING:
    from alembic.config import Config

_ROOT = Path(__file__).resolve().parent.parent
_CONNECT_SECONDS = 10
_ROWS_AT_A_TIME = 1000
_BLOCK_BYTES = 1 << 22


class Unreachable(RuntimeError):
    """Postgres does not answer or does not let us in; the message is one line with the mend."""


class SchemaMismatch(RuntimeError):
    """The tables are older or newer than this program; the message says which, and the mend."""


class Busy(RuntimeError):
    """Somebody else holds the lock that was asked for."""


class Database:
    """One Postgres database: a pool of connections, made when first used and after every fork."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engines: dict[int, Engine] = {}

    def __repr__(self) -> str:
        return f"Database({_described(self.url)})"

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine of this process; connections do not survive a fork."""
        process = os.getpid()
        engine = self._engines.get(process)
        if engine is None:
            # The parent's stays in the dictionary: dropping it here would close its connections.
            engine = self._engines.setdefault(process, _make_engine(self.url))
        return engine

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Give a session whose work is committed at the end, or rolled back on any error.

        Repeating a transaction that lost its connection is the caller's decision. Raises
        Unreachable when there is no connection to be had.
        """
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session


@functools.cache
def connect() -> Database:
    """Give the configured database, or the embedded one, started and migrated when needed.

    Raises SchemaMismatch when a configured database has not this program's tables.
    """
    found = settings.load()
    database = Database(embedded.addresses(found).database_url)
    if found.database_url is None:
        current, head = migration_state(database.url)
        if current != head:
            migrate(database.url)
    require_migrated(database)
    return database


def _make_engine(url: str) -> Engine:
    engine = create_engine(
        url,
        pool_pre_ping=True,
        hide_parameters=True,  # rows may hold what no log should
        connect_args=_connection_arguments(),
    )

    @event.listens_for(engine, "do_connect")
    def open_connection(
        dialect: Any, record: object, arguments: list[Any], options: dict[str, Any]
    ) -> Any:
        try:
            return dialect.connect(*arguments, **options)
        except psycopg2.OperationalError as error:
            raise _unreachable(url, error) from None

    return engine


def _connection_arguments() -> dict[str, Any]:
    return {
        "connect_timeout": _CONNECT_SECONDS,
        # a network that was cut is noticed after seconds, not after a quarter of an hour
        "tcp_user_timeout": 1000 * _CONNECT_SECONDS,
        "keepalives_idle": _CONNECT_SECONDS,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "application_name": "regraft",
        "options": "-c timezone=utc",
    }


def _described(url: str) -> str:
    """Name a database without its password."""
    parts = make_url(url)
    return f"{parts.host or 'localhost'}:{parts.port or 5432}/{parts.database or ''}"


def _unreachable(url: str, error: Exception) -> Unreachable:
    parts = make_url(url)
    place = f"{parts.host or 'localhost'}:{parts.port or 5432}"
    lines = str(error).strip().splitlines() or ["no reason given"]
    # libpq: connection to server at "127.0.0.1", port 1 failed: FATAL:  the reason
    reason = lines[0].rsplit("failed: ", 1)[-1].removeprefix("FATAL:").strip()
    if "authentication failed" in reason or "no password supplied" in reason:
        mend = "check user and password in REGRAFT_DATABASE_URL"
    elif "does not exist" in reason:
        mend = "create it, or correct REGRAFT_DATABASE_URL"
    else:
        mend = "start it with `regraft up`, or check REGRAFT_DATABASE_URL"
    return Unreachable(f"Postgres at {place} cannot be used: {reason}; {mend}")


# Migrations


def alembic_config(url: str | None = None) -> "Config":
    """Give Alembic's configuration from pyproject.toml, for one database when `url` is given."""
    from alembic.config import Config

    project = _ROOT / "pyproject.toml"
    if not (_ROOT / "alembic" / "env.py").is_file() or not project.is_file():
        raise SchemaMismatch(
            f"the migrations are not beside the program in {_ROOT}; "
            "run regraft from its repository or image (pip install -e .)"
        )
    return Config(toml_file=project, attributes={"url": url} if url else {})


def migrate(url: str) -> None:
    """Bring the tables up to date; two callers wait for each other, repeating does nothing.

    Raises SchemaMismatch when the tables are newer than this program.
    """
    from alembic import command

    current, _ = migration_state(url)
    _refuse_newer(url, current)
    command.upgrade(alembic_config(url), "heads")


def migration_state(url: str) -> tuple[str | None, str | None]:
    """Give the revision that the tables have and the one this program wants; None is none yet."""
    # Without Alembic, which only a migration needs and which is long to load.
    engine = _make_engine(url)
    try:
        with engine.connect() as connection:
            ask = connection.exec_driver_sql
            current = None
            if ask("SELECT to_regclass('alembic_version')").scalar() is not None:
                current = ask("SELECT max(version_num) FROM alembic_version").scalar()
    finally:
        engine.dispose()
    head = newest_migration()
    if head is None:
        alembic_config()  # which says that the migrations are missing, and the mend
    return current, head


def require_migrated(database: Database) -> None:
    """Raise SchemaMismatch unless the tables are exactly those that this program wants."""
    current, head = migration_state(database.url)
    if current == head:
        return
    _refuse_newer(database.url, current)
    raise SchemaMismatch(
        f"the tables in {_described(database.url)} are at revision {current or 'none'}, "
        f"this program wants {head}; run `regraft up` to migrate them"
    )


def _refuse_newer(url: str, current: str | None) -> None:
    from alembic.script import ScriptDirectory

    known = {
        script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()
    }
    if current is not None and current not in known:
        raise SchemaMismatch(
            f"the tables in {_described(url)} are at revision {current}, which this program does "
            "not know; they are newer: start the newer regraft, or restore an older backup"
        )


# Bulk loading


def copy_rows(
    session: Session, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> int:
    """Append rows to a table with COPY, inside the session's transaction; give their count.

    Takes text, numbers, booleans, None, bytes, dates, aware datetimes, UUIDs and, for JSON
    columns, dicts. Arrays are passed as Postgres's own text, '{1,2}'. Rows are streamed, never
    held at once. Raises ValueError naming row and column for what Postgres cannot hold, and
    SQLAlchemy's IntegrityError and its kin for what the table refuses.
    """
    formatted = _Formatted(columns, rows)
    _copy_in(session, table, columns, formatted)
    return formatted.count


def copy_lines(session: Session, table: str, columns: Sequence[str], lines: Iterable[str]) -> None:
    """Append rows that are COPY's text already: `copy_text` of each value, tabs, a newline.

    For callers that know their rows' shape and make the text faster than value by value.
    """
    rest = iter(lines)
    blocks = iter(lambda: "".join(islice(rest, _ROWS_AT_A_TIME)).encode(), b"")
    _copy_in(session, table, columns, blocks)


def copy_out(
    session: Session, query: str, values: Mapping[str, Any], take: Callable[[bytes], object]
) -> None:
    """Hand the rows of a query, as COPY's text, to `take` in blocks of whole lines.

    query: SQL of ours with `%(name)s` for values. Nothing is held but one block, and no Python
    object is made for a row or a value. What `take` raises comes through as it is.
    """
    target = _Lines(take)
    with closing(_raw(session).cursor()) as cursor:
        statement = cursor.mogrify(f"COPY ({query}) TO STDOUT", values)
        try:
            with io.BufferedWriter(target, _BLOCK_BYTES) as file:
                cursor.copy_expert(statement, file)
            target.finish()
        except psycopg2.Error as error:
            if target.error is not None:
                raise target.error from None
            raise DBAPIError.instance(
                "COPY", None, error, psycopg2.Error, hide_parameters=True
            ) from error


class _Lines(io.RawIOBase):
    """A file that hands what is written to it on, cut where lines end."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self.error: BaseException | None = None
        self._take = take
        self._left = b""

    def writable(self) -> bool:
        return True

    def write(self, block: Any) -> int:
        joined = self._left + bytes(block)
        end = joined.rfind(b"\n") + 1
        self._left = joined[end:]
        try:
            if end:
                self._take(joined[:end])
        except BaseException as error:
            self.error = error
            raise
        return len(block)

    def finish(self) -> None:
        if self._left:
            raise Unreachable("the connection was closed in the middle of a row; try again")


def _raw(session: Session) -> Any:
    """The driver's connection of a session, whose waiting rows are written first."""
    session.flush()
    raw = session.connection().connection.driver_connection
    if raw is None:
        raise Unreachable("the connection was closed before rows could be copied; try again")
    return raw


def _copy_in(session: Session, table: str, columns: Sequence[str], blocks: Iterator[bytes]) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(*table.split(".")), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    source = _Source(blocks)
    with closing(_raw(session).cursor()) as cursor:
        try:
            cursor.copy_expert(statement, source)
        except psycopg2.Error as error:
            if source.error is not None:
                # psycopg2 only passes the text of what a reader raised.
                raise source.error from None
            raise DBAPIError.instance(
                f"COPY {table}", None, error, psycopg2.Error, hide_parameters=True
            ) from error


class _Source:
    """A file for COPY to read; psycopg2 takes blocks of any length."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.error: BaseException | None = None
        self._blocks = blocks

    def read(self, size: int = 0) -> bytes:
        try:
            return next(self._blocks, b"")
        except BaseException as error:
            self.error = error
            raise


class _Formatted(Iterator[bytes]):
    """Rows as blocks of COPY's text, made as they are asked for."""

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        self.columns = columns
        self.count = 0
        self._rows = iter(rows)

    def __next__(self) -> bytes:
        some = list(islice(self._rows, _ROWS_AT_A_TIME))
        if not some:
            raise StopIteration
        kinds, width, lines = _KINDS, len(self.columns), []
        try:
            for row in some:
                if len(row) != width:
                    raise ValueError
                lines.append(
                    "\t".join([kinds.get(type(value), _other_text)(value) for value in row])
                )
            block = "\n".join([*lines, ""]).encode()
        except ValueError:
            self._refuse(some)
            raise
        self.count += len(some)
        return block

    def _refuse(self, rows: list[Sequence[Any]]) -> None:
        """Find the row and the column that cannot be copied, and say so."""
        for number, row in enumerate(rows, start=self.count + 1):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {number} has {len(row)} values for {len(self.columns)} columns"
                )
            for column, value in zip(self.columns, row, strict=True):
                try:
                    copy_text(value).encode()
                except UnicodeEncodeError:
                    problem = "half a surrogate pair, which is no text"
                except ValueError as error:
                    problem = str(error)
                else:
                    continue
                raise ValueError(f"row {number}, column {column}: {problem}") from None


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def copy_text(value: Any) -> str:
    """One value as COPY's text; raises ValueError for what Postgres cannot hold."""
    return _KINDS.get(type(value), _other_text)(value)


def _string_text(value: str) -> str:
    # What is printable needs at most its backslashes doubled, and nearly no text has any.
    if value.isprintable() and "\\" not in value:
        return value
    if "\0" in value:
        raise ValueError("a NUL character, which Postgres cannot hold")
    return value.translate(_ESCAPES)


def _moment_text(value: datetime) -> str:
    if value.tzinfo is None:
        raise ValueError("a time without a time zone; use datetime.now(UTC)")
    return value.isoformat()


# By exact type, which most values have; their kin are looked at one by one.
_KINDS: dict[type, Callable[[Any], str]] = {
    str: _string_text,
    int: str,
    float: repr,
    type(None): lambda _: "\\N",
    bool: lambda value: "t" if value else "f",
    datetime: _moment_text,
    date: date.isoformat,
    UUID: str,
    Decimal: str,
}


def _other_text(value: Any) -> str:
    if isinstance(value, str):
        return _string_text(value)
    # numpy's numbers are registered as these, and their own text is not a number's.
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return "\\\\x" + bytes(value).hex()
    if isinstance(value, datetime):
        return _moment_text(value)
    if isinstance(value, date | time_of_day):
        return value.isoformat()
    if isinstance(value, dict):
        return json.dumps(value, allow_nan=False).translate(_ESCAPES)
    raise ValueError(f"a {type(value).__name__} cannot be copied; convert it to text or a number")


# The lock of the night


class RunLock:
    """A lock that is held by a connection of its own and lasts as long as that lives."""

    def __init__(self, name: str, connection: psycopg2.extensions.connection) -> None:
        self.name = name
        self._connection = connection

    def still_held(self) -> bool:
        """Ask Postgres; False after it was restarted or the connection was cut."""
        try:
            with closing(self._connection.cursor()) as cursor:
                cursor.execute("SELECT 1")
        except psycopg2.Error:
            return False
        return True


@contextmanager
def run_lock(database: Database, name: str = "regraft-night") -> Iterator[RunLock]:
    """Hold a named lock that at most one process in the world holds; never waits.

    Postgres frees it as soon as the holder is gone, however it went. Raises Busy, naming the
    holder, or Unreachable.
    """
    key = _lock_key(name)
    holder = f"{name} process {os.getpid()} on {socket.gethostname()}"
    with closing(_lock_connection(database.url, holder)) as connection:
        with closing(connection.cursor()) as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (key,))
            taken = cursor.fetchone()
            if taken is None or not taken[0]:
                raise Busy(_described_holder(cursor, name, key))
        with _kept_from_children(connection):
            yield RunLock(name, connection)


def lock_for_transaction(session: Session, name: str) -> None:
    """Hold a lock of `run_lock` until the transaction ends; never waits, raises Busy."""
    key = _lock_key(name)
    with closing(session.connection().connection.cursor()) as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (key,))
        [(taken,)] = cursor.fetchall()
        if not taken:
            raise Busy(_described_holder(cursor, name, key))


def _lock_key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def _lock_connection(url: str, holder: str) -> psycopg2.extensions.connection:
    parts = make_url(url)
    arguments, given = parts.get_dialect()().create_connect_args(parts)
    # A holder whose machine vanished is noticed by Postgres's own keepalives, a Postgres that
    # vanished by ours.
    options = {
        **given,
        **_connection_arguments(),
        "application_name": holder.encode()[:63].decode(errors="ignore"),
        "options": "-c timezone=utc -c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5"
        " -c tcp_keepalives_count=4 -c idle_session_timeout=0",
        "keepalives": 1,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 4,
    }
    try:
        connection = psycopg2.connect(*arguments, **options)
    except psycopg2.OperationalError as error:
        raise _unreachable(url, error) from None
    connection.autocommit = True
    return connection


def _described_holder(cursor: psycopg2.extensions.cursor, name: str, key: int) -> str:
    cursor.execute(
        "SELECT activity.application_name, activity.backend_start"
        " FROM pg_locks JOIN pg_stat_activity AS activity USING (pid)"
        " WHERE locktype = 'advisory' AND granted AND objsubid = 1"
        " AND classid = %s::bigint::oid AND objid = %s::bigint::oid"
        " AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        ((key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF),
    )
    found = cursor.fetchone()
    if found is None:
        return f"{name} was held by another process a moment ago; try again"
    holder, since = found
    return f"{holder} runs since {since:%Y-%m-%d %H:%M:%S} UTC; wait for it to end, or end it"


_lock_sockets: set[int] = set()


def _cut_lock_sockets() -> None:
    """In a forked child: let go of the lock's connection without a word to Postgres.

    A child that outlives a killed holder would otherwise go on holding the lock.
    """
    for descriptor in _lock_sockets:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    _lock_sockets.clear()


@functools.cache
def _cut_locks_in_children() -> None:
    os.register_at_fork(after_in_child=_cut_lock_sockets)


@contextmanager
def _kept_from_children(connection: psycopg2.extensions.connection) -> Iterator[None]:
    _cut_locks_in_children()
    descriptor = connection.fileno()
    _lock_sockets.add(descriptor)
    try:
        yield
    finally:
        _lock_sockets.discard(descriptor)
