"""Warm start pays: Caltech-101 grows from 40 to 101 classes in four nights.

    python -m benchmarks.stories.growing --data DATA

Every night is trained in several ways: anew (from a random start or from the ImageNet weights, as
the first night was), from the network of the night before with a fresh head, and from it with the
inherited rows of its head; the warm ways once with the same epochs as anew and once with a sixth
of them. Each way goes on from its own night before, all from the same first night.

Two lines stand beside: nights anew and warm at a constant rate, where no cosine's end decides when
the plateau comes; and MobileNetV2 from a random start, the nearest here to many epochs from scratch
against a sixth of them on the last version. Its rate is chosen by a seed of its own on validation
pictures.

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

RANDOM, PRETRAINED, SCRATCH = "random", "pretrained", "scratch"
STARTS = {RANDOM: "random start", PRETRAINED: "real ImageNet weights", SCRATCH: "random start"}
NAMES = {RANDOM: "resnet10t of half its width", PRETRAINED: "mobilenetv2_100",
         SCRATCH: "mobilenetv2_100"}  # fmt: skip
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
# as frameworks train it without its weights: batch norm learns its statistics
PLANS[SCRATCH] = replace(PLANS[PRETRAINED], batch_norm="train")
ANEW, FRESH, INHERIT = "anew", "fresh", "inherit"
COLOURS = {ANEW: "#7a7a7a", FRESH: "#2f6f9f", INHERIT: "#c8702a"}


@dataclass(frozen=True)
class Arm:
    """One way to spend the nights: how each begins, with how many epochs, at a constant rate."""

    how: str
    short: bool = False
    steady: bool = False


ARMS = (Arm(ANEW), Arm(FRESH), Arm(INHERIT), Arm(FRESH, short=True), Arm(INHERIT, short=True))
STEADY = (Arm(ANEW, steady=True), Arm(FRESH, steady=True))


@dataclass(frozen=True)
class Line:
    """A start, the ways in which its nights are spent (the first is anew), and how many nights.

    epochs: of a whole night and of a short one. rates: peak rates of head and backbone of a night
    anew, of a whole warm night and of a short one.
    """

    start: str
    arms: tuple[Arm, ...]
    nights: int
    epochs: tuple[int, int]
    rates: tuple[tuple[float, float], ...]

    @property
    def anew(self) -> Arm:
        """What the others are held against."""
        return self.arms[0]

    @property
    def warm(self) -> tuple[Arm, ...]:
        """All others."""
        return self.arms[1:]

    @property
    def name(self) -> str:
        """What it is called on the page."""
        steady = ", constant rate" if self.anew.steady else ""
        return f"{NAMES[self.start]}, {STARTS[self.start]}{steady}"

    def told(self, arm: Arm) -> str:
        """What one of its ways is called on the page."""
        epochs = self.epochs[arm.short]
        begun = {ANEW: "anew", FRESH: "warm, fresh head", INHERIT: "warm, inherited rows"}
        return f"{begun[arm.how]}, {epochs} epoch{'s' * (epochs > 1)}"


SMALL = Line(RANDOM, ARMS, len(CLASSES), (24, 4), ((4e-3, 4e-3), (8e-3, 2e-3), (8e-3, 2e-3)))
GIVEN = Line(PRETRAINED, ARMS, len(CLASSES), (6, 1), ((2e-3, 3e-4), (2e-3, 3e-4), (4e-3, 1e-4)))
CONSTANT = replace(SMALL, arms=STEADY, nights=3)
PROBE_SEED, PROBE_EPOCHS, PROBED_RATES = 100, 12, (1e-3, 2e-3, 4e-3)


def scratch(rate: float) -> Line:
    """MobileNetV2 from a random start: its rates are to each other as the small network's are."""
    warm = (2 * rate, rate / 2)
    arms = (Arm(ANEW), Arm(FRESH, short=True))
    return Line(SCRATCH, arms, 2, (36, 6), ((rate, rate), warm, warm))


def main() -> None:
    """Probe, train all nights of all seeds, then the page."""
    given = arguments(STORY, __doc__)
    with tempfile.TemporaryDirectory(prefix="growing-") as networks:
        play = partial(night, Path(networks))
        probes = run_all(STORY, play, probe_setups(), given)
        lines = (SMALL, GIVEN, CONSTANT, scratch(best_rate(probes)))
        nights = Nights(run_all(STORY, play, list(all_setups(lines)), given))
    draw(nights, lines)
    page(nights, lines, probes)


def probe_setups() -> list[Setup]:
    """First nights of MobileNetV2 from a random start, in a third of their epochs."""
    return [setup_of(replace(scratch(rate), epochs=(PROBE_EPOCHS, 1)), Arm(ANEW), 1, PROBE_SEED)
            for rate in PROBED_RATES]  # fmt: skip


def best_rate(probes: Sequence[Run]) -> float:
    """That of the probe with the best validation accuracy behind its last epoch."""
    best = max(probes, key=lambda one: accuracies(one.found)[-1])
    return float(best.setup["rates"][0][0])


# --- one night ------------------------------------------------------------------------------


def setup_of(line: Line, arm: Arm, number: int, seed: int) -> Setup:
    """A night by its number from 1, with epochs and rates of each night so far.

    All arms of a line share the first night.
    """
    whole = line.epochs[0]
    later = line.epochs[arm.short]
    first_rates, warm, warm_short = map(list, line.rates)
    rates = first_rates if arm.how == ANEW else warm_short if arm.short else warm
    return {
        "start": line.start, "how": arm.how if number > 1 else ANEW, "seed": seed,
        "classes": list(CLASSES[:number]), "epochs": [whole] + [later] * (number - 1),
        "rates": [first_rates] + [rates] * (number - 1),
        "train": TRAIN, "validation": VALIDATION,
    } | ({"schedule": "constant"} if arm.steady else {})  # fmt: skip


def all_setups(lines: Sequence[Line]) -> Iterator[Setup]:
    """The first nights, then each seed's night by night: what a night starts from is there."""
    for seed in SEEDS:
        for line in lines:
            yield setup_of(line, line.anew, 1, seed)
    for seed in SEEDS:
        for number in range(2, len(CLASSES) + 1):
            for line in lines:
                if number <= line.nights:
                    for arm in line.arms:
                        yield setup_of(line, arm, number, seed)


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
                   learning_rate=rate, backbone_learning_rate=slow,
                   schedule=setup.get("schedule", "cosine"))  # fmt: skip
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
    """All runs by line, arm, night from 1 and seed."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = {repr(sorted(one.setup.items())): one.found for one in runs}

    def found(self, line: Line, arm: Arm, number: int, seed: int) -> Found:
        """What came of one night."""
        return self._runs[repr(sorted(setup_of(line, arm, number, seed).items()))]

    def each(self, line: Line, arm: Arm, number: int, of: Callable[[Found], float]) -> list[float]:
        """A figure of one night, for every seed."""
        return [of(self.found(line, arm, number, seed)) for seed in SEEDS]

    def validations(self, line: Line, arm: Arm, number: int) -> np.ndarray[Any, Any]:
        """Validation accuracy [seeds, epochs]."""
        return np.array([accuracies(self.found(line, arm, number, seed)) for seed in SEEDS])


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


def race(warm: Found, anew: Found) -> Race:
    """One night against another of the same classes and seed."""
    mine, its = plateau(warm), plateau(anew)
    took = seconds_to(anew, its)
    there = first_at(warm, max(accuracies(anew)) - NEAR)
    caught = (there / its, seconds_to(warm, there) / took) if there else None
    return Race(mine / its, seconds_to(warm, mine) / took, caught,
                warm["benchmark"] - anew["benchmark"])  # fmt: skip


def races(nights: Nights, line: Line, arm: Arm, other: Line | None = None) -> list[Race]:
    """All nights but the first, every seed; against those trained anew, of another line if given.
    """
    against = other or line
    return [
        race(nights.found(line, arm, number, seed),
             nights.found(against, against.anew, number, seed))
        for number in range(2, min(line.nights, against.nights) + 1) for seed in SEEDS
    ]  # fmt: skip


# --- the page -------------------------------------------------------------------------------


def page(nights: Nights, lines: Sequence[Line], probes: Sequence[Run]) -> None:
    """docs/stories/growing.md."""
    first = nights.found(SMALL, SMALL.anew, 1, SEEDS[0])
    last = nights.found(SMALL, SMALL.anew, len(CLASSES), SEEDS[0])
    from_scratch = lines[-1]
    text = [
        f"Caltech-101 ({TRAIN} training and {VALIDATION} validation images of each class) "
        f"grows {' → '.join(map(str, CLASSES))} classes over four nights, in an order "
        f"that the seed decides. The benchmark is all other images, {first['images']['benchmark']} "
        f"on the first night and {last['images']['benchmark']} on the last; no night trains on "
        "them. Every night but the first is trained anew and from the network of the night before, "
        "with a fresh head or with the inherited rows of the old classes, each with the same "
        "epochs as anew and with a sixth of them. Each way goes on from its own night before.",
        "",
        f"Beside them are the first {CONSTANT.nights} nights at a constant rate, and the first "
        f"{from_scratch.nights} of {NAMES[SCRATCH]} from a random start with "
        f"{from_scratch.epochs[0]} epochs, against {from_scratch.epochs[1]} on its own last "
        f"version and {GIVEN.epochs[0]} on one that began with ImageNet weights.",
        "",
        f"Plateau: the first epoch within {100 * NEAR:g} points of the night's best validation "
        "accuracy. A cosine that runs to its end makes the plateau come late in any budget: with "
        "it, the short nights show what a warm start saves and the whole ones what it adds; at a "
        "constant rate the whole ones show both. Seconds are CPU seconds of one thread, because "
        "the machine had other work as well.",
        "",
        "Peak rates of head and backbone: "
        + "; ".join(
            f"{line.name}: " + ", ".join(
                f"{what} {head:g} and {backbone:g}" for what, (head, backbone)
                in zip(("anew", "warm", "warm and short"), line.rates, strict=True)
            ) for line in lines
        ) + ". Those of short nights, and the small network's anew, were chosen among two to four "
        f"on validation images of another seed. {NAMES[PRETRAINED]}'s whole warm nights first had "
        "the rates of its short ones; the first seed ended below anew on the benchmark with them, "
        "so they have the rates of anew now: hold that choice against them. Its rate from a random "
        f"start is the best of these on validation images of seed {PROBE_SEED} after "
        f"{PROBE_EPOCHS} epochs: "
        + ", ".join(f"{one.setup['rates'][0][0]:g} ({100 * accuracies(one.found)[-1]:.1f}%)"
                    for one in probes)
        + "; warm it is to that as the small network's are.",
        "",
        *verdicts(nights, lines),
        f"![validation accuracy by epoch]({STORY}.png)",
        "",
    ]  # fmt: skip
    for line in lines:
        text += [f"## {line.name}, {PLANS[line.start].image_size} pixels", ""]
        text += ["**How fast.** Ratios are to the night trained anew, of the same seed.", ""]
        text += speed_table(nights, line)
        text += [
            "**How well**, on the benchmark, in percent and points. Forgetting: mean over old "
            "classes of what each lost since the night before; backward transfer: mean change of "
            "their recall (gains set against losses; more classes compete for every image). Among "
            "old: change if both versions knew the old classes alone, which is what the gate "
            "calls the shared ones.",
            "",
            *accuracy_table(nights, line),
        ]
    text += beside(nights, from_scratch)
    write(STORY, "Warm start: a class list that grows over four nights", text,
          "the split, the order in which classes come, all random starts, the order of images "
          "and the augmentation")  # fmt: skip


def verdicts(nights: Nights, lines: Sequence[Line]) -> list[str]:
    """Which goals came true, in sentences made of the figures."""
    from_scratch = lines[-1]
    rows = [verdict_row(f"{line.name}: {line.told(arm)}", races(nights, line, arm))
            for line in lines for arm in line.warm]  # fmt: skip
    rows += [
        verdict_row(f"{GIVEN.name}: {GIVEN.told(arm)}; anew is from a random start, "
                    f"{from_scratch.epochs[0]} epochs", races(nights, GIVEN, arm, from_scratch))
        for arm in (Arm(FRESH), Arm(INHERIT))
    ]  # fmt: skip
    return [
        f"The goal was: a warm night needs at most a sixth of anew's epochs ({GOAL_EPOCHS:.2f}) "
        f"and a fifth of its time ({GOAL_TIME:.2f}) to its plateau, and ends higher. Over all "
        f"nights but the first of {len(SEEDS)} seeds:",
        "",
        *table(
            ["night", "epochs to its plateau / anew's", "CPU time",
             "benchmark against anew, points", "nights that ended higher",
             "nights that came within 0.5 points of anew's best: median share of its epochs, time"],
            rows,
        ),
        *(sentence for line in lines for sentence in in_words(nights, line)),
    ]  # fmt: skip


def verdict_row(name: str, found: Sequence[Race]) -> list[str]:
    """One kind of night against the goal."""
    epochs = statistics.mean(one.epochs for one in found)
    seconds = statistics.mean(one.seconds for one in found)
    higher = statistics.mean(one.higher for one in found)
    caught = [one.caught for one in found if one.caught]
    return [
        name,
        f"{epochs:.2f} ({yes(epochs <= GOAL_EPOCHS)})",
        f"{seconds:.2f} ({yes(seconds <= GOAL_TIME)})",
        f"{spread([one.higher for one in found])} ({yes(higher > 0)})",
        f"{sum(one.higher > 0 for one in found)} of {len(found)}",
        f"{len(caught)} of {len(found)}"
        + (f": {statistics.median(one[0] for one in caught):.2f}, "
           f"{statistics.median(one[1] for one in caught):.2f}" if caught else ""),
    ]  # fmt: skip


def in_words(nights: Nights, line: Line) -> list[str]:
    """What each kind of warm night did, and which head was better."""
    by_arm = {arm: races(nights, line, arm) for arm in line.warm}
    means = {arm: statistics.mean(one.higher for one in found) for arm, found in by_arm.items()}

    def compared(arm: Arm) -> str:
        points = 100 * means[arm]
        won = sum(one.higher > 0 for one in by_arm[arm])
        return (f"{line.told(arm)}: {abs(points):.1f} points "
                f"{'higher' if points > 0 else 'LOWER'} "
                f"({won} of {len(by_arm[arm])} nights higher)")  # fmt: skip

    heads = [
        f"{100 * (means[Arm(INHERIT, short)] - means[Arm(FRESH, short)]):+.1f} points in "
        f"{'short' if short else 'whole'} nights"
        for short in (False, True) if Arm(INHERIT, short) in means
    ]  # fmt: skip
    return [
        f"**{line.name}.** Against {line.told(line.anew)}, nights end: "
        + "; ".join(map(compared, line.warm)) + "."
        + (f" Inherited rows against a fresh head: {' and '.join(heads)}." if heads else ""),
        "",
    ]


def beside(nights: Nights, from_scratch: Line) -> list[str]:
    """The last night from a random start, and the same night on ImageNet weights."""
    number = from_scratch.nights
    both = [(from_scratch, arm) for arm in from_scratch.arms] + [(GIVEN, arm) for arm in ARMS]
    base = nights.each(from_scratch, from_scratch.anew, number, lambda one: one["benchmark"])
    rows = []
    for line, arm in both:
        ends = nights.each(line, arm, number, lambda one: one["benchmark"])
        gains = [one - other for one, other in zip(ends, base, strict=True)]
        rows.append([
            line.told(arm), STARTS[line.start],
            spread(nights.each(line, arm, number, lambda one: one["core_seconds"]), 1),
            spread(nights.each(line, arm, number, lambda one: max(accuracies(one)))),
            spread(nights.each(line, arm, number, plateau), 1),
            spread(ends), "" if line is from_scratch and arm == line.anew else spread(gains),
        ])  # fmt: skip
    return [
        f"## {NAMES[SCRATCH]} with and without its weights, night {number}",
        "",
        "Warm nights go on from their own night before, so in their lineage the start is that of "
        "the first night.",
        "",
        *table(
            ["night", "start of its lineage", "CPU seconds", "best validation",
             "epochs to plateau", "benchmark",
             f"against {from_scratch.epochs[0]} epochs from a random start, points"], rows,
        ),
    ]  # fmt: skip


def yes(true: bool) -> str:
    """A goal's verdict."""
    return "met" if true else "**not met**"


def name_of(number: int, line: Line, arm: Arm) -> str:
    """The first cell of a night's row."""
    return f"night {number}, {CLASSES[number - 1]} classes: {line.told(arm)}"


def speed_table(nights: Nights, line: Line) -> list[str]:
    """Epochs and seconds to the plateau, by night and arm."""
    rows = []
    for number in range(1, line.nights + 1):
        for arm in line.arms if number > 1 else line.arms[:1]:
            epochs = nights.each(line, arm, number, plateau)
            seconds = nights.each(line, arm, number, seconds_to_plateau)
            whole = nights.each(line, arm, number, lambda one: one["core_seconds"])
            best = nights.each(line, arm, number, lambda one: max(accuracies(one)))
            ratios = ["", ""]
            if arm.how != ANEW:
                its = nights.each(line, line.anew, number, plateau)
                took = nights.each(line, line.anew, number, seconds_to_plateau)
                ratios = [spread([a / b for a, b in zip(mine, others, strict=True)], 1, 2)
                          for mine, others in ((epochs, its), (seconds, took))]  # fmt: skip
            rows.append([
                name_of(number, line, arm),
                spread(best), spread(epochs, 1), ratios[0], spread(seconds, 1), ratios[1],
                spread(whole, 1),
            ])  # fmt: skip
    return table(
        ["", "best validation", "epochs to plateau", "ratio", "CPU seconds to plateau", "ratio",
         "CPU seconds of all epochs"], rows,
    )  # fmt: skip


def accuracy_table(nights: Nights, line: Line) -> list[str]:
    """Benchmark accuracy and forgetting, by night and arm."""
    names = ("benchmark", "old", "new", "forgetting", "backward_transfer", "among_old")
    rows = []
    for number in range(1, line.nights + 1):
        for arm in line.arms if number > 1 else line.arms[:1]:
            told = [
                spread(nights.each(line, arm, number, lambda one, name=name: one[name]))
                for name in (names if number > 1 else names[:1])
            ]
            told += [""] * (len(names) - len(told))
            rows.append([name_of(number, line, arm), *told])
    return table(
        ["", "benchmark", "its old classes", "its new classes", "forgetting", "backward transfer",
         "among old"], rows,
    )  # fmt: skip


def draw(nights: Nights, lines: Sequence[Line]) -> None:
    """Validation accuracy by epoch, a panel for each line and night; bands are one deviation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(14, 3.6 * len(lines)), dpi=100, layout="constrained")
    panels = figure.subplots(len(lines), len(CLASSES), sharey="row", squeeze=False)
    for row, line in zip(panels, lines, strict=True):
        for number, axes in enumerate(row, start=1):
            axes.set_visible(number <= line.nights)
            if number > line.nights:
                continue
            for arm in line.arms if number > 1 else line.arms[:1]:
                values = nights.validations(line, arm, number)
                epochs = np.arange(1, values.shape[1] + 1)
                mean, deviation = values.mean(axis=0), values.std(axis=0)
                axes.plot(epochs, mean, color=COLOURS[arm.how], label=line.told(arm), **style(arm))
                axes.fill_between(epochs, mean - deviation, mean + deviation,
                                  color=COLOURS[arm.how], alpha=0.15, linewidth=0)  # fmt: skip
            axes.set_title(f"night {number}: {CLASSES[number - 1]} classes", fontsize=10)
            axes.set_xlim(0, line.epochs[0] + 0.5)
            axes.set_xlabel("epoch")
            axes.grid(color="#e4e4e4")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        row[0].set_ylabel("validation accuracy\n" + line.name.replace(", ", ",\n", 1))
        for arm in line.warm:  # the first night has room for them
            row[0].plot([], [], color=COLOURS[arm.how], label=line.told(arm), **style(arm))
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
