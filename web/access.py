"""Who may ask: keys with scopes, and nobody's key on this machine's own loopback.

`router = APIRouter(dependencies=[Depends(allowed("review"))])` guards a router; a handler that
wants to know who asks takes `client: Annotated[Client, Depends(allowed("review"))]`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from records.keys import LOCAL, KeyRow, digest_of
from records.tables import SCOPES

FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="A key of `regraft key make`; not needed on the service's own loopback.",
)


@dataclass(frozen=True)
class Client:
    """Who asks: the name of a key and its scopes, or `local` on loopback, which may do all."""

    name: str
    scopes: tuple[str, ...]


class Access:
    """The keys in force, which the follower of the database keeps up to date."""

    def __init__(self, loopback: bool) -> None:
        """loopback: the service listens nowhere else, and wants no key of whoever is here."""
        self._loopback = loopback
        self._keys: Mapping[str, KeyRow] | None = None

    def renew(self, keys: list[KeyRow]) -> None:
        """Take these keys, and no others, from now on."""
        self._keys = {one.digest: one for one in keys}

    def client(self, request: Request, secret: str | None) -> Client:
        """Who asks; raises HTTPException 401, or 503 while no keys could be read."""
        if secret is None and self._loopback:
            if problem := _from_elsewhere(request):
                raise _unknown(problem)
            return Client(LOCAL, SCOPES)
        if secret is None:
            raise _unknown("a key is missing: send it as `Authorization: Bearer regraft_…`")
        if self._keys is None:
            raise HTTPException(
                503, "the keys could not be read yet: try again soon", {"Retry-After": "1"}
            )
        known = self._keys.get(digest_of(secret))
        if known is None:
            raise _unknown("this key is unknown or revoked: ask for another, `regraft key make`")
        return Client(known.name, tuple(known.scopes))


def _unknown(sentence: str) -> HTTPException:
    return HTTPException(401, sentence, {"WWW-Authenticate": "Bearer"})


def _from_elsewhere(request: Request) -> str | None:
    """Why a request that reached the loopback comes from somewhere else all the same, or None."""
    if any(name in request.headers for name in FORWARDED):
        return "a proxy passed this on, so it needs a key: send `Authorization: Bearer regraft_…`"
    # Browsers say where a page comes from that makes them ask; others send no such header.
    if request.headers.get("sec-fetch-site", "none") in {"cross-site", "same-site"}:
        return "a page of another site asks in your browser's name, so it needs a key"
    # A name that leads here and is not the loopback's was bent to it by somebody's DNS, to let a
    # page of theirs speak to us.
    host = request.headers.get("host", "localhost")
    if not is_loopback(_without_port(host)):
        return f"{host!r} is not this machine's loopback, so it needs a key: use 127.0.0.1"
    return None


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return (name if name and port.isdigit() else host).strip("[]")


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, so that nobody else reaches a server on it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed(*scopes: str) -> Callable[..., Awaitable[Client]]:
    """A dependency that gives the client, provided that its key has one of these scopes."""
    wanted = " or ".join(scopes)

    async def check(  # or each would cost a thread
        request: Request,
        shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Client:
        access: Access = request.app.state.access
        client = access.client(request, shown.credentials if shown else None)
        if not set(scopes) & set(client.scopes):
            raise HTTPException(
                403,
                f"key {client.name!r} may {' and '.join(client.scopes)}, this needs {wanted}: "
                f"`regraft key make NAME --scope {scopes[0]}`",
            )
        return client

    return check
