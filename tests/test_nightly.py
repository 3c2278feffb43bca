"""Whole nights on a tiny library, from the first to those that must change nothing."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nights
import pictures
import pytest
import worlds
from worlds import Story, World

from flows.nightly import nightly
from infra import storage as storage_module
from infra.database import Database
from infra.embedded import Addresses
from infra.storage import Gone, Storage
from records import objects
from records.benchmark import NoBenchmark
from records.objects import LABELLED
from records.versions import checkpoint_key
from tasks import benchmark
from tasks.benchmark import BENCHMARK
from tasks.loading import load_folder
from vision.fitting import Diverged
from vision.plan import Plan

# What serves, what was decided, and what the library holds: a night that fails changes none of it.
KEPT = (
    "SELECT * FROM deployments ORDER BY id",
    "SELECT * FROM champion",
    "SELECT * FROM verdicts ORDER BY id",
    "SELECT * FROM images ORDER BY sha256",
    "SELECT * FROM snapshots ORDER BY digest",
    "SELECT * FROM versions WHERE state = 'trained' ORDER BY id",
    "SELECT * FROM label_changes ORDER BY id",
    "SELECT * FROM benchmark_images ORDER BY sha256",
)


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


def kept(world: World) -> list[list[tuple[Any, ...]]]:
    """All rows that a failed night may not touch."""
    return [world.ask(query) for query in KEPT]


def last_run(world: World) -> tuple[Any, ...]:
    """State and reason of the newest run."""
    [row] = world.ask("SELECT state, reason FROM runs ORDER BY id DESC LIMIT 1")
    return row


def steps(world: World, run_id: int) -> list[str]:
    """The steps of a run, in their order."""
    rows = world.ask("SELECT name FROM run_steps WHERE run_id = :run ORDER BY id", run=run_id)
    return [name for (name,) in rows]


def test_the_first_night_trains_from_scratch_and_deploys(story: Story) -> None:
    """Version 1 has no parent, passed the gate and serves."""
    world = story.waiting
    assert (story.first.state, story.first.version_id) == ("deployed", 1)
    assert world.ask("SELECT parent_id, class_names FROM versions") == [
        (None, list(worlds.OLD_CLASSES))
    ]
    log = "SELECT version_id, previous_id, kind, run_id FROM deployments"
    assert world.ask(log) == [(1, None, "promotion", 1)]
    assert last_run(world) == ("completed", f"deployed: {story.first.reason}")


def test_the_second_night_grows_the_champion(story: Story) -> None:
    """More images and a new class: version 2 starts from version 1, is judged and serves."""
    world = story.done
    assert (story.second.state, story.second.version_id) == ("deployed", 2)
    [(parent, names)] = world.ask("SELECT parent_id, class_names FROM versions WHERE id = 2")
    assert parent == 1
    assert names == sorted([*worlds.OLD_CLASSES, worlds.NEW_CLASS])
    log = world.ask("SELECT version_id, previous_id FROM deployments ORDER BY id")
    assert log == [(1, None), (2, 1)]
    [(against, on, passed)] = world.ask(
        "SELECT champion_id, benchmark_version, passed FROM verdicts WHERE version_id = 2"
    )
    assert (against, on, passed) == (1, 2, True)


def test_a_night_leaves_its_figures(story: Story) -> None:
    """Evaluations with their answers, Grad-CAM maps and the time of each step are in Postgres."""
    world = story.done
    subjects = world.ask(
        "SELECT subject, benchmark_version, batch_id, images FROM evaluations e "
        "WHERE version_id = 2 AND images = (SELECT count(*) FROM answers a "
        "WHERE a.evaluation_id = e.id) ORDER BY subject"
    )
    assert [row[:3] for row in subjects] == [
        ("batch", None, 2),
        ("benchmark", 2, None),
        ("test", None, None),
        ("validation", None, None),
    ]
    champion = world.ask(
        "SELECT benchmark_version, images FROM evaluations WHERE version_id = 1 AND "
        "subject = 'benchmark' ORDER BY benchmark_version"
    )
    assert champion == world.ask("SELECT version, images FROM benchmarks ORDER BY version")
    [(maps, samples)] = world.ask(
        "SELECT count(*), count(DISTINCT target) FILTER (WHERE reason = 'sample') FROM gradcams "
        "WHERE version_id = 2"
    )
    assert maps >= samples > 1
    assert steps(world, 2) == [
        "list", "fetch and decode", "validate", "settle", "snapshot", "train", "keep checkpoint",
        "evaluate", "benchmark", "thresholds", "latency", "judge", "explain",
        "analyse failures", "deploy",
    ]  # fmt: skip
    with world.transaction() as session:
        states = objects.states(session)
    listed = sum(1 for _ in world.storage.list(LABELLED))
    [(facts,)] = world.ask("SELECT facts FROM run_steps WHERE run_id = 2 AND name = 'list'")
    assert sum(states.values()) == listed == facts["listed"]
    assert states["quarantined"] == 1
    assert states["pending"] == 0
    [(reason,)] = world.ask("SELECT sentence FROM quarantine WHERE key = :k", k=worlds.BROKEN)
    assert reason


def test_nothing_new_is_skipped_at_the_cost_of_the_listing(
    story: Story, terminal: Callable[..., str], tmp_path: Path
) -> None:
    """A night that finds nothing new says so once and reads not one object."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(worlds.SECOND_PLAN.to_dict()))
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        before = kept(world)
        read: list[str] = []
        events = storage_module.connect()._client.meta.events
        events.register("before-send.s3.GetObject", lambda request, **_: read.append(request.url))
        shown = terminal("nightly", "--plan", str(plan))
        assert shown.count("skipped: nothing new: version 2, trained by this plan") == 1, shown
        state, reason = last_run(world)
        assert state == "skipped"
        assert f"{reason}\n" in shown
        assert read == []
        assert steps(world, 3) == ["list", "settle", "snapshot"]
        assert kept(world) == before
        world.check()


def test_shuffled_labels_are_stopped(story: Story) -> None:
    """Pictures under another class's name stop the night; the next one goes on without them."""
    with worlds.twin(story.done) as world:
        before = kept(world)
        store = world.storage
        for name, wrong in (("circle", "cross"), ("cross", "square"), ("square", "circle")):
            for seed in range(300, 312):
                body = pictures.png(pictures.shape(name, seed, side=48))
                store.write(f"{LABELLED}{wrong}/{seed}.png", body)
        outcome = nightly(plan=worlds.SECOND_PLAN, limits=worlds.LIMITS)
        assert outcome.state == "stopped", outcome.reason
        assert "batch 3 was refused" in outcome.reason
        assert "the champion was not touched" in outcome.reason
        assert kept(world) == before
        world.check()
        assert nightly(plan=worlds.SECOND_PLAN, limits=worlds.LIMITS).state == "skipped"
        assert kept(world) == before


def test_a_new_benchmark_judges_again_and_trains_nothing(story: Story) -> None:
    """A refused candidate is judged anew on a grown benchmark, or by other limits, as it is."""
    other = replace(worlds.SECOND_PLAN, seed=1, epochs=2)
    strict = replace(worlds.LIMITS, latency_seconds=1e-6)
    with worlds.twin(story.done) as world:
        refused = nightly(plan=other, limits=strict)
        assert (refused.state, refused.version_id) == ("refused", 3)
        assert "one image" in refused.reason
        assert nightly(plan=other, limits=strict).state == "skipped"
        with tempfile.TemporaryDirectory() as scratch:
            load_folder(
                nights.draw(Path(scratch), (worlds.NEW_CLASS,), images=2, seed=2000), BENCHMARK
            )
            benchmark.grow("a test", "more of it")
        again = nightly(plan=other, limits=strict)
        assert (again.state, again.version_id) == ("refused", 3)
        assert "train" not in steps(world, again.run_id)
        looks = "SELECT benchmark_version FROM verdicts WHERE version_id = 3 ORDER BY id"
        assert world.ask(looks) == [(2,), (3,)]
        allowed = nightly(plan=other, limits=worlds.LIMITS)
        assert (allowed.state, allowed.version_id) == ("deployed", 3)
        assert "train" not in steps(world, allowed.run_id)
        assert world.ask("SELECT version_id FROM champion") == [(3,)]
        world.check()


def test_a_diverged_night_changes_nothing(story: Story) -> None:
    """A loss that is no number ends the run with one line; nothing that serves has changed."""
    wild = Plan.from_dict(
        worlds.SECOND_PLAN.to_dict()
        | {"optimizer": "sgd", "learning_rate": 100.0, "gradient_clip": None}
    )
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        before = kept(world)
        with pytest.raises(Diverged):
            nightly(plan=wild, limits=worlds.LIMITS)
        state, reason = last_run(world)
        assert state == "failed"
        assert reason.startswith("Diverged: epoch ")
        assert "\n" not in reason
        assert kept(world) == before
        world.check()


def test_a_night_whose_objects_are_gone_changes_nothing(story: Story) -> None:
    """Without the champion's checkpoint the night fails; put back, the next one succeeds."""
    with worlds.twin(story.waiting) as world:
        before = kept(world)
        [(digest,)] = world.ask("SELECT checkpoint_digest FROM champion")
        body = world.storage.read(checkpoint_key(digest))
        world.storage.delete(checkpoint_key(digest))
        with pytest.raises(Gone):
            nightly(plan=worlds.SECOND_PLAN, limits=worlds.LIMITS)
        state, reason = last_run(world)
        assert state == "failed"
        assert reason.startswith(f"Gone: S3 at {world.services.s3_endpoint}")
        assert "\n" not in reason
        assert kept(world) == before
        world.storage.write(checkpoint_key(digest), body)
        outcome = nightly(plan=worlds.SECOND_PLAN, limits=worlds.LIMITS)
        assert outcome.state == "deployed"
        world.check()
        same = "SELECT checkpoint_digest FROM champion"
        assert world.ask(same) == story.done.ask(same)


def test_without_a_benchmark_no_night_begins(
    database: Database, storage: Storage, prefect_server: str
) -> None:
    """Nothing could be judged, so the mend is said at once and nothing is trained."""
    with pytest.raises(NoBenchmark, match="regraft benchmark freeze"):
        nightly(plan=worlds.FIRST_PLAN)
