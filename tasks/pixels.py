"""Pixels of library and benchmark images: from the cache, else from S3, decoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from infra import settings, storage
from infra.storage import StorageError
from tasks.progress import progress
from vision.images import examine
from vision.pixels import PixelCache, Pixels
from vision.plan import Geometry


class MissingImages(RuntimeError):
    """Images that a step needs can no longer be read from S3."""


def cache() -> PixelCache:
    """The pixel cache of this machine."""
    known = settings.load()
    return PixelCache(known.cache_dir / "pixels", known.cache_gigabytes)


def opened(geometry: Geometry, sources: Mapping[str, tuple[str, str | None]]) -> Pixels:
    """Pixels of every image named, by sha256 -> (key, ETag or None).

    What the cache lacks (another geometry, a dropped file, another machine) is read from S3 and
    decoded into a new cache file. Raises `MissingImages` when bytes are gone or have changed.
    """
    held = cache()
    pixels = held.open(geometry)
    missing = pixels.missing(list(sources))
    if not missing:
        return pixels
    name = f"refill-{hashlib.sha256(''.join(sorted(missing)).encode()).hexdigest()[:16]}"
    lost = _decode_into(held, name, geometry, {sha: sources[sha] for sha in missing})
    if lost:
        shown = "; ".join(lost[:3])
        raise MissingImages(
            f"{len(lost)} of {len(sources)} images cannot be read: {shown}. Restore the objects, "
            "or run the night again so that it leaves them out"
        )
    return held.open(geometry)


def _decode_into(
    held: PixelCache,
    name: str,
    geometry: Geometry,
    sources: Mapping[str, tuple[str, str | None]],
) -> list[str]:
    store = storage.connect()
    lost: list[str] = []

    def decode(item: tuple[int, str, str, str | None]) -> None:
        row, sha256, key, etag = item
        try:
            facts, pixels = examine(store.read(key, etag), geometry)
        except StorageError as error:
            if error.temporary:
                raise
            lost.append(str(error))
            return
        if pixels is None or facts.sha256 != sha256:
            lost.append(f"{key!r} is no longer the image it was")
            return
        writer.put(row, sha256, pixels)

    items: Iterable[tuple[int, str, str, str | None]] = [
        (row, sha256, key, etag) for row, (sha256, (key, etag)) in enumerate(sources.items())
    ]
    with (
        held.writer(name, geometry, len(sources)) as writer,
        ThreadPoolExecutor(settings.load().workers) as pool,
        progress("decode into the pixel cache", len(sources)) as advance,
    ):
        for done, _ in enumerate(pool.map(decode, items), start=1):
            advance(done)
    return lost
