"""What people decide stands: nothing comes back by itself, and nobody decides without a word.

A night that finds a version which has served and serves no more would only undo a person's
decision: a promotion is a version's first deployment. A rejection names who and why. Looks at a
benchmark version are counted also where no gate judges. A latency stands with the processor on
which it was measured, which need not be the one that trained.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

SERVED = """
    BEGIN
        IF EXISTS (SELECT 1 FROM deployments p WHERE p.version_id = NEW.version_id) THEN
            RAISE EXCEPTION 'version % served before: only a person lets it serve again',
                NEW.version_id USING ERRCODE = 'check_violation';
        END IF;
        RETURN NEW;
    END
"""


def upgrade() -> None:
    op.execute(
        f"CREATE FUNCTION refuse_return() RETURNS trigger LANGUAGE plpgsql AS $${SERVED}$$"
    )
    # behind `proven_insert`, which says what else is wrong and holds the log's lock
    op.execute(
        "CREATE TRIGGER served_once BEFORE INSERT ON deployments FOR EACH ROW "
        "WHEN (NEW.kind = 'promotion') EXECUTE FUNCTION refuse_return()"
    )
    # of rejections to come: those of before are written once, as they are
    op.execute(
        "ALTER TABLE rejections ADD CONSTRAINT ck_rejections_says_who_and_why "
        "CHECK (btrim(rejected_by) <> '' AND btrim(why) <> '') NOT VALID"
    )
    op.create_table(
        "looks",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("benchmark_version", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("looked_by", sa.Text(), nullable=False),
        sa.Column(
            "looked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint(
            "kind IN ('bakeoff', 'control', 'evaluation')", name=op.f("ck_looks_kind_known")
        ),
        sa.CheckConstraint("btrim(looked_by) <> ''", name=op.f("ck_looks_says_who")),
        sa.ForeignKeyConstraint(
            ["benchmark_version"], ["benchmarks.version"], name=op.f("fk_looks_benchmark_version")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_looks_version_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_looks")),
        sa.UniqueConstraint(
            "benchmark_version",
            "version_id",
            "kind",
            name=op.f("uq_looks_benchmark_version_version_id_kind"),
        ),
    )
    op.execute(
        "CREATE TRIGGER written_once BEFORE UPDATE OR DELETE ON looks "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER not_truncated BEFORE TRUNCATE ON looks "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    # not known of latencies of before, so that they are not compared until both are measured again
    op.add_column("versions", sa.Column("latency_machine", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("versions", "latency_machine")
    op.drop_table("looks")
    op.drop_constraint(op.f("ck_rejections_says_who_and_why"), "rejections")
    op.execute("DROP TRIGGER served_once ON deployments")
    op.execute("DROP FUNCTION refuse_return()")
