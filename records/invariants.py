"""What must hold at every moment, asked of Postgres and S3 themselves (tests ask after each fault).

Constraints and triggers refuse most of it when it is written; here it is all looked for again, as
if they were not there.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy import ARRAY, Double, Float, text
from sqlalchemy.dialects.postgresql import DOUBLE_PRECISION, REAL
from sqlalchemy.orm import Session

from infra.database import Database
from infra.storage import Gone, Storage
from records import benchmark, sets, snapshots, transactions, versions
from records.nearness import NEAR_BITS
from records.tables import Base

MOST_SHOWN = 5  # rows named in one sentence; the rest is counted
FLOATS = (Float, Double, REAL, DOUBLE_PRECISION)


class BrokenInvariant(AssertionError):
    """Something holds no longer; the message has one line for each."""


def check_invariants(database: Database, storage: Storage) -> None:
    """Raise `BrokenInvariant` unless everything holds that must hold after any fault."""
    found = broken(database, storage)
    if found:
        raise BrokenInvariant("\n".join(found))


def broken(database: Database, storage: Storage) -> list[str]:
    """One sentence for each thing that does not hold, with the rows; empty when all is well.

    Reads every checkpoint, snapshot and benchmark image: minutes, on a large library.
    """
    with database.transaction() as session:
        # One moment for all questions, whoever writes meanwhile.
        session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        return broken_rows(session) + broken_objects(session, storage)


def broken_rows(session: Session) -> list[str]:
    """The sentences that Postgres alone can judge."""
    found = [
        f"{sentence}: {_shown(rows)}"
        for sentence, query in QUERIES.items()
        if (rows := [tuple(row) for row in session.execute(text(query))])
    ]
    return [*found, *_figures(session), *_benchmark_digests(session)]


def broken_objects(session: Session, storage: Storage) -> list[str]:
    """The sentences about objects that rows name: there, and with the bytes they had."""
    return [
        *_checkpoints(session, storage),
        *_exports(session, storage),
        *_snapshots(session, storage),
        *_benchmark_objects(session, storage),
        *_transaction_images(session, storage),
    ]


# Each query finds the rows that break the sentence.
QUERIES = {
    # 1, 6: one chain of deployments, each proven
    "1: a deployment does not follow the one before it": """
        SELECT id, previous_id FROM (
            SELECT id, previous_id, lag(id) OVER (ORDER BY id) AS before FROM deployments) chain
        WHERE previous_id IS DISTINCT FROM before
    """,
    "1: the champion is not the newest deployment": """
        SELECT deployment_id FROM champion
        WHERE deployment_id IS DISTINCT FROM (SELECT max(id) FROM deployments)
    """,
    "1: a deployed version was never meant to serve, or is not trained": """
        SELECT d.id, v.id, v.purpose, v.state FROM deployments d JOIN versions v
          ON v.id = d.version_id
        WHERE v.state <> 'trained' OR v.purpose NOT IN ('nightly', 'control', 'bakeoff')
           OR v.purpose <> d.purpose
    """,
    "1: a deployment has no passed verdict on its own checkpoint and benchmark": """
        SELECT p.id, p.version_id, p.verdict_id FROM deployments p WHERE NOT EXISTS (
            SELECT 1 FROM verdicts d
            JOIN versions v ON v.id = d.version_id AND v.checkpoint_digest = d.checkpoint_digest
            JOIN benchmarks b ON b.version = d.benchmark_version AND b.digest = d.benchmark_digest
            JOIN evaluations e ON e.version_id = v.id
              AND e.benchmark_version = d.benchmark_version
              AND e.checkpoint_digest = d.checkpoint_digest
            WHERE d.id = p.verdict_id AND d.version_id = p.version_id AND d.passed
              AND EXISTS (SELECT 1 FROM checks c WHERE c.verdict_id = d.id)
              AND NOT EXISTS (SELECT 1 FROM checks c
                              WHERE c.verdict_id = d.id AND c.verdict = 'failed'))
    """,
    "1: a promotion was judged against another champion than it followed": """
        SELECT d.id, j.champion_id, p.version_id FROM deployments d
        JOIN verdicts j ON j.id = d.verdict_id LEFT JOIN deployments p ON p.id = d.previous_id
        WHERE d.kind <> 'rollback' AND j.champion_id IS DISTINCT FROM p.version_id
    """,
    "1: an overridden check let a version serve that no person approved": """
        SELECT p.id, p.kind, c.name FROM deployments p JOIN checks c USING (verdict_id)
        WHERE c.verdict = 'overridden' AND (p.kind NOT IN ('approval', 'rollback')
            OR c.name IN ('checkpoint', 'benchmark', 'answers', 'class names', 'runtime',
                          'reproduction', 'dead classes'))
    """,
    "1: a rollback returns to what never served": """
        SELECT p.id, p.version_id FROM deployments p WHERE p.kind = 'rollback'
          AND NOT EXISTS (SELECT 1 FROM deployments f WHERE f.verdict_id = p.verdict_id
                          AND f.kind <> 'rollback' AND f.id < p.id)
    """,
    "1: a rejected version came to serve without an approval": """
        SELECT p.id, p.version_id FROM deployments p JOIN rejections r USING (version_id)
        WHERE p.kind <> 'approval' AND p.deployed_at > r.rejected_at
          AND NOT EXISTS (SELECT 1 FROM deployments a WHERE a.version_id = p.version_id
                          AND a.kind = 'approval' AND a.deployed_at > r.rejected_at
                          AND a.id < p.id)
    """,
    "1: a version that had served before came to serve again by itself": """
        SELECT p.id, p.version_id FROM deployments p JOIN deployments before USING (version_id)
        WHERE p.kind = 'promotion' AND before.id < p.id
    """,
    "1: a version's parent is a throw-away version, or not trained": """
        SELECT v.id, p.id, p.purpose, p.state FROM versions v JOIN versions p ON p.id = v.parent_id
        WHERE p.purpose = 'throwaway' OR p.state <> 'trained'
    """,
    "1: a version was swept that is no throw-away one, has served or is a parent": """
        SELECT v.id, v.purpose FROM versions v WHERE v.swept_at IS NOT NULL
          AND (v.purpose <> 'throwaway'
               OR EXISTS (SELECT 1 FROM deployments p WHERE p.version_id = v.id)
               OR EXISTS (SELECT 1 FROM versions c WHERE c.parent_id = v.id))
    """,
    # 3: training and benchmark apart
    "3: an image is in the library and in the benchmark": """
        SELECT sha256 FROM images JOIN benchmark_images USING (sha256)
    """,
    "3: an image is in a pretraining set and in the benchmark": """
        SELECT sha256 FROM set_images JOIN benchmark_images USING (sha256) WHERE problem IS NULL
    """,
    "3: a library image nearly repeats a benchmark image": f"""
        SELECT DISTINCT i.sha256, b.sha256 FROM images i
        JOIN objects o ON o.sha256 = i.sha256 AND o.state = 'accepted'
        JOIN benchmark_images b
          ON bit_count((b.dhash # i.dhash)::bit(64)) <= {NEAR_BITS}
          OR bit_count((b.dhash # (o.facts->>'dhash_mirror')::bigint)::bit(64)) <= {NEAR_BITS}
        WHERE i.withdrawn_at IS NULL
    """,  # noqa: S608  (a constant)
    "3: images of one group are in different splits": """
        SELECT group_name, array_agg(DISTINCT split) FROM images WHERE split <> 'held'
        GROUP BY group_name HAVING count(DISTINCT split) > 1
    """,
    # 5: nothing lost, nothing twice
    "5: one key has more than one live object": """
        SELECT bucket, key, count(*) FROM objects WHERE gone_at IS NULL
        GROUP BY bucket, key HAVING count(*) > 1
    """,
    "5: the listed objects are not the sum of pending, accepted and quarantined": """
        SELECT count(*) AS listed,
               count(*) FILTER (WHERE state = 'pending') AS pending,
               count(*) FILTER (WHERE state = 'accepted') AS accepted,
               count(*) FILTER (WHERE state = 'quarantined') AS quarantined
        FROM objects WHERE gone_at IS NULL
        HAVING count(*) <> count(*) FILTER (WHERE state IN ('pending', 'accepted', 'quarantined'))
    """,
    "5: an accepted object has no image": """
        SELECT o.id, o.key FROM objects o LEFT JOIN images i USING (sha256)
        WHERE o.state = 'accepted' AND i.sha256 IS NULL
    """,
    "5: a usable image has no accepted object": """
        SELECT i.sha256 FROM images i WHERE i.withdrawn_at IS NULL
          AND NOT EXISTS (SELECT 1 FROM objects o
                          WHERE o.sha256 = i.sha256 AND o.state = 'accepted')
    """,
    "5: an object is in quarantine without a reason": """
        SELECT o.id, o.key FROM objects o WHERE o.state = 'quarantined'
          AND NOT EXISTS (SELECT 1 FROM quarantine q WHERE q.object_id = o.id)
    """,
    "5: an object is still pending though its batch was decided": """
        SELECT o.id, o.key, b.id, b.state FROM objects o JOIN batches b ON b.id = o.batch_id
        WHERE o.state = 'pending' AND b.state IN ('accepted', 'reverted')
    """,
    "5: an image came in with a batch that is not accepted": """
        SELECT i.sha256, b.id, b.state FROM images i JOIN batches b ON b.id = i.batch_id
        WHERE b.state IN ('open', 'refused')
    """,
    "5: two images have one place in the sequence of their class": """
        SELECT class_id, sub_class, sequence, count(*) FROM images WHERE sequence IS NOT NULL
        GROUP BY class_id, sub_class, sequence HAVING count(*) > 1
    """,
    # 7: one at a time
    "7: more than one run is running": """
        SELECT array_agg(id ORDER BY id) FROM runs WHERE state = 'running' HAVING count(*) > 1
    """,
    "7: a closed run has no end, or an open one has": """
        SELECT id, state FROM runs WHERE (state = 'running') <> (ended_at IS NULL)
    """,
    # 10: the names of the classes
    "10: an evaluation is of another checkpoint than its version's": """
        SELECT e.id, e.version_id FROM evaluations e JOIN versions v ON v.id = e.version_id
        WHERE e.checkpoint_digest IS DISTINCT FROM v.checkpoint_digest
    """,
    "10: an answer names a class that its version does not know": """
        SELECT DISTINCT e.id, e.version_id, a.predicted FROM answers a
        JOIN evaluations e ON e.id = a.evaluation_id JOIN versions v ON v.id = e.version_id
        WHERE a.predicted <> ALL (v.class_names) OR NOT a.top_labels <@ v.class_names
    """,
    "10: an answer contradicts itself": """
        SELECT evaluation_id, sha256 FROM answers
        WHERE predicted <> top_labels[1] OR correct <> (label = predicted)
    """,
    "10: an evaluation has not as many answers as it says": """
        SELECT e.id, e.images, count(a.sha256) FROM evaluations e
        LEFT JOIN answers a ON a.evaluation_id = e.id
        GROUP BY e.id HAVING e.images <> count(a.sha256)
    """,
    "10: a benchmark answer has another label than the benchmark": """
        SELECT e.id, a.sha256, a.label, b.class_name FROM answers a
        JOIN evaluations e ON e.id = a.evaluation_id AND e.subject = 'benchmark'
        JOIN benchmark_images b ON b.sha256 = a.sha256
        LEFT JOIN class_names told ON told.name = a.label
        LEFT JOIN class_names frozen ON frozen.name = b.class_name
        WHERE coalesce(told.today, a.label) <> coalesce(frozen.today, b.class_name)
    """,
    "10: a name that is no class any more points nowhere, or still has images": """
        SELECT c.name FROM classes c JOIN classes b ON b.id = c.became_id
        WHERE b.became_id IS NOT NULL OR EXISTS (SELECT 1 FROM images i WHERE i.class_id = c.id)
    """,
    # 11: what people say and do
    "11: an image is removed without the act of a person, or in use against it": """
        SELECT i.sha256, i.withdrawn_why, a.act FROM images i
        LEFT JOIN LATERAL (
            SELECT act FROM image_acts a
            WHERE a.sha256 = i.sha256 AND a.act IN ('remove', 'restore')
            ORDER BY id DESC LIMIT 1) a ON true
        WHERE (coalesce(i.withdrawn_why, '') = 'removed') <> (coalesce(a.act, '') = 'remove')
    """,
    "11: a verdict of the random stream is on what was not drawn by that chance": """
        SELECT r.id, r.transaction_id FROM reviews r
        JOIN transactions t ON t.id = r.transaction_id AND t.at = r.transaction_at
        WHERE r.stream = 'random' AND t.draw IS DISTINCT FROM r.probability
    """,
    # 12: pools, each picture answered once
    "12: an identification is closed though something of it is left": """
        SELECT i.id, s.ordinal, s.state FROM identifications i
        JOIN shards s ON s.identification_id = i.id
        WHERE i.state = 'completed' AND s.state <> 'done'
    """,
    "12: the objects of an identification are not those known and those of its shards": """
        SELECT i.id, i.listed, i.known, coalesce(sum(s.objects), 0) FROM identifications i
        LEFT JOIN shards s ON s.identification_id = i.id
        GROUP BY i.id HAVING i.listed <> i.known + coalesce(sum(s.objects), 0)
    """,
    "12: an identification has not as many answers as its shards say": """
        SELECT i.id, i.said, count(a.sha256) FROM (
            SELECT i.id, coalesce(sum(s.answered), 0) AS said FROM identifications i
            LEFT JOIN shards s ON s.identification_id = i.id GROUP BY i.id) i
        LEFT JOIN pool_answers a ON a.identification_id = i.id
        GROUP BY i.id, i.said HAVING i.said <> count(a.sha256)
    """,
    "12: a picture of an identified pool has no answer": """
        SELECT i.id, o.key FROM identifications i
        JOIN pool_objects o ON o.pool_id = i.pool_id AND o.problem IS NULL AND o.gone_at IS NULL
        WHERE i.state = 'completed' AND o.read_at < i.started_at AND NOT EXISTS (
            SELECT 1 FROM pool_answers a
            WHERE a.version_id = i.version_id AND a.sha256 = o.sha256)
          AND NOT EXISTS (SELECT 1 FROM identifications n
                          WHERE n.pool_id = i.pool_id AND n.id > i.id)
    """,
    "12: an object of a pool was read, and its picture is not known": """
        SELECT o.id, o.key FROM pool_objects o WHERE o.problem IS NULL
          AND NOT EXISTS (SELECT 1 FROM pool_images p WHERE p.sha256 = o.sha256)
    """,
    "12: an answer to a pool names a class that its version does not know": """
        SELECT DISTINCT v.id, a.predicted FROM pool_answers a JOIN versions v ON v.id = a.version_id
        WHERE NOT a.top_labels <@ v.class_names
    """,
    "12: an answer to a pool has not a confidence for each target": """
        SELECT a.version_id, a.sha256 FROM pool_answers a
        JOIN identifications i ON i.id = a.identification_id
        WHERE cardinality(a.target_confidences) <> cardinality(i.targets)
    """,
    "12: an answer to a pool is shown against its threshold": """
        SELECT a.version_id, a.sha256 FROM pool_answers a
        JOIN identifications i ON i.id = a.identification_id
        WHERE a.shown IS DISTINCT FROM (a.confidence >= i.threshold)
    """,
    "12: a picture that a version found is in the library without the word of a person": """
        SELECT i.sha256 FROM images i WHERE i.mined AND NOT EXISTS (
            SELECT 1 FROM pool_acts p WHERE p.sha256 = i.sha256 AND p.act = 'label')
    """,
    # 8: what was served, each once and counted
    "8: a month of transactions is not what was counted by day": """
        SELECT day, version_id, client, u.transactions, t.transactions FROM usage_days u
        FULL JOIN (SELECT (at AT TIME ZONE 'UTC')::date AS day, version_id, client, count(*)
                   FROM transactions GROUP BY 1, 2, 3) t (day, version_id, client, transactions)
        USING (day, version_id, client)
        WHERE u.transactions IS DISTINCT FROM t.transactions
          AND to_regclass(to_char(day, '"transactions_"YYYY_MM')) IS NOT NULL
    """,
    "8: a day's transactions by class are not those by client": """
        SELECT day, version_id, u.said, p.said FROM (
            SELECT day, version_id, sum(transactions) AS said FROM usage_days GROUP BY 1, 2) u
        FULL JOIN (SELECT day, version_id, sum(transactions) AS said
                   FROM predicted_days GROUP BY 1, 2) p USING (day, version_id)
        WHERE u.said IS DISTINCT FROM p.said
    """,
    "8: two transactions have one number, or one place in one request": """
        SELECT id, count(*) FROM transactions GROUP BY id HAVING count(*) > 1
        UNION ALL SELECT min(id::text)::uuid, count(*) FROM transactions
        WHERE request_id IS NOT NULL GROUP BY client, request_id, ordinal HAVING count(*) > 1
    """,
    "8: a transaction is of a named request that is not known": """
        SELECT t.id FROM transactions t WHERE t.request_id IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM served_requests r WHERE r.at = t.at
              AND r.client = t.client AND r.request_id = t.request_id)
        -- of what is being dropped names go first
        AND t.at >= coalesce((SELECT max(transactions_before) FROM log_retentions)::timestamp
                             AT TIME ZONE 'UTC', '-infinity')
    """,
}


def _figures(session: Session) -> Iterator[str]:
    """9: no NaN and no infinity in any float column, arrays included."""
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            name = f'"{column.name}"'
            if isinstance(column.type, FLOATS):
                wrong = f"{name} IN ('NaN', 'Infinity', '-Infinity')"
            elif isinstance(column.type, ARRAY) and isinstance(column.type.item_type, FLOATS):
                wrong = f"{name} && ARRAY['NaN', 'Infinity', '-Infinity']::real[]"
            else:
                continue
            # Names come from our own tables, not from anybody's text.
            query = f'SELECT count(*) FROM "{table.name}" WHERE {wrong}'  # noqa: S608
            if count := session.scalar(text(query)):
                yield f"9: {table.name}.{column.name} is not finite in {count} rows"


def _benchmark_digests(session: Session) -> Iterator[str]:
    """3: a benchmark version is still what it was when it was frozen."""
    for row in benchmark.listed(session):
        members = benchmark.members(session, row.version)
        if benchmark.digest_of(members) != row.digest or len(members) != row.images:
            yield f"3: benchmark version {row.version} is no longer what was frozen"


def _checkpoints(session: Session, storage: Storage) -> Iterator[str]:
    """2, 10: the bytes under a version's key have its digest and carry its class names."""
    rows = session.execute(
        text(
            """
            SELECT id, checkpoint_digest, class_names, class_names_digest FROM versions
            WHERE checkpoint_digest IS NOT NULL AND swept_at IS NULL ORDER BY id
            """
        )
    )
    for number, digest, class_names, class_names_digest in rows:
        body = _body(storage, versions.checkpoint_key(digest))
        if body is None:
            yield f"2: the checkpoint of version {number} is not in S3"
        elif hashlib.sha256(body).hexdigest() != digest:
            yield f"2: the checkpoint of version {number} holds other bytes than its digest says"
        elif (facts := _metadata(body)) is None:
            yield f"10: the checkpoint of version {number} says nothing of its classes"
        elif facts.get("class_names") != class_names:
            yield f"10: the checkpoint of version {number} names other classes than its row"
        elif (
            not versions.class_names_digest(class_names)
            == facts.get("class_names_sha256")
            == class_names_digest
        ):
            yield f"10: the class names of version {number} do not have the hash they should"


def _exports(session: Session, storage: Storage) -> Iterator[str]:
    """2: the bytes of a file that serves have its digest."""
    for number, digest in session.execute(text("SELECT version_id, digest FROM exports")):
        body = _body(storage, versions.export_key(digest))
        if body is None:
            yield f"2: the file that serves version {number} is not in S3"
        elif hashlib.sha256(body).hexdigest() != digest:
            yield f"2: the file that serves version {number} holds other bytes than its digest says"


def _metadata(body: bytes) -> dict[str, Any] | None:
    """The facts in a safetensors file, read without torch."""
    try:
        (length,) = struct.unpack("<Q", body[:8])
        header = json.loads(body[8 : 8 + length])["__metadata__"]
        facts = [json.loads(value) for value in header.values()]
    except (struct.error, ValueError, KeyError):
        return None
    return next((one for one in facts if isinstance(one, dict) and "class_names" in one), None)


def _snapshots(session: Session, storage: Storage) -> Iterator[str]:
    """3, 4: a snapshot's list has its digest, names library images only, and none it may not."""
    frozen = set(session.scalars(text("SELECT sha256 FROM benchmark_images")))
    splits = {  # by the rule that chose: a set knows its images apart from the library
        policy: {tuple(row) for row in session.execute(text(f"SELECT sha256, split FROM {table}"))}  # noqa: S608
        for policy, table in ((snapshots.POLICY, "images"), (sets.POLICY, "set_images"))
    }
    rows = session.execute(text("SELECT digest, key, policy, images FROM snapshots"))
    for digest, key, policy, images in rows.all():
        short = f"snapshot {digest[:12]}"
        body = _body(storage, key)
        if body is None:
            yield f"4: {short} is not in S3 under {key}"
            continue
        table = pq.read_table(io.BytesIO(body)).to_pydict()
        chosen = list(zip(table["sha256"], table["class"], table["split"], strict=True))
        lines = "".join(f"{sha256} {name} {split}\n" for sha256, name, split in sorted(chosen))
        if hashlib.sha256(f"{policy}\n{lines}".encode()).hexdigest() != digest:
            yield f"4: {short} holds another list than its digest says"
        if len(chosen) != images:
            yield f"4: {short} lists {len(chosen)} images, and its row says {images}"
        if leaked := sorted(frozen & {sha256 for sha256, _, _ in chosen}):
            yield f"3: {short} trains on benchmark images: {_shown(leaked)}"
        known = splits.get(policy, set())
        moved = [sha256 for sha256, _, split in chosen if (sha256, split) not in known]
        if moved:
            yield f"4: {short} has images in another split than the library: {_shown(moved)}"


def _benchmark_objects(session: Session, storage: Storage) -> Iterator[str]:
    """13: the bytes that were frozen are there, unchanged."""
    for sha256, key in session.execute(text("SELECT sha256, key FROM benchmark_images")).all():
        body = _body(storage, key)
        if body is None:
            yield f"13: benchmark image {sha256} is not in S3 under {key}"
        elif hashlib.sha256(body).hexdigest() != sha256:
            yield f"13: benchmark image {sha256} was changed in S3 under {key}"


def _transaction_images(session: Session, storage: Storage) -> Iterator[str]:
    """13: the pictures kept with transactions are there, unless retention or a person took them."""
    kept = session.scalars(
        text(
            """
            SELECT DISTINCT t.image_key FROM transactions t WHERE t.image_key IS NOT NULL
              AND t.at >= :since AND NOT EXISTS (
                  SELECT 1 FROM pool_acts a WHERE t.image_key IN (a.key, a.to_key))
            ORDER BY t.image_key
            """
        ),
        {"since": transactions.images_since(session)},
    ).all()
    there = {one.key for one in storage.list(transactions.IMAGES)} if kept else set()
    if missing := [key for key in kept if key not in there]:
        yield f"13: pictures of transactions are not in S3: {_shown(missing)}"


def _body(storage: Storage, key: str) -> bytes | None:
    try:
        return storage.read(key)
    except Gone:
        return None


def _shown(rows: list[Any]) -> str:
    named = ", ".join(
        " ".join(map(str, row)) if isinstance(row, tuple) else str(row) for row in rows[:MOST_SHOWN]
    )
    more = len(rows) - MOST_SHOWN
    return f"{named} and {more} more" if more > 0 else named
