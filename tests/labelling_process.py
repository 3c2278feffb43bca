"""Somebody who labels and removes pictures of a pool, here or in a process that may be killed."""

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess

from records.labels import Wish
from tasks import labelling

Work = Callable[[Sequence[str]], None]


def begin(environment: Mapping[str, str], work: Work, keys: Sequence[str]) -> ForkServerProcess:
    """Start one of the functions below in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["labelling_process"])
    process = context.Process(target=_work_there, args=(dict(environment), work, list(keys)))
    process.start()
    return process


def _work_there(environment: dict[str, str], work: Work, keys: list[str]) -> None:
    os.environ.update(environment)
    work(keys)


def act(keys: Sequence[str]) -> None:
    """Label the first eight as okapis, a new class, and then remove all."""
    wishes = [Wish(key, key=key, label="okapi") for key in keys]
    labelling.label(wishes[:8], "Ann", ["okapi"])
    labelling.remove(wishes, "Ann")


def undo(keys: Sequence[str]) -> None:
    """Take the first four labels back, and bring all objects back."""
    wishes = [Wish(key, key=key) for key in keys]
    labelling.dismiss(wishes[:4], "Ann")
    labelling.restore(wishes, "Ann")
