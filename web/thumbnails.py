"""Thumbnails of objects in S3, small enough to stand in a page by themselves."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import islice

from PIL import Image

from infra import settings, storage
from infra.storage import Changed, Gone
from vision import images
from vision.images import BadImage, Large
from web.memory import AT_ONCE

SIDE = 160
QUALITY = 80
TOGETHER = 256
# Pages have more threads than there are cores; more at a time would only take more memory.
_large = threading.Semaphore(len(os.sched_getaffinity(0)))


def thumbnails(
    places: Iterable[tuple[str, str | None]], side: int = SIDE
) -> Iterator[Image.Image | str]:
    """A thumbnail of each (key, ETag) in turn, or one line that says why there is none.

    Raises `StorageError` when S3 cannot be read at all.
    """
    store = storage.connect()

    def make(place: tuple[str, str | None]) -> Image.Image | str:
        try:
            return thumbnail(store.read(*place), side)
        except (Gone, Changed, BadImage) as problem:
            return str(problem)

    rest = iter(places)
    with ThreadPoolExecutor(settings.load().workers, "regraft-thumbnails") as pool:
        while some := list(islice(rest, TOGETHER)):  # or all would wait in memory
            yield from pool.map(make, some)


def thumbnail(body: bytes, side: int) -> Image.Image:
    """A picture made small, of large ones no more at a time than cores; raises `BadImage`."""
    try:
        return images.thumbnail(body, side, AT_ONCE)
    except Large:
        with _large:
            return images.thumbnail(body, side)


def encoded(image: Image.Image) -> bytes:
    """A thumbnail as JPEG."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
