"""What the stories share: pictures in memory, runs side by side on the cores, and their page.

A story is a list of setups (plain JSON values, the seed among them) and a function that trains
one of them. Every finished run is kept at once in docs/stories/NAME.json, so that a study that was
broken off goes on behind its last run, and a page can be written again without training.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from loky import as_completed, get_reusable_executor
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from scipy.stats import t

from benchmarks.bench import facts
from vision.answers import Answers
from vision.augmentation import seeds_of, uniform
from vision.failures import TRANSFORMATIONS, Grade, aimed, derive, sensitivities
from vision.fitting import Epoch, Examples, fit
from vision.grades import answered, bend
from vision.images import square
from vision.network import build, class_names_of
from vision.plan import Geometry, Plan
from vision.prediction import Forward, predict
from vision.runtime import plain, ready

FOLDER = Path(__file__).parents[2] / "docs" / "stories"
SEEDS = (0, 1, 2)
OF_A_SEED = "the split, the start of what begins at random, the order and the augmentation"
SUFFIXES = {".jpg", ".jpeg", ".png"}
AT_ONCE = 64

Setup = dict[str, Any]
Found = dict[str, Any]
Parts = dict[str, list[str]]  # pictures by the part that they play


@dataclass(frozen=True)
class Run:
    """One setup and what came of it: JSON values both."""

    setup: Setup
    found: Found


# --- pictures -------------------------------------------------------------------------------


class Pictures:
    """Decoded pictures of class folders, in memory.

    parts: folders within `folder` that hold the class folders, by default itself. names: one per
    picture, `class/file` or `part/class/file`; labels: its class.
    """

    def __init__(self, folder: Path, geometry: Geometry, parts: Sequence[str] = ("",)) -> None:
        files = [
            path
            for part in parts
            for one in sorted((folder / part).iterdir()) if one.is_dir()
            for path in sorted(one.iterdir()) if path.suffix.lower() in SUFFIXES
        ]
        self.names = [str(path.relative_to(folder)) for path in files]
        self.labels = {name: name.split("/")[-2] for name in self.names}
        self._row = {name: row for row, name in enumerate(self.names)}
        self._pixels = np.stack([square(path.read_bytes(), geometry) for path in files])

    def gather(self, images: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Pixels uint8 [N, side, side, 3], in this order."""
        return self._pixels[[self._row[one] for one in images]]

    def examples(self, images: Sequence[str]) -> Examples:
        """These pictures with their labels."""
        return Examples(self, images, [self.labels[one] for one in images])

    def of(self, classes: Sequence[str]) -> list[str]:
        """All pictures of these classes."""
        wanted = set(classes)
        return [name for name in self.names if self.labels[name] in wanted]


@lru_cache(maxsize=4)
def pictures(folder: Path, geometry: Geometry, parts: tuple[str, ...] = ("",)) -> Pictures:
    """Read once for each process."""
    return Pictures(folder, geometry, parts)


def parted(
    pictures: Pictures, images: Sequence[str], counts: Mapping[str, int], seed: int
) -> dict[str, list[str]]:
    """Split by class: so many images of each class for each part in turn, the last takes the rest.

    counts: part -> images of each class; a negative count takes all that are left. The order in
    which a class is dealt out depends on seed, class and nothing else: a class has the same parts
    whatever other classes there are.
    """
    found: dict[str, list[str]] = {part: [] for part in counts}
    by_class: dict[str, list[str]] = {}
    for name in images:
        by_class.setdefault(pictures.labels[name], []).append(name)
    for label, names in sorted(by_class.items()):
        ranked = sorted(names, key=lambda one: hashlib.sha256(f"{seed} {one}".encode()).digest())
        start = 0
        for part, count in counts.items():
            end = len(ranked) if count < 0 else start + count
            if end > len(ranked) or end == start:
                raise SystemExit(f"class {label!r} has {len(ranked)} images, too few for {part}: "
                                 "take fewer for the parts before")
            found[part] += ranked[start:end]
            start = end
    return found


# --- training -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A network, its epochs, and the seconds that `fit` took for all of them.

    core_seconds: those in which its core computed for it, however busy the machine was.
    """

    network: torch.nn.Module
    epochs: tuple[Epoch, ...]
    seconds: float
    core_seconds: float


def settled(plan: Plan, precision: Literal["float32", "bfloat16"]) -> Plan:
    """The plan with all set that would else be measured: runs beside each other must be alike."""
    return replace(plan, precision=precision, channels_last=True)


def trained(
    network: torch.nn.Module, plan: Plan, pictures: Pictures, train: Sequence[str],
    validation: Sequence[str],
) -> Trained:
    """Fit it with one thread; nothing stays on disk."""
    started, computed = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(
            network, plan, pictures.examples(train), pictures.examples(validation),
            Path(folder), "cpu", threads=1,
        )
    return Trained(fitted.network, fitted.epochs, time.perf_counter() - started,
                   time.process_time() - computed)  # fmt: skip


def trained_anew(plan: Plan, pictures: Pictures, parts: Parts) -> Trained:
    """From the plan's start: its weights, or at random. parts: has `train` and `validation`."""
    network = build(plan, sorted({pictures.labels[one] for one in parts["train"]}))
    return trained(network, plan, pictures, parts["train"], parts["validation"])


def answers(
    network: torch.nn.Module, plan: Plan, pictures: Pictures, images: Sequence[str]
) -> Answers:
    """What the network says to these pictures as they are, without augmentation."""
    labels = [pictures.labels[one] for one in images]
    return predict(network, class_names_of(network), pictures, images, labels, plan, "cpu")


def accuracy(
    network: torch.nn.Module, plan: Plan, pictures: Pictures, images: Sequence[str]
) -> float:
    """Share of these pictures, without augmentation, that the network names rightly."""
    return float(answers(network, plan, pictures, images).correct.mean())


def curve(epochs: Sequence[Epoch]) -> list[dict[str, float]]:
    """What is kept of each epoch."""
    return [
        {
            "train_accuracy": round(one.train_accuracy, 5),
            "validation_accuracy": round(one.validation_accuracy, 5),
            "seconds": round(one.seconds, 3),
        }
        for one in epochs
    ]


def checkpoint(networks: Path, setup: Setup) -> Path:
    """Where a run of this setup keeps its network in this folder, for the runs that start from it.
    """
    return networks / f"{hashlib.sha256(_key(setup).encode()).hexdigest()[:16]}.safetensors"


# --- failures -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aimed:
    """The next plan, why it bends pictures as it does, and what finding out took of a core."""

    plan: Plan
    reasons: tuple[str, ...]
    core_seconds: float


def aimed_at_failures(
    network: torch.nn.Module, plan: Plan, pictures: Pictures, validation: Sequence[str]
) -> Aimed:
    """Bend these pictures in all grades, as a night does, and widen the plan by what that costs."""
    started = time.process_time()
    labels = [pictures.labels[one] for one in validation]
    names = class_names_of(network)
    untouched, bent = answered(
        _forward(network, plan), names, pictures, validation, labels, plan.image_size,
        torch.device("cpu"),
    )
    derived = derive(sensitivities(untouched, bent, labels), plan)
    reasons = tuple(one.sentence for one in derived.changes)
    return Aimed(aimed(plan, derived, names), reasons, time.process_time() - started)


def beside_aimed(
    first: Trained, plan: Plan, pictures: Pictures, parts: Parts,
    figures: Callable[[Trained, Plan, Pictures, Parts], Found],
) -> tuple[Found, Found]:
    """Figures of a network and of the one trained next, by the plan aimed at its failures.

    parts: has `validation`, where failures are looked for, and `tried`, which is bent in the end.
    """
    plain = figures(first, plan, pictures, parts)
    plain["bent"] = bent_accuracy(first.network, plan, pictures, parts["tried"])
    aimed = aimed_at_failures(first.network, plan, pictures, parts["validation"])
    then = {**plain, "reasons": list(aimed.reasons),
            "analysis_seconds": round(aimed.core_seconds, 1)}  # fmt: skip
    if aimed.plan != plan:  # else the same plan, pictures and seed give the same network
        second = trained_anew(aimed.plan, pictures, parts)
        bent = bent_accuracy(second.network, plan, pictures, parts["tried"])
        then |= {**figures(second, aimed.plan, pictures, parts), "bent": bent}
    return plain, then


def bent_accuracy(
    network: torch.nn.Module, plan: Plan, pictures: Pictures, images: Sequence[str]
) -> float:
    """Share of these pictures named rightly when bent, mean of all realistic strengths."""
    forward, names = _forward(network, plan), class_names_of(network)
    grades = [Grade(one.name, strength) for one in TRANSFORMATIONS for strength in one.realistic]
    right = 0
    for start in range(0, len(images), AT_ONCE):
        some = images[start:start + AT_ONCE]
        stored = torch.from_numpy(pictures.gather(some))
        draws = uniform(seeds_of(0, 0, some), 2)
        true = torch.tensor([names.index(pictures.labels[one]) for one in some])
        for grade in grades:
            outputs = forward(bend(stored, grade, plan.image_size, draws))
            right += int((outputs.argmax(dim=1) == true).sum())
    return right / (len(images) * len(grades))


def _forward(network: torch.nn.Module, plan: Plan) -> Forward:
    place = torch.device("cpu")
    return ready(plain(plan, place), network, plan, place, AT_ONCE)


# --- running --------------------------------------------------------------------------------


def arguments(story: str, description: str | None) -> argparse.Namespace:
    """What every story is called with: `data`, `runs` (where results are kept), `page`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True,
                        help="folder that holds caltech101_max40, cats_dogs, ... and weights")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    parser.add_argument("--again", action="store_true", help="forget the runs of before")
    given = parser.parse_args()
    if given.again and not given.page:
        (FOLDER / f"{story}.json").unlink(missing_ok=True)
    return given


def run_all(
    story: str, function: Callable[[Setup, Path], Found], setups: Sequence[Setup],
    given: argparse.Namespace,
) -> list[Run]:
    """Train every setup that has no result yet, one process for each core; all in order.

    function: of a setup and the data folder, at the top of an importable module.
    """
    path = FOLDER / f"{story}.json"
    known = {_key(one["setup"]): one["found"] for one in _read(path).get("runs", [])}
    missing = [one for one in setups if _key(one) not in known]
    if given.page and missing:
        raise SystemExit(f"{path} lacks {len(missing)} of {len(setups)} runs: leave --page out")
    if missing:
        _train(path, function, missing, given.data.resolve(), known)
    return [Run(one, known[_key(one)]) for one in setups]


def _train(
    path: Path, function: Callable[[Setup, Path], Found], missing: Sequence[Setup], data: Path,
    known: dict[str, Found],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TimeElapsedColumn(), console=Console(stderr=True))  # fmt: skip
    # the next call finds the same processes, with their pictures in memory
    pool = get_reusable_executor(cores, timeout=60, env={"OMP_NUM_THREADS": "1"})
    with bar:
        shown = bar.add_task(path.stem, total=len(missing))
        waiting = {pool.submit(_timed, function, one, data): one for one in missing}
        for future in as_completed(waiting):
            setup = waiting[future]
            known[_key(setup)] = future.result()
            bar.advance(shown)
            print(f"{json.dumps(setup)}: {known[_key(setup)]['seconds']:.0f} s", file=sys.stderr,
                  flush=True)
            _write(path, known)


def _timed(function: Callable[[Setup, Path], Found], setup: Setup, data: Path) -> Found:
    torch.set_num_threads(1)
    started = time.perf_counter()
    found = function(setup, data)
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


def _key(setup: Setup) -> str:
    return json.dumps(setup, sort_keys=True)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _write(path: Path, known: Mapping[str, Found]) -> None:
    runs = [{"setup": json.loads(key), "found": found} for key, found in known.items()]
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps({"facts": facts(), "runs": runs}, ensure_ascii=False) + "\n")
    aside.replace(path)


# --- the page -------------------------------------------------------------------------------


def spread(values: Sequence[float], scale: float = 100, digits: int = 1) -> str:
    """Mean and standard deviation over seeds, in percent unless `scale` says otherwise."""
    scaled = [scale * one for one in values]
    if len(scaled) == 1:
        return f"{scaled[0]:.{digits}f}"
    return f"{statistics.mean(scaled):.{digits}f} ± {statistics.stdev(scaled):.{digits}f}"


def change(after: Sequence[float], before: Sequence[float]) -> str:
    """Points gained or lost, each seed against itself: mean and standard deviation."""
    told = spread([one - other for one, other in zip(after, before, strict=True)])
    return told if told.startswith("-") else f"+{told}"


def verdict(after: Sequence[float], before: Sequence[float]) -> str:
    """In words, whether that change is one, by the 95% interval of Student's t over the seeds."""
    gains = [one - other for one, other in zip(after, before, strict=True)]
    middle = statistics.mean(gains)
    reach = float(t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    if abs(middle) > reach:
        return "surely up" if middle > 0 else "surely down"
    if min(gains) > 0 or max(gains) < 0:
        return f"{'up' if middle > 0 else 'down'} with every seed, too few to be sure"
    return "no change that these seeds can show"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown; all but the first column to the right."""
    return [
        "| " + " | ".join(header) + " |",
        "|---" + "|---:" * (len(header) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def write(
    story: str, title: str, lines: Sequence[str], of_a_seed: str = OF_A_SEED,
    at_work: str = "one process for each core",
) -> Path:
    """docs/stories/NAME.md: the lines between a headline and what it was measured on.

    of_a_seed: what differs from seed to seed; at_work: who used the cores.
    """
    told = _read(FOLDER / f"{story}.json")["facts"]
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items()
                         if name in {"torch", "torchvision", "timm", "numpy"})
    path = FOLDER / f"{story}.md"
    path.write_text("\n".join([
        f"# {title}",
        "",
        f"Written by `make story-{story} DATA=folder`; nothing here is typed by hand. Figures are "
        f"means over {len(SEEDS)} seeds ± their standard deviation; a seed decides {of_a_seed}.",
        "",
        *lines,
        f"<sub>{told['measured']}: {told['processor']}, {told['cores']} cores, no GPU, "
        f"{at_work}, Python {told['python']}, {versions}. All runs: "
        f"[{story}.json]({story}.json).</sub>",
    ]) + "\n")  # fmt: skip
    print(f"{path} written")
    return path
