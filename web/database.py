"""The session that a handler works in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy import Connection, event, text
from sqlalchemy.orm import Session as OrmSession

from infra import database

MOST_SECONDS = 30  # of one statement: whoever asked has gone, and others wait for the connection


def _transaction() -> Iterator[OrmSession]:
    with database.connect().transaction() as session:
        # Not at once: who has a connection before its handler has a thread waits for those who wait
        # in all threads for a connection.
        event.listen(session, "after_begin", _limit)
        yield session


def _limit(_: OrmSession, __: object, connection: Connection) -> None:
    connection.execute(text(f"SET LOCAL statement_timeout = '{MOST_SECONDS}s'"))


# Of the function, not of the request: what was done is committed before anybody is told so.
Session = Annotated[OrmSession, Depends(_transaction, scope="function")]
