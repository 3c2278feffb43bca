"""What a version is worth, from stored answers: kept, counted by Postgres, and told to people."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import worlds
from PIL import Image
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from test_scores import answers_of
from typer.testing import CliRunner
from worlds import Story, World

from flows import diagrams, figures
from flows.cli import app, printing
from flows.scoring import NothingServes, scoring
from infra.database import Database
from infra.embedded import Addresses
from infra.storage import Storage
from records import evaluations, versions
from tasks.evaluation import evaluate_again, evaluate_whole_library, settle_thresholds
from vision.scores import (
    CALIBRATION_BINS,
    PRECISION,
    ClassScore,
    Confusion,
    confusions,
    reliability,
    score,
    threshold,
)


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


@contextmanager
def twin_rows(story: Story) -> Iterator[World]:
    """The rows of both nights, to change."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        yield world


def test_what_postgres_counts_is_what_the_answers_say(story: Story) -> None:
    """Confusions, curve and class figures of each evaluation equal those of its stored answers."""
    with story.done.transaction() as session:
        names = versions.get(session, 2).class_names
        for row in evaluations.of_version(session, 2):
            answers = evaluations.answers(session, row.id, names)
            assert answers is not None
            scores = score(answers)
            assert evaluations.confusions(session, row.id) == list(confusions(answers, 10**6))
            assert evaluations.reliability(session, row.id) == list(reliability(answers))
            kept = {one.name: one for one in evaluations.class_scores(session, row.id)}
            assert kept == {one.name: one for one in scores.classes}
            for name in evaluations.FIGURES:
                assert getattr(row, name) == getattr(scores, name)


def test_a_threshold_is_fitted_on_validation_and_verified_elsewhere(story: Story) -> None:
    """The night leaves one row for each set of images, all with the fitted confidence."""
    with story.done.transaction() as session:
        names = versions.get(session, 2).class_names
        found = evaluations.find(session, 2, "validation")
        assert found is not None
        fitted = threshold(evaluations.answers(session, found.id, names), 0.95)
        rows = evaluations.thresholds(session, 2)
    assert fitted is not None
    assert [(one.subject, one.benchmark_version) for one in rows] == [
        ("validation", None), ("test", None), ("benchmark", 2),
    ]  # fmt: skip
    assert {one.confidence for one in rows} == {fitted.confidence}
    assert {one.wished for one in rows} == {0.95}
    for one in rows:
        assert one.sentence.startswith(f"At a confidence of {fitted.confidence:.3f} or more")
        if one.precision is not None:
            assert f"coverage {one.coverage:.1%}" in one.sentence


def test_a_benchmark_that_grows_verifies_the_champion_anew(story: Story) -> None:
    """Its threshold stays as it was fitted, and is told for the old and the new version."""
    with story.waiting.transaction() as session:
        rows = evaluations.thresholds(session, 1)
    assert [(one.subject, one.benchmark_version) for one in rows] == [
        ("validation", None), ("test", None), ("benchmark", 1), ("benchmark", 2),
    ]  # fmt: skip
    assert len({one.confidence for one in rows}) == 1


def test_another_wish_is_fitted_from_what_was_answered(story: Story) -> None:
    """A wish stays beside the others, and is verified again when the benchmark grows."""
    with twin_rows(story) as world:
        settle_thresholds(2, 0.6)
        settle_thresholds(2, 0.6)
        with world.transaction() as session:
            assert evaluations.wishes(session, 2) == {0.6, 0.95}
            rows = evaluations.thresholds(session, 2)
        assert [one.wished for one in rows] == [0.6] * 3 + [0.95] * 3
        assert rows[0].answered >= rows[3].answered


def test_a_wish_that_cannot_be_reached_is_said(story: Story) -> None:
    """A version that is wrong where it is surest has no threshold: neither one of 0 nor of 1."""
    with twin_rows(story) as world:
        world.act(
            """UPDATE answers SET label = 'nobody', label_confidence = 0, correct = false
               WHERE evaluation_id = (SELECT id FROM evaluations WHERE version_id = 2
                                      AND subject = 'validation')"""
        )
        settle_thresholds(2)
        with world.transaction() as session:
            [row] = evaluations.thresholds(session, 2)
        assert (row.subject, row.confidence, row.precision, row.answered) == (
            "validation", None, None, 0,
        )  # fmt: skip
        assert "No confidence reaches a precision of 95.0%" in row.sentence
        assert row.sentence in list(figures.sentences(figures.facts(2)))


@pytest.mark.parametrize(
    ("right", "of", "said"),
    [(400, 400, "above the wished"), (300, 400, "BELOW the wished"), (19, 20, "not told apart")],
)
def test_the_claim_says_whether_the_wish_came_true(right: int, of: int, said: str) -> None:
    """Only what the interval supports is claimed."""
    answers = answers_of(["a"] * of, [[0.9, 0.1]] * right + [[0.1, 0.9]] * (of - right),
                         ("a", "b"), 2)  # fmt: skip
    bounds = score(answers)
    row = evaluations.ThresholdRow(
        0.95, "benchmark", 3, 0.9, bounds.accuracy, bounds.accuracy_low, bounds.accuracy_high, of,
        of, None,
    )  # type: ignore[arg-type]  # fmt: skip
    assert said in row.sentence
    assert "precision on benchmark 3 is" in row.sentence


def test_transfer_is_counted_on_common_images_alone(story: Story) -> None:
    """Against the parent only images and classes that both know count, and none is invented."""
    with twin_rows(story) as world:
        with world.transaction() as session:
            found = {
                on: evaluations.transfer_between(session, 2, 1, on)
                for on in ("test", "benchmark", "library")
            }
            old, new = (
                evaluations.answers(session, row.id, versions.get(session, number).class_names)
                for number in (1, 2)
                if (row := evaluations.find(session, number, "benchmark", benchmark_version=2))
            )
        assert found["library"] is None
        assert old is not None
        assert new is not None
        before = dict(zip(old.images, old.correct, strict=True))
        pairs = [
            (label, before[image], now)
            for image, label, now in zip(new.images, new.labels, new.correct, strict=True)
            if label in worlds.OLD_CLASSES
        ]
        change = found["benchmark"]
        assert change is not None
        assert change.images == len(pairs) == 24
        assert {one.name for one in change.classes} == set(worlds.OLD_CLASSES)
        assert change.lost == sum(was and not now for _, was, now in pairs)
        assert change.gained == sum(now and not was for _, was, now in pairs)

        # each answer of the parent turned wrong: all that is right now was gained
        world.act("UPDATE answers SET correct = false, predicted = "
                  "CASE label WHEN 'circle' THEN 'square' ELSE 'circle' END WHERE evaluation_id IN "
                  "(SELECT id FROM evaluations WHERE version_id = 1)")  # fmt: skip
        with world.transaction() as session:
            change = evaluations.transfer_between(session, 2, 1, "benchmark")
        assert change is not None
        assert (change.before, change.lost, change.gained) == (0, 0, change.now)

        world.act("DELETE FROM answers WHERE evaluation_id IN "
                  "(SELECT id FROM evaluations WHERE version_id = 1)")  # fmt: skip
        assert figures.facts(2)["transfer"] == {"test": None, "benchmark": None}


def test_ancestry_ends_where_something_began_from_scratch(story: Story) -> None:
    """Version 2 goes back to version 1; from scratch it would go back to nothing."""
    with twin_rows(story) as world:
        with world.transaction() as session:
            assert [one.id for one in versions.lineage(session, 2)] == [2, 1]
        world.act("SET LOCAL session_replication_role = replica",
                  """UPDATE versions SET plan = plan || '{"recipe": "scratch"}' WHERE id = 2""")
        with world.transaction() as session:
            assert [one.id for one in versions.lineage(session, 2)] == [2]


@pytest.fixture
def loggers_as_before() -> Iterator[None]:
    """What the command line does to loggers ends with the test."""
    found = [logging.getLogger(name) for name in ("regraft", "vision")]
    before = [(one.level, one.propagate, list(one.handlers)) for one in found]
    yield
    for one, (level, propagate, handlers) in zip(found, before, strict=True):
        one.setLevel(level)
        one.propagate, one.handlers = propagate, handlers


def test_a_version_is_scored_again_on_request(story: Story, loggers_as_before: None) -> None:
    """The same answers, thresholds for another wish, and the whole library, split by split."""
    with worlds.twin(story.done) as world:
        before = world.ask("SELECT sha256, predicted FROM answers JOIN evaluations e ON e.id = "
                           "evaluation_id WHERE version_id = 2 AND subject = 'test' ORDER BY 1")
        runner = CliRunner()
        done = runner.invoke(app, ["evaluate", "2", "--precision", "0.7", "--json"])
        assert done.exit_code == 0, done.output
        known = json.loads(done.stdout)
        assert {one["wished"] for one in known["thresholds"]} == {0.7, 0.95}
        assert world.ask(
            "SELECT sha256, predicted FROM answers JOIN evaluations e ON e.id = evaluation_id "
            "WHERE version_id = 2 AND subject = 'test' ORDER BY 1"
        ) == before

        done = runner.invoke(app, ["evaluate", "2", "--library"])
        assert done.exit_code == 0, done.output
        assert "in-sample" in done.stdout
        assert max(len(line) for line in done.stdout.splitlines()) <= 80
        [(usable,)] = world.ask("SELECT count(*) FROM images WHERE withdrawn_at IS NULL")
        splits = figures.facts(2)["library"]
        assert sum(one["images"] for one in splits) == usable
        assert {one["split"] for one in splits if one["in_sample"]} == {"train"}
        assert scoring(1) == usable
        world.check()


def test_an_empty_service_has_nobody_to_score_with(
    database: Database, storage: Storage, prefect_server: str
) -> None:
    """It says so in one line."""
    with pytest.raises(NothingServes, match="nothing serves yet"):
        scoring()


def test_every_figure_is_in_the_json(story: Story) -> None:
    """Scripts get all classes, the whole matrix, each bin, and the numbers behind each sentence."""
    with worlds.inside(story.done):
        known = json.loads(json.dumps(figures.facts(2), default=printing.plain))
    assert known["decisive"] == "benchmark 2"
    assert set(known["classes"]) == {"validation", "test", "batch 2", "benchmark 2"}
    assert len(known["classes"]["benchmark 2"]) == 4
    assert known["lineage"] == [1, 2]
    assert known["gap"] == known["training_accuracy"] - known["validation_accuracy"]
    assert known["temperature"] > 0
    assert set(known["unknown"].values()) == {0}
    for on, row in zip(known["classes"], known["evaluations"], strict=True):
        assert sum(one["images"] for one in known["reliability"][on]) == row["images"]
        wrong = sum(one["images"] for one in known["confusions"][on])
        assert wrong == row["images"] - round(row["accuracy"] * row["images"])


@pytest.mark.parametrize("column", ["confidence", "precision", "precision_low"])
def test_postgres_takes_no_nan_into_a_threshold(story: Story, column: str) -> None:
    """A threshold that is no number cannot be stored."""
    with pytest.raises(DBAPIError, match="check constraint"):
        story.done.act(f"UPDATE thresholds SET {column} = 'NaN'")  # noqa: S608


def a_matrix(classes: int, errors: int) -> tuple[list[ClassScore], list[Confusion]]:
    """Figures of so many classes with so many errors, most of them between neighbours."""
    random = np.random.default_rng(0)
    names = [f"class $ {number:03d}" for number in range(classes)]
    true = random.integers(0, classes, 30 * classes)
    answered = true.copy()
    wrong = random.choice(len(true), errors, replace=False)
    answered[wrong] = (true[wrong] + 1 + random.integers(0, 2, errors)) % classes
    shares = np.full((len(true), classes), 0.5 / (classes - 1))
    shares[np.arange(len(true)), answered] = 0.5
    answers = answers_of([names[one] for one in true], shares.tolist(), tuple(names), 2)
    return list(score(answers).classes), list(confusions(answers, 10**6))


@pytest.mark.parametrize("classes", [2, 5, 101])
def test_a_matrix_of_any_size_can_be_read(classes: int, tmp_path: Path) -> None:
    """All classes where they fit; of many those confused most, with all other answers in one."""
    scores, wrong = a_matrix(classes, errors=8 * classes)
    names, rest = diagrams.chosen(scores, wrong)
    assert (len(names), rest) == ((classes, False) if classes <= 20 else (len(names), True))
    assert len(names) <= diagrams.MOST_CLASSES
    assert {wrong[0].label, wrong[0].predicted} <= set(names)
    table, shares = diagrams._matrix(names, rest, scores, wrong)
    images = {one.name: one.images for one in scores}
    assert table.sum(axis=1).tolist() == [images[name] for name in names]
    assert shares.sum(axis=1) == pytest.approx(1)
    (tmp_path / "matrix.png").write_bytes(diagrams.confusion("A title", scores, wrong))
    picture = Image.open(tmp_path / "matrix.png")
    picture.load()
    assert max(picture.size) < 1600


def test_bins_of_an_evaluation_are_kept_with_it(story: Story) -> None:
    """They go when the evaluation is replaced: no bin of older answers stays."""
    with twin_rows(story) as world:
        query = "SELECT sum(images) FROM reliability_bins"
        [(before,)] = world.ask(query)
        looked = "SELECT version_id, kind, looked_by FROM looks"
        assert world.ask(looked) == []
        for person in ("Zoë", "Ada"):
            evaluate_again(2, PRECISION, person)
        assert world.ask(looked) == [(2, "evaluation", "Zoë")]  # twice the same figures: one look
        assert world.ask(query) == [(before,)]
        counts = world.ask("SELECT count(*) FROM reliability_bins GROUP BY evaluation_id")
        assert max(count for (count,) in counts) <= CALIBRATION_BINS
        evaluate_whole_library(2)
        with world.transaction() as session:
            assert session.scalar(text(query)) > before
