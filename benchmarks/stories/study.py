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
from loky import ProcessPoolExecutor, as_completed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.bench import facts
from vision.answers import Answers
from vision.fitting import Epoch, Examples, fit
from vision.images import square
from vision.network import class_names_of
from vision.plan import Geometry, Plan
from vision.prediction import predict

FOLDER = Path(__file__).parents[2] / "docs" / "stories"
SEEDS = (0, 1, 2)
OF_A_SEED = "the split, the start of what begins at random, the order and the augmentation"
SUFFIXES = {".jpg", ".jpeg", ".png"}

Setup = dict[str, Any]
Found = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One setup and what came of it: JSON values both."""

    setup: Setup
    found: Found


# --- pictures -------------------------------------------------------------------------------


class Pictures:
    """Decoded pictures of class folders, in memory.

    names: one per picture, `class/file`; labels: its class.
    """

    def __init__(self, folder: Path, geometry: Geometry) -> None:
        files = [
            path
            for one in sorted(folder.iterdir()) if one.is_dir()
            for path in sorted(one.iterdir()) if path.suffix.lower() in SUFFIXES
        ]
        self.names = [f"{path.parent.name}/{path.name}" for path in files]
        self.labels = {name: name.split("/")[0] for name in self.names}
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
def pictures(folder: Path, geometry: Geometry) -> Pictures:
    """Read once for each process."""
    return Pictures(folder, geometry)


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

    cpu_seconds: of this process alone, whatever else the machine did.
    """

    network: torch.nn.Module
    epochs: tuple[Epoch, ...]
    seconds: float
    cpu_seconds: float


def settled(plan: Plan, precision: Literal["float32", "bfloat16"]) -> Plan:
    """The plan with all set that would else be measured: runs beside each other must be alike."""
    return replace(plan, precision=precision, channels_last=True)


def trained(
    network: torch.nn.Module, plan: Plan, pictures: Pictures, train: Sequence[str],
    validation: Sequence[str],
) -> Trained:
    """Fit it with one thread; nothing stays on disk."""
    started, busy = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(
            network, plan, pictures.examples(train), pictures.examples(validation),
            Path(folder), "cpu", threads=1,
        )
    took, worked = time.perf_counter() - started, time.process_time() - busy
    return Trained(fitted.network, fitted.epochs, took, worked)


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
    with bar, ProcessPoolExecutor(cores, env={"OMP_NUM_THREADS": "1"}) as pool:
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
