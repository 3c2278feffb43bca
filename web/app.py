"""The web application: what it serves, and what lives as long as it does."""

from __future__ import annotations

from fastapi import FastAPI

from web.access import Access
from web.errors import answer_errors
from web.rules import Rules


def create_app(rules: Rules | None = None) -> FastAPI:
    """The application by these rules; what it needs is started with it and ends with it."""
    rules = rules or Rules()
    app = FastAPI(title="regraft")
    app.state.rules = rules
    app.state.access = Access(rules.loopback)
    answer_errors(app)
    return app
