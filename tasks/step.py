"""What all steps of a flow have in common: how Prefect runs them, how long they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff
from sqlalchemy.exc import OperationalError

from infra import database
from infra.database import Unreachable
from infra.storage import StorageError
from records import runs

P = ParamSpec("P")
R = TypeVar("R")


def may_pass(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Retry only faults of the network and of servers: a bad label does not mend itself."""
    error = state.data
    if isinstance(error, StorageError):
        return error.temporary
    return isinstance(error, OperationalError | Unreachable | ConnectionError | TimeoutError)


def reading(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a step that reads or writes S3 and Postgres: tried again when a server fails.

    Nothing a step takes or gives is cached or stored: results would be pickled, and whoever can
    write those files could run code here. Ids travel, Postgres remembers.
    """
    return task(
        name=name,
        retries=3,
        retry_delay_seconds=exponential_backoff(backoff_factor=2),
        retry_jitter_factor=0.5,
        retry_condition_fn=may_pass,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def training(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a step that trains: tried once more, which resumes at the last epoch."""
    return task(
        name=name,
        retries=1,
        retry_delay_seconds=5,
        retry_condition_fn=may_pass,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


@contextmanager
def timed(run_id: int, name: str) -> Iterator[dict[str, Any]]:
    """Keep how long the block took, with the counts it writes into the dictionary given."""
    facts: dict[str, Any] = {}
    started_at, started = datetime.now(UTC), time.perf_counter()
    yield facts
    seconds = time.perf_counter() - started
    with database.connect().transaction() as session:
        runs.add_step(session, run_id, name, started_at, seconds, facts)
