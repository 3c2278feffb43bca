"""What a version is worth: every figure kept of it, and tables of the most telling ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape

from flows.grid import table
from infra import database
from records import evaluations, versions
from records.evaluations import EvaluationRow
from vision.scores import interval

WEAKEST = 10
MOST_CONFUSED = 10
MOST_FORGOTTEN = 5
MOST_ANCESTORS = 8  # named in one line
IN_SAMPLE = "in-sample: it or an ancestor may have learned these very images"
OUT_OF_SAMPLE = {
    "validation": "out of sample, but its temperature and threshold were fitted here",
    "test": "out of sample",
    "held": "out of sample",
}


def subject(row: EvaluationRow) -> str:
    """What was answered: `test`, `benchmark 2`, `batch 7`."""
    number = row.benchmark_version or row.batch_id
    return row.subject if number is None else f"{row.subject} {number}"


def decisive(found: list[EvaluationRow]) -> EvaluationRow | None:
    """The evaluation that counts most: on the newest benchmark, else on the test images."""
    on_benchmark = [one for one in found if one.benchmark_version is not None]
    if on_benchmark:
        return max(on_benchmark, key=lambda one: one.benchmark_version or 0)
    return next((one for one in found if one.subject == "test"), None)


def facts(version_id: int) -> dict[str, Any]:
    """Every figure of a version, by what it was measured on; `transfer` is against its parent."""
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
        found = evaluations.of_version(session, version_id)
        line = [one.id for one in reversed(versions.lineage(session, version_id))]
        main = decisive(found)
        training, validation = version.training_accuracy, version.validation_accuracy
        return {
            "evaluations": [asdict(one) for one in found],
            "decisive": subject(main) if main else None,
            "classes": {
                subject(one): [asdict(row) for row in evaluations.class_scores(session, one.id)]
                for one in found
            },
            "reliability": {
                subject(one): [asdict(row) for row in evaluations.reliability(session, one.id)]
                for one in found
            },
            "confusions": {
                subject(one): [asdict(row) for row in evaluations.confusions(session, one.id)]
                for one in found
            },
            "unknown": {
                subject(one): sum(
                    row.images
                    for row in evaluations.class_scores(session, one.id)
                    if row.name not in version.class_names
                )
                for one in found
            },
            "thresholds": [
                asdict(one) | {"coverage": one.coverage, "sentence": one.sentence}
                for one in evaluations.thresholds(session, version_id)
            ],
            "transfer": {
                on: asdict(change) if change else None
                for on in ("test", "benchmark")
                for change in [
                    evaluations.transfer_between(session, version_id, version.parent_id, on)
                    if version.parent_id
                    else None
                ]
            },
            "parent": version.parent_id,
            "lineage": line,
            "training_accuracy": training,
            "validation_accuracy": validation,
            "gap": None if training is None or validation is None else training - validation,
            "temperature": version.temperature,
            "library": [
                asdict(row) | {"in_sample": row.split == "train"}
                for one in found
                if one.subject == "library"
                for row in evaluations.by_split(session, one.id, version.class_names)
            ],
        }


def show(known: dict[str, Any]) -> None:
    """Print what `facts` knows, for people."""
    _show_overview(known)
    console = Console()
    for line in sentences(known):
        console.print(escape(line))
    console.print()
    _show_transfer(known)
    _show_weakest(known)
    _show_confusions(known)
    _show_library(known)


def percent(share: float | None) -> str:
    """A share as a percentage, or nothing where it was not measured."""
    return "" if share is None else f"{share:.1%}"


def between(share: float | None, low: float | None, high: float | None) -> str:
    """A share with its interval: `83.3% [49, 94]`."""
    if share is None:
        return ""
    ends = "" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]"
    return f"{share:.1%}{ends}"


def _show_overview(known: dict[str, Any]) -> None:
    table(
        ["on", "images", "accuracy", "top 5", "mean F1", "calibration"],
        (
            (
                on,
                str(one["images"]),
                between(one["accuracy"], one["accuracy_low"], one["accuracy_high"]),
                between(one["top5_accuracy"], one["top5_low"], one["top5_high"]),
                percent(one["mean_f1"]),
                _calibration(one),
            )
            for on, one in zip(known["classes"], known["evaluations"], strict=True)
        ),
        r"Accuracy \[95% interval], calibration error (by chance)",
    )


def _calibration(one: dict[str, Any]) -> str:
    if one["calibration_error"] is None:
        return ""
    by_chance = one["calibration_by_chance"]
    return f"{one['calibration_error']:.3f}" + ("" if by_chance is None else f" ({by_chance:.3f})")


def sentences(known: dict[str, Any]) -> Iterator[str]:
    """Unknown classes, gap, temperature, lineage and thresholds, a line each."""
    for on, images in known["unknown"].items():
        if images:
            yield f"{images} images of {on} are of classes it does not know: they count as wrong."
    if known["gap"] is None:
        yield "The gap between training and validation is not known."
    else:
        yield (
            f"Training {known['training_accuracy']:.1%}, validation "
            f"{known['validation_accuracy']:.1%}: a gap of {100 * known['gap']:.1f} points."
        )
    temperature = known["temperature"]
    if temperature is not None:
        was = "less sure than right" if temperature < 1 else "surer than right"
        yield f"Temperature {temperature:.2f}, fitted on validation: as trained it was {was}."
    line = known["lineage"]
    named = " → ".join(str(one) for one in line[-MOST_ANCESTORS:])
    if len(line) > MOST_ANCESTORS:
        named = f"… → {named}"
    yield f"Lineage of {len(line)}: version {named}."
    newest = max((one["benchmark_version"] or 0 for one in known["thresholds"]), default=0)
    for one in known["thresholds"]:
        fitted = one["subject"] == "validation"
        last = one["benchmark_version"] == newest if newest else one["subject"] == "test"
        if (fitted and one["confidence"] is None) or last:
            yield one["sentence"]


def _show_transfer(known: dict[str, Any]) -> None:
    if known["parent"] is None:
        return
    measured = {on: one for on, one in known["transfer"].items() if one}
    if measured:
        table(
            ["on", "images", "before", "now", "lost/won", "change", "transfer", "forgot"],
            (
                (
                    on,
                    str(one["images"]),
                    percent(one["before"] / one["images"]),
                    percent(one["now"] / one["images"]),
                    f"{one['lost']}/{one['gained']}",
                    f"{100 * one['change']:+.1f} [{100 * one['change_low']:+.0f}, "
                    f"{100 * one['change_high']:+.0f}]",
                    f"{100 * one['backward_transfer']:+.1f}",
                    f"{100 * one['forgetting']:.1f}",
                )
                for on, one in measured.items()
            ),
            f"Against its parent, version {known['parent']}, where both answered and know the "
            r"class \[points]",
        )
    for on in set(known["transfer"]) - set(measured):
        Console().print(f"What it forgot on {on} is not known: no image that both answered.\n")
    _show_forgotten(max(measured.values(), key=lambda one: one["images"], default=None))


def _show_forgotten(change: dict[str, Any] | None) -> None:
    """The classes that lost most, where most images tell."""
    losers = [one for one in change["classes"] if one["now"] < one["before"]] if change else []
    if not losers:
        return
    named = ", ".join(
        f"{one['name']} ({one['before']} to {one['now']} right of {one['images']})"
        for one in losers[:MOST_FORGOTTEN]
    )
    more = len(losers) - MOST_FORGOTTEN
    Console().print(escape(f"Forgotten most: {named}{f' and {more} more' if more > 0 else ''}\n"))


def _show_weakest(known: dict[str, Any]) -> None:
    rows = known["classes"].get("test", [])
    if not rows:
        return
    table(
        ["class", "images", "recall", "precision", "F1"],
        (
            (
                escape(one["name"]),
                str(one["images"]),
                *(
                    between(one[name], one[f"{name}_low"], one[f"{name}_high"])
                    for name in ("recall", "precision", "f1")
                ),
            )
            for one in rows[:WEAKEST]
        ),
        f"Weakest of {len(rows)} classes on test images \\[95% interval]",
    )


def _show_confusions(known: dict[str, Any]) -> None:
    rows = known["confusions"].get(known["decisive"]) or []
    if not rows:
        return
    table(
        ["true", "answered", "images", "share of the true class"],
        (
            (
                escape(one["label"]),
                escape(one["predicted"]),
                str(one["images"]),
                percent(one["share"]),
            )
            for one in rows[:MOST_CONFUSED]
        ),
        f"Confused most often on {known['decisive']}, of {sum(one['images'] for one in rows)} "
        "errors",
    )


def _show_library(known: dict[str, Any]) -> None:
    if not known["library"]:
        return
    table(
        ["split", "images", "accuracy", ""],
        (
            (
                one["split"],
                str(one["images"]),
                between(
                    one["correct"] / one["images"],
                    *(interval(one["correct"], one["images"]) or (None, None)),
                ),
                IN_SAMPLE if one["in_sample"] else OUT_OF_SAMPLE[one["split"]],
            )
            for one in known["library"]
        ),
        "The whole library, images of classes it knows",
    )
