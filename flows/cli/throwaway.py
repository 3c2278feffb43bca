"""`regraft throwaway`, the `shortlist` it leaves, and `sweep`, which clears it away."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from flows.cli.environment import start_prefect
from flows.cli.options import From, Json, PlanFile, Pools, Precision, Set, plan_of
from flows.cli.printing import answer, literally, print_json, print_table, say, say_as_it_goes

verbs = typer.Typer()


@verbs.command()
def throwaway(cutoff: Annotated[int, typer.Option(
                  help="Fewest usable images of a class, below the plan's cutoff.")],
              pool: Pools = None, plan_file: PlanFile = None, fields: Set = None, root: From = None,
              precision: Precision = 0.95, as_json: Json = False) -> None:  # fmt: skip
    """Train a version from a lower cutoff on, and look in pools for what classes near it lack.

    The version never serves. The plan is that of the nights: its cutoff is what classes are to
    reach. Killed and run again, it goes on where it was.

    Example: regraft throwaway --cutoff 35 --pool s3://pools/gate-camera --plan plan.json
    """
    plan = plan_of(plan_file, fields)
    start_prefect()
    say_as_it_goes(not as_json)
    from flows.throwaway import throwaway as flow

    outcome = flow(cutoff=cutoff, pools=pool, plan=plan, precision=precision, root=root)
    answer(dataclasses.asdict(outcome), f"{outcome.state}: {outcome.reason}", as_json)
    if outcome.state == "shortlisted" and not as_json:
        from flows import shortlist

        shortlist.show(shortlist.of_run(outcome.run_id))


@verbs.command()
def shortlist(run: Annotated[int | None, typer.Argument(
                  help="A throw-away run; by default the newest.", show_default=False)] = None,
              class_name: Annotated[str | None, typer.Option(
                  "--class", help="List the candidates of this class, the surest first.")] = None,
              as_csv: Annotated[bool, typer.Option(
                  "--csv", help="Print CSV: a row for each class, or with --class one for each "
                                "candidate that waits.")] = False,
              as_json: Json = False) -> None:  # fmt: skip
    """Show what a throw-away run found for classes near the cutoff, and what people confirmed.

    Of a class's CSV give the right rows to `label --from` and the wrong ones to `dismiss --from`:
    both tell what to expect of the rest.

    Example: regraft shortlist 12 --class okapi --csv > okapi.csv
    """
    from flows import shortlist as shortlists
    from vision.outlook import BANDS

    if class_name is not None:
        rows = shortlists.candidates(class_name, run)
        if as_json:
            print_json([dataclasses.asdict(one) for one in rows])
        elif as_csv:
            shortlists.write_candidates(rows)
        elif not rows:
            say(f"no picture has a score of {BANDS[0]} or more for {class_name!r}")
        else:
            print_table(
                ["score", "state", "key"],
                literally((f"{one.score:.3f}", one.state, one.key) for one in rows),
            )
    elif as_json:
        print_json(dataclasses.asdict(shortlists.of_run(run)))
    elif as_csv:
        shortlists.write_classes(shortlists.of_run(run))
    else:
        shortlists.show(shortlists.of_run(run))


@verbs.command()
def sweep(older_than: Annotated[str, typer.Option(
              help="How long nobody has used them: 12h, 30d, 2w.")] = "30d",
          dry_run: Annotated[bool, typer.Option(help="Only say what would go.")] = False,
          as_json: Json = False) -> None:  # fmt: skip
    """Remove checkpoints and embeddings of old throw-away versions; their figures stay.

    Nothing that serves or has descendants is ever swept.

    Example: regraft sweep --older-than 30d --dry-run
    """
    from tasks import sweeping

    done = sweeping.sweep(sweeping.age(older_than), dry_run)
    answer(dataclasses.asdict(done), done.sentence, as_json)
