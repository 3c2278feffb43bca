"""Reviews: what people say is kept, and only what chance chose proves how right answers are."""

import json
import random
import re
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import reviewed
from intakes import label, picture, put, query, take_in
from reviewed import transaction
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from infra.database import Database
from infra.storage import Gone, Storage
from records import evaluations, glances, queues, reviews, transactions
from records.classes import UnknownClass
from records.invariants import broken_rows
from records.queues import BadQueue, Waiting
from records.reviews import BadReview, Said, UnknownAnswer, is_blind
from tasks import labelling
from vision.answers import Answers
from vision.scores import score
from web import kept


@pytest.fixture
def library(database: Database, storage: Storage) -> Database:
    """Have twelve pictures and version 1."""
    reviewed.library(database, storage)
    return database


def waiting(
    database: Database, queue: str = "random", by: str = "Ann", most: int = 500, **asked: object
) -> list[Waiting]:
    """What waits for somebody."""
    with database.transaction() as session:
        return queues.waiting(session, queue, by, most=most, **asked)


def say(
    database: Database, transaction_id: uuid.UUID | None, by: str = "Ann", **words: object
) -> Said:
    """Say something of a transaction."""
    assert transaction_id is not None
    with database.transaction() as session:
        return reviews.say(session, reviews.of_transaction(session, transaction_id), by, **words)


def wait_for_a_lock(database: Database) -> None:
    """Until somebody waits for what another transaction has written."""
    waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
    for _ in range(600):
        if query(database, waits):
            return
        time.sleep(0.05)
    raise TimeoutError("nobody waits")


def in_use(database: Database) -> reviews.InUse:
    """What is known of accuracy in use."""
    with database.transaction() as session:
        return reviews.in_use(session, 1)


# --- the random stream ----------------------------------------------------------------------


def test_only_the_random_stream_estimates_accuracy(library: Database) -> None:
    """Planted: 1 in 4 answers is wrong, most of them doubtful ones, which were drawn more often.

    Errors found in the other queues, and among drawn ones that somebody chose, change nothing.
    """
    chance = random.Random(6)
    rows, truth = [], {}
    for number in range(1200):
        sure = chance.random() < 0.7
        share = 0.1 if sure else 0.4
        drawn = chance.random() < share
        row = transaction(number, confidence=0.9 if sure else 0.6, draw=share if drawn else None)
        truth[row.id] = chance.random() < (0.9 if sure else 0.4)
        rows.append(row)
    reviewed.serve(library, rows)
    drawn_rows = [row for row in rows if row.draw is not None]
    for one in waiting(library, "confidence", most=100):
        say(library, one.transaction_id, label="ring" if truth[one.transaction_id] else "cross",
            stream="doubt")  # fmt: skip
    wrong = [row for row in drawn_rows if not truth[row.id]]
    for row in wrong[:20]:
        say(library, row.id, verdict="wrong")
    assert in_use(library).accuracy is None
    while found := waiting(library, most=50):
        for one in found:
            say(library, one.transaction_id, label="ring" if truth[one.transaction_id] else "cross",
                stream="random")  # fmt: skip
    known = in_use(library)
    by_hand = sum(truth[row.id] / row.draw for row in drawn_rows) / sum(
        1 / row.draw for row in drawn_rows
    )
    assert known.accuracy is not None
    assert known.accuracy.share == pytest.approx(by_hand)
    assert known.accuracy.low < sum(truth.values()) / len(truth) < known.accuracy.high
    plain = sum(truth[row.id] for row in drawn_rows) / len(drawn_rows)
    assert by_hand - plain > 0.08
    assert (known.drawn, known.reviewed, known.accuracy.sampled) == (len(drawn_rows),) * 3
    assert f"by {len(drawn_rows)} of {len(drawn_rows)} drawn transactions" in known.sentence


def test_the_random_order_is_fixed_and_one_in_ten_is_asked_twice(library: Database) -> None:
    """For everybody the order of a digest, whenever it came in; a fifth hides its answer."""
    rows = [transaction(number, draw=0.5, minutes=-number) for number in range(300)]
    reviewed.serve(library, rows[150:])
    before = [one.transaction_id for one in waiting(library)]
    reviewed.serve(library, rows[:150])
    found = waiting(library)
    order = [one.transaction_id for one in found]
    assert order == sorted((row.id for row in rows), key=lambda one: sha256(one.bytes).digest())
    assert order == [one.transaction_id for one in waiting(library, by="Zoë")]
    assert before == [one for one in order if one in set(before)]
    blind = [one for one in found if one.blind]
    assert 35 <= len(blind) <= 85
    assert {(one.top_labels, one.top_confidences) for one in blind} == {(None, None)}
    assert all(one.top_labels for one in found if not one.blind)
    for one in found:
        say(library, one.transaction_id, label="ring", stream="random")
    assert waiting(library) == []
    again = waiting(library, by="Zoë")
    assert 15 <= len(again) <= 50
    for one in again:
        say(library, one.transaction_id, "Zoë", label="ring", stream="random")
    assert waiting(library, by="Zoë") == waiting(library, by="Kim") == []
    assert (in_use(library).twice, in_use(library).agreed) == (len(again), len(again))
    with pytest.raises(BadQueue, match="whoever chooses estimates nothing"):
        waiting(library, class_name="ring")


def test_nobody_picks_from_the_random_stream(library: Database) -> None:
    """What the queue offers now counts, also of two who looked at it together; nothing further on.

    Nor does what others have spoken of long ago; one's own word may be changed.
    """
    reviewed.serve(library, [transaction(number, draw=0.5) for number in range(100)])
    found = [one.transaction_id for one in waiting(library)]
    late = found[reviews.OFFERED]
    with pytest.raises(BadReview, match="say it with the queue that had shown it, or with none"):
        say(library, late, label="ring", stream="random")
    assert say(library, found[reviews.OFFERED - 1], label="ring", stream="random").fresh
    assert say(library, late, label="ring", stream="random").fresh
    assert say(library, late, label="cross", stream="random").fresh
    once = next(one for one in found[:40]
                if sha256(one.bytes).digest()[12:16] >= reviews.part(reviews.TWICE))  # fmt: skip
    say(library, once, label="ring", stream="random")
    assert say(library, once, "Zoë", label="ring", stream="random").fresh
    with library.transaction() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text("UPDATE reviews SET reviewed_at = now() - interval '2 hours'"))
    with pytest.raises(BadReview, match="is not among the first"):
        say(library, once, "Kim", label="ring", stream="random")


def test_whoever_sees_it_blind_names_it_and_anchoring_is_measured(library: Database) -> None:
    """People who say `right` to whatever they are shown are found out by those who cannot."""
    rows = [transaction(number, draw=0.5) for number in range(400)]
    reviewed.serve(library, rows)
    chance = random.Random(3)
    for one in waiting(library):
        truth = "ring" if chance.random() < 0.7 else "cross"
        if not one.blind:
            say(library, one.transaction_id, verdict="right", stream="random")
            continue
        with pytest.raises(BadReview, match="is shown blind: name what it shows by a label"):
            say(library, one.transaction_id, verdict="right", stream="random")
        done = say(library, one.transaction_id, label=truth, stream="random")
        assert (done.verdict, done.blind) == ("right" if truth == "ring" else "wrong", True)
    known = in_use(library)
    assert known.shown is not None
    assert known.blind is not None
    assert known.anchoring is not None
    assert (known.shown.share, known.shown.sampled + known.blind.sampled) == (1, 400)
    assert known.blind.low < 0.7 < known.blind.high
    assert known.anchoring.value == pytest.approx(1 - known.blind.share)
    assert known.anchoring.proven
    assert "Seeing the answer is worth +" in known.sentence


def test_what_nobody_can_tell_bounds_the_estimate(library: Database) -> None:
    """Bad images are left out; what cannot be told is right at best and wrong at worst."""
    shown = [row for row in (transaction(number, draw=0.5) for number in range(40))
             if not is_blind(row.id)][:20]  # fmt: skip
    reviewed.serve(library, shown)
    words = ["right"] * 12 + ["wrong"] * 3 + ["bad image"] * 2 + ["cannot tell"] * 3
    for row, word in zip(shown, words, strict=True):
        say(library, row.id, verdict=word, stream="random")
    known = in_use(library)
    assert known.accuracy is not None
    assert (known.bad_images, known.cannot_tell, known.accuracy.sampled) == (2, 3, 15)
    assert known.accuracy.share == pytest.approx(12 / 15)
    assert (known.at_least, known.at_most) == pytest.approx((12 / 18, 15 / 18))


# --- verdicts -------------------------------------------------------------------------------


def test_two_people_name_one_new_class_at_once(library: Database) -> None:
    """The second waits for the first and means the same class; both words stand."""
    rows = [transaction(1), transaction(2)]
    reviewed.serve(library, rows)
    with ThreadPoolExecutor(1) as other:
        with library.transaction() as session:
            answered = reviews.of_transaction(session, rows[0].id)
            reviews.say(session, answered, "Ann", label="quagga", new_classes=["quagga"])
            second = other.submit(
                say, library, rows[1].id, "Zoë", label="quagga", new_classes=["quagga"]
            )
            wait_for_a_lock(library)
        assert second.result().label == "quagga"
    made = query(library, "SELECT made_by FROM classes WHERE name = 'quagga'")
    assert [one.made_by for one in made] == ["Ann"]
    assert len(query(library, "SELECT 1 FROM class_acts WHERE act = 'make'")) == 1


def test_two_people_may_disagree_and_both_are_kept(library: Database) -> None:
    """Of each the newest word counts: the quarrel is listed until one of them comes round."""
    row, other = transaction(1), transaction(2)
    reviewed.serve(library, [row, other])
    say(library, row.id, "Ann", verdict="right")
    say(library, row.id, "Zoë", label="cross", note="a beam too many")
    say(library, other.id, "Ann", verdict="wrong")
    say(library, other.id, "Zoë", label="cross")  # says more, and nothing else
    with library.transaction() as session:
        (found,) = reviews.disagreements(session)
    assert found.transaction_id == row.id
    assert [(one.by, one.verdict, one.label) for one in found.words] == [
        ("Ann", "right", "ring"), ("Zoë", "wrong", "cross"),
    ]  # fmt: skip
    say(library, row.id, "Ann", label="cross")
    with library.transaction() as session:
        assert reviews.disagreements(session) == []
        kept_words = reviews.newest(session)
    assert len(kept_words) == 5
    with pytest.raises(DBAPIError, match="written once"), library.transaction() as session:
        session.execute(text("DELETE FROM reviews"))


def test_saying_it_twice_is_saying_it_once_and_reviews_outlive_what_they_review(
    library: Database,
) -> None:
    """Retention drops the transaction, and what was proven by it stays proven."""
    (row,) = [row for row in (transaction(number, draw=0.5) for number in range(20))
              if not is_blind(row.id)][:1]  # fmt: skip
    reviewed.serve(library, [row])
    first = say(library, row.id, verdict="right", stream="random")
    again = say(library, row.id, " Ann ", label="ring", stream="random")
    assert (first.fresh, again.fresh, again.id) == (True, False, first.id)
    assert say(library, row.id, verdict="right").fresh  # chosen, which the stream knows nothing of
    before = in_use(library).accuracy
    with library.transaction() as session:
        december = reviewed.AT.date().replace(month=12, day=1)
        transactions.retain(session, december, reviewed.AT, "Ann")
        transactions.drop(session, reviewed.AT.date())
    assert (in_use(library).reviewed, in_use(library).drawn) == (1, 1)
    assert before is not None
    assert in_use(library).accuracy == before
    with pytest.raises(UnknownAnswer, match="there is no transaction"):
        say(library, row.id, verdict="right")


def test_verdicts_that_cannot_be_are_refused(library: Database) -> None:
    """One line each, and nothing is written."""
    row = transaction(1)
    reviewed.serve(library, [row])
    for words, says in (
        ({}, "say right, wrong, bad image or cannot tell"),
        ({"verdict": "maybe"}, "verdict 'maybe' is none of"),
        ({"verdict": "right", "label": "cross"}, "right and the label 'cross' contradict"),
        ({"verdict": "wrong", "label": "ring"}, "the answer was 'ring'"),
        ({"verdict": "bad image", "label": "ring"}, "leave one out"),
        ({"verdict": "right", "stream": "random"}, "was not drawn into the random stream"),
        ({"verdict": "right", "stream": "mine"}, "stream 'mine' is none of"),
        ({"verdict": "right", "by": "version:1"}, "is nobody's name"),
        ({"verdict": "right", "by": "A\0nn"}, "is nobody's name"),
        ({"verdict": "right", "note": "\ud800"}, "the note has 1 characters"),
    ):
        with pytest.raises(BadReview, match=says):
            say(library, row.id, **({"by": "Ann"} | words))
    with pytest.raises(UnknownClass, match="'okapi' is no class of this library"):
        say(library, row.id, label="okapi")
    assert query(library, "SELECT 1 FROM reviews") == []
    assert say(library, row.id, label="okapi", new_classes=["okapi"]).verdict == "wrong"


# --- the other queues -----------------------------------------------------------------------


def test_queues_of_doubt_and_value_show_what_they_say(
    library: Database, storage: Storage
) -> None:
    """The least sure, the likeliest wrong, the scarce; nothing drawn, nothing that was reviewed."""
    put(storage, "labelled/bar/1.png", picture(1, "bar"))
    take_in(library)
    second = reviewed.version(library, ("bar", "cross", "ring"))
    names = ("bar", "cross", "ring")
    told = Answers(  # of ten rings and crosses each, version 2 knows all crosses and half the rings
        images=tuple(f"{number:064x}" for number in range(20)),
        labels=("cross",) * 15 + ("ring",) * 5,
        class_names=names,
        top=[[1, 0]] * 10 + [[2, 1]] * 10,
        confidences=[[0.8, 0.1]] * 20,
        label_confidence=[0.8] * 10 + [0.1] * 5 + [0.8] * 5,
    )
    with library.transaction() as session:
        digest = session.scalar(
            text("SELECT checkpoint_digest FROM versions WHERE id = :id"), {"id": second}
        )
        evaluations.record(session, second, digest, "test", told, score(told), {})
    rows = [
        transaction(1, "ring", 0.9, version=second),
        transaction(2, "cross", 0.7, version=second),
        transaction(3, "ring", 0.5, draw=0.5, version=second),
        transaction(4, "cross", 0.6, image_key=None, version=second),
        transaction(5, "cross", 0.95, version=second, top_labels=("cross", "bar"),
                    top_confidences=(0.8, 0.2)),
        transaction(6, "cross", 0.65, version=second),
    ]  # fmt: skip
    reviewed.serve(library, rows)
    number = {row.id: place for place, row in enumerate(rows, start=1)}

    def shown(queue: str, **asked: object) -> list[int]:
        return [number[one.transaction_id] for one in waiting(library, queue, **asked)]

    assert shown("confidence") == [6, 2, 5, 1]
    assert shown("mistaken") == [1, 6, 2, 5]  # a ring is right in 6 of 12, a cross in 11 of 12
    assert waiting(library, "mistaken", most=1)[0].why == (
        "90% sure, and ring is right in 50% of cases"
    )
    assert shown("scarce")[0] == 5
    assert waiting(library, "scarce", most=1)[0].why == "perhaps bar, of which there are 1"
    assert shown("confidence", class_name="ring") == [1]
    say(library, rows[5].id, "Zoë", verdict="right", stream="doubt")
    assert shown("confidence") == [2, 5, 1]
    with pytest.raises(BadQueue, match="queue 'doubt' is none of"):
        waiting(library, "doubt")


def test_answers_to_pools_wait_where_they_are_in_doubt(
    library: Database, storage: Storage, terminal: Callable[..., str], tmp_path: Path
) -> None:
    """What may be scarce, then where two classes are near; once anybody looked, never again.

    Nothing that the library has, that is gone, or that was served; of the newest version.
    """
    put(storage, "labelled/bar/1.png", picture(1, "bar"))
    take_in(library)
    second = reviewed.version(library, ("bar", "cross", "ring"), '{"cutoff": 2}')
    told = {
        "sure": {"ring": 0.9, "cross": 0.1}, "near": {"ring": 0.5, "cross": 0.45},
        "perhaps a bar": {"cross": 0.75, "bar": 0.2}, "unlike": {"ring": 0.4, "cross": 0.05},
        "known": {"ring": 0.3, "cross": 0.2}, "gone": {"ring": 0.3, "cross": 0.2},
        "dismissed": {"ring": 0.3, "cross": 0.2},
    }  # fmt: skip
    reviewed.identified(library, storage, 1, {name: {"cross": 0.5} for name in (*told, "older")})
    digests = reviewed.identified(library, storage, second, told)
    served = {"ring": 0.3, "cross": 0.29}
    reviewed.identified(library, storage, second, {"served": served}, transactions.IMAGES)
    with library.transaction() as session:
        for statement in (
            "UPDATE pool_images SET mark = 'library', mark_sha256 = sha256 WHERE sha256 = :known",
            "UPDATE pool_objects SET gone_at = now() WHERE sha256 = :gone",
            "INSERT INTO pool_acts (sha256, act, done_by) VALUES (:dismissed, 'dismiss', 'Ann')",
        ):
            session.execute(text(statement), digests)
    names = {digest: name for name, digest in digests.items()}

    def shown(**asked: object) -> list[str]:
        return [names[one.sha256] for one in waiting(library, "pools", **asked)]

    assert shown() == ["perhaps a bar", "near", "unlike", "sure"]
    assert shown(class_name="cross") == ["perhaps a bar"]
    assert len(waiting(library, "pools", version_id=1)) == 5  # the older one, too
    first, near, *_ = waiting(library, "pools")
    assert (first.why, near.why) == (
        "perhaps bar, of which there are 1", "ring 50% or cross 45%",
    )  # fmt: skip
    assert (near.subject, near.stream, near.version_id) == ("identification", "doubt", second)
    folder = str(tmp_path)
    printed = terminal("review", "next", "--queue", "pools", "--save", folder, "--by", "Ann")
    assert f"--of identification --version {second} --queue pools right" in printed
    assert [one.name for one in tmp_path.iterdir()] == [f"{first.sha256[:12]}.jpg"]
    said = ("review", "say", first.sha256[:12], "--of", "identification", "--queue", "pools")
    wrong = terminal(*said, "--version", str(second), "--label", "ring", "--learn", "--by", "Ann")
    assert wrong == "wrong, it is ring: kept; the next night learns it\n"
    with library.transaction() as session:
        answered = reviews.of_identification(session, 1, near.sha256)
        reviews.say(session, answered, "Zoë", "cannot tell")
        kept_words = [(one.subject, one.version_id, one.stream) for one in reviews.newest(session)]
    assert kept_words == [("identification", 1, "chosen"), ("identification", second, "doubt")]
    assert shown() == ["unlike", "sure"]
    assert len(waiting(library, "pools", version_id=1)) == 3
    assert in_use(library).reviewed == 0
    assert waiting(library, "confidence") == []


def test_the_queue_of_pools_walks_an_index(library: Database, storage: Storage) -> None:
    """Also over answers that came in just now, of which Postgres takes all to be few."""
    reviewed.identified(library, storage, 1, {str(n): {"ring": 0.5 + n / 99} for n in range(20)})
    plans: list[str] = []

    def explain(connection: Any, _: Any, statement: str, values: Any, *__: Any) -> None:
        if "FROM pool_answers" in statement and not statement.startswith("EXPLAIN"):
            rows = connection.exec_driver_sql(f"EXPLAIN {statement}", values)
            plans.append("\n".join(row[0] for row in rows))

    event.listen(library.engine, "before_cursor_execute", explain)
    assert len(waiting(library, "pools")) == 20
    [plan] = [one for one in plans if "CTE recent" in one]
    assert re.search(r"Index (Only )?Scan Backward using ix_pool_answers_confidence", plan), plan


def test_what_retention_took_the_picture_of_is_offered_no_more(library: Database) -> None:
    """The row is still there, and nobody could see what it was."""
    reviewed.serve(library, [transaction(1, draw=0.5), transaction(2), transaction(3, minutes=5)])
    with library.transaction() as session:
        first = reviewed.AT.date().replace(day=1)
        transactions.retain(session, first, reviewed.AT.replace(minute=1), "Ann")
        assert glances.waiting(session).drawn == 0
    assert waiting(library) == []
    assert [one.transaction_id for one in waiting(library, "confidence")] == [transaction(3).id]
    with pytest.raises(BadReview, match="is not among the first"):
        say(library, transaction(1).id, label="ring", stream="random")


# --- into the library -----------------------------------------------------------------------


def test_a_reviewed_picture_comes_in_as_mined(library: Database, storage: Storage) -> None:
    """By the door of the pools: named by a person, only to train on; once, however often said."""
    body = picture(900, "cross")
    row = transaction(1, "ring", image=body)
    reviewed.serve(library, [row, transaction(2, image=body, minutes=1)])
    assert row.image_key is not None
    put(storage, row.image_key, body)
    for times in range(2):
        with library.transaction() as session:
            answered = reviews.of_transaction(session, row.id)
            said = reviews.say(session, answered, "Ann", label="cross")
            done = reviews.into_library(
                session, answered, kept.read(answered), "Ann", said.label or ""
            )
        assert (said.fresh, done.changed) == (times == 0, 1 - times)
    assert labelling.follow().moved == 1
    take_in(library)
    assert label(library, f"labelled/cross/{row.sha256}.png") == ("cross", "", "train")
    (found,) = query(library, "SELECT mined, labelled_by FROM images WHERE mined")
    assert tuple(found) == (True, "person:Ann")
    check = query(library, "SELECT version_id, offered FROM pool_acts")
    assert [tuple(one) for one in check] == [(None, "ring")]
    with library.transaction() as session:
        assert broken_rows(session) == []
        gone = reviews.of_transaction(session, transaction(2).id)
    storage.delete(row.image_key)
    with pytest.raises(Gone, match="is not kept any more"):
        kept.read(gone)


def test_verbs_do_what_the_acts_do(
    library: Database, storage: Storage, terminal: Callable[..., str]
) -> None:
    """What waits, what was said, what it proves; and images of the library, with their log."""
    assert "nothing waits" in terminal("review", "next", "--by", "Ann")
    body = picture(800, "cross")
    rows = [transaction(1, "ring", draw=0.5, image=body), transaction(2, "ring", 0.4, image=body)]
    reviewed.serve(library, rows)
    storage.write(rows[0].image_key or "", body)
    told = terminal("review", "next", "--by", "Ann")
    assert str(rows[0].id) in told
    asked = json.loads(terminal("review", "next", "--queue", "confidence", "--json"))
    assert [one["transaction_id"] for one in asked] == [str(rows[1].id)]
    said = ("review", "say", str(rows[0].id), "--label", "cross", "--queue", "random", "--learn")
    assert terminal(*said, "--by", "Ann") == (
        "wrong, it is cross: kept; the next night learns it\n"
    )
    assert "you had said so before; it was learned before" in terminal(*said, "--by", "Ann")
    take_in(library)
    assert label(library, f"labelled/cross/{rows[0].sha256}.png") == ("cross", "", "train")
    terminal("review", "say", str(rows[0].id), "right", "--by", "Zoë")
    assert "Zoë: right" in terminal("review", "disagreements")
    assert "0.0% of the answers are right" in terminal("review", "estimate", "--version", "1")
    for zone, told in (("+02:00", "0.0% of the answers"), ("", "nothing is known")):
        since = f"2026-11-20T13:30{zone}"  # it was served at noon, UTC
        assert told in terminal("review", "estimate", "--since", since)
    assert "random" in terminal("review", "list")
    assert "nothing that version 1 answered is wrong" in terminal("review", "worst", "1")
    key = "labelled/ring/1.png"
    why = ("--why", "a test", "--by", "Ann")
    assert terminal("image", "relabel", "cross", key, *why) == "relabelled 1 image\n"
    assert terminal("image", "keep", key, *why) == "kept 1 image\n"
    assert terminal("image", "keep", key, *why) == "kept 0 images; 1 already were\n"
    assert "cross" in terminal("image", "challenges", "--version", "1")
    acts = json.loads(terminal("image", "log", "--json"))
    assert [one["act"] for one in acts] == ["keep", "relabel"]
    for one in acts:
        assert terminal("image", "undo", str(one["id"]), *why) == "undone 1 image\n"
    assert (label(library, key) or ())[:2] == ("ring", "")
