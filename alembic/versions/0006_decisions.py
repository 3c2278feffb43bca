"""What people decide: approvals that override checks, adoptions, rejections.

A person may let some failed checks pass; which ones stands in vision/gate.py and, so that no other
way leads around it, here. Rejected versions serve again only by an approval.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

MAY_BE_OVERRIDDEN = (
    "no worse", "margin", "slide", "crowding", "class recall", "lost classes", "new classes",
    "unproven classes", "accuracy floor", "calibration", "gap", "latency", "rejection",
)  # fmt: skip

# Fails closed, as before: a verdict that is absent, empty, of another checkpoint or without the
# evaluation it claims to rest on deploys nothing.
PROVEN = """
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
"""
DECIDED = f"""
        IF EXISTS (SELECT 1 FROM checks c WHERE c.verdict_id = NEW.verdict_id
                   AND c.verdict = 'overridden'
                   AND (NEW.kind NOT IN ('approval', 'rollback')
                        OR c.name NOT IN ({", ".join(f"'{name}'" for name in MAY_BE_OVERRIDDEN)})))
        THEN
            RAISE EXCEPTION 'version % has an overridden check that nobody may override here',
                NEW.version_id USING ERRCODE = 'check_violation';
        END IF;
        IF NEW.kind = 'rollback' AND NOT EXISTS (
            SELECT 1 FROM deployments p
            WHERE p.verdict_id = NEW.verdict_id AND p.kind <> 'rollback')
        THEN
            RAISE EXCEPTION 'version % never served by this verdict: there is nothing to roll '
                'back to', NEW.version_id USING ERRCODE = 'check_violation';
        END IF;
        IF NEW.kind <> 'approval' AND EXISTS (
            SELECT 1 FROM rejections r WHERE r.version_id = NEW.version_id
            AND NOT EXISTS (SELECT 1 FROM deployments p WHERE p.version_id = r.version_id
                            AND p.kind = 'approval' AND p.deployed_at > r.rejected_at))
        THEN
            RAISE EXCEPTION 'version % was rejected: only an approval lets it serve',
                NEW.version_id USING ERRCODE = 'check_violation';
        END IF;
"""  # noqa: S608  (constants)
END = """
        RETURN NEW;
    END
"""


def upgrade() -> None:
    op.create_table(
        "rejections",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("rejected_by", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column(
            "rejected_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_rejections_version_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejections")),
    )
    op.create_index(op.f("ix_rejections_version_id"), "rejections", ["version_id"])
    op.execute(
        "CREATE TRIGGER written_once BEFORE UPDATE OR DELETE ON rejections "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER not_truncated BEFORE TRUNCATE ON rejections "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    # What was added to a benchmark and withdrawn again leaves the contents of before.
    op.drop_constraint(op.f("fk_verdicts_benchmark_digest"), "verdicts")
    op.drop_constraint(op.f("fk_verdicts_benchmark_version"), "verdicts")
    op.drop_constraint(op.f("uq_benchmarks_digest"), "benchmarks")
    op.create_unique_constraint(
        op.f("uq_benchmarks_version_digest"), "benchmarks", ["version", "digest"]
    )
    op.create_foreign_key(
        op.f("fk_verdicts_benchmark_version_benchmark_digest"),
        "verdicts",
        "benchmarks",
        ["benchmark_version", "benchmark_digest"],
        ["version", "digest"],
    )
    _verdicts_known("'passed', 'failed', 'undecidable', 'overridden'")
    _kinds_known("'promotion', 'approval', 'adoption', 'rollback'")
    op.create_check_constraint(
        op.f("ck_deployments_kind_fits_purpose"),
        "deployments",
        "(kind <> 'promotion' OR purpose NOT IN ('control', 'bakeoff')) "
        "AND (kind <> 'adoption' OR purpose <> 'nightly')",
    )
    _proven(PROVEN + DECIDED + END)


def downgrade() -> None:
    _proven(PROVEN + END)
    op.drop_constraint(op.f("ck_deployments_kind_fits_purpose"), "deployments")
    _kinds_known("'promotion', 'rollback'")
    _verdicts_known("'passed', 'failed', 'undecidable'")
    op.drop_constraint(op.f("fk_verdicts_benchmark_version_benchmark_digest"), "verdicts")
    op.drop_constraint(op.f("uq_benchmarks_version_digest"), "benchmarks")
    op.create_unique_constraint(op.f("uq_benchmarks_digest"), "benchmarks", ["digest"])
    for column, target in (("benchmark_version", "version"), ("benchmark_digest", "digest")):
        op.create_foreign_key(
            op.f(f"fk_verdicts_{column}"), "verdicts", "benchmarks", [column], [target]
        )
    op.drop_table("rejections")


def _proven(body: str) -> None:
    op.execute(
        "CREATE OR REPLACE FUNCTION refuse_unproven_deployment() RETURNS trigger "
        f"LANGUAGE plpgsql AS $${body}$$"
    )


def _verdicts_known(words: str) -> None:
    op.drop_constraint(op.f("ck_checks_verdict_known"), "checks")
    op.create_check_constraint(op.f("ck_checks_verdict_known"), "checks", f"verdict IN ({words})")


def _kinds_known(words: str) -> None:
    op.drop_constraint(op.f("ck_deployments_kind_known"), "deployments")
    op.create_check_constraint(op.f("ck_deployments_kind_known"), "deployments", f"kind IN ({words})")
