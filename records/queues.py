"""Queues: which answers a person should look at next, and why.

The random stream estimates, and offers what chance drew in an order that chance made. The others
find errors: by doubt, by what a version is known to confuse, by the classes that lack images; they
never offer what was drawn, so that neither stream colours the other. One of them offers pictures of
pools, which nobody has asked about.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from records import classes, findings, pictures, transactions, versions
from records.evaluations import newest_benchmark
from records.reviews import TRANSACTION, Answered, drawn, is_blind, stream_of
from records.snapshots import USABLE

QUEUES = ("random", "confidence", "mistaken", "scarce", "pools")
# Of the newest kept transactions so many are compared by the queues that no index orders, and so
# many of the answers to pools that a version is least sure of.
LOOKED_AT = 5000
DOUBTED = 1000
# What an answer must give a class at least for the picture to be perhaps one of it.
PERHAPS = 0.1
# Of a right answer another class had at least so much, compared with what its own had: 1 is a tie.
DOUBTFUL = 0.5


class BadQueue(ValueError):
    """There is no such queue, or it does not take what was asked of it."""


@dataclass(frozen=True)
class Waiting:
    """One answer that waits for a person.

    stream: what a verdict on it is kept as. subject: transaction, or identification, which has
    neither number nor time and is named by version and sha256. key: where its picture is kept.
    blind: without the answer, whose labels and confidences are then None. why: what brings it up,
    in words.
    """

    queue: str
    stream: str
    subject: str
    transaction_id: uuid.UUID | None
    at: datetime | None
    version_id: int
    sha256: str
    key: str
    blind: bool
    top_labels: tuple[str, ...] | None
    top_confidences: tuple[float, ...] | None
    why: str


# --- transactions and pools -----------------------------------------------------------------


def waiting(
    session: Session,
    queue: str,
    by: str,
    version_id: int | None = None,
    class_name: str | None = None,
    most: int = 1,
) -> list[Waiting]:
    """The next answers that a person should look at, those with a picture alone.

    random: drawn ones, in a fixed random order, that this person has not spoken of; one in ten is
    asked of two people. confidence: the least sure first. mistaken: the likeliest to be wrong, by
    their confidence and how often the version is right with that class on its newest benchmark (or
    test) images. scarce: what may be one of the classes with the fewest images. pools: of new
    pictures there, which the version (the newest that answered any) is least sure of, first what
    may be scarce, then where two classes are nearest to each other. class_name: this answer alone;
    the random stream takes no choice but the version. Raises `BadQueue`.
    """
    if queue not in QUEUES:
        raise BadQueue(f"queue {queue[:40]!r} is none of {', '.join(QUEUES)}")
    if most < 1:
        raise BadQueue(f"--limit {most}: ask for 1 or more")
    if problem := classes.person_problem(by):
        raise BadQueue(problem)
    if queue == "random" and class_name is not None:
        raise BadQueue("the random stream takes no class: whoever chooses estimates nothing")
    _refuse_text(class_name)
    if version_id is not None:
        versions.get(session, version_id)
    values = {
        "by": by.strip(), "version": version_id, "class": class_name, "most": most,
        "since": transactions.images_since(session), "looked": LOOKED_AT, "perhaps": PERHAPS,
    }  # fmt: skip
    session.execute(text("SET LOCAL work_mem = '64MB'"))  # to hash what people have spoken of
    found = {
        "random": _random, "confidence": _least_sure, "mistaken": _mistaken, "scarce": _scarce,
        "pools": _of_pools,
    }[queue](session, values)  # fmt: skip
    return [_blindfolded(one) if queue == "random" else one for one in found]


def spoken_of(session: Session, queue: str, answered: Answered) -> Waiting:
    """An answer as a queue had shown it, for whoever says otherwise of it by now."""
    key = answered.image_key
    if key is None and (place := pictures.place(session, answered.sha256)):
        key, _ = place
    one = Waiting(
        queue, stream_of(queue), answered.subject, answered.transaction_id,
        answered.transaction_at, answered.version_id, answered.sha256, key or "", False,
        answered.top_labels, answered.top_confidences, "once more",
    )  # fmt: skip
    return _blindfolded(one) if queue == "random" else one


def _refuse_text(class_name: str | None) -> None:
    if class_name is not None and (problem := classes.unwritable(class_name)):
        raise BadQueue(f"class {class_name[:40]!r} {problem}")


def _blindfolded(one: Waiting) -> Waiting:
    if one.transaction_id is None or not is_blind(one.transaction_id):
        return one
    return replace(one, blind=True, top_labels=None, top_confidences=None)


_CHOSEN = """
    t.image_key IS NOT NULL AND t.at >= :since
    AND (CAST(:version AS bigint) IS NULL OR t.version_id = :version)
    AND (CAST(:class AS text) IS NULL OR t.predicted = :class)
"""

_UNSAID = """
    t.draw IS NULL AND t.id NOT IN (
        SELECT transaction_id FROM reviews WHERE transaction_id IS NOT NULL AND stream <> 'random')
"""

_LEAST_SURE = f"""
    SELECT {TRANSACTION} FROM transactions t WHERE {_CHOSEN} AND {_UNSAID}
    ORDER BY t.confidence LIMIT :most
"""  # noqa: S608

_RECENT = f"""
    recent AS MATERIALIZED (
        SELECT {TRANSACTION}, t.predicted, t.confidence FROM transactions t
        WHERE {_CHOSEN} AND {_UNSAID} ORDER BY t.at DESC LIMIT :looked)
"""  # noqa: S608

# How often a class is right where it is answered; one right and one wrong answer are added, or a
# class that was answered once would be held for wrong for ever.
_MISTAKEN = f"""
    WITH {_RECENT}, known AS (
        SELECT DISTINCT ON (e.version_id) e.version_id, e.id, e.accuracy FROM evaluations e
        WHERE e.version_id IN (SELECT version_id FROM recent)
          AND e.subject IN ('benchmark', 'test', 'validation')
        ORDER BY e.version_id, array_position(ARRAY['benchmark', 'test', 'validation'], e.subject),
                 e.benchmark_version DESC, e.id DESC)
    SELECT {TRANSACTION}, t.predicted, coalesce((c.correct + 1.0) / (c.predicted + 2), k.accuracy)
    FROM recent t LEFT JOIN known k ON k.version_id = t.version_id
    LEFT JOIN evaluation_classes c ON c.evaluation_id = k.id AND c.class_name = t.predicted
    ORDER BY t.confidence * coalesce((c.correct + 1.0) / (c.predicted + 2), k.accuracy, 1), t.id
    LIMIT :most
"""  # noqa: S608

# Of answers `recent` the scarcest class that each may be, counted no further than it matters.
_BEST = f"""
    perhaps AS MATERIALIZED (
        SELECT t.id, p.name, p.confidence
        FROM recent t, unnest(t.top_labels, t.top_confidences) p (name, confidence)
        WHERE p.confidence >= :perhaps
    ), scarce AS MATERIALIZED (
        SELECT n.name, n.today, u.usable FROM class_names n JOIN classes c ON c.name = n.today
        CROSS JOIN LATERAL (
            SELECT count(*) AS usable FROM (
                SELECT 1 FROM images i WHERE i.class_id = c.id AND {USABLE} LIMIT :fewer) few) u
        WHERE n.name IN (SELECT name FROM perhaps) AND u.usable < :fewer
    ), best AS (
        SELECT DISTINCT ON (id) id, today, usable, confidence AS given
        FROM perhaps JOIN scarce USING (name) ORDER BY id, usable, confidence DESC)
"""  # noqa: S608

_SCARCE = f"""
    WITH {_RECENT}, {_BEST}
    SELECT {TRANSACTION}, b.today, b.usable FROM best b JOIN recent t USING (id)
    ORDER BY b.usable, b.given DESC, t.id LIMIT :most
"""  # noqa: S608

# What people have spoken of, or dealt with, is passed over within an index. All else that is asked
# of an answer is one look into another, in no join that Postgres could turn round, and it stops
# after as many as are compared. What was served waits in the other queues.
_POOLS = f"""
    WITH recent AS MATERIALIZED (
        SELECT a.sha256 AS id, a.version_id, o.key, a.top_labels, a.top_confidences
        FROM (
            SELECT a.sha256, a.confidence FROM pool_answers a
            WHERE a.version_id = :version
              AND (CAST(:class AS text) IS NULL OR a.predicted = :class)
              AND a.sha256 NOT IN (SELECT sha256 FROM reviews WHERE subject = 'identification')
              AND (SELECT NOT EXISTS (SELECT FROM pool_acts s WHERE s.sha256 = a.sha256))
            ORDER BY a.confidence, a.sha256 DESC) unsaid
        JOIN LATERAL (
            SELECT * FROM pool_answers a
            WHERE a.version_id = :version AND a.sha256 = unsaid.sha256 LIMIT 1) a ON true
        JOIN LATERAL (
            SELECT p.mark FROM pool_images p WHERE p.sha256 = a.sha256 LIMIT 1) i ON true
        JOIN LATERAL (
            SELECT (array_agg(o.key ORDER BY o.id))[1] AS key FROM pool_objects o
            WHERE o.sha256 = a.sha256 AND o.gone_at IS NULL) o ON o.key IS NOT NULL
        WHERE i.mark IS NULL AND a.identification_id NOT IN (
              SELECT n.id FROM identifications n JOIN pools p ON p.id = n.pool_id
              WHERE starts_with(p.prefix, :served))
        ORDER BY unsaid.confidence, unsaid.sha256 DESC LIMIT :doubted
    ), {_BEST}
    SELECT t.version_id, t.id, t.key, t.top_labels, t.top_confidences, b.today, b.usable
    FROM recent t LEFT JOIN best b USING (id)
    ORDER BY b.usable, t.top_confidences[1] - coalesce(t.top_confidences[2], 0), t.id LIMIT :most
"""  # noqa: S608

_SCANS = "SET LOCAL enable_seqscan = {0}; SET LOCAL enable_bitmapscan = {0}"


def _random(session: Session, values: dict[str, Any]) -> list[Waiting]:
    rows = drawn(session, values["by"], values["version"], values["most"])
    return [_served("random", row, "drawn by chance") for row in rows]


def _least_sure(session: Session, values: dict[str, Any]) -> list[Waiting]:
    rows = session.execute(text(_LEAST_SURE), values)
    return [_served("confidence", row, f"{row.top_confidences[0]:.0%} sure") for row in rows]


def _mistaken(session: Session, values: dict[str, Any]) -> list[Waiting]:
    rows = session.execute(text(_MISTAKEN), values)
    return [
        _served("mistaken", row, f"{row.top_confidences[0]:.0%} sure" + (
            "" if row[-1] is None else f", and {row[-2]} is right in {float(row[-1]):.0%} of cases"
        ))
        for row in rows
    ]  # fmt: skip


def _scarce(session: Session, values: dict[str, Any]) -> list[Waiting]:
    fewer = 2 * findings.cutoff(session)
    rows = session.execute(text(_SCARCE), values | {"fewer": fewer})
    return [_served("scarce", row, _perhaps(row)) for row in rows]


def _perhaps(row: Sequence[Any]) -> str:
    return f"perhaps {row[-2]}, of which there are {row[-1]}"


def _of_pools(session: Session, values: dict[str, Any]) -> list[Waiting]:
    values = values | {
        "version": values["version"] or findings.newest_version(session),
        "fewer": 2 * findings.cutoff(session), "doubted": DOUBTED, "served": transactions.IMAGES,
    }  # fmt: skip
    # What has just been answered is not counted yet, and Postgres would read and sort all of it.
    session.execute(text(_SCANS.format("off")))
    rows = session.execute(text(_POOLS), values).all()
    session.execute(text(_SCANS.format("on")))
    return [_found(row) for row in rows]


def _found(row: Sequence[Any]) -> Waiting:
    version_id, sha256, key, names, confidences, _, usable = row
    best = zip(names[:2], confidences[:2], strict=True)
    between = " or ".join(f"{name} {share:.0%}" for name, share in best)
    return Waiting(
        "pools", "doubt", "identification", None, None, version_id, sha256, key, False,
        tuple(names), tuple(confidences), between if usable is None else _perhaps(row),
    )  # fmt: skip


def _served(queue: str, row: Sequence[Any], why: str) -> Waiting:
    number, at, version_id, sha256, key, names, confidences = row[:7]
    stream = stream_of(queue)
    return Waiting(
        queue, stream, "transaction", number, at, version_id, sha256, key, False, tuple(names),
        tuple(confidences), why,
    )  # fmt: skip


# --- evaluated images -----------------------------------------------------------------------


@dataclass(frozen=True)
class Looked:
    """One image that a version was evaluated on, and what has become of it since.

    label: its class then, and `today` what it is called now (in the library, or in the benchmark);
    label_confidence: what the label was given. mistakenness: half of one plus what the best other
    class was given minus what the label was: above a half the answer is wrong, and near 1 either
    the version or the label is surely so. suggested: what confident learning takes it for.
    in_sample: an image to train on. withdrawn: why it is out of use; act, act_by: the newest that a
    person did with it; verdict: the newest review of this answer. maps: classes of which a Grad-CAM
    is kept. key, etag: where its bytes lie, None where they are gone.
    """

    sha256: str
    subject: str
    benchmark_version: int | None
    label: str
    today: str | None
    predicted: str
    confidence: float
    label_confidence: float
    correct: bool
    top_labels: tuple[str, ...]
    top_confidences: tuple[float, ...]
    mistakenness: float
    suggested: str | None
    in_sample: bool
    withdrawn: str | None
    act: str | None
    act_by: str | None
    verdict: str | None
    maps: tuple[str, ...]
    key: str | None
    etag: str | None


def evaluated(
    session: Session,
    version_id: int,
    subject: str | None = None,
    class_name: str | None = None,
    everything: bool = False,
    again: bool = False,
    most: int = 60,
    skip: int = 0,
) -> list[Looked]:
    """Images that a version was evaluated on, the worst first; each once, out of sample if it was.

    everything: right and sure answers, too; else what is wrong or doubtful (another class was given
    half as much as the label, or confident learning doubts it). again: those, too, that somebody
    has acted on, or spoken of, since. subject: validation, test, benchmark, batch or library.
    class_name: of this label alone, as it is called today. Raises `UnknownVersion`.
    """
    versions.get(session, version_id)
    _refuse_text(class_name)
    rows = session.execute(
        text(_EVALUATED),
        {
            "version": version_id, "subject": subject, "class": class_name, "most": most,
            "skip": skip, "all": everything, "again": again, "doubtful": DOUBTFUL,
            "benchmark": newest_benchmark(session, version_id),
        },
    )  # fmt: skip
    return [_looked(row) for row in rows]


def _looked(row: Sequence[Any]) -> Looked:
    values: list[Any] = [tuple(one) if isinstance(one, list) else one for one in row]
    return Looked(*values)


_OTHER = "CASE WHEN a.correct THEN coalesce(a.top_confidences[2], 0) ELSE a.confidence END"

_EVALUATED = f"""
    WITH told AS (
        SELECT e.id, e.subject, e.benchmark_version, e.created_at, a.*,
               (1 + {_OTHER} - a.label_confidence) / 2 AS mistakenness, d.suggested
        FROM evaluations e JOIN answers a ON a.evaluation_id = e.id
        LEFT JOIN label_doubts d ON d.version_id = e.version_id AND d.sha256 = a.sha256
        WHERE e.version_id = :version
          AND (CAST(:subject AS text) IS NULL OR e.subject = :subject)
          -- of the benchmark the newest version that it has answered
          AND e.benchmark_version IS NOT DISTINCT FROM
              CASE WHEN e.subject = 'benchmark' THEN CAST(:benchmark AS int) END
          AND (:all OR NOT a.correct OR d.suggested IS NOT NULL
               OR {_OTHER} >= :doubtful * a.label_confidence)
    ), once AS (
        SELECT DISTINCT ON (sha256) * FROM told
        ORDER BY sha256, array_position(
            ARRAY['benchmark', 'validation', 'test', 'batch', 'library'], subject), id DESC
    ), worst AS MATERIALIZED (
        SELECT o.*, coalesce(c.name, f.today, b.class_name) AS today, i.split, i.withdrawn_why,
               b.key AS frozen_key
        FROM once o
        LEFT JOIN images i USING (sha256) LEFT JOIN classes c ON c.id = i.class_id
        LEFT JOIN benchmark_images b USING (sha256)
        LEFT JOIN class_names f ON f.name = b.class_name
        WHERE (:again OR (i.withdrawn_at IS NULL
                 AND NOT EXISTS (SELECT 1 FROM image_acts t
                                 WHERE t.sha256 = o.sha256 AND t.done_at > o.created_at)
                 AND NOT EXISTS (SELECT 1 FROM reviews r WHERE r.sha256 = o.sha256
                                 AND r.version_id = :version AND r.subject = 'evaluation')))
          AND (CAST(:class AS text) IS NULL
               OR coalesce(c.name, f.today, b.class_name) = :class)
        ORDER BY o.mistakenness DESC, o.sha256 LIMIT :most OFFSET :skip
    )
    SELECT o.sha256, o.subject, o.benchmark_version, o.label, o.today, o.predicted, o.confidence,
           o.label_confidence, o.correct, o.top_labels, o.top_confidences, o.mistakenness,
           o.suggested, coalesce(o.split = 'train', false), o.withdrawn_why, t.act, t.done_by,
           r.verdict,
           ARRAY(SELECT g.target FROM gradcams g
                 WHERE g.version_id = :version AND g.sha256 = o.sha256 ORDER BY g.target),
           coalesce(p.key, o.frozen_key), p.etag
    FROM worst o
    LEFT JOIN LATERAL (
        SELECT act, done_by FROM image_acts t WHERE t.sha256 = o.sha256
        ORDER BY id DESC LIMIT 1) t ON true
    LEFT JOIN LATERAL (
        SELECT verdict FROM reviews r WHERE r.sha256 = o.sha256 AND r.version_id = :version
          AND r.subject = 'evaluation' ORDER BY id DESC LIMIT 1) r ON true
    LEFT JOIN LATERAL (
        SELECT key, etag FROM objects s WHERE s.sha256 = o.sha256 AND s.gone_at IS NULL
        ORDER BY s.state = 'quarantined', s.id LIMIT 1) p ON true
    ORDER BY o.mistakenness DESC, o.sha256
"""  # noqa: S608
