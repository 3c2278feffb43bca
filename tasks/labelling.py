"""Labelling: read what people wish for pictures of pools, write it down, let S3 follow.

No Prefect here: these acts are light, and a person waits for them.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from infra import database, settings, storage
from infra.storage import Conflict, Gone, Storage, StorageError
from records import classes, labels, moves
from records.labels import Done, Wish
from records.moves import Owed
from records.spreadsheet import disarmed
from tasks.rows import read_rows, text_problem

log = logging.getLogger("regraft")

ADDRESS = "s3://"
# Acts whose objects are moved before that is noted: what a kill lets be done twice.
TOGETHER = 256


class BadWishes(ValueError):
    """Wishes that cannot be read; the message names file, row and mend."""


@dataclass(frozen=True)
class Followed:
    """What S3 made of acts. waiting: one sentence for each whose object could not follow."""

    moved: int
    waiting: tuple[str, ...] = ()


# --- wishes ---------------------------------------------------------------------------------


def named(
    words: Iterable[str], label: str | None = None, offered: str | None = None
) -> list[Wish]:
    """Wishes for pictures that are named by digest (8 characters or more) or by key."""
    return [_wish(word, label, offered) for word in words]


def _wish(word: str, label: str | None, offered: str | None) -> Wish:
    for name, said in (("image", word), ("label", label), ("class", offered)):
        _refuse_text(word[:40], name, said or "")
    if labels.digest(word):
        return Wish(word, image=word, label=label, offered=offered)
    return Wish(word, key=word.removeprefix(ADDRESS), label=label, offered=offered)


def read(
    name: str, body: bytes, label: str | None = None, offered: str | None = None
) -> list[Wish]:
    """The wishes of a file as `regraft find` and `regraft shortlist` print them, CSV or JSON.

    Columns: `sha256` (or `image`), `key`, or both; `class_name`, what the picture was offered as;
    `label`, what a person calls it, by default the class that it was offered as; `version`, which
    had offered it. label, offered: said of all. Raises `BadRows` and `BadWishes`.
    """
    rows = read_rows(name, body, ())
    columns = {column for _, row in rows for column in row}
    if not {"sha256", "image", "key"} & columns:
        raise BadWishes(
            f"{name}: it has no column sha256, image or key: which pictures are meant?"
        )
    # A cell of this column that is empty says nothing: not what the picture was offered as.
    said = "label" if "label" in columns else "class_name"
    wishes = []
    for number, row in rows:
        where = f"{name} row {number}"
        cells = {one: _word(where, row, one) for one in
                 ("sha256", "image", "key", "label", "class_name", "version")}  # fmt: skip
        if label and cells["label"] not in ("", label):
            raise BadWishes(f"{where} says {cells['label']!r} and the command says {label!r}: "
                            "leave one out")  # fmt: skip
        version = cells["version"]
        if version and not (version.isdecimal() and len(version) < 19):  # of what Postgres holds
            raise BadWishes(
                f"{where}: version {version[:40]!r} is no number: mend it, or leave it out"
            )
        wishes.append(Wish(
            where,
            image=cells["sha256"] or cells["image"] or None,
            key=cells["key"].removeprefix(ADDRESS) or None,
            label=label or cells[said] or None,
            version=int(version) if version else None,
            offered=offered or cells["class_name"] or cells["label"] or None,
        ))  # fmt: skip
    return wishes


def _word(where: str, row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    word = "" if value is None else str(value).strip()
    if isinstance(value, dict | list | bool):
        raise BadWishes(f"{where}: {column} is {word[:40]}, which is no text")
    _refuse_text(where, column, word)
    return disarmed(word)


def _refuse_text(where: str, name: str, word: str) -> None:
    if problem := text_problem(name, word):
        raise BadWishes(f"{where}: {problem}")


# --- acts -----------------------------------------------------------------------------------


Advance = Callable[[int, int], object]  # is told how many moves are made, and of how many


def label(
    wishes: Sequence[Wish],
    by: str,
    new_classes: Collection[str] = (),
    why: str | None = None,
    advance: Advance | None = None,
) -> tuple[Done, Followed]:
    """Label pictures by a person's word, and copy them to where the next intake finds them."""
    with database.connect().transaction() as session:
        done = labels.label(session, wishes, by, new_classes, why)
    return done, follow(advance)


def dismiss(
    wishes: Sequence[Wish],
    by: str,
    unknown: bool = False,
    why: str | None = None,
    advance: Advance | None = None,
) -> tuple[Done, Followed]:
    """Say that answers are wrong, or that nobody can name the pictures; takes labels back."""
    with database.connect().transaction() as session:
        done = labels.dismiss(session, wishes, by, unknown, why)
    return done, follow(advance)


def remove(
    wishes: Sequence[Wish], by: str, why: str | None = None, advance: Advance | None = None
) -> tuple[Done, Followed]:
    """Take objects out of their pools, into the trash."""
    with database.connect().transaction() as session:
        done = labels.remove(session, wishes, by, why)
    return done, follow(advance)


def restore(
    wishes: Sequence[Wish], by: str, why: str | None = None, advance: Advance | None = None
) -> tuple[Done, Followed]:
    """Bring removed objects back."""
    with database.connect().transaction() as session:
        done = labels.restore(session, wishes, by, why)
    return done, follow(advance)


def split(
    name: str, wishes: Sequence[Wish], by: str, why: str, new_classes: Collection[str] = ()
) -> dict[str, int]:
    """Put the images that are named into other classes; answers how many went into each."""
    with database.connect().transaction() as session:
        parts = labels.parts(session, wishes)
        return classes.split(session, name, parts, by, why, new_classes)


# --- the moves that acts owe ------------------------------------------------------------------


def follow(advance: Advance | None = None) -> Followed:
    """Make the moves that acts still owe, those of a killed process included.

    Each is safe to repeat: what is written is checked by its digest, and nothing is deleted before
    its copy stands. One process at a time.
    """
    with database.connect().transaction() as session:
        count = moves.owing(session)
    if not count:
        return Followed(0)
    done, moved, waiting = 0, 0, list[str]()

    def tell(acts: int) -> None:
        nonlocal done
        done += acts
        if advance is not None:
            advance(min(done, count), count)

    after: int | None = 0
    with ThreadPoolExecutor(settings.load().workers, "regraft-follow") as pool:
        while after is not None:
            try:
                after, settled, problems = _follow_some(pool, after, tell)
            except StorageError as error:
                waiting.append(f"{error}; what was done is written down, and its objects follow "
                               "with the next act or night")  # fmt: skip
                break
            moved += settled
            waiting += problems
    return Followed(moved, tuple(waiting))


def _follow_some(
    pool: ThreadPoolExecutor, after: int, tell: Callable[[int], None]
) -> tuple[int | None, int, list[str]]:
    """The next moves: after which act to go on (None: none is left), how many, what waits."""
    store = storage.connect()
    with database.connect().transaction() as session:
        some = moves.owed(session, after, TOGETHER)
        if not some:
            return None, 0, []
        # What was done with one picture is repeated in its order.
        by_picture: defaultdict[str, list[Owed]] = defaultdict(list)
        for one in some:
            by_picture[one.sha256].append(one)
        problems: dict[int, str] = {}
        for each in pool.map(lambda acts: [(one.act_id, _move(store, one)) for one in acts],
                             by_picture.values()):  # fmt: skip
            problems |= {number: problem for number, problem in each if problem}
            tell(len(each))
        settled = [one.act_id for one in some if one.act_id not in problems]
        moves.settled(session, settled)
    return some[-1].act_id, len(settled), list(problems.values())


def _move(store: Storage, one: Owed) -> str | None:
    """Make one act's move; what keeps it from being made, if anything does."""
    try:
        if one.put and not _put(store, one.sha256, one.put, one.sources):
            return (
                f"image {one.sha256[:12]}… is labelled and cannot be copied to {one.put}: no pool "
                "holds its bytes any more; put them back, or take the label back with "
                f"`regraft dismiss {one.sha256[:12]}`"
            )
        for key in one.take:
            store.delete(key)
        if one.key and one.to_key:
            _shift(store, one.sha256, one.key, one.to_key)
    except Conflict:
        return (
            f"{one.to_key or one.put!r} holds another object, so that {one.key!r} stays where it "
            "is: move that one away, and the next act or night makes up for it"
        )
    return None


def _put(store: Storage, sha256: str, key: str, sources: Iterable[str]) -> bool:
    """Copy a picture to a key from wherever its bytes still lie; False where they do not."""
    if store.exists(key):
        return True  # a key with the digest in it, which only we write
    for source in sources:
        body = _read(store, source)
        if body is not None and hashlib.sha256(body).hexdigest() == sha256:
            store.write_once(key, body, sha256)
            return True
    return False


def _shift(store: Storage, sha256: str, key: str, to_key: str) -> None:
    """Move an object, unless it was moved before, or holds other bytes by now."""
    body = _read(store, key)
    if body is None:
        return
    if hashlib.sha256(body).hexdigest() != sha256:
        log.warning("s3://%s was overwritten since it was identified: it stays", key)
        return
    store.write_once(to_key, body, sha256)
    store.delete(key)


def _read(store: Storage, key: str) -> bytes | None:
    try:
        return store.read(key)
    except Gone:
        return None


