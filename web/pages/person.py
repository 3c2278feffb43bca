"""Who somebody is: a name on this machine's loopback, a key everywhere else; and static files."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from records.keys import LOCAL
from web.access import Access
from web.pages import frame
from web.pages.frame import Author, Reader, done, pages, shown

router = pages()


@router.get("/static/{name}")
def static(name: str) -> Response:
    """A file of our own; its address changes with it."""
    if name not in frame.static():
        raise HTTPException(404, f"there is no file {name[:80]!r}")
    body, kind, digest = frame.static()[name]
    headers = {"ETag": f'"{digest}"', "Cache-Control": "public, max-age=31536000, immutable",
               "X-Content-Type-Options": "nosniff"}  # fmt: skip
    return Response(body, media_type=kind, headers=headers)


@router.get("/you")
def you(request: Request, client: Reader) -> Response:
    """Whose name stands under what is done here."""
    return shown(request, "you.html", {"local": client.name == LOCAL})


@router.post("/you")
def name(
    request: Request, by: Author, to: Annotated[str, Form(max_length=4000)] = "/you"
) -> Response:
    """Remember a name, and go on where it was asked for."""
    return done(request, f"What you do from now on is kept as done by {by}.", to)


@router.post("/sign-in")
def sign_in(
    request: Request,
    key: Annotated[str, Form(max_length=255)],
    to: Annotated[str, Form(max_length=4000)] = "/",
) -> Response:
    """Keep a key in a cookie that no script can read, if it counts."""
    frame.refuse_strangers(request)
    access: Access = request.app.state.access
    client = access.client(request, key.strip())
    response = done(request, f"You came with the key {client.name}.", to)
    frame.keep(request, response, frame.KEY, key.strip(), frame.YEAR)
    return response


@router.post("/sign-out")
def sign_out(request: Request) -> Response:
    """Forget the key."""
    frame.refuse_strangers(request)
    response = RedirectResponse("/", 303, frame.HEADERS)
    response.delete_cookie(frame.KEY)
    response.delete_cookie(frame.PERSON)
    return response
