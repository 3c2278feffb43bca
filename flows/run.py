"""What all flows that train share: one at a time, and a row that says how each run ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from flows import report
from infra import database
from infra.database import run_lock
from records import benchmark, runs, versions
from vision.plan import BadPlan, Plan

# A plan that somebody asks for, as a parameter of a flow.
Asked = Annotated[Plan, AfterValidator(Plan.heeded)]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: a word, the sentence that says why, and the version it was about."""

    run_id: int
    state: str
    reason: str
    version_id: int | None = None


@dataclass
class Running:
    """The row of a run that is open."""

    run_id: int
    outcome: Outcome | None = None

    def end(self, state: str, reason: str, version_id: int | None = None) -> Outcome:
        """Say how the run ended; the row is closed when the block is left."""
        self.outcome = Outcome(self.run_id, state, reason, version_id)
        return self.outcome


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock that at most one run in the world holds; raises `Busy`, naming the holder."""
    with run_lock(database.connect()):
        yield


@contextmanager
def one_run(purpose: str, plan: Plan, judged: bool = False) -> Iterator[Running]:
    """Have a run's row for the block and close it however the block ends; ask for `alone` before.

    The row closes as failed with the error's own line when the block raises. Killed, it stays
    `running` until the next run, holding the freed lock, closes it as crashed. judged: whether it
    needs a benchmark; raises `NoBenchmark` before it begins.
    """
    store = database.connect()
    with store.transaction() as session:
        if judged:
            benchmark.current(session)  # without one nothing could be judged: say so at once
        run_id = runs.begin(session, purpose, plan.to_dict(), report.flow_run_id())
    running = Running(run_id)
    try:
        yield running
    except BaseException as error:
        with store.transaction() as session:
            # One line, whatever a driver says: it stands in lists and in the log.
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            runs.close(session, run_id, "failed", reason)
        raise
    finished = running.outcome or running.end("skipped", "the run ended without an outcome")
    with store.transaction() as session:
        state = "skipped" if finished.state == "skipped" else "completed"
        runs.close(session, run_id, state, f"{finished.state}: {finished.reason}")
    report.publish(purpose, run_id, finished.state, finished.reason, finished.version_id)


def pretrained(root: int | None, plan: Plan) -> int | None:
    """The root, if it is one; raises `NoRoot`, and `BadPlan` for a plan that would ignore it."""
    if root is None:
        return None
    if plan.recipe == "scratch":
        raise BadPlan(
            f"recipe='scratch': it starts at random and not from version {root}; use 'all' or "
            "'two-phase'"
        )
    with database.connect().transaction() as session:
        return versions.root(session, root).id


def refuse_targeted(plan: Plan) -> None:
    """For flows whose versions have no analysed parent; raises `BadPlan`."""
    if plan.targeted:
        raise BadPlan(
            "targeted=True: only a night's pictures are bent by what its parent fails at; leave it "
            "out"
        )


def settled(plan: Plan, parent: int | None) -> Plan:
    """The plan with its network named, the parent's where it is open; raises `UnknownVersion`."""
    with database.connect().transaction() as session:
        return versions.settled(session, plan, parent)


def start_of(plan: Plan) -> str:
    """What a network without a parent starts from, in words."""
    if plan.weights is None or plan.recipe == "scratch":
        return "from a random start"
    return f"from weights {plan.weights}"
