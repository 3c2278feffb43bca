"""Staged pretraining: Tiny ImageNet, then CIFAR-10, then Caltech-101, against none.

    python -m benchmarks.stories.staged --data DATA

Each stage's network is the parent of the next, as in `regraft pretrain`: a fresh head on its
backbone, every weight learns. Nothing but the first stage begins at random, and no other weights
come in. Caltech-101 alone is trained with the target's own epochs, and once more with as many
steps as all stages of the longest way together.

Writes docs/stories/staged.md, staged.png and staged.json.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.stories.study import (
    FOLDER,
    SEEDS,
    Found,
    Run,
    Setup,
    accuracy,
    arguments,
    checkpoint,
    curve,
    parted,
    pictures,
    run_all,
    settled,
    spread,
    table,
    trained,
    write,
)
from vision.network import Loaded, build, load, save, warm_start
from vision.plan import Plan

STORY = "staged"
HALF_AS_WIDE = {"channels": [32, 64, 128, 256], "stem_width": 16}
PLAN = settled(
    Plan(architecture="resnet10t", arguments=HALF_AS_WIDE, image_size=64, learning_rate=4e-3),
    "bfloat16",
)


@dataclass(frozen=True)
class Stage:
    """A set, its classes and epochs, and the images of each class for each part."""

    name: str
    folder: str
    classes: int
    epochs: int
    train: int
    validation: int
    test: int  # negative: all others

    @property
    def seen(self) -> int:
        """Training images in all epochs."""
        return self.classes * self.train * self.epochs


TINY = Stage("Tiny ImageNet", "tiny_imagenet_sample", 50, 10, 60, 10, 20)
CIFAR = Stage("CIFAR-10", "cifar10_sample", 10, 6, 150, 30, 60)
TARGET = Stage("Caltech-101", "caltech101_max40", 101, 20, 20, 5, -1)
ALL = (TINY, CIFAR, TARGET)
LONG = replace(
    TARGET, epochs=round(sum(one.seen for one in ALL) / (TARGET.classes * TARGET.train))
)
WAYS = ((TARGET,), (LONG,), (TINY, TARGET), ALL)
DIRECT, DIRECT_LONG, STAGED, STAGED_TWICE = WAYS
COLOURS = ("#7a7a7a", "#2b2b2b", "#2f6f9f", "#c8702a")


def main() -> None:
    """Train all stages of all seeds, then the page."""
    given = arguments(STORY, __doc__)
    begun = [stages[:count] for stages in WAYS for count in range(1, len(stages) + 1)]
    # the shorter ways first, so that what a stage starts from is there when it begins
    every = sorted(dict.fromkeys(begun), key=lambda stages: (len(stages), stages[-1] == LONG))
    setups = [setup_of(stages, seed) for stages in every for seed in SEEDS]
    with tempfile.TemporaryDirectory(prefix="staged-") as networks:
        runs = run_all(STORY, partial(stage, Path(networks)), setups, given)
    ways = Ways(runs)
    draw(ways)
    page(ways)


# --- one stage ------------------------------------------------------------------------------


def setup_of(stages: Sequence[Stage], seed: int) -> Setup:
    """The last of these stages, behind all before it."""
    return {
        "stages": [
            {"folder": one.folder, "epochs": one.epochs,
             "parts": {"train": one.train, "validation": one.validation, "test": one.test}}
            for one in stages
        ],
        "seed": seed,
    }  # fmt: skip


def stage(networks: Path, setup: Setup, data: Path) -> Found:
    """Train one stage and keep its network."""
    *earlier, own = setup["stages"]
    plan = replace(PLAN, epochs=own["epochs"], seed=100 * setup["seed"] + len(earlier))
    lot = pictures(data / own["folder"], plan.geometry)
    parts = parted(lot, lot.names, own["parts"], setup["seed"])
    classes = sorted(set(lot.labels.values()))
    if earlier:
        parent = network_of(networks, {**setup, "stages": earlier}, data)
        network = warm_start(parent, plan, classes)
    else:
        network = build(plan, classes)
    done = trained(network, plan, lot, parts["train"], parts["validation"])
    save(done.network, checkpoint(networks, setup), plan, classes)
    return {
        "epochs": curve(done.epochs),
        "core_seconds": round(done.core_seconds, 2),
        "images": {part: len(images) for part, images in parts.items()},
        "test": accuracy(done.network, plan, lot, parts["test"]),
    }


def network_of(networks: Path, setup: Setup, data: Path) -> Loaded:
    """What a stage has left; trained again where a study goes on in another folder."""
    path = checkpoint(networks, setup)
    if not path.exists():
        stage(networks, setup, data)
    return load(path)


# --- the page -------------------------------------------------------------------------------


class Ways:
    """All runs by their stages and seed."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = {repr(one.setup): one.found for one in runs}

    def found(self, stages: Sequence[Stage], seed: int) -> Found:
        """What came of the last of these stages."""
        return self._runs[repr(setup_of(stages, seed))]

    def each(self, stages: Sequence[Stage], of: Callable[[Found], float]) -> list[float]:
        """A figure of the last stage, for every seed."""
        return [of(self.found(stages, seed)) for seed in SEEDS]

    def seconds(self, stages: Sequence[Stage]) -> list[float]:
        """Of all stages together, for every seed."""
        so_far = [stages[:count] for count in range(1, len(stages) + 1)]
        return [sum(self.found(one, seed)["core_seconds"] for one in so_far) for seed in SEEDS]


def told(stages: Sequence[Stage]) -> str:
    """What a way is called on the page."""
    if stages == DIRECT_LONG:
        return f"{LONG.name} alone, as many steps as all stages together"
    return f"{TARGET.name} alone" if len(stages) == 1 else " → ".join(one.name for one in stages)


def validation(found: Found) -> float:
    """Behind the last epoch, which is what would be kept."""
    return float(found["epochs"][-1]["validation_accuracy"])


def page(ways: Ways) -> None:
    """docs/stories/staged.md."""
    counts = ways.found(DIRECT, SEEDS[0])["images"]
    lines = [
        f"{PLAN.architecture} of half its width at {PLAN.image_size} pixels, from a random start "
        "in every row; no pretrained weights anywhere. The target is Caltech-101 with "
        f"{counts['train']} training, {counts['validation']} validation and {counts['test']} test "
        f"images of {TARGET.classes} classes; the test images were looked at once, by the last "
        "network. Each stage is the parent of the next and leaves its backbone; the head is fresh. "
        "Seconds are CPU seconds of one thread, because the machine had other work as well.",
        "",
        *verdicts(ways),
        f"![validation accuracy on the target by epoch]({STORY}.png)",
        "",
        *table(
            ["trained on", "start", "epochs", "images seen", "CPU seconds of all stages",
             "target validation", "target test"],
            [
                [
                    told(stages), "random start", " + ".join(str(one.epochs) for one in stages),
                    f"{sum(one.seen for one in stages):,}",
                    spread(ways.seconds(stages), 1, 0),
                    spread(ways.each(stages, validation)),
                    spread(ways.each(stages, lambda one: one["test"])),
                ]
                for stages in WAYS
            ],
        ),
        "The stages before the target, on their own classes:",
        "",
        *table(
            ["stage", "classes", "training images", "epochs", "CPU seconds", "validation", "test"],
            [
                [
                    told(stages) if len(stages) > 1 else stages[0].name,
                    str(stages[-1].classes),
                    str(ways.found(stages, SEEDS[0])["images"]["train"]),
                    str(stages[-1].epochs),
                    spread(ways.each(stages, lambda one: one["core_seconds"]), 1, 0),
                    spread(ways.each(stages, validation)),
                    spread(ways.each(stages, lambda one: one["test"])),
                ]
                for stages in ((TINY,), (TINY, CIFAR))
            ],
        ),
    ]
    write(STORY, "Staged pretraining, from a random start", lines)


def verdicts(ways: Ways) -> list[str]:
    """What staging is worth, in sentences made of the figures; differences pair the seeds."""

    def ahead(one: Sequence[Stage], other: Sequence[Stage]) -> str:
        pairs = zip(*(ways.each(way, lambda found: found["test"]) for way in (one, other)),
                    strict=True)  # fmt: skip
        gains = [a - b for a, b in pairs]
        mean = 100 * statistics.mean(gains)
        word = "better" if mean > 0 else "WORSE"
        more = sum(gain > 0 for gain in gains)
        return f"{abs(mean):.1f} points {word} ({more} of {len(gains)} seeds better)"

    ratio = statistics.mean(ways.seconds(ALL)) / statistics.mean(ways.seconds(DIRECT_LONG))
    return [
        f"On the target's test images, with the same {TARGET.epochs} epochs on the target: behind "
        f"{TINY.name} the network is {ahead(STAGED, DIRECT)} than without; behind {TINY.name} and "
        f"{CIFAR.name} {ahead(STAGED_TWICE, DIRECT)}. The stage of {CIFAR.name} in between makes "
        f"it {ahead(STAGED_TWICE, STAGED)}.",
        "",
        f"With equal work ({LONG.epochs} epochs on the target alone see as many images as all "
        f"stages; the stages took {ratio:.2f} times as long): one stage before is "
        f"{ahead(STAGED, DIRECT_LONG)} than the target alone, both are "
        f"{ahead(STAGED_TWICE, DIRECT_LONG)}.",
        "",
    ]


def draw(ways: Ways) -> None:
    """Validation accuracy on the target by epoch and by seconds; bands are one deviation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(12, 5), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for stages, colour in zip(WAYS, COLOURS, strict=True):
        lines = np.array([
            [one["validation_accuracy"] for one in ways.found(stages, seed)["epochs"]]
            for seed in SEEDS
        ])
        mean, deviation = lines.mean(axis=0), lines.std(axis=0)
        epochs = np.arange(1, len(mean) + 1)
        took = statistics.mean(ways.each(stages, lambda one: one["core_seconds"]))
        before = statistics.mean(ways.seconds(stages[:-1])) if len(stages) > 1 else 0.0
        for axes, places in ((left, epochs), (right, before + took * epochs / len(epochs))):
            axes.plot(places, mean, color=colour, linewidth=1.6, label=told(stages))
            axes.fill_between(places, mean - deviation, mean + deviation, color=colour,
                              alpha=0.15, linewidth=0)  # fmt: skip
    left.set_xlabel("epoch on the target")
    right.set_xlabel("CPU seconds; a line begins where its earlier stages end")
    left.set_ylabel("validation accuracy on Caltech-101")
    for axes in (left, right):
        axes.set_xlim(0)
        axes.set_ylim(0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(loc="lower right", fontsize=9, frameon=False)
    figure.suptitle(
        f"{PLAN.architecture} of half its width, random start: mean of {len(SEEDS)} seeds, bands "
        "of one standard deviation", x=0.01, ha="left", fontweight="bold",
    )  # fmt: skip
    figure.savefig(FOLDER / f"{STORY}.png")


if __name__ == "__main__":
    main()
