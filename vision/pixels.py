"""The pixel cache: decoded squares, so that a picture is decoded once and not once per epoch.

One file per intake batch and geometry, never changed once it has its name:
`<folder>/<geometry>/<batch>.npy`, two NumPy arrays one after the other: the digests [count] (S64,
empty where a row was never filled), then the pixels [count, side, side, 3]. The digests stand
together in front because reading them must not drag every pixel from the disk.

Where space is short whole files are dropped, the longest unused first, but none that this process
has used or is about to use: a cache that is too small then holds the same pictures every night, and
the others are decoded, instead of each file making room for the next in turn.
"""

import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vision.plan import Geometry

log = logging.getLogger(__name__)

DIGEST = np.dtype("S64")
# A writer locks its file right after creating it; younger ones are left alone in between.
PART_SECONDS = 60
# Of the free disk, what the cache leaves to the others that write there, Postgres and S3 perhaps.
LEFT_FREE = 0.1


_File = tuple[float, int, Path]  # last used, bytes, path


class NotCached(KeyError):
    """Pictures were asked for whose pixels no open file holds."""

    def __str__(self) -> str:
        """Return the sentence itself; KeyError would quote it."""
        return str(self.args[0])


class CacheFull(OSError):
    """A file does not fit: neither within the limit nor, perhaps, on the disk. Decode instead."""


class Pixels:
    """The pixels of many pictures, from several files, by their digest.

    Read-only, for any number of threads. Files that are dropped meanwhile stay readable here.
    Not to be pickled: open the cache in each process.
    """

    def __init__(self, geometry: Geometry, files: Sequence[Path]) -> None:
        self.geometry = geometry
        self._pixels: list[npt.NDArray[np.uint8]] = []
        self._files: list[Path] = []
        self._used: set[int] = set()
        digests, places = [np.empty(0, DIGEST)], [np.empty((0, 2), np.int64)]
        for path in files:
            try:
                held, pixels = _map(path, geometry.side)
            except FileNotFoundError:
                continue  # dropped since it was listed
            except (ValueError, OSError) as error:
                log.warning("%s is left out, its pictures must be decoded: %s", path, error)
                continue
            rows = np.flatnonzero(held != b"")
            digests.append(held[rows])
            places.append(np.stack([np.full_like(rows, len(self._pixels)), rows], axis=1))
            self._pixels.append(pixels)
            self._files.append(path)
        unsorted = np.concatenate(digests)
        order = np.argsort(unsorted, kind="stable")
        self._digests = unsorted[order]
        self._places = np.concatenate(places)[order]

    def has(self, sha256: str) -> bool:
        """Whether the pixels of this picture are here."""
        return not self.missing([sha256])

    def missing(self, images: Sequence[str]) -> list[str]:
        """Those of the pictures (hex digests) whose pixels are not here, in their order."""
        _, found = self._find(images)
        return [images[index] for index in np.flatnonzero(~found).tolist()]

    def files_of(self, images: Sequence[str]) -> list[Path]:
        """The files that hold any of these pictures (hex digests)."""
        positions, found = self._find(images)
        numbers = np.unique(self._places[positions[found], 0]).tolist()
        return [self._files[number] for number in numbers]

    def gather(self, images: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Pixels uint8 [N, side, side, 3] of these pictures (hex digests), in their order.

        Read file by file and from front to back. Raises NotCached when any is missing.
        """
        positions, found = self._find(images)
        if not found.all():
            lacking = np.flatnonzero(~found).tolist()
            raise NotCached(
                f"{len(lacking)} of {len(images)} pictures are not in the pixel cache, "
                f"the first is {images[lacking[0]]}: decode them"
            )
        side = self.geometry.side
        gathered = np.empty((len(images), side, side, 3), np.uint8)
        places = self._places[positions]
        order = np.lexsort((places[:, 1], places[:, 0]))
        for number in np.unique(places[:, 0]).tolist():
            self._mark(number)
        # one by one each is copied once; NumPy would first put those of a file beside each other
        for row, (number, place) in zip(order.tolist(), places[order].tolist(), strict=True):
            gathered[row] = self._pixels[number][place]
        return gathered

    def _mark(self, number: int) -> None:
        """Have the file count as used now, once: those unused for longest are dropped first."""
        if number in self._used:
            return
        self._used.add(number)
        # dropped meanwhile, or of a cache that may only be read: its pictures are here anyway
        with suppress(OSError):
            os.utime(self._files[number])

    def _find(self, images: Sequence[str]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Position of each picture among the sorted digests, and whether it is there at all."""
        asked = np.array([image.encode() for image in images], DIGEST)
        positions = np.searchsorted(self._digests, asked)
        found = positions < len(self._digests)
        found[found] = self._digests[positions[found]] == asked[found]
        return positions, found


class Writer:
    """Fills one file of the cache; `put` may be called from many threads."""

    def __init__(self, descriptor: int, side: int, count: int) -> None:
        self._descriptor, self._side = descriptor, side
        self._digests = np.zeros(count, DIGEST)
        self._head = _header(DIGEST, (count,))
        middle = _header(np.dtype(np.uint8), (count, side, side, 3))
        self._start = len(self._head) + self._digests.nbytes + len(middle)
        os.ftruncate(descriptor, self._start + count * side * side * 3)
        _write(descriptor, middle, self._start - len(middle))

    def put(self, row: int, sha256: str, pixels: npt.NDArray[np.uint8]) -> None:
        """Store one picture: sha256 is its hex digest, pixels uint8 [side, side, 3].

        Raises CacheFull on a full disk.
        """
        shape = (self._side, self._side, 3)
        if pixels.shape != shape or pixels.dtype != np.uint8:
            raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}: must be uint8 {shape}")
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"{sha256!r} is no sha256 in 64 lower-case hex digits")
        if not 0 <= row < len(self._digests):
            raise IndexError(f"row {row} of a file of {len(self._digests)}")
        body = np.ascontiguousarray(pixels).data.cast("B")
        # Written, not mapped: on a full disk a write raises, a mapped page kills the process.
        with _no_space():
            _write(self._descriptor, body, self._start + row * len(body))
        self._digests[row] = sha256.encode()

    def abandon(self) -> None:
        """Forget all that was put, so that no file appears and its space is given back."""
        self._digests[:] = b""

    @property
    def filled(self) -> int:
        """How many rows have a picture."""
        return int((self._digests != b"").sum())

    def finish(self) -> None:
        """Write the digests and wait until all is on the disk."""
        _write(self._descriptor, self._head + self._digests.tobytes(), 0)
        os.fsync(self._descriptor)


class PixelCache:
    """A folder of pixel files, at most so many gigabytes (1e9 bytes) of them.

    Files that were used at `since` (seconds, as in `time.time()`) or later are never dropped.
    """

    def __init__(self, folder: Path, gigabytes: float, since: float = float("inf")) -> None:
        if not gigabytes > 0:
            raise ValueError(f"gigabytes={gigabytes}: must be above 0")
        self.folder = Path(folder)
        self.limit = int(gigabytes * 1e9)
        self.since = since

    def open(self, geometry: Geometry, names: Collection[str] | None = None) -> Pixels:
        """All files of a geometry, or those of these batches that there are."""
        folder = self.folder / geometry.name
        if names is None:
            return Pixels(geometry, self.files(geometry))
        return Pixels(geometry, [folder / f"{_safe(name)}.npy" for name in names])

    def files(self, geometry: Geometry) -> list[Path]:
        """The files there are of a geometry."""
        return sorted((self.folder / geometry.name).glob("*.npy"))

    def room(self, geometry: Geometry, keep: Collection[Path] = ()) -> int:
        """How many pictures a new file can hold when all that may go is dropped for it."""
        files, droppable = self._files(keep)
        may_go = sum(size for _, size, _ in droppable)
        allowed = self.limit - sum(size for _, size, _ in files) + may_go
        self.folder.mkdir(parents=True, exist_ok=True)
        on_disk = shutil.disk_usage(self.folder).free * (1 - LEFT_FREE) + may_go
        return max(0, int(min(allowed, on_disk)) // _bytes_each(geometry))

    @contextmanager
    def writer(
        self, name: str, geometry: Geometry, count: int, keep: Collection[Path] = ()
    ) -> Iterator[Writer]:
        """Fill the file of batch `name` with up to `count` pictures.

        It appears, whole and replacing an older one, when the block ends well, and not at all when
        it fails, is killed or puts nothing. Files unused for longest make room for it, except those
        in `keep`. Raises CacheFull, one line, when they do not make enough or the disk is full.
        """
        folder = self.folder / geometry.name
        final = folder / f"{_safe(name)}.npy"
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(self.folder)
        part = folder / f"{name}.{secrets.token_hex(4)}.part"
        with ExitStack() as stack:
            # One at a time, so that two writers do not both count on the same room.
            with _alone(self.folder):
                self._make_room(count * _bytes_each(geometry), keep, final)
                descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
                stack.callback(os.close, descriptor)
                stack.callback(part.unlink, missing_ok=True)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                with _no_space():
                    writer = Writer(descriptor, geometry.side, count)
            yield writer
            if writer.filled:
                with _no_space():
                    writer.finish()
                os.replace(part, final)
                _sync_folder(folder)

    def used_bytes(self) -> int:
        """Bytes of all files of all geometries."""
        return sum(size for _, size, path in self._files()[0] if path.suffix == ".npy")

    def _files(
        self, keep: Collection[Path] = (), replaced: Path | None = None
    ) -> tuple[list[_File], list[_File]]:
        """All files, those being written too, and of them the droppable, longest unused first."""
        files = []
        for path in self.folder.glob("*/*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # another process dropped it
            if path.suffix in {".npy", ".part"} and path != replaced:
                files.append((status.st_mtime, status.st_size, path))
        # A file system's clock ticks more slowly than the processor's, hence the second.
        droppable = [
            (used, size, path)
            for used, size, path in files
            if path.suffix == ".npy" and path not in keep and used < self.since - 1
        ]
        return files, sorted(droppable)

    def _make_room(self, needed: int, keep: Collection[Path], replaced: Path) -> None:
        files, droppable = self._files(keep, replaced)
        excess = sum(size for _, size, _ in files) + needed - self.limit
        if excess > sum(size for _, size, _ in droppable):
            raise CacheFull(
                f"{replaced} needs {needed / 1e9:.3g} GB and the files in use leave less: raise "
                f"REGRAFT_CACHE_GIGABYTES ({self.limit / 1e9:g})"
            )
        for _, size, path in droppable:
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size
            log.warning(
                "pixel cache over %.3g GB: dropped %s (%.3g GB), its pictures will be decoded anew",
                self.limit / 1e9,
                path,
                size / 1e9,
            )


def _bytes_each(geometry: Geometry) -> int:
    return geometry.side**2 * 3 + DIGEST.itemsize


@contextmanager
def _no_space() -> Iterator[None]:
    """Tell a full disk from all that else may be wrong with one."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise CacheFull(
                f"no space left on the disk of the pixel cache ({error.strerror}): free some, or "
                "lower REGRAFT_CACHE_GIGABYTES"
            ) from error
        raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes and threads out that would make room in this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _map(path: Path, side: int) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.uint8]]:
    """The digests, read, and the pixels, mapped; ValueError for a file that is not whole."""
    with path.open("rb") as file:
        digests = np.lib.format.read_array(file, allow_pickle=False)
        if digests.dtype != DIGEST or digests.ndim != 1:
            raise ValueError(f"digests are {digests.dtype} {digests.shape}")
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != np.uint8 or shape != (len(digests), side, side, 3):
            raise ValueError(f"pixels are {dtype} {shape} for {len(digests)} pictures of {side}")
        # Raises ValueError when the file is shorter than its header says.
        return digests, np.memmap(file, np.uint8, "r", file.tell(), shape)


def _header(dtype: npt.DTypeLike, shape: tuple[int, ...]) -> bytes:
    """What stands before an array in a .npy file."""
    buffer = BytesIO()
    description = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": description, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def _write(descriptor: int, body: bytes | memoryview, offset: int) -> None:
    rest = memoryview(body)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def _safe(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", name):
        raise ValueError(f"{name!r} is no file name: use letters, digits, '.', '_' and '-'")
    return name


def _sweep(folder: Path) -> None:
    """Remove what killed writers left: files that nobody holds the lock of any more."""
    for path in folder.glob("*/*.part"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - path.stat().st_mtime > PART_SECONDS:
                    path.unlink()
                    log.warning("removed %s, left by a writer that was killed", path)
        except (BlockingIOError, FileNotFoundError):
            continue  # its writer lives, or has just finished


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
