"""Reviews: people's verdicts on what versions answered, each kept, and what they prove together.

Only the random stream estimates accuracy in use: its transactions came into it by chance, their
order is drawn from their numbers, and a share of them is shown blind.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import Row, Select, insert, select, text
from sqlalchemy.orm import Session

from records import classes, labels, pools, transactions, versions
from records.labels import Done, Wish
from records.pools import ReadObject
from records.tables import REVIEW_VERDICTS, STREAMS, Review
from vision import scores
from vision.scores import Difference, Estimate, Sums

# Of the random stream: transactions that are shown without the answer, and those that two people
# are asked about. Which they are follows from their numbers.
BLIND = 0.2
TWICE = 0.1
# Verdicts on so many of the first that wait for a person estimate: who could take any drawn one
# would take easy ones. Two people may have been shown the same one while both looked at it.
OFFERED = 50
LOOKING = timedelta(hours=1)
# Verdicts that tell nothing of the answer.
UNTOLD = ("bad image", "cannot tell")
NOTE = 2000  # characters


class BadReview(ValueError):
    """A verdict that cannot be; the message names what is wrong with it and the mend."""


class UnknownAnswer(LookupError):
    """There is no such answer to review."""


@dataclass(frozen=True)
class Answered:
    """One answer of one version to one picture, best labels first, as the version calls them.

    class_names: all that the version knows. draw: the chance by which it came into the random
    stream, where it did. image_key: where a transaction's picture is kept.
    """

    subject: str
    version_id: int
    sha256: str
    top_labels: tuple[str, ...]
    top_confidences: tuple[float, ...]
    class_names: tuple[str, ...]
    transaction_id: uuid.UUID | None = None
    transaction_at: datetime | None = None
    evaluation_id: int | None = None
    image_key: str | None = None
    draw: float | None = None

    @property
    def predicted(self) -> str:
        """The best label."""
        return self.top_labels[0]

    @property
    def confidence(self) -> float:
        """How sure the best label is, 0..1."""
        return self.top_confidences[0]

    @property
    def name(self) -> str:
        """What to call it in a message."""
        if self.transaction_id is not None:
            return f"transaction {self.transaction_id}"
        return f"version {self.version_id}'s answer to {self.sha256[:12]}…"


@dataclass(frozen=True)
class Said:
    """What was written down; `fresh` is False where this person had said just that before."""

    id: int
    verdict: str
    label: str | None
    blind: bool
    fresh: bool


@dataclass(frozen=True)
class ReviewRow:
    """One review; what its columns mean says `records.tables.Review`."""

    id: int
    subject: str
    transaction_id: uuid.UUID | None
    transaction_at: datetime | None
    version_id: int
    sha256: str
    predicted: str
    confidence: float
    verdict: str
    label: str | None
    blind: bool
    stream: str
    probability: float | None
    note: str | None
    reviewed_by: str
    reviewed_at: datetime


# --- which answer ---------------------------------------------------------------------------


def of_transaction(session: Session, transaction_id: uuid.UUID) -> Answered:
    """The answer of a transaction; raises `UnknownAnswer`."""
    row = session.execute(
        text(
            """
            SELECT 'transaction', t.version_id, t.sha256, t.top_labels, t.top_confidences,
                   v.class_names, t.id, t.at, NULL, t.image_key, t.draw
            FROM transactions t JOIN versions v ON v.id = t.version_id WHERE t.id = :id
            ORDER BY t.at LIMIT 1
            """
        ),
        {"id": transaction_id},
    ).first()
    if row is None:
        raise UnknownAnswer(
            f"there is no transaction {transaction_id}: it may be too old to be kept, or not have "
            "come in yet"
        )
    return _answered(row)


def of_identification(session: Session, version_id: int, image: str) -> Answered:
    """A version's answer to a picture of a pool, by its digest; raises `UnknownAnswer`."""
    return _of_version(
        session,
        """
        SELECT 'identification', a.version_id, a.sha256, a.top_labels, a.top_confidences,
               v.class_names, NULL, NULL, NULL, NULL, NULL
        FROM pool_answers a JOIN versions v ON v.id = a.version_id
        WHERE a.version_id = :version AND a.sha256 >= :digest AND a.sha256 < :digest || 'g'
        """,
        version_id,
        image,
    )


def of_evaluation(session: Session, version_id: int, image: str) -> Answered:
    """A version's newest answer to an image that it was evaluated on; raises `UnknownAnswer`."""
    return _of_version(
        session,
        """
        SELECT DISTINCT ON (a.sha256) 'evaluation', e.version_id, a.sha256, a.top_labels,
               a.top_confidences, v.class_names, NULL, NULL, e.id, NULL, NULL
        FROM evaluations e JOIN versions v ON v.id = e.version_id
        JOIN answers a ON a.evaluation_id = e.id
        WHERE e.version_id = :version AND a.sha256 >= :digest AND a.sha256 < :digest || 'g'
        ORDER BY a.sha256, e.id DESC
        """,
        version_id,
        image,
    )


def _of_version(session: Session, query: str, version_id: int, image: str) -> Answered:
    versions.get(session, version_id)
    values = {"version": version_id, "digest": labels.digest(image)}
    rows = session.execute(text(query), values).all()
    if len(rows) != 1:
        found = "several images" if rows else "no image"
        raise UnknownAnswer(
            f"{image[:80]!r} names {found} that version {version_id} has answered: give the whole "
            "digest"
        )
    return _answered(rows[0])


def _answered(row: Sequence[Any]) -> Answered:
    values: list[Any] = [tuple(one) if isinstance(one, list) else one for one in row]
    return Answered(*values)


# --- the verdict ----------------------------------------------------------------------------


def is_blind(transaction_id: uuid.UUID) -> bool:
    """Whether the random stream shows this transaction without its answer."""
    drawn = hashlib.sha256(transaction_id.bytes).digest()[8:12]
    return drawn < part(BLIND)


def stream_of(queue: str | None) -> str:
    """What a verdict on something that a queue offered is kept as; None: a person chose it."""
    if queue is None:
        return "chosen"
    return "random" if queue == "random" else "doubt"


def part(share: float) -> bytes:
    """The bound under which this share of all four bytes of a digest are."""
    return int(share * 2**32).to_bytes(4)


def say(
    session: Session,
    answered: Answered,
    by: str,
    verdict: str | None = None,
    label: str | None = None,
    note: str | None = None,
    stream: str = "chosen",
    new_classes: Collection[str] = (),
) -> Said:
    """Write down what a person says of an answer; said again, nothing is written.

    verdict: right, wrong, bad image or cannot tell; a label alone says which of the first two. Who
    was shown the picture blind can name it, and not say whether the answer is right. stream:
    `random` for what the random stream offers this person now, among the first `OFFERED`; `doubt`
    for another queue's. Raises `BadReview`, and `classes.UnknownClass` for a label that
    `new_classes` does not allow.
    """
    if problem := classes.person_problem(by):
        raise BadReview(problem)
    if note is not None and (len(note) > NOTE or classes.unwritable(note)):
        raise BadReview(f"the note has {len(note)} characters: say it in {NOTE} that are text")
    blind = _is_blind_in(answered, stream)
    verdict, label = _verdict(session, answered, by, verdict, label, blind, new_classes)
    facts = {
        "verdict": verdict, "label": label, "blind": blind, "note": (note or "").strip() or None,
    }  # fmt: skip
    person = by.strip()
    known = _last_word(session, answered, person, stream)
    if known is not None and all(getattr(known, name) == said for name, said in facts.items()):
        return Said(known.id, verdict, label, blind, fresh=False)
    if stream == "random" and known is None and not _is_offered(session, answered, person):
        raise BadReview(
            f"{answered.name} is not among the first {OFFERED} that the random queue offers "
            f"{person} now: say it with the queue that had shown it, or with none"
        )
    number = session.execute(
        insert(Review)
        .values(
            subject=answered.subject,
            transaction_id=answered.transaction_id,
            transaction_at=answered.transaction_at,
            evaluation_id=answered.evaluation_id,
            version_id=answered.version_id,
            sha256=answered.sha256,
            predicted=answered.predicted,
            confidence=answered.confidence,
            stream=stream,
            probability=answered.draw if stream == "random" else None,
            reviewed_by=person,
            **facts,
        )
        .returning(Review.id)
    ).scalar_one()
    return Said(number, verdict, label, blind, fresh=True)


def _is_blind_in(answered: Answered, stream: str) -> bool:
    if stream not in STREAMS:
        raise BadReview(f"stream {stream[:40]!r} is none of {', '.join(STREAMS)}")
    if stream != "random":
        return False
    if answered.transaction_id is None or answered.draw is None:
        raise BadReview(
            f"{answered.name} was not drawn into the random stream: only chance brings one in"
        )
    return is_blind(answered.transaction_id)


def _is_offered(session: Session, answered: Answered, person: str) -> bool:
    first = drawn(session, person, answered.version_id, OFFERED)
    if any(row.id == answered.transaction_id for row in first):
        return True
    shown_too = """
        SELECT 1 FROM reviews WHERE transaction_id = :id AND stream = 'random'
          AND reviewed_by <> :by AND reviewed_at > now() - CAST(:looking AS interval) LIMIT 1
    """
    values = {"id": answered.transaction_id, "by": person, "looking": LOOKING}
    return session.execute(text(shown_too), values).first() is not None


def drawn(
    session: Session, by: str, version_id: int | None, most: int
) -> list[Row[Any]]:
    """The first transactions of the random stream that this person has not spoken of.

    Those whose picture is kept, in the stream's order; one in ten is asked of two people, all
    others of one. Columns: `TRANSACTION`.
    """
    values = {
        "by": by, "version": version_id, "most": most, "twice": part(TWICE),
        "since": transactions.images_since(session),
    }  # fmt: skip
    return list(session.execute(text(_DRAWN), values))


TRANSACTION = "t.id, t.at, t.version_id, t.sha256, t.image_key, t.top_labels, t.top_confidences"

# What people have spoken of is hashed once: most of what stands first in an index was reviewed, and
# would be looked up one by one.
_DRAWN = f"""
    WITH spoken AS MATERIALIZED (
        SELECT transaction_id FROM reviews WHERE stream = 'random' GROUP BY transaction_id
        HAVING bool_or(reviewed_by = :by) OR min(reviewed_by) <> max(reviewed_by)
            OR substring(sha256(uuid_send(transaction_id)) FROM 13 FOR 4) >= CAST(:twice AS bytea))
    SELECT {TRANSACTION} FROM transactions t
    WHERE t.draw IS NOT NULL AND t.image_key IS NOT NULL AND t.at >= :since
      AND (CAST(:version AS bigint) IS NULL OR t.version_id = :version)
      AND t.id NOT IN (SELECT transaction_id FROM spoken)
    ORDER BY sha256(uuid_send(t.id)) LIMIT :most
"""  # noqa: S608  (constants of this module)


def _verdict(
    session: Session,
    answered: Answered,
    by: str,
    verdict: str | None,
    label: str | None,
    blind: bool,
    new_classes: Collection[str],
) -> tuple[str, str | None]:
    """The verdict and the label as they are kept; of a right answer in the version's own words."""
    if verdict is not None and verdict not in REVIEW_VERDICTS:
        raise BadReview(f"verdict {verdict[:40]!r} is none of {', '.join(REVIEW_VERDICTS)}")
    if label is not None and not label.strip():
        label = None
    if verdict in UNTOLD:
        if label is not None:
            raise BadReview(f"{verdict} and a label contradict each other: leave one out")
        return verdict, None
    if blind and verdict is not None:
        raise BadReview(
            f"{answered.name} is shown blind: name what it shows by a label, or say that it is a "
            "bad image or that you cannot tell"
        )
    if label is None:
        if verdict is None:
            raise BadReview("say right, wrong, bad image or cannot tell, or name the class")
        return verdict, answered.predicted if verdict == "right" else None
    meant, missing = classes.resolve(session, [label], new_classes)
    for name in missing:
        classes.make(session, name, by)
    today = classes.today(session)
    same = today.get(answered.predicted, answered.predicted) == meant[label]
    if verdict is not None and (verdict == "right") != same:
        raise BadReview(
            f"{verdict} and the label {meant[label]!r} contradict each other: the answer was "
            f"{answered.predicted!r}"
        )
    return ("right", answered.predicted) if same else ("wrong", meant[label])


def _last_word(
    session: Session, answered: Answered, by: str, stream: str
) -> ReviewRow | None:
    """What this person said last of this answer; two clicks at once wait for each other."""
    what = f"regraft-review {answered.name} {stream} {by}"
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:what))"), {"what": what})
    query = _rows().where(
        Review.subject == answered.subject, Review.stream == stream, Review.reviewed_by == by
    )
    if answered.transaction_id is not None:
        query = query.where(Review.transaction_id == answered.transaction_id)
    else:
        query = query.where(
            Review.sha256 == answered.sha256, Review.version_id == answered.version_id
        )
    row = session.execute(query.order_by(Review.id.desc()).limit(1)).first()
    return ReviewRow(*row) if row else None


def into_library(
    session: Session,
    answered: Answered,
    read: ReadObject | None,
    by: str,
    label: str,
    why: str | None = None,
    new_classes: Collection[str] = (),
) -> Done:
    """Let a picture that was reviewed train as what a person calls it, by the door of the pools.

    read: a transaction's kept picture as it was read; what an identification answered is known. Its
    object follows with the next act or intake, as mined. Raises `labels.BadLabels` and `BadReview`.
    """
    if answered.subject == "evaluation":
        raise BadReview(f"{answered.name}: a labelled image is relabelled, `regraft image relabel`")
    if answered.subject == "transaction":
        if read is None or read.problem or read.sha256 != answered.sha256:
            raise BadReview(f"{answered.name}: its picture is not kept as it was served")
        if answered.transaction_at and answered.transaction_at < transactions.images_since(session):
            raise BadReview(f"{answered.name}: its picture is too old and is being deleted")
        pools.record(session, pools.enter(session, _pool(session, read.key)), [read])
    wish = Wish(
        answered.name, image=answered.sha256, label=label, version=answered.version_id,
        offered=answered.predicted,
    )  # fmt: skip
    return labels.label(session, [wish], by, new_classes, why)


def _pool(session: Session, key: str) -> str:
    """The pool that a kept picture belongs to: one that was identified, else all of them."""
    known = [one.prefix for one in pools.listed(session) if key.startswith(one.prefix)]
    return max(known, key=len, default=transactions.IMAGES)


# --- what was said --------------------------------------------------------------------------


def _rows() -> Select[Any]:
    return select(*(getattr(Review, name) for name in ReviewRow.__dataclass_fields__))


def newest(
    session: Session,
    most: int = 50,
    by: str | None = None,
    version_id: int | None = None,
    subject: str | None = None,
    verdict: str | None = None,
) -> list[ReviewRow]:
    """What people said of answers, the newest first."""
    query = _rows().order_by(Review.id.desc()).limit(most)
    for column, wanted in (
        (Review.reviewed_by, by), (Review.version_id, version_id), (Review.subject, subject),
        (Review.verdict, verdict),
    ):  # fmt: skip
        if wanted is not None:
            query = query.where(column == wanted)
    return [ReviewRow(*row) for row in session.execute(query)]


@dataclass(frozen=True)
class Word:
    """What one person says of an answer, the newest word alone."""

    by: str
    verdict: str
    label: str | None
    blind: bool
    note: str | None
    at: datetime


@dataclass(frozen=True)
class Disagreement:
    """One answer of which people say different things; all words stand."""

    subject: str
    transaction_id: uuid.UUID | None
    version_id: int
    sha256: str
    predicted: str
    confidence: float
    words: tuple[Word, ...]


def disagreements(session: Session, most: int = 50) -> list[Disagreement]:
    """Answers on which the newest words of two people contradict each other, the newest first.

    Wrong without a label contradicts no label; names count as what they are called today.
    """
    rows = session.execute(
        text(
            """
            WITH newest AS (
                SELECT DISTINCT ON (subject, version_id, sha256, transaction_id, reviewed_by)
                       r.*, coalesce(n.today, r.label) AS named
                FROM reviews r LEFT JOIN class_names n ON n.name = r.label
                ORDER BY subject, version_id, sha256, transaction_id, reviewed_by, id DESC),
            apart AS (
                SELECT subject, version_id, sha256, transaction_id, max(id) AS latest FROM newest
                GROUP BY subject, version_id, sha256, transaction_id
                HAVING count(DISTINCT verdict) > 1 OR count(DISTINCT named) > 1
                ORDER BY latest DESC LIMIT :most)
            SELECT a.latest, r.subject, r.transaction_id, r.version_id, r.sha256, r.predicted,
                   r.confidence, r.reviewed_by, r.verdict, r.label, r.blind, r.note, r.reviewed_at
            FROM apart a JOIN newest r
              ON (r.subject, r.version_id, r.sha256) = (a.subject, a.version_id, a.sha256)
             AND r.transaction_id IS NOT DISTINCT FROM a.transaction_id
            ORDER BY a.latest DESC, r.id
            """
        ),
        {"most": most},
    ).all()
    found = []
    for _, some in groupby(rows, key=lambda row: row.latest):
        first, *rest = some
        words = tuple(Word(*row[7:]) for row in (first, *rest))
        found.append(_disagreement(first[1:7], words))
    return found


def _disagreement(answer: Sequence[Any], words: tuple[Word, ...]) -> Disagreement:
    values: list[Any] = [*answer, words]
    return Disagreement(*values)


# --- what it proves -------------------------------------------------------------------------

# SQL for `scores.Sums` over rows of the view `random_verdicts`, in the order of its fields.
SUMS = """
    count(right_share), coalesce(sum(1 / chance) FILTER (WHERE right_share IS NOT NULL), 0),
    coalesce(sum(right_share / chance), 0),
    coalesce(sum(1 / chance ^ 2) FILTER (WHERE right_share IS NOT NULL), 0),
    coalesce(sum(right_share / chance ^ 2), 0), coalesce(sum((right_share / chance) ^ 2), 0)
"""


@dataclass(frozen=True)
class InUse:
    """How right answers are where they are used, from the random stream alone.

    drawn: transactions of this version and time that the stream holds, those included that are
    reviewed and kept no longer; reviewed: those that somebody has judged. accuracy: over those that
    are told right or wrong; bad_images are left out, and with cannot_tell counted as wrong, or as
    right, it would be at_least and at_most. shown and blind: apart, by whether the person saw the
    answer; anchoring: shown minus blind, which is how much seeing the answer talks people into it.
    twice: transactions of which two people spoke; agreed: those of them on which they said the same
    of right and wrong.
    """

    version_id: int | None
    since: datetime | None
    until: datetime | None
    drawn: int
    reviewed: int
    bad_images: int
    cannot_tell: int
    accuracy: Estimate | None
    at_least: float | None
    at_most: float | None
    shown: Estimate | None
    blind: Estimate | None
    anchoring: Difference | None
    twice: int
    agreed: int

    @property
    def sentence(self) -> str:
        """What a person needs to know, with counts."""
        if self.accuracy is None:
            return (f"{self.reviewed} of {self.drawn} drawn transactions are reviewed: nothing is "
                    "known of accuracy in use; `regraft review next` shows the first")  # fmt: skip
        told = (f"{self.accuracy.share:.1%} of the answers are right (95%: {self.accuracy.low:.1%} "
                f"to {self.accuracy.high:.1%}), by {self.accuracy.sampled} of {self.drawn} drawn "
                "transactions")  # fmt: skip
        if self.cannot_tell and self.at_least is not None and self.at_most is not None:
            told += (f"; with the {self.cannot_tell} that nobody could tell {self.at_least:.1%} to "
                     f"{self.at_most:.1%}")  # fmt: skip
        if self.anchoring is None:
            return f"{told}. How much seeing the answer talks people into it is not known yet."
        effect = self.anchoring
        verb = "is" if effect.proven else "may be"
        return (f"{told}. Seeing the answer {verb} worth {effect.value * 100:+.1f} points "
                f"({effect.low * 100:+.1f} to {effect.high * 100:+.1f}).")  # fmt: skip


def in_use(
    session: Session,
    version_id: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> InUse:
    """Accuracy in use of a version (None: of all that was served), by time of the transaction.

    since <= time < until. While some of the drawn ones wait for a person, all of them waited in one
    order that chance has made.
    """
    if version_id is not None:
        versions.get(session, version_id)
    values = {"version": version_id, "since": since, "until": until}
    within = """
        (CAST(:version AS bigint) IS NULL OR version_id = :version)
        AND (CAST(:since AS timestamptz) IS NULL OR at >= :since)
        AND (CAST(:until AS timestamptz) IS NULL OR at < :until)
    """
    drawn = session.scalar(
        text(
            f"""
            SELECT count(*) FROM (
                SELECT id FROM transactions WHERE draw IS NOT NULL AND {within}
                UNION SELECT transaction_id FROM random_verdicts WHERE {within}) either
            """  # noqa: S608  (constants of this module)
        ),
        values,
    )
    rows = session.execute(
        text(
            f"""
            SELECT blind, {SUMS}, count(*),
                   count(*) FILTER (WHERE right_share IS NULL AND cannot_tell = 0),
                   count(*) FILTER (WHERE right_share IS NULL AND cannot_tell > 0),
                   coalesce(sum(1 / chance) FILTER (
                       WHERE right_share IS NULL AND cannot_tell > 0), 0),
                   count(*) FILTER (WHERE people > 1),
                   count(*) FILTER (WHERE people > 1 AND right_share IN (0, 1)
                                    AND bad_images = 0 AND cannot_tell = 0)
            FROM random_verdicts WHERE {within} GROUP BY blind
            """  # noqa: S608  (constants of this module)
        ),
        values,
    ).all()
    by = {row[0]: Sums(*row[1:7]) for row in rows}
    whole = sum(by.values(), start=Sums(0, 0, 0, 0, 0, 0))
    reviewed, bad, untold, weight, twice, agreed = (
        sum(row[place] for row in rows) for place in range(7, 13)
    )
    shown, blind = (
        scores.estimate(by[key]) if key in by else None for key in (False, True)
    )
    judged = whole.w + weight
    return InUse(
        version_id, since, until, drawn or 0, reviewed, bad, untold,
        accuracy=scores.estimate(whole),
        at_least=whole.wy / judged if judged else None,
        at_most=(whole.wy + weight) / judged if judged else None,
        shown=shown,
        blind=blind,
        anchoring=scores.difference(shown, blind) if shown and blind else None,
        twice=twice,
        agreed=agreed,
    )  # fmt: skip
