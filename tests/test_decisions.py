"""What people decide about versions: approve, reject, roll back, adopt; each keeps its why."""

# ruff: noqa: S608  (SQL put together here; nobody else's text is in it)

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nights
import pytest
import worlds
from typer.testing import CliRunner
from worlds import FREE, Story, World

from flows.cli import app, screens
from flows.nightly import nightly
from infra.database import Busy, run_lock
from infra.embedded import Addresses
from records import deployments, runs
from records.deployments import NotDeployable
from records.versions import UnknownVersion, checkpoint_key
from tasks import benchmark, promotion
from tasks.benchmark import BENCHMARK
from tasks.loading import load_folder
from tasks.promotion import judge
from vision.gate import BadLimits, SinceAnchor
from vision.network import BadCheckpoint

STRICT = replace(worlds.LIMITS, latency_seconds=1e-6, gap_bound=0.5)
MADE = """
    INSERT INTO versions (purpose, state, run_id, snapshot_digest, plan, plan_digest, architecture,
        class_names, class_names_digest, checkpoint_digest, machine, training_accuracy,
        validation_accuracy)
    SELECT '{}', 'trained', run_id, snapshot_digest, plan, 'another', architecture, class_names,
        class_names_digest, checkpoint_digest, machine, training_accuracy, validation_accuracy
    FROM versions WHERE id = 2
"""


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


@contextmanager
def refused(story: Story) -> Iterator[World]:
    """Version 1 serves, version 2 was refused for its latency."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        undo_second(world)
        yield world


def undo_second(world: World) -> None:
    """Have version 2 refused instead of deployed."""
    run_id = worlds.undecided_second(world)
    assert not judge.fn(run_id, 2, STRICT)
    with world.transaction() as session:
        runs.close(session, run_id, "completed", "refused: too slow")


def regraft(*words: str) -> Any:
    """Run the command line in this process and give what it answers as JSON."""
    done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    return done.exit_code, json.loads(done.stdout)


def champion(world: World) -> int:
    """The version that serves."""
    [(version_id,)] = world.ask("SELECT version_id FROM champion")
    return int(version_id)


# approve


def test_an_approval_lets_pass_what_was_seen(story: Story) -> None:
    """The refused version serves; who, why and despite what is kept."""
    with refused(story) as world:
        code, told = regraft("approve", "2", "--why", "the machine was busy", "--by", "Zoë")
        assert (code, told["kind"], told["overridden"]) == (0, "approval", ["latency"])
        assert champion(world) == 2
        world.check()
        code, rows = regraft("log")
        assert [(row["version_id"], row["kind"], row["serves"]) for row in rows] == [
            (2, "approval", True), (1, "promotion", False)]
        assert rows[0]["decided_by"] == "Zoë"
        assert rows[0]["why"] == "the machine was busy"
        assert rows[0]["overridden"] == ["latency"]
        assert rows[1]["until"] == rows[0]["decided_at"]
        with pytest.raises(NotDeployable, match="serves already"):
            promotion.approve(2, "Zoë", "again")
        with world.transaction() as session:
            assert deployments.since_anchor(session) != SinceAnchor()  # no loss was accepted


def test_what_failed_since_the_look_is_not_approved_unseen(story: Story) -> None:
    """A failure that the person has not seen refuses; approved again, they have seen it."""
    with refused(story) as world:
        world.act("UPDATE versions SET training_accuracy = 1, validation_accuracy = 0.1 "
                  "WHERE id = 2")  # fmt: skip
        code, told = regraft("approve", "2", "--why", "it is good")
        assert code == 3
        assert "new since you looked" in told["reason"]
        assert champion(world) == 1
        code, told = regraft("approve", "2", "--why", "it is good, gap and all")
        assert (code, sorted(told["overridden"])) == (0, ["gap", "latency"])
        assert champion(world) == 2
        world.check()


def test_nobody_approves_what_was_not_measured(story: Story) -> None:
    """An absent figure refuses an approval, the second time too."""
    with refused(story) as world:
        world.act("UPDATE versions SET validation_accuracy = NULL WHERE id = 2")
        for _ in range(2):
            decision = promotion.approve(2, "Zoë", "all the same")
            assert decision.deployment_id is None
            assert "no usable validation accuracy. (nobody may override this)" in decision.reason
        assert champion(world) == 1
        with pytest.raises(NotDeployable, match="--by NAME --why TEXT"):
            promotion.approve(2, "Zoë", " ")


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM answers WHERE evaluation_id = (SELECT id FROM evaluations WHERE "
        "version_id = 2 AND subject = 'benchmark')",
        "UPDATE evaluations SET runtime = '{\"device\": \"abacus\"}' WHERE version_id = 1",
    ],
)  # fmt: skip
def test_an_approval_makes_figures_comparable_again(story: Story, damage: str) -> None:
    """Answers that were lost, or come from a machine that is gone, are given anew by both."""
    with refused(story) as world:
        world.act(damage)
        assert promotion.approve(2, "Zoë", "it was judged well").deployment_id
        assert champion(world) == 2
        world.check()


def test_a_benchmark_that_changed_is_answered_again(story: Story) -> None:
    """Approved after the benchmark grew, both versions answer it anew, unless a night runs."""
    with worlds.twin(story.done) as world:
        undo_second(world)
        with tempfile.TemporaryDirectory() as scratch:
            more = nights.draw(Path(scratch), (worlds.NEW_CLASS,), images=2, seed=2000)
            load_folder(more, BENCHMARK)
            grown = benchmark.grow("Zoë", "more of it").benchmark
        [(answered,)] = world.ask(
            "SELECT images FROM evaluations WHERE version_id = 1 AND benchmark_version = 3")
        assert answered == grown.images  # the champion is scored on it in the same breath
        with world.database() as store, run_lock(store), pytest.raises(Busy):
            promotion.approve(2, "Zoë", "while a night runs")
        decision = promotion.approve(2, "Zoë", "after it grew")
        assert decision.deployment_id is not None, decision.reason
        [(on, against)] = world.ask(
            "SELECT benchmark_version, champion_id FROM verdicts ORDER BY id DESC LIMIT 1")
        assert (on, against) == (3, 1)
        # Whatever a person takes out, the champion has answered what is left.
        [(key,)] = world.ask("SELECT min(source_key) FROM benchmark_images WHERE added_in = 3")
        code, row = regraft("benchmark", "withdraw", key, "--why", "no ring at all")
        assert (code, row["version"], row["images"]) == (0, 4, grown.images - 1)
        assert world.ask("SELECT images FROM evaluations WHERE version_id = 2 "
                         "AND benchmark_version = 4") == [(grown.images - 1,)]  # fmt: skip
        world.check()


def test_an_approval_judges_against_the_champion_of_now(story: Story) -> None:
    """Refused beside version 1, it is approved beside the control version that serves since."""
    with refused(story) as world:
        world.act(MADE.format("control"))
        [(control,)] = world.ask("SELECT id FROM versions WHERE purpose = 'control'")
        lenient = {"latency_seconds": 60, "gap_bound": 1}
        assert promotion.adopt(control, lenient, "Zoë", "afresh").deployment_id
        assert promotion.approve(2, "Zoë", "it was judged beside version 1").deployment_id
        verdicts = world.ask("SELECT version_id, champion_id FROM verdicts ORDER BY id")
        assert verdicts[-2:] == [(control, 1), (2, control)]
        assert champion(world) == 2
        world.check()


# reject


def test_a_rejected_version_serves_only_by_an_approval(story: Story) -> None:
    """Nights and rollbacks heed the word; the champion cannot be rejected while it serves."""
    with refused(story) as world:
        with pytest.raises(NotDeployable, match="regraft rollback"):
            regraft("reject", "1", "--why", "x")
        for words in (("--why", " "), ("--why", "x", "--by", "")):
            with pytest.raises(NotDeployable, match="--by NAME --why TEXT"):
                regraft("reject", "2", *words)
        code, told = regraft("reject", "2", "--why", "every lynx is a cat", "--by", "Zoë")
        assert (code, told["version_id"]) == (0, 2)
        with world.transaction() as session:
            run_id = runs.begin(session, "nightly", {}, None)
        assert not judge.fn(run_id, 2, worlds.LIMITS)
        with world.transaction() as session:
            judged = deployments.verdict(session, 2)
            assert judged is not None
            [failed] = [one for one in deployments.checks(session, judged.id)
                        if one.verdict == "failed"]  # fmt: skip
            runs.close(session, run_id, "completed", None)
        assert failed.name == "rejection"
        assert "rejected by Zoë" in failed.sentence
        assert "every lynx is a cat" in failed.sentence
        assert promotion.approve(2, "Ada", "relabelled: it is right").deployment_id
        assert champion(world) == 2
        promotion.roll_back(1, "Ada", "back")
        assert promotion.roll_back(2, "Ada", "the approval stands").deployment_id
        promotion.roll_back(1, "Ada", "back again")
        regraft("reject", "2", "--why", "and yet")
        with pytest.raises(NotDeployable, match="Only `regraft approve 2` lets it serve"):
            promotion.roll_back(2, "Ada", "no")
        assert champion(world) == 1
        world.check()


# roll back


def test_a_rollback_repeats_every_answer_and_appends_once(story: Story) -> None:
    """To the version before the champion, and forth again; nothing lies before the first."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        with world.transaction() as session:
            before = deployments.since_anchor(session)
        code, told = regraft("rollback", "--why", "it is wrong about rings")
        assert (code, told["version_id"], champion(world)) == (0, 1, 1)
        assert "of benchmark version 2 it repeated its 30 answers" in told["reason"]
        with world.transaction() as session:
            assert deployments.since_anchor(session) == SinceAnchor()
        with pytest.raises(NotDeployable, match="version 1 was the first to serve"):
            promotion.roll_back(None, "Zoë", "further")
        with pytest.raises(NotDeployable, match="serves already"):
            promotion.roll_back(1, "Zoë", "the same")
        regraft("rollback", "2", "--why", "it was right")
        assert world.ask("SELECT version_id, kind FROM deployments ORDER BY id") == [
            (1, "promotion"), (2, "promotion"), (1, "rollback"), (2, "rollback")]
        with world.transaction() as session:
            assert deployments.since_anchor(session) == before
        world.check()


def test_a_rollback_to_what_has_changed_is_refused(story: Story) -> None:
    """Other answers, other bytes or no bytes: the champion goes on serving."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        world.act("UPDATE answers SET label_confidence = 0.5 * label_confidence, "
                  "top_confidences = ARRAY[0.9]::real[], confidence = 0.9 WHERE evaluation_id IN "
                  "(SELECT id FROM evaluations WHERE version_id = 1)")  # fmt: skip
        with pytest.raises(NotDeployable, match=r"no recorded answers|does not repeat"):
            promotion.roll_back(None, "Zoë", "x")
        assert champion(world) == 2
    with worlds.twin(story.done) as world:
        [(digest,)] = world.ask("SELECT checkpoint_digest FROM versions WHERE id = 1")
        client = world.storage._client
        client.put_object(Bucket=world.bucket, Key=checkpoint_key(digest), Body=b"other bytes")
        with pytest.raises(BadCheckpoint, match="holds other bytes"):
            promotion.roll_back(None, "Zoë", "x")
        assert champion(world) == 2


ELSEWHERE = (
    """UPDATE evaluations SET runtime = '{"engine": "abacus", "device": "cpu"}'
       WHERE version_id = 1""",
    """UPDATE answers SET confidence = 0.9 * confidence + 0.1 / 3,
           top_confidences = ARRAY(SELECT (0.9 * c + 0.1 / 3)::real FROM unnest(top_confidences) c),
           label_confidence = CASE WHEN label = ANY (top_labels)
                              THEN 0.9 * label_confidence + 0.1 / 3 ELSE 0 END
       WHERE evaluation_id IN (SELECT id FROM evaluations WHERE version_id = 1)""",
)
OTHER_CLASSES = """
    UPDATE answers SET predicted = top_labels[2],
        top_labels = ARRAY[top_labels[2], top_labels[1], top_labels[3]],
        label_confidence = CASE label WHEN top_labels[1] THEN top_confidences[2]
                           WHEN top_labels[2] THEN top_confidences[1] ELSE label_confidence END
    WHERE evaluation_id IN (SELECT id FROM evaluations WHERE version_id = 1)
      AND sha256 IN (SELECT sha256 FROM benchmark_images ORDER BY sha256 LIMIT {})
"""


def test_a_rollback_does_not_need_the_machine_that_recorded(story: Story) -> None:
    """In another runtime the class of nearly every answer must be the same, and that is said."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        world.act(*ELSEWHERE, OTHER_CLASSES.format(2))
        with pytest.raises(NotDeployable, match="2 of 30 images with another class than was rec"):
            promotion.roll_back(None, "Zoë", "an emergency")
        assert champion(world) == 2
        world.act(OTHER_CLASSES.format(1))  # turns it back
        done = promotion.roll_back(None, "Zoë", "an emergency")
        assert "answered 29 of 30 images with the recorded class" in done.reason
        assert "another runtime" in done.reason
        assert champion(world) == 1


def test_no_night_undoes_a_rollback(story: Story) -> None:
    """Found again on a grown benchmark, what was rolled back is judged and stays where it is."""
    with worlds.twin(story.done) as world:
        regraft("rollback", "--by", "Zoë", "--why", "it is wrong about rings")
        with tempfile.TemporaryDirectory() as scratch:
            more = nights.draw(Path(scratch), (worlds.NEW_CLASS,), images=2, seed=2000)
            load_folder(more, BENCHMARK)
            benchmark.grow("Zoë", "more of it")
        outcome = nightly(plan=worlds.SECOND_PLAN, limits=worlds.LIMITS)
        assert (outcome.state, outcome.version_id, champion(world)) == ("refused", 2, 1)
        assert "until Zoë let version 1 serve in its place" in outcome.reason
        assert "it is wrong about rings" in outcome.reason
        assert nightly(plan=worlds.SECOND_PLAN, limits=worlds.LIMITS).state == "skipped"
        assert promotion.approve(2, "Zoë", "it was right after all").deployment_id
        assert champion(world) == 2
        world.check()


# adopt


def test_a_control_version_serves_by_adoption(story: Story) -> None:
    """Answered beside the champion, judged by the same gate, kept as what it is."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        world.act(MADE.format("control"))
        [(control,)] = world.ask("SELECT id FROM versions WHERE purpose = 'control'")
        with pytest.raises(NotDeployable, match=f"regraft adopt {control}"):
            promotion.approve(control, "Zoë", "never judged")
        words = ("adopt", str(control), "--why", "from scratch is as good")
        code, slow = regraft(*words, "--limit", "latency_seconds=1e-6")
        assert (code, slow["deployment_id"]) == (3, None)
        assert f"`regraft approve {control}` would override it" in slow["reason"]
        with pytest.raises(BadLimits, match="'latency' is no limit: known are margin"):
            regraft(*words, "--limit", "latency=1")
        code, done = regraft(*words)
        assert (code, done["kind"], champion(world)) == (0, "adoption", control)
        limits = "SELECT limits FROM verdicts ORDER BY id DESC LIMIT 1"
        assert world.ask(limits) == world.ask("SELECT limits FROM verdicts WHERE id = 2")
        assert world.ask("SELECT parent_id FROM versions WHERE id = :id", id=control) == [(None,)]
        looks = world.ask("SELECT count(*) FROM verdicts WHERE benchmark_version = 2")
        with world.transaction() as session:
            assert benchmark_row(session).looks == looks[0][0] == 3
        world.check()


def benchmark_row(session: Any) -> Any:
    """The newest benchmark version."""
    from records import benchmark as rows

    return rows.current(session)


@pytest.mark.parametrize("purpose", ["throwaway", "pretrain"])
def test_what_never_serves_is_refused_by_every_verb(story: Story, purpose: str) -> None:
    """Throw-away and pretrain versions: one line each, and nothing is computed or kept."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        world.act(MADE.format(purpose))
        [(version_id,)] = world.ask(f"SELECT id FROM versions WHERE purpose = '{purpose}'")
        for verb in ("approve", "adopt", "reject"):
            with pytest.raises(NotDeployable, match=f"is a {purpose} version: it never serves"):
                regraft(verb, str(version_id), "--why", "x")
        with pytest.raises(NotDeployable, match="never served"):
            regraft("rollback", str(version_id), "--why", "x")
        assert world.ask("SELECT count(*) FROM verdicts") == [(2,)]
        with pytest.raises(NotDeployable, match=r"version 2 is a nightly version: .*approve 2"):
            regraft("adopt", "2", "--why", "x")


def test_what_is_not_there_is_named(story: Story) -> None:
    """An unknown version, and a service in which nothing serves yet."""
    with worlds.rows_of(story.fresh) as world, worlds.inside(world):
        for verb in ("approve", "adopt", "reject"):
            with pytest.raises(UnknownVersion, match="there is no version 9"):
                regraft(verb, "9", "--why", "x")
        for words in ((), ("9",)):
            with pytest.raises(NotDeployable, match="nothing serves yet"):
                regraft("rollback", *words, "--why", "x")
        assert regraft("log") == (0, [])


# the anchor


def test_the_sum_since_the_anchor_follows_the_champion(story: Story) -> None:
    """Rolled back, a version's gain or loss is gone; an accepted loss begins anew."""
    with worlds.rows_of(story.done) as world:
        world.act(FREE, "DELETE FROM deployments", "DELETE FROM checks",
                  "UPDATE runs SET verdict_id = NULL", "DELETE FROM verdicts")  # fmt: skip

        def append(kind: str, verdict: int, drop: float | None, overridden: str = "") -> Any:
            if kind != "rollback":
                world.act(
                    FREE,
                    "INSERT INTO verdicts (id, version_id, checkpoint_digest, champion_id, "
                    "benchmark_version, benchmark_digest, passed, shared_drop, limits) "
                    "OVERRIDING SYSTEM VALUE VALUES (:id, 2, 'x', CASE WHEN :id = 101 THEN NULL "
                    "ELSE 1 END, 2, 'x', true, :drop, '{}')",
                    id=verdict, drop=drop,
                )  # fmt: skip
                world.act(
                    FREE,
                    "INSERT INTO checks VALUES (:id, 1, 'crowding', 'passed', :numbers, ''),"
                    "(:id, 2, :name, :verdict, '{}', '')",
                    id=verdict, name=overridden or "gap",
                    numbers=json.dumps({"drop": (drop or 0) + 0.01, "doublings": 0.1}),
                    verdict="overridden" if overridden else "passed",
                )  # fmt: skip
            world.act(
                FREE,
                "INSERT INTO deployments (version_id, purpose, previous_id, verdict_id, kind, "
                "deployed_by, why) SELECT 2, 'nightly', max(id), :id, :kind, 'a', 'b' "
                "FROM deployments",
                id=verdict, kind=kind,
            )  # fmt: skip
            with world.transaction() as session:
                return deployments.since_anchor(session)

        def since(*figures: float | None) -> Any:
            return SinceAnchor(*(f if f is None else pytest.approx(f, abs=1e-9) for f in figures))

        assert append("promotion", 101, None) == SinceAnchor()
        assert append("promotion", 102, 0.004) == since(0.004, 0.014, 0.1)
        assert append("promotion", 103, -0.05) == since(-0.046, -0.026, 0.2)
        assert append("rollback", 102, None) == since(0.004, 0.014, 0.1)
        assert append("approval", 104, 0.003, "gap") == since(0.007, 0.027, 0.2)
        assert append("approval", 105, 0.04, "margin") == SinceAnchor()
        assert append("promotion", 106, 0.002) == since(0.002, 0.012, 0.1)
        assert append("rollback", 104, None) == since(0.007, 0.027, 0.2)
        assert append("promotion", 107, None) == since(None, 0.037, 0.3)


# flips


def test_flips_are_listed_with_both_versions_maps(story: Story, tmp_path: Path) -> None:
    """What version 2 alone has right or wrong is named, and drawn beside the champion's map."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        label = world.ask(
            "SELECT a.sha256, a.label FROM answers a JOIN evaluations e ON e.id = a.evaluation_id "
            "WHERE e.version_id = 2 AND e.benchmark_version = 2 AND a.correct "
            "AND a.label = 'circle' ORDER BY a.sha256 LIMIT 1"
        )[0]
        # The tiny networks agree: have the champion wrong about one of them, map and all.
        world.act(
            "UPDATE answers SET predicted = 'cross', correct = false WHERE sha256 = :image "
            "AND evaluation_id = (SELECT id FROM evaluations WHERE version_id = 1 "
            "AND benchmark_version = 2)",
            "DELETE FROM gradcams WHERE sha256 = :image",
            "INSERT INTO gradcams SELECT v.id, :image, v.said, 'benchmark', 'flip', 'circle', "
            "v.said, 0.9, g.height, g.width, g.cells, g.positive, g.facts FROM (VALUES "
            "(1::bigint, 'cross'), (2, 'circle')) v(id, said), "
            "(SELECT * FROM gradcams WHERE version_id = 2 LIMIT 1) g",
            image=label[0],
        )
        facts = screens.version_facts(2)
        mine = [one for one in facts["flips"] if one["sha256"] == label[0]]
        assert [(one["gained"], one["champion_said"], one["candidate_said"]) for one in mine] == [
            (True, "cross", "circle")]
        assert screens.write_pictures(2, tmp_path) == len(list(tmp_path.iterdir()))
        [beside] = tmp_path.glob("flip gained * circle, version 1 cross, version 2 circle.png")
        from PIL import Image

        with Image.open(beside) as picture:
            assert picture.width == 2 * picture.height
