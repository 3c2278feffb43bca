"""Serving: files that serve, keys, the log of transactions by month, its daily counts.

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# Transactions go by whole partitions, which no row trigger sees; nobody rewrites one in place.
TRIGGERS = {
    ("exports", "written_once"): "BEFORE UPDATE OR DELETE ON exports FOR EACH ROW "
    "EXECUTE FUNCTION refuse_change()",
    ("transactions", "written_once"): "BEFORE UPDATE OR DELETE ON transactions FOR EACH ROW "
    "EXECUTE FUNCTION refuse_change()",
    ("log_gaps", "written_once"): "BEFORE UPDATE OR DELETE ON log_gaps FOR EACH ROW "
    "EXECUTE FUNCTION refuse_change()",
    ("log_retentions", "written_once"): "BEFORE UPDATE OR DELETE ON log_retentions FOR EACH ROW "
    "EXECUTE FUNCTION refuse_change()",
}
TABLES = (
    "exports", "api_keys", "transactions", "served_requests", "usage_days", "predicted_days",
    "log_gaps", "log_retentions",
)  # fmt: skip


def upgrade() -> None:
    op.create_table(
        "exports",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint_digest", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column(
            "made_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint("length(digest) = 64", name=op.f("ck_exports_digest_is_hex")),
        sa.CheckConstraint("bytes > 0", name=op.f("ck_exports_not_empty")),
        sa.ForeignKeyConstraint(
            ["version_id", "checkpoint_digest"],
            ["versions.id", "versions.checkpoint_digest"],
            name=op.f("fk_exports_version_id_checkpoint_digest"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exports")),
    )
    op.create_index("ix_exports_version", "exports", ["version_id", sa.literal_column("id DESC")], unique=False)
    op.create_table(
        "api_keys",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("made_by", sa.Text(), nullable=False),
        sa.Column(
            "made_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_by", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "cardinality(scopes) > 0 AND scopes <@ ARRAY['predict', 'review', 'admin']",
            name=op.f("ck_api_keys_scopes_known"),
        ),
        sa.CheckConstraint("name ~ '\\S'", name=op.f("ck_api_keys_named")),
        sa.CheckConstraint(
            "(revoked_at IS NULL) = (revoked_by IS NULL)",
            name=op.f("ck_api_keys_revoked_by_somebody"),
        ),
        sa.CheckConstraint("length(digest) = 64", name=op.f("ck_api_keys_digest_is_hex")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
        sa.UniqueConstraint("name", name=op.f("uq_api_keys_name")),
    )
    op.create_table(
        "log_gaps",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("dropped", sa.BigInteger(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.CheckConstraint("dropped > 0", name=op.f("ck_log_gaps_dropped_some")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_gaps")),
    )
    op.create_table(
        "log_retentions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("transactions_before", sa.Date(), nullable=False),
        sa.Column("images_before", sa.DateTime(timezone=True), nullable=False),
        sa.Column("done_by", sa.Text(), nullable=False),
        sa.Column(
            "done_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_retentions")),
    )
    op.create_table(
        "served_requests",
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("body_digest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("client", "request_id", name=op.f("pk_served_requests")),
    )
    op.create_index("ix_served_requests_at", "served_requests", ["at"], unique=False)
    op.create_table(
        "predicted_days",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("predicted", sa.Text(), nullable=False),
        sa.Column("band", sa.SmallInteger(), nullable=False),
        sa.Column("transactions", sa.BigInteger(), nullable=False),
        sa.Column("confidence_sum", sa.Float(), nullable=False),
        sa.CheckConstraint(
            "confidence_sum >= 0 AND confidence_sum < 'Infinity'",
            name=op.f("ck_predicted_days_confidence_sum_is_finite"),
        ),
        sa.CheckConstraint("band BETWEEN 0 AND 9", name=op.f("ck_predicted_days_band_is_tenth")),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_predicted_days_version_id")
        ),
        sa.PrimaryKeyConstraint(
            "day", "version_id", "predicted", "band", name=op.f("pk_predicted_days")
        ),
    )
    op.create_index("ix_predicted_days_class", "predicted_days", ["predicted", "day"], unique=False)
    op.create_table(
        "transactions",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("ordinal", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("predicted", sa.Text(), nullable=False),
        sa.Column("confidence", sa.REAL(), nullable=False),
        sa.Column("top_labels", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("top_confidences", postgresql.ARRAY(sa.REAL()), nullable=False),
        sa.Column("shown", sa.Boolean(), nullable=True),
        sa.Column("latency_seconds", sa.REAL(), nullable=False),
        sa.Column("image_key", sa.Text(), nullable=True),
        sa.Column("draw", sa.REAL(), nullable=True),
        sa.CheckConstraint(
            "latency_seconds >= 0 AND latency_seconds < 'Infinity'",
            name=op.f("ck_transactions_latency_seconds_is_finite"),
        ),
        sa.CheckConstraint(
            "0 <= ALL (top_confidences) AND 1 >= ALL (top_confidences)",
            name=op.f("ck_transactions_top_confidences_are_shares"),
        ),
        sa.CheckConstraint(
            "confidence BETWEEN 0 AND 1", name=op.f("ck_transactions_confidence_is_share")
        ),
        sa.CheckConstraint("draw > 0 AND draw <= 1", name=op.f("ck_transactions_draw_is_chance")),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_transactions_sha256_is_hex")),
        sa.CheckConstraint(
            "predicted = top_labels[1] AND confidence = top_confidences[1] AND cardinality(top_labels) = cardinality(top_confidences)",
            name=op.f("ck_transactions_best_first"),
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_transactions_version_id")
        ),
        sa.PrimaryKeyConstraint("at", "id", name=op.f("pk_transactions")),
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index(
        "ix_transactions_class",
        "transactions",
        ["predicted", sa.literal_column("at DESC")],
        unique=False,
    )
    op.create_index(
        "ix_transactions_doubt",
        "transactions",
        ["confidence"],
        unique=False,
        postgresql_where=sa.text("image_key IS NOT NULL"),
    )
    op.create_index(
        "ix_transactions_drawn",
        "transactions",
        ["at"],
        unique=False,
        postgresql_where=sa.text("draw IS NOT NULL"),
    )
    op.create_index("ix_transactions_id", "transactions", ["id"], unique=False)
    # The order of the random stream: fixed, and knowing nothing of what was answered or when.
    op.create_index(
        "ix_transactions_random",
        "transactions",
        [sa.literal_column("sha256(uuid_send(id))")],
        unique=False,
        postgresql_where=sa.text("draw IS NOT NULL AND image_key IS NOT NULL"),
    )
    op.create_index(
        "ix_transactions_version",
        "transactions",
        ["version_id", sa.literal_column("at DESC")],
        unique=False,
    )
    op.create_table(
        "usage_days",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("transactions", sa.BigInteger(), nullable=False),
        sa.Column("shown", sa.BigInteger(), nullable=False),
        sa.Column("confidence_sum", sa.Float(), nullable=False),
        sa.Column("latency_sum", sa.Float(), nullable=False),
        sa.Column("latency_max", sa.Float(), nullable=False),
        sa.CheckConstraint(
            "confidence_sum >= 0 AND confidence_sum < 'Infinity'",
            name=op.f("ck_usage_days_confidence_sum_is_finite"),
        ),
        sa.CheckConstraint(
            "latency_max >= 0 AND latency_max < 'Infinity'",
            name=op.f("ck_usage_days_latency_max_is_finite"),
        ),
        sa.CheckConstraint(
            "latency_sum >= 0 AND latency_sum < 'Infinity'",
            name=op.f("ck_usage_days_latency_sum_is_finite"),
        ),
        sa.CheckConstraint(
            "shown BETWEEN 0 AND transactions", name=op.f("ck_usage_days_shown_of_transactions")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_usage_days_version_id")
        ),
        sa.PrimaryKeyConstraint("day", "version_id", "client", name=op.f("pk_usage_days")),
    )
    for (_, name), rule in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {name} {rule}")


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
