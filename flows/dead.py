"""Flow runs whose process died: they would say `Running` in Prefect for ever."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Crashed

# A flow run that holds no lock and has no row of ours is only beginning or ending, up to this age.
GRACE = timedelta(minutes=2)
MOST_RUNS = 200  # in one answer of the server
RUNNING = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING"]}}})


def running(client: SyncPrefectClient, flows: Collection[str]) -> list[FlowRun]:
    """The flow runs of these flows that say `Running`, dead or alive."""
    return client.read_flow_runs(
        flow_filter=FlowFilter.model_validate({"name": {"any_": list(flows)}}),
        flow_run_filter=RUNNING,
        limit=MOST_RUNS,
    )


def running_within(client: SyncPrefectClient, flow_runs: Collection[UUID]) -> list[FlowRun]:
    """The flow runs that these have begun and that say `Running`."""
    if not flow_runs:
        return []
    begun_by = FlowRunFilterParentFlowRunId(any_=list(flow_runs))
    return client.read_flow_runs(
        flow_run_filter=RUNNING.model_copy(update={"parent_flow_run_id": begun_by}),
        limit=MOST_RUNS,
    )


def is_past_grace(flow_run: FlowRun) -> bool:
    """Whether it began so long ago that a living one would have written of itself."""
    began = flow_run.start_time or flow_run.created or datetime.now(UTC)
    return datetime.now(UTC) - began > GRACE


def crash(client: SyncPrefectClient, flow_runs: Iterable[UUID]) -> None:
    """Mark flow runs as crashed; one that has ended by itself meanwhile stays as it ended."""
    for flow_run_id in flow_runs:
        state: State[None] = Crashed(message="its process died; found when the next one looked")
        client.set_flow_run_state(flow_run_id, state)
