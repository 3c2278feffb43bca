"""Runs: one row for each try of a flow, and the fence that stops a run which is not current."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, or_, select, text, update
from sqlalchemy.orm import Session

from records.tables import Run, RunStep, Version


class Fenced(RuntimeError):
    """A run tried to publish after it had been closed, by a later run or by a person."""


class UnknownRun(LookupError):
    """No such run."""


@dataclass(frozen=True)
class RunRow:
    """One run as people ask for it."""

    id: int
    purpose: str
    state: str
    reason: str | None
    flow_run_id: str | None
    version_id: int | None
    batch_id: int | None
    snapshot_digest: str | None
    verdict_id: int | None
    started_at: datetime
    ended_at: datetime | None

    @property
    def outcome(self) -> str:
        """What came of it: its state, or of one that was completed the first word of its reason.

        A night that was stopped by a batch, or whose version was refused, was completed, too.
        """
        return self._told[0]

    @property
    def why(self) -> str:
        """The reason without that word."""
        return self._told[1]

    @property
    def _told(self) -> tuple[str, str]:
        reason = self.reason or ""
        word, colon, rest = reason.partition(": ")
        if colon and self.state in ("completed", word):
            return word, rest
        return self.state, reason


@dataclass(frozen=True)
class StepRow:
    """One timed step of a run; `seconds` is wall time."""

    name: str
    started_at: datetime
    seconds: float
    facts: dict[str, Any]


def begin(session: Session, purpose: str, plan: dict[str, Any], flow_run_id: str | None) -> int:
    """Open a run and answer its id. Call it only while holding the run lock.

    Whoever holds the lock knows that no other run is alive, so rows still `running` belong to
    processes that died: they are closed as crashed, which also fences them should they wake up.
    """
    close_the_dead(session)
    statement = insert(Run).values(
        purpose=purpose,
        plan=plan,
        flow_run_id=flow_run_id,
        host=socket.gethostname(),
        pid=os.getpid(),
    )
    return session.execute(statement.returning(Run.id)).scalar_one()


def close_the_dead(session: Session) -> list[RunRow]:
    """Mark every run that still says `running` as crashed; call it only under the run lock."""
    dead = update(Run).where(Run.state == "running")
    closed = session.scalars(
        dead.values(
            state="crashed",
            ended_at=func.now(),
            reason="its process died; the next run goes on from what it had stored",
        ).returning(Run.id)
    ).all()
    return [row for row in listed(session, most=len(closed) + 20) if row.id in closed]


def fence(session: Session, run_id: int) -> None:
    """Raise `Fenced` unless the run is still the current one; the row stays locked until commit.

    Every transaction that publishes calls this first, so a run that was paused while another
    took over can finish nothing.
    """
    state = session.scalar(select(Run.state).where(Run.id == run_id).with_for_update(read=True))
    if state != "running":
        raise Fenced(f"run {run_id} is {state or 'unknown'}: it may not publish; start a new run")


def note(session: Session, run_id: int, **facts: object) -> None:
    """Write what the run has come to know (batch_id, snapshot_digest, version_id, verdict_id)."""
    session.execute(update(Run).where(Run.id == run_id).values(**facts))


def close(session: Session, run_id: int, state: str, reason: str | None) -> None:
    """Close a run as completed, skipped, failed or crashed; a closed run stays as it is."""
    session.execute(
        update(Run)
        .where(Run.id == run_id, Run.state == "running")
        .values(state=state, reason=reason, ended_at=func.now())
    )


def add_step(
    session: Session,
    run_id: int,
    name: str,
    started_at: datetime,
    seconds: float,
    facts: dict[str, Any],
) -> None:
    """Keep how long a step took and the counts it saw."""
    session.execute(
        insert(RunStep).values(
            run_id=run_id, name=name, started_at=started_at, seconds=seconds, facts=facts
        )
    )


def steps(session: Session, run_id: int) -> list[StepRow]:
    """The steps of a run in the order in which they began."""
    query = select(RunStep.name, RunStep.started_at, RunStep.seconds, RunStep.facts)
    query = query.where(RunStep.run_id == run_id).order_by(RunStep.started_at, RunStep.id)
    return [StepRow(*row) for row in session.execute(query)]


def listed(session: Session, most: int = 20) -> list[RunRow]:
    """The newest runs first."""
    columns = [getattr(Run, name) for name in RunRow.__dataclass_fields__]
    query = select(*columns).order_by(Run.id.desc()).limit(most)
    return [RunRow(*row) for row in session.execute(query)]


def get(session: Session, run_id: int) -> RunRow:
    """One run; raises `UnknownRun`."""
    columns = [getattr(Run, name) for name in RunRow.__dataclass_fields__]
    row = session.execute(select(*columns).where(Run.id == run_id)).first()
    if row is None:
        raise UnknownRun(f"there is no run {run_id}: `regraft status` lists the last ones")
    return RunRow(*row)


def of_version(session: Session, version_id: int) -> list[RunRow]:
    """The runs that worked on a version, the newest first: a killed one leaves it to the next."""
    columns = [getattr(Run, name) for name in RunRow.__dataclass_fields__]
    began = select(Version.run_id).where(Version.id == version_id).scalar_subquery()
    query = select(*columns).where(or_(Run.version_id == version_id, Run.id == began))
    return [RunRow(*row) for row in session.execute(query.order_by(Run.id.desc()))]


def newest_plan(session: Session, purpose: str) -> dict[str, Any] | None:
    """The plan that the newest run of a purpose was asked for."""
    query = select(Run.plan).where(Run.purpose == purpose)
    return session.scalar(query.order_by(Run.id.desc()).limit(1))


def by_flow_run(session: Session, flow_run_id: str) -> RunRow | None:
    """The run that belongs to a Prefect flow run."""
    columns = [getattr(Run, name) for name in RunRow.__dataclass_fields__]
    row = session.execute(select(*columns).where(Run.flow_run_id == flow_run_id)).first()
    return RunRow(*row) if row else None


@dataclass(frozen=True)
class Process:
    """Where a run was or is carried out."""

    purpose: str
    state: str
    host: str
    pid: int
    ended_at: datetime | None


def process_of(session: Session, flow_run_id: str) -> Process | None:
    """The process behind a Prefect flow run; None when that began no run of ours."""
    query = select(Run.purpose, Run.state, Run.host, Run.pid, Run.ended_at)
    query = query.where(Run.flow_run_id == flow_run_id).order_by(Run.id.desc())
    row = session.execute(query).first()
    return Process(*row) if row else None


@dataclass(frozen=True)
class Judged:
    """The nightly candidate that was judged last, and what it was judged on.

    asked: the plan that its night was given, before anything was widened for its parent.
    """

    version_id: int
    snapshot_digest: str
    asked: dict[str, Any]
    parent_id: int | None
    benchmark_digest: str
    limits: dict[str, Any]
    passed: bool
    deployed: bool


def last_judged(session: Session) -> Judged | None:
    """The newest verdict on a nightly version, with whether that version was ever deployed."""
    row = session.execute(
        text(
            """
            SELECT v.id, v.snapshot_digest, r.plan, v.parent_id, d.benchmark_digest,
                   d.limits, d.passed,
                   EXISTS (SELECT 1 FROM deployments p WHERE p.version_id = v.id)
            FROM verdicts d JOIN versions v ON v.id = d.version_id JOIN runs r ON r.id = v.run_id
            WHERE v.purpose = 'nightly' ORDER BY d.id DESC LIMIT 1
            """
        )
    ).first()
    return Judged(*row) if row else None


def facts_of_step(session: Session, name: str, most: int) -> list[dict[str, Any]]:
    """What the newest steps of this name saw, the newest first."""
    query = select(RunStep.facts).where(RunStep.name == name)
    return list(session.scalars(query.order_by(RunStep.id.desc()).limit(most)))
