"""What a night costs beyond learning, as the library grows: 1,000, 10,000 and 100,000 images.

    python -m benchmarks.nights

Everything is real: an embedded Postgres, S3 and Prefect in a folder of their own. One library
grows through the three sizes; its bulk are rows as an intake leaves them over tiny objects that S3
really holds and lists. At each size two nights are timed: one that finds nothing new, against a
bare listing of the same prefix by boto3, page by page; and one that finds 100 new photographs,
trains a tiny network on the newest images of each class and judges it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import bench
from benchmarks.figures import FOLDER, Figure, Goal, Part, Row, take_turns
from benchmarks.photographs import photographs
from benchmarks.services import services

SIZES = (1_000, 10_000, 100_000)
ROUNDS = 3
NEW = 100
NIGHTS = 3  # with new images, at each size
BENCHMARK_IMAGES = 80
FIRST_IMAGES = 240
CLASSES = 2
MOST = 120  # images of each class in a snapshot, so that learning costs the same at each size
PICTURE = "night.png"
APART = ("list", "snapshot", "train")  # steps that the second goal leaves out


@dataclass(frozen=True)
class Busy:
    """A night with new images: seconds in all, and of each of its steps."""

    seconds: float
    steps: dict[str, float]

    @property
    def beyond(self) -> float:
        """Seconds without learning, listing and snapshot."""
        return self.seconds - sum(self.steps.get(name, 0.0) for name in APART)


def main() -> None:
    """Grow one library and time its nights at each size."""
    given = bench.arguments("night")
    os.environ["REGRAFT_DEVICE"] = "cpu"
    with services():
        pictures = iter(labelled_photographs(given.data))
        begin(pictures)
        told = {size: measure(size, pictures) for size in SIZES}
    draw(told)
    part(told).save("cuda" if given.gpu else "cpu")


def labelled_photographs(data: Path | None) -> list[tuple[str, bytes]]:
    """Enough photographs for the whole story, in two classes with plain names."""
    count = BENCHMARK_IMAGES + FIRST_IMAGES + NEW * NIGHTS * len(SIZES)
    found = photographs(count, data)
    known = sorted({name for name, _ in found})
    names = {name: f"class-{place * CLASSES // len(known)}" for place, name in enumerate(known)}
    return [(names[name], body) for name, body in found]


def begin(pictures: Iterator[tuple[str, bytes]]) -> None:
    """Freeze a benchmark, make room for the bulk as the oldest batch, and train a champion."""
    from infra import database
    from tasks import benchmark

    upload("benchmark/", pictures, BENCHMARK_IMAGES)
    benchmark.freeze("benchmarks.nights", "for a benchmark of speed")
    with database.connect().transaction() as session:
        session.connection().exec_driver_sql(
            "INSERT INTO batches (state, ended_at) VALUES ('accepted', now())"
        )
    upload("labelled/", pictures, FIRST_IMAGES)
    outcome = night()
    print(f"first night: {outcome.state}, {outcome.reason}", flush=True)
    assert outcome.state == "deployed", outcome.reason
    with database.connect().transaction() as session:
        # The bulk counts as answered, or the next night would want to see its pictures.
        session.connection().exec_driver_sql(
            "INSERT INTO evaluations (version_id, checkpoint_digest, subject, batch_id, images, "
            "accuracy, accuracy_low, accuracy_high, runtime) "
            "SELECT id, checkpoint_digest, 'batch', 1, 0, 1, 1, 1, '{}' FROM versions"
        )


def upload(prefix: str, pictures: Iterator[tuple[str, bytes]], count: int) -> None:
    """Put the next photographs into S3, each under its class."""
    from infra import storage

    store = storage.connect()
    some = [next(pictures) for _ in range(count)]
    stamp = f"{time.time_ns():x}"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(
            lambda item: store.write(f"{prefix}{item[1][0]}/{stamp}-{item[0]:04d}.jpg", item[1][1]),
            enumerate(some),
        ))


def plan_and_limits() -> tuple[Any, Any]:
    """A tiny network, and limits that no lucky picture decides."""
    from vision.gate import Limits
    from vision.plan import Plan

    plan = Plan(
        architecture="test_resnet", recipe="all", image_size=64, epochs=4, batch_size=16,
        learning_rate=1e-2, dropout=0.0, precision="float32", cutoff=20, most=MOST,
    )
    limits = Limits(
        margin=1, significance=1e-6, veto_recall=1, new_class_floor=0, chance_times=1,
        calibration_bound=1, calibration_worse=1, gap_bound=1, latency_seconds=60,
        latency_times=1000,
    )
    return plan, limits


def night() -> Any:
    """A night as `regraft nightly` runs it, through Prefect."""
    from flows.nightly import nightly

    plan, limits = plan_and_limits()
    return nightly(plan=plan, limits=limits)


def night_without_prefect() -> Any:
    """The very steps of a night that finds nothing new, called as plain functions."""
    from flows.nightly import nothing_new, serving
    from flows.run import alone, one_run
    from tasks.intake import take_in_new_images
    from tasks.snapshot import freeze_snapshot
    from tasks.validation import settle_gone

    plan, limits = plan_and_limits()
    with alone(), one_run("nightly", plan, judged=True) as running:
        intake = take_in_new_images.fn(running.run_id, plan)
        assert intake.batch_id is None, intake
        settle_gone.fn(running.run_id)
        snapshot = freeze_snapshot.fn(running.run_id, plan)
        champion = serving()
        reason = nothing_new(snapshot, plan, limits, champion, champion)
        assert reason, "there was something new"
        return running.end("skipped", reason)


# --- the library ------------------------------------------------------------------------------


def grow(size: int) -> None:
    """Bring the library to `size` images: objects in S3, and rows as an intake leaves them."""
    from infra import database, embedded, settings

    with database.connect().transaction() as session:
        execute = session.connection().exec_driver_sql
        there = int(execute("SELECT count(*) FROM images").scalar_one())
        bulk = int(execute("SELECT count(*) FROM images WHERE batch_id = 1").scalar_one())
    first, last = bulk, bulk + size - there
    found = embedded.addresses(settings.load())
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for one in range(CLASSES):
            (folder / f"class-{one}").mkdir()
        for number in range(first, last):
            path = folder / f"class-{number % CLASSES}" / f"{number:07d}.jpg"
            path.write_bytes(b"%032d" % number)
        environment = {
            "AWS_ACCESS_KEY_ID": str(found.s3_access_key),
            "AWS_SECRET_ACCESS_KEY": str(found.s3_secret_key),
        }
        subprocess.run(
            [Path(sys.executable).with_name("s5cmd"), "--endpoint-url", found.s3_endpoint,
             "--numworkers", "32", "cp", f"{folder}/", f"s3://{found.s3_bucket}/labelled/"],
            check=True, env=os.environ | environment, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    values = {"first": first, "last": last, "bucket": found.s3_bucket, "size": size}
    with database.connect().transaction() as session:
        for statement in (BULK_IMAGES, BULK_OBJECTS):
            session.connection().exec_driver_sql(statement, values)
    with database.connect().engine.connect().execution_options(
        isolation_level="AUTOCOMMIT"
    ) as connection:
        connection.exec_driver_sql("VACUUM ANALYZE images")  # as autovacuum does within minutes
        connection.exec_driver_sql("VACUUM ANALYZE objects")
    print(f"{size:,} images ({time.perf_counter() - begun:.0f} s)", flush=True)


BULK_IMAGES = f"""
    INSERT INTO images (sha256, class_id, sub_class, origin, group_name, split, sequence, width,
                        height, format, bytes, dhash, labelled_by, batch_id)
    SELECT sha256, c.id, '', 'real', sha256,
           (ARRAY['train', 'validation', 'test', 'train', 'train', 'train', 'train', 'train',
                  'train', 'train'])[n / {CLASSES} %% 10 + 1],
           -- beyond all that real newcomers have drawn at the sizes before
           %(size)s * 1000 + n / {CLASSES}, 240, 240, 'JPEG', 32,
           ('x' || substr(md5('dhash ' || n), 1, 16))::bit(64)::bigint, 'person:benchmark', 1
    FROM (SELECT n, encode(sha256(('bulk ' || n)::bytea), 'hex') AS sha256
          FROM generate_series(%(first)s, %(last)s - 1) n) numbers
    JOIN classes c ON c.name = 'class-' || n %% {CLASSES}
"""  # noqa: S608  (a number of ours)
BULK_OBJECTS = f"""
    INSERT INTO objects (bucket, key, etag, size, modified, label, state, batch_id, sha256, facts)
    SELECT %(bucket)s,
           'labelled/class-' || n %% {CLASSES} || '/' || lpad(n::text, 7, '0') || '.jpg',
           md5(lpad(n::text, 32, '0')), 32, now(), 'class-' || n %% {CLASSES}, 'accepted', 1,
           encode(sha256(('bulk ' || n)::bytea), 'hex'),
           jsonb_build_object('readable', true, 'format', 'JPEG', 'width', 240, 'height', 240,
               'bytes', 32, 'animated', false, 'brightness', 0.5, 'sharpness', 12.25,
               'orientation', 1, 'dhash', n, 'dhash_mirror', n)
    FROM generate_series(%(first)s, %(last)s - 1) n
"""  # noqa: S608


# --- the figures ------------------------------------------------------------------------------


def measure(size: int, pictures: Iterator[tuple[str, bytes]]) -> dict[str, Any]:
    """All figures at one size."""
    grow(size)
    busy = []
    for _ in range(NIGHTS):
        upload("labelled/", pictures, NEW)
        busy.append(busy_night())
        print(f"  100 new: {busy[-1].seconds:.2f} s, {busy[-1].beyond:.2f} s beyond", flush=True)
    night_without_prefect()  # the one after the growth has something to choose from anew
    idle = take_turns(
        {
            BARE: lambda: timed(listing),
            OURS: lambda: timed(night_without_prefect),
            FLOW: lambda: timed(night),
        },
        "s", ROUNDS,
    )
    command = timed(regraft_nightly)
    print(f"  regraft nightly: {command:.2f} s", flush=True)
    return {"idle": idle, "command": command, "busy": busy, "steps": steps()}


def timed(act: Any) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def listing() -> int:
    """The keys under the prefix, as a boto3 user lists them."""
    import boto3

    from infra import embedded, settings

    found = embedded.addresses(settings.load())
    client = boto3.client(
        "s3", endpoint_url=found.s3_endpoint, region_name="us-east-1",
        aws_access_key_id=found.s3_access_key, aws_secret_access_key=found.s3_secret_key,
    )
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=found.s3_bucket, Prefix="labelled/"
    )
    return sum(len(page.get("Contents", ())) for page in pages)


def busy_night() -> Busy:
    """A night that finds new images and judges what it trained on them."""
    begun = time.perf_counter()
    outcome = night()
    seconds = time.perf_counter() - begun
    assert outcome.state in {"deployed", "refused"}, outcome
    return Busy(seconds, steps(outcome.run_id))


def steps(run_id: int | None = None) -> dict[str, float]:
    """Seconds by step of a run, the newest when none is named."""
    from infra import database
    from records import runs

    with database.connect().transaction() as session:
        run_id = run_id or runs.listed(session, most=1)[0].id
        return {one.name: one.seconds for one in runs.steps(session, run_id)}


def regraft_nightly() -> None:
    """The whole command, process start and all."""
    plan, _ = plan_and_limits()
    words = [f"--set={name}={json.dumps(value)}" for name, value in plan.to_dict().items()
             if not isinstance(value, dict) and value is not None]
    code = "from flows.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, "nightly", *words], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# --- the page ---------------------------------------------------------------------------------

BARE = "listing alone (boto3)"
OURS = "regraft"
FLOW = "regraft, as a Prefect flow"


def part(told: dict[int, dict[str, Any]]) -> Part:
    """Rows, goals and notes."""
    rows = [
        Row(
            f"Nothing new, {size:,} images in the library",
            one["idle"][OURS],
            (one["idle"][BARE], one["idle"][FLOW],
             Figure("`regraft nightly`, the whole command", "s", (one["command"],))),
            (Goal(BARE, 1.3, "within 1.3 x the listing alone"),),
        )
        for size, one in told.items()
    ]  # fmt: skip
    beyond = {
        size: Figure(f"{size:,} images", "s", tuple(night.beyond for night in one["busy"]))
        for size, one in told.items()
    }
    smallest, largest = min(beyond), max(beyond)
    rows.append(
        Row(
            f"{NEW} new images: a night without gradient steps, listing and snapshot",
            beyond[largest],
            tuple(figure for size, figure in beyond.items() if size != largest),
            (Goal(beyond[smallest].name, 1.2, "flat within 20% from the smallest to the largest"),),
        )
    )
    return Part("night", "What a night costs", tuple(rows), tuple(notes(told)), (PICTURE,),
                bench.facts())  # fmt: skip


def notes(told: dict[int, dict[str, Any]]) -> Iterator[str]:
    """What the figures stand for, and where the time goes."""
    yield (
        "The listing alone is a boto3 client that pages through the same prefix and keeps nothing. "
        "regraft's night takes the lock, opens its run, lists, compares every key and ETag with "
        "Postgres, settles what is gone, finds that the library's revision is the one it has "
        "chosen a snapshot from, and closes the run; as plain functions, then as users run it "
        "through Prefect, then as a command with the start of its process. The goal is about what "
        "grows with the library: Prefect's share and the process's start do not."
    )
    for size, one in told.items():
        busy = one["busy"][-1]
        shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in busy.steps.items())
        idle = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in one["steps"].items())
        prefect = one["idle"][FLOW].median - one["idle"][OURS].median
        yield (
            f"{size:,} images. Nothing new: {idle}; Prefect adds {prefect:.2f} s. {NEW} new: "
            f"{busy.seconds:.1f} s in all, {shown}."
        )


def draw(told: dict[int, dict[str, Any]]) -> None:
    """Both curves over the size of the library."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    sizes = list(told)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), dpi=120)
    for name in (BARE, OURS, FLOW):
        left.plot(sizes, [told[size]["idle"][name].median for size in sizes], "o-", label=name)
    left.plot(sizes, [told[size]["command"] for size in sizes], "o--", label="regraft nightly")
    left.set_title("a night that finds nothing new")
    left.set_yscale("log")
    right.plot(sizes, [median(one.beyond for one in told[size]["busy"]) for size in sizes], "o-",
               label="beyond learning, listing, snapshot")  # fmt: skip
    for name in APART:
        right.plot(
            sizes, [median(one.steps.get(name, 0) for one in told[size]["busy"]) for size in sizes],
            "o--", label=name,
        )  # fmt: skip
    right.set_title(f"a night with {NEW} new images")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("images in the library")
        axes.set_ylabel("seconds")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / PICTURE)


if __name__ == "__main__":
    main()
