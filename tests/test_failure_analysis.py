"""A night says where its version fails; the next one can be aimed at it; labels are doubted."""

import json
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import nights
import pictures
import pytest
import worlds
from PIL import Image
from typer.testing import CliRunner
from worlds import Story, World

from flows import failures as pages
from flows.cli import app
from flows.nightly import nightly
from infra.embedded import Addresses
from records import failures
from records.failures import NotAnalysed
from records.objects import LABELLED
from tasks.failures import NIGHTLY_SHARE, analyse
from vision.failures import GRADES, Change, Derived
from vision.plan import Augmentation, Plan

AIMED = replace(worlds.SECOND_PLAN, targeted=True)


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


@pytest.fixture(scope="module")
def analysed(story: Story) -> Iterator[World]:
    """The end of the story, where version 2 was analysed on all validation images."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        assert analyse(2) == validation_images(world)
        yield world


def validation_images(world: World) -> int:
    """How many validation images version 2 has."""
    [(count,)] = world.ask(
        "SELECT sum(c.validation) FROM snapshot_classes c JOIN versions v "
        "ON v.snapshot_digest = c.snapshot_digest WHERE v.id = 2 AND c.lacks = 0"
    )
    return int(count)


def test_a_night_analyses_within_its_share(story: Story) -> None:
    """Each version is analysed, on no more pictures than its training allows."""
    rows = story.done.ask("SELECT version_id, images FROM failure_analyses ORDER BY version_id")
    assert [version_id for version_id, _ in rows] == [1, 2]
    trained = dict(
        story.done.ask(
            "SELECT r.version_id, (s.facts->>'images')::int * (s.facts->>'epochs')::int "
            "FROM run_steps s JOIN runs r ON r.id = s.run_id WHERE s.name = 'train'"
        )
    )
    for version_id, images in rows:
        assert 0 < images * (1 + len(GRADES)) <= NIGHTLY_SHARE * trained[version_id]


def test_every_class_is_told_at_every_grade(analysed: World) -> None:
    """Counts add up over the classes, and figures need enough images."""
    with analysed.transaction() as session:
        found = failures.sensitivities(session, 2)
    classes = {one.class_name for one in found}
    assert classes == {None, *worlds.OLD_CLASSES, worlds.NEW_CLASS}
    assert len(found) == len(classes) * len(GRADES)
    for grade in GRADES:
        at = [one for one in found if (one.transformation, one.strength) == grade]
        whole, parts = at[0], at[1:]
        assert whole.class_name is None
        assert (whole.images, whole.lost, whole.gained) == (
            sum(one.images for one in parts), sum(one.lost for one in parts),
            sum(one.gained for one in parts),
        )  # fmt: skip
        assert whole.drop is not None
        assert all(one.drop is None for one in parts), "so few images say nothing of a class"


def test_analysed_again_it_is_the_same(analysed: World) -> None:
    """Nothing is drawn anew, and nothing is kept twice."""
    queries = ("SELECT * FROM failure_analyses ORDER BY version_id",
               "SELECT * FROM label_doubts ORDER BY version_id, sha256",
               "SELECT * FROM sensitivities ORDER BY version_id, class_name, transformation, "
               "strength")  # fmt: skip
    before = [analysed.ask(query) for query in queries]
    analyse(2)
    after = [analysed.ask(query) for query in queries]

    def told(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return [row[1:] for row in rows]  # without the number that Postgres counts

    assert told(after[2]) == told(before[2])
    assert after[1] == before[1]
    assert [row[:-1] for row in after[0]] == [row[:-1] for row in before[0]]  # without the time


def test_what_was_found_is_shown(
    analysed: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """People get tables of at most 80 columns and a picture, scripts the same facts."""
    pages.show(2)
    shown = capsys.readouterr().out
    assert shown.startswith(f"version 2 · {validation_images(analysed)} validation images")
    assert "rotation +15°" in shown
    assert "4 classes have too few validation images" in shown
    assert "The next plan" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    folder, plan = tmp_path / "new" / "folder", tmp_path / "plan.json"
    words = ["failures", "2", "--json", "--pictures", str(folder), "--next-plan", str(plan)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["analysis"]["images"] == validation_images(analysed)
    assert {one["subject"] for one in facts["doubts"]} <= {"validation", "test", "batch"}
    with Image.open(folder / "failures.png") as drawn:
        assert drawn.format == "PNG"
    kept = Plan.from_dict(json.loads(plan.read_text()))
    assert kept.epochs == worlds.SECOND_PLAN.epochs
    with analysed.transaction() as session:
        assert kept == failures.next_plan(session, 2)[0]


def test_a_night_keeps_its_picture(story: Story) -> None:
    """The picture lies in S3 beside the night's profile."""
    with Image.open(BytesIO(story.done.storage.read(pages.key(2)))) as picture:
        assert picture.format == "PNG"


def test_a_version_that_nobody_analysed_says_so(story: Story) -> None:
    """The line names the verb that does it; keeping its picture does no harm."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        world.act("DELETE FROM failure_analyses")
        with pytest.raises(NotAnalysed, match="regraft failures 2 --analyse"):
            pages.facts(2)
        pages.keep(2)


def found_before(world: World) -> None:
    """Let version 2 have been found to fail at blur, and its rings at being turned."""
    general = replace(worlds.SECOND_PLAN.augmentation, blur=0.25)
    derived = Derived(
        general,
        {worlds.NEW_CLASS: replace(general, rotation=15.0), "gone": Augmentation()},
        (
            Change(None, "blur", "blur", 0.0, 0.25, "blur sigma 1 px costs 9 points"),
            Change(worlds.NEW_CLASS, "rotation", "rotation", 10.0, 15.0, "rings cost 20 points"),
        ),
    )
    with world.transaction() as session:
        [(digest,)] = world.ask("SELECT checkpoint_digest FROM versions WHERE id = 2")
        failures.record(session, 2, digest, 0, {}, (), derived, (), {})


def test_a_night_can_be_aimed_at_what_its_parent_fails_at(story: Story) -> None:
    """The plan is widened, the reasons are kept, wrong labels of the new batch are doubted by the
    parent, and the same night again is skipped although its plan would now be another.
    """
    with worlds.twin(story.done) as world:
        found_before(world)
        store = world.storage
        for name in worlds.OLD_CLASSES:
            for seed in range(500, 512):
                body = pictures.png(pictures.shape(name, seed, side=48))
                store.write(f"{LABELLED}{name}/{seed}.png", body)
        wrong = [f"{LABELLED}cross/{seed}.png" for seed in range(600, 606)]
        for seed, key in enumerate(wrong, start=600):
            store.write(key, pictures.png(pictures.shape("circle", seed, side=48)))
        outcome = nightly(plan=AIMED, limits=worlds.LIMITS)
        assert (outcome.state, outcome.version_id) == ("deployed", 3), outcome.reason

        [(plan,)] = world.ask("SELECT plan FROM versions WHERE id = 3")
        trained = Plan.from_dict(plan)
        assert trained.augmentation == replace(AIMED.augmentation, blur=0.25)
        assert trained.class_augmentation == {
            worlds.NEW_CLASS: replace(AIMED.augmentation, blur=0.25, rotation=15.0)
        }
        [(facts,)] = world.ask(
            "SELECT facts FROM run_steps WHERE run_id = :run AND name = 'aim'", run=outcome.run_id
        )
        assert facts["reasons"] == ["blur sigma 1 px costs 9 points", "rings cost 20 points"]

        told = pages.facts(3)
        assert told["targeted"]
        doubted = {one["key"]: one for one in told["doubts"]}
        assert set(wrong) & set(doubted), doubted
        for key in set(wrong) & set(doubted):
            assert (doubted[key]["label"], doubted[key]["suggested"]) == ("cross", "circle")
        learned = world.ask(
            "SELECT d.answered_by, d.subject FROM label_doubts d JOIN images i USING (sha256) "
            "WHERE i.split = 'train' AND d.version_id = 3"
        )
        assert set(learned) <= {(2, "batch")}
        assert told["analysis"]["doubted"]["batch"] > 0

        again = nightly(plan=AIMED, limits=worlds.LIMITS)
        assert again.state == "skipped", again.reason
        world.check()


def test_what_a_parent_may_have_learned_is_not_doubted(story: Story) -> None:
    """Images that were in the library before it are left to their own labels."""
    with worlds.rows_of(story.done) as world, world.transaction() as session:
        fresh = failures.new_to(session, 2, 1)
        splits = dict(world.ask("SELECT sha256, batch_id || ' ' || split FROM images"))
    assert fresh
    assert {splits[sha256] for sha256, _ in fresh} == {"2 train"}
    # a class that the parent does not know is no doubt of its
    assert worlds.NEW_CLASS not in {name for _, name in fresh}
    assert len(fresh) < 3 * nights.IMAGES + 4
