"""Somebody who labels and removes pictures of a pool, here or in a process that may be killed."""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess

from records.labels import Wish
from tasks import labelling


def begin(environment: Mapping[str, str], keys: Sequence[str]) -> ForkServerProcess:
    """Start `act` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["labelling_process"])
    process = context.Process(target=_act_there, args=(dict(environment), list(keys)))
    process.start()
    return process


def _act_there(environment: dict[str, str], keys: list[str]) -> None:
    os.environ.update(environment)
    act(keys)


def act(keys: Sequence[str]) -> None:
    """Label the first eight as okapis, a new class, and then remove all."""
    wishes = [Wish(key, key=key, label="okapi") for key in keys]
    labelling.label(wishes[:8], "Ann", ["okapi"])
    labelling.remove(wishes, "Ann")
