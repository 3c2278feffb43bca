"""Pools of unlabelled images, their identification shard by shard, and what people did with it.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TABLES = (
    "pools", "pool_images", "pool_objects", "identifications", "shards", "pool_answers",
    "target_scores", "embeddings", "pool_acts",
)  # fmt: skip

PERSON = r"labelled_by ~ '\S' AND labelled_by !~* '^\s*(model|version|regraft)\s*:'"

FUNCTIONS = {
    # What a model found comes in as such, and only by the word of a person that still stands.
    "refuse_unreviewed_image": """
        DECLARE
            standing text;
        BEGIN
            SELECT act INTO standing FROM pool_acts
            WHERE sha256 = NEW.sha256 AND act IN ('label', 'dismiss', 'unknown')
            ORDER BY id DESC LIMIT 1;
            IF NEW.mined AND standing IS DISTINCT FROM 'label' THEN
                RAISE EXCEPTION 'image % was found by a version and no person labelled it: it may '
                    'not enter the library', NEW.sha256 USING ERRCODE = 'check_violation';
            END IF;
            IF NOT NEW.mined AND standing = 'label' THEN
                RAISE EXCEPTION 'image % was found by a version: it must be marked as mined',
                    NEW.sha256 USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END
    """,
}

TRIGGERS = {
    ("images", "reviewed"): "BEFORE INSERT OR UPDATE OF mined ON images FOR EACH ROW "
    "EXECUTE FUNCTION refuse_unreviewed_image()",
    # A label that was taken back lets nothing return.
    ("images", "reviewed_again"): "BEFORE UPDATE OF withdrawn_at ON images FOR EACH ROW "
    "WHEN (NEW.mined AND NEW.withdrawn_at IS NULL) EXECUTE FUNCTION refuse_unreviewed_image()",
    ("pool_answers", "answered_once"): "BEFORE UPDATE ON pool_answers FOR EACH ROW "
    "EXECUTE FUNCTION refuse_change()",
    ("pool_acts", "written_once"): "BEFORE UPDATE OR DELETE ON pool_acts FOR EACH ROW "
    "EXECUTE FUNCTION refuse_change()",
} | {
    (table, "not_truncated"): f"BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
    "EXECUTE FUNCTION refuse_change()"
    for table in ("pool_images", "pool_answers", "pool_acts")
}


def upgrade() -> None:
    op.create_table(
        "pools",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("prefix LIKE '_%/'", name=op.f("ck_pools_prefix_is_folder")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pools")),
        sa.UniqueConstraint("prefix", name=op.f("uq_pools_prefix")),
    )
    op.create_table(
        "pool_images",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("dhash", sa.BigInteger(), nullable=True),
        sa.Column("dhash_mirror", sa.BigInteger(), nullable=True),
        sa.Column("mark", sa.Text(), nullable=True),
        sa.Column("mark_sha256", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "mark IN ('benchmark', 'library', 'near benchmark', 'near library')",
            name=op.f("ck_pool_images_mark_known"),
        ),
        sa.CheckConstraint(
            "(mark IS NULL) = (mark_sha256 IS NULL)", name=op.f("ck_pool_images_mark_whole")
        ),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_pool_images_sha256_is_hex")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_pool_images")),
    )
    op.create_table(
        "pool_objects",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("pool_id", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(collation="C"), nullable=False),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column(
            "read_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("gone_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "sha256 IS NOT NULL OR problem IS NOT NULL",
            name=op.f("ck_pool_objects_read_or_problem"),
        ),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name=op.f("fk_pool_objects_pool_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pool_objects")),
        sa.UniqueConstraint(
            "pool_id", "key", "etag", name=op.f("uq_pool_objects_pool_id_key_etag")
        ),
    )
    op.create_index("ix_pool_objects_sha256", "pool_objects", ["sha256"])
    op.create_index(
        "ix_pool_objects_unreadable",
        "pool_objects",
        ["pool_id", "key"],
        postgresql_where=sa.text("problem IS NOT NULL"),
    )
    op.create_table(
        "identifications",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("pool_id", sa.BigInteger(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint_digest", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="running", nullable=False),
        sa.Column("flow_run_id", sa.Text(), nullable=True),
        sa.Column("targets", ARRAY(sa.Text()), nullable=False),
        sa.Column("wished", sa.Float(), nullable=True),
        sa.Column("threshold", sa.Float(), nullable=True),
        sa.Column("listed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("known", sa.Integer(), server_default="0", nullable=False),
        sa.Column("listed_to", sa.Text(), nullable=True),
        sa.Column("listed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'completed') = (ended_at IS NOT NULL)",
            name=op.f("ck_identifications_ended_when_closed"),
        ),
        sa.CheckConstraint(
            "state = 'running' OR listed_at IS NOT NULL",
            name=op.f("ck_identifications_completed_is_listed"),
        ),
        sa.CheckConstraint(
            "state IN ('running', 'completed')", name=op.f("ck_identifications_state_known")
        ),
        sa.CheckConstraint(
            "threshold >= 0 AND threshold < 'Infinity'",
            name=op.f("ck_identifications_threshold_is_finite"),
        ),
        sa.CheckConstraint(
            "known BETWEEN 0 AND listed", name=op.f("ck_identifications_known_of_listed")
        ),
        sa.CheckConstraint(
            "wished BETWEEN 0 AND 1", name=op.f("ck_identifications_wished_is_share")
        ),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name=op.f("fk_identifications_pool_id")),
        sa.ForeignKeyConstraint(
            ["version_id", "checkpoint_digest"],
            ["versions.id", "versions.checkpoint_digest"],
            name=op.f("fk_identifications_version_id_checkpoint_digest"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identifications")),
        sa.UniqueConstraint("id", "version_id", name=op.f("uq_identifications_id_version_id")),
    )
    op.create_index(op.f("ix_identifications_flow_run_id"), "identifications", ["flow_run_id"])
    op.create_index(
        "one_identification",
        "identifications",
        ["pool_id", "version_id"],
        unique=True,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "shards",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("identification_id", sa.BigInteger(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("objects", sa.Integer(), nullable=False),
        sa.Column("keys", ARRAY(sa.Text()), nullable=True),
        sa.Column("etags", ARRAY(sa.Text()), nullable=True),
        sa.Column("sizes", ARRAY(sa.BigInteger()), nullable=True),
        sa.Column("claimed_by", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("engine", sa.Text(), nullable=True),
        sa.Column("answered", sa.Integer(), server_default="0", nullable=False),
        sa.Column("repeated", sa.Integer(), server_default="0", nullable=False),
        sa.Column("unreadable", sa.Integer(), server_default="0", nullable=False),
        sa.Column("missing", sa.Integer(), server_default="0", nullable=False),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'claimed') = (lease_until IS NOT NULL)",
            name=op.f("ck_shards_claim_has_lease"),
        ),
        sa.CheckConstraint(
            "(state = 'done') = (done_at IS NOT NULL)", name=op.f("ck_shards_done_has_end")
        ),
        sa.CheckConstraint(
            "CASE state WHEN 'done' THEN answered + repeated + unreadable + missing = objects AND keys IS NULL ELSE cardinality(keys) = objects AND cardinality(etags) = objects AND cardinality(sizes) = objects END",
            name=op.f("ck_shards_counts_fit"),
        ),
        sa.CheckConstraint(
            "state = 'open' OR claimed_by IS NOT NULL", name=op.f("ck_shards_claim_has_name")
        ),
        sa.CheckConstraint(
            "state IN ('open', 'claimed', 'done')", name=op.f("ck_shards_state_known")
        ),
        sa.ForeignKeyConstraint(
            ["identification_id"],
            ["identifications.id"],
            name=op.f("fk_shards_identification_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shards")),
        sa.UniqueConstraint(
            "identification_id", "ordinal", name=op.f("uq_shards_identification_id_ordinal")
        ),
    )
    op.create_index(
        "ix_shards_waiting",
        "shards",
        ["identification_id", "ordinal"],
        postgresql_where=sa.text("state <> 'done'"),
    )
    op.create_table(
        "pool_answers",
        sa.Column("version_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("identification_id", sa.BigInteger(), nullable=False),
        sa.Column("predicted", sa.Text(), nullable=False),
        sa.Column("confidence", sa.REAL(), nullable=False),
        sa.Column("top_labels", ARRAY(sa.Text()), nullable=False),
        sa.Column("top_confidences", ARRAY(sa.REAL()), nullable=False),
        sa.Column("target_confidences", ARRAY(sa.REAL()), nullable=False),
        sa.Column("entropy", sa.REAL(), nullable=False),
        sa.Column("shown", sa.Boolean(), nullable=True),
        sa.CheckConstraint(
            "entropy >= 0 AND entropy < 'Infinity'", name=op.f("ck_pool_answers_entropy_is_finite")
        ),
        sa.CheckConstraint(
            "0 <= ALL (target_confidences) AND 1 >= ALL (target_confidences)",
            name=op.f("ck_pool_answers_target_confidences_are_shares"),
        ),
        sa.CheckConstraint(
            "0 <= ALL (top_confidences) AND 1 >= ALL (top_confidences)",
            name=op.f("ck_pool_answers_top_confidences_are_shares"),
        ),
        sa.CheckConstraint(
            "confidence BETWEEN 0 AND 1", name=op.f("ck_pool_answers_confidence_is_share")
        ),
        sa.CheckConstraint(
            "predicted = top_labels[1] AND confidence = top_confidences[1] AND cardinality(top_labels) = cardinality(top_confidences)",
            name=op.f("ck_pool_answers_best_first"),
        ),
        sa.ForeignKeyConstraint(
            ["identification_id", "version_id"],
            ["identifications.id", "identifications.version_id"],
            name=op.f("fk_pool_answers_identification_id_version_id"),
        ),
        sa.ForeignKeyConstraint(
            ["sha256"], ["pool_images.sha256"], name=op.f("fk_pool_answers_sha256")
        ),
        sa.PrimaryKeyConstraint("version_id", "sha256", name=op.f("pk_pool_answers")),
    )
    op.create_index("ix_pool_answers_identification", "pool_answers", ["identification_id"])
    op.create_index(
        "ix_pool_answers_class",
        "pool_answers",
        ["version_id", "predicted", sa.text("confidence DESC"), "sha256"],
    )
    op.create_index(
        "ix_pool_answers_confidence",
        "pool_answers",
        ["version_id", sa.text("confidence DESC"), "sha256"],
    )
    op.create_table(
        "target_scores",
        sa.Column("version_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("class_name", sa.Text(), nullable=False),
        sa.Column("confidence", sa.REAL(), nullable=False),
        sa.CheckConstraint(
            "confidence BETWEEN 0 AND 1", name=op.f("ck_target_scores_confidence_is_share")
        ),
        sa.ForeignKeyConstraint(
            ["version_id", "sha256"],
            ["pool_answers.version_id", "pool_answers.sha256"],
            name=op.f("fk_target_scores_version_id_sha256"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "version_id", "sha256", "class_name", name=op.f("pk_target_scores")
        ),
    )
    op.create_index(
        "ix_target_scores_best",
        "target_scores",
        ["version_id", "class_name", sa.text("confidence DESC"), "sha256"],
    )
    op.create_table(
        "embeddings",
        sa.Column("version_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("features", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "length(features) > 0 AND mod(length(features), 2) = 0",
            name=op.f("ck_embeddings_float16"),
        ),
        sa.ForeignKeyConstraint(
            ["version_id", "sha256"],
            ["pool_answers.version_id", "pool_answers.sha256"],
            name=op.f("fk_embeddings_version_id_sha256"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("version_id", "sha256", name=op.f("pk_embeddings")),
    )
    op.create_table(
        "pool_acts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column("class_name", sa.Text(), nullable=True),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("to_key", sa.Text(), nullable=True),
        sa.Column("version_id", sa.BigInteger(), nullable=True),
        sa.Column("predicted", sa.Text(), nullable=True),
        sa.Column("confidence", sa.REAL(), nullable=True),
        sa.Column("offered", sa.Text(), nullable=True),
        sa.Column("done_by", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column(
            "done_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint(
            "(act = 'label') = (class_name IS NOT NULL)", name=op.f("ck_pool_acts_label_has_class")
        ),
        sa.CheckConstraint(
            "act <> 'label' OR to_key IS NOT NULL", name=op.f("ck_pool_acts_label_has_object")
        ),
        sa.CheckConstraint(
            "act IN ('label', 'dismiss', 'unknown', 'remove', 'restore')",
            name=op.f("ck_pool_acts_act_known"),
        ),
        sa.CheckConstraint(
            "done_by ~ '\\S' AND done_by !~* '^\\s*(model|version|regraft)\\s*:'",
            name=op.f("ck_pool_acts_done_by_person"),
        ),
        sa.CheckConstraint(
            "(version_id IS NULL) = (predicted IS NULL) AND (version_id IS NULL) = (confidence IS NULL)",
            name=op.f("ck_pool_acts_offer_whole"),
        ),
        sa.CheckConstraint(
            "confidence BETWEEN 0 AND 1", name=op.f("ck_pool_acts_confidence_is_share")
        ),
        sa.ForeignKeyConstraint(
            ["sha256"], ["pool_images.sha256"], name=op.f("fk_pool_acts_sha256")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_pool_acts_version_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pool_acts")),
    )
    op.create_index("ix_pool_acts_sha256", "pool_acts", ["sha256", sa.text("id DESC")])
    op.create_index(
        "ix_pool_acts_unknown", "pool_acts", ["sha256"], postgresql_where=sa.text("act = 'unknown'")
    )
    # What earlier programs took for a person's signature keeps its image, and stands as it was given.
    op.execute(
        f"UPDATE images SET labelled_by = 'unconfirmed ' || labelled_by WHERE NOT ({PERSON})"  # noqa: S608
    )
    op.create_check_constraint(op.f("ck_images_labelled_by_person"), "images", PERSON)
    # Half-precision noise does not compress, and beside its key it needs no second look-up.
    op.execute("ALTER TABLE embeddings ALTER COLUMN features SET STORAGE EXTERNAL")
    op.execute("ALTER TABLE embeddings SET (toast_tuple_target = 8160)")
    for name, body in FUNCTIONS.items():
        op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
    for (_, name), rule in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {name} {rule}")


def downgrade() -> None:
    op.execute("DROP TRIGGER reviewed ON images")
    op.execute("DROP TRIGGER reviewed_again ON images")
    op.drop_constraint(op.f("ck_images_labelled_by_person"), "images")
    for table in reversed(TABLES):
        op.drop_table(table)
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}()")
