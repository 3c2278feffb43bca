"""An index of what people said of answers to pools, which the queue of them passes over.

Revision ID: 0018
Revises: 0017
"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_reviews_pools",
        "reviews",
        ["sha256"],
        postgresql_where=sa.text("subject = 'identification'"),
    )


def downgrade() -> None:
    op.drop_index("ix_reviews_pools", "reviews")
