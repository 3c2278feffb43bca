"""How large a request's body may be and how long it may take, whatever reads it."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.errors import AGAIN, told
from web.rules import Rules

# The one path that takes pictures. Other bodies are read in one go, by which nobody else is
# answered, and some before it is known who sends them.
PICTURES = "/v1/predictions"
CLOSE = {"Connection": "close"}  # the rest of the body is not read, so nothing can follow it


HOLD = "regraft.hold"


def hold(request: Request, more: int) -> None:
    """Count bytes that a request makes the service hold, besides its body, until it is answered.

    Raises HTTPException 503 where all requests together would hold too many.
    """
    request.scope[HOLD](more)


class Bounds:
    """Middleware that counts a body while it arrives, and ends what is too large or too slow."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules
        self._held = 0  # bytes of all bodies that were read for requests under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, its body bounded."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        rules = self._rules
        most = rules.most_bytes if scope["path"] == PICTURES else rules.form_bytes
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and len(declared) < 20 and int(declared) > most:
            await told(413, _too_large(most), CLOSE)(scope, receive, send)
            return
        taken = held = 0
        whole = False
        deadline = time.monotonic() + rules.body_seconds

        async def bounded() -> Message:
            nonlocal taken, whole
            if whole:  # what comes now tells that the client hangs up
                return await receive()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408,
                    f"the body did not arrive within {rules.body_seconds:g} s: send it "
                    "faster, or fewer pictures at a time",
                    CLOSE,
                ) from None
            more = len(message.get("body", b""))
            taken += more
            if taken > most:
                raise HTTPException(413, _too_large(most), CLOSE)
            hold_more(more)
            whole = not message.get("more_body", False)
            return message

        def hold_more(more: int) -> None:
            nonlocal held
            held += more
            self._held += more
            if self._held > rules.held_bytes:
                raise HTTPException(
                    503, "too many requests at once: try again soon", CLOSE | AGAIN
                )

        scope[HOLD] = hold_more
        try:
            await self._app(scope, bounded, send)
        finally:
            self._held -= held


def _too_large(most: int) -> str:
    return (
        f"the body has more than {most / 1e6:g} MB: send smaller pictures, or fewer at a time"
    )
