"""Reviews: people's verdicts on answers, and the hard cases they keep.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

TABLES = ("reviews", "challenges")


def upgrade() -> None:
    op.create_table(
        "challenges",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("done_by", sa.Text(), nullable=False),
        sa.Column(
            "done_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint("act IN ('keep', 'drop')", name=op.f("ck_challenges_act_known")),
        sa.CheckConstraint(
            "done_by ~ '\\S' AND done_by !~* '^\\s*(model|version|regraft)\\s*:'",
            name=op.f("ck_challenges_done_by_person"),
        ),
        sa.ForeignKeyConstraint(["sha256"], ["images.sha256"], name=op.f("fk_challenges_sha256")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_challenges")),
    )
    op.create_index(
        "ix_challenges_sha256", "challenges", ["sha256", sa.literal_column("id DESC")], unique=False
    )
    op.create_table(
        "reviews",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("transaction_id", sa.UUID(), nullable=True),
        sa.Column("transaction_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("evaluation_id", sa.BigInteger(), nullable=True),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("predicted", sa.Text(), nullable=False),
        sa.Column("confidence", sa.REAL(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("blind", sa.Boolean(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("probability", sa.REAL(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("reviewed_by", sa.Text(), nullable=False),
        sa.Column(
            "reviewed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(stream = 'random') = (probability IS NOT NULL) AND (probability IS NULL OR probability > 0 AND probability <= 1)",
            name=op.f("ck_reviews_random_has_chance"),
        ),
        sa.CheckConstraint(
            "(subject = 'transaction') = (transaction_id IS NOT NULL) AND (subject = 'transaction') = (transaction_at IS NOT NULL) AND (subject = 'evaluation') = (evaluation_id IS NOT NULL)",
            name=op.f("ck_reviews_subject_named"),
        ),
        sa.CheckConstraint(
            "CASE verdict WHEN 'right' THEN label = predicted WHEN 'wrong' THEN label IS NULL OR label <> predicted ELSE label IS NULL END",
            name=op.f("ck_reviews_label_fits_verdict"),
        ),
        sa.CheckConstraint(
            "reviewed_by ~ '\\S' AND reviewed_by !~* '^\\s*(model|version|regraft)\\s*:'",
            name=op.f("ck_reviews_reviewed_by_person"),
        ),
        sa.CheckConstraint(
            "stream IN ('random', 'doubt', 'chosen')", name=op.f("ck_reviews_stream_known")
        ),
        sa.CheckConstraint(
            "subject IN ('transaction', 'identification', 'evaluation')",
            name=op.f("ck_reviews_subject_known"),
        ),
        sa.CheckConstraint(
            "verdict IN ('right', 'wrong', 'bad image', 'cannot tell')",
            name=op.f("ck_reviews_verdict_known"),
        ),
        sa.CheckConstraint(
            "confidence BETWEEN 0 AND 1", name=op.f("ck_reviews_confidence_is_share")
        ),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"], name=op.f("fk_reviews_evaluation_id")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_reviews_version_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reviews")),
    )
    op.create_index(
        "ix_reviews_picture",
        "reviews",
        ["sha256", "version_id", sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_reviews_transaction",
        "reviews",
        ["transaction_id", sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index("ix_reviews_version", "reviews", ["version_id", "stream"], unique=False)
    for table in TABLES:
        op.execute(
            f"CREATE TRIGGER written_once BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER not_truncated BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
