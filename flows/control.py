"""The control run: the champion's images learned afresh, to tell what its lineage is worth."""

from dataclasses import dataclass
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext

from flows import report
from flows.grid import Grid
from flows.nightly import serving
from flows.run import alone, one_run, pretrained, refuse_targeted, start_of
from flows.timeline import lasting
from infra import database
from records import benchmark
from tasks.evaluation import evaluate, is_scored_on_benchmark
from tasks.lineage import Beginning, Worth, beginning, between, compare, earlier, points
from tasks.progress import courtesy
from tasks.training import train_version, write_candidate
from vision.comparison import Difference
from vision.plan import Plan


@dataclass(frozen=True)
class Compared:
    """How a control run ended: compared, or skipped when there was nothing (new) to compare."""

    state: str
    reason: str
    run_id: int | None = None
    version_id: int | None = None
    worth: Worth | None = None


@flow(name="control", flow_run_name=report.run_name, retries=0, result_serializer="json")
def control(changes: dict[str, Any] | None = None, root: int | None = None) -> Compared:
    """Train a version on the champion's snapshot as its lineage began, and compare the two.

    It starts where the lineage did: from its pretrained root, from the weights that its first plan
    names, or at random. changes: fields of that plan to set otherwise; root: another pretrained
    version to start from. The version is answered and kept like a night's and never deployed by
    this flow. Raises what stopped it.
    """
    with alone():
        champion = serving()
        if champion is None:
            return Compared("skipped", "nothing serves yet, so no lineage can be compared")
        begun = beginning(champion)
        plan, parent = afresh(begun, changes or {}, root)
        if begun.depth == 0 and plan.to_dict() == begun.first.plan and parent == begun.root:
            return Compared("skipped", f"version {champion} was itself trained afresh and by this "
                            "plan: its lineage has no warm start yet")  # fmt: skip
        return _compared(begun, plan, parent)


def afresh(
    begun: Beginning, changes: dict[str, Any], root: int | None
) -> tuple[Plan, int | None]:
    """The plan of the lineage's first version, changed, and the pretrained parent to start from.

    From scratch there is no parent, whatever the lineage began with. Raises `BadPlan`, `NoRoot`.
    """
    bent = {"augmentation": begun.first.plan["augmentation"] | changes.get("augmentation", {})}
    plan = Plan.from_dict(begun.first.plan | changes | bent).heeded(asked=changes)
    if "targeted" in changes:
        refuse_targeted(plan)
    if root is None and plan.recipe == "scratch":
        return plan, None
    return plan, pretrained(root or begun.root, plan)


def _compared(begun: Beginning, plan: Plan, parent: int | None) -> Compared:
    champion = begun.champion_id
    with one_run("control", plan, judged=True) as run:
        version = write_candidate(run.run_id, "control", begun.snapshot_digest, plan, parent)
        report.name_run(version)
        known = is_scored_on_benchmark(version) and is_scored_on_benchmark(champion)
        if not known:
            train_version(run.run_id, version)
            evaluate(run.run_id, version, champion)
        start = f"from version {parent}" if parent else start_of(plan)
        with database.connect().transaction() as session:
            benchmark.look(session, version, "control", f"run {run.run_id}")
        worth = compare(run.run_id, version, champion, start)
        if known:
            ended = run.end("skipped", f"nothing new: {worth.sentence}", version)
        else:
            ended = run.end("compared", worth.sentence, version)
    _publish(worth)
    return Compared(ended.state, ended.reason, run.run_id, version, worth)


def _publish(worth: Worth) -> None:
    if FlowRunContext.get() is None:
        return
    with courtesy("publish what the lineage is worth"):
        create_markdown_artifact(
            markdown(worth), key="lineage-worth",
            description=f"Champion {worth.champion_id} beside control {worth.control_id}",
        )  # fmt: skip


def markdown(worth: Worth) -> str:
    """The comparison for Prefect's page, with those before it."""
    lines = [f"# {worth.sentence[0].upper()}{worth.sentence[1:]}", ""]
    for columns, rows in (figures(worth), efforts(worth), history()):
        lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    if worth.other_plan:
        lines += [f"Their plans differ in {told_plans(worth)}.", ""]
    return "\n".join(lines)


def figures(worth: Worth) -> Grid:
    """Accuracy of both, and their difference with its interval."""
    columns = ["on", "images", "champion", "control", "lineage is worth", "95% interval"]
    rows = [("benchmark", worth.benchmark), ("test", worth.test)]
    return columns, [[name, *_told(on)] for name, on in rows]


def _told(on: Difference | None) -> list[str]:
    if on is None:
        return ["0", "", "", "no answers in common", ""]
    return [
        str(on.images),
        f"{on.first_correct / on.images:.1%}",
        f"{on.second_correct / on.images:.1%}",
        points(on.difference),
        between(on),
    ]


def efforts(worth: Worth) -> Grid:
    """What the training of each took."""
    return ["training of", "epochs", "time"], [
        [f"champion {worth.champion_id}, warm start number {worth.depth}",
         str(worth.champion_epochs), lasting(worth.champion_seconds)],
        ["its whole lineage", str(worth.lineage_epochs), lasting(worth.lineage_seconds)],
        [f"control {worth.control_id}, {worth.start}", str(worth.control_epochs),
         lasting(worth.control_seconds)],
    ]  # fmt: skip


def history() -> Grid:
    """What every comparison so far said, the newest first: whether the worth of warmth shrinks."""
    rows = []
    for one in earlier():
        on = one["benchmark"]
        told = (
            ["no answers in common", ""]
            if on is None
            else [points(on["difference"]), between(Difference(**on))]
        )
        rows.append([str(one["champion_id"]), str(one["control_id"]), str(one["depth"]), *told])
    return ["champion", "control", "warm starts", "lineage is worth", "95% interval"], rows


def told_plans(worth: Worth) -> str:
    """The fields in which the plans differ, the champion's value first."""
    return ", ".join(f"{name} ({a} and {b})" for name, (a, b) in worth.other_plan.items())
