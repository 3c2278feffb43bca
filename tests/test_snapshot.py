"""Snapshots: a pure function of the library, of what may be trained on, frozen by its digest."""

from collections import Counter
from typing import Any

import intakes
import pytest
from intakes import csv, picture, put, query, take_in
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


def test_a_class_that_cannot_be_validated_waits_for_an_image(
    database: Database, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """One burst goes into one split: left out and named, as one under the cutoff, until it can."""
    rows = []
    for name in ("ring", "cross", "bar"):
        for seed in range(8):
            put(storage, f"labelled/{name}/{seed}.png", picture(seed, name))
        rows += [(f"labelled/{name}/{seed}.png", name, "burst" if name == "ring" else "")
                 for seed in range(8)]  # fmt: skip
    put(storage, "manifests/1.csv", csv(rows, "key,label,group"))
    take_in(database)
    digest = freeze(database, cutoff=5)
    assert snapshot.read(digest).class_names == ["bar", "cross"]
    with database.transaction() as session:
        ring = snapshots.class_counts(session, digest)[-1]
        assert snapshots.class_names(session, digest) == ["bar", "cross"]
    assert (ring.class_name, ring.usable, ring.lacks) == ("ring", 8, 1)
    assert ring.wanting == (
        "needs 1 more validation image: add real images that are near none of its others"
    )
    assert f"left out, with 5 usable images or more: ring {ring.wanting}" in caplog.text
    # the list is what it is, whatever keeps a class from it
    with database.transaction() as session:
        session.connection().exec_driver_sql(
            "UPDATE images SET withdrawn_at = now(), withdrawn_why = 'a test' "
            "WHERE class_id = (SELECT id FROM classes WHERE name = 'ring')"
        )
    assert freeze(database, cutoff=5) == digest
    with database.transaction() as session:
        session.connection().exec_driver_sql(
            "UPDATE images SET withdrawn_at = NULL, withdrawn_why = NULL"
        )
    put(storage, "labelled/ring/8.png", picture(8, "ring"))
    take_in(database)
    later = snapshot.read(freeze(database, cutoff=5))
    assert later.class_names == ["bar", "cross", "ring"]
    assert later.labels["validation"].count("ring") == 1


def test_without_two_classes_to_validate_nothing_is_frozen(
    database: Database, storage: Storage
) -> None:
    """What is left out is not enough to go on without: the line says what each one needs."""
    rows = [(f"labelled/{name}/{seed}.png", name, name) for name in ("ring", "cross")
            for seed in range(8)]  # fmt: skip
    for key, name, _ in rows:
        put(storage, key, picture(int(key[-5]), name))
    put(storage, "manifests/1.csv", csv(rows, "key,label,group"))
    take_in(database)
    with pytest.raises(NothingToTrain, match="0 of 2 classes have 5 usable images, some") as no:
        freeze(database, cutoff=5)
    assert str(no.value).count("needs 1 more validation image: add real images") == 2
    assert query(database, "SELECT * FROM snapshots") == []


def test_a_snapshot_changed_in_s3_is_refused(
    database: Database, storage: Storage, two_batches: int
) -> None:
    """A list whose rows do not give its digest is never trained on."""
    one, other = freeze(database, cutoff=5), freeze(database, cutoff=3)
    put(storage, f"snapshots/{one}.parquet", storage.read(f"snapshots/{other}.parquet"))
    snapshot.read.cache_clear()  # as in another night
    with pytest.raises(ValueError, match="was changed in S3: restore snapshots/"):
        snapshot.read(one)


def test_an_unchanged_library_is_not_chosen_from_again(
    database: Database, storage: Storage, two_batches: int
) -> None:
    """Same revision and same rule: the known snapshot, whose rows are not even looked at."""
    digest = freeze(database, cutoff=5)
    with database.transaction() as session:
        before = snapshots.revision(session)
        assert snapshots.chosen_at(session, before, 5, Plan().most).digest == digest  # type: ignore[union-attr]
        assert snapshots.chosen_at(session, before, 4, Plan().most) is None
        assert snapshots.chosen_at(session, before, 5, 7) is None
        assert snapshots.chosen_at(session, before + 1, 5, Plan().most) is None
    take_in(database)  # finds nothing new
    assert freeze(database, cutoff=5) == digest
    with database.transaction() as session:
        assert snapshots.revision(session) == before
    storage.delete(f"snapshots/{digest}.parquet")
    assert freeze(database, cutoff=5) == digest
    snapshot.read.cache_clear()
    assert snapshot.read(digest).class_names == ["cross", "ring"]


ACTS = {
    "a new image": lambda storage: put(storage, "labelled/ring/99.png", picture(99)),
    "a deleted object": lambda storage: storage.delete("labelled/ring/1.png"),
    "a moved object": lambda storage: (
        storage.copy("labelled/ring/1.png", "labelled/cross/moved.png"),
        storage.delete("labelled/ring/1.png"),
    ),
    "a second label": lambda storage: storage.copy(
        "labelled/ring/1.png", "labelled/cross/twice.png"
    ),
}


@pytest.mark.parametrize("act", ACTS)
def test_each_act_that_could_change_a_choice_is_noted(
    act: str, database: Database, storage: Storage, two_batches: int
) -> None:
    """New, deleted, returned, moved or doubled: the library's revision grows each time."""
    known = storage.read("labelled/ring/1.png")
    digest = freeze(database, cutoff=5)
    ACTS[act](storage)
    take_in(database)
    changed = freeze(database, cutoff=5)
    assert changed != digest
    if act == "a deleted object":
        put(storage, "labelled/ring/1.png", known)
        take_in(database)
        assert freeze(database, cutoff=5) == digest


def test_statements_behind_our_back_are_noted(
    database: Database, storage: Storage, two_batches: int
) -> None:
    """Postgres itself counts, so nobody can forget to: a person's, and any program's."""
    digest = freeze(database, cutoff=5)
    with database.transaction() as session:
        batches.revert_batch(session, two_batches, "Zoë", "a mistake")
    reverted = freeze(database, cutoff=5)
    assert reverted != digest
    for statement in (
        "UPDATE classes SET name = 'loop' WHERE name = 'ring'",
        "UPDATE images SET class_id = (SELECT id FROM classes WHERE name = 'bar') "
        "WHERE sha256 = (SELECT min(sha256) FROM images JOIN classes c ON c.id = class_id "
        "WHERE c.name = 'cross' AND withdrawn_at IS NULL)",
        "UPDATE images SET withdrawn_at = NULL, withdrawn_why = NULL",
    ):
        before = freeze(database, cutoff=2)
        with database.transaction() as session:
            revision = snapshots.revision(session)
            session.connection().exec_driver_sql(statement)
            session.connection().exec_driver_sql("UPDATE images SET origin = origin WHERE false")
            assert snapshots.revision(session) == revision + 1
        assert freeze(database, cutoff=2) != before
    with pytest.raises(DBAPIError, match="written once"), database.transaction() as session:
        session.connection().exec_driver_sql("DELETE FROM library_acts")


def test_names_with_a_backslash_keep_the_digest(
    database: Database, storage: Storage, two_batches: int
) -> None:
    """COPY doubles a backslash; the digest and the list hold the name as it is."""
    with database.transaction() as session:
        session.connection().exec_driver_sql(
            "UPDATE classes SET name = 'r\\in, \"g\"' WHERE name = 'ring'"
        )
    digest = freeze(database, cutoff=5)
    assert snapshot.read(digest).class_names == ["cross", 'r\\in, "g"']


def test_the_newest_are_taken_alike_with_and_without_a_limit(
    database: Database, storage: Storage, two_batches: int
) -> None:
    """A limit that nothing reaches chooses what no limit chooses."""
    assert freeze(database, cutoff=5, most=10_000) == freeze(database, cutoff=5, most=None)
