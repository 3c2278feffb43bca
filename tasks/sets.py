"""Pretraining sets: class folders of another task, read from S3 and frozen as a snapshot."""

from __future__ import annotations

import functools
import hashlib
import logging
from dataclasses import asdict
from pathlib import Path

from infra import database, storage
from infra.storage import StorageError, bad_key
from records import runs, sets
from records.objects import LABELLED, normalised
from records.sets import ReadObject, SetObject
from tasks import snapshot
from tasks.benchmark import BENCHMARK
from tasks.fetching import fetching
from tasks.loading import load_folder
from tasks.pixels import cache, shelf
from tasks.progress import progress
from tasks.step import reading, timed
from vision.images import examine
from vision.plan import Plan

log = logging.getLogger("regraft")

SETS = "sets/"
ADDRESS = "s3://"
# Objects that are read between two looks at the database: what a kill can lose.
READ_TOGETHER = 5000


class BadSet(ValueError):
    """A pretraining set that cannot be one; the message names it and the mend."""


def locate(word: str) -> str:
    """The prefix in our bucket that holds a set: of `s3://PREFIX`, or of a folder, loaded there.

    A folder goes to `sets/<its name>/`, once. Raises `BadSet` when other images lie there, and
    for what belongs to the library or the benchmark; `BadFolder` for a folder without images.
    """
    if word.startswith(ADDRESS):
        return checked(word.removeprefix(ADDRESS))
    folder = Path(word).resolve()
    if not folder.is_dir():
        raise BadSet(f"{word} is not a folder: name a folder of class folders, or s3://PREFIX")
    prefix = checked(f"{SETS}{folder.name}")
    ours = {
        prefix + path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.parent != folder and not path.name.startswith(".")
    }
    there = {one.key: one.size for one in storage.connect().list(prefix)}
    foreign = sorted(key for key, size in there.items() if ours.get(key) != size)
    if foreign:
        raise BadSet(
            f"s3://{prefix} holds {len(foreign)} objects that are not in {word}, the first is "
            f"{foreign[0]}: rename the folder, or name s3://{prefix} to use what lies there"
        )
    if there.keys() != ours.keys():
        done = load_folder(folder, prefix)
        for line in done.skipped[:10]:
            log.warning("left where it is: %s", line)
    return prefix


def checked(prefix: str) -> str:
    """A set's prefix, with one slash at its end; raises `BadSet`."""
    prefix = prefix.removesuffix("/")
    if problem := bad_key(prefix):
        raise BadSet(f"s3://{prefix}: {problem}")
    whole = f"{prefix}/"
    for reserved, whose in ((LABELLED, "the library"), (BENCHMARK, "the benchmark")):
        if whole.startswith(reserved):
            raise BadSet(f"s3://{prefix} belongs to {whose}: put the set under another prefix")
    return whole


@reading("freeze set")
def freeze_set(run_id: int, prefix: str, plan: Plan) -> str:
    """Read what is new of a set, choose from it by the plan's cutoff and most; answer the digest.

    The images stay where they lie and never enter the library. What the library or the benchmark
    has, exact or near, is left out. Raises `BadSet` for a set without images, `NothingToTrain`.
    """
    with timed(run_id, "read set") as facts:
        listed = _listed(prefix)
        facts.update(set=f"{ADDRESS}{prefix}", listed=len(listed))
        facts["images"] = _read(run_id, prefix, listed, plan)
    with timed(run_id, "snapshot") as facts, database.connect().transaction() as session:
        sets.compare(session, listed)
        left_out = sets.left_out(session, prefix)
        digest, images, classes = snapshot.write(
            session, run_id, plan, sets.POLICY,
            sets.counts(session, prefix, plan.cutoff, plan.most),
            lambda names, take: sets.export(session, prefix, names, plan.most, take),
        )  # fmt: skip
        runs.note(session, run_id, snapshot_digest=digest)
        facts.update(images=images, classes=classes, left_out=len(left_out))
    if left_out:
        log.warning("%d of %d objects of s3://%s are left out: %s", len(left_out), len(listed),
                    prefix, "; ".join(left_out[:3]))  # fmt: skip
    return digest


def _listed(prefix: str) -> list[SetObject]:
    """The objects `<prefix><class>/…` of a set; others are no part of it, which is said."""
    found, strays = [], []
    for one in storage.connect().list(prefix):
        if not one.size and one.key.endswith("/"):
            continue  # consoles make such objects for folders
        label, slash, _ = one.key.removeprefix(prefix).partition("/")
        if bad_key(one.key) or not slash or not normalised(label):
            strays.append(one.key)
        else:
            found.append(SetObject(one.key, one.etag, normalised(label)))
    if strays:
        log.warning("%d objects under s3://%s lie in no class folder or under a key that is "
                    "refused, the first is %r", len(strays), prefix, strays[0])  # fmt: skip
    if not found:
        raise BadSet(f"s3://{prefix} holds no images: expected s3://{prefix}<class>/<image>")
    return found


def _read(run_id: int, prefix: str, listed: list[SetObject], plan: Plan) -> int:
    """Read and measure what was never read, some thousands at a time; answers how many."""
    with database.connect().transaction() as session:
        sets.compare(session, listed)
        waiting = sets.unread(session, prefix)
    with progress("read the set", len(waiting)) as advance:
        for start in range(0, len(waiting), READ_TOGETHER):
            together = waiting[start : start + READ_TOGETHER]
            read = _measured(together, plan)
            with database.connect().transaction() as session:
                runs.fence(session, run_id)
                sets.record(session, prefix, read)
            advance(start + len(together))
    return len(waiting)


def _measured(objects: list[SetObject], plan: Plan) -> list[ReadObject]:
    """What each object is; its pixels go straight into the cache."""
    name = f"set-{hashlib.sha256(repr(objects).encode()).hexdigest()[:16]}"
    read = []
    with (
        shelf(name, plan.geometry, len(objects), cache().files(plan.geometry)) as kept,
        fetching(len(objects)) as fetch,
    ):
        places = [(one.key, one.etag) for one in objects]
        found = fetch(places, functools.partial(examine, geometry=plan.geometry))
        for row, (one, made) in enumerate(zip(objects, found, strict=True)):
            if isinstance(made, StorageError):
                continue  # gone or changed since it was listed: the next run lists it anew
            facts, pixels = made
            if pixels is not None:
                kept.put(row, facts.sha256, pixels)
            read.append(
                ReadObject(
                    **asdict(one),
                    sha256=facts.sha256,
                    dhash=facts.dhash,
                    dhash_mirror=facts.dhash_mirror,
                    problem=facts.problem,
                )
            )
    return read
