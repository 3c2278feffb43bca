"""Promises that hold between rows: no leak, append-only logs, no deployment without a verdict.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

FUNCTIONS = {
    # Both sides take one lock, or two transactions could each miss what the other brings in.
    "refuse_benchmark_image": """
        BEGIN
            PERFORM pg_advisory_xact_lock(hashtext('regraft-leak'));
            IF EXISTS (SELECT 1 FROM benchmark_images b WHERE b.sha256 = NEW.sha256) THEN
                RAISE EXCEPTION 'image % is in the benchmark: it may not enter the library',
                    NEW.sha256 USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END
    """,
    "refuse_library_image": """
        BEGIN
            PERFORM pg_advisory_xact_lock(hashtext('regraft-leak'));
            IF EXISTS (SELECT 1 FROM images i WHERE i.sha256 = NEW.sha256) THEN
                RAISE EXCEPTION 'image % is in the library: it may not enter the benchmark',
                    NEW.sha256 USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END
    """,
    "refuse_change": """
        BEGIN
            RAISE EXCEPTION 'rows of % are written once: % is refused', TG_TABLE_NAME, TG_OP
                USING ERRCODE = 'restrict_violation';
        END
    """,
    "refuse_new_split": """
        BEGIN
            RAISE EXCEPTION 'the split of image % was given once: it stays %',
                OLD.sha256, OLD.split USING ERRCODE = 'check_violation';
        END
    """,
    "refuse_new_checkpoint": """
        BEGIN
            RAISE EXCEPTION 'version % is trained: what it is can no longer change', OLD.id
                USING ERRCODE = 'check_violation';
        END
    """,
    "only_withdraw": """
        BEGIN
            IF (NEW.sha256, NEW.class_name, NEW.key, NEW.added_in)
                IS DISTINCT FROM (OLD.sha256, OLD.class_name, OLD.key, OLD.added_in)
                OR OLD.withdrawn_in IS NOT NULL THEN
                RAISE EXCEPTION 'benchmark image % can only be withdrawn, once', OLD.sha256
                    USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END
    """,
    # Fails closed: a verdict that is absent, empty, of another checkpoint or without the
    # evaluation it claims to rest on deploys nothing.
    "refuse_unproven_deployment": """
        DECLARE
            newest bigint;
        BEGIN
            LOCK TABLE deployments IN SHARE ROW EXCLUSIVE MODE;
            SELECT max(id) INTO newest FROM deployments;
            IF NEW.previous_id IS DISTINCT FROM newest THEN
                RAISE EXCEPTION 'deployment follows %, but the newest is %',
                    NEW.previous_id, newest USING ERRCODE = 'check_violation';
            END IF;
            IF NOT EXISTS (
                SELECT 1 FROM verdicts d
                JOIN versions v ON v.id = d.version_id AND v.state = 'trained'
                JOIN evaluations e ON e.version_id = v.id AND e.subject = 'benchmark'
                    AND e.benchmark_version = d.benchmark_version
                    AND e.checkpoint_digest = d.checkpoint_digest
                JOIN benchmarks b ON b.version = d.benchmark_version
                    AND b.digest = d.benchmark_digest
                WHERE d.id = NEW.verdict_id AND d.version_id = NEW.version_id AND d.passed
                  AND v.checkpoint_digest = d.checkpoint_digest
                  AND EXISTS (SELECT 1 FROM checks c WHERE c.verdict_id = d.id)
                  AND NOT EXISTS (SELECT 1 FROM checks c
                                  WHERE c.verdict_id = d.id AND c.verdict = 'failed')
            ) THEN
                RAISE EXCEPTION 'version % has no passed verdict on its checkpoint: it may not '
                    'serve', NEW.version_id USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END
    """,
}

TRIGGERS = [
    ("images", "no_leak", "BEFORE INSERT", "", "refuse_benchmark_image"),
    ("benchmark_images", "no_leak", "BEFORE INSERT", "", "refuse_library_image"),
    ("benchmark_images", "only_withdraw", "BEFORE UPDATE", "", "only_withdraw"),
    ("benchmark_images", "written_once", "BEFORE DELETE", "", "refuse_change"),
    ("benchmarks", "written_once", "BEFORE UPDATE OR DELETE", "", "refuse_change"),
    ("snapshots", "written_once", "BEFORE UPDATE OR DELETE", "", "refuse_change"),
    ("snapshot_classes", "written_once", "BEFORE UPDATE OR DELETE", "", "refuse_change"),
    ("label_changes", "written_once", "BEFORE UPDATE OR DELETE", "", "refuse_change"),
    ("validations", "written_once", "BEFORE UPDATE OR DELETE", "", "refuse_change"),
    ("verdicts", "written_once", "BEFORE UPDATE OR DELETE", "", "refuse_change"),
    ("checks", "written_once", "BEFORE UPDATE OR DELETE", "", "refuse_change"),
    ("deployments", "written_once", "BEFORE UPDATE OR DELETE", "", "refuse_change"),
    ("deployments", "proven", "BEFORE INSERT", "", "refuse_unproven_deployment"),
    (
        "images",
        "split_given_once",
        "BEFORE UPDATE OF split",
        "WHEN (OLD.split IS DISTINCT FROM NEW.split)",
        "refuse_new_split",
    ),
    (
        "versions",
        "trained_stays",
        "BEFORE UPDATE",
        "WHEN (OLD.state = 'trained' AND (OLD.checkpoint_digest, OLD.class_names, OLD.plan, "
        "OLD.snapshot_digest, OLD.parent_id, OLD.purpose, OLD.state) IS DISTINCT FROM "
        "(NEW.checkpoint_digest, NEW.class_names, NEW.plan, NEW.snapshot_digest, NEW.parent_id, "
        "NEW.purpose, NEW.state))",
        "refuse_new_checkpoint",
    ),
]


def upgrade() -> None:
    for name, body in FUNCTIONS.items():
        op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
    for table, name, event, condition, function in TRIGGERS:
        op.execute(
            f"CREATE TRIGGER {name}_{event.split()[1].lower()} {event} ON {table} "
            f"FOR EACH ROW {condition} EXECUTE FUNCTION {function}()"
        )
    op.execute(
        """
        CREATE VIEW champion AS
        SELECT d.id AS deployment_id, d.version_id, v.checkpoint_digest, v.architecture,
               v.class_names, v.plan, d.deployed_at
        FROM deployments d JOIN versions v ON v.id = d.version_id
        ORDER BY d.id DESC LIMIT 1
        """
    )
    # What serves may read which version that is, and nothing else. Where roles are made by
    # somebody else (a managed Postgres), the administrator grants the same.
    op.execute(
        """
        DO $$
        BEGIN
            IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'regraft_serving') THEN
                CREATE ROLE regraft_serving NOLOGIN;
            END IF;
            GRANT SELECT ON champion TO regraft_serving;
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE NOTICE 'role regraft_serving was not made: create it and grant SELECT on champion';
        END $$
        """
    )


def downgrade() -> None:
    op.execute("DROP VIEW champion")
    for table, name, event, _, _ in TRIGGERS:
        op.execute(f"DROP TRIGGER {name}_{event.split()[1].lower()} ON {table}")
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}()")
