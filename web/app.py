"""The web application: what it serves, and what lives as long as it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from web import health, history, predictions, reviews
from web.access import Access
from web.bounds import Bounds
from web.decisions import Deciding, Decisions
from web.errors import answer_errors
from web.metrics import Counted, Metrics
from web.pages import (
    frame,
    library,
    operations,
    origins,
    overview,
    person,
    pictures,
    pools,
    runs,
    use,
    versions,
)
from web.pages import reviews as review_pages
from web.predictor import Predictor
from web.rules import Rules
from web.transaction_log import TransactionLog

ABOUT = "Ask the image classifier that serves, and look at how it does."


PAGES = (
    overview, versions, origins, use, library, pools, review_pages, runs, operations, person,
    pictures,
)  # fmt: skip


def create_app(
    rules: Rules | None = None,
    log: TransactionLog | None = None,
    decisions: Decisions | None = None,
) -> FastAPI:
    """The application by these rules; what it needs is started with it and ends with it.

    log: where answers are kept; it is closed with the application. None keeps nothing. decisions:
    what people may decide on its pages about what serves; None: nothing.
    """
    rules = rules or Rules()
    access, metrics = Access(rules.loopback), Metrics()
    deciding = Deciding(decisions) if decisions else None

    @asynccontextmanager
    async def alive(app: FastAPI) -> AsyncIterator[None]:
        predictor = Predictor(rules, access, metrics, log)
        app.state.predictor = predictor
        await asyncio.to_thread(predictor.start)
        await asyncio.to_thread(frame.prepare)
        try:
            yield
        finally:
            await _aside(predictor.close)
            if deciding is not None:
                await _aside(deciding.close)

    app = FastAPI(
        title="regraft", version=version("regraft"), description=ABOUT, lifespan=alive,
        docs_url=None, redoc_url=None,  # they run scripts from elsewhere: /docs is a page of ours
    )  # fmt: skip
    app.state.rules, app.state.access, app.state.metrics = rules, access, metrics
    app.state.decisions, app.state.deciding = decisions, deciding
    app.include_router(health.router)
    app.include_router(predictions.router)
    app.include_router(history.router)
    app.include_router(reviews.router)
    for page in PAGES:
        app.include_router(page.router)
    answer_errors(app)
    frame.answer_strays(app)
    app.add_middleware(Bounds, rules=rules)
    app.add_middleware(Counted, metrics=metrics)
    return app


async def _aside(end: Callable[[], None]) -> None:
    """End something in a thread of its own: reads of S3 that hang hold those that all share."""
    with ThreadPoolExecutor(1) as own:
        await asyncio.get_running_loop().run_in_executor(own, end)
