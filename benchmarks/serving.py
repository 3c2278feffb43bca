"""Serving under load, with the log on and off, against a bare FastAPI endpoint and LitServe.

    python -m benchmarks.serving
    python -m benchmarks.serving --size 3     # seconds of load for each, to try it

Each contender is a process of its own that answers the same network and the same photographs on
the loopback. Locust sends one picture a request, from one client at a time and from several; each
gets a time of its own in every round, the others are not running then. The load takes processor
time of the same machine. The limit is what the same cores do without HTTP: every picture decoded,
and answered by the file that serves.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # threads that wait leave the core to others

import psutil
import torch

from benchmarks import bench
from benchmarks.copying import an_evaluation
from benchmarks.figures import Figure, Goal, Part, Row
from benchmarks.photographs import photographs
from benchmarks.services import services
from vision.images import see
from vision.network import build, head, save
from vision.plan import Plan
from vision.serving import Served

PART = "serve"
SECONDS = 20  # of load for each contender and number of clients, in each round
WARM_UP_SECONDS = 3
ROUNDS = 3
CLIENTS = (1, 16)
PICTURES = 256
CLASSES = 101
NAMES = tuple(f"class {number}" for number in range(CLASSES))
PLAN = Plan(architecture="mobilenetv2_100", image_size=224)
START_SECONDS = 120
SURE = 20.0
OURS, SILENT, KEEPING = "regraft", "regraft, log off", "regraft, every picture kept"
BARE, LITSERVE = "FastAPI + PyTorch", "LitServe"
LIMIT = "limit: decoding and the network, no HTTP"
Command = Callable[[int], list[str]]


@dataclass(frozen=True)
class Load:
    """What one load found: answers a second, and milliseconds of the median and the slowest 1%.

    busy: milliseconds of processor time that the server and what it started took for an answer.
    """

    rate: float
    median: float
    slow: float
    busy: float
    failed: int


def main() -> None:
    """Deploy a version, then let every contender serve in turn."""
    given = bench.arguments(PART, SECONDS)
    torch.set_num_threads(1)  # each picture is one core's, as in the service
    bodies = [body for _, body in photographs(PICTURES, given.data)]
    with services(prefect=False), tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pictures"
        folder.mkdir()
        for number, body in enumerate(bodies):
            (folder / f"{number:04}.jpg").write_bytes(body)
        made = deploy(Path(scratch))
        found, limits = rounds(
            contenders(made.checkpoint), folder, made.alone, bodies, given.size
        )
        rows = tuple(_rows(found, limits))
        notes = (_log_note(), _decoding_note(made.alone, bodies))
    part = Part(PART, "Serving", rows, notes, (), bench.facts())
    if given.size == SECONDS:
        part.save()
    else:
        print(part)


@dataclass(frozen=True)
class Deployed:
    """A version; its checkpoint, and its file on one core as serving loads it."""

    version: int
    checkpoint: Path
    alone: Served


def deploy(scratch: Path, plan: Plan = PLAN, serve: bool = True) -> Deployed:
    """A version of this plan with its file for serving; serve: it is the champion, too."""
    from infra import database
    from records import versions
    from tasks import checkpoints, serving

    with database.connect().transaction() as session:
        known = session.connection().exec_driver_sql("SELECT count(*) FROM runs").scalar()
    if not known:
        an_evaluation()  # the run and the snapshot that a version names
    path = scratch / f"network-{plan.seed}.safetensors"
    network = build(plan, NAMES)
    with torch.no_grad():
        # sure of its answers, as a network is that serves: doubtful pictures are kept in S3
        head(network).bias[0] += SURE  # type: ignore[index,operator]
    digest = save(network, path, plan, NAMES)
    checkpoints.store(path, digest)
    with database.connect().transaction() as session:
        number = versions.candidate(
            session, 1, "nightly", None, "d", plan.to_dict(), plan.digest(), list(NAMES)
        )
        versions.trained(session, number, digest, {}, {}, 1.0, None)
    serving.prepare(number)
    alone = Served(serving.written(checkpoints.load(number), digest).read_bytes(), threads=1)
    if serve:
        append(number, "promotion")
    return Deployed(number, path, alone)


def append(version: int, kind: str) -> None:
    """Append a version to the deployment log, as if a night had judged it."""
    from infra import database

    with database.connect().transaction() as session:
        act = session.connection().exec_driver_sql
        act("SET LOCAL session_replication_role = replica")
        act(
            "INSERT INTO deployments (version_id, purpose, previous_id, verdict_id, kind, "
            "deployed_by, why) VALUES (%s, 'nightly', (SELECT max(id) FROM deployments), %s, %s, "
            "'a benchmark', 'to be measured')",
            (version, version, kind),
        )


def contenders(checkpoint: Path) -> dict[str, tuple[Command, str]]:
    """How each is started on a port, and where it takes pictures."""

    def web(*more: str, settings: str = "") -> Command:
        return lambda port: [
            "env", *settings.split(), sys.executable, "-m", "flows.cli", "web", "--port", str(port),
            *more,
        ]  # fmt: skip

    def peer(name: str) -> Command:
        return lambda port: [
            sys.executable, "-m", "benchmarks.serving_peers", name, str(port), str(checkpoint)
        ]  # fmt: skip

    return {
        OURS: (web(), "/v1/predictions"),
        SILENT: (web("--no-log"), "/v1/predictions"),
        KEEPING: (web(settings="REGRAFT_IMAGE_SHARE=1"), "/v1/predictions"),
        BARE: (peer("bare"), "/predict"),
        LITSERVE: (peer("litserve"), "/predict"),
    }


def rounds(
    known: Mapping[str, tuple[Command, str]],
    folder: Path,
    served: Served,
    bodies: Sequence[bytes],
    seconds: int,
) -> tuple[dict[tuple[str, int], list[Load]], list[float]]:
    """What each contender did with so many clients, round by round, and the limit."""
    found: dict[tuple[str, int], list[Load]] = {}
    limits = []
    names = list(known)
    for turn in range(ROUNDS if seconds == SECONDS else 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            command, path = known[name]
            with running(command) as (port, process):
                load(port, process, path, folder, max(CLIENTS), WARM_UP_SECONDS)
                for clients in CLIENTS:
                    one = load(port, process, path, folder, clients, seconds)
                    found.setdefault((name, clients), []).append(one)
                    print(f"  {name}, {clients} clients: {one}", flush=True)
        limits.append(without_http(served, bodies, seconds))
        print(f"  {LIMIT}: {limits[-1]:.4g} pictures/s", flush=True)
    return found, limits


@contextmanager
def running(command: Command) -> Iterator[tuple[int, int]]:
    """A server in a process of its own, as soon as it listens: its port and its number.

    It is stopped in order.
    """
    port = _free_port()
    process = subprocess.Popen(command(port), start_new_session=True)
    try:
        _wait_for(port, process)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # its own workers, too
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended with {process.returncode}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{process.args} does not listen after {START_SECONDS} s")


def load(
    port: int, process: int, path: str, folder: Path, clients: int, seconds: int
) -> Load:
    """Have Locust ask for so long."""
    before = processor_seconds(process)
    done = subprocess.run(
        [
            sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("clients.py")),
            "--headless", "--json", "--host", f"http://127.0.0.1:{port}", "-u", str(clients),
            "-r", str(clients), "-t", f"{seconds}s", "--exit-code-on-error", "0",
            "--loglevel", "ERROR",
        ],
        check=True, capture_output=True, text=True,
        env=os.environ | {"REGRAFT_LOAD": str(folder), "REGRAFT_LOAD_PATH": path},
    )  # fmt: skip
    [told] = json.loads(done.stdout[done.stdout.index("[") :])
    counts = {float(at): count for at, count in told["response_times"].items()}
    spent = told["last_request_timestamp"] - told["start_time"]
    answered = told["num_requests"] - told["num_failures"]
    if not answered:
        raise SystemExit(f"all {told['num_failures']} requests to {path} failed")
    return Load(
        answered / spent,
        _quantile(counts, 0.5),
        _quantile(counts, 0.99),
        1000 * (processor_seconds(process) - before) / answered,
        told["num_failures"],
    )


def processor_seconds(process: int) -> float:
    """What a process and those that it started have computed so far."""
    first = psutil.Process(process)
    spent = [one.cpu_times() for one in (first, *first.children(recursive=True))]
    return sum(one.user + one.system for one in spent)


def _quantile(counts: Mapping[float, int], share: float) -> float:
    left = share * sum(counts.values())
    for at, count in sorted(counts.items()):
        left -= count
        if left <= 0:
            return at
    raise SystemExit("no request was answered")


def without_http(served: Served, bodies: Sequence[bytes], seconds: float) -> float:
    """Pictures a second that the cores decode and answer, one at a time each."""
    cores = len(os.sched_getaffinity(0))
    begun = time.perf_counter()

    def work(first: int) -> int:
        done = 0
        while time.perf_counter() - begun < seconds:
            seen = see(bodies[(first + done) % len(bodies)], served.geometry)
            served.shares(seen.pixels[None])
            done += 1
        return done

    with ThreadPoolExecutor(cores) as threads:
        return sum(threads.map(work, range(cores))) / (time.perf_counter() - begun)


# --- what is told -----------------------------------------------------------------------------


def _rows(found: Mapping[tuple[str, int], list[Load]], limits: list[float]) -> Iterator[Row]:
    for clients in CLIENTS:
        who = "one client" if clients == 1 else f"{clients} clients at once"
        figures = {
            name: [one for (of, many), loads in found.items() for one in loads
                   if (of, many) == (name, clients)]
            for name in (OURS, SILENT, KEEPING, BARE, LITSERVE)
        }  # fmt: skip

        def row(
            what: str,
            unit: str,
            read: Callable[[Load], float],
            goals: tuple[Goal, ...] = (),
            more: tuple[Figure, ...] = (),
            figures: dict[str, list[Load]] = figures,
        ) -> Row:
            ours, *others = (
                Figure(name, unit, tuple(map(read, loads)), _failures(loads))
                for name, loads in figures.items()
            )
            return Row(what, ours, (*others, *more), goals)

        yield row(
            f"Answers a second, {who}", "requests/s", lambda one: one.rate,
            (
                Goal(SILENT, 0.95, "logging costs at most 5%"),
                Goal(BARE, 1.0, "no fewer than a bare endpoint"),
                Goal(LITSERVE, 1.0, "no fewer than LitServe"),
            ),
            (Figure(LIMIT, "requests/s", tuple(limits)),) if clients > 1 else (),
        )  # fmt: skip
        yield row(f"Median, {who}", "ms", lambda one: one.median)
        yield row(f"The slowest 1%, {who}", "ms", lambda one: one.slow)
        yield row(
            f"Processor time of an answer, {who}", "ms", lambda one: one.busy,
            (Goal(SILENT, 1.05, "logging costs at most 5%"),),
        )  # fmt: skip


def _failures(loads: list[Load]) -> str:
    failed = sum(one.failed for one in loads)
    return f"{failed} requests failed" if failed else ""


def _log_note() -> str:
    from infra import database

    with database.connect().transaction() as session:
        rows = session.connection().exec_driver_sql("SELECT count(*) FROM transactions").scalar()
    return (
        f"Of regraft's answers {rows:,} are rows of its log, warm-up included, and 2% of the "
        "pictures are kept in S3 for reviews; doubtful ones would all be, but this network has "
        f"none; what that costs shows {KEEPING!r}, {PICTURES} pictures over and over. regraft "
        "checks each picture whole, bounds every body, follows the deployment log and keeps the "
        "digest of what it answered; the peers do nothing of it. All answer one picture a request."
    )


def _decoding_note(served: Served, bodies: Sequence[bytes]) -> str:
    begun = time.perf_counter()
    for body in bodies:
        see(body, served.geometry)
    each = 1000 * (time.perf_counter() - begun) / len(bodies)
    return (
        f"On one core a picture takes {each:.1f} ms to decode and {1000 * served.latency():.1f} ms "
        "to answer."
    )


if __name__ == "__main__":
    main()
