"""Loading: put a folder of images into S3, under the keys that intake and benchmark read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from infra import settings, storage
from infra.storage import bad_key
from tasks.progress import progress


class BadFolder(ValueError):
    """A folder that holds nothing to load, or is none."""


@dataclass(frozen=True)
class Load:
    """What one load did; `skipped` says for each file left where it is why."""

    images: int
    classes: int
    empty_classes: tuple[str, ...]
    skipped: tuple[str, ...]


def load_folder(folder: Path, prefix: str) -> Load:
    """Upload `<class>[/<sub-class>]/<file>` to `<prefix><class>[/<sub-class>]/<file>`.

    Files that S3 holds with the same bytes already are written again unchanged, which intake
    does not notice: the ETag is the same. Raises `BadFolder` when there is nothing to load.
    """
    if not folder.is_dir():
        raise BadFolder(f"{folder} is not a folder: name one that holds a folder for each class")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path))
    files = {name.name: sorted(_files(name)) for name in classes}
    items, skipped = [], []
    for path in (path for paths in files.values() for path in paths):
        key = prefix + path.relative_to(folder).as_posix()
        problem = bad_key(key) or (None if path.stat().st_size else "the file is empty")
        if problem:
            skipped.append(f"{path.relative_to(folder)}: {problem}")
        else:
            items.append((path, key))
    if not items:
        raise BadFolder(
            f"{folder} holds no images: expected {folder}/<class>/<image>, found "
            f"{len(classes)} folders"
        )
    store = storage.connect()
    with (
        ThreadPoolExecutor(settings.load().workers) as pool,
        progress(f"load {folder.name}", len(items)) as advance,
    ):
        uploads = pool.map(lambda item: store.write(item[1], item[0]), items)
        for done, _ in enumerate(uploads, start=1):
            advance(done)
    return Load(
        images=len(items),
        classes=sum(bool(paths) for paths in files.values()),
        empty_classes=tuple(name for name, paths in files.items() if not paths),
        skipped=tuple(skipped),
    )


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not _hidden(path):
            yield path


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")
