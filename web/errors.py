"""What a client is told when something is wrong: one sentence that names the thing and the mend."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from infra.database import SchemaMismatch, Unreachable
from infra.storage import BadKey, Gone, StorageError
from vision.export import BadExport

log = logging.getLogger("regraft.web")

AGAIN = {"Retry-After": "1"}
OURS = ("records.", "vision.", "infra.", "web.")
# By kind of what our own acts and queries raise, the particular before the general. An error of
# the web says its status itself.
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (Unreachable, 503),
    (SchemaMismatch, 503),
    (Gone, 404),
    (BadKey, 422),
    (StorageError, 503),
    (LookupError, 404),
    (ValueError, 422),
    (RuntimeError, 409),
)
AWAY = "Postgres or S3 cannot be used at the moment: try again soon"


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
    app.add_exception_handler(ClientDisconnect, _hung_up)
    for kind, _ in STATUS:
        app.add_exception_handler(kind, _ours)
    app.add_exception_handler(OperationalError, _away)
    app.add_exception_handler(NoConnection, _away)
    app.add_exception_handler(Exception, _broken)


def told(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer to a request that is refused."""
    return JSONResponse({"detail": sentence}, status, headers)


def answer(request: Request, error: Exception) -> JSONResponse:
    """What is told of an error that something raised; a page says the same in its own form."""
    if isinstance(error, HTTPException):
        return _refused(request, error)
    if isinstance(error, RequestValidationError):
        return _invalid(request, error)
    if isinstance(error, OperationalError | NoConnection):
        return _away(request, error)
    if isinstance(error, tuple(kind for kind, _ in STATUS)):
        return _ours(request, error)
    return _broken(request, error)


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for nothing else)
    path, headers = request.url.path, dict(error.headers or {})
    if error.status_code == 404 and error.detail == "Not Found":  # of the router, not ours
        return told(404, f"there is nothing at {path}: /docs shows what there is")
    if error.status_code == 405:
        allow = headers.get("Allow", "another method")
        return told(405, f"{request.method} is not for {path}: use {allow}", headers)
    if error.status_code == 400 and error.detail == "There was an error parsing the body":
        return told(400, "the body is no JSON in UTF-8: send it as such")
    return told(error.status_code, str(error.detail), headers)


def _hung_up(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # which nobody reads


def sentence(errors: Sequence[Any], skip: int = 0) -> str:
    """What is wrong with the first value that is, as pydantic found it; one mend at a time.

    skip: how many parts of a value's place say nothing to a client.
    """
    first, *rest = errors
    where = ".".join(str(part) for part in first["loc"][skip:]) or "the body"
    given = repr(first.get("input"))
    shown = f"{where}={given}" if len(given) <= 60 and first["type"] != "missing" else where
    more = f" (and {len(rest)} more)" if rest else ""
    return f"{shown}: {first['msg'][:1].lower()}{first['msg'][1:]}{more}"


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101  (registered for nothing else)
    return told(422, sentence(error.errors(), skip=1))


def _ours(request: Request, error: Exception) -> JSONResponse:
    """An error of ours has its sentence; one of a library is a fault of this program."""
    if not f"{type(error).__module__}.".startswith(OURS):
        return _broken(request, error)
    status = getattr(error, "status", None)
    if status is None:
        if isinstance(error, BadExport):
            return _broken(request, error)
        status = next(status for kind, status in STATUS if isinstance(error, kind))
        if status == 503:
            return _away(request, error)
    return told(status, str(error), AGAIN if status == 503 else None)


def _away(request: Request, error: Exception) -> JSONResponse:
    # its own sentence is for whoever runs the service: it names hosts
    log.error("%s %s: %s", request.method, request.url.path, error)
    return told(503, AWAY, AGAIN)


def _broken(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return told(500, "this failed here, and the service's log says how: tell whoever runs it")
