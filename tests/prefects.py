"""A Prefect server as tests use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings


@contextmanager
def used(address: str) -> Iterator[None]:
    """Run the flows of the block on this server, without heartbeats.

    The thread that sends them looks once a second whether its flow has ended, and the flow waits
    for it. Nobody listens to those of a flow that was called and not served.
    """
    with temporary_settings({PREFECT_API_URL: address, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def state_of(flow_run_id: UUID) -> str:
    """What Prefect shows a flow run as."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run_id).state
    assert state is not None
    return str(state.type.value)
