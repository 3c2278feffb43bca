"""Pictures that people look at while they review: of transactions, library, benchmark, pools."""

from __future__ import annotations

from PIL import Image
from sqlalchemy.orm import Session

from infra import storage
from infra.storage import Gone
from records import pictures
from records.pools import ReadObject
from records.reviews import Answered
from vision import images
from web.thumbnails import thumbnail

SIDE = 512  # pixels at most, either way


def read(answered: Answered) -> ReadObject:
    """A transaction's kept picture, read and measured as a pool's are; raises `Gone`."""
    store, key = storage.connect(), _key(answered)
    listed = next((one for one in store.list(key) if one.key == key), None)
    if listed is None:
        raise Gone(f"the picture of {answered.name} is not kept any more")
    facts, _ = images.examine(store.read(listed.key, listed.etag), None)
    return ReadObject(
        listed.key, listed.etag, listed.size, facts.sha256, facts.problem, facts.width,
        facts.height, facts.dhash, facts.dhash_mirror,
    )  # fmt: skip


def picture(answered: Answered) -> Image.Image:
    """A transaction's kept picture; raises `Gone` and `BadImage`."""
    return shown(body(answered))


def body(answered: Answered) -> bytes:
    """The bytes of a transaction's kept picture; raises `Gone`."""
    return storage.connect().read(_key(answered))


def shown(body: bytes) -> Image.Image:
    """A picture as people look at it, upright and no larger than a screen needs."""
    return thumbnail(body, SIDE)


def _key(answered: Answered) -> str:
    if answered.image_key is None:
        raise Gone(f"the picture of {answered.name} was not kept: `regraft web` says which are")
    return answered.image_key


def body_of(session: Session, sha256: str) -> bytes:
    """The bytes of an image that anybody has answered; raises `Gone`."""
    place = pictures.place(session, sha256)
    if place is None:
        raise Gone(f"no object holds image {sha256[:12]}… any more")
    return storage.connect().read(*place)
