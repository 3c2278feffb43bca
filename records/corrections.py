"""Corrections: what people do with images of the library: remove, relabel, keep as hard cases.

Each act is a row with a name and a reason, written once, and is undone by another one. It counts
from the next snapshot on; those of the past, and evaluations, stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from records import batches, classes, labels, versions
from records.batches import Refused
from records.labels import Done
from records.tables import ImageAct

MOST_TOLD = 5
LONGEST_WHY = 2000
REMOVED = "removed"  # why an image is withdrawn, and its objects are in quarantine
RETURNED = "not_removed"  # the expectation that refuses a copy which came later
OPPOSITES = {
    "remove": "restore", "restore": "remove", "keep": "drop", "drop": "keep", "relabel": "relabel",
}  # fmt: skip


class BadCorrection(ValueError):
    """Acts that cannot be done as asked, so that none was; one line names the images and the mend.
    """


@dataclass(frozen=True)
class ActRow:
    """One act; what its columns mean says `records.tables.ImageAct`."""

    id: int
    act: str
    sha256: str
    from_class: str | None
    to_class: str | None
    version_id: int | None
    why: str
    done_by: str
    done_at: datetime


@dataclass(frozen=True)
class HardCase:
    """A picture that somebody keeps as a hard case, and what one version answers.

    label: its class today; predicted, confidence and correct are of the version's newest evaluation
    that holds it, None where none does. in_sample: it is one to train on, so that a right answer
    proves little.
    """

    sha256: str
    label: str
    in_sample: bool
    kept_by: str
    why: str
    kept_at: datetime
    predicted: str | None
    confidence: float | None
    correct: bool | None


# --- acts -----------------------------------------------------------------------------------


def remove(
    session: Session, images: Sequence[str], by: str, why: str, version: int | None = None
) -> Done:
    """Withdraw images from every later snapshot, until they are restored.

    Their objects stay where they are, in quarantine with the reason; so does a copy that comes
    later. images: digests, 8 characters or more, or keys. All or nothing; raises `BadCorrection`.
    version: whose answer had shown it.
    """
    _begin(session, by, why, version)
    found = _images(session, images)
    _refuse(
        f"{one.name} is out of use already ({one.withdrawn})"
        for one in found
        if one.withdrawn not in (None, REMOVED)
    )
    fresh = [one.sha256 for one in found if one.withdrawn is None]
    session.execute(
        text(
            "UPDATE images SET withdrawn_at = now(), withdrawn_why = :why "
            "WHERE sha256 = ANY(:digests)"
        ),
        {"digests": fresh, "why": REMOVED},
    )
    rows = session.execute(
        text("SELECT id, key FROM objects WHERE sha256 = ANY(:digests) AND state = 'accepted'"),
        {"digests": fresh},
    )
    sentence = f"{by.strip()} removed the image: {why}"
    batches.quarantine(
        session, [Refused(number, None, key, REMOVED, sentence) for number, key in rows], None
    )
    _write(session, "remove", fresh, by, why, version)
    return _done(images, found, fresh)


def restore(
    session: Session, images: Sequence[str], by: str, why: str, version: int | None = None
) -> Done:
    """Bring removed images back, with class and split as they were.

    Copies that came in between are judged by the next intake. All or nothing.
    """
    _begin(session, by, why, version)
    found = _images(session, images)
    fresh = [one.sha256 for one in found if one.withdrawn == REMOVED]
    returning = _returning(session, fresh)
    _refuse(
        f"{one.name} {problem}"
        for one in found
        if (problem := _unrestorable(one, returning.get(one.sha256, [])))
    )
    back = [number for numbers in returning.values() for number in numbers]
    _let_out(session, back, REMOVED, "accepted")
    session.execute(
        text(
            "UPDATE images SET withdrawn_at = NULL, withdrawn_why = NULL "
            "WHERE sha256 = ANY(:digests)"
        ),
        {"digests": fresh},
    )
    for one in found:
        if one.withdrawn == REMOVED and one.said not in (None, one.label):
            _give(session, [one.sha256], one.label, one.said or "", by)
    later = session.scalars(
        text(
            """
            SELECT o.id FROM objects o JOIN quarantine q ON q.object_id = o.id
            WHERE o.sha256 = ANY(:digests) AND o.state = 'quarantined'
            GROUP BY o.id HAVING bool_and(q.expectation = :returned)
            """
        ),
        {"digests": fresh, "returned": RETURNED},
    ).all()
    _let_out(session, later, RETURNED, "pending")
    _write(session, "restore", fresh, by, why, version)
    return _done(images, found, fresh)


def _unrestorable(one: _Image, returning: Collection[int]) -> str | None:
    if one.withdrawn is None:
        return None
    if one.withdrawn != REMOVED:
        return f"was not removed by a person, it is out of use as {one.withdrawn!r}"
    if one.mined and one.said is None:
        return "was found by a version, and nobody's label of it stands: `regraft label` it again"
    if not returning:
        return "came with a batch that was reverted: `regraft intake show` tells why"
    return None


def relabel(
    session: Session,
    images: Sequence[str],
    label: str,
    by: str,
    why: str,
    new_classes: Collection[str] = (),
    version: int | None = None,
) -> Done:
    """Put images into another class; their splits stay.

    Keys and manifests that name them say the new label from then on, until somebody says otherwise
    in S3. All or nothing; raises `BadCorrection`, and `classes.UnknownClass` for a name that
    `new_classes` does not allow.
    """
    _begin(session, by, why, version)
    found = _images(session, images)
    meant, missing = classes.resolve(session, [label], new_classes)
    name = meant[label]
    _refuse(
        f"{one.name} is out of use ({one.withdrawn}), so that its class matters to nobody"
        for one in found
        if one.withdrawn is not None
    )
    for new in missing:
        classes.make(session, new, by, why)
    by_class: defaultdict[str, list[_Image]] = defaultdict(list)
    for one in found:
        if one.label != name:
            by_class[one.label].append(one)
    fresh = [one for some in by_class.values() for one in some]
    for old, some in sorted(by_class.items()):
        digests = [one.sha256 for one in some]
        _give(session, digests, old, name, by)
        act = _write(session, "relabel", digests, by, why, version, old, name)
        # what came from a pool has a copy of its own, which moves to where its label says
        uploaded = [one.sha256 for one in some if one.said is None]
        classes.say_again(session, uploaded, name, by.strip(), f"relabel/{act}")
    labels.corrected(
        session, [one.sha256 for one in fresh if one.said is not None], name, by.strip(), why
    )
    return _done(images, found, fresh, missing)


def _give(session: Session, digests: list[str], old: str, name: str, by: str) -> None:
    """Put images of one class into another, and note each; its place in the line stays behind."""
    session.execute(
        text(
            """
            WITH moved AS (
                UPDATE images SET class_id = (SELECT id FROM classes WHERE name = :name),
                       sequence = NULL, labelled_by = 'person:' || :by
                WHERE sha256 = ANY(:digests) RETURNING sha256)
            INSERT INTO label_changes (sha256, kind, from_class, to_class)
            SELECT sha256, 'relabelled', :old, :name FROM moved ORDER BY sha256
            """
        ),
        {"digests": digests, "old": old, "name": name, "by": by.strip()},
    )


def keep(
    session: Session, images: Sequence[str], by: str, why: str, version: int | None = None
) -> Done:
    """Keep images as hard cases: their labels are right, and every version is looked at on them."""
    _begin(session, by, why, version)
    found = _images(session, images)
    _refuse(
        f"{one.name} is out of use ({one.withdrawn}): no version will be asked about it"
        for one in found
        if one.withdrawn is not None
    )
    fresh = [one.sha256 for one in found if not one.kept]
    _write(session, "keep", fresh, by, why, version)
    return _done(images, found, fresh)


def drop(
    session: Session, images: Sequence[str], by: str, why: str, version: int | None = None
) -> Done:
    """Keep images as hard cases no longer."""
    _begin(session, by, why, version)
    found = _images(session, images)
    fresh = [one.sha256 for one in found if one.kept]
    _write(session, "drop", fresh, by, why, version)
    return _done(images, found, fresh)


def undo(session: Session, act_id: int, by: str, why: str) -> Done:
    """Do the opposite of one act; raises `BadCorrection` where a later one has spoken since."""
    _begin(session, by, why, None)
    columns = [getattr(ImageAct, name) for name in ActRow.__dataclass_fields__]
    row = session.execute(select(*columns).where(ImageAct.id == act_id)).first()
    if row is None:
        raise BadCorrection(f"there is no act {act_id}: `regraft image log` lists them")
    act = ActRow(*row)
    one = [act.sha256]
    about = (ImageAct.sha256 == act.sha256, ImageAct.act.in_((act.act, OPPOSITES[act.act])))
    newest = select(*columns).where(*about).order_by(ImageAct.id.desc()).limit(1)
    last = ActRow(*session.execute(newest).one())
    if last.id != act_id and (last.act, last.to_class) == (act.act, act.to_class):
        raise BadCorrection(
            f"act {act_id} was undone, and act {last.id} by {last.done_by} has done it again: undo "
            "that one"
        )
    if act.act == "remove":
        return restore(session, one, by, why)
    if act.act == "restore":
        return remove(session, one, by, why)
    if act.act == "keep":
        return drop(session, one, by, why)
    if act.act == "drop":
        return keep(session, one, by, why)
    known = classes.names(session)
    before, after = known[act.from_class or ""], known[act.to_class or ""]
    (image,) = _images(session, one)
    if image.label not in (before, after):
        raise BadCorrection(
            f"act {act_id} made {image.name} {after!r}, and it is {image.label!r} by now: "
            "relabel it if that is wrong"
        )
    return relabel(session, one, before, by, why)


# --- what was done --------------------------------------------------------------------------


def acts(session: Session, most: int = 20) -> list[ActRow]:
    """What people did with images of the library, the newest first."""
    columns = [getattr(ImageAct, name) for name in ActRow.__dataclass_fields__]
    rows = session.execute(select(*columns).order_by(ImageAct.id.desc()).limit(most))
    return [ActRow(*row) for row in rows]


def hard_cases(session: Session, version_id: int | None = None) -> list[HardCase]:
    """What is kept as hard cases and still in use, and what a version answers, errors first."""
    rows = session.execute(
        text(
            """
            SELECT h.sha256, c.name, i.split = 'train', h.done_by, h.why, h.done_at,
                   a.predicted, a.confidence, a.correct
            FROM challenges h JOIN images i USING (sha256) JOIN classes c ON c.id = i.class_id
            LEFT JOIN LATERAL (
                SELECT a.predicted, a.confidence,
                       coalesce(n.today, a.predicted) = c.name AS correct
                FROM evaluations e JOIN answers a ON a.evaluation_id = e.id
                LEFT JOIN class_names n ON n.name = a.predicted
                WHERE e.version_id = :version AND a.sha256 = h.sha256
                ORDER BY e.id DESC LIMIT 1) a ON true
            WHERE i.withdrawn_at IS NULL
            ORDER BY a.correct NULLS LAST, CASE WHEN a.correct THEN a.confidence
                                                ELSE -a.confidence END, h.sha256
            """
        ),
        {"version": version_id},
    )
    return [HardCase(*row) for row in rows]


# --- what is there --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Image:
    """An image as it stands. withdrawn: why it is out of use, or None.

    said: its class by the label of a pool that stands, which let it in; None without one.
    """

    sha256: str
    label: str
    mined: bool
    said: str | None
    withdrawn: str | None
    kept: bool

    @property
    def name(self) -> str:
        return f"{self.sha256[:12]}…"


def _begin(session: Session, by: str, why: str, version: int | None) -> None:
    """Take acts and intake's decisions one after the other."""
    if problem := classes.person_problem(by):
        raise BadCorrection(problem)
    if not why.strip() or len(why) > LONGEST_WHY or classes.unwritable(why):
        raise BadCorrection(f"say why in at most {LONGEST_WHY} characters: --why TEXT")
    if version is not None:
        versions.get(session, version)
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('regraft-leak'))"))


def _refuse(found: Iterable[str]) -> None:
    if problems := list(found):
        more = f" and {len(problems) - MOST_TOLD} more" if len(problems) > MOST_TOLD else ""
        raise BadCorrection(f"nothing was done: {'; '.join(problems[:MOST_TOLD])}{more}")


def _images(session: Session, words: Sequence[str]) -> list[_Image]:
    """The images that are named, each once; refuses words that mean none, or several."""
    _refuse(f"{word[:80]!r} {problem}" for word in words if (problem := classes.unwritable(word)))
    rows = session.execute(
        text(
            """
            WITH asked AS MATERIALIZED (
                SELECT * FROM unnest(CAST(:places AS int[]), CAST(:digests AS text[]),
                                     CAST(:keys AS text[])) one (place, digest, key))
            SELECT place, i.sha256, false AS frozen FROM asked JOIN images i
              ON i.sha256 >= asked.digest AND i.sha256 < asked.digest || 'g'
            UNION
            SELECT place, i.sha256, false FROM asked JOIN objects o ON o.key = asked.key
            JOIN images i USING (sha256) WHERE o.gone_at IS NULL
            UNION
            SELECT place, b.sha256, true FROM asked JOIN benchmark_images b
              ON b.sha256 >= asked.digest AND b.sha256 < asked.digest || 'g'
              OR asked.key IN (b.source_key, b.key)
            """
        ),
        {
            "places": list(range(len(words))),
            "digests": [labels.digest(word) for word in words],
            "keys": [None if labels.digest(word) else word for word in words],
        },
    )
    meant: defaultdict[int, dict[str, bool]] = defaultdict(dict)
    for place, sha256, frozen in rows:
        meant[place][sha256] = frozen
    problems = []
    found: dict[str, None] = {}
    for place, word in enumerate(words):
        named = meant[place]
        if len(named) != 1:
            count = "several images" if named else "no image"
            problems.append(f"{word[:80]!r} names {count} of the library: give a whole digest, or "
                            "the key of an object under labelled/")  # fmt: skip
        elif any(named.values()):
            problems.append(f"{word[:80]!r} is in the benchmark, where nothing is changed in "
                            "place: `regraft benchmark withdraw` takes it out")  # fmt: skip
        found |= dict.fromkeys(named)
    _refuse(problems)
    return _standing(session, list(found))


def _standing(session: Session, digests: list[str]) -> list[_Image]:
    rows = session.execute(
        text(
            """
            SELECT i.sha256, c.name, i.mined, n.today, i.withdrawn_why,
                   EXISTS (SELECT 1 FROM challenges h WHERE h.sha256 = i.sha256)
            FROM unnest(CAST(:digests AS text[])) WITH ORDINALITY asked (sha256, place)
            JOIN images i USING (sha256) JOIN classes c ON c.id = i.class_id
            LEFT JOIN LATERAL (
                SELECT p.class_name FROM pool_acts p  -- NULL where it is no label
                WHERE p.sha256 = i.sha256 AND p.act = ANY(:saying)
                ORDER BY p.id DESC LIMIT 1) p ON i.mined
            LEFT JOIN class_names n ON n.name = p.class_name ORDER BY place
            """
        ),
        {"digests": digests, "saying": list(labels.SAYING)},
    )
    return [_Image(*row) for row in rows]


def _returning(session: Session, digests: list[str]) -> dict[str, list[int]]:
    """Objects of removed images that nothing but the removal keeps out, by digest."""
    rows = session.execute(
        text(
            """
            SELECT o.sha256, o.id FROM objects o
            JOIN quarantine q ON q.object_id = o.id LEFT JOIN batches b ON b.id = o.batch_id
            WHERE o.sha256 = ANY(:digests) AND o.state = 'quarantined'
              AND b.state IS DISTINCT FROM 'reverted'
            GROUP BY o.id HAVING bool_and(q.expectation = :removed) ORDER BY o.id
            """
        ),
        {"digests": digests, "removed": REMOVED},
    )
    found: defaultdict[str, list[int]] = defaultdict(list)
    for sha256, number in rows:
        found[sha256].append(number)
    return found


def _let_out(session: Session, object_ids: Sequence[int], reason: str, state: str) -> None:
    """Take objects out of quarantine; those that are to be judged again wait for a batch."""
    values = {"ids": list(object_ids), "reason": reason, "state": state}
    session.execute(
        text("DELETE FROM quarantine WHERE object_id = ANY(:ids) AND expectation = :reason"), values
    )
    session.execute(
        text(
            """
            UPDATE objects SET state = :state,
                   batch_id = CASE WHEN :state = 'accepted' THEN batch_id END
            WHERE id = ANY(:ids)
            """
        ),
        values,
    )


def _write(
    session: Session,
    act: str,
    digests: Collection[str],
    by: str,
    why: str,
    version: int | None,
    from_class: str | None = None,
    to_class: str | None = None,
) -> int | None:
    """Append an act for each image; answers the last one's number."""
    rows = session.scalars(
        text(
            """
            INSERT INTO image_acts (act, sha256, from_class, to_class, version_id, why, done_by)
            SELECT :act, sha256, CAST(:from AS text), CAST(:to AS text),
                   CAST(:version AS bigint), :why, :by
            FROM unnest(CAST(:digests AS text[])) WITH ORDINALITY one (sha256, place)
            ORDER BY place RETURNING id
            """
        ),
        {
            "act": act, "digests": list(digests), "from": from_class, "to": to_class,
            "version": version, "why": why.strip(), "by": by.strip(),
        },
    ).all()  # fmt: skip
    return max(rows, default=None)


def _done(
    words: Sequence[str],
    found: Sequence[_Image],
    fresh: Collection[object],
    made: Sequence[str] = (),
) -> Done:
    return Done(len(fresh), len(found) - len(fresh), len(words) - len(found), tuple(made))
