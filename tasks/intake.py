"""Intake: list what lies in S3, notice what is new, gone or moved, fetch and measure the new."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from infra import database, storage
from infra.storage import Listed, StorageError, bad_key
from records import batches, classes, deployments, objects, runs, versions
from records.objects import (
    LABELLED,
    MANIFESTS,
    ListedObject,
    ManifestEntry,
    label_of,
    normalised,
)
from tasks import labelling
from tasks.fetching import fetching
from tasks.pixels import cache, shelf
from tasks.progress import progress
from tasks.rows import LONGEST_FIELD, BadRows, presentable, read_rows, text_problem
from tasks.step import reading, timed
from vision.images import examine
from vision.plan import Plan

log = logging.getLogger("regraft")

MANIFEST_COLUMNS = ("key", "label")
TEXTS = ("key", "label", "sub_label", "origin", "group", "labelled_by", "box")


class BadManifest(ValueError):
    """A manifest that cannot be read as a whole; the message names file, place and mend."""


@dataclass(frozen=True)
class Intake:
    """What one intake found; `batch_id` is None when nothing is new."""

    batch_id: int | None
    listed: int
    new: int
    gone: int


@reading("take in new images")
def take_in_new_images(run_id: int, plan: Plan, retired_classes: Sequence[str] = ()) -> Intake:
    """List, compare with the library, and fetch what is new into an open batch.

    A class that the champion serves may vanish from S3 only if a person has retired it. Work and
    memory grow with what is new. A run that was killed leaves its batch open; the next
    one goes on with it.
    """
    for line in labelling.follow().waiting:
        log.warning("%s", line)
    with timed(run_id, "list") as facts:
        intake = _list_new(run_id, retired_classes)
        facts.update(asdict(intake))
    if intake.batch_id is not None:
        with timed(run_id, "fetch and decode") as facts:
            facts["objects"] = _fetch(run_id, intake.batch_id, plan)
    return intake


def _list_new(run_id: int, retired_classes: Sequence[str]) -> Intake:
    store = storage.connect()
    with database.connect().transaction() as session:
        runs.fence(session, run_id)
        batch_id = batches.open_batch(session)
        runs.note(session, run_id, batch_id=batch_id)
        for listed in store.list(MANIFESTS):
            if not listed.key.endswith((".csv", ".jsonl")):
                continue
            if not objects.manifest_is_known(session, listed.key, listed.etag):
                entries = read_manifest(listed.key, store.read(listed.key, listed.etag))
                objects.record_manifest(session, batch_id, listed.key, listed.etag, entries)
        count = objects.record_listing(
            session, store.bucket, batch_id, map(_labelled, _images(store.list(LABELLED)))
        )
        objects.drop_gone(session, batch_id)
        champion = deployments.champion(session)
        if champion and count.gone:
            now = classes.today(session)  # a version keeps the names that its classes had
            served = versions.get(session, champion.version_id).class_names
            lost = {now.get(name, name) for name in retired_classes}
            kept = {now.get(name, name) for name in served} - lost
            objects.refuse_vanished_classes(session, kept)
        empty = batches.drop_empty_batch(session, batch_id)
    return Intake(None if empty else batch_id, count.listed, count.new, count.gone)


def _images(listed: Iterator[Listed]) -> Iterator[Listed]:
    """Leave out the empty objects `<folder>/` that consoles make: a folder is no image."""
    return (one for one in listed if one.size or not one.key.endswith("/"))


def _labelled(listed: Listed) -> ListedObject:
    problem = bad_key(listed.key)
    label, sub_label = (None, "") if problem else label_of(listed.key)
    key = listed.key
    if problem:
        # A key that Postgres cannot hold, or a terminal would obey, is kept in its escaped form,
        # and one that no index can hold by its beginning and its digest.
        key = key.encode("unicode_escape").decode("ascii")
        if len(key) > LONGEST_FIELD:
            key = f"{key[:LONGEST_FIELD]}… {hashlib.sha256(key.encode()).hexdigest()}"
    return ListedObject(key, listed.etag, listed.size, listed.modified, label, sub_label, problem)


def _fetch(run_id: int, batch_id: int, plan: Plan) -> int:
    """Read and measure every waiting object in parallel; pixels go straight into the cache."""
    with database.connect().transaction() as session:
        newcomers = objects.waiting(session, batch_id)
    if not newcomers:
        return 0
    name = f"batch-{batch_id}-{newcomers[0].object_id}"
    # The night will need the older batches as much: none is dropped for the new one.
    older = cache().files(plan.geometry)

    measured: list[tuple[int, str | None, dict[str, Any]]] = []
    with (
        shelf(name, plan.geometry, len(newcomers), older) as kept,
        fetching(len(newcomers)) as fetch,
        progress("fetch and decode", len(newcomers)) as advance,
    ):
        places = [(one.key, one.etag) for one in newcomers]
        found = fetch(places, functools.partial(examine, geometry=plan.geometry))
        for row, (newcomer, made) in enumerate(zip(newcomers, found, strict=True)):
            if isinstance(made, StorageError):
                # Gone or changed. Any other fault of the store (keys that expired, say) is no
                # fault of the image: it ends the night, and the next one goes on with this batch.
                measured.append((newcomer.object_id, None, unreadable(str(made))))
            else:
                facts, pixels = made
                if pixels is not None:
                    kept.put(row, facts.sha256, pixels)
                measured.append((newcomer.object_id, facts.sha256, vars(facts)))
            advance(row + 1)
    with database.connect().transaction() as session:
        runs.fence(session, run_id)
        objects.store_facts(session, measured)
    return len(measured)


def unreadable(problem: str) -> dict[str, Any]:
    """Facts of an object whose bytes could not be had."""
    return {"readable": False, "problem": problem}


# --- manifests ------------------------------------------------------------------------------


def read_manifest(key: str, body: bytes) -> list[ManifestEntry]:
    """The rows of a CSV or JSONL manifest; a bad row says so itself, a bad file raises.

    Columns: key and label are needed; sub_label, origin, group, labelled_by and box
    (`x y width height` as shares of the picture, 0..1) may be given.
    """
    try:
        rows = read_rows(key, body, MANIFEST_COLUMNS)
    except BadRows as error:
        raise BadManifest(str(error)) from None
    entries = [_entry(row, number) for number, row in rows]
    unique: dict[ManifestEntry, ManifestEntry] = {}
    for entry in entries:
        # What is said twice is said once; each bad row is answered.
        unique.setdefault(entry if entry.problem else replace(entry, row=0), entry)
    return _contradictions_marked(list(unique.values()))


def _entry(row: dict[str, Any], number: int) -> ManifestEntry:
    problem = None
    clean: dict[str, str] = {}
    for name in TEXTS:
        value = row.get(name)
        word = "" if value is None else str(value)
        if problem is None:
            problem = text_problem(name, word)
        if problem is None and isinstance(value, dict | list | bool) and name != "box":
            problem = f"{name} is {word[:40]}, which is no text"
        if problem is None and name == "key" and (reason := bad_key(word)):
            problem = f"key: {reason}"
        clean[name] = presentable(word)
    box = None
    if clean["box"] and problem is None:
        box = _box(clean["box"])
        if box is None:
            problem = f"box {clean['box']!r} is not `x y width height` in shares from 0 to 1"
    return ManifestEntry(
        row=number,
        key=clean["key"],
        label=normalised(clean["label"]) or None,
        sub_label=normalised(clean["sub_label"]),
        origin=clean["origin"].strip() or "real",
        group_name=clean["group"].strip() or None,
        labelled_by=clean["labelled_by"].strip() or None,
        box=box,
        problem=problem,
    )


def _box(word: str) -> tuple[float, float, float, float] | None:
    try:
        values = [float(part) for part in word.strip("[]() ").replace(",", " ").split()]
    except ValueError:
        return None
    if len(values) != 4 or not all(0 <= value <= 1 for value in values):
        return None
    return values[0], values[1], values[2], values[3]


def _contradictions_marked(entries: list[ManifestEntry]) -> list[ManifestEntry]:
    """Refuse all rows of one file that describe one key in different ways: none can be trusted."""
    said: dict[str, list[ManifestEntry]] = {}
    for entry in entries:
        said.setdefault(entry.key, []).append(entry)
    return [
        entry
        if entry.problem or len(said[entry.key]) == 1
        else replace(entry, problem=_contradiction(said[entry.key]))
        for entry in entries
    ]


def _contradiction(entries: list[ManifestEntry]) -> str:
    labels = sorted({repr(entry.label) for entry in entries})
    rows = " and ".join(str(entry.row) for entry in entries[:5])
    if len(labels) > 1:
        return f"this manifest labels the key {' and '.join(labels[:5])}: keep one of rows {rows}"
    return f"rows {rows} of this manifest describe the key in different ways: keep one"
