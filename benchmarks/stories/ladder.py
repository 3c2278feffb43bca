"""The ladder: what each systematic means adds on an imbalanced set, one after the other.

    python -m benchmarks.stories.ladder --data DATA

54 classes of Caltech-101 with 25 down to 4 training pictures each, MobileNetV2 from ImageNet
weights: all layers at a constant rate, + cosine, + class weights, + dropout, + selective
unfreezing, + augmentation aimed at failures. Settings are chosen first by one seed of their own on
its validation pictures; the rows are compared on untouched test pictures, seed by seed. Writes
docs/stories/ladder.{json,md,png}.
"""

import argparse
import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.stories import study
from benchmarks.stories.study import Found, Run, Setup
from vision.failures import evenly
from vision.plan import Augmentation, Plan

STORY = "ladder"
SIZE = 80  # side in pixels that the network sees
CLASSES, MOST, FEWEST = 54, 25, 4  # training pictures of the commonest and of the rarest class
WHOLE = 40  # only classes with so many pictures are taken
VALIDATION = 5  # of each class; the test has the rest
RARE = CLASSES // 3
TRIED = 180  # test pictures that are bent
EPOCHS, HEAD_EPOCHS, HEAD_RATE = 16, 30, 3e-3
PROBE_SEED, PROBE_EPOCHS = 100, 8
HALF = (0.5, 0.5, 0.5)

ROWS = ("base", "+ cosine", "+ class weights", "+ dropout", "+ selective unfreezing",
        "+ aimed augmentation")
PHASED, AIMED = ROWS[4], ROWS[5]
# What is probed, in turn, each with what was chosen before it.
PROBES: tuple[tuple[str, tuple[Found, ...]], ...] = (
    ("base", ({"learning_rate": 3e-4}, {"learning_rate": 1e-4}, {"learning_rate": 3e-5})),
    ("+ class weights", ({"class_weights": "balanced"},
                         {"class_weights": "effective-number", "effective_beta": 0.9})),
    ("+ dropout", ({"dropout": 0.2}, {"dropout": 0.5})),
    (PHASED, ({"unfreeze": 3, "backbone_learning_rate": 3e-4},
              {"unfreeze": 3, "backbone_learning_rate": 1e-3},
              {"unfreeze": 8, "backbone_learning_rate": 3e-4},
              {"unfreeze": 8, "backbone_learning_rate": 1e-3})),
)  # fmt: skip


def main() -> None:
    """Probe, train what has not been trained yet, then write the page."""
    given = study.arguments(STORY, __doc__)
    chosen, probes = probed(given)
    page(study.run_all(STORY, run, setups(chosen), given), chosen, probes)


def probed(given: argparse.Namespace) -> tuple[dict[str, Found], list[Run]]:
    """For each probed row what did best on validation pictures, and all that was tried."""
    chosen: dict[str, Found] = {}
    tried: list[Run] = []
    for row, options in PROBES:
        runs = study.run_all(STORY, run, [
            {"row": row, "chosen": chosen | {row: option}, "epochs": PROBE_EPOCHS,
             "seed": PROBE_SEED, "probe": True}
            for option in options
        ], given)  # fmt: skip
        tried += runs
        best = max(runs, key=lambda one: one.found[row]["validation"])
        chosen = best.setup["chosen"]
    return chosen, tried


def setups(chosen: dict[str, Found]) -> list[Setup]:
    """Every row for every seed, the long one first; the last row needs the one before it."""
    return [
        {"row": row, "chosen": chosen, "epochs": EPOCHS, "seed": seed, "probe": False}
        for seed in study.SEEDS for row in (PHASED, *ROWS[:4])
    ]  # fmt: skip


# --- training -------------------------------------------------------------------------------


def run(setup: Setup, data: Path) -> Found:
    """Train one row; behind selective unfreezing also the row that is aimed at its failures."""
    row = setup["row"]
    plan = plan_of(setup, data)
    pictures = study.pictures(data / "caltech101_max40", plan.geometry)
    parts = split(pictures, setup["seed"])
    trained = study.trained_anew(plan, pictures, parts)
    if setup["probe"]:
        return {row: {"validation": trained.epochs[-1].validation_accuracy}}
    if row != PHASED:
        return {row: figures(trained, plan, pictures, parts)}
    plain, aimed = study.beside_aimed(trained, plan, pictures, parts, figures)
    return {row: plain, AIMED: aimed}


def plan_of(setup: Setup, data: Path) -> Plan:
    """The base and all that was added up to this row."""
    weights = data / "weights" / "mobilenetv2_100_coral_dequant.timm.safetensors"
    plan = Plan(
        architecture="mobilenetv2_100", arguments={"pad_type": "same"}, weights=str(weights),
        batch_norm="eval", image_size=SIZE, mean=HALF, std=HALF, batch_size=16, recipe="all",
        epochs=setup["epochs"], schedule="constant", class_weights="none", dropout=0.0,
        seed=setup["seed"],
        augmentation=Augmentation(
            scale=1.0, rotation=0.0, brightness=0.0, contrast=0.0, saturation=0.0
        ),
    )  # fmt: skip
    added: dict[str, dict[str, Any]] = {
        "+ cosine": {"schedule": "cosine"},
        PHASED: {"recipe": "two-phase", "head_epochs": HEAD_EPOCHS, "learning_rate": HEAD_RATE,
                 "epochs": HEAD_EPOCHS + setup["epochs"]},
    }  # fmt: skip
    for row in ROWS[:ROWS.index(setup["row"]) + 1]:
        plan = replace(plan, **added.get(row, {}), **setup["chosen"].get(row, {}))
    return study.settled(plan, "float32")


def tail(pictures: study.Pictures) -> dict[str, int]:
    """Training pictures of each class, the commonest first: a geometric row from most to fewest.

    Which class is rare is drawn by its name, not by the seed: all seeds have one snapshot's counts.
    """
    names = sorted(
        (name for name in set(pictures.labels.values()) if len(pictures.of([name])) >= WHOLE),
        key=lambda name: hashlib.sha256(name.encode()).digest(),
    )[:CLASSES]
    falls = (FEWEST / MOST) ** (1 / (CLASSES - 1))
    return {name: round(MOST * falls**place) for place, name in enumerate(names)}


def split(pictures: study.Pictures, seed: int) -> dict[str, list[str]]:
    """Validation as many of each class, training by the long tail, the rest untouched."""
    parts: dict[str, list[str]] = {"validation": [], "train": [], "test": []}
    for name, count in tail(pictures).items():
        counts = {"validation": VALIDATION, "train": count, "test": -1}
        for part, images in study.parted(pictures, pictures.of([name]), counts, seed).items():
            parts[part] += images
    labels = [pictures.labels[one] for one in parts["test"]]
    parts["tried"] = [parts["test"][row] for row in evenly(labels, TRIED)]
    return parts


def figures(
    trained: study.Trained, plan: Plan, pictures: study.Pictures, parts: dict[str, list[str]]
) -> Found:
    """Recall of every class on test pictures, and of them the three shares that rows compare.

    accuracy: as on pictures that come as often as they train; recall: mean of the classes; rare:
    mean of the third with the fewest training pictures.
    """
    told = study.answers(trained.network, plan, pictures, parts["test"])
    right: dict[str, list[bool]] = {}
    for label, correct in zip(told.labels, told.correct.tolist(), strict=True):
        right.setdefault(label, []).append(correct)
    recalls = {name: statistics.mean(found) for name, found in right.items()}
    counts = tail(pictures)
    return {
        "accuracy": sum(counts[name] * one for name, one in recalls.items()) / sum(counts.values()),
        "recall": statistics.mean(recalls.values()),
        "rare": statistics.mean(recalls[name] for name in list(counts)[-RARE:]),
        "validation": trained.epochs[-1].validation_accuracy,
        "recalls": {name: round(one, 4) for name, one in recalls.items()},
        "counts": counts,
        "core_seconds": round(trained.core_seconds, 1),
        "epochs": study.curve(trained.epochs),
        "images": {part: len(images) for part, images in parts.items()},
    }


# --- the page -------------------------------------------------------------------------------

FIGURES = (("accuracy", "accuracy"), ("recall", "mean recall"), ("rare", "rare third's recall"))
Rows = dict[str, Sequence[Found]]


def page(runs: Sequence[Run], chosen: dict[str, Found], probes: Sequence[Run]) -> None:
    """Table, what each row did, probes, plot."""
    rows: Rows = {row: [one.found[row] for one in runs if row in one.found] for row in ROWS}
    first = rows["base"][0]
    counts = list(first["counts"].values())
    lines = [
        f"{CLASSES} classes of Caltech-101, one snapshot's counts: {counts[0]} training pictures "
        f"of the commonest class down to {counts[-1]} of the rarest, {first['images']['train']} in "
        f"all; {VALIDATION} validation pictures of each class; the other "
        f"{first['images']['test']} are the test. MobileNetV2 from **real ImageNet weights** in "
        f"every row, {SIZE} pixels, batches of 16, float32, AdamW, running statistics of batch "
        "norm kept, pictures mirrored and not bent.",
        "",
        "*Accuracy* is that on pictures that come as often as they train, each class weighted by "
        "its training pictures; *mean recall* counts every class alike; the *rare third* are the "
        f"{RARE} classes with {counts[-1]} to {counts[-RARE]} training pictures. Changes are to "
        "the row before, each seed against itself. `Surely`: the 95% interval of Student's t over "
        "the seeds lies on one side of nothing.",
        "",
        *study.table(
            ["row", *(column for _, name in FIGURES for column in (f"{name} %", "change")),
             "core seconds"],
            [[described(row, chosen), *cells(rows, row),
              study.spread([one["core_seconds"] for one in rows[row]], 1, 0)] for row in ROWS],
        ),
        "![accuracy, mean recall and recall of the rare third by row](ladder.png)",
        "",
        "## What helped, and what did not",
        "",
        *(said(rows, row) for row in ROWS[1:]),
        whole(rows),
        "",
        bent_told(rows),
        "",
        "## How the settings were chosen",
        "",
        f"By a split and seed of their own ({PROBE_SEED}), in {PROBE_EPOCHS} instead of {EPOCHS} "
        "epochs (behind the head phase, where there is one), on validation pictures alone, in this "
        "order; bold is what was taken.",
        "",
        *study.table(
            ["row", "tried", "validation %"],
            [[one.setup["row"], setting(one, chosen),
              f"{100 * one.found[one.setup['row']]['validation']:.1f}"] for one in probes],
        ),
    ]  # fmt: skip
    study.write(STORY, "The ladder", lines)
    plot(rows, study.FOLDER / f"{STORY}.png")


def described(row: str, chosen: dict[str, Found]) -> str:
    """A row's name with what it sets."""
    own = {
        "base": f"all layers, constant rate, {EPOCHS} epochs",
        PHASED: f"{HEAD_EPOCHS} epochs of the head alone at {HEAD_RATE:g}, then {EPOCHS} of the "
                "last blocks",
    }  # fmt: skip
    told = [own[row]] if row in own else []
    told += [f"{name} {value}" for name, value in chosen.get(row, {}).items()]
    return f"{row} ({', '.join(told)})" if told else row


def cells(rows: Rows, row: str) -> list[str]:
    """Each figure and its change to the row before."""
    found = []
    for figure, _ in FIGURES:
        values = [one[figure] for one in rows[row]]
        found += [study.spread(values), "" if row == ROWS[0] else
                  study.change(values, [one[figure] for one in rows[_before(row)]])]  # fmt: skip
    return found


def said(rows: Rows, row: str) -> str:
    """What one row changed, in words."""
    told = ", ".join(gained(rows, row, _before(row), *figure) for figure in FIGURES)
    return f"- **{row}**: {told}."


def whole(rows: Rows) -> str:
    """From the first row to the last, and the best row."""
    told = ", ".join(gained(rows, ROWS[-1], ROWS[0], *figure) for figure in FIGURES)
    best = max(ROWS, key=lambda row: statistics.mean(one["recall"] for one in rows[row]))
    return (f"- **From base to the last row**: {told}. The best mean recall has the row "
            f"`{best}`.")  # fmt: skip


def gained(rows: Rows, row: str, other: str, figure: str, name: str) -> str:
    """One figure's change and whether it is one."""
    after, before = ([one[figure] for one in rows[which]] for which in (row, other))
    return f"{name} {study.change(after, before)} ({study.verdict(after, before)})"


def bent_told(rows: Rows) -> str:
    """What aimed augmentation is for: pictures that are not as they should be."""
    before, after = ([one["bent"] for one in rows[row]] for row in (PHASED, AIMED))
    reasons = [one["reasons"] for one in rows[AIMED]]
    listed = next((some for some in reasons if some), [])
    why = (f"Fields widened by seed: {', '.join(str(len(some)) for some in reasons)}; with the "
           f"first that has any: {'; '.join(listed)}." if listed
           else "The analysis found nothing that surely costs 3 points, so nothing was widened.")
    return (f"On {rows[AIMED][0]['images']['tried']} test pictures bent in realistic strengths, "
            f"mean of all, aimed augmentation went from {study.spread(before)} to "
            f"{study.spread(after)}% ({study.change(after, before)} points, "
            f"{study.verdict(after, before)}). It was derived on validation pictures of the row "
            f"before ([failures.md](../failures.md)). {why}")  # fmt: skip


def setting(one: Run, chosen: dict[str, Found]) -> str:
    """What a probe tried, bold where it was taken."""
    row = one.setup["row"]
    told = ", ".join(f"{name} {value}" for name, value in one.setup["chosen"][row].items())
    return f"**{told}**" if one.setup["chosen"][row] == chosen[row] else told


def _before(row: str) -> str:
    return ROWS[ROWS.index(row) - 1]


def plot(rows: Rows, path: Path) -> None:
    """Left: the ladder with every seed. Right: recall by training pictures, first row and last."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, 5.5), width_ratios=(3, 2))
    colours = ("black", "tab:blue", "tab:red")
    for number, ((key, name), colour) in enumerate(zip(FIGURES, colours, strict=True)):
        places = [place + 0.13 * (number - 1) for place in range(len(ROWS))]
        values = [[100 * one[key] for one in rows[row]] for row in ROWS]
        means = [statistics.mean(some) for some in values]
        spreads = [statistics.stdev(some) for some in values]
        left.errorbar(places, means, spreads, color=colour, marker="o", capsize=4, label=name)
        for place, some, mean in zip(places, values, means, strict=True):
            left.scatter([place] * len(some), some, s=14, color=colour, alpha=0.35)
            left.annotate(f"{mean:.1f}", (place, mean), xytext=(6, 5), fontsize=8, color=colour,
                          textcoords="offset points")  # fmt: skip
    left.set_xticks(range(len(ROWS)), [row.replace("+ ", "+").replace(" ", "\n") for row in ROWS])
    left.set(ylabel="percent of test pictures", title="The ladder (bars: standard deviation, "
             "small dots: seeds)")  # fmt: skip
    left.legend(loc="lower right")
    left.grid(alpha=0.3)
    counts = rows["base"][0]["counts"]
    for row, colour in ((ROWS[0], "grey"), (ROWS[-1], "tab:green")):
        by_count: dict[int, list[float]] = {}
        for one in rows[row]:
            for name, recall in one["recalls"].items():
                by_count.setdefault(counts[name], []).append(100 * recall)
        sizes = sorted(by_count)
        right.plot(sizes, [statistics.mean(by_count[size]) for size in sizes], marker="o", ms=4,
                   color=colour, label=row)  # fmt: skip
    right.axvspan(min(counts.values()) - 0.5, list(counts.values())[-RARE] + 0.5, color="tab:red",
                  alpha=0.08, label="rare third")  # fmt: skip
    right.set(xlabel="training pictures of a class", ylabel="mean recall of such classes, percent",
              title="Where it was gained")
    right.legend(loc="lower right")
    right.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
