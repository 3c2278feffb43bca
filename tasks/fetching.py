"""Work on many objects of S3: by threads, or by processes where their bytes are worked on.

Half the time of a small picture is Python's own, which threads of one process can only spend one
after the other.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from typing import Protocol, TypeVar

from loky import ProcessPoolExecutor

from infra import settings, storage
from infra.storage import Changed, Gone, Refused, Storage

log = logging.getLogger("regraft")

Item = TypeVar("Item")
Made = TypeVar("Made")
Result = TypeVar("Result")
Place = tuple[str, str | None]  # key, and ETag or None
Passing = tuple[type[Gone | Changed | Refused], ...]

# objects from which on processes save more than their start takes, which is some three seconds
MANY = 1000
TOGETHER = 32


def by_threads(items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """What `work` makes of each item, in their order, by many threads: most of them wait for S3."""
    with ThreadPoolExecutor(settings.load().workers, "regraft-s3") as pool:
        yield from _in_order((pool.submit(work, one) for one in items), 4 * TOGETHER)


class Fetch(Protocol):
    """What reads objects."""

    def __call__(
        self, places: Iterable[Place], work: Callable[[bytes], Made]
    ) -> Iterator[Made | Gone | Changed | Refused]:
        """What `work` makes of the bytes of each object, in their order, or why it has none.

        places: are taken one by one, not far ahead of what is given. work: a function that can be
        pickled, made of code below. Raises `StorageError` when the store cannot be read at all.
        """
        ...


@contextmanager
def fetching(
    count: int, many: int | None = None, passing: Passing = (Gone, Changed)
) -> Iterator[Fetch]:
    """Have what reads about `count` objects as fast as this machine can.

    many: objects from which on processes pay for their start; by default where nothing else asks
    for the cores. passing: what is an answer for one object, and no end of the reading.
    """
    store, known = storage.connect(), settings.load()
    cores = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        threads = _Threads(store, known.workers, cores, passing)
        stack.callback(threads.close)
        if cores == 1 or count < (MANY if many is None else many):
            yield threads
            return
        processes = _Processes(store, known.workers, cores, passing)
        stack.callback(processes.close)
        yield functools.partial(_by_processes, processes, threads)


class _Threads:
    """Many threads, since most of them wait for S3; no more of them work than there are cores.

    All working at once would only take the interpreter from each other.
    """

    def __init__(
        self, store: Storage, threads: int, working: int, passing: Passing = (Gone, Changed)
    ) -> None:
        self._store = store
        self._passing = passing
        self._pool = ThreadPoolExecutor(threads, "regraft-fetch")
        self._working = threading.Semaphore(working)
        self.close = self._pool.shutdown

    def __call__(
        self, places: Iterable[Place], work: Callable[[bytes], Made]
    ) -> Iterator[Made | Gone | Changed | Refused]:
        def make(place: Place) -> Made | Gone | Changed | Refused:
            try:
                body = self._store.read(*place)
            except self._passing as error:
                return error
            with self._working:
                return work(body)

        return _in_order((self._pool.submit(make, place) for place in places), 4 * TOGETHER)


class _Processes:
    """As many processes as there are cores, each with its share of the threads.

    They are loky's: forking a process that has threads may stop for ever, and Python's own way
    without a fork runs the caller's script again.
    """

    def __init__(
        self, store: Storage, threads: int, cores: int, passing: Passing = (Gone, Changed)
    ) -> None:
        self.ahead = 3 * cores
        self.pool = ProcessPoolExecutor(
            cores,
            initializer=_begin,
            initargs=(store, max(2, threads // (2 * cores)), os.getpid(), passing),
            env={"OMP_NUM_THREADS": "1"},  # there are as many processes as cores
        )

    def close(self) -> None:
        self.pool.shutdown(kill_workers=True)


def _by_processes(
    processes: _Processes, threads: Fetch, places: Iterable[Place], work: Callable[[bytes], Made]
) -> Iterator[Made | Gone | Changed | Refused]:
    rest = iter(places)
    begun: deque[list[Place]] = deque()

    def submitted() -> Iterator[Future[list[Made | Gone | Changed | Refused]]]:
        while chunk := list(islice(rest, TOGETHER)):
            begun.append(chunk)
            yield processes.pool.submit(_make, chunk, work)

    try:
        for made in _in_order(submitted(), processes.ahead):
            begun.popleft()
            yield from made
    except BrokenProcessPool:
        log.warning("a process that decodes was killed (out of memory?): threads go on without it")
        yield from threads(chain(chain.from_iterable(begun), rest), work)


def _in_order(begun: Iterator[Future[Result]], ahead: int) -> Iterator[Result]:
    """Each result in its turn, while no more than so many later ones are begun.

    Not all at once: what is made of them would wait in memory for whoever takes it.
    """
    waiting: deque[Future[Result]] = deque()
    for one in begun:
        waiting.append(one)
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


# --- inside such a process ---

_own: list[_Threads] = []  # the one of this process


def _begin(store: Storage, threads: int, parent: int, passing: Passing) -> None:
    _own.append(_Threads(store, threads, 1, passing))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End when the parent was killed, which leaves nobody who could say so."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _make(
    places: Sequence[Place], work: Callable[[bytes], Made]
) -> list[Made | Gone | Changed | Refused]:
    return list(_own[0](places, work))
