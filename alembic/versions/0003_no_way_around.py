"""Ways around the promises that 0001 and 0002 left open.

A NaN could be stored where no share was checked, TRUNCATE passed every row trigger, a closed run
could be opened again and pass the fence, an image could be deleted and come back with another
split or be renamed into the benchmark, and a log row could be written in behind the newest one.

Revision ID: 0003
Revises: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# What stands beside each in records/tables.py.
CHECKS = [
    ("epochs", "learning_rate_is_finite", "learning_rate >= 0 AND learning_rate < 'Infinity'"),
    ("epochs", "seconds_is_finite", "seconds >= 0 AND seconds < 'Infinity'"),
    (
        "epochs",
        "images_per_second_is_finite",
        "images_per_second >= 0 AND images_per_second < 'Infinity'",
    ),
    (
        "answers",
        "top_confidences_are_shares",
        "0 <= ALL (top_confidences) AND 1 >= ALL (top_confidences)",
    ),
    ("manifest_rows", "box_are_shares", "0 <= ALL (box) AND 1 >= ALL (box)"),
    ("gradcams", "confidence_is_share", "confidence BETWEEN 0 AND 1"),
    ("objects", "accepted_has_sha256", "state <> 'accepted' OR sha256 IS NOT NULL"),
    ("deployments", "previous_older", "previous_id < id"),
]

WRITTEN_ONCE = (
    "benchmarks",
    "benchmark_images",
    "snapshots",
    "snapshot_classes",
    "label_changes",
    "validations",
    "verdicts",
    "checks",
    "deployments",
    "images",
)

FUNCTIONS = {
    "refuse_reopening": """
        BEGIN
            RAISE EXCEPTION 'run % is %: it was closed for good', OLD.id, OLD.state
                USING ERRCODE = 'check_violation';
        END
    """,
    "refuse_renaming": """
        BEGIN
            RAISE EXCEPTION 'image % is its bytes: it cannot become %', OLD.sha256, NEW.sha256
                USING ERRCODE = 'check_violation';
        END
    """,
}

TRIGGERS = {
    ("runs", "closed_stays"): "BEFORE UPDATE ON runs FOR EACH ROW "
    "WHEN (OLD.state <> 'running' AND NEW.state IS DISTINCT FROM OLD.state) "
    "EXECUTE FUNCTION refuse_reopening()",
    ("images", "named_once"): "BEFORE UPDATE OF sha256 ON images FOR EACH ROW "
    "WHEN (OLD.sha256 IS DISTINCT FROM NEW.sha256) EXECUTE FUNCTION refuse_renaming()",
    # Deleted and taken in again, an image would draw a new split.
    ("images", "stays"): "BEFORE DELETE ON images FOR EACH ROW EXECUTE FUNCTION refuse_change()",
} | {
    (table, "not_truncated"): f"BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
    "EXECUTE FUNCTION refuse_change()"
    for table in WRITTEN_ONCE
}


def upgrade() -> None:
    for table, name, condition in CHECKS:
        op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, condition)
    for name, body in FUNCTIONS.items():
        op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
    for (_, name), rule in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {name} {rule}")


def downgrade() -> None:
    for table, name in TRIGGERS:
        op.execute(f"DROP TRIGGER {name} ON {table}")
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}()")
    for table, name, _ in CHECKS:
        op.drop_constraint(op.f(f"ck_{table}_{name}"), table)
