"""The bake-off: several architectures and image sizes on one snapshot, as a table and a picture."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.context import FlowRunContext
from sqlalchemy.exc import SQLAlchemyError

from flows import report
from flows.grid import Grid
from flows.run import Asked, alone, one_run, refuse_targeted, start_of
from flows.timeline import lasting
from infra import database, storage
from infra.database import Unreachable
from infra.storage import StorageError
from records import benchmark, evaluations, versions
from records.runs import Fenced
from records.versions import checkpoint_key
from tasks.evaluation import evaluate, is_scored_on_benchmark
from tasks.progress import courtesy
from tasks.snapshot import freeze_snapshot
from tasks.training import train_version, write_candidate
from vision.plan import BadPlan, Plan

# No fault of an architecture: whatever comes after it would fail as well.
OF_ALL = (StorageError, SQLAlchemyError, Unreachable, Fenced, ConnectionError)

BLUE, GREY = "#2f6f9f", "#8a8a8a"


@dataclass(frozen=True)
class Share:
    """An accuracy with its 95% interval, 0 to 1, and the number of images."""

    accuracy: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Entrant:
    """One architecture at one size, and how it did.

    start: what its weights began as. problem: why it has no figures, if so. seconds: of all
    epochs, validation included; latency_seconds: one picture alone on one CPU.
    """

    name: str
    start: str
    version_id: int | None = None
    problem: str | None = None
    epochs: int = 0
    seconds: float = 0.0
    validation: float | None = None
    test: Share | None = None
    benchmark: Share | None = None
    latency_seconds: float | None = None
    checkpoint_bytes: int | None = None


@dataclass(frozen=True)
class Bakeoff:
    """All entrants on one snapshot; picture: its key in S3, None when none has figures."""

    snapshot_digest: str
    benchmark_version: int
    entrants: tuple[Entrant, ...]
    picture: str | None


@flow(name="bakeoff", flow_run_name=report.run_name, retries=0, result_serializer="json")
def bakeoff(plans: list[Asked]) -> Bakeoff:
    """Train each plan on one snapshot of the library as it is now, without a parent; compare.

    An entrant that cannot be trained says why and the others go on; what was killed goes on where
    it was, and what has its figures is not trained again. Nothing serves by this: `regraft adopt`
    puts a version through the gate. Raises `BadPlan` for plans that choose different images.
    """
    for plan in plans:
        refuse_targeted(plan)
    plans = [plan.settled() for plan in plans]
    _refuse_different_choices(plans)
    with alone():
        with one_run("bakeoff", plans[0], judged=True) as run:
            snapshot = freeze_snapshot(run.run_id, plans[0])
            run.end("frozen", f"one snapshot for {len(plans)} entrants")
        entrants = tuple(_entrant(plan, snapshot) for plan in plans)
        done = Bakeoff(snapshot, _benchmark(), entrants, _keep(entrants, run.run_id))
    _publish(done)
    return done


def _refuse_different_choices(plans: Sequence[Plan]) -> None:
    if not plans:
        raise BadPlan("plans=[]: name at least one architecture")
    rules = {(plan.cutoff, plan.most) for plan in plans}
    if len(rules) > 1:
        told = " and ".join(sorted(f"cutoff={cutoff}, most={most}" for cutoff, most in rules))
        raise BadPlan(f"{told}: entrants train on one snapshot, so give all the same")
    names = [name_of(plan) for plan in plans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadPlan(f"{twice[0]} is named twice: an entrant is an architecture at one image size")


def name_of(plan: Plan) -> str:
    """What an entrant is called: `ARCHITECTURE@SIZE`."""
    return f"{plan.architecture}@{plan.image_size}"


def _entrant(plan: Plan, snapshot: str) -> Entrant:
    version = None
    try:
        with one_run("bakeoff", plan) as run:
            version = write_candidate(run.run_id, "bakeoff", snapshot, plan, None)
            if is_scored_on_benchmark(version):
                run.end("skipped", f"{name_of(plan)} has its figures already", version)
            else:
                train_version(run.run_id, version)
                evaluate(run.run_id, version, None)
                run.end("trained", f"{name_of(plan)}, {start_of(plan)}", version)
    except OF_ALL:
        raise
    except Exception as error:
        # Whatever a library says of one architecture at one size: the run's row is closed with it.
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        return Entrant(name_of(plan), start_of(plan), version, problem)
    with database.connect().transaction() as session:
        benchmark.look(session, version, "bakeoff", f"run {run.run_id}")
    return measured(version)


def measured(version_id: int) -> Entrant:
    """The figures of a trained version."""
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
        epochs = versions.epochs(session, version_id)
        newest = benchmark.current(session).version
        on = {
            one.subject: Share(one.accuracy, one.accuracy_low, one.accuracy_high, one.images)
            for one in evaluations.of_version(session, version_id)
            if one.benchmark_version in (None, newest)
        }
    plan = Plan.from_dict(version.plan)
    kept = next(storage.connect().list(checkpoint_key(version.checkpoint_digest or "")), None)
    return Entrant(
        name=name_of(plan),
        start=start_of(plan),
        version_id=version_id,
        epochs=len(epochs),
        seconds=sum(one.seconds for one in epochs),
        validation=version.validation_accuracy,
        test=on.get("test"),
        benchmark=on.get("benchmark"),
        latency_seconds=version.latency_seconds,
        checkpoint_bytes=kept.size if kept else None,
    )


def _benchmark() -> int:
    with database.connect().transaction() as session:
        return benchmark.current(session).version


def _publish(done: Bakeoff) -> None:
    if FlowRunContext.get() is None:
        return
    columns, rows = table(done)
    with courtesy("publish the bake-off"):
        create_table_artifact(
            [dict(zip(columns, row, strict=True)) for row in rows],
            key="bakeoff",
            description=f"Snapshot {done.snapshot_digest[:12]}, benchmark version "
            f"{done.benchmark_version}; picture in S3: {done.picture}",
        )


def table(done: Bakeoff) -> Grid:
    """Every entrant, the most accurate first and those without figures last."""
    columns = ["entrant", "start", "version", "benchmark", "95% interval", "test", "validation",
               "epochs", "training", "latency", "size", "problem"]  # fmt: skip
    best = sorted(
        done.entrants, key=lambda one: one.benchmark.accuracy if one.benchmark else -1, reverse=True
    )
    return columns, [
        [
            one.name,
            one.start.removeprefix("from "),
            str(one.version_id or ""),
            f"{one.benchmark.accuracy:.1%}" if one.benchmark else "",
            f"{one.benchmark.low:.1%} to {one.benchmark.high:.1%}" if one.benchmark else "",
            f"{one.test.accuracy:.1%}" if one.test else "",
            "" if one.validation is None else f"{one.validation:.1%}",
            str(one.epochs or ""),
            lasting(one.seconds) if one.epochs else "",
            f"{1000 * one.latency_seconds:.1f} ms" if one.latency_seconds else "",
            f"{one.checkpoint_bytes / 1e6:.1f} MB" if one.checkpoint_bytes else "",
            one.problem or "",
        ]
        for one in best
    ]


def for_terminals(done: Bakeoff) -> list[Grid]:
    """The same in narrow tables: how right, at what price, and why some have no figures."""
    columns, rows = table(done)
    problem = columns.index("problem")

    def only(names: list[str], some: list[list[str]]) -> Grid:
        places = [columns.index(name) for name in names]
        return names, [[row[place] for place in places] for row in some]

    measured = [row for row in rows if not row[problem]]
    failed = [row for row in rows if row[problem]]
    grids = [
        only(["entrant", "benchmark", "95% interval", "test", "validation"], measured),
        only(["entrant", "version", "epochs", "training", "latency", "size", "start"], measured),
        only(["entrant", "problem"], failed),
    ]
    return [(names, lines) for names, lines in grids if lines]


# --- the picture ----------------------------------------------------------------------------


def _keep(entrants: Sequence[Entrant], run_id: int) -> str | None:
    """Draw and keep the picture, of which S3 has one for each bake-off; answers its key."""
    if not any(one.benchmark for one in entrants):
        return None
    key = f"bakeoffs/run-{run_id}.png"
    storage.connect().write(key, draw(entrants))
    return key


def draw(entrants: Sequence[Entrant]) -> bytes:
    """Benchmark accuracy against training time, latency and checkpoint size, as PNG.

    A picture of three panels with one scale of accuracy; bars are 95% intervals, a hollow mark is
    a random start. Entrants without figures are left out.
    """
    # No pyplot: it keeps figures, and asks for a window where there is one.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import PercentFormatter

    shown = sorted(
        (one for one in entrants if one.benchmark), key=lambda one: one.benchmark.accuracy  # type: ignore[union-attr]
    )
    spaced = ConstrainedLayoutEngine(wspace=0.04, w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(13, 4.8), dpi=100, layout=spaced)
    panels = figure.subplots(1, 3, sharey=True)
    whats = (
        ("training, minutes", [one.seconds / 60 for one in shown]),
        ("latency of one picture on one CPU, milliseconds",
         [1000 * (one.latency_seconds or 0) for one in shown]),
        ("checkpoint, megabytes", [(one.checkpoint_bytes or 0) / 1e6 for one in shown]),
    )  # fmt: skip
    colours = [f"C{place}" for place in range(len(shown))]
    for axes, (what, places) in zip(panels, whats, strict=True):
        for one, place, colour in zip(shown, places, colours, strict=True):
            on = one.benchmark
            if on is None:
                continue
            axes.errorbar(
                place, on.accuracy, [[on.accuracy - on.low], [on.high - on.accuracy]], fmt="o",
                color=colour, markersize=8, capsize=3, linewidth=1,
                markerfacecolor="white" if "random" in one.start else colour,
                label=f"{one.name}: {on.accuracy:.1%}, {one.start}",
            )  # fmt: skip
        axes.set_xlabel(what)
        axes.set_xlim(0, 1.12 * max(places, default=1.0) or 1.0)
        axes.grid(color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy on the benchmark, with 95% interval")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center",
                  ncols=min(2, len(shown)), frameon=False, fontsize=9)  # fmt: skip
    images = shown[0].benchmark.images if shown and shown[0].benchmark else 0
    figure.suptitle(f"Bake-off: {len(shown)} entrants on one snapshot, {images} benchmark images",
                    x=0.01, ha="left", fontweight="bold")  # fmt: skip
    body = io.BytesIO()
    figure.savefig(body, format="png")
    return body.getvalue()
