"""The training step: by class name, once, resumable, and closed when it cannot succeed."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from worlds import BROKEN, Story, World

from flows.nightly import nothing_new
from infra.embedded import Addresses
from records import objects, runs, versions
from tasks import checkpoints, pixels
from tasks.pixels import Sources
from tasks.snapshot import freeze_snapshot, read
from tasks.training import HOPELESS, machine, train_version, trained_by, write_candidate
from vision import network as networks
from vision.fitting import Diverged
from vision.memory import CPU_WITHOUT_MEMORY
from vision.network import BadCheckpoint
from vision.plan import BadPlan, Plan


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


@contextmanager
def after_two_nights(story: Story) -> Iterator[tuple[World, int, str]]:
    """A copy of the rows, a run, and the snapshot of the second night."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        with world.transaction() as session:
            run_id = runs.begin(session, "control", {}, None)
            snapshot = versions.get(session, 2).snapshot_digest
        yield world, run_id, snapshot


def test_a_new_class_gets_a_fresh_head_on_the_parents_backbone(story: Story) -> None:
    """With rates of nearly nothing, all but the head is the parent's, and the head is nobody's."""
    still = replace(worlds.SECOND_PLAN, epochs=1, learning_rate=1e-9, batch_norm="eval")
    with after_two_nights(story) as (_, run_id, snapshot):
        candidate = write_candidate.fn(run_id, "control", snapshot, still, 1)
        train_version.fn(run_id, candidate)
        child, parent = checkpoints.load(candidate), checkpoints.load(1)
    assert parent.class_names == ("circle", "cross", "square")
    assert child.class_names == ("circle", "cross", "ring", "square")
    fresh = networks.head_keys(child.network)
    theirs = parent.network.state_dict()
    for key, tensor in child.network.state_dict().items():
        if key not in fresh:
            assert torch.allclose(tensor, theirs[key], atol=1e-6), key


def test_as_many_classes_of_other_names_get_a_fresh_head(story: Story) -> None:
    """Three classes against the parent's three, one of them another: no row of the head is kept."""
    still = replace(worlds.SECOND_PLAN, epochs=1, learning_rate=1e-9, batch_norm="eval")
    with after_two_nights(story) as (world, run_id, _):
        # The newcomers' snapshot without `square`, as a cutoff above its count would give it.
        world.act(
            "UPDATE images SET withdrawn_at = now() WHERE class_id = "
            "(SELECT id FROM classes WHERE name = 'square')"
        )
        snapshot = freeze_snapshot.fn(run_id, still)
        candidate = write_candidate.fn(run_id, "control", snapshot, still, 1)
        train_version.fn(run_id, candidate)
        child, parent = checkpoints.load(candidate), checkpoints.load(1)
        with world.transaction() as session:
            heat = versions.get(session, candidate).temperature
    assert len(child.class_names) == len(parent.class_names)
    assert child.class_names == ("circle", "cross", "ring")
    # Trained heads are far from what a new one starts with, and these are not the parent's.
    mine = networks.head(child.network).weight
    theirs = networks.head(parent.network).weight
    assert isinstance(mine, torch.Tensor)
    assert isinstance(theirs, torch.Tensor)
    assert mine.shape == theirs.shape
    # the temperature, which is in the head's weights, is no part of what they have learned
    assert heat is not None
    assert float(heat * mine.detach().abs().max()) < 0.1
    assert not any(torch.allclose(heat * mine[row], theirs[row], atol=1e-3) for row in range(3))


def test_known_classes_inherit_their_rows(story: Story) -> None:
    """Trained with rates of nearly nothing, three rows are the parent's, by name; it is stored."""
    still = replace(worlds.SECOND_PLAN, recipe="inherit", epochs=1, learning_rate=1e-9,
                    batch_norm="eval")  # fmt: skip
    with after_two_nights(story) as (world, run_id, snapshot):
        candidate = write_candidate.fn(run_id, "control", snapshot, still, 1)
        train_version.fn(run_id, candidate)
        child, parent = checkpoints.load(candidate), checkpoints.load(1)
        with world.transaction() as session:
            version = versions.get(session, candidate)
    stored, heat = version.resolved, version.temperature
    assert heat is not None
    mine, theirs = child.network.state_dict(), parent.network.state_dict()
    for key in networks.head_keys(child.network):
        for name in parent.class_names:
            one = mine[key][child.class_names.index(name)]
            whose = theirs[key][parent.class_names.index(name)]
            assert torch.allclose(heat * one, whose, atol=1e-6)
        assert float(heat * mine[key][child.class_names.index("ring")].abs().max()) < 0.1
    assert stored is not None
    assert stored["kept_classes"] == ["circle", "cross", "square"]


def test_a_trained_version_is_never_trained_again(story: Story) -> None:
    """Asked once more, the same work finds its version and leaves it as it is."""
    with after_two_nights(story) as (world, run_id, snapshot):
        before = world.ask("SELECT * FROM versions ORDER BY id")
        found = write_candidate.fn(run_id, "nightly", snapshot, worlds.SECOND_PLAN, 1)
        assert found == 2
        train_version.fn(run_id, found)
        assert world.ask("SELECT * FROM versions ORDER BY id") == before


def test_what_trained_it_is_stored(story: Story) -> None:
    """A version names its machine, every epoch in order, and leaves no scraps behind."""
    world = story.done
    [(machine, plan, stored)] = world.ask(
        "SELECT machine, plan, resolved FROM versions WHERE id = 2"
    )
    assert {"processor", "libraries", "threads", "precision", "commit"} <= set(machine)
    assert Plan.from_dict(plan) == worlds.SECOND_PLAN
    open_ones = {name for name, value in plan.items() if value is None}
    decided = {"mean", "std", "backbone_learning_rate", "way"}
    assert decided <= open_ones
    assert {name for name, value in stored["plan"].items() if value is None} == open_ones - decided
    assert stored["kept_classes"] == []  # a fresh head
    assert stored["saved"] == "last"
    assert re.fullmatch("[0-9a-f]{64}", stored["start"])
    if machine["commit"] is not None:
        assert re.fullmatch("[0-9a-f]{40}(-dirty)?", machine["commit"])
    numbers = world.ask("SELECT number FROM epochs WHERE version_id = 2 ORDER BY number")
    assert numbers == [(n + 1,) for n in range(worlds.SECOND_PLAN.epochs)]
    assert list((world.folder / "training").iterdir()) == []


def test_a_plan_of_before_is_trained_shown_and_compared(
    story: Story, terminal: Callable[..., str]
) -> None:
    """A stored plan with fields that have no effect, which nobody may ask for now, stays whole."""
    ignored: dict[str, Any] = {"unfreeze": 9, "effective_beta": 0.5}
    older = replace(worlds.SECOND_PLAN, epochs=1, **ignored)
    with after_two_nights(story) as (world, run_id, snapshot):
        found = write_candidate.fn(run_id, "control", snapshot, older, 2)
        train_version.fn(run_id, found)
        [(plan, digest, stored)] = world.ask(
            "SELECT plan, plan_digest, resolved FROM versions WHERE id = :v", v=found
        )
        assert (Plan.from_dict(plan), digest) == (older, older.digest())
        assert stored["plan"].items() >= ignored.items()
        assert checkpoints.load(found).plan.unfreeze == 9
        assert "test_resnet" in terminal("show", str(found))

        world.act(
            worlds.FREE, "UPDATE runs SET plan = plan || '{\"unfreeze\": 9}'::jsonb WHERE id = 2"
        )
        again = replace(worlds.SECOND_PLAN, unfreeze=9)
        told = nothing_new(snapshot, again, worlds.LIMITS, 2, 2)
        assert told is not None
        assert "serves already" in told


def test_the_commit_is_gits_or_what_the_image_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no checkout can be asked, it is the setting; libraries are all that computed."""
    monkeypatch.setenv("REGRAFT_COMMIT", "0123abc-dirty")
    machine.cache_clear()
    asked = machine()["commit"]
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    machine.cache_clear()
    try:
        assert machine()["commit"] == "0123abc-dirty"
        assert asked is not None
        assert asked != "0123abc-dirty"
        monkeypatch.delenv("REGRAFT_COMMIT")
        machine.cache_clear()
        assert machine()["commit"] is None
    finally:
        machine.cache_clear()
    plain, other = (trained_by({"features": name, "threads": 1})
                    for name in ("eager float32", "onnxruntime float32"))  # fmt: skip
    assert other["threads"] == 1
    assert set(other["libraries"]) - set(plain["libraries"]) == {"onnxruntime"}
    assert set(trained_by({})["libraries"]) == set(plain["libraries"])


def test_trained_again_by_its_resolved_plan_a_version_has_the_same_bytes(story: Story) -> None:
    """Snapshot, parent and the stored plan with nothing left open give the same checkpoint."""
    with after_two_nights(story) as (world, run_id, snapshot):
        with world.transaction() as session:
            before = versions.get(session, 2)
        assert before.resolved is not None
        plan = Plan.from_dict(before.resolved["plan"])
        candidate = write_candidate.fn(run_id, "control", snapshot, plan, before.parent_id)
        assert candidate != 2
        train_version.fn(run_id, candidate)
        with world.transaction() as session:
            after = versions.get(session, candidate)
    assert after.checkpoint_digest == before.checkpoint_digest
    assert after.resolved == before.resolved


def closed(
    world: World, run_id: int, snapshot: str, plan: Plan, parent: int | None
) -> Exception:
    """Train what cannot succeed: its candidate is closed with one line, and may begin anew."""
    candidate = write_candidate.fn(run_id, "nightly", snapshot, plan, parent)
    with pytest.raises(HOPELESS) as caught:
        train_version.fn(run_id, candidate)
    with world.transaction() as session:
        row = versions.get(session, candidate)
    assert (row.state, row.checkpoint_digest) == ("failed", None)
    assert row.reason == str(caught.value)
    assert "\n" not in row.reason
    assert not (world.folder / "training" / f"version-{candidate}").exists()
    assert write_candidate.fn(run_id, "nightly", snapshot, plan, parent) != candidate
    return caught.value


@pytest.mark.parametrize(
    ("change", "parent", "error", "reason"),
    [
        (
            {"optimizer": "sgd", "learning_rate": 100.0, "gradient_clip": None, "epochs": 4},
            2, Diverged, r"epoch \d+, step \d+: the (validation )?loss is (nan|inf)",
        ),
        ({"architecture": "test_vit"}, 2, BadPlan, "the parent is test_resnet"),
        ({"architecture": "test_rasnet", "recipe": "scratch"}, 2, BadPlan, "near are test_resnet"),
        ({"recipe": "two-phase", "head_epochs": 1, "unfreeze": 9}, 2, BadPlan,
         "unfreeze=9: test_resnet has 4 blocks; use 1 to 4"),
        ({"recipe": "two-phase", "head_epochs": 1}, None, BadPlan,
         "recipe='two-phase': it freezes the backbone, .* name weights, or .* recipe='all'"),
        ({"recipe": "inherit"}, None, BadPlan, "no parent whose head could be kept"),
        ({"weights": "s3://weights/none.safetensors"}, None, BadCheckpoint,
         "weights=s3://weights/none.safetensors: the bucket has no such object; put it there"),
        ({"weights": f"s3://{BROKEN}"}, None, BadCheckpoint,
         rf"^weights=s3://{BROKEN}: not a readable safetensors file \([^/]*\); put a sound one "),
    ],
)  # fmt: skip
def test_training_that_cannot_succeed_closes_its_candidate(
    story: Story, change: dict[str, object], parent: int | None, error: type[Exception], reason: str
) -> None:
    """The candidate says why it failed, has no checkpoint, and the same plan may begin anew."""
    plan = Plan.from_dict(worlds.SECOND_PLAN.to_dict() | change)
    with after_two_nights(story) as (world, run_id, snapshot):
        raised = closed(world, run_id, snapshot, plan, parent)
        assert type(raised) is error
        assert re.search(reason, str(raised))
        world.check()


def train_in_little_memory(
    run_id: int, candidates: tuple[int, int, int], plan: Plan, sources: Sources
) -> None:
    """Train the first with all the memory there is, the others with 300 MB more than it took.

    Whatever else would want memory of its own is there before: code, connections, pixels.
    """
    import resource  # there is none on Windows

    first, *others = candidates
    train_version.fn(run_id, first)
    pixels.opened(plan.geometry, sources)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + 300 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    for candidate in others:
        train_version.fn(run_id, candidate)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory so")
def test_training_that_finds_no_memory_closes_its_candidate(story: Story) -> None:
    """Parts of one picture are tried, then the mend is named; with it, the same memory suffices."""
    fits = replace(worlds.SECOND_PLAN, recipe="scratch", epochs=1, batch_size=2, batch_norm="eval",
                   most=12)  # fmt: skip
    large = replace(fits, image_size=1024)
    with after_two_nights(story) as (world, run_id, _):
        # two classes, so that the pixels take 100 MB and one picture's activations much more
        world.act(
            "UPDATE images SET withdrawn_at = now() WHERE class_id IN "
            "(SELECT id FROM classes WHERE name IN ('circle', 'square'))"
        )
        snapshot = freeze_snapshot.fn(run_id, fits)
        candidates = tuple(
            write_candidate.fn(run_id, "control", snapshot, plan, None)
            for plan in (replace(fits, seed=1), fits, large)
        )
        with world.transaction() as session:
            images = [one for split in read(snapshot).images.values() for one in split]
            sources = objects.sources(session, images)
        child = worlds.begin(
            world, "test_training", "train_in_little_memory",
            run_id=run_id, candidates=candidates, plan=large, sources=sources,
        )  # fmt: skip
        child.join(120)
        assert child.exitcode == 1
        with world.transaction() as session:
            *fitting, closed_one = [versions.get(session, one) for one in candidates]
        assert [one.state for one in fitting] == ["trained", "trained"]
        assert (closed_one.state, closed_one.checkpoint_digest) == ("failed", None)
        assert re.fullmatch(
            r"images of 1024 px do not fit into the memory, not even 1 at a time "
            rf"\(.*({'|'.join(map(re.escape, CPU_WITHOUT_MEMORY))}).*\): "
            "use a smaller image_size or architecture", closed_one.reason or "",
        ), closed_one.reason  # fmt: skip
        assert list((world.folder / "training").iterdir()) == []
        again = write_candidate.fn(run_id, "control", snapshot, large, None)
        assert again not in candidates
        world.check()


def test_a_parent_of_other_bytes_is_no_parent(story: Story) -> None:
    """Its checkpoint was changed in S3: the candidate is closed, naming the object and the mend."""
    digest = "0" * 64
    with after_two_nights(story) as (world, run_id, snapshot):
        world.act(worlds.FREE, "UPDATE versions SET checkpoint_digest = :d WHERE id = 2", d=digest)
        world.storage.write(versions.checkpoint_key(digest), b"another network")
        try:
            raised = closed(world, run_id, snapshot, worlds.SECOND_PLAN, 2)
        finally:
            world.storage.delete(versions.checkpoint_key(digest))
    assert isinstance(raised, BadCheckpoint)
    assert "holds other bytes" in str(raised)
    assert "restore it from a backup" in str(raised)
