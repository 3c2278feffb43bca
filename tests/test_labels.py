"""Labels from pools: by a person, all or nothing, once, also when killed between two stores."""

import json
import os
import pty
import subprocess
import sys
from hashlib import sha256
from typing import Any

import intakes
import labelling_process
import pytest
import worlds
from alembic import command
from intakes import label, picture, put, query, reasons, state, take_in
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from test_kill import kill_at
from worlds import World

from infra.database import Database, alembic_config, migrate
from infra.embedded import Addresses
from infra.storage import Storage
from records import classes, labels, objects, pools, snapshots
from records.classes import BadClass, UnknownClass
from records.invariants import broken_rows, check_invariants
from records.labels import BadLabels, Wish
from records.pools import ReadObject
from tasks import benchmark, labelling
from tasks.intake import take_in_new_images
from tasks.labelling import BadWishes
from tasks.rows import BadRows
from tasks.validation import check_batch
from vision.images import examine

POOL = "pools/gate/"


def in_pool(database: Database, storage: Storage, bodies: dict[str, bytes]) -> dict[str, str]:
    """Put objects into the pool as if they had been identified; the digest of each, by name."""
    read = []
    for name, body in bodies.items():
        put(storage, POOL + name, body)
        facts, _ = examine(body, None)
        seen = (facts.width, facts.height, facts.dhash, facts.dhash_mirror)
        etag = facts.sha256[:32]
        read.append(ReadObject(POOL + name, etag, len(body), facts.sha256, None, *seen))
    with database.transaction() as session:
        pools.record(session, pools.enter(session, POOL), read)
    return {name: sha256(body).hexdigest() for name, body in bodies.items()}


@pytest.fixture
def found(database: Database, storage: Storage) -> dict[str, str]:
    """Have classes `ring` and `cross` in the library, and twelve pictures in a pool, by name."""
    for seed in range(6):
        for name in ("ring", "cross"):
            put(storage, f"labelled/{name}/{seed}.png", picture(seed, name))
    take_in(database)
    names = [f"{number}.png" for number in range(12)]
    return in_pool(database, storage, {
        name: picture(100 + number, "ring") for number, name in enumerate(names)
    })  # fmt: skip


def answered(database: Database, digest: str, called: str = "ring") -> None:
    """Have version 1 and what it said of one picture, at nine tenths."""
    with database.transaction() as session:
        known = session.scalar(text("SELECT count(*) FROM versions"))
        for statement in () if known else (
            """
            INSERT INTO snapshots (digest, key, policy, cutoff, images, classes)
            VALUES ('s', 's', 'p', 1, 0, 0)
            """,
            """
            INSERT INTO versions (purpose, state, run_id, snapshot_digest, plan, plan_digest,
                architecture, class_names, class_names_digest, checkpoint_digest, machine)
            SELECT 'throwaway', 'trained', min(id), 's', '{}', 'p', 'a', '{ring,=okapi}', 'c', 'd',
                '{}' FROM runs
            """,
            """
            INSERT INTO identifications (pool_id, version_id, checkpoint_digest, targets, listed,
                listed_at) SELECT p.id, v.id, 'd', '{}', 1, now() FROM pools p, versions v
            """,
            """
            INSERT INTO shards (identification_id, ordinal, state, objects, claimed_by, answered,
                done_at) SELECT id, 0, 'done', 1, 'x', 1, now() FROM identifications
            """,
        ):
            session.execute(text(statement))
        session.execute(
            text(
                """
                INSERT INTO pool_answers (version_id, sha256, identification_id, predicted,
                    confidence, top_labels, top_confidences, target_confidences, entropy)
                SELECT version_id, :digest, id, :called, 0.9, ARRAY[:called], '{0.9}', '{}', 0
                FROM identifications
                """
            ),
            {"digest": digest, "called": called},
        )


def wish(name: str, digest: str, called: str | None = None) -> Wish:
    """A wish for one picture by its digest."""
    return Wish(name, image=digest, label=called)


def under(storage: Storage, prefix: str) -> set[str]:
    """The keys under a prefix."""
    return {one.key for one in storage.list(prefix)}


def acts(database: Database) -> list[Any]:
    """Every act, the oldest first."""
    return query(database, "SELECT * FROM pool_acts ORDER BY id")


# --- labels ---------------------------------------------------------------------------------


def test_a_labelled_picture_comes_in_as_mined_and_only_trains(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """Twelve of them would give every split its share; who said it and what offered it is kept."""
    answered(database, found["0.png"])
    wishes = [wish(name, digest, "ring") for name, digest in found.items()]
    done, followed = labelling.label(wishes, "Ann", why="seen at the gate")
    assert (done.changed, done.already, followed.moved, followed.waiting) == (12, 0, 12, ())
    copies = {f"labelled/ring/{digest}.png" for digest in found.values()}
    assert copies < under(storage, objects.LABELLED)
    assert take_in(database).checked is not None
    rows = query(database, "SELECT split, sequence, labelled_by FROM images WHERE mined")
    assert [tuple(row) for row in rows] == [("train", None, "person:Ann")] * 12
    first = acts(database)[0]
    assert (first.version_id, first.predicted, first.done_by) == (1, "ring", "Ann")
    assert first.confidence == pytest.approx(0.9)
    assert {one.version_id for one in acts(database)[1:]} == {None}
    assert under(storage, POOL) == {POOL + name for name in found}
    with database.transaction() as session:  # of rows alone: version 1 has no checkpoint
        assert broken_rows(session) == []


def test_saying_it_twice_is_saying_it_once(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """The second time nothing is written, before an intake and after it."""
    wishes = [wish(name, digest, "ring") for name, digest in found.items()]
    labelling.label([*wishes, *wishes[:2]], "Ann")
    before = acts(database)
    for by in ("Ann", "Zoë"):
        done, followed = labelling.label(wishes, by)
        assert (done.changed, done.already, followed.moved) == (0, 12, 0)
        take_in(database)
    assert acts(database) == before
    assert query(database, "SELECT count(*) FROM images WHERE mined")[0].count == 12
    check_invariants(database, storage)


def test_the_newest_label_speaks(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """Said otherwise, the copy moves: before an intake silently, after it as a moved label."""
    digest = found["0.png"]
    labelling.label([wish("a", digest, "ring")], "Ann")
    labelling.label([wish("a", digest, "cross")], "Ann")
    take_in(database)
    assert label(database, f"labelled/cross/{digest}.png") == ("cross", "", "train")
    labelling.label([wish("a", digest, "ring")], "Zoë")
    take_in(database)
    assert label(database, f"labelled/ring/{digest}.png") == ("ring", "", "train")
    changes = query(database, "SELECT kind, from_class, to_class FROM label_changes")
    assert [tuple(row) for row in changes] == [("moved", "cross", "ring")]
    copies = [key for key in under(storage, "labelled/") if digest in key]
    assert copies == [f"labelled/ring/{digest}.png"]
    check_invariants(database, storage)


def test_a_label_can_be_taken_back_and_given_again(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """Dismissed, the image is withdrawn; labelled again, it is back in the split that it had."""
    digest = found["0.png"]
    key = f"labelled/ring/{digest}.png"
    usable = "SELECT withdrawn_at IS NULL AS usable, split FROM images WHERE mined"
    labelling.label([wish("a", digest, "ring")], "Ann")
    take_in(database)
    done, _ = labelling.dismiss([wish("a", digest)], "Ann", why="a tyre")
    assert done.changed == 1
    assert not storage.exists(key)
    take_in(database)
    assert [tuple(row) for row in query(database, usable)] == [(False, "train")]
    assert labelling.dismiss([wish("a", digest)], "Ann")[0].already == 1
    assert labelling.dismiss([wish("a", digest)], "Ann", unknown=True)[0].changed == 1
    labelling.label([wish("a", digest, "ring")], "Ann")
    take_in(database)
    assert [tuple(row) for row in query(database, usable)] == [(True, "train")]
    said = [one.act for one in acts(database)]
    assert said == ["label", "dismiss", "unknown", "label"]
    check_invariants(database, storage)


def test_what_was_taken_back_returns_by_the_word_of_a_person_alone(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """Neither by hand nor by its copy put back; uploaded by a person it is as any other."""
    digest, body = found["0.png"], storage.read(POOL + "0.png")
    key = f"labelled/ring/{digest}.png"
    mine = f"SELECT mined, split, withdrawn_at IS NULL FROM images WHERE sha256 = '{digest}'"  # noqa: S608
    labelling.label([wish("a", digest, "ring")], "Ann")
    take_in(database)
    labelling.dismiss([wish("a", digest)], "Ann")
    take_in(database)
    back = text("UPDATE images SET withdrawn_at = NULL, withdrawn_why = NULL WHERE mined")
    with pytest.raises(DBAPIError, match="no person labelled"), database.transaction() as session:
        session.execute(back)
    put(storage, key, body)
    take_in(database)
    assert [tuple(row) for row in query(database, mine)] == [(True, "train", False)]
    storage.delete(key)
    put(storage, "labelled/ring/own.png", body)
    take_in(database)
    assert [tuple(row) for row in query(database, mine)] == [(False, "train", True)]
    check_invariants(database, storage)


def test_a_deleted_image_that_a_version_finds_again_keeps_its_place(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """What trains is mined from then on; what was there to judge by judges as before."""
    rows = query(
        database,
        """
        SELECT DISTINCT ON (i.split) o.key, o.sha256, i.split FROM objects o
        JOIN images i USING (sha256) WHERE o.key LIKE 'labelled/ring/%' ORDER BY i.split, o.key
        """,
    )
    bodies = {f"{row.split}.png": storage.read(row.key) for row in rows}
    for row in rows:
        storage.delete(row.key)
    take_in(database)
    again = in_pool(database, storage, bodies)
    labelling.label([wish(*one, "ring") for one in again.items()], "Ann")
    take_in(database)
    mine = query(
        database,
        """
        SELECT split, mined FROM images
        WHERE withdrawn_at IS NULL AND sha256 IN (SELECT sha256 FROM pool_acts) ORDER BY split
        """,
    )
    assert [tuple(row) for row in mine] == [("test", False), ("train", True), ("validation", False)]
    check_invariants(database, storage)


def test_a_label_taken_back_during_an_intake_does_not_come_in(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """The copy was listed already; it waits, is gone the next time, and may be wished again."""
    digest = found["0.png"]
    key = f"labelled/ring/{digest}.png"
    labelling.label([wish("a", digest, "ring")], "Ann")
    run_id = intakes.begin(database)
    intake = take_in_new_images.fn(run_id, intakes.PLAN)
    with database.transaction() as session:
        labels.dismiss(session, [wish("a", digest)], "Ann")
    check_batch.fn(run_id, intake.batch_id, intakes.Rules())
    assert (state(database, key), reasons(database, key)) == ("pending", {})
    with database.transaction() as session:
        intakes.runs.close(session, run_id, "completed", None)
    take_in(database)
    assert state(database, key) is None
    assert query(database, "SELECT 1 FROM images WHERE mined") == []
    labelling.label([wish("a", digest, "ring")], "Ann")
    take_in(database)
    assert label(database, key) == ("ring", "", "train")
    check_invariants(database, storage)


def test_a_class_of_mined_images_alone_waits_for_one_of_a_person(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """It has passed the cutoff, and no image to be validated on: it is left out and listed."""
    digests = list(found.items())
    labelling.label([wish(*one, "okapi") for one in digests], "Ann", ["okapi"])
    take_in(database)
    with database.transaction() as session:
        counted = {one.class_name: one for one in snapshots.counts(session, 6, None)}
        assert (counted["okapi"].usable, counted["okapi"].lacks) == (12, 1)
        assert counted["okapi"].wanting.startswith("needs 1 more validation image")
        assert counted["ring"].lacks == 0
    listed = {line.split()[0]: line.split() for line in
              regraft("class", "list", "--cutoff", "6")[1].splitlines() if line}
    assert listed["okapi"][1:4] == ["12", "12", "1"]
    assert listed["ring"][3] == "taken"
    put(storage, "labelled/okapi/1.png", picture(1, "bar"))
    put(storage, "labelled/okapi/2.png", picture(2, "bar"))
    take_in(database)
    with database.transaction() as session:
        assert {one.lacks for one in snapshots.counts(session, 6, None)} == {0}


def test_what_the_library_or_the_benchmark_has_is_not_labelled_anew(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """In the library under that name is done already; under another, or in the benchmark, not."""
    put(storage, "benchmark/ring/1.png", picture(500, "ring"))
    benchmark.freeze("a test", "first")
    known = in_pool(
        database, storage, {"ring.png": picture(1, "ring"), "frozen.png": picture(500, "ring")}
    )
    assert labelling.label([wish("a", known["ring.png"], "ring")], "Ann")[0].already == 1
    for called, name, says in (
        ("cross", "ring.png", "the library has it as 'ring': move its object under labelled/cross"),
        ("ring", "frozen.png", "in the benchmark, which no training may see"),
    ):
        with pytest.raises(BadLabels, match=says):
            labelling.label([wish("a", known[name], called)], "Ann")
    assert acts(database) == []


# --- an unreviewed prediction ---------------------------------------------------------------

INSERT = """
    INSERT INTO images (sha256, class_id, origin, mined, group_name, split, width, height, format,
                        bytes, labelled_by, batch_id)
    SELECT :sha, c.id, 'real', :mined, 'g', 'train', 1, 1, 'PNG', 1, :by, b.id
    FROM classes c, batches b WHERE c.name = 'ring' LIMIT 1
"""
ACT = """
    INSERT INTO pool_acts (sha256, act, class_name, to_key, done_by)
    VALUES (:sha, 'label', 'ring', 'labelled/ring/x.png', :by)
"""


def test_the_database_refuses_what_nobody_reviewed(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """Whoever writes SQL by hand cannot let a prediction train, nor sign with a version's name."""

    def refused(statement: str, says: str, **values: Any) -> None:
        with pytest.raises(DBAPIError, match=says), database.transaction() as session:
            session.execute(text(statement), values)

    digest, other = found["0.png"], found["1.png"]
    unreviewed = "found by a version and no person labelled it"
    refused(INSERT, unreviewed, sha=digest, mined=True, by="person:Ann")
    refused("UPDATE images SET mined = true WHERE split = 'train'", unreviewed)
    for by in ("version:7", "model: x", "Regraft:nightly", "  "):
        refused(ACT, "done_by_person", sha=digest, by=by)
        refused(INSERT, "labelled_by_person", sha=digest, mined=False, by=by)
    labelling.label([wish("a", digest, "ring"), wish("b", other, "ring")], "Ann")
    refused(INSERT, "must be marked as mined", sha=digest, mined=False, by="person:Ann")
    labelling.dismiss([wish("b", other)], "Ann")
    refused(INSERT, unreviewed, sha=other, mined=True, by="person:Ann")
    refused("UPDATE pool_acts SET done_by = 'Eve'", "written once")
    refused("DELETE FROM pool_acts", "written once")
    with database.transaction() as session:
        session.execute(text(INSERT), {"sha": digest, "mined": True, "by": "person:Ann"})
    for by in ("version:7", "", " "):
        with pytest.raises(BadLabels, match="nobody's name"):
            labelling.label([wish("a", digest, "ring")], by)


def test_what_a_dismissed_picture_was_offered_as_is_kept(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """By the file that offered it, else what the version predicted; as each class once."""
    digest, other = found["0.png"], found["1.png"]
    answered(database, digest)
    offered = "sha256,class_name,predicted,version\n{},cross,ring,1\n"
    shortlisted = f"sha256,key,label,version,score\n{digest},{POOL}0.png,cross,1,0.4\n"
    for name, body in (("found.csv", offered.format(digest)), ("shortlist.csv", shortlisted)):
        done, _ = labelling.dismiss(labelling.read(name, body.encode()), "Ann")
        assert done.changed + done.already == 1
    wishes = [wish("a", digest), *labelling.named([digest, other], offered="ring")]
    done, _ = labelling.dismiss(wishes, "Zoë")
    assert (done.changed, done.already, done.repeated) == (2, 0, 1)
    assert labelling.dismiss(wishes, "Zoë")[0].changed == 0
    told = [(one.sha256, one.offered, one.version_id, one.predicted) for one in acts(database)]
    assert told == [(digest, "cross", 1, "ring"), (digest, "ring", 1, "ring"),
                    (other, "ring", None, None)]  # fmt: skip
    for body, says in (
        (offered.format(digest).replace("cross", "bongo"), "row 2 was offered as 'bongo', which"),
        (shortlisted.replace("cross", "bongo"), "row 2 was offered as 'bongo', which is no class"),
    ):
        with pytest.raises(BadLabels, match=says):
            labelling.dismiss(labelling.read("bad.csv", body.encode()), "Ann")
    # What nobody could name may be named once a later version has offered it, and not be, again.
    for by, changed in ((digest, 1), (digest, 0)):
        assert labelling.dismiss([wish("a", by)], "Ann", unknown=True)[0].changed == changed
    labelling.label([wish("a", digest, "ring")], "Ann")
    assert labelling.dismiss(labelling.named([digest], offered="cross"), "Ann")[0].changed == 1


def test_a_library_of_before_is_taken_over(empty_database_url: str) -> None:
    """A signature that was a person's to earlier programs stays readable, and no row is lost."""
    by = ("person:Ann", "model :7", "  Version:3", "", "regraft maker")
    command.upgrade(alembic_config(empty_database_url), "0009")
    database = Database(empty_database_url)
    with database.transaction() as session:
        for statement in (
            "INSERT INTO batches DEFAULT VALUES",
            "INSERT INTO classes (name, batch_id) SELECT 'ring', id FROM batches",
        ):
            session.execute(text(statement))
        for digit, name in enumerate(by):
            session.execute(text(INSERT), {"sha": str(digit) * 64, "mined": digit == 1, "by": name})
    migrate(empty_database_url)
    kept = query(database, "SELECT labelled_by, mined FROM images ORDER BY sha256")
    assert [row.labelled_by for row in kept] == [
        "person:Ann", "unconfirmed model :7", "unconfirmed   Version:3", "unconfirmed ",
        "regraft maker",
    ]  # fmt: skip
    with database.transaction() as session:
        session.execute(text("UPDATE images SET withdrawn_at = now(), withdrawn_why = 'deleted'"))
        assert {one.made_by for one in session.execute(text("SELECT made_by FROM classes"))} == {
            None
        }
        assert classes.rename(session, "ring", "circle", "Ann", "a test") == len(by)
    database.engine.dispose()


# --- the trash ------------------------------------------------------------------------------


def test_what_is_removed_can_be_restored(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """By key one object, by digest all copies; each as often as one likes."""
    bodies = {name: storage.read(POOL + name) for name in ("0.png", "1.png")}
    in_pool(database, storage, {"copy.png": bodies["0.png"]})
    zero, one = found["0.png"], found["1.png"]
    for _ in range(2):
        done, _ = labelling.remove([Wish("a", key=POOL + "0.png"), wish("b", one)], "Ann")
        assert (done.changed, done.already) == (2, 0)
        assert under(storage, "trash/") == {
            f"trash/{zero}/{POOL}0.png", f"trash/{one}/{POOL}1.png"
        }  # fmt: skip
        assert labelling.remove([Wish("a", key=POOL + "0.png")], "Ann")[0].already == 1
        assert labelling.remove([wish("a", zero)], "Ann")[0].changed == 1
        done, _ = labelling.restore([wish("a", zero), wish("b", one)], "Zoë")
        assert (done.changed, done.already) == (3, 0)
        assert labelling.restore([wish("a", zero)], "Zoë")[0].already == 2
        assert under(storage, "trash/") == set()
    assert under(storage, POOL) == {POOL + name for name in [*found, "copy.png"]}
    assert {name: storage.read(POOL + name) for name in bodies} == bodies
    assert query(database, "SELECT 1 FROM pool_objects WHERE gone_at IS NOT NULL") == []


def test_a_label_outlives_the_removal_of_its_object(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """Both owe their moves: the copy is made although the object is in the trash by then."""
    digest = found["0.png"]
    with database.transaction() as session:
        labels.label(session, [wish("a", digest, "ring")], "Ann")
        labels.remove(session, [wish("a", digest)], "Ann")
    assert labelling.follow() == labelling.Followed(2)
    assert storage.exists(f"labelled/ring/{digest}.png")
    assert not storage.exists(POOL + "0.png")
    with pytest.raises(BadLabels, match="gone from the pool: `regraft restore`"):
        labelling.label([wish("a", digest, "cross")], "Ann")


def test_other_objects_under_the_key_are_left_alone(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """What was overwritten since it was judged stays; nothing is restored over another object."""
    body, other = storage.read(POOL + "0.png"), picture(999)
    put(storage, POOL + "1.png", other)
    labelling.remove([wish("a", found["0.png"]), wish("b", found["1.png"])], "Ann")
    assert storage.read(POOL + "1.png") == other
    put(storage, POOL + "0.png", other)
    done, followed = labelling.restore([wish("a", found["0.png"])], "Ann")
    assert (done.changed, followed.moved) == (1, 0)
    assert "holds another object" in followed.waiting[0]
    assert storage.read(POOL + "0.png") == other
    storage.delete(POOL + "0.png")
    assert labelling.follow() == labelling.Followed(1)
    assert storage.read(POOL + "0.png") == body
    labelling.remove([Wish("a", key=POOL + "3.png")], "Ann")
    in_pool(database, storage, {"3.png": other})
    with pytest.raises(BadLabels, match="'pools/gate/3\\.png' holds another"):
        labelling.restore([wish("a", found["3.png"])], "Ann")


def test_a_label_whose_bytes_are_gone_is_told_and_kept(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """The others come in; what waits is named until its bytes are back or it is taken back."""
    body = storage.read(POOL + "0.png")
    storage.delete(POOL + "0.png")
    wishes = [wish(name, digest, "ring") for name, digest in found.items()]
    done, followed = labelling.label(wishes, "Ann")
    assert (done.changed, followed.moved, len(followed.waiting)) == (12, 11, 1)
    assert "no pool holds its bytes any more" in followed.waiting[0]
    take_in(database)
    assert query(database, "SELECT count(*) FROM images WHERE mined")[0].count == 11
    put(storage, POOL + "back.png", body)
    put(storage, POOL + "0.png", body)
    take_in(database)
    assert query(database, "SELECT count(*) FROM images WHERE mined")[0].count == 12
    assert query(database, "SELECT 1 FROM pool_moves") == []


def test_a_removal_is_undone_wherever_it_was_killed(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """Before its copy, between copy and deletion, before it was forgotten; there and back again."""
    names = ("0.png", "1.png", "2.png")
    bodies = {name: storage.read(POOL + name) for name in names}
    here = {name: POOL + name for name in names}
    trash = {name: f"trash/{found[name]}/{POOL}{name}" for name in names}
    wishes = [wish(name, found[name]) for name in names]

    def killed(to: dict[str, str], source: dict[str, str]) -> None:
        put(storage, to["1.png"], bodies["1.png"])
        put(storage, to["2.png"], bodies["2.png"])
        storage.delete(source["2.png"])

    def lies(where: dict[str, str], other: dict[str, str]) -> None:
        assert query(database, "SELECT 1 FROM pool_moves") == []
        assert {name: storage.read(where[name]) for name in names} == bodies
        assert not any(map(storage.exists, other.values()))

    for _ in range(2):
        with database.transaction() as session:
            labels.remove(session, wishes, "Ann")
        killed(trash, here)
        assert labelling.restore(wishes, "Ann")[0].changed == 3
        lies(here, trash)
        with database.transaction() as session:
            labels.remove(session, wishes, "Ann")
        killed(trash, here)
        assert labelling.remove(wishes, "Ann")[0].already == 3
        lies(trash, here)
        with database.transaction() as session:
            labels.restore(session, wishes, "Ann")
        killed(here, trash)
        labelling.follow()
        lies(here, trash)
    assert query(database, "SELECT 1 FROM pool_objects WHERE gone_at IS NOT NULL") == []


# --- kills ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(services: Addresses, template: str) -> World:
    """A world with two classes in its library and twelve pictures in its pool."""
    world = worlds.make(services, template)
    with worlds.inside(world), world.database() as database:
        for seed in range(6):
            for name in ("ring", "cross"):
                put(world.storage, f"labelled/{name}/{seed}.png", picture(seed, name))
        take_in(database)
        in_pool(database, world.storage, {f"{n}.png": picture(100 + n) for n in range(12)})
    return world


KEYS = sorted(f"{POOL}{number}.png" for number in range(12))


def left(world: World) -> dict[str, Any]:
    """All that is left, in words that know no clock."""
    return {
        "acts": world.ask(
            "SELECT sha256, act, class_name, key, to_key, done_by FROM pool_acts ORDER BY id"
        ),
        "classes": world.ask("SELECT name, made_by FROM classes ORDER BY id"),
        "class acts": world.ask("SELECT act, name, done_by FROM class_acts"),
        "owed": world.ask("SELECT act_id FROM pool_moves"),
        "gone": world.ask("SELECT key, gone_at IS NULL FROM pool_objects ORDER BY key"),
        "images": world.ask(
            "SELECT sha256, name, split, mined FROM images i JOIN classes c ON c.id = class_id "
            "ORDER BY sha256"
        ),
        "objects": sorted(
            (one.key, one.size) for one in world.storage.list() if "data-docs" not in one.key
        ),
    }


def to_the_end(world: World, work: labelling_process.Work) -> dict[str, Any]:
    """Do it undisturbed, take in what comes of it, and tell what is left."""
    with worlds.inside(world), world.database() as database:
        work(KEYS)
        take_in(database)
    world.check()
    return left(world)


# Where Postgres stops the process: table, event, and the rows it stops at; last: the newest act.
POINTS = {
    "labels are written": ("pool_acts", "INSERT", "NEW.act = 'label'"),
    "copies are made": ("pool_moves", "DELETE", "true"),
    "removals are written": ("pool_objects", "UPDATE", "NEW.gone_at IS NOT NULL"),
    "objects are in the trash": ("pool_moves", "DELETE", "OLD.act_id > {last}"),
}
UNDONE = {
    "copies are taken away": ("pool_moves", "DELETE", "true"),
    "restored objects are written": ("pool_objects", "UPDATE", "NEW.gone_at IS NULL"),
    "objects are back": ("pool_moves", "DELETE", "OLD.act_id > {last}"),
}


def kill_labelling(
    world: World, work: labelling_process.Work, table: str, event: str, condition: str
) -> None:
    """Start the work in a process of its own and kill -9 it where it writes such a row."""
    [(last,)] = world.ask("SELECT coalesce(max(id), 0) FROM pool_acts")
    kill_at(
        world, table, event, condition.format(last=last),
        lambda it: labelling_process.begin(it.environment(), work, KEYS),
    )  # fmt: skip


def test_killed_again_and_again_it_ends_as_undisturbed(pool: World) -> None:
    """kill -9 while rows are written and while S3 is ahead of them, at one point after the other;
    the last run ends as one that nobody killed, and so does the undoing of it all.
    """
    undisturbed, world = worlds.clone(pool), worlds.clone(pool)
    expected = to_the_end(undisturbed, labelling_process.act)
    assert (len(expected["acts"]), expected["owed"]) == (20, [])
    for point, where in POINTS.items():
        kill_labelling(world, labelling_process.act, *where)
        there = under(world.storage, "")
        assert any("okapi" in key for key in there) == (point != "labels are written")
        assert any("trash" in key for key in there) == (point == "objects are in the trash")
    now = to_the_end(world, labelling_process.act)
    assert {what for what in expected if now[what] != expected[what]} == set()
    expected = to_the_end(undisturbed, labelling_process.undo)
    assert (len(expected["acts"]), expected["owed"]) == (36, [])
    for point, where in UNDONE.items():
        kill_labelling(world, labelling_process.undo, *where)
        there = under(world.storage, "")
        assert sum("okapi" in key for key in there) == 4
        assert any(key.startswith(POOL) for key in there) == (point == "objects are back")
    now = to_the_end(world, labelling_process.undo)
    assert {what for what in expected if now[what] != expected[what]} == set()
    worlds.drop(undisturbed)
    worlds.drop(world)


def test_an_intake_makes_up_for_a_kill(pool: World) -> None:
    """Written down and killed before the first copy: the next night comes to the same."""
    world = worlds.clone(pool)
    with worlds.inside(world), world.database() as database:
        with world.transaction() as session:
            wishes = [Wish(key, key=key, label="ring") for key in KEYS]
            labels.label(session, wishes, "Ann")
            labels.remove(session, wishes[:3], "Ann")
        assert under(world.storage, "trash/") == set()
        take_in(database)
        assert world.ask("SELECT count(*) FROM images WHERE mined") == [(12,)]
        assert len(under(world.storage, "trash/")) == 3
        assert world.ask("SELECT 1 FROM pool_moves") == []
    world.check()
    worlds.drop(world)


# --- files ----------------------------------------------------------------------------------

DIGEST = sha256(picture(100, "ring")).hexdigest()
OTHER = sha256(picture(101, "ring")).hexdigest()

# name, bytes, what the one line says
BAD_FILES: list[tuple[str, bytes, str]] = [
    ("empty.csv", b"", "empty.csv: it has no rows"),
    ("header.csv", b"sha256,label\n", "header.csv: it has no rows"),
    ("empty.jsonl", b"\n", "empty.jsonl: it has no rows"),
    ("list.json", b"[]", "list.json: it has no rows"),
    ("columns.csv", b"sha256,predicted\na,ring\n", "columns.csv row 2 has no label: name the cl"),
    ("found.csv", f"sha256,class_name,label\n{DIGEST},ring,\n".encode(), "row 2 has no label"),
    ("semicolons.csv", f"sha256;label\n{DIGEST};ring\n".encode(), "no commas separate its columns"),
    ("columns.csv", b"file,label\na,ring\n", "it has no column sha256, image or key"),
    ("latin.csv", f"sha256,label\n{DIGEST},Zebra f\xe4hre\n".encode("latin-1"),
     "latin.csv: byte 85 is not UTF-8: save it as UTF-8"),
    ("utf16.csv", f"sha256,label\n{DIGEST},ring\n".encode("utf-16"), "byte 0 is not UTF-8"),
    ("utf16.csv", f"sha256,label\n{DIGEST},ring\n".encode("utf-16-le"), "it is UTF-16, to judge"),
    ("nul.csv", f"sha256,label\n{DIGEST},ri\0ng\n".encode(), "nul.csv row 2: label holds U+0000"),
    ("broken.jsonl", b'{"sha256": "a", "label": \n', "line 1 is not JSON"),
    ("unknown.csv", b"sha256,label\n" + b"f" * 64 + b",ring\n",
     "nothing was done: unknown.csv row 2 names 'ffffff"),
    ("unknown.csv", f"key,label\n{POOL}77.png,ring\n".encode(), "which no pool holds"),
    ("blank.csv", f"sha256,label\n{DIGEST},ring\n,ring\n".encode(), "row 3 names no image"),
    ("nameless.csv", f"sha256,label\n{DIGEST},ring\n{OTHER},\n".encode(), "row 3 has no label"),
    ("short.csv", f"sha256,label\n{DIGEST[:7]},ring\n".encode(), "which no pool holds"),
    ("doubled.csv", f"sha256,label\n{DIGEST},ring\n{OTHER},ring\n{DIGEST},cross\n".encode(),
     "row 4 says 'cross' of the picture that doubled.csv row 2 calls 'ring': keep one"),
    ("apart.csv", f"sha256,key,label\n{DIGEST},{POOL}1.png,ring\n".encode(), "holds another"),
    ("others.csv", f"sha256,label\n{DIGEST},golden retriever\n{OTHER},rings\n".encode(),
     "'golden retriever', 'rings' are no classes of this library"),
    ("spelt.csv", f"sha256,label\n{DIGEST},Ring\n".encode(), "'Ring' is 'ring' spelt another way"),
    ("slash.csv", f"sha256,label\n{DIGEST},ring/male\n".encode(), "'ring/male' holds a slash"),
    ("dots.csv", f"sha256,label\n{DIGEST},..\n".encode(), "'..' can be no folder"),
    ("long.csv", f"sha256,label\n{DIGEST},{'x' * 300}\n".encode(), "300 bytes: 255 are the most"),
    ("list.jsonl", b'{"sha256": ["a"], "label": "ring"}\n', "sha256 is ['a'], which is no text"),
    ("version.csv", f"sha256,label,version\n{DIGEST},ring,v7\n".encode(), "'v7' is no number"),
    ("version.csv", f"sha256,label,version\n{DIGEST},ring,{'9' * 19}\n".encode(), "is no number"),
]  # fmt: skip


def test_a_bad_file_gives_one_line_and_does_nothing(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """Whatever is wrong with one row, no other row is done either."""
    before = under(storage, "")
    for name, body, says in BAD_FILES:
        with pytest.raises((BadRows, BadWishes, BadLabels, BadClass)) as caught:
            labelling.label(labelling.read(name, body), "Ann")
        line = str(caught.value)
        assert says in line, (name, line)
        assert "\n" not in line
        assert len(line) < 700
    assert acts(database) == []
    assert {one.name for one in query(database, "SELECT name FROM classes")} == {"ring", "cross"}
    assert under(storage, "") == before


def test_a_good_file_is_read_however_it_was_saved(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """CSV with or without a byte order mark, JSON as lines or a list, by digest, key or both."""
    rows = [{"sha256": digest, "key": POOL + name, "label": "ring", "confidence": 0.9}
            for name, digest in found.items()]  # fmt: skip
    marked = b"\xef\xbb\xbfkey,label\r\n" + f"s3://{POOL}0.png,ring\r\n{POOL}0.png,ring".encode()
    done, _ = labelling.label(labelling.read("marked.csv", marked), "Ann")
    assert (done.changed, done.repeated) == (1, 1)
    lines = intakes.jsonl(*rows[:4])
    assert labelling.label(labelling.read("-", lines), "Ann")[0].changed == 3
    whole = json.dumps(rows[:8], indent=2).encode()
    assert labelling.label(labelling.read("-", whole), "Ann")[0].changed == 4
    plain = "sha256\n" + "\n".join(found.values())
    wishes = labelling.read("plain.csv", plain.encode(), "ring")
    assert labelling.label(wishes, "Ann")[0].changed == 4
    with pytest.raises(BadWishes, match="says 'ring' and the command says 'cross'"):
        labelling.read("-", lines, "cross")


# --- the command line -----------------------------------------------------------------------


def regraft(*words: str, given: bytes = b"") -> tuple[int, str, str]:
    """Run the command line; its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        input=given, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_the_verbs_say_what_they_did(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """Label, dismiss, remove and restore, from arguments and standard input, by a person's name."""
    digest = found["0.png"]
    code, _, told = regraft("label", "okapi", digest[:12], "--by", "Ann")
    assert (code, told.count("\n")) == (1, 1)
    assert "'okapi' is no class of this library: mend the label, or say" in told
    words = ("label", "okapi", digest[:12], f"s3://{POOL}1.png", "--by", "Ann", "--new-class")
    code, said, told = regraft(*words, "okapi")
    assert (code, said) == (0, "labelled 2 images\n"), told
    assert "class 'okapi' is new" in told
    assert regraft(*words, "okapi")[1] == "labelled 0 images; 2 already were\n"
    known = {row["name"]: row for row in json.loads(regraft("class", "list", "--json")[1])}
    okapi = known["okapi"]
    assert (okapi["by"], okapi["act"], okapi["usable"]) == ("Ann", "make", 0)
    assert known["ring"]["act"] == "intake"
    file = f"sha256\n{digest}\n".encode()
    assert regraft("dismiss", "--from", "-", "--by", "Zoë", given=file)[1] == "dismissed 1 image\n"
    assert regraft("remove", digest, "--by", "Ann")[1] == "removed 1 object\n"
    facts = json.loads(regraft("restore", digest, "--by", "Ann", "--json")[1])
    assert (facts["changed"], facts["waiting"]) == (1, [])
    assert regraft("label", "ring", "--by", "Ann")[0] == 2
    told = json.loads(regraft("acts", "--most", "3", "--json")[1])
    assert [(one["act"], one["done_by"], one["owed"]) for one in told] == [
        ("restore", "Ann", False), ("remove", "Ann", False), ("dismiss", "Zoë", False),
    ]  # fmt: skip
    assert "Zoë" in regraft("acts")[1]
    assert [one.done_by for one in acts(database)] == ["Ann", "Ann", "Zoë", "Ann", "Ann"]


def test_what_find_prints_is_what_the_verbs_read(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """As CSV and as JSON; a name that a spreadsheet would run comes back as it was."""
    for number, digest in enumerate(found.values()):
        answered(database, digest, "ring" if number else "=okapi")
    code, csv, told = regraft("find", "--version", "1", "--csv")
    assert (code, csv.count("\n")) == (0, 13), told
    assert "'=okapi" in csv
    words = ("--from", "-", "--by", "Ann", "--new-class", "=okapi")
    code, said, told = regraft("label", *words, given=csv.encode())
    assert (code, said) == (0, "labelled 12 images\n"), told
    assert [one.class_name for one in acts(database)].count("=okapi") == 1
    assert all(one.offered == one.class_name == one.predicted for one in acts(database))
    code, whole, _ = regraft("find", "--version", "1", "--json")
    as_csv, as_json = (labelling.read("-", body.encode()) for body in (csv, whole))
    assert labelling.label(as_json, "Ann")[0].already == 12
    cross = labelling.read("found.json", whole.encode(), "cross")
    for verb, wishes in (("label", cross), ("dismiss", as_csv), ("remove", as_json),
                         ("restore", as_csv)):  # fmt: skip
        done, followed = getattr(labelling, verb)(wishes, "Ann")
        assert (done.changed, done.already, followed.waiting) == (12, 0, ())
    offered = [(one.offered, one.predicted) for one in acts(database) if one.act == "dismiss"]
    assert sorted(offered) == [("=okapi", "=okapi"), *[("ring", "ring")] * 11]


def test_a_bar_comes_where_there_is_much_to_move(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """Moves tell how far they are; on a terminal that is a bar with its rate, gone at the end."""
    told: list[tuple[int, int]] = []
    labelling.remove([wish(*one) for one in found.items()], "Ann",
                     advance=lambda done, whole: told.append((done, whole)))  # fmt: skip
    assert told == [(done, 12) for done in range(1, 13)]
    code = """
from tasks.bar import late_bar
with late_bar("removed", patience={}) as advance:
    for done in range(1, 13):
        advance(done, 12)
"""
    [(_, shown), (_, nothing)] = [on_a_terminal("-c", code.format(each)) for each in (0, 60)]
    assert all(part in shown for part in ("removed", "/12", "/s"))
    assert nothing == ""


def on_a_terminal(*words: str, answer: bytes = b"") -> tuple[int, str]:
    """Run Python at a terminal; its exit code, and what that shows."""
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    done = subprocess.run(
        [sys.executable, *words],
        stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, check=False, timeout=120,
        env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.write(theirs, b".")  # or there might be nothing to read
    os.close(theirs)
    told = os.read(ours, 100_000).decode()
    os.close(ours)
    return done.returncode, told.removesuffix(".")


def test_a_new_class_is_asked_for_once(
    database: Database, storage: Storage, found: dict[str, str]
) -> None:
    """On a terminal: no leaves all as it was, yes makes it, and it is known from then on."""

    def asked(digest: str, answer: bytes) -> tuple[int, str]:
        words = ("-m", "flows.cli", "label", "okapi", digest, "--by", "Ann")
        return on_a_terminal(*words, answer=answer)

    code, told = asked(found["0.png"], b"n\n")
    assert code == 1
    assert "Make okapi?" in told
    assert acts(database) == []
    assert asked(found["0.png"], b"y\n")[0] == 0
    code, told = asked(found["1.png"], b"")
    assert (code, "Make" in told) == (0, False)
    with database.transaction() as session:
        [made] = classes.acts(session)
    assert (made.act, made.name, made.done_by) == ("make", "okapi", "Ann")
    with pytest.raises(UnknownClass) as caught:
        labelling.label([wish("a", found["2.png"], "okapis")], "Ann")
    assert caught.value.names == ("okapis",)
    assert "is 'okapi' meant?" in str(caught.value)


