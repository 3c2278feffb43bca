"""Validation of a batch: what is stored, what stops it, what a repeated step does."""

import intakes
import pytest
from intakes import picture, put, query, reasons, state, take_in

from infra.database import Database
from infra.storage import Storage
from records import batches, runs
from records.invariants import check_invariants
from records.runs import Fenced
from tasks.expectations import Rules
from tasks.intake import take_in_new_images
from tasks.validation import Checked, check_batch


def test_every_refusal_is_a_stored_result(database: Database, storage: Storage) -> None:
    """Both suites' results are kept, and each refusal points at the one that it comes from."""
    put(storage, "labelled/ring/good.png", picture(1))
    put(storage, "labelled/ring/bad.png", b"no picture")
    batch = take_in(database).intake.batch_id
    kept = query(database, "SELECT id, suite, passed, results FROM validations "
                           "WHERE batch_id = :b ORDER BY suite DESC", b=batch)  # fmt: skip
    assert [(row.suite, row.passed) for row in kept] == [("images", False), ("batch", True)]
    names = {
        one["expectation_config"]["meta"]["name"]
        for one in kept[0].results["results"]
        if not one["success"]
    }
    refusals = query(database, "SELECT expectation, validation_id FROM quarantine")
    assert {(row.expectation, row.validation_id) for row in refusals} == {
        (name, kept[0].id) for name in names
    }


def test_a_batch_of_another_mix_can_be_stopped(database: Database, storage: Storage) -> None:
    """With a limit on drift, a batch unlike the library stops, and changes nothing."""
    for name in ("ring", "cross"):
        for seed in range(3):
            put(storage, f"labelled/{name}/{seed}.png", picture(seed, name))
    take_in(database)
    for seed in range(3, 6):
        put(storage, f"labelled/ring/{seed}.png", picture(seed))
    before = query(database, "SELECT * FROM images ORDER BY sha256")
    checked = take_in(database, Rules(largest_class_drift=0.4)).checked
    assert checked is not None
    assert "class mix is 0.50 from the library's" in (checked.refused or "")
    assert query(database, "SELECT * FROM images ORDER BY sha256") == before
    assert state(database, "labelled/ring/3.png") == "pending"
    check_invariants(database, storage)


def test_a_step_that_is_repeated_does_nothing_twice(database: Database, storage: Storage) -> None:
    """Checked again after its commit, as when the answer was lost, a batch stays as it is."""
    for seed in range(3):
        put(storage, f"labelled/ring/{seed}.png", picture(seed))
    put(storage, "labelled/ring/bad.png", b"x")
    run_id = intakes.begin(database)
    batch = take_in_new_images.fn(run_id, intakes.PLAN).batch_id
    assert batch is not None
    assert check_batch.fn(run_id, batch, Rules()) == Checked(4, 3, 1)
    before = query(database, "SELECT xmin::text, * FROM images ORDER BY sha256")
    assert check_batch.fn(run_id, batch, Rules()) == Checked(0, 0, 0)
    assert query(database, "SELECT xmin::text, * FROM images ORDER BY sha256") == before
    assert take_in_new_images.fn(run_id, intakes.PLAN).batch_id is None


def test_a_batch_reverted_while_it_is_judged_stays_out(
    database: Database, storage: Storage
) -> None:
    """A person's word during the night counts: what was judged meanwhile does not come in."""
    put(storage, "labelled/ring/1.png", picture(1))
    run_id = intakes.begin(database)
    batch = take_in_new_images.fn(run_id, intakes.PLAN).batch_id
    assert batch is not None
    with database.transaction() as session:
        (row,) = batches.frame_rows(session, batch)
    with database.transaction() as session:
        batches.revert_batch(session, batch, "Zoë", "wrong folder")
    accepted = batches.Accepted(
        row["object_id"], row["sha256"], "ring", "", "real", None, "Zoë", row["facts"]
    )
    with (
        pytest.raises(batches.UnknownBatch, match="was reverted while it was judged"),
        database.transaction() as session,
    ):
        batches.accept_batch(session, run_id, batch, [accepted])
    assert list(reasons(database, "labelled/ring/1.png")) == ["batch_reverted"]
    check_invariants(database, storage)


def test_a_run_that_was_closed_takes_nothing_in(database: Database, storage: Storage) -> None:
    """A night that slept while another began can neither list nor accept."""
    put(storage, "labelled/ring/1.png", picture(1))
    paused = intakes.begin(database)
    batch = take_in_new_images.fn(paused, intakes.PLAN).batch_id
    assert batch is not None
    later = intakes.begin(database)
    with pytest.raises(Fenced):
        check_batch.fn(paused, batch, Rules())
    with pytest.raises(Fenced):
        take_in_new_images.fn(paused, intakes.PLAN)
    assert query(database, "SELECT * FROM images") == []
    assert take_in_new_images.fn(later, intakes.PLAN).batch_id == batch
    assert check_batch.fn(later, batch, Rules()) == Checked(1, 1, 0)
    with database.transaction() as session:
        runs.close(session, later, "completed", None)
