"""Training by several processes: on all GPUs of a machine, or on several machines.

`fit_by` does what `vision.fitting.fit` does, by processes of its own that it starts with torchrun.
What they need lies in a job folder; what they have to tell comes back as lines of JSON. The same
job can be started by hand, on every machine that takes part and sees the folder:

    torchrun --nproc-per-node=GPUS -m vision.distributed JOB
"""

import argparse
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch
from torch import distributed, nn

from vision.calibration import Calibration
from vision.fitting import (
    BadExamples,
    Diverged,
    Epoch,
    Examples,
    Fitted,
    SmallerParts,
    fit,
)
from vision.memory import TooLarge
from vision.network import BadCheckpoint, class_names_of, load, save
from vision.pixels import NotCached, Pixels
from vision.plan import BadPlan, Plan
from vision.ranks import Ranks

logger = logging.getLogger(__name__)

JOB, START, FITTED, WEIGHTS, LOG = (
    "job.json", "start.safetensors", "fitted.json", "fitted.safetensors", "processes.log"
)
# What a rank may raise that whoever asked for the training understands.
KNOWN: dict[str, Callable[[str], Exception]] = {
    one.__name__: one
    for one in (BadCheckpoint, BadExamples, BadPlan, Diverged, NotCached, TooLarge)
}
# How long the others wait for a rank that is silent, and not dead, before they give up.
PATIENCE = timedelta(minutes=30)
ENDING_SECONDS = 60
# torchrun's summary of each process that failed
_ENDED = re.compile(r"rank\s*:\s*(\d+) \(local_rank: \d+\)\s+exitcode\s*:\s*(-?\d+)")


class BrokenOff(RuntimeError):
    """A process ended before the training did; the message says which, and how to go on."""


# --- who asks for the training ---


def fit_by(
    processes: int,
    network: nn.Module,
    plan: Plan,
    train: Examples,
    validation: Examples,
    cache: Path,
    workdir: Path,
    device: str = "auto",
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    calibration: Path | None = None,
    threads: int | None = None,
) -> Fitted:
    """Train the network in place like `fit`, by so many processes on this machine.

    cache: the folder of the pixel cache, which must hold every picture; calibration: the file of
    a `vision.calibration.Calibration`; threads: of all together, by default as many as torch has
    here. Called again with the same arguments and `workdir`, it goes on behind the last finished
    epoch. The processes end when this one does, however it ends.
    Raises what `fit` raises, and `BrokenOff` when a process was killed.
    """
    if 0 < gpus(device) < processes:
        raise ValueError(f"processes={processes}: each needs a GPU of its own, and there are "
                         f"{gpus(device)}; use fewer")
    micro_batch = None
    while True:
        write_job(
            workdir, network, plan, train, validation, cache, device, calibration, micro_batch
        )
        try:
            _run(processes, threads or torch.get_num_threads(), workdir, on_epoch, on_step)
            return read_fitted(workdir, network)
        except SmallerParts as smaller:
            micro_batch = smaller.micro_batch
            logger.warning("%s: beginning anew behind the last finished epoch", smaller)


def gpus(device: str) -> int:
    """How many GPUs may train here."""
    return torch.cuda.device_count() if device != "cpu" else 0


def write_job(
    folder: Path,
    network: nn.Module,
    plan: Plan,
    train: Examples,
    validation: Examples,
    cache: Path,
    device: str = "auto",
    calibration: Path | None = None,
    micro_batch: int | None = None,
) -> None:
    """Write down what the processes need; what an earlier try said is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / FITTED, *folder.glob("failed-*.json")):
        old.unlink(missing_ok=True)
    save(network, folder / START, plan, class_names_of(network))
    _write(folder / JOB, {
        "plan": plan.to_dict(),
        "train": {"images": list(train.images), "labels": list(train.labels)},
        "validation": {"images": list(validation.images), "labels": list(validation.labels)},
        "cache": str(cache),
        "device": device,
        "calibration": str(calibration) if calibration else None,
        "micro_batch": micro_batch,
    })


def read_fitted(folder: Path, network: nn.Module) -> Fitted:
    """What the processes of a job came to, put into this network."""
    told = json.loads((folder / FITTED).read_text())
    trained = load(folder / WEIGHTS, told["digest"]).network
    network.load_state_dict(trained.state_dict())
    network.requires_grad_(True).eval()
    return Fitted(network, tuple(Epoch(**one) for one in told["epochs"]), told["machine"])


def _run(
    processes: int,
    threads: int,
    folder: Path,
    on_epoch: Callable[[Epoch], None],
    on_step: Callable[[int, int], None],
) -> None:
    with tempfile.TemporaryDirectory(prefix="regraft-") as meeting, (folder / LOG).open("w") as log:
        torchrun = _torchrun(processes, threads, folder, Path(meeting), log)
        try:
            assert torchrun.stdout is not None  # noqa: S101  (a pipe was asked for)
            for line in torchrun.stdout:
                _relay(line, on_epoch, on_step)
        finally:
            _release(torchrun)
    if torchrun.returncode != 0:
        raise _failure(folder)


def _torchrun(
    processes: int, threads: int, folder: Path, meeting: Path, log: IO[str]
) -> "subprocess.Popen[str]":
    """Start it for this machine alone: by default others could reach its ports, and it unpickles
    what comes in. So torchrun and ranks meet by files, and the ranks talk by the loopback device.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}",
        "--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={meeting}/torchrun",
        "--local-addr=localhost",
        "-m", "vision.distributed", str(folder), "--leash", f"--meeting={meeting}/ranks",
    ]
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    house = str(Path(__file__).parent.parent)
    environment = {
        **(loopback if sys.platform == "linux" else {}),
        **os.environ,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "OMP_NUM_THREADS": str(max(1, threads // processes)),
        "PYTHONPATH": os.pathsep.join(filter(None, [house, os.environ.get("PYTHONPATH")])),
    }
    return subprocess.Popen(  # noqa: S603  (a fixed command with our own arguments)
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        text=True, start_new_session=True,
    )


def _relay(
    line: str, on_epoch: Callable[[Epoch], None], on_step: Callable[[int, int], None]
) -> None:
    try:
        told = json.loads(line)
    except ValueError:
        told = None
    match told:
        case {"epoch": dict() as epoch}:
            on_epoch(Epoch(**epoch))
        case {"step": [int() as done, int() as total]}:
            on_step(done, total)
        case _:  # a library has something to say
            logger.info("%s", line.rstrip())


def _release(torchrun: "subprocess.Popen[str]") -> None:
    """Let go of the leash: ranks that still run end at once, and torchrun with them."""
    for pipe in (torchrun.stdin, torchrun.stdout):
        if pipe is not None:
            pipe.close()
    try:
        torchrun.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        torchrun.kill()
        torchrun.wait()


def _failure(folder: Path) -> Exception:
    """What to raise, from what the ranks wrote down and what torchrun saw."""
    words = [
        json.loads(path.read_text())
        for path in sorted(folder.glob("failed-*.json"), key=lambda path: path.stat().st_mtime)
    ]
    for word in words:
        if word["kind"] == SmallerParts.__name__:
            return SmallerParts(word["micro_batch"])
        if word["kind"] in KNOWN:
            return KNOWN[word["kind"]](word["message"])
    log = (folder / LOG).read_text(errors="replace")
    # ranks that torchrun ended because of another one say SIGTERM
    killed = [
        f"rank {rank} was ended by {signal.Signals(-int(code)).name}"
        for rank, code in _ENDED.findall(log)
        if int(code) < 0 and -int(code) != signal.SIGTERM
    ]
    said = [f"rank {word['rank']}: {word['kind']}: {word['message']}" for word in words]
    last = log.strip().splitlines()[-1:] or ["nothing was said"]
    reason = " ".join((killed or said or last)[0].split())
    return BrokenOff(f"training stopped: {reason} (all of it in {folder / LOG}). Run again: it "
                     "goes on behind the last finished epoch")


# --- each of the processes ---


def main() -> None:
    """Be one rank of the job; torchrun starts as many of it as are wanted."""
    parser = argparse.ArgumentParser(prog="torchrun … -m vision.distributed")
    parser.add_argument("job", type=Path, help="the folder that write_job filled")
    parser.add_argument("--leash", action="store_true", help="end when standard input closes")
    parser.add_argument("--meeting", type=Path, help="a file to meet by, instead of a port")
    given = parser.parse_args()
    if given.leash:
        threading.Thread(target=_end_with_the_leash, daemon=True).start()
    rank = int(os.environ["RANK"])
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING)
    try:
        work(given.job, rank, given.meeting)
    except Exception as error:
        # before the others notice that this rank is gone, and say so in their own words
        _write(given.job / f"failed-{rank}.json", {
            "rank": rank, "kind": type(error).__name__, "message": str(error),
            "micro_batch": getattr(error, "micro_batch", None),
        })
        raise


def work(folder: Path, rank: int, meeting: Path | None = None) -> None:
    """Train as this rank; the leader writes what came of it into the folder.

    meeting: a new file of this machine by which the ranks find each other, else as torchrun says.
    """
    job = json.loads((folder / JOB).read_text())
    plan = Plan.from_dict(job["plan"])
    cuda = job["device"] != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        init_method=f"file://{meeting.absolute()}" if meeting else "env://",
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=PATIENCE,
    )
    try:
        ranks = Ranks(rank, distributed.get_world_size(), job["micro_batch"])
        start = load(folder / START)
        pixels = Pixels(plan.geometry, sorted(Path(job["cache"], plan.geometry.name).glob("*.npy")))
        fitted = fit(
            start.network,
            plan,
            Examples(pixels, **job["train"]),
            Examples(pixels, **job["validation"]),
            folder,
            "cuda" if cuda else "cpu",
            on_epoch=lambda epoch: _tell(ranks, {"epoch": asdict(epoch)}),
            on_step=lambda done, total: _tell(ranks, {"step": [done, total]}),
            ranks=ranks,
            calibration=Calibration(Path(job["calibration"]) if job["calibration"] else None),
            # they share the cores, and one of them alone must not measure as if it had all
            threads=torch.get_num_threads(),
        )
        if ranks.leads:
            digest = save(fitted.network, folder / WEIGHTS, plan, start.class_names)
            _write(folder / FITTED, {
                "digest": digest,
                "epochs": [asdict(epoch) for epoch in fitted.epochs],
                "machine": fitted.machine,
            })
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def _tell(ranks: Ranks, what: dict[str, Any]) -> None:
    if ranks.leads:
        sys.stdout.write(json.dumps(what, allow_nan=False) + "\n")
        sys.stdout.flush()


def _end_with_the_leash() -> None:
    """End this process when nobody holds the other end any more, even killed with -9."""
    # not through sys.stdin, whose lock this thread would still hold when Python shuts down
    while os.read(0, 1):
        pass
    os._exit(1)


def _write(path: Path, values: dict[str, Any]) -> None:
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(values, allow_nan=False))
    aside.replace(path)


if __name__ == "__main__":
    main()
