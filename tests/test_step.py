"""Steps: what is tried again, and that nothing of them is kept outside Postgres and S3."""

from pathlib import Path
from typing import Any

import pytest
from prefect import Task, flow
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_HOME, PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from infra.database import Database, Unreachable
from infra.storage import Gone, StorageError
from records import runs
from records.tables import RunStep
from tasks.step import reading, timed, training
from vision.plan import BadPlan

PASSING = [
    StorageError("S3 is slow", temporary=True),
    Unreachable("Postgres is away"),
    OperationalError("SELECT 1", None, Exception("cut")),
    ConnectionResetError("cut"),
    TimeoutError("late"),
]
LASTING = [
    StorageError("wrong key", temporary=False),
    Gone("deleted"),
    BadPlan("epochs=0: use a whole number from 1 to 10000"),
    ValueError("a bad label"),
]


def calls(step: Any, errors: list[BaseException]) -> int:
    """Run a step in a flow, where its first calls raise these errors; give how often it ran."""
    made = 0

    def work() -> int:
        nonlocal made
        made += 1
        if made <= len(errors):
            raise errors[made - 1]
        return made

    # The same step without its pauses.
    quick = step("work")(work).with_options(retry_delay_seconds=0, retry_jitter_factor=None)
    flow(lambda: quick(return_state=True), name="steps")(return_state=True)
    return made


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_faults_of_servers_are_tried_again(error: BaseException, prefect_server: str) -> None:
    """A step that loses S3 or Postgres for a moment goes on."""
    assert calls(reading, [error]) == 2


@pytest.mark.parametrize("error", LASTING, ids=lambda error: type(error).__name__)
def test_faults_of_data_are_not_tried_again(error: BaseException, prefect_server: str) -> None:
    """What will be wrong the next time too fails at once."""
    assert calls(reading, [error]) == 1


def test_tries_are_counted(prefect_server: str) -> None:
    """Reading is tried four times, training twice."""
    lost = StorageError("S3 is away", temporary=True)
    assert calls(reading, [lost] * 9) == 4
    assert calls(training, [lost] * 9) == 2


def test_nothing_is_pickled(prefect_server: str, tmp_path: Path) -> None:
    """Results and errors of steps are written nowhere: a pickle that others can write runs code."""
    home = {PREFECT_HOME: tmp_path, PREFECT_LOCAL_STORAGE_PATH: tmp_path / "storage"}
    with temporary_settings(home):
        assert calls(reading, [ValueError("a bad label")]) == 1
        assert calls(reading, []) == 1
    assert not list((tmp_path / "storage").glob("*"))


@pytest.mark.parametrize("make", [reading, training])
def test_steps_keep_no_results(make: Any) -> None:
    """No step is cached: the same ids may mean other work tomorrow."""
    made: Task[[], None] = make("work")(lambda: None)
    assert made.cache_policy == NO_CACHE
    assert made.persist_result is False


def test_a_step_that_failed_leaves_no_time(database: Database) -> None:
    """Only work that was done counts in where the time went, with the counts it saw."""
    with database.transaction() as session:
        run_id = runs.begin(session, "nightly", {}, None)
    with pytest.raises(ValueError, match="wrong"), timed(run_id, "broken"):
        raise ValueError("wrong")
    with timed(run_id, "work") as facts:
        facts["images"] = 3
    with database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(RunStep)) == 1
        (step,) = runs.steps(session, run_id)
    assert (step.name, step.facts) == ("work", {"images": 3})
    assert step.seconds >= 0
