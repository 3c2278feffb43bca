"""The first tables.

Revision ID: 0001
Revises: nothing
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | None = None
branch_labels: None = None
depends_on: None = None


TABLES = (
    "batches",
    "benchmarks",
    "manifests",
    "snapshots",
    "benchmark_images",
    "classes",
    "manifest_rows",
    "objects",
    "runs",
    "snapshot_classes",
    "validations",
    "images",
    "label_changes",
    "quarantine",
    "run_steps",
    "versions",
    "epochs",
    "evaluations",
    "gradcams",
    "verdicts",
    "answers",
    "checks",
    "deployments",
    "evaluation_classes",
)


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('open', 'accepted', 'refused', 'reverted')",
            name=op.f("ck_batches_state_known"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index(
        "one_open", "batches", ["state"], unique=True, postgresql_where=sa.text("state = 'open'")
    )
    op.create_table(
        "benchmarks",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("classes", sa.Integer(), nullable=False),
        sa.Column("frozen_by", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("power", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "frozen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_benchmarks")),
        sa.UniqueConstraint("digest", name=op.f("uq_benchmarks_digest")),
    )
    op.create_table(
        "manifests",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column(
            "read_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_manifests")),
        sa.UniqueConstraint("key", "etag", name=op.f("uq_manifests_key_etag")),
    )
    op.create_table(
        "snapshots",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("cutoff", sa.Integer(), nullable=False),
        sa.Column("most", sa.Integer(), nullable=True),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("classes", sa.Integer(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_snapshots")),
        sa.UniqueConstraint("key", name=op.f("uq_snapshots_key")),
    )
    op.create_table(
        "benchmark_images",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("class_name", sa.Text(), nullable=False),
        sa.Column("source_key", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("dhash", sa.BigInteger(), nullable=True),
        sa.Column("added_in", sa.Integer(), nullable=False),
        sa.Column("withdrawn_in", sa.Integer(), nullable=True),
        sa.Column("withdrawn_why", sa.Text(), nullable=True),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_benchmark_images_sha256_is_hex")),
        sa.CheckConstraint(
            "withdrawn_in > added_in", name=op.f("ck_benchmark_images_withdrawn_later")
        ),
        sa.ForeignKeyConstraint(
            ["added_in"], ["benchmarks.version"], name=op.f("fk_benchmark_images_added_in")
        ),
        sa.ForeignKeyConstraint(
            ["withdrawn_in"], ["benchmarks.version"], name=op.f("fk_benchmark_images_withdrawn_in")
        ),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_benchmark_images")),
    )
    op.create_index(
        "ix_benchmark_dhash_0",
        "benchmark_images",
        [sa.literal_column("((dhash >> 48) & 65535)")],
        unique=False,
    )
    op.create_index(
        "ix_benchmark_dhash_1",
        "benchmark_images",
        [sa.literal_column("((dhash >> 32) & 65535)")],
        unique=False,
    )
    op.create_index(
        "ix_benchmark_dhash_2",
        "benchmark_images",
        [sa.literal_column("((dhash >> 16) & 65535)")],
        unique=False,
    )
    op.create_index(
        "ix_benchmark_dhash_3",
        "benchmark_images",
        [sa.literal_column("(dhash & 65535)")],
        unique=False,
    )
    op.create_table(
        "classes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_classes_batch_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_classes")),
        sa.UniqueConstraint("name", name=op.f("uq_classes_name")),
    )
    op.create_table(
        "manifest_rows",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("manifest_id", sa.BigInteger(), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("sub_label", sa.Text(), server_default="", nullable=False),
        sa.Column("origin", sa.Text(), server_default="real", nullable=False),
        sa.Column("group_name", sa.Text(), nullable=True),
        sa.Column("labelled_by", sa.Text(), nullable=True),
        sa.Column("box", postgresql.ARRAY(sa.REAL()), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("batch_id", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_manifest_rows_batch_id")
        ),
        sa.ForeignKeyConstraint(
            ["manifest_id"], ["manifests.id"], name=op.f("fk_manifest_rows_manifest_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_manifest_rows")),
        sa.UniqueConstraint("manifest_id", "row", name=op.f("uq_manifest_rows_manifest_id_row")),
    )
    op.create_index("ix_manifest_rows_key", "manifest_rows", ["key"], unique=False)
    op.create_table(
        "objects",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("bucket", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("sub_label", sa.Text(), server_default="", nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("batch_id", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("facts", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("gone_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'accepted', 'quarantined')", name=op.f("ck_objects_state_known")
        ),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_objects_batch_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_objects")),
        sa.UniqueConstraint("bucket", "key", "etag", name=op.f("uq_objects_bucket_key_etag")),
    )
    op.create_index(op.f("ix_objects_batch_id"), "objects", ["batch_id"], unique=False)
    op.create_index(op.f("ix_objects_sha256"), "objects", ["sha256"], unique=False)
    op.create_index(
        "ix_objects_waiting",
        "objects",
        ["batch_id"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="running", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("flow_run_id", sa.Text(), nullable=True),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("plan", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("batch_id", sa.BigInteger(), nullable=True),
        sa.Column("snapshot_digest", sa.Text(), nullable=True),
        sa.Column("version_id", sa.BigInteger(), nullable=True),
        sa.Column("verdict_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'running') = (ended_at IS NULL)", name=op.f("ck_runs_ended_when_closed")
        ),
        sa.CheckConstraint(
            "purpose IN ('nightly', 'throwaway', 'control', 'pretrain', 'bakeoff')",
            name=op.f("ck_runs_purpose_known"),
        ),
        sa.CheckConstraint(
            "state IN ('running', 'completed', 'failed', 'skipped', 'crashed')",
            name=op.f("ck_runs_state_known"),
        ),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_runs_batch_id"), use_alter=True
        ),
        sa.ForeignKeyConstraint(
            ["snapshot_digest"], ["snapshots.digest"], name=op.f("fk_runs_snapshot_digest")
        ),
        sa.ForeignKeyConstraint(
            ["verdict_id"], ["verdicts.id"], name=op.f("fk_runs_verdict_id"), use_alter=True
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_runs_version_id"), use_alter=True
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_flow_run_id"), "runs", ["flow_run_id"], unique=False)
    op.create_index(
        "one_running", "runs", ["state"], unique=True, postgresql_where=sa.text("state = 'running'")
    )
    op.create_table(
        "snapshot_classes",
        sa.Column("snapshot_digest", sa.Text(), nullable=False),
        sa.Column("class_name", sa.Text(), nullable=False),
        sa.Column("usable", sa.Integer(), nullable=False),
        sa.Column("lacks", sa.Integer(), nullable=False),
        sa.Column("train", sa.Integer(), nullable=False),
        sa.Column("validation", sa.Integer(), nullable=False),
        sa.Column("test", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["snapshot_digest"],
            ["snapshots.digest"],
            name=op.f("fk_snapshot_classes_snapshot_digest"),
        ),
        sa.PrimaryKeyConstraint("snapshot_digest", "class_name", name=op.f("pk_snapshot_classes")),
    )
    op.create_table(
        "validations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column("suite", sa.Text(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("results", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("suite IN ('images', 'batch')", name=op.f("ck_validations_suite_known")),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_validations_batch_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_validations")),
    )
    op.create_index(op.f("ix_validations_batch_id"), "validations", ["batch_id"], unique=False)
    op.create_table(
        "images",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("class_id", sa.BigInteger(), nullable=False),
        sa.Column("sub_class", sa.Text(), server_default="", nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("mined", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("group_name", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=True),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("dhash", sa.BigInteger(), nullable=True),
        sa.Column("labelled_by", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "added_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("withdrawn_why", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "NOT mined OR split IN ('train', 'held')", name=op.f("ck_images_mined_only_trains")
        ),
        sa.CheckConstraint(
            "origin = 'real' OR split IN ('train', 'held')", name=op.f("ck_images_made_only_trains")
        ),
        sa.CheckConstraint(
            "origin IN ('real', 'staged', 'synthetic')", name=op.f("ck_images_origin_known")
        ),
        sa.CheckConstraint(
            "split IN ('train', 'validation', 'test', 'held')", name=op.f("ck_images_split_known")
        ),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_images_sha256_is_hex")),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_images_batch_id")),
        sa.ForeignKeyConstraint(["class_id"], ["classes.id"], name=op.f("fk_images_class_id")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_images")),
    )
    op.create_index(op.f("ix_images_batch_id"), "images", ["batch_id"], unique=False)
    op.create_index("ix_images_class", "images", ["class_id", "batch_id", "sha256"], unique=False)
    op.create_index(
        "ix_images_dhash_0", "images", [sa.literal_column("((dhash >> 48) & 65535)")], unique=False
    )
    op.create_index(
        "ix_images_dhash_1", "images", [sa.literal_column("((dhash >> 32) & 65535)")], unique=False
    )
    op.create_index(
        "ix_images_dhash_2", "images", [sa.literal_column("((dhash >> 16) & 65535)")], unique=False
    )
    op.create_index(
        "ix_images_dhash_3", "images", [sa.literal_column("(dhash & 65535)")], unique=False
    )
    op.create_index(op.f("ix_images_group_name"), "images", ["group_name"], unique=False)
    op.create_table(
        "label_changes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("from_class", sa.Text(), nullable=True),
        sa.Column("to_class", sa.Text(), nullable=True),
        sa.Column("run_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "noticed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "kind IN ('moved', 'deleted', 'returned', 'conflict', 'relabelled')",
            name=op.f("ck_label_changes_kind_known"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_label_changes_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label_changes")),
    )
    op.create_index(op.f("ix_label_changes_sha256"), "label_changes", ["sha256"], unique=False)
    op.create_table(
        "quarantine",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("object_id", sa.BigInteger(), nullable=True),
        sa.Column("manifest_row_id", sa.BigInteger(), nullable=True),
        sa.Column("validation_id", sa.BigInteger(), nullable=True),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("expectation", sa.Text(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(object_id IS NULL) <> (manifest_row_id IS NULL)",
            name=op.f("ck_quarantine_object_or_manifest_row"),
        ),
        sa.ForeignKeyConstraint(
            ["manifest_row_id"], ["manifest_rows.id"], name=op.f("fk_quarantine_manifest_row_id")
        ),
        sa.ForeignKeyConstraint(
            ["object_id"], ["objects.id"], name=op.f("fk_quarantine_object_id")
        ),
        sa.ForeignKeyConstraint(
            ["validation_id"], ["validations.id"], name=op.f("fk_quarantine_validation_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quarantine")),
        sa.UniqueConstraint(
            "object_id", "expectation", name=op.f("uq_quarantine_object_id_expectation")
        ),
    )
    op.create_index(
        op.f("ix_quarantine_manifest_row_id"), "quarantine", ["manifest_row_id"], unique=False
    )
    op.create_index(
        op.f("ix_quarantine_validation_id"), "quarantine", ["validation_id"], unique=False
    )
    op.create_table(
        "run_steps",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("facts", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.CheckConstraint(
            "seconds >= 0 AND seconds < 'Infinity'", name=op.f("ck_run_steps_seconds_is_finite")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_steps_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_steps")),
    )
    op.create_index(op.f("ix_run_steps_run_id"), "run_steps", ["run_id"], unique=False)
    op.create_table(
        "versions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="training", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=True),
        sa.Column("parent_purpose", sa.Text(), nullable=True),
        sa.Column("snapshot_digest", sa.Text(), nullable=False),
        sa.Column("plan", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("plan_digest", sa.Text(), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("class_names", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("class_names_digest", sa.Text(), nullable=False),
        sa.Column("checkpoint_digest", sa.Text(), nullable=True),
        sa.Column("machine", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("training_accuracy", sa.Float(), nullable=True),
        sa.Column("validation_accuracy", sa.Float(), nullable=True),
        sa.Column("latency_seconds", sa.Float(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("trained_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "latency_seconds >= 0 AND latency_seconds < 'Infinity'",
            name=op.f("ck_versions_latency_seconds_is_finite"),
        ),
        sa.CheckConstraint(
            "parent_purpose <> 'throwaway'", name=op.f("ck_versions_parent_not_throwaway")
        ),
        sa.CheckConstraint(
            "purpose IN ('nightly', 'throwaway', 'control', 'pretrain', 'bakeoff')",
            name=op.f("ck_versions_purpose_known"),
        ),
        sa.CheckConstraint(
            "state <> 'trained' OR (checkpoint_digest IS NOT NULL AND machine IS NOT NULL)",
            name=op.f("ck_versions_trained_has_checkpoint"),
        ),
        sa.CheckConstraint(
            "state IN ('training', 'trained', 'failed')", name=op.f("ck_versions_state_known")
        ),
        sa.CheckConstraint(
            "(parent_id IS NULL) = (parent_purpose IS NULL)", name=op.f("ck_versions_parent_whole")
        ),
        sa.CheckConstraint("parent_id < id", name=op.f("ck_versions_parent_older")),
        sa.CheckConstraint(
            "training_accuracy BETWEEN 0 AND 1", name=op.f("ck_versions_training_accuracy_is_share")
        ),
        sa.CheckConstraint(
            "validation_accuracy BETWEEN 0 AND 1",
            name=op.f("ck_versions_validation_accuracy_is_share"),
        ),
        sa.ForeignKeyConstraint(
            ["parent_id", "parent_purpose"],
            ["versions.id", "versions.purpose"],
            name=op.f("fk_versions_parent_id_parent_purpose"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_versions_run_id")),
        sa.ForeignKeyConstraint(
            ["snapshot_digest"], ["snapshots.digest"], name=op.f("fk_versions_snapshot_digest")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint(
            "id", "checkpoint_digest", name=op.f("uq_versions_id_checkpoint_digest")
        ),
        sa.UniqueConstraint("id", "purpose", name=op.f("uq_versions_id_purpose")),
    )
    op.create_index(
        "one_candidate",
        "versions",
        ["purpose", "snapshot_digest", "plan_digest", "parent_id"],
        unique=True,
        postgresql_where=sa.text("state <> 'failed'"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "epochs",
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("train_loss", sa.Float(), nullable=False),
        sa.Column("train_accuracy", sa.Float(), nullable=False),
        sa.Column("validation_loss", sa.Float(), nullable=True),
        sa.Column("validation_accuracy", sa.Float(), nullable=True),
        sa.Column("learning_rate", sa.Float(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("images_per_second", sa.Float(), nullable=False),
        sa.CheckConstraint(
            "train_loss >= 0 AND train_loss < 'Infinity'",
            name=op.f("ck_epochs_train_loss_is_finite"),
        ),
        sa.CheckConstraint(
            "validation_loss >= 0 AND validation_loss < 'Infinity'",
            name=op.f("ck_epochs_validation_loss_is_finite"),
        ),
        sa.CheckConstraint(
            "train_accuracy BETWEEN 0 AND 1", name=op.f("ck_epochs_train_accuracy_is_share")
        ),
        sa.CheckConstraint(
            "validation_accuracy BETWEEN 0 AND 1",
            name=op.f("ck_epochs_validation_accuracy_is_share"),
        ),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_epochs_version_id")),
        sa.PrimaryKeyConstraint("version_id", "number", name=op.f("pk_epochs")),
    )
    op.create_table(
        "evaluations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint_digest", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("benchmark_version", sa.Integer(), nullable=True),
        sa.Column("batch_id", sa.BigInteger(), nullable=True),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("accuracy", sa.Float(), nullable=False),
        sa.Column("accuracy_low", sa.Float(), nullable=False),
        sa.Column("accuracy_high", sa.Float(), nullable=False),
        sa.Column("top5_accuracy", sa.Float(), nullable=True),
        sa.Column("loss", sa.Float(), nullable=True),
        sa.Column("calibration_error", sa.Float(), nullable=True),
        sa.Column("runtime", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(subject = 'batch') = (batch_id IS NOT NULL)", name=op.f("ck_evaluations_batch_named")
        ),
        sa.CheckConstraint(
            "(subject = 'benchmark') = (benchmark_version IS NOT NULL)",
            name=op.f("ck_evaluations_benchmark_named"),
        ),
        sa.CheckConstraint(
            "loss >= 0 AND loss < 'Infinity'", name=op.f("ck_evaluations_loss_is_finite")
        ),
        sa.CheckConstraint(
            "subject IN ('validation', 'test', 'benchmark', 'batch', 'library')",
            name=op.f("ck_evaluations_subject_known"),
        ),
        sa.CheckConstraint(
            "accuracy BETWEEN 0 AND 1", name=op.f("ck_evaluations_accuracy_is_share")
        ),
        sa.CheckConstraint(
            "accuracy_high BETWEEN 0 AND 1", name=op.f("ck_evaluations_accuracy_high_is_share")
        ),
        sa.CheckConstraint(
            "accuracy_low BETWEEN 0 AND 1", name=op.f("ck_evaluations_accuracy_low_is_share")
        ),
        sa.CheckConstraint(
            "calibration_error BETWEEN 0 AND 1",
            name=op.f("ck_evaluations_calibration_error_is_share"),
        ),
        sa.CheckConstraint(
            "top5_accuracy BETWEEN 0 AND 1", name=op.f("ck_evaluations_top5_accuracy_is_share")
        ),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_evaluations_batch_id")),
        sa.ForeignKeyConstraint(
            ["benchmark_version"],
            ["benchmarks.version"],
            name=op.f("fk_evaluations_benchmark_version"),
        ),
        sa.ForeignKeyConstraint(
            ["version_id", "checkpoint_digest"],
            ["versions.id", "versions.checkpoint_digest"],
            name=op.f("fk_evaluations_version_id_checkpoint_digest"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
    )
    op.create_index(
        "one_evaluation",
        "evaluations",
        ["version_id", "subject", "benchmark_version", "batch_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "gradcams",
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("predicted", sa.Text(), nullable=False),
        sa.Column("confidence", sa.REAL(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("cells", sa.LargeBinary(), nullable=False),
        sa.Column("positive", sa.Boolean(), nullable=False),
        sa.Column("facts", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.CheckConstraint(
            "reason IN ('worst error', 'flip', 'sample')", name=op.f("ck_gradcams_reason_known")
        ),
        sa.CheckConstraint(
            "length(cells) = 2 * height * width", name=op.f("ck_gradcams_float16_cells")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_gradcams_version_id")
        ),
        sa.PrimaryKeyConstraint("version_id", "sha256", "target", name=op.f("pk_gradcams")),
    )
    op.create_table(
        "verdicts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=True),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint_digest", sa.Text(), nullable=False),
        sa.Column("champion_id", sa.BigInteger(), nullable=True),
        sa.Column("benchmark_version", sa.Integer(), nullable=False),
        sa.Column("benchmark_digest", sa.Text(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("shared_drop", sa.Float(), nullable=True),
        sa.Column("limits", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "shared_drop BETWEEN -1 AND 1", name=op.f("ck_verdicts_shared_drop_is_share")
        ),
        sa.ForeignKeyConstraint(
            ["benchmark_digest"], ["benchmarks.digest"], name=op.f("fk_verdicts_benchmark_digest")
        ),
        sa.ForeignKeyConstraint(
            ["benchmark_version"],
            ["benchmarks.version"],
            name=op.f("fk_verdicts_benchmark_version"),
        ),
        sa.ForeignKeyConstraint(
            ["champion_id"], ["versions.id"], name=op.f("fk_verdicts_champion_id")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_verdicts_run_id")),
        sa.ForeignKeyConstraint(
            ["version_id", "checkpoint_digest"],
            ["versions.id", "versions.checkpoint_digest"],
            name=op.f("fk_verdicts_version_id_checkpoint_digest"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_verdicts")),
        sa.UniqueConstraint("id", "version_id", name=op.f("uq_verdicts_id_version_id")),
    )
    op.create_index(op.f("ix_verdicts_version_id"), "verdicts", ["version_id"], unique=False)
    op.create_table(
        "answers",
        sa.Column("evaluation_id", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("predicted", sa.Text(), nullable=False),
        sa.Column("correct", sa.Boolean(), nullable=False),
        sa.Column("confidence", sa.REAL(), nullable=False),
        sa.Column("label_confidence", sa.REAL(), nullable=False),
        sa.Column("top_labels", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("top_confidences", postgresql.ARRAY(sa.REAL()), nullable=False),
        sa.CheckConstraint(
            "confidence BETWEEN 0 AND 1", name=op.f("ck_answers_confidence_is_share")
        ),
        sa.CheckConstraint(
            "label_confidence BETWEEN 0 AND 1", name=op.f("ck_answers_label_confidence_is_share")
        ),
        sa.ForeignKeyConstraint(
            ["evaluation_id"],
            ["evaluations.id"],
            name=op.f("fk_answers_evaluation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "sha256", name=op.f("pk_answers")),
    )
    op.create_table(
        "checks",
        sa.Column("verdict_id", sa.BigInteger(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("numbers", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "verdict IN ('passed', 'failed', 'undecidable')", name=op.f("ck_checks_verdict_known")
        ),
        sa.ForeignKeyConstraint(["verdict_id"], ["verdicts.id"], name=op.f("fk_checks_verdict_id")),
        sa.PrimaryKeyConstraint("verdict_id", "ordinal", name=op.f("pk_checks")),
    )
    op.create_table(
        "deployments",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("previous_id", sa.BigInteger(), nullable=True),
        sa.Column("verdict_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("deployed_by", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "deployed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "kind IN ('promotion', 'rollback')", name=op.f("ck_deployments_kind_known")
        ),
        sa.CheckConstraint(
            "purpose IN ('nightly', 'control', 'bakeoff')",
            name=op.f("ck_deployments_purpose_known"),
        ),
        sa.ForeignKeyConstraint(
            ["previous_id"], ["deployments.id"], name=op.f("fk_deployments_previous_id")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_deployments_run_id")),
        sa.ForeignKeyConstraint(
            ["verdict_id", "version_id"],
            ["verdicts.id", "verdicts.version_id"],
            name=op.f("fk_deployments_verdict_id_version_id"),
        ),
        sa.ForeignKeyConstraint(
            ["version_id", "purpose"],
            ["versions.id", "versions.purpose"],
            name=op.f("fk_deployments_version_id_purpose"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
    )
    op.create_index(
        "one_successor",
        "deployments",
        ["previous_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "evaluation_classes",
        sa.Column("evaluation_id", sa.BigInteger(), nullable=False),
        sa.Column("class_name", sa.Text(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("correct", sa.Integer(), nullable=False),
        sa.Column("predicted", sa.Integer(), nullable=False),
        sa.Column("precision", sa.Float(), nullable=True),
        sa.Column("recall", sa.Float(), nullable=True),
        sa.Column("f1", sa.Float(), nullable=True),
        sa.Column("recall_low", sa.Float(), nullable=True),
        sa.Column("recall_high", sa.Float(), nullable=True),
        sa.CheckConstraint("f1 BETWEEN 0 AND 1", name=op.f("ck_evaluation_classes_f1_is_share")),
        sa.CheckConstraint(
            "precision BETWEEN 0 AND 1", name=op.f("ck_evaluation_classes_precision_is_share")
        ),
        sa.CheckConstraint(
            "recall BETWEEN 0 AND 1", name=op.f("ck_evaluation_classes_recall_is_share")
        ),
        sa.CheckConstraint(
            "recall_high BETWEEN 0 AND 1", name=op.f("ck_evaluation_classes_recall_high_is_share")
        ),
        sa.CheckConstraint(
            "recall_low BETWEEN 0 AND 1", name=op.f("ck_evaluation_classes_recall_low_is_share")
        ),
        sa.ForeignKeyConstraint(
            ["evaluation_id"],
            ["evaluations.id"],
            name=op.f("fk_evaluation_classes_evaluation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "class_name", name=op.f("pk_evaluation_classes")),
    )
    # Runs name what they made, and what they made names its run: these come last.
    for name, table in (
        ("batch_id", "batches"),
        ("version_id", "versions"),
        ("verdict_id", "verdicts"),
    ):
        op.create_foreign_key(f"fk_runs_{name}", "runs", table, [name], ["id"], use_alter=True)


def downgrade() -> None:
    # Runs, batches and versions name each other, so no order of plain drops would do.
    for table in TABLES:
        op.execute(f"DROP TABLE {table} CASCADE")
