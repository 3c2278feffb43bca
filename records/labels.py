"""What people do with pictures of pools: label, dismiss, remove, restore.

An act is a row, written once, and from then on it counts: filters and intake know it. Its objects
in S3 follow: each act owes a move until somebody has made it (`owed`, `settled`), at once on the
command line, with the next night after a kill.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from infra.storage import bad_key
from records import classes
from records.objects import LABELLED, normalised
from records.tables import PoolAct, PoolMove

TRASH = "trash/"
# Acts that say what a picture is; the newest one speaks.
SAYING = ("label", "dismiss", "unknown")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SHORTEST_DIGEST = 8
MOST_TOLD = 5


class BadLabels(ValueError):
    """Acts that cannot be done as asked, so that none was; one line names the rows and the mend."""


@dataclass(frozen=True)
class Wish:
    """One picture as a person named it, and what it shall be called.

    where: what to call this wish in a message. image: a digest, or 8 characters or more of one.
    key: an object of a pool. Both must mean the same picture. version: what had offered it, by
    default the version that answered it last.
    """

    where: str
    image: str | None = None
    key: str | None = None
    label: str | None = None
    version: int | None = None


@dataclass(frozen=True)
class Done:
    """What came of it, in pictures, or in objects where those are moved.

    changed: acted on; already: so before. repeated: wishes that said the same as an earlier one.
    made: classes that are new.
    """

    changed: int
    already: int
    repeated: int = 0
    made: tuple[str, ...] = ()


@dataclass(frozen=True)
class ActRow:
    """One act, with what had offered the picture."""

    id: int
    sha256: str
    act: str
    class_name: str | None
    key: str | None
    to_key: str | None
    version_id: int | None
    predicted: str | None
    confidence: float | None
    done_by: str
    why: str | None
    done_at: datetime


@dataclass(frozen=True)
class Owed:
    """One act whose objects are still to follow.

    put: where the labelled copy belongs, if the picture has a label; take: copies of labels that
    no longer stand. sources: keys that held the picture. key, to_key: from where a removed or
    restored object goes where, unless another act has overtaken this one.
    """

    act_id: int
    sha256: str
    act: str
    put: str | None = None
    take: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    key: str | None = None
    to_key: str | None = None


# --- acts -----------------------------------------------------------------------------------


def label(
    session: Session,
    wishes: Sequence[Wish],
    by: str,
    new_classes: Collection[str] = (),
    why: str | None = None,
) -> Done:
    """Say of each picture what it is: it comes into the library with the next intake, as mined.

    All or nothing. Raises `BadLabels`, and `classes.UnknownClass` for names that `new_classes`
    does not allow.
    """
    _begin(session, by)
    _refuse([f"{one.where} has no label" for one in wishes if not normalised(one.label or "")])
    found, problems = _pictures(session, wishes)
    _refuse(problems)
    meant, missing = classes.resolve(session, [one.label or "" for one in wishes], new_classes)
    wanted: dict[str, tuple[Wish, str]] = {}
    for one, sha256 in zip(wishes, found, strict=True):
        name = meant[one.label or ""]
        first, said = wanted.setdefault(sha256, (one, name))
        if said != name:
            problems.append(f"{one.where} says {name!r} of the picture that {first.where} calls "
                            f"{said!r}: keep one")  # fmt: skip
    known = {one.sha256: one for one in _known(session, list(wanted))}
    fresh: dict[str, str] = {}
    for sha256, (one, name) in wanted.items():
        now = known[sha256]
        if now.standing == "label" and now.called == name:
            continue
        if problem := _unlabelable(now, name):
            problems.append(f"{one.where}: {problem}")
        elif now.standing == "label" or now.library is None:
            fresh[sha256] = name
    _refuse(problems)
    for name in missing:
        classes.make(session, name, by, why)
    _write(
        session, "label",
        [_Act(sha256, name, None, _labelled_key(name, known[sha256]), wanted[sha256][0].version)
         for sha256, name in fresh.items()],
        by, why,
    )  # fmt: skip
    repeated = len(wishes) - len(wanted)
    return Done(len(fresh), len(wanted) - len(fresh), repeated, tuple(missing))


def dismiss(
    session: Session,
    wishes: Sequence[Wish],
    by: str,
    unknown: bool = False,
    why: str | None = None,
) -> Done:
    """Say that the answer is wrong, or that nobody can name the picture; takes back its label.

    What had come into the library by that label is withdrawn by the next intake. All or nothing.
    """
    _begin(session, by)
    act = "unknown" if unknown else "dismiss"
    found, problems = _pictures(session, wishes)
    _refuse(problems)
    asked = dict(zip(found, wishes, strict=True))
    fresh = [one for one in _known(session, list(asked)) if one.standing != act]
    acts = [_Act(one.sha256, None, None, None, asked[one.sha256].version) for one in fresh]
    _write(session, act, acts, by, why)
    return Done(len(fresh), len(asked) - len(fresh), len(wishes) - len(asked))


def remove(session: Session, wishes: Sequence[Wish], by: str, why: str | None = None) -> Done:
    """Take objects out of their pools, into the trash: by key one, by digest all copies.

    All or nothing; `restore` brings them back.
    """
    _begin(session, by)
    there, removed = _chosen(session, wishes)
    _refuse(
        f"{key!r} cannot move to the trash: {problem}"
        for key, sha256 in there
        if (problem := bad_key(_trashed(key, sha256)))
    )
    acts = [_Act(sha256, None, key, _trashed(key, sha256), None) for key, sha256 in there]
    _write(session, "remove", acts, by, why)
    _say_gone(session, there, True)
    return Done(len(there), len(removed))


def restore(session: Session, wishes: Sequence[Wish], by: str, why: str | None = None) -> Done:
    """Bring removed objects back to where they were: by key one, by digest all copies.

    All or nothing.
    """
    _begin(session, by)
    there, removed = _chosen(session, wishes)
    _refuse(
        f"{key!r} holds another object now: move that one away first"
        for key in _taken(session, [key for key, _ in removed])
    )
    acts = [_Act(sha256, None, _trashed(key, sha256), key, None) for key, sha256 in removed]
    _write(session, "restore", acts, by, why)
    _say_gone(session, removed, False)
    return Done(len(removed), len(there))


def _trashed(key: str, sha256: str) -> str:
    """Where a removed object goes; with its digest, since a key may be filled and emptied again."""
    return f"{TRASH}{sha256}/{key}"


def parts(session: Session, wishes: Sequence[Wish]) -> dict[str, str]:
    """By digest the labels that wishes give to images of the library, named by digest or key."""
    rows = session.execute(
        text(
            """
            WITH asked AS MATERIALIZED (
                SELECT * FROM unnest(CAST(:places AS int[]), CAST(:images AS text[]),
                                     CAST(:keys AS text[])) one (place, image, key))
            SELECT place, i.sha256 FROM asked JOIN images i
              ON i.sha256 >= asked.image AND i.sha256 < asked.image || 'g'
            UNION
            SELECT place, o.sha256 FROM asked JOIN objects o ON o.key = asked.key
            WHERE asked.image IS NULL AND o.state = 'accepted' AND o.gone_at IS NULL
            """
        ),
        {
            "places": list(range(len(wishes))),
            "images": [_digest(one.image) for one in wishes],
            "keys": [one.key for one in wishes],
        },
    )
    matches: defaultdict[int, set[str]] = defaultdict(set)
    for place, sha256 in rows:
        matches[place].add(sha256)
    found: dict[str, str] = {}
    problems = []
    for place, one in enumerate(wishes):
        if len(matches[place]) != 1 or not normalised(one.label or ""):
            word = (one.image or one.key or "")[:80]
            problems.append(f"{one.where} has no label" if matches[place] and not one.label else
                            f"{one.where} names {len(matches[place])} images of the library "
                            f"({word!r}): give one digest or key")  # fmt: skip
            continue
        [sha256] = matches[place]
        if found.setdefault(sha256, one.label or "") != one.label:
            problems.append(f"{one.where} gives {sha256[:12]}… a second label: keep one")
    _refuse(problems)
    return found


def listed(session: Session, most: int = 100) -> list[ActRow]:
    """What people did with pictures of pools, the newest first."""
    columns = [getattr(PoolAct, name) for name in ActRow.__dataclass_fields__]
    rows = session.execute(select(*columns).order_by(PoolAct.id.desc()).limit(most))
    return [ActRow(*row) for row in rows]


# --- what acts owe to S3 --------------------------------------------------------------------


def owing(session: Session) -> int:
    """How many acts have moves that are still to be made."""
    return session.scalar(select(func.count()).select_from(PoolMove)) or 0


def owed(session: Session, after: int, most: int) -> list[Owed]:
    """The oldest acts after this one that owe a move; nobody else is given any until commit."""
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('regraft-pool-moves'))"))
    rows = session.execute(
        text(
            """
            SELECT a.id, a.sha256, a.act, a.key, a.to_key,
                   CASE WHEN said.act = 'label' THEN said.to_key END AS put,
                   ARRAY(SELECT DISTINCT to_key FROM pool_acts l
                         WHERE l.sha256 = a.sha256 AND l.act = 'label'
                           AND (said.act <> 'label' OR l.to_key <> said.to_key)) AS take,
                   ARRAY(SELECT key FROM pool_objects o WHERE o.sha256 = a.sha256
                         ORDER BY gone_at NULLS FIRST, key)
                   || ARRAY(SELECT to_key FROM pool_acts r
                            WHERE r.sha256 = a.sha256 AND r.act = 'remove') AS sources,
                   overtaken.id IS NOT NULL AS overtaken
            FROM pool_moves m JOIN pool_acts a ON a.id = m.act_id
            LEFT JOIN LATERAL (
                SELECT act, to_key FROM pool_acts s
                WHERE s.sha256 = a.sha256 AND s.act = ANY(:saying)
                ORDER BY s.id DESC LIMIT 1) said ON true
            LEFT JOIN LATERAL (
                SELECT id FROM pool_acts b WHERE b.sha256 = a.sha256 AND b.id > a.id
                  AND a.act IN ('remove', 'restore') AND b.act IN ('remove', 'restore')
                  AND (b.key = a.to_key OR b.to_key = a.to_key) LIMIT 1) overtaken ON true
            WHERE m.act_id > :after ORDER BY m.act_id LIMIT :most
            """
        ),
        {"after": after, "most": most, "saying": list(SAYING)},
    )
    result = []
    for row in rows:
        if row.act in SAYING:
            result.append(Owed(row.id, row.sha256, row.act, row.put, tuple(row.take),
                               tuple(dict.fromkeys(row.sources))))  # fmt: skip
        elif row.overtaken:
            result.append(Owed(row.id, row.sha256, row.act))
        else:
            result.append(Owed(row.id, row.sha256, row.act, key=row.key, to_key=row.to_key))
    return result


def settled(session: Session, act_ids: Sequence[int]) -> None:
    """Note that these acts owe nothing more."""
    session.execute(
        text("DELETE FROM pool_moves WHERE act_id = ANY(:ids)"), {"ids": list(act_ids)}
    )


# --- what intake asks -----------------------------------------------------------------------


def labelled_by(session: Session, digests: Collection[str]) -> dict[str, str]:
    """Who labelled those of these pictures that came from a pool and whose label stands."""
    rows = session.execute(
        text(
            """
            SELECT sha256, done_by FROM (
                SELECT DISTINCT ON (sha256) * FROM pool_acts
                WHERE sha256 = ANY(:digests) AND act = ANY(:saying) ORDER BY sha256, id DESC) newest
            WHERE act = 'label'
            """
        ),
        {"digests": list(digests), "saying": list(SAYING)},
    )
    return {sha256: by for sha256, by in rows}  # noqa: C416  (dict(Row) is typed less well)


def taken_back(session: Session, object_ids: Collection[int]) -> set[int]:
    """Which of these objects are copies by a label that stands no longer."""
    rows = session.scalars(
        text(
            """
            SELECT o.id FROM objects o
            WHERE o.id = ANY(:ids)
              AND EXISTS (SELECT 1 FROM pool_acts a WHERE a.sha256 = o.sha256 AND a.act = 'label'
                          AND a.to_key = o.key)
              AND o.key IS DISTINCT FROM (
                  SELECT CASE WHEN s.act = 'label' THEN s.to_key END FROM pool_acts s
                  WHERE s.sha256 = o.sha256 AND s.act = ANY(:saying) ORDER BY s.id DESC LIMIT 1)
            """
        ),
        {"ids": list(object_ids), "saying": list(SAYING)},
    )
    return set(rows)


# --- what is there --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Act:
    sha256: str
    class_name: str | None
    key: str | None
    to_key: str | None
    version: int | None


@dataclass(frozen=True)
class _Known:
    """A picture as it stands. standing: the act that speaks; called: its label of today.

    library: its class there, if a person had uploaded it. key: an object that holds it now.
    """

    sha256: str
    standing: str | None
    called: str | None
    library: str | None
    in_benchmark: bool
    near_benchmark: bool
    key: str | None


def _begin(session: Session, by: str) -> None:
    """Take acts and intake's decisions one after the other."""
    if not by.strip() or by.casefold().split(":")[0].strip() in ("model", "version", "regraft"):
        raise BadLabels(f"{by!r} is nobody's name: --by NAME says which person does this")
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('regraft-leak'))"))


def _refuse(found: Iterable[str]) -> None:
    if problems := list(found):
        more = f" and {len(problems) - MOST_TOLD} more" if len(problems) > MOST_TOLD else ""
        raise BadLabels(f"nothing was done: {'; '.join(problems[:MOST_TOLD])}{more}")


def _pictures(session: Session, wishes: Sequence[Wish]) -> tuple[list[str], list[str]]:
    """The digest of each picture, '' with one sentence for each wish that means none, or several.

    A key that is empty means what was removed from it.
    """
    rows = session.execute(
        text(
            f"""
            WITH asked AS MATERIALIZED (
                SELECT * FROM unnest(CAST(:places AS int[]), CAST(:images AS text[]),
                                     CAST(:keys AS text[])) one (place, image, key))
            SELECT place, 'image', i.sha256 FROM asked JOIN pool_images i
              ON i.sha256 >= asked.image AND i.sha256 < asked.image || 'g'
            UNION
            SELECT place, 'key', o.sha256 FROM asked
            JOIN pools p ON starts_with(asked.key, p.prefix)
            JOIN pool_objects o ON o.pool_id = p.id AND o.key = asked.key
             AND o.gone_at IS NULL AND o.problem IS NULL
            UNION
            SELECT place, 'trash', t.sha256 FROM asked JOIN ({_TRASH}) t ON t.key = asked.key
            """  # noqa: S608  (a constant of this module)
        ),
        {
            "places": list(range(len(wishes))),
            "images": [_digest(one.image) for one in wishes],
            "keys": [one.key for one in wishes],
        },
    )
    by: dict[str, defaultdict[int, set[str]]] = {
        how: defaultdict(set) for how in ("image", "key", "trash")
    }
    for place, how, sha256 in rows:
        by[how][place].add(sha256)
    found, problems = [], []
    for place, one in enumerate(wishes):
        images, keyed = by["image"][place], by["key"][place] or by["trash"][place]
        meant = images if one.image else keyed
        # its bytes say what a picture is; a key may be empty by now, but not hold another
        if images and keyed:
            meant = images & keyed
        if len(meant) == 1:
            found.append(next(iter(meant)))
        else:
            found.append("")
            problems.append(f"{one.where} {_nothing(one, images, keyed)}")
    return found, problems


def _digest(word: str | None) -> str | None:
    """A word that may begin a digest; other words find nothing."""
    if word is None or len(word) < SHORTEST_DIGEST or set(word.lower()) - set("0123456789abcdef"):
        return None
    return word.lower()


def _nothing(one: Wish, images: set[str], keyed: set[str]) -> str:
    """Why a wish means no single picture."""
    if not one.image and not one.key:
        return "names no image: give its digest or its key"
    if images and keyed and not images & keyed:
        return f"names one image by its digest, and {one.key!r} holds another"
    if len(images) > 1 or len(keyed) > 1:
        return f"names several images ({one.image or one.key!r}): use the whole digest"
    word = one.image or one.key or ""
    return f"names {word[:80]!r}, which no pool holds: `regraft identify` reads a pool"


def _known(session: Session, digests: list[str]) -> list[_Known]:
    rows = session.execute(
        text(
            """
            SELECT p.sha256, said.act, n.today, c.name,
                   EXISTS (SELECT 1 FROM benchmark_images b WHERE b.sha256 = p.sha256),
                   coalesce(p.mark = 'near benchmark', false),
                   (SELECT min(key) FROM pool_objects o
                    WHERE o.sha256 = p.sha256 AND o.gone_at IS NULL AND o.problem IS NULL)
            FROM pool_images p
            LEFT JOIN LATERAL (
                SELECT act, class_name FROM pool_acts a
                WHERE a.sha256 = p.sha256 AND a.act = ANY(:saying)
                ORDER BY id DESC LIMIT 1) said ON true
            LEFT JOIN class_names n ON n.name = said.class_name
            -- what is in the library by such an act is there by that alone
            LEFT JOIN images i ON i.sha256 = p.sha256 AND i.withdrawn_at IS NULL AND NOT i.mined
            LEFT JOIN classes c ON c.id = i.class_id
            WHERE p.sha256 = ANY(:digests) ORDER BY p.sha256
            """
        ),
        {"digests": digests, "saying": list(SAYING)},
    )
    return [_Known(*row) for row in rows]


def _unlabelable(now: _Known, name: str) -> str | None:
    """Why a picture cannot be labelled so."""
    if now.in_benchmark:
        return "it is in the benchmark, which no training may see"
    if now.near_benchmark:
        return "it nearly repeats a benchmark image, which no training may see"
    if now.standing != "label" and now.library not in (None, name):
        return f"the library has it as {now.library!r}: move its object under {LABELLED}{name}/"
    if now.key is None:
        return "its object is gone from the pool: `regraft restore` brings back what was removed"
    return None


def _labelled_key(name: str, now: _Known) -> str:
    suffix = PurePosixPath(now.key or "").suffix.lower()
    return f"{LABELLED}{name}/{now.sha256}{suffix if suffix in SUFFIXES else ''}"


# Objects as (key, sha256): those that are there, and those in the trash.
_LIVE = """
    SELECT key, sha256 FROM pool_objects WHERE gone_at IS NULL AND problem IS NULL
"""
_TRASH = """
    SELECT r.key, r.sha256 FROM pool_acts r WHERE r.act = 'remove'
      AND NOT EXISTS (SELECT 1 FROM pool_acts l WHERE l.sha256 = r.sha256 AND l.id > r.id
                      AND l.act = 'restore' AND l.to_key = r.key)
"""


def _chosen(
    session: Session, wishes: Sequence[Wish]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The objects that are meant, in their pools and in the trash: (key, sha256), by key.

    Of a wish with a key that one, of others all copies. Refuses a wish that means none.
    """
    found, problems = _pictures(session, wishes)
    _refuse(problems)
    keyed = {(one.key, sha256) for one, sha256 in zip(wishes, found, strict=True) if one.key}
    whole = {sha256 for one, sha256 in zip(wishes, found, strict=True) if not one.key}

    def meant(where: str) -> list[tuple[str, str]]:
        rows = session.execute(
            text(f"SELECT DISTINCT key, sha256 FROM ({where}) o WHERE sha256 = ANY(:digests)"),  # noqa: S608
            {"digests": sorted(set(found))},
        )
        return sorted((key, one) for key, one in rows if one in whole or (key, one) in keyed)

    there, removed = meant(_LIVE), meant(_TRASH)
    known = {*there, *removed}
    lost = {one for _, one in known}
    _refuse(
        f"{one.where} names {(one.key or sha256)[:80]!r}, and no pool holds such an object now"
        for one, sha256 in zip(wishes, found, strict=True)
        if ((one.key, sha256) not in known if one.key else sha256 not in lost)
    )
    return there, [one for one in removed if one not in there]


def _taken(session: Session, keys: list[str]) -> list[str]:
    rows = session.scalars(
        text(
            """
            SELECT DISTINCT o.key FROM unnest(CAST(:keys AS text[])) asked (key)
            JOIN pools p ON starts_with(asked.key, p.prefix)
            JOIN pool_objects o ON o.pool_id = p.id AND o.key = asked.key AND o.gone_at IS NULL
            ORDER BY o.key
            """
        ),
        {"keys": keys},
    )
    return list(rows)


def _say_gone(session: Session, objects: list[tuple[str, str]], gone: bool) -> None:
    session.execute(
        text(
            """
            UPDATE pool_objects o SET gone_at = CASE WHEN :gone THEN now() END
            FROM unnest(CAST(:keys AS text[]), CAST(:digests AS text[])) moved (key, sha256)
            WHERE o.sha256 = moved.sha256 AND o.key = moved.key
            """
        ),
        {
            "gone": gone,
            "keys": [key for key, _ in objects],
            "digests": [sha256 for _, sha256 in objects],
        },
    )


def _write(session: Session, act: str, acts: list[_Act], by: str, why: str | None) -> None:
    """Append acts, each with what had offered its picture, and with the move that it owes."""
    session.execute(
        text(
            """
            WITH done AS (
                SELECT * FROM unnest(
                    CAST(:digests AS text[]), CAST(:classes AS text[]), CAST(:keys AS text[]),
                    CAST(:to_keys AS text[]), CAST(:versions AS bigint[])
                ) WITH ORDINALITY one (sha256, class_name, key, to_key, version_id, place)
            ), written AS (
                INSERT INTO pool_acts (sha256, act, class_name, key, to_key, version_id, predicted,
                                       confidence, done_by, why)
                SELECT done.sha256, :act, done.class_name, done.key, done.to_key, a.version_id,
                       a.predicted, a.confidence, :by, :why
                FROM done LEFT JOIN LATERAL (
                    -- by version: that is how answers are found
                    SELECT p.version_id, p.predicted, p.confidence
                    FROM (SELECT DISTINCT version_id FROM identifications) v
                    JOIN pool_answers p USING (version_id)
                    WHERE p.sha256 = done.sha256
                      AND (done.version_id IS NULL OR p.version_id = done.version_id)
                    ORDER BY p.identification_id DESC LIMIT 1) a ON true
                ORDER BY done.place RETURNING id)
            INSERT INTO pool_moves (act_id) SELECT id FROM written
            """
        ),
        {
            "act": act,
            "digests": [one.sha256 for one in acts],
            "classes": [one.class_name for one in acts],
            "keys": [one.key for one in acts],
            "to_keys": [one.to_key for one in acts],
            "versions": [one.version for one in acts],
            "by": by.strip(),
            "why": why,
        },
    )
