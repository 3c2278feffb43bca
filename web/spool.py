"""Segments of the transaction log in a folder, until they are in Postgres.

A segment is one file, whole or not there at all, locked while somebody sends it. The system frees
the lock of a process that dies, so several processes share a folder and each sends what another
one left.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ENDING = ".segment"
OURS = re.compile(r"\d{20}-\d+-[0-9a-f]{8}\.segment")  # what else lies there is not touched
ASIDE = ".new"
DAMAGED = ".damaged"
ABANDONED_SECONDS = 600.0
# Each is an open file, of which a process has few; after a long outage there are thousands.
MOST_CLAIMED = 100
# What this process writes and sends it knows; what others leave it looks for so often.
LOOK_SECONDS = 10.0
BLOCK = 4096  # of a disk: what the smallest file takes


class BadSpool(RuntimeError):
    """The folder cannot be used; the message names it and the mend."""


class SpoolFull(OSError):
    """The segments have reached what they may take."""


class Damaged(ValueError):
    """A segment that is not as it was written."""


@dataclass(frozen=True)
class Segment:
    """Rows of the log as COPY's text with the names of their columns, and what goes with them.

    images: key, digest and bytes of pictures that must be in S3 before the rows are written. gaps:
    times (ISO), count and reason of rows that were dropped.
    """

    columns: tuple[str, ...]
    lines: tuple[str, ...]
    images: tuple[tuple[str, str, bytes], ...] = ()
    gaps: tuple[tuple[str, str, int, str], ...] = ()

    def packed(self) -> list[bytes]:
        """The segment as the bytes of its file, in pieces: pictures are not copied."""
        rows = "".join(self.lines).encode()
        header = {
            "columns": self.columns, "gaps": self.gaps, "bytes": len(rows),
            "images": [(key, digest, len(body)) for key, digest, body in self.images],
        }  # fmt: skip
        images = [body for _, _, body in self.images]
        return [json.dumps(header).encode(), b"\n", rows, *images]

    @classmethod
    def unpacked(cls, body: bytes) -> Segment:
        """The segment in the bytes of a file; raises `Damaged`."""
        first, _, rest = body.partition(b"\n")
        try:
            header = json.loads(first)
            at = header["bytes"]
            # Only where rows end: to str.splitlines other characters end lines, too.
            lines = [f"{line}\n" for line in rest[:at].decode().split("\n")[:-1]]
            images = []
            for key, digest, length in header["images"]:
                images.append((key, digest, rest[at : at + length]))
                at += length
            gaps = tuple([tuple(gap) for gap in header["gaps"]])
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged("it is no segment of the log") from error
        if at != len(rest):
            raise Damaged(f"it has {len(rest)} bytes where {at} were written")
        return cls(tuple(header["columns"]), tuple(lines), tuple(images), gaps)


@dataclass(frozen=True)
class Claimed:
    """A segment that this process is sending; nobody else will before the claim ends."""

    path: Path
    segment: Segment
    spool: Spool

    def done(self) -> None:
        """It is in Postgres, and needed no more."""
        self.path.unlink()
        self.spool.forget(self.path.name)


@dataclass
class Spool:
    """A folder of segments that take so many bytes of the disk at most. Threads may share it.

    size, rows: what the segments take and hold that it knows of. Those of other processes are
    looked for now and then.
    """

    folder: Path
    most_bytes: int
    size: int = field(default=0, init=False)
    rows: int = field(default=0, init=False)
    _sizes: dict[str, int] = field(default_factory=dict, init=False)  # by name, the oldest first
    _looked_at: float = field(default=0.0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.folder / f"{secrets.token_hex(8)}{ASIDE}"
            probe.touch(mode=0o600)
            probe.unlink()
        except OSError as error:
            raise BadSpool(
                f"the log cannot be kept in {self.folder} ({error.strerror}); "
                "set REGRAFT_SPOOL_DIR to a folder that this user may write to"
            ) from None
        self._forget_abandoned()
        self.waiting()

    def _forget_abandoned(self) -> None:
        """Remove what somebody was writing when killed: those rows were never whole on disk."""
        for path in self.folder.glob(f"*{ASIDE}"):
            try:
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue

    def write(self, segment: Segment) -> None:
        """Keep a segment, so that not even a power cut loses it; raises OSError, `SpoolFull`.

        A segment that only tells of gaps always finds room.
        """
        pieces = segment.packed()
        blocks = -(-sum(map(len, pieces)) // BLOCK)
        if segment.lines and self.size + blocks * BLOCK > self.most_bytes:
            raise SpoolFull(f"the spool {self.folder} is full ({self.size / 1e6:.0f} MB)")
        self._write(segment, pieces, time.time_ns())

    def _write(self, segment: Segment, pieces: list[bytes], at: int) -> None:
        # The name tells how many rows are lost if the file is damaged, and sorts by time.
        name = f"{at:020d}-{len(segment.lines)}-{secrets.token_hex(4)}"
        aside = self.folder / f"{name}{ASIDE}"
        try:
            with aside.open("xb") as file:
                file.writelines(pieces)
                file.flush()
                # From here on it outlives this process, from the next line on the machine.
                aside.rename(self.folder / f"{name}{ENDING}")
                os.fsync(file.fileno())
                taken = _taken(os.fstat(file.fileno()))
            self._sync_names()
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        with self._lock:
            self._know(f"{name}{ENDING}", taken)

    def _know(self, name: str, taken: int) -> None:
        """Count a segment; the lock is held."""
        if name not in self._sizes:
            self._sizes[name] = taken
            self.size += taken
            self.rows += _rows_of(name)

    def forget(self, name: str) -> None:
        """Count a segment no more, which was sent."""
        with self._lock:
            taken = self._sizes.pop(name, None)
            if taken is not None:
                self.size -= taken
                self.rows -= _rows_of(name)

    def _sync_names(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def waiting(self) -> list[Path]:
        """The segments that are there, whoever wrote them, the oldest first."""
        with self._lock:  # or what is written meanwhile might be forgotten
            found = {}
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if OURS.fullmatch(entry.name):
                        try:
                            found[entry.name] = _taken(entry.stat())
                        except FileNotFoundError:  # sent meanwhile
                            continue
            self._sizes, self.size, self.rows = {}, 0, 0
            for name in sorted(found):
                self._know(name, found[name])
            self._looked_at = time.monotonic()
        return [self.folder / name for name in self._known()]

    def _known(self) -> list[str]:
        with self._lock:
            return sorted(self._sizes)

    @contextmanager
    def claim(self, most_rows: int, most_bytes: int) -> Iterator[list[Claimed]]:
        """Hold the oldest segments that nobody else is sending: so much of them, or one.

        A damaged one is put aside, and comes as a gap in its place; one that cannot be read, or put
        aside, waits, and holds up no other. Raises OSError where there are only such.
        """
        if not self._sizes or time.monotonic() - self._looked_at > LOOK_SECONDS:
            self.waiting()
        claimed: list[Claimed] = []
        rows = size = 0
        trouble = None
        with ExitStack() as stack:
            for name in self._known():
                if len(claimed) == MOST_CLAIMED:
                    break
                path = self.folder / name
                try:
                    file = stack.enter_context(path.open("rb"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    found = os.fstat(file.fileno())
                    if found.st_nlink == 0:  # sent while we opened it
                        raise FileNotFoundError
                    rows += _rows_of(name)
                    size += found.st_size
                    if claimed and (rows > most_rows or size > most_bytes):
                        break
                    claimed.append(self._read(path, file.read()))
                except BlockingIOError:
                    continue
                except FileNotFoundError:
                    self.forget(name)
                except OSError as error:
                    trouble = error
            if trouble is not None and not claimed:
                raise trouble
            yield claimed

    def _read(self, path: Path, body: bytes) -> Claimed:
        try:
            return Claimed(path, Segment.unpacked(body), self)
        except Damaged as error:
            begun = int(path.name.split("-")[0]) / 1e9
            at = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(begun))
            kept = path.with_suffix(DAMAGED)
            with suppress(FileExistsError):  # it was put aside before, and could not be told
                os.link(path, kept)  # where the disk is full, nothing can be copied
            why = f"a segment of the spool is damaged: {error}; it is kept as {kept}"
            gap = (at, at, max(1, _rows_of(path.name)), why)
            return Claimed(path, Segment((), (), gaps=(gap,)), self)

    def join(self, claimed: Sequence[Claimed]) -> None:
        """Make one segment of several that are claimed, in their place; raises OSError.

        A kill in between leaves rows twice, which come in once.
        """
        columns = {one.segment.columns for one in claimed if one.segment.lines}
        if len(claimed) < 2 or len(columns) > 1:  # written by programs of two ages
            return
        parts = [one.segment for one in claimed]
        joined = Segment(
            next(iter(columns), ()),
            tuple([line for part in parts for line in part.lines]),
            tuple({image[0]: image for part in parts for image in part.images}.values()),
            tuple([gap for part in parts for gap in part.gaps]),
        )
        self._write(joined, joined.packed(), int(claimed[0].path.name.split("-")[0]))
        for one in claimed:
            one.done()


def _taken(found: os.stat_result) -> int:
    """What a file takes of the disk, which goes by whole blocks; not all file systems tell."""
    return max(found.st_size, found.st_blocks * 512)


def _rows_of(name: str) -> int:
    """How many rows a segment has, by its name."""
    return int(name.split("-")[1])


def spooled(folder: Path) -> int:
    """How many rows wait in the spools under a folder, which need not be there."""
    names = [path.name for path in folder.glob(f"*/*{ENDING}")]
    return sum(_rows_of(name) for name in names if OURS.fullmatch(name))
