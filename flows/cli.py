"""The command line. Each verb prints for people, or with --json for scripts.

Exit codes: 0 done, 1 an error (one line on standard error), 2 wrong usage, 3 the gate refused
the candidate, 4 a batch was refused as a whole, 5 another night is running.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import cli_history, cli_reviews, cli_transactions, cli_web

# Everything else is imported by the verb that needs it: `regraft versions` must not wait for
# torch, Prefect or Great Expectations.
if TYPE_CHECKING:
    from records.classes import NameRow
    from records.labels import Done, Wish
    from tasks.benchmark import Frozenness
    from tasks.labelling import Advance, Followed
    from tasks.promotion import Decision
    from vision.plan import Plan

OURS = ("flows.", "tasks.", "records.", "vision.", "web.", "infra.")

app = typer.Typer(
    name="regraft",
    help="Keep an image classifier growing: take in, graft, train, and let the benchmark decide.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes as long to load as all the rest
    context_settings={"help_option_names": ["-h", "--help"]},
)
benchmark_app = typer.Typer(help="Freeze, grow and look at the benchmark.", no_args_is_help=True)
intake_app = typer.Typer(help="Decide about batches of new images.", no_args_is_help=True)
app.add_typer(benchmark_app, name="benchmark")
app.add_typer(intake_app, name="intake")
find_app = typer.Typer(invoke_without_command=True)
app.add_typer(find_app, name="find")
class_app = typer.Typer(help="Look at classes; rename, merge and split them.",
                        no_args_is_help=True)  # fmt: skip
app.add_typer(cli_transactions.verbs, name="transactions")
app.add_typer(class_app, name="class")
app.add_typer(cli_history.verbs)
app.add_typer(cli_reviews.verbs)

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON for scripts.")]
By = Annotated[
    str,
    typer.Option(help="Who does this; it is kept.", default_factory=getpass.getuser,
                 show_default="your user name"),
]  # fmt: skip
Why = Annotated[str, typer.Option(help="Why; it is kept.")]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="A JSON file with fields of the plan.", exists=True)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="One field of the plan, as FIELD=VALUE (VALUE is JSON or text)."),
]
Precision = Annotated[
    float, typer.Option(help="What its threshold shall reach: a share of answers that are right.",
                        min=0.001, max=1)
]  # fmt: skip
OfVersion = Annotated[
    int | None,
    typer.Option(
        "--version", help="Whose answers; by default the newest's that is not throw-away."
    ),
]
OfPool = Annotated[str | None, typer.Option("--pool", help="This pool alone, as s3://PREFIX.")]
Most = Annotated[int, typer.Option("--limit", help="How many pictures, at most.", min=1)]
Csv = Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")]
Sheet = Annotated[
    Path | None,
    typer.Option("--sheet", help="Write a contact sheet of thumbnails here: .html or .png."),
]

Pools = Annotated[
    list[str] | None,
    typer.Option("--pool", help="s3://PREFIX or a folder of images; may be repeated. Without it, "
                                "all that were identified before."),
]  # fmt: skip
Limit = Annotated[
    list[str] | None,
    typer.Option("--limit", help="One limit of the gate, as NAME=VALUE; may be repeated."),
]
Unproven = Annotated[
    bool, typer.Option(help="Let new classes serve that the benchmark does not hold yet.")
]
Retire = Annotated[
    list[str] | None, typer.Option(help="A class that may vanish and be lost; may be repeated.")
]
From = Annotated[
    int | None, typer.Option("--from", help="A pretrained version to start from.")
]


def _folder(written: str) -> Any:
    """The option for a folder that a verb writes pictures or pages into; made when it is not."""
    return typer.Option(help=written, metavar="FOLDER", file_okay=False)


def main() -> None:
    """Run the command line; an error of ours is one line, any other keeps its traceback."""
    _quiet_libraries()
    try:
        app()
    except Exception as error:
        if not _is_ours(error):
            raise
        print(f"regraft: {error}", file=sys.stderr)  # noqa: T201  (the one place that prints errors)
        sys.exit(5 if type(error).__name__ == "Busy" else 1)


def _is_ours(error: BaseException) -> bool:
    return f"{type(error).__module__}.".startswith(OURS)


def _quiet_libraries() -> None:
    """Keep libraries from calling home, from talking over our lines and from spinning."""
    # Read when torch is loaded. OpenMP's threads wait by spinning, by default so long that two
    # processes on one machine train at a quarter of their speed (docs/log.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    # The page of a run has the whole traceback; here an error is one line.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # What the steps tell stands on the Prefect page of the run, too.
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "regraft,vision")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")


# --- services -------------------------------------------------------------------------------


@app.command()
def up(as_json: Json = False) -> None:
    """Start what is not configured (Postgres, S3, Prefect) and bring the tables up to date.

    Example: regraft up
    """
    from infra import embedded, settings

    found = embedded.up(settings.load(), say=None if as_json else _say)
    facts = {
        "postgres": found.database_url.rpartition("@")[2],
        "s3": f"{found.s3_endpoint}/{found.s3_bucket}",
        "prefect": found.prefect_api_url,
    }
    if as_json:
        _print_json(facts)
    else:
        _table(["service", "where"], facts.items())


@app.command()
def down() -> None:
    """Stop the services that regraft started; their data stays.

    Example: regraft down
    """
    from infra import embedded, settings

    embedded.down(settings.load(), say=_say)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show on one screen what is configured, what can be reached, and what is wrong.

    Example: regraft doctor
    """
    from flows import diagnosis

    findings = diagnosis.examine()
    if as_json:
        _print_json([dataclasses.asdict(one) for one in findings])
    else:
        marks = {"right": "[green]✓[/green]", "wrong": "[red]✗[/red]", "note": "[yellow]·[/yellow]"}
        _table(["", "what", "found"], ((marks[one.state], one.what, one.found) for one in findings))
    if any(one.state == "wrong" for one in findings):
        raise typer.Exit(1)


@app.command()
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
) -> None:
    """Run the nightly retrain and the control run on their schedules until it is stopped.

    It carries out throw-away runs, too: those called through Prefect and, with --throwaway, those
    that follow a night.

    Example: regraft serve --cron "0 2 * * *" --throwaway 35 --pool s3://pools/gate-camera
    """
    from vision.gate import Limits

    plan = _plan(plan_file, fields)
    limits = Limits().changed(_limits(limit, unproven, retire))
    _prefect()
    # A night that nobody watches tells its steps on its Prefect page, and to the service's log.
    os.environ["PREFECT_LOGGING_LEVEL"] = "INFO"
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "NOTSET"
    # Prefect stores the error of a failed flow whatever the flow says; at least not as a pickle.
    os.environ.setdefault("PREFECT_RESULTS_DEFAULT_SERIALIZER", "json")
    from flows import deployments

    deployments.serve(
        plan, cron, timezone, None if control == "never" else control, limits, precision,
        throwaway, pool or (),
    )


# --- images ---------------------------------------------------------------------------------


@app.command()
def load(folder: Annotated[Path, typer.Argument(help="A folder of class folders.")],
         as_json: Json = False) -> None:  # fmt: skip
    """Put a folder of labelled images into S3, where the next intake finds them.

    Example: regraft load ./zoo   (zoo/okapi/1.jpg, zoo/lion/male/7.jpg, …)
    """
    from records.objects import LABELLED
    from tasks.loading import load_folder

    done = load_folder(folder, LABELLED)
    if as_json:
        _print_json(dataclasses.asdict(done))
        return
    _say(f"loaded {done.images} images of {done.classes} classes")
    for name in done.empty_classes:
        _say(f"class folder {name!r} is empty: nothing was loaded for it")
    _some(done.skipped, "left where it is")


@benchmark_app.command()
def freeze(
    why: Why,
    by: By,
    folder: Annotated[Path | None, typer.Argument(help="A folder of class folders.")] = None,
    as_json: Json = False,
) -> None:
    """Freeze the images under benchmark/ (a folder is loaded there first) as version 1.

    Example: regraft benchmark freeze ./messy --why "first season"
    """
    _load_benchmark(folder)
    from tasks import benchmark

    _say_frozen(benchmark.freeze(by, why), as_json)


@benchmark_app.command()
def grow(
    why: Why,
    by: By,
    folder: Annotated[Path | None, typer.Argument(help="A folder of class folders.")] = None,
    as_json: Json = False,
) -> None:
    """Append a benchmark version with what was added; the champion is scored on it first.

    Example: regraft benchmark grow ./messy-okapis --why "okapis are new"
    """
    _load_benchmark(folder)
    from tasks import benchmark

    _say_frozen(benchmark.grow(by, why), as_json)


@benchmark_app.command()
def withdraw(
    images: Annotated[list[str], typer.Argument(help="Keys or digests of benchmark images.")],
    why: Why,
    by: By,
    as_json: Json = False,
) -> None:
    """Append a benchmark version without these images; they can never come back or train.

    Example: regraft benchmark withdraw benchmark/lynx/12.jpg --why "this is a cat"
    """
    from tasks import benchmark

    row = benchmark.withdraw(images, by, why)
    if as_json:
        _print_json(dataclasses.asdict(row))
        return
    _say(f"benchmark version {row.version}: {row.images} images of {row.classes} classes")
    _say(str(row.power.get("sentence", "")))


@benchmark_app.command("list")
def list_benchmarks(as_json: Json = False) -> None:
    """List the benchmark's versions: their sizes, who made them and why, and looks at each.

    Example: regraft benchmark list
    """
    from infra import database
    from records import benchmark

    with database.connect().transaction() as session:
        rows = benchmark.listed(session)
    if as_json:
        _print_json([dataclasses.asdict(row) for row in rows])
        return
    _table(
        ["version", "images", "classes", "digest", "looks", "when", "by", "why"],
        (
            (
                str(row.version), str(row.images), str(row.classes), row.digest[:12],
                str(row.looks), f"{row.frozen_at:%Y-%m-%d %H:%M}", _plain_text(row.frozen_by),
                _plain_text(row.why),
            )
            for row in rows
        ),
    )  # fmt: skip


@benchmark_app.command("show")
def show_benchmark(
    version: Annotated[int | None, typer.Argument(
        help="A benchmark version; by default the newest.", show_default=False)] = None,
    images: Annotated[bool, typer.Option(help="List its images, too.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Show a benchmark version: its classes, what it notices, how often it was looked at.

    Example: regraft benchmark show 2 --images
    """
    from flows import screens

    if as_json:
        _print_json(screens.benchmark_facts(version))
    else:
        screens.show_benchmark(version, images)


def _load_benchmark(folder: Path | None) -> None:
    if folder is not None:
        from tasks.benchmark import BENCHMARK
        from tasks.loading import load_folder

        load_folder(folder, BENCHMARK)


def _say_frozen(done: Frozenness, as_json: bool) -> None:
    if as_json:
        _print_json(dataclasses.asdict(done))
        return
    row = done.benchmark
    _say(f"benchmark version {row.version}: {row.images} images of {row.classes} classes, "
         f"{done.added} of them new")  # fmt: skip
    _say(str(row.power.get("sentence", "")))
    _some(done.refused, "refused")


@intake_app.command("show")
def show_batch(batch: Annotated[int, typer.Argument(help="The batch's number.")],
               docs: Annotated[Path | None, _folder(
                   "Write Great Expectations' Data Docs into this folder.")] = None,
               as_json: Json = False) -> None:  # fmt: skip
    """Show what a batch brought, what was refused and why.

    Example: regraft intake show 7 --docs ./docs
    """
    from flows import screens

    if as_json:
        _print_json(screens.batch_facts(batch))
    else:
        screens.show_batch(batch)
    for path in screens.write_data_docs(batch, docs) if docs else []:
        _say(f"wrote {path}")


@intake_app.command()
def revert(batch: Annotated[int, typer.Argument(help="The batch's number.")], why: Why,
           by: By, as_json: Json = False) -> None:  # fmt: skip
    """Withdraw a batch from every later snapshot.

    Example: regraft intake revert 7 --why "labels were swapped"
    """
    from infra import database
    from records import batches

    with database.connect().transaction() as session:
        withdrawn = batches.revert_batch(session, batch, by, why)
    _done({"batch": batch, "withdrawn": withdrawn},
          f"batch {batch} is reverted: {withdrawn} images withdrawn", as_json)  # fmt: skip


@intake_app.command()
def accept(batch: Annotated[int, typer.Argument(help="The refused batch's number.")], why: Why,
           by: By, as_json: Json = False) -> None:  # fmt: skip
    """Let a refused batch in: the next night takes it past the checks on the whole batch.

    Example: regraft intake accept 7 --why "a new camera, labels were checked"
    """
    from infra import database
    from records import batches

    with database.connect().transaction() as session:
        batches.reopen_batch(session, batch, by, why)
    _done({"batch": batch}, f"batch {batch} comes in with the next night", as_json)


# --- the night ------------------------------------------------------------------------------


@app.command()
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

    plan = _plan(plan_file, fields)
    limits = Limits().changed(_limits(limit, unproven, retire))
    _prefect()
    _say_as_it_goes(not as_json)
    from flows.nightly import nightly as flow

    outcome = flow(plan=plan, limits=limits, precision=precision, root=root)
    _done(dataclasses.asdict(outcome), f"{outcome.state}: {outcome.reason}", as_json)
    code = {"refused": 3, "stopped": 4}.get(outcome.state, 0)
    if code:
        raise typer.Exit(code)


@app.command("plan")
def show_plan(plan_file: PlanFile = None, fields: Set = None, as_json: Json = False) -> None:
    """Check a plan and print it: every field with its value and what it means.

    Example: regraft plan --set recipe=two-phase --set epochs=12
    """
    plan = _plan(plan_file, fields)
    if as_json:
        _print_json(plan.to_dict())
        return
    from rich.markup import escape

    _table(["field", "value", "meaning"], (map(escape, row) for row in plan.told()))
    _say(f"digest {plan.digest()}")


@app.command()
def evaluate(version: Annotated[int, typer.Argument(help="The version's number.")], by: By,
             library: Annotated[bool, typer.Option(
                 help="Score every usable image of the library instead; training images are "
                      "in-sample.")] = False,
             precision: Precision = 0.95, as_json: Json = False) -> None:  # fmt: skip
    """Score a version now: validation, test and newest benchmark, with its threshold fitted anew.

    Example: regraft evaluate 7 --precision 0.98
    """
    _say_as_it_goes(not as_json)
    from flows import diagrams, figures
    from tasks import evaluation

    if library:
        evaluation.evaluate_whole_library(version)
    else:
        evaluation.evaluate_again(version, precision, by)
        diagrams.keep(version)
    known = figures.facts(version)
    if as_json:
        _print_json(known)
    else:
        figures.show(known)


@app.command()
def pretrain(sets: Annotated[list[str], typer.Argument(
                 metavar="SET…", help="A folder of class folders, or s3://PREFIX of your bucket.")],
             plan_file: PlanFile = None, fields: Set = None, root: From = None,
             as_json: Json = False) -> None:  # fmt: skip
    """Train one network on other sets, one after the other, for nights to start from.

    Each stage is a version that never serves. Killed and run again, it goes on where it was; a
    stage that needs another plan is a call of its own with --from.

    Example: regraft pretrain ./tiny-imagenet ./cifar --set epochs=40 --set image_size=64
    """
    plan = _plan(plan_file, fields)
    _prefect()
    _say_as_it_goes(not as_json)
    from flows.pretrain import pretrain as flow
    from tasks.sets import locate

    outcomes = flow(sets=[locate(one) for one in sets], plan=plan, root=root)
    if as_json:
        _print_json([dataclasses.asdict(one) for one in outcomes])
        return
    for one in outcomes:
        typer.echo(f"{one.state}: {one.reason}")
    typer.echo(f"start from it: regraft nightly --from {outcomes[-1].version_id}")


@app.command()
def control(plan_file: PlanFile = None, fields: Set = None, root: From = None,
            as_json: Json = False) -> None:  # fmt: skip
    """Learn the champion's images afresh, and tell what starting from the last night is worth.

    It trains as the champion's lineage began (--plan and --set change single fields of that), and
    serves only through `regraft adopt`.

    Example: regraft control --set epochs=120
    """
    changes = _fields(plan_file, fields)
    _prefect()
    _say_as_it_goes(not as_json)
    from flows import control as comparison

    outcome = comparison.control(changes=changes, root=root)
    _done(dataclasses.asdict(outcome), f"{outcome.state}: {outcome.reason}", as_json)
    if outcome.worth is None or as_json:
        return
    for columns, rows in (
        comparison.figures(outcome.worth),
        comparison.efforts(outcome.worth),
        comparison.history(),
    ):
        _table(columns, _literally(rows))
    if outcome.worth.other_plan:
        typer.echo(f"Their plans differ in {comparison.told_plans(outcome.worth)}.")


@app.command()
def bakeoff(entrants: Annotated[list[str], typer.Argument(
                metavar="ARCH[@SIZE]…",
                help="A timm architecture, or a JSON file of plan fields that are its own.")],
            plan_file: PlanFile = None, fields: Set = None,
            pictures: Annotated[Path | None, _folder(
                "Write accuracy against training time, latency and size into this folder."
            )] = None,
            as_json: Json = False) -> None:  # fmt: skip
    """Train several architectures on one snapshot: accuracy, training time, latency, size.

    Each starts from its plan's weights or at random. One that fails does not end the others; if
    all fail the exit code is 1. Killed and run again, it goes on where it was.

    Example: regraft bakeoff resnet18@128 mobilenetv2_100@160 lite0.json --pictures ./plots
    """
    common = _fields(plan_file, fields)
    plans = [_entrant(word, common) for word in entrants]
    _prefect()
    _say_as_it_goes(not as_json, ends=True)
    from flows import bakeoff as contest

    done = contest.bakeoff(plans=plans)
    if as_json:
        _print_json(dataclasses.asdict(done))
    else:
        for columns, rows in contest.for_terminals(done):
            _table(columns, _literally(rows))
    if pictures is not None and done.picture:
        from infra import storage

        _write_picture(pictures / "bakeoff.png", storage.connect().read(done.picture))
    if done.picture is None:
        raise typer.Exit(1)


@app.command()
def identify(pool: Annotated[str, typer.Argument(
                 help="s3://PREFIX in the bucket, or a folder of images, which is loaded first.")],
             version: Annotated[int | None, typer.Option(
                 help="The version that answers; by default the one that serves.",
                 show_default=False)] = None,
             target: Annotated[list[str] | None, typer.Option(
                 help="A class to keep the confidence of in every image; may be repeated.")] = None,
             precision: Precision = 0.95, as_json: Json = False) -> None:  # fmt: skip
    """Answer a pool of unlabelled images by one version, and keep the answers to be asked.

    Killed and run again it goes on where it was. Run it several times at once, here or elsewhere,
    and they share the work. What the version has answered before is not answered again.

    Example: regraft identify s3://pools/gate-camera --version 7 --target okapi
    """
    _prefect()
    _say_as_it_goes(not as_json)
    from flows.identify import identify as flow

    done = flow(pool=pool, version_id=version, targets=target or [], precision=precision)
    _done(dataclasses.asdict(done), done.sentence, as_json)
    if not as_json:
        _some((f"{one.key!r}: {one.problem}" for one in done.unreadable_objects), "no picture")


@app.command()
def unreadable(pool: Annotated[str, typer.Argument(help="A pool that was identified, s3://PREFIX.")],
               as_json: Json = False) -> None:  # fmt: skip
    """List all objects of a pool that hold no picture or could not be had, each with its reason.

    Example: regraft unreadable s3://pools/gate-camera
    """
    from infra import database
    from records import findings, pools

    with database.connect().transaction() as session:
        rows = pools.unreadable(session, findings.pool_named(session, pool))
    if as_json:
        _print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        _say("every object of this pool could be read")
        return
    _table(["object", "reason"],
           ((_plain_text(repr(row.key)), _plain_text(row.problem)) for row in rows))  # fmt: skip


@app.command()
def throwaway(cutoff: Annotated[int, typer.Option(
                  help="Fewest usable images of a class, below the plan's cutoff.")],
              pool: Pools = None, plan_file: PlanFile = None, fields: Set = None, root: From = None,
              precision: Precision = 0.95, as_json: Json = False) -> None:  # fmt: skip
    """Train a version from a lower cutoff on, and look in pools for what classes near it lack.

    The version never serves. The plan is that of the nights: its cutoff is what classes are to
    reach. Killed and run again, it goes on where it was.

    Example: regraft throwaway --cutoff 35 --pool s3://pools/gate-camera --plan plan.json
    """
    plan = _plan(plan_file, fields)
    _prefect()
    _say_as_it_goes(not as_json)
    from flows.throwaway import throwaway as flow

    outcome = flow(cutoff=cutoff, pools=pool, plan=plan, precision=precision, root=root)
    _done(dataclasses.asdict(outcome), f"{outcome.state}: {outcome.reason}", as_json)
    if outcome.state == "shortlisted" and not as_json:
        from flows import shortlist

        shortlist.show(shortlist.of_run(outcome.run_id))


@app.command()
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
            _print_json([dataclasses.asdict(one) for one in rows])
        elif as_csv:
            shortlists.write_candidates(rows)
        elif not rows:
            _say(f"no picture has a score of {BANDS[0]} or more for {class_name!r}")
        else:
            _table(["score", "state", "key"], _literally(
                (f"{one.score:.3f}", one.state, one.key) for one in rows))
    elif as_json:
        _print_json(dataclasses.asdict(shortlists.of_run(run)))
    elif as_csv:
        shortlists.write_classes(shortlists.of_run(run))
    else:
        shortlists.show(shortlists.of_run(run))


@app.command()
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
    _done(dataclasses.asdict(done), done.sentence, as_json)


@app.command()
def demo(images: Annotated[Path | None, typer.Option(
             help="A folder of class folders; without it, handwritten digits.")] = None,
         fresh: Annotated[bool, typer.Option(help="Begin with an empty state folder.")] = True,
         ) -> None:  # fmt: skip
    """Play three nights on real images: a first version, a new class, a batch of wrong labels.

    Example: regraft demo --images ./zoo
    """
    from flows import demo as story

    story.prepare(fresh)
    _prefect()
    _say_as_it_goes(True, ends=True)
    story.play(images)


def _plan(plan_file: Path | None, fields: list[str] | None) -> Plan:
    """The plan of a file with single fields set over it."""
    from vision.plan import Plan

    return Plan.from_dict(_fields(plan_file, fields)).heeded()


def _entrant(word: str, common: dict[str, Any]) -> Plan:
    """The plan of a bake-off's entrant, by ARCH, ARCH@SIZE, or a file with fields of its own."""
    from vision.plan import BadPlan, Plan

    if word.endswith(".json"):
        if not Path(word).is_file():
            raise BadPlan(f"{word} is not a file: name an architecture or a JSON file")
        return Plan.from_dict(common | _fields(Path(word), None)).heeded()
    architecture, sign, size = word.partition("@")
    own: dict[str, Any] = {"architecture": architecture}
    if sign:
        if not size.isdecimal():
            raise BadPlan(f"{word}: write ARCHITECTURE@SIZE, with the size in pixels")
        own["image_size"] = int(size)
    return Plan.from_dict(common | own).heeded()


def _fields(plan_file: Path | None, fields: list[str] | None) -> dict[str, Any]:
    """Fields of a plan: those of a file, with single ones set over them."""
    from vision.plan import BadPlan

    values: dict[str, Any] = {}
    if plan_file is not None:
        try:
            values = json.loads(plan_file.read_text())
        except ValueError as error:
            raise BadPlan(f"{plan_file} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise BadPlan(f"{plan_file} holds no plan: write an object of fields and values")
    for field in fields or []:
        name, sign, word = field.partition("=")
        if not sign:
            raise BadPlan(f"--set {field}: write FIELD=VALUE")
        try:
            value = json.loads(word)
        except ValueError:
            value = word
        group, _, inner = name.partition(".")
        if inner:
            values.setdefault(group, {})[inner] = value
        else:
            values[name] = value
    return values


def _limits(
    limit: list[str] | None, unproven: bool, retire: list[str] | None
) -> dict[str, Any]:
    """The limits of the gate that were given, by name."""
    from vision.gate import BadLimits

    values: dict[str, Any] = {}
    for one in limit or []:
        name, _, word = one.partition("=")
        try:
            values[name] = json.loads(word)
        except ValueError:
            raise BadLimits(f"--limit {one}: write NAME=VALUE, such as margin=0.02") from None
    if unproven:
        values["unproven_allowed"] = True
    if retire:
        values["retired_classes"] = tuple(retire)
    return values


def _prefect() -> None:
    """Have a Prefect server, and say where it is before Prefect is imported."""
    from infra import embedded, settings

    found = embedded.up(settings.load())
    if found.prefect_api_url:
        os.environ["PREFECT_API_URL"] = found.prefect_api_url


# --- what people say of pools ---------------------------------------------------------------

Images = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE", help="Digest (8 characters or more) or key of a pool's image."),
]
File = Annotated[
    Path | None,
    typer.Option("--from", help="A CSV or JSON file with columns sha256 or key; `-` reads it "
                                "from standard input.", allow_dash=True),
]  # fmt: skip
NewClass = Annotated[
    list[str] | None, typer.Option(help="A class to make if there is none; may be repeated.")
]
Reason = Annotated[str | None, typer.Option("--why", help="Why; it is kept.")]


@app.command()
def label(name: Annotated[str | None, typer.Argument(
              metavar="CLASS", help="What they are; without it, the file says.")] = None,
          images: Images = None, file: File = None, new_class: NewClass = None,
          *, by: By, why: Reason = None, as_json: Json = False) -> None:  # fmt: skip
    """Label images of a pool: the next intake takes them in, to train on.

    All or nothing. What was labelled so before is left alone; another label takes the place of the
    one before it. A class that is new is asked for, or allowed by --new-class. A file says what
    they are in its column label, or else in class_name, as what `find` has shown them: delete the
    rows that are wrong.

    Example: regraft label okapi 3fa9c1d2 s3://pools/gate/7.jpg --by Ann

    Example: regraft label --from found.csv --by Ann
    """
    from records.classes import UnknownClass
    from tasks import labelling

    wishes = _wishes(images, file, label=name)
    allowed = list(new_class or ())

    def do(advance: Advance) -> tuple[Done, Followed]:
        return labelling.label(wishes, by, allowed, why, advance)

    try:
        _act("labelled", "image", do, as_json)
    except UnknownClass as error:
        if not (sys.stdin.isatty() and sys.stderr.isatty()) or str(file) == "-":
            raise
        _say(str(error).partition(":")[0] + ".")
        typer.confirm(f"Make {', '.join(error.names)}?", abort=True, err=True)
        allowed += error.names
        _act("labelled", "image", do, as_json)


@app.command()
def dismiss(images: Images = None, file: File = None,
            class_name: Annotated[str | None, typer.Option(
                "--class", help="What they were offered as and are not; by default what the file "
                                "says, or the version predicted.")] = None,
            unknown: Annotated[bool, typer.Option(
                "--unknown", help="Nobody can name them: a later version may.")] = False,
            *, by: By, why: Reason = None, as_json: Json = False) -> None:  # fmt: skip
    """Say that images are not what they were offered as.

    They are not offered as that again. A label of theirs is taken back, and what had come into
    the library by it is withdrawn with the next intake.

    Example: regraft dismiss 3fa9c1d2 --class okapi --by Ann
    """
    from tasks import labelling

    wishes = _wishes(images, file, offered=class_name)
    _act("marked unknown" if unknown else "dismissed", "image",
         lambda advance: labelling.dismiss(wishes, by, unknown, why, advance), as_json)  # fmt: skip


@app.command()
def remove(images: Images = None, file: File = None,
           *, by: By, why: Reason = None, as_json: Json = False) -> None:  # fmt: skip
    """Move objects of a pool to the trash; `restore` undoes it.

    By key one object, by digest all copies, by a file with both those of its keys.

    Example: regraft remove --from junk.csv --by Ann --why "blank frames"
    """
    from tasks import labelling

    wishes = _wishes(images, file)
    _act("removed", "object",
         lambda advance: labelling.remove(wishes, by, why, advance), as_json)  # fmt: skip


@app.command()
def restore(images: Images = None, file: File = None,
            *, by: By, why: Reason = None, as_json: Json = False) -> None:  # fmt: skip
    """Bring removed objects back to where they were.

    The file that removed them brings them back.

    Example: regraft restore --from junk.csv --by Ann
    """
    from tasks import labelling

    wishes = _wishes(images, file)
    _act("restored", "object",
         lambda advance: labelling.restore(wishes, by, why, advance), as_json)  # fmt: skip


@app.command()
def acts(most: Annotated[int, typer.Option(help="How many, the newest first.", min=1)] = 20,
         as_json: Json = False) -> None:  # fmt: skip
    """List what people did with images of pools: who labelled, dismissed and removed which.

    Example: regraft acts
    """
    from infra import database
    from records import labels

    with database.connect().transaction() as session:
        rows = labels.acts(session, most)
    if as_json:
        _print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        _say("nobody has labelled or removed anything yet: `regraft find` shows what there is")
        return
    _table(
        ["when", "act", "image", "class", "from", "by", "why"],
        (
            (
                f"{row.done_at:%Y-%m-%d %H:%M}", row.act + (", waits" if row.owed else ""),
                row.sha256[:12], _plain_text(row.class_name or row.offered or ""),
                _plain_text(row.key or ""), _plain_text(row.done_by), _plain_text(row.why or ""),
            )
            for row in rows
        ),
    )  # fmt: skip


def _wishes(
    images: list[str] | None, file: Path | None, label: str | None = None,
    offered: str | None = None,
) -> list[Wish]:  # fmt: skip
    from tasks import labelling

    if (file is None) == (not images):
        raise typer.BadParameter("name images, or a file by --from: one of the two")
    if file is None:
        return labelling.named(images or (), label, offered)
    if str(file) != "-" and not file.is_file():
        raise typer.BadParameter(f"{file} is not a file")
    body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    return labelling.read(str(file), body, label, offered)


def _act(
    did: str, what: str, do: Callable[[Advance], tuple[Done, Followed]], as_json: bool
) -> None:
    """Do it, with a bar where it takes long, and tell what came of it."""
    from tasks.bar import late_bar

    with late_bar(did) as advance:
        done, followed = do(advance)
    if as_json:
        _print_json(dataclasses.asdict(done) | {"waiting": followed.waiting})
    else:
        said = f"{did} {done.changed:,} {what}{'' if done.changed == 1 else 's'}"
        before = f"; {done.already:,} already were" if done.already else ""
        twice = f"; {done.repeated:,} named more than once" if done.repeated else ""
        typer.echo(f"{said}{before}{twice}")
        for name in done.made:
            _say(f"class {name!r} is new: it trains once it has enough images")
    _some(followed.waiting, "waits")
    if followed.waiting:
        raise typer.Exit(1)


# --- classes --------------------------------------------------------------------------------


@class_app.command("list")
def list_classes(cutoff: Annotated[int, typer.Option(
                     help="Fewest usable images that a class needs to be trained.")] = 40,
                 as_json: Json = False) -> None:  # fmt: skip
    """List the classes, and what each lacks to be trained.

    Names that became another class's are listed, too.

    Example: regraft class list --cutoff 40
    """
    from infra import database
    from records import classes

    with database.connect().transaction() as session:
        rows = classes.listed(session)
    if as_json:
        _print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        _say("there are no classes yet: `regraft load FOLDER`, then `regraft nightly`")
        return
    _table(
        ["class", "images", "mined", "lacks", "what became of it"],
        (
            (
                _plain_text(row.name),
                *(("", "", "") if row.became else
                  (f"{row.usable:,}", f"{row.mined:,}", f"{max(0, cutoff - row.usable) or ''}")),
                _plain_text(_became_so(row)),
            )
            for row in rows
        ),
    )  # fmt: skip


def _became_so(row: NameRow) -> str:
    """How a name came to be, or to be another's, in words."""
    acts = {"intake": "taken in", "make": "made", "rename": "renamed", "merge": "merged"}
    by, why = (f" by {row.by}" if row.by else ""), (f": {row.why}" if row.why else "")
    now = f"now {row.became!r}, " if row.became else ""
    return f"{now}{acts[row.act]} on {row.at:%Y-%m-%d}{by}{why}"


@class_app.command("log")
def log_of_classes(most: Annotated[int, typer.Option(help="How many, the newest first.")] = 20,
                   as_json: Json = False) -> None:  # fmt: skip
    """List who made, renamed, merged and split classes, and why.

    Example: regraft class log
    """
    from infra import database
    from records import classes

    with database.connect().transaction() as session:
        rows = classes.acts(session, most)
    if as_json:
        _print_json([dataclasses.asdict(row) for row in rows])
        return
    _table(
        ["when", "act", "class", "became", "images", "by", "why"],
        (
            (
                f"{row.done_at:%Y-%m-%d %H:%M}", row.act, _plain_text(row.name),
                _plain_text(row.to_name or ""), str(row.images), _plain_text(row.done_by),
                _plain_text(row.why or ""),
            )
            for row in rows
        ),
    )  # fmt: skip


@class_app.command("rename")
def rename_class(name: Annotated[str, typer.Argument(help="What it is called now.")],
                 to: Annotated[str, typer.Argument(help="What it is called from now on.")],
                 why: Why, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Call a class otherwise; its old name still means it.

    So do folders and manifests with the old name; versions keep the names of their day.

    Example: regraft class rename antelope impala --why "all of them are" --by Ann
    """
    from infra import database
    from records import classes

    with database.connect().transaction() as session:
        images = classes.rename(session, name, to, by, why)
    _done({"name": name, "to_name": to, "images": images},
          f"{name!r} is called {to!r}: {images} images", as_json)  # fmt: skip


@class_app.command("merge")
def merge_classes(name: Annotated[str, typer.Argument(help="The class that goes.")],
                  into: Annotated[str, typer.Argument(help="The class that takes its images.")],
                  why: Why, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Put all images of a class into another.

    Their splits stay, and the old name then means the other class.

    Example: regraft class merge puma cougar --why "one animal" --by Ann
    """
    from infra import database
    from records import classes

    with database.connect().transaction() as session:
        images = classes.merge(session, name, into, by, why)
    _done({"name": name, "to_name": into, "images": images},
          f"{name!r} is part of {into!r}: {images} images", as_json)  # fmt: skip


@class_app.command("split")
def split_class(name: Annotated[str, typer.Argument(help="The class to take images from.")],
                file: Annotated[Path, typer.Option(
                    "--from", help="A CSV or JSON file with columns sha256 or key, and label.",
                    exists=True, dir_okay=False)],
                why: Why, by: By, new_class: NewClass = None,
                as_json: Json = False) -> None:  # fmt: skip
    """Put some images of a class into others, as a file says.

    What the file does not name stays. All or nothing.

    Example: regraft class split antelope --from parts.csv --new-class gazelle --why "two kinds"
    """
    from tasks import labelling

    wishes = labelling.read(str(file), file.read_bytes())
    counts = labelling.split(name, wishes, by, why, new_class or ())
    told = ", ".join(f"{count} are {part!r}" for part, count in counts.items())
    _done({"name": name, "parts": counts}, f"of {name!r}: {told}", as_json)


# --- decisions ------------------------------------------------------------------------------


@app.command()
def approve(version: Annotated[int, typer.Argument(help="The refused version's number.")],
            why: Why, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Let a refused version serve: judged again, despite the failures that `show` shows.

    What nobody may override (figures that cannot be compared, a class that died) and what failed
    only now refuses it: exit code 3.

    Example: regraft approve 7 --why "the new classes were looked at by hand"
    """
    from tasks import promotion

    _decided(promotion.approve(version, by, why), as_json)


@app.command()
def reject(version: Annotated[int, typer.Argument(help="The version's number.")],
           why: Why, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Keep a version from serving, by nights and rollbacks alike; only `approve` overrules it.

    Example: regraft reject 7 --why "it takes every lynx for a cat"
    """
    from infra import database
    from records import deployments

    with database.connect().transaction() as session:
        deployments.reject(session, version, by, why)
    _done({"version_id": version, "by": by, "why": why}, f"version {version} is rejected", as_json)


@app.command()
def rollback(version: Annotated[int | None, typer.Argument(
                 help="A version that served before; without it, the one before the champion.",
                 show_default=False)] = None,
             *, why: Why, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Return to a version that served before, once it has repeated its recorded answers.

    Example: regraft rollback --why "version 7 is wrong about wolves"
    """
    from tasks import promotion

    _decided(promotion.roll_back(version, by, why), as_json)


@app.command()
def adopt(version: Annotated[int, typer.Argument(
              help="The number of a control or bake-off version.")],
          why: Why, by: By, limit: Limit = None, unproven: Unproven = False,
          retire: Retire = None, as_json: Json = False) -> None:  # fmt: skip
    """Put a control or bake-off version through the same gate; if it passes, it serves.

    The limits are the last night's, but for those that are given here. The next night starts from
    it. Exit code 3: the gate refused it.

    Example: regraft adopt 9 --why "the bake-off's winner"
    """
    from tasks import promotion

    changes = _limits(limit, unproven, retire)
    _decided(promotion.adopt(version, changes, by, why), as_json)


@app.command()
def log(most: Annotated[int, typer.Option(help="How many, the newest first.")] = 20,
        as_json: Json = False) -> None:  # fmt: skip
    """List what was decided: what serves since when, by whom and why, and what was rejected.

    Example: regraft log
    """
    from records import summaries

    rows = summaries.of_decisions(most)
    if as_json:
        _print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        _say("nothing was decided yet: `regraft nightly`")
        return
    _table(
        ["when", "version", "decision", "served until", "by", "why"],
        (
            (
                f"{row.decided_at:%Y-%m-%d %H:%M}",
                f"[bold]{row.version_id}[/bold]" if row.serves else str(row.version_id),
                row.kind + (f" despite {', '.join(row.overridden)}" if row.overridden else ""),
                "[green]serves[/green]" if row.serves
                else f"{row.until:%Y-%m-%d %H:%M}" if row.until else "",
                _plain_text(row.decided_by),
                _plain_text(row.why),
            )
            for row in rows
        ),
    )


def _decided(decision: Decision, as_json: bool) -> None:
    _done(dataclasses.asdict(decision), decision.reason, as_json)
    if decision.deployment_id is None:
        raise typer.Exit(3)


def _plain_text(words: str) -> str:
    """What people wrote, so that a table shows it and does not obey it."""
    from rich.markup import escape

    return escape(words)


# --- findings -------------------------------------------------------------------------------


@find_app.callback()
def find(
    context: typer.Context,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Predicted as this class.")
    ] = None,
    below: Annotated[float | None, typer.Option(help="At less than this confidence.")] = None,
    above: Annotated[float | None, typer.Option(help="At this confidence or more.")] = None,
    version: OfVersion = None,
    pool: OfPool = None,
    new: Annotated[
        bool,
        typer.Option("--new", help="Neither known to library or benchmark, nor spoken of."),
    ] = False,
    limit: Most = 60,
    as_csv: Csv = False,
    as_json: Json = False,
    sheet: Sheet = None,
) -> None:
    """Find pictures in pools by what a version answered: by one of the filters below, or your own.

    Example: regraft find --class okapi --above 0.9 --new --sheet okapis.html
    """
    if context.invoked_subcommand is not None:
        sources = [context.get_parameter_source(name) for name in context.params]
        if any(source and source.name != "DEFAULT" for source in sources):
            raise typer.BadParameter(f"write options behind `{context.invoked_subcommand}`")
        return
    from flows import finding
    from records import findings

    finding.tell(
        lambda session: findings.matching(
            session, class_name, below, above, version, pool, new, limit
        ),
        as_csv, as_json, sheet,
    )  # fmt: skip


@find_app.command()
def scarce(
    class_name: Annotated[
        str | None, typer.Option("--class", help="This class alone, however many it has.")
    ] = None,
    fewer: Annotated[
        int | None,
        typer.Option(
            help="Classes of fewer usable images are scarce; by default twice the nights' cutoff.",
            min=1,
        ),
    ] = None,
    version: OfVersion = None,
    pool: OfPool = None,
    limit: Most = 60,
    as_csv: Csv = False,
    as_json: Json = False,
    sheet: Sheet = None,
) -> None:
    """Find new pictures of classes that have few images: best first, and no two much alike.

    Example: regraft find scarce --fewer 40 --sheet scarce.html
    """
    from flows import finding
    from records import findings

    finding.tell(
        lambda session: findings.scarce(session, class_name, version, pool, fewer, limit),
        as_csv, as_json, sheet,
    )  # fmt: skip


@find_app.command()
def staged(
    class_name: Annotated[
        str | None, typer.Option("--class", help="This class alone.")
    ] = None,
    version: OfVersion = None,
    pool: OfPool = None,
    limit: Most = 60,
    as_csv: Csv = False,
    as_json: Json = False,
    sheet: Sheet = None,
) -> None:
    """Find new pictures of classes that rest on staged or synthetic images, to replace those.

    Example: regraft find staged --limit 200 --csv
    """
    from flows import finding
    from records import findings

    finding.tell(
        lambda session: findings.staged(session, class_name, version, pool, limit),
        as_csv, as_json, sheet,
    )  # fmt: skip


@find_app.command("look-alike")
def look_alike(
    class_name: Annotated[str, typer.Argument(metavar="CLASS", help="What they are taken for.")],
    below: Annotated[
        float | None,
        typer.Option(help="At less than this confidence; by default the version's threshold."),
    ] = None,
    group: Annotated[int | None, typer.Option(help="All of this group.", min=1)] = None,
    version: OfVersion = None,
    pool: OfPool = None,
    limit: Most = 60,
    as_csv: Csv = False,
    as_json: Json = False,
    sheet: Sheet = None,
) -> None:
    """Find what a version takes for CLASS without being sure, likes together: is one group new?

    Example: regraft find look-alike antelope --sheet gazelles.html
    """
    from flows import finding
    from records import findings

    finding.tell(
        lambda session: findings.look_alike(
            session, class_name, version, pool, below, group, limit
        ),
        as_csv, as_json, sheet,
    )  # fmt: skip


@find_app.command()
def unknown(
    version: OfVersion = None,
    pool: OfPool = None,
    limit: Most = 60,
    as_csv: Csv = False,
    as_json: Json = False,
    sheet: Sheet = None,
) -> None:
    """Find what people could not name and a later version has answered, the surest first.

    Example: regraft find unknown --sheet unknown.html
    """
    from flows import finding
    from records import findings

    finding.tell(
        lambda session: findings.unknown(session, version, pool, limit), as_csv, as_json, sheet
    )


@find_app.command()
def junk(
    below: Annotated[float | None, typer.Option(help="At less than this confidence.")] = None,
    version: OfVersion = None,
    pool: OfPool = None,
    limit: Most = 60,
    as_csv: Csv = False,
    as_json: Json = False,
    sheet: Sheet = None,
) -> None:
    """Find what a version is least sure of, to remove much at once.

    Example: regraft find junk --below 0.2 --limit 5000 --csv > junk.csv
    """
    from flows import finding
    from records import findings

    finding.tell(
        lambda session: findings.junk(session, below, version, pool, limit), as_csv, as_json, sheet
    )


# --- questions ------------------------------------------------------------------------------


@app.command()
def versions(most: Annotated[int, typer.Option(help="How many, the newest first.")] = 20,
             as_json: Json = False) -> None:  # fmt: skip
    """List versions: how they did, and what became of them.

    Example: regraft versions
    """
    from records import summaries

    rows = summaries.of_versions(most)
    if as_json:
        _print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        _say("there are no versions yet: `regraft load FOLDER`, then `regraft nightly`")
        return
    _table(
        ["version", "purpose", "from", "classes", "images", "test", "benchmark", "became"],
        (
            (
                f"[bold]{row.id}[/bold]" if row.serves else str(row.id),
                row.purpose,
                str(row.parent_id or "scratch"),
                str(row.classes),
                str(row.images),
                _percent(row.test_accuracy),
                _percent(row.benchmark_accuracy),
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


@app.command()
def show(version: Annotated[int, typer.Argument(help="The version's number.")],
         pictures: Annotated[Path | None, _folder(
             "Write Grad-CAM overlays, reliability, confusions and its night into this folder."
         )] = None,
         as_json: Json = False) -> None:  # fmt: skip
    """Show one version: plan, figures, the gate's checks, weakest classes, time of each step.

    Example: regraft show 3 --pictures ./version-3
    """
    from flows import screens

    if as_json:
        _print_json(screens.version_facts(version))
    else:
        screens.show_version(version)
    if pictures is not None:
        _say(f"wrote {screens.write_pictures(version, pictures)} pictures into {pictures}")


@app.command()
def failures(version: Annotated[int, typer.Argument(help="The version's number.")],
             analyse: Annotated[bool, typer.Option(
                 help="Analyse it now, on up to 1,000 validation images.")] = False,
             pictures: Annotated[Path | None, _folder(
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

        _say_as_it_goes(not as_json)
        analyse_now(version)
        found.keep(version)
    if as_json:
        _print_json(found.facts(version))
    else:
        found.show(version)
    if pictures is not None:
        _write_picture(pictures / "failures.png", found.drawn(version))
    if next_plan is not None:
        next_plan.write_text(json.dumps(found.next_plan(version).to_dict(), indent=2) + "\n")
        _say(f"wrote {next_plan}: `regraft nightly --plan {next_plan}`")


@app.command()
def status(as_json: Json = False) -> None:
    """Show what serves, what the last runs did, and what waits for a person.

    Example: regraft status
    """
    from flows import screens

    if as_json:
        _print_json(screens.status_facts())
    else:
        screens.show_status()


# --- printing -------------------------------------------------------------------------------


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _say_as_it_goes(wanted: bool, ends: bool = False) -> None:
    """Let the steps tell what they do, on standard error; with `ends`, how each run ended, too.

    Verbs that print the end themselves go without, or a terminal would show it twice.
    """
    import logging

    epochs = logging.getLogger("vision")  # for the page alone: here there is a bar
    epochs.setLevel(logging.INFO)
    epochs.propagate = False
    log = logging.getLogger("regraft")
    log.setLevel(logging.INFO)
    log.propagate = False
    # Prefect adds a handler of its own, which sends the lines to the page of the run.
    if not any(type(one) is logging.StreamHandler for one in log.handlers):
        handler = logging.StreamHandler()
        handler.setLevel(logging.INFO if wanted else logging.WARNING)
        handler.setFormatter(logging.Formatter("  %(message)s"))
        if not ends:
            handler.addFilter(lambda record: record.name != "regraft.ends")
        log.addHandler(handler)


def _done(facts: dict[str, Any], line: str, as_json: bool) -> None:
    if as_json:
        _print_json(facts)
    else:
        typer.echo(line)


def _print_json(facts: Any) -> None:
    typer.echo(json.dumps(facts, indent=2, default=_plain, ensure_ascii=False))


def _plain(value: object) -> object:
    if isinstance(value, datetime | date):
        return value.isoformat()
    return str(value)


def _table(columns: list[str], rows: Iterable[Iterable[str | None]]) -> None:
    from flows.grid import table

    table(columns, rows)


def _literally(rows: Iterable[Iterable[str]]) -> Iterable[Iterable[str]]:
    """Cells with paths and errors in them, which must not pass for markup."""
    from rich.markup import escape

    return [[escape(cell) for cell in row] for row in rows]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _write_picture(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    _say(f"wrote {path}")


def _some(lines: Iterable[str], what: str) -> None:
    listed = list(lines)
    for line in listed[:10]:
        _say(f"{what}: {line}")
    if len(listed) > 10:
        _say(f"… and {len(listed) - 10} more")


app.command()(cli_web.web)
app.add_typer(cli_web.key_app, name="key")

if __name__ == "__main__":
    main()
