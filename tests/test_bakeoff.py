"""The bake-off: one snapshot, several architectures; one that fails does not end the others."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import worlds
from PIL import Image
from sqlalchemy.exc import DBAPIError
from test_kill import kill_at
from worlds import Story, World

from flows import bakeoff as contest
from flows.bakeoff import Bakeoff, Entrant, Share, bakeoff
from flows.cli.runs import _entrant
from flows.nightly import nightly
from infra.embedded import Addresses
from records import benchmark, deployments, flips
from records.versions import checkpoint_key
from tasks import promotion
from vision.plan import BadPlan, Plan

PLAN = replace(worlds.SECOND_PLAN, epochs=2)
SMALL = replace(PLAN, image_size=24)
UNKNOWN = replace(PLAN, architecture="no_such_network")
OTHER = replace(PLAN, architecture="test_efficientnet", epochs=1)


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


@pytest.fixture(scope="module")
def held(story: Story) -> Iterator[tuple[World, Bakeoff]]:
    """The world after a bake-off of three entrants, one of which timm does not know."""
    world = worlds.clone(story.done)
    with worlds.inside(world):
        done = bakeoff(plans=[PLAN, UNKNOWN, SMALL])
    yield world, done
    worlds.drop(world)


def test_all_learn_one_snapshot_and_a_failure_is_a_row(
    story: Story, held: tuple[World, Bakeoff]
) -> None:
    """Figures of each, one reason in the table, a picture in S3; nothing serves by it."""
    world, done = held
    with worlds.inside(world):
        good, bad, small = done.entrants
        assert bad.problem is not None
        assert "no_such_network" in bad.problem
        assert bad.benchmark is None
        for one, size in ((good, 32), (small, 24)):
            assert one.name == f"test_resnet@{size}"
            assert one.start == "from a random start"
            assert one.problem is None
            [facts] = world.ask(
                "SELECT purpose, parent_id, snapshot_digest, checkpoint_digest, latency_seconds "
                "FROM versions WHERE id = :v", v=one.version_id,
            )  # fmt: skip
            assert facts[:3] == ("bakeoff", None, done.snapshot_digest)
            body = world.storage.read(checkpoint_key(facts[3]))
            assert one.checkpoint_bytes == len(body)
            assert one.latency_seconds == facts[4]
            [(seconds, epochs)] = world.ask(
                "SELECT sum(seconds), count(*) FROM epochs WHERE version_id = :v", v=one.version_id
            )
            assert (one.seconds, one.epochs) == (pytest.approx(seconds), epochs)
            assert one.benchmark is not None
            assert one.benchmark.low <= one.benchmark.accuracy <= one.benchmark.high
            assert one.test is not None
        assert world.ask("SELECT * FROM deployments") == story.done.ask("SELECT * FROM deployments")
        columns, rows = contest.table(done)
        assert {len(row) for row in rows} == {len(columns)}
        assert rows[-1][columns.index("problem")] == bad.problem
        right, price, failed = contest.for_terminals(done)
        assert [row[0] for row in right[1]] == [row[0] for row in price[1]]
        assert failed == (["entrant", "problem"], [[bad.name, bad.problem]])
        assert done.picture is not None
        with Image.open(BytesIO(world.storage.read(done.picture))) as picture:
            assert picture.format == "PNG"
        states = "SELECT state, version_id FROM runs WHERE purpose = 'bakeoff' ORDER BY id"
        assert [state for state, _ in world.ask(states)] == [
            "completed", "completed", "failed", "completed"
        ]  # fmt: skip
        world.check()


def test_once_more_with_another_it_trains_that_alone(held: tuple[World, Bakeoff]) -> None:
    """What has its figures is left as it is."""
    with worlds.rows_of(held[0]) as world, worlds.inside(world):
        good, _, small = held[1].entrants
        assert looks(world) == [(2, "verdict"), (good.version_id, "bakeoff"),
                                (small.version_id, "bakeoff")]  # fmt: skip
        before = world.ask("SELECT id, checkpoint_digest FROM versions WHERE state = 'trained'")
        more = bakeoff(plans=[PLAN, SMALL, OTHER])
        assert more.entrants[:2] == (good, small)
        assert looks(world)[3:] == [(more.entrants[2].version_id, "bakeoff")]  # and no other twice
        assert more.entrants[2].name == "test_efficientnet@32"
        assert more.entrants[2].benchmark is not None
        after = world.ask("SELECT id, checkpoint_digest FROM versions WHERE state = 'trained'")
        assert len(after) == len(before) + 1
        assert set(before) < set(after)


def test_the_verb_shows_figures_reasons_and_the_picture(
    held: tuple[World, Bakeoff], terminal: Callable[..., str], tmp_path: Path
) -> None:
    """Asked again for the same, it tells what there is and trains nothing."""
    with worlds.rows_of(held[0]) as world, worlds.inside(world):
        trained = "SELECT * FROM versions WHERE state = 'trained' ORDER BY id"
        before = world.ask(trained)
        words = []
        for plan in (PLAN, SMALL):
            words.append(f"{tmp_path}/{plan.image_size}.json")
            Path(words[-1]).write_text(json.dumps(plan.to_dict()))
        common = ("--set", f"cutoff={PLAN.cutoff}", "--pictures", str(tmp_path / "plots"))
        shown = terminal("bakeoff", *words, "no_such_network@32", *common)
        good, _, small = held[1].entrants
        for one in (good, small):
            assert one.benchmark is not None
            assert shown.count(f"skipped: {one.name} has its figures already\n") == 1, shown
            assert shown.count(f"\n{one.name} ") == 2, shown  # what it can, and what it costs
            assert f"{one.benchmark.accuracy:.1%}" in shown
        assert f"{UNKNOWN.architecture}@32" in shown
        assert "does not know it" in " ".join(shown.split())
        with Image.open(tmp_path / "plots" / "bakeoff.png") as picture:
            assert picture.format == "PNG"
        assert world.ask(trained) == before


def looks(world: World) -> list[tuple[int, str]]:
    """What was looked at on the newest benchmark version; all of it is counted."""
    with world.transaction() as session:
        newest = benchmark.current(session)
        told = benchmark.looks(session, newest.version)
    assert newest.looks == len(told)
    return [(one.version_id, one.kind) for one in told]


def test_nights_go_on_from_a_winner_of_another_architecture(story: Story) -> None:
    """Adopted, its network is the next night's, arguments and image size with it."""
    other = replace(
        worlds.FIRST_PLAN, architecture="test_efficientnet", image_size=24,
        arguments={"global_pool": "avgmax"},
    )  # fmt: skip
    with worlds.twin(story.waiting) as world:
        [winner] = bakeoff(plans=[other]).entrants
        assert winner.version_id == 2
        adopted = promotion.adopt(2, {}, "Zoë", "it is smaller")
        assert adopted.deployment_id, adopted.reason
        assert "was asked for architecture=test_resnet: have the next ones leave it" in (
            adopted.reason
        )
        with world.transaction() as session:
            judged = deployments.verdict(session, 2)
            assert judged is not None
            turned = [one.sha256 for one in flips.of_verdict(session, judged)]
        maps = world.ask("SELECT version_id, sha256 FROM gradcams")
        assert {(version, one) for one in turned for version in (1, 2)} <= set(maps)
        assert any(version == 2 for version, _ in maps)
        with pytest.raises(BadPlan, match="the parent is test_efficientnet"):
            nightly(plan=worlds.SECOND_PLAN, limits=worlds.LIMITS)
        left_open = replace(worlds.SECOND_PLAN, architecture=None, image_size=Plan().image_size)
        night = nightly(plan=left_open, limits=worlds.LIMITS)
        assert night.state == "deployed", night.reason
        [(parent, trained)] = world.ask("SELECT parent_id, plan FROM versions WHERE id = :v",
                                        v=night.version_id)  # fmt: skip
        assert parent == 2
        assert Plan.from_dict(trained) == replace(
            worlds.SECOND_PLAN, architecture="test_efficientnet", image_size=24,
            arguments={"global_pool": "avgmax"},
        )  # fmt: skip
        assert nightly(plan=left_open, limits=worlds.LIMITS).state == "skipped"
        world.check()


def test_killed_it_goes_on_with_the_entrant_it_was_at(story: Story) -> None:
    """What the first has learned is kept, and the second is the version that was begun."""
    def begin(world: World) -> worlds.ForkServerProcess:
        return worlds.begin(world, "flows.bakeoff", "bakeoff", plans=[PLAN, SMALL])

    with worlds.twin(story.done) as world:
        kill_at(world, "epochs", "INSERT", "NEW.version_id = 4 AND NEW.number = 2", begin)
        world.check()
        done = bakeoff(plans=[PLAN, SMALL])
        assert [one.version_id for one in done.entrants] == [3, 4]
        assert world.ask("SELECT count(*) FROM versions") == [(4,)]
        trained = world.ask("SELECT run_id FROM run_steps WHERE name = 'train' AND run_id > 2")
        assert len(trained) == 2
        world.check()


def test_a_fault_of_the_service_ends_it(story: Story) -> None:
    """What is no fault of an architecture is raised, and not told as one row after the other."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        world.act(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'no space left'; END $$",
            "CREATE TRIGGER full_disk BEFORE INSERT ON epochs EXECUTE FUNCTION full_disk()",
        )
        with pytest.raises(DBAPIError, match="no space left"):
            bakeoff(plans=[PLAN, SMALL])
        states = world.ask("SELECT state FROM runs WHERE purpose = 'bakeoff' ORDER BY id")
        assert states == [("completed",), ("failed",)]


@pytest.mark.parametrize(
    ("plans", "said"),
    [
        ([], "name at least one architecture"),
        ([PLAN, replace(PLAN, image_size=64, cutoff=7)], "give all the same"),
        ([PLAN, replace(PLAN, seed=3)], "test_resnet@32 is named twice"),
        ([PLAN, replace(SMALL, targeted=True)], "targeted=True: only a night's pictures"),
    ],
    ids=["none", "other images", "twice", "aimed"],
)
def test_entrants_that_cannot_be_compared_are_refused(
    story: Story, plans: list[Plan], said: str
) -> None:
    """Before anything is frozen or trained."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        with pytest.raises(BadPlan, match=said):
            bakeoff(plans=plans)
        assert world.ask("SELECT count(*) FROM runs WHERE purpose = 'bakeoff'") == [(0,)]


def test_entrants_are_named_on_the_command_line(tmp_path: object) -> None:
    """An architecture, one at a size, or a file with fields of its own over the common ones."""
    common = {"epochs": 3, "image_size": 96}
    assert _entrant("resnet18", common) == Plan("resnet18", epochs=3, image_size=96)
    assert _entrant("resnet18@64", common).image_size == 64
    own = f"{tmp_path}/lite.json"
    with open(own, "w") as file:
        file.write('{"architecture": "tf_efficientnet_lite0", "epochs": 9}')
    assert _entrant(own, common) == Plan("tf_efficientnet_lite0", epochs=9, image_size=96)
    for word, said in (("resnet18@big", "ARCHITECTURE@SIZE"), ("nowhere.json", "is not a file")):
        with pytest.raises(BadPlan, match=said):
            _entrant(word, common)
    for word in ("resnet18", own):
        with pytest.raises(BadPlan, match="unfreeze=2: recipe='all' has one phase"):
            _entrant(word, common | {"unfreeze": 2})


@pytest.mark.parametrize("count", [1, 9])
def test_any_number_of_entrants_can_be_drawn(count: int) -> None:
    """A picture comes out for one and for many, with and without weights."""
    entrants = [
        Entrant(
            f"network_{place}@160", "from weights x" if place % 2 else "from a random start", place,
            None, 10, 60.0 * place, 0.9, None, Share(0.5 + place / 20, 0.4 + place / 20, 0.99, 300),
            0.01 * place, 1_000_000 * place,
        )
        for place in range(count)
    ]  # fmt: skip
    with Image.open(BytesIO(contest.draw(entrants))) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
