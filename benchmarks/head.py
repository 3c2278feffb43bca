"""The head phase of `two-phase`: on features computed once, against the whole network every epoch.

Both are regraft's own `fit`, with the same network, pictures, order, rates and seed, from the pixel
cache; they differ in the plan's `head_views` alone. A run ends behind its head phase; each round
has a seed of its own.
"""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.bench import arguments, facts
from benchmarks.figures import Figure, Goal, Part, Row, take_turns
from benchmarks.photographs import photographs
from vision.calibration import Calibration
from vision.fitting import Epoch, Examples, fit
from vision.images import decode, prepare
from vision.network import build
from vision.pixels import PixelCache
from vision.plan import Plan

PART = "head"
SIZE = 160
CLASSES = 8
ROUNDS = 3
# architecture -> training and validation images on a CPU
NETWORKS = {"mobilenetv2_100": (1024, 256), "resnet50": (256, 256)}
ON_GPU = (8192, 1024)
KEPT, THROUGH = "features kept", "through the network"
POINTS = 1.0


class Enough(Exception):
    """Ends a run behind its head phase."""


@dataclass(frozen=True)
class Run:
    """One head phase: seconds in all, its epochs, and the engine that computed its features."""

    seconds: float
    epochs: tuple[Epoch, ...]

    @property
    def accuracy(self) -> float:
        """On the validation images, in percent."""
        return 100 * self.epochs[-1].validation_accuracy


def main() -> None:
    """Both networks; save the part."""
    given = arguments(PART)
    device = "cuda" if given.gpu else "cpu"
    rows: list[Row] = []
    notes = [ABOUT]
    for architecture, on_cpu in NETWORKS.items():
        count, held_out = ON_GPU if given.gpu else on_cpu
        plan = plan_of(architecture, given.weights)
        print(f"── {architecture}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            shown = pictures(Path(folder), plan, count, held_out, given.data)
            found, note = measured(plan, shown, Path(folder), device)
        rows += found
        notes.append(note)
    Part(PART, "The head phase", tuple(rows), tuple(notes), (), facts()).save(device)


ABOUT = (
    "An epoch on kept features is one whose view has been computed before, and the goal of ten "
    "times is about such an epoch. The whole phase gains less, because its views must be computed; "
    "it has all in it: telling backbone and head apart, making the engine ready, computing the "
    "features of each view and of the validation images, learning, validating, and the state kept "
    "after each epoch. The engine that computes features is the one that `vision/runtime.py` has "
    "found fastest here for answers, measured once for each machine and architecture before these "
    "rounds."
)


def plan_of(architecture: str, weights: Path | None) -> Plan:
    """The default recipe with a head phase; the weights given are those of a MobileNetV2."""
    plan = Plan(architecture=architecture, image_size=SIZE, recipe="two-phase")
    if weights is None or architecture != "mobilenetv2_100":
        return plan
    return replace(plan, weights=str(weights), arguments={"pad_type": "same"},
                   mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def pictures(
    folder: Path, plan: Plan, count: int, held_out: int, data: Path | None
) -> tuple[Examples, Examples]:
    """Decoded photographs in a pixel cache: those to learn from, and others."""
    bodies = photographs(count + held_out, data, classes=CLASSES)
    images = [hashlib.sha256(body).hexdigest() for _, body in bodies]
    labels = [name for name, _ in bodies]
    cache = PixelCache(folder / "pixels", 20)
    with cache.writer("all", plan.geometry, len(bodies)) as writer:
        for row, (image, (_, body)) in enumerate(zip(images, bodies, strict=True)):
            writer.put(row, image, prepare(decode(body), plan.geometry))
    held = cache.open(plan.geometry)
    return (Examples(held, images[:count], labels[:count]),
            Examples(held, images[count:], labels[count:]))


def measured(
    plan: Plan, shown: tuple[Examples, Examples], folder: Path, device: str
) -> tuple[list[Row], str]:
    """The rows of one network, and what to say about them."""
    calibration = Calibration(folder / "calibration.json")
    runs: dict[str, list[Run]] = {KEPT: [], THROUGH: []}

    def phase(name: str, plan: Plan) -> Callable[[], float]:
        def work() -> float:
            seeded = replace(plan, seed=len(runs[name]))
            runs[name].append(head_phase(seeded, shown, folder, device, calibration))
            return len(shown[0].images) * plan.head_epochs / runs[name][-1].seconds

        return work

    assert plan.head_views is not None
    assert plan.head_views < plan.head_epochs
    begun = time.perf_counter()
    head_phase(plan, shown, folder, device, calibration)
    calibrated = time.perf_counter() - begun
    through = replace(plan, head_views=None)
    whole = take_turns({KEPT: phase(KEPT, plan), THROUGH: phase(THROUGH, through)}, "images/s",
                       ROUNDS)
    per_epoch = {
        name: tuple(epoch.images_per_second for run in found for epoch in run.epochs[first:])
        for (name, found), first in zip(runs.items(), (plan.head_views, 0), strict=True)
    }
    title = (f"{plan.architecture}, {SIZE} px, batch {plan.batch_size}, "
             f"{len(shown[0].images)} images")
    right = {name: tuple(run.accuracy for run in found) for name, found in runs.items()}
    apart = abs(statistics.mean(right[KEPT]) - statistics.mean(right[THROUGH]))
    rows = [
        Row(f"{title}: an epoch of the head phase whose view is computed",
            Figure("regraft", "images/s", per_epoch[KEPT]),
            (Figure(THROUGH, "images/s", per_epoch[THROUGH]),),
            (Goal(THROUGH, 10.0, "per epoch at least ten times the whole network"),)),
        Row(f"{title}: all {plan.head_epochs} epochs and all they need",
            replace(whole[KEPT], name="regraft", note=f"{plan.head_views} views"),
            (whole[THROUGH],)),
        Row(f"{title}: validation accuracy behind the head phase, {ROUNDS} seeds",
            Figure("regraft", "%", right[KEPT]), (Figure(THROUGH, "%", right[THROUGH]),)),
        Row(f"{title}: how far the means of these accuracies lie apart",
            Figure("difference", "points", (apart,)),
            (Figure("tolerance", "points", (POINTS,)),),
            (Goal("tolerance", 1.0, f"within {POINTS:g} point of the whole network"),)),
    ]  # fmt: skip
    of_kept = [f"{epoch.images_per_second:,.0f}" for epoch in runs[KEPT][-1].epochs]
    start = "from the weights given" if plan.weights else "from a random start"
    note = (
        f"{plan.architecture}, {start}: mean validation accuracy of {ROUNDS} seeds "
        f"{_mean(right[KEPT])} on kept features and {_mean(right[THROUGH])} through the network "
        f"({len(shown[1].images)} images, {len(set(shown[0].labels))} classes); the epochs of one "
        f"run went at {', '.join(of_kept)} images/s, those with a new view in them too. Features "
        f"by {engine_of(folder)}; the first run, which measured the engines, took "
        f"{calibrated:.0f} s, the following "
        f"{statistics.median(run.seconds for run in runs[KEPT]):.1f} s, and through the network "
        f"{statistics.median(run.seconds for run in runs[THROUGH]):.1f} s."
    )
    return rows, note


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f}% (spread {statistics.stdev(values):.1f})"


def head_phase(
    plan: Plan,
    shown: tuple[Examples, Examples],
    folder: Path,
    device: str,
    calibration: Calibration,
) -> Run:
    """Train until the head phase ends."""
    epochs: list[Epoch] = []

    def heard(epoch: Epoch) -> None:
        epochs.append(epoch)
        if epoch.number == plan.head_epochs:
            raise Enough

    network = build(plan, sorted(set(shown[0].labels)))
    workdir = Path(tempfile.mkdtemp(dir=folder, prefix="work-"))
    begun = time.perf_counter()
    try:
        fit(network, plan, *shown, workdir, device, on_epoch=heard, calibration=calibration)
    except Enough:
        return Run(time.perf_counter() - begun, tuple(epochs))
    raise AssertionError("the head phase never ended")


def engine_of(folder: Path) -> str:
    """What computed the features of the run that ended last, as its state tells."""
    from vision.network import read_tensors

    kept = sorted(folder.glob("work-*/resume.safetensors"), key=lambda path: path.stat().st_mtime)
    for path in reversed(kept):
        _, told = read_tensors(path.read_bytes(), str(path))
        machine: dict[str, Any] = told["machine"]
        if machine["features"] is not None:
            return str(machine["features"])
    raise AssertionError("no run kept features")


if __name__ == "__main__":
    main()
