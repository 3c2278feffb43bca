"""The gate fails closed: a good candidate of which one figure is missing or absurd is refused."""

# ruff: noqa: S608  (damage is SQL put together here; nobody else's text is in it)

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import worlds
from sqlalchemy.exc import DBAPIError
from worlds import FREE, Story, World

from flows import report
from infra.embedded import Addresses
from records import deployments
from records.deployments import NotDeployable
from tasks.promotion import deploy, judge

ON_BENCHMARK = (
    "(SELECT id FROM evaluations WHERE version_id = {} AND subject = 'benchmark'"
    " AND benchmark_version = 2)"
)
MINE, THEIRS = ON_BENCHMARK.format(2), ON_BENCHMARK.format(1)


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


@contextmanager
def before_promotion(story: Story) -> Iterator[tuple[World, int]]:
    """The moment when version 2 is trained and evaluated and version 1 serves, and a run."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        yield world, worlds.undecided_second(world)


# What is damaged, which check fails, and what its sentence says.
DAMAGES: dict[str, tuple[list[str], str, str]] = {
    "no answer left": (
        [f"DELETE FROM answers WHERE evaluation_id = {MINE}"],
        "answers", "version 2 has no answers for the benchmark",
    ),
    "half of the answers": (
        [f"""DELETE FROM answers WHERE evaluation_id = {MINE} AND sha256 IN (
                SELECT sha256 FROM benchmark_images ORDER BY sha256 LIMIT 15)"""],
        "answers", "15 missing",
    ),
    "one answer too few": (
        [f"""DELETE FROM answers WHERE evaluation_id = {MINE}
             AND sha256 = (SELECT min(sha256) FROM benchmark_images)"""],
        "answers", "1 missing",
    ),
    "no answer of the champion": (
        [f"DELETE FROM answers WHERE evaluation_id = {THEIRS}"],
        "answers", "version 1 has no answers for the benchmark",
    ),
    "no evaluation": (
        [f"DELETE FROM evaluations WHERE id = {MINE}"],
        "checkpoint", "version 2: the checkpoint that answered is not the one that would serve",
    ),
    "the evaluation of an older checkpoint": (
        [FREE, f"""UPDATE evaluations SET checkpoint_digest =
                   (SELECT checkpoint_digest FROM versions WHERE id = 1) WHERE id = {MINE}"""],
        "checkpoint", "version 2: the checkpoint that answered is not the one that would serve",
    ),
    "another runtime": (
        [f"UPDATE evaluations SET runtime = '{{\"device\": \"abacus\"}}' WHERE id = {THEIRS}"],
        "runtime", "different or unknown runtimes",
    ),
    "another label than the champion's": (
        [f"UPDATE answers SET label = 'cross' WHERE evaluation_id = {MINE} AND label = 'circle'",
         f"UPDATE answers SET label_confidence = 0 WHERE evaluation_id = {MINE}"],
        "answers", "version 2 has no answers",
    ),
    "answers of classes it does not know": (
        [f"UPDATE answers SET top_labels[1] = 'whale' WHERE evaluation_id = {MINE}"],
        "answers", "version 2 has no answers",
    ),
    "no latency": (
        ["UPDATE versions SET latency_seconds = NULL WHERE id = 2"],
        "latency", "version 2 has no usable latency",
    ),
    "latency NaN": (
        ["ALTER TABLE versions DROP CONSTRAINT ck_versions_latency_seconds_is_finite",
         "UPDATE versions SET latency_seconds = 'NaN' WHERE id = 2"],
        "latency", "version 2 has no usable latency",
    ),
    "the champion's latency NaN": (
        ["ALTER TABLE versions DROP CONSTRAINT ck_versions_latency_seconds_is_finite",
         "UPDATE versions SET latency_seconds = 'NaN' WHERE id = 1"],
        "latency", "version 1 has no usable latency",
    ),
    "far slower than a champion of another processor that was timed beside it": (
        [FREE,
         """UPDATE versions SET machine = machine || '{"processor": "abacus"}' WHERE id = 1""",
         "UPDATE versions SET latency_seconds = 59 WHERE id = 2"],
        "latency", "times champion version 1's, 1000 times allowed",
    ),
    "no validation accuracy": (
        ["UPDATE versions SET validation_accuracy = NULL WHERE id = 2"], "gap", "version 2",
    ),
    "training accuracy NaN": (
        ["ALTER TABLE versions DROP CONSTRAINT ck_versions_training_accuracy_is_share",
         "UPDATE versions SET training_accuracy = 'NaN' WHERE id = 2"],
        "gap", "version 2",
    ),
    "one confidence NaN": (
        ["ALTER TABLE answers DROP CONSTRAINT ck_answers_label_confidence_is_share",
         f"""UPDATE answers SET label_confidence = 'NaN' WHERE evaluation_id = {MINE}
             AND sha256 = (SELECT min(sha256) FROM benchmark_images)"""],
        "answers", "version 2 has no answers",
    ),
    "one confidence NaN, further down": (
        ["ALTER TABLE answers DROP CONSTRAINT ck_answers_top_confidences_are_shares",
         f"""UPDATE answers SET top_confidences[2] = 'NaN' WHERE evaluation_id = {MINE}
             AND sha256 = (SELECT min(sha256) FROM benchmark_images)"""],
        "answers", "version 2 has no answers",
    ),
}  # fmt: skip


def test_the_candidate_is_good(story: Story) -> None:
    """Undamaged, the very candidate of these tests passes and is deployed."""
    with before_promotion(story) as (world, run_id):
        assert judge.fn(run_id, 2, worlds.LIMITS)
        deploy.fn(run_id, 2, "a test", "it is good")
        assert world.ask("SELECT version_id FROM champion") == [(2,)]
        deploy.fn(run_id, 2, "a test", "once more, after a kill")
        assert world.ask("SELECT count(*) FROM deployments") == [(2,)]
        with pytest.raises(NotDeployable, match="version 2 serves already"):
            judge.fn(run_id, 2, worlds.LIMITS)
        world.check()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_good_candidate_with_a_damaged_figure_is_refused(story: Story, damage: str) -> None:
    """It is refused, the check says why, the report says the same, and it cannot be deployed."""
    statements, name, phrase = DAMAGES[damage]
    with before_promotion(story) as (world, run_id):
        world.act(*statements)
        assert not judge.fn(run_id, 2, worlds.LIMITS)
        with world.transaction() as session:
            verdict = deployments.verdict(session, 2)
            assert verdict is not None
            assert not verdict.passed
            checks = deployments.checks(session, verdict.id)
            told = report.markdown(session, run_id, *report.verdict(2), 2)
        failed = {check.name: check.sentence for check in checks if check.verdict == "failed"}
        assert phrase in failed[name]
        state, reason = report.verdict(2)
        assert state == "refused"
        assert phrase in reason
        # Shown as text: what Markdown would obey is escaped there.
        assert phrase in told.replace("\\", "")
        with pytest.raises(NotDeployable, match="version 2 has no passed verdict"):
            deploy.fn(run_id, 2, "a test", "all the same")
        assert world.ask("SELECT version_id FROM champion") == [(1,)]


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("versions", "latency_seconds"),
        ("versions", "training_accuracy"),
        ("versions", "validation_accuracy"),
        ("evaluations", "accuracy"),
        ("evaluation_classes", "recall"),
        ("answers", "label_confidence"),
        ("answers", "top_confidences[2]"),
    ],
)
def test_postgres_takes_no_nan_into_a_verdict(story: Story, table: str, column: str) -> None:
    """No figure that a verdict rests on can be stored as NaN in the first place."""
    with pytest.raises(DBAPIError, match="check constraint"):
        story.done.act(f"UPDATE {table} SET {column} = 'NaN'")


# What happens between a passed verdict and the deployment, and what the refusal says.
AFTERWARDS: dict[str, tuple[list[str], str]] = {
    "answers deleted": ([f"DELETE FROM answers WHERE evaluation_id = {MINE}"], "no recorded answ"),
    "half of them deleted": (
        [f"DELETE FROM answers WHERE evaluation_id = {MINE} AND label IN ('ring', 'cross')"],
        "no recorded answers to repeat, or not all",
    ),
    "answers changed": (
        [f"""UPDATE answers SET top_confidences = ARRAY[0.4, 0.3, 0.2, 0.1]::real[],
                label_confidence = (ARRAY[0.4, 0.3, 0.2, 0.1])[array_position(top_labels, label)],
                confidence = 0.4 WHERE evaluation_id = {MINE}"""],
        "does not repeat its recorded answers",
    ),
    "the benchmark grew": (
        ["""INSERT INTO benchmarks (version, digest, images, classes, frozen_by, why, power)
            VALUES (3, 'newer', 0, 0, 'a test', 'newer', '{}')"""],
        "judged on benchmark version 2, and the newest is 3",
    ),
    "another champion": (
        [FREE, """INSERT INTO deployments (version_id, purpose, previous_id, verdict_id, kind,
                    deployed_by, why)
                  SELECT 1, 'nightly', 1, verdict_id, 'rollback', 'a test', 'rolled back meanwhile'
                  FROM deployments WHERE id = 1""",
         "UPDATE verdicts SET champion_id = NULL WHERE version_id = 2"],
        "the champion changed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("event", AFTERWARDS)
def test_a_passed_verdict_is_not_enough(story: Story, event: str) -> None:
    """What changed since the verdict refuses the deployment; the champion goes on serving."""
    statements, phrase = AFTERWARDS[event]
    with before_promotion(story) as (world, run_id):
        assert judge.fn(run_id, 2, worlds.LIMITS)
        world.act(*statements)
        with pytest.raises(NotDeployable, match=phrase):
            deploy.fn(run_id, 2, "a test", "it passed")
        assert world.ask("SELECT version_id FROM champion") == [(1,)]
