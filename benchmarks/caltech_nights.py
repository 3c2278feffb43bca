"""Two nights on Caltech-101: 60 classes, then all 101, against logistic regression.

    python benchmarks/caltech_nights.py --data DATA

Everything is real: an embedded Postgres, S3 and Prefect of its own, the images loaded into S3, a
benchmark of five images of each class, frozen before night 1 and grown for the new classes before
night 2. Night 1 has 60 classes with 25 of their images each; night 2 brings the other 41 classes
and the held-back images of the old ones. The peer is a logistic regression on features of the
same pretrained weights, frozen, over the very snapshot that night 2 trained on.

Writes docs/caltech-nights.md and docs/caltech-nights.png.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FIRST_CLASSES = 60
BENCHMARK_EACH = 5
FIRST_NIGHT_EACH = 25
MODELS: dict[str, dict[str, Any]] = {
    "mobilenetv2": {
        "architecture": "mobilenetv2_100",
        "arguments": {"pad_type": "same"},
        "file": "mobilenetv2_100_coral_dequant.timm.safetensors",
        "interpolation": "bilinear",
    },
    "lite0": {
        "architecture": "tf_efficientnet_lite0",
        "arguments": {},
        "file": "tf_efficientnet_lite0.timm.safetensors",
        "interpolation": "bicubic",
    },
}
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Told:
    """What the report needs of one night."""

    name: str
    seconds: float
    outcome: str
    near: str
    facts: dict[str, Any]


def main() -> None:
    """Play both nights, train the peer, write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=sorted(MODELS), default="mobilenetv2")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, nargs=2, default=(12, 12), metavar="N")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "caltech-nights.md")
    given = parser.parse_args()

    from benchmarks.services import services

    with services():
        nights = play(given.data, given.model, given.image_size, tuple(given.epochs))
        peer = logistic_regression(nights[1].facts)
        write(given.out, given, nights, peer)


def play(data: Path, model: str, size: int, epochs: tuple[int, ...]) -> list[Told]:
    """Both nights; the second one starts from the first one's version."""
    from dataclasses import replace

    from tasks import benchmark
    from tasks.benchmark import BENCHMARK
    from tasks.loading import load_folder
    from vision.plan import Augmentation, Plan

    chosen = MODELS[model]
    plan = Plan(
        architecture=chosen["architecture"],
        arguments=chosen["arguments"],
        weights=str((data / "weights" / chosen["file"]).resolve()),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation=chosen["interpolation"],
        image_size=size,
        epochs=epochs[0],
        learning_rate=2e-3,
        backbone_learning_rate=2e-4,
        batch_norm="eval",
        cutoff=20,
        augmentation=Augmentation(rotation=5.0),
    )
    folders = sorted(path for path in (data / "caltech101_max40").iterdir() if path.is_dir())
    files = {path.name: sorted(path.iterdir()) for path in folders}
    names = list(files)
    # Every fifth two of five are held back, so that the alphabet does not decide.
    old = [name for place, name in enumerate(names) if place % 5 < 3][:FIRST_CLASSES]
    new = [name for name in names if name not in old]

    def upload(prefix: str, chosen_files: dict[str, list[Path]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, some in chosen_files.items():
                (Path(folder) / name).mkdir()
                for path in some:
                    (Path(folder) / name / path.name).symlink_to(path.resolve())
            load_folder(Path(folder), prefix)

    held, whole = BENCHMARK_EACH, BENCHMARK_EACH + FIRST_NIGHT_EACH
    upload(BENCHMARK, {name: files[name][:held] for name in old})
    benchmark.freeze("benchmarks/caltech_nights.py", "the first 60 classes")
    upload("labelled/", {name: files[name][held:whole] for name in old})
    first = night("night 1: 60 classes", plan)

    upload(BENCHMARK, {name: files[name][:held] for name in new})
    benchmark.grow("benchmarks/caltech_nights.py", "41 new classes")
    upload("labelled/", {name: files[name][whole:] for name in old if files[name][whole:]})
    upload("labelled/", {name: files[name][held:] for name in new})
    return [first, night("night 2: 101 classes", replace(plan, epochs=epochs[1]))]


def night(name: str, plan: Any) -> Told:
    """Run the nightly flow and gather what it stored."""
    from flows.cli.screens import version_facts
    from flows.nightly import nightly

    started = time.perf_counter()
    outcome = nightly(plan=plan)
    seconds = time.perf_counter() - started
    print(f"{name}: {outcome.state}, {outcome.reason} ({seconds:.0f} s)", file=sys.stderr)
    assert outcome.version_id is not None, outcome.reason
    return Told(name, seconds, f"{outcome.state}: {outcome.reason}", nearness(),
                version_facts(outcome.version_id))  # fmt: skip


def nearness() -> str:
    """What the perceptual hash has called near so far, and how much of it is surely wrong.

    Pictures of different classes are no copies of each other, so a group that spans classes is a
    false positive of the hash (or a doubled picture in the data set).
    """
    from sqlalchemy import text

    from infra import database
    from records import batches

    with database.connect().transaction() as session:
        grouped = session.execute(
            text(
                """
                SELECT count(*), coalesce(sum(images), 0),
                       count(*) FILTER (WHERE classes > 1),
                       coalesce(sum(images) FILTER (WHERE classes > 1), 0)
                FROM (SELECT count(*) AS images, count(DISTINCT class_id) AS classes
                      FROM images GROUP BY group_name HAVING count(*) > 1) groups
                """
            )
        ).one()
        reasons = batches.quarantine_reasons(session)
    refused = ", ".join(f"{count} by `{name}`" for name, count, _ in reasons) or "none"
    false = (
        f"{grouped[2]} of them with {grouped[3]} images span several classes, which makes them "
        "false positives"
        if grouped[2]
        else "none of them spans several classes, which would be a false positive"
    )
    return (
        f"The hash has grouped {grouped[1]} library images into {grouped[0]} groups; {false}. "
        f"In quarantine: {refused}."
    )


def logistic_regression(facts: dict[str, Any]) -> dict[str, Any]:
    """The peer: the snapshot's images through the frozen pretrained network, then scikit-learn.

    The regularisation is chosen on validation images, the accuracy told on test images.
    """
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from infra import database
    from records import objects
    from tasks import pixels, snapshot
    from vision import network as networks
    from vision.augmentation import centre
    from vision.plan import Plan

    plan = Plan.from_dict(facts["version"]["plan"])
    listed = snapshot.read(facts["version"]["snapshot_digest"])
    started = time.perf_counter()
    network = networks.build(plan, listed.class_names).eval()
    colours = networks.normalisation(network, plan)
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in colours)

    def features(split: str) -> npt.NDArray[np.float32]:
        images = listed.images[split]
        with database.connect().transaction() as session:
            held = pixels.opened(plan.geometry, dict(objects.sources(session, images)))
        parts = []
        for start in range(0, len(images), 64):
            stored = np.ascontiguousarray(held.gather(images[start : start + 64]))
            batch = centre(torch.from_numpy(stored), plan.image_size)
            with torch.inference_mode():
                whole = network.forward_features((batch - mean) / std)
                parts.append(network.forward_head(whole, pre_logits=True).numpy())
        return np.concatenate(parts)

    scaled = StandardScaler()
    train = scaled.fit_transform(features("train"))
    validation, test = (scaled.transform(features(split)) for split in ("validation", "test"))
    best = max(
        (LogisticRegression(C=strength, max_iter=1000).fit(train, listed.labels["train"])
         for strength in (0.0003, 0.001, 0.003, 0.01, 0.1, 1.0)),
        key=lambda model: model.score(validation, listed.labels["validation"]),
    )  # fmt: skip
    return {
        "C": best.C,
        "validation": float(best.score(validation, listed.labels["validation"])),
        "test": float(best.score(test, listed.labels["test"])),
        "seconds": time.perf_counter() - started,
    }


def write(out: Path, given: argparse.Namespace, nights: list[Told], peer: dict[str, Any]) -> None:
    """The report and its plot."""
    second = nights[1].facts
    machine = second["version"]["machine"]
    test = next(one for one in second["evaluations"] if one["subject"] == "test")
    ahead = test["accuracy"] - peer["test"]
    lines = [
        "# Two nights on Caltech-101",
        "",
        "Written by `python benchmarks/caltech_nights.py --data DATA"
        f" --model {given.model} --image-size {given.image_size}"
        f" --epochs {given.epochs[0]} {given.epochs[1]}`; nothing here is typed by hand.",
        "",
        f"{machine['processor']}, {os.cpu_count()} cores, {machine['gpu'] or 'no GPU'}, "
        f"{machine['precision']}, channels last: {machine['channels_last']}, "
        f"{platform.python_implementation()} {machine['python']}, "
        + ", ".join(f"{name} {number}" for name, number in machine["libraries"].items())
        + ".",
        "",
        f"{second['version']['architecture']} from ImageNet weights, {given.image_size} pixels. "
        "60 classes with up to 25 images each on night 1; all 101 classes and the held-back images "
        "on night 2, warm-started from night 1's version with a fresh head. Five images of each "
        "class are in the benchmark and in no training.",
        "",
        "| | test images | test accuracy |",
        "|---|---:|---:|",
        f"| night 2's version | {test['images']} | {test['accuracy']:.1%} "
        f"({test['accuracy_low']:.1%} to {test['accuracy_high']:.1%}) |",
        f"| logistic regression on frozen features, same snapshot (C = {peer['C']:g}) | "
        f"{test['images']} | {peer['test']:.1%} |",
        "",
        f"Night 2 is {abs(ahead) * 100:.1f} points {'above' if ahead >= 0 else 'BELOW'} the "
        "logistic regression. One run, one seed.",
        "",
        "![validation accuracy by epoch](caltech-nights.png)",
        "",
    ]
    for one in nights:
        lines += section(one)
    out.write_text("\n".join(lines) + "\n")
    plot(out.with_suffix(".png"), nights, peer)


def section(one: Told) -> list[str]:
    """One night: what was decided, the figures, the gate, the time."""
    facts = one.facts
    lines = [f"## {one.name[0].upper()}{one.name[1:]}", "", one.outcome + ".", "", one.near, ""]
    lines += ["| on | images | accuracy | 95% interval | calibration error |",
              "|---|---:|---:|---|---:|"]  # fmt: skip
    for row in facts["evaluations"]:
        subject = row["subject"]
        if row["benchmark_version"]:
            subject = f"benchmark version {row['benchmark_version']}"
        if row["subject"] == "batch":
            subject = "the batch's new images (most of them trained on)"
        lines.append(
            f"| {subject} | {row['images']} | {row['accuracy']:.1%} | "
            f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%} | "
            f"{row['calibration_error']:.3f} |"
        )
    lines += ["", "| check | verdict | why |", "|---|---|---|"]
    lines += [f"| {c['name']} | {c['verdict']} | {c['sentence']} |" for c in facts["checks"]]
    speed = np.median([epoch["images_per_second"] for epoch in facts["epochs"]])
    lines += [
        "",
        f"Training ran at {speed:.0f} images/s (median of the epochs), the whole night took "
        f"{one.seconds:.0f} s:",
        "",
        "| step | seconds | counts |",
        "|---|---:|---|",
    ]
    for step in facts["steps"]:
        counts = ", ".join(f"{name} {value}" for name, value in step["facts"].items())
        lines.append(f"| {step['name']} | {step['seconds']:.1f} | {counts} |")
    return [*lines, ""]


def plot(path: Path, nights: list[Told], peer: dict[str, Any]) -> None:
    """Validation accuracy by epoch, both nights, and the peer's line."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    for one in nights:
        epochs = one.facts["epochs"]
        axes.plot([epoch["number"] for epoch in epochs],
                  [100 * epoch["validation_accuracy"] for epoch in epochs],
                  marker="o", label=one.name)  # fmt: skip
    axes.axhline(100 * peer["validation"], linestyle="--", color="grey",
                 label="logistic regression, night 2's snapshot")  # fmt: skip
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy, percent")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
