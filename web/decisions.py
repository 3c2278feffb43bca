"""What people decide about versions, done by whoever started the service: it needs the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Decided(Protocol):
    """What became of a version. deployment_id: None where the gate refused it."""

    @property
    def deployment_id(self) -> int | None: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Decisions:
    """The acts that load and judge networks. Each takes a version's number, a name and a reason.

    follow: lets S3 follow what people did with pictures of pools.
    """

    approve: Callable[[int, str, str], Decided]
    adopt: Callable[[int, str, str], Decided]
    roll_back: Callable[[int, str, str], Decided]
    follow: Callable[[], object]
