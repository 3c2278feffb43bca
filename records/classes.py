"""Classes: who made them, and what becomes of them when they are renamed, merged or split.

A name that was once a class's is never another's: it points, in one step, to the class that it
became, and nothing that was stored under it is rewritten.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from infra.database import lock_for_transaction
from records.objects import LABELLED, normalised
from records.tables import Class, ClassAct

LONGEST_NAME = 255  # bytes: a class is a segment of a key
MOST_TOLD = 5
# Part of a WITH: an answer is right by today's names, too, where (predicted, label) is among these.
# They are few, and hashed once; names looked up for each answer took longer than all the rest.
ALIKE = """alike AS MATERIALIZED (
    SELECT x.name, y.name AS other FROM class_names x JOIN class_names y USING (today)
    WHERE x.name <> y.name)"""


class BadClass(ValueError):
    """A class that cannot be made, renamed, merged or split as asked; one line with the mend."""


class UnknownClass(BadClass):
    """Names that the library does not know; `names` are those that could be made."""

    def __init__(self, message: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


@dataclass(frozen=True)
class NameRow:
    """One name there is or was. became: what it is called today; None for a class.

    usable: images a snapshot may choose, mined: those of them that a version found. by, why, at:
    of the act that made the name, or ended it; by is None where a batch brought it.
    """

    name: str
    became: str | None
    act: str
    usable: int
    mined: int
    by: str | None
    why: str | None
    at: datetime


@dataclass(frozen=True)
class ClassActRow:
    """One act on a class; images: how many it moved, or the class had."""

    id: int
    act: str
    name: str
    to_name: str | None
    images: int
    done_by: str
    why: str | None
    done_at: datetime


# --- names ----------------------------------------------------------------------------------


def today(session: Session) -> dict[str, str]:
    """What each name that is no class any more is called today."""
    rows = session.execute(text("SELECT name, today FROM class_names WHERE name <> today"))
    return {name: now for name, now in rows}  # noqa: C416  (dict(Row) is typed less well)


def names(session: Session) -> dict[str, str]:
    """Every name there is or was, and what it is called today."""
    rows = session.execute(text("SELECT name, today FROM class_names"))
    return {name: now for name, now in rows}  # noqa: C416


def as_known_to(
    class_names: Collection[str], labels: Iterable[str], today: Mapping[str, str]
) -> list[str]:
    """The labels in the words of a version that knows these classes.

    A version keeps the names that its classes had when it was trained: labels of before and after
    find the class that they mean. What it does not know is called as it is today.
    """
    mine: dict[str, str] = {}
    for name in sorted(class_names):
        mine.setdefault(today.get(name, name), name)
    mine |= {name: name for name in class_names}

    def word(label: str) -> str:
        now = today.get(label, label)
        return mine.get(label) or mine.get(now) or now

    asked = list(labels)
    known = {label: word(label) for label in set(asked)}
    return [known[label] for label in asked]


def renamed(class_names: Sequence[str], today: Mapping[str, str]) -> tuple[str, ...]:
    """Class names as they are called today, each once: of two that were merged the other stays."""
    taken = {name for name in class_names if name not in today}
    result = []
    for name in class_names:
        now = today.get(name, name)
        if now != name and now in taken:
            now = name
        taken.add(now)
        result.append(now)
    return tuple(result)


def name_problem(name: str) -> str | None:
    """Why nothing can be called so, or None."""
    from infra.storage import bad_key  # loads boto3, for which questions need not wait

    if not name:
        return "a class needs a name"
    if "/" in name:
        return f"{name[:60]!r} holds a slash: sub-classes are folders, and no part of the name"
    if problem := bad_key(f"{LABELLED}{name}/x"):
        return f"{name[:60]!r} can be no folder: {problem}"
    if name.startswith("."):
        return f"{name[:60]!r} begins with a dot: folders of that kind are hidden"
    return None


def unwritable(word: str) -> str | None:
    """Why Postgres cannot keep a text, or None."""
    if "\0" in word:
        return "holds a NUL character"
    if any("\ud800" <= character <= "\udfff" for character in word):
        return "holds half a surrogate pair, which is no text"
    return None


def person_problem(by: str) -> str | None:
    """Why nobody can be called so, or None."""
    if len(by) > LONGEST_NAME or unwritable(by):
        return f"{by[:40]!r} is nobody's name: --by NAME says which person does this"
    if by.casefold().split(":")[0].strip() in ("", "model", "version", "regraft"):
        return f"{by!r} is nobody's name: --by NAME says which person does this"
    return None


def resolve(
    session: Session, wanted: Iterable[str], new: Collection[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """What each of these names is called today, and those of `new` that are to be made.

    Raises `UnknownClass` for names that nobody allowed, and `BadClass` for those that only differ
    in spelling from a class that there is, or can be no name.
    """
    known = names(session)
    spelt = {name.casefold(): now for name, now in known.items()}
    allowed = {normalised(name) for name in new}
    found: dict[str, str] = {}
    missing: list[str] = []
    for word in dict.fromkeys(wanted):
        name = normalised(word)
        if name in known:
            found[word] = known[name]
        elif problem := name_problem(name):
            raise BadClass(problem)
        elif name.casefold() in spelt:
            raise BadClass(
                f"{name!r} is {spelt[name.casefold()]!r} spelt another way: use that spelling"
            )
        else:
            found[word] = name
            spelt[name.casefold()] = name
            missing.append(name)
    unknown = [name for name in missing if name not in allowed]
    if unknown:
        raise UnknownClass(_told(unknown, set(known.values())), unknown)
    return found, missing


def _told(unknown: list[str], known: Collection[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in unknown[:MOST_TOLD])
    more = f" and {len(unknown) - MOST_TOLD} more" if len(unknown) > MOST_TOLD else ""
    near = difflib.get_close_matches(unknown[0], sorted(known), n=1)
    meant = f" (is {near[0]!r} meant?)" if near else ""
    verb = "are no classes" if len(unknown) > 1 else "is no class"
    return (
        f"{shown}{more} {verb} of this library{meant}: mend the label, or say that it is a "
        f"new one, --new-class {unknown[0][:60]!r}"
    )


def listed(session: Session) -> list[NameRow]:
    """Every name there is or was, by name, with who made or ended it."""
    rows = session.execute(
        text(
            """
            WITH counted AS (
                SELECT class_id, count(*) FILTER (WHERE split <> 'held') AS usable,
                       count(*) FILTER (WHERE mined AND split <> 'held') AS mined
                FROM images WHERE withdrawn_at IS NULL GROUP BY class_id)
            SELECT c.name, b.name, coalesce(a.act, 'intake'), coalesce(n.usable, 0),
                   coalesce(n.mined, 0), coalesce(a.done_by, c.made_by), a.why,
                   coalesce(a.done_at, c.created_at)
            FROM classes c
            LEFT JOIN classes b ON b.id = c.became_id
            LEFT JOIN counted n ON n.class_id = c.id
            LEFT JOIN LATERAL (
                SELECT * FROM class_acts
                WHERE CASE WHEN b.id IS NULL
                    THEN (act = 'make' AND name = c.name) OR (act = 'rename' AND to_name = c.name)
                    ELSE name = c.name AND act IN ('rename', 'merge') END
                ORDER BY id DESC LIMIT 1) a ON true
            ORDER BY c.name
            """
        )
    )
    return [NameRow(*row) for row in rows]


def acts(session: Session, most: int = 100) -> list[ClassActRow]:
    """What people did with classes, the newest first."""
    columns = [getattr(ClassAct, name) for name in ClassActRow.__dataclass_fields__]
    rows = session.execute(select(*columns).order_by(ClassAct.id.desc()).limit(most))
    return [ClassActRow(*row) for row in rows]


# --- acts -----------------------------------------------------------------------------------


def make(session: Session, name: str, by: str, why: str | None = None) -> None:
    """Make a class without images; `resolve` has said that it is none yet.

    Where somebody makes it at the same time, theirs is it.
    """
    statement = upsert(Class).values(name=name, made_by=_person(by)).on_conflict_do_nothing()
    if session.scalar(statement.returning(Class.id)) is not None:
        _log(session, "make", name, None, 0, by, why)


def rename(session: Session, name: str, to: str, by: str, why: str) -> int:
    """Call a class otherwise from now on; answers how many images it has.

    The old name stays as a pointer. A class can have a name back that was once its own, and no
    other one. Done already, nothing is done. Raises `BadClass`, and `Busy` while a run goes on.
    """
    _begin(session, by, why)
    new, old = normalised(to), normalised(name)
    if _is_done(session, "rename", old, new):
        return 0
    number = _living(session, old)
    if problem := name_problem(new):
        raise BadClass(problem)
    for other, now in names(session).items():
        if other.casefold() == new.casefold() and now != old:
            raise BadClass(_taken(new, other, now))
    images = _count(session, number)
    # Its own name of once, or another spelling of it, is free for it.
    session.execute(
        text("DELETE FROM classes WHERE name = :new AND became_id = :id"),
        {"new": new, "id": number},
    )
    session.execute(update(Class).where(Class.id == number).values(name=new))
    session.execute(insert(Class).values(name=old, became_id=number))
    _log(session, "rename", old, new, images, by, why)
    return images


def _taken(new: str, other: str, now: str) -> str:
    if other != new:
        return f"{new!r} is {other!r} spelt another way, which is taken: choose another name"
    if now == other:
        return f"{new!r} is a class already: `regraft class merge` puts two into one"
    return f"{new!r} was a name of {now!r} and stays its: choose another name"


def merge(session: Session, name: str, into: str, by: str, why: str) -> int:
    """Put all images of a class into another one; answers how many.

    Their splits stay. The old name stays as a pointer, for keys and manifests that use it, too.
    Done already, nothing is done. Raises `BadClass`, and `Busy` while a run goes on.
    """
    _begin(session, by, why)
    old, new = normalised(name), normalised(into)
    if _is_done(session, "merge", old, new):
        return 0
    number, other = _living(session, old), _living(session, new)
    if number == other:
        raise BadClass(f"{old!r} and {new!r} are one class already")
    moved = _move(session, number, other, None)
    session.execute(
        text("UPDATE classes SET became_id = :new WHERE id = :old OR became_id = :old"),
        {"old": number, "new": other},
    )
    _log(session, "merge", old, new, moved, by, why)
    return moved


def split(
    session: Session,
    name: str,
    parts: Mapping[str, str],
    by: str,
    why: str,
    new_classes: Collection[str] = (),
) -> dict[str, int]:
    """Put some images of a class into others, by digest; answers how many went into each.

    What is not named stays, with its name. Those that are there already are not counted. All or
    nothing. Raises `BadClass`, `UnknownClass`, and `Busy` while a run goes on.
    """
    _begin(session, by, why)
    old = normalised(name)
    number = _living(session, old)
    meant, missing = resolve(session, parts.values(), new_classes)
    for label in parts.values():
        if meant[label] == old != normalised(label):
            raise BadClass(f"{label!r} is called {old!r} today: a part needs a name of its own")
    _refuse_strangers(session, old, {sha256: meant[label] for sha256, label in parts.items()})
    for one in missing:
        make(session, one, by, why)
    counts = {}
    for label in sorted(set(meant.values())):
        chosen = [sha256 for sha256, said in parts.items() if meant[said] == label]
        moved = _move(session, number, _living(session, label), chosen) if label != old else 0
        if moved:
            _log(session, "split", old, label, moved, by, why)
            act = session.scalar(text("SELECT max(id) FROM class_acts"))
            say_again(session, chosen, label, by, f"split/{act}")
        counts[label] = moved
    return counts


def _refuse_strangers(session: Session, name: str, parts: Mapping[str, str]) -> None:
    """Refuse digests that are no images of the class, nor of the part that they are to go to."""
    rows = session.execute(
        text(
            """
            SELECT i.sha256, c.name FROM images i JOIN classes c ON c.id = i.class_id
            WHERE i.sha256 = ANY(:digests)
            UNION ALL
            SELECT sha256, NULL FROM benchmark_images WHERE sha256 = ANY(:digests)
            """
        ),
        {"digests": list(parts)},
    )
    found = {sha256: label for sha256, label in rows}  # noqa: C416
    problems = []
    for sha256, part in parts.items():
        if sha256 not in found:
            problems.append(f"the library has no image {sha256[:12]}…")
        elif found[sha256] is None:
            problems.append(f"{sha256[:12]}… is in the benchmark, where nothing is relabelled: "
                            "`regraft benchmark withdraw` takes it out")  # fmt: skip
        elif found[sha256] not in (name, part):
            problems.append(f"{sha256[:12]}… is {found[sha256]!r} and not {name!r}")
    if problems:
        more = f" and {len(problems) - MOST_TOLD} more" if len(problems) > MOST_TOLD else ""
        raise BadClass(f"nothing was split: {'; '.join(problems[:MOST_TOLD])}{more}")


def _move(session: Session, number: int, to: int, digests: list[str] | None) -> int:
    """Give images of a class (None: all) to another, and note each."""
    rows = session.execute(
        text(
            """
            WITH moved AS (
                -- a place belongs to the class that gave it; the split stays
                UPDATE images SET class_id = :to, sequence = NULL
                WHERE class_id = :number
                  AND (CAST(:digests AS text[]) IS NULL
                       OR sha256 = ANY(CAST(:digests AS text[])))
                RETURNING sha256)
            INSERT INTO label_changes (sha256, kind, from_class, to_class)
            SELECT sha256, 'relabelled', (SELECT name FROM classes WHERE id = :number),
                   (SELECT name FROM classes WHERE id = :to)
            FROM moved ORDER BY sha256
            """
        ),
        {"number": number, "to": to, "digests": digests},
    )
    return rows.rowcount  # type: ignore[attr-defined, no-any-return]


def say_again(session: Session, digests: list[str], label: str, by: str, act: str) -> None:
    """Let keys and manifests of these images say the new label, should they be read again.

    act: what to call the manifest that says so.
    """
    values = {"digests": digests, "label": label, "by": f"person:{by}", "act": act}
    session.execute(
        text(
            """
            UPDATE objects SET label = :label
            WHERE sha256 = ANY(:digests) AND state = 'accepted' AND label IS NOT NULL
            """
        ),
        values,
    )
    # As a manifest of its own, since the newest one speaks.
    session.execute(
        text(
            """
            WITH said AS (
                SELECT DISTINCT ON (m.key) m.* FROM manifest_rows m JOIN objects o ON o.key = m.key
                WHERE o.sha256 = ANY(:digests) AND o.state = 'accepted' AND m.problem IS NULL
                ORDER BY m.key, m.manifest_id DESC, m.row DESC
            ), written AS (
                INSERT INTO manifests (key, etag, rows)
                SELECT :act, :label, count(*) FROM said
                HAVING count(*) > 0 RETURNING id)
            INSERT INTO manifest_rows (manifest_id, row, key, label, sub_label, origin, group_name,
                                       labelled_by, box)
            SELECT written.id, row_number() OVER (ORDER BY said.key), said.key, :label,
                   said.sub_label, said.origin, said.group_name, :by, said.box
            FROM said, written
            """
        ),
        values,
    )


def _begin(session: Session, by: str, why: str) -> None:
    """Keep names still while a run relies on them, and intake from deciding meanwhile."""
    _person(by)
    if not why.strip():
        raise BadClass("say why: --why TEXT")
    lock_for_transaction(session, "regraft-night")
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('regraft-leak'))"))


def _person(by: str) -> str:
    if problem := person_problem(by):
        raise BadClass(problem)
    return by.strip()


def _is_done(session: Session, act: str, name: str, to: str) -> bool:
    """Whether the name has become just that by this act, so that a second run changes nothing."""
    newest = select(ClassAct.act, ClassAct.to_name).where(ClassAct.name == name)
    row = session.execute(
        newest.where(ClassAct.act.in_(("rename", "merge"))).order_by(ClassAct.id.desc()).limit(1)
    ).first()
    return row is not None and tuple(row) == (act, to) and names(session).get(name) == to


def _living(session: Session, name: str) -> int:
    row = session.execute(
        text(
            """
            SELECT c.id, b.name AS became FROM classes c LEFT JOIN classes b ON b.id = c.became_id
            WHERE c.name = :name
            """
        ),
        {"name": name},
    ).first()
    if row is None:
        near = difflib.get_close_matches(name, sorted(names(session)), n=1)
        meant = f" (is {near[0]!r} meant?)" if near else ""
        raise BadClass(f"{name[:60]!r} is no class{meant}: `regraft class list` lists them")
    if row.became is not None:
        raise BadClass(f"{name!r} is called {row.became!r} today: use that name")
    return int(row.id)


def _count(session: Session, number: int) -> int:
    return session.scalar(
        text("SELECT count(*) FROM images WHERE class_id = :id"), {"id": number}
    ) or 0


def _log(
    session: Session, act: str, name: str, to: str | None, images: int, by: str, why: str | None
) -> None:
    session.execute(
        insert(ClassAct).values(
            act=act, name=name, to_name=to, images=images, done_by=by.strip(), why=why
        )
    )
