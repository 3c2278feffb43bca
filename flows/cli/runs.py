"""`regraft nightly`, `serve`, `plan`, `pretrain`, `control`, `bakeoff`, `demo`: what trains."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.environment import start_prefect
from flows.cli.options import (
    From,
    Json,
    Limit,
    PlanFile,
    Pools,
    Precision,
    Retire,
    Set,
    Unproven,
    fields_of,
    folder_option,
    limits_of,
    plan_of,
)
from flows.cli.printing import (
    answer,
    literally,
    print_json,
    print_table,
    say,
    say_as_it_goes,
    write_picture,
)

if TYPE_CHECKING:
    from vision.plan import Plan

verbs = typer.Typer()


@verbs.command()
def nightly(plan_file: PlanFile = None, fields: Set = None, limit: Limit = None,
            unproven: Unproven = False, retire: Retire = None,
            root: From = None, precision: Precision = 0.95,
            as_json: Json = False) -> None:  # fmt: skip
    """Run one night now: intake, training, evaluation, gate, deployment.

    While nothing serves, --from VERSION says which pretrained version the first one starts from;
    afterwards it is the champion.

    Example: regraft nightly --set epochs=5 --set cutoff=20 --limit margin=0.02
    """
    from vision.gate import Limits

    plan = plan_of(plan_file, fields)
    limits = Limits().changed(limits_of(limit, unproven, retire))
    start_prefect()
    say_as_it_goes(not as_json)
    from flows.nightly import nightly as flow

    outcome = flow(plan=plan, limits=limits, precision=precision, root=root)
    answer(dataclasses.asdict(outcome), f"{outcome.state}: {outcome.reason}", as_json)
    code = {"refused": 3, "stopped": 4}.get(outcome.state, 0)
    if code:
        raise typer.Exit(code)


@verbs.command()
def serve(
    cron: Annotated[str, typer.Option(help="When the night begins.")] = "0 2 * * *",
    timezone: Annotated[str, typer.Option(help="Time zone of the schedules.")] = "UTC",
    control: Annotated[
        str, typer.Option(help="When the control run begins, as cron; `never` for none.")
    ] = "0 12 * * 0",
    throwaway: Annotated[int | None, typer.Option(
        help="Have a night that reports classes near the cutoff followed by a throw-away run from "
             "this lower cutoff on.", show_default=False)] = None,
    pool: Pools = None,
    plan_file: PlanFile = None,
    fields: Set = None,
    limit: Limit = None,
    unproven: Unproven = False,
    retire: Retire = None,
    precision: Precision = 0.95,
) -> None:  # fmt: skip
    """Run the nightly retrain and the control run on their schedules until it is stopped.

    It carries out throw-away runs, too: those called through Prefect and, with --throwaway, those
    that follow a night.

    Example: regraft serve --cron "0 2 * * *" --throwaway 35 --pool s3://pools/gate-camera
    """
    from vision.gate import Limits

    plan = plan_of(plan_file, fields)
    limits = Limits().changed(limits_of(limit, unproven, retire))
    start_prefect()
    # A night that nobody watches tells its steps on its Prefect page, and to the service's log.
    os.environ["PREFECT_LOGGING_LEVEL"] = "INFO"
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "NOTSET"
    # Prefect stores the error of a failed flow whatever the flow says; at least not as a pickle.
    os.environ.setdefault("PREFECT_RESULTS_DEFAULT_SERIALIZER", "json")
    from flows import deployments

    deployments.serve(
        plan, cron, timezone, None if control == "never" else control, limits, precision,
        throwaway, pool or (),
    )  # fmt: skip


@verbs.command("plan")
def show_plan(plan_file: PlanFile = None, fields: Set = None, as_json: Json = False) -> None:
    """Check a plan and print it: every field with its value and what it means.

    Example: regraft plan --set recipe=two-phase --set epochs=12
    """
    plan = plan_of(plan_file, fields)
    if as_json:
        print_json(plan.to_dict())
        return
    from rich.markup import escape

    print_table(["field", "value", "meaning"], (map(escape, row) for row in plan.told()))
    say(f"digest {plan.digest()}")


@verbs.command()
def pretrain(sets: Annotated[list[str], typer.Argument(
                 metavar="SET…", help="A folder of class folders, or s3://PREFIX of your bucket.")],
             plan_file: PlanFile = None, fields: Set = None, root: From = None,
             as_json: Json = False) -> None:  # fmt: skip
    """Train one network on other sets, one after the other, for nights to start from.

    Each stage is a version that never serves. Killed and run again, it goes on where it was; a
    stage that needs another plan is a call of its own with --from.

    Example: regraft pretrain ./tiny-imagenet ./cifar --set epochs=40 --set image_size=64
    """
    plan = plan_of(plan_file, fields)
    start_prefect()
    say_as_it_goes(not as_json)
    from flows.pretrain import pretrain as flow
    from tasks.sets import locate

    outcomes = flow(sets=[locate(one) for one in sets], plan=plan, root=root)
    if as_json:
        print_json([dataclasses.asdict(one) for one in outcomes])
        return
    for one in outcomes:
        typer.echo(f"{one.state}: {one.reason}")
    typer.echo(f"start from it: regraft nightly --from {outcomes[-1].version_id}")


@verbs.command()
def control(plan_file: PlanFile = None, fields: Set = None, root: From = None,
            as_json: Json = False) -> None:  # fmt: skip
    """Learn the champion's images afresh, and tell what starting from the last night is worth.

    It trains as the champion's lineage began (--plan and --set change single fields of that), and
    serves only through `regraft adopt`.

    Example: regraft control --set epochs=120
    """
    changes = fields_of(plan_file, fields)
    start_prefect()
    say_as_it_goes(not as_json)
    from flows import control as comparison

    outcome = comparison.control(changes=changes, root=root)
    answer(dataclasses.asdict(outcome), f"{outcome.state}: {outcome.reason}", as_json)
    if outcome.worth is None or as_json:
        return
    for columns, rows in (
        comparison.figures(outcome.worth),
        comparison.efforts(outcome.worth),
        comparison.history(),
    ):
        print_table(columns, literally(rows))
    if outcome.worth.other_plan:
        typer.echo(f"Their plans differ in {comparison.told_plans(outcome.worth)}.")


@verbs.command()
def bakeoff(entrants: Annotated[list[str], typer.Argument(
                metavar="ARCH[@SIZE]…",
                help="A timm architecture, or a JSON file of plan fields that are its own.")],
            plan_file: PlanFile = None, fields: Set = None,
            pictures: Annotated[Path | None, folder_option(
                "Write accuracy against training time, latency and size into this folder."
            )] = None,
            as_json: Json = False) -> None:  # fmt: skip
    """Train several architectures on one snapshot: accuracy, training time, latency, size.

    Each starts from its plan's weights or at random. One that fails does not end the others; if
    all fail the exit code is 1. Killed and run again, it goes on where it was.

    Example: regraft bakeoff resnet18@128 mobilenetv2_100@160 lite0.json --pictures ./plots
    """
    common = fields_of(plan_file, fields)
    plans = [_entrant(word, common) for word in entrants]
    start_prefect()
    say_as_it_goes(not as_json, ends=True)
    from flows import bakeoff as contest

    done = contest.bakeoff(plans=plans)
    if as_json:
        print_json(dataclasses.asdict(done))
    else:
        for columns, rows in contest.for_terminals(done):
            print_table(columns, literally(rows))
    if pictures is not None and done.picture:
        from infra import storage

        write_picture(pictures / "bakeoff.png", storage.connect().read(done.picture))
    if done.picture is None:
        raise typer.Exit(1)


def _entrant(word: str, common: dict[str, Any]) -> Plan:
    """The plan of a bake-off's entrant, by ARCH, ARCH@SIZE, or a file with fields of its own."""
    from vision.plan import BadPlan, Plan

    if word.endswith(".json"):
        if not Path(word).is_file():
            raise BadPlan(f"{word} is not a file: name an architecture or a JSON file")
        return Plan.from_dict(common | fields_of(Path(word), None)).heeded()
    architecture, sign, size = word.partition("@")
    own: dict[str, Any] = {"architecture": architecture}
    if sign:
        if not size.isdecimal():
            raise BadPlan(f"{word}: write ARCHITECTURE@SIZE, with the size in pixels")
        own["image_size"] = int(size)
    return Plan.from_dict(common | own).heeded()


@verbs.command()
def demo(images: Annotated[Path | None, typer.Option(
             help="A folder of class folders; without it, handwritten digits.")] = None,
         fresh: Annotated[bool, typer.Option(help="Begin with an empty state folder.")] = True,
         ) -> None:  # fmt: skip
    """Play three nights on real images: a first version, a new class, a batch of wrong labels.

    Example: regraft demo --images ./zoo
    """
    from flows import demo as story

    story.prepare(fresh)
    start_prefect()
    say_as_it_goes(True, ends=True)
    story.play(images)
