"""The library's own rules: names, splits that never move, and what its tables refuse."""

import intakes
import pytest
from intakes import picture, put, query, take_in
from sqlalchemy.exc import DBAPIError

from infra.database import Database
from infra.storage import Storage
from records import batches, library, objects
from records.objects import label_of, normalised
from records.splits import SPLIT_CYCLE


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("cat ", "cat"),
        ("  Sumatran \t rhino\u00a0", "Sumatran rhino"),
        ("cafe\u0301", "caf\u00e9"),
        ("Cat", "Cat"),
        ("   ", ""),
    ],
)
def test_one_name_has_one_spelling(said: str, meant: str) -> None:
    """Spaces and ways of composing letters make no second class; case does not vanish silently."""
    assert normalised(said) == meant


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("labelled/lion/1.jpg", ("lion", "")),
        ("labelled/lion/male/1.jpg", ("lion", "male")),
        ("labelled/1.jpg", (None, "")),
        ("labelled/lion/male/old/1.jpg", (None, "")),
        ("labelled//1.jpg", (None, "")),
        ("benchmark/lion/1.jpg", (None, "")),
    ],
)
def test_a_key_gives_class_and_sub_class(key: str, label: tuple[str | None, str]) -> None:
    """Folders name class and sub-class; what is shallower or deeper has no label of its own."""
    assert label_of(key) == label


def test_the_cycle_of_splits_serves_the_smallest_class() -> None:
    """The first three images of a class are one of each split, and 8 of 10 train in the end."""
    assert set(SPLIT_CYCLE[:3]) == {"train", "validation", "test"}
    assert [SPLIT_CYCLE.count(name) for name in ("train", "validation", "test")] == [8, 1, 1]


def test_the_tables_keep_the_librarys_promises(database: Database, storage: Storage) -> None:
    """Splits, logs and origins cannot be broken in SQL, and a benchmark image cannot enter."""
    for number in range(3):
        put(storage, f"labelled/ring/{number}.png", picture(number))
    put(storage, "labelled/made.png", picture(9))
    header = "key,label,origin"
    put(storage, "manifests/1.csv", intakes.csv([("labelled/made.png", "ring", "staged")], header))
    take_in(database)
    storage.delete("labelled/ring/0.png")
    take_in(database)
    for statement, says in (
        ("UPDATE images SET split = 'test' WHERE split = 'train'", "was given once"),
        ("UPDATE images SET origin = 'synthetic' WHERE split = 'validation'", "made_only_trains"),
        ("UPDATE images SET origin = 'found'", "origin_known"),
        ("UPDATE objects SET state = 'lost'", "state_known"),
        ("UPDATE label_changes SET kind = 'moved'", "written once"),
        ("DELETE FROM label_changes", "written once"),
        ("UPDATE validations SET passed = true", "written once"),
    ):
        with pytest.raises(DBAPIError, match=says), database.transaction() as session:
            session.connection().exec_driver_sql(statement)


def test_counts_say_what_is_there(database: Database, storage: Storage) -> None:
    """Classes, batches and reasons are counted as they are, withdrawn and held images apart."""
    for number in range(4):
        put(storage, f"labelled/ring/{number}.png", picture(number))
    put(storage, "labelled/ring/broken.png", b"x")
    put(storage, "labelled/loose.png", picture(9))
    take_in(database)
    storage.delete("labelled/ring/3.png")
    taken = take_in(database)
    assert taken.intake.batch_id is None
    with database.transaction() as session:
        (ring,) = library.classes(session)
        (batch,) = batches.newest(session)
        states = objects.states(session)
        (reason,) = batches.quarantine_reasons(session)
    assert (ring.usable, ring.withdrawn, ring.held) == (3, 1, 0)
    assert ring.train + ring.validation + ring.test == 3
    assert (batch.state, batch.accepted, batch.quarantined, batch.images) == ("accepted", 4, 1, 4)
    assert states == {"pending": 1, "accepted": 3, "quarantined": 1}
    assert reason[:2] == ("readable", 1)
    assert query(database, "SELECT 1 FROM objects WHERE gone_at IS NULL AND state = 'accepted' "
                           "AND sha256 NOT IN (SELECT sha256 FROM images)") == []  # fmt: skip
