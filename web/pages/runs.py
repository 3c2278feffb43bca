"""Runs: what was tried when, step by step, and where Prefect tells more."""

from __future__ import annotations

import functools
import logging
import time
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Path, Request, Response

from infra import embedded, settings
from infra.embedded import EmbeddedError
from records import runs
from records.runs import RunRow
from web.database import Session
from web.pages.frame import Reader, pages, shown

router = pages()
log = logging.getLogger("regraft.web")

MOST = 100


@router.get("/runs")
def listed(request: Request, session: Session, _: Reader) -> Response:
    """The newest runs."""
    facts = {"runs": runs.listed(session, most=MOST), "took": took, "most": MOST,
             "prefect": prefect_address()}  # fmt: skip
    return shown(request, "runs.html", facts)


@router.get("/runs/{run_id}")
def one_run(
    request: Request, session: Session, _: Reader, run_id: Annotated[int, Path(ge=1, lt=2**63)]
) -> Response:
    """One run with its steps."""
    steps = runs.steps(session, run_id)
    facts = {
        "run": runs.get(session, run_id), "steps": steps, "took": took,
        "longest": max((one.seconds for one in steps), default=1.0) or 1.0,
        "prefect": prefect_address(),
    }  # fmt: skip
    return shown(request, "run.html", facts)


def took(run: RunRow) -> str:
    """How long a run took, or takes already."""
    seconds = ((run.ended_at or datetime.now(UTC)) - run.started_at).total_seconds()
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def prefect_address() -> str | None:
    """Where people find Prefect; None where it does not run. Looked for once a minute."""
    return _found(int(time.monotonic() / 60))


@functools.lru_cache(maxsize=1)
def _found(_: int) -> str | None:
    try:
        states = embedded.running(settings.load())  # a page that is looked at starts nothing
    except EmbeddedError as problem:  # the state folder of another user, say
        log.warning("where Prefect is cannot be told: %s", problem)
        return None
    (prefect,) = (one for one in states if one.name == "prefect")
    return prefect.address.removesuffix("/").removesuffix("/api") if prefect.running else None
