"""Half an hour of mixed load with three promotions and a rollback: what is lost, and what grows.

    python -m benchmarks.soak
    python -m benchmarks.soak --size 2      # minutes, to try it

Locust sends single pictures, named ones twice, keys of S3, some that are to be explained and some
that are no pictures. Meanwhile three versions are promoted, one after the other, and the last but
one is returned to. Counted are requests that were not answered as they must be, rows of the log
against what was answered, the seconds until each deployment was live, and the server's memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # threads that wait leave the core to others

from benchmarks import bench
from benchmarks.figures import Figure, Goal, Part, Row
from benchmarks.photographs import photographs
from benchmarks.services import services
from benchmarks.serving import PLAN, append, deploy, running

PART = "soak"
MINUTES = 30
CLIENTS = 12
PICTURES = 128
KEYS = tuple(f"pools/camera/{number}.jpg" for number in range(16))
EACH_SECONDS = 5.0  # between two looks at the memory
Found = tuple[tuple[Row, ...], tuple[str, ...]]


def main() -> None:
    """Play it and look at what is left."""
    given = bench.arguments(PART, MINUTES)
    bodies = [body for _, body in photographs(PICTURES, given.data)]
    with services(prefect=False), tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pictures"
        folder.mkdir()
        for number, body in enumerate(bodies):
            (folder / f"{number:04}.jpg").write_bytes(body)
        fill(bodies)
        numbers = [
            deploy(Path(scratch), replace(PLAN, seed=seed), serve=seed == 0).version
            for seed in range(4)
        ]
        rows, notes = played(numbers, folder, Path(scratch) / "told", given.size * 60)
    part = Part(PART, "Half an hour of serving", rows, notes, (), bench.facts())
    if given.size == MINUTES:
        part.save()
    else:
        print(part)


def fill(bodies: list[bytes]) -> None:
    """Put objects where clients may name them."""
    from infra import storage

    for key, body in zip(KEYS, bodies, strict=False):
        storage.connect().write(key, body)


def played(numbers: list[int], folder: Path, ids: Path, seconds: int) -> Found:
    """The whole story on one server."""
    _, second, third, fourth = numbers
    memory: list[float] = []
    live: list[float] = []
    command = [sys.executable, "-m", "flows.cli", "web", "--port"]
    with running(lambda port: [*command, str(port)]) as (port, process):
        over = threading.Event()
        watching = threading.Thread(target=watch, args=(process, memory, over))
        watching.start()
        clients = start(port, folder, ids, seconds)
        begun = time.monotonic()
        for place, version in enumerate((second, third, fourth, third), start=1):
            time.sleep(max(0.0, begun + place * seconds / 5 - time.monotonic()))
            append(version, "rollback" if place == 4 else "promotion")
            live.append(until_live(port, version))
            print(f"  version {version} live after {live[-1]:.2f} s", flush=True)
        told, _ = clients.communicate()
        over.set()
        watching.join()
        figures = read(port)
    counts = json.loads(told[told.index("[") :])
    return judged(counts, ids.read_text().split(), figures, memory, live, seconds)


def start(port: int, folder: Path, ids: Path, seconds: int) -> subprocess.Popen[str]:
    """The clients, for so long."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "locust", "-f",
            str(Path(__file__).with_name("mixed_clients.py")), "--headless", "--json",
            "--host", f"http://127.0.0.1:{port}", "-u", str(CLIENTS), "-r", str(CLIENTS),
            "-t", f"{seconds}s", "--exit-code-on-error", "0", "--loglevel", "ERROR",
        ],
        stdout=subprocess.PIPE, text=True,
        env=os.environ | {
            "REGRAFT_LOAD": str(folder), "REGRAFT_LOAD_KEYS": ",".join(KEYS),
            "REGRAFT_LOAD_IDS": str(ids),
        },
    )  # fmt: skip


def watch(process: int, memory: list[float], over: threading.Event) -> None:
    """The server's memory in MiB, over and over."""
    while not over.wait(EACH_SECONDS):
        status = Path(f"/proc/{process}/status").read_text()
        memory.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)


def until_live(port: int, version: int) -> float:
    """Seconds until a version answers."""
    begun = time.monotonic()
    while read(port)["regraft_version"] != version:
        if time.monotonic() - begun > 60:
            raise SystemExit(f"version {version} does not answer after a minute")
        time.sleep(0.05)
    return time.monotonic() - begun


def read(port: int) -> dict[str, float]:
    """The figures of /metrics, those of one name added up."""
    found: dict[str, float] = {}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if not line.startswith("#"):
                name, value = line.split("{")[0].split(" ")[0], float(line.rsplit(" ", 1)[1])
                found[name] = found.get(name, 0.0) + value
    return found


def judged(
    counts: list[dict[str, Any]],
    told: list[str],
    figures: Mapping[str, float],
    memory: list[float],
    live: list[float],
    seconds: int,
) -> Found:
    """Rows and notes; ends the benchmark where a request was lost or logged twice."""
    from infra import database

    with database.connect().transaction() as session:
        ask = session.connection().exec_driver_sql
        kept = [str(row[0]) for row in ask("SELECT id FROM transactions")]
        [(versions,)] = ask("SELECT count(DISTINCT version_id) FROM transactions")
    asked = sum(one["num_requests"] for one in counts)
    failed = sum(one["num_failures"] for one in counts)
    lost = len(set(told) - set(kept))
    untold = len(set(kept) - set(told))  # each client may be cut off once, at the end
    if failed or lost or len(kept) != len(set(kept)) or untold > CLIENTS:
        raise SystemExit(
            f"{failed} of {asked} requests failed, {lost} answers are not in the log, which has "
            f"{len(kept)} rows of {len(set(kept))} transactions, {untold} of them told to nobody"
        )
    fifth = max(2, len(memory) // 5)  # a deployment stands at the end of each but the last
    ends = [memory[: at * fifth][-fifth // 2 :] for at in range(1, 6)]
    stretches = ", ".join(f"{sum(one) / len(one):,.0f}" for one in ends)
    tenth = max(1, len(memory) // 10)
    early = sum(memory[tenth : 2 * tenth]) / tenth
    late = sum(memory[-tenth:]) / tenth
    return (
        Row(
            "Memory of the server",
            Figure("in the last tenth", "MiB", (late,)),
            (Figure("in the second tenth", "MiB", (early,)),),
            (Goal("in the second tenth", 1.1, "memory stays flat, within a tenth"),),
        ),
        Row("From a deployment to its first answer", Figure("regraft", "s", tuple(live))),
    ), (
        f"{asked:,} requests in {seconds / 60:.0f} minutes from {CLIENTS} clients, each answered "
        f"as it must be; {len(kept):,} rows of {versions} versions in the log, each once: "
        f"the {len(set(told)):,} that clients were told, and {untold} whose "
        f"clients were cut off at the end. {figures['regraft_log_dropped']:.0f} answers were not "
        "logged. Three versions were promoted, and one was returned to.",
        f"MiB in the second half of each stretch between deployments: {stretches}.",
    )


if __name__ == "__main__":
    main()
