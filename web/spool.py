"""Segments of the transaction log in a folder, until they are in Postgres.

A segment is one file, whole or not there at all, locked while somebody sends it. The system frees
the lock of a process that dies, so several processes share a folder and each sends what another
one left.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ENDING = ".segment"
ASIDE = ".new"
DAMAGED = ".damaged"
ABANDONED_SECONDS = 600.0
# Each is an open file, of which a process has few; after a long outage there are thousands.
MOST_CLAIMED = 100


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

    def done(self) -> None:
        """It is in Postgres, and needed no more."""
        self.path.unlink()


@dataclass
class Spool:
    """A folder of segments, at most so many bytes of them. Safe to share between threads."""

    folder: Path
    most_bytes: int
    size: int = field(default=0, init=False)

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
        length = sum(map(len, pieces))
        if segment.lines and self.size + length > self.most_bytes:
            raise SpoolFull(f"the spool {self.folder} is full ({self.size / 1e6:.0f} MB)")
        # The name tells how many rows are lost if the file is damaged, and sorts by time.
        name = f"{time.time_ns():020d}-{len(segment.lines)}-{secrets.token_hex(4)}"
        aside = self.folder / f"{name}{ASIDE}"
        try:
            with aside.open("xb") as file:
                file.writelines(pieces)
                file.flush()
                # From here on it outlives this process, from the next line on the machine.
                aside.rename(self.folder / f"{name}{ENDING}")
                os.fsync(file.fileno())
            self._sync_names()
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        self.size += length

    def _sync_names(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def waiting(self) -> list[Path]:
        """The segments that are there, whoever wrote them, the oldest first."""
        found, size = [], 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(ENDING):
                    try:
                        size += entry.stat().st_size
                    except FileNotFoundError:  # sent meanwhile
                        continue
                    found.append(Path(entry.path))
        self.size = size
        return sorted(found)

    @property
    def rows(self) -> int:
        """How many rows wait here; none where the folder is gone."""
        try:
            return sum(_rows_of(path.name) for path in self.waiting())
        except OSError:
            return 0

    @contextmanager
    def claim(self, most_rows: int, most_bytes: int) -> Iterator[list[Claimed]]:
        """Hold the oldest segments that nobody else is sending: so much of them, or one.

        A damaged one is put aside, and comes as a gap in its place.
        """
        claimed: list[Claimed] = []
        rows = size = 0
        with ExitStack() as stack:
            for path in self.waiting():
                if len(claimed) == MOST_CLAIMED:
                    break
                try:
                    file = stack.enter_context(path.open("rb"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (FileNotFoundError, BlockingIOError):
                    continue
                found = os.fstat(file.fileno())
                if found.st_nlink == 0:  # sent while we opened it
                    continue
                rows += _rows_of(path.name)
                size += found.st_size
                if claimed and (rows > most_rows or size > most_bytes):
                    break
                claimed.append(self._read(path, file.read()))
            yield claimed

    def _read(self, path: Path, body: bytes) -> Claimed:
        try:
            return Claimed(path, Segment.unpacked(body))
        except Damaged as error:
            begun = int(path.name.split("-")[0]) / 1e9
            at = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(begun))
            kept = path.with_suffix(DAMAGED)
            kept.write_bytes(body)
            why = f"a segment of the spool is damaged: {error}; it is kept as {kept}"
            gap = (at, at, max(1, _rows_of(path.name)), why)
            return Claimed(path, Segment((), (), gaps=(gap,)))


def _rows_of(name: str) -> int:
    """How many rows a segment has, by its name."""
    return int(name.split("-")[1])


def spooled(folder: Path) -> int:
    """How many rows wait in the spools under a folder, which need not be there."""
    return sum(_rows_of(path.name) for path in folder.glob(f"*/*{ENDING}"))
