"""Figures in more depth: intervals of every share, the reliability curve, thresholds, temperature.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NEW_SHARES = {
    "evaluations": ("top5_low", "top5_high", "mean_recall", "mean_f1", "calibration_by_chance"),
    "evaluation_classes": ("precision_low", "precision_high", "f1_low", "f1_high"),
}


def share(table: str, column: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(
        f"{column} BETWEEN 0 AND 1", name=op.f(f"ck_{table}_{column}_is_share")
    )


def upgrade() -> None:
    for table, columns in NEW_SHARES.items():
        for column in columns:
            op.add_column(table, sa.Column(column, sa.Float(), nullable=True))
            op.create_check_constraint(
                op.f(f"ck_{table}_{column}_is_share"), table, f"{column} BETWEEN 0 AND 1"
            )
    op.add_column("versions", sa.Column("temperature", sa.Float(), nullable=True))
    op.create_check_constraint(
        op.f("ck_versions_temperature_is_finite"),
        "versions",
        "temperature >= 0 AND temperature < 'Infinity'",
    )
    bins = ("low", "high", "confidence", "accuracy", "accuracy_low", "accuracy_high")
    op.create_table(
        "reliability_bins",
        sa.Column("evaluation_id", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Float(), nullable=False) for name in bins),
        sa.Column("images", sa.Integer(), nullable=False),
        *(share("reliability_bins", name) for name in bins),
        sa.ForeignKeyConstraint(
            ["evaluation_id"],
            ["evaluations.id"],
            name=op.f("fk_reliability_bins_evaluation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "low", name=op.f("pk_reliability_bins")),
    )
    op.create_table(
        "thresholds",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("wished", sa.Float(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("benchmark_version", sa.Integer(), nullable=True),
        sa.Column("confidence", sa.Float(), nullable=True),
        sa.Column("precision", sa.Float(), nullable=True),
        sa.Column("precision_low", sa.Float(), nullable=True),
        sa.Column("precision_high", sa.Float(), nullable=True),
        sa.Column("answered", sa.Integer(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column(
            "fitted_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        *(
            share("thresholds", name)
            for name in ("wished", "precision", "precision_low", "precision_high")
        ),
        sa.CheckConstraint(
            "confidence >= 0 AND confidence < 'Infinity'",
            name=op.f("ck_thresholds_confidence_is_finite"),
        ),
        sa.CheckConstraint(
            "subject IN ('validation', 'test', 'benchmark')",
            name=op.f("ck_thresholds_subject_known"),
        ),
        sa.CheckConstraint(
            "(subject = 'benchmark') = (benchmark_version IS NOT NULL)",
            name=op.f("ck_thresholds_benchmark_named"),
        ),
        sa.CheckConstraint(
            "confidence IS NOT NULL OR subject = 'validation'",
            name=op.f("ck_thresholds_fitted_first"),
        ),
        sa.CheckConstraint(
            "(precision IS NULL) = (answered = 0) AND (precision IS NULL) = (precision_low IS NULL)"
            " AND (precision IS NULL) = (precision_high IS NULL)",
            name=op.f("ck_thresholds_precision_of_answers"),
        ),
        sa.CheckConstraint(
            "answered BETWEEN 0 AND images", name=op.f("ck_thresholds_answered_of_images")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_thresholds_version_id")
        ),
        sa.ForeignKeyConstraint(
            ["benchmark_version"],
            ["benchmarks.version"],
            name=op.f("fk_thresholds_benchmark_version"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_thresholds")),
    )
    op.create_index(
        "one_threshold",
        "thresholds",
        ["version_id", "wished", "subject", "benchmark_version"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )


def downgrade() -> None:
    op.drop_table("thresholds")
    op.drop_table("reliability_bins")
    op.drop_column("versions", "temperature")
    for table, columns in NEW_SHARES.items():
        for column in columns:
            op.drop_column(table, column)
