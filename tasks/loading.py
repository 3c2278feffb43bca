"""Loading: put a folder of images into S3, under the keys that intake and benchmark read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from infra import settings, storage
from infra.storage import bad_key
from tasks.progress import progress

DEEPEST = 3  # class, sub-class, file


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
    found = sorted(path for path in folder.iterdir() if not _hidden(path))
    classes = [path for path in found if path.is_dir()]
    files = {name.name: sorted(_files(name)) for name in classes}
    items, skipped = [], []
    for path in chain((path for path in found if path.is_file()), *files.values()):
        relative = path.relative_to(folder)
        key = prefix + relative.as_posix()
        problem = bad_key(key) or _problem(path, len(relative.parts))
        if problem:
            # The system's names may hold what no terminal can show.
            skipped.append(f"{str(relative).encode(errors='replace').decode()!r}: {problem}")
        else:
            items.append((path, key))
    if not items:
        raise BadFolder(
            f"{folder} holds no images: expected {folder}/<class>/<image>, found "
            f"{len(classes)} folders"
        )
    _upload(folder, items)
    return Load(
        images=len(items),
        classes=sum(bool(paths) for paths in files.values()),
        empty_classes=tuple(name for name, paths in files.items() if not paths),
        skipped=tuple(skipped),
    )


def load_files(folder: Path, prefix: str, there: Mapping[str, int]) -> tuple[str, ...]:
    """Upload all files of a folder, however deep, to `<prefix>…`; why any was left where it is.

    there: keys that need no upload, with their sizes: those whose file has the same. Raises
    `BadFolder` when there is nothing to load.
    """
    found = sorted(_files(folder))
    items, skipped = [], []
    for path in found:
        relative = path.relative_to(folder)
        key = prefix + relative.as_posix()
        if problem := bad_key(key) or _unreadable(path):
            skipped.append(f"{str(relative).encode(errors='replace').decode()!r}: {problem}")
        elif there.get(key) != path.stat().st_size:
            items.append((path, key))
    if len(skipped) == len(found):
        raise BadFolder(f"{folder} holds no images: {'; '.join(skipped[:3]) or 'it is empty'}")
    if items:
        _upload(folder, items)
    return tuple(skipped)


def _upload(folder: Path, items: Sequence[tuple[Path, str]]) -> None:
    store = storage.connect()
    with (
        ThreadPoolExecutor(settings.load().workers) as pool,
        progress(f"load {folder.name}", len(items)) as advance,
    ):
        uploads = pool.map(lambda item: store.write(item[1], item[0]), items)
        for done, _ in enumerate(uploads, start=1):
            advance(done)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        within = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in within.parts):
            yield path


def _problem(path: Path, depth: int) -> str | None:
    if depth == 1:
        return "no class: put it into the folder of its class"
    if depth > DEEPEST:
        return "too deep: <class>/<sub-class>/<file> is the deepest"
    return _unreadable(path)


def _unreadable(path: Path) -> str | None:
    if not path.stat().st_size:
        return "the file is empty"
    return None if os.access(path, os.R_OK) else "may not be read: change its permissions"


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")
