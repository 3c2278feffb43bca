"""What must always hold: each promise is attacked, by SQL and in S3, and the attack is refused.

What no constraint can refuse, `check_invariants` must report.
"""

# ruff: noqa: S608  (attacks are SQL put together here; nobody else's text is in them)

import re
import threading
from collections.abc import Iterator

import pytest
import served
import worlds
from sqlalchemy import ARRAY, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from worlds import Story, World

from flows.nightly import nightly
from infra.database import Busy, run_lock
from infra.embedded import Addresses
from records import deployments, runs, transactions, versions
from records.deployments import NotDeployable
from records.invariants import (
    FLOATS,
    BrokenInvariant,
    broken,
    broken_objects,
    broken_rows,
)
from records.runs import Fenced
from records.tables import Base
from records.versions import checkpoint_key
from tasks import checkpoints
from tasks.evaluation import evaluate
from tasks.promotion import deploy, judge
from tasks.training import train_version
from vision.network import BadCheckpoint


@pytest.fixture(scope="module")
def story(services: Addresses, template: str, prefect_server: str) -> Story:
    """Two undisturbed nights."""
    return worlds.story(services, template)


@pytest.fixture(scope="module")
def attacked(story: Story) -> Iterator[World]:
    """The rows after two nights, of a pool and of a server; no attack may change them: checked."""
    rows = [
        served.row(1, version=2, draw=0.5),
        served.row(2, version=2, draw=0.5, request_id="order 7", body_digest="d" * 64),
    ]
    with worlds.rows_of(story.done) as world:
        world.act(*POOL)
        with world.transaction() as session:
            assert transactions.append(session, [transactions.line(row) for row in rows]) == 2
        world.act(REVIEWED)
        yield world
        world.check()


REVIEWED = """
    INSERT INTO reviews (subject, transaction_id, transaction_at, version_id, sha256, predicted,
        confidence, verdict, label, blind, stream, probability, reviewed_by)
    SELECT 'transaction', id, at, version_id, sha256, predicted, confidence, 'right', predicted,
        true, 'random', 0.5, 'Ann' FROM transactions
"""


def test_undisturbed_nights_keep_every_promise(story: Story) -> None:
    """Nothing is broken before the first night, between the nights, or after the second."""
    for world in (story.fresh, story.waiting, story.done):
        with world.database() as database:
            assert broken(database, world.storage) == []


# A version of any purpose with all that a deployment asks for, made of what version 2 has.
MADE = """
    WITH v AS (
        INSERT INTO versions (purpose, state, run_id, snapshot_digest, plan, plan_digest,
            architecture, class_names, class_names_digest, checkpoint_digest, machine)
        SELECT '{purpose}', 'trained', run_id, snapshot_digest, plan, 'another', architecture,
            class_names, class_names_digest, checkpoint_digest, machine
        FROM versions WHERE id = 2 RETURNING id, checkpoint_digest),
    e AS (
        INSERT INTO evaluations (version_id, checkpoint_digest, subject, benchmark_version, images,
            accuracy, accuracy_low, accuracy_high, runtime)
        SELECT v.id, v.checkpoint_digest, 'benchmark', 2, 30, 1, 1, 1, '{{}}' FROM v),
    d AS (
        INSERT INTO verdicts (version_id, checkpoint_digest, champion_id, benchmark_version,
            benchmark_digest, passed, limits)
        SELECT v.id, v.checkpoint_digest, 2, 2, b.digest, true, '{{}}'
        FROM v, benchmarks b WHERE b.version = 2 RETURNING id)
    INSERT INTO checks (verdict_id, ordinal, name, verdict, numbers, sentence)
    SELECT d.id, 0, 'all', 'passed', '{{}}', 'good' FROM d
"""
DEPLOY = """
    INSERT INTO deployments (version_id, purpose, previous_id, verdict_id, kind, deployed_by, why)
    SELECT version_id, {purpose}, {previous}, id, 'promotion', 'a test', 'to break it'
    FROM verdicts ORDER BY id DESC LIMIT 1
"""
NEWEST = "(SELECT max(id) FROM deployments)"
AGAIN = """
    INSERT INTO verdicts (version_id, checkpoint_digest, champion_id, benchmark_version,
        benchmark_digest, passed, limits)
    SELECT version_id, {digest}, 2, benchmark_version, benchmark_digest, {passed}, limits
    FROM verdicts WHERE version_id = 2
"""
CHECKED = """
    INSERT INTO checks (verdict_id, ordinal, name, verdict, numbers, sentence)
    SELECT max(id), 0, 'one', '{verdict}', '{{}}', 'a sentence' FROM verdicts
"""
ENDED = "UPDATE runs SET state = 'failed', ended_at = now() WHERE state = 'running'"
RUN = "INSERT INTO runs (purpose, host, pid, plan) VALUES ('nightly', 'here', 1, '{}')"

# One picture of a pool, answered by version 2 and dismissed by a person.
POOL = (
    "INSERT INTO pools (prefix) VALUES ('pools/x/')",
    "INSERT INTO pool_images (sha256, width, height) VALUES (repeat('a', 64), 9, 9)",
    "INSERT INTO pool_objects (pool_id, key, etag, size, sha256) "
    "SELECT id, 'pools/x/1', 'e', 9, repeat('a', 64) FROM pools",
    "INSERT INTO identifications (pool_id, version_id, checkpoint_digest, targets, wished, "
    "threshold, listed, listed_at) SELECT p.id, v.id, v.checkpoint_digest, ARRAY['ring'], 0.9, "
    "0.5, 1, now() FROM pools p, versions v WHERE v.id = 2",
    "INSERT INTO shards (identification_id, ordinal, state, objects, claimed_by, answered, "
    "done_at) SELECT id, 0, 'done', 1, 'x', 1, now() FROM identifications",
    "INSERT INTO pool_answers (version_id, sha256, identification_id, predicted, confidence, "
    "top_labels, top_confidences, target_confidences, entropy, shown) SELECT version_id, "
    "repeat('a', 64), id, 'ring', 0.75, ARRAY['ring'], ARRAY[0.75], ARRAY[0.75], 0.5, true "
    "FROM identifications",
    "INSERT INTO target_scores SELECT version_id, sha256, 'ring', 0.75 FROM pool_answers",
    "INSERT INTO embeddings SELECT version_id, sha256, '\\x0000' FROM pool_answers",
    "INSERT INTO pool_acts (sha256, act, version_id, predicted, confidence, done_by) "
    "SELECT sha256, 'dismiss', version_id, predicted, confidence, 'a test' FROM pool_answers",
)
FOUND = """
    INSERT INTO images (sha256, class_id, origin, mined, group_name, split, width, height, format,
        bytes, labelled_by, batch_id)
    VALUES (repeat('a', 64), 1, 'real', {mined}, 'g', 'train', 9, 9, 'PNG', 9, '{by}', 1)
"""
LABELLED = """
    INSERT INTO pool_acts (sha256, act, class_name, to_key, done_by)
    VALUES (repeat('a', 64), 'label', 'circle', 'labelled/circle/x.png', '{by}')
"""

REFUSED: dict[str, tuple[list[str], str]] = {
    "1: a second follower of one deployment": (
        [DEPLOY.format(purpose="'nightly'", previous="1")],
        "deployment follows 1, but the newest is 2",
    ),
    "1: a second follower where no trigger looks": (
        ["SET LOCAL session_replication_role = replica",
         DEPLOY.format(purpose="'nightly'", previous="1")],
        "one_successor",
    ),
    "1: a second beginning of the log": (
        [DEPLOY.format(purpose="'nightly'", previous="NULL")],
        "deployment follows <NULL>",
    ),
    "1: a row behind the newest": (
        ["""INSERT INTO deployments (id, version_id, purpose, previous_id, verdict_id, kind,
                deployed_by, why) OVERRIDING SYSTEM VALUE
            SELECT -1, version_id, 'nightly', 2, id, 'rollback', 'a test', 'back in time'
            FROM verdicts ORDER BY id DESC LIMIT 1"""],
        "previous_older",
    ),
    "1: a deployment without a verdict": (
        ["""INSERT INTO deployments (version_id, purpose, previous_id, kind, deployed_by, why)
            VALUES (1, 'nightly', 2, 'rollback', 'a test', 'no verdict')"""],
        "no passed verdict",
    ),
    "1: a deployment by another version's verdict": (
        ["""INSERT INTO deployments (version_id, purpose, previous_id, verdict_id, kind,
                deployed_by, why)
            SELECT 1, 'nightly', 2, id, 'rollback', 'a test', 'borrowed' FROM verdicts
            WHERE version_id = 2"""],
        "no passed verdict",
    ),
    "1: a borrowed verdict where no trigger looks": (
        ["ALTER TABLE deployments DISABLE TRIGGER proven_insert",
         """INSERT INTO deployments (version_id, purpose, previous_id, verdict_id, kind,
                deployed_by, why)
            SELECT 1, 'nightly', 2, id, 'rollback', 'a test', 'borrowed' FROM verdicts
            WHERE version_id = 2"""],
        "fk_deployments_verdict_id",
    ),
    "1: a deployment by a failed verdict": (
        [AGAIN.format(passed="false", digest="checkpoint_digest"),
         CHECKED.format(verdict="passed"), DEPLOY.format(purpose="'nightly'", previous=NEWEST)],
        "no passed verdict",
    ),
    "1: a deployment by a verdict without checks": (
        [AGAIN.format(passed="true", digest="checkpoint_digest"),
         DEPLOY.format(purpose="'nightly'", previous=NEWEST)],
        "no passed verdict",
    ),
    "1: a deployment by a verdict with a failed check": (
        [AGAIN.format(passed="true", digest="checkpoint_digest"),
         CHECKED.format(verdict="failed"), DEPLOY.format(purpose="'nightly'", previous=NEWEST)],
        "no passed verdict",
    ),
    "1: a verdict on another checkpoint": (
        [AGAIN.format(passed="true", digest="(SELECT checkpoint_digest FROM versions WHERE id=1)")],
        "fk_verdicts_version_id",
    ),
    "1: a deployment without the evaluation it rests on": (
        ["DELETE FROM evaluations WHERE version_id = 2 AND subject = 'benchmark'",
         DEPLOY.format(purpose="'nightly'", previous=NEWEST)],
        "no passed verdict",
    ),
    **{
        f"1: a {purpose} version that serves{how}": (
            [MADE.format(purpose=purpose), DEPLOY.format(purpose=said, previous=NEWEST)], constraint
        )
        for purpose in ("throwaway", "pretrain")
        for how, said, constraint in (
            ("", f"'{purpose}'", "ck_deployments_purpose_known"),
            (", under another name", "'nightly'", "fk_deployments_version_id"),
        )
    },
    **{
        f"1: a throw-away version as parent{how}": (
            [MADE.format(purpose="throwaway"),
             f"""INSERT INTO versions (purpose, run_id, parent_id, parent_purpose, snapshot_digest,
                    plan, plan_digest, architecture, class_names, class_names_digest)
                 SELECT 'nightly', run_id, id, '{said}', snapshot_digest, plan, plan_digest,
                    architecture, class_names, class_names_digest
                 FROM versions ORDER BY id DESC LIMIT 1"""],
            constraint,
        )
        for how, said, constraint in (
            ("", "throwaway", "ck_versions_parent_not_throwaway"),
            (", under another name", "nightly", "fk_versions_parent_id"),
        )
    },
    "1: a night that overrides a check": (
        [AGAIN.format(passed="true", digest="checkpoint_digest"),
         CHECKED.format(verdict="overridden"), DEPLOY.format(purpose="'nightly'", previous=NEWEST)],
        "overridden check that nobody may override here",
    ),
    "1: an approval that overrides what nobody may": (
        [AGAIN.format(passed="true", digest="checkpoint_digest"),
         CHECKED.format(verdict="overridden").replace("'one'", "'dead classes'"),
         DEPLOY.format(purpose="'nightly'", previous=NEWEST).replace("'promotion'", "'approval'")],
        "overridden check that nobody may override here",
    ),
    "1: a rollback to what never served": (
        [AGAIN.format(passed="true", digest="checkpoint_digest"), CHECKED.format(verdict="passed"),
         DEPLOY.format(purpose="'nightly'", previous=NEWEST).replace("'promotion'", "'rollback'")],
        "never served by this verdict",
    ),
    "1: a night that deploys what a person rejected": (
        ["INSERT INTO rejections (version_id, rejected_by, why) VALUES (2, 'a test', 'no')",
         DEPLOY.format(purpose="'nightly'", previous=NEWEST)],
        "only an approval lets it serve",
    ),
    "1: a night that deploys what has served before": (
        [DEPLOY.format(purpose="'nightly'", previous=NEWEST)],
        "only a person lets it serve again",
    ),
    "1: a control version that a night deploys": (
        [MADE.format(purpose="control"), DEPLOY.format(purpose="'control'", previous=NEWEST)],
        "ck_deployments_kind_fits_purpose",
    ),
    "1: a nightly version that is adopted": (
        [DEPLOY.format(purpose="'nightly'", previous=NEWEST).replace("'promotion'", "'adoption'")],
        "ck_deployments_kind_fits_purpose",
    ),
    "1: a rejection without a word": (
        ["INSERT INTO rejections (version_id, rejected_by, why) VALUES (1, 'a test', ' ')"],
        "says_who_and_why",
    ),
    "1: a rejection taken back": (
        ["INSERT INTO rejections (version_id, rejected_by, why) VALUES (1, 'a test', 'no')",
         "DELETE FROM rejections"],
        "written once",
    ),
    "1: a look that is forgotten": (
        ["INSERT INTO looks (benchmark_version, version_id, kind, looked_by) "
         "VALUES (2, 1, 'evaluation', 'a test')", "DELETE FROM looks"],
        "written once",
    ),
    "1: a version that becomes throw-away later": (
        ["UPDATE versions SET purpose = 'throwaway' WHERE id = 1"], "can no longer change"
    ),
    "2: other bytes for a trained version": (
        ["UPDATE versions SET checkpoint_digest = repeat('0', 64) WHERE id = 1"],
        "can no longer change",
    ),
    "2: a trained version without a checkpoint": (
        ["UPDATE versions SET state = 'trained', machine = '{}' WHERE id = (SELECT id FROM v)"
         .replace("UPDATE", "WITH v AS (INSERT INTO versions (purpose, state, run_id, "
                  "snapshot_digest, plan, plan_digest, architecture, class_names, "
                  "class_names_digest) SELECT purpose, 'trained', run_id, snapshot_digest, plan, "
                  "'x', architecture, class_names, class_names_digest FROM versions WHERE id = 1 "
                  "RETURNING id) UPDATE")],
        "ck_versions_trained_has_checkpoint",
    ),
    "3: a library image in the benchmark": (
        ["""INSERT INTO benchmark_images (sha256, class_name, source_key, key, added_in)
            SELECT min(sha256), 'circle', 'k', 'k', 2 FROM images"""],
        "is in the library",
    ),
    "3: a benchmark image in the library": (
        ["""INSERT INTO images (sha256, class_id, origin, group_name, split, width, height, format,
                bytes, labelled_by, batch_id)
            SELECT min(sha256), 1, 'real', 'g', 'train', 9, 9, 'PNG', 9, 'person:x', 1
            FROM benchmark_images"""],
        "is in the benchmark",
    ),
    "3: an image that is renamed into the benchmark": (
        ["""UPDATE images SET sha256 = (SELECT min(sha256) FROM benchmark_images)
            WHERE sha256 = (SELECT min(sha256) FROM images)"""],
        "is its bytes",
    ),
    "3: another label in the benchmark": (
        ["UPDATE benchmark_images SET class_name = 'cross'"], "can only be withdrawn"
    ),
    "3: a split that moves": (
        ["UPDATE images SET split = CASE split WHEN 'train' THEN 'test' ELSE 'train' END"],
        "was given once",
    ),
    "3: an image that is deleted, to draw another split": (["DELETE FROM images"], "written once"),
    "3: a staged image in a test": (
        ["UPDATE images SET origin = 'staged' WHERE split = 'test'"], "ck_images_made_only_trains"
    ),
    "4: the same candidate twice": (
        ["""INSERT INTO versions (purpose, run_id, snapshot_digest, plan, plan_digest, architecture,
                class_names, class_names_digest)
            SELECT purpose, run_id, snapshot_digest, plan, plan_digest, architecture, class_names,
                class_names_digest FROM versions WHERE id = 1"""],
        "one_candidate",
    ),
    "5: one object twice": (
        ["""INSERT INTO objects (bucket, key, etag, size, modified)
            SELECT bucket, key, etag, size, modified FROM objects LIMIT 1"""],
        "uq_objects_bucket",
    ),
    "5: a state that is none": (["UPDATE objects SET state = 'lost'"], "ck_objects_state_known"),
    "5: accepted without bytes": (
        ["UPDATE objects SET sha256 = NULL WHERE state = 'accepted'"], "accepted_has_sha256"
    ),
    "5: two open batches": (
        ["INSERT INTO batches DEFAULT VALUES", "INSERT INTO batches DEFAULT VALUES"], "one_open"
    ),
    "7: two running runs": ([RUN, RUN], "one_running"),
    "7: a closed run that is opened again": (
        ["UPDATE runs SET state = 'running', ended_at = NULL WHERE id = 1"], "closed for good"
    ),
    "10: other class names for a trained version": (
        ["UPDATE versions SET class_names = array_reverse(class_names) WHERE id = 2"],
        "can no longer change",
    ),
    "12: a picture answered twice": (
        ["INSERT INTO pool_answers SELECT * FROM pool_answers"], "pk_pool_answers"
    ),
    "12: an answer that changes": (["UPDATE pool_answers SET shown = false"], "written once"),
    "12: an answer that another was more likely than": (
        ["INSERT INTO pool_answers (version_id, sha256, identification_id, predicted, confidence, "
         "top_labels, top_confidences, target_confidences, entropy) SELECT 2, repeat('b', 64), "
         "identification_id, 'cross', 0.75, top_labels, top_confidences, '{}', 0 "
         "FROM pool_answers"],
        "ck_pool_answers_best_first",
    ),
    "12: an answer by another version than the identification's": (
        ["INSERT INTO pool_answers (version_id, sha256, identification_id, predicted, confidence, "
         "top_labels, top_confidences, target_confidences, entropy) SELECT 1, sha256, "
         "identification_id, predicted, confidence, top_labels, top_confidences, '{}', 0 "
         "FROM pool_answers"],
        "fk_pool_answers_identification_id",
    ),
    "12: answers that go with their identification": (
        ["DELETE FROM identifications"], "fk_pool_answers_identification_id"
    ),
    "12: two identifications of one pool by one version": (
        ["INSERT INTO identifications (pool_id, version_id, checkpoint_digest, targets) "
         "SELECT pool_id, version_id, checkpoint_digest, targets FROM identifications"],
        "one_identification",
    ),
    "12: an identification that ends before its listing": (
        ["UPDATE identifications SET state = 'completed', ended_at = now(), listed_at = NULL"],
        "completed_is_listed",
    ),
    "12: a shard that is done and lacks an object": (
        ["UPDATE shards SET answered = 0"], "ck_shards_counts_fit"
    ),
    "12: a prediction that trains": (
        [FOUND.format(mined="true", by="person:x")], "no person labelled it"
    ),
    "12: what a model found, as if a person had": (
        [LABELLED.format(by="person:x"), FOUND.format(mined="false", by="person:x")],
        "must be marked as mined",
    ),
    "12: a label by a version": (
        [LABELLED.format(by="version:2")], "ck_pool_acts_done_by_person"
    ),
    "12: an image that a model labelled": (
        [FOUND.format(mined="false", by="Model:2")], "ck_images_labelled_by_person"
    ),
    "12: an act that is taken back": (["DELETE FROM pool_acts"], "written once"),
    **{
        f"{table}: {act}": ([f"{act} {table} {rest}".strip()], "written once|can only be withdrawn")
        for table, column in (
            ("deployments", "why"), ("verdicts", "passed"), ("checks", "sentence"),
            ("snapshots", "key"), ("snapshot_classes", "lacks"), ("benchmarks", "why"),
            ("benchmark_images", "class_name"), ("validations", "passed"), ("images", "split"),
        )
        for act, rest in (
            ("UPDATE", f"SET {column} = {column}"), ("DELETE FROM", ""), ("TRUNCATE", "CASCADE")
        )
        # Withdrawing is an update; what else may not change in these two is tried above.
        if (act, table) not in {("UPDATE", "images"), ("UPDATE", "benchmark_images")}
    },
}  # fmt: skip


@pytest.mark.parametrize("attack", REFUSED)
def test_postgres_refuses(attacked: World, attack: str) -> None:
    """What would break a promise is refused by a constraint or trigger, whoever writes it."""
    statements, complaint = REFUSED[attack]
    with pytest.raises(DBAPIError, match=complaint):
        attacked.act(*statements)


def test_no_figure_can_be_nan(attacked: World) -> None:
    """Every float column of every table refuses NaN and infinity, arrays included."""
    tried = 0
    # what a version's failures ask for and which labels it doubts depends on how it errs
    attacked.act(
        "DELETE FROM augmentation_changes",
        "INSERT INTO augmentation_changes "
        "SELECT version_id, 1, NULL, 'blur', 'blur', 0, 1, 'x' FROM failure_analyses",
        "DELETE FROM label_doubts",
        "INSERT INTO label_doubts "
        "SELECT version_id, (SELECT min(sha256) FROM images), 'test', version_id, 'ring', 'cross',"
        " 0, 1 FROM failure_analyses",
    )
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            array = isinstance(column.type, ARRAY)
            kind = column.type.item_type if isinstance(column.type, ARRAY) else column.type
            if not isinstance(kind, FLOATS):
                continue
            [(rows,)] = attacked.ask(f"SELECT count(*) FROM {table.name}")
            assert rows, f"the story leaves no row in {table.name}"
            for value in ("'NaN'", "'Infinity'", "'-Infinity'"):
                wrong = f"ARRAY[{value}::real]" if array else f"{value}::real"
                with pytest.raises(DBAPIError, match=r"check constraint|written once"):
                    attacked.act(f"UPDATE {table.name} SET {column.name} = {wrong}")
                tried += 1
    assert tried >= 100


FREE = "SET LOCAL session_replication_role = replica"  # as if there were no triggers and keys
FIRST = "(SELECT min(sha256) FROM images)"

REPORTED: dict[str, list[str]] = {
    "1: a deployment does not follow": ["DELETE FROM deployments WHERE id = 1"],
    "1: a deployment has no passed verdict": ["UPDATE verdicts SET passed = false"],
    "1: a deployment has no passed verdict ": ["DELETE FROM checks WHERE verdict_id = 2"],
    "1: a promotion was judged against": [
        "UPDATE verdicts SET champion_id = NULL WHERE version_id = 2"
    ],
    "1: a deployed version was never meant": ["UPDATE versions SET purpose = 'pretrain'"],
    "1: a version that had served before": [
        """INSERT INTO deployments (version_id, purpose, previous_id, verdict_id, kind, deployed_by,
               why) SELECT version_id, 'nightly', 2, verdict_id, 'promotion', 'a test', 'again'
           FROM deployments WHERE id = 1"""
    ],
    "1: a version's parent is a throw-away": [
        "ALTER TABLE versions DROP CONSTRAINT ck_versions_parent_not_throwaway",
        "UPDATE versions SET purpose = 'throwaway' WHERE id = 1",
    ],
    "2: the checkpoint of version 1 is not in S3": [
        "UPDATE versions SET checkpoint_digest = repeat('0', 64) WHERE id = 1"
    ],
    "3: an image is in the library and in the benchmark": [
        f"UPDATE benchmark_images SET sha256 = {FIRST} WHERE class_name = 'ring' AND "
        "sha256 = (SELECT min(sha256) FROM benchmark_images WHERE class_name = 'ring')"
    ],
    "3: snapshot .* trains on benchmark images": [
        f"UPDATE benchmark_images SET sha256 = {FIRST} WHERE "
        "sha256 = (SELECT min(sha256) FROM benchmark_images)"
    ],
    "3: a library image nearly repeats": [
        "UPDATE benchmark_images SET dhash = 0", f"UPDATE images SET dhash = 7 WHERE sha256={FIRST}"
    ],
    "3: a library image nearly repeats ": [
        "UPDATE benchmark_images SET dhash = 0",
        f"""UPDATE objects SET facts = facts || '{{"dhash_mirror": 7}}' WHERE sha256 = {FIRST}""",
    ],
    "3: images of one group": [
        "UPDATE images SET group_name = 'one' WHERE split IN ('train', 'test')"
    ],
    "3: benchmark version 1 is no longer": ["UPDATE benchmark_images SET class_name = 'circle'"],
    "4: snapshot .* in another split": [
        f"UPDATE images SET split = 'held' WHERE sha256 = {FIRST}"
    ],
    "4: snapshot .* is not in S3": ["UPDATE snapshots SET key = 'snapshots/none.parquet'"
                                     " WHERE images = 84"],
    "5: one key has more than one live object": [
        "UPDATE objects SET key = 'labelled/circle/0.png' WHERE key = 'labelled/circle/1.png'"
    ],
    "5: an accepted object has no image": [f"DELETE FROM images WHERE sha256 = {FIRST}"],
    "5: a usable image has no accepted object": [
        f"UPDATE objects SET sha256 = repeat('1', 64) WHERE sha256 = {FIRST}"
    ],
    "5: an object is in quarantine without": ["DELETE FROM quarantine"],
    "5: an object is still pending": ["UPDATE objects SET state = 'pending' WHERE batch_id = 2"],
    "5: an image came in with a batch": ["UPDATE batches SET state = 'refused' WHERE id = 2"],
    "5: two images have one place": ["UPDATE images SET sequence = 1 WHERE sequence IS NOT NULL"],
    "5: the listed objects are not the sum": [
        "ALTER TABLE objects DROP CONSTRAINT ck_objects_state_known",
        "UPDATE objects SET state = 'lost' WHERE id = 1",
    ],
    "7: more than one run is running: \\[1, 2\\]": [
        "DROP INDEX one_running", "UPDATE runs SET state = 'running', ended_at = NULL"
    ],
    "9: versions.latency_seconds is not finite": [
        "ALTER TABLE versions DROP CONSTRAINT ck_versions_latency_seconds_is_finite",
        "UPDATE versions SET latency_seconds = 'NaN'",
    ],
    "9: answers.top_confidences is not finite": [
        "ALTER TABLE answers DROP CONSTRAINT ck_answers_top_confidences_are_shares",
        "UPDATE answers SET top_confidences[2] = 'NaN'",
    ],
    "10: the checkpoint of version 2 names other classes": [
        "UPDATE versions SET class_names = array_reverse(class_names) WHERE id = 2"
    ],
    "10: the class names of version 2 do not have the hash": [
        "UPDATE versions SET class_names_digest = repeat('0', 64) WHERE id = 2"
    ],
    "10: an evaluation is of another checkpoint": [
        "UPDATE evaluations SET checkpoint_digest = repeat('0', 64) WHERE version_id = 2"
    ],
    "10: an answer names a class": [
        "UPDATE answers SET predicted = 'whale', top_labels[1] = 'whale', correct = false"
    ],
    "10: an answer contradicts itself": ["UPDATE answers SET correct = NOT correct"],
    "10: an evaluation has not as many answers": [
        f"DELETE FROM answers WHERE sha256 = {FIRST}"
    ],
    "12: an identification is closed though": [
        "UPDATE shards SET state = 'open', keys = ARRAY['k'], etags = ARRAY['e'], "
        "sizes = ARRAY[1], done_at = NULL",
        "UPDATE identifications SET state = 'completed', ended_at = now()",
    ],
    "12: the objects of an identification are not": ["UPDATE identifications SET listed = 7"],
    "12: an identification has not as many answers": ["DELETE FROM pool_answers"],
    "12: a picture of an identified pool has no answer": [
        "DELETE FROM pool_answers",
        "UPDATE identifications SET state = 'completed', ended_at = now()",
        "UPDATE pool_objects SET read_at = read_at - interval '1 hour'",
    ],
    "8: a month of transactions is not": ["UPDATE usage_days SET transactions = 3"],
    "8: a day's transactions by class are not": ["DELETE FROM predicted_days WHERE band = 1"],
    "8: two transactions have one number": [
        "UPDATE transactions SET id = (SELECT id FROM transactions ORDER BY at LIMIT 1)"
    ],
    "8: two transactions have one number, or one place": [
        "UPDATE transactions SET request_id = 'order 7'"
    ],
    "8: a transaction is of a named request": ["DELETE FROM served_requests"],
    "13: pictures of transactions are not in S3": [
        "UPDATE transactions SET image_key = 'transactions/2026/12/01/none'"
    ],
    "12: an object of a pool was read, and": ["DELETE FROM pool_images"],
    "12: an answer to a pool names a class": ["UPDATE pool_answers SET predicted = 'whale', "
                                              "top_labels = ARRAY['whale']"],
    "12: an answer to a pool has not a confidence": ["UPDATE identifications SET targets = '{}'"],
    "12: an answer to a pool is shown against": ["UPDATE identifications SET threshold = 0.9"],
    "12: a picture that a version found is in the library": [
        "UPDATE images SET mined = true WHERE split = 'train' AND sha256 = (SELECT min(sha256) "
        "FROM images WHERE split = 'train')"
    ],
    "11: an image is removed without the act": [
        "UPDATE images SET withdrawn_at = now(), withdrawn_why = 'removed' "
        "WHERE sha256 = (SELECT min(sha256) FROM images)"
    ],
    "10: a name that is no class any more": ["UPDATE classes SET became_id = 2 WHERE id = 1"],
    "10: a benchmark answer has another label": [
        "UPDATE answers SET label = 'circle', correct = (predicted = 'circle')"
    ],
}  # fmt: skip


def test_what_no_constraint_stopped_is_reported(attacked: World) -> None:
    """With triggers and keys switched off, each broken promise is named by `check_invariants`."""
    missed = []
    for sentence, statements in REPORTED.items():
        with attacked.database() as database, Session(database.engine) as session:
            for statement in (FREE, *statements):
                session.execute(text(statement))
            found = broken_rows(session)
            if not any(re.match(sentence.strip(), one) for one in found):
                found += broken_objects(session, attacked.storage)
            if not any(re.match(sentence.strip(), one) for one in found):
                missed.append((sentence, found))
            session.rollback()
    assert missed == []


def test_changed_objects_are_reported_and_never_loaded(story: Story) -> None:
    """A flipped bit in a checkpoint is refused at load; other lost or changed objects are named."""
    with worlds.twin(story.done) as world:
        with world.transaction() as session:
            digest = versions.get(session, 2).checkpoint_digest or ""
        key = checkpoint_key(digest)
        whole = world.storage.read(key)
        flipped = bytearray(whole)
        flipped[-5] ^= 1
        world.storage.write(key, bytes(flipped))
        with pytest.raises(BadCheckpoint, match="other bytes"):
            checkpoints.load(2)
        assert "2: the checkpoint of version 2 holds other bytes" in _told(world)
        world.storage.write(key, whole)
        assert checkpoints.load(2).class_names == ("circle", "cross", "ring", "square")
        # A copy on this machine is checked as well, and fetched anew when it is damaged.
        held = world.folder / "cache" / "checkpoints" / f"{digest}.safetensors"
        held.write_bytes(bytes(flipped))
        assert checkpoints.load(2).class_names == ("circle", "cross", "ring", "square")
        assert held.read_bytes() == whole

        [(snapshot,)] = world.ask("SELECT key FROM snapshots WHERE images = 36")
        [(other,)] = world.ask("SELECT key FROM snapshots WHERE images = 84")
        [(frozen,)] = world.ask("SELECT min(key) FROM benchmark_images")
        world.storage.copy(snapshot, other)
        world.storage.delete(snapshot)
        world.storage.write(frozen, b"another picture")
        told = _told(world)
        assert "holds another list than its digest says" in told
        assert "is not in S3 under snapshots/" in told
        assert "was changed in S3 under benchmark-images/" in told


def _told(world: World) -> str:
    with pytest.raises(BrokenInvariant) as caught:
        world.check()
    return str(caught.value)


def test_of_two_deployments_at_once_one_is_refused(story: Story) -> None:
    """Two promotions judged against the same champion: the second is told to judge again."""
    with worlds.rows_of(story.done) as world:
        world.act(FREE, "DELETE FROM deployments WHERE id = 2")
        begun, outcomes = threading.Barrier(2), []

        def promote() -> None:
            begun.wait()
            try:
                with world.transaction() as session:
                    deployments.deploy(session, 2, 2, expected=1, by="a test", why="first")
                outcomes.append("deployed")
            except NotDeployable as error:
                outcomes.append(str(error))

        both = [threading.Thread(target=promote) for _ in range(2)]
        for one in both:
            one.start()
        for one in both:
            one.join()
        assert sorted(outcomes)[0] == "deployed"
        assert "judge it again" in sorted(outcomes)[1]
        assert world.ask("SELECT count(*) FROM deployments") == [(2,)]
        world.check()


def test_stale_verdicts_deploy_nothing(story: Story) -> None:
    """A verdict against an earlier champion, or on an earlier benchmark, is not enough."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        with (
            pytest.raises(NotDeployable, match="the champion changed"),
            world.transaction() as session,
        ):
            deployments.deploy(session, 1, 1, expected=2, by="a test", why="judged long ago")
        world.act(
            FREE,
            "DELETE FROM deployments WHERE id = 2",
            """INSERT INTO benchmarks (version, digest, images, classes, frozen_by, why, power)
               VALUES (3, 'newer', 0, 0, 'a test', 'newer', '{}')""",
        )
        with (
            pytest.raises(NotDeployable, match="benchmark version 2, and the newest is 3"),
            world.transaction() as session,
        ):
            deployments.deploy(session, 2, 2, expected=1, by="a test", why="old benchmark")


def test_a_run_that_was_taken_for_dead_publishes_nothing(story: Story) -> None:
    """A paused run that wakes up after another began is fenced out of every publishing act."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        with world.transaction() as session:
            old = runs.begin(session, "nightly", {}, None)
        with world.transaction() as session:
            new = runs.begin(session, "nightly", {}, None)
        assert world.ask("SELECT id, state FROM runs WHERE id >= :old ORDER BY id", old=old) == [
            (old, "crashed"),
            (new, "running"),
        ]
        world.act(
            FREE,
            "UPDATE versions SET state = 'training', checkpoint_digest = NULL WHERE id = 2",
            "DELETE FROM epochs WHERE version_id = 2",
        )
        with pytest.raises(Fenced, match=f"run {old} is crashed: it may not publish"):
            train_version.fn(old, 2)
        assert world.ask("SELECT count(*) FROM epochs WHERE version_id = 2") == [(0,)]
        before = world.ask("SELECT id, version_id, created_at FROM evaluations ORDER BY id")
        for act in (
            lambda: evaluate.fn(old, 1, None),
            lambda: judge.fn(old, 1, worlds.LIMITS),
        ):
            with pytest.raises(Fenced):
                act()
        assert world.ask("SELECT id, version_id, created_at FROM evaluations ORDER BY id") == before
        world.act(
            FREE,
            "UPDATE versions v SET state = 'trained', checkpoint_digest = d.checkpoint_digest "
            "FROM verdicts d WHERE v.id = 2 AND d.version_id = 2",
            "DELETE FROM deployments WHERE id = 2",
        )
        with pytest.raises(Fenced):
            deploy.fn(old, 2, "a test", "woke up late")
        assert world.ask("SELECT version_id FROM champion") == [(1,)]


def test_one_night_at_a_time(story: Story) -> None:
    """While one night holds the lock another is refused at once and leaves no trace."""
    with worlds.rows_of(story.done) as world, worlds.inside(world):
        busy = pytest.raises(Busy, match="regraft-night process")
        with world.database() as database, run_lock(database), busy:
            nightly(plan=worlds.SECOND_PLAN, limits=worlds.LIMITS)
        assert world.ask("SELECT max(id) FROM runs") == [(2,)]


def test_the_serving_role_reads_the_champion_and_nothing_else(attacked: World) -> None:
    """Whoever serves sees which version serves, and can change or read nothing more."""
    with attacked.transaction() as session:
        session.execute(text("SET LOCAL ROLE regraft_serving"))
        row = session.execute(text("SELECT version_id, class_names FROM champion")).one()
    assert tuple(row) == (2, ["circle", "cross", "ring", "square"])
    for statement in ("DELETE FROM champion", "UPDATE champion SET version_id = 1"):
        with pytest.raises(DBAPIError, match=r"permission denied|cannot"):
            attacked.act("SET LOCAL ROLE regraft_serving", statement)
    for table in Base.metadata.sorted_tables:
        column = table.columns.keys()[0]
        for statement in (
            f"SELECT 1 FROM {table.name}",
            f"INSERT INTO {table.name} DEFAULT VALUES",
            f"UPDATE {table.name} SET {column} = DEFAULT",
            f"DELETE FROM {table.name}",
            f"TRUNCATE {table.name} CASCADE",
        ):
            with pytest.raises(DBAPIError, match="permission denied"):
                attacked.act("SET LOCAL ROLE regraft_serving", statement)
