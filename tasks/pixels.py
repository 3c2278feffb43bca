"""Pixels of library and benchmark images: from the cache, else from S3, decoded once if it fits."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infra import settings, storage
from infra.storage import StorageError
from tasks.progress import progress
from vision.images import BadImage, square
from vision.pixels import CacheFull, PixelCache, Pixels, Writer
from vision.plan import Geometry

log = logging.getLogger("regraft")

Picture = npt.NDArray[np.uint8]
Sources = Mapping[str, tuple[str, str | None]]  # sha256 -> (key, ETag or None)


class MissingImages(RuntimeError):
    """Images that a step needs can no longer be read from S3."""


class _Lost(Exception):
    """One image that cannot be had any more; the message names its key."""


def cache() -> PixelCache:
    """The pixel cache of this machine; it drops nothing that this process has used."""
    known = settings.load()
    return PixelCache(known.cache_dir / "pixels", known.cache_gigabytes, _first_use())


@functools.cache
def _first_use() -> float:
    return time.time()


@functools.cache
def decoding() -> threading.Semaphore:
    """To be held while decoding: as many at once as there are cores.

    There are more threads than that because most of them wait for S3; all decoding at once would
    only take the interpreter from each other.
    """
    return threading.Semaphore(len(os.sched_getaffinity(0)))


def opened(geometry: Geometry, sources: Sources) -> Pixels | PartlyCached:
    """Pixels of every image named, by sha256 -> (key, ETag or None).

    What the cache lacks (another geometry, a dropped file, another machine) is read from S3 and
    decoded into a new cache file, as far as there is room; the rest is decoded whenever it is asked
    for, which is said once. Raises `MissingImages` when bytes are gone or have changed, or, of what
    is decoded later, `gather` does.
    """
    held = cache()
    pixels = held.open(geometry)
    missing = pixels.missing(list(sources))
    if not missing:
        return pixels
    name = f"refill-{hashlib.sha256(''.join(sorted(missing)).encode()).hexdigest()[:16]}"
    in_use = pixels.files_of(list(sources))
    with shelf(name, geometry, len(missing), in_use) as kept:
        lost = _decode_into(kept, geometry, {one: sources[one] for one in missing[: kept.rows]})
    _refuse_lost(lost, len(sources))
    pixels = held.open(geometry)
    left = pixels.missing(missing)
    if not left:
        return pixels
    say_once(geometry, len(left), len(sources), kept.problem)
    return PartlyCached(pixels, {sha256: sources[sha256] for sha256 in left})


class Shelf:
    """A new file of the cache, as far as there is room; what does not fit is left out.

    rows: how many pictures it holds. problem: why they are fewer than it was made for, if so.
    """

    def __init__(self, rows: int, problem: str | None) -> None:
        self.rows, self.problem = rows, problem
        self.writer: Writer | None = None

    def put(self, row: int, sha256: str, pixels: Picture) -> None:
        """Store one picture if its row is one of `rows`."""
        if self.writer is None or row >= self.rows:
            return
        try:
            self.writer.put(row, sha256, pixels)
        except CacheFull as error:
            self.give_up(error)

    def give_up(self, error: CacheFull) -> None:
        """Store nothing more and give the space back: others write to that disk, too."""
        self.rows, self.problem = 0, str(error)
        if self.writer:
            self.writer.abandon()


@contextmanager
def shelf(
    name: str, geometry: Geometry, count: int, keep: Collection[Path] = ()
) -> Iterator[Shelf]:
    """Have a shelf for up to `count` pictures, for which no file in `keep` is dropped.

    Its file appears when the block ends well; want of room is no error.
    """
    held = cache()
    rows = min(count, held.room(geometry, keep))
    problem = (
        f"the pixel cache has room for {rows} of {count} more: raise REGRAFT_CACHE_GIGABYTES "
        f"({held.limit / 1e9:g}), or free disk space in {held.folder}"
    )
    kept = Shelf(rows, problem if rows < count else None)
    with ExitStack() as stack:
        try:
            if rows:
                kept.writer = stack.enter_context(held.writer(name, geometry, rows, keep))
        except CacheFull as error:
            kept.give_up(error)
        yield kept
        try:
            stack.close()
        except CacheFull as error:
            kept.give_up(error)


class PartlyCached:
    """Pixels of which the cache holds some; the others are read from S3 and decoded when asked for.

    Nothing of them is kept: memory holds one batch.
    """

    def __init__(self, held: Pixels, sources: Sources) -> None:
        self.geometry = held.geometry
        self._held, self._sources = held, sources

    def missing(self, images: Sequence[str]) -> list[str]:
        """Those of the pictures (hex digests) that can be had neither way, in their order."""
        return [sha256 for sha256 in self._held.missing(images) if sha256 not in self._sources]

    def gather(self, images: Sequence[str]) -> Picture:
        """Pixels uint8 [N, side, side, 3] of these pictures (hex digests), in their order.

        Raises `MissingImages` for what can no longer be read.
        """
        absent = set(self._held.missing(images))
        gathered = np.empty((len(images), self.geometry.side, self.geometry.side, 3), np.uint8)
        cached = [row for row, sha256 in enumerate(images) if sha256 not in absent]
        gathered[cached] = self._held.gather([images[row] for row in cached])
        rows = [row for row, sha256 in enumerate(images) if sha256 in absent]

        def decode(row: int) -> str | None:
            sha256 = images[row]
            try:
                gathered[row] = _picture(sha256, *self._sources[sha256], self.geometry)
            except _Lost as lost:
                return str(lost)
            return None

        with ThreadPoolExecutor(settings.load().workers) as pool:
            _refuse_lost([lost for lost in pool.map(decode, rows) if lost], len(images))
        return gathered


def _decode_into(kept: Shelf, geometry: Geometry, sources: Sources) -> list[str]:
    """Fill a shelf; answers what is wrong with each image that cannot be had."""

    def decode(item: tuple[int, str]) -> str | None:
        row, sha256 = item
        if row >= kept.rows:  # the disk has become full
            return None
        try:
            kept.put(row, sha256, _picture(sha256, *sources[sha256], geometry))
        except _Lost as lost:
            return str(lost)
        return None

    if not sources:
        return []
    lost = []
    with (
        ThreadPoolExecutor(settings.load().workers) as pool,
        progress("decode into the pixel cache", len(sources)) as advance,
    ):
        for done, problem in enumerate(pool.map(decode, enumerate(sources)), start=1):
            lost += [problem] if problem else []
            advance(done)
    return lost


def _picture(sha256: str, key: str, etag: str | None, geometry: Geometry) -> Picture:
    """One image from S3; raises `_Lost` when it is not what it was."""
    try:
        body = storage.connect().read(key, etag)
    except StorageError as error:
        if error.temporary:
            raise
        raise _Lost(str(error)) from None
    with decoding():
        if hashlib.sha256(body).hexdigest() == sha256:
            try:
                return square(body, geometry)
            except BadImage:
                pass  # it was readable once; the message is the same
    raise _Lost(f"{key!r} is no longer the image it was")


def _refuse_lost(lost: Sequence[str], wanted: int) -> None:
    if lost:
        raise MissingImages(
            f"{len(lost)} of {wanted} images cannot be read: {'; '.join(lost[:3])}. Restore the "
            "objects, or run the night again so that it leaves them out"
        )


def say_once(geometry: Geometry, left: int, wanted: int, problem: str | None) -> None:
    """Say, once for all steps of this process, that the cache does not hold all pictures."""
    if geometry not in _said():
        _said().add(geometry)
        log.warning(
            "%d of %d images are not kept as pixels, hence decoded whenever they are needed: %s",
            left, wanted, problem,
        )  # fmt: skip


@functools.cache
def _said() -> set[Geometry]:
    return set()
