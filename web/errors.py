"""What a client is told when something is wrong: one sentence that names the thing and the mend."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from infra.database import Busy, Unreachable
from infra.storage import Gone, StorageError

log = logging.getLogger("regraft.web")

OURS = ("records.", "vision.", "infra.", "web.")
# By kind of what our own acts and queries raise, the particular before the general.
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (Unreachable, 503),
    (Busy, 409),
    (Gone, 404),
    (LookupError, 404),
    (ValueError, 422),
    (StorageError, 503),
    (RuntimeError, 409),
)


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str = Field(examples=["image 1: truncated JPEG: send it again"])


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How a route describes its refusals: `responses=problems(404, 422)`."""
    return {status: {"model": Problem} for status in statuses}


def answer_errors(app: FastAPI) -> None:
    """Have every refusal of this application answered as a `Problem`."""
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    for kind, _ in STATUS:
        app.add_exception_handler(kind, _ours)
    app.add_exception_handler(Exception, _broken)


def _told(
    status: int, sentence: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status, headers)


def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for nothing else)
    headers = dict(error.headers or {})
    return _told(error.status_code, str(error.detail), headers)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    """Say what is wrong with the first value that is; there is one mend at a time."""
    assert isinstance(error, RequestValidationError)  # noqa: S101  (registered for nothing else)
    first, *rest = error.errors()
    where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    given = repr(first.get("input"))
    shown = f"{where}={given}" if len(given) <= 60 and first["type"] != "missing" else where
    more = f" (and {len(rest)} more)" if rest else ""
    return _told(422, f"{shown}: {first['msg']}{more}")


def _ours(request: Request, error: Exception) -> JSONResponse:
    """An error of ours has its sentence; one of a library is a fault of this program."""
    if not f"{type(error).__module__}.".startswith(OURS):
        return _broken(request, error)
    status = next(status for kind, status in STATUS if isinstance(error, kind))
    return _told(status, str(error), {"Retry-After": "1"} if status == 503 else None)


def _broken(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _told(500, "this failed here, and the service's log says how: tell whoever runs it")
