"""Progress for people: a bar with rate and time left, and the same as a Prefect artifact."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException
from rich.console import Console

from tasks.bar import bar

log = logging.getLogger("regraft")

# How often the artifact is written, in seconds: each write is a call to the Prefect server.
ARTIFACT_EVERY = 5.0


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Show a bar while the block runs; call the function given with how much is done so far.

    Who learns the total only later starts with None and gives it as the second argument.
    """
    artifact = _artifact(title)
    last_written = time.monotonic()
    shown = bar(Console(stderr=True))
    started = time.monotonic()
    done_so_far = 0
    with shown:
        task = shown.add_task(title, total=total)

        def advance(done: int, whole: int | None = total) -> None:
            nonlocal last_written, done_so_far
            done_so_far = done
            shown.update(task, completed=done, total=whole)
            if artifact and whole and time.monotonic() - last_written > ARTIFACT_EVERY:
                last_written = time.monotonic()
                with courtesy(f"show {title!r}"):
                    update_progress_artifact(artifact, 100.0 * done / whole)

        yield advance
    if artifact:
        with courtesy(f"show {title!r}"):
            update_progress_artifact(artifact, 100.0)
    seconds = time.monotonic() - started
    rate = done_so_far / seconds if seconds else 0.0
    log.info("%s: %d in %.1f s (%.1f/s)", title, done_so_far, seconds, rate)


def _artifact(title: str) -> UUID | None:
    """Open the artifact when a Prefect flow is running; its page shows the bar."""
    if FlowRunContext.get() is None:
        return None
    key = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    created = None
    with courtesy(f"show {title!r}"):
        created = create_progress_artifact(progress=0.0, key=key, description=title)
    return created if isinstance(created, UUID) else None


@contextmanager
def courtesy(what: str) -> Iterator[None]:
    """Do something on Prefect's pages; that it failed is said, and stops no night."""
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        log.warning("Prefect did not %s: %s", what, error)
