"""Identification of 100,000 small images: against its limit, in memory that stays, and killed.

    python -m benchmarks.identification --data DATA/cifar10_sample

The pool holds scans of at most 48 pixels, each under twenty encodings, no two of the same bytes.
Each identification is a process of its own and the whole: listing, GET, decoding, the network in
the engine that the calibration chooses, its features kept, COPY into a real Postgres, all beside
each other; with and without the seconds until the first shard is written (imports, the engine).
The limit is the best engine's bare forward pass plus what GET, decoding and COPY cost alone; they
share the cores, so their processor time is measured (of the servers too), divided by the cores and
added. Memory is the peak of each of its processes, added. At last one is killed at three random
moments (SIGKILL) and begun again each time: every image must have one answer.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # threads that wait leave the core to others

import numpy as np
from loky import get_reusable_executor
from PIL import Image

from benchmarks import bench
from benchmarks.copying import an_evaluation
from benchmarks.evaluation import CLASSES, busy, engines, turns
from benchmarks.figures import Figure, Goal, Part, Row, take_turns
from benchmarks.photographs import photographs
from benchmarks.services import services
from vision import memory
from vision.images import examine
from vision.network import Loaded, build, save
from vision.plan import Plan
from vision.prediction import device_named

PART = "identify"
IMAGES = 100_000
FEW = 100  # one in so many is the small pool's
ENCODINGS = 20
BEST_QUALITY = 95
SCAN = 48  # pixels of the longer side, at most
TOGETHER = 500  # pictures that are encoded and put by one process before the next
ROUNDS = 2
SAMPLE = 1024  # pictures with which each part of the transport is measured alone
KILLS = 3
PLAN = Plan(architecture="mobilenetv2_100", image_size=64)
NAMES = tuple(f"class {number}" for number in range(CLASSES))
POOL, SMALL_POOL = "pools/all/", "pools/few/"
ANSWER = "from benchmarks.identification import answer_all; answer_all({!r}, {})"


def main() -> None:
    """Fill the pools, then identify them in turn with the limit, in memory and killed."""
    given = bench.arguments(PART, IMAGES)
    device = device_named("cuda" if given.gpu else "cpu")
    memory.keep_freed()
    with services(prefect=False):
        an_evaluation()  # the run and the snapshot that versions name
        keys = fill(given.size, given.data)
        print(f"{len(keys):,} images are in the pool", flush=True)
        rows, notes = measured(keys, device)
    part = Part(PART, f"Identification of {len(keys):,} images", rows, notes, (), bench.facts())
    if given.size == IMAGES:
        part.save("cuda" if given.gpu else "cpu")
    else:
        print(part)


# --- the pools --------------------------------------------------------------------------------


def fill(count: int, data: Path | None) -> dict[str, str]:
    """Put so many encodings of scans into the pool, and one in `FEW` into the small one.

    Gives the digest of each image by its key.
    """
    whole = [body for _, body in photographs(-(-count // ENCODINGS), data, (SCAN * 2 // 3, SCAN))]
    parts = [whole[start : start + TOGETHER] for start in range(0, len(whole), TOGETHER)]
    workers = get_reusable_executor(len(os.sched_getaffinity(0)), env={"OMP_NUM_THREADS": "1"})
    keys: dict[str, str] = {}
    for found in workers.map(put, parts, range(len(parts)), [count] * len(parts)):
        keys |= found
    workers.shutdown()
    if len(set(keys.values())) != count:
        raise SystemExit(f"{len(set(keys.values()))} of {count} images are distinct")
    return keys


def put(bodies: list[bytes], part: int, count: int) -> dict[str, str]:
    """Encode each picture anew and put it; those of all parts are numbered through."""
    from infra import storage

    store = storage.connect()
    first = part * TOGETHER * ENCODINGS
    numbered = dict(enumerate(islice(encodings(bodies), count - first), start=first))
    places = {f"{POOL}{number:06d}.jpg": body for number, body in numbered.items()}
    small = {
        f"{SMALL_POOL}{number:06d}.jpg": body
        for number, body in numbered.items() if number % FEW == 0
    }  # fmt: skip
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda one: store.write(*one), (places | small).items()))
    return {key: hashlib.sha256(body).hexdigest() for key, body in places.items()}


def encodings(bodies: list[bytes]) -> Iterator[bytes]:
    """Each picture as small as a scan, under so many qualities."""
    for body in bodies:
        with Image.open(BytesIO(body)) as opened:
            scan = opened.convert("RGB")
        scan.thumbnail((SCAN, SCAN))
        for lower in range(ENCODINGS):
            buffer = BytesIO()
            # the comment tells encodings apart that two qualities made alike
            scan.save(buffer, "JPEG", quality=BEST_QUALITY - lower, comment=f"encoding {lower}")
            yield buffer.getvalue()


# --- an identification ------------------------------------------------------------------------


def answer_all(prefix: str, version: int) -> None:
    """What each process does: begin an identification or join it, and answer until all is done."""
    from tasks.identification import answer, begin

    answer.fn(begin(prefix, version))


def start(prefix: str, version: int) -> subprocess.Popen[bytes]:
    """Begin that in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", ANSWER.format(prefix, version)])


def a_version(seed: int) -> int:
    """A trained version of its own: what one has answered is not answered again."""
    from infra import database
    from records import versions
    from tasks import checkpoints

    plan = replace(PLAN, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        digest = save(build(plan, NAMES), path, plan, NAMES)
        checkpoints.store(path, digest)
    with database.connect().transaction() as session:
        number = versions.candidate(
            session, 1, "throwaway", None, "d", plan.to_dict(), plan.digest(), list(NAMES)
        )
        versions.trained(session, number, digest, {}, {}, 1.0, None)
    return number


def ask(query: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    from infra import database

    with database.connect().transaction() as session:
        rows = session.connection().exec_driver_sql(query, values)
        return [tuple(row) for row in rows]


@dataclass(frozen=True)
class Whole:
    """One identification from its process's start to its end.

    seconds: all; running: images a second from its first shard to its last. memory: MiB, the peaks
    of its processes added.
    """

    version: int
    images: int
    seconds: float
    running: float
    engine: str
    memory: float


def identified(prefix: str, version: int) -> Whole:
    """Answer a pool by a version, watching how much memory that takes."""
    begun = time.perf_counter()
    process = start(prefix, version)
    memory = peaks(process)
    seconds = time.perf_counter() - begun
    if process.returncode:
        raise SystemExit(f"the identification of {prefix} ended with {process.returncode}")
    [(answered, running, first, engine)] = ask(
        """
        SELECT sum(s.answered), extract(epoch FROM max(s.done_at) - min(s.done_at)),
               (array_agg(s.answered ORDER BY s.done_at))[1], min(s.engine)
        FROM shards s JOIN identifications i ON i.id = s.identification_id
        WHERE i.version_id = %s
        """,
        version,
    )
    rate = (answered - first) / float(running) if running else 0.0
    return Whole(version, answered, seconds, rate, engine, sum(memory.values()))


def peaks(process: subprocess.Popen[bytes]) -> dict[int, float]:
    """Wait for a process; the peak of its memory and of each that it started, in MiB."""
    found: dict[int, float] = {}
    while process.poll() is None:
        for one in family(process.pid):
            try:
                status = Path(f"/proc/{one}/status").read_text()
            except OSError:
                continue  # it has just ended
            if "VmHWM:" in status:
                found[one] = int(status.split("VmHWM:")[1].split()[0]) / 1024
        time.sleep(0.25)
    return found


def family(process: int) -> list[int]:
    """A process and those that it started, and those that these did."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(") ")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(status.parent.name))
    found = [process]
    for one in found:
        found += children.get(one, [])
    return found


# --- what is measured -------------------------------------------------------------------------


def measured(keys: Mapping[str, str], device: Any) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """All rows, and what to say about them."""
    from infra import settings
    from tasks.evaluation import choose_engine

    network = build(PLAN, NAMES).eval()
    choose_engine(Loaded(network, NAMES, PLAN), len(keys))  # measured once for this machine
    few = identified(SMALL_POOL, a_version(1))
    print(f"  {few}", flush=True)
    forwards = dict(engines(network, PLAN, device))
    best = max(turns(forwards).values(), key=lambda one: one.median).name
    alone = transport(list(keys)[:SAMPLE], settings.load().workers)
    for warm_up in alone.values():
        warm_up()
    wholes: list[Whole] = []

    def whole() -> float:
        wholes.append(identified(POOL, a_version(len(wholes) + 2)))
        if wholes[-1].images != len(keys):
            raise SystemExit(f"{wholes[-1].images:,} of {len(keys):,} images were answered")
        print(f"  {wholes[-1]}", flush=True)
        return wholes[-1].images / wholes[-1].seconds

    figures = take_turns({"regraft": whole, best: forwards[best], **alone}, "images/s", ROUNDS)
    parts = [figures[name].values for name in (best, *alone)]
    limit = tuple(1 / sum(1 / value for value in together) for together in zip(*parts, strict=True))
    name = f"limit: {best}, with {', '.join(alone)}"
    speed = Row(
        f"MobileNetV2 at {PLAN.image_size} px, {len(keys):,} scans",
        Figure("regraft", "images/s", tuple(one.running for one in wholes), "first shard to last"),
        (
            Figure(name, "images/s", limit),
            figures[best],
            Figure("regraft with its start", "images/s", figures["regraft"].values),
        ),
        (Goal(name, 0.9, "at least 90% of the best engine's forward pass plus transport"),),
    )
    small = f"{few.images:,} images"
    memory = Row(
        "Peak memory of all its processes",
        Figure(f"{len(keys):,} images", "MiB", tuple(one.memory for one in wholes)),
        (Figure(small, "MiB", (few.memory,)),),
        (Goal(small, 1.25, "at most a quarter more for a hundred times the images"),),
    )
    undisturbed = Figure("undisturbed", "s", tuple(one.seconds for one in wholes))
    at, seconds = killed(keys, a_version(len(wholes) + 2))
    kills = Row(
        f"Killed {KILLS} times, {len(keys):,} images",
        Figure("killed and begun again", "s", (seconds,)),
        (undisturbed,),
    )
    costs = ", ".join(f"{one} {1e6 / figures[one].median:.0f}" for one in (best, *alone))
    moments = ", ".join(f"{count:,}" for count in at)
    return (speed, memory, kills), (
        f"regraft answered with {wholes[-1].engine}. Microseconds of all cores per image, each "
        f"alone: {costs}. Its start, {undisturbed.median:.0f} s in all less those from its first "
        "shard to its last, is imports, the engine and processes that decode. Memory is the sum "
        "of what each process had at its peak, shared libraries counted in each.",
        f"SIGKILL came when {moments} images were answered. At the end there were exactly "
        f"{len(keys):,} answers and as many embeddings, one for each image. A process that was "
        "killed leaves claims that others take over after 20 s.",
    )


def killed(keys: Mapping[str, str], version: int) -> tuple[list[int], float]:
    """Kill an identification at random moments and begin it again; how far it was, and seconds.

    Ends the benchmark unless each image then has one answer.
    """
    moments = random.Random(version)  # noqa: S311  (no secret)
    begun, at = time.perf_counter(), []
    for share in sorted(moments.uniform(0, 1) for _ in range(KILLS)):
        process = start(POOL, version)
        while answered(version) <= share * len(keys) and process.poll() is None:
            time.sleep(0.1)
        time.sleep(moments.uniform(0, 1))  # not just behind the end of a shard
        at.append(answered(version))
        process.kill()
        process.wait()
        print(f"  killed with {at[-1]:,} answered", flush=True)
    whole = identified(POOL, version)
    counts = ask(
        "SELECT (SELECT count(*) FROM pool_answers WHERE version_id = i.version_id), "
        "(SELECT count(*) FROM embeddings WHERE version_id = i.version_id), i.state "
        "FROM identifications i WHERE i.version_id = %s",
        version,
    )
    if counts != [(len(keys), len(keys), "completed")]:
        raise SystemExit(f"{counts} after {KILLS} kills, of {len(keys):,} images")
    digests = ask("SELECT sha256 FROM pool_answers WHERE version_id = %s", version)
    if {sha256 for (sha256,) in digests} != set(keys.values()):
        raise SystemExit("other images were answered than the pool holds")
    print(f"  {whole.images:,} answers after {KILLS} kills", flush=True)
    return at, time.perf_counter() - begun


def answered(version: int) -> int:
    """How many images a version has answered."""
    [(count,)] = ask(
        "SELECT coalesce(sum(s.answered), 0) FROM shards s JOIN identifications i "
        "ON i.id = s.identification_id WHERE i.version_id = %s",
        version,
    )
    return int(count)


# --- the transport alone ----------------------------------------------------------------------


def transport(keys: list[str], workers: int) -> dict[str, Callable[[], float]]:
    """GET, decoding and COPY, each alone, by processor time."""
    from infra import storage

    store = storage.connect()
    bodies = {key: store.read(key) for key in keys}

    def over_pool(act: Callable[[str], object]) -> Callable[[], None]:
        def all_of_them() -> None:
            with ThreadPoolExecutor(workers) as threads:
                list(threads.map(act, keys))

        return all_of_them

    return {
        "GET": busy(over_pool(store.read), len(keys)),
        "decode": busy(over_pool(lambda key: examine(bodies[key], PLAN.geometry)), len(keys)),
        "COPY": busy(copies(bodies), len(keys)),
    }


def copies(bodies: Mapping[str, bytes]) -> Callable[[], None]:
    """Write answers as shards do, in transactions that are rolled back."""
    from benchmarks.copying import Back
    from infra import database
    from records import identifications, pools
    from vision.answers import Identified

    read = []
    for key, body in bodies.items():
        facts, _ = examine(body, None)
        # under other digests and keys: those of the pool are written already
        digest = hashlib.sha256(key.encode()).hexdigest()
        read.append(
            pools.ReadObject(
                f"{key}.copy", "e", facts.bytes, digest, None,
                facts.width, facts.height, facts.dhash, facts.dhash_mirror,
            )
        )  # fmt: skip
    drawn, count = np.random.default_rng(0), len(read)
    shares = drawn.dirichlet(np.ones(CLASSES), count).astype(np.float32)
    top = np.argsort(-shares, axis=1)[:, :5]
    [(wide,)] = ask("SELECT max(length(features)) FROM embeddings")
    answers = Identified(
        images=tuple(one.sha256 or "" for one in read),
        class_names=NAMES,
        top=top,
        confidences=np.take_along_axis(shares, top, axis=1),
        targets=(),
        target_confidences=np.zeros((count, 0), np.float32),
        entropy=np.ones(count, np.float32),
        features=drawn.random((count, wide // 2), dtype=np.float32).astype(np.float16),
    )
    [(number,)] = ask("SELECT max(id) FROM identifications")
    with database.connect().transaction() as session:
        row = identifications.get(session, number)

    def copy() -> None:
        for start in range(0, count, identifications.SHARD):
            some = read[start : start + identifications.SHARD]
            try:
                with database.connect().transaction() as session:
                    pools.record(session, row.pool_id, some)
                    identifications.store(
                        session, row.id, row.version_id, None,
                        answers.only([one.sha256 or "" for one in some]),
                    )  # fmt: skip
                    raise Back
            except Back:
                continue

    return copy


if __name__ == "__main__":
    main()
