"""A tiny library and a plan to go with it: a real night that a test can afford."""

from pathlib import Path

import pictures

from records.objects import LABELLED
from tasks import benchmark
from tasks.benchmark import BENCHMARK
from tasks.loading import load_folder
from vision.plan import Augmentation, Plan

CLASSES = ("circle", "cross")
IMAGES = 12  # of each class in a batch
BENCHMARK_IMAGES = 8  # of each class

# Enough to tell a red disc from a yellow cross, so that the gate lets the first night pass.
TINY_PLAN = Plan(
    architecture="test_resnet",
    recipe="scratch",
    image_size=32,
    epochs=10,
    warmup_epochs=0.0,
    batch_size=8,
    learning_rate=1e-2,
    dropout=0.0,
    precision="float32",
    augmentation=Augmentation(flip=False),
    cutoff=6,
)


def draw(
    folder: Path, classes: tuple[str, ...] = CLASSES, images: int = IMAGES, seed: int = 0
) -> Path:
    """Fill a folder of class folders with pictures; another seed, other pictures."""
    for name in classes:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        for number in range(seed, seed + images):
            # Under 64 pixels nothing counts as a near-duplicate, which plain shapes would.
            body = pictures.png(pictures.shape(name, number, side=48))
            (place / f"{number}.png").write_bytes(body)
    return folder


def tiny_library(scratch: Path, classes: tuple[str, ...] = CLASSES) -> None:
    """Freeze a benchmark and upload new labelled images; asks for `database` and `storage`."""
    load_folder(draw(scratch / "messy", classes, BENCHMARK_IMAGES, seed=1000), BENCHMARK)
    benchmark.freeze("a test", "a first benchmark")
    more_images(scratch, classes, seed=0)


def more_images(scratch: Path, classes: tuple[str, ...] = CLASSES, *, seed: int) -> None:
    """Upload another batch, which the next night takes in."""
    load_folder(draw(scratch / f"batch-{seed}", classes, seed=seed), LABELLED)
