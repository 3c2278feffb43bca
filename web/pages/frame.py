"""The frame of every page: who looks, who acts, what is said when something is wrong.

A page reads without a script. Whatever changes something is a form with a person's name, sent from
a page of ours: other sites' forms are refused by what browsers say of where they stand.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import operator
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, unquote, urlencode, urlsplit

import jinja2
from fastapi import APIRouter, Depends, FastAPI, Form, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from markupsafe import Markup
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from records import classes
from records.keys import LOCAL
from web import errors
from web.access import Access, Client
from web.decisions import Came, Deciding, Judging
from web.rules import Rules

HERE = Path(__file__).parent.parent
KEY, PERSON, SAID = "regraft_key", "regraft_person", "regraft_said"  # names of cookies
NOTHING = "\N{EN DASH}"  # where there is no figure
YEAR = 365 * 86400
LOOK_AGAIN = 3  # seconds after which a page that waits for a decision looks again
READING = ("review", "admin")  # scopes of which one lets a person read pages

HEADERS = {
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    # Browsers say `Origin: null` of a form where they may not say where it stands.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class BadForm(ValueError):
    """A form that was not sent as our pages send it; the message says the mend."""


def selected(images: Sequence[str]) -> Sequence[str]:
    """What was selected in a grid; raises `BadForm` where nothing was, as without a script."""
    if not images:
        raise BadForm("nothing is selected: tick the pictures that are meant, and press again")
    return images


class TooNarrow(HTTPException):
    """A key that may do something, and not this."""


# --- templates ------------------------------------------------------------------------------


def percent(share: float | None) -> str:
    """A share as a percentage, a dash where it was not measured."""
    return NOTHING if share is None else f"{share:.1%}"


def between(low: float | None, high: float | None) -> str:
    """An interval of shares in percent: `49 to 94`."""
    return "" if low is None or high is None else f"{100 * low:.0f} to {100 * high:.0f}"


def when(moment: datetime | date | None) -> str:
    """A moment in UTC, as short as it is unambiguous; it stands in one line."""
    if moment is None:
        return NOTHING
    if isinstance(moment, datetime):
        moment = moment.astimezone(UTC)
        return Markup('<time datetime="{:%Y-%m-%dT%H:%MZ}">{:%Y-%m-%d %H:%M}</time>').format(
            moment, moment
        )
    return Markup("<time>{:%Y-%m-%d}</time>").format(moment)


def count(number: int | None) -> str:
    """A count with its thousands apart."""
    return NOTHING if number is None else f"{number:,}".replace(",", "\u202f")


def query(**values: object) -> str:
    """The query of an address; what is None or empty is left out."""
    given = {name: value for name, value in values.items() if value not in (None, "", False)}
    return f"?{urlencode(given)}" if given else ""


@functools.cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,  # they come and go with the program
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "when": when, "count": count}
    made.globals |= {"between": between, "query": query, "static": static_address}
    return made


def prepare() -> None:
    """Read and compile every template, so that nobody's first page waits for it."""
    for name in _templates().list_templates():
        _templates().get_template(name)
    static()


def shown(
    request: Request, template: str, facts: Mapping[str, Any], status: int = 200
) -> HTMLResponse:
    """A page. What the last act said is told once, and so is what came of a decision."""
    said, person = unquote(request.cookies.get(SAID, "")), person_of(request)
    judging, came = _decided(request, person)
    looks_again = (
        judging is not None
        and "wait" in request.query_params
        and request.url.path == f"/versions/{judging.version_id}"
    )
    page = _templates().get_template(template).render(
        facts, person=person, said=said, path=request.url.path, judging=judging, came=came,
        looks_again=looks_again,
    )  # fmt: skip
    response = HTMLResponse(page, status, HEADERS)
    if said:
        response.delete_cookie(SAID)
    if looks_again:  # whoever wants to read on in peace leaves `wait` out
        response.headers["Refresh"] = str(LOOK_AGAIN)
    return response


def _decided(request: Request, person: str) -> tuple[Judging | None, Came | None]:
    """What of decisions whoever looks may know; a picture that fails is looked at by nobody."""
    deciding: Deciding | None = request.app.state.deciding
    if not _is_looked_at(request):
        return None, None
    try:
        client_of(request)
    except HTTPException:
        return None, None
    return deciding.seen_by(person) if deciding else (None, None)


def _is_looked_at(request: Request) -> bool:
    """Whether a browser asks for a page, which a person then reads."""
    return "text/html" in request.headers.get("accept", "")


# --- static files ---------------------------------------------------------------------------

KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@functools.cache
def static() -> dict[str, tuple[bytes, str, str]]:
    """Body, kind and digest of each file by its name."""
    found = {}
    for path in sorted((HERE / "static").iterdir()):
        body = path.read_bytes()
        found[path.name] = body, KINDS[path.suffix], hashlib.sha256(body).hexdigest()
    return found


def static_address(name: str) -> str:
    """Where a file is had; another address once it has changed."""
    return f"/static/{name}?v={static()[name][2][:12]}"


# --- who looks, and who acts ------------------------------------------------------------------


def client_of(request: Request, *scopes: str) -> Client:
    """Who looks: by a key in the header or in the cookie; raises HTTPException 401 and 403."""
    access: Access = request.app.state.access
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        found = access.client(request, secret.strip() or None)
    else:
        found = _by_cookie(request)
    if not set(scopes or READING) & set(found.scopes):
        wanted = " or ".join(scopes or READING)
        raise TooNarrow(403, f"key {found.name!r} may {' and '.join(found.scopes)}, and this "
                             f"page needs {wanted}: sign in with another key")  # fmt: skip
    return found


def _by_cookie(request: Request) -> Client:
    access: Access = request.app.state.access
    key = request.cookies.get(KEY) or None
    try:
        return access.client(request, key)
    except HTTPException:
        # Browsers send a cookie to every port of a machine: this one is another service's, and
        # whoever is here needs none.
        if key is None or not rules_of(request).loopback:
            raise
        return access.client(request, None)


def rules_of(request: Request) -> Rules:
    """By which rules this service serves."""
    found: Rules = request.app.state.rules
    return found


def keep(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    """Set a cookie that no script can read; where keys are wanted, none goes out unencrypted."""
    response.set_cookie(
        name, value, max_age=seconds, httponly=True, samesite="lax", secure=encrypted(request)
    )


def encrypted(request: Request) -> bool:
    """Whether browsers reach this service by HTTPS; the proxy that sees to it is not asked."""
    rules = rules_of(request)
    return not (rules.loopback or rules.plain_http)


def _reader(request: Request) -> Client:
    return client_of(request)


def person_of(request: Request) -> str:
    """Whose name stands under what is done from this browser; empty while nobody has said."""
    try:
        client = client_of(request, "predict", "review", "admin")
    except HTTPException:
        return ""
    if client.name != LOCAL:
        return client.name
    name = unquote(request.cookies.get(PERSON, ""))
    return "" if classes.person_problem(name) else name  # whatever has put it there


def refuse_strangers(request: Request) -> None:
    """Raise `HTTPException` 403 for what a page of another site has a browser send."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    same = origin is not None and urlsplit(origin).netloc == request.headers.get("host")
    if site not in (None, "same-origin") or (origin is not None and not same):
        raise HTTPException(403, "this form stands on another site: open our page and do it there")
    if site is None and origin is None:
        raise HTTPException(403, "nothing says where this form stands: programs use /v1, people a "
                                 "browser that sends `Origin`")  # fmt: skip


def _author(request: Request, by: Annotated[str, Form(max_length=255)] = "") -> str:
    refuse_strangers(request)
    client = client_of(request, *READING)
    name = by.strip() or person_of(request)
    if client.name != LOCAL:
        name = client.name  # whose key it is, whatever a form says
    if not name:
        raise BadForm("say who you are: what is done here is kept with a name")
    if problem := classes.person_problem(name):
        raise BadForm(problem)
    request.state.person = name
    return name


def _decider(request: Request, author: Annotated[str, Depends(_author)]) -> str:
    client_of(request, "admin")
    return author


Reader = Annotated[Client, Depends(_reader)]
Author = Annotated[str, Depends(_author)]
Decider = Annotated[str, Depends(_decider)]
Why = Annotated[str, Form(max_length=2000)]


def done(request: Request, sentence: str, to: str) -> Response:
    """Go on to a page of ours, which tells what was done; the name is kept for next time.

    sentence: empty where that page says it by itself.
    """
    if not to.startswith("/") or to.startswith(("//", "/\\")):
        to = "/"
    response = RedirectResponse(to, 303, HEADERS)
    if sentence:
        keep(request, response, SAID, quote(sentence[:500]), 60)
    if person := getattr(request.state, "person", None):
        keep(request, response, PERSON, quote(person), YEAR)
    return response


# --- when something is wrong ------------------------------------------------------------------

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Page(APIRoute):
    """A route whose refusals are pages, too."""

    def get_route_handler(self) -> Handler:
        """Answer as a page whatever is raised."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                await _refuse_unwritable(request)
                return await handler(request)
            except ClientDisconnect:
                raise
            except Exception as error:
                status, sentence = in_words(request, error)
                return _problem(request, status, sentence, error)

        return answer


async def _refuse_unwritable(request: Request) -> None:
    """Raise `BadForm` for text in an address or a form that Postgres could not keep."""
    given = request.query_params.multi_items()
    if request.method == "POST":
        try:
            form = await request.form()
        except UnicodeError:
            raise BadForm("this form is in no charset of text: send it in UTF-8") from None
        given += [(name, word) for name, word in form.multi_items() if isinstance(word, str)]
    for name, word in given:
        if problem := classes.unwritable(name) or classes.unwritable(word):
            raise BadForm(f"{name[:60]!r} {problem}: write it anew")


def in_words(request: Request, error: Exception) -> tuple[int, str]:
    """The status of an error and the sentence that tells of it; what is our fault is logged."""
    refused = errors.answer(request, error)
    return refused.status_code, json.loads(bytes(refused.body))["detail"]


STRAY = {
    404: "There is nothing at {path}: the head of this page leads to all there is.",
    405: "{path} takes only what a form sends: go to the page that the form stands on.",
}


def answer_strays(app: FastAPI) -> None:
    """Answer an address that is none with a page, where it is a person who asks for it.

    Programs, and whatever asks for the API, have the same as JSON.
    """

    def stray(request: Request, error: Exception) -> Response:
        refused = errors.answer(request, error)
        words = STRAY.get(refused.status_code)
        path = request.url.path
        if words is None or not _is_looked_at(request) or f"{path}/".startswith("/v1/"):
            return refused
        page = _problem(request, refused.status_code, words.format(path=path[:80]), error)
        if "allow" in refused.headers:
            page.headers["Allow"] = refused.headers["allow"]
        return page

    app.add_exception_handler(StarletteHTTPException, stray)


def _problem(request: Request, status: int, sentence: str, error: Exception) -> Response:
    wanting_key = status == 401 or isinstance(error, TooNarrow)
    if isinstance(error, RequestValidationError):
        sentence = f"this page was asked wrongly: {sentence}"
    return shown(
        request, "problem.html",
        {"status": status, "sentence": sentence, "wanting_key": wanting_key,
         "has_key": KEY in request.cookies, "posted": request.method == "POST",
         "to": _here(request) if request.method == "GET" else _back(request),
         "back": _back(request)},
        status,
    )  # fmt: skip


def _here(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _back(request: Request) -> str:
    """The page of ours that whoever asks comes from."""
    came = urlsplit(request.headers.get("referer", ""))
    if came.netloc != request.headers.get("host"):
        return "/"
    return came.path + (f"?{came.query}" if came.query else "")


AT_ONCE = 1000  # pictures of one act on a page
Row = TypeVar("Row")


def together(rows: Sequence[Row], *fields: str) -> list[list[Row]]:
    """Rows that follow each other and agree in these fields, as those of one act on many do."""
    return [list(some) for _, some in itertools.groupby(rows, operator.attrgetter(*fields))]


def pages() -> APIRouter:
    """A router of pages, which are no part of the API."""
    return APIRouter(route_class=Page, include_in_schema=False)


# --- lists that people may have longer --------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of a table: how it is called, and by which field it sorts."""

    name: str
    field: str
    number: bool = True


def sorted_by(
    rows: Sequence[Any], columns: Sequence[Column], wanted: str | None
) -> tuple[list[Any], str]:
    """The rows by a column, and the word that says so: a field, after a `-` if it falls.

    Rows that have nothing there come last either way; an unknown word leaves them as they are.
    """
    word = wanted or ""
    field = word.removeprefix("-")
    if field not in {one.field for one in columns}:
        return list(rows), ""
    known = [row for row in rows if getattr(row, field) is not None]
    rest = [row for row in rows if getattr(row, field) is None]
    known.sort(key=lambda row: getattr(row, field), reverse=word.startswith("-"))
    return known + rest, word
