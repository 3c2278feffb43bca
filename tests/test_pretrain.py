"""Pretraining: stages of their own classes, each from the one before, and a root for nights."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nights
import pytest
import torch
import worlds
from intakes import picture, put, query, take_in
from pictures import jpeg, photograph, png
from sqlalchemy.exc import DBAPIError
from test_kill import kill_at
from worlds import World

from flows.nightly import nightly
from flows.pretrain import pretrain
from infra.database import Database
from infra.embedded import Addresses
from infra.storage import Storage
from records import runs, sets, snapshots, versions
from records.invariants import check_invariants
from records.versions import NoRoot
from tasks import benchmark, checkpoints
from tasks import snapshot as listing
from tasks.benchmark import BENCHMARK
from tasks.loading import load_folder
from tasks.sets import BadSet, freeze_set, locate
from tasks.snapshot import NothingToTrain
from vision import network as networks
from vision.plan import BadPlan

PLAN = replace(worlds.SECOND_PLAN, epochs=2)
STAGES = ["sets/shapes/", "sets/lines/"]


@pytest.fixture(scope="module")
def fresh(
    services: Addresses,
    template: str,
    prefect_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """A world with a benchmark, a library that no night has seen, and two sets in S3."""
    scratch = tmp_path_factory.mktemp("sets")
    world = worlds.make(services, template)
    with worlds.inside(world):
        nights.tiny_library(scratch)
        for prefix, names in zip(STAGES, (("square", "triangle"), ("bar", "ring")), strict=True):
            load_folder(nights.draw(scratch / names[0], names, seed=5000), prefix)
    yield world
    worlds.drop(world)


@pytest.fixture(scope="module")
def pretrained(fresh: World) -> Iterator[World]:
    """The same world after both stages."""
    world = worlds.clone(fresh)
    with worlds.inside(world):
        outcomes = pretrain(sets=STAGES, plan=PLAN)
    assert [(one.state, one.version_id) for one in outcomes] == [("trained", 1), ("trained", 2)]
    world.check()
    yield world
    worlds.drop(world)


def test_each_stage_is_a_version_from_the_one_before(pretrained: World) -> None:
    """Two versions of purpose `pretrain`, with figures, and the library knows nothing of them."""
    rows = pretrained.ask(
        "SELECT id, purpose, state, parent_id, parent_purpose, class_names FROM versions "
        "ORDER BY id"
    )
    assert rows == [
        (1, "pretrain", "trained", None, None, ["square", "triangle"]),
        (2, "pretrain", "trained", 1, "pretrain", ["bar", "ring"]),
    ]
    assert pretrained.ask("SELECT count(*) FROM images") == [(0,)]
    assert pretrained.ask("SELECT count(*) FROM classes") == [(0,)]
    assert pretrained.ask("SELECT DISTINCT policy FROM snapshots") == [(sets.POLICY,)]
    subjects = pretrained.ask("SELECT version_id, subject FROM evaluations ORDER BY 1, 2")
    assert subjects == [(1, "test"), (1, "validation"), (2, "test"), (2, "validation")]
    told = pretrained.ask("SELECT purpose, state, version_id FROM runs ORDER BY id")
    assert told == [("pretrain", "completed", 1), ("pretrain", "completed", 2)]


def test_a_stage_starts_from_the_weights_before_it(pretrained: World) -> None:
    """With rates of nearly nothing the backbone of the next stage is the one that was there."""
    still = replace(PLAN, epochs=1, learning_rate=1e-9, batch_norm="eval")
    with worlds.twin(pretrained):
        [outcome] = pretrain(sets=STAGES[:1], plan=still, root=2)
        child, parent = checkpoints.load(outcome.version_id or 0), checkpoints.load(2)
    theirs = parent.network.state_dict()
    fresh_head = networks.head_keys(child.network)
    for key, tensor in child.network.state_dict().items():
        if key not in fresh_head:
            assert torch.allclose(tensor, theirs[key], atol=1e-6), key


def test_a_finished_pretraining_is_not_done_again(
    pretrained: World, terminal: Callable[..., str], tmp_path: Path
) -> None:
    """Asked once more it finds both versions, says so once of each, and trains nothing."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(PLAN.to_dict()))
    with worlds.rows_of(pretrained) as world, worlds.inside(world):
        before = world.ask("SELECT * FROM versions ORDER BY id")
        shown = terminal("pretrain", *(f"s3://{one}" for one in STAGES), "--plan", str(plan))
        for version, prefix in enumerate(STAGES, start=1):
            told = f"skipped: version {version} knows s3://{prefix} already"
            assert shown.count(told) == 1, shown
        assert shown.endswith("start from it: regraft nightly --from 2\n")
        ended = world.ask("SELECT state, version_id FROM runs WHERE id > 2 ORDER BY id")
        assert ended == [("skipped", 1), ("skipped", 2)]
        assert world.ask("SELECT * FROM versions ORDER BY id") == before
        steps = {name for (name,) in world.ask("SELECT name FROM run_steps WHERE run_id > 2")}
        assert steps == {"read set", "snapshot"}


def test_killed_in_its_second_stage_it_goes_on_there(fresh: World, pretrained: World) -> None:
    """kill -9 after an epoch of stage two: the same checkpoints, and stage one trained once."""

    def begin(world: World) -> worlds.ForkServerProcess:
        return worlds.begin(world, "flows.pretrain", "pretrain", sets=STAGES, plan=PLAN)

    with worlds.twin(fresh) as world:
        where = "NEW.version_id = 2 AND NEW.number = 2"
        kill_at(world, "epochs", "INSERT", where, begin)
        world.check()
        again = begin(world)
        again.join(120)
        assert again.exitcode == 0
        world.check()
        digests = "SELECT snapshot_digest, checkpoint_digest FROM versions ORDER BY id"
        assert world.ask(digests) == pretrained.ask(digests)
        states = "SELECT state, version_id FROM runs ORDER BY id"
        assert world.ask(states) == [
            ("completed", 1), ("crashed", 2), ("skipped", 1), ("completed", 2)
        ]  # fmt: skip


def test_the_first_night_starts_from_it_and_it_never_serves(pretrained: World) -> None:
    """`root` is the first version's parent; later nights start from the champion as ever."""
    with worlds.twin(pretrained) as world:
        plan = replace(worlds.SECOND_PLAN, epochs=10)
        first = nightly(plan=plan, limits=worlds.LIMITS, root=2)
        assert (first.state, first.version_id) == ("deployed", 3)
        second = nightly(plan=replace(plan, seed=1), limits=worlds.LIMITS, root=2)
        assert second.version_id == 4
        rows = world.ask("SELECT parent_id, parent_purpose FROM versions WHERE id > 2 ORDER BY id")
        assert rows == [(2, "pretrain"), (3, "nightly")]
        with world.transaction() as session:
            line = versions.lineage(session, 4)
            assert versions.root(session, 2).id == 2
        assert [(one.id, one.purpose) for one in line] == [
            (4, "nightly"), (3, "nightly"), (2, "pretrain"), (1, "pretrain")
        ]  # fmt: skip
        assert [one.epochs for one in line] == [10, 10, 2, 2]
        world.check()
        for version in (1, 2):
            with pytest.raises(DBAPIError, match="may not serve"):
                world.act(
                    "INSERT INTO deployments (version_id, purpose, previous_id, verdict_id, kind, "
                    "deployed_by, why) SELECT :v, 'pretrain', max(id), min(verdict_id), "
                    "'promotion', 'a test', 'to try' FROM deployments",
                    v=version,
                )
        with pytest.raises(NoRoot, match="version 3 is a nightly version"):
            pretrain(sets=STAGES, plan=PLAN, root=3)


@pytest.fixture(scope="module")
def refusing(fresh: World) -> Iterator[World]:
    """One copy of the rows for all that is refused, since it changes none that another reads."""
    with worlds.rows_of(fresh) as world:
        yield world


@pytest.mark.parametrize(
    ("parameters", "error", "said"),
    [
        ({"sets": []}, BadPlan, "name at least one set"),
        (
            {"sets": STAGES, "plan": replace(PLAN, targeted=True)},
            BadPlan, "targeted=True: only a night's pictures",
        ),
        ({"sets": ["labelled/"]}, BadSet, "belongs to the library"),
        ({"sets": ["benchmark/ring"]}, BadSet, "belongs to the benchmark"),
        ({"sets": ["s3://other/x"]}, BadSet, "this is an address"),
        ({"sets": ["sets/nowhere"]}, BadSet, "holds no images: expected s3://sets/nowhere/<class>"),
        (
            {"sets": STAGES, "plan": replace(PLAN, recipe="scratch")},
            BadPlan, "no stage would go on from the one before",
        ),
        (
            {"sets": STAGES[:1], "plan": replace(PLAN, recipe="scratch"), "root": 1},
            BadPlan, "not from version 1",
        ),
        ({"sets": STAGES, "root": 77}, versions.UnknownVersion, "there is no version 77"),
        ({"sets": STAGES, "plan": replace(PLAN, cutoff=99)}, NothingToTrain, "bar lacks|lacks 87"),
    ],
)  # fmt: skip
def test_what_cannot_be_pretrained_is_said(
    refusing: World, parameters: dict[str, object], error: type[Exception], said: str
) -> None:
    """One line that names the set or field and the mend, and no version."""
    with worlds.inside(refusing) as world:
        with pytest.raises(error, match=said) as caught:
            pretrain(**({"plan": PLAN} | parameters))
        assert "\n" not in str(caught.value)
        assert world.ask("SELECT * FROM versions") == []


# --- the sets themselves ----------------------------------------------------------------------


def freeze(database: Database, prefix: str, cutoff: int = 3) -> str:
    """Freeze a set in a run of its own."""
    with database.transaction() as session:
        run_id = runs.begin(session, "pretrain", PLAN.to_dict(), None)
    return freeze_set.fn(run_id, prefix, replace(PLAN, cutoff=cutoff))


def problems(database: Database) -> dict[str, str]:
    """Why each object is left out."""
    rows = query(database, "SELECT key, problem FROM set_images WHERE problem IS NOT NULL")
    return {key: problem for key, problem in rows}  # noqa: C416


def test_a_set_holds_nothing_of_benchmark_or_library(
    database: Database, storage: Storage
) -> None:
    """Exact and near copies of either are left out with the reason, and bad files with theirs."""
    put(storage, "benchmark/ring/1.png", png(photograph(1)))
    benchmark.freeze("a test", "first")
    put(storage, "labelled/cross/2.png", png(photograph(2)))
    take_in(database)
    for seed in range(10, 16):
        put(storage, f"sets/a/{'one' if seed % 2 else 'two'}/{seed}.png", picture(seed))
    put(storage, "sets/a/one/exact.png", png(photograph(1)))
    put(storage, "sets/a/one/near.jpg", jpeg(photograph(1), 60))
    put(storage, "sets/a/two/near.jpg", jpeg(photograph(2), 60))
    put(storage, "sets/a/two/broken.png", b"no picture")
    put(storage, "sets/a/two/copy.png", picture(10))
    put(storage, "sets/a/one/other.png", picture(12))  # which is two/12.png
    put(storage, "sets/a/two/16.png", picture(16))
    put(storage, "sets/a/stray.png", picture(17))
    digest = freeze(database, "sets/a/", cutoff=3)
    why = problems(database)
    assert sorted(why) == [
        "sets/a/one/exact.png", "sets/a/one/near.jpg", "sets/a/two/broken.png",
        "sets/a/two/near.jpg",
    ]  # fmt: skip
    assert why["sets/a/one/exact.png"] == "in the benchmark"
    assert "of the benchmark" in why["sets/a/one/near.jpg"]
    assert "of the library" in why["sets/a/two/near.jpg"]
    with database.transaction() as session:
        counts = {one.class_name: one for one in snapshots.class_counts(session, digest)}
    # 12 is labelled twice and trains nobody; 10 and its copy count once
    assert {name: one.usable for name, one in counts.items()} == {"one": 3, "two": 3}
    listed = listing.read(digest)
    assert sum(map(len, listed.images.values())) == 6
    assert all(listed.images[split] for split in ("train", "validation", "test"))
    check_invariants(database, storage)

    # and what it holds enters no benchmark any more, by the front door or by the back
    put(storage, f"{BENCHMARK}one/1.png", picture(11))
    with pytest.raises(ValueError, match=r"in a pretraining set: sets/a/one/11\.png"):
        benchmark.grow("a test", "more")  # the only newcomer, hence nothing is left to add
    [(sha256,)] = query(database, "SELECT sha256 FROM set_images WHERE key = 'sets/a/one/11.png'")
    with pytest.raises(DBAPIError, match="in a pretraining set"):
        query(
            database,
            "INSERT INTO benchmark_images (sha256, class_name, source_key, key, added_in) "
            "VALUES (:sha, 'one', 'x', 'x', 1)",
            sha=sha256,
        )
    with pytest.raises(DBAPIError, match="written once"):
        query(database, "UPDATE set_images SET problem = NULL, split = 'train'")


def test_a_grown_set_keeps_its_splits_and_reads_what_is_new(
    database: Database, storage: Storage
) -> None:
    """The same objects give the same snapshot; more of them give another, where none has moved."""
    for seed in range(20):
        put(storage, f"sets/a/{'one' if seed % 2 else 'two'}/{seed}.png", picture(seed))
    first = freeze(database, "sets/a/")
    before = {sha: split for sha, split in query(database, "SELECT sha256, split FROM set_images")}  # noqa: C416
    assert freeze(database, "sets/a/") == first
    for seed in range(20, 30):
        put(storage, f"sets/a/{'one' if seed % 2 else 'two'}/{seed}.png", picture(seed))
    second = freeze(database, "sets/a/")
    assert second != first
    after = {sha: split for sha, split in query(database, "SELECT sha256, split FROM set_images")}  # noqa: C416
    assert len(after) == 30
    assert before.items() <= after.items()
    [(facts,)] = query(
        database, "SELECT facts FROM run_steps WHERE name = 'read set' ORDER BY id DESC LIMIT 1"
    )
    assert facts == {"set": "s3://sets/a/", "listed": 30, "images": 10}
    storage.delete("sets/a/one/1.png")
    third = listing.read(freeze(database, "sets/a/"))
    assert sum(map(len, third.images.values())) == 29


def test_a_folder_is_loaded_once_and_never_mixed_with_another(
    database: Database, storage: Storage, tmp_path: Path
) -> None:
    """The folder's name is the set's; another folder of that name is refused with the mend."""
    folder = nights.draw(tmp_path / "a" / "zoo", ("bar", "ring"), 2)
    assert locate(str(folder)) == "sets/zoo/"
    assert locate(str(folder)) == "sets/zoo/" == locate("s3://sets/zoo")
    assert sum(1 for _ in storage.list("sets/zoo/")) == 4
    other = nights.draw(tmp_path / "b" / "zoo", ("bar", "ring"), 2, seed=50)
    with pytest.raises(BadSet, match="rename the folder, or name s3://sets/zoo/"):
        locate(str(other))
    with pytest.raises(BadSet, match="name a folder of class folders, or s3://PREFIX"):
        locate(str(tmp_path / "nowhere"))
