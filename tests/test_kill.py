"""kill -9: a night that died anywhere and was run again leaves what an undisturbed one leaves."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.context import ForkServerProcess
from typing import Any

import psycopg2
import pytest
import worlds
from sqlalchemy.engine import make_url
from worlds import Story, World

from infra.embedded import Addresses

GATE = 4711  # the advisory lock at which a night is made to wait
PATIENCE_SECONDS = 120

# Where Postgres stops the night: table, event, and the rows it stops at.
POINTS = {
    "intake, all fetched": ("objects", "UPDATE", "OLD.sha256 IS NULL AND NEW.sha256 IS NOT NULL"),
    "intake, publishing the batch": ("images", "INSERT", "true"),
    "freezing the snapshot": ("snapshots", "INSERT", "true"),
    "training, after an epoch": ("epochs", "INSERT", "NEW.number = 2"),
    "training, checkpoint stored": ("versions", "UPDATE", "NEW.state <> OLD.state"),
    "evaluating": ("evaluations", "INSERT", "NEW.subject = 'benchmark'"),
    "promotion, judging": ("checks", "INSERT", "NEW.ordinal = 3"),
    "promotion, passed and not deployed": ("gradcams", "INSERT", "true"),
    "promotion, deploying": ("deployments", "INSERT", "true"),
    "deployed, closing the run": ("runs", "UPDATE", "NEW.state = 'completed'"),
}

# What must come out the same, in words that know no clock and no number of tries.
LEFT = {
    "library": """
        SELECT i.sha256, c.name, i.sub_class, i.split, i.sequence, i.group_name, i.origin,
               i.withdrawn_at IS NULL, i.batch_id FROM images i JOIN classes c ON c.id = i.class_id
    """,
    "objects": "SELECT key, etag, state, sha256, batch_id, gone_at IS NULL FROM objects",
    "manifest rows": "SELECT key, row, label, group_name, problem, batch_id FROM manifest_rows",
    "quarantine": "SELECT key, expectation, sentence FROM quarantine",
    "label changes": "SELECT sha256, kind, from_class, to_class FROM label_changes",
    "batches": "SELECT id, state, reason FROM batches",
    "snapshots": "SELECT digest, cutoff, most, images, classes FROM snapshots",
    "versions": """
        SELECT purpose, state, parent_id, snapshot_digest, plan_digest, class_names,
               checkpoint_digest, training_accuracy, validation_accuracy FROM versions
    """,
    "epochs": """
        SELECT version_id, number, phase, train_loss, train_accuracy, validation_loss,
               validation_accuracy, learning_rate FROM epochs
    """,
    "evaluations": """
        SELECT version_id, checkpoint_digest, subject, benchmark_version, batch_id, images,
               accuracy, loss FROM evaluations
    """,
    "answers": """
        SELECT e.version_id, e.subject, e.benchmark_version, a.sha256, a.label, a.top_labels,
               a.top_confidences FROM answers a JOIN evaluations e ON e.id = a.evaluation_id
    """,
    "maps": "SELECT version_id, sha256, target, reason, md5(cells) FROM gradcams",
    "deployment log": """
        SELECT d.kind, d.deployed_by, d.why, v.snapshot_digest, v.plan_digest, v.checkpoint_digest,
               p.snapshot_digest AS parent, b.checkpoint_digest AS before
        FROM deployments d JOIN versions v ON v.id = d.version_id
        LEFT JOIN versions p ON p.id = v.parent_id
        LEFT JOIN deployments f ON f.id = d.previous_id LEFT JOIN versions b ON b.id = f.version_id
    """,
}


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


@pytest.fixture(scope="module")
def undisturbed(story: Story) -> dict[str, list[tuple[Any, ...]]]:
    """What the second night leaves when nobody kills it."""
    return left(story.done)


def left(world: World) -> dict[str, list[tuple[Any, ...]]]:
    """All that a night leaves, in an order of its own."""
    return {what: sorted(world.ask(query), key=repr) for what, query in LEFT.items()}


@contextmanager
def gate(world: World, table: str, event: str, condition: str) -> Iterator[Any]:
    """Stop whoever writes such a row, until the block ends; gives a cursor to watch with."""
    url = make_url(world.url).set(drivername="postgresql")
    with closing(psycopg2.connect(url.render_as_string(hide_password=False))) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(
            f"""
            CREATE FUNCTION wait_at_the_gate() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_advisory_xact_lock({GATE}); RETURN NEW; END $$;
            CREATE TRIGGER aaa_gate BEFORE {event} ON {table} FOR EACH ROW WHEN ({condition})
            EXECUTE FUNCTION wait_at_the_gate();
            SELECT pg_advisory_lock({GATE})
            """
        )
        yield cursor
        cursor.execute(f"SELECT pg_advisory_unlock({GATE})")
        cursor.execute("DROP FUNCTION wait_at_the_gate CASCADE")


def kill_at(
    world: World,
    table: str,
    event: str,
    condition: str,
    begin: Callable[[World], ForkServerProcess] = worlds.begin_night,
) -> None:
    """Start a night in a process of its own and kill -9 it where it writes such a row."""
    with gate(world, table, event, condition) as cursor:
        night = begin(world)
        deadline = time.monotonic() + PATIENCE_SECONDS
        waiting = 0
        while not waiting:
            night.join(0.02)
            assert night.is_alive(), f"the night ended with {night.exitcode} before the gate"
            assert time.monotonic() < deadline, "the night never came to the gate"
            cursor.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
                "AND objid = %s AND database = (SELECT oid FROM pg_database "
                "WHERE datname = current_database())",
                (GATE,),
            )
            [(waiting,)] = cursor.fetchall()
        night.kill()
        night.join()
        assert night.exitcode == -9


def run_again(world: World) -> None:
    """Play the night once more, in a fresh process, to its end."""
    night = worlds.begin_night(world)
    night.join(PATIENCE_SECONDS)
    assert night.exitcode == 0


@pytest.mark.parametrize(
    "point",
    [
        "intake, publishing the batch",
        "training, after an epoch",
        "promotion, passed and not deployed",
        "promotion, deploying",
        "deployed, closing the run",
    ],
)
def test_killed_and_run_again_is_as_undisturbed(
    story: Story, undisturbed: dict[str, list[tuple[Any, ...]]], point: str
) -> None:
    """Library, snapshot, checkpoint, answers and log are those of a night that nobody killed."""
    with worlds.twin(story.waiting) as world:
        serving = world.ask("SELECT * FROM champion")
        kill_at(world, *POINTS[point])
        world.check()
        if not point.startswith("deployed"):
            assert world.ask("SELECT * FROM champion") == serving
        run_again(world)
        world.check()
        now = left(world)
        assert {what for what in LEFT if now[what] != undisturbed[what]} == set()
        states = [state for (state,) in world.ask("SELECT state FROM runs ORDER BY id")]
        expected = "skipped" if point.startswith("deployed") else "completed"
        assert states == ["completed", "crashed", expected]


def test_killed_every_night_it_still_arrives(
    story: Story, undisturbed: dict[str, list[tuple[Any, ...]]]
) -> None:
    """Killed at one point after the other, each night goes on from what the last had stored."""
    with worlds.twin(story.waiting) as world:
        for point, where in POINTS.items():
            if not point.startswith("deployed"):
                kill_at(world, *where)
        run_again(world)
        world.check()
        now = left(world)
        assert {what for what in LEFT if now[what] != undisturbed[what]} == set()
        crashed = world.ask("SELECT count(*) FROM runs WHERE state = 'crashed'")
        assert crashed == [(len(POINTS) - 1,)]
