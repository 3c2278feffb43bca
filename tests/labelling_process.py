"""A process that labels and removes pictures of a pool; light, so that it is there at once."""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess

from records.labels import Wish
from tasks import labelling


def begin(environment: Mapping[str, str], keys: Sequence[str]) -> ForkServerProcess:
    """Start one that labels the first eight as okapis, a new class, and then removes all."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_act, args=(dict(environment), list(keys)))
    process.start()
    return process


def _act(environment: dict[str, str], keys: list[str]) -> None:
    os.environ.update(environment)
    wishes = [Wish(key, key=key, label="okapi") for key in keys]
    labelling.label(wishes[:8], "Ann", ["okapi"])
    labelling.remove(wishes, "Ann")
