"""Training: write the candidate down, train it from its parent, keep its checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import logging
import platform
import shutil
import subprocess
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch
from torch import nn

from infra import database, settings
from records import objects, runs, snapshots, versions
from records.versions import EpochRow
from tasks import checkpoints, pixels, snapshot
from tasks.progress import progress
from tasks.snapshot import Listed
from tasks.step import reading, timed, training
from vision import distributed, runtime, temperature
from vision import network as networks
from vision.calibration import Calibration
from vision.fitting import (
    BadExamples,
    Diverged,
    Epoch,
    Examples,
    Fitted,
    fingerprint,
    fit,
    resolved,
)
from vision.memory import TooLarge
from vision.network import BadCheckpoint
from vision.pixels import Pixels
from vision.plan import BadPlan, Plan
from vision.prediction import Gatherable, predict

log = logging.getLogger("regraft")

# The training accuracy that the gate compares with validation is measured without augmentation,
# on at most this many training images.
TRAINING_SAMPLE = 1000

# what the same plan on the same images would meet again
HOPELESS = (Diverged, BadPlan, BadExamples, BadCheckpoint, TooLarge)

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors")


@reading("write candidate")
def write_candidate(
    run_id: int, purpose: str, snapshot_digest: str, plan: Plan, parent_id: int | None
) -> int:
    """Write the candidate down before it trains, or find the one that a killed run began.

    What the plan leaves open of its network is written down as its parent has it.
    """
    with database.connect().transaction() as session:
        runs.fence(session, run_id)
        plan = versions.settled(session, plan, parent_id)
        class_names = snapshots.class_names(session, snapshot_digest)
        version_id = versions.candidate(
            session,
            run_id,
            purpose,
            parent_id,
            snapshot_digest,
            plan.to_dict(),
            plan.digest(),
            class_names,
        )
        runs.note(session, run_id, version_id=version_id, snapshot_digest=snapshot_digest)
    return version_id


@training("train")
def train_version(run_id: int, version_id: int) -> None:
    """Train the candidate and keep its checkpoint; done already, it is left as it is.

    Killed and run again, it goes on at the last finished epoch. What no other try would mend
    (`HOPELESS`) closes the candidate as failed with its line and is raised; nothing was saved.
    """
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
    if version.state == "trained":
        return
    plan = Plan.from_dict(version.plan)
    listed = snapshot.read(version.snapshot_digest)
    workdir = settings.load().state_dir / "training" / f"version-{version_id}"
    try:
        with timed(run_id, "train") as facts:
            held = _pixels_of(listed, plan)
            network, start = _start(plan, version.parent_id, listed.class_names)
            fitted = _fit(run_id, version_id, network, plan, listed, held, workdir)
            facts.update(images=len(listed.images["train"]), epochs=len(fitted.epochs))
        with timed(run_id, "keep checkpoint"):
            _keep(run_id, version_id, fitted, plan, start, listed, held, workdir)
    except HOPELESS as error:
        with database.connect().transaction() as session:
            runs.fence(session, run_id)
            versions.failed(session, version_id, str(error))
        shutil.rmtree(workdir, ignore_errors=True)
        raise
    shutil.rmtree(workdir, ignore_errors=True)


def _pixels_of(listed: Listed, plan: Plan) -> Gatherable:
    images = [sha256 for split in listed.images.values() for sha256 in split]
    with database.connect().transaction() as session:
        sources = objects.sources(session, images)
    lost = [sha256 for sha256 in images if sha256 not in sources]
    held = pixels.cache().open(plan.geometry)
    if gone := held.missing(lost):
        raise pixels.MissingImages(
            f"{len(gone)} images of the snapshot are no longer in S3: run the night again, and it "
            "freezes a snapshot without them"
        )
    return pixels.opened(plan.geometry, sources)


def _start(
    plan: Plan, parent_id: int | None, class_names: list[str]
) -> tuple[nn.Module, dict[str, Any]]:
    """The network to train, from its parent, from weights or by chance, and facts about that."""
    if parent_id is not None and plan.recipe != "scratch":
        parent = checkpoints.load(parent_id)
        network = networks.warm_start(parent, plan, class_names)
        kept = networks.inherited(plan, parent.class_names, class_names)
    else:
        if plan.needs_start and plan.weights is None:
            raise BadPlan(
                f"recipe={plan.recipe!r}: it freezes the backbone, and without a parent or weights "
                "that is a random one; name weights, or train the first version with recipe='all'"
            )
        network = networks.build(plan, class_names, _fetched(plan.weights))
        kept = []
    return network, {"kept_classes": kept, "start": fingerprint(network.state_dict())}


def _fetched(weights: str | None) -> Path | None:
    """The local copy of weights at `s3://KEY` in our own bucket; None for any others."""
    if weights is None or not weights.startswith("s3://"):
        return None
    return checkpoints.fetch_weights(weights.removeprefix("s3://"))


def _fit(
    run_id: int,
    version_id: int,
    network: nn.Module,
    plan: Plan,
    listed: Listed,
    held: Gatherable,
    workdir: Path,
) -> Fitted:
    def keep(epoch: Epoch) -> None:
        with database.connect().transaction() as session:
            runs.fence(session, run_id)
            versions.add_epoch(session, version_id, EpochRow(**dataclasses.asdict(epoch)))

    known = settings.load()
    train, validation = (
        Examples(held, listed.images[split], listed.labels[split])
        for split in ("train", "validation")
    )
    processes = known.processes or distributed.gpus(known.device)
    if processes > 1 and not isinstance(held, Pixels):
        log.warning("the pixel cache has no room for all images of this training, so 1 process "
                    "trains instead of %d: raise REGRAFT_CACHE_GIGABYTES", processes)
        processes = 1
    with progress("train, in steps", None) as advance:
        if processes > 1:
            # of their own: this process is Prefect's, and a rank may be killed
            return distributed.fit_by(
                processes,
                network,
                plan,
                train,
                validation,
                pixels.cache().folder,
                workdir,
                known.device,
                on_epoch=keep,
                on_step=advance,
                calibration=known.cache_dir / "calibration.json",
                threads=known.threads,
            )
        return fit(
            network,
            plan,
            train,
            validation,
            workdir,
            known.device,
            on_epoch=keep,
            on_step=advance,
            calibration=Calibration(known.cache_dir / "calibration.json"),
            threads=known.threads,
        )


def _keep(
    run_id: int,
    version_id: int,
    fitted: Fitted,
    plan: Plan,
    start: dict[str, Any],
    listed: Listed,
    held: Gatherable,
    workdir: Path,
) -> None:
    known, path = settings.load(), workdir / "checkpoint.safetensors"
    settled = resolved(plan, fitted.network, fitted.machine)
    # before it is saved: whoever loads the checkpoint answers with the same confidences
    heat = temperature.calibrate(
        fitted.network, held, listed.images["validation"], listed.labels["validation"], plan,
        known.device,
    )  # fmt: skip
    # without the way, so that trained by the resolved plan it has the same bytes again
    bare = dataclasses.replace(settled, way=None)
    digest = networks.save(fitted.network, path, bare, listed.class_names)
    checkpoints.store(path, digest)
    sample = slice(None, None, max(1, len(listed.images["train"]) // TRAINING_SAMPLE))
    seen = predict(
        fitted.network,
        listed.class_names,
        held,
        listed.images["train"][sample],
        listed.labels["train"][sample],
        plan,
        known.device,
    )
    with database.connect().transaction() as session:
        runs.fence(session, run_id)
        # All of them again: a kill between an epoch's end and its row would leave a hole.
        for epoch in fitted.epochs:
            versions.add_epoch(session, version_id, EpochRow(**dataclasses.asdict(epoch)))
        versions.trained(
            session,
            version_id,
            digest,
            {
                "plan": settled.to_dict(),
                **start,
                "saved": "last" if plan.ema_decay is None else "average",
            },
            trained_by(fitted.machine),
            float(seen.correct.mean()),
            fitted.validation_accuracy,
            heat,
        )


def trained_by(chosen: dict[str, Any]) -> dict[str, Any]:
    """This machine with what training chose on it, and the libraries that it computed with."""
    here = machine()
    engine = chosen.get("features")
    own = runtime.named(engine).libraries if engine else {}
    return here | chosen | {"libraries": here["libraries"] | own}


@functools.cache
def machine() -> dict[str, Any]:
    """What computes here: hardware, system, libraries and the commit of this program."""
    return {
        "host": platform.node(),
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "libraries": {name: installed(name) for name in LIBRARIES},
        "commit": _commit(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this program, `-dirty` behind it where files were changed since.

    Where it is no checkout, as in an image, the one that the setting tells.
    """
    # installed inside another project's checkout, it must not pass for a part of that
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return settings.load().commit
    return _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")


def _git(*words: str) -> str | None:
    try:
        return subprocess.run(  # noqa: S603  (words of our own)
            ["git", *words],  # noqa: S607  (git is where the PATH says)
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
