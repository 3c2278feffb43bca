"""What a version fails at, for people: tables, the same facts for scripts, and a picture in S3."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from flows.grid import table
from infra import database
from records import failures, objects, versions
from vision.failures import TRANSFORMATIONS, Sensitivity, Transformation, told

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vision.plan import Plan

log = logging.getLogger("regraft")

WORST_CLASSES = 5
MOST_CLASSES = 10
MOST_CONFUSIONS = 10
MOST_DOUBTS = 20
BLUE, GREY = "#2f6f9f", "#777777"


def facts(version_id: int) -> dict[str, Any]:
    """Everything an analysis found; raises `UnknownVersion` or `NotAnalysed`."""
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
        doubts = failures.doubts(session, version_id)
        sources = objects.sources(session, [one.sha256 for one in doubts])
        return {
            "analysis": asdict(failures.get(session, version_id)),
            "sensitivities": [
                asdict(one) | {"accuracy": one.accuracy}
                for one in failures.sensitivities(session, version_id)
            ],
            "changes": [asdict(one) for one in failures.derived(session, version_id).changes],
            "confusions": [
                asdict(one)
                for one in failures.confusions(session, version_id, "validation", MOST_CONFUSIONS)
            ],
            "doubts": [
                asdict(one) | {"key": sources[one.sha256][0] if one.sha256 in sources else None}
                for one in doubts
            ],
            "parent": version.parent_id,
            "targeted": bool(version.plan.get("targeted")),
        }


def show(version_id: int) -> None:
    """Print what a version fails at."""
    found = facts(version_id)
    analysis = found["analysis"]
    with database.connect().transaction() as session:
        measured = failures.sensitivities(session, version_id)
    console = Console()
    console.print(f"[bold]version {version_id}[/bold] · {analysis['images']} validation images, "
                  "each as it is and bent in every way")  # fmt: skip
    if found["targeted"] and found["parent"] is not None:
        console.print(f"Its own training was aimed at what version {found['parent']} fails at: "
                      f"`regraft failures {found['parent']}`")  # fmt: skip
    console.print()
    general = [one for one in measured if one.class_name is None]
    table(["what", "accuracy", "drop in points", "95% interval"],
          ((told(one.transformation, one.strength), _percent(one.accuracy), *_dropped(one))
           for one in general),
          "All classes")  # fmt: skip
    worst = sorted((one for one in measured if one.class_name and one.drop is not None),
                   key=lambda one: (-(one.drop_low or 0), str(one.class_name)))  # fmt: skip
    if worst:
        table(["class", "images", "what", "drop in points", "95% interval"],
              ((escape(str(one.class_name)), str(one.images),
                told(one.transformation, one.strength), *_dropped(one))
               for one in worst[:MOST_CLASSES]),
              "Classes that lose most")  # fmt: skip
    few = {one.class_name for one in measured if one.class_name and one.drop is None}
    if few:
        console.print(f"{len(few)} classes have too few validation images to say anything of\n")
    _show_plan(console, found)
    if found["confusions"]:
        table(["true class", "answered with", "images", "of"],
              ((escape(one["label"]), escape(one["predicted"]), str(one["images"]), str(one["of"]))
               for one in found["confusions"]),
              "Confused most often on validation images")  # fmt: skip
    else:
        console.print("No validation image is taken for one of another class\n")
    _show_doubts(console, found)


def next_plan(version_id: int) -> Plan:
    """The version's plan, aimed at what it fails at; raises `NotAnalysed`."""
    with database.connect().transaction() as session:
        return failures.next_plan(session, version_id)[0]


def _show_plan(console: Console, found: dict[str, Any]) -> None:
    console.print("[bold]The next plan[/bold] (used where it says targeted=true)")
    if not found["changes"]:
        console.print("bends pictures as this one did: nothing realistic costs enough, or surely")
    for one in found["changes"]:
        console.print(escape(one["sentence"]))
    console.print()


def _show_doubts(console: Console, found: dict[str, Any]) -> None:
    doubts, doubted = found["doubts"], found["analysis"]["doubted"]
    if doubts:
        table(["label", "rather", "score", "of", "by version", "key"],
              ((escape(one["label"]), escape(one["suggested"]), f"{one['score']:.3f}",
                one["subject"], str(one["answered_by"]), escape(one["key"] or one["sha256"]))
               for one in doubts[:MOST_DOUBTS]),
              "Labels to look at, the most doubtful first")  # fmt: skip
    looked = ", ".join(f"{count} of {subject}" for subject, count in doubted.items()) or "none"
    more = f" ({MOST_DOUBTS} shown, all in --json)" if len(doubts) > MOST_DOUBTS else ""
    console.print(f"{len(doubts)} doubtful labels{more}; looked at: {looked}")


def _dropped(one: Sensitivity) -> tuple[str, str]:
    if one.drop is None or one.drop_low is None or one.drop_high is None:
        return "", "too few images to say"
    return f"{100 * one.drop:.1f}", f"{100 * one.drop_low:.1f} to {100 * one.drop_high:.1f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


# --- the picture ----------------------------------------------------------------------------


def key(version_id: int) -> str:
    """Where the picture of a version's failures lies in S3."""
    return f"failures/version-{version_id}.png"


def keep(version_id: int) -> None:
    """Draw what was found and keep it; a failure is said, and fails no night."""
    from infra import storage

    try:
        with database.connect().transaction() as session:
            if failures.find(session, version_id) is None:  # a flow that analyses nothing
                return
        storage.connect().write(key(version_id), drawn(version_id))
    except Exception as error:
        # The night is decided; the same picture can be drawn from its rows at any time.
        log.warning("the failures of version %d were not drawn: %s", version_id, error)


def drawn(version_id: int) -> bytes:
    """The picture of what an analysis found, from its rows; raises `NotAnalysed`."""
    with database.connect().transaction() as session:
        failures.get(session, version_id)
        return draw(version_id, failures.sensitivities(session, version_id))


def draw(version_id: int, found: Sequence[Sensitivity]) -> bytes:
    """Accuracy over the strength of each transformation, over all and of the worst classes, PNG."""
    # No pyplot: it keeps figures, and asks for a window where there is one.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6.6), dpi=100)
    grid = figure.subplots(2, 5, sharey=True, gridspec_kw={
        "left": 0.05, "right": 0.99, "top": 0.84, "bottom": 0.1, "wspace": 0.08, "hspace": 0.5,
    })  # fmt: skip
    for axes, one in zip(grid.flat, TRANSFORMATIONS, strict=True):
        _panel(axes, one, [each for each in found if each.transformation == one.name])
    images = next((one.images for one in found if one.class_name is None), 0)
    figure.suptitle(f"Version {version_id}: accuracy on {images} validation images, bent more and "
                    "more", x=0.05, ha="left", fontweight="bold")  # fmt: skip
    told = any(one.class_name and one.drop is not None for one in found)
    grey = f"grey: the {WORST_CLASSES} classes that lose most; " if told else ""
    figure.text(0.05, 0.925, f"blue: all classes with the 95% interval of the drop; {grey}dotted: "
                "what decides the next plan", fontsize=9, color="#555555", va="top")  # fmt: skip
    body = io.BytesIO()
    figure.savefig(body, format="png")
    return body.getvalue()


def _panel(axes: Axes, transformation: Transformation, found: list[Sensitivity]) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_title(transformation.name, loc="left", fontsize=10)
    for strength in transformation.realistic:
        axes.axvline(strength, color="#b8b8b8", linestyle=":", linewidth=1)
    classes = {one.class_name: one for one in sorted(found, key=lambda one: one.drop or 0)
               if one.class_name and one.drop is not None}  # fmt: skip
    worst = sorted(classes.values(), key=lambda one: -(one.drop or 0))[:WORST_CLASSES]
    for one in worst:
        own = [each for each in found if each.class_name == one.class_name]
        places, shares, _ = _curve(transformation, own)
        axes.plot(places, shares, color="#c4c4c4", linewidth=1)
        last = max(range(len(shares)), key=lambda place: -shares[place])
        axes.annotate(str(one.class_name)[:18], (places[last], shares[last]), fontsize=7,
                      color=GREY, ha="center", va="top")  # fmt: skip
    places, shares, bars = _curve(transformation, [one for one in found if not one.class_name])
    if places:
        axes.errorbar(places, shares, yerr=list(zip(*bars, strict=True)), color=BLUE,
                      marker="o", markersize=4, capsize=2)  # fmt: skip
        axes.set_xticks(places, ["as it is" if one is None else one
                                 for one in _ticks(transformation, places)],
                        fontsize=7)  # fmt: skip
    # so that the outermost labels end within the panel
    axes.margins(x=0.11)
    axes.set_ylim(-0.04, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color="#e4e4e4")
    axes.spines[["top", "right"]].set_visible(False)


def _untouched(transformation: Transformation) -> float:
    """The strength at which nothing is bent."""
    return {"zoom in": 1.0, "zoom out": 1.0, "JPEG": 100.0}.get(transformation.name, 0.0)


def _ticks(transformation: Transformation, places: Sequence[float]) -> list[str | None]:
    untouched = _untouched(transformation)
    return [None if one == untouched else transformation.told.format(one) for one in places]


def _curve(
    transformation: Transformation, found: Sequence[Sensitivity]
) -> tuple[list[float], list[float], list[tuple[float, float]]]:
    """Strengths, accuracies, and how far each may lie too low or too high; untouched included."""
    points = {
        one.strength: (
            one.accuracy or 0.0,
            (
                max(0.0, (one.drop_high or 0) - (one.drop or 0)),
                max(0.0, (one.drop or 0) - (one.drop_low or 0)),
            ),
        )
        for one in found
    }
    if found and found[0].images:
        points[_untouched(transformation)] = (found[0].correct / found[0].images, (0.0, 0.0))
    ordered = sorted(points.items())
    return (
        [place for place, _ in ordered],
        [share for _, (share, _) in ordered],
        [bar for _, (_, bar) in ordered],
    )
