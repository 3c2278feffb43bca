"""What a night looks up without reading the whole library, and whether that changed at all.

`library_acts` has a row for each statement that changed what a snapshot could choose; their number
is the library's revision. `snapshot_choices` keeps which snapshot was chosen at which revision, so
that a night after which nothing changed need not choose again.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# A row of its own for each act, and no counter: two transactions never wait for each other, and
# what was counted before another one was committed is never taken for what came after it.
NOTE_ACT = """
    BEGIN
        IF EXISTS (SELECT 1 FROM changed) THEN
            INSERT INTO library_acts (act) VALUES (TG_OP || ' ' || TG_TABLE_NAME);
        END IF;
        RETURN NULL;
    END
"""

TRIGGERS = {
    ("images", "added_is_noted"): "AFTER INSERT ON images REFERENCING NEW TABLE AS changed",
    ("images", "changed_is_noted"): "AFTER UPDATE ON images REFERENCING NEW TABLE AS changed",
    ("classes", "changed_is_noted"): "AFTER UPDATE ON classes REFERENCING NEW TABLE AS changed",
}


def upgrade() -> None:
    op.create_table(
        "library_acts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column(
            "happened_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_library_acts")),
    )
    op.create_table(
        "snapshot_choices",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("cutoff", sa.Integer(), nullable=False),
        sa.Column("most", sa.Integer(), nullable=True),
        sa.Column("snapshot_digest", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["snapshot_digest"],
            ["snapshots.digest"],
            name=op.f("fk_snapshot_choices_snapshot_digest"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshot_choices")),
    )
    op.create_index(
        "one_choice",
        "snapshot_choices",
        ["revision", "policy", "cutoff", "most"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.execute(f"CREATE FUNCTION note_act() RETURNS trigger LANGUAGE plpgsql AS $${NOTE_ACT}$$")
    for (_, name), rule in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {name} {rule} FOR EACH STATEMENT EXECUTE FUNCTION note_act()")
    for table in ("library_acts", "snapshot_choices"):
        op.execute(
            f"CREATE TRIGGER written_once BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER not_truncated BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
    # What a snapshot may choose, in the order in which it chooses.
    op.create_index(
        "ix_images_choice",
        "images",
        ["class_id", sa.text("batch_id DESC"), "sha256"],
        postgresql_include=["split"],
        postgresql_where=sa.text("withdrawn_at IS NULL AND split <> 'held'"),
    )
    op.drop_index("ix_images_class", "images")
    op.create_index(
        "ix_images_line",
        "images",
        ["class_id", "sub_class", "sequence"],
        postgresql_where=sa.text("sequence IS NOT NULL"),
    )
    op.create_index(
        "ix_images_deleted",
        "images",
        ["sha256"],
        postgresql_where=sa.text("withdrawn_why = 'deleted'"),
    )
    op.create_index(
        "ix_objects_gone", "objects", ["sha256"], postgresql_where=sa.text("gone_at IS NOT NULL")
    )
    op.create_index(
        "ix_objects_quarantined",
        "objects",
        ["key"],
        postgresql_where=sa.text("state = 'quarantined'"),
    )


def downgrade() -> None:
    op.drop_index("ix_objects_quarantined", "objects")
    op.drop_index("ix_objects_gone", "objects")
    op.drop_index("ix_images_deleted", "images")
    op.drop_index("ix_images_line", "images")
    op.create_index("ix_images_class", "images", ["class_id", "batch_id", "sha256"])
    op.drop_index("ix_images_choice", "images")
    for table, name in TRIGGERS:
        op.execute(f"DROP TRIGGER {name} ON {table}")
    op.drop_table("snapshot_choices")
    op.drop_table("library_acts")
    op.execute("DROP FUNCTION note_act()")
