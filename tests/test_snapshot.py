"""Snapshots: a pure function of the library, of what may be trained on, frozen by its digest."""

from collections import Counter
from typing import Any

import intakes
import pytest
from intakes import picture, put, query, take_in
from sqlalchemy.exc import DBAPIError

from infra.database import Database
from infra.storage import Storage
from records import batches, snapshots
from tasks import snapshot
from tasks.snapshot import NothingToTrain
from vision.plan import Plan


def freeze(database: Database, **fields: Any) -> str:
    """Freeze one, as a night does."""
    return snapshot.freeze_snapshot.fn(intakes.begin(database), Plan(**fields))


@pytest.fixture
def two_batches(database: Database, storage: Storage) -> int:
    """Have 8 old and 4 newer images of ring and of cross, and 3 of bar; gives the newer batch."""
    for name, count in (("ring", 8), ("cross", 8), ("bar", 3)):
        for seed in range(count):
            put(storage, f"labelled/{name}/{seed}.png", picture(seed, name))
    take_in(database)
    for name in ("ring", "cross"):
        for seed in range(8, 12):
            put(storage, f"labelled/{name}/{seed}.png", picture(seed, name))
    batch = take_in(database).intake.batch_id
    assert batch is not None
    return batch


def test_a_snapshot_is_what_the_rules_choose(
    database: Database, storage: Storage, two_batches: int
) -> None:
    """Cutoff, most and withdrawals choose; frozen again, in any order, the digest is the same."""
    digest = freeze(database, cutoff=5)
    assert freeze(database, cutoff=5) == digest
    listed = snapshot.read(digest)
    assert listed.class_names == ["cross", "ring"]
    assert {split: Counter(names) for split, names in listed.labels.items()} == {
        "train": {"ring": 9, "cross": 9},
        "validation": {"ring": 2, "cross": 2},
        "test": {"ring": 1, "cross": 1},
    }
    with database.transaction() as session:
        counts = {one.class_name: one for one in snapshots.class_counts(session, digest)}
    assert (counts["bar"].usable, counts["bar"].lacks, counts["ring"].lacks) == (3, 2, 0)

    # most: the newest batch first, the digest of the image within it
    newest = snapshot.read(freeze(database, cutoff=3, most=6))
    chosen = {one for images in newest.images.values() for one in images}
    late = query(database, "SELECT sha256 FROM images WHERE batch_id = :b", b=two_batches)
    assert {row.sha256 for row in late} <= chosen
    names = Counter(name for labels in newest.labels.values() for name in labels)
    assert names == {"ring": 6, "cross": 6, "bar": 3}

    # what a person takes out is in no later snapshot, and what was frozen stays as it was
    with database.transaction() as session:
        batches.revert_batch(session, two_batches, "Zoë", "a mistake")
    smaller = freeze(database, cutoff=5)
    assert smaller != digest
    left = {one for images in snapshot.read(smaller).images.values() for one in images}
    assert left.isdisjoint({row.sha256 for row in late})
    assert len(left) == 16
    assert snapshot.read(digest) == listed
    with pytest.raises(DBAPIError, match="written once"), database.transaction() as session:
        session.connection().exec_driver_sql("DELETE FROM snapshots")


def test_too_little_is_said_class_by_class(
    database: Database, storage: Storage, two_batches: int
) -> None:
    """With fewer than two classes over the cutoff the night ends, and says what each lacks."""
    with pytest.raises(NothingToTrain, match="bar lacks 37") as caught:
        freeze(database, cutoff=40)
    assert "0 of 3 classes have 40 usable images" in str(caught.value)
    assert "ring lacks 28" in str(caught.value)
    assert query(database, "SELECT * FROM snapshots") == []


def test_a_snapshot_changed_in_s3_is_refused(
    database: Database, storage: Storage, two_batches: int
) -> None:
    """A list whose rows do not give its digest is never trained on."""
    one, other = freeze(database, cutoff=5), freeze(database, cutoff=3)
    put(storage, f"snapshots/{one}.parquet", storage.read(f"snapshots/{other}.parquet"))
    with pytest.raises(ValueError, match="was changed in S3: restore snapshots/"):
        snapshot.read(one)
