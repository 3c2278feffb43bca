"""Pictures of history, where people would rather look than read: one for each kind of row."""

from __future__ import annotations

from collections import defaultdict
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.diagrams import BLUE, GREY, ORANGE, PALE
from records import history

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 8  # that can still be told apart


def draw(rows: list[Any], path: Path) -> None:
    """Draw rows of one kind into a file, its ending says which format."""
    # No pyplot: it keeps figures, and asks for a window where there is one.
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color=PALE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _draw(rows[0], rows, axes)
    places = axes.xaxis.get_major_locator()
    if isinstance(places, AutoDateLocator):  # or dates would run into each other
        axes.xaxis.set_major_formatter(ConciseDateFormatter(places))  # type: ignore[no-untyped-call]
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


@singledispatch
def _draw(kind: Any, rows: list[Any], axes: Axes) -> None:
    raise TypeError(f"no picture is known for {type(kind).__name__}")


@_draw.register(history.Accuracy)
def _(kind: history.Accuracy, rows: list[Any], axes: Axes) -> None:
    axes.set_title("Accuracy of each evaluation, with 95% interval; large: the version served")
    for name, some in _sets(rows):
        line = _intervals(axes, [one.evaluated_at for one in some], some, name)
        served = [one for one in some if one.first_live]
        axes.plot([one.evaluated_at for one in served], [one.accuracy for one in served], "o",
                  color=line.get_color(), markersize=6)  # fmt: skip
    axes.set_ylabel("accuracy")


@_draw.register(history.ClassAccuracy)
def _(kind: history.ClassAccuracy, rows: list[Any], axes: Axes) -> None:
    measured = [one for one in rows if one.recall is not None]
    names = list(dict.fromkeys(one.class_name for one in measured))
    told = f"of {names[0]}" if len(names) == 1 else f"of {min(len(names), MOST_LINES)} classes"
    axes.set_title(f"Recall {told} over time, with 95% interval")
    for name in names[:MOST_LINES]:
        for on, some in _sets([one for one in measured if one.class_name == name]):
            label = on if len(names) == 1 else f"{name}, {on}"
            _intervals(axes, [one.evaluated_at for one in some], some, label, "recall")
    axes.set_ylabel("recall")


@_draw.register(history.Band)
def _(kind: history.Band, rows: list[Any], axes: Axes) -> None:
    axes.set_title("As right as sure? Accuracy over confidence, with 95% interval")
    curves: dict[str, list[Any]] = defaultdict(list)
    for one in rows:
        number = one.benchmark_version or one.batch_id or ""
        curves[f"version {one.version_id} on {one.subject} {number}".strip()].append(one)
    for name, some in list(curves.items())[:MOST_LINES]:
        _intervals(axes, [one.confidence for one in some], some, name)
    _diagonal(axes)


@_draw.register(history.InUseBand)
def _(kind: history.InUseBand, rows: list[Any], axes: Axes) -> None:
    axes.set_title("As right as sure in use? From random reviews, with 95% interval")
    some = [one for one in rows if one.accuracy is not None]
    _intervals(axes, [one.reviewed_confidence for one in some], some, "in use")
    _diagonal(axes)


def _diagonal(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel("confidence")
    axes.set_ylabel("share that is right")


@_draw.register(history.InUse)
def _(kind: history.InUse, rows: list[Any], axes: Axes) -> None:
    axes.set_title("Accuracy in use, from random reviews, beside what was measured in training")
    some = sorted(rows, key=lambda one: one.version_id)
    for name, label in (("test_accuracy", "test"), ("benchmark_accuracy", "benchmark")):
        known = [one for one in some if getattr(one, name) is not None]
        axes.plot([one.version_id for one in known], [getattr(one, name) for one in known], "-",
                  linewidth=1, label=label)  # fmt: skip
    reviewed = [one for one in some if one.accuracy is not None]
    _intervals(axes, [one.version_id for one in reviewed], reviewed, "in use", colour=ORANGE)
    axes.set_xlabel("version")
    axes.set_ylabel("accuracy")


@_draw.register(history.Calibration)
def _(kind: history.Calibration, rows: list[Any], axes: Axes) -> None:
    axes.set_title("How sure and how right what served was, week by week")
    some = rows[::-1]
    sure = [one for one in some if one.mean_confidence is not None]
    axes.plot([one.week for one in sure], [one.mean_confidence for one in sure], color=BLUE,
              label="mean confidence of all transactions")  # fmt: skip
    right = [one for one in some if one.accuracy is not None]
    _intervals(axes, [one.week for one in right], right, "right, from random reviews",
               colour=ORANGE)  # fmt: skip
    axes.set_ylabel("share")


@_draw.register(history.Usage)
def _(kind: history.Usage, rows: list[Any], axes: Axes) -> None:
    axes.set_title("Transactions by day and client (UTC)")
    totals: dict[str, dict[Any, int]] = defaultdict(lambda: defaultdict(int))
    for one in rows:
        totals[one.client][one.day] += one.transactions
    _stacked(axes, totals)
    axes.set_ylabel("transactions")


@_draw.register(history.Predicted)
def _(kind: history.Predicted, rows: list[Any], axes: Axes) -> None:
    axes.set_title("Answers by day and class (UTC)")
    totals: dict[str, dict[Any, int]] = defaultdict(lambda: defaultdict(int))
    for one in rows:
        totals[one.class_name][one.day] += one.transactions
    _stacked(axes, totals)
    axes.set_ylabel("answers")


@_draw.register(history.Growth)
def _(kind: history.Growth, rows: list[Any], axes: Axes) -> None:
    axes.set_title("What there was to learn, snapshot by snapshot")
    some = rows[::-1]
    when = [one.frozen_at for one in some]
    axes.step(when, [one.images for one in some], where="post", color=BLUE)
    axes.set_ylabel("images", color=BLUE)
    beside = axes.twinx()
    beside.step(when, [one.classes for one in some], where="post", color=ORANGE)
    beside.set_ylabel("classes", color=ORANGE)


@_draw.register(history.ClassGrowth)
def _(kind: history.ClassGrowth, rows: list[Any], axes: Axes) -> None:
    names = list(dict.fromkeys(one.class_name for one in rows))
    axes.set_title("Usable images of a class over time; dashed: the cutoff")
    for name in names[:MOST_LINES]:
        some = [one for one in reversed(rows) if one.class_name == name]
        axes.step([one.frozen_at for one in some], [one.usable for one in some], "o-", where="post",
                  markersize=3, label=name)  # fmt: skip
    axes.step([one.frozen_at for one in reversed(rows)], [one.cutoff for one in reversed(rows)],
              color=GREY, linewidth=1, linestyle=(0, (4, 3)), where="post")  # fmt: skip
    axes.set_ylabel("images")


def _sets(rows: list[Any]) -> list[tuple[str, list[Any]]]:
    """Rows by the set of images that they are about, the oldest first."""
    found: dict[str, list[Any]] = defaultdict(list)
    for one in reversed(rows):
        found[one.subject].append(one)
    return list(found.items())[:MOST_LINES]


def _intervals(
    axes: Axes, places: list[Any], rows: list[Any], label: str, figure: str = "accuracy",
    colour: str | None = None,
) -> Any:  # fmt: skip
    """A line of one figure with its intervals."""
    values = [getattr(one, figure) for one in rows]
    below = [value - getattr(one, f"{figure}_low")
             for value, one in zip(values, rows, strict=True)]  # fmt: skip
    above = [getattr(one, f"{figure}_high") - value
             for value, one in zip(values, rows, strict=True)]  # fmt: skip
    errors = [[max(0.0, one) for one in below], [max(0.0, one) for one in above]]
    return axes.errorbar(places, values, yerr=errors, fmt="o-", color=colour, markersize=3,
                         linewidth=1, elinewidth=1, capsize=2, label=label).lines[0]  # fmt: skip


def _stacked(axes: Axes, totals: dict[str, dict[Any, int]]) -> None:
    """Bars of each day, those with the most at the bottom; what is too small goes together."""
    days = sorted({day for one in totals.values() for day in one})
    bottom = dict.fromkeys(days, 0)
    ranked = sorted(totals, key=lambda name: -sum(totals[name].values()))
    for place, name in enumerate(ranked[:MOST_LINES]):
        rest = place == MOST_LINES - 1 and len(ranked) > MOST_LINES
        together = ranked[place:] if rest else [name]
        heights = [sum(totals[one].get(day, 0) for one in together) for day in days]
        axes.bar(days, heights, bottom=list(bottom.values()), width=0.9,
                 label=f"{len(together)} more" if rest else name)  # fmt: skip
        bottom = {day: bottom[day] + height for day, height in zip(days, heights, strict=True)}
