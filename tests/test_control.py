"""The control run: the champion's images learned afresh, compared, and never deployed by itself."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import worlds
from worlds import Story

from flows.control import afresh, control, history, markdown
from flows.nightly import nightly
from infra.embedded import Addresses
from tasks.lineage import beginning
from vision.plan import BadPlan


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


def test_a_control_learns_the_champions_snapshot_afresh(
    story: Story, terminal: Callable[..., str]
) -> None:
    """As the lineage began, on today's images; compared on benchmark and test; nothing deployed.

    Asked again, the verb tells the same once, and trains nothing.
    """
    with worlds.twin(story.done) as world:
        log = world.ask("SELECT * FROM deployments ORDER BY id")
        done = control()
        assert (done.state, done.version_id) == ("compared", 3), done
        [row] = world.ask(
            "SELECT purpose, parent_id, "
            "plan_digest = (SELECT plan_digest FROM versions WHERE id = 1), "
            "snapshot_digest = (SELECT snapshot_digest FROM versions WHERE id = 2) "
            "FROM versions WHERE id = 3"
        )
        assert row == ("control", None, True, True)
        assert world.ask("SELECT * FROM deployments ORDER BY id") == log
        assert world.ask("SELECT count(*) FROM verdicts WHERE version_id = 3") == [(0,)]

        assert world.ask("SELECT version_id, kind FROM looks") == [(3, "control")]

        worth = done.worth
        assert worth is not None
        assert (worth.champion_id, worth.control_id, worth.depth) == (2, 3, 1)
        assert worth.start == "from a random start"
        assert (worth.champion_epochs, worth.control_epochs) == (6, 10)
        assert worth.lineage_epochs == 16
        assert worth.lineage_seconds > worth.champion_seconds > 0
        assert set(worth.other_plan) == {"recipe", "epochs"}
        for on, subject in ((worth.benchmark, "benchmark"), (worth.test, "test")):
            assert on is not None
            answered = world.ask(
                "SELECT count(*) FROM answers a JOIN evaluations e ON e.id = a.evaluation_id "
                "WHERE e.version_id = 3 AND e.subject = :s", s=subject,
            )  # fmt: skip
            assert answered == [(on.images,)]
            accuracy = world.ask(
                "SELECT version_id, accuracy FROM evaluations "
                "WHERE subject = :s AND version_id > 1 AND benchmark_version "
                "IS NOT DISTINCT FROM :b ORDER BY version_id",
                s=subject, b=2 if subject == "benchmark" else None,
            )  # fmt: skip
            assert dict(accuracy) == pytest.approx(
                {2: on.first_correct / on.images, 3: on.second_correct / on.images}
            )
        text = markdown(worth)
        assert "lineage is worth" in text
        assert "Their plans differ in recipe" in text
        world.check()

        shown = terminal("control")
        assert shown.count(f"nothing new: {worth.sentence}") == 1, shown
        assert "Their plans differ in recipe" in shown
        assert world.ask("SELECT state, version_id FROM runs WHERE id = 4") == [("skipped", 3)]
        assert world.ask("SELECT count(*) FROM run_steps WHERE name = 'train' AND run_id = 4") == [
            (0,)
        ]
        assert len(history()[1]) == 1  # the same pair is told once

        # champion and benchmark as they were, and the candidate of a night is what it would be
        assert nightly(plan=worlds.SECOND_PLAN, limits=worlds.LIMITS).state == "skipped"


def test_a_control_by_another_plan(story: Story) -> None:
    """Single fields may be changed; a start or a field that has no effect is refused."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        plan, parent = afresh(
            beginning(2), {"epochs": 3, "augmentation": {"rotation": 5}}, None
        )
        wished = replace(worlds.FIRST_PLAN.augmentation, rotation=5.0)
        assert plan == replace(worlds.FIRST_PLAN, epochs=3, augmentation=wished)
        assert parent is None
        with pytest.raises(BadPlan, match="recipe='scratch': it starts at random"):
            afresh(beginning(2), {}, 1)
        for changes, said in (
            ({"epoch": 3}, "'epoch' is no field"),
            ({"unfreeze": 2}, "unfreeze=2: recipe='scratch' has one phase"),
            ({"targeted": True}, "targeted=True: only a night's pictures"),
        ):
            with pytest.raises(BadPlan, match=said):
                control(changes=changes)
        # what the lineage's own plan ignores was not asked for now
        begun = beginning(2)
        older = replace(begun.first, plan=begun.first.plan | {"unfreeze": 2, "targeted": True})
        plan, _ = afresh(replace(begun, first=older), {"epochs": 3}, None)
        assert (plan.unfreeze, plan.targeted, plan.epochs) == (2, True, 3)


def test_without_a_lineage_there_is_nothing_to_compare(story: Story) -> None:
    """Before the first deployment and the first warm start it says so and trains nothing."""
    with worlds.rows_of(story.fresh) as world, worlds.inside(world):
        assert control().state == "skipped"
        assert "nothing serves yet" in control().reason
    with worlds.rows_of(story.waiting) as world, worlds.inside(world):
        done = control()
        assert (done.state, done.version_id) == ("skipped", None)
        assert "no warm start yet" in done.reason
        assert world.ask("SELECT count(*) FROM versions") == [(1,)]
