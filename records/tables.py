"""Every table that regraft remembers things in, and the constraints that keep its promises.

Rules that one row can break are CHECKs and keys here; rules between rows (no image both trained
on and in the benchmark, no deployment without a passed verdict) are triggers in the migration.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    MetaData,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

PURPOSES = ("nightly", "throwaway", "control", "pretrain", "bakeoff")
SPLITS = ("train", "validation", "test", "held")
ORIGINS = ("real", "staged", "synthetic")
LOOKS = ("bakeoff", "control", "evaluation")


def one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    """Allow only these words in a text column."""
    allowed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({allowed})", name=f"{column}_known")


def share(column: str) -> CheckConstraint:
    """Keep a column within 0 to 1; BETWEEN also refuses NaN, which a plain `<=` does not."""
    return CheckConstraint(f"{column} BETWEEN 0 AND 1", name=f"{column}_is_share")


def finite(column: str) -> CheckConstraint:
    """Keep a column at or above 0 and finite; NaN sorts above infinity in Postgres."""
    return CheckConstraint(f"{column} >= 0 AND {column} < 'Infinity'", name=f"{column}_is_finite")


def difference(column: str) -> CheckConstraint:
    """Keep a column within -1 to 1, as the difference of two shares is; refuses NaN too."""
    return CheckConstraint(f"{column} BETWEEN -1 AND 1", name=f"{column}_is_difference")


def shares(column: str) -> CheckConstraint:
    """Keep every element of an array within 0 to 1; a NaN sorts above 1."""
    return CheckConstraint(
        f"0 <= ALL ({column}) AND 1 >= ALL ({column})", name=f"{column}_are_shares"
    )


class Base(DeclarativeBase):
    """Common naming of keys and constraints, so that migrations can name what they change."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy reads this as a class attribute)
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[str]: ARRAY(Text),
        list[float]: ARRAY(REAL),
    }


def now() -> Mapped[datetime]:
    """Make a column that Postgres fills with the time of the transaction."""
    return mapped_column(server_default=func.now())


def number() -> Mapped[int]:
    """Make a primary key that Postgres counts."""
    return mapped_column(BigInteger, Identity(always=True), primary_key=True)


# --- runs -----------------------------------------------------------------------------------


class Run(Base):
    """One try of a flow. While it is `running` it may publish; once closed it never can again."""

    __tablename__ = "runs"
    __table_args__ = (
        one_of("purpose", PURPOSES),
        one_of("state", ("running", "completed", "failed", "skipped", "crashed")),
        CheckConstraint("(state = 'running') = (ended_at IS NULL)", name="ended_when_closed"),
        # The advisory lock keeps nights apart; this keeps them apart even if the lock was lost.
        Index("one_running", "state", unique=True, postgresql_where=text("state = 'running'")),
    )

    id: Mapped[int] = number()
    purpose: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="running")
    reason: Mapped[str | None]
    flow_run_id: Mapped[str | None] = mapped_column(index=True)
    host: Mapped[str]
    pid: Mapped[int]
    plan: Mapped[dict[str, Any]]
    batch_id: Mapped[int | None] = mapped_column(ForeignKey("batches.id", use_alter=True))
    snapshot_digest: Mapped[str | None] = mapped_column(ForeignKey("snapshots.digest"))
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id", use_alter=True))
    verdict_id: Mapped[int | None] = mapped_column(ForeignKey("verdicts.id", use_alter=True))
    started_at: Mapped[datetime] = now()
    ended_at: Mapped[datetime | None]


class RunStep(Base):
    """How long one step of a run took, in seconds."""

    __tablename__ = "run_steps"
    __table_args__ = (finite("seconds"),)

    id: Mapped[int] = number()
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), index=True)
    name: Mapped[str]
    started_at: Mapped[datetime]
    seconds: Mapped[float]
    facts: Mapped[dict[str, Any]]


# --- library --------------------------------------------------------------------------------


class Class(Base):
    """One class that somebody has labelled an image with."""

    __tablename__ = "classes"

    id: Mapped[int] = number()
    name: Mapped[str] = mapped_column(unique=True)
    batch_id: Mapped[int | None] = mapped_column(ForeignKey("batches.id"))
    created_at: Mapped[datetime] = now()


class Batch(Base):
    """One intake: accepted as a whole, refused as a whole, or reverted later."""

    __tablename__ = "batches"
    __table_args__ = (
        one_of("state", ("open", "accepted", "refused", "reverted")),
        Index("one_open", "state", unique=True, postgresql_where=text("state = 'open'")),
    )

    id: Mapped[int] = number()
    state: Mapped[str] = mapped_column(server_default="open")
    reason: Mapped[str | None]
    decided_by: Mapped[str | None]
    started_at: Mapped[datetime] = now()
    ended_at: Mapped[datetime | None]


class Object(Base):
    """One labelled object as it was seen in S3; a rewritten object is a new row."""

    __tablename__ = "objects"
    __table_args__ = (
        one_of("state", ("pending", "accepted", "quarantined")),
        CheckConstraint("state <> 'accepted' OR sha256 IS NOT NULL", name="accepted_has_sha256"),
        UniqueConstraint("bucket", "key", "etag"),
        Index("ix_objects_waiting", "batch_id", postgresql_where=text("state = 'pending'")),
        Index("ix_objects_gone", "sha256", postgresql_where=text("gone_at IS NOT NULL")),
        Index("ix_objects_quarantined", "key", postgresql_where=text("state = 'quarantined'")),
    )

    id: Mapped[int] = number()
    bucket: Mapped[str]
    key: Mapped[str]
    etag: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    modified: Mapped[datetime]
    label: Mapped[str | None]
    sub_label: Mapped[str] = mapped_column(server_default="")
    state: Mapped[str] = mapped_column(server_default="pending")
    batch_id: Mapped[int | None] = mapped_column(ForeignKey("batches.id"), index=True)
    sha256: Mapped[str | None] = mapped_column(index=True)
    facts: Mapped[dict[str, Any] | None]
    gone_at: Mapped[datetime | None]
    seen_at: Mapped[datetime] = now()


class Manifest(Base):
    """One manifest file that has been read."""

    __tablename__ = "manifests"
    __table_args__ = (UniqueConstraint("key", "etag"),)

    id: Mapped[int] = number()
    key: Mapped[str]
    etag: Mapped[str]
    rows: Mapped[int]
    read_at: Mapped[datetime] = now()


class ManifestRow(Base):
    """What one row of a manifest says of one object; the newest row of a key speaks."""

    __tablename__ = "manifest_rows"
    __table_args__ = (
        shares("box"),
        UniqueConstraint("manifest_id", "row"),
        Index("ix_manifest_rows_key", "key"),
    )

    id: Mapped[int] = number()
    manifest_id: Mapped[int] = mapped_column(ForeignKey("manifests.id"))
    row: Mapped[int]
    key: Mapped[str]
    label: Mapped[str | None]
    sub_label: Mapped[str] = mapped_column(server_default="")
    origin: Mapped[str] = mapped_column(server_default="real")
    group_name: Mapped[str | None]
    labelled_by: Mapped[str | None]
    box: Mapped[list[float] | None]
    problem: Mapped[str | None]
    batch_id: Mapped[int | None] = mapped_column(ForeignKey("batches.id"))


class Image(Base):
    """One distinct picture of the library. Its split is given once and never changes."""

    __tablename__ = "images"
    __table_args__ = (
        one_of("split", SPLITS),
        one_of("origin", ORIGINS),
        CheckConstraint("length(sha256) = 64", name="sha256_is_hex"),
        CheckConstraint("origin = 'real' OR split IN ('train', 'held')", name="made_only_trains"),
        CheckConstraint("NOT mined OR split IN ('train', 'held')", name="mined_only_trains"),
        # what a snapshot may choose, in the order in which it chooses
        Index(
            "ix_images_choice",
            "class_id",
            text("batch_id DESC"),
            "sha256",
            postgresql_include=["split"],
            postgresql_where=text("withdrawn_at IS NULL AND split <> 'held'"),
        ),
        Index(
            "ix_images_line",
            "class_id",
            "sub_class",
            "sequence",
            postgresql_where=text("sequence IS NOT NULL"),
        ),
        Index(
            "ix_images_deleted", "sha256", postgresql_where=text("withdrawn_why = 'deleted'")
        ),
        Index("ix_images_dhash_0", text("((dhash >> 48) & 65535)")),
        Index("ix_images_dhash_1", text("((dhash >> 32) & 65535)")),
        Index("ix_images_dhash_2", text("((dhash >> 16) & 65535)")),
        Index("ix_images_dhash_3", text("(dhash & 65535)")),
    )

    sha256: Mapped[str] = mapped_column(primary_key=True)
    class_id: Mapped[int] = mapped_column(ForeignKey("classes.id"))
    sub_class: Mapped[str] = mapped_column(server_default="")
    origin: Mapped[str]
    mined: Mapped[bool] = mapped_column(server_default="false")
    group_name: Mapped[str] = mapped_column(index=True)
    split: Mapped[str]
    sequence: Mapped[int | None]
    width: Mapped[int]
    height: Mapped[int]
    format: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    dhash: Mapped[int | None] = mapped_column(BigInteger)
    labelled_by: Mapped[str]
    batch_id: Mapped[int] = mapped_column(ForeignKey("batches.id"), index=True)
    added_at: Mapped[datetime] = now()
    withdrawn_at: Mapped[datetime | None]
    withdrawn_why: Mapped[str | None]


class LabelChange(Base):
    """A label that changed in S3 after intake: the object was moved, deleted or put back."""

    __tablename__ = "label_changes"
    __table_args__ = (one_of("kind", ("moved", "deleted", "returned", "conflict", "relabelled")),)

    id: Mapped[int] = number()
    sha256: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    from_class: Mapped[str | None]
    to_class: Mapped[str | None]
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    noticed_at: Mapped[datetime] = now()


class Validation(Base):
    """The stored result of one Great Expectations suite over one batch."""

    __tablename__ = "validations"
    __table_args__ = (one_of("suite", ("images", "batch")),)

    id: Mapped[int] = number()
    batch_id: Mapped[int] = mapped_column(ForeignKey("batches.id"), index=True)
    suite: Mapped[str]
    passed: Mapped[bool]
    results: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = now()


class Refusal(Base):
    """Why one object (or one manifest row without an object) is in quarantine."""

    __tablename__ = "quarantine"
    __table_args__ = (
        CheckConstraint(
            "(object_id IS NULL) <> (manifest_row_id IS NULL)", name="object_or_manifest_row"
        ),
        UniqueConstraint("object_id", "expectation"),
    )

    id: Mapped[int] = number()
    object_id: Mapped[int | None] = mapped_column(ForeignKey("objects.id"))
    manifest_row_id: Mapped[int | None] = mapped_column(ForeignKey("manifest_rows.id"), index=True)
    validation_id: Mapped[int | None] = mapped_column(ForeignKey("validations.id"), index=True)
    key: Mapped[str]
    expectation: Mapped[str]
    sentence: Mapped[str]
    created_at: Mapped[datetime] = now()


# --- snapshots and benchmark ----------------------------------------------------------------


class Snapshot(Base):
    """The immutable list of images one version trained on; the list itself is Parquet in S3."""

    __tablename__ = "snapshots"

    digest: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    policy: Mapped[str]
    cutoff: Mapped[int]
    most: Mapped[int | None]
    images: Mapped[int]
    classes: Mapped[int]
    created_at: Mapped[datetime] = now()


class SnapshotClass(Base):
    """What one class had when the snapshot was frozen; `lacks` above 0 means it was left out."""

    __tablename__ = "snapshot_classes"

    snapshot_digest: Mapped[str] = mapped_column(ForeignKey("snapshots.digest"), primary_key=True)
    class_name: Mapped[str] = mapped_column(primary_key=True)
    usable: Mapped[int]
    lacks: Mapped[int]
    train: Mapped[int]
    validation: Mapped[int]
    test: Mapped[int]


class LibraryAct(Base):
    """One statement that changed what a snapshot could choose; triggers write them.

    How many there are is the library's revision: rows of several transactions never wait for each
    other, as a counter would make them.
    """

    __tablename__ = "library_acts"

    id: Mapped[int] = number()
    act: Mapped[str]
    happened_at: Mapped[datetime] = now()


class SnapshotChoice(Base):
    """Which snapshot was chosen at one revision of the library, by one rule."""

    __tablename__ = "snapshot_choices"
    __table_args__ = (
        Index(
            "one_choice",
            "revision",
            "policy",
            "cutoff",
            "most",
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
    )

    id: Mapped[int] = number()
    revision: Mapped[int] = mapped_column(BigInteger)
    policy: Mapped[str]
    cutoff: Mapped[int]
    most: Mapped[int | None]
    snapshot_digest: Mapped[str] = mapped_column(ForeignKey("snapshots.digest"))


class Benchmark(Base):
    """One version of the frozen benchmark. Its images are those added at or before it."""

    __tablename__ = "benchmarks"
    # Not the digest alone: what was added and withdrawn again leaves the contents of before.
    __table_args__ = (UniqueConstraint("version", "digest"),)

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str]
    images: Mapped[int]
    classes: Mapped[int]
    frozen_by: Mapped[str]
    why: Mapped[str]
    power: Mapped[dict[str, Any]]
    frozen_at: Mapped[datetime] = now()


class BenchmarkImage(Base):
    """One image of the benchmark; never relabelled, only withdrawn by a later version."""

    __tablename__ = "benchmark_images"
    __table_args__ = (
        CheckConstraint("length(sha256) = 64", name="sha256_is_hex"),
        CheckConstraint("withdrawn_in > added_in", name="withdrawn_later"),
        Index("ix_benchmark_dhash_0", text("((dhash >> 48) & 65535)")),
        Index("ix_benchmark_dhash_1", text("((dhash >> 32) & 65535)")),
        Index("ix_benchmark_dhash_2", text("((dhash >> 16) & 65535)")),
        Index("ix_benchmark_dhash_3", text("(dhash & 65535)")),
    )

    sha256: Mapped[str] = mapped_column(primary_key=True)
    class_name: Mapped[str]
    source_key: Mapped[str]
    key: Mapped[str]
    dhash: Mapped[int | None] = mapped_column(BigInteger)
    added_in: Mapped[int] = mapped_column(ForeignKey("benchmarks.version"))
    withdrawn_in: Mapped[int | None] = mapped_column(ForeignKey("benchmarks.version"))
    withdrawn_why: Mapped[str | None]


class Look(Base):
    """A version's figures on a benchmark version that were shown without a verdict.

    Verdicts are looks, too, and stand in their own table.
    """

    __tablename__ = "looks"
    __table_args__ = (
        one_of("kind", LOOKS),
        CheckConstraint("btrim(looked_by) <> ''", name="says_who"),
        # The same figures, shown again, tell nothing new.
        UniqueConstraint("benchmark_version", "version_id", "kind"),
    )

    id: Mapped[int] = number()
    benchmark_version: Mapped[int] = mapped_column(ForeignKey("benchmarks.version"))
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    kind: Mapped[str]
    looked_by: Mapped[str]
    looked_at: Mapped[datetime] = now()


class SetImage(Base):
    """One object of a pretraining set as it was read; the library knows neither it nor its class.

    problem: why it is left out; only what has none may train, and may never enter the benchmark.
    """

    __tablename__ = "set_images"
    __table_args__ = (
        one_of("split", ("train", "validation", "test")),
        CheckConstraint("length(sha256) = 64", name="sha256_is_hex"),
        CheckConstraint("(problem IS NULL) = (split IS NOT NULL)", name="usable_has_split"),
        UniqueConstraint("set_prefix", "key", "etag"),
        Index("ix_set_images_class", "set_prefix", "label"),
    )

    id: Mapped[int] = number()
    set_prefix: Mapped[str]
    key: Mapped[str]
    etag: Mapped[str]
    label: Mapped[str]
    sha256: Mapped[str] = mapped_column(index=True)
    dhash: Mapped[int | None] = mapped_column(BigInteger)
    split: Mapped[str | None]
    problem: Mapped[str | None]
    read_at: Mapped[datetime] = now()


# --- versions -------------------------------------------------------------------------------


class Version(Base):
    """One trained model, or one in training (the candidate is written down before it trains)."""

    __tablename__ = "versions"
    __table_args__ = (
        one_of("purpose", PURPOSES),
        one_of("state", ("training", "trained", "failed")),
        CheckConstraint(
            "state <> 'trained' OR (checkpoint_digest IS NOT NULL AND machine IS NOT NULL)",
            name="trained_has_checkpoint",
        ),
        CheckConstraint("(parent_id IS NULL) = (parent_purpose IS NULL)", name="parent_whole"),
        CheckConstraint("parent_purpose <> 'throwaway'", name="parent_not_throwaway"),
        CheckConstraint("parent_id < id", name="parent_older"),
        ForeignKeyConstraint(["parent_id", "parent_purpose"], ["versions.id", "versions.purpose"]),
        share("training_accuracy"),
        share("validation_accuracy"),
        finite("latency_seconds"),
        finite("temperature"),
        UniqueConstraint("id", "purpose"),
        UniqueConstraint("id", "checkpoint_digest"),
        # The same work is never done twice: a killed night finds its candidate again.
        Index(
            "one_candidate",
            "purpose",
            "snapshot_digest",
            "plan_digest",
            "parent_id",
            unique=True,
            postgresql_where=text("state <> 'failed'"),
            postgresql_nulls_not_distinct=True,
        ),
    )

    id: Mapped[int] = number()
    purpose: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="training")
    reason: Mapped[str | None]
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    parent_id: Mapped[int | None] = mapped_column(BigInteger)
    parent_purpose: Mapped[str | None]
    snapshot_digest: Mapped[str] = mapped_column(ForeignKey("snapshots.digest"))
    plan: Mapped[dict[str, Any]]
    plan_digest: Mapped[str]
    architecture: Mapped[str]
    class_names: Mapped[list[str]]
    class_names_digest: Mapped[str]
    checkpoint_digest: Mapped[str | None]
    resolved: Mapped[dict[str, Any] | None]
    machine: Mapped[dict[str, Any] | None]
    training_accuracy: Mapped[float | None]
    validation_accuracy: Mapped[float | None]
    latency_seconds: Mapped[float | None]
    latency_machine: Mapped[str | None]
    temperature: Mapped[float | None]
    created_at: Mapped[datetime] = now()
    trained_at: Mapped[datetime | None]


class Epoch(Base):
    """The figures of one epoch, stored as they come."""

    __tablename__ = "epochs"
    __table_args__ = (
        share("train_accuracy"),
        share("validation_accuracy"),
        finite("train_loss"),
        finite("validation_loss"),
        finite("learning_rate"),
        finite("seconds"),
        finite("images_per_second"),
    )

    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    phase: Mapped[str]
    train_loss: Mapped[float]
    train_accuracy: Mapped[float]
    validation_loss: Mapped[float | None]
    validation_accuracy: Mapped[float | None]
    learning_rate: Mapped[float]
    seconds: Mapped[float]
    images_per_second: Mapped[float]


class Evaluation(Base):
    """What one checkpoint answered on one set of images."""

    __tablename__ = "evaluations"
    __table_args__ = (
        one_of("subject", ("validation", "test", "benchmark", "batch", "library")),
        CheckConstraint(
            "(subject = 'benchmark') = (benchmark_version IS NOT NULL)", name="benchmark_named"
        ),
        CheckConstraint("(subject = 'batch') = (batch_id IS NOT NULL)", name="batch_named"),
        ForeignKeyConstraint(
            ["version_id", "checkpoint_digest"], ["versions.id", "versions.checkpoint_digest"]
        ),
        share("accuracy"),
        share("accuracy_low"),
        share("accuracy_high"),
        share("top5_accuracy"),
        share("top5_low"),
        share("top5_high"),
        share("mean_recall"),
        share("mean_f1"),
        share("calibration_error"),
        share("calibration_by_chance"),
        finite("loss"),
        Index(
            "one_evaluation",
            "version_id",
            "subject",
            "benchmark_version",
            "batch_id",
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
    )

    id: Mapped[int] = number()
    version_id: Mapped[int] = mapped_column(BigInteger)
    checkpoint_digest: Mapped[str]
    subject: Mapped[str]
    benchmark_version: Mapped[int | None] = mapped_column(ForeignKey("benchmarks.version"))
    batch_id: Mapped[int | None] = mapped_column(ForeignKey("batches.id"))
    images: Mapped[int]
    accuracy: Mapped[float]
    accuracy_low: Mapped[float]
    accuracy_high: Mapped[float]
    top5_accuracy: Mapped[float | None]
    top5_low: Mapped[float | None]
    top5_high: Mapped[float | None]
    mean_recall: Mapped[float | None]
    mean_f1: Mapped[float | None]
    loss: Mapped[float | None]
    calibration_error: Mapped[float | None]
    calibration_by_chance: Mapped[float | None]
    runtime: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = now()


class EvaluationClass(Base):
    """One class of one evaluation; a class without images has no recall, never a NaN."""

    __tablename__ = "evaluation_classes"
    __table_args__ = (
        share("precision"),
        share("recall"),
        share("f1"),
        share("recall_low"),
        share("recall_high"),
        share("precision_low"),
        share("precision_high"),
        share("f1_low"),
        share("f1_high"),
    )

    evaluation_id: Mapped[int] = mapped_column(
        ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True
    )
    class_name: Mapped[str] = mapped_column(primary_key=True)
    images: Mapped[int]
    correct: Mapped[int]
    predicted: Mapped[int]
    precision: Mapped[float | None]
    recall: Mapped[float | None]
    f1: Mapped[float | None]
    recall_low: Mapped[float | None]
    recall_high: Mapped[float | None]
    precision_low: Mapped[float | None]
    precision_high: Mapped[float | None]
    f1_low: Mapped[float | None]
    f1_high: Mapped[float | None]


class ReliabilityBin(Base):
    """How right the answers of one band of confidence were, above `low` and at most `high`."""

    __tablename__ = "reliability_bins"
    __table_args__ = (
        share("low"),
        share("high"),
        share("confidence"),
        share("accuracy"),
        share("accuracy_low"),
        share("accuracy_high"),
    )

    evaluation_id: Mapped[int] = mapped_column(
        ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True
    )
    low: Mapped[float] = mapped_column(primary_key=True)
    high: Mapped[float]
    images: Mapped[int]
    confidence: Mapped[float]
    accuracy: Mapped[float]
    accuracy_low: Mapped[float]
    accuracy_high: Mapped[float]


class Threshold(Base):
    """The confidence that gives a wished precision on validation, and what it gives elsewhere.

    The row of `validation` is the fit; without a confidence it says that none reaches the wish.
    """

    __tablename__ = "thresholds"
    __table_args__ = (
        one_of("subject", ("validation", "test", "benchmark")),
        CheckConstraint(
            "(subject = 'benchmark') = (benchmark_version IS NOT NULL)", name="benchmark_named"
        ),
        CheckConstraint("confidence IS NOT NULL OR subject = 'validation'", name="fitted_first"),
        CheckConstraint(
            "(precision IS NULL) = (answered = 0) AND (precision IS NULL) = (precision_low IS NULL)"
            " AND (precision IS NULL) = (precision_high IS NULL)",
            name="precision_of_answers",
        ),
        CheckConstraint("answered BETWEEN 0 AND images", name="answered_of_images"),
        share("wished"),
        share("precision"),
        share("precision_low"),
        share("precision_high"),
        finite("confidence"),
        Index(
            "one_threshold",
            "version_id",
            "wished",
            "subject",
            "benchmark_version",
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
    )

    id: Mapped[int] = number()
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    wished: Mapped[float]
    subject: Mapped[str]
    benchmark_version: Mapped[int | None] = mapped_column(ForeignKey("benchmarks.version"))
    confidence: Mapped[float | None]
    precision: Mapped[float | None]
    precision_low: Mapped[float | None]
    precision_high: Mapped[float | None]
    answered: Mapped[int]
    images: Mapped[int]
    fitted_at: Mapped[datetime] = now()


class Answer(Base):
    """What one checkpoint said of one image: best labels first, with their confidences."""

    __tablename__ = "answers"
    __table_args__ = (
        share("confidence"),
        share("label_confidence"),
        shares("top_confidences"),
    )

    evaluation_id: Mapped[int] = mapped_column(
        ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True
    )
    sha256: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str]
    predicted: Mapped[str]
    correct: Mapped[bool]
    confidence: Mapped[float] = mapped_column(REAL)
    label_confidence: Mapped[float] = mapped_column(REAL)
    top_labels: Mapped[list[str]]
    top_confidences: Mapped[list[float]]


class GradCam(Base):
    """Where a version looked: the raw map of one image for one class, and its facts."""

    __tablename__ = "gradcams"
    __table_args__ = (
        one_of("reason", ("worst error", "flip", "sample")),
        CheckConstraint("length(cells) = 2 * height * width", name="float16_cells"),
        share("confidence"),
    )

    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(primary_key=True)
    target: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str]
    reason: Mapped[str]
    label: Mapped[str]
    predicted: Mapped[str]
    confidence: Mapped[float] = mapped_column(REAL)
    height: Mapped[int]
    width: Mapped[int]
    cells: Mapped[bytes]
    positive: Mapped[bool]
    facts: Mapped[dict[str, Any]]


# --- failures -------------------------------------------------------------------------------


class FailureAnalysis(Base):
    """What was tried on one version to see where it fails, and what the next plan should do."""

    __tablename__ = "failure_analyses"
    __table_args__ = (
        ForeignKeyConstraint(
            ["version_id", "checkpoint_digest"], ["versions.id", "versions.checkpoint_digest"]
        ),
    )

    version_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    checkpoint_digest: Mapped[str]
    images: Mapped[int]
    runtime: Mapped[dict[str, Any]]
    augmentation: Mapped[dict[str, Any]]
    class_augmentation: Mapped[dict[str, Any]]
    doubted: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = now()


class Sensitivity(Base):
    """What one graded transformation costs a class, or all classes (class_name NULL)."""

    __tablename__ = "sensitivities"
    __table_args__ = (
        difference("drop"),
        difference("drop_low"),
        difference("drop_high"),
        CheckConstraint("strength BETWEEN -1000 AND 1000", name="strength_is_finite"),
        CheckConstraint(
            "lost BETWEEN 0 AND correct AND gained BETWEEN 0 AND images - correct",
            name="counts_fit",
        ),
        Index(
            "one_sensitivity",
            "version_id",
            "class_name",
            "transformation",
            "strength",
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
    )

    id: Mapped[int] = number()
    version_id: Mapped[int] = mapped_column(
        ForeignKey("failure_analyses.version_id", ondelete="CASCADE")
    )
    class_name: Mapped[str | None]
    transformation: Mapped[str]
    strength: Mapped[float]
    images: Mapped[int]
    correct: Mapped[int]
    lost: Mapped[int]
    gained: Mapped[int]
    drop: Mapped[float | None]
    drop_low: Mapped[float | None]
    drop_high: Mapped[float | None]


class AugmentationChange(Base):
    """One field of augmentation that a version's failures ask to widen, with the reason."""

    __tablename__ = "augmentation_changes"
    __table_args__ = (finite("before"), finite("after"))

    version_id: Mapped[int] = mapped_column(
        ForeignKey("failure_analyses.version_id", ondelete="CASCADE"), primary_key=True
    )
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    class_name: Mapped[str | None]
    transformation: Mapped[str]
    field: Mapped[str]
    before: Mapped[float]
    after: Mapped[float]
    sentence: Mapped[str]


class LabelDoubt(Base):
    """A label that out-of-sample answers contradict; the smaller the score, the more doubtful."""

    __tablename__ = "label_doubts"
    __table_args__ = (
        one_of("subject", ("validation", "test", "batch")),
        share("score"),
        share("confidence"),
        CheckConstraint("label <> suggested", name="another_label"),
    )

    version_id: Mapped[int] = mapped_column(
        ForeignKey("failure_analyses.version_id", ondelete="CASCADE"), primary_key=True
    )
    sha256: Mapped[str] = mapped_column(ForeignKey("images.sha256"), primary_key=True)
    subject: Mapped[str]
    answered_by: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    label: Mapped[str]
    suggested: Mapped[str]
    score: Mapped[float] = mapped_column(REAL)
    confidence: Mapped[float] = mapped_column(REAL)


# --- decisions ------------------------------------------------------------------------------


class Verdict(Base):
    """What the gate said of one candidate against one champion on one benchmark version."""

    __tablename__ = "verdicts"
    __table_args__ = (
        ForeignKeyConstraint(
            ["version_id", "checkpoint_digest"], ["versions.id", "versions.checkpoint_digest"]
        ),
        ForeignKeyConstraint(
            ["benchmark_version", "benchmark_digest"], ["benchmarks.version", "benchmarks.digest"]
        ),
        CheckConstraint("shared_drop BETWEEN -1 AND 1", name="shared_drop_is_share"),
        UniqueConstraint("id", "version_id"),
    )

    id: Mapped[int] = number()
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    version_id: Mapped[int] = mapped_column(BigInteger, index=True)
    checkpoint_digest: Mapped[str]
    champion_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    benchmark_version: Mapped[int]
    benchmark_digest: Mapped[str]
    passed: Mapped[bool]
    shared_drop: Mapped[float | None]
    limits: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = now()


class VerdictCheck(Base):
    """One check of a verdict: its numbers and the sentence that explains it."""

    __tablename__ = "checks"
    __table_args__ = (one_of("verdict", ("passed", "failed", "undecidable", "overridden")),)

    verdict_id: Mapped[int] = mapped_column(ForeignKey("verdicts.id"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    verdict: Mapped[str]
    numbers: Mapped[dict[str, Any]]
    sentence: Mapped[str]


class Deployment(Base):
    """The append-only log of what serves. Its newest row is the champion."""

    __tablename__ = "deployments"
    __table_args__ = (
        one_of("kind", ("promotion", "approval", "adoption", "rollback")),
        one_of("purpose", ("nightly", "control", "bakeoff")),
        # Only nightly versions deploy by themselves.
        CheckConstraint(
            "(kind <> 'promotion' OR purpose NOT IN ('control', 'bakeoff')) "
            "AND (kind <> 'adoption' OR purpose <> 'nightly')",
            name="kind_fits_purpose",
        ),
        ForeignKeyConstraint(["version_id", "purpose"], ["versions.id", "versions.purpose"]),
        ForeignKeyConstraint(["verdict_id", "version_id"], ["verdicts.id", "verdicts.version_id"]),
        CheckConstraint("previous_id < id", name="previous_older"),
        # Compare and append: two rows can never follow the same one.
        Index("one_successor", "previous_id", unique=True, postgresql_nulls_not_distinct=True),
    )

    id: Mapped[int] = number()
    version_id: Mapped[int] = mapped_column(BigInteger)
    purpose: Mapped[str]
    previous_id: Mapped[int | None] = mapped_column(ForeignKey("deployments.id"))
    verdict_id: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str]
    deployed_by: Mapped[str]
    why: Mapped[str]
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    deployed_at: Mapped[datetime] = now()


class Rejection(Base):
    """A person's word that a version must not serve; only an approval after it overrules it."""

    __tablename__ = "rejections"
    __table_args__ = (
        CheckConstraint("btrim(rejected_by) <> '' AND btrim(why) <> ''", name="says_who_and_why"),
    )

    id: Mapped[int] = number()
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), index=True)
    rejected_by: Mapped[str]
    why: Mapped[str]
    rejected_at: Mapped[datetime] = now()
