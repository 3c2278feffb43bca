"""Intake: only what is new is read, every label change is noticed, and splits never move."""

import random
from hashlib import sha256
from typing import Any

import intakes
import pictures
import pytest
from intakes import csv, jsonl, label, picture, put, query, reasons, remove, state, take_in
from PIL import ImageOps
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from infra.database import Database
from infra.storage import Storage
from records import batches
from records.invariants import check_invariants
from records.splits import SPLIT_CYCLE
from tasks import benchmark, snapshot
from tasks.expectations import Rules
from tasks.intake import read_manifest
from vision.plan import Plan

CAREFUL = Rules(fewest_for_share=4)


def fill(storage: Storage, name: str, seeds: range, folder: str = "labelled") -> None:
    """Put pictures of one class."""
    for seed in seeds:
        put(storage, f"{folder}/{name}/{seed}.png", picture(seed, name))


def splits(database: Database) -> dict[str, str]:
    """The split of every image."""
    return {row.sha256: row.split for row in query(database, "SELECT sha256, split FROM images")}


def changes(database: Database) -> list[tuple[str, str | None, str | None]]:
    """Every label change noticed: kind, from and to, the oldest first."""
    found = query(database, "SELECT kind, from_class, to_class FROM label_changes ORDER BY id")
    return [(row.kind, row.from_class, row.to_class) for row in found]


def everything(database: Database) -> list[Any]:
    """The library as it is, with the system columns that any write would change."""
    return query(database, "SELECT xmin::text, objects.* FROM objects ORDER BY id")


def test_nothing_new_reads_nothing(database: Database, storage: Storage) -> None:
    """A second intake makes no batch, reads no object and writes no row of the library."""
    fill(storage, "ring", range(4))
    put(storage, "labelled/waits.png", picture(50))
    assert take_in(database).checked is not None
    before = everything(database)
    again = take_in(database).intake
    assert (again.batch_id, again.listed, again.new, again.gone) == (None, 5, 0, 0)
    assert everything(database) == before
    steps = query(
        database, "SELECT name FROM run_steps WHERE run_id = (SELECT max(id) FROM runs)"
    )
    assert "fetch and decode" not in {row.name for row in steps}


def test_only_the_new_objects_are_fetched(database: Database, storage: Storage) -> None:
    """A later intake reads what is new and nothing else: the old objects may even be broken."""
    fill(storage, "ring", range(3))
    take_in(database)
    fill(storage, "ring", range(3, 5))
    taken = take_in(database)
    facts = query(database, "SELECT facts FROM run_steps WHERE run_id = :r AND name LIKE 'fetch%'",
                  r=taken.run_id)  # fmt: skip
    assert facts[0].facts == {"objects": 2}
    assert taken.checked is not None
    assert taken.checked.images == 2


def test_the_order_of_listing_and_threads_has_no_part_in_splits(
    database: Database, storage: Storage
) -> None:
    """Whatever the keys and whoever read first, the digests' order gives the splits."""
    bodies = [(name, picture(seed, name)) for name in ("ring", "cross") for seed in range(12)]
    shuffled = random.Random(1).sample(bodies, len(bodies))
    for number, (name, body) in enumerate(shuffled):
        put(storage, f"labelled/{name}/{number:03}.png", body)
    take_in(database)
    expected: dict[str, str] = {}
    for name in ("ring", "cross"):
        digests = sorted(sha256(body).hexdigest() for other, body in bodies if other == name)
        expected |= {one: SPLIT_CYCLE[n % len(SPLIT_CYCLE)] for n, one in enumerate(digests)}
    assert splits(database) == expected


def test_no_class_and_no_sub_class_lacks_a_split(database: Database, storage: Storage) -> None:
    """Three images of a class or sub-class are one of each split, also when they come singly."""
    for night in range(3):
        for number, name in enumerate(("lion/male", "lion/juvenile", "okapi")):
            put(storage, f"labelled/{name}/{night}.png", picture(10 * number + night))
        take_in(database)
    for name in ("lion/male", "lion/juvenile", "okapi"):
        got = [label(database, f"labelled/{name}/{night}.png") for night in range(3)]
        assert [one and one[2] for one in got] == list(SPLIT_CYCLE[:3])


def test_a_split_is_given_once(database: Database, storage: Storage) -> None:
    """Nobody moves an image to another split, whatever happens to its label."""
    fill(storage, "ring", range(6))
    take_in(database)
    before = splits(database)
    with pytest.raises(DBAPIError, match="was given once"), database.transaction() as session:
        session.execute(text("UPDATE images SET split = 'held'"))
    for seed in range(6):
        remove(storage, f"labelled/ring/{seed}.png")
        put(storage, f"labelled/cross/{seed}.png", picture(seed, "ring"))
    take_in(database)
    assert splits(database) == before
    assert changes(database) == [("moved", "ring", "cross")] * 6
    check_invariants(database, storage)


def test_near_duplicates_share_a_split(database: Database, storage: Storage) -> None:
    """Encoded again, resized or mirrored, tonight or later, a picture stays in one split."""
    plain = [pictures.photograph(seed) for seed in range(4)]
    for number, image in enumerate(plain):
        put(storage, f"labelled/ring/{number} plain.png", pictures.png(image))
        put(storage, f"labelled/cross/{number} small.jpg", pictures.jpeg(image.resize((200, 150))))
    take_in(database)
    for number, image in enumerate(plain):
        mirrored = pictures.jpeg(ImageOps.mirror(image), 50)
        put(storage, f"labelled/ring/{number} mirror.jpg", mirrored)
    take_in(database)
    for number in range(4):
        same = {
            row.split
            for row in query(
                database,
                "SELECT split FROM images JOIN objects USING (sha256) WHERE key LIKE :key",
                key=f"labelled/%/{number} %",
            )
        }
        assert len(same) == 1
    assert len(set(splits(database).values())) > 1
    check_invariants(database, storage)


def test_neighbours_in_two_splits_hold_a_newcomer_out(
    database: Database, storage: Storage
) -> None:
    """A picture whose group touches two splits is held out, because either would leak."""
    images = [pictures.photograph(seed) for seed in (1, 2)]
    for number, image in enumerate(images):
        put(storage, f"labelled/cross/{number}.png", pictures.png(image))
    take_in(database)
    given = [label(database, f"labelled/cross/{number}.png") for number in range(2)]
    assert [one and one[2] for one in given] == ["train", "validation"]
    rows = [(f"labelled/near {n}.jpg", "cross", "one burst") for n in range(2)]
    put(storage, "manifests/2.csv", csv(rows, "key,label,group"))
    for number, image in enumerate(images):
        put(storage, f"labelled/near {number}.jpg", pictures.jpeg(image, 60))
    take_in(database)
    held = [label(database, f"labelled/near {number}.jpg") for number in range(2)]
    assert [one and one[2] for one in held] == ["held", "held"]


def test_a_named_group_stays_in_one_split(database: Database, storage: Storage) -> None:
    """Images of one observation share its split, also when it goes on another night."""
    for night in range(2):
        rows = []
        for number in range(4):
            key = f"labelled/{night} {number}.png"
            put(storage, key, picture(10 * night + number))
            rows.append((key, "ring", f"pair {number}"))
        put(storage, f"manifests/{night}.csv", csv(rows, "key,label,group"))
        take_in(database)
    for number in range(4):
        found = [label(database, f"labelled/{night} {number}.png") for night in range(2)]
        assert len({one[2] for one in found if one}) == 1
        assert all(found)


def test_staged_and_synthetic_images_only_train(database: Database, storage: Storage) -> None:
    """Made images train or, beside a held-out real one, are held; they never measure."""
    rows = []
    for number in range(12):
        origin = ("staged", "synthetic")[number % 2]
        key = f"labelled/made {number}.png"
        put(storage, key, picture(number))
        rows.append((key, "ring", origin, f"scene {number}" if number < 3 else ""))
    for number in range(3):
        put(storage, f"labelled/real {number}.png", picture(100 + number))
        rows.append((f"labelled/real {number}.png", "ring", "real", f"scene {number}"))
    put(storage, "manifests/1.csv", csv(rows, "key,label,origin,group"))
    take_in(database)
    made = [label(database, f"labelled/made {number}.png") for number in range(12)]
    assert all(made)
    assert {one[2] for one in made if one} == {"train", "held"}
    real = [label(database, f"labelled/real {number}.png") for number in range(3)]
    assert {one[2] for one in real if one} == {"train", "validation", "test"}


def test_deletes_and_returns_are_noticed(database: Database, storage: Storage) -> None:
    """A deleted image leaves the library, its split is kept, and put back it is there again."""
    fill(storage, "ring", range(3))
    take_in(database)
    before = splits(database)
    remove(storage, "labelled/ring/1.png")
    assert take_in(database).intake.gone == 1
    assert label(database, "labelled/ring/1.png") is None
    put(storage, "labelled/ring/1.png", picture(1, "ring"))
    take_in(database)
    assert label(database, "labelled/ring/1.png") is not None
    assert splits(database) == before
    assert changes(database) == [("deleted", "ring", None), ("returned", "ring", "ring")]
    check_invariants(database, storage)


def test_a_move_there_and_back_ends_where_it_began(database: Database, storage: Storage) -> None:
    """Moved to another class and back under its old key, an image has its old label again."""
    fill(storage, "ring", range(3))
    take_in(database)
    for there, back in (("cross/1.png", "ring/1.png"), ("ring/1.png", "cross/1.png")):
        remove(storage, f"labelled/{back}")
        put(storage, f"labelled/{there}", picture(1, "ring"))
        take_in(database)
        moved = label(database, f"labelled/{there}")
        assert moved is not None
        assert moved[0] == there.split("/")[0]
        check_invariants(database, storage)
    assert changes(database) == [("moved", "ring", "cross"), ("moved", "cross", "ring")]


def test_a_move_between_sub_classes_is_noticed(database: Database, storage: Storage) -> None:
    """A corrected sub-class reaches the image; a copy without one does not erase it."""
    put(storage, "labelled/lion/male/1.png", picture(1))
    take_in(database)
    remove(storage, "labelled/lion/male/1.png")
    put(storage, "labelled/lion/female/1.png", picture(1))
    take_in(database)
    put(storage, "labelled/lion/copy.png", picture(1))
    take_in(database)
    assert label(database, "labelled/lion/copy.png") == ("lion", "female", "train")
    assert changes(database) == [("moved", "lion", "lion")]


def test_an_object_uploaded_anew_is_a_new_image(database: Database, storage: Storage) -> None:
    """Other bytes under an old key bring a new image in and withdraw the old one."""
    fill(storage, "ring", range(3))
    take_in(database)
    put(storage, "labelled/ring/1.png", picture(77))
    taken = take_in(database).intake
    assert (taken.new, taken.gone) == (1, 1)
    assert changes(database) == [("deleted", "ring", None)]
    usable = query(database, "SELECT 1 FROM images WHERE withdrawn_at IS NULL")
    assert len(usable) == 3
    check_invariants(database, storage)


@pytest.mark.parametrize("keep", ["ring", "cross"])
def test_two_labels_are_settled_by_deleting_one(
    database: Database, storage: Storage, keep: str
) -> None:
    """Bytes under two labels are in nobody's training until one of them is deleted."""
    fill(storage, "ring", range(3))
    take_in(database)
    put(storage, "labelled/cross/1.png", picture(1, "ring"))
    take_in(database)
    for name in ("ring", "cross"):
        assert "one_label" in reasons(database, f"labelled/{name}/1.png")
        assert label(database, f"labelled/{name}/1.png") is None
    check_invariants(database, storage)
    remove(storage, f"labelled/{'cross' if keep == 'ring' else 'ring'}/1.png")
    take_in(database)
    kept = label(database, f"labelled/{keep}/1.png")
    assert kept is not None
    assert kept[0] == keep
    assert reasons(database, f"labelled/{keep}/1.png") == {}
    check_invariants(database, storage)
    assert take_in(database).intake.batch_id is None


# --- manifests --------------------------------------------------------------------------------


def test_a_manifest_gives_all_that_it_can(database: Database, storage: Storage) -> None:
    """Sub-class, origin, group, person and box come from CSV and JSONL alike."""
    rows = [("a.png", "0.1 0.1 0.5 0.5"), ("b.png", [0.1, 0.1, 0.5, 0.5])]
    whole = [
        {"key": f"labelled/{key}", "label": "lion", "sub_label": "male", "origin": "staged",
         "group": "trip", "labelled_by": "person:zoë", "box": box}
        for key, box in rows
    ]  # fmt: skip
    header = ",".join(whole[0])
    put(storage, "manifests/1.csv", csv([[str(v) for v in whole[0].values()]], header))
    put(storage, "manifests/2.jsonl", jsonl(whole[1]))
    put(storage, "labelled/a.png", picture(1))
    put(storage, "labelled/b.png", picture(2))
    take_in(database)
    found = query(database, "SELECT i.sub_class, i.origin, i.group_name, i.labelled_by, m.box "
                            "FROM images i JOIN objects USING (sha256) "
                            "JOIN manifest_rows m USING (key)")  # fmt: skip
    assert [tuple(row) for row in found] == [
        ("male", "staged", "trip", "person:zoë", pytest.approx([0.1, 0.1, 0.5, 0.5]))
    ] * 2


def test_an_object_waits_for_its_row_and_a_row_for_its_object(
    database: Database, storage: Storage
) -> None:
    """Whichever comes first, the image comes in once both are there."""
    put(storage, "labelled/early.png", picture(1))
    assert take_in(database).intake.batch_id is None
    assert state(database, "labelled/early.png") == "pending"
    rows = [("labelled/early.png", "ring"), ("labelled/late.png", "ring")]
    put(storage, "manifests/1.csv", csv(rows))
    take_in(database)
    assert state(database, "labelled/early.png") == "accepted"
    assert "object_exists" in reasons(database, "labelled/late.png")
    put(storage, "labelled/late.png", picture(2))
    take_in(database)
    assert state(database, "labelled/late.png") == "accepted"
    check_invariants(database, storage)


def test_a_manifest_saved_again_changes_nothing(database: Database, storage: Storage) -> None:
    """The same rows in other bytes are read, found to say nothing new, and the night goes on."""
    put(storage, "labelled/a.png", picture(1))
    put(storage, "manifests/1.csv", csv([("labelled/a.png", "ring")]))
    take_in(database)
    put(storage, "manifests/1.csv", csv([("labelled/a.png", "ring")]).replace(b"\n", b"\r\n"))
    checked = take_in(database).checked
    assert checked is not None
    assert (checked.images, checked.refused) == (0, None)
    assert changes(database) == []
    assert take_in(database).intake.batch_id is None


def test_a_newer_manifest_relabels(database: Database, storage: Storage) -> None:
    """A newer row gives an image that is in the library its new label, and it is logged."""
    keys = [f"labelled/{number}.png" for number in range(3)]
    for number, key in enumerate(keys):
        put(storage, key, picture(number))
    put(storage, "labelled/copy.png", picture(0))
    put(storage, "manifests/1.csv", csv([(key, "ring") for key in [*keys, "labelled/copy.png"]]))
    take_in(database)
    before = splits(database)
    rows = [(keys[0], "cross"), ("labelled/copy.png", "cross"), (keys[1], "Ring")]
    put(storage, "manifests/2.csv", csv([*rows, (keys[2], "ring")]))
    take_in(database)
    got = [label(database, key) for key in keys]
    assert [one and one[0] for one in got] == ["cross", "ring", "ring"]
    assert changes(database) == [("relabelled", "ring", "cross")]
    assert "label_spelt" in reasons(database, keys[1])
    assert splits(database) == before
    check_invariants(database, storage)
    assert take_in(database).intake.batch_id is None


def test_a_manifest_against_the_folder_is_trusted_by_nobody(
    database: Database, storage: Storage
) -> None:
    """Folder and manifest disagree: withdrawn and quarantined, until a newer row agrees."""
    key = "labelled/ring/1.png"
    fill(storage, "ring", range(3))
    take_in(database)
    put(storage, "manifests/1.csv", csv([(key, "cross")]))
    take_in(database)
    assert label(database, key) is None
    assert "one_label" in reasons(database, key)
    check_invariants(database, storage)
    put(storage, "manifests/2.csv", csv([(key, "ring")]))
    take_in(database)
    mended = label(database, key)
    assert mended is not None
    assert mended[0] == "ring"
    check_invariants(database, storage)


SPOILT: list[tuple[dict[str, Any], str]] = [
    ({"labelled_by": "model:7"}, "labelled_by_person"),
    ({"origin": "found"}, "origin"),
    ({"label": ""}, "labelled"),
    ({"label": "Ring"}, "label_spelt"),
    ({"box": "0 0 0.1 0.1"}, "subject"),
    ({"box": "1 2 3 4"}, "text_clean"),
    ({"label": True}, "text_clean"),
]


def test_what_a_manifest_spoilt_a_manifest_mends(database: Database, storage: Storage) -> None:
    """An object refused for its row comes in when a newer row mends it."""
    put(storage, "labelled/ring/1.png", picture(100))
    take_in(database)
    keys = [f"labelled/{number}.png" for number in range(len(SPOILT))]
    for number, key in enumerate(keys):
        put(storage, key, picture(number))
    good = [{"key": key, "label": "ring"} for key in keys]
    bad = [row | spoilt for row, (spoilt, _) in zip(good, SPOILT, strict=True)]
    put(storage, "manifests/1.jsonl", jsonl(*bad))
    take_in(database)
    assert [list(reasons(database, key)) for key in keys] == [[name] for _, name in SPOILT]
    assert {state(database, key) for key in keys} == {"quarantined"}
    put(storage, "manifests/2.jsonl", jsonl(*good))
    take_in(database)
    assert [reasons(database, key) for key in keys] == [{}] * len(keys)
    assert {state(database, key) for key in keys} == {"accepted"}
    check_invariants(database, storage)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"label": "a"}, {"label": "b"}], "labels the key 'a' and 'b'"),
        ([{"label": "a"}, {"label": "a", "origin": "staged"}], "rows 1 and 2 of this manifest"),
        ([{"label": "a", "group": 7}, {"label": "a", "group": "8"}], "rows 1 and 2"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_not_trusted(
    rows: list[dict[str, Any]], says: str
) -> None:
    """Two rows that describe one key differently are both refused."""
    body = jsonl(*({"key": "labelled/x.png", **row} for row in rows))
    entries = read_manifest("manifests/1.jsonl", body)
    assert len(entries) == 2
    assert all(says in (entry.problem or "") for entry in entries)


def test_rows_are_read_as_people_write_them() -> None:
    """Quoted line ends, odd separators, BOM, numbers as labels and doubled rows are understood."""
    body = "\ufeff".encode() + jsonl({"key": "a", "label": 7}, {"key": "b", "label": "x"})
    body += '{"key": "c\u2028", "label": "y"}\r\n\r\n'.encode()
    body += jsonl({"key": "b", "label": " x "}, {"key": "d", "label": "caf", "extra": [1]})
    entries = {entry.key: entry for entry in read_manifest("manifests/1.jsonl", body)}
    assert entries["a"].label == "7"
    assert entries["b"].problem is None
    assert "U+2028" in (entries["c\\u2028"].problem or "")
    assert len(entries) == 4


# --- batches ----------------------------------------------------------------------------------


def test_a_batch_of_bad_objects_only_is_closed(database: Database, storage: Storage) -> None:
    """A few bad objects alone are quarantined, the batch is closed, and nothing is left open."""
    put(storage, "labelled/ring/1.png", b"")
    checked = take_in(database).checked
    assert checked is not None
    assert (checked.accepted, checked.quarantined, checked.refused) == (0, 1, None)
    assert take_in(database).intake.batch_id is None
    check_invariants(database, storage)


def test_benchmark_copies_alone_stop_nothing(database: Database, storage: Storage) -> None:
    """A batch that holds nothing but copies of the benchmark brings nothing in."""
    fill(storage, "ring", range(3), "benchmark")
    benchmark.freeze("a test", "to copy from")
    fill(storage, "ring", range(3))
    checked = take_in(database).checked
    assert checked is not None
    assert (checked.accepted, checked.quarantined) == (0, 3)
    assert query(database, "SELECT * FROM images") == []
    check_invariants(database, storage)


@pytest.fixture
def refused(database: Database, storage: Storage) -> int:
    """Have a batch that was refused for its bad share, after one that was accepted."""
    fill(storage, "ring", range(3))
    take_in(database)
    for number in range(3):
        put(storage, f"labelled/ring/bad {number}.png", b"no picture")
    fill(storage, "ring", range(3, 5))
    taken = take_in(database, CAREFUL)
    assert taken.checked is not None
    assert "60.0% of 5 images were refused" in (taken.checked.refused or "")
    assert taken.intake.batch_id is not None
    return taken.intake.batch_id


def test_a_refused_batch_waits_while_others_come_in(
    database: Database, storage: Storage, refused: int
) -> None:
    """Its objects stay pending, are not read again, and the next batch is its own."""
    assert take_in(database, CAREFUL).intake.batch_id is None
    assert state(database, "labelled/ring/3.png") == "pending"
    fill(storage, "ring", range(5, 6))
    checked = take_in(database, CAREFUL).checked
    assert checked is not None
    assert (checked.images, checked.accepted) == (1, 1)
    assert intakes.all_accounted(database, storage)
    check_invariants(database, storage)


def test_a_refused_batch_comes_in_by_a_persons_word(
    database: Database, storage: Storage, refused: int
) -> None:
    """Accepted, its good objects enter with the next night and its bad ones are quarantined."""
    with database.transaction() as session:
        batches.reopen_batch(session, refused, "Zoë", "one broken upload")
    checked = take_in(database, CAREFUL).checked
    assert checked is not None
    assert (checked.accepted, checked.quarantined, checked.refused) == (2, 3, None)
    assert state(database, "labelled/ring/3.png") == "accepted"
    with (
        pytest.raises(batches.UnknownBatch, match="is not a refused batch"),
        database.transaction() as session,
    ):
        batches.reopen_batch(session, refused, "Zoë", "again")
    check_invariants(database, storage)


def test_an_accepted_batch_that_was_emptied_is_closed(
    database: Database, storage: Storage, refused: int
) -> None:
    """A refused batch whose objects were deleted before it was let in hinders no later night."""
    for one in list(storage.list("labelled/ring/")):
        if one.key not in {f"labelled/ring/{seed}.png" for seed in range(3)}:
            storage.delete(one.key)
    with database.transaction() as session:
        batches.reopen_batch(session, refused, "Zoë", "all well")
    assert take_in(database).intake.batch_id is None
    fill(storage, "ring", range(8, 9))
    checked = take_in(database).checked
    assert checked is not None
    assert checked.accepted == 1
    check_invariants(database, storage)


def test_two_refused_batches_are_let_in_one_after_the_other(
    database: Database, storage: Storage, refused: int
) -> None:
    """Letting a second batch in while one is open is refused by one line."""
    for number in range(4):
        put(storage, f"labelled/ring/worse {number}.png", b"nor this")
    other = take_in(database, CAREFUL).intake.batch_id
    assert other is not None
    with database.transaction() as session:
        batches.reopen_batch(session, refused, "Zoë", "first")
    with (
        pytest.raises(batches.UnknownBatch, match=f"batch {refused} is still open"),
        database.transaction() as session,
    ):
        batches.reopen_batch(session, other, "Zoë", "second")


def test_a_reverted_refused_batch_stays_out(
    database: Database, storage: Storage, refused: int
) -> None:
    """Its objects are quarantined by the person's word and never come in by themselves."""
    with database.transaction() as session:
        assert batches.revert_batch(session, refused, "Zoë", "swapped") == 0
    assert reasons(database, "labelled/ring/3.png") == {
        "batch_reverted": f"batch {refused} was reverted by Zoë: swapped"
    }
    assert take_in(database).intake.batch_id is None
    assert intakes.all_accounted(database, storage)
    check_invariants(database, storage)


def test_a_reverted_batch_leaves_every_later_snapshot(
    database: Database, storage: Storage
) -> None:
    """Reverting an accepted batch takes its images out; what another batch vouches for stays."""
    plan = Plan(cutoff=3)
    for name in ("ring", "cross"):
        fill(storage, name, range(6))
    take_in(database)
    before = snapshot.freeze_snapshot.fn(intakes.begin(database), plan)
    for name in ("ring", "cross"):
        fill(storage, name, range(6, 9))
    put(storage, "labelled/ring/copy of 0.png", picture(0, "ring"))
    remove(storage, "labelled/ring/1.png")
    put(storage, "labelled/cross/moved.png", picture(1, "ring"))
    batch = take_in(database).intake.batch_id
    assert batch is not None
    with database.transaction() as session:
        assert batches.revert_batch(session, batch, "Zoë", "a mistake") == 7
        assert batches.revert_batch(session, batch, "Zoë", "twice") == 0
    check_invariants(database, storage)
    take_in(database)
    after = snapshot.freeze_snapshot.fn(intakes.begin(database), plan)
    gone = set(snapshot.read(before).images["train"] + snapshot.read(before).images["validation"])
    gone -= set(snapshot.read(after).images["train"] + snapshot.read(after).images["validation"])
    moved = query(database, "SELECT sha256 FROM objects WHERE key = 'labelled/cross/moved.png'")
    assert gone <= {moved[0].sha256}
    assert label(database, "labelled/ring/0.png") is not None
    # Put back where it was, the moved image is what it was.
    put(storage, "labelled/ring/1.png", picture(1, "ring"))
    take_in(database)
    again = label(database, "labelled/ring/1.png")
    assert again is not None
    assert again[0] == "ring"
    check_invariants(database, storage)
    with (
        pytest.raises(batches.UnknownBatch, match="there is no batch 999"),
        database.transaction() as session,
    ):
        batches.revert_batch(session, 999, "Zoë", "what")
