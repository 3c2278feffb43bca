"""An index of staged and synthetic images, which tells the classes that rest on them at once.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
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
