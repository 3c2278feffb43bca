"""The night: take in, validate, freeze, train, score, judge, explain, analyse, deploy."""

import json
import logging
from dataclasses import asdict
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows import report
from flows.run import Asked, Outcome, alone, one_run, pretrained, settled
from infra import database
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

log = logging.getLogger("regraft")


# A failed run's error is stored whatever is asked; as JSON it cannot run code when it is read.
@flow(name="nightly", flow_run_name=report.run_name, retries=0, result_serializer="json")
def nightly(
    plan: Asked = Plan(),  # noqa: B008  (frozen, and shown as defaults in Prefect)
    rules: Rules = Rules(),  # noqa: B008
    limits: Limits = Limits(),  # noqa: B008
    precision: Wished = PRECISION,
    root: int | None = None,
) -> Outcome:
    """Take in what is new, train a candidate from the champion, deploy it if the gate says so.

    The outcome's state is deployed, refused (by the gate), stopped (the batch was refused) or
    skipped. What the plan leaves open of its network is the champion's, so that nights go on from
    whatever a person adopted. precision: what the answers at or above the candidate's threshold
    shall reach. root: the pretrained version to start from while nothing serves. A night that fails
    anywhere changes nothing that serves. Raises what stopped it.
    """
    with alone(), one_run("nightly", plan, judged=True) as night:
        run_id = night.run_id
        as_now = settled(plan, serving() or root)  # a rollback meanwhile may change the parent
        intake = take_in_new_images(run_id, as_now, limits.retired_classes)
        if intake.batch_id is not None:
            checked = check_batch(run_id, intake.batch_id, rules)
            if checked.refused:
                return night.end("stopped", checked.refused)
        settle_gone(run_id)
        snapshot = freeze_snapshot(run_id, plan)
        champion = serving()
        parent = champion or pretrained(root, plan)
        if root and champion:
            log.warning("version %d serves, so the night starts from it and not from version %d",
                        champion, root)  # fmt: skip
        grafted = settled(plan, parent)
        if reason := nothing_new(snapshot, grafted, limits, champion, parent):
            return night.end("skipped", reason)
        aimed = aim(run_id, snapshot, grafted, parent)
        candidate = write_candidate(run_id, "nightly", snapshot, aimed, parent)
        report.name_run(candidate)
        train_version(run_id, candidate)
        evaluate(run_id, candidate, champion, precision)
        passed = judge(run_id, candidate, limits)
        explain(run_id, candidate, champion)
        analyse_failures(run_id, candidate)
        if passed:  # the last act, so that a night which fails anywhere has changed nothing
            deploy(run_id, candidate, "nightly", "passed the gate")
        return night.end(*report.verdict(candidate), version_id=candidate)


def serving() -> int | None:
    """The champion's version."""
    with database.connect().transaction() as session:
        champion = deployments.champion(session)
    return champion.version_id if champion else None


def nothing_new(
    snapshot: str, plan: Plan, limits: Limits, champion: int | None, parent: int | None
) -> str | None:
    """Why training again would only repeat the last judgement, if it would."""
    with database.connect().transaction() as session:
        frozen = benchmark.current(session)
        last = runs.last_judged(session)
    if last is None or last.snapshot_digest != snapshot:
        return None
    # What was asked for, not what was made of it: a plan aimed at its parent differs each night.
    if settled(Plan.from_dict(last.asked), parent) != plan:
        return None
    if champion == last.version_id:
        return (
            f"nothing new: version {last.version_id}, trained by this plan on this very snapshot, "
            "serves already"
        )
    same_judgement = (
        last.parent_id == parent
        and last.benchmark_digest == frozen.digest
        and last.limits == json.loads(json.dumps(asdict(limits)))
    )
    if same_judgement and not (last.passed and not last.deployed):
        return (
            f"nothing new: snapshot, plan, parent and benchmark are those of version "
            f"{last.version_id}, which was judged already"
        )
    return None
