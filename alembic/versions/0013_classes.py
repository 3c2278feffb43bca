"""What classes were called, who made, renamed, merged and split them; moves that acts still owe.

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# What one statement brought into the library lies in classes that are still classes.
REFUSE_FORMER_CLASS = """
    DECLARE
        former text;
    BEGIN
        SELECT c.name INTO former FROM changed JOIN classes c ON c.id = changed.class_id
        WHERE c.became_id IS NOT NULL LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'class % became another one: no image can be of it', former
                USING ERRCODE = 'check_violation';
        END IF;
        RETURN NULL;
    END
"""

# One step from any name to what it is called today: no chains, no circles, no images left behind.
REFUSE_CROOKED_POINTER = """
    DECLARE
        crooked text;
    BEGIN
        SELECT c.name INTO crooked FROM classes c JOIN classes b ON b.id = c.became_id
        WHERE b.became_id IS NOT NULL LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'class % points to a name that is no class any more', crooked
                USING ERRCODE = 'check_violation';
        END IF;
        SELECT c.name INTO crooked FROM changed c JOIN images i ON i.class_id = c.id
        WHERE c.became_id IS NOT NULL LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'class % still has images: it cannot become another', crooked
                USING ERRCODE = 'check_violation';
        END IF;
        RETURN NULL;
    END
"""

TRIGGERS = {
    ("images", "former_class_added"): "AFTER INSERT ON images REFERENCING NEW TABLE AS changed "
    "FOR EACH STATEMENT EXECUTE FUNCTION refuse_former_class()",
    ("images", "former_class_changed"): "AFTER UPDATE ON images REFERENCING NEW TABLE AS changed "
    "FOR EACH STATEMENT EXECUTE FUNCTION refuse_former_class()",
    ("classes", "pointer_added"): "AFTER INSERT ON classes REFERENCING NEW TABLE AS changed "
    "FOR EACH STATEMENT EXECUTE FUNCTION refuse_crooked_pointer()",
    ("classes", "pointer_changed"): "AFTER UPDATE ON classes REFERENCING NEW TABLE AS changed "
    "FOR EACH STATEMENT EXECUTE FUNCTION refuse_crooked_pointer()",
    ("class_acts", "written_once"): "BEFORE UPDATE OR DELETE ON class_acts FOR EACH ROW "
    "EXECUTE FUNCTION refuse_change()",
    ("class_acts", "not_truncated"): "BEFORE TRUNCATE ON class_acts FOR EACH STATEMENT "
    "EXECUTE FUNCTION refuse_change()",
}


def upgrade() -> None:
    op.add_column("classes", sa.Column("became_id", sa.BigInteger(), nullable=True))
    op.add_column("classes", sa.Column("made_by", sa.Text(), nullable=True))
    op.create_foreign_key(
        op.f("fk_classes_became_id"), "classes", "classes", ["became_id"], ["id"]
    )
    op.create_check_constraint(op.f("ck_classes_became_another"), "classes", "became_id <> id")
    op.create_check_constraint(
        op.f("ck_classes_made_by_person"),
        "classes",
        r"made_by ~ '\S' AND made_by !~* '^\s*(model|version|regraft)\s*:'",
    )
    op.create_table(
        "class_acts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("to_name", sa.Text(), nullable=True),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("done_by", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column(
            "done_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint(
            "act IN ('make', 'rename', 'merge', 'split')", name=op.f("ck_class_acts_act_known")
        ),
        sa.CheckConstraint(
            "(act = 'make') = (to_name IS NULL)", name=op.f("ck_class_acts_goes_somewhere")
        ),
        sa.CheckConstraint(
            r"done_by ~ '\S' AND done_by !~* '^\s*(model|version|regraft)\s*:'",
            name=op.f("ck_class_acts_done_by_person"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_class_acts")),
    )
    op.create_index(op.f("ix_class_acts_name"), "class_acts", ["name"])
    op.create_table(
        "pool_moves",
        sa.Column("act_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["act_id"], ["pool_acts.id"], name=op.f("fk_pool_moves_act_id")),
        sa.PrimaryKeyConstraint("act_id", name=op.f("pk_pool_moves")),
    )
    # For whoever joins what was stored under an old name.
    op.execute(
        """
        CREATE VIEW class_names AS
        SELECT c.name, coalesce(b.name, c.name) AS today
        FROM classes c LEFT JOIN classes b ON b.id = c.became_id
        """
    )
    for name, body in (
        ("refuse_former_class", REFUSE_FORMER_CLASS),
        ("refuse_crooked_pointer", REFUSE_CROOKED_POINTER),
    ):
        op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
    for (_, name), rule in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {name} {rule}")


def downgrade() -> None:
    for table, name in TRIGGERS:
        op.execute(f"DROP TRIGGER {name} ON {table}")
    op.execute("DROP FUNCTION refuse_former_class()")
    op.execute("DROP FUNCTION refuse_crooked_pointer()")
    op.execute("DROP VIEW class_names")
    op.drop_table("pool_moves")
    op.drop_table("class_acts")
    op.drop_constraint(op.f("ck_classes_made_by_person"), "classes")
    op.drop_constraint(op.f("ck_classes_became_another"), "classes")
    op.drop_constraint(op.f("fk_classes_became_id"), "classes")
    op.drop_column("classes", "made_by")
    op.drop_column("classes", "became_id")
