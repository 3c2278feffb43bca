"""Splits: the group and the split that a new image is given, once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import text
from sqlalchemy.orm import Session

from infra.database import copy_rows
from records.nearness import BANDS, near

# An image's place in its class's sequence gives its split: the first three images of a class
# land in three different splits, so no class lacks one, and it settles at 80 / 10 / 10.
SPLIT_CYCLE = ("train", "validation", "test", *["train"] * 7)


class Newcomer(Protocol):
    """What decides where a new image goes."""

    @property
    def sha256(self) -> str: ...  # noqa: D102
    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def sub_label(self) -> str: ...  # noqa: D102
    @property
    def origin(self) -> str: ...  # noqa: D102
    @property
    def group_name(self) -> str | None: ...  # noqa: D102
    @property
    def mined(self) -> bool: ...  # noqa: D102
    @property
    def facts(self) -> Mapping[str, Any]: ...  # noqa: D102


@dataclass(frozen=True)
class Place:
    """Where an image stays; `sequence` is its place in its class's line, if it drew one."""

    group_name: str
    split: str
    sequence: int | None


def places(
    session: Session, fresh: Sequence[Newcomer], class_ids: dict[str, int]
) -> dict[str, Place]:
    """Give each new image its group and split.

    Images that are near each other, or that share a group's name, form one group and get one
    split. A group that touches older images takes their split; if those disagree it is held
    out, because either side would leak. Only a group that is wholly new draws from the class's
    sequence, by its first real image.
    """
    _load_newcomers(session, fresh)
    by_sha = {one.sha256: one for one in fresh}
    leader = {sha: sha for sha in by_sha}

    def find(sha: str) -> str:
        while leader[sha] != sha:
            leader[sha] = leader[leader[sha]]
            sha = leader[sha]
        return sha

    for a, b in _near_newcomers(session):
        low, high = sorted((find(a), find(b)))
        leader[high] = low
    named: dict[str, str] = {}
    for one in fresh:
        if one.group_name:
            other = named.setdefault(one.group_name, one.sha256)
            low, high = sorted((find(other), find(one.sha256)))
            leader[high] = low
    groups: dict[str, list[Newcomer]] = defaultdict(list)
    for sha in sorted(by_sha):
        groups[find(sha)].append(by_sha[sha])

    older = _older_neighbours(session)
    lines = {(class_ids[one.label], one.sub_label) for one in fresh}
    next_number = _next_numbers(session, lines)
    placed: dict[str, Place] = {}
    for head, members in sorted(groups.items()):
        splits = {split for one in members for split, _ in older.get(one.sha256, [])}
        names = {name for one in members for _, name in older.get(one.sha256, [])}
        names |= {one.group_name for one in members if one.group_name}
        group_name = min(names) if names else head
        drawn_by = next((one for one in members if not _only_trains(one)), None)
        sequence = None
        if len(splits) > 1:
            split = "held"
        elif splits:
            split = splits.pop()
        elif drawn_by is None:
            split = "train"
        else:
            line = (class_ids[drawn_by.label], drawn_by.sub_label)
            sequence = next_number[line]
            next_number[line] += 1
            split = SPLIT_CYCLE[sequence % len(SPLIT_CYCLE)]
        for one in members:
            # Beside held-out neighbours what only trains would leak.
            leaks = _only_trains(one) and split != "train"
            placed[one.sha256] = Place(
                group_name=group_name,
                split="held" if leaks else split,
                sequence=sequence if one is drawn_by else None,
            )
    return placed


def _only_trains(one: Newcomer) -> bool:
    """Staged and synthetic images, and those that a model found: easy ones prove nothing."""
    return one.mined or one.origin != "real"


def _next_numbers(
    session: Session, lines: Iterable[tuple[int, str]]
) -> defaultdict[tuple[int, str], int]:
    """The next free place in each line (class, sub-class); one look into an index for each."""
    asked = sorted(lines)
    rows = session.execute(
        text(
            """
            SELECT class_id, sub_class, (
                SELECT max(i.sequence) + 1 FROM images i
                WHERE i.class_id = line.class_id AND i.sub_class = line.sub_class
                  AND i.sequence IS NOT NULL)
            FROM unnest(CAST(:ids AS bigint[]), CAST(:names AS text[])) line(class_id, sub_class)
            """
        ),
        {"ids": [number for number, _ in asked], "names": [name for _, name in asked]},
    )
    numbers: defaultdict[tuple[int, str], int] = defaultdict(int)
    for class_id, sub_class, number in rows:
        numbers[class_id, sub_class] = number or 0
    return numbers


def _load_newcomers(session: Session, fresh: Sequence[Newcomer]) -> None:
    session.execute(text("DROP TABLE IF EXISTS fresh"))
    session.execute(
        text(
            """
            CREATE TEMP TABLE fresh (sha256 text, dhash bigint, dhash_mirror bigint,
                                     group_name text) ON COMMIT DROP
            """
        )
    )
    rows = (
        (one.sha256, one.facts["dhash"], one.facts["dhash_mirror"], one.group_name)
        for one in fresh
    )
    copy_rows(session, "fresh", ["sha256", "dhash", "dhash_mirror", "group_name"], rows)
    for shift in BANDS:
        session.execute(text(f"CREATE INDEX ON fresh (((dhash >> {shift}) & 65535))"))
    session.execute(text("ANALYZE fresh"))


def _near_newcomers(session: Session) -> list[tuple[str, str]]:
    """Pairs of the images in `fresh` that are near each other, mirrored or not."""
    pairs = session.execute(text(near("n.sha256, s.sha256", "fresh", "fresh")))
    return [(a, b) for a, b in pairs if a != b]


def _older_neighbours(session: Session) -> dict[str, list[tuple[str, str]]]:
    """For each new image the (split, group) of library images near it or in its named group."""
    by_hash = near("n.sha256, s.split, s.group_name", "fresh", "images")
    by_name = """
        SELECT n.sha256, i.split, i.group_name FROM fresh n
        JOIN images i ON i.group_name = n.group_name
    """
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for sha256, split, group_name in session.execute(text(f"{by_hash} UNION {by_name}")):
        found[sha256].append((split, group_name))
    return found
