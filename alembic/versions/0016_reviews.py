"""Reviews: people's verdicts on answers, and what they do with images of the library.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

TABLES = ("reviews", "image_acts")

VIEWS = {
    # Of the random stream one row for each transaction: what people said of it, each person's
    # newest word. right_share is NULL where nobody could tell right from wrong. Version and time
    # are the transaction's: here they let a condition on them through, and an index of 0017 has all
    # that is read in this order, so that nothing is sorted.
    "random_verdicts": """
        SELECT transaction_id, transaction_at AS at, version_id, min(sha256) AS sha256,
               min(predicted) AS predicted, min(confidence) AS confidence,
               max(probability) AS chance, bool_or(blind) AS blind, count(*) AS people,
               avg(CASE verdict WHEN 'right' THEN 1::double precision WHEN 'wrong' THEN 0 END)
                   AS right_share,
               count(*) FILTER (WHERE verdict = 'bad image') AS bad_images,
               count(*) FILTER (WHERE verdict = 'cannot tell') AS cannot_tell
        FROM (
            SELECT DISTINCT ON (transaction_at, transaction_id, version_id, reviewed_by)
                   transaction_at, transaction_id, version_id, sha256, predicted, confidence,
                   verdict, probability, blind
            FROM reviews WHERE stream = 'random'
            ORDER BY transaction_at, transaction_id, version_id, reviewed_by, id DESC) newest
        GROUP BY transaction_at, transaction_id, version_id
    """,
    # Pictures of the library that somebody keeps as hard cases.
    "challenges": """
        SELECT sha256, id AS act_id, version_id, why, done_by, done_at FROM (
            SELECT DISTINCT ON (sha256) * FROM image_acts WHERE act IN ('keep', 'drop')
            ORDER BY sha256, id DESC) newest
        WHERE act = 'keep'
    """,
}


def upgrade() -> None:
    op.create_table(
        "image_acts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("from_class", sa.Text(), nullable=True),
        sa.Column("to_class", sa.Text(), nullable=True),
        sa.Column("version_id", sa.BigInteger(), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("done_by", sa.Text(), nullable=False),
        sa.Column(
            "done_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint(
            "act IN ('remove', 'restore', 'relabel', 'keep', 'drop')",
            name=op.f("ck_image_acts_act_known"),
        ),
        sa.CheckConstraint(
            "(act = 'relabel') = (from_class IS NOT NULL) AND (act = 'relabel') = (to_class IS NOT NULL)",
            name=op.f("ck_image_acts_relabel_goes_somewhere"),
        ),
        sa.CheckConstraint("why ~ '\\S'", name=op.f("ck_image_acts_says_why")),
        sa.CheckConstraint(
            "done_by ~ '\\S' AND done_by !~* '^\\s*(model|version|regraft)\\s*:'",
            name=op.f("ck_image_acts_done_by_person"),
        ),
        sa.ForeignKeyConstraint(["sha256"], ["images.sha256"], name=op.f("fk_image_acts_sha256")),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_image_acts_version_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image_acts")),
    )
    op.create_index(
        "ix_image_acts_sha256", "image_acts", ["sha256", sa.literal_column("id DESC")], unique=False
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
    op.create_index(
        "ix_reviews_person",
        "reviews",
        ["reviewed_by", "transaction_id"],
        unique=False,
        postgresql_where=sa.text("transaction_id IS NOT NULL"),
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
    for view, query in VIEWS.items():
        op.execute(f"CREATE VIEW {view} AS {query}")


def downgrade() -> None:
    for view in VIEWS:
        op.execute(f"DROP VIEW {view}")
    for table in reversed(TABLES):
        op.drop_table(table)
