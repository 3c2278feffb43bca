"""Benchmark: frozen once, grown by versions, never in touch with what may train."""

import json
from typing import Any

import intakes
import pictures
import pytest
from intakes import picture, put, query, reasons, take_in
from pictures import jpeg, photograph, png
from PIL import ImageOps
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from flows.cli import app
from infra.database import Database
from infra.storage import Storage
from records import batches
from records import benchmark as rows
from records.batches import Accepted, BenchmarkGrew
from records.benchmark import BadBenchmark, NoBenchmark
from records.invariants import check_invariants
from tasks import benchmark, intake


def test_what_the_library_holds_is_refused(database: Database, storage: Storage) -> None:
    """Library images, exact, near or mirrored, and what is no image each get their line."""
    for seed in range(3):
        put(storage, f"labelled/ring/{seed}.png", png(photograph(seed)))
    take_in(database)
    put(storage, "benchmark/ring/exact.png", png(photograph(0)))
    put(storage, "benchmark/ring/near.jpg", jpeg(photograph(1), 40))
    put(storage, "benchmark/ring/mirror.jpg", jpeg(ImageOps.mirror(photograph(2))))
    put(storage, "benchmark/ring/broken.jpg", b"no picture")
    put(storage, "benchmark/loose.png", picture(50))
    put(storage, "benchmark/ring/two.png", picture(51))
    put(storage, "benchmark/cross/two.png", picture(51))
    put(storage, "benchmark/an empty class/", b"")
    with pytest.raises(BadBenchmark, match="none of 7 images can be added"):
        benchmark.freeze("Zoë", "first")
    assert query(database, "SELECT * FROM benchmarks") == []
    put(storage, "benchmark/ring/good.png", picture(52))
    put(storage, "benchmark/ring/good again.png", picture(52))
    put(storage, "benchmark/cafe\u0301/good.png", picture(53))
    done = benchmark.freeze("Zoë", "first")
    assert (done.added, done.benchmark.images, done.benchmark.classes) == (2, 2, 2)
    said = {line.split(": ")[0]: line for line in done.refused}
    assert len(said) == len(done.refused) == 7
    for key, problem in (
        ("ring/exact.png", "already in the library"),
        ("ring/near.jpg", "of the library"),
        ("ring/mirror.jpg", "of the library"),
        ("ring/broken.jpg", "starts with"),
        ("loose.png", "no class: put it under benchmark/<class>/"),
        ("ring/two.png", "the same bytes are labelled cross and ring"),
        ("cross/two.png", "the same bytes are labelled cross and ring"),
    ):
        assert problem in said[f"benchmark/{key}"]
        assert said[f"benchmark/{key}"].isprintable()
    with database.transaction() as session:
        assert {one.class_name for one in rows.members(session, 1)} == {"ring", "caf\u00e9"}
    check_invariants(database, storage)


def test_a_benchmark_is_frozen_once_and_grows(database: Database, storage: Storage) -> None:
    """A second freeze is refused; growing adds a version and leaves the older one as it was."""
    with pytest.raises(NoBenchmark, match="no benchmark is frozen"):
        benchmark.grow("Zoë", "too early")
    with pytest.raises(BadBenchmark, match="nothing lies under benchmark/"):
        benchmark.freeze("Zoë", "nothing there")
    put(storage, "benchmark/ring/1.png", picture(1))
    put(storage, "benchmark/cross/1.png", picture(2))
    with pytest.raises(BadBenchmark, match="say who freezes and why"):
        benchmark.freeze(" ", "")
    first = benchmark.freeze("Zoë", "first").benchmark
    with pytest.raises(BadBenchmark, match="is frozen already"):
        benchmark.freeze("Zoë", "again")
    with pytest.raises(BadBenchmark, match="the benchmark has them all"):
        benchmark.grow("Zoë", "nothing new")
    put(storage, "benchmark/bar/1.png", picture(3))
    storage.delete("benchmark/ring/1.png")  # what was frozen stays, wherever it came from
    second = benchmark.grow("Zoë", "bar").benchmark
    assert (second.version, second.images, second.classes) == (2, 3, 3)
    with database.transaction() as session:
        assert rows.digest_of(rows.members(session, 1)) == first.digest
        assert rows.digest_of(reversed(rows.members(session, 2))) == second.digest
        assert first.digest != second.digest
        assert rows.current(session) == second
    check_invariants(database, storage)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE benchmark_images SET class_name = 'cross'", "can only be withdrawn"),
        ("UPDATE benchmark_images SET key = 'labelled/x.png'", "can only be withdrawn"),
        ("DELETE FROM benchmark_images", "written once"),
        ("UPDATE benchmarks SET digest = 'x'", "written once"),
        ("DELETE FROM benchmarks", "written once"),
    ],
)
def test_a_frozen_benchmark_cannot_be_changed(
    database: Database, storage: Storage, statement: str, says: str
) -> None:
    """Nobody relabels, moves or deletes what was frozen, in SQL either."""
    put(storage, "benchmark/ring/1.png", picture(1))
    benchmark.freeze("Zoë", "first")
    with pytest.raises(DBAPIError, match=says), database.transaction() as session:
        session.connection().exec_driver_sql(statement)


def test_a_benchmark_that_grows_while_a_batch_is_judged_lets_no_copy_in(
    database: Database, storage: Storage
) -> None:
    """A near copy frozen between validation and acceptance stops the batch; later it is refused."""
    put(storage, "benchmark/ring/1.png", picture(1))
    benchmark.freeze("Zoë", "first")
    put(storage, "labelled/ring/near.jpg", jpeg(photograph(7), 50))
    put(storage, "labelled/ring/good.png", png(photograph(8)))
    run_id = intakes.begin(database)
    batch_id = intake.take_in_new_images.fn(run_id, intakes.PLAN).batch_id
    assert batch_id is not None
    with database.transaction() as session:
        found = batches.frame_rows(session, batch_id)
    assert [row["near_benchmark"] for row in found] == [None, None]
    put(storage, "benchmark/ring/2.png", png(photograph(7)))
    benchmark.grow("Zoë", "meanwhile")
    accepted = [
        Accepted(row["object_id"], row["sha256"], "ring", "", "real", None, "Zoë", row["facts"])
        for row in found
    ]
    with (
        pytest.raises(BenchmarkGrew, match=r"benchmark/ring/2\.png came into the benchmark"),
        database.transaction() as session,
    ):
        batches.accept_batch(session, run_id, batch_id, accepted)
    assert query(database, "SELECT * FROM images") == []
    take_in(database)
    assert "not_near_benchmark" in reasons(database, "labelled/ring/near.jpg")
    assert intakes.state(database, "labelled/ring/good.png") == "accepted"
    check_invariants(database, storage)


def test_growing_refuses_what_came_in_meanwhile(database: Database, storage: Storage) -> None:
    """What the library took in after the first freeze cannot be added any more."""
    put(storage, "benchmark/ring/1.png", picture(1))
    benchmark.freeze("Zoë", "first")
    put(storage, "labelled/ring/1.png", png(pictures.photograph(1)))
    take_in(database)
    put(storage, "benchmark/ring/2.png", jpeg(pictures.photograph(1)))
    with pytest.raises(BadBenchmark, match="of the library"):
        benchmark.grow("Zoë", "too late")


def test_withdrawing_makes_a_new_version(database: Database, storage: Storage) -> None:
    """The image stays frozen where it was, is in no later version, and cannot come back."""
    for number in range(3):
        put(storage, f"benchmark/ring/{number}.png", picture(number))
    put(storage, "benchmark/cross/1.png", picture(9))
    first = benchmark.freeze("Zoë", "first").benchmark
    for words, says in (
        (["benchmark/ring/7.png"], "names 0 images"),
        (["b"], "names 0 images"),
        ([one.source_key for one in listed(database, 1)], "none would be left"),
    ):
        with pytest.raises(BadBenchmark, match=says):
            benchmark.withdraw(words, "Zoë", "x")
    with pytest.raises(BadBenchmark, match="--by NAME --why TEXT"):
        benchmark.withdraw(["benchmark/ring/0.png"], "Zoë", "")
    [ring] = [one.sha256 for one in listed(database, 1) if one.source_key.endswith("ring/1.png")]
    second = benchmark.withdraw(["benchmark/ring/0.png", ring[:12]], "Ada", "these are discs")
    assert (second.version, second.images, second.frozen_by) == (2, 2, "Ada")
    assert len(listed(database, 1)) == 4
    with database.transaction() as session:
        assert rows.get(session, 1) == first
        gone = rows.withdrawn(session, 2)
    assert {(one.source_key, one.withdrawn_in, one.why) for one in gone} == {
        ("benchmark/ring/0.png", 2, "these are discs"),
        ("benchmark/ring/1.png", 2, "these are discs"),
    }
    for moved in ("ring/0.png", "cross/1.png"):
        storage.delete(f"benchmark/{moved}")
    put(storage, "benchmark/cross/0.png", picture(0))
    put(storage, "benchmark/ring/as well.png", picture(9))
    put(storage, "benchmark/ring/new.png", picture(10))
    third = benchmark.grow("Zoë", "one more")
    assert (third.added, third.benchmark.images) == (1, 3)
    said = " ".join(third.refused)
    assert "withdrawn in version 2: what was looked at and taken out cannot come back" in said
    assert "in the benchmark as cross: withdraw it if that is wrong" in said
    # The contents of before are the digest of before, and yet another version.
    fourth = benchmark.withdraw(["benchmark/ring/new.png"], "Zoë", "blurred")
    assert (fourth.version, fourth.digest) == (4, second.digest)
    check_invariants(database, storage)


def listed(database: Database, version: int) -> list[rows.ListedMember]:
    """The images of a version."""
    with database.transaction() as session:
        return rows.listed_members(session, version)


def test_the_command_line_shows_the_benchmark(database: Database, storage: Storage) -> None:
    """Versions with who and why, images, classes, what was withdrawn, and how much it notices."""
    put(storage, "benchmark/ring/1.png", picture(1))
    put(storage, "benchmark/cross/1.png", picture(2))
    benchmark.freeze("Zoë", "first")
    benchmark.withdraw(["benchmark/cross/1.png"], "Ada", "no cross")
    run = CliRunner()

    def told(*words: str) -> Any:
        done = run.invoke(app, ["benchmark", *words, "--json"], catch_exceptions=False)
        assert done.exit_code == 0
        return json.loads(done.stdout)

    assert [(one["version"], one["frozen_by"], one["looks"]) for one in told("list")] == [
        (2, "Ada", 0), (1, "Zoë", 0)]
    newest, first = told("show"), told("show", "1")
    assert newest["classes"] == {"ring": 1}
    assert [one["why"] for one in newest["withdrawn"]] == ["no cross"]
    assert (first["classes"], first["withdrawn"]) == ({"cross": 1, "ring": 1}, [])
    assert "an equal version" in first["benchmark"]["power"]["sentence"]
    shown = run.invoke(app, ["benchmark", "show", "1", "--images"], catch_exceptions=False)
    assert "looked at 0 times" in " ".join(shown.stdout.split())  # however wide the terminal is
    assert "benchmark/cross/1.png" in shown.stdout
    with pytest.raises(BadBenchmark, match="there is no benchmark version 7"):
        told("show", "7")
