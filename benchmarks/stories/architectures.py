"""The bake-off: which architecture a service should grow on, and `regraft adopt` of the winner.

    python -m benchmarks.stories.architectures --data ../shared/data

Everything is real: an embedded Postgres, S3 and Prefect of its own, images loaded into S3, a
frozen benchmark. A first night at 64 pixels serves; then three bake-offs, one for each seed,
train the same four architectures on one snapshot; the best is adopted on the command line.

Writes docs/stories/architectures.md, architectures.png and architectures.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.bench import facts
from benchmarks.services import services
from benchmarks.stories.study import FOLDER, SEEDS, arguments, spread, table, write
from vision.plan import Augmentation, Plan

STORY = "architectures"
# of every five classes in the alphabet, so that it does not decide
CLASSES_OF_FIVE = (0, 2)
BENCHMARK_EACH = 12
SIZE = 96
WEIGHTS = "weights/"
# Precision is set and not measured, so that the runs of all seeds are alike: depthwise convolutions
# are slower in bfloat16 on this kind of processor, plain ones faster.
COMMON = Plan(
    image_size=SIZE, learning_rate=2e-3, cutoff=15, channels_last=True,
    augmentation=Augmentation(rotation=5.0),
)  # fmt: skip
IMAGENET = replace(
    COMMON, epochs=4, backbone_learning_rate=2e-4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
    batch_norm="eval", precision="float32",
)  # fmt: skip
FILES = {
    "mobilenetv2_100": "mobilenetv2_100_coral_dequant.timm.safetensors",
    "tf_efficientnet_lite0": "tf_efficientnet_lite0.timm.safetensors",
}
PLANS = (
    replace(IMAGENET, architecture="mobilenetv2_100", arguments={"pad_type": "same"},
            weights=f"s3://{WEIGHTS}{FILES['mobilenetv2_100']}"),
    replace(IMAGENET, architecture="tf_efficientnet_lite0", interpolation="bicubic",
            weights=f"s3://{WEIGHTS}{FILES['tf_efficientnet_lite0']}"),
    replace(COMMON, architecture="resnet10t", epochs=20, precision="bfloat16"),
    replace(COMMON, architecture="mobilenetv3_small_100", epochs=20, precision="float32"),
)  # fmt: skip
# what serves before the bake-off: fewer pixels, a few epochs
FIRST = replace(PLANS[0], image_size=64, epochs=3, seed=100)
WHY = "the bake-off's winner"

Entrants = list[dict[str, Any]]


def main() -> None:
    """Play it, unless only the page is wanted; then the page."""
    given = arguments(STORY, __doc__)
    path = FOLDER / f"{STORY}.json"
    if not given.page:
        with services():
            played = play(given.data)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"facts": facts(), **played}, ensure_ascii=False) + "\n")
    if not path.exists():
        raise SystemExit(f"{path} is not there: leave --page out")
    told = json.loads(path.read_text())
    draw(told["bakeoffs"])
    page(told)


# --- what is played -------------------------------------------------------------------------


def play(data: Path) -> dict[str, Any]:
    """A night that serves, a bake-off for each seed, the adoption; JSON values."""
    from flows.bakeoff import bakeoff, measured
    from flows.nightly import nightly

    fill(data)
    first = nightly(plan=FIRST)
    print(f"{first.state}: {first.reason}", file=sys.stderr, flush=True)
    assert first.version_id is not None, first.reason
    bakeoffs: list[Entrants] = []
    for seed in SEEDS:
        done = bakeoff(plans=[replace(plan, seed=seed) for plan in PLANS])
        bakeoffs.append([asdict(one) for one in done.entrants])
        for one in done.entrants:
            print(f"seed {seed}: {one}", file=sys.stderr, flush=True)
    winner = ranked(bakeoffs)[0]
    version = bakeoffs[0][winner]["version_id"]
    return {
        "first": {"reason": first.reason, "state": first.state,
                  **asdict(measured(first.version_id))},
        "bakeoffs": bakeoffs,
        "adopted": said("adopt", str(version), "--why", WHY, "--by", "the bake-off's story"),
        "log": said("log"),
    }


def fill(data: Path) -> None:
    """Load weights, a benchmark and the library into S3, and freeze the benchmark."""
    from infra import storage
    from tasks import benchmark
    from tasks.benchmark import BENCHMARK
    from tasks.loading import load_folder

    for name in FILES.values():
        storage.connect().write(f"{WEIGHTS}{name}", data / "weights" / name)
    folders = sorted(path for path in (data / "caltech101_max40").iterdir() if path.is_dir())
    chosen = [path for at, path in enumerate(folders) if at % 5 in CLASSES_OF_FIVE]
    for prefix, part in ((BENCHMARK, slice(BENCHMARK_EACH)),
                         ("labelled/", slice(BENCHMARK_EACH, None))):  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            for path in chosen:
                (Path(folder) / path.name).mkdir()
                for file in sorted(path.iterdir())[part]:
                    (Path(folder) / path.name / file.name).symlink_to(file.resolve())
            load_folder(Path(folder), prefix)
        if prefix == BENCHMARK:
            benchmark.freeze("benchmarks/stories/architectures.py", "before anything is trained")


def said(*words: str) -> dict[str, Any]:
    """A command of regraft as a person gives it: what it said, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words], check=False, capture_output=True, text=True,
        cwd=FOLDER.parents[1], env=os.environ | {"COLUMNS": "160"},
    )
    lines = [line.rstrip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    typed = " ".join(f'"{word}"' if " " in word else word for word in words)
    print("\n".join([f"regraft {typed}", *lines]), file=sys.stderr, flush=True)
    return {"command": f"regraft {typed}", "said": lines, "code": done.returncode}


# --- the page -------------------------------------------------------------------------------


def ranked(bakeoffs: Sequence[Entrants]) -> list[int]:
    """Places of the entrants that have figures, the best mean benchmark accuracy first."""
    have = [at for at in range(len(bakeoffs[0])) if all(done[at]["benchmark"] for done in bakeoffs)]
    return sorted(have, key=lambda at: -statistics.mean(each(bakeoffs, at, benchmark_accuracy)))


def each(
    bakeoffs: Sequence[Entrants], at: int, of: Callable[[dict[str, Any]], float]
) -> list[float]:
    """A figure of one entrant in every bake-off."""
    return [of(done[at]) for done in bakeoffs]


def benchmark_accuracy(entrant: dict[str, Any]) -> float:
    """Share of the benchmark's images."""
    return float(entrant["benchmark"]["accuracy"])


def test_accuracy(entrant: dict[str, Any]) -> float:
    """Share of the test images."""
    return float(entrant["test"]["accuracy"])


def milliseconds(entrant: dict[str, Any]) -> float:
    """One picture alone on one CPU."""
    return 1000 * float(entrant["latency_seconds"])


def megabytes(entrant: dict[str, Any]) -> float:
    """Of the checkpoint."""
    return float(entrant["checkpoint_bytes"]) / 1e6


def start(entrant: dict[str, Any]) -> str:
    """What the weights began as."""
    return "random start" if "random" in entrant["start"] else "real ImageNet weights"


def page(told: dict[str, Any]) -> None:
    """docs/stories/architectures.md."""
    bakeoffs, first, adopted = told["bakeoffs"], told["first"], told["adopted"]
    order = ranked(bakeoffs)
    one = bakeoffs[0][order[0]]
    rows = [
        [
            bakeoffs[0][at]["name"], start(bakeoffs[0][at]), str(bakeoffs[0][at]["epochs"]),
            PLANS[at].precision,
            spread(each(bakeoffs, at, benchmark_accuracy)),
            spread(each(bakeoffs, at, test_accuracy)),
            spread(each(bakeoffs, at, lambda one: one["seconds"]), 1, 0),
            spread(each(bakeoffs, at, milliseconds), 1),
            spread(each(bakeoffs, at, megabytes), 1),
        ]
        for at in order
    ]  # fmt: skip
    problems = [
        f"{entrant['name']} has no figures: {entrant['problem']}"
        for entrant in bakeoffs[0] if entrant["problem"]
    ]  # fmt: skip
    lines = [
        f"`regraft bakeoff` trained {len(bakeoffs[0])} architectures on one snapshot of "
        f"Caltech-101 at {SIZE} pixels, once for each seed, on services of its own. The benchmark "
        f"has {one['benchmark']['images']} images, the test split {one['test']['images']}; no "
        "training saw either. Those with ImageNet weights were given few epochs, those from a "
        "random start many: figures of the two kinds compare ways to begin, not architectures "
        "alone.",
        "",
        f"![accuracy against training time]({STORY}.png)",
        "",
        *table(
            ["entrant", "start", "epochs", "steps in", "benchmark", "test", "training, seconds",
             "one picture on one CPU, ms", "checkpoint, MB"], rows,
        ),
        *problems, *([""] if problems else []),
        *verdicts(bakeoffs, order),
        "## The winner is adopted",
        "",
        f"Before the bake-offs a first night trained {first['name']} ({start(first)}, "
        f"{first['epochs']} epochs): {first['state']}, {100 * benchmark_accuracy(first):.1f}% on "
        f"the benchmark, {milliseconds(first):.1f} ms for a picture. {one['name']} of the first "
        "bake-off "
        + ("passed the gate and serves; the next night starts from it:" if adopted["code"] == 0
           else "was refused by the gate:"),
        "",
        "```",
        *(line for command in (adopted, told["log"])
          for line in (f"$ {command['command']}", *command["said"])),
        "```",
        "",
    ]  # fmt: skip
    write(STORY, "A bake-off of architectures, and its winner adopted", lines,
          "what begins at random (a fresh head at least), the order of images and the "
          "augmentation; snapshot and benchmark are the same",
          "one training at a time on all of them")  # fmt: skip


def verdicts(bakeoffs: Sequence[Entrants], order: Sequence[int]) -> list[str]:
    """What the figures say, in sentences made of them."""
    best, second = (each(bakeoffs, at, benchmark_accuracy) for at in order[:2])
    names = [bakeoffs[0][at]["name"] for at in order]
    ahead = [100 * (a - b) for a, b in zip(best, second, strict=True)]
    won = sum(one > 0 for one in ahead)
    fastest = min(order, key=lambda at: statistics.mean(each(bakeoffs, at, milliseconds)))
    smallest = min(order, key=lambda at: statistics.mean(each(bakeoffs, at, megabytes)))
    return [
        f"{names[0]} is best with {statistics.mean(ahead):.1f} points before {names[1]} "
        f"({won} of {len(ahead)} bake-offs). "
        + (f"{bakeoffs[0][fastest]['name']} answers fastest and is smallest."
           if fastest == smallest else f"{bakeoffs[0][fastest]['name']} answers fastest, "
           f"{bakeoffs[0][smallest]['name']} is smallest."),
        "",
    ]


def draw(bakeoffs: Sequence[Entrants]) -> None:
    """Benchmark accuracy against training time, latency and size written beside each point."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(9, 5.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for place, at in enumerate(ranked(bakeoffs)):
        entrant = bakeoffs[0][at]
        seconds = each(bakeoffs, at, lambda one: one["seconds"])
        accuracies = each(bakeoffs, at, benchmark_accuracy)
        size = statistics.mean(each(bakeoffs, at, megabytes))
        latency = statistics.mean(each(bakeoffs, at, milliseconds))
        colour, hollow = f"C{place}", start(entrant) == "random start"
        middle = statistics.mean(seconds), statistics.mean(accuracies)
        axes.scatter(seconds, accuracies, s=12, color=colour, zorder=3)
        axes.scatter(*middle, s=22 * size, facecolor="none" if hollow else colour,
                     edgecolor=colour, alpha=0.45 if not hollow else 1, linewidth=1.5)  # fmt: skip
        axes.plot([], [], "o", color=colour, markersize=9, markeredgewidth=1.5,
                  markerfacecolor="none" if hollow else colour,
                  label=f"{entrant['name']}, {start(entrant)}: {100 * middle[1]:.1f}%, "
                  f"{latency:.1f} ms a picture, {size:.1f} MB")  # fmt: skip
    axes.set_xlim(0)
    axes.set_ylim(0, 1)
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    axes.set_xlabel("seconds of training (all epochs)")
    axes.set_ylabel("accuracy on the benchmark")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Bake-off: dots are the {len(bakeoffs)} seeds, the circle's area is the size of the "
        "checkpoint, hollow: random start", x=0.01, ha="left", fontsize=11, fontweight="bold",
    )  # fmt: skip
    figure.savefig(FOLDER / f"{STORY}.png")


if __name__ == "__main__":
    main()
