"""Pretraining sets: images of other tasks, that never mix with the library's nor with the benchmark.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Both ask under the lock that intake and freezing hold, or each could miss what the other brings.
FUNCTIONS = {
    "refuse_set_image": """
        BEGIN
            PERFORM pg_advisory_xact_lock(hashtext('regraft-leak'));
            IF EXISTS (SELECT 1 FROM benchmark_images b WHERE b.sha256 = NEW.sha256) THEN
                RAISE EXCEPTION 'image % is in the benchmark: it may not pretrain', NEW.sha256
                    USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END
    """,
    "refuse_pretrained_image": """
        BEGIN
            PERFORM pg_advisory_xact_lock(hashtext('regraft-leak'));
            IF EXISTS (SELECT 1 FROM set_images s
                       WHERE s.sha256 = NEW.sha256 AND s.problem IS NULL) THEN
                RAISE EXCEPTION 'image % is in a pretraining set: it may not enter the benchmark',
                    NEW.sha256 USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END
    """,
}


def upgrade() -> None:
    op.create_table(
        "set_images",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("set_prefix", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("dhash", sa.BigInteger(), nullable=True),
        sa.Column("split", sa.Text(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column(
            "read_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint(
            "split IN ('train', 'validation', 'test')", name=op.f("ck_set_images_split_known")
        ),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_set_images_sha256_is_hex")),
        sa.CheckConstraint(
            "(problem IS NULL) = (split IS NOT NULL)", name=op.f("ck_set_images_usable_has_split")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_set_images")),
        sa.UniqueConstraint(
            "set_prefix", "key", "etag", name=op.f("uq_set_images_set_prefix_key_etag")
        ),
    )
    op.create_index(op.f("ix_set_images_sha256"), "set_images", ["sha256"])
    op.create_index("ix_set_images_class", "set_images", ["set_prefix", "label"])
    for name, body in FUNCTIONS.items():
        op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
    op.execute(
        "CREATE TRIGGER no_leak BEFORE INSERT ON set_images FOR EACH ROW "
        "WHEN (NEW.problem IS NULL) EXECUTE FUNCTION refuse_set_image()"
    )
    op.execute(
        "CREATE TRIGGER not_pretrained BEFORE INSERT ON benchmark_images FOR EACH ROW "
        "EXECUTE FUNCTION refuse_pretrained_image()"
    )
    op.execute(
        "CREATE TRIGGER written_once BEFORE UPDATE OR DELETE ON set_images "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER not_truncated BEFORE TRUNCATE ON set_images "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER not_pretrained ON benchmark_images")
    op.drop_table("set_images")
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}()")
