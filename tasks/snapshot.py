"""Snapshot: freeze the list of images one version trains on, as Parquet in S3."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra import database, storage
from records import runs, snapshots
from records.snapshots import Chosen, ClassCount
from tasks.step import reading, timed
from vision.plan import Plan

SCHEMA = pa.schema([("sha256", pa.string()), ("class", pa.string()), ("split", pa.string())])
ROWS_AT_A_TIME = 10_000


class NothingToTrain(RuntimeError):
    """Too few classes reach the cutoff."""


@dataclass(frozen=True)
class Listed:
    """A snapshot's images by split: (sha256 list, class list), equally long, by sha256."""

    images: dict[str, list[str]]
    labels: dict[str, list[str]]
    class_names: list[str]


@reading("freeze snapshot")
def freeze_snapshot(run_id: int, plan: Plan) -> str:
    """Choose the images by the plan's cutoff and most, write the list once, answer its digest.

    The digest is that of the list itself (sorted images with class and split) and of the rule
    that chose them, so a run that is repeated freezes the same snapshot.
    """
    with timed(run_id, "snapshot") as facts:
        with tempfile.TemporaryDirectory() as folder, database.connect().transaction() as session:
            path = Path(folder) / "snapshot.parquet"
            classes = snapshots.counts(session, plan.cutoff, plan.most)
            _refuse_too_little(classes, plan)
            digest, images = _write(path, snapshots.choose(session, plan.cutoff, plan.most))
            key = f"snapshots/{digest}.parquet"
            # Asked first: another pyarrow writes the same list in other bytes.
            if not storage.connect().exists(key):
                body_digest = hashlib.sha256(path.read_bytes()).hexdigest()
                storage.connect().write_once(key, path, body_digest)
            runs.fence(session, run_id)
            snapshots.record(session, digest, key, plan.cutoff, plan.most, images, classes)
            runs.note(session, run_id, snapshot_digest=digest)
        facts.update(images=images, classes=sum(one.lacks == 0 for one in classes))
    return digest


def _refuse_too_little(classes: list[ClassCount], plan: Plan) -> None:
    enough = [one for one in classes if one.lacks == 0]
    if len(enough) < 2:
        near = sorted(classes, key=lambda one: one.lacks)[:5]
        lacking = ", ".join(f"{one.class_name} lacks {one.lacks}" for one in near if one.lacks)
        raise NothingToTrain(
            f"{len(enough)} of {len(classes)} classes have {plan.cutoff} usable images and a "
            f"classifier needs two{': ' + lacking if lacking else ''}; add images or lower cutoff"
        )
    for one in enough:
        if min(one.train, one.validation) == 0:
            raise NothingToTrain(
                f"class {one.class_name!r} has {one.train} training and {one.validation} "
                "validation images: each class needs one of both; add real images or raise cutoff"
            )


def _write(path: Path, chosen: Iterator[Chosen]) -> tuple[str, int]:
    whole = hashlib.sha256(f"{snapshots.POLICY}\n".encode())
    images = 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        while some := list(islice(chosen, ROWS_AT_A_TIME)):
            for one in some:
                whole.update(f"{one.sha256} {one.class_name} {one.split}\n".encode())
            images += len(some)
            columns = [
                [one.sha256 for one in some],
                [one.class_name for one in some],
                [one.split for one in some],
            ]
            writer.write_table(pa.table(columns, schema=SCHEMA))
    return whole.hexdigest(), images


def read(digest: str) -> Listed:
    """A frozen snapshot's list, from S3, its digest checked."""
    with database.connect().transaction() as session:
        key = snapshots.key_of(session, digest)
    table = pq.read_table(pa.BufferReader(storage.connect().read(key)))
    columns = [table.column(name).to_pylist() for name in SCHEMA.names]
    whole = hashlib.sha256(f"{snapshots.POLICY}\n".encode())
    images: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    labels: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for sha256, name, split in zip(*columns, strict=True):
        whole.update(f"{sha256} {name} {split}\n".encode())
        images[split].append(sha256)
        labels[split].append(name)
    if whole.hexdigest() != digest:
        raise ValueError(f"snapshot {digest[:12]}… was changed in S3: restore {key} from a backup")
    return Listed(images, labels, sorted(set(columns[1])))
