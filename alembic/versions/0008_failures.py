"""What each version fails at, how the next plan should bend pictures, and which labels look wrong.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, REAL

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def _of_analysis(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["version_id"],
        ["failure_analyses.version_id"],
        name=op.f(f"fk_{table}_version_id"),
        ondelete="CASCADE",
    )


def _difference(column: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(
        f"{column} BETWEEN -1 AND 1", name=op.f(f"ck_sensitivities_{column}_is_difference")
    )


def upgrade() -> None:
    op.create_table(
        "failure_analyses",
        sa.Column("version_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("checkpoint_digest", sa.Text(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("runtime", JSONB(), nullable=False),
        sa.Column("augmentation", JSONB(), nullable=False),
        sa.Column("class_augmentation", JSONB(), nullable=False),
        sa.Column("doubted", JSONB(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["version_id", "checkpoint_digest"],
            ["versions.id", "versions.checkpoint_digest"],
            name=op.f("fk_failure_analyses_version_id_checkpoint_digest"),
        ),
        sa.PrimaryKeyConstraint("version_id", name=op.f("pk_failure_analyses")),
    )
    op.create_table(
        "sensitivities",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("class_name", sa.Text(), nullable=True),
        sa.Column("transformation", sa.Text(), nullable=False),
        sa.Column("strength", sa.Float(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("correct", sa.Integer(), nullable=False),
        sa.Column("lost", sa.Integer(), nullable=False),
        sa.Column("gained", sa.Integer(), nullable=False),
        sa.Column("drop", sa.Float(), nullable=True),
        sa.Column("drop_low", sa.Float(), nullable=True),
        sa.Column("drop_high", sa.Float(), nullable=True),
        _difference("drop"),
        _difference("drop_low"),
        _difference("drop_high"),
        sa.CheckConstraint(
            "strength BETWEEN -1000 AND 1000", name=op.f("ck_sensitivities_strength_is_finite")
        ),
        sa.CheckConstraint(
            "lost BETWEEN 0 AND correct AND gained BETWEEN 0 AND images - correct",
            name=op.f("ck_sensitivities_counts_fit"),
        ),
        _of_analysis("sensitivities"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sensitivities")),
    )
    op.create_index(
        "one_sensitivity",
        "sensitivities",
        ["version_id", "class_name", "transformation", "strength"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "augmentation_changes",
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("class_name", sa.Text(), nullable=True),
        sa.Column("transformation", sa.Text(), nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("before", sa.Float(), nullable=False),
        sa.Column("after", sa.Float(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "before >= 0 AND before < 'Infinity'",
            name=op.f("ck_augmentation_changes_before_is_finite"),
        ),
        sa.CheckConstraint(
            "after >= 0 AND after < 'Infinity'",
            name=op.f("ck_augmentation_changes_after_is_finite"),
        ),
        _of_analysis("augmentation_changes"),
        sa.PrimaryKeyConstraint("version_id", "ordinal", name=op.f("pk_augmentation_changes")),
    )
    op.create_table(
        "label_doubts",
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("answered_by", sa.BigInteger(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("suggested", sa.Text(), nullable=False),
        sa.Column("score", REAL(), nullable=False),
        sa.Column("confidence", REAL(), nullable=False),
        sa.CheckConstraint(
            "subject IN ('validation', 'test', 'batch')",
            name=op.f("ck_label_doubts_subject_known"),
        ),
        sa.CheckConstraint("score BETWEEN 0 AND 1", name=op.f("ck_label_doubts_score_is_share")),
        sa.CheckConstraint(
            "confidence BETWEEN 0 AND 1", name=op.f("ck_label_doubts_confidence_is_share")
        ),
        sa.CheckConstraint("label <> suggested", name=op.f("ck_label_doubts_another_label")),
        _of_analysis("label_doubts"),
        sa.ForeignKeyConstraint(
            ["sha256"], ["images.sha256"], name=op.f("fk_label_doubts_sha256")
        ),
        sa.ForeignKeyConstraint(
            ["answered_by"], ["versions.id"], name=op.f("fk_label_doubts_answered_by")
        ),
        sa.PrimaryKeyConstraint("version_id", "sha256", name=op.f("pk_label_doubts")),
    )


def downgrade() -> None:
    for table in ("label_doubts", "augmentation_changes", "sensitivities", "failure_analyses"):
        op.drop_table(table)
