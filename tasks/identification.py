"""Identification: one version answers a pool while that is still being listed, read and decoded.

Several processes may do so together: each claims shards, and each picture has one answer.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from psycopg2.errors import DeadlockDetected, UniqueViolation
from sqlalchemy.exc import DBAPIError

from infra import database, settings, storage
from infra.database import Unreachable
from infra.storage import Changed, Gone, Listed, Refused, bad_key
from records import evaluations, identifications, labels, pools, versions
from records.identifications import SHARD, Claim, IdentificationRow, LostClaim
from records.labels import TRASH
from records.objects import LABELLED
from records.pools import ListedObject, ReadObject
from tasks import checkpoints
from tasks.benchmark import BENCHMARK
from tasks.evaluation import choose_engine
from tasks.fetching import Fetch, fetching
from tasks.loading import load_files
from tasks.progress import progress
from tasks.step import reading
from vision.answers import Identified
from vision.identification import identify, nothing, seeing
from vision.images import Facts, Pixels, examine, too_large
from vision.plan import Geometry
from vision.prediction import ahead
from vision.scores import PRECISION

log = logging.getLogger("regraft")

POOLS = "pools/"
ADDRESS = "s3://"
PAGE = 4 * SHARD
# A process that was not heard of for so long has died: its shards are taken over.
LEASE_SECONDS = 20.0
BEATS_A_LEASE = 5
# Nobody waits for the end of a longer listing to know which engine pays: who has listed so many and
# is not at the end is taken to have a tenth.
MANY = 10_000
# Shards that wait to be written down; the network waits, and not the memory.
WAITING = 2
ATTEMPTS = 5
PAUSE_SECONDS = 0.1
# What two processes that write of one pool may run into, and neither when it tries again.
IN_EACH_OTHERS_WAY = (UniqueViolation, DeadlockDetected)


class BadPool(ValueError):
    """A pool that cannot be one; the message names it and the mend."""


class CannotIdentify(ValueError):
    """A version that cannot answer, or not for these classes; the message says why."""


@dataclass(frozen=True)
class Shard:
    """What was read of a shard: all its objects, and the pictures that wait for an answer."""

    claim: Claim
    read: list[ReadObject]
    images: list[str]
    pixels: npt.NDArray[np.uint8]


# --- the pool -------------------------------------------------------------------------------


def locate(word: str) -> str:
    """The prefix in our bucket that holds a pool: of `s3://PREFIX`, or of a folder, loaded there.

    A folder goes to `pools/<its name>/`, once, and what people removed from there stays removed.
    Raises `BadPool` when other images lie there and for what belongs to the library or the
    benchmark, `BadFolder` for a folder without files.
    """
    if word.startswith(ADDRESS):
        return checked(word.removeprefix(ADDRESS))
    folder = Path(word).resolve()
    if not folder.is_dir():
        raise BadPool(f"{word} is not a folder: name a folder of images, or s3://PREFIX")
    prefix = checked(f"{POOLS}{folder.name}")
    there = {one.key: one.size for one in _images(storage.connect().list(prefix))}
    foreign = sorted(key for key in there if not (folder / key.removeprefix(prefix)).is_file())
    if foreign:
        raise BadPool(
            f"s3://{prefix} holds {len(foreign)} objects that are not in {word}, the first is "
            f"{foreign[0]}: rename the folder, or name s3://{prefix} to use what lies there"
        )
    removed = _removed(folder, prefix)
    if removed:
        log.warning("%d files stay in the trash: `regraft restore` brings them back", len(removed))
    for line in load_files(folder, prefix, there | removed)[:10]:
        log.warning("left where it is: %s", line)
    return prefix


def _removed(folder: Path, prefix: str) -> dict[str, int]:
    """Keys of files that hold what people removed from the pool, with their sizes."""
    with database.connect().transaction() as session:
        trash = labels.removed(session, prefix)
    found = {}
    for key, sha256 in trash:
        path = folder / key.removeprefix(prefix)
        if path.is_file():
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                    found[key] = path.stat().st_size
    return found


def checked(prefix: str) -> str:
    """A pool's prefix, with one slash at its end; raises `BadPool`."""
    prefix = prefix.removesuffix("/")
    if problem := bad_key(prefix):
        raise BadPool(f"s3://{prefix}: {problem}")
    whole = f"{prefix}/"
    for reserved, whose in (
        (LABELLED, "the library"), (BENCHMARK, "the benchmark"), (TRASH, "the trash"),
    ):  # fmt: skip
        if whole.startswith(reserved):
            raise BadPool(f"s3://{prefix} belongs to {whose}: a pool lies under another prefix")
    return whole


def filled(prefix: str) -> None:
    """Raises `BadPool` for a pool without objects."""
    if next(_images(storage.connect().list(prefix)), None) is None:
        raise BadPool(f"s3://{prefix} holds no images: check the name, or upload some there")


def begin(
    prefix: str,
    version_id: int,
    targets: Sequence[str] = (),
    precision: float = PRECISION,
    flow_run_id: str | None = None,
) -> int:
    """The identification of a pool by a version that is under way, or a new one.

    targets: classes whose confidence is kept even where others are more likely. precision: whose
    threshold says whether an answer is shown, if the version has one for it. Raises `BadPool` for
    a pool without objects, `CannotIdentify`, and `Swept`.
    """
    filled(prefix)
    with database.connect().transaction() as session:
        version = versions.unswept(session, version_id)
        if version.state != "trained":
            mend = "wait until it is trained" if version.state == "training" else "name another one"
            raise CannotIdentify(f"version {version_id} is {version.state}: {mend}")
        if unknown := sorted(set(targets) - set(version.class_names)):
            raise CannotIdentify(f"version {version_id} does not know the class {unknown[0]!r}: "
                                 f"`regraft show {version_id}` lists those that it knows")
        fitted = [
            one.confidence for one in evaluations.thresholds(session, version_id)
            if one.subject == "validation" and one.wished == precision
        ]  # fmt: skip
        identification_id = identifications.begin(
            session, pools.enter(session, prefix), version_id, sorted(set(targets)),
            precision if fitted else None, next(iter(fitted), None), flow_run_id,
        )  # fmt: skip
        row = identifications.get(session, identification_id)
    if row.targets != sorted(set(targets)):
        log.warning("identification %d is under way: it keeps the targets it began with (%s)",
                    row.id, ", ".join(row.targets) or "none")  # fmt: skip
    return identification_id


# --- answering ------------------------------------------------------------------------------


@reading("identify")
def answer(identification_id: int, flow_run_id: str | None = None) -> None:
    """Answer what is left of an identification, beside whoever else does, until all is done.

    Killed, it leaves what it has written down, and at most LEASE_SECONDS later another one takes
    over what it had claimed.
    """
    worker = identifications.signature(flow_run_id)
    row = _row(identification_id)
    with (
        progress(f"identify {row.prefix}", None) as advance,
        _listing(row) as listing,
        _claiming(worker),
    ):
        def show() -> None:
            """Tell how far all processes together have come since this one began."""
            now = _row(row.id)
            advance(now.done - row.done, None if now.total is None else now.total - row.done)

        expected = _expected(row.id, listing)
        if expected or not _complete(row.id):
            _answer(row, worker, listing, expected, show)
        show()


def _answer(
    row: IdentificationRow,
    worker: str,
    listing: Future[None],
    expected: int,
    show: Callable[[], None],
) -> None:
    loaded, device = checkpoints.load(row.version_id), settings.load().device
    engine = choose_engine(loaded, expected)
    forward = seeing(engine, loaded.network, loaded.plan, device)
    log.info("version %d answers with %s", row.version_id, engine.name)
    with (
        fetching(expected, passing=(Gone, Changed, Refused)) as fetch,
        ThreadPoolExecutor(1, "regraft-settle") as writer,
    ):
        while True:
            claims = _claims(row.id, worker, listing)
            settling: deque[Future[None]] = deque()
            for shard in ahead(_shards(row, claims, fetch, loaded.plan.geometry), depth=1):
                answers = nothing(loaded.class_names, row.targets)
                if shard.images:
                    answers = identify(
                        forward, loaded.network, shard.images, shard.pixels, row.targets, device
                    )
                settling.append(writer.submit(_settle, row, worker, engine.name, shard, answers))
                if len(settling) > WAITING:
                    settling.popleft().result()
                    show()
            for one in settling:
                one.result()
            show()
            if _complete(row.id):
                return
            time.sleep(PAUSE_SECONDS)  # the rest is claimed by others, who may die


def _claims(identification_id: int, worker: str, listing: Future[None]) -> Iterator[Claim]:
    """Shards as they are asked for, until none is free."""
    while True:
        complete = listing.done()
        with database.connect().transaction() as session:
            claim = identifications.claim(session, identification_id, worker, LEASE_SECONDS)
        if claim is not None:
            yield claim
        elif complete:
            listing.result()
            return
        else:
            time.sleep(PAUSE_SECONDS)


def _shards(
    row: IdentificationRow, claims: Iterable[Claim], fetch: Fetch, geometry: Geometry
) -> Iterator[Shard]:
    """Each claimed shard, read and decoded, while the next ones are being read."""
    begun: deque[Claim] = deque()

    def places() -> Iterator[tuple[str, str]]:
        for claim in claims:
            begun.append(claim)
            for key, etag, _ in claim.objects:
                yield key, etag

    found = iter(fetch(places(), functools.partial(examine, geometry=geometry)))
    for first in found:
        claim = begun.popleft()
        yield _shard(row, claim, [first, *islice(found, len(claim.objects) - 1)])


def _shard(
    row: IdentificationRow,
    claim: Claim,
    made: Sequence[tuple[Facts, Pixels | None] | Gone | Changed | Refused],
) -> Shard:
    _raise_if_all_is_refused(row, made)
    read: list[ReadObject] = []
    decoded: dict[str, Pixels] = {}
    for (key, etag, size), one in zip(claim.objects, made, strict=True):
        if isinstance(one, Gone | Changed | Refused):
            read.append(ReadObject(key, etag, size, None, str(one)))
            continue
        facts, pixels = one
        read.append(
            ReadObject(
                key, etag, size, facts.sha256, facts.problem,
                facts.width, facts.height, facts.dhash, facts.dhash_mirror,
            )
        )  # fmt: skip
        if pixels is not None:
            decoded[facts.sha256] = pixels
    with database.connect().transaction() as session:
        known = identifications.answered(session, row.version_id, decoded)
    images = [sha256 for sha256 in decoded if sha256 not in known]
    pixels_of = [decoded[sha256] for sha256 in images]
    return Shard(claim, read, images, np.stack(pixels_of) if pixels_of else np.zeros(0, np.uint8))


def _raise_if_all_is_refused(row: IdentificationRow, made: Sequence[object]) -> None:
    """Raise what no object is to blame for: the keys are wrong, and nothing was read with them."""
    refused = next((one for one in made if isinstance(one, Refused)), None)
    if refused is None or any(isinstance(one, tuple) for one in made):
        return
    now = _row(row.id)
    if not now.answered + now.repeated + now.unreadable:
        raise refused


def _settle(
    row: IdentificationRow, worker: str, engine: str, shard: Shard, answers: Identified
) -> None:
    """Write a shard down; again where another process wrote of the same objects just now."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with database.connect().transaction() as session:
                identifications.settle(
                    session, row.id, shard.claim, worker, engine, shard.read, answers
                )
            return
        except LostClaim as lost:
            log.warning("%s", lost)
            return
        except DBAPIError as error:
            if attempt == ATTEMPTS or not isinstance(error.orig, IN_EACH_OTHERS_WAY):
                raise


# --- beside the answering -------------------------------------------------------------------


@contextmanager
def _listing(row: IdentificationRow) -> Iterator[Future[None]]:
    """List the pool in a thread of its own; what goes wrong there is the future's."""
    left = threading.Event()
    with ThreadPoolExecutor(1, "regraft-list") as thread:
        try:
            yield thread.submit(_list, row, left)
        finally:
            left.set()


def _list(row: IdentificationRow, left: threading.Event) -> None:
    """Move the listing on until it is complete, in turns with the other processes."""
    pages: Iterator[list[ListedObject]] = iter(())
    reached: str | None = ""
    deadlocks = 0
    while not left.is_set():
        try:
            with database.connect().transaction() as session:
                held = identifications.hold_listing(session, row.id)
                if held is not None:
                    if held.complete:
                        return
                    if held.listed_to != reached:
                        pages = _pages(storage.connect().list(row.prefix, held.listed_to))
                    page = next(pages)
                    last = len(page) < PAGE
                    identifications.add_page(session, row.id, held.listed_to, page, last)
                    reached = page[-1].key if page else held.listed_to
                    continue
        except DBAPIError as error:
            deadlocks += 1
            if deadlocks == ATTEMPTS or not isinstance(error.orig, IN_EACH_OTHERS_WAY):
                raise
            reached = ""  # the page was taken and not written down: it is listed again
        left.wait(PAUSE_SECONDS)


def _pages(listed: Iterator[Listed]) -> Iterator[list[ListedObject]]:
    """So many objects at a time; the last page is shorter, and perhaps empty."""
    images = _images(listed)
    while True:
        page = [
            # what is too large is never fetched: a film would not fit into memory
            ListedObject(one.key, one.etag, one.size, bad_key(one.key) or too_large(one.size))
            for one in islice(images, PAGE)
        ]
        yield page
        if len(page) < PAGE:
            return


def _images(listed: Iterator[Listed]) -> Iterator[Listed]:
    """Leave out the empty objects `<folder>/` that consoles make: a folder is no image.

    And those whose key Postgres cannot hold.
    """
    for one in listed:
        if "\0" in one.key:
            log.warning("left out: the key %r holds a NUL: rename the object", one.key)
        elif one.size or not one.key.endswith("/"):
            yield one


@contextmanager
def _claiming(worker: str) -> Iterator[None]:
    """Keep alive what the block claims, and give back what it leaves behind."""
    left = threading.Event()

    def beat() -> None:
        while not left.wait(LEASE_SECONDS / BEATS_A_LEASE):
            try:
                with database.connect().transaction() as session:
                    identifications.renew(session, worker, LEASE_SECONDS)
            except (DBAPIError, Unreachable) as error:
                # What writes will say so, too; a claim that lapses meanwhile is another's.
                log.warning("the claims of this process could not be renewed: %s", error)

    thread = threading.Thread(target=beat, name="regraft-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
        with database.connect().transaction() as session:
            identifications.release(session, worker)


def _expected(identification_id: int, listing: Future[None]) -> int:
    """How many objects there are to answer; a guess once `MANY` are listed."""
    while True:
        complete = listing.done()
        row = _row(identification_id)
        left = row.listed - row.done
        if complete:
            listing.result()
            return left
        if left >= MANY:
            return 10 * left
        time.sleep(PAUSE_SECONDS)


def _row(identification_id: int) -> IdentificationRow:
    with database.connect().transaction() as session:
        return identifications.get(session, identification_id)


def _complete(identification_id: int) -> bool:
    with database.connect().transaction() as session:
        return identifications.complete(session, identification_id)
