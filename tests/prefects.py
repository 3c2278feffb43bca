"""A Prefect server as tests use it."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings


@contextmanager
def used(address: str) -> Iterator[None]:
    """Run the flows of the block on this server, without heartbeats.

    The thread that sends them looks once a second whether its flow has ended, and the flow waits
    for it. Nobody listens to those of a flow that was called and not served.
    """
    with temporary_settings({PREFECT_API_URL: address, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield
