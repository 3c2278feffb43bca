"""Drawn pictures in a pixel cache, and processes that train on them together.

Imports vision alone, so that a process is there at once.
"""

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import torch
from torch import Tensor, distributed

from vision.fitting import Epoch, Examples, fit
from vision.network import build, load, save
from vision.pixels import PixelCache
from vision.plan import Augmentation, Geometry, Plan
from vision.ranks import Ranks

NAMES = ("circle", "cross", "square")
PLAN = Plan(
    architecture="test_resnet", image_size=32, epochs=2, batch_size=9, warmup_epochs=0.5,
    optimizer="sgd", learning_rate=0.02, precision="float32", channels_last=False, dropout=0.0,
    augmentation=Augmentation(rotation=5, scale=0.8, flip=False),
)  # fmt: skip
PATIENCE_SECONDS = 100


def _drawn(numbers: range) -> tuple[list[str], list[str]]:
    """Names and labels of some pictures; the first class has half of them."""
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]
    return names, [NAMES[max(0, number % 4 - 1)] for number in numbers]


# 29 in batches of 9: shares of 5 and 4 pictures, and a last batch of 2 for two or three ranks
TRAIN, VALIDATION = _drawn(range(29)), _drawn(range(100, 111))


def fill(folder: Path, geometry: Geometry = PLAN.geometry) -> Path:
    """Put all pictures into a pixel cache."""
    names, labels = TRAIN[0] + VALIDATION[0], TRAIN[1] + VALIDATION[1]
    with PixelCache(folder, 1).writer("all", geometry, len(names)) as writer:
        for row, (name, label) in enumerate(zip(names, labels, strict=True)):
            drawn = pictures.shape(label, row, geometry.side)
            writer.put(row, name, np.asarray(drawn.convert("RGB")))
    return folder


def examples(cache: Path, geometry: Geometry = PLAN.geometry) -> tuple[Examples, Examples]:
    """Training and validation images."""
    held = PixelCache(cache, 1).open(geometry)
    return Examples(held, *TRAIN), Examples(held, *VALIDATION)


def alone(plan: Plan, cache: Path, folder: Path) -> tuple[dict[str, Tensor], list[Epoch]]:
    """What one process makes of the plan."""
    shown = examples(cache, plan.geometry)
    fitted = fit(build(plan, NAMES), plan, *shown, folder, "cpu")
    return fitted.network.state_dict(), list(fitted.epochs)


def together(
    world: int, plan: Plan, cache: Path, folder: Path
) -> tuple[dict[str, Tensor], list[Epoch]]:
    """What several processes make of it."""
    in_ranks(world, train_as, plan, cache, folder)
    epochs = [Epoch(**one) for one in json.loads((folder / "epochs.json").read_text())]
    return load(folder / "together.safetensors").network.state_dict(), epochs


def train_as(ranks: Ranks, plan: Plan, cache: Path, folder: Path) -> None:
    """Train as one of the ranks; the first keeps what came of it."""
    shown = examples(cache, plan.geometry)
    fitted = fit(build(plan, NAMES), plan, *shown, folder, "cpu", ranks=ranks)
    if ranks.leads:
        save(fitted.network, folder / "together.safetensors", plan, NAMES)
        (folder / "epochs.json").write_text(json.dumps([vars(one) for one in fitted.epochs]))


def in_ranks(world: int, work: Callable[..., None], *values: Any) -> None:
    """Run `work(ranks, *values)` in so many processes; the last value is a folder of their own."""
    context = multiprocessing.get_context("forkserver")
    # forked from one that has done the imports, which take longer than the training
    context.set_forkserver_preload(["vision.distributed"])
    folder = values[-1]
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        context.Process(target=_be, args=(rank, world, work, *values)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0] * world


def _be(rank: int, world: int, work: Callable[..., None], *values: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting = f"file://{values[-1]}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    work(Ranks(rank, world), *values)
    distributed.barrier()
    distributed.destroy_process_group()
