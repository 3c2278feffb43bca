"""Every table that regraft remembers things in, and the constraints that keep its promises.

Rules that one row can break are CHECKs and keys here; rules between rows (no image both trained
on and in the benchmark, no deployment without a passed verdict) are triggers in the migration.
"""

from __future__ import annotations

import uuid
from datetime import date, datetime
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
    PrimaryKeyConstraint,
    SmallInteger,
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
SCOPES = ("predict", "review", "admin")
REVIEWED = ("transaction", "identification", "evaluation")
REVIEW_VERDICTS = ("right", "wrong", "bad image", "cannot tell")
STREAMS = ("random", "doubt", "chosen")
IMAGE_ACTS = ("remove", "restore", "relabel", "keep", "drop")
# A program may propose a label; only what begins otherwise can be a person who gives one.
BY_A_PERSON = r"{0} ~ '\S' AND {0} !~* '^\s*(model|version|regraft)\s*:'"


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
    """One class that somebody has labelled an image with, or a name that one had.

    became_id: the class that goes by this name no longer, in one step (triggers see to it); NULL
    for a class. made_by: the person who made it; NULL where a batch brought it.
    """

    __tablename__ = "classes"
    __table_args__ = (
        CheckConstraint("became_id <> id", name="became_another"),
        CheckConstraint(BY_A_PERSON.format("made_by"), name="made_by_person"),
    )

    id: Mapped[int] = number()
    name: Mapped[str] = mapped_column(unique=True)
    batch_id: Mapped[int | None] = mapped_column(ForeignKey("batches.id"))
    became_id: Mapped[int | None] = mapped_column(ForeignKey("classes.id"))
    made_by: Mapped[str | None]
    created_at: Mapped[datetime] = now()


class ClassAct(Base):
    """What a person did with a class; written once. images: how many it moved, or had."""

    __tablename__ = "class_acts"
    __table_args__ = (
        one_of("act", ("make", "rename", "merge", "split")),
        CheckConstraint("(act = 'make') = (to_name IS NULL)", name="goes_somewhere"),
        CheckConstraint(BY_A_PERSON.format("done_by"), name="done_by_person"),
    )

    id: Mapped[int] = number()
    act: Mapped[str]
    name: Mapped[str] = mapped_column(index=True)
    to_name: Mapped[str | None]
    images: Mapped[int]
    done_by: Mapped[str]
    why: Mapped[str | None]
    done_at: Mapped[datetime] = now()


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
        CheckConstraint(BY_A_PERSON.format("labelled_by"), name="labelled_by_person"),
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
            "ix_images_made",
            "class_id",
            postgresql_where=text("withdrawn_at IS NULL AND split <> 'held' AND origin <> 'real'"),
        ),
        Index(
            "ix_images_line",
            "class_id",
            "sub_class",
            "sequence",
            postgresql_where=text("sequence IS NOT NULL"),
        ),
        Index("ix_images_deleted", "sha256", postgresql_where=text("withdrawn_why = 'deleted'")),
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
    __table_args__ = (
        Index(
            "ix_snapshot_classes_lacking", "snapshot_digest", postgresql_where=text("lacks > 0")
        ),
    )

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
    """One trained model, or one in training (the candidate is written down before it trains).

    swept_at: since when its checkpoint and embeddings are gone; only throw-away versions can be.
    """

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
        CheckConstraint(
            "swept_at IS NULL OR (purpose = 'throwaway' AND state = 'trained')",
            name="swept_is_throwaway",
        ),
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
            postgresql_where=text("state <> 'failed' AND swept_at IS NULL"),
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
    swept_at: Mapped[datetime | None]


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


class EvaluationGroup(Base):
    """How right an evaluation was on the images of one class, origin and sub-class.

    Of images of the library alone, as they were when it was made; the benchmark knows neither.
    """

    __tablename__ = "evaluation_groups"
    __table_args__ = (CheckConstraint("correct BETWEEN 0 AND images", name="correct_of_images"),)

    evaluation_id: Mapped[int] = mapped_column(
        ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True
    )
    class_name: Mapped[str] = mapped_column(primary_key=True)
    origin: Mapped[str] = mapped_column(primary_key=True)
    sub_class: Mapped[str] = mapped_column(primary_key=True)
    images: Mapped[int]
    correct: Mapped[int]


class EvaluationOrigin(Base):
    """The groups of an evaluation summed by origin: with 1,500 classes nobody waits for the sum."""

    __tablename__ = "evaluation_origins"
    __table_args__ = (CheckConstraint("correct BETWEEN 0 AND images", name="correct_of_images"),)

    evaluation_id: Mapped[int] = mapped_column(
        ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True
    )
    origin: Mapped[str] = mapped_column(primary_key=True)
    images: Mapped[int]
    correct: Mapped[int]


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


# --- pools and identifications --------------------------------------------------------------


class Pool(Base):
    """Unlabelled images under one prefix of our bucket."""

    __tablename__ = "pools"
    __table_args__ = (CheckConstraint("prefix LIKE '_%/'", name="prefix_is_folder"),)

    id: Mapped[int] = number()
    prefix: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = now()


class PoolImage(Base):
    """One distinct picture of any pool, and whether library or benchmark have it already.

    mark: how it is known there, exactly or nearly; mark_sha256: the image that it repeats. What is
    marked is never offered as new.
    """

    __tablename__ = "pool_images"
    __table_args__ = (
        one_of("mark", ("benchmark", "library", "near benchmark", "near library")),
        CheckConstraint("(mark IS NULL) = (mark_sha256 IS NULL)", name="mark_whole"),
        CheckConstraint("length(sha256) = 64", name="sha256_is_hex"),
    )

    sha256: Mapped[str] = mapped_column(primary_key=True)
    width: Mapped[int]
    height: Mapped[int]
    dhash: Mapped[int | None] = mapped_column(BigInteger)
    dhash_mirror: Mapped[int | None] = mapped_column(BigInteger)
    mark: Mapped[str | None]
    mark_sha256: Mapped[str | None]


class PoolObject(Base):
    """One object of a pool as it was read; a rewritten object is a new row.

    problem: why there is no picture in it; without a digest its bytes could not be had.
    """

    __tablename__ = "pool_objects"
    __table_args__ = (
        CheckConstraint("sha256 IS NOT NULL OR problem IS NOT NULL", name="read_or_problem"),
        # in the order in which S3 lists
        UniqueConstraint("pool_id", "key", "etag"),
        Index("ix_pool_objects_sha256", "sha256"),
        Index(
            "ix_pool_objects_unreadable",
            "pool_id",
            "key",
            postgresql_where=text("problem IS NOT NULL"),
        ),
    )

    id: Mapped[int] = number()
    pool_id: Mapped[int] = mapped_column(ForeignKey("pools.id"))
    key: Mapped[str] = mapped_column(Text(collation="C"))
    etag: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None]
    problem: Mapped[str | None]
    read_at: Mapped[datetime] = now()
    gone_at: Mapped[datetime | None]


class Identification(Base):
    """One version answering one pool, by one process or several.

    It lists the pool page by page (listed_to: the last key so far, listed_at: all of it) and cuts
    what has no answer yet into shards. listed: objects so far; known: those that the version had
    answered before. targets: classes whose confidence is kept even outside the top labels.
    threshold: the confidence from which an answer is shown, for a wished precision.
    """

    __tablename__ = "identifications"
    __table_args__ = (
        one_of("state", ("running", "completed")),
        CheckConstraint("(state = 'completed') = (ended_at IS NOT NULL)", name="ended_when_closed"),
        CheckConstraint("state = 'running' OR listed_at IS NOT NULL", name="completed_is_listed"),
        CheckConstraint("known BETWEEN 0 AND listed", name="known_of_listed"),
        share("wished"),
        finite("threshold"),
        ForeignKeyConstraint(
            ["version_id", "checkpoint_digest"], ["versions.id", "versions.checkpoint_digest"]
        ),
        UniqueConstraint("id", "version_id"),
        # Whoever asks for the same joins it.
        Index(
            "one_identification",
            "pool_id",
            "version_id",
            unique=True,
            postgresql_where=text("state = 'running'"),
        ),
    )

    id: Mapped[int] = number()
    pool_id: Mapped[int] = mapped_column(ForeignKey("pools.id"))
    version_id: Mapped[int] = mapped_column(BigInteger)
    checkpoint_digest: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="running")
    flow_run_id: Mapped[str | None] = mapped_column(index=True)
    targets: Mapped[list[str]]
    wished: Mapped[float | None]
    threshold: Mapped[float | None]
    listed: Mapped[int] = mapped_column(server_default="0")
    known: Mapped[int] = mapped_column(server_default="0")
    listed_to: Mapped[str | None]
    listed_at: Mapped[datetime | None]
    started_at: Mapped[datetime] = now()
    ended_at: Mapped[datetime | None]


class Shard(Base):
    """Some objects of an identification, which one process at a time answers.

    A claim holds until lease_until, which its process moves on; then another may take it. keys and
    etags are what is to be read; they are dropped when it is done. Then each object is one of
    answered, repeated (its bytes have an answer of another object), unreadable, or missing (gone or
    changed since it was listed).
    """

    __tablename__ = "shards"
    __table_args__ = (
        one_of("state", ("open", "claimed", "done")),
        CheckConstraint("(state = 'claimed') = (lease_until IS NOT NULL)", name="claim_has_lease"),
        CheckConstraint("state = 'open' OR claimed_by IS NOT NULL", name="claim_has_name"),
        CheckConstraint("(state = 'done') = (done_at IS NOT NULL)", name="done_has_end"),
        CheckConstraint(
            "CASE state WHEN 'done' "
            "THEN answered + repeated + unreadable + missing = objects AND keys IS NULL "
            "ELSE cardinality(keys) = objects AND cardinality(etags) = objects "
            "AND cardinality(sizes) = objects END",
            name="counts_fit",
        ),
        UniqueConstraint("identification_id", "ordinal"),
        Index(
            "ix_shards_waiting",
            "identification_id",
            "ordinal",
            postgresql_where=text("state <> 'done'"),
        ),
    )

    id: Mapped[int] = number()
    identification_id: Mapped[int] = mapped_column(
        ForeignKey("identifications.id", ondelete="CASCADE")
    )
    ordinal: Mapped[int]
    state: Mapped[str] = mapped_column(server_default="open")
    objects: Mapped[int]
    keys: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    etags: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    sizes: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    claimed_by: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    engine: Mapped[str | None]
    answered: Mapped[int] = mapped_column(server_default="0")
    repeated: Mapped[int] = mapped_column(server_default="0")
    unreadable: Mapped[int] = mapped_column(server_default="0")
    missing: Mapped[int] = mapped_column(server_default="0")
    done_at: Mapped[datetime | None]


class PoolAnswer(Base):
    """What one version said of one picture, once: best labels first, with their confidences.

    target_confidences: those of the identification's targets, in their order. entropy: of all
    confidences, in nats. shown: whether the threshold lets it be shown; NULL without a threshold.
    """

    __tablename__ = "pool_answers"
    __table_args__ = (
        share("confidence"),
        shares("top_confidences"),
        shares("target_confidences"),
        finite("entropy"),
        CheckConstraint(
            "predicted = top_labels[1] AND confidence = top_confidences[1] "
            "AND cardinality(top_labels) = cardinality(top_confidences)",
            name="best_first",
        ),
        ForeignKeyConstraint(
            ["identification_id", "version_id"],
            ["identifications.id", "identifications.version_id"],
        ),
        Index("ix_pool_answers_identification", "identification_id"),
        # the digest gives equals an order
        Index(
            "ix_pool_answers_class", "version_id", "predicted", text("confidence DESC"), "sha256"
        ),
        Index("ix_pool_answers_confidence", "version_id", text("confidence DESC"), "sha256"),
    )

    version_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    sha256: Mapped[str] = mapped_column(ForeignKey("pool_images.sha256"), primary_key=True)
    identification_id: Mapped[int] = mapped_column(BigInteger)
    predicted: Mapped[str]
    confidence: Mapped[float] = mapped_column(REAL)
    top_labels: Mapped[list[str]]
    top_confidences: Mapped[list[float]]
    target_confidences: Mapped[list[float]]
    entropy: Mapped[float] = mapped_column(REAL)
    shown: Mapped[bool | None]


class TargetScore(Base):
    """A target's confidence that is worth ranking: all from a hundredth on, in the top or not."""

    __tablename__ = "target_scores"
    __table_args__ = (
        share("confidence"),
        ForeignKeyConstraint(
            ["version_id", "sha256"],
            ["pool_answers.version_id", "pool_answers.sha256"],
            ondelete="CASCADE",
        ),
        Index(
            "ix_target_scores_best", "version_id", "class_name", text("confidence DESC"), "sha256"
        ),
    )

    version_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    sha256: Mapped[str] = mapped_column(primary_key=True)
    class_name: Mapped[str] = mapped_column(primary_key=True)
    confidence: Mapped[float] = mapped_column(REAL)


class Embedding(Base):
    """What the head of one version saw of one picture: its features as float16, little-endian."""

    __tablename__ = "embeddings"
    __table_args__ = (
        CheckConstraint("length(features) > 0 AND mod(length(features), 2) = 0", name="float16"),
        ForeignKeyConstraint(
            ["version_id", "sha256"],
            ["pool_answers.version_id", "pool_answers.sha256"],
            ondelete="CASCADE",
        ),
    )

    version_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    sha256: Mapped[str] = mapped_column(primary_key=True)
    features: Mapped[bytes]


class PoolAct(Base):
    """What a person did with a picture of a pool; written once, the newest one speaks.

    label: it is class_name, and its bytes went to to_key. dismiss: the answer is wrong, and nothing
    more is said. unknown: nobody could name it. remove: the object went from key to to_key;
    restore: it went back. version, predicted and confidence: what had offered it; offered: as which
    class, which need not be the one predicted.
    """

    __tablename__ = "pool_acts"
    __table_args__ = (
        one_of("act", ("label", "dismiss", "unknown", "remove", "restore")),
        CheckConstraint("(act = 'label') = (class_name IS NOT NULL)", name="label_has_class"),
        CheckConstraint("act <> 'label' OR to_key IS NOT NULL", name="label_has_object"),
        CheckConstraint(
            "(version_id IS NULL) = (predicted IS NULL) "
            "AND (version_id IS NULL) = (confidence IS NULL)",
            name="offer_whole",
        ),
        CheckConstraint(BY_A_PERSON.format("done_by"), name="done_by_person"),
        share("confidence"),
        Index("ix_pool_acts_sha256", "sha256", text("id DESC")),
        Index("ix_pool_acts_unknown", "sha256", postgresql_where=text("act = 'unknown'")),
    )

    id: Mapped[int] = number()
    sha256: Mapped[str] = mapped_column(ForeignKey("pool_images.sha256"))
    act: Mapped[str]
    class_name: Mapped[str | None]
    key: Mapped[str | None]
    to_key: Mapped[str | None]
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    predicted: Mapped[str | None]
    confidence: Mapped[float | None] = mapped_column(REAL)
    offered: Mapped[str | None]
    done_by: Mapped[str]
    why: Mapped[str | None]
    done_at: Mapped[datetime] = now()


class PoolMove(Base):
    """An act whose objects in S3 are still to follow; written with the act, deleted afterwards."""

    __tablename__ = "pool_moves"

    act_id: Mapped[int] = mapped_column(
        ForeignKey("pool_acts.id"), primary_key=True, autoincrement=False
    )


# --- serving --------------------------------------------------------------------------------


class Export(Base):
    """The file that serves a version, in S3 under its digest; the newest of a version counts.

    It was written from this checkpoint, and answered as the checkpoint does before it was kept.
    """

    __tablename__ = "exports"
    __table_args__ = (
        ForeignKeyConstraint(
            ["version_id", "checkpoint_digest"], ["versions.id", "versions.checkpoint_digest"]
        ),
        CheckConstraint("length(digest) = 64", name="digest_is_hex"),
        CheckConstraint("bytes > 0", name="not_empty"),
        Index("ix_exports_version", "version_id", text("id DESC")),
    )

    id: Mapped[int] = number()
    version_id: Mapped[int] = mapped_column(BigInteger)
    checkpoint_digest: Mapped[str]
    digest: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    made_at: Mapped[datetime] = now()


class ApiKey(Base):
    """A key that a client shows; its digest alone is kept. It counts until it is revoked."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("length(digest) = 64", name="digest_is_hex"),
        CheckConstraint(
            "cardinality(scopes) > 0 AND scopes <@ ARRAY['predict', 'review', 'admin']",
            name="scopes_known",
        ),
        CheckConstraint("(revoked_at IS NULL) = (revoked_by IS NULL)", name="revoked_by_somebody"),
        CheckConstraint(r"name ~ '\S'", name="named"),
    )

    id: Mapped[int] = number()
    name: Mapped[str] = mapped_column(unique=True)
    digest: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    made_by: Mapped[str]
    made_at: Mapped[datetime] = now()
    revoked_at: Mapped[datetime | None]
    revoked_by: Mapped[str | None]


class Transaction(Base):
    """One prediction served, for one picture; one partition for each month.

    id: made where it was answered (`records.transactions.new_id`); at: when that was. request_id:
    the client's own name of the request, if it gave one; ordinal: which picture of the request this
    is. client: the name of its key, or `local`. shown: whether the threshold lets it be shown; NULL
    without one. image_key: where its bytes are kept. draw: the chance that it had to come into the
    random stream of reviews, where it did; NULL elsewhere.
    """

    __tablename__ = "transactions"
    __table_args__ = (
        PrimaryKeyConstraint("at", "id"),
        share("confidence"),
        shares("top_confidences"),
        finite("latency_seconds"),
        CheckConstraint(
            "predicted = top_labels[1] AND confidence = top_confidences[1] "
            "AND cardinality(top_labels) = cardinality(top_confidences)",
            name="best_first",
        ),
        CheckConstraint("length(sha256) = 64", name="sha256_is_hex"),
        CheckConstraint("draw > 0 AND draw <= 1", name="draw_is_chance"),
        Index("ix_transactions_id", "id"),
        Index("ix_transactions_version", "version_id", text("at DESC")),
        Index("ix_transactions_class", "predicted", text("at DESC")),
        Index(
            "ix_transactions_doubt", "confidence", postgresql_where=text("image_key IS NOT NULL")
        ),
        Index("ix_transactions_drawn", "at", postgresql_where=text("draw IS NOT NULL")),
        # the order of the random stream: fixed, and knowing nothing of what was answered or when
        Index(
            "ix_transactions_random",
            text("sha256(uuid_send(id))"),
            postgresql_where=text("draw IS NOT NULL AND image_key IS NOT NULL"),
        ),
        {"postgresql_partition_by": "RANGE (at)"},
    )

    id: Mapped[uuid.UUID]
    at: Mapped[datetime]
    request_id: Mapped[str | None]
    ordinal: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    client: Mapped[str]
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    sha256: Mapped[str]
    width: Mapped[int]
    height: Mapped[int]
    predicted: Mapped[str]
    confidence: Mapped[float] = mapped_column(REAL)
    top_labels: Mapped[list[str]]
    top_confidences: Mapped[list[float]]
    shown: Mapped[bool | None]
    latency_seconds: Mapped[float] = mapped_column(REAL)
    image_key: Mapped[str | None]
    draw: Mapped[float | None] = mapped_column(REAL)


class ServedRequest(Base):
    """A request that its client named, so that the same one is answered once.

    Its transactions are those of this time and this name. body_digest tells a repeated request
    from another one under the same name.
    """

    __tablename__ = "served_requests"
    __table_args__ = (Index("ix_served_requests_at", "at"),)

    client: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    body_digest: Mapped[str]


class UsageDay(Base):
    """What one client asked one version on one day (UTC), counted as transactions are written.

    It outlives them: retention drops transactions, never their counts.
    """

    __tablename__ = "usage_days"
    __table_args__ = (
        CheckConstraint("shown BETWEEN 0 AND transactions", name="shown_of_transactions"),
        finite("confidence_sum"),
        finite("latency_sum"),
        finite("latency_max"),
    )

    day: Mapped[date] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    client: Mapped[str] = mapped_column(primary_key=True)
    transactions: Mapped[int] = mapped_column(BigInteger)
    shown: Mapped[int] = mapped_column(BigInteger)
    confidence_sum: Mapped[float]
    latency_sum: Mapped[float]
    latency_max: Mapped[float]


class PredictedDay(Base):
    """How often one version answered a class on one day (UTC) in one tenth of confidence.

    band: 0 for a confidence under 0.1 up to 9 for 0.9 and above.
    """

    __tablename__ = "predicted_days"
    __table_args__ = (
        CheckConstraint("band BETWEEN 0 AND 9", name="band_is_tenth"),
        finite("confidence_sum"),
        Index("ix_predicted_days_class", "predicted", "day"),
    )

    day: Mapped[date] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    predicted: Mapped[str] = mapped_column(primary_key=True)
    band: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    transactions: Mapped[int] = mapped_column(BigInteger)
    confidence_sum: Mapped[float]


class LogGap(Base):
    """Transactions that could not be kept, or not for the random stream: how many, when and why."""

    __tablename__ = "log_gaps"
    __table_args__ = (CheckConstraint("dropped > 0", name="dropped_some"),)

    id: Mapped[int] = number()
    began_at: Mapped[datetime]
    ended_at: Mapped[datetime]
    dropped: Mapped[int] = mapped_column(BigInteger)
    why: Mapped[str]


class LogRetention(Base):
    """That transactions of before a day (UTC) were dropped, and pictures of before a time."""

    __tablename__ = "log_retentions"

    id: Mapped[int] = number()
    transactions_before: Mapped[date]
    images_before: Mapped[datetime]
    done_by: Mapped[str]
    done_at: Mapped[datetime] = now()


# --- reviews --------------------------------------------------------------------------------


class Review(Base):
    """A person's verdict on one answer; written once, and of one person the newest speaks.

    It names the answer by subject and carries what was answered, so that it outlives transactions
    that retention drops, and evaluations that are made anew (evaluation_id is then of none). label:
    what the picture is, where it is right or wrong and somebody knows. blind: the person saw the
    picture without the answer. stream: `random` has the chance with which the answer came in, and
    alone estimates accuracy in use; `doubt` came from a queue; `chosen` by hand.
    """

    __tablename__ = "reviews"
    __table_args__ = (
        one_of("subject", REVIEWED),
        one_of("verdict", REVIEW_VERDICTS),
        one_of("stream", STREAMS),
        CheckConstraint(
            "(subject = 'transaction') = (transaction_id IS NOT NULL) "
            "AND (subject = 'transaction') = (transaction_at IS NOT NULL) "
            "AND (subject = 'evaluation') = (evaluation_id IS NOT NULL)",
            name="subject_named",
        ),
        CheckConstraint(
            "CASE verdict WHEN 'right' THEN label = predicted "
            "WHEN 'wrong' THEN label IS NULL OR label <> predicted ELSE label IS NULL END",
            name="label_fits_verdict",
        ),
        CheckConstraint(
            "(stream = 'random') = (probability IS NOT NULL) "
            "AND (probability IS NULL OR probability > 0 AND probability <= 1)",
            name="random_has_chance",
        ),
        CheckConstraint(BY_A_PERSON.format("reviewed_by"), name="reviewed_by_person"),
        share("confidence"),
        Index("ix_reviews_transaction", "transaction_id", text("id DESC")),
        Index("ix_reviews_picture", "sha256", "version_id", text("id DESC")),
        Index(
            "ix_reviews_person",
            "reviewed_by",
            "transaction_id",
            postgresql_where=text("transaction_id IS NOT NULL"),
        ),
        Index("ix_reviews_version", "version_id", "stream"),
        Index(
            "ix_reviews_pools", "sha256", postgresql_where=text("subject = 'identification'")
        ),
        # all that `random_verdicts` reads, in its order
        Index(
            "ix_reviews_random",
            "transaction_at",
            "transaction_id",
            "version_id",
            "reviewed_by",
            text("id DESC"),
            postgresql_include=[
                "sha256", "predicted", "confidence", "verdict", "probability", "blind",
            ],
            postgresql_where=text("stream = 'random'"),
        ),
    )

    id: Mapped[int] = number()
    subject: Mapped[str]
    transaction_id: Mapped[uuid.UUID | None]
    transaction_at: Mapped[datetime | None]
    evaluation_id: Mapped[int | None] = mapped_column(BigInteger)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    sha256: Mapped[str]
    predicted: Mapped[str]
    confidence: Mapped[float] = mapped_column(REAL)
    verdict: Mapped[str]
    label: Mapped[str | None]
    blind: Mapped[bool]
    stream: Mapped[str]
    probability: Mapped[float | None] = mapped_column(REAL)
    note: Mapped[str | None]
    reviewed_by: Mapped[str]
    reviewed_at: Mapped[datetime] = now()


class ImageAct(Base):
    """What a person did with an image of the library; written once.

    remove: it is withdrawn from every later snapshot; restore: it is back. relabel: from_class is
    to_class from then on. keep: it is a hard case, to be looked at in every version; drop: it is
    none any more. version_id: whose answer had shown it.
    """

    __tablename__ = "image_acts"
    __table_args__ = (
        one_of("act", IMAGE_ACTS),
        CheckConstraint(
            "(act = 'relabel') = (from_class IS NOT NULL) "
            "AND (act = 'relabel') = (to_class IS NOT NULL)",
            name="relabel_goes_somewhere",
        ),
        CheckConstraint(r"why ~ '\S'", name="says_why"),
        CheckConstraint(BY_A_PERSON.format("done_by"), name="done_by_person"),
        Index("ix_image_acts_sha256", "sha256", text("id DESC")),
    )

    id: Mapped[int] = number()
    act: Mapped[str]
    sha256: Mapped[str] = mapped_column(ForeignKey("images.sha256"))
    from_class: Mapped[str | None]
    to_class: Mapped[str | None]
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    why: Mapped[str]
    done_by: Mapped[str]
    done_at: Mapped[datetime] = now()
