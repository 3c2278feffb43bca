"""Checkpoints are what their digest says, wherever they lie."""

import hashlib

import pytest
import worlds
from sqlalchemy import text
from worlds import Story

from infra.embedded import Addresses
from infra.storage import Gone, StorageError
from records.versions import checkpoint_key, class_names_digest
from tasks import checkpoints
from vision import network
from vision.network import BadCheckpoint
from vision.plan import Plan


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


def test_names_in_any_script_have_one_hash() -> None:
    """The row's digest of the class names is the checkpoint's, also beyond ASCII."""
    names = ["Eichhörnchen", "リス", "écureuil"]
    assert network._names_digest(names) == class_names_digest(names)


def test_a_checkpoint_is_stored_once_and_never_replaced(story: Story) -> None:
    """The same bytes may be stored again; other bytes under the same digest are refused."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        [(digest,)] = world.ask("SELECT checkpoint_digest FROM versions WHERE id = 1")
        path = checkpoints.fetch(digest)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
        checkpoints.store(path, digest)
        other = world.folder / "other"
        other.write_bytes(b"other weights")
        with pytest.raises(StorageError, match="was to have the digest"):
            checkpoints.store(other, digest)
        assert hashlib.sha256(world.storage.read(checkpoint_key(digest))).hexdigest() == digest


def test_a_checkpoint_of_other_classes_is_not_loaded(story: Story) -> None:
    """Good bytes that name other classes than the version's row are refused."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        plan = Plan.from_dict(worlds.FIRST_PLAN.to_dict())
        names = ["circle", "cross", "zebra"]
        path = world.folder / "other.safetensors"
        digest = network.save(network.build(plan, names), path, plan, names)
        held = world.folder / "cache" / "checkpoints" / f"{digest}.safetensors"
        held.parent.mkdir(parents=True)
        path.rename(held)
        with world.transaction() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.execute(
                text("UPDATE versions SET checkpoint_digest = :d WHERE id = 1"), {"d": digest}
            )
        with pytest.raises(BadCheckpoint, match="names other classes"):
            checkpoints.load(1)


def test_a_lost_checkpoint_is_said_to_be_lost(story: Story) -> None:
    """Neither a version without a checkpoint nor a lost object is loaded as something else."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        world.act(
            "SET LOCAL session_replication_role = replica",
            "UPDATE versions SET checkpoint_digest = repeat('0', 64) WHERE id = 1",
            "UPDATE versions SET state = 'training', checkpoint_digest = NULL WHERE id = 2",
        )
        with pytest.raises(Gone, match="no such object"):
            checkpoints.load(1)
        with pytest.raises(BadCheckpoint, match="version 2 is training: it has no checkpoint"):
            checkpoints.load(2)
