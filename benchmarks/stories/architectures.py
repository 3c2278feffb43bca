"""The bake-off: which architecture a service should grow on, and `regraft adopt` of the winner.

    python -m benchmarks.stories.architectures --data DATA

Everything is real: an embedded Postgres, S3 and Prefect of its own, images loaded into S3, a
frozen benchmark. A first night at 64 pixels serves; then three bake-offs, one for each seed,
train the same four architectures on one snapshot; the best is adopted on the command line, and a
night that leaves its architecture open trains on from it.

Each bake-off is kept in docs/stories/architectures.json when it ends, so that a study that was
broken off goes on behind it. Its services are gone by then: the winner is baked off once more where
it is not there to be adopted. Training times are worth something on a machine without other work
alone. Writes docs/stories/architectures.md and architectures.png besides.
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
PATH = FOLDER / f"{STORY}.json"
# of every five classes in the alphabet, so that it does not decide
CLASSES_OF_FIVE = (0, 2)
BENCHMARK_EACH = 12
NEW_EACH = 3  # images of each class that come in for the night behind the adoption
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
# what is asked for behind the adoption: neither architecture nor image size is named
NEXT = replace(
    COMMON, architecture=None, image_size=Plan().image_size, epochs=4, backbone_learning_rate=2e-4,
    batch_norm="eval", precision="float32", seed=200,
)  # fmt: skip
WHY = "the bake-off's winner"

Entrants = list[dict[str, Any]]


def main() -> None:
    """Play what has not been played yet, unless only the page is wanted; then the page."""
    given = arguments(STORY, __doc__)
    told = kept()
    refuse_others(told)
    if not given.page and "adopted" not in told:
        warn_if_busy()
        with services():
            play(given.data, told)
        told = kept()
    if "adopted" not in told:
        raise SystemExit(f"{PATH} has not all that was to be played: leave --page out")
    draw(entrants(told))
    page(told)


# --- what is played -------------------------------------------------------------------------


def kept() -> dict[str, Any]:
    """What was played so far; JSON values."""
    return dict(json.loads(PATH.read_text())) if PATH.exists() else {"bakeoffs": []}


def keep(told: dict[str, Any]) -> None:
    """Write all of it, or nothing."""
    PATH.parent.mkdir(parents=True, exist_ok=True)
    aside = PATH.with_suffix(".part")
    aside.write_text(json.dumps({**told, "facts": facts()}, ensure_ascii=False) + "\n")
    aside.replace(PATH)


def warn_if_busy() -> None:
    """Say it at the start where others compute as well: afterwards one's own load is in it."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > cores:
        print(f"load {load:.1f} on {cores} cores: training times will be those of a shared "
              "machine; wait until it is idle if they are to be published",
              file=sys.stderr, flush=True)  # fmt: skip


def play(data: Path, told: dict[str, Any]) -> None:
    """A night that serves, a bake-off for each seed that has none, the adoption, the next night."""
    from flows.bakeoff import bakeoff

    fill(data)
    first = played(FIRST)
    if first["state"] != "deployed":
        raise SystemExit(f"nothing serves that a winner could be held against: {first['reason']}")
    for seed in SEEDS[len(told["bakeoffs"]):]:
        done = bakeoff(plans=[replace(plan, seed=seed) for plan in PLANS])
        told["bakeoffs"].append({
            "seed": seed, "plans": digests(seed), "snapshot": done.snapshot_digest,
            "load": round(os.getloadavg()[1], 1),
            "entrants": [asdict(one) for one in done.entrants],
        })  # fmt: skip
        refuse_others(told)
        keep(told)
        for one in done.entrants:
            print(f"seed {seed}: {one}", file=sys.stderr, flush=True)
    # trained in these services, it has its figures already; else it is trained again
    winner = PLANS[ranked(entrants(told))[0]]
    entrant, = bakeoff(plans=[replace(winner, seed=SEEDS[0])]).entrants
    assert entrant.version_id is not None, entrant.problem
    adopted = said("adopt", str(entrant.version_id), "--why", WHY, "--by", "the bake-off's story")
    load(data, "labelled/", slice(-NEW_EACH, None))
    told |= {"first": first, "winner": asdict(entrant), "adopted": adopted, "next": played(NEXT),
             "log": said("log")}  # fmt: skip
    keep(told)


def refuse_others(told: dict[str, Any]) -> None:
    """Bake-offs of several calls compare by the same plans, on the same images alone."""
    so_far = told["bakeoffs"]
    if any(one["plans"] != digests(one["seed"]) for one in so_far):
        raise SystemExit(f"{PATH} has bake-offs of other plans: use --again")
    if len({one["snapshot"] for one in so_far}) > 1:
        raise SystemExit(f"{PATH} has bake-offs of several snapshots: use --again")


def digests(seed: int) -> list[str]:
    """Of all plans, with this seed."""
    return [replace(plan, seed=seed).digest() for plan in PLANS]


def played(plan: Plan) -> dict[str, Any]:
    """A night: how it ended, the figures of its version, and what that was trained from."""
    from flows.bakeoff import measured
    from flows.nightly import nightly
    from infra import database
    from records import versions

    done = nightly(plan=plan)
    print(f"{done.state}: {done.reason}", file=sys.stderr, flush=True)
    assert done.version_id is not None, done.reason
    with database.connect().transaction() as session:
        parent = versions.get(session, done.version_id).parent_id
    return {**asdict(measured(done.version_id)), "state": done.state, "reason": done.reason,
            "parent": parent and asdict(measured(parent))}  # fmt: skip


def fill(data: Path) -> None:
    """Load weights, a benchmark and the library into S3, and freeze the benchmark."""
    from infra import storage
    from tasks import benchmark
    from tasks.benchmark import BENCHMARK

    for name in FILES.values():
        storage.connect().write(f"{WEIGHTS}{name}", data / "weights" / name)
    load(data, BENCHMARK, slice(BENCHMARK_EACH))
    benchmark.freeze("benchmarks/stories/architectures.py", "before anything is trained")
    load(data, "labelled/", slice(BENCHMARK_EACH, -NEW_EACH))


def load(data: Path, prefix: str, part: slice) -> None:
    """Load a part of the images of each chosen class into S3."""
    from tasks.loading import load_folder

    folders = sorted(path for path in (data / "caltech101_max40").iterdir() if path.is_dir())
    with tempfile.TemporaryDirectory() as folder:
        for path in (one for at, one in enumerate(folders) if at % 5 in CLASSES_OF_FIVE):
            (Path(folder) / path.name).mkdir()
            for file in sorted(path.iterdir())[part]:
                (Path(folder) / path.name / file.name).symlink_to(file.resolve())
        load_folder(Path(folder), prefix)


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


def entrants(told: dict[str, Any]) -> list[Entrants]:
    """Of every bake-off, always in the same order."""
    return [one["entrants"] for one in told["bakeoffs"]]


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
    bakeoffs, first, adopted = entrants(told), told["first"], told["adopted"]
    order = ranked(bakeoffs)
    one = told["winner"]
    loads = ", ".join(f"{one['load']:g}" for one in told["bakeoffs"])
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
        "alone. Training times are wall seconds; the machine's load over the last five minutes of "
        f"each bake-off was {loads} on {told['facts']['cores']} cores.",
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
        f"the benchmark, {milliseconds(first):.1f} ms for a picture. {one['name']} by the plan of "
        f"seed {SEEDS[0]} "
        + ("passed the gate and serves:" if adopted["code"] == 0 else "was refused by the gate:"),
        "",
        "```",
        *transcript(adopted),
        "```",
        "",
        *next_night(told["next"]),
        "```",
        *transcript(told["log"]),
        "```",
        "",
    ]  # fmt: skip
    write(STORY, "A bake-off of architectures, and its winner adopted", lines,
          "what begins at random (a fresh head at least), the order of images and the "
          "augmentation; snapshot and benchmark are the same",
          "one training at a time on all of them")  # fmt: skip


def transcript(command: dict[str, Any]) -> list[str]:
    """A command and what it said."""
    return [f"$ {command['command']}", *command["said"]]


def next_night(night: dict[str, Any]) -> list[str]:
    """What a night that names no architecture trained from, and how it ended."""
    parent = night["parent"]
    return [
        f"The next night, {NEW_EACH} new images of each class, asks for `architecture: null` and "
        f"leaves the image size at its default ({NEXT.image_size}): version {night['version_id']} "
        f"is {night['name']}, trained from version {parent['version_id']} ({parent['name']}) for "
        f"{night['epochs']} epochs: {night['state']}, {100 * benchmark_accuracy(night):.1f}% on "
        f"the benchmark after its parent's {100 * benchmark_accuracy(parent):.1f}%. The gate: "
        f"{night['reason']}",
        "",
    ]


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
