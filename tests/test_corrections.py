"""Images of the library are removed, relabelled and kept by people, and all of it is undone."""

import intakes
import numpy as np
import pytest
import reviewed
from intakes import csv, label, picture, put, query, reasons, state, take_in
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from test_classes import changes, freeze, sizes, splits
from test_labels import in_pool, wish

from infra.database import Database
from infra.storage import Storage
from records import batches, corrections, evaluations, queues, reviews
from records.batches import Accepted
from records.classes import UnknownClass
from records.corrections import BadCorrection
from records.invariants import broken_rows, check_invariants
from records.labels import Done
from tasks import benchmark, labelling, snapshot
from tasks.intake import take_in_new_images
from vision.answers import Answers
from vision.scores import score


@pytest.fixture
def zoo(database: Database, storage: Storage) -> Database:
    """Have thirteen antelopes and lions in the library: two of each to validate and to test on."""
    for number, name in enumerate(("antelope", "lion")):
        for seed in range(13):
            put(storage, f"labelled/{name}/{seed}.png", picture(100 * number + seed))
    take_in(database)
    return database


def do(database: Database, act: str, *words: object, **more: object) -> Done:
    """One act, by Ann."""
    with database.transaction() as session:
        done: Done = getattr(corrections, act)(session, *words, "Ann", "a test", **more)
    return done


def digest_of(database: Database, key: str) -> str:
    """The image that lies under a key."""
    found: str = query(database, "SELECT sha256 FROM objects WHERE key = :key", key=key)[0].sha256
    return found


def acts(database: Database) -> list[tuple[str, str | None, str | None]]:
    """What was done, the newest first."""
    with database.transaction() as session:
        return [(one.act, one.from_class, one.to_class) for one in corrections.acts(session)]


def test_a_removed_image_is_in_no_later_snapshot_until_it_is_restored(
    zoo: Database, storage: Storage
) -> None:
    """Nor by a copy, nor by deleting and putting it back; the snapshots of before stay."""
    before, kept = freeze(zoo), splits(zoo)
    listed = snapshot.read(before)
    key, body = "labelled/lion/3.png", storage.read("labelled/lion/3.png")
    digest = digest_of(zoo, key)
    assert do(zoo, "remove", [key, digest[:12]]) == Done(1, 0, 1)
    assert do(zoo, "remove", [digest]) == Done(0, 1)
    after = freeze(zoo)
    assert digest not in {one for some in snapshot.read(after).images.values() for one in some}
    assert reasons(zoo, key) == {"removed": "Ann removed the image: a test"}
    storage.delete(key)
    take_in(zoo)
    put(storage, key, body)
    put(storage, "labelled/lion/copy.png", body)
    taken = take_in(zoo).checked
    assert taken is not None
    assert (taken.accepted, taken.quarantined) == (0, 1)
    assert "Ann removed it on" in reasons(zoo, "labelled/lion/copy.png")["not_removed"]
    assert freeze(zoo) == after
    check_invariants(zoo, storage)
    assert do(zoo, "restore", [digest]) == Done(1, 0)
    assert do(zoo, "restore", [digest]) == Done(0, 1)
    assert freeze(zoo) == before
    take_in(zoo)
    assert state(zoo, "labelled/lion/copy.png") == "accepted"
    assert (freeze(zoo), splits(zoo), snapshot.read(before)) == (before, kept, listed)
    with zoo.transaction() as session:
        first = corrections.acts(session)[-1]
        corrections.undo(session, first.id + 1, "Zoë", "it was right")
    assert freeze(zoo) == after
    assert [one[0] for one in acts(zoo)] == ["remove", "restore", "remove"]
    with pytest.raises(DBAPIError, match="written once"), zoo.transaction() as session:
        session.execute(text("UPDATE image_acts SET done_by = 'Zoë'"))
    check_invariants(zoo, storage)


def test_what_somebody_did_again_is_not_undone_by_the_act_of_before(zoo: Database) -> None:
    """Ann's act was undone and Zoë did it again: undoing Ann's does not speak over Zoë's word."""
    key = "labelled/lion/3.png"
    for does, undoes in (
        (("remove", [key]), ("restore", [key])),
        (("keep", [key]), ("drop", [key])),
        (("relabel", [key], "antelope"), ("relabel", [key], "lion")),
    ):
        do(zoo, *does)
        with zoo.transaction() as session:
            first = corrections.acts(session)[0].id
        do(zoo, *undoes)
        assert do(zoo, "undo", first) == Done(0, 1)
        do(zoo, *does)
        with pytest.raises(BadCorrection, match=f"act {first + 2} by Ann has done it again"):
            do(zoo, "undo", first)
        assert do(zoo, "undo", first + 2) == Done(1, 0)


ONE_OF_EACH_SPLIT = """
    SELECT DISTINCT ON (i.split) o.key FROM objects o JOIN images i USING (sha256)
    WHERE o.key LIKE 'labelled/lion/%' ORDER BY i.split, o.key
"""


def test_a_relabelled_image_trains_as_what_it_is(zoo: Database, storage: Storage) -> None:
    """In the same split; its key and its manifest say so too when they are read again."""
    before, kept = freeze(zoo), splits(zoo)
    listed = snapshot.read(before)
    keys = [row.key for row in query(zoo, ONE_OF_EACH_SPLIT)]
    put(storage, "manifests/1.csv", csv([(keys[0], "lion")]))
    take_in(zoo)
    with pytest.raises(UnknownClass, match="'okapi' is no class"):
        do(zoo, "relabel", keys, "okapi")
    done = do(zoo, "relabel", keys, "okapi", new_classes=["okapi"])
    assert (done.changed, done.made) == (3, ("okapi",))
    assert do(zoo, "relabel", keys, "okapi") == Done(0, 3)
    assert sizes(zoo) == {"antelope": 13, "lion": 10, "okapi": 3}
    assert (splits(zoo), snapshot.read(before)) == (kept, listed)
    assert changes(zoo) == [("relabelled", "lion", "okapi", 3)]
    after = snapshot.read(freeze(zoo, cutoff=3))
    assert [after.labels[split].count("okapi") for split in after.labels] == [1, 1, 1]
    body = storage.read(keys[0])
    storage.delete(keys[0])
    take_in(zoo)
    put(storage, keys[0], body)
    put(storage, "labelled/okapi/copy.png", storage.read(keys[1]))
    take_in(zoo)
    assert [label(zoo, key) for key in keys] == [
        ("okapi", "", kept[digest_of(zoo, key)][0]) for key in keys
    ]
    check_invariants(zoo, storage)
    with zoo.transaction() as session:
        for one in corrections.acts(session):
            corrections.undo(session, one.id, "Zoë", "it was a lion")
    assert sizes(zoo) == {"antelope": 13, "lion": 13}
    assert freeze(zoo) == before
    check_invariants(zoo, storage)


def test_the_benchmark_and_what_is_no_image_are_refused(zoo: Database, storage: Storage) -> None:
    """One line names them and the mend, and nothing is done to the others either."""
    put(storage, "benchmark/lion/1.png", picture(500))
    benchmark.freeze("a test", "first")
    frozen = query(zoo, "SELECT sha256 FROM benchmark_images")[0].sha256
    good = "labelled/lion/1.png"
    for act, words, says in (
        ("relabel", ([good, frozen], "antelope"), "nothing is changed in place: `regraft benchmar"),
        ("remove", ([good, "benchmark/lion/1.png"],), "is in the benchmark"),
        ("keep", ([frozen],), "is in the benchmark"),
        ("remove", ([good, "labelled/lion/99.png"],), "names no image of the library"),
        ("remove", ([good, "a\0b"],), "holds a NUL character"),
        ("undo", (99,), "there is no act 99"),
    ):
        with pytest.raises(BadCorrection, match=says):
            do(zoo, act, *words)
    for by, why, says in (("model:1", "x", "nobody's name"), ("Ann", " ", "say why")):
        with pytest.raises(BadCorrection, match=says), zoo.transaction() as session:
            corrections.remove(session, [good], by, why)
    do(zoo, "remove", [good])
    for act, words in (("relabel", ([good], "antelope")), ("keep", ([good],))):
        with pytest.raises(BadCorrection, match=r"is out of use \(removed\)"):
            do(zoo, act, *words)
    with zoo.transaction() as session:
        batches.revert_batch(session, 1, "Ann", "all wrong")
    with pytest.raises(BadCorrection, match="came with a batch that was reverted"):
        do(zoo, "restore", [good])
    with pytest.raises(BadCorrection, match=r"out of use already \(batch reverted\)"):
        do(zoo, "remove", ["labelled/lion/2.png"])
    assert [one[0] for one in acts(zoo)] == ["remove"]
    check_invariants(zoo, storage)


def test_an_image_removed_while_its_copy_is_judged_does_not_come_back(
    zoo: Database, storage: Storage
) -> None:
    """The copy waits, and the next intake refuses it with the reason."""
    copy = "labelled/lion/copy.png"
    put(storage, copy, storage.read("labelled/lion/1.png"))
    run_id = intakes.begin(zoo)
    batch_id = take_in_new_images.fn(run_id, intakes.PLAN).batch_id
    assert batch_id is not None
    with zoo.transaction() as session:
        (row,) = batches.frame_rows(session, batch_id)
    do(zoo, "remove", ["labelled/lion/1.png"])
    passed = Accepted(
        row["object_id"], row["sha256"], "lion", "", "real", None, "person:a test", row["facts"]
    )
    with zoo.transaction() as session:
        batches.accept_batch(session, run_id, batch_id, [passed])
        intakes.runs.close(session, run_id, "completed", None)
    assert (state(zoo, copy), reasons(zoo, copy)) == ("pending", {})
    take_in(zoo)
    assert set(reasons(zoo, copy)) == {"not_removed"}
    assert sizes(zoo)["lion"] == 12
    check_invariants(zoo, storage)


def test_a_picture_of_a_pool_is_corrected_by_the_same_acts(
    zoo: Database, storage: Storage
) -> None:
    """Its label of the pool says the same from then on, and can be given again, or taken back."""
    found = in_pool(zoo, storage, {"a.png": picture(700)})["a.png"]
    labelling.label([wish("a", found, "lion")], "Ann")
    take_in(zoo)
    key = f"labelled/lion/{found}.png"
    do(zoo, "relabel", [found], "antelope")
    assert sizes(zoo)["antelope"] == 14
    storage.delete("pools/gate/a.png")  # its copy is enough
    assert labelling.follow().waiting == ()
    take_in(zoo)
    assert label(zoo, key.replace("lion", "antelope")) == ("antelope", "", "train")
    assert not storage.exists(key)
    assert labelling.label([wish("a", found, "antelope")], "Ann")[0].already == 1
    storage.write("pools/gate/a.png", picture(700))
    do(zoo, "remove", [found])
    take_in(zoo)
    assert sizes(zoo) == {"antelope": 13, "lion": 13}
    labelling.dismiss([wish("a", found)], "Ann")
    with pytest.raises(BadCorrection, match="nobody's label of it stands: `regraft label` it"):
        do(zoo, "restore", [found])
    take_in(zoo)
    labelling.label([wish("a", found, "lion")], "Ann")
    do(zoo, "restore", [found])
    take_in(zoo)
    assert label(zoo, key) == ("lion", "", "train")
    check_invariants(zoo, storage)


# --- right after training -------------------------------------------------------------------


def evaluated(database: Database, storage: Storage) -> list[str]:
    """Have version 1 evaluated: six crosses and rings, of which it has some wrong or nearly so."""
    reviewed.library(database, storage, images=3)
    keys = [f"labelled/{name}/{seed}.png" for name in ("cross", "ring") for seed in range(3)]
    images = [digest_of(database, key) for key in keys]
    own = np.array([0.99, 0.55, 0.02, 0.97, 0.4, 0.8], dtype=np.float32)
    right = own > 0.5
    place = np.array([0, 0, 0, 1, 1, 1])
    first = np.where(right, place, 1 - place)
    told = Answers(
        images=tuple(images),
        labels=("cross",) * 3 + ("ring",) * 3,
        class_names=("cross", "ring"),
        top=np.stack([first, 1 - first], axis=1),
        confidences=np.sort(np.stack([own, 1 - own], axis=1), axis=1)[:, ::-1],
        label_confidence=own,
    )
    with database.transaction() as session:
        digest = session.scalar(text("SELECT checkpoint_digest FROM versions"))
        evaluations.record(session, 1, digest, "test", told, score(told), {})
    return images


def test_right_after_training_only_what_is_wrong_or_doubtful_is_looked_at(
    database: Database, storage: Storage
) -> None:
    """The worst first; what somebody has dealt with is out of the way until it is asked for."""
    images = evaluated(database, storage)

    def worst(**asked: object) -> list[int]:
        with database.transaction() as session:
            return [images.index(one.sha256) for one in queues.evaluated(session, 1, **asked)]

    assert worst() == [2, 4, 1]
    assert worst(everything=True) == [2, 4, 1, 5, 3, 0]
    assert worst(class_name="cross") == [2, 1]
    assert worst(subject="benchmark") == []
    assert worst(most=1, skip=1) == [4]
    with database.transaction() as session:
        first = queues.evaluated(session, 1)[0]
    assert (first.label, first.predicted, first.correct) == ("cross", "ring", False)
    assert first.mistakenness == pytest.approx((1 + 0.98 - 0.02) / 2)
    assert first.key == "labelled/cross/2.png"
    do(database, "relabel", [images[2]], "ring", version=1)
    do(database, "keep", [images[4]], version=1)
    with database.transaction() as session:
        reviews.say(session, reviews.of_evaluation(session, 1, images[1][:12]), "Ann", "right")
    assert worst() == []
    assert worst(again=True) == [2, 4, 1]
    with database.transaction() as session:
        told = queues.evaluated(session, 1, again=True)
    assert [(one.today, one.act, one.verdict) for one in told] == [
        ("ring", "relabel", None), ("ring", "keep", None), ("cross", None, "right"),
    ]  # fmt: skip


def test_hard_cases_are_looked_at_in_every_version(database: Database, storage: Storage) -> None:
    """Kept once, dropped once; what a version answers to them stands beside."""
    images = evaluated(database, storage)
    assert do(database, "keep", [images[0], images[4]], version=1) == Done(2, 0)
    assert do(database, "keep", [images[4]]) == Done(0, 1)
    with database.transaction() as session:
        kept = corrections.hard_cases(session, 1)
        nobody = corrections.hard_cases(session)
    assert [(one.sha256, one.predicted, one.correct) for one in kept] == [
        (images[4], "cross", False), (images[0], "cross", True),
    ]  # fmt: skip
    assert {one.predicted for one in nobody} == {None}
    assert do(database, "drop", [images[0]]) == Done(1, 0)
    do(database, "remove", [images[4]])
    with database.transaction() as session:
        assert corrections.hard_cases(session, 1) == []
        assert broken_rows(session) == []


def test_a_review_outlives_the_evaluation_that_is_made_anew(
    database: Database, storage: Storage
) -> None:
    """An evaluation is replaced whole; what people said of its answers stays."""
    images = evaluated(database, storage)
    with database.transaction() as session:
        reviews.say(session, reviews.of_evaluation(session, 1, images[2]), "Ann", "wrong")
    told = Answers(("a" * 64,), ("ring",), ("cross", "ring"), [[1, 0]], [[0.9, 0.1]], [0.9])
    with database.transaction() as session:
        digest = session.scalar(text("SELECT checkpoint_digest FROM versions"))
        evaluations.record(session, 1, digest, "test", told, score(told), {})
    with database.transaction() as session:
        assert [one.sha256 for one in reviews.newest(session)] == [images[2]]
