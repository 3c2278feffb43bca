"""The deployment: the real service in its own process, on a schedule of seconds."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import nights
import psycopg2
import pytest
import yaml
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ParameterTypeError, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from sqlalchemy import text
from sqlalchemy.engine import make_url

from flows import deployments
from flows.deployments import AUTOMATION, BadSchedule, NoServer
from flows.nightly import nightly
from infra import embedded, settings
from infra.database import Database, run_lock
from infra.storage import Storage
from records import runs
from records.deployments import champion
from vision.gate import Limits
from vision.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
EVERY_FEW_SECONDS = "* * * * * */4"  # cron with seconds in the sixth place
T = TypeVar("T")


def wait_for(
    what: str, answer: Callable[[], T | None], process: "subprocess.Popen[bytes] | None" = None
) -> T:
    """Ask again and again until there is an answer, while the service lives."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        if found := answer():
            return found
        time.sleep(0.2)
    pytest.fail(f"{what} did not come within 90 seconds, or the service ended")


@contextmanager
def service(scratch: Path, plan: Plan, cron: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Have `regraft serve` running; it and its children are killed at the end."""
    plan_file = scratch / "plan.json"
    plan_file.write_text(json.dumps(plan.to_dict()))
    command = [sys.executable, "-m", "flows.cli", "serve", "--cron", cron, "--plan", str(plan_file)]
    with (scratch / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PREFECT_RUNNER_POLL_FREQUENCY": "1",
                 "PREFECT_HOME": str(scratch / "prefect")},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    except BaseException:
        print((scratch / "serve.log").read_text()[-4000:])  # noqa: T201  (shown with the failure)
        raise
    finally:
        kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill the service and the night it runs at once, as a power cut does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)


def flow_runs(*states: str) -> list[FlowRun]:
    """Give the runs of the deployment that are in one of these states, the oldest first."""
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            deployment_filter=DeploymentFilter.model_validate({"name": {"any_": ["nightly"]}}),
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": states}}}),
        )


def is_crashed(run: runs.RunRow) -> bool:
    """Whether Prefect shows the flow run of this row as crashed; otherwise it must be running."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(run.flow_run_id)).state
    assert state is not None
    assert state.is_crashed() or state.is_running(), state
    return state.is_crashed()


def rows(database: Database) -> list[runs.RunRow]:
    """Give our own rows, the newest first."""
    with database.transaction() as session:
        return runs.listed(session)


def training_now(database: Database) -> runs.RunRow | None:
    """Give the run that has trained an epoch and goes on, if there is one."""
    with database.transaction() as session:
        found = session.scalar(
            text("SELECT r.id FROM runs r JOIN versions v ON v.id = r.version_id "
                 "WHERE r.state = 'running' AND v.state = 'training' "
                 "AND (SELECT max(e.number) FROM epochs e WHERE e.version_id = v.id) > r.id")
        )  # fmt: skip
    return next((row for row in rows(database) if row.id == found), None)


@pytest.fixture
def deployment_gone(prefect_server: str) -> Iterator[None]:
    """Have the deployment deleted afterwards, with all its runs that never began."""
    yield
    with get_client(sync_client=True) as client:
        for one in client.read_deployments():
            client.delete_deployment(one.id)


def secrets_in_prefect(wanted: list[str]) -> list[str]:
    """Look for texts in every row of every table that Prefect keeps; give the tables."""
    known = embedded._State(settings.load())
    url = make_url(known.database_url("prefect")).set(drivername="postgresql")
    connection = psycopg2.connect(url.render_as_string(hide_password=False))
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        hits = []
        for (table,) in cursor.fetchall():
            for secret in wanted:
                cursor.execute(
                    f'SELECT count(*) FROM "{table}" AS row WHERE row::text LIKE %s',  # noqa: S608
                    (f"%{secret}%",),
                )
                count = cursor.fetchone()
                assert count is not None
                hits += [table] * count[0]
        return hits
    finally:
        connection.close()


def test_scheduled_nights_run_by_themselves_and_refuse_to_overlap(
    database: Database, storage: Storage, prefect_server: str, deployment_gone: None, tmp_path: Path
) -> None:
    """A night begun by the schedule completes, under its id in our row; a second one is Busy."""
    nights.tiny_library(tmp_path)
    with service(tmp_path, nights.TINY_PLAN, EVERY_FEW_SECONDS) as process:
        done = wait_for("a completed night", lambda: flow_runs("COMPLETED"), process)[0]
        assert done.auto_scheduled
        with database.transaction() as session:
            row = runs.by_flow_run(session, str(done.id))
            serving = champion(session)
        assert row is not None
        assert row.state == "completed"
        assert serving is not None
        assert serving.version_id == row.version_id
        assert done.name == f"nightly {row.started_at:%Y-%m-%d %H:%M} · version {row.version_id}"

        with run_lock(database):
            before = rows(database)
            refused = wait_for("a refused night", lambda: flow_runs("FAILED"), process)[0]
            assert refused.state is not None
            assert "Busy" in str(refused.state.message)
            assert rows(database) == before
            with database.transaction() as session:
                assert champion(session) == serving
    for kept in (tmp_path / "prefect" / "storage").rglob("*"):
        json.loads(kept.read_text())  # the error of the refused night; a pickle could run code
    secrets = [os.environ["REGRAFT_S3_SECRET_KEY"], make_url(database.url).password]
    assert secrets_in_prefect(secrets) == []


def test_dead_nights_are_shown_as_crashed(
    database: Database, storage: Storage, prefect_server: str, deployment_gone: None, tmp_path: Path
) -> None:
    """A night that was killed with its service, or stopped with it, stays `Running` nowhere."""
    nights.tiny_library(tmp_path)
    endless = replace(nights.TINY_PLAN, epochs=10_000)
    with service(tmp_path, endless, EVERY_FEW_SECONDS) as process:
        killed = wait_for("a night that trains", lambda: training_now(database), process)
        kill(process)
    assert not is_crashed(killed)
    assert rows(database)[0].state == "running"

    with service(tmp_path, endless, EVERY_FEW_SECONDS) as process:
        wait_for("a crash", lambda: is_crashed(killed), process)
        stopped = wait_for("a second night that trains", lambda: training_now(database), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert stopped.id != killed.id
    assert {row.id: row.state for row in rows(database)}[killed.id] == "crashed"
    assert rows(database)[0].state in ("failed", "crashed")
    assert is_crashed(stopped)
    with database.transaction() as session:
        assert champion(session) is None
    with get_client(sync_client=True) as client:
        (watching,) = client.read_automations_by_name(AUTOMATION)  # one, after two starts
        known = [client.read_deployment_by_name(name) for name in deployments.NAMES]
    assert watching.enabled
    assert all(str(one.id) in watching.trigger.match_related.model_dump_json() for one in known)


def test_prefect_yaml_deploys_the_same_night(
    prefect_server: str, deployment_gone: None, tmp_path: Path
) -> None:
    """`prefect deploy --all` registers the schedule, and the server creates its runs."""
    with get_client(sync_client=True) as client:
        pool = WorkPoolCreate(name="regraft", type="process")
        client.create_work_pool(pool, overwrite=True)
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=ROOT,
        env={**os.environ, "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    deployments.watch()
    with get_client(sync_client=True) as client:
        known = client.read_deployment_by_name("nightly/nightly")
        assert "Plan" in known.parameter_openapi_schema["definitions"]
        with pytest.raises(PrefectHTTPStatusError, match="epochs"):
            client.create_flow_run_from_deployment(known.id, parameters={"plan": {"epochs": "x"}})
        weekly = client.read_deployment_by_name("control/control")
    (schedule,) = known.schedules
    assert (schedule.slug, schedule.schedule.cron) == ("nightly", "0 2 * * *")
    (schedule,) = weekly.schedules
    assert (schedule.slug, schedule.schedule.cron) == ("control", "0 12 * * 0")
    assert known.concurrency_options.collision_strategy == "CANCEL_NEW"

    def scheduled() -> list[FlowRun]:
        return flow_runs("SCHEDULED")

    # With SQLAlchemy 2.1 this Prefect never creates one.
    first = wait_for("a scheduled run", scheduled)[0]
    assert first.auto_scheduled
    assert first.expected_start_time is not None
    assert (first.expected_start_time.hour, first.expected_start_time.minute) == (2, 0)

    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][0]
    served = deployments.described(Plan(), declared["schedules"][0]["cron"], "UTC")
    assert (served.name, served.flow_name) == (known.name, "nightly")
    assert served.concurrency_limit == declared["concurrency_limit"]["limit"]
    assert served.description == known.description
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][1]
    served = deployments.described_control(declared["schedules"][0]["cron"], "UTC")
    assert (served.name, served.flow_name) == (weekly.name, "control")
    assert served.concurrency_limit == declared["concurrency_limit"]["limit"]
    assert served.description == weekly.description


def test_parameters_are_read_from_json() -> None:
    """What comes through the API becomes a plan and limits, or one line says what is wrong."""
    read = nightly.validate_parameters(
        {
            "plan": {"architecture": "test_resnet", "epochs": 2, "mean": [0.5] * 3, "std": [1] * 3},
            "limits": {"retired_classes": ["okapi"]},
        }
    )
    assert read["plan"] == Plan("test_resnet", epochs=2, mean=(0.5,) * 3, std=(1,) * 3)
    assert read["limits"].retired_classes == ("okapi",)
    again = nightly.validate_parameters({"plan": nights.TINY_PLAN.to_dict()})
    assert again["plan"] == nights.TINY_PLAN
    limits = Limits(margin=0.02, retired_classes=("okapi",))
    served = deployments.described(nights.TINY_PLAN, "0 2 * * *", "UTC", limits, 0.9)
    scheduled = nightly.validate_parameters(json.loads(json.dumps(served.parameters)))
    assert [scheduled[name] for name in ("plan", "limits", "precision")] == [
        nights.TINY_PLAN, limits, 0.9]  # fmt: skip
    with pytest.raises(ParameterTypeError, match="epochs=0: use a whole number from 1"):
        nightly.validate_parameters({"plan": {"epochs": 0}})
    with pytest.raises(ParameterTypeError, match="unfreeze=9: recipe='all' has one phase"):
        nightly.validate_parameters({"plan": {"unfreeze": 9}})
    with pytest.raises(ParameterTypeError, match="epoch: Unexpected"):
        nightly.validate_parameters({"plan": {"epoch": 2}})


@pytest.mark.parametrize(("cron", "timezone"), [("61 * * * *", "UTC"), ("0 2 * * *", "Europe/Bern"),
                                                ("", "UTC"), ("nightly", "UTC")])  # fmt: skip
def test_bad_schedules_are_refused(cron: str, timezone: str) -> None:
    """A schedule that does not exist is one line, before anything is registered."""
    with pytest.raises(BadSchedule, match="--cron") as refused:
        deployments.serve(Plan(), cron, timezone)
    assert "\n" not in str(refused.value)
    with pytest.raises(BadSchedule, match="--control"):
        deployments.described_control(cron, timezone)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/api", None])
def test_an_absent_server_is_named(address: str | None) -> None:
    """Without a Prefect server `serve` says so in one line and how to start one."""
    with (
        temporary_settings({PREFECT_API_URL: address}),
        pytest.raises(NoServer, match="regraft up") as refused,
    ):
        deployments.serve(Plan(), "0 2 * * *", "UTC")
    assert "\n" not in str(refused.value)
