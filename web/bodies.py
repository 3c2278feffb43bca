"""The pictures of a request: one as its body, several as a form, or objects of S3 by their keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from infra import storage
from infra.storage import BadKey, Changed, Gone, bad_key
from vision.images import too_large
from web.bounds import hold
from web.errors import AGAIN, sentence
from web.rules import Rules

FIELD = "image"
PLAIN = "application/octet-stream"
WAYS = (
    "send one picture as the body (image/jpeg, image/png, image/webp or image/bmp), several as "
    f"multipart/form-data in fields called {FIELD!r}, or keys of S3 as application/json"
)
Named = tuple[str | None, bytes]  # file name or key, and the picture's bytes


class Keys(BaseModel):
    """Objects of the service's bucket."""

    model_config = ConfigDict(extra="forbid")
    keys: list[str] = Field(
        min_length=1,
        description="Keys of pictures, under a prefix that the service allows.",
        examples=[["pools/gate-camera/2026-11-22/0001.jpg"]],
    )


async def pictures(request: Request, rules: Rules) -> list[Named]:
    """The pictures that a request brings or names; raises HTTPException or an error of ours."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == PLAIN:
        found: list[Named] = [(None, await request.body())]
    elif kind == "multipart/form-data":
        found = await _uploaded(request, rules)
    elif kind == "application/json":
        keys = _keys(await request.body(), rules)
        try:
            async with asyncio.timeout(rules.answer_seconds):
                return await _stored(request, keys, rules)
        except TimeoutError:
            late = f"S3 did not give {_one_of(keys)} within {rules.answer_seconds:g} s: try again"
            raise HTTPException(503, late, AGAIN) from None
    else:
        said = f"content type {kind!r}" if kind else "no content type"
        raise HTTPException(415, f"{said}: {WAYS}")
    for number, (name, body) in enumerate(found, start=1):
        if problem := too_large(len(body)):
            raise refused(number, name, problem)
    return found


def refused(number: int, name: str | None, problem: object) -> HTTPException:
    """Which picture of a request cannot be answered, and why."""
    return HTTPException(422, f"image {number}{f' ({name!r})' if name else ''}: {problem}")


async def _uploaded(request: Request, rules: Rules) -> list[Named]:
    # the parser's own limits, so that the first field too many ends it
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=rules.most_pictures, max_fields=0
    )
    parser.spool_max_size = rules.most_bytes  # nothing of a picture touches the disk
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError) as error:  # the latter of names in an odd charset
        problem = str(getattr(error, "message", error)).rstrip(".")
        raise HTTPException(
            422,
            f"this form cannot be read ({problem}): send 1 to "
            f"{rules.most_pictures} files in fields called {FIELD!r}, and nothing else",
        ) from None
    try:
        found = []
        for field, value in form.multi_items():
            if field != FIELD or not isinstance(value, UploadFile):
                raise HTTPException(
                    422, f"form field {field[:60]!r}: call each file's field {FIELD!r}"
                )
            # A charset of the client's choice lets in half a letter, which no answer can hold.
            name = (value.filename or "").encode(errors="backslashreplace").decode()
            found.append((name or None, await value.read()))
    finally:
        await form.close()
    if not found:
        raise HTTPException(422, f"the form holds no file: send some in fields called {FIELD!r}")
    return found


def _keys(body: bytes, rules: Rules) -> list[str]:
    if len(body) > rules.form_bytes:  # of which nobody else is answered while it is read
        raise HTTPException(
            413, f"keys: the body has more than {rules.form_bytes / 1e6:g} MB: name fewer pictures"
        )
    try:
        given: Any = json.loads(body)
        keys = Keys.model_validate(given).keys
    except ValidationError as error:
        raise HTTPException(422, sentence(error.errors())) from None
    except (ValueError, RecursionError) as error:
        raise HTTPException(
            422, f'the body is no JSON ({error}): send {{"keys": ["pools/…"]}}'
        ) from None
    if len(keys) > rules.most_pictures:
        raise HTTPException(
            422, f"keys: {len(keys)} pictures at once, at most {rules.most_pictures} are answered"
        )
    for key in keys:
        # before the prefix, or `pools/../secret` would have a right one
        if problem := bad_key(key):
            raise BadKey(f"{key[:200]!r} is refused: {problem}")
        if not key.startswith(rules.prefixes):
            allowed = ", ".join(rules.prefixes) or "none"
            raise HTTPException(
                403, f"{key!r} is not under a prefix that clients may name: allowed are {allowed}"
            )
    return keys


async def _stored(request: Request, keys: Sequence[str], rules: Rules) -> list[Named]:
    store = storage.connect()
    try:
        found = await asyncio.gather(*(asyncio.to_thread(store.look, key) for key in keys))
    except Gone:
        raise HTTPException(404, f"there is no object {_one_of(keys)}: check it") from None
    for number, one in enumerate(found, start=1):
        if problem := too_large(one.size):
            raise refused(number, one.key, problem)
    total = sum(one.size for one in found)
    if total > rules.most_bytes:
        raise HTTPException(
            413,
            f"the objects have {total / 1e6:.0f} MB together, at most "
            f"{rules.most_bytes / 1e6:g} MB are answered at once: name fewer",
        )
    hold(request, total)
    try:
        bodies = await asyncio.gather(
            *(asyncio.to_thread(store.read, one.key, one.etag) for one in found)
        )
    except (Gone, Changed):
        raise HTTPException(
            409, f"{_one_of(keys)} was changed while it was read: ask again"
        ) from None
    return list(zip(keys, bodies, strict=True))


def _one_of(keys: Sequence[str]) -> str:
    return repr(keys[0]) if len(keys) == 1 else f"one of {', '.join(map(repr, keys))}"
