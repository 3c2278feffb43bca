"""Pretraining: one network through sets of other classes, each stage from the one before."""

from prefect import flow

from flows import report
from flows.run import (
    Asked,
    Outcome,
    alone,
    one_run,
    pretrained,
    refuse_targeted,
    settled,
    start_of,
)
from tasks.evaluation import evaluate_held_out, is_scored
from tasks.sets import checked, freeze_set
from tasks.training import train_version, write_candidate
from vision.plan import BadPlan, Plan


@flow(name="pretrain", flow_run_name=report.run_name, retries=0, result_serializer="json")
def pretrain(sets: list[str], plan: Asked = Plan(), root: int | None = None) -> list[Outcome]:  # noqa: B008  (frozen, and shown as defaults in Prefect)
    """Train a network on each set in turn; every stage is a version of its own.

    sets: prefixes in our bucket that hold class folders. The first stage starts from `root`, a
    pretrained version, else from the plan's weights, else at random; each other one from the stage
    before, with a fresh head. The last can be the root of nights and never serves. What was killed
    goes on where it was, and a stage that is trained already is not trained again. Raises what
    stopped it, `BadSet` and `BadPlan` before anything is trained.
    """
    prefixes = [checked(prefix) for prefix in sets]
    if not prefixes:
        raise BadPlan("sets=[]: name at least one set")
    refuse_targeted(plan)
    if len(prefixes) > 1 and plan.recipe == "scratch":
        raise BadPlan(
            "recipe='scratch': it starts at random, so no stage would go on from the one before; "
            "use 'all', which starts the first stage at random, too"
        )
    with alone():
        parent = pretrained(root, plan)
        outcomes = []
        for prefix in prefixes:
            outcomes.append(_stage(prefix, plan, parent))
            parent = outcomes[-1].version_id
    return outcomes


def _stage(prefix: str, asked: Plan, parent: int | None) -> Outcome:
    plan = settled(asked, parent)
    with one_run("pretrain", plan) as run:
        snapshot = freeze_set(run.run_id, prefix, plan)
        version = write_candidate(run.run_id, "pretrain", snapshot, plan, parent)
        report.name_run(version)
        came = f"from version {parent}" if parent else start_of(plan)
        if is_scored(version):
            reason = f"version {version} knows s3://{prefix} already, {came}"
            return run.end("skipped", reason, version)
        train_version(run.run_id, version)
        evaluate_held_out(run.run_id, version)
        return run.end("trained", f"version {version} has learned s3://{prefix}, {came}", version)
