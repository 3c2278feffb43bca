"""The log of what is served: taken at once, kept on disk within a second, then in Postgres and S3.

Whoever answers a request puts its rows here and goes on. One thread writes what came in to the
spool; two send from there, one for rows alone and one for rows whose pictures are kept, so that
only these wait when S3 is away. What was sent is removed from the spool afterwards: a process that
dies in between leaves it to be sent again, which changes nothing (`records.transactions.append`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import DataError, IntegrityError

from infra import database, settings, storage
from infra.database import Database, copy_text
from infra.storage import BadKey, Conflict, Storage
from records import transactions
from records.transactions import UNDRAWN, Gap, Served, Transaction
from web.keeping import Keeping
from web.spool import MOST_CLAIMED, Claimed, Segment, Spool, SpoolFull

log = logging.getLogger("regraft")

# How long a row may wait in memory, and how many that come together do not wait.
FLUSH_SECONDS, BATCH = 0.5, 1000
MOST_WAITING, MOST_IMAGE_BYTES = 20_000, 1 << 25
# Losses are told together: one line for each of them would be more than what was lost.
GAP_SECONDS = 10.0
SEND_ROWS, SEND_BYTES = 5000, 1 << 25
# What is safe on disk is sent this often, or as soon as much has come: each time costs a commit and
# threads, which a server with few clients would pay twice a second.
SEND_SECONDS, FIRST_PAUSE, LONGEST_PAUSE = 2.0, 0.2, 5.0
UPLOADS = 8
# Of named requests: how many, and about how many bytes of what they were answered.
MOST_KNOWN, MOST_KNOWN_BYTES = 10_000, 1 << 25
ROW_BYTES, LABEL_BYTES = 1500, 48
ASK_SECONDS, AWAY_SECONDS = 1.0, 5.0
# What Postgres will never take, however often it is sent.
REFUSED = (IntegrityError, DataError)
CROWDED = "more came in than could be kept"

# a row, and its picture where that is to be kept
Put = tuple[Transaction, bytes | None]
Request = tuple[str, str]  # its client, and how that named it
NULL = copy_text(None)


class OtherRequest(ValueError):
    """A request has the name of another one; the message says so."""

    status = 409


@dataclass(frozen=True)
class Counts:
    """What became of the rows that this process was given, and what lies in its folder.

    waiting: in memory. spooled: on disk, those of other processes included. repeated: those of
    requests that were answered before, and those that had come in already. images_dropped: pictures
    that could not be kept, of rows that came in; undrawn: of those, such as chance had drawn.
    """

    written: int = 0
    waiting: int = 0
    spooled: int = 0
    dropped: int = 0
    repeated: int = 0
    images_written: int = 0
    images_dropped: int = 0
    undrawn: int = 0


@dataclass(frozen=True)
class _Loss:
    """Rows that were lost for one reason since it was last told."""

    began_at: datetime
    ended_at: datetime
    dropped: int


class TransactionLog:
    """The log of one process. Safe to share between threads; close it before the process ends."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        folder: Path,
        keeping: Keeping,
        most_bytes: int = 1 << 31,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._database = database
        self._storage = storage
        self._keeping = keeping
        self._most_waiting = most_waiting
        self._counts = Counts()
        self._changed = threading.Condition()
        self._queue: list[Put] = []
        self._image_bytes = 0
        self._losses: dict[str, _Loss] = {}
        self._known: OrderedDict[Request, Served] = OrderedDict()
        self._known_bytes = 0
        self._trouble = CROWDED
        self._away_until = 0.0
        self._closing = False
        # Pictures may take half of it: rows are small, and worth more.
        spools = [Spool(folder / name, most_bytes // 2) for name in ("rows", "pictured")]
        self._rows, self._pictured = (_Sender(spool, self._send) for spool in spools)
        self._spooler = threading.Thread(target=self._keep_spooling, name="log", daemon=True)
        self._spooler.start()

    # --- what a server calls ----------------------------------------------------------------

    def put(self, rows: Sequence[Transaction], images: Sequence[bytes | None]) -> None:
        """Take what was answered, with the bytes of its pictures; never waits, never raises.

        Which pictures are kept is decided here. The rows of a request that was answered before are
        left out.
        """
        try:
            decided = [
                (row, None) if image is None else self._decided(row, image)
                for row, image in zip(rows, images, strict=True)
            ]
            with self._changed:
                self._take(decided)
        except Exception as error:
            log.exception("%d transactions were not logged", len(rows))
            with self._changed:
                self._lose(len(rows), f"a fault of the program: {error}")

    def answered(
        self, client: str, request_id: str, body_digest: str
    ) -> tuple[Transaction, ...] | None:
        """What was answered to this request before, by whichever process; None when nothing was.

        It may be a part, of which the rest was lost or waits to be sent: older programs tore rows
        of one request apart.
        While Postgres is away only this process's own newest answers are known: what is answered
        twice then is logged once. Raises `OtherRequest`.
        """
        with self._changed:
            served = self._known.get((client, request_id))
        served = served or self._asked(client, request_id)
        if served is None:
            return None
        if served.body_digest != body_digest:
            raise OtherRequest(
                f"the request id {request_id!r} was given to another request before; "
                "give each request one of its own"
            )
        return served.rows

    @property
    def counts(self) -> Counts:
        """How the log stands."""
        spooled = self._rows.spool.rows + self._pictured.spool.rows
        with self._changed:
            return replace(self._counts, waiting=len(self._queue), spooled=spooled)

    def close(self, patience_seconds: float = 10.0) -> None:
        """Write down all that was taken; what Postgres or S3 cannot take so soon stays on disk."""
        deadline = time.monotonic() + patience_seconds
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._spooler.join()
        for sender in (self._rows, self._pictured):
            sender.stop()
        for sender in (self._rows, self._pictured):
            sender.thread.join(max(0.0, deadline - time.monotonic()))
            sender.give_up()
        if left := self.counts.spooled:
            log.warning(
                "%d transactions wait in %s: the next server, or `regraft transactions replay`, "
                "writes them", left, self._rows.spool.folder.parent,
            )  # fmt: skip

    # --- into the queue ---------------------------------------------------------------------

    def _decided(self, row: Transaction, image: bytes) -> Put:
        decided = self._keeping.decide(row, image)
        return decided, image if decided.image_key else None

    def _take(self, rows: list[Put]) -> None:
        """Add rows to the queue; the lock is held."""
        requests = defaultdict(list)
        for row, _ in rows:
            if row.request_id is not None:
                requests[row.client, row.request_id].append(row)
        if repeated := self._known.keys() & requests.keys():
            rows = [one for one in rows if (one[0].client, one[0].request_id) not in repeated]
            self._count(repeated=sum(len(requests[name]) for name in repeated))
        for name in requests.keys() - repeated:
            answered = requests[name]
            self._known[name] = Served(answered[0].body_digest or "", tuple(answered))
            self._known_bytes += _bytes_of(answered)
        while len(self._known) > MOST_KNOWN or self._known_bytes > MOST_KNOWN_BYTES:
            _, oldest = self._known.popitem(last=False)
            self._known_bytes -= _bytes_of(oldest.rows)
        if self._closing:
            self._lose(len(rows), "the server was stopping")
            return
        if len(self._queue) + len(rows) > self._most_waiting:
            self._lose(len(rows), self._trouble)
            return
        size = _image_bytes(rows)
        if self._image_bytes + size > MOST_IMAGE_BYTES:
            rows = self._without_images(rows)
            size = 0
        was_empty = not self._queue
        self._queue.extend(rows)
        self._image_bytes += size
        if was_empty or len(self._queue) >= BATCH:
            self._changed.notify_all()

    def _without_images(self, rows: Sequence[Put]) -> list[Put]:
        """Rows whose pictures cannot be kept, which is counted and told; the lock is held."""
        self._count(images_dropped=sum(image is not None for _, image in rows))
        if undrawn := sum(row.draw is not None for row, _ in rows):
            self._count(undrawn=undrawn)
            at = datetime.now(UTC)
            self._add_loss(UNDRAWN, _Loss(at, at, undrawn))
        return [(replace(row, image_key=None, draw=None), None) for row, _ in rows]

    def _lose(self, count: int, why: str) -> None:
        """Count rows that are lost; the lock is held."""
        if count:
            self._count(dropped=count)
            at = datetime.now(UTC)
            self._add_loss(why, _Loss(at, at, count))
            self._changed.notify_all()

    def _add_loss(self, why: str, more: _Loss) -> None:
        loss = self._losses.get(why, more)
        self._losses[why] = _Loss(
            min(loss.began_at, more.began_at),
            max(loss.ended_at, more.ended_at),
            more.dropped + (loss.dropped if loss is not more else 0),
        )

    def _count(self, **more: int) -> None:
        """Add to the counts; the lock is held."""
        now = {name: getattr(self._counts, name) + count for name, count in more.items()}
        self._counts = replace(self._counts, **now)

    # --- from the queue to the disk ---------------------------------------------------------

    def _keep_spooling(self) -> None:
        closing = False
        while not closing:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._losses or self._closing)
                self._changed.wait_for(
                    lambda: self._closing or len(self._queue) >= BATCH, FLUSH_SECONDS
                )
                closing = self._closing
                rows, self._queue, self._image_bytes = self._queue, [], 0
            left: list[Put] = []
            try:
                left = self._flush(rows, closing)
            except Exception as error:
                log.exception("%d transactions were not logged", len(rows))
                with self._changed:
                    self._lose(len(rows), f"a fault of the program: {error}")
            self._tell_losses(closing)
            if left and not closing:
                time.sleep(FLUSH_SECONDS)

    def _flush(self, rows: list[Put], closing: bool) -> list[Put]:
        """Write rows to the disk; answers those that could not be, which wait in the queue."""
        left, trouble = rows, None
        while left and not trouble:  # a file of all that waited might never find room
            cut = _cut([_request_of(row) for row, _ in left[: 2 * BATCH]], BATCH)
            refused, trouble = self._spool(left[:cut])
            left = [*refused, *left[cut:]]
        if trouble and trouble != self._trouble:
            log.warning("the log waits in memory: %s", trouble)
        with self._changed:
            self._trouble = trouble or CROWDED
            if closing:
                self._lose(len(left), self._trouble)
            else:
                self._queue[:0] = left
                self._image_bytes += _image_bytes(left)
        return left

    def _spool(self, rows: list[Put]) -> tuple[list[Put], str | None]:
        """Write rows to the disk; answers those that could not be, and why."""
        # What one named request was answered comes in at once, or a repeated one would get a part.
        together = {(row.client, row.request_id) for row, image in rows if image and row.request_id}
        plain: dict[str, Put] = {}
        pictured: dict[str, Put] = {}
        for row, image in rows:
            try:
                line = transactions.line(row)
                line.encode()
            except Exception as error:  # whatever is wrong with it, the others go on
                with self._changed:
                    self._lose(1, f"a row cannot be kept: {error}")
                continue
            waits = image is not None or (row.client, row.request_id) in together
            (pictured if waits else plain)[line] = (row, image)
        images = {
            row.image_key: (row.image_key, row.sha256, image)
            for row, image in pictured.values() if row.image_key and image is not None
        }  # fmt: skip
        left: list[Put] = []
        trouble = None
        try:
            self._write(self._pictured, tuple(pictured), tuple(images.values()))
        except SpoolFull:
            with self._changed:  # once, though there may be no room for the rows either
                bare = self._without_images(list(pictured.values()))
            plain |= {transactions.line(row): (row, None) for row, _ in bare}
        except OSError as error:
            left, trouble = list(pictured.values()), _told(error)
        try:
            self._write(self._rows, tuple(plain))
        except OSError as error:
            left, trouble = [*left, *plain.values()], _told(error)
        return left, trouble

    def _write(
        self,
        sender: _Sender,
        lines: tuple[str, ...],
        images: tuple[tuple[str, str, bytes], ...] = (),
        gaps: tuple[tuple[str, str, int, str], ...] = (),
    ) -> None:
        if lines or gaps:
            sender.spool.write(Segment(transactions.STAGED, lines, images, gaps))
            if len(lines) >= BATCH // 2:
                sender.wake.set()

    def _tell_losses(self, all_of_them: bool) -> None:
        """Put losses into the spool that have lasted for a while."""
        now = datetime.now(UTC)
        with self._changed:
            due = {
                why: loss for why, loss in self._losses.items()
                if all_of_them or (now - loss.began_at).total_seconds() > GAP_SECONDS
            }  # fmt: skip
            for why in due:
                del self._losses[why]
        gaps = [
            (loss.began_at.isoformat(), loss.ended_at.isoformat(), loss.dropped, why)
            for why, loss in due.items()
        ]
        try:
            self._write(self._rows, (), gaps=tuple(gaps))
        except Exception as error:  # whatever it is, it ends no thread
            log.warning("that transactions were lost cannot be written down: %s", _told(error))
            with self._changed:
                for why, loss in due.items():
                    self._add_loss(why, loss)

    # --- from the disk to Postgres and S3 ---------------------------------------------------

    def _send(self, claimed: list[Claimed]) -> None:
        """Write segments to S3 and Postgres; raises when it must be tried again."""
        images = {image[0]: image for one in claimed for image in one.segment.images}
        lost = self._upload_all(images) if images else set()
        by_columns: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for one in claimed:
            columns = one.segment.columns
            by_columns[columns] += (
                [_freed(line, columns, lost) for line in one.segment.lines]
                if lost else one.segment.lines
            )  # fmt: skip
        undrawn = [at for one in claimed for at in _undrawn(one.segment, lost)] if lost else []
        found = [_gap(at, at, 1, UNDRAWN) for at in undrawn]
        for columns, lines in by_columns.items():
            found += self._append(lines, columns)
        told = [_gap(*written) for one in claimed for written in one.segment.gaps]
        if gaps := [*told, *_summed(found)]:
            with self._database.transaction() as session:
                for gap in gaps:
                    transactions.add_gap(session, gap)
        with self._changed:
            self._count(images_dropped=len(lost), undrawn=len(undrawn))
        for one in claimed:
            one.done()

    def _upload_all(self, images: dict[str, tuple[str, str, bytes]]) -> set[str]:
        """Write pictures to S3; the keys of those that never can be."""
        with ThreadPoolExecutor(UPLOADS, "log-images") as threads:
            kept = list(threads.map(self._upload, images.values()))
        return {key for key, there in zip(images, kept, strict=True) if not there}

    def _upload(self, image: tuple[str, str, bytes]) -> bool:
        """Write a picture to S3; False when it never can be."""
        key, digest, body = image
        try:
            new = self._storage.write_once(key, body, digest)
        except (BadKey, Conflict) as error:
            log.warning("a picture is not kept: %s", error)
            return False
        with self._changed:
            self._count(images_written=int(new))
        return True

    def _append(self, lines: Sequence[str], columns: tuple[str, ...]) -> list[Gap]:
        """Write rows to Postgres; what it refuses is found by halving, and lost alone.

        Rows of one named request are lost together: a part of them would be no answer.
        """
        if not lines:
            return []
        try:
            with self._database.transaction() as session:
                came = transactions.append(session, lines, columns)
        except REFUSED as error:
            requests = [_request_in(line, columns) for line in lines]
            cut = _cut(requests, len(lines) // 2)
            if cut == len(lines):
                cut -= 1
                while cut and requests[cut - 1] == requests[cut]:
                    cut -= 1
            if cut:
                return [*self._append(lines[:cut], columns), *self._append(lines[cut:], columns)]
            with self._changed:
                self._count(dropped=len(lines))
            # Its own time, so that a row that is sent and refused again is the same gap.
            at = transactions.cell(lines[0], "at", columns)
            return [_gap(at, at, len(lines), f"Postgres refuses a row: {_told(error)}")]
        with self._changed:
            self._away_until = 0.0
            self._count(written=came, repeated=len(lines) - came)
        return []

    # --- repeated requests ------------------------------------------------------------------

    def _asked(self, client: str, request_id: str) -> Served | None:
        """What Postgres knows of a request, unless it is away or takes too long to say."""
        if time.monotonic() < self._away_until:
            return None
        found: list[Served | None] = []

        def ask() -> None:
            try:
                with self._database.transaction() as session:
                    found.append(transactions.of_request(session, client, request_id))
            except Exception as error:
                log.warning("repeated requests are not looked for: %s", _told(error))

        # In a thread that may be left behind: a server that hangs answers nobody, not even that.
        asking = threading.Thread(target=ask, name="log-ask", daemon=True)
        asking.start()
        asking.join(ASK_SECONDS)
        if not found:
            self._away_until = time.monotonic() + AWAY_SECONDS
            return None
        return found[0]


class _Sender:
    """Sends what lies in a spool from a thread of its own, until it is told to stop."""

    def __init__(self, spool: Spool, send: Callable[[list[Claimed]], None]) -> None:
        self.spool = spool
        self.wake = threading.Event()
        self._send = send
        self._stopping = threading.Event()
        self._given_up = threading.Event()
        self.thread = threading.Thread(
            target=self._keep_sending, name=f"log-{spool.folder.name}", daemon=True
        )
        self.thread.start()

    def stop(self) -> None:
        """Send what is there, and end; end at once where it cannot be sent."""
        self._stopping.set()
        self.wake.set()

    def give_up(self) -> None:
        """End after the segments that are being sent."""
        self._given_up.set()

    def _keep_sending(self) -> None:
        pause = 0.0
        while True:
            stopping = self._stopping.is_set()
            try:
                while not self._given_up.is_set() and self._send_some():
                    pass
            except Exception as error:
                if not pause:
                    log.warning("the log waits in %s: %s", self.spool.folder, _told(error))
                if stopping:
                    return
                pause = min(LONGEST_PAUSE, 2 * pause or FIRST_PAUSE)
                self._stopping.wait(pause)
                continue
            if pause:
                log.info("the log has caught up")
                pause = 0.0
            if stopping:
                return
            self.wake.wait(SEND_SECONDS)
            self.wake.clear()

    def _send_some(self) -> bool:
        """Send the oldest segments; whether there were any."""
        with self.spool.claim(SEND_ROWS, SEND_BYTES) as claimed:
            if claimed:
                try:
                    self._send(claimed)
                except Exception:
                    if len(claimed) == MOST_CLAIMED:
                        # Two files a second come while nothing can be sent: few are soon sent then.
                        with suppress(OSError):
                            self.spool.join(claimed)
                    raise
        return bool(claimed)


def open_log() -> TransactionLog:
    """The log where the settings say."""
    found = settings.load()
    return TransactionLog(
        Database(database.connect().url),  # its own: pages that are slow must not keep it waiting
        storage.connect(),
        found.spool_dir,
        Keeping.of(found),
        most_bytes=round(found.spool_gigabytes * 1e9),
    )


def _image_bytes(rows: list[Put]) -> int:
    return sum(len(image) for _, image in rows if image is not None)


def _bytes_of(rows: Sequence[Transaction]) -> int:
    """About what the rows of a request take in memory."""
    return sum(ROW_BYTES + LABEL_BYTES * len(row.top_labels) for row in rows)


def _request_of(row: Transaction) -> Request | None:
    return None if row.request_id is None else (row.client, row.request_id)


def _request_in(line: str, columns: tuple[str, ...]) -> Request | None:
    name = transactions.cell(line, "request_id", columns)
    return None if name == NULL else (transactions.cell(line, "client", columns), name)


def _cut(requests: Sequence[Request | None], at: int) -> int:
    """Where rows are parted: there, or as soon after as no named request is torn apart."""
    while 0 < at < len(requests) and requests[at] and requests[at] == requests[at - 1]:
        at += 1
    return at


def _undrawn(segment: Segment, lost: set[str]) -> list[str]:
    """When those rows were answered that leave the random stream with their pictures."""
    columns = segment.columns
    return [
        transactions.cell(line, "at", columns) for line in segment.lines
        if transactions.cell(line, "image_key", columns) in lost
        and transactions.cell(line, "draw", columns) != NULL
    ]  # fmt: skip


def _freed(line: str, columns: tuple[str, ...], lost: set[str]) -> str:
    """The line as it is, or without its picture where that is lost."""
    key = transactions.cell(line, "image_key", columns)
    return transactions.without_image(line, columns) if key in lost else line


def _gap(began: str, ended: str, dropped: int, why: str) -> Gap:
    return Gap(datetime.fromisoformat(began), datetime.fromisoformat(ended), dropped, why)


def _summed(gaps: Sequence[Gap]) -> list[Gap]:
    """Those of one time and reason as one: pictures of one request share their time."""
    counts: Counter[tuple[datetime, datetime, str]] = Counter()
    for gap in gaps:
        counts[gap.began_at, gap.ended_at, gap.why] += gap.dropped
    return [Gap(began, ended, count, why) for (began, ended, why), count in counts.items()]


def _told(error: Exception) -> str:
    """What went wrong, in one line."""
    reason = getattr(error, "orig", None) or error
    return (str(reason).strip().splitlines() or [type(error).__name__])[0]
