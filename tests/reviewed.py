"""What was served, and answered of pools, as it is written, over a library of rings and crosses."""

import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from intakes import picture, put, take_in
from sqlalchemy import text

from infra.database import Database
from infra.storage import Storage
from records import identifications, pools, transactions
from records.pools import ReadObject
from records.transactions import Transaction
from vision import images

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
CLASSES = ("cross", "ring")
POOL = "pools/camera/"


def library(database: Database, storage: Storage, images: int = 6) -> None:
    """Take in so many pictures of each class, and have version 1, which knows both."""
    for seed in range(images):
        for name in CLASSES:
            put(storage, f"labelled/{name}/{seed}.png", picture(seed, name))
    take_in(database)
    version(database)


def version(
    database: Database, class_names: Sequence[str] = CLASSES, plan: str = "{}"
) -> int:
    """A trained version that knows these classes; it has no checkpoint."""
    with database.transaction() as session:
        session.execute(
            text(
                """
                INSERT INTO snapshots (digest, key, policy, cutoff, images, classes)
                VALUES ('s', 's', 'p', 1, 0, 0) ON CONFLICT DO NOTHING
                """
            )
        )
        number: int = session.execute(
            text(
                """
                INSERT INTO versions (purpose, state, run_id, snapshot_digest, plan, plan_digest,
                    architecture, class_names, class_names_digest, checkpoint_digest, machine)
                SELECT 'nightly', 'trained', min(id), 's', CAST(:plan AS jsonb),
                    gen_random_uuid(), 'a', :names, 'c', gen_random_uuid(), '{}'
                FROM runs RETURNING id
                """
            ),
            {"names": list(class_names), "plan": plan},
        ).scalar_one()
    return number


def transaction(
    number: int,
    called: str = "ring",
    confidence: float = 0.9,
    draw: float | None = None,
    image: bytes = b"",
    minutes: int = 0,
    **facts: object,
) -> Transaction:
    """The answer number so and so, with its picture kept; the second best class has the rest."""
    at = AT + timedelta(minutes=minutes)
    digest = sha256(image or str(number).encode()).hexdigest()
    other = "cross" if called == "ring" else "ring"
    row = Transaction(
        id=uuid.uuid5(uuid.NAMESPACE_OID, str(number)),
        at=at,
        client="a test",
        version=1,
        sha256=digest,
        width=48,
        height=48,
        top_labels=(called, other),
        top_confidences=(confidence, 1 - confidence),
        shown=None,
        latency_seconds=0.01,
        image_key=transactions.image_key(at, digest, image),
        draw=draw,
    )
    return replace(row, **facts)


def serve(database: Database, rows: Sequence[Transaction]) -> None:
    """Write transactions down."""
    with database.transaction() as session:
        transactions.append(session, [transactions.line(row) for row in rows])


def identified(
    database: Database,
    storage: Storage,
    version: int,
    told: Mapping[str, Mapping[str, float]],
    prefix: str = POOL,
) -> dict[str, str]:
    """Let a version answer pictures of a pool, by their names; answers the digest of each.

    told: the confidence of each class, the best first. A picture follows from pool and name.
    """
    for name in told:
        key = f"{prefix}{name}.png"
        put(storage, key, picture(10_000 + zlib.crc32(key.encode()) % 10_000))
    read = {}
    for one in storage.list(prefix):
        facts, _ = images.examine(storage.read(one.key), None)
        read[one.key.removeprefix(prefix).removesuffix(".png")] = ReadObject(
            one.key, one.etag, one.size, facts.sha256, None, facts.width, facts.height
        )
    with database.transaction() as session:
        pool = pools.enter(session, prefix)
        pools.record(session, pool, list(read.values()))
        number = identifications.begin(session, pool, version)
        for name, shares in told.items():
            session.execute(
                text(
                    """
                    INSERT INTO pool_answers (version_id, sha256, identification_id, predicted,
                        confidence, top_labels, top_confidences, target_confidences, entropy)
                    VALUES (:version, :sha256, :number, (CAST(:names AS text[]))[1],
                        (CAST(:shares AS real[]))[1], :names, CAST(:shares AS real[]), '{}', 0.5)
                    """
                ),
                {
                    "version": version, "sha256": read[name].sha256, "number": number,
                    "names": list(shares), "shares": list(shares.values()),
                },
            )  # fmt: skip
    return {name: str(read[name].sha256) for name in told}
