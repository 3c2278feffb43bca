"""Pictures of pages: thumbnails, originals and maps, each under an address that never changes.

An image is named by its digest, so that of a browser that has it already nothing is asked but
whether it may.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import Path, Query, Request, Response

from infra import database, storage
from infra.storage import Gone
from records import pictures, reviews
from vision import images
from web import kept, maps
from web.pages.frame import Reader, pages
from web.thumbnails import encoded, thumbnail

router = pages()

Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
Transaction = Annotated[uuid.UUID | None, Query(description="whose kept picture it is")]
SIDES = Literal["160", "320", "640"]
# Of a digest there is one picture for ever, and it is nobody else's business.
KEPT = "private, max-age=604800, immutable"
# Bytes of strangers are shown as pictures or not at all.
HARMLESS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}


@router.get("/pictures/{sha256}")
def small(
    request: Request,
    _: Reader,
    sha256: Digest,
    side: SIDES = "160",
    transaction: Transaction = None,
) -> Response:
    """An image as a JPEG no larger than this, upright."""
    return _known_or(request, f"{sha256}-{side}", lambda: (
        encoded(thumbnail(_body(sha256, transaction), int(side))), "image/jpeg"
    ))  # fmt: skip


@router.get("/pictures/{sha256}/original")
def original(
    request: Request, _: Reader, sha256: Digest, transaction: Transaction = None
) -> Response:
    """The bytes of an image as they lie in S3."""

    def made() -> tuple[bytes, str]:
        body = _body(sha256, transaction)
        return body, f"image/{images.kind(body).lower()}"

    return _known_or(request, sha256, made)


@router.get("/pictures/{sha256}/map")
def explained(
    request: Request,
    _: Reader,
    sha256: Digest,
    version: Annotated[int, Query(ge=1, lt=2**63)],
    class_name: Annotated[str | None, Query(alias="class", max_length=255)] = None,
) -> Response:
    """Where a version looked in an image that it was evaluated on, for a class."""
    named = hashlib.sha256((class_name or "").encode()).hexdigest()[:16]

    def made() -> tuple[bytes, str]:
        with database.connect().transaction() as session:
            return encoded(maps.overlay(session, version, sha256, class_name)), "image/jpeg"

    return _known_or(request, f"{sha256}-{version}-{named}", made)


def _known_or(request: Request, tag: str, made: Callable[[], tuple[bytes, str]]) -> Response:
    """A picture, or that what the browser has is still right."""
    headers = {"ETag": f'"{tag}"', "Cache-Control": KEPT, **HARMLESS}
    known = {one.strip() for one in request.headers.get("if-none-match", "").split(",")}
    if f'"{tag}"' in known:
        return Response(status_code=304, headers=headers)
    body, kind = made()
    return Response(body, media_type=kind, headers=headers)


def _body(sha256: str, transaction: uuid.UUID | None) -> bytes:
    """The bytes of an image, of a transaction's kept picture if one is named; raises `Gone`."""
    with database.connect().transaction() as session:  # not held while S3 is read
        if transaction is not None:
            answered = reviews.of_transaction(session, transaction)
            if answered.sha256 != sha256:
                raise Gone(f"transaction {transaction} has another picture")
            return kept.body(answered)
        place = pictures.place(session, sha256)
    if place is None:
        raise Gone(f"no object holds image {sha256[:12]}… any more")
    return storage.connect().read(*place)
