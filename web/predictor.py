"""From a request's pictures to answers: decoded, answered together, logged, in bounded time."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import os
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import HTTPException

from infra import settings
from infra.storage import StorageError
from records.transactions import Transaction, new_id
from vision.images import BadImage, Large, Pixels, Seen, see
from vision.network import BadCheckpoint
from vision.plan import BadPlan, Geometry
from vision.serving import best
from web.access import Access, Client
from web.batches import Batches
from web.bodies import Named, refused
from web.champion import Follower, Serving
from web.errors import AGAIN
from web.explanations import Explainer
from web.memory import AT_ONCE
from web.metrics import Metrics
from web.rules import Rules
from web.transaction_log import TransactionLog

log = logging.getLogger("regraft.web")

# Threads that look for named requests; slow pages must not keep those waiting.
ASKING = 8
# So many of the best classes are logged of each picture, though its client wants fewer.
LOGGED = 5
# Of `web.transaction_log.Counts`, as Prometheus is told them.
LOG_FIGURES = {
    "written": "Answers that this process has written into Postgres.",
    "waiting": "Answers that wait in memory.",
    "spooled": "Answers that wait on disk.",
    "dropped": "Answers that were lost.",
    "repeated": "Answers that were there already: of requests that came or were sent again.",
    "images_dropped": "Pictures that could not be kept, of answers that came in.",
    "undrawn": "Answers that left the random stream of reviews: their pictures could not be kept.",
}


@dataclass(frozen=True)
class Explained:
    """Where a version looked: `image` is a `data:` address; positive: whether anywhere."""

    image: str
    positive: bool


@dataclass(frozen=True)
class Answered:
    """What is told of one picture; row: as it is logged."""

    name: str | None
    row: Transaction
    explained: Explained | None


class Predictor:
    """Whatever a prediction needs, for as long as the application lives."""

    def __init__(
        self, rules: Rules, access: Access, metrics: Metrics, log: TransactionLog | None
    ) -> None:
        """log: None keeps nothing of what is answered."""
        self.rules, self._log = rules, log
        cores = settings.load().threads or len(os.sched_getaffinity(0))
        self.follower = Follower(access, rules.precision, 1, rules.batch)
        self._batches = Batches(cores, rules.batch, rules.linger_seconds, metrics.batches.observe)
        self._decoding = ThreadPoolExecutor(cores, "regraft-decode")
        self._decoding_large = ThreadPoolExecutor(1, "regraft-decode-large")
        self._explaining = ThreadPoolExecutor(1, "regraft-explain")
        self._asking = ThreadPoolExecutor(ASKING, "regraft-ask")
        self._explainer = Explainer()
        self._inside = 0  # pictures that are being answered or wait for it
        self._named: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )
        self._watched_by(metrics)

    def start(self) -> None:
        """Have the version that serves ready, and follow the log."""
        self.follower.start()

    def close(self) -> None:
        """Answer what was begun, write it down, and end."""
        self.follower.close()
        self._decoding.shutdown()
        self._decoding_large.shutdown()
        self._batches.close()
        self._explaining.shutdown()
        self._asking.shutdown()
        if self._log is not None:
            self._log.close()

    def _watched_by(self, metrics: Metrics) -> None:
        follower, kept = self.follower, self._log
        watch = metrics.watch
        watch("regraft_waiting_pictures", "Pictures that are being answered or wait.",
              lambda: self._inside)  # fmt: skip
        watch("regraft_version", "The version that answers; 0: none.",
              lambda: follower.serving.version_id if follower.serving else 0)  # fmt: skip
        watch("regraft_behind", "1 while the champion of the database cannot be followed.",
              lambda: follower.behind is not None)  # fmt: skip
        watch("regraft_behind_seconds", "Since when the database was not read, or not followed.",
              lambda: time.monotonic() - follower.seen_at)  # fmt: skip
        if kept is not None:
            for name, what in LOG_FIGURES.items():
                watch(f"regraft_log_{name}", what, functools.partial(_count, kept, name))

    def refuse_at_the_door(self) -> None:
        """Raise HTTPException 503 before a body is read, where there is no room for any picture."""
        if self._inside >= self.rules.most_waiting:
            raise _busy()

    async def answer(
        self,
        client: Client,
        pictures: Sequence[Named],
        top: int,
        explain: bool,
        request_id: str | None,
    ) -> list[Answered]:
        """Answer the pictures of one request by one version, and log that.

        A request of a name that was answered before gets that answer again. Raises HTTPException
        422 for the first that is no picture, 503 where it would take too long.
        """
        if self._inside + len(pictures) > self.rules.most_waiting:
            raise _busy()
        self._inside += len(pictures)
        try:
            async with asyncio.timeout(self.rules.answer_seconds), self._turn(client, request_id):
                return await self._answer(client, pictures, top, explain, request_id)
        except TimeoutError:
            raise HTTPException(
                503,
                f"no answer within {self.rules.answer_seconds:g} s: send fewer pictures, or "
                "try again later",
                AGAIN,
            ) from None
        finally:
            self._inside -= len(pictures)

    async def _answer(
        self,
        client: Client,
        pictures: Sequence[Named],
        top: int,
        explain: bool,
        request_id: str | None,
    ) -> list[Answered]:
        begun = time.perf_counter()
        serving = self.follower.now()
        digest = first_at = None
        if request_id is not None:
            digest, before = await self._before(client, request_id, pictures, top, explain)
            if before is not None and len(before) == len(pictures):
                return await self._again(serving, pictures, before, explain)
            # Of a part nobody makes the whole answer: all is answered anew, at the time of that
            # part, so that what was lost of it comes in.
            first_at = before[0].at if before else None
        seen = await self._seen(serving, pictures)
        shares = await asyncio.gather(
            *(asyncio.wrap_future(self._batches.submit(serving, one.pixels)) for one in seen)
        )
        at, seconds = first_at or datetime.now(UTC), time.perf_counter() - begun
        names = serving.network.class_names
        rows, columns = [], []
        for ordinal, (one, row) in enumerate(zip(seen, shares, strict=True)):
            found, confidences = best(row, max(top, LOGGED))
            columns.append(int(found[0]))
            # six digits: what Postgres gives back is what was told
            shares_told = tuple(round(float(share), 6) for share in confidences)
            rows.append(
                Transaction(
                    id=new_id(at, client.name, request_id, ordinal),
                    at=at,
                    client=client.name,
                    version=serving.version_id,
                    sha256=one.sha256,
                    width=one.width,
                    height=one.height,
                    top_labels=tuple(names[column] for column in found),
                    top_confidences=shares_told,
                    shown=_shown(serving, shares_told[0]),
                    latency_seconds=seconds,
                    ordinal=ordinal,
                    request_id=request_id,
                    body_digest=digest,
                )
            )
        explained = await self._explained(serving, [one.pixels for one in seen], columns, explain)
        if self._log is not None:
            self._log.put(rows, [body for _, body in pictures])
        return [
            Answered(name, row, why)
            for (name, _), row, why in zip(pictures, rows, explained, strict=True)
        ]

    async def _seen(self, serving: Serving, pictures: Sequence[Named]) -> list[Seen]:
        """Every picture decoded, on as many cores as there are."""
        begun = [self._decoded(body, serving.network.geometry) for _, body in pictures]
        found = await asyncio.gather(*begun, return_exceptions=True)
        for number, one in enumerate(found, start=1):
            if isinstance(one, BadImage):
                raise refused(number, pictures[number - 1][0], one)
            if isinstance(one, BaseException):
                raise one
        return [one for one in found if isinstance(one, Seen)]

    async def _decoded(self, body: bytes, geometry: Geometry) -> Seen:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._decoding, see, body, geometry, AT_ONCE)
        except Large:
            return await loop.run_in_executor(self._decoding_large, see, body, geometry)

    async def _explained(
        self, serving: Serving, pixels: Sequence[Pixels], columns: Sequence[int], wanted: bool
    ) -> list[Explained | None]:
        if not wanted:
            return [None] * len(pixels)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._explaining, self._explainer.overlays, serving, pixels, columns
            )
        except (StorageError, BadCheckpoint, BadPlan) as error:
            log.error("version %d cannot be explained: %s", serving.version_id, error)
            raise HTTPException(
                503, f"version {serving.version_id} cannot be explained now: ask without `explain`"
            ) from None
        return [Explained(image, positive) for image, positive in found]

    async def _before(
        self, client: Client, request_id: str, pictures: Sequence[Named], top: int, explain: bool
    ) -> tuple[str, Sequence[Transaction] | None]:
        """The digest of a named request, and what was answered to it before."""

        def ask() -> tuple[str, Sequence[Transaction] | None]:
            digest = _digest(pictures, top, explain)
            known = self._log.answered(client.name, request_id, digest) if self._log else None
            return digest, known

        return await asyncio.get_running_loop().run_in_executor(self._asking, ask)

    async def _again(
        self,
        serving: Serving,
        pictures: Sequence[Named],
        rows: Sequence[Transaction],
        explain: bool,
    ) -> list[Answered]:
        """The answer that was given before; its maps only while the same version serves."""
        explained: list[Explained | None] = [None] * len(pictures)
        if explain and {row.version for row in rows} == {serving.version_id}:
            seen = await self._seen(serving, pictures)
            columns = [serving.network.class_names.index(row.top_labels[0]) for row in rows]
            pixels = [one.pixels for one in seen]
            explained = await self._explained(serving, pixels, columns, wanted=True)
        return [
            Answered(name, row, why)
            for (name, _), row, why in zip(pictures, rows, explained, strict=True)
        ]

    @asynccontextmanager
    async def _turn(self, client: Client, request_id: str | None) -> AsyncIterator[None]:
        """Requests of one name come one after the other: the second finds what the first was told.
        """
        if request_id is None:
            yield
            return
        # kept for as long as anybody waits for it
        lock = self._named.setdefault((client.name, request_id), asyncio.Lock())
        async with lock:
            yield


def _count(log: TransactionLog, name: str) -> float:
    return float(getattr(log.counts, name))


def _busy() -> HTTPException:
    return HTTPException(503, "too many pictures wait already: try again soon", AGAIN)


def _shown(serving: Serving, confidence: float) -> bool | None:
    return None if serving.threshold is None else confidence >= serving.threshold


def _digest(pictures: Sequence[Named], top: int, explain: bool) -> str:
    """Of what was asked for, whatever it was wrapped in: a form has other bytes each time."""
    parts = [hashlib.sha256(body).hexdigest() for _, body in pictures]
    return hashlib.sha256(f"{parts} {top} {explain}".encode()).hexdigest()
