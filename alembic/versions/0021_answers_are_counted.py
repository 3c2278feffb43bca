"""Answers to pools are counted, and known to be there for all, a minute after they came in.

Revision ID: 0021
Revises: 0020
"""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

# By default a fifth of the table must be new. With ten versions' answers those of the eleventh are
# less: Postgres would take them for none, and look up in the table what their index says already.
NEW = 10_000
COUNTED = {
    "autovacuum_vacuum_insert_threshold": NEW, "autovacuum_vacuum_insert_scale_factor": 0,
    "autovacuum_analyze_threshold": NEW, "autovacuum_analyze_scale_factor": 0,
}  # fmt: skip


def upgrade() -> None:
    settings = ", ".join(f"{name} = {value}" for name, value in COUNTED.items())
    op.execute(f"ALTER TABLE pool_answers SET ({settings})")


def downgrade() -> None:
    op.execute(f"ALTER TABLE pool_answers RESET ({', '.join(COUNTED)})")
