"""Findings: which answers of a version are worth a person's look, one query for each filter.

A filter reads some thousands of answers at most, in an index's order, and what is compared picture
by picture (copies, variety, groups) is compared among these. The command line and the pages call
the same functions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from records import classes, pools, versions
from records.labels import STANDING
from records.nearness import NEAR_BITS
from records.snapshots import USABLE
from vision import variety
from vision.plan import Plan

# Answers that are compared with each other at most, and those that a class brings at least where
# there is room: a burst of forty frames must not be all that is looked at.
COMPARED = 1000
OF_A_CLASS = 200
# A confidence that is low where the identification had no threshold of its own.
LOW = 0.8


class BadFilter(ValueError):
    """A filter that cannot mean anything; the message names the value and the mend."""


class UnknownToVersion(LookupError):
    """The version has no such class."""


class NothingAnswered(LookupError):
    """The version has answered no pool."""


class UnknownPool(LookupError):
    """No identification has read such a pool."""


@dataclass(frozen=True)
class Found:
    """One picture of a pool and why it is shown.

    pool, key, etag: its oldest object that is still there (in the pool asked for). class_name and
    confidence: what it is shown for; predicted and predicted_confidence: the version's best answer,
    mostly the same. entropy: in nats. shown: whether the version's threshold lets the answer be
    shown, None without one. mark: how library or benchmark know it; act: label, dismiss or unknown,
    the last that a person said of it. copies: pictures that are near this one and were left out.
    group: likes have one number, the largest group is 1; group_size: all that are in it, shown or
    not; a picture that is like no others has no group and the size 1. usable: images of the class
    that a snapshot may choose; real: those of them that are neither staged nor synthetic.
    """

    sha256: str
    pool: str
    key: str
    etag: str
    version: int
    class_name: str
    confidence: float
    predicted: str
    predicted_confidence: float
    entropy: float
    shown: bool | None
    mark: str | None
    act: str | None
    copies: int = 0
    group: int | None = None
    group_size: int | None = None
    usable: int | None = None
    real: int | None = None

    @property
    def name(self) -> str:
        """What it is called: its key."""
        return self.key

    @property
    def heading(self) -> str:
        """What it is shown among, in words; nothing where all stand together."""
        if self.group is not None:
            return f"group {self.group}, {self.group_size} alike"
        if self.group_size is not None:
            return "like no others"
        if self.real is not None:
            return f"{self.class_name}: {self.real} of {self.usable} images are real"
        if self.usable is not None:
            return f"{self.class_name}: {self.usable} images"
        return ""

    @property
    def offer(self) -> str:
        """What it is shown for, in words."""
        return f"{self.class_name} {self.confidence:.0%}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What else there is to say of it, in words."""
        said = []
        if self.predicted != self.class_name:
            said.append(f"rather {self.predicted} {self.predicted_confidence:.0%}")
        if self.copies:
            said.append(f"{self.copies} more like it")
        return (*said, *filter(None, (self.mark, self.act)))


@dataclass(frozen=True)
class Findings:
    """What a filter found, in the order to look at it, and what it looked for in one line."""

    told: str
    rows: tuple[Found, ...] = ()


@dataclass(frozen=True)
class Need:
    """How many usable images a class has, counted as far as it matters, and how many are real."""

    class_name: str
    usable: int
    real: int | None = None


# --- the filters ----------------------------------------------------------------------------


def scarce(
    session: Session,
    class_name: str | None = None,
    version_id: int | None = None,
    pool: str | None = None,
    fewer: int | None = None,
    most: int = 60,
) -> Findings:
    """New pictures of classes that have few images: best first, copies once, no two much alike.

    fewer: a class with fewer usable images is scarce; twice the nights' cutoff if not said. Classes
    next to the cutoff come first. class_name: this class alone, whatever it has.
    """
    asked = _asked(session, version_id, pool, most)
    if asked is None:
        return NONE
    limit = cutoff(session)
    fewer = 2 * limit if fewer is None else fewer
    known = asked.class_names
    if class_name is not None:
        known, fewer = (_known_class(session, asked, class_name),), UNCOUNTED
    needs = [
        Need(*row)
        for row in session.execute(
            text(_SCARCE),
            {"names": list(known), "fewer": fewer, "cutoff": limit, "most": most},
        )
    ]
    what = f"{class_name!r}" if class_name else f"classes of fewer than {fewer} usable images"
    return _offered(session, asked, needs, f"scarce: version {asked.version_id} on {what}")


def staged(
    session: Session,
    class_name: str | None = None,
    version_id: int | None = None,
    pool: str | None = None,
    most: int = 60,
) -> Findings:
    """New pictures of classes that rest on staged or synthetic images, chosen as `scarce` does.

    Such a class has fewer real images than the nights' cutoff, or than made ones. class_name: this
    class alone, if it does.
    """
    asked = _asked(session, version_id, pool, most)
    if asked is None:
        return NONE
    known = asked.class_names if class_name is None else (_known_class(session, asked, class_name),)
    needs = [
        Need(*row)
        for row in session.execute(
            text(_STAGED), {"names": list(known), "cutoff": cutoff(session), "most": most}
        )
    ]
    told = f"staged: version {asked.version_id} on classes that rest on staged or synthetic images"
    return _offered(session, asked, needs, told)


def look_alike(
    session: Session,
    class_name: str,
    version_id: int | None = None,
    pool: str | None = None,
    below: float | None = None,
    group: int | None = None,
    most: int = 60,
) -> Findings:
    """New pictures taken for a class without being sure of it, likes together, the most first.

    below: what is not sure; the version's threshold if not said, or `LOW`. Every group shows some,
    the most typical first; group: all of one, by its number.
    """
    asked = _asked(session, version_id, pool, most)
    if asked is None:
        return NONE
    name = _known_class(session, asked, class_name)
    below = _bound("below", below)
    if below is None:
        below = session.scalar(text(_THRESHOLD), {"version": asked.version_id}) or LOW
    rows = session.execute(
        text(_answers(asked, _condition(predicted=name, below=below), _LEAST_SURE, _NEW)),
        asked.values | {"class": name, "below": below, "limit": COMPARED},
    )
    distinct = _without_copies(_candidates(rows))
    grouped = _grouped(session, asked.version_id, distinct)
    return Findings(
        f"look-alike: version {asked.version_id} takes them for {name!r} at less than {below:g}",
        tuple(_some_of_each(grouped, group, most)),
    )


def unknown(
    session: Session, version_id: int | None = None, pool: str | None = None, most: int = 60
) -> Findings:
    """Pictures that people could not name, answered by a version that came later, surest first."""
    asked = _asked(session, version_id, pool, most)
    if asked is None:
        return NONE
    rows = session.execute(
        text(_answers(asked, _ONCE_UNKNOWN, _SUREST, _STILL_UNKNOWN)),
        asked.values | {"limit": most},
    )
    told = f"unknown: version {asked.version_id} on what nobody could name before it"
    return Findings(told, tuple(one.found for one in _candidates(rows)))


def junk(
    session: Session,
    below: float | None = None,
    version_id: int | None = None,
    pool: str | None = None,
    most: int = 60,
) -> Findings:
    """New pictures that the version is least sure of, for removing many at once."""
    asked = _asked(session, version_id, pool, most)
    if asked is None:
        return NONE
    below = _bound("below", below)
    rows = session.execute(
        text(_answers(asked, _condition(below=below), _LEAST_SURE, _NEW)),
        asked.values | {"below": below, "limit": most},
    )
    told = f"junk: what version {asked.version_id} is least sure of"
    return Findings(told, tuple(one.found for one in _candidates(rows)))


def matching(
    session: Session,
    class_name: str | None = None,
    below: float | None = None,
    above: float | None = None,
    version_id: int | None = None,
    pool: str | None = None,
    new: bool = False,
    most: int = 60,
) -> Findings:
    """Pictures by predicted class and confidence, above <= confidence < below, surest first.

    new: without those that library or benchmark have, and those that people have spoken of.
    """
    asked = _asked(session, version_id, pool, most)
    if asked is None:
        return NONE
    name = None if class_name is None else _known_class(session, asked, class_name)
    below, above = _bound("below", below), _bound("above", above)
    if below is not None and above is not None and above >= below:
        raise BadFilter(f"--above {above:g} --below {below:g} leave nothing between: swap them")
    condition = _condition(predicted=name, below=below, above=above)
    rows = session.execute(
        text(_answers(asked, condition, _SUREST, _NEW if new else "true")),
        asked.values | {"class": name, "below": below, "above": above, "limit": most},
    )
    words = [f"version {asked.version_id}"]
    words += [f"predicted as {name!r}"] if name else []
    words += [f"from {above:g} on"] if above is not None else []
    words += [f"below {below:g}"] if below is not None else []
    words += ["new"] if new else []
    return Findings("answers: " + ", ".join(words), tuple(one.found for one in _candidates(rows)))


# --- what is asked --------------------------------------------------------------------------

NONE = Findings("no version has answered a pool yet: `regraft identify POOL`")
# More images than any class has.
UNCOUNTED = 2**31 - 1


@dataclass(frozen=True)
class _Asked:
    """Whose answers about which pool, and what the version knows."""

    version_id: int
    class_names: tuple[str, ...]
    pool_id: int | None
    most: int

    @property
    def values(self) -> dict[str, Any]:
        return {"version": self.version_id, "pool": self.pool_id}


def _asked(
    session: Session, version_id: int | None, pool: str | None, most: int
) -> _Asked | None:
    """What a filter asks for; None if nobody ever answered.

    version_id: the newest that has answered, throw-away versions aside, if none is said.
    """
    if most < 1:
        raise BadFilter(f"--limit {most}: ask for 1 or more")
    pool_id = None if pool is None else pool_named(session, pool)
    if version_id is None:
        version_id = newest_version(session, pool_id)
    if version_id is None:
        if thrown := session.scalar(text(_NEWEST_THROWAWAY), {"pool": pool_id}):
            raise NothingAnswered(
                f"only throw-away versions have answered yet: --version {thrown} asks the newest"
            )
        return None
    version = versions.get(session, version_id)
    if not session.scalar(text(_HAS_ANSWERED), {"version": version_id}):
        mend = (
            f"`regraft identify POOL --version {version_id}`"
            if version.state == "trained"
            else f"it is {version.state}"
        )
        raise NothingAnswered(f"version {version_id} has answered no pool yet: {mend}")
    return _Asked(version_id, tuple(version.class_names), pool_id, most)


def newest_version(session: Session, pool_id: int | None = None) -> int | None:
    """The newest version that has answered a pool (this one), throw-away versions aside."""
    found: int | None = session.scalar(text(_NEWEST), {"pool": pool_id})
    return found


_ANSWERED = """
    SELECT max(v.id) FROM versions v WHERE {} AND EXISTS (
        SELECT 1 FROM identifications i WHERE i.version_id = v.id
          AND (CAST(:pool AS bigint) IS NULL OR i.pool_id = :pool))
      AND EXISTS (SELECT 1 FROM pool_answers a WHERE a.version_id = v.id)
"""
# Not the view `latest`: its version may not have been asked yet, and the champion may be another.
_NEWEST = _ANSWERED.format("v.purpose <> 'throwaway'")
_NEWEST_THROWAWAY = _ANSWERED.format("v.purpose = 'throwaway'")
_HAS_ANSWERED = "SELECT EXISTS (SELECT 1 FROM pool_answers WHERE version_id = :version)"
_THRESHOLD = """
    SELECT threshold FROM identifications WHERE version_id = :version AND threshold IS NOT NULL
    ORDER BY id DESC LIMIT 1
"""


def pool_named(session: Session, name: str) -> int:
    """The number of a pool that was identified, by its prefix; raises `UnknownPool`."""
    prefix = name.removeprefix("s3://").strip("/") + "/"
    known = {one.prefix: one.id for one in pools.listed(session)}
    if prefix not in known:
        raise UnknownPool(
            f"s3://{prefix} was never identified{_meant(prefix, known)}: "
            f"`regraft identify s3://{prefix}`"
        )
    return known[prefix]


def _known_class(session: Session, asked: _Asked, name: str) -> str:
    """The version's word for a class, which may be called otherwise today."""
    (word,) = classes.as_known_to(asked.class_names, [name], classes.today(session))
    if word not in asked.class_names:
        mend = f": `regraft show {asked.version_id} --json` lists its classes"
        raise UnknownToVersion(
            f"version {asked.version_id} knows no class {name!r}"
            f"{_meant(name, asked.class_names) or mend}"
        )
    return word


def _meant(name: str, known: Iterable[str]) -> str:
    """The nearest name that there is, as a question; nothing if none is near."""
    folded = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return f" (did you mean {folded[near[0]]!r}?)" if near else ""


def _bound(name: str, value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        raise BadFilter(f"--{name} {value:g}: a confidence is between 0 and 1")
    return value


def cutoff(session: Session) -> int:
    """The fewest images that a class needs to be trained: as in the newest night, else the plan's.

    Not a throw-away version's, which is lower, and so may be that of a snapshot both froze.
    """
    return session.scalar(text(_CUTOFF)) or Plan.cutoff


_CUTOFF = """
    SELECT CAST(plan->>'cutoff' AS int) FROM versions
    WHERE purpose = 'nightly' ORDER BY id DESC LIMIT 1
"""


# --- classes that lack images -----------------------------------------------------------------

# A version's words, each with the class that it means today.
_WANTED = """
    unnest(CAST(:names AS text[])) AS w (name) LEFT JOIN class_names n ON n.name = w.name
    LEFT JOIN classes c ON c.name = n.today
"""
# Counted no further than it matters, so that a large library costs no more than a small one.
_SCARCE = f"""
    SELECT w.name, u.usable FROM {_WANTED}
    CROSS JOIN LATERAL (
        SELECT count(*) AS usable
        FROM (SELECT 1 FROM images i WHERE i.class_id = c.id AND {USABLE} LIMIT :fewer) few) u
    WHERE u.usable < :fewer
    ORDER BY u.usable >= :cutoff, abs(:cutoff - u.usable), w.name LIMIT :most
"""  # noqa: S608  (constants of ours, here and below)

_STAGED = f"""
    SELECT w.name, u.usable, u.usable - m.made FROM {_WANTED}
    CROSS JOIN LATERAL (
        SELECT count(*) AS made FROM images i
        WHERE i.class_id = c.id AND {USABLE} AND i.origin <> 'real') m
    CROSS JOIN LATERAL (
        SELECT count(*) AS usable
        FROM (SELECT 1 FROM images i WHERE i.class_id = c.id AND {USABLE}
              LIMIT m.made + greatest(:cutoff, m.made)) few) u
    WHERE m.made > 0 AND u.usable - m.made < greatest(:cutoff, m.made)
    ORDER BY u.usable - m.made, w.name LIMIT :most
"""  # noqa: S608


def _offered(
    session: Session, asked: _Asked, needs: Sequence[Need], told: str
) -> Findings:
    """The best new pictures of each of these classes in turn, until there are as many as asked."""
    if not needs:
        return Findings(told)
    each = max(-(-asked.most // len(needs)), min(OF_A_CLASS, COMPARED // len(needs)))
    targets: set[str] = set(session.scalar(text(_TARGETS), {"version": asked.version_id}) or ())
    names = [one.class_name for one in needs]
    found = session.execute(
        text(_of_classes(asked)),
        asked.values
        | {
            "targets": [name for name in names if name in targets],
            "others": [name for name in names if name not in targets],
            "each": each,
        },
    )
    by_class: dict[str, list[_Candidate]] = {name: [] for name in names}
    for one in sorted(_candidates(found), key=lambda one: _best_first(one.found)):
        by_class[one.found.class_name].append(one)
    distinct = {name: _without_copies(some) for name, some in by_class.items()}
    shares = _in_turn([len(some) for some in distinct.values()], asked.most)
    # where all are shown there is nothing to choose
    chosen_from = [
        one for some, share in zip(distinct.values(), shares, strict=True) if 0 < share < len(some)
        for one in some
    ]  # fmt: skip
    features = _features(session, asked.version_id, chosen_from)
    shown: list[Found] = []
    for need, share in zip(needs, shares, strict=True):
        rows = [one.found for one in distinct[need.class_name]]
        shown += [
            replace(row, usable=need.usable, real=need.real)
            for row in sorted(_varied(rows, features, share), key=_best_first)
        ]
    return Findings(told, tuple(shown))


# Targets of all identifications of a version that answered anything: their confidences are known of
# every picture.
_TARGETS = """
    WITH answering AS (
        SELECT id, targets FROM identifications i WHERE version_id = :version
          AND EXISTS (SELECT 1 FROM shards s WHERE s.identification_id = i.id AND s.answered > 0))
    SELECT array_agg(name) FROM (
        SELECT t.name FROM answering, unnest(targets) AS t (name) GROUP BY t.name
        HAVING count(*) = (SELECT count(*) FROM answering)) shared
"""


def _varied(
    rows: Sequence[Found], features: Mapping[str, bytes], most: int
) -> list[Found]:
    if not 0 < most < len(rows):
        return list(rows[:most])
    vectors = variety.unit([features.get(row.sha256) for row in rows])
    worth = np.array([row.confidence for row in rows], dtype=np.float32)
    return [rows[place] for place in variety.varied(vectors, worth, most)]


def _best_first(row: Found) -> tuple[float, str]:
    return -row.confidence, row.sha256


def _in_turn(have: Sequence[int], most: int) -> list[int]:
    """How many each may show when they take turns until `most` are shown, the first ones before."""
    shares = [0] * len(have)
    left = most
    while left and any(share < its for share, its in zip(shares, have, strict=True)):
        for place, its in enumerate(have):
            if left and shares[place] < its:
                shares[place] += 1
                left -= 1
    return shares


# --- groups of likes --------------------------------------------------------------------------


def _grouped(
    session: Session, version_id: int, candidates: Sequence[_Candidate]
) -> list[Found]:
    """The pictures with their groups, the largest first, each from its most typical on."""
    found = [one.found for one in candidates]
    features = _features(session, version_id, candidates)
    if not features:
        return found
    vectors = variety.unit([features.get(row.sha256) for row in found])
    rows: list[Found] = []
    for number, members in enumerate(variety.groups(vectors), start=1):
        rows += [replace(found[place], group=number, group_size=len(members)) for place in members]
    alone = {row.sha256 for row in found} - {row.sha256 for row in rows}
    return rows + [replace(row, group_size=1) for row in found if row.sha256 in alone]


def _some_of_each(rows: Sequence[Found], group: int | None, most: int) -> list[Found]:
    numbers = list(dict.fromkeys(row.group for row in rows))
    if group is not None:
        if group not in numbers:
            raise BadFilter(
                f"--group {group}: there are {sum(one is not None for one in numbers)} groups"
            )
        numbers = [group]
    members = [[row for row in rows if row.group == number] for number in numbers]
    shares = _in_turn([len(some) for some in members], most)
    return [row for some, share in zip(members, shares, strict=True) for row in some[:share]]


# --- answers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    """A picture with its perceptual hashes."""

    found: Found
    dhash: int | None
    dhash_mirror: int | None


def _candidates(rows: Iterable[Sequence[Any]]) -> list[_Candidate]:
    return [_Candidate(Found(*row[:-2]), row[-2], row[-1]) for row in rows]


def _without_copies(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """The first of each set of near pictures, with the number of those left out."""
    first = variety.firsts(
        [one.dhash for one in candidates], [one.dhash_mirror for one in candidates], NEAR_BITS
    )
    alike = np.bincount(first, minlength=len(candidates)).tolist()
    return [
        one if alike[place] == 1
        else replace(one, found=replace(one.found, copies=alike[place] - 1))
        for place, one in enumerate(candidates)
        if first[place] == place
    ]


def _features(
    session: Session, version_id: int, candidates: Iterable[_Candidate]
) -> dict[str, bytes]:
    """What is stored of them, by digest; those of a swept version are gone."""
    rows = session.execute(
        text(
            """
            SELECT sha256, features FROM embeddings
            WHERE version_id = :version AND sha256 = ANY(:digests)
            """
        ),
        {"version": version_id, "digests": [one.found.sha256 for one in candidates]},
    )
    return {sha256: bytes(features) for sha256, features in rows}


# The picture of an answer a: an object that is there, and the last word of a person. Each is one
# look into an index, so that a query which is done after so many answers has looked at no more;
# LIMIT keeps Postgres from reading all pictures instead.
_PICTURE = """
    JOIN LATERAL (
        SELECT p.mark, p.dhash, p.dhash_mirror FROM pool_images p
        WHERE p.sha256 = a.sha256 LIMIT 1) i ON true
    JOIN LATERAL (
        SELECT p.prefix, o.key, o.etag FROM pool_objects o JOIN pools p ON p.id = o.pool_id
        WHERE o.sha256 = a.sha256 AND o.gone_at IS NULL
          AND (CAST(:pool AS bigint) IS NULL OR o.pool_id = :pool)
        ORDER BY o.id LIMIT 1) o ON true
    LEFT JOIN LATERAL (
        SELECT t.act, t.version_id FROM pool_acts t
        WHERE t.sha256 = a.sha256 AND t.act IN ('label', 'dismiss', 'unknown')
        ORDER BY t.id DESC LIMIT 1) t ON true
"""
_AS_ANSWERED = ("a.predicted", "a.confidence")
_AS_TARGET = ("s.class_name", "s.confidence")


def _columns(class_name: str, confidence: str) -> str:
    return (
        f"a.sha256, o.prefix, o.key, o.etag, a.version_id, {class_name}, {confidence}, "
        "a.predicted, a.confidence, a.entropy, a.shown, i.mark, t.act, i.dhash, i.dhash_mirror"
    )


def _new(class_name: str) -> str:
    """Neither known to library or benchmark nor spoken of; what was no gazelle may be an okapi.

    The acts are asked by a sub-select: Postgres takes a join that finds none for a rare one, and
    would then read and sort all answers instead of the first in an index.
    """
    return f"""
        i.mark IS NULL AND (SELECT NOT EXISTS (
            SELECT 1 FROM pool_acts said WHERE said.sha256 = a.sha256 AND {STANDING}
              AND (said.act <> 'dismiss' OR coalesce(
                  {_today("coalesce(said.offered, said.predicted)")} = {_today(class_name)}, true))
        ))
    """  # noqa: S608


def _today(class_name: str) -> str:
    """SQL for what a class is called today, NULL for no class."""
    return f"""
        coalesce((SELECT today FROM class_names WHERE name = {class_name}), {class_name})
    """  # noqa: S608


_NEW = _new("a.predicted")


def _in_pool(asked: _Asked) -> str:
    """A join of its own: a small pool is better begun with than looked for in all answers."""
    if asked.pool_id is None:
        return "true"
    return (
        "a.sha256 IN (SELECT q.sha256 FROM pool_objects q "
        "WHERE q.pool_id = :pool AND q.gone_at IS NULL)"
    )


def _condition(
    predicted: str | None = None, below: float | None = None, above: float | None = None
) -> str:
    """SQL for what is given of these; 0.95 as it is stored is a little less than 0.95."""
    parts = ["true"]
    parts += ["a.predicted = :class"] if predicted is not None else []
    parts += ["a.confidence < CAST(:below AS real)"] if below is not None else []
    parts += ["a.confidence >= CAST(:above AS real)"] if above is not None else []
    return " AND ".join(parts)


# Said twice: the first finds them from either side, the second knows the last word.
_ONCE_UNKNOWN = "a.sha256 IN (SELECT u.sha256 FROM pool_acts u WHERE u.act = 'unknown')"
_STILL_UNKNOWN = """
    i.mark IS NULL AND t.act = 'unknown' AND (t.version_id IS NULL OR t.version_id < :version)
"""


# Equals have an order, too, so that who asks again sees the same; each is the other reversed, as an
# index is read.
_SUREST = "a.confidence DESC, a.sha256"
_LEAST_SURE = "a.confidence, a.sha256 DESC"


def _answers(asked: _Asked, condition: str, order: str, spoken: str) -> str:
    """SQL for the first answers of a version that meet a condition and one on what was said."""
    return f"""
        SELECT {_columns(*_AS_ANSWERED)} FROM pool_answers a {_PICTURE}
        WHERE a.version_id = :version AND {condition} AND {_in_pool(asked)}
          AND {spoken}
        ORDER BY {order} LIMIT :limit
    """  # noqa: S608


def _of_classes(asked: _Asked) -> str:
    """SQL for the first answers of each class: of a target all, of others those predicted so."""
    return f"""
        SELECT found.* FROM unnest(CAST(:others AS text[])) AS w (name) CROSS JOIN LATERAL (
            SELECT {_columns(*_AS_ANSWERED)} FROM pool_answers a {_PICTURE}
            WHERE a.version_id = :version AND a.predicted = w.name AND {_in_pool(asked)}
              AND {_NEW}
            ORDER BY {_SUREST} LIMIT :each) found
        UNION ALL
        SELECT found.* FROM unnest(CAST(:targets AS text[])) AS w (name) CROSS JOIN LATERAL (
            SELECT {_columns(*_AS_TARGET)}
            FROM target_scores s
            JOIN pool_answers a ON a.version_id = s.version_id AND a.sha256 = s.sha256 {_PICTURE}
            WHERE s.version_id = :version AND s.class_name = w.name AND {_in_pool(asked)}
              AND {_new("s.class_name")}
            ORDER BY s.confidence DESC, s.sha256 LIMIT :each) found
    """  # noqa: S608
