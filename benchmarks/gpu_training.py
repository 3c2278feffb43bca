"""One whole training on an accelerator, with a kill in the middle, checked again on the CPU.

    python benchmarks/gpu_training.py FOLDER --weights FILE.safetensors --out OUT

Runs from `vision` alone: no Prefect, S3 or Postgres is needed. It trains MobileNetV2 on a folder
of class folders in bfloat16, is killed by SIGKILL after half of the epochs, resumes, loads the
checkpoint on the CPU in float32, and compares the answers image by image. Writes
OUT/gpu-training.json; `--report` turns that into docs/gpu-training.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import timm
import torch

from vision import network as networks
from vision.fitting import Epoch, Examples, fit
from vision.images import decode, prepare
from vision.pixels import PixelCache, Pixels
from vision.plan import Plan
from vision.prediction import predict

CYCLE = ("train", "validation", "test", *["train"] * 7)  # as intake deals splits


def main() -> None:
    """Train with a kill in the middle, then compare GPU and CPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--kill-after", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help="write this Markdown file from the figures")
    given = parser.parse_args()
    result = given.out / "gpu-training.json"
    if given.report:
        given.report.write_text(markdown(json.loads(result.read_text())))
        return
    plan = plan_of(given.weights, given.epochs)
    if given.kill_after is not None:
        train(given.folder, plan, given.out, given.kill_after)
        return
    half = given.epochs // 2
    killed = subprocess.run([sys.executable, *sys.argv, "--kill-after", str(half)], check=False)
    assert killed.returncode == -signal.SIGKILL, f"the child was to be killed: {killed}"
    facts = train(given.folder, plan, given.out, None)
    facts |= {"killed_after_epoch": half, **on_cpu(given.folder, plan, given.out)}
    result.write_text(json.dumps(facts, indent=1))
    print(markdown(facts))


def plan_of(weights: Path, epochs: int) -> Plan:
    """The plan of docs/caltech-nights.md, on whatever device there is."""
    return Plan(
        architecture="mobilenetv2_100",
        arguments={"pad_type": "same"},
        weights=str(weights),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        image_size=160,
        epochs=epochs,
        learning_rate=1e-3,
        backbone_learning_rate=2e-4,
        batch_norm="eval",
        cutoff=20,
    )


def dealt(folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """Every image with its class, by split."""
    splits: dict[str, list[tuple[Path, str]]] = {"train": [], "validation": [], "test": []}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        for number, path in enumerate(sorted(place.iterdir())):
            splits[CYCLE[number % len(CYCLE)]].append((path, place.name))
    return splits


def examples(folder: Path, plan: Plan, out: Path) -> dict[str, Examples]:
    """Decode everything once into the pixel cache and name it by digest."""
    cache = PixelCache(out / "pixels", 20)
    items = [(path, name, split) for split, some in dealt(folder).items() for path, name in some]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path, _, _ in items]
    pixels: Pixels = cache.open(plan.geometry)
    if pixels.missing(digests):
        with (
            cache.writer("all", plan.geometry, len(items)) as writer,
            ThreadPoolExecutor() as pool,
        ):

            def put(row: int) -> None:
                body = items[row][0].read_bytes()
                writer.put(row, digests[row], prepare(decode(body), plan.geometry))

            list(pool.map(put, range(len(items))))
        pixels = cache.open(plan.geometry)
    found = {}
    for split in ("train", "validation", "test"):
        # The same picture can lie in two folders; it counts once.
        once = {
            digest: name
            for digest, (_, name, its_split) in zip(digests, items, strict=True)
            if its_split == split
        }
        found[split] = Examples(pixels, list(once), list(once.values()))
    return found


def train(folder: Path, plan: Plan, out: Path, kill_after: int | None) -> dict[str, object]:
    """Train or resume; a child that is to die kills itself without warning."""
    sets = examples(folder, plan, out)
    names = sorted(set(sets["train"].labels))
    network = networks.build(plan, names)
    resumed_behind = [0]

    def heard(epoch: Epoch) -> None:
        if not resumed_behind[0]:
            resumed_behind[0] = epoch.number
        if kill_after is not None and epoch.number == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    started = time.perf_counter()
    fitted = fit(network, plan, sets["train"], sets["validation"], out / "work", on_epoch=heard)
    seconds = time.perf_counter() - started
    digest = networks.save(fitted.network, out / "checkpoint.safetensors", plan, names)
    return {
        "first_epoch_of_this_process": resumed_behind[0],
        "seconds_of_this_process": seconds,
        "machine": fitted.machine | {"gpu": gpu(), "host": platform.platform()},
        "images": {split: len(one.images) for split, one in sets.items()},
        "classes": len(names),
        "epochs": [dataclasses.asdict(epoch) for epoch in fitted.epochs],
        "checkpoint_digest": digest,
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }


def gpu() -> dict[str, str] | None:
    """The device with its driver."""
    if not torch.cuda.is_available():
        return None
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return {
        "name": torch.cuda.get_device_name(),
        "driver": driver,
        "cuda": str(torch.version.cuda),
    }


def on_cpu(folder: Path, plan: Plan, out: Path) -> dict[str, object]:
    """Load the checkpoint afresh and answer the test images on both devices."""
    test = examples(folder, plan, out)["test"]
    figures: dict[str, object] = {}
    answers = {}
    for device in ("auto", "cpu"):
        loaded = networks.load(out / "checkpoint.safetensors")
        started = time.perf_counter()
        answers[device] = predict(
            loaded.network, loaded.class_names, test.pixels, test.images, test.labels,
            loaded.plan, device,
        )  # fmt: skip
        figures[f"answer_seconds_{device}"] = time.perf_counter() - started
    there, here = answers["auto"], answers["cpu"]
    apart = np.abs(there.label_confidence - here.label_confidence)
    return figures | {
        "test_accuracy_device": float(there.correct.mean()),
        "test_accuracy_cpu": float(here.correct.mean()),
        "same_answer": float(np.mean([a == b for a, b in
                                      zip(there.predicted, here.predicted, strict=True)])),
        "largest_confidence_difference": float(apart.max()),
        "median_confidence_difference": float(np.median(apart)),
    }  # fmt: skip


def markdown(facts: dict[str, object]) -> str:
    """The report, from the figures alone."""
    machine = dict(facts["machine"])  # type: ignore[call-overload]
    epochs = list(facts["epochs"])  # type: ignore[call-overload]
    device = machine["gpu"] or {"name": "no GPU: CPU", "driver": "", "cuda": ""}
    speed = float(np.median([one["images_per_second"] for one in epochs]))
    rows = "\n".join(
        f"| {one['number']} | {one['train_loss']:.3f} | {one['validation_loss']:.3f} | "
        f"{one['validation_accuracy']:.1%} | {one['images_per_second']:.0f} |"
        for one in epochs
    )
    return f"""# A whole training on an accelerator

Made by `python benchmarks/gpu_training.py FOLDER --weights FILE --out OUT` and
`--report docs/gpu-training.md`; nothing here is typed by hand.

| | |
|---|---|
| device | {device["name"]}, driver {device["driver"]}, CUDA {device["cuda"]} |
| versions | {json.dumps(facts["versions"])} |
| precision | {machine["precision"]}, channels last: {machine["channels_last"]} |
| images | {json.dumps(facts["images"])}, {facts["classes"]} classes |
| training speed, median of the epochs | {speed:.0f} images/s |
| killed by SIGKILL after epoch | {facts["killed_after_epoch"]} |
| first epoch after the kill | {facts["first_epoch_of_this_process"]} |
| test accuracy on the device | {facts["test_accuracy_device"]:.2%} |
| test accuracy of the same checkpoint on the CPU, float32 | {facts["test_accuracy_cpu"]:.2%} |
| images with the same answer | {facts["same_answer"]:.2%} |
| largest difference of a confidence | {facts["largest_confidence_difference"]:.2g} |
| checkpoint | `{facts["checkpoint_digest"]}` |

| epoch | training loss | validation loss | validation accuracy | images/s |
|---:|---:|---:|---:|---:|
{rows}
"""


if __name__ == "__main__":
    main()
