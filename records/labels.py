"""What people do with pictures of pools: label, dismiss, remove, restore.

An act is a row, written once, and from then on it counts: filters and intake know it. Its objects
in S3 follow: each act owes a move until somebody has made it (`records.moves`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

from sqlalchemy import text
from sqlalchemy.orm import Session

from records import classes
from records.objects import LABELLED, normalised

TRASH = "trash/"
# Acts that say what a picture is; the newest one speaks.
SAYING = ("label", "dismiss", "unknown")
# SQL for the acts `said` that stand: a name or nobody's knowing until the next word, and each class
# that a picture is not until it was called something.
STANDING = """
    said.act IN ('label', 'dismiss', 'unknown') AND NOT EXISTS (
        SELECT 1 FROM pool_acts later WHERE later.sha256 = said.sha256 AND later.id > said.id
          AND later.act IN ('label', 'dismiss', 'unknown')
          AND (later.act <> said.act OR later.act = 'label'))
"""
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
    default the version that answered it last; offered: as which class, by default as the one that
    it predicted.
    """

    where: str
    image: str | None = None
    key: str | None = None
    label: str | None = None
    version: int | None = None
    offered: str | None = None


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
    _refuse(
        f"{one.where} has no label: name the class, or give the file a column label"
        for one in wishes
        if not normalised(one.label or "")
    )
    found = _pictures(session, wishes)
    meant, missing = classes.resolve(session, [one.label or "" for one in wishes], new_classes)
    wanted: dict[str, tuple[Wish, str]] = {}
    problems = []
    for one, sha256 in zip(wishes, found, strict=True):
        name = meant[one.label or ""]
        first, said = wanted.setdefault(sha256, (one, name))
        if said != name:
            problems.append(f"{one.where} says {name!r} of the picture that {first.where} calls "
                            f"{said!r}: keep one")  # fmt: skip
    known = _known(session, list(wanted))
    fresh: dict[str, Wish] = {}
    for sha256, (one, name) in wanted.items():
        now = known[sha256]
        if now.standing == "label" and now.called == name:
            continue
        if problem := _unlabelable(now, name):
            problems.append(f"{one.where}: {problem}")
        elif now.standing == "label" or now.library is None:
            fresh[sha256] = one
    _refuse(problems)
    offers = _offers(session, list(fresh), list(fresh.values()))
    for name in missing:
        classes.make(session, name, by, why)
    acts = []
    for offer in offers:
        _, name = wanted[offer.sha256]
        acts.append(_Act(offer, name, to_key=_labelled_key(name, known[offer.sha256])))
    _write(session, "label", acts, by, why)
    repeated = len(wishes) - len(wanted)
    return Done(len(fresh), len(wanted) - len(fresh), repeated, tuple(missing))


def corrected(session: Session, digests: list[str], name: str, by: str, why: str) -> None:
    """Let the labels of pictures that came from pools say what the library calls them by now.

    Their copies follow, from where they are.
    """
    rows = session.execute(
        text(
            """
            SELECT * FROM (SELECT DISTINCT ON (sha256) * FROM pool_acts
                           WHERE sha256 = ANY(:digests) AND act = ANY(:saying)
                           ORDER BY sha256, id DESC) newest
            WHERE act = 'label' ORDER BY sha256
            """
        ),
        {"digests": digests, "saying": list(SAYING)},
    )
    acts = [
        _Act(
            _Offer(row.sha256, row.version_id, row.predicted, row.confidence, row.offered),
            name,
            to_key=f"{LABELLED}{name}/{PurePosixPath(row.to_key).name}",
        )
        for row in rows
    ]
    _write(session, "label", acts, by, why)


def dismiss(
    session: Session,
    wishes: Sequence[Wish],
    by: str,
    unknown: bool = False,
    why: str | None = None,
) -> Done:
    """Say that pictures are not what they were offered as, or that nobody can name them.

    Takes back a label: what had come into the library by it is withdrawn by the next intake. As
    another class a picture may be offered again, and dismissed again; what is unknown, by a later
    version. All or nothing.
    """
    _begin(session, by)
    act = "unknown" if unknown else "dismiss"
    found = _pictures(session, wishes)
    asked: dict[tuple[str, str | int | None], _Offer] = {}
    for one in _offers(session, found, wishes):
        asked.setdefault((one.sha256, one.version_id if unknown else one.offered), one)
    said = _said(session, act, found)
    fresh = [_Act(one) for what, one in asked.items() if what not in said]
    _write(session, act, fresh, by, why)
    return Done(len(fresh), len(asked) - len(fresh), len(wishes) - len(asked))


def remove(session: Session, wishes: Sequence[Wish], by: str, why: str | None = None) -> Done:
    """Take objects out of their pools, into the trash: by key one, by digest all copies.

    All or nothing; `restore` brings them back.
    """
    from infra.storage import bad_key  # loads boto3, for which questions need not wait

    _begin(session, by)
    there, removed = _chosen(session, wishes)
    _refuse(
        f"{key!r} cannot move to the trash: {problem}"
        for key, sha256 in there
        if (problem := bad_key(_trashed(key, sha256)))
    )
    moves = [(sha256, key, _trashed(key, sha256)) for key, sha256 in there]
    _write(session, "remove", _of_objects(session, moves), by, why)
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
    moves = [(sha256, _trashed(key, sha256), key) for key, sha256 in removed]
    _write(session, "restore", _of_objects(session, moves), by, why)
    _say_gone(session, removed, False)
    return Done(len(removed), len(there))


def removed(session: Session, prefix: str) -> list[tuple[str, str]]:
    """The objects of a pool that stand in the trash: key and digest."""
    rows = session.execute(
        text(f"SELECT DISTINCT key, sha256 FROM ({_TRASH}) t WHERE starts_with(key, :prefix)"),  # noqa: S608
        {"prefix": prefix},
    )
    return [(key, sha256) for key, sha256 in rows]


def _trashed(key: str, sha256: str) -> str:
    """Where a removed object goes; with its digest, since a key may be filled and emptied again."""
    return f"{TRASH}{sha256}/{key}"


def parts(session: Session, wishes: Sequence[Wish]) -> dict[str, str]:
    """By digest the labels that wishes give to images of the library, named by digest or key."""
    rows = session.execute(
        text(
            f"""
            WITH {_ASKED}
            SELECT place, i.sha256 FROM asked JOIN images i
              ON i.sha256 >= asked.image AND i.sha256 < asked.image || 'g'
            UNION
            SELECT place, o.sha256 FROM asked JOIN objects o ON o.key = asked.key
            WHERE asked.image IS NULL AND o.state = 'accepted' AND o.gone_at IS NULL
            """  # noqa: S608  (constants of this module, here and below)
        ),
        _asked(wishes),
    )
    matches: defaultdict[int, set[str]] = defaultdict(set)
    for place, sha256 in rows:
        matches[place].add(sha256)
    found: dict[str, str] = {}
    problems = []
    for place, one in enumerate(wishes):
        count = len(matches[place])
        if count != 1:
            word = (one.image or one.key or "")[:80]
            problems.append(f"{one.where} names {count} images of the library ({word!r}): give one "
                            "digest or key")  # fmt: skip
        elif not normalised(one.label or ""):
            problems.append(f"{one.where} has no label: give the file a column label")
        elif found.setdefault(sha256 := min(matches[place]), one.label or "") != one.label:
            problems.append(f"{one.where} gives {sha256[:12]}… a second label: keep one")
    _refuse(problems)
    return found


@dataclass(frozen=True)
class ActRow:
    """One act; what its columns mean says `records.tables.PoolAct`. owed: S3 has not followed."""

    id: int
    act: str
    sha256: str
    class_name: str | None
    key: str | None
    to_key: str | None
    version_id: int | None
    offered: str | None
    confidence: float | None
    done_by: str
    why: str | None
    done_at: datetime
    owed: bool


def acts(session: Session, most: int = 20) -> list[ActRow]:
    """What people did with pictures of pools, the newest first."""
    rows = session.execute(
        text(
            """
            SELECT id, act, sha256, class_name, key, to_key, version_id, offered, confidence,
                   done_by, why, done_at, EXISTS (SELECT 1 FROM pool_moves WHERE act_id = a.id)
            FROM pool_acts a ORDER BY id DESC LIMIT :most
            """
        ),
        {"most": most},
    )
    return [ActRow(*row) for row in rows]


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
    """Which of these objects are copies by a label that stands no longer, or were removed."""
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
            UNION
            SELECT o.id FROM objects o JOIN images i USING (sha256)
            WHERE o.id = ANY(:ids) AND o.state = 'pending' AND i.withdrawn_why = 'removed'
            """
        ),
        {"ids": list(object_ids), "saying": list(SAYING)},
    )
    return set(rows)


# --- what is there --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Offer:
    """What had offered a picture to a person, and as what; nothing but the digest is certain."""

    sha256: str
    version_id: int | None
    predicted: str | None
    confidence: float | None
    offered: str | None


@dataclass(frozen=True)
class _Act:
    offer: _Offer
    class_name: str | None = None
    key: str | None = None
    to_key: str | None = None


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
    if problem := classes.person_problem(by):
        raise BadLabels(problem)
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('regraft-leak'))"))


def _refuse(found: Iterable[str]) -> None:
    if problems := list(found):
        more = f" and {len(problems) - MOST_TOLD} more" if len(problems) > MOST_TOLD else ""
        raise BadLabels(f"nothing was done: {'; '.join(problems[:MOST_TOLD])}{more}")


_ASKED = """
    asked AS MATERIALIZED (
        SELECT * FROM unnest(CAST(:places AS int[]), CAST(:images AS text[]),
                             CAST(:keys AS text[])) one (place, image, key))
"""


def _asked(wishes: Sequence[Wish]) -> dict[str, object]:
    return {
        "places": list(range(len(wishes))),
        "images": [digest(one.image) for one in wishes],
        "keys": [one.key for one in wishes],
    }


def _pictures(session: Session, wishes: Sequence[Wish]) -> list[str]:
    """The digest of each picture; refuses wishes that mean none, or several.

    A key that is empty means what was removed from it.
    """
    rows = session.execute(
        text(
            f"""
            WITH {_ASKED}
            SELECT place, 'image', i.sha256 FROM asked JOIN pool_images i
              ON i.sha256 >= asked.image AND i.sha256 < asked.image || 'g'
            UNION
            SELECT place, 'key', o.sha256 FROM asked
            JOIN pools p ON starts_with(asked.key, p.prefix)
            JOIN pool_objects o ON o.pool_id = p.id AND o.key = asked.key
             AND o.gone_at IS NULL AND o.problem IS NULL
            UNION
            SELECT place, 'trash', t.sha256 FROM asked JOIN ({_TRASH}) t ON t.key = asked.key
            """  # noqa: S608
        ),
        _asked(wishes),
    )
    by: defaultdict[tuple[int, str], set[str]] = defaultdict(set)
    for place, how, sha256 in rows:
        by[place, how].add(sha256)
    found: list[str] = []
    problems = []
    for place, one in enumerate(wishes):
        images, keyed = by[place, "image"], by[place, "key"] or by[place, "trash"]
        meant = images if one.image else keyed
        # its bytes say what a picture is; a key may be empty by now, but not hold another
        if images and keyed:
            meant = images & keyed
        found += meant
        if len(meant) != 1:
            problems.append(f"{one.where} {_nothing(one, images, keyed)}")
    _refuse(problems)
    return found


def digest(word: str | None) -> str | None:
    """A word that may begin a digest, or None: other words find nothing."""
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
    return (f"names {word[:80]!r}, which no pool holds as a picture: `regraft identify` reads a "
            "pool, `regraft unreadable` lists what is none")


def _known(session: Session, digests: list[str]) -> dict[str, _Known]:
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
    return {row.sha256: _Known(*row) for row in rows}


def _said(session: Session, act: str, digests: list[str]) -> set[tuple[str, str | int | None]]:
    """What was said of pictures and stands: dismissed as which class, unknown to which version."""
    rows = session.execute(
        text(
            f"""
            SELECT sha256, offered, version_id FROM pool_acts said
            WHERE sha256 = ANY(:digests) AND act = :act AND {STANDING}
            """  # noqa: S608  (a constant of this module)
        ),
        {"digests": digests, "act": act},
    )
    return {(row.sha256, row.version_id if act == "unknown" else row.offered) for row in rows}


def _offers(session: Session, digests: list[str], wishes: Sequence[Wish]) -> list[_Offer]:
    """What had offered each of these pictures; refuses classes that nothing can be offered as."""
    rows = session.execute(
        text(
            """
            SELECT one.sha256, a.version_id, a.predicted, a.confidence,
                   coalesce(one.offered, a.predicted) AS offered,
                   one.offered = ANY(a.class_names) OR n.name IS NOT NULL AS known
            FROM unnest(CAST(:digests AS text[]), CAST(:versions AS bigint[]),
                        CAST(:offered AS text[]))
                 WITH ORDINALITY one (sha256, version_id, offered, place)
            LEFT JOIN class_names n ON n.name = one.offered
            LEFT JOIN LATERAL (
                -- by version: that is how answers are found
                SELECT p.version_id, p.predicted, p.confidence, v.class_names
                FROM (SELECT DISTINCT version_id FROM identifications) i
                JOIN versions v ON v.id = i.version_id
                JOIN pool_answers p ON p.version_id = i.version_id AND p.sha256 = one.sha256
                WHERE one.version_id IS NULL OR p.version_id = one.version_id
                ORDER BY p.identification_id DESC LIMIT 1) a ON true
            ORDER BY one.place
            """
        ),
        {
            "digests": digests,
            "versions": [one.version for one in wishes],
            "offered": [normalised(one.offered or "") or None for one in wishes],
        },
    ).all()
    _refuse(
        f"{one.where} was offered as {one.offered[:60]!r}, which is no class: mend it, or omit it"
        for one, row in zip(wishes, rows, strict=True)
        if one.offered and not row.known
    )
    return [_Offer(*row[:-1]) for row in rows]


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
    found = _pictures(session, wishes)
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


def _of_objects(session: Session, moves: list[tuple[str, str, str]]) -> list[_Act]:
    """Acts that move objects, each (digest, key, to_key)."""
    offers = _offers(session, [sha256 for sha256, _, _ in moves], [Wish("")] * len(moves))
    return [
        _Act(offer, key=key, to_key=to_key)
        for offer, (_, key, to_key) in zip(offers, moves, strict=True)
    ]


def _write(session: Session, act: str, acts: list[_Act], by: str, why: str | None) -> None:
    """Append acts, each with the move that it owes."""
    session.execute(
        text(
            """
            WITH written AS (
                INSERT INTO pool_acts (act, done_by, why, sha256, version_id, predicted, confidence,
                                       offered, class_name, key, to_key)
                SELECT :act, :by, :why, sha256, version_id, predicted, confidence, offered,
                       class_name, key, to_key
                FROM unnest(
                    CAST(:digests AS text[]), CAST(:versions AS bigint[]),
                    CAST(:predicted AS text[]), CAST(:confidences AS real[]),
                    CAST(:offered AS text[]), CAST(:classes AS text[]), CAST(:keys AS text[]),
                    CAST(:to_keys AS text[])
                ) WITH ORDINALITY one (sha256, version_id, predicted, confidence, offered,
                                       class_name, key, to_key, place)
                ORDER BY place RETURNING id)
            INSERT INTO pool_moves (act_id) SELECT id FROM written
            """
        ),
        {
            "act": act,
            "by": by.strip(),
            "why": why,
            "digests": [one.offer.sha256 for one in acts],
            "versions": [one.offer.version_id for one in acts],
            "predicted": [one.offer.predicted for one in acts],
            "confidences": [one.offer.confidence for one in acts],
            "offered": [one.offer.offered for one in acts],
            "classes": [one.class_name for one in acts],
            "keys": [one.key for one in acts],
            "to_keys": [one.to_key for one in acts],
        },
    )
