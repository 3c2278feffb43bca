"""Warm start pays: Caltech-101 grows from 40 to 101 classes in four nights.

    python -m benchmarks.stories.growing --data ../shared/data

Every night is trained in several ways: anew (from a random start or from the ImageNet weights, as
the first night was), from the network of the night before with a fresh head, and from it with the
inherited rows of its head; the warm ways once with the same epochs as anew and once with a sixth
of them. Each way goes on from its own night before, all from the same first night.

Writes docs/stories/growing.md, growing.png and growing.json.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stories.study import (
    FOLDER,
    SEEDS,
    Found,
    Pictures,
    Run,
    Setup,
    answers,
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
from vision.answers import Answers
from vision.network import Loaded, build, class_names_of, load, save, warm_start
from vision.plan import Plan
from vision.scores import ClassTransfer, transfer

STORY = "growing"
CLASSES = (40, 60, 80, 101)
TRAIN, VALIDATION = 12, 6  # images of each class; all others are the benchmark
NEAR = 0.005  # of the best validation accuracy
GOAL_EPOCHS, GOAL_TIME = 1 / 6, 1 / 5

RANDOM, PRETRAINED = "random", "pretrained"
STARTS = {RANDOM: "random start", PRETRAINED: "real ImageNet weights"}
NAMES = {RANDOM: "resnet10t of half its width", PRETRAINED: "mobilenetv2_100"}
BUDGETS = {RANDOM: (24, 4), PRETRAINED: (6, 1)}  # epochs of a whole night and of a short one
WEIGHTS = "weights/mobilenetv2_100_coral_dequant.timm.safetensors"
HALF_AS_WIDE = {"channels": [32, 64, 128, 256], "stem_width": 16}
PLANS = {
    RANDOM: settled(
        Plan(
            architecture="resnet10t", arguments=HALF_AS_WIDE, image_size=64, warmup_epochs=0.5,
        ),
        "bfloat16",
    ),
    PRETRAINED: settled(
        Plan(
            architecture="mobilenetv2_100", arguments={"pad_type": "same"}, image_size=48,
            mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), batch_norm="eval",
            warmup_epochs=0.5,
        ),
        "float32",
    ),
}  # fmt: skip
# Peak rates of head and backbone of a night anew, of a whole warm night and of a short one.
RATES = {
    RANDOM: ((4e-3, 4e-3), (8e-3, 2e-3), (8e-3, 2e-3)),
    PRETRAINED: ((2e-3, 3e-4), (2e-3, 3e-4), (4e-3, 1e-4)),
}
ANEW, FRESH, INHERIT = "anew", "fresh", "inherit"
COLOURS = {ANEW: "#7a7a7a", FRESH: "#2f6f9f", INHERIT: "#c8702a"}


@dataclass(frozen=True)
class Arm:
    """One way to spend the nights: how each begins, and with how many epochs."""

    how: str
    short: bool = False

    def told(self, start: str) -> str:
        """What it is called on the page."""
        epochs = BUDGETS[start][self.short]
        begun = {ANEW: "anew", FRESH: "warm, fresh head", INHERIT: "warm, inherited rows"}
        return f"{begun[self.how]}, {epochs} epoch{'s' * (epochs > 1)}"


ARMS = (Arm(ANEW), Arm(FRESH), Arm(INHERIT), Arm(FRESH, short=True), Arm(INHERIT, short=True))
WARM = ARMS[1:]


def main() -> None:
    """Train all nights of all seeds, then the page."""
    given = arguments(STORY, __doc__)
    setups = list(all_setups())
    with tempfile.TemporaryDirectory(prefix="growing-") as networks:
        runs = run_all(STORY, partial(night, Path(networks)), setups, given)
    nights = Nights(runs)
    draw(nights)
    page(nights)


# --- one night ------------------------------------------------------------------------------


def setup_of(start: str, arm: Arm, number: int, seed: int) -> Setup:
    """A night by its number from 1, with epochs and rates of each night so far.

    All arms share the first night.
    """
    whole = BUDGETS[start][0]
    later = BUDGETS[start][arm.short]
    first_rates, warm, warm_short = map(list, RATES[start])
    rates = first_rates if arm.how == ANEW else warm_short if arm.short else warm
    return {
        "start": start, "how": arm.how if number > 1 else ANEW, "seed": seed,
        "classes": list(CLASSES[:number]), "epochs": [whole] + [later] * (number - 1),
        "rates": [first_rates] + [rates] * (number - 1),
        "train": TRAIN, "validation": VALIDATION,
    }  # fmt: skip


def all_setups() -> Iterator[Setup]:
    """The first nights, then each seed's night by night: what a night starts from is there."""
    for seed in SEEDS:
        for start in STARTS:
            yield setup_of(start, ARMS[0], 1, seed)
    for seed in SEEDS:
        for number in range(2, len(CLASSES) + 1):
            for start in STARTS:
                for arm in ARMS:
                    yield setup_of(start, arm, number, seed)


def before(setup: Setup) -> Setup | None:
    """The night before of the same arm."""
    if len(setup["epochs"]) == 1:
        return None
    classes, epochs = setup["classes"][:-1], setup["epochs"][:-1]
    how = setup["how"] if len(epochs) > 1 else ANEW
    return {**setup, "how": how, "classes": classes, "epochs": epochs,
            "rates": setup["rates"][:-1]}  # fmt: skip


def plan_of(setup: Setup, data: Path) -> Plan:
    """The plan of this night; each night has a seed of its own."""
    plan, number = PLANS[setup["start"]], len(setup["epochs"])
    rate, slow = setup["rates"][-1]
    plan = replace(plan, epochs=setup["epochs"][-1], seed=100 * setup["seed"] + number,
                   learning_rate=rate, backbone_learning_rate=slow)  # fmt: skip
    if setup["how"] == INHERIT:
        return replace(plan, recipe="inherit")
    if setup["start"] == PRETRAINED and setup["how"] == ANEW:
        return replace(plan, weights=str(data / WEIGHTS))
    return plan


def night(networks: Path, setup: Setup, data: Path) -> Found:
    """Train one night, keep its network, and hold it against the night before."""
    plan = plan_of(setup, data)
    lot = pictures(data / "caltech101_max40", plan.geometry)
    ordered = np.random.default_rng(setup["seed"]).permutation(sorted(set(lot.labels.values())))
    classes = sorted(ordered[: setup["classes"][-1]].tolist())
    counts = {"train": setup["train"], "validation": setup["validation"], "benchmark": -1}
    parts = parted(lot, lot.of(classes), counts, setup["seed"])
    last = before(setup)
    parent = network_of(networks, last, data) if last else None
    if parent is None or setup["how"] == ANEW:
        network = build(plan, classes)
    else:
        network = warm_start(parent, plan, classes)
    done = trained(network, plan, lot, parts["train"], parts["validation"])
    save(done.network, checkpoint(networks, setup), plan, classes)
    now = answers(done.network, plan, lot, parts["benchmark"])
    found = {
        "epochs": curve(done.epochs),
        "core_seconds": round(done.core_seconds, 2),
        "images": {part: len(images) for part, images in parts.items()},
        "benchmark": float(now.correct.mean()),
    }
    return found | (against(parent, plan, lot, now) if parent else {})


def network_of(networks: Path, setup: Setup, data: Path) -> Loaded:
    """What a night has left; trained again where a study goes on in another folder."""
    path = checkpoint(networks, setup)
    if not path.exists():
        night(networks, setup, data)
    return load(path)


def against(parent: Loaded, plan: Plan, lot: Pictures, now: Answers) -> Found:
    """Old classes on the benchmark, before and now, by the product's own definitions.

    among_old: change in accuracy if both versions knew the old classes alone.
    """
    known = set(class_names_of(parent.network))
    of_old = np.array([one in known for one in now.labels])
    now_old = now.select(of_old)
    then = answers(parent.network, plan, lot, now_old.images)
    rows = []
    labels = np.array(now_old.labels)
    for name in sorted(known):
        was, became = then.correct[labels == name], now_old.correct[labels == name]
        lost, gained = int((was & ~became).sum()), int((became & ~was).sum())
        rows.append(ClassTransfer(name, len(was), int(was.sum()), int(became.sum()), lost, gained))
    moved = transfer(rows)
    assert moved is not None
    among = now_old.correct_among(known).mean() - then.correct_among(known).mean()
    return {
        "old": float(now_old.correct.mean()),
        "new": float(now.select(~of_old).correct.mean()),
        "change": moved.change,
        "forgetting": moved.forgetting,
        "backward_transfer": moved.backward_transfer,
        "among_old": float(among),
    }


# --- what came of it ------------------------------------------------------------------------


class Nights:
    """All runs by start, arm, night from 1 and seed."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = {repr(sorted(one.setup.items())): one.found for one in runs}

    def found(self, start: str, arm: Arm, number: int, seed: int) -> Found:
        """What came of one night."""
        return self._runs[repr(sorted(setup_of(start, arm, number, seed).items()))]

    def each(self, start: str, arm: Arm, number: int, of: Callable[[Found], float]) -> list[float]:
        """A figure of one night, for every seed."""
        return [of(self.found(start, arm, number, seed)) for seed in SEEDS]

    def validations(self, start: str, arm: Arm, number: int) -> np.ndarray[Any, Any]:
        """Validation accuracy [seeds, epochs]."""
        return np.array([accuracies(self.found(start, arm, number, seed)) for seed in SEEDS])


def accuracies(found: Found) -> list[float]:
    """Validation accuracy behind each epoch."""
    return [one["validation_accuracy"] for one in found["epochs"]]


def first_at(found: Found, level: float) -> int | None:
    """The first epoch, from 1, whose validation accuracy is there; None if none is."""
    return next((at for at, one in enumerate(accuracies(found), 1) if one >= level), None)


def plateau(found: Found) -> int:
    """The first epoch near its own best validation accuracy."""
    epoch = first_at(found, max(accuracies(found)) - NEAR)
    assert epoch is not None
    return epoch


def seconds_to(found: Found, epoch: int) -> float:
    """CPU seconds of so many epochs, validation included."""
    return float(found["core_seconds"] * epoch / len(found["epochs"]))


def seconds_to_plateau(found: Found) -> float:
    """CPU seconds, validation included."""
    return seconds_to(found, plateau(found))


@dataclass(frozen=True)
class Race:
    """A warm night against the one trained anew, same night and seed.

    epochs, seconds: what it took to its own plateau as a share of what the other took to its own.
    caught: the same to the other's plateau, None where it never came near.
    higher: benchmark accuracy less the other's, 0 to 1.
    """

    epochs: float
    seconds: float
    caught: tuple[float, float] | None
    higher: float


def races(nights: Nights, start: str, arm: Arm) -> list[Race]:
    """Nights 2 to 4, every seed."""
    found = []
    for number in range(2, len(CLASSES) + 1):
        for seed in SEEDS:
            warm = nights.found(start, arm, number, seed)
            anew = nights.found(start, ARMS[0], number, seed)
            mine, its = plateau(warm), plateau(anew)
            took = seconds_to(anew, its)
            there = first_at(warm, max(accuracies(anew)) - NEAR)
            caught = (there / its, seconds_to(warm, there) / took) if there else None
            found.append(Race(mine / its, seconds_to(warm, mine) / took, caught,
                              warm["benchmark"] - anew["benchmark"]))  # fmt: skip
    return found


# --- the page -------------------------------------------------------------------------------


def page(nights: Nights) -> None:
    """docs/stories/growing.md."""
    first = nights.found(RANDOM, ARMS[0], 1, SEEDS[0])
    last = nights.found(RANDOM, ARMS[0], len(CLASSES), SEEDS[0])
    lines = [
        f"Caltech-101 ({TRAIN} training and {VALIDATION} validation images of each class) "
        f"grows {' → '.join(map(str, CLASSES))} classes over four nights, in an order "
        f"that the seed decides. The benchmark is all other images, {first['images']['benchmark']} "
        f"on the first night and {last['images']['benchmark']} on the last; no night trains on "
        "them. Every night but the first is trained anew and from the network of the night before, "
        "with a fresh head or with the inherited rows of the old classes, each with the same "
        "epochs as anew and with a sixth of them. Each way goes on from its own night before.",
        "",
        f"Plateau: the first epoch within {100 * NEAR:g} points of the night's best validation "
        "accuracy. All nights run a cosine to its end, so the plateau comes late in any budget: "
        "the short nights show what a warm start saves, the whole ones what it adds. Seconds are "
        "CPU seconds of one thread, because the machine had other work as well.",
        "",
        "Peak rates of head and backbone: "
        + "; ".join(
            f"{NAMES[start]} " + ", ".join(
                f"{what} {head:g} and {backbone:g}" for what, (head, backbone)
                in zip(("anew", "warm", "warm and short"), RATES[start], strict=True)
            ) for start in STARTS
        ) + ". Those of short nights, and the small network's anew, were chosen among two to four "
        f"on validation images of another seed. {NAMES[PRETRAINED]}'s whole warm nights first had "
        "the rates of its short ones; the first seed ended below anew on the benchmark with them, "
        "so they have the rates of anew now: hold that choice against them.",
        "",
        *verdicts(nights),
        f"![validation accuracy by epoch]({STORY}.png)",
        "",
    ]
    for start, told in STARTS.items():
        lines += [f"## {NAMES[start]} at {PLANS[start].image_size} pixels, {told}", ""]
        lines += ["**How fast.** Ratios are to the night trained anew, of the same seed.", ""]
        lines += speed_table(nights, start)
        lines += [
            "**How well**, on the benchmark, in percent and points. Forgetting: mean over old "
            "classes of what each lost since the night before; backward transfer: mean change of "
            "their recall (gains set against losses; more classes compete for every image). Among "
            "old: change if both versions knew the old classes alone, which is what the gate "
            "calls the shared ones.",
            "",
            *accuracy_table(nights, start),
        ]
    write(STORY, "Warm start: a class list that grows over four nights", lines,
          "the split, the order in which classes come, all random starts, the order of images "
          "and the augmentation")  # fmt: skip


def verdicts(nights: Nights) -> list[str]:
    """Which goals came true, in sentences made of the figures."""
    lines = [
        f"The goal was: a warm night needs at most a sixth of anew's epochs ({GOAL_EPOCHS:.2f}) "
        f"and a fifth of its time ({GOAL_TIME:.2f}) to its plateau, and ends higher. Over "
        f"{(len(CLASSES) - 1) * len(SEEDS)} nights (nights 2 to {len(CLASSES)}, "
        f"{len(SEEDS)} seeds) of each kind:",
        "",
    ]
    rows = []
    for start, begun in STARTS.items():
        for arm in WARM:
            found = races(nights, start, arm)
            epochs = statistics.mean(one.epochs for one in found)
            seconds = statistics.mean(one.seconds for one in found)
            higher = statistics.mean(one.higher for one in found)
            caught = [one.caught for one in found if one.caught]
            rows.append([
                f"{NAMES[start]}, {begun}: {arm.told(start)}",
                f"{epochs:.2f} ({yes(epochs <= GOAL_EPOCHS)})",
                f"{seconds:.2f} ({yes(seconds <= GOAL_TIME)})",
                f"{spread([one.higher for one in found])} ({yes(higher > 0)})",
                f"{sum(one.higher > 0 for one in found)} of {len(found)}",
                f"{len(caught)} of {len(found)}"
                + (f": {statistics.median(one[0] for one in caught):.2f}, "
                   f"{statistics.median(one[1] for one in caught):.2f}" if caught else ""),
            ])  # fmt: skip
    lines += table(
        ["night", "epochs to its plateau / anew's", "CPU time", "benchmark against anew, points",
         "nights that ended higher",
         "nights that came within 0.5 points of anew's best: median share of its epochs, time"],
        rows,
    )  # fmt: skip
    return [*lines, *(sentence for start in STARTS for sentence in in_words(nights, start))]


def in_words(nights: Nights, start: str) -> list[str]:
    """What the short and the whole warm nights did, and which head was better."""
    whole, short = BUDGETS[start]
    by_arm = {arm: races(nights, start, arm) for arm in WARM}
    means = {arm: statistics.mean(one.higher for one in found) for arm, found in by_arm.items()}

    def compared(arm: Arm) -> str:
        points = 100 * means[arm]
        won = sum(one.higher > 0 for one in by_arm[arm])
        return (f"{abs(points):.1f} points {'higher' if points > 0 else 'LOWER'} "
                f"({won} of {len(by_arm[arm])} nights higher)")  # fmt: skip

    heads = []
    for is_short in (False, True):
        ahead = 100 * (means[Arm(INHERIT, is_short)] - means[Arm(FRESH, is_short)])
        heads.append(f"{ahead:+.1f} points in {'short' if is_short else 'whole'} nights")
    fresh, kept = Arm(FRESH, short=True), Arm(INHERIT, short=True)
    return [
        f"**{STARTS[start][0].upper()}{STARTS[start][1:]}.** Against {whole} epochs anew, a warm "
        f"night of {short} epoch{'s' * (short > 1)} ends {compared(fresh)} with a fresh head and "
        f"{compared(kept)} with inherited rows; with the same {whole} epochs, "
        f"{compared(Arm(FRESH))} and {compared(Arm(INHERIT))}. Inherited rows against a fresh "
        f"head: {' and '.join(heads)}.",
        "",
    ]


def yes(true: bool) -> str:
    """A goal's verdict."""
    return "met" if true else "**not met**"


def name_of(number: int, start: str, arm: Arm) -> str:
    """The first cell of a night's row."""
    return f"night {number}, {CLASSES[number - 1]} classes: {arm.told(start)}"


def speed_table(nights: Nights, start: str) -> list[str]:
    """Epochs and seconds to the plateau, by night and arm."""
    rows = []
    for number in range(1, len(CLASSES) + 1):
        for arm in ARMS if number > 1 else ARMS[:1]:
            epochs = nights.each(start, arm, number, plateau)
            seconds = nights.each(start, arm, number, seconds_to_plateau)
            whole = nights.each(start, arm, number, lambda one: one["core_seconds"])
            best = nights.each(start, arm, number, lambda one: max(accuracies(one)))
            ratios = ["", ""]
            if arm.how != ANEW:
                anew = ARMS[0]
                its = nights.each(start, anew, number, plateau)
                took = nights.each(start, anew, number, seconds_to_plateau)
                ratios = [spread([a / b for a, b in zip(mine, others, strict=True)], 1, 2)
                          for mine, others in ((epochs, its), (seconds, took))]  # fmt: skip
            rows.append([
                name_of(number, start, arm),
                spread(best), spread(epochs, 1), ratios[0], spread(seconds, 1), ratios[1],
                spread(whole, 1),
            ])  # fmt: skip
    return table(
        ["", "best validation", "epochs to plateau", "ratio", "CPU seconds to plateau", "ratio",
         "CPU seconds of all epochs"], rows,
    )  # fmt: skip


def accuracy_table(nights: Nights, start: str) -> list[str]:
    """Benchmark accuracy and forgetting, by night and arm."""
    names = ("benchmark", "old", "new", "forgetting", "backward_transfer", "among_old")
    rows = []
    for number in range(1, len(CLASSES) + 1):
        for arm in ARMS if number > 1 else ARMS[:1]:
            told = [
                spread(nights.each(start, arm, number, lambda one, name=name: one[name]))
                for name in (names if number > 1 else names[:1])
            ]
            told += [""] * (len(names) - len(told))
            rows.append([name_of(number, start, arm), *told])
    return table(
        ["", "benchmark", "its old classes", "its new classes", "forgetting", "backward transfer",
         "among old"], rows,
    )  # fmt: skip


def draw(nights: Nights) -> None:
    """Validation accuracy by epoch, a panel for each start and night; bands are one deviation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(14, 7.2), dpi=100, layout="constrained")
    panels = figure.subplots(len(STARTS), len(CLASSES), sharey="row", squeeze=False)
    for row, start in zip(panels, STARTS, strict=True):
        for number, axes in enumerate(row, start=1):
            for arm in ARMS if number > 1 else ARMS[:1]:
                lines = nights.validations(start, arm, number)
                epochs = np.arange(1, lines.shape[1] + 1)
                mean, deviation = lines.mean(axis=0), lines.std(axis=0)
                axes.plot(epochs, mean, color=COLOURS[arm.how], label=arm.told(start), **style(arm))
                axes.fill_between(epochs, mean - deviation, mean + deviation,
                                  color=COLOURS[arm.how], alpha=0.15, linewidth=0)  # fmt: skip
            axes.set_title(f"night {number}: {CLASSES[number - 1]} classes", fontsize=10)
            axes.set_xlim(0, BUDGETS[start][0] + 0.5)
            axes.set_xlabel("epoch")
            axes.grid(color="#e4e4e4")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        row[0].set_ylabel(f"validation accuracy\n{NAMES[start]}, {STARTS[start]}")
        for arm in WARM:  # the first night has room for them
            row[0].plot([], [], color=COLOURS[arm.how], label=arm.told(start), **style(arm))
        row[0].legend(loc="lower right", fontsize=8, frameon=False)
    figure.suptitle(
        f"Warm against anew: mean of {len(SEEDS)} seeds, bands of one standard deviation",
        x=0.01, ha="left", fontweight="bold",
    )  # fmt: skip
    figure.savefig(FOLDER / f"{STORY}.png")


def style(arm: Arm) -> dict[str, Any]:
    """How its line is drawn."""
    short = {"linestyle": "--", "marker": "o", "markersize": 3}
    return {"linewidth": 1.6, **(short if arm.short else {})}


if __name__ == "__main__":
    main()
