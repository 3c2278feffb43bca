"""An index of staged and synthetic images, which tells the classes that rest on them at once.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_images_made",
        "images",
        ["class_id"],
        postgresql_where=sa.text("withdrawn_at IS NULL AND split <> 'held' AND origin <> 'real'"),
    )


def downgrade() -> None:
    op.drop_index("ix_images_made", "images")
