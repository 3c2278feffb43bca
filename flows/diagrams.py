"""Pictures of a version's figures, kept in S3: how sure and right it is, and what it confuses."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flows.figures import decisive, subject
from infra import database
from records import evaluations, versions
from records.evaluations import EvaluationRow, ThresholdRow
from vision.scores import Bin, ClassScore, Confusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger("regraft")

MOST_CLASSES = 20  # rows of a matrix that can still be read
MOST_THRESHOLDS = 2  # told above a curve, those of the highest wishes
BLUE, ORANGE, GREY, PALE = "#2f6f9f", "#c7622b", "#777777", "#dde7ee"


def key(version_id: int, name: str) -> str:
    """Where a picture of a version lies in S3; its name is `reliability` or `confusion`."""
    return f"figures/version-{version_id}-{name}.png"


def keep(version_id: int) -> None:
    """Draw a version's figures as they are now and keep them; a failure is said, and fails nothing.

    Whoever evaluates the version anew keeps them anew.
    """
    from infra import storage

    try:
        for name, body in drawn(version_id).items():
            storage.connect().write(key(version_id, name), body)
    except Exception as error:
        # The figures themselves are in Postgres; the pictures can be drawn at any time.
        log.warning("the pictures of version %d were not kept: %s", version_id, error)


def drawn(version_id: int) -> dict[str, bytes]:
    """Each picture that the version's figures suffice for, as PNG by name."""
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
        found = evaluations.of_version(session, version_id)
        main = decisive(found)
        newest = [one for one in found if one.subject in ("validation", "test") or one == main]
        curves = [(one, evaluations.reliability(session, one.id)) for one in newest]
        thresholds = evaluations.thresholds(session, version_id)
        wrong = evaluations.confusions(session, main.id) if main else []
        classes = evaluations.class_scores(session, main.id) if main else []
    title = f"Version {version_id} ({version.architecture})"
    pictures = {}
    if any(bins for _, bins in curves):
        pictures["reliability"] = reliability(title, curves, thresholds)
    if main and classes:
        pictures["confusion"] = confusion(f"{title} on {subject(main)}", classes, wrong)
    return pictures


# --- how sure, how right ----------------------------------------------------------------------


def reliability(
    title: str,
    curves: Sequence[tuple[EvaluationRow, Sequence[Bin]]],
    thresholds: Sequence[ThresholdRow],
) -> bytes:
    """One panel for each set of images: accuracy over confidence, above how many are so sure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 4.1 * len(curves), 6), dpi=100)
    grid = figure.add_gridspec(
        2, len(curves), height_ratios=(4, 1), hspace=0.08, wspace=0.18,
        left=0.75 / figure.get_figwidth(), right=1 - 0.3 / figure.get_figwidth(), top=0.79,
        bottom=0.1,
    )  # fmt: skip
    for place, (row, bins) in enumerate(curves):
        upper = figure.add_subplot(grid[0, place])
        lower = figure.add_subplot(grid[1, place], sharex=upper)
        _curve(upper, row, bins, thresholds)
        _counts(lower, bins)
        if place == 0:
            upper.set_ylabel("share that is right, with 95% interval")
            lower.set_ylabel("images")
    figure.suptitle(f"{title}: is it as right as it is sure?", x=0.75 / figure.get_figwidth(),
                    y=0.97, ha="left", va="top", fontweight="bold")  # fmt: skip
    return _png(figure)


def _curve(
    axes: Axes, row: EvaluationRow, bins: Sequence[Bin], thresholds: Sequence[ThresholdRow]
) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    sure = [one.confidence for one in bins]
    right = np.array([one.accuracy for one in bins])
    ends = np.array([[one.accuracy_low for one in bins], [one.accuracy_high for one in bins]])
    axes.errorbar(sure, right, yerr=np.abs(ends - right), fmt="o-", color=BLUE, markersize=4,
                  linewidth=1, elinewidth=1, capsize=2)  # fmt: skip
    told = []
    for one in thresholds:
        here = one.subject == row.subject and one.benchmark_version == row.benchmark_version
        if here and one.confidence is not None:
            got = "no answer" if one.precision is None else f"{one.precision:.1%} right"
            told.append(f"at {one.confidence:.2f} or more: {got} (wished {one.wished:.1%})")
            axes.axvline(one.confidence, color=ORANGE, linewidth=1)
    axes.text(0, 1.02, "\n".join(told[-MOST_THRESHOLDS:]), transform=axes.transAxes, color=ORANGE,
              fontsize=8, va="bottom")  # fmt: skip
    error = ""
    if row.calibration_error is not None:
        error = f"calibration error {row.calibration_error:.3f}"
    if row.calibration_by_chance is not None:
        error += f", by chance {row.calibration_by_chance:.3f}"
    axes.set_title(f"{subject(row)}, {row.images:,} images, {row.accuracy:.1%} right\n{error}",
                   loc="left", fontsize=9, pad=32)  # fmt: skip
    axes.text(0.03, 0.97, "less sure\nthan right", color=GREY, fontsize=8, va="top")
    axes.text(0.97, 0.10, "surer\nthan right", color=GREY, fontsize=8, ha="right")
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.02)
    axes.tick_params(labelbottom=False)
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _counts(axes: Axes, bins: Sequence[Bin]) -> None:
    axes.bar([one.low for one in bins], [one.images for one in bins],
             [one.high - one.low for one in bins], align="edge", color=BLUE, edgecolor="white",
             linewidth=0.5)  # fmt: skip
    axes.set_xlabel("confidence of the answer")
    axes.locator_params(axis="y", nbins=3, integer=True)
    axes.spines[["top", "right"]].set_visible(False)


# --- what it confuses -------------------------------------------------------------------------


def confusion(title: str, classes: Sequence[ClassScore], wrong: Sequence[Confusion]) -> bytes:
    """True classes downwards, answered ones across; of many classes those confused most often."""
    from matplotlib.figure import Figure

    names, rest = chosen(classes, wrong)
    table, shares = _matrix(names, rest, classes, wrong)
    longest = max(len(_short(name)) for name in names)
    beside, below = 1.2 + 0.07 * longest, 0.5 + 0.07 * longest  # inches for the names
    cell = 0.42 if len(names) > 8 else 0.62
    width, height = beside + cell * table.shape[1] + 0.4, 1.0 + cell * len(names) + below
    width = max(width, 6.5)
    figure = Figure(figsize=(width, height), dpi=100)
    axes = figure.add_axes((beside / width, below / height, cell * table.shape[1] / width,
                            cell * len(names) / height))  # fmt: skip
    _cells(axes, table, shares)
    images = {one.name: one.images for one in classes}
    axes.set_yticks(range(len(names)), [f"{_short(name)}  {images[name]:,}" for name in names],
                    fontsize=8, parse_math=False)  # fmt: skip
    across = [_short(name) for name in names] + (["all others"] if rest else [])
    axes.set_xticks(range(len(across)), across, fontsize=8, rotation=90, parse_math=False)
    axes.set_ylabel("true class and its images")
    axes.set_xlabel("answered")
    errors = sum(one.images for one in wrong)
    shown = int(table[:, : len(names)].sum() - np.trace(table[:, : len(names)]))
    what = (f"all {len(names)} classes, {errors:,} errors" if not rest else
            f"the {len(names)} of {len(classes)} classes confused most: {shown:,} of "
            f"{errors:,} errors are between them")  # fmt: skip
    figure.suptitle(title, x=0.2 / width, y=1 - 0.15 / height, ha="left", va="top",
                    fontweight="bold")  # fmt: skip
    figure.text(0.2 / width, 1 - 0.5 / height, what, ha="left", va="top", fontsize=9, color=GREY)
    return _png(figure)


def chosen(classes: Sequence[ClassScore], wrong: Sequence[Confusion]) -> tuple[list[str], bool]:
    """The classes to show, and whether some are left out.

    All that occur, by name, where they fit; else the pairs confused most often, and those beside
    each other that are confused with each other.
    """
    occurring = sorted(one.name for one in classes if one.images or one.predicted)
    if len(occurring) <= MOST_CLASSES:
        return occurring, False
    names: dict[str, None] = {}
    for one in wrong:
        both = dict.fromkeys((one.label, one.predicted))
        if len(names | both) > MOST_CLASSES:
            break
        names |= both
    return _neighbours(sorted(names) or occurring[:MOST_CLASSES], wrong), True


def _neighbours(names: list[str], wrong: Sequence[Confusion]) -> list[str]:
    if len(names) < 3:
        return names
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    place = {name: index for index, name in enumerate(names)}
    together = np.zeros((len(names), len(names)))
    for one in wrong:
        if one.label in place and one.predicted in place:
            row, column = place[one.label], place[one.predicted]
            together[row, column] += one.images
            together[column, row] += one.images
    apart = 1 / (1 + together)
    np.fill_diagonal(apart, 0)
    tree = linkage(squareform(apart), "average", optimal_ordering=True)
    return [names[index] for index in leaves_list(tree)]


def _matrix(
    names: Sequence[str], rest: bool, classes: Sequence[ClassScore], wrong: Sequence[Confusion]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Counts, a last column for all other answers if there are some, and shares of each row."""
    place = {name: index for index, name in enumerate(names)}
    table = np.zeros((len(names), len(names) + rest), np.int64)
    for one in wrong:
        if one.label in place:
            table[place[one.label], place.get(one.predicted, len(names))] += one.images
    for each in classes:
        if each.name in place:
            table[place[each.name], place[each.name]] = each.correct
    return table, table / np.maximum(table.sum(axis=1, keepdims=True), 1)


def _cells(axes: Axes, table: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> None:
    """Errors in orange by their share of the row, what is right in blue; counts as numbers."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    picture = np.ones((*table.shape, 3))
    for row in range(table.shape[0]):
        for column in range(table.shape[1]):
            share = shares[row, column]
            if row == column:
                picture[row, column] = 1 - share * 0.75 * (1 - np.array(to_rgb(BLUE)))
            elif share:
                # a single error of many must still be seen, and half of them is as bad as it gets
                picture[row, column] = colormaps["Oranges"](0.12 + min(1.0, 1.6 * share) * 0.75)[:3]
    axes.imshow(picture, aspect="auto")
    for row, column in zip(*np.nonzero(table), strict=True):
        dark = picture[row, column] @ np.array([0.3, 0.6, 0.1]) < 0.5
        axes.text(column, row, f"{table[row, column]:,}", ha="center", va="center", fontsize=8,
                  color="white" if dark else "black")  # fmt: skip
    axes.set_xticks(np.arange(-0.5, table.shape[1]), minor=True)
    axes.set_yticks(np.arange(-0.5, table.shape[0]), minor=True)
    axes.grid(which="minor", color=PALE, linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _png(figure: Figure) -> bytes:
    body = io.BytesIO()
    figure.savefig(body, format="png")
    return body.getvalue()
