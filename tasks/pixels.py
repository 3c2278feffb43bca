"""Pixels of library and benchmark images: from the cache, else from S3, decoded once if it fits."""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infra import settings
from infra.storage import StorageError
from tasks.fetching import Fetch, fetching
from tasks.progress import progress
from vision.images import BadImage, square
from vision.pixels import CacheFull, PixelCache, Pixels, Writer
from vision.plan import Geometry

log = logging.getLogger("regraft")

Picture = npt.NDArray[np.uint8]
Sources = Mapping[str, tuple[str, str | None]]  # sha256 -> (key, ETag or None)
# 1,024 fetched by threads beside an engine went at 290 images/s, by processes at 210, their start
# of some three seconds included
MANY_BESIDE_AN_ENGINE = 3000


class MissingImages(RuntimeError):
    """Images that a step needs can no longer be read from S3."""


def cache() -> PixelCache:
    """The pixel cache of this machine; it drops nothing that this process has used."""
    known = settings.load()
    return PixelCache(known.cache_dir / "pixels", known.cache_gigabytes, _first_use())


@functools.cache
def _first_use() -> float:
    return time.time()


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
    in_use = pixels.files_of(list(sources))
    with shelf(_refill(missing), geometry, len(missing), in_use) as kept:
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


@contextmanager
def streamed(geometry: Geometry, sources: Sources) -> Iterator[Pixels | Streamed]:
    """Pixels of images that are asked for once each, in the order of `sources`.

    What the cache lacks is fetched and decoded while the pictures before are still in use, and put
    into one new cache file as far as there is room.
    """
    held = cache().open(geometry)
    missing = held.missing(list(sources))
    if not missing:
        yield held
        return
    name, in_use = _refill(missing), held.files_of(list(sources))
    with ExitStack() as stack:
        fetch = stack.enter_context(fetching(len(missing), MANY_BESIDE_AN_ENGINE))
        kept = stack.enter_context(shelf(name, geometry, len(missing), in_use))
        pictures = _pictures({one: sources[one] for one in missing}, geometry, fetch)
        stack.callback(pictures.close)
        yield Streamed(held, kept, pictures)
    if kept.rows < len(missing):
        say_once(geometry, len(missing) - kept.rows, len(sources), kept.problem)


class Streamed:
    """Pixels of which the cache holds some; the others arrive in the order they are asked for."""

    def __init__(
        self, held: Pixels, kept: Shelf, pictures: Iterator[tuple[str, Picture | str]]
    ) -> None:
        self._held, self._kept, self._pictures = held, kept, pictures
        self._row = 0

    def gather(self, images: Sequence[str]) -> Picture:
        """Pixels uint8 [N, side, side, 3]; raises `MissingImages` for what cannot be read."""
        absent = self._held.missing(images)
        if not absent:
            return self._held.gather(images)
        side = self._held.geometry.side
        gathered = np.empty((len(images), side, side, 3), np.uint8)
        there = set(images).difference(absent)
        rows = [row for row, sha256 in enumerate(images) if sha256 in there]
        gathered[rows] = self._held.gather([images[row] for row in rows])
        lost = []
        for row, sha256 in enumerate(images):
            if sha256 in there:
                continue
            arrived, found = next(self._pictures)
            if arrived != sha256:
                raise ValueError(f"{sha256} is asked for where {arrived} was announced")
            if isinstance(found, str):
                lost.append(found)
                continue
            gathered[row] = found
            self._kept.put(self._row, sha256, found)
            self._row += 1
        _refuse_lost(lost, len(images))
        return gathered


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
        rows = {sha256: row for row, sha256 in enumerate(images) if sha256 in absent}
        lost = []
        with fetching(len(rows)) as fetch:
            wanted = {sha256: self._sources[sha256] for sha256 in rows}
            for sha256, found in _pictures(wanted, self.geometry, fetch):
                if isinstance(found, str):
                    lost.append(found)
                else:
                    gathered[rows[sha256]] = found
        _refuse_lost(lost, len(images))
        for row, sha256 in enumerate(images):  # one that is asked for twice is fetched once
            if sha256 in absent and row != rows[sha256]:
                gathered[row] = gathered[rows[sha256]]
        return gathered


def _refill(missing: Sequence[str]) -> str:
    return f"refill-{hashlib.sha256(''.join(sorted(missing)).encode()).hexdigest()[:16]}"


def _decode_into(kept: Shelf, geometry: Geometry, sources: Sources) -> list[str]:
    """Fill a shelf; answers what is wrong with each image that cannot be had."""
    lost = []
    with (
        fetching(len(sources)) as fetch,
        progress("decode into the pixel cache", len(sources)) as advance,
    ):
        for row, (sha256, found) in enumerate(_pictures(sources, geometry, fetch)):
            if isinstance(found, str):
                lost.append(found)
            else:
                kept.put(row, sha256, found)
            if kept.rows == 0:  # the disk has become full
                break
            advance(row + 1)
    return lost


def _pictures(
    sources: Sources, geometry: Geometry, fetch: Fetch
) -> Generator[tuple[str, Picture | str]]:
    """Each image's digest and square, or what is wrong with it, in their order."""
    work = functools.partial(digest_and_square, geometry=geometry)
    for (sha256, (key, _)), found in zip(
        sources.items(), fetch(list(sources.values()), work), strict=True
    ):
        if isinstance(found, StorageError):
            yield sha256, str(found)
        elif found[1] is None or found[0] != sha256:
            yield sha256, f"{key!r} is no longer the image it was"
        else:
            yield sha256, found[1]


def digest_and_square(body: bytes, geometry: Geometry) -> tuple[str, Picture | None]:
    """Sha256 of an image's bytes and its square; None where it cannot be decoded."""
    try:
        return hashlib.sha256(body).hexdigest(), square(body, geometry)
    except BadImage:  # it was readable once; the digest tells
        return "", None


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
