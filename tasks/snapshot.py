"""Snapshot: freeze the list of images one version trains on, as Parquet in S3."""

from __future__ import annotations

import functools
import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from sqlalchemy.orm import Session

from infra import database, storage
from records import runs, snapshots
from records.snapshots import ClassCount
from tasks.step import reading, timed
from vision.plan import Plan

log = logging.getLogger("regraft")

MOST_NAMED = 5  # classes that are left out, in one line
SCHEMA = pa.schema([("sha256", pa.string()), ("class", pa.string()), ("split", pa.string())])


class NothingToTrain(RuntimeError):
    """Too few classes can be trained."""


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
    with timed(run_id, "snapshot") as facts, database.connect().transaction() as session:
        revision = snapshots.revision(session)
        known = snapshots.chosen_at(session, revision, plan.cutoff, plan.most)
        if known is not None and storage.connect().exists(known.key):
            digest, images, classes = known.digest, known.images, known.classes
        else:
            counted = snapshots.counts(session, plan.cutoff, plan.most)
            digest, images, classes = write(
                session, run_id, plan, snapshots.POLICY, counted,
                lambda names, take: snapshots.export(session, names, plan.most, take),
            )  # fmt: skip
            snapshots.keep_choice(session, revision, plan.cutoff, plan.most, digest)
        runs.fence(session, run_id)
        runs.note(session, run_id, snapshot_digest=digest)
        facts.update(images=images, classes=classes)
    return digest


def write(
    session: Session,
    run_id: int,
    plan: Plan,
    policy: str,
    classes: list[ClassCount],
    export: Callable[[list[str], Callable[[bytes], object]], None],
) -> tuple[str, int, int]:
    """Write a list down, in S3 and as a row: its digest, images and classes.

    classes: what each class has, by `policy`; export: hands the lines of the classes named to a
    function, as `records.snapshots.export` does. Raises `NothingToTrain`.
    """
    _refuse_too_little(classes, plan)
    _say_what_waits(classes, plan)
    enough = [one.class_name for one in classes if one.lacks == 0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.parquet"
        with Writer(path, policy) as writer:
            export(enough, writer.add)
        digest = writer.digest.hexdigest()
        key = f"snapshots/{digest}.parquet"
        # Asked first: another pyarrow writes the same list in other bytes.
        if not storage.connect().exists(key):
            with path.open("rb") as file:
                body_digest = hashlib.file_digest(file, "sha256").hexdigest()
            storage.connect().write_once(key, path, body_digest)
    runs.fence(session, run_id)
    snapshots.record(session, digest, key, policy, plan.cutoff, plan.most, writer.images, classes)
    return digest, writer.images, len(enough)


def _refuse_too_little(classes: list[ClassCount], plan: Plan) -> None:
    short = sorted((one for one in classes if one.lacks), key=lambda one: one.lacks)
    enough = len(classes) - len(short)
    if enough < 2:
        raise NothingToTrain(
            f"{enough} of {len(classes)} classes have {plan.cutoff} usable images, some to train "
            f"and some to validate on, and a classifier needs two{': ' if short else ''}"
            f"{_some(short)}; add images or lower cutoff"
        )


def _say_what_waits(classes: list[ClassCount], plan: Plan) -> None:
    """Name what has passed the cutoff and is left out all the same, which nobody would expect."""
    waiting = [one for one in classes if one.lacks and one.usable >= plan.cutoff]
    if waiting:
        log.warning("left out, with %d usable images or more: %s", plan.cutoff, _some(waiting))


def _some(short: list[ClassCount]) -> str:
    more = f" and {len(short) - MOST_NAMED} more" if len(short) > MOST_NAMED else ""
    return "; ".join(f"{one.class_name} {one.wanting}" for one in short[:MOST_NAMED]) + more


class Writer:
    """A snapshot's list on its way from Postgres into a Parquet file, hashed as it passes.

    Blocks are read, hashed and compressed by libraries that let go of Python's lock; no Python
    object is made for a row.
    """

    def __init__(self, path: Path, policy: str) -> None:
        self.digest = _begun(policy)
        self.images = 0
        self._file = pq.ParquetWriter(
            path, SCHEMA, compression="zstd", use_dictionary=["class", "split"]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, lines: bytes) -> None:
        """Take a block of lines as `records.snapshots.export` gives them."""
        plain = lines.replace(b"\t", b" ")
        escaped = b"\\" in plain
        self.digest.update(plain.replace(b"\\\\", b"\\") if escaped else plain)
        table = pyarrow.csv.read_csv(
            pa.BufferReader(lines),
            pyarrow.csv.ReadOptions(column_names=SCHEMA.names),
            pyarrow.csv.ParseOptions(
                delimiter="\t", quote_char=False, escape_char="\\" if escaped else False
            ),
            pyarrow.csv.ConvertOptions(column_types=SCHEMA),
        )
        self.images += len(table)
        self._file.write_table(table)


def _begun(policy: str) -> Any:
    """The digest of a list, before its lines `sha256 class split`."""
    return hashlib.sha256(f"{policy}\n".encode())


@functools.lru_cache(maxsize=1)  # a night's steps ask for the same one, one after the other
def read(digest: str) -> Listed:
    """A frozen snapshot's list, from S3, its digest checked."""
    with database.connect().transaction() as session:
        row = snapshots.get(session, digest)
    table = pq.read_table(pa.BufferReader(storage.connect().read(row.key)))
    whole = _begun(row.policy)
    for block in _lines(table):
        whole.update(block)
    if whole.hexdigest() != digest:
        raise ValueError(f"snapshot {digest[:12]}… was changed in S3: restore {row.key} from a "
                         "backup")
    parts = {
        split: table.filter(pc.equal(table["split"], split))
        for split in ("train", "validation", "test")
    }
    return Listed(
        {split: part["sha256"].to_pylist() for split, part in parts.items()},
        {split: part["class"].to_pylist() for split, part in parts.items()},
        sorted(pc.unique(table["class"]).to_pylist()),
    )


def _lines(table: pa.Table) -> Iterator[memoryview]:
    """The lines `sha256 class split` of a list, in blocks of bytes."""
    for batch in table.select(SCHEMA.names).to_batches(max_chunksize=100_000):
        sha256, name, split = batch.columns
        ended = pc.binary_join_element_wise(split, "", "\n")
        lines = pc.binary_join_element_wise(sha256, name, ended, " ")
        _, offsets, body = lines.buffers()
        yield memoryview(body)[: memoryview(offsets).cast("i")[len(lines)]]
