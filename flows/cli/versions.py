"""`regraft versions`, `show`, `failures`, `evaluate`: what was trained and what it is worth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.options import By, Json, Precision, folder_option
from flows.cli.printing import percent, print_json, print_table, say, say_as_it_goes, write_picture

verbs = typer.Typer()


@verbs.command()
def versions(most: Annotated[int, typer.Option(help="How many, the newest first.")] = 20,
             as_json: Json = False) -> None:  # fmt: skip
    """List versions: how they did, and what became of them.

    Example: regraft versions
    """
    from records import summaries

    rows = summaries.of_versions(most)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        say("there are no versions yet: `regraft load FOLDER`, then `regraft nightly`")
        return
    print_table(
        ["version", "purpose", "from", "classes", "images", "test", "benchmark", "became"],
        (
            (
                f"[bold]{row.id}[/bold]" if row.serves else str(row.id),
                row.purpose,
                str(row.parent_id or "scratch"),
                str(row.classes),
                str(row.images),
                percent(row.test_accuracy),
                percent(row.benchmark_accuracy),
                _became(row),
            )
            for row in rows
        ),
    )


def _became(row: Any) -> str:
    if row.serves:
        return "[green]serves[/green]"
    if row.deployed_at:
        return f"served from {row.deployed_at:%Y-%m-%d %H:%M}"
    if row.verdict == "refused":
        return f"[red]refused[/red]: {row.reason}"
    return str(row.reason or row.state)


@verbs.command()
def show(version: Annotated[int, typer.Argument(help="The version's number.")],
         pictures: Annotated[Path | None, folder_option(
             "Write Grad-CAM overlays, reliability, confusions and its night into this folder."
         )] = None,
         as_json: Json = False) -> None:  # fmt: skip
    """Show one version: plan, figures, the gate's checks, weakest classes, time of each step.

    Example: regraft show 3 --pictures ./version-3
    """
    from flows.cli import screens

    if as_json:
        print_json(screens.version_facts(version))
    else:
        screens.show_version(version)
    if pictures is not None:
        say(f"wrote {screens.write_pictures(version, pictures)} pictures into {pictures}")


@verbs.command()
def failures(version: Annotated[int, typer.Argument(help="The version's number.")],
             analyse: Annotated[bool, typer.Option(
                 help="Analyse it now, on up to 1,000 validation images.")] = False,
             pictures: Annotated[Path | None, folder_option(
                 "Write accuracy over the strength of each transformation into this folder."
             )] = None,
             next_plan: Annotated[Path | None, typer.Option(
                 help="Write the version's plan, aimed at what it fails at, here as JSON.")] = None,
             as_json: Json = False) -> None:  # fmt: skip
    """Show what a version fails at: bent pictures, confusions, doubtful labels, the next plan.

    Example: regraft failures 3 --pictures ./version-3 --next-plan plan.json
    """
    from flows import failures as found

    if analyse:
        from tasks.failures import analyse as analyse_now

        say_as_it_goes(not as_json)
        analyse_now(version)
        found.keep(version)
    if as_json:
        print_json(found.facts(version))
    else:
        found.show(version)
    if pictures is not None:
        write_picture(pictures / "failures.png", found.drawn(version))
    if next_plan is not None:
        next_plan.write_text(json.dumps(found.next_plan(version).to_dict(), indent=2) + "\n")
        say(f"wrote {next_plan}: `regraft nightly --plan {next_plan}`")


@verbs.command()
def evaluate(version: Annotated[int, typer.Argument(help="The version's number.")], by: By,
             library: Annotated[bool, typer.Option(
                 help="Score every usable image of the library instead; training images are "
                      "in-sample.")] = False,
             precision: Precision = 0.95, as_json: Json = False) -> None:  # fmt: skip
    """Score a version now: validation, test and newest benchmark, with its threshold fitted anew.

    Example: regraft evaluate 7 --precision 0.98
    """
    say_as_it_goes(not as_json)
    from flows import diagrams, figures
    from tasks import evaluation

    if library:
        evaluation.evaluate_whole_library(version)
    else:
        evaluation.evaluate_again(version, precision, by)
        diagrams.keep(version)
    known = figures.facts(version)
    if as_json:
        print_json(known)
    else:
        figures.show(known)
