"""Little data: less overfitting by two phases, and what aimed augmentation adds.

    python -m benchmarks.stories.little_data --data DATA

Cats and dogs, 300 training pictures. MobileNetV2 from its ImageNet weights and from a random start:
all layers at once at a high rate; the head on a frozen base, then the last blocks at a low rate;
the same once more with augmentation aimed at what the network before failed at on validation
pictures. Beside it EfficientNet. Writes docs/stories/little-data.{json,md,png}.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.stories import study
from benchmarks.stories.study import Found, Run, Setup
from vision.failures import evenly
from vision.plan import Augmentation, Interpolation, Plan

STORY = "little-data"
SIZE = 96  # side in pixels that the network sees
TRAIN, VALIDATION = 150, 250  # pictures of each class; the test has the rest of the other folder
TRIED = 200  # test pictures that are bent
HEAD_EPOCHS, BLOCK_EPOCHS = 20, 5
LAST_BLOCKS = 2  # with the convolution behind them 20 of the 154 layers that Keras counts
HIGH_RATE, GENTLE_RATE, HEAD_RATE, LOW_RATE = 1e-3, 3e-4, 1e-3, 1e-5
HALF = (0.5, 0.5, 0.5)
PARTS = ("train", "validation")

ALL, GENTLE = "all layers at once", "all layers at once, gently"
TWO_PHASE, AIMED = "two-phase", "two-phase, aimed augmentation"
WAYS = (ALL, GENTLE, TWO_PHASE, AIMED)
WEIGHTS, RANDOM = "real ImageNet weights", "random start"
RATES = {ALL: HIGH_RATE, GENTLE: GENTLE_RATE}
EPOCHS = {WEIGHTS: 10, RANDOM: 20}  # of all layers at once
MOBILE, LITE, B0 = "mobilenetv2_100", "tf_efficientnet_lite0", "efficientnet_b0"


@dataclass(frozen=True)
class Network:
    """How an architecture is called here, and what its ImageNet weights need."""

    told: str
    arguments: dict[str, Any]
    weights: str | None
    interpolation: Interpolation


NETWORKS = {
    MOBILE: Network("MobileNetV2", {"pad_type": "same"},
                    "mobilenetv2_100_coral_dequant.timm.safetensors", "bilinear"),
    LITE: Network("EfficientNet-Lite0", {}, "tf_efficientnet_lite0.timm.safetensors", "bicubic"),
    B0: Network("EfficientNet-B0", {}, None, "bilinear"),
}  # fmt: skip
# What is trained, the ways of one line one after the other: the last needs the one before.
LINES = (
    (MOBILE, WEIGHTS, (TWO_PHASE, AIMED)),
    (MOBILE, RANDOM, (TWO_PHASE, AIMED)),
    (MOBILE, WEIGHTS, (GENTLE,)),
    (MOBILE, WEIGHTS, (ALL,)),
    (MOBILE, RANDOM, (ALL,)),
    (LITE, WEIGHTS, (ALL,)),
    (LITE, WEIGHTS, (TWO_PHASE,)),
    (B0, RANDOM, (ALL,)),
)


def main() -> None:
    """Train what has not been trained yet, then write the page."""
    given = study.arguments(STORY, __doc__)
    page(study.run_all(STORY, run, setups(), given))


def setups() -> list[Setup]:
    """Every line for every seed; the one without weights to compare with comes last."""
    return sorted((
        {"network": network, "start": start, "ways": list(ways), "seed": seed, "train": TRAIN}
        | ({"epochs": EPOCHS[start], "rate": RATES[ways[0]]} if ways[0] in RATES else {})
        for seed in study.SEEDS for network, start, ways in LINES
    ), key=lambda setup: setup["network"] == B0)  # fmt: skip


# --- training -------------------------------------------------------------------------------


def run(setup: Setup, data: Path) -> Found:
    """Train the ways of one line; the aimed one by what the one before it fails at."""
    way = setup["ways"][0]
    plan = plan_of(setup, way, data)
    pictures = study.pictures(data / "cats_dogs", plan.geometry, PARTS)
    parts = split(pictures, setup)
    trained = study.trained_anew(plan, pictures, parts)
    if AIMED not in setup["ways"]:
        return {way: figures(trained, plan, pictures, parts)}
    plain, aimed = study.beside_aimed(trained, plan, pictures, parts, figures)
    return {way: plain, AIMED: aimed}


def plan_of(setup: Setup, way: str, data: Path) -> Plan:
    """Both recipes with nothing but mirrored pictures and no smoothing, so that rows compare."""
    network, warm = NETWORKS[setup["network"]], setup["start"] == WEIGHTS
    plan = Plan(
        architecture=setup["network"],
        arguments=network.arguments,
        weights=str(data / "weights" / str(network.weights)) if warm else None,
        # the given running statistics are to be kept, which nobody does who trains all at once
        # without a thought; those of a random start mean nothing
        batch_norm="eval" if warm and way != ALL else "train",
        image_size=SIZE, mean=HALF, std=HALF, interpolation=network.interpolation,
        batch_size=16, label_smoothing=0.0, class_weights="none", seed=setup["seed"],
        augmentation=Augmentation(
            scale=1.0, rotation=0.0, brightness=0.0, contrast=0.0, saturation=0.0
        ),
    )  # fmt: skip
    if way in RATES:
        plan = replace(
            plan, recipe="all", epochs=setup["epochs"], learning_rate=setup["rate"],
            schedule="constant", warmup_epochs=0.0, dropout=0.0,
        )  # fmt: skip
    else:
        plan = replace(
            plan, recipe="two-phase", epochs=HEAD_EPOCHS + BLOCK_EPOCHS, head_epochs=HEAD_EPOCHS,
            unfreeze=LAST_BLOCKS, learning_rate=HEAD_RATE, backbone_learning_rate=LOW_RATE,
            dropout=0.3,
        )  # fmt: skip
    return study.settled(plan, "float32")


def split(pictures: study.Pictures, setup: Setup) -> dict[str, list[str]]:
    """Training pictures from one folder; validation and test from the other."""
    folder = {part: [one for one in pictures.names if one.startswith(part)] for part in PARTS}
    seed = setup["seed"]
    parts = study.parted(pictures, folder["train"], {"train": setup["train"]}, seed)
    parts |= study.parted(
        pictures, folder["validation"], {"validation": VALIDATION, "test": -1}, seed
    )
    labels = [pictures.labels[one] for one in parts["test"]]
    parts["tried"] = [parts["test"][row] for row in evenly(labels, TRIED)]
    return parts


def figures(
    trained: study.Trained, plan: Plan, pictures: study.Pictures, parts: dict[str, list[str]]
) -> Found:
    """Accuracies as shares, all on pictures as they are; seconds of training and answering."""
    begun = time.process_time()
    test = study.accuracy(trained.network, plan, pictures, parts["test"])
    answering = time.process_time() - begun
    training = study.accuracy(trained.network, plan, pictures, parts["train"])
    validation = trained.epochs[-1].validation_accuracy
    return {
        "train": training,
        "validation": validation,
        "gap": training - validation,
        "test": test,
        "core_seconds": round(trained.core_seconds, 1),
        "milliseconds": round(1000 * answering / len(parts["test"]), 2),
        "epochs": study.curve(trained.epochs),
        "images": {part: len(images) for part, images in parts.items()},
    }


# --- the page -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One network, start and way, and what every seed found, in the order of the seeds."""

    network: str
    start: str
    way: str
    found: Sequence[Found]

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return f"{NETWORKS[self.network].told}, {self.start}, {self.way}"

    def of(self, figure: str) -> list[float]:
        """One figure of every seed."""
        return [one[figure] for one in self.found]


def page(runs: Sequence[Run]) -> None:
    """Table, what is to be said of it, reasons, plot."""
    rows = {
        (network, start, way): Row(network, start, way, [
            one.found[way] for one in runs
            if (one.setup["network"], one.setup["start"]) == (network, start)
            and way in one.setup["ways"]
        ])
        for network, start, way in sorted(
            ((network, start, way) for network, start, ways in LINES for way in ways),
            key=lambda one: (list(NETWORKS).index(one[0]), one[1] != WEIGHTS, WAYS.index(one[2])),
        )
    }  # fmt: skip
    images = runs[0].found[runs[0].setup["ways"][0]]["images"]
    told = [
        f"Cats and dogs, {images['train']} training pictures ({images['train'] // 2} of each) from "
        f"the set's training folder; {images['validation']} validation and {images['test']} test "
        f"pictures share its other folder. {SIZE} pixels, batches of 16, float32, AdamW, pictures "
        "mirrored and not bent, no label smoothing.",
        "",
        f"- **{ALL}**: {EPOCHS[WEIGHTS]} epochs ({EPOCHS[RANDOM]} from a random start) at a "
        f"constant {HIGH_RATE:g}, no dropout, batch norm learning: what frameworks do when nothing "
        "else is said.",
        f"- **{GENTLE}**: the same at {GENTLE_RATE:g}, and batch norm keeps the statistics of "
        f"ImageNet (kept at {HIGH_RATE:g} they end at chance).",
        f"- **{TWO_PHASE}**: dropout {0.3}; {HEAD_EPOCHS} epochs of the head alone at {HEAD_RATE:g}"
        f", on a frozen base; then {BLOCK_EPOCHS} epochs of head and the last {LAST_BLOCKS} blocks "
        f"at {LOW_RATE:g} (of MobileNetV2 with the convolution behind them 20 layers as Keras "
        "counts them), a cosine each.",
        f"- **{AIMED}**: the network of the row before is tried on bent validation pictures, as "
        "after every night ([failures.md](../failures.md)); what costs too much is trained in the "
        "same two phases from the same start.",
        "",
        "In two phases from ImageNet weights batch norm keeps its running statistics; from a "
        "random start it learns them. Training accuracy is that of the finished network on its "
        "training pictures as they are. Core seconds: those in which one core computed, validation "
        "included.",
        "",
        *study.table(
            ["network, start, way", "training %", "validation %", "gap", "test %", "core seconds"],
            [[row.name, *(study.spread(row.of(one)) for one in ("train", "validation", "gap",
                                                                  "test")),
              study.spread(row.of("core_seconds"), scale=1, digits=0)] for row in rows.values()],
        ),
        "![training, validation and test accuracy; accuracy and time](little-data.png)",
        "",
        "## What helped, and what did not",
        "",
        *overfitting(rows),
        *aimed_told(rows),
        *beside(rows),
    ]  # fmt: skip
    study.write(STORY, "Little data", told)
    plot(list(rows.values()), study.FOLDER / f"{STORY}.png")


Rows = dict[tuple[str, str, str], Row]


def overfitting(rows: Rows) -> list[str]:
    """Two phases against all layers at once, from both starts."""
    lines = []
    for start, before in ((WEIGHTS, ALL), (WEIGHTS, GENTLE), (RANDOM, ALL)):
        naive, phased = rows[MOBILE, start, before], rows[MOBILE, start, TWO_PHASE]
        gap = study.change(phased.of("gap"), naive.of("gap"))
        test = study.change(phased.of("test"), naive.of("test"))
        lines += [
            f"- **Two phases, {start}, against {before}.** The gap between training and "
            "validation went from "
            f"{study.spread(naive.of('gap'))} to {study.spread(phased.of('gap'))} points ({gap}: "
            f"{study.verdict(phased.of('gap'), naive.of('gap'))}), test accuracy from "
            f"{study.spread(naive.of('test'))} to {study.spread(phased.of('test'))} ({test}: "
            f"{study.verdict(phased.of('test'), naive.of('test'))}).",
        ]
    best = max(rows.values(), key=lambda row: sum(row.of("validation")))
    hopeless = rows[MOBILE, RANDOM, TWO_PHASE]
    return [
        *lines,
        f"- **What the weights are worth.** The same two phases end at "
        f"{study.spread(hopeless.of('test'))}% on test pictures from a random start: a base of "
        "random numbers that stays frozen gives the head little to learn from, and 300 pictures "
        "do not make up for it in any way tried here. Best on validation pictures is: "
        f"{best.name}, {study.spread(best.of('validation'))}%.",
    ]


def aimed_told(rows: Rows) -> list[str]:
    """Whether aimed augmentation helped, on pictures as they are and on bent ones, and why."""
    lines = []
    for start in (WEIGHTS, RANDOM):
        plain, aimed = rows[MOBILE, start, TWO_PHASE], rows[MOBILE, start, AIMED]
        said = {
            figure: f"{study.change(aimed.of(figure), plain.of(figure))} points "
                    f"({study.verdict(aimed.of(figure), plain.of(figure))})"
            for figure in ("test", "gap", "bent")
        }  # fmt: skip
        lines.append(
            f"- **Aimed augmentation, {start}.** Test accuracy {said['test']}, gap {said['gap']}. "
            f"On {aimed.found[0]['images']['tried']} test pictures bent in realistic strengths, "
            f"mean of all: {study.spread(plain.of('bent'))} to {study.spread(aimed.of('bent'))}%, "
            f"{said['bent']}. The analysis took {study.spread(aimed.of('analysis_seconds'), 1, 0)} "
            f"s. {why(aimed)}"
        )
    return lines


def why(aimed: Row) -> str:
    """What the analysis of each seed found."""
    none = [str(seed) for seed, one in zip(study.SEEDS, aimed.found, strict=True)
            if not one["reasons"]]  # fmt: skip
    first = next((one["reasons"] for one in aimed.found if one["reasons"]), [])
    counts = ", ".join(str(len(one["reasons"])) for one in aimed.found)
    if not first:
        return "The analysis found nothing that surely costs 3 points: the plan stayed as it was."
    seeds = f" (none with seed {' and '.join(none)}: the same training again)" if none else ""
    return (f"Fields widened by seed: {counts}{seeds}. The first of them: "
            f"{'; '.join(first)}.")  # fmt: skip


def beside(rows: Rows) -> list[str]:
    """EfficientNet against MobileNetV2."""
    lines = [
        "",
        "## EfficientNet beside MobileNetV2",
        "",
        "Real EfficientNet-B0 weights could not be had: Lite0, its relative without squeeze and "
        "excitation, stands for it with real ones, B0 itself has a random start.",
        "",
        *study.table(
            ["network, start, way", "test %", "training, core seconds", "answering, ms a picture"],
            [[row.name, study.spread(row.of("test")),
              study.spread(row.of("core_seconds"), scale=1, digits=0),
              study.spread(row.of("milliseconds"), scale=1)]
             for row in rows.values() if row.way != AIMED],
        ),
    ]  # fmt: skip
    for way in (ALL, TWO_PHASE):
        mobile, lite = rows[MOBILE, WEIGHTS, way], rows[LITE, WEIGHTS, way]
        times = sum(lite.of("core_seconds")) / sum(mobile.of("core_seconds"))
        lines += [
            f"- {way}, {WEIGHTS}: Lite0 against MobileNetV2 "
            f"{study.change(lite.of('test'), mobile.of('test'))} points on test pictures "
            f"({study.verdict(lite.of('test'), mobile.of('test'))}), {times:.2f} x its training "
            "time.",
        ]
    mobile, efficient = rows[MOBILE, RANDOM, ALL], rows[B0, RANDOM, ALL]
    times = sum(efficient.of("core_seconds")) / sum(mobile.of("core_seconds"))
    return [
        *lines,
        f"- {ALL}, {RANDOM}: B0 against MobileNetV2 "
        f"{study.change(efficient.of('test'), mobile.of('test'))} points "
        f"({study.verdict(efficient.of('test'), mobile.of('test'))}), {times:.2f} x its training "
        "time.",
        "",
    ]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Left: training, validation and test of each row. Right: training and validation by epoch."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(16, 6.4), width_ratios=(4, 3))
    parts = (("train", "training", "tab:orange", "o"),
             ("validation", "validation", "tab:blue", "o"), ("test", "test", "black", "|"))
    for place, row in enumerate(rows):
        means = {part: 100 * _mean(row.of(part)) for part, *_ in parts}
        left.plot([means["validation"], means["train"]], [place, place], color="lightgrey", lw=5,
                  zorder=0)  # fmt: skip
        for part, label, colour, mark in parts:
            values = [100 * one for one in row.of(part)]
            left.scatter(values, [place] * len(values), s=18, color=colour, alpha=0.35, marker=mark)
            left.scatter(means[part], place, s=80, color=colour, marker=mark,
                         label=label if place == 0 else None)  # fmt: skip
        gap = means["train"] - means["validation"]
        left.annotate(f"gap {gap:.1f}", (max(means.values()), place), xytext=(10, 0),
                      textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    names = [f"{NETWORKS[row.network].told}, {row.start}\n{row.way}" for row in rows]
    left.set_yticks(range(len(rows)), names, fontsize=9)
    left.invert_yaxis()
    left.set_xlim(48, 108)
    left.set(xlabel="accuracy, percent (small: single seeds)", title="Training against validation")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=9)
    left.grid(axis="x", alpha=0.3)
    curves = [row for row in rows if row.network == MOBILE and row.way != AIMED]
    colours = ("tab:red", "tab:orange", "tab:green", "tab:purple", "tab:brown")
    for row, colour in zip(curves, colours, strict=True):
        for part, style in (("train_accuracy", "--"), ("validation_accuracy", "-")):
            epochs = zip(*([epoch[part] for epoch in one["epochs"]] for one in row.found),
                         strict=True)  # fmt: skip
            means = [100 * _mean(one) for one in epochs]
            right.plot(range(1, len(means) + 1), means, style, color=colour,
                       label=f"{row.start}, {row.way}" if style == "-" else None)  # fmt: skip
    right.axvline(HEAD_EPOCHS + 0.5, color="grey", lw=0.8, ls=":")
    right.annotate("two-phase:\nlast blocks\nlearn", (HEAD_EPOCHS + 0.7, 101), fontsize=8, va="top")
    right.set(xlabel="epoch", ylabel="accuracy, percent",
              title="MobileNetV2: validation (lines) and training (dashed) by epoch")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=9)
    right.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
