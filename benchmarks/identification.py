"""Identification of a pool against its limit: the bare forward pass plus what the transport costs.

    python -m benchmarks.identification

Ours is the whole: listing, GET, decoding, the network in the engine that the calibration chooses,
its features kept, COPY into a real Postgres, all beside each other; with and without the seconds
until the first shard is written (processes, the engine). The limit is the best engine's bare
forward pass plus what GET, decoding and COPY cost alone; they share the cores, so their processor
time is measured (of the servers too), divided by the cores and added.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # threads that wait leave the core to others

import numpy as np

from benchmarks.bench import arguments, facts
from benchmarks.evaluation import CLASSES, busy, engines, services, turns
from benchmarks.figures import Figure, Goal, Part, Row, take_turns
from benchmarks.photographs import photographs
from vision.fitting import keep_freed_memory
from vision.images import examine
from vision.network import build, save
from vision.plan import Plan
from vision.prediction import device_named

PART = "identify"
ROUNDS = 3
SAMPLE = 1024  # pictures with which each part of the transport is measured alone
NAMES = tuple(f"class {number}" for number in range(CLASSES))


@dataclass(frozen=True)
class Case:
    """One network and a pool of JPEGs whose sides in pixels lie within `sides`."""

    title: str
    plan: Plan
    sides: tuple[int, int]
    images: int


CASES = (
    Case("MobileNetV2 at 160 px, photographs",
         Plan(architecture="mobilenetv2_100", image_size=160), (160, 240), 10_000),
    Case("MobileNetV2 at 64 px, small scans",
         Plan(architecture="mobilenetv2_100", image_size=64), (32, 48), 20_000),
)  # fmt: skip


def main() -> None:
    """Identify each pool in turn with its limit; save the part."""
    given = arguments(PART)
    device = device_named("cuda" if given.gpu else "cpu")
    keep_freed_memory()
    rows, notes = [], []
    with services():
        for number, case in enumerate(CASES):
            print(f"── {case.title}", flush=True)
            row, note = measured(f"pools/{number}/", case, given.data, device)
            rows.append(row)
            notes.append(note)
    Part(PART, "Identification of a pool", tuple(rows), tuple(notes), (), facts()).save(
        "cuda" if given.gpu else "cpu"
    )


def measured(prefix: str, case: Case, data: Path | None, device: Any) -> tuple[Row, str]:
    """One pool's row, and what to say about it."""
    pool = Bench(prefix, case, data)
    forwards = dict(engines(build(case.plan, NAMES).eval(), case.plan, device))
    best = max(turns(forwards).values(), key=lambda one: one.median)
    pool.whole()  # calibrates the engines, and gives the answers that COPY is measured with
    alone = pool.transport()
    for warm_up in alone.values():
        warm_up()
    pool.running.clear()
    figures = take_turns(
        {"regraft": pool.whole, best.name: forwards[best.name], **alone}, "images/s", ROUNDS
    )
    parts = [figures[name].values for name in (best.name, *alone)]
    limit = tuple(1 / sum(1 / value for value in together) for together in zip(*parts, strict=True))
    name = f"limit: {best.name}, with {', '.join(alone)}"
    row = Row(
        f"{case.title}: {case.images:,} images",
        Figure("regraft", "images/s", tuple(pool.running), "from its first shard to its last"),
        (
            Figure(name, "images/s", limit),
            figures[best.name],
            Figure("regraft with its start", "images/s", figures["regraft"].values),
        ),
        (Goal(name, 0.9, "at least 90% of the best engine's forward pass plus transport"),),
    )
    per_image = ", ".join(f"{one} {1e6 / figures[one].median:.0f}" for one in (best.name, *alone))
    return row, (
        f"{case.title}: regraft answered with {pool.engine}. Microseconds of all cores per image, "
        f"each alone: {per_image}. Start: {pool.start:.1f} s until the first shard was written."
    )


class Bench:
    """A pool in S3, answered by a new version in each round: what is answered is never repeated."""

    def __init__(self, prefix: str, case: Case, data: Path | None) -> None:
        from infra import storage

        self.prefix, self.case, self.rounds = prefix, case, 0
        self.engine, self.start = "", 0.0
        self.running: list[float] = []  # images a second of each round, its start left out
        self.store = storage.connect()
        bodies = {body for _, body in photographs(case.images, data, case.sides)}
        self.bodies = {f"{prefix}{hashlib.sha256(body).hexdigest()}.jpg": body for body in bodies}
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(self.store.write, self.bodies, self.bodies.values()))
        self.keys = list(self.bodies)[:SAMPLE]

    def whole(self) -> float:
        """Identify the pool by a version of its own."""
        from infra import database
        from tasks.identification import answer, begin

        version = self._version()
        begun = time.perf_counter()
        self.identification = begin(self.prefix, version)
        answer.fn(self.identification)
        seconds = time.perf_counter() - begun
        with database.connect().transaction() as session:
            answered, running, first, self.engine = session.connection().exec_driver_sql(
                f"""
                SELECT sum(s.answered), extract(epoch FROM max(s.done_at) - min(s.done_at)),
                       (array_agg(s.answered ORDER BY s.done_at))[1], min(s.engine)
                FROM shards s WHERE identification_id = {self.identification}
                """  # noqa: S608  (a number)
            ).one()
        if answered != len(self.bodies):
            raise SystemExit(f"{answered} of {len(self.bodies)} images were answered")
        self.running.append((answered - first) / float(running))
        self.start = seconds - float(running)
        return float(answered) / seconds

    def _version(self) -> int:
        from infra import database
        from records import versions
        from tasks import checkpoints

        self.rounds += 1
        plan = replace(self.case.plan, seed=self.rounds)
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

    def transport(self) -> dict[str, Callable[[], float]]:
        """GET, decoding and COPY, each alone, by processor time."""
        from infra import settings

        geometry = self.case.plan.geometry

        def over_pool(act: Callable[[str], object]) -> Callable[[], None]:
            def all_of_them() -> None:
                with ThreadPoolExecutor(settings.load().workers) as threads:
                    list(threads.map(act, self.keys))

            return all_of_them

        return {
            "GET": busy(over_pool(self.store.read), len(self.keys)),
            "decode": busy(
                over_pool(lambda key: examine(self.bodies[key], geometry)), len(self.keys)
            ),
            "COPY": busy(self._copies(), len(self.keys)),
        }

    def _copies(self) -> Callable[[], None]:
        """Write answers as shards do, in transactions that are rolled back."""
        from benchmarks.copying import Back
        from infra import database
        from records import identifications, pools
        from vision.answers import Identified

        facts_of = {key: examine(self.bodies[key], None)[0] for key in self.keys}
        read = [
            # under other digests and keys: those of the pool are written already
            pools.ReadObject(
                f"{key}.copy", "e", one.bytes, hashlib.sha256(key.encode()).hexdigest(), None,
                one.width, one.height, one.dhash, one.dhash_mirror,
            )
            for key, one in facts_of.items()
        ]  # fmt: skip
        random, count = np.random.default_rng(0), len(read)
        shares = random.dirichlet(np.ones(CLASSES), count).astype(np.float32)
        top = np.argsort(-shares, axis=1)[:, :5]
        width = self._width()
        answers = Identified(
            images=tuple(one.sha256 or "" for one in read),
            class_names=NAMES,
            top=top,
            confidences=np.take_along_axis(shares, top, axis=1),
            targets=(),
            target_confidences=np.zeros((count, 0), np.float32),
            entropy=np.ones(count, np.float32),
            features=random.random((count, width), dtype=np.float32).astype(np.float16),
        )
        with database.connect().transaction() as session:
            row = identifications.get(session, self.identification)

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

    def _width(self) -> int:
        from infra import database

        with database.connect().transaction() as session:
            bytes_each = session.connection().exec_driver_sql(
                "SELECT max(length(features)) FROM embeddings"
            )
            return int(bytes_each.scalar_one()) // 2


if __name__ == "__main__":
    main()
