"""The session that a handler works in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy.orm import Session as OrmSession

from infra import database


def _transaction() -> Iterator[OrmSession]:
    with database.connect().transaction() as session:
        yield session


# Of the function, not of the request: what was done is committed before anybody is told so.
Session = Annotated[OrmSession, Depends(_transaction, scope="function")]
