"""What people decide about versions, done by whoever started the service: it needs the gate.

It loads networks and answers the benchmark, for which no page waits: one decision at a time goes on
in the background, and whoever asked for it is told what came of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from fastapi import BackgroundTasks, Request

log = logging.getLogger("regraft.web")

Act = Literal["approve", "adopt", "roll_back"]
DOING = {"approve": "Approving", "adopt": "Adopting", "roll_back": "Rolling back to"}


class StillDeciding(RuntimeError):
    """A decision is going on, and there is one at a time."""


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


def follow_later(request: Request, background: BackgroundTasks) -> None:
    """Let S3 follow once the request is answered; where nobody does it now, the night does."""
    decisions: Decisions | None = request.app.state.decisions
    if decisions is not None:
        background.add_task(decisions.follow)


@dataclass(frozen=True)
class Judging:
    """A decision that is going on, and who asked for it when."""

    act: Act
    version_id: int
    by: str
    since: datetime


@dataclass(frozen=True)
class Came:
    """What came of a decision, in one sentence; serves: the version does, as was asked for."""

    sentence: str
    serves: bool


class Deciding:
    """The decision that is going on, and what came of those that nobody was told of yet."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._working = ThreadPoolExecutor(1, "regraft-decide")
        self._lock = threading.Lock()
        self._now: Judging | None = None
        self._untold: dict[str, Came] = {}  # by who asked

    def begin(
        self, act: Act, version_id: int, by: str, why: str, in_words: Callable[[Exception], str]
    ) -> None:
        """Begin to do it; in_words: the sentence that tells of an error.

        Raises `StillDeciding` while another decision is going on.
        """
        now = Judging(act, version_id, by, datetime.now(UTC))
        with self._lock:
            if self._now is not None:
                raise StillDeciding(
                    f"version {self._now.version_id} is being judged, as {self._now.by} asked: "
                    "try again when that is done"
                )
            self._now = now
        self._working.submit(self._decide, now, why, in_words)

    def _decide(self, now: Judging, why: str, in_words: Callable[[Exception], str]) -> None:
        came = Came(f"{DOING[now.act]} version {now.version_id} failed", serves=False)
        try:
            decided = getattr(self._decisions, now.act)(now.version_id, now.by, why)
            came = Came(decided.reason, decided.deployment_id is not None)
        except Exception as error:
            sentence = f"{DOING[now.act]} version {now.version_id} failed: {in_words(error)}"
            came = Came(sentence, serves=False)
        finally:
            with self._lock:
                self._untold[now.by], self._now = came, None

    def seen_by(self, person: str) -> tuple[Judging | None, Came | None]:
        """What is going on, and what came of what this person asked for, which is told once."""
        with self._lock:
            return self._now, self._untold.pop(person, None)

    def close(self) -> None:
        """Wait for what is going on."""
        if now := self._now:
            log.warning("the service ends once version %d is judged", now.version_id)
        self._working.shutdown()
