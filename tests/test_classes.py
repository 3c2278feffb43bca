"""Renaming, merging and splitting classes: what was stays, and what comes knows better."""

import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import intakes
import numpy as np
import pytest
import worlds
from intakes import csv, label, picture, put, query, remove, take_in
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from worlds import Story

from flows.cli import screens
from flows.nightly import nightly
from infra.database import Busy, Database, run_lock
from infra.embedded import Addresses
from infra.storage import Storage
from records import classes, deployments, flips, library, objects, snapshots, versions
from records.classes import BadClass, UnknownClass, as_known_to, renamed
from records.invariants import check_invariants
from records.labels import BadLabels
from tasks import benchmark, checkpoints, labelling, snapshot
from tasks.evaluation import evaluate_again
from tasks.promotion import repeat
from vision.answers import Answers

PAGE = Path(__file__).resolve().parent.parent / "docs" / "classes.md"
CLASSES = ("antelope", "lion", "lioness")


@pytest.fixture
def zoo(database: Database, storage: Storage) -> Database:
    """Have three classes of eight images each in the library."""
    for number, name in enumerate(CLASSES):
        for seed in range(8):
            put(storage, f"labelled/{name}/{seed}.png", picture(100 * number + seed))
    take_in(database)
    return database


def freeze(database: Database, cutoff: int = 4) -> str:
    """Freeze a snapshot, as a night does."""
    run_id = intakes.begin(database)
    digest = snapshot.freeze_snapshot.fn(run_id, replace(intakes.PLAN, cutoff=cutoff))
    with database.transaction() as session:
        intakes.runs.close(session, run_id, "completed", None)
    return digest


def act(database: Database, verb: str, *words: str, by: str = "Ann") -> int:
    """Rename or merge."""
    with database.transaction() as session:
        done: int = getattr(classes, verb)(session, *words, by, "a test")
    return done


def sizes(database: Database) -> dict[str, int]:
    """How many usable images each class has."""
    with database.transaction() as session:
        return {one.name: one.usable for one in library.classes(session)}


def splits(database: Database) -> dict[str, tuple[str, str]]:
    """Split and group of every image."""
    rows = query(database, "SELECT sha256, split, group_name FROM images")
    return {row.sha256: (row.split, row.group_name) for row in rows}


def changes(database: Database) -> list[tuple[str, str, str, int]]:
    """Kinds of label changes, from and to which class, and how many images."""
    rows = query(
        database,
        """
        SELECT kind, from_class, to_class, count(DISTINCT sha256) FROM label_changes
        GROUP BY 1, 2, 3 HAVING count(*) = count(DISTINCT sha256) ORDER BY 1, 2, 3
        """,
    )
    return [tuple(row) for row in rows]


def test_a_renamed_class_is_in_the_next_snapshot_and_not_in_the_last(
    zoo: Database, storage: Storage
) -> None:
    """Old snapshots stay as they are; folders and manifests with the old name mean the class."""
    before = freeze(zoo)
    listed, kept = snapshot.read(before), splits(zoo)
    assert act(zoo, "rename", "antelope", "impala") == 8
    after = freeze(zoo)
    assert after != before
    assert snapshot.read(after).class_names == ["impala", "lion", "lioness"]
    assert snapshot.read(before) == listed
    with zoo.transaction() as session:
        assert "antelope" in snapshots.class_names(session, before)
    act(zoo, "rename", "impala", "antelope")
    assert freeze(zoo) == before
    act(zoo, "rename", "antelope", "impala")
    assert freeze(zoo) == after
    put(storage, "labelled/antelope/8.png", picture(8))
    put(storage, "labelled/antelope/9.png", picture(9))
    put(storage, "labelled/antelope/10.png", picture(10))
    rows = [("labelled/antelope/9.png", "antelope"), ("labelled/antelope/10.png", "impala"),
            ("labelled/antelope/0.png", "antelope")]  # fmt: skip
    put(storage, "manifests/1.csv", csv(rows))
    taken = take_in(zoo).checked
    assert taken is not None
    assert (taken.accepted, taken.quarantined) == (3, 0)
    assert sizes(zoo) == {"impala": 11, "lion": 8, "lioness": 8}
    assert splits(zoo).items() >= kept.items()
    assert changes(zoo) == []
    put(storage, "labelled/Antelope/1.png", picture(11))
    take_in(zoo)
    assert "'Antelope' is 'impala' spelt another way" in (
        intakes.reasons(zoo, "labelled/Antelope/1.png")["label_spelt"]
    )
    check_invariants(zoo, storage)


def test_names_are_logged_point_one_step_and_are_never_anothers(
    zoo: Database, storage: Storage
) -> None:
    """Renamed twice and back, done twice: each act once, each name means one class for ever."""
    act(zoo, "rename", "antelope", "impala")
    act(zoo, "rename", "impala", "gazelle", by="Zoë")
    assert act(zoo, "rename", "impala", "gazelle", by="Zoë") == 0
    with zoo.transaction() as session:
        assert classes.today(session) == {"antelope": "gazelle", "impala": "gazelle"}
        told = {one.name: one for one in classes.listed(session)}
    assert (told["antelope"].became, told["antelope"].act) == ("gazelle", "rename")
    assert (told["gazelle"].by, told["gazelle"].usable) == ("Zoë", 8)
    act(zoo, "rename", "gazelle", "antelope")
    assert act(zoo, "rename", "gazelle", "antelope") == 0
    with zoo.transaction() as session:
        assert classes.today(session) == {"gazelle": "antelope", "impala": "antelope"}
        log = [(one.name, one.to_name, one.done_by) for one in classes.acts(session)]
    assert log == [("gazelle", "antelope", "Ann"), ("impala", "gazelle", "Zoë"),
                   ("antelope", "impala", "Ann")]  # fmt: skip
    for words, says in (
        (("okapi", "x"), "'okapi' is no class: `regraft class list`"),
        (("lion", "lioness"), "is a class already: `regraft class merge`"),
        (("lion", "impala"), "'impala' was a name of 'antelope' and stays its"),
        (("lion", "Lioness"), "'Lioness' is 'lioness' spelt another way"),
        (("impala", "kudu"), "'impala' is called 'antelope' today"),
        (("lion", "big/cat"), "holds a slash"),
        (("lion", " "), "a class needs a name"),
        (("lions", "x"), "is 'lion' meant?"),
    ):
        with pytest.raises(BadClass) as caught:
            act(zoo, "rename", *words)
        assert says in str(caught.value)
    with pytest.raises(BadClass, match="nobody's name"):
        act(zoo, "rename", "lion", "cat", by="version:3")
    act(zoo, "rename", "lion", "Lion")
    with zoo.transaction() as session:
        assert classes.today(session)["lion"] == "Lion"


def test_merged_classes_are_one_and_their_splits_stay(zoo: Database, storage: Storage) -> None:
    """Keys and manifests of both names bring images of the one; splits, groups, objects and old
    snapshots stay; what was merged comes apart again under a new name.
    """
    before, old = splits(zoo), freeze(zoo)
    there, listed = list(storage.list(objects.LABELLED)), snapshot.read(old)
    act(zoo, "rename", "lioness", "lion-female")
    assert act(zoo, "merge", "lion-female", "lion") == 8
    assert act(zoo, "merge", "lion-female", "lion") == 0
    assert sizes(zoo) == {"antelope": 8, "lion": 16}
    assert splits(zoo) == before
    assert list(storage.list(objects.LABELLED)) == there
    assert snapshot.read(old) == listed
    put(storage, "labelled/lioness/8.png", picture(208))
    put(storage, "labelled/lion-female/9.png", picture(209))
    put(storage, "labelled/loose.png", picture(210))
    put(storage, "manifests/1.csv", csv([("labelled/loose.png", "lioness")]))
    take_in(zoo)
    assert sizes(zoo)["lion"] == 19
    assert snapshot.read(freeze(zoo)).class_names == ["antelope", "lion"]
    assert changes(zoo) == [("relabelled", "lion-female", "lion", 8)]
    with zoo.transaction() as session:
        assert classes.today(session) == {"lioness": "lion", "lion-female": "lion"}
    with pytest.raises(BadClass, match="are one class already"):
        act(zoo, "merge", "lion", "lion")
    again = [f"labelled/lioness/{seed}.png" for seed in range(9)]
    for name in ("lioness", "queen"):
        wishes = labelling.named(again, name)
        if name == "lioness":
            with pytest.raises(BadClass, match="'lioness' is called 'lion' today: a part needs a"):
                labelling.split("lion", wishes, "Ann", "two after all", [name])
        else:
            labelling.split("lion", wishes, "Ann", "two after all", [name])
    assert sizes(zoo) == {"antelope": 8, "lion": 10, "queen": 9}
    assert splits(zoo).items() >= before.items()
    check_invariants(zoo, storage)


def test_copies_with_two_labels_wait_after_a_merge(zoo: Database, storage: Storage) -> None:
    """They were refused and stay so, until a person says once more what they are."""
    keys = [f"labelled/{name}/copy.png" for name in ("lion", "lioness")]
    for key in keys:
        put(storage, key, picture(999))
    take_in(zoo)
    assert [intakes.state(zoo, key) for key in keys] == ["quarantined"] * 2
    act(zoo, "merge", "lioness", "lion")
    take_in(zoo)
    assert [intakes.state(zoo, key) for key in keys] == ["quarantined"] * 2
    put(storage, "manifests/1.csv", csv([(key, "lion") for key in keys]))
    take_in(zoo)
    assert [intakes.state(zoo, key) for key in keys] == ["accepted"] * 2
    assert sizes(zoo)["lion"] == 17
    check_invariants(zoo, storage)


def test_a_split_moves_what_is_named_and_no_more(zoo: Database, storage: Storage) -> None:
    """What is named goes, whoever had labelled it how, also when its object comes back later."""
    put(storage, "labelled/loose.png", picture(8))
    put(storage, "manifests/1.csv", csv([("labelled/loose.png", "antelope")]))
    take_in(zoo)
    before, old = splits(zoo), freeze(zoo)
    listed = snapshot.read(old)
    keys = [f"labelled/antelope/{seed}.png" for seed in range(8)]
    moved = [key for key in keys if (label(zoo, key) or ("",))[-1] == "train"][:3]
    rows = [(key, "gazelle") for key in [*moved, "labelled/loose.png"]]
    rows += [(key, "antelope") for key in keys if key not in moved][:1]
    wishes = labelling.read("parts.csv", csv(rows))
    with pytest.raises(UnknownClass, match="'gazelle' is no class"):
        labelling.split("antelope", wishes, "Ann", "two animals")
    assert sizes(zoo)["antelope"] == 9
    counts = labelling.split("antelope", wishes, "Ann", "two animals", ["gazelle"])
    assert counts == {"antelope": 0, "gazelle": 4}
    assert sizes(zoo) == {"antelope": 5, "gazelle": 4, "lion": 8, "lioness": 8}
    again = labelling.split("antelope", wishes, "Ann", "two animals")
    assert again == {"antelope": 0, "gazelle": 0}
    assert splits(zoo) == before
    assert changes(zoo) == [("relabelled", "antelope", "gazelle", 4)]
    assert snapshot.read(freeze(zoo, 5)).class_names == ["antelope", "lion", "lioness"]
    # Splits stay, so that a part of training images waits for newcomers of its own to validate it.
    assert snapshot.read(freeze(zoo, 4)).class_names == ["antelope", "lion", "lioness"]
    for seed in (301, 302):
        put(storage, f"labelled/gazelle/{seed}.png", picture(seed))
    take_in(zoo)
    assert snapshot.read(freeze(zoo, 4)).class_names == ["antelope", "gazelle", "lion", "lioness"]
    assert snapshot.read(old) == listed
    for key in ("labelled/loose.png", moved[0]):
        body = storage.read(key)
        remove(storage, key)
        take_in(zoo)
        assert label(zoo, key) is None
        put(storage, key, body)
        take_in(zoo)
        assert label(zoo, key) is not None
        assert (label(zoo, key) or ("",))[0] == "gazelle"
    put(storage, "labelled/antelope/new.png", picture(9))
    take_in(zoo)
    assert (label(zoo, "labelled/antelope/new.png") or ("",))[0] == "antelope"
    with zoo.transaction() as session:
        acts = [(one.act, one.name, one.to_name, one.images) for one in classes.acts(session)]
    assert acts == [("split", "antelope", "gazelle", 4), ("make", "gazelle", None, 0)]
    assert act(zoo, "merge", "gazelle", "antelope") == 6
    assert sizes(zoo) == {"antelope": 12, "lion": 8, "lioness": 8}
    check_invariants(zoo, storage)


def test_a_split_that_names_strangers_does_nothing(zoo: Database, storage: Storage) -> None:
    """Images of another class, of the benchmark or of nowhere: one line, and nothing moves."""
    put(storage, "benchmark/lion/1.png", picture(900))
    benchmark.freeze("a test", "first")
    frozen = sha256(picture(900)).hexdigest()
    good = ("labelled/antelope/0.png", "gazelle")
    for rows, header, says in (
        ([good, ("labelled/lion/0.png", "gazelle")], "key,label", "is 'lion' and not 'antelope'"),
        ([good, ("labelled/antelope/77.png", "gazelle")], "key,label", "names 0 images"),
        ([(frozen, "gazelle")], "sha256,label", "names 0 images of the library"),
        ([good, ("labelled/antelope/0.png", "kudu")], "key,label", "a second label: keep one"),
        ([(good[0], "")], "key,label", "row 2 has no label"),
    ):
        wishes = labelling.read("parts.csv", csv(rows, header))
        with pytest.raises((BadClass, BadLabels)) as caught:
            labelling.split("antelope", wishes, "Ann", "x", ["gazelle", "kudu"])
        assert says in str(caught.value)
    with zoo.transaction() as session, pytest.raises(BadClass, match="in the benchmark, where"):
        classes.split(session, "antelope", {frozen: "lion"}, "Ann", "x")
    assert sizes(zoo) == dict.fromkeys(CLASSES, 8)


def test_names_hold_still_while_a_run_goes_on(zoo: Database) -> None:
    """A night that has read its names finds them again at its end."""
    with run_lock(zoo), pytest.raises(Busy, match="regraft-night process"):
        act(zoo, "rename", "antelope", "impala")
    assert act(zoo, "rename", "antelope", "impala") == 8


def test_the_database_keeps_pointers_straight(zoo: Database) -> None:
    """No image of a class that is none any more, no chain, and no act that is rewritten."""
    act(zoo, "rename", "antelope", "impala")
    for statement, says in (
        ("UPDATE images SET class_id = (SELECT id FROM classes WHERE name = 'antelope')",
         "class antelope became another one"),
        ("UPDATE classes SET became_id = (SELECT id FROM classes WHERE name = 'antelope') "
         "WHERE name = 'lion'", "points to a name that is no class any more"),
        ("UPDATE classes SET became_id = (SELECT id FROM classes WHERE name = 'lion') "
         "WHERE name = 'lioness'", "class lioness still has images"),
        ("UPDATE classes SET became_id = id", "became_another"),
        ("DELETE FROM class_acts", "written once"),
        ("INSERT INTO class_acts (act, name, images, done_by) VALUES ('make', 'x', 0, 'model:x')",
         "done_by_person"),
    ):  # fmt: skip
        with pytest.raises(DBAPIError, match=says), zoo.transaction() as session:
            session.execute(text(statement))


# --- what versions make of it ---------------------------------------------------------------


def test_labels_find_the_names_that_a_version_knows() -> None:
    """A version is asked and answers in the words of its day."""
    today = {"antelope": "impala", "lioness": "lion", "puma": "cougar", "panther": "cougar"}
    old = ["antelope", "lion", "lioness", "puma"]
    asked = ["antelope", "impala", "lion", "lioness", "cougar", "panther", "okapi"]
    known = ["antelope", "antelope", "lion", "lioness", "puma", "puma", "okapi"]
    assert as_known_to(old, asked, today) == known
    new = ["cougar", "impala", "lion"]
    known = ["impala", "impala", "lion", "lion", "cougar", "cougar", "okapi"]
    assert as_known_to(new, asked, today) == known
    assert renamed(old, today) == ("impala", "lion", "lioness", "cougar")
    assert renamed(["panther", "puma"], today) == ("cougar", "puma")


def test_answers_of_merged_classes_add_up() -> None:
    """What was divided between two names is one answer; a label nobody knew is known by now."""
    answers = Answers(
        images=("a", "b", "c"),
        labels=("lioness", "zebra", "cat"),
        class_names=("lion", "lioness", "zebra", "gnu"),
        top=np.array([[2, 0, 1], [2, 1, 3], [0, 2, 3]]),
        confidences=np.array([[0.4, 0.3, 0.25], [0.5, 0.3, 0.1], [0.6, 0.3, 0.1]]),
        label_confidence=np.array([0.25, 0.5, 0.0]),
    )
    assert answers.renamed({"puma": "cougar"}) is answers
    now = answers.renamed({"lioness": "lion", "cat": "lion"})
    assert now.class_names == ("lion", "zebra", "gnu")
    assert now.labels == ("lion", "zebra", "lion")
    assert now.predicted == ("lion", "zebra", "lion")
    assert now.top.shape == (3, 2)
    assert now.confidences[0] == pytest.approx([0.55, 0.4])
    assert now.label_confidence == pytest.approx([0.55, 0.5, 0.6])
    assert now.correct.tolist() == [True, True, True]
    other = answers.renamed({"zebra": "quagga"})
    assert other.predicted == ("quagga", "quagga", "lion")
    assert (other.top == answers.top).all()


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


PARTED = """
    SELECT sha256 FROM (
        SELECT i.sha256, row_number() OVER (ORDER BY i.split, i.sha256) AS place
        FROM images i JOIN classes c ON c.id = i.class_id WHERE c.name = 'square') one
    WHERE place % 3 = 0
"""


def test_a_night_after_renaming_merging_and_splitting(story: Story) -> None:
    """What is renamed keeps its row of the head and is compared on, the part of a split is new;
    history keeps old names.
    """
    with worlds.twin(story.done) as world:
        with world.transaction() as session:
            champion = deployments.champion(session)
            assert champion is not None
            old = versions.get(session, champion.version_id)
            assert old.class_names == ["circle", "cross", "ring", "square"]
            classes.rename(session, "circle", "disc", "Ann", "another word")
            classes.merge(session, "ring", "disc", "Ann", "both are round")
            boxes = dict.fromkeys(session.scalars(text(PARTED)), "box")
            classes.split(session, "square", boxes, "Ann", "two kinds", ["box"])
        plan = replace(worlds.SECOND_PLAN, recipe="inherit")
        outcome = nightly(plan=plan, limits=worlds.LIMITS)
        number = outcome.version_id
        assert number is not None, outcome
        with world.transaction() as session:
            new = versions.get(session, number)
            assert new.class_names == ["box", "cross", "disc", "square"]
            assert new.resolved is not None
            assert new.resolved["kept_classes"] == ["cross", "disc", "square"]
            verdict = deployments.verdict(session, number)
            assert verdict is not None
            checks = {one.name: one for one in deployments.checks(session, verdict.id)}
            turned = flips.of_verdict(session, verdict)
            again = versions.get(session, old.id)
        # Three are shared: nothing is lost, and what was split off has to prove itself.
        images = world.ask("SELECT images FROM benchmarks ORDER BY version DESC LIMIT 1")
        assert [(checks["no worse"].numbers["images"],)] == images
        assert checks["lost classes"].verdict == "passed", checks["lost classes"].sentence
        assert checks["unproven classes"].verdict == "failed"
        assert "box" in checks["unproven classes"].sentence
        assert {one.label for one in turned} <= {"cross", "disc", "square"}
        assert (again.class_names, again.checkpoint_digest) == (
            old.class_names, old.checkpoint_digest
        )  # fmt: skip
        said = """
            SELECT DISTINCT label FROM answers a JOIN evaluations e ON e.id = a.evaluation_id
            WHERE e.version_id = :version AND e.subject = 'benchmark' ORDER BY label
        """
        assert world.ask(said, version=number) == [("cross",), ("disc",), ("square",)]
        assert [name for (name,) in world.ask(said, version=old.id)] == old.class_names
        facts = screens.version_facts(old.id)
        assert facts["called_today"] == {"circle": "disc", "ring": "disc"}
        [sql] = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
        assert [name for name, *_ in sorted(world.ask(sql))] == ["box", "cross", "disc", "square"]
        world.check()
        # The version of before can still be evaluated, and repeats what it said.
        evaluate_again(old.id, 0.95, "Ann")
        repeated = repeat(old.id)
        assert repeated is not None
        assert repeated.apart < 1e-3
        assert list(checkpoints.load(old.id).class_names) == old.class_names
        world.check()
