"""The deployments of nights and of what goes with them: schedules, limits, dead runs.

Postgres's advisory lock decides who runs (flows.nightly); everything here keeps Prefect's picture
of it true and quiet.

What a stop does. SIGTERM or SIGINT to `serve` ends the night's process too: its row closes as
failed on the way out, or as crashed by the next holder of the lock, and `serve` marks the flow run
crashed before it leaves. After SIGKILL or a power cut three things follow: the lock is free within
milliseconds, the heartbeat automation marks the flow run crashed within 90 seconds while the server
lives, and the next start of `serve` does so at once. An identification that somebody called is no
deployment's: the next one, or the next start of `serve`, finds that its lock is free.

What a gap does. Nights missed while nobody served are not made up for: registering the deployment
deletes its scheduled runs that never began, and the next night takes in whatever has come since.
Runs that come late together (a suspended machine) are cancelled by the limit but one, and a night
with nothing new ends as skipped within seconds.

What a meeting does. Night and control run share the lock: whichever comes second fails as Busy and
says who held it; its next turn comes with its schedule. A control run from scratch may take many
nights' time, hence its own day, at noon.

What follows a night. `throwaway` has no schedule: it is called by hand or through the API, with
parameters, or, if `serve` was told to, by an automation when a night reports classes near the
cutoff.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import prefect
from prefect import Flow, get_client
from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    FlowRun,
    StateType,
)
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Schedule
from prefect.settings import PREFECT_API_URL
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from flows import dead
from flows.bakeoff import bakeoff
from flows.control import control
from flows.identify import crash_dead_identifications
from flows.nightly import nightly
from flows.pretrain import pretrain
from flows.report import NEAR_CUTOFF
from flows.scoring import weekly
from flows.throwaway import lowered, throwaway
from infra import database
from infra.database import Busy, run_lock
from records import runs
from vision.gate import Limits
from vision.plan import Plan
from vision.scores import PRECISION

NAMES = [f"{flow.name}/{flow.name}" for flow in (nightly, control)]
THROWAWAY = f"{throwaway.name}/{throwaway.name}"
AUTOMATION = "regraft: crash zombie flows"
SHORTLISTS = "regraft: shortlists for classes near the cutoff"
HEARTBEAT_SECONDS = 30  # the most frequent that Prefect sends
SILENT_SECONDS = 90
STOP_SECONDS = 10.0  # for a stopped night to let go of the lock


class NoServer(RuntimeError):
    """There is no Prefect server to register with; the message is one line with the mend."""


class BadSchedule(ValueError):
    """A cron line or a time zone that does not exist."""


def serve(
    plan: Plan,
    cron: str,
    timezone: str,
    control_cron: str | None = None,
    limits: Limits = Limits(),  # noqa: B008  (frozen)
    precision: float = PRECISION,
    shortlist_from: int | None = None,
    pools: Sequence[str] = (),
) -> None:
    """Run night, control run and the library's scoring on their schedules until SIGTERM or SIGINT.

    control_cron: None for no control run. plan, limits, precision: each night's; a throw-away run
    has the same plan and precision. shortlist_from: the lower cutoff of the throw-away run on these
    pools that follows a night which reports classes near the cutoff; None for none. Raises
    `BadSchedule`, `BadPlan` and `NoServer` before anything is registered.
    """
    shortlisting = described_throwaway(plan, shortlist_from, pools, precision)
    served = [described(plan, cron, timezone, limits, precision), weekly(timezone), shortlisting]
    if control_cron is not None:
        served.append(described_control(control_cron, timezone))
    require_server()
    if control_cron is None:
        forget(NAMES[1])
    # a coroutine only in an event loop
    ids = {one.name: cast("UUID", one.apply()) for one in served}
    crash_silent_runs(ids.values())
    if shortlist_from is None:
        stop_shortlists()
    else:
        shortlist_after_nights(ids[shortlisting.name])
    reap()
    crash_dead_identifications()
    try:
        prefect.serve(
            *served,
            # A redeployment must not leave the schedule paused.
            pause_on_shutdown=False,
            # One more than there are: a run that is due meanwhile must reach the server, whose
            # limit cancels it; held back here it would start late, as a backlog.
            limit=len(served) + 1,
            heartbeat_seconds=HEARTBEAT_SECONDS,
        )
    finally:
        reap(patience=STOP_SECONDS)


def described(
    plan: Plan,
    cron: str,
    timezone: str,
    limits: Limits = Limits(),  # noqa: B008  (frozen)
    precision: float = PRECISION,
) -> RunnerDeployment:
    """The deployment of the night that `serve` registers."""
    return _described(
        nightly, cron, timezone, "--cron",
        {"plan": plan.to_dict(), "limits": asdict(limits), "precision": precision},
        "Take in new images, train a candidate, let the benchmark decide.",
    )  # fmt: skip


def described_control(cron: str, timezone: str) -> RunnerDeployment:
    """The deployment of the control run that `serve` registers."""
    return _described(
        control, cron, timezone, "--control", {},
        "Learn the champion's images afresh, and tell what its lineage is worth.",
    )  # fmt: skip


def described_throwaway(
    plan: Plan,
    cutoff: int | None = None,
    pools: Sequence[str] = (),
    precision: float = PRECISION,
) -> RunnerDeployment:
    """The deployment of the throw-away run that `serve` registers; who calls it gives the rest."""
    given: dict[str, Any] = {"plan": plan.to_dict(), "precision": precision}
    if cutoff is not None:
        lowered(plan, cutoff)
        given |= {"cutoff": cutoff}
    if pools:
        given |= {"pools": list(pools)}
    return _deployment(
        throwaway, None, given,
        "Train from a lower cutoff on, and look in the pools for what classes near it lack.",
    )  # fmt: skip


def _described(
    flow: Flow[..., Any],
    cron: str,
    timezone: str,
    option: str,
    parameters: dict[str, Any],
    description: str,
) -> RunnerDeployment:
    try:
        schedule = Schedule(cron=cron, timezone=timezone, slug=flow.name)
        return _deployment(flow, schedule, parameters, description)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise BadSchedule(_schedule_line(reason, option)) from None
    except ValueError as error:
        raise BadSchedule(_schedule_line(str(error), option)) from None


def _deployment(
    flow: Flow[..., Any], schedule: Schedule | None, parameters: dict[str, Any], description: str
) -> RunnerDeployment:
    deployment = flow.to_deployment(
        name=flow.name,
        schedule=schedule,
        parameters=parameters,
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
        description=description,
        # By name, so that it is found from whatever folder `serve` was started in.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return cast("RunnerDeployment", deployment)  # a coroutine only in an event loop


def _schedule_line(reason: str, option: str) -> str:
    return f'{reason}; write {option} "0 2 * * *" --timezone Europe/Berlin'


def forget(name: str) -> None:
    """Delete a deployment that an earlier start has left, with its runs that never began."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        client.delete_deployment(client.read_deployment_by_name(name).id)


def require_server() -> None:
    """Raise `NoServer` unless a Prefect server answers."""
    address = PREFECT_API_URL.value()
    if not address:
        raise NoServer("PREFECT_API_URL is not set: start a server with `regraft up`")
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        raise NoServer(
            f"Prefect at {address} does not answer ({problem}): start it with `regraft up`, or "
            "correct PREFECT_API_URL"
        )


def crash_silent_runs(deployment_ids: Collection[UUID]) -> None:
    """Have the server mark a run of these deployments as crashed when its heartbeat stops.

    Only of these: on a shared server other flows beat more slowly, or not at all.
    """
    wanted = AutomationCore(
        name=AUTOMATION,
        description=(
            f"A run that has not been heard of for {SILENT_SECONDS} seconds has died; "
            "its limit of one run is freed."
        ),
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={
                "prefect.flow-run.heartbeat",
                "prefect.flow-run.Completed",
                "prefect.flow-run.Failed",
                "prefect.flow-run.Cancelled",
                "prefect.flow-run.Crashed",
            },
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related={
                "prefect.resource.role": ["deployment"],
                "prefect.resource.id": [f"prefect.deployment.{one}" for one in deployment_ids],
            },
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENT_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                name=None, state=StateType.CRASHED, message="its heartbeat stopped", force=False
            )
        ],
    )
    _automate(wanted)


def shortlist_after_nights(deployment_id: UUID) -> None:
    """Have the server call the throw-away deployment when a night reports classes near the cutoff.

    With the parameters that it was registered with; it ends as skipped where none is near enough.
    """
    wanted = AutomationCore(
        name=SHORTLISTS,
        description="Classes near the cutoff that no shortlist was made for get one.",
        trigger=EventTrigger(
            expect={NEAR_CUTOFF},
            match={"prefect.resource.id": "regraft.library"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            RunDeployment(
                source="selected", deployment_id=deployment_id, parameters=None, job_variables=None
            )
        ],
    )
    _automate(wanted)


def stop_shortlists() -> None:
    """Delete the automation that an earlier start has left."""
    with get_client(sync_client=True) as client:
        for one in client.read_automations_by_name(SHORTLISTS):
            client.delete_automation(one.id)


def _automate(wanted: AutomationCore) -> None:
    with get_client(sync_client=True) as client:
        known = client.read_automations_by_name(wanted.name)
        if known:
            client.update_automation(known[0].id, wanted)
        else:
            client.create_automation(wanted)


def reap(patience: float = 0.0) -> list[UUID]:
    """Mark flow runs whose process is dead as crashed, and close our rows of dead runs.

    Only under the lock of the night, whose holder knows that no other night is alive; when another
    holds it there is nothing to reap, after `patience` seconds of asking again.
    """
    deadline = time.monotonic() + patience
    store = database.connect()
    while True:
        try:
            with run_lock(store):
                with store.transaction() as session:
                    runs.close_the_dead(session)
                with get_client(sync_client=True) as client:
                    return _crash_the_dead(client)
        except Busy:
            if time.monotonic() >= deadline:
                return []
            time.sleep(0.2)


def _crash_the_dead(client: SyncPrefectClient) -> list[UUID]:
    flows = [flow.name for flow in (nightly, control, pretrain, bakeoff, throwaway)]
    found = [one.id for one in dead.running(client, flows) if _is_dead(one)]
    # What a throw-away run's process answered a pool in died with it.
    dead.crash(client, [*found, *(one.id for one in dead.running_within(client, found))])
    return found


def _is_dead(flow_run: FlowRun) -> bool:
    """Whether a flow run that says `Running` is none, while we hold the lock.

    A living one is either about to ask for the lock, or has let go of it and is reporting, or
    answers the pools of a throw-away run.
    """
    with database.connect().transaction() as session:
        process = runs.process_of(session, str(flow_run.id))
    if process is None:
        return dead.is_past_grace(flow_run)
    if process.state == "crashed":
        return True
    if process.host == socket.gethostname():
        return not _is_running(process.pid)
    if process.purpose == "throwaway" and process.state == "completed":
        return False  # it may answer pools for hours; elsewhere only its heartbeat tells
    return process.ended_at is not None and datetime.now(UTC) - process.ended_at > dead.GRACE


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def watch() -> None:
    """Do for deployments made from prefect.yaml what `serve` does for its own."""
    require_server()
    found = []
    with get_client(sync_client=True) as client:
        for name in (*NAMES, THROWAWAY):
            try:
                found.append(client.read_deployment_by_name(name).id)
            except ObjectNotFound:
                raise NoServer(
                    f"Prefect knows no deployment {name}: run `prefect deploy --all`"
                ) from None
    crash_silent_runs(found)
    reap()
    crash_dead_identifications()


if __name__ == "__main__":
    watch()
