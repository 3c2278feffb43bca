"""Throw-away runs: a shortlist comes of them, they never serve, and what they leave is swept."""

import csv
import io
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pictures
import pytest
import worlds
from prefect import get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL
from prefects import state_of
from sqlalchemy.exc import DBAPIError
from test_deployments import ROOT, deployment_gone, wait_for
from test_kill import kill_at
from typer.testing import CliRunner
from worlds import Story, World

from flows import deployments, shortlist
from flows.cli import app
from flows.identify import identify
from flows.nightly import nightly
from flows.throwaway import chosen, throwaway
from infra.database import Busy, run_lock
from infra.embedded import Addresses
from records import classes, shortlists, sweeps, versions
from records.labels import Wish
from records.shortlists import Candidate, NoShortlist
from records.versions import Swept, checkpoint_key
from tasks import labelling, sweeping
from tasks.evaluation import evaluate_again
from tasks.identification import BadPool
from tasks.sweeping import BadAge, sweep
from vision.outlook import BANDS, Band, outlook
from vision.plan import BadPlan

__all__ = ["deployment_gone"]

POOL = "pools/camera/"
# Rings have 12 images and the other classes 24: rings are near this cutoff.
PLAN = replace(worlds.SECOND_PLAN, cutoff=20)
LOWER = 10
RINGS = 12
AT_ONCE = timedelta(0)


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


@pytest.fixture(scope="module")
def shortlisted(story: Story) -> Iterator[World]:
    """After two nights, a throw-away run over a pool: killed once it was trained, and run again."""
    world = worlds.clone(story.done)
    for name, count in (("ring", RINGS), ("circle", 6), ("triangle", 12)):
        for seed in range(500, 500 + count):
            body = pictures.png(pictures.shape(name, seed, side=48))
            world.storage.write(f"{POOL}{name}-{seed}.png", body)
    world.storage.write(f"{POOL}broken.png", b"no picture")
    wish: dict[str, Any] = {"cutoff": LOWER, "pools": [f"s3://{POOL}"], "plan": PLAN}

    def process(where: World) -> worlds.ForkServerProcess:
        return worlds.begin(where, "flows.throwaway", "throwaway", **wish)

    with worlds.inside(world):
        kill_at(world, "identifications", "INSERT", "true", process)
        assert throwaway(**wish).state == "shortlisted"
    yield world
    worlds.drop(world)


def test_it_ends_in_a_shortlist_and_changes_nothing_that_serves(
    shortlisted: World, story: Story
) -> None:
    """Trained once from the champion, scored, never judged; the pool answered for what is near."""
    world = shortlisted
    [facts] = world.ask(
        "SELECT purpose, parent_id, CAST(plan->>'cutoff' AS int), class_names FROM versions "
        "WHERE id = 3"
    )
    assert facts == ("throwaway", 2, LOWER, sorted([*worlds.OLD_CLASSES, worlds.NEW_CLASS]))
    runs = world.ask("SELECT state, version_id FROM runs WHERE purpose = 'throwaway' ORDER BY id")
    assert runs == [("completed", 3), ("completed", 3)]
    assert world.ask("SELECT count(*) FROM run_steps WHERE name = 'train'") == [(3,)]
    log = "SELECT * FROM deployments ORDER BY id"
    assert world.ask(log) == story.done.ask(log)
    assert world.ask("SELECT count(*) FROM verdicts WHERE version_id = 3") == [(0,)]
    subjects = world.ask("SELECT subject FROM evaluations WHERE version_id = 3 ORDER BY 1")
    assert subjects == [("benchmark",), ("test",), ("validation",)]
    answered = world.ask(
        "SELECT i.state, i.targets, count(a.sha256) FROM identifications i "
        "JOIN pool_answers a ON a.identification_id = i.id WHERE i.version_id = 3 GROUP BY i.id"
    )
    assert answered == [("completed", ["ring"], 30)]
    world.check()


def test_the_shortlist_follows_what_people_confirm(
    shortlisted: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """No yield before anybody looked; then what was right carries over; then the class is there."""
    runner = CliRunner(env={"COLUMNS": "80"})
    with worlds.twin(shortlisted) as world:
        [ring] = shortlist.of_run().classes
        assert (ring.class_name, ring.had, ring.has, ring.lacks) == ("ring", 12, 12, 8)
        assert (ring.judged, ring.confirmed, ring.outlook.precision) == (0, 0, None)
        assert ring.reaches == "open"
        shown = runner.invoke(app, ["shortlist"])
        assert shortlist.NONE_YET in shown.stdout, shown.output
        found = shortlist.candidates("ring")
        assert {one.state for one in found} == {"waiting"}
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        right = [one for one in found if "ring-" in one.key]
        assert len(found) == ring.candidates
        assert len(right) >= ring.lacks

        for right_ones, flatters in ((3, True), (2, False)):
            told = replace(ring, judged=3, right=right_ones)
            shortlist.show(replace(shortlist.of_run(), classes=(told,)))
            lines = " ".join(capsys.readouterr().out.split())
            assert ("Nobody has dismissed any of ring" in lines) == flatters

        listed = runner.invoke(app, ["shortlist", "--class", "ring", "--csv"]).stdout
        read = list(csv.DictReader(io.StringIO(listed)))
        assert [(one["sha256"], one["label"]) for one in read] == [
            (one.sha256, "ring") for one in found
        ]

        for one in found[:4]:
            say(one, ring=one in right)
        [ring] = shortlist.of_run().classes
        assert (ring.judged, ring.waiting) == (4, len(found) - 4)
        assert ring.right == ring.confirmed == ring.coming == sum(one in right for one in found[:4])
        assert ring.lacks == 8 - ring.right
        assert ring.outlook == outlook(bands_of(shortlist.candidates("ring")), ring.lacks)
        states = [one.state for one in shortlist.candidates("ring")]
        assert states[:4] == ["confirmed" if one in right else "dismissed" for one in found[:4]]

        for one in right:
            say(one, ring=True)
        [ring] = shortlist.of_run().classes
        assert (ring.confirmed, ring.lacks, ring.reaches) == (len(right), 0, "yes, next intake")
        for words in (["shortlist"], ["shortlist", "--class", "ring"], ["show", "3"]):
            shown = runner.invoke(app, words)
            assert shown.exit_code == 0, shown.output
            assert max(map(len, shown.stdout.splitlines())) <= 80
        listed = runner.invoke(app, ["shortlist", "--csv"]).stdout
        [row] = csv.DictReader(io.StringIO(listed))
        assert (row["class_name"], row["confirmed"]) == ("ring", str(len(right)))

        with world.transaction() as session:
            classes.rename(session, "ring", "hoop", "Ann", "as the keepers say")
        assert shortlist.of_run().classes == (ring,)

        # what was judged before a version answered says nothing about its answers
        world.act("UPDATE identifications SET started_at = now() + interval '1 hour'")
        [ring] = shortlist.of_run().classes
        assert (ring.judged, ring.confirmed, ring.coming) == (0, 0, len(right))


def bands_of(rows: Sequence[Candidate]) -> list[Band]:
    """What the shortlist counts, counted here."""
    ends = itertools.pairwise((*BANDS, 2.0))
    parts = [[one.state for one in rows if low <= one.score < high] for low, high in ends]
    return [
        Band(low, states.count("waiting"), len(states) - states.count("waiting"),
             states.count("confirmed"))
        for low, states in zip(BANDS, parts, strict=True)
    ]  # fmt: skip


def say(one: Candidate, *, ring: bool) -> None:
    """Have a person say of a candidate that it is a ring, or that the answer is wrong."""
    wish = Wish(one.key, image=one.sha256, version=one.version)
    if ring:
        labelling.label([replace(wish, label="ring")], "Ann")
    else:
        labelling.dismiss([replace(wish, offered=one.label)], "Ann")


def test_what_was_dismissed_as_one_class_waits_for_another(shortlisted: World) -> None:
    """A picture is on two shortlists: each has its own dismissal, and both of them stand."""
    with worlds.twin(shortlisted) as world:
        world.act(
            "INSERT INTO target_scores (version_id, sha256, class_name, confidence) "
            "SELECT version_id, sha256, 'circle', 0.3 FROM target_scores WHERE class_name = 'ring'"
        )

        def states(name: str) -> dict[str, Candidate]:
            with world.transaction() as session:
                run = shortlists.run(session)
                found = shortlists.candidates(session, run, name, BANDS[0])
                bands = shortlists.tallies(session, run, [name], BANDS)
            assert sum(one.judged for one in bands) == sum(one.state != "waiting" for one in found)
            return {one.sha256: one for one in found}

        first, second = list(states("ring").values())[:2]
        for offered, then in (("ring", "waiting"), ("circle", "dismissed")):
            wish = Wish("a", image=first.sha256, version=first.version, offered=offered)
            labelling.dismiss([wish], "Ann")
            assert states("ring")[first.sha256].state == "dismissed"
            assert states("circle")[first.sha256].state == then
        # a name is said of all classes, and what was dismissed before it stands no longer
        wish = Wish("a", image=second.sha256, version=second.version, offered="circle")
        labelling.dismiss([wish], "Ann")
        labelling.label([replace(wish, label="ring", offered=None)], "Ann")
        assert states("ring")[second.sha256].state == "confirmed"
        assert states("circle")[second.sha256].state == "ring"
        labelling.dismiss([replace(wish, offered="ring")], "Ann")
        assert states("ring")[second.sha256].state == "dismissed"
        assert states("circle")[second.sha256].state == "waiting"


def test_a_burst_counts_once(shortlisted: World) -> None:
    """Its frames are one candidate, mirrored or re-encoded; judged, they are one that was."""
    with worlds.twin(shortlisted) as world:
        burst = [one for one in shortlist.candidates("ring") if "ring-" in one.key][:5]
        [before] = shortlist.of_run().classes
        for number, one in enumerate(burst):
            dhash, mirror = (7, -9) if number % 2 else (-9, 7 ^ number)
            world.act(
                "UPDATE pool_images SET (dhash, dhash_mirror) = (:dhash, :mirror) "
                "WHERE sha256 = :image", dhash=dhash, mirror=mirror, image=one.sha256,
            )  # fmt: skip
        [ring] = shortlist.of_run().classes
        assert ring.candidates == ring.waiting == before.candidates - 4
        assert len(shortlist.candidates("ring")) == before.candidates
        for one in burst[1:4]:
            say(one, ring=True)
        [ring] = shortlist.of_run().classes
        assert (ring.judged, ring.right, ring.waiting) == (1, 1, before.candidates - 5)
        assert (ring.confirmed, ring.lacks) == (3, before.lacks - 3)


DEPLOY = """
    WITH d AS (
        INSERT INTO verdicts (version_id, checkpoint_digest, champion_id, benchmark_version,
            benchmark_digest, passed, limits)
        SELECT v.id, v.checkpoint_digest, 2, b.version, b.digest, true, '{{}}'
        FROM versions v, benchmarks b WHERE v.id = 3 AND b.version = 2 RETURNING id),
    c AS (
        INSERT INTO checks (verdict_id, ordinal, name, verdict, numbers, sentence)
        SELECT d.id, 0, 'all', 'passed', '{{}}', 'good' FROM d)
    SELECT 1;
    INSERT INTO deployments (version_id, purpose, previous_id, verdict_id, kind, deployed_by, why)
    SELECT 3, '{said}', 2, max(id), 'promotion', 'a test', 'to break it' FROM verdicts
"""
DESCEND = """
    INSERT INTO versions (purpose, run_id, parent_id, parent_purpose, snapshot_digest, plan,
        plan_digest, architecture, class_names, class_names_digest)
    SELECT 'nightly', run_id, 3, '{said}', snapshot_digest, plan, 'x', architecture, class_names,
        class_names_digest FROM versions WHERE id = 3
"""


@pytest.mark.parametrize(
    ("statements", "refused"),
    [
        (DEPLOY.format(said="throwaway"), "ck_deployments_purpose_known"),
        (DEPLOY.format(said="nightly"), "fk_deployments_version_id"),
        (DESCEND.format(said="throwaway"), "ck_versions_parent_not_throwaway"),
        (DESCEND.format(said="nightly"), "fk_versions_parent_id"),
        ("UPDATE versions SET purpose = 'nightly' WHERE id = 3", "can no longer change"),
        ("UPDATE versions SET swept_at = now() WHERE id = 2", "ck_versions_swept_is_throwaway"),
    ],
)
def test_the_database_keeps_it_from_serving_and_descendants(
    shortlisted: World, statements: str, refused: str
) -> None:
    """Whatever a program or a person with every right writes, under its name or another."""
    with pytest.raises(DBAPIError, match=refused):
        shortlisted.act(*statements.split(";"))


def test_it_is_never_the_latest(shortlisted: World) -> None:
    """Version 3 is the newest, and version 2 the newest of a night: nothing can name another."""
    assert shortlisted.ask("SELECT max(id) FROM versions WHERE state = 'trained'") == [(3,)]
    assert shortlisted.ask("SELECT version_id FROM latest") == [(2,)]
    assert shortlisted.ask("SELECT version_id FROM champion") == [(2,)]
    with shortlisted.transaction() as session:
        assert versions.latest(session) == 2
    with pytest.raises(DBAPIError, match=r"cannot (insert into|update) view"):
        shortlisted.act("UPDATE latest SET version_id = 3")


def test_a_sweep_that_was_killed_is_finished_by_the_next(shortlisted: World) -> None:
    """Checkpoint and embeddings go, once; what serves stays; the same run trains another one."""
    with worlds.twin(shortlisted) as world:
        digest = world.ask("SELECT checkpoint_digest FROM versions WHERE id = 3")[0][0]
        key = checkpoint_key(digest)
        size = len(world.storage.read(key))
        assert sweep(timedelta(days=1)).sentence == "nothing to sweep"
        before = world.ask("SELECT count(*), sum(length(features)) FROM embeddings")[0]
        wanted = sweep(AT_ONCE, dry_run=True)
        assert (wanted.versions, wanted.checkpoints, wanted.checkpoint_bytes) == ((3,), 1, size)
        assert (wanted.embeddings, wanted.embedding_bytes) == before
        assert world.storage.exists(key)

        def sweeping_process(where: World) -> worlds.ForkServerProcess:
            return worlds.begin(where, "tasks.sweeping", "sweep", older_than=AT_ONCE)

        kill_at(world, "embeddings", "DELETE", "true", sweeping_process)
        world.check()
        assert not world.storage.exists(key)
        assert world.ask("SELECT count(*) FROM embeddings") == [(before[0],)]
        for ask in (lambda: evaluate_again(3, 0.95, "Ann"), lambda: identify(f"s3://{POOL}", 3)):
            with pytest.raises(Swept, match="version 3 was a throw-away version and was swept on"):
                ask()
        rest = sweep(timedelta(days=30))
        assert (rest.versions, rest.checkpoints, rest.embeddings) == ((), 0, before[0])
        assert sweep(AT_ONCE).sentence == "nothing to sweep"
        assert world.ask("SELECT count(*) FROM embeddings") == [(0,)]
        world.check()
        assert shortlist.of_run().swept
        assert shortlist.candidates("ring") != []

        again = throwaway(cutoff=LOWER, plan=PLAN)
        assert again.version_id not in (None, 3)
        assert world.ask("SELECT version_id, count(*) FROM embeddings GROUP BY 1") == [
            (again.version_id, 30)
        ]
        world.check()


def test_only_what_nobody_needs_is_swept(shortlisted: World) -> None:
    """Not what serves or has descendants, though constraints were gone; not bytes of another."""
    with worlds.rows_of(shortlisted) as world, worlds.inside(world):
        with world.transaction() as session:
            assert sweeps.due(session, AT_ONCE) == [3]
            assert len(sweeps.checkpoints(session, [3])) == 1
        world.act(
            "UPDATE shards SET state = 'claimed', lease_until = now() + interval '1 minute', "
            "done_at = NULL, keys = array_fill('k'::text, ARRAY[objects]), etags = "
            "array_fill('e'::text, ARRAY[objects]), sizes = array_fill(1, ARRAY[objects]) "
            "WHERE id = (SELECT max(id) FROM shards)"
        )
        with world.transaction() as session:
            assert sweeps.due(session, AT_ONCE) == []  # a process answers with it
        world.act("UPDATE shards SET lease_until = now() WHERE lease_until IS NOT NULL")
        with world.database() as database, run_lock(database), pytest.raises(Busy):
            sweep(AT_ONCE)
        world.act(
            "ALTER TABLE versions DROP CONSTRAINT ck_versions_parent_not_throwaway",
            worlds.FREE,
            DESCEND.format(said="throwaway"),
            "UPDATE versions SET state = 'trained', machine = '{}', checkpoint_digest = "
            "(SELECT checkpoint_digest FROM versions WHERE id = 3) WHERE parent_id = 3",
        )
        with world.transaction() as session:
            assert sweeps.due(session, AT_ONCE) == []
            assert sweeps.checkpoints(session, [3]) == set()


def test_a_pool_that_was_emptied_is_left_out(shortlisted: World) -> None:
    """Unless it is named, the others are answered as ever."""
    with worlds.rows_of(shortlisted) as world, worlds.inside(world):
        world.act("INSERT INTO pools (prefix) VALUES ('pools/emptied/')")
        assert chosen(None) == [POOL]
        with pytest.raises(BadPool, match="s3://pools/emptied/ holds no images"):
            chosen(["s3://pools/emptied"])


def test_near_the_cutoff_is_what_another_run_would_learn(shortlisted: World) -> None:
    """As the library is now, though no new snapshot came of it; not what is too scarce for it."""
    move = (
        "UPDATE images SET class_id = (SELECT id FROM classes WHERE name = 'okapi') WHERE sha256 "
        "IN (SELECT i.sha256 FROM images i JOIN classes c ON c.id = i.class_id "
        "WHERE c.name = 'circle' AND i.split = '{}' AND i.withdrawn_at IS NULL LIMIT {})"
    )
    with worlds.rows_of(shortlisted) as world:

        def near() -> dict[str, tuple[int, bool]]:
            with world.transaction() as session:
                found = shortlists.near_cutoff(session, "a night", 0.4)
                return {one.class_name: (one.has, one.new) for one in found}

        world.act(
            "UPDATE runs SET flow_run_id = 'a night', plan = jsonb_set(plan, '{cutoff}', '20') "
            "WHERE id = 2",
            "INSERT INTO classes (name) VALUES ('okapi')",
            move.format("train", LOWER - 1),
        )
        assert near() == {"ring": (RINGS, False), "circle": (15, False), "okapi": (9, False)}
        world.act(move.format("train", 1))
        # enough of them, and none to validate on
        assert near() == {"ring": (RINGS, False), "circle": (14, False), "okapi": (10, False)}
        world.act(move.format("validation", 1))
        assert near() == {"ring": (RINGS, False), "circle": (13, False), "okapi": (11, True)}


def test_what_cannot_be_is_refused_in_one_line(story: Story) -> None:
    """Before anything is trained, or asked in vain."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        for cutoff in (0, 20, 21):
            with pytest.raises(BadPlan, match=f"cutoff={cutoff}: a throw-away run takes"):
                throwaway(cutoff=cutoff, plan=PLAN)
        with pytest.raises(BadPool, match="no pool that was identified before"):
            throwaway(cutoff=LOWER, plan=PLAN)
        with pytest.raises(BadPool, match="belongs to the library"):
            throwaway(cutoff=LOWER, plan=PLAN, pools=["s3://labelled/ring"])
        with pytest.raises(BadPool, match="s3://pools/none/ holds no images"):
            throwaway(cutoff=LOWER, plan=PLAN, pools=["s3://pools/none"])
        assert world.ask("SELECT count(*) FROM runs") == [(2,)]
        world.storage.write("pools/some/1.png", b"looked at by nobody")
        skipped = throwaway(cutoff=13, plan=PLAN, pools=["s3://pools/some"])
        assert (skipped.state, skipped.version_id) == ("skipped", None)
        assert skipped.reason == "no class has 13 to 19 usable images"
        for number in (None, 2, 99):
            with pytest.raises(NoShortlist, match="regraft throwaway"):
                shortlist.of_run(number)
    for word in ("30", "d", "-1d", "3y", ""):
        with pytest.raises(BadAge, match="write hours, days or weeks"):
            sweeping.age(word)
    assert sweeping.age("2w") == timedelta(weeks=2)


# --- Prefect --------------------------------------------------------------------------------


def called() -> list[FlowRun]:
    """Runs of the throw-away deployment, the oldest first."""
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            deployment_filter=DeploymentFilter.model_validate({"name": {"any_": ["throwaway"]}})
        )


def test_a_night_that_reports_near_classes_calls_it(
    story: Story, shortlisted: World, deployment_gone: None
) -> None:
    """The automation starts it with the parameters of `serve`; known classes call nobody again."""
    served = deployments.described_throwaway(PLAN, LOWER, [f"s3://{POOL}"], 0.9)
    deployments.shortlist_after_nights(served.apply())  # type: ignore[arg-type]
    near = replace(PLAN, cutoff=14, epochs=1)
    try:
        with worlds.twin(shortlisted) as world:
            nightly(plan=near, limits=worlds.LIMITS)
            assert world.ask("SELECT count(*) FROM runs WHERE purpose = 'nightly'") == [(3,)]
        with worlds.twin(story.done):
            outcome = nightly(plan=near, limits=worlds.LIMITS)
        [run] = wait_for("a throw-away run", called)
        assert outcome.state == "refused"
        assert run.parameters["cutoff"] == LOWER
        assert run.parameters["pools"] == [f"s3://{POOL}"]
        assert run.parameters["precision"] == 0.9
        assert run.parameters["plan"]["cutoff"] == 20
    finally:
        deployments.stop_shortlists()
    with get_client(sync_client=True) as client:
        assert client.read_automations_by_name(deployments.SHORTLISTS) == []


def test_a_killed_one_is_shown_as_crashed(shortlisted: World) -> None:
    """It had let go of the lock and answered a pool; one whose process lives is left alone."""
    query = "SELECT flow_run_id FROM runs WHERE purpose = 'throwaway' ORDER BY id"
    with worlds.rows_of(shortlisted) as world, worlds.inside(world):
        killed, ended = (UUID(one) for [one] in world.ask(query))
        pid = world.ask("SELECT pid FROM runs WHERE flow_run_id = :id", id=str(killed))[0][0]
        assert state_of(killed) == "RUNNING"
        for host, number in ((socket.gethostname(), os.getpid()), ("elsewhere", pid)):
            world.act(PROCESS, host=host, pid=number, id=str(killed))
            assert killed not in deployments.reap()
        world.act(PROCESS, host=socket.gethostname(), pid=pid, id=str(killed))
        assert killed in deployments.reap()
        assert (state_of(killed), state_of(ended)) == ("CRASHED", "COMPLETED")
    # what it answered the pool in is a flow run, too
    inner = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [killed]}})
    with get_client(sync_client=True) as client:
        [answering] = client.read_flow_runs(flow_run_filter=inner)
    assert state_of(answering.id) == "CRASHED"


PROCESS = "UPDATE runs SET host = :host, pid = :pid WHERE flow_run_id = :id"


def test_it_is_called_through_the_api(
    shortlisted: World, deployment_gone: None, prefect_server: str
) -> None:
    """As the page says: its number, then a run with parameters, which is carried out with them."""
    deployments.described_throwaway(PLAN, precision=0.9).apply()
    api = PREFECT_API_URL.value()
    known = httpx.get(f"{api}/deployments/name/throwaway/throwaway").json()
    address = f"{api}/deployments/{known['id']}/create_flow_run"
    for wrong in ({}, {"cutoff": "many"}, {"cutoff": 10, "plan": {"epochs": "x"}}):
        assert httpx.post(address, json={"parameters": wrong}).status_code in (409, 422)
    asked = {"cutoff": LOWER, "pools": [f"s3://{POOL}"]}
    made = httpx.post(address, json={"parameters": asked})
    assert made.status_code == 201
    assert made.json()["parameters"] == asked | {"plan": PLAN.to_dict(), "precision": 0.9}
    with worlds.rows_of(shortlisted) as world, worlds.inside(world):
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "flow-run", "execute", made.json()["id"]],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": str(api)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        [row] = world.ask("SELECT state, version_id, plan->>'cutoff' FROM runs WHERE "
                          "flow_run_id = :id", id=made.json()["id"])  # fmt: skip
        assert row == ("completed", 3, "20")
        assert state_of(UUID(made.json()["id"])) == "COMPLETED"
