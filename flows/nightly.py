"""The night: take in, validate, freeze, train, score, judge, explain, analyse, deploy."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows import report
from infra import database
from infra.database import run_lock
from records import benchmark, deployments, runs
from tasks.evaluation import evaluate
from tasks.expectations import Rules
from tasks.explanation import explain
from tasks.failures import aim, analyse_failures
from tasks.intake import take_in_new_images
from tasks.promotion import deploy, judge
from tasks.snapshot import freeze_snapshot
from tasks.training import train_version, write_candidate
from tasks.validation import check_batch, settle_gone
from vision.gate import Limits
from vision.plan import Plan
from vision.scores import PRECISION

# refused before a night begins, and not when its candidate is trained
Wished = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True)
class Outcome:
    """How a night ended.

    state: deployed | refused (by the gate) | stopped (the batch was refused) | skipped.
    """

    run_id: int
    state: str
    reason: str
    version_id: int | None = None


@dataclass
class Night:
    """The run row of this night, while it holds the lock."""

    run_id: int
    outcome: Outcome | None = None

    def end(self, state: str, reason: str, version_id: int | None = None) -> Outcome:
        """Say how the night ended; the row is closed when the block is left."""
        self.outcome = Outcome(self.run_id, state, reason, version_id)
        return self.outcome


# A failed run's error is stored whatever is asked; as JSON it cannot run code when it is read.
@flow(name="nightly", flow_run_name=report.run_name, retries=0, result_serializer="json")
def nightly(
    plan: Plan = Plan(),  # noqa: B008  (frozen, and shown as defaults in Prefect)
    rules: Rules = Rules(),  # noqa: B008
    limits: Limits = Limits(),  # noqa: B008
    precision: Wished = PRECISION,
) -> Outcome:
    """Take in what is new, train a candidate from the champion, deploy it if the gate says so.

    precision: what the answers at or above the candidate's threshold shall reach. A night that
    fails anywhere changes nothing that serves. Raises what stopped it.
    """
    with one_night("nightly", plan) as night:
        run_id = night.run_id
        intake = take_in_new_images(run_id, plan, limits.retired_classes)
        if intake.batch_id is not None:
            checked = check_batch(run_id, intake.batch_id, rules)
            if checked.refused:
                return night.end("stopped", checked.refused)
        settle_gone(run_id)
        snapshot = freeze_snapshot(run_id, plan)
        champion, reason = nothing_new(snapshot, plan, limits)
        if reason:
            return night.end("skipped", reason)
        aimed = aim(run_id, snapshot, plan, champion)
        candidate = write_candidate(run_id, "nightly", snapshot, aimed, champion)
        report.name_run(candidate)
        train_version(run_id, candidate)
        evaluate(run_id, candidate, champion, precision)
        passed = judge(run_id, candidate, limits)
        explain(run_id, candidate, champion)
        analyse_failures(run_id, candidate)
        if passed:  # the last act, so that a night which fails anywhere has changed nothing
            deploy(run_id, candidate, "nightly", "passed the gate")
        return night.end(*report.verdict(candidate), version_id=candidate)


@contextmanager
def one_night(purpose: str, plan: Plan) -> Iterator[Night]:
    """Hold the run lock and the run's row for the block; close the row however it ends.

    The row closes as failed with the error's own line when the block raises. Killed, it stays
    `running` until the next run, holding the freed lock, closes it as crashed.
    """
    store = database.connect()
    with run_lock(store):
        with store.transaction() as session:
            benchmark.current(session)  # without one nothing could be judged: say so at once
            run_id = runs.begin(session, purpose, plan.to_dict(), report.flow_run_id())
        night = Night(run_id)
        try:
            yield night
        except BaseException as error:
            with store.transaction() as session:
                # One line, whatever a driver says: it stands in lists and in the log.
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                runs.close(session, run_id, "failed", reason)
            raise
        finished = night.outcome or night.end("skipped", "the run ended without an outcome")
        with store.transaction() as session:
            state = "skipped" if finished.state == "skipped" else "completed"
            runs.close(session, run_id, state, f"{finished.state}: {finished.reason}")
        report.publish(run_id, finished.state, finished.reason, finished.version_id)


def nothing_new(snapshot: str, plan: Plan, limits: Limits) -> tuple[int | None, str | None]:
    """The champion's version, and why training again would only repeat the last judgement."""
    with database.connect().transaction() as session:
        champion = deployments.champion(session)
        frozen = benchmark.current(session)
        last = runs.last_judged(session)
    champion_id = champion.version_id if champion else None
    # What was asked for, not what was made of it: a plan aimed at its parent differs each night.
    if last is None or (last.snapshot_digest, Plan.from_dict(last.asked)) != (snapshot, plan):
        return champion_id, None
    if champion_id == last.version_id:
        return champion_id, (
            f"nothing new: version {last.version_id}, trained by this plan on this very snapshot, "
            "serves already"
        )
    same_judgement = (
        last.parent_id == champion_id
        and last.benchmark_digest == frozen.digest
        and last.limits == json.loads(json.dumps(asdict(limits)))
    )
    if same_judgement and not (last.passed and not last.deployed):
        return champion_id, (
            f"nothing new: snapshot, plan, parent and benchmark are those of version "
            f"{last.version_id}, which was judged already"
        )
    return champion_id, None

