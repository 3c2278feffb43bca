"""Identification of a pool: everything in it answered by one version, and kept to be asked."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from uuid import UUID

from prefect import flow, get_client
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from flows import dead, report
from flows.scoring import NothingServes
from infra import database
from infra.database import Busy, RunLock, lock_for_transaction, run_lock
from records import deployments, identifications, pools
from records.pools import Unreadable
from tasks.identification import answer, begin, locate
from tasks.progress import courtesy
from vision.scores import PRECISION

MOST_SHOWN = 10  # unreadable objects named in one report
MARKED = {
    "library": "of them in the library",
    "near library": "of them near copies of library images",
    "benchmark": "of them in the benchmark",
    "near benchmark": "of them near copies of benchmark images",
}


@dataclass(frozen=True)
class Identification:
    """How an identification ended, with its counts.

    listed: objects of the pool; known: those that had an answer or are known to hold no picture;
    the rest is answered, repeated (the same bytes have an answer), unreadable or missing (gone or
    changed since it was listed, or refused by the server). marks: how many of the pictures
    answered library or benchmark have already, by mark. unscored: pictures answered before without
    these targets, of which no confidence is kept; judged: whether a threshold says what may be
    shown. unreadable_objects: the first of the pool's.
    """

    identification_id: int
    version_id: int
    pool: str
    state: str
    listed: int
    known: int
    answered: int
    repeated: int
    unreadable: int
    missing: int
    shown: int | None
    marks: dict[str, int]
    targets: tuple[str, ...]
    unscored: int
    judged: bool
    unreadable_objects: tuple[Unreadable, ...]
    seconds: float

    @property
    def sentence(self) -> str:
        """What came of it, in one line."""
        counts = [
            f"{count} {what}"
            for count, what in (
                (self.known, "known before"),
                (self.repeated, "copies"),
                (self.unreadable, "unreadable"),
                (self.missing, "that could not be had"),
            )
            if count
        ] + [f"{count} {MARKED[mark]}" for mark, count in self.marks.items()]
        rest = f" ({', '.join(counts)})" if counts else ""
        return (
            f"version {self.version_id} answered {self.answered} of {self.listed} objects in "
            f"s3://{self.pool}{rest}{self._lacking}"
        )

    @property
    def _lacking(self) -> str:
        """What the answers do not hold, although it was asked for."""
        lacking = ""
        if self.unscored:
            lacking += (
                f"; {self.unscored} pictures were answered before and keep no confidence of "
                f"{', '.join(self.targets)}: only a version that has not answered them scores them"
            )
        if not self.judged:
            lacking += (
                "; none is judged, since no threshold was fitted for this precision: `regraft show "
                f"{self.version_id}` lists those that were"
            )
        return lacking


@flow(name="identify", flow_run_name=report.run_name, retries=0, result_serializer="json")
def identify(
    pool: str,
    version_id: int | None = None,
    targets: list[str] | None = None,
    precision: float = PRECISION,
) -> Identification:
    """Answer a pool of unlabelled images by a version, by default the one that serves.

    pool: `s3://PREFIX` in our bucket, or a local folder, which is loaded first. targets: classes
    whose confidence is kept even where others are more likely. precision: whose threshold says
    what would be shown. It waits for nobody, and changes nothing that trains or serves. Killed and
    run again it goes on; run by several processes at once, they share the work. Raises `BadPool`,
    `CannotIdentify`, `NothingServes`.
    """
    flow_run_id = report.flow_run_id()
    with _alive(flow_run_id):
        if flow_run_id is not None:
            with courtesy("look for dead identifications"):
                crash_dead_identifications()
        version = version_id if version_id is not None else _champion()
        started = time.monotonic()
        identification_id = begin(locate(pool), version, targets or [], precision, flow_run_id)
        report.name_run(version)
        answer(identification_id, flow_run_id)
        done = _told(identification_id, time.monotonic() - started)
        _publish(done)
    return done


def crash_dead_identifications() -> list[UUID]:
    """Mark the flow runs of identifications that were killed as crashed; answers which."""
    with get_client(sync_client=True) as client:
        found = [one.id for one in dead.running(client, [identify.name]) if _is_dead(one)]
        dead.crash(client, found)
    return found


def _alive(flow_run_id: str | None) -> AbstractContextManager[RunLock | None]:
    """Hold a lock of one's own for the block, so that others see that this process lives."""
    if flow_run_id is None:
        return nullcontext()
    return run_lock(database.connect(), _lock_of(flow_run_id))


def _lock_of(flow_run_id: str) -> str:
    return f"regraft-identify-{flow_run_id}"


def _is_dead(flow_run: FlowRun) -> bool:
    """Whether nobody holds its lock, which it takes before it writes anything down.

    One that has written nothing may be about to take it, and must find it free.
    """
    name = str(flow_run.id)
    with database.connect().transaction() as session:
        if not (dead.is_past_grace(flow_run) or identifications.wrote(session, name)):
            return False
        try:
            lock_for_transaction(session, _lock_of(name))
        except Busy:
            return False
    return True


def _champion() -> int:
    with database.connect().transaction() as session:
        champion = deployments.champion(session)
    if champion is None:
        raise NothingServes("nothing serves yet: name a version with --version")
    return champion.version_id


def _told(identification_id: int, seconds: float) -> Identification:
    with database.connect().transaction() as session:
        row = identifications.get(session, identification_id)
        worth = identifications.worth(session, identification_id)
        return Identification(
            identification_id=row.id,
            version_id=row.version_id,
            pool=row.prefix,
            state=row.state,
            listed=row.listed,
            known=row.known,
            answered=row.answered,
            repeated=row.repeated,
            unreadable=row.unreadable,
            missing=row.missing,
            shown=worth.shown,
            marks=worth.marks,
            targets=tuple(row.targets),
            unscored=(
                identifications.unscored(session, row.id)
                if row.targets and row.known + row.repeated else 0
            ),
            judged=row.threshold is not None,
            unreadable_objects=tuple(pools.unreadable(session, row.pool_id, MOST_SHOWN)),
            seconds=seconds,
        )


def _publish(done: Identification) -> None:
    if FlowRunContext.get() is None:
        return
    lines = [f"# Identification {done.identification_id}", "", report.inert(done.sentence), ""]
    lines += [
        f"- {report.inert(one.key)}: {report.inert(one.problem)}" for one in done.unreadable_objects
    ]
    with courtesy("publish the report"):
        create_markdown_artifact(
            "\n".join([*lines, ""]), key="identification", description="What a version answered"
        )
