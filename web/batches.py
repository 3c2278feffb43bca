"""Pictures that are answered together: whoever is free takes its share of those that wait."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vision.images import Pixels
from web.champion import Serving

Shares = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Waiting:
    serving: Serving
    pixels: Pixels
    since: float
    answer: Future[Shares] = field(default_factory=Future)


class Batches:
    """Threads that answer pictures, each with the version that it was prepared for.

    A version that is replaced answers what was given to it before, and nothing waits for it.
    """

    def __init__(
        self, threads: int, most: int, linger: float, took: Callable[[int], None]
    ) -> None:
        """most: pictures in a batch. linger: seconds the first waits for others. took: is told the
        size of each batch.
        """
        self._most, self._linger, self._took = most, linger, took
        self._queue: deque[_Waiting] = deque()
        self._some = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"regraft-answer-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, serving: Serving, pixels: Pixels) -> Future[Shares]:
        """The confidences [classes] of stored pixels, to come. Cancelled, it is not computed."""
        one = _Waiting(serving, pixels, time.monotonic())
        with self._some:
            if self._closed:
                raise RuntimeError("the service is stopping: ask again when it is back")
            self._queue.append(one)
            self._some.notify()
        return one.answer

    def close(self) -> None:
        """Answer what waits, and end."""
        with self._some:
            self._closed = True
            self._some.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while self._answer(self._take()):
            pass

    def _answer(self, batch: list[_Waiting]) -> bool:
        """Answer these; False when there are none. Whoever waits for more keeps no old network."""
        wanted = [one for one in batch if one.answer.set_running_or_notify_cancel()]
        if not wanted:
            return bool(batch)
        self._took(len(wanted))
        try:
            shares = wanted[0].serving.network.shares(np.stack([one.pixels for one in wanted]))
        except Exception as error:  # each of them is told; the next batch may do better
            for one in wanted:
                one.answer.set_exception(error)
            return True
        for one, row in zip(wanted, shares, strict=True):
            one.answer.set_result(row)
        return True

    def _take(self) -> list[_Waiting]:
        """The next pictures for one version; empty when there is nothing more to come."""
        with self._some:
            while not self._company():
                if self._closed:
                    return []
                self._some.wait()
            # Its share, or the other cores would look on while one computes for all.
            share = min(self._most, -(-len(self._queue) // len(self._threads)))
            serving = self._queue[0].serving
            batch: list[_Waiting] = []
            while self._queue and len(batch) < share and self._queue[0].serving is serving:
                batch.append(self._queue.popleft())
            if self._queue:
                self._some.notify()
            return batch

    def _company(self) -> bool:
        """Whether there are pictures to answer, once the first has waited for others."""
        while self._queue:
            left = self._queue[0].since + self._linger - time.monotonic()
            if left <= 0 or len(self._queue) >= self._most or self._closed:
                return True
            self._some.wait(left)
        return False
