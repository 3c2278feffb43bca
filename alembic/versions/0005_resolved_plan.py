"""The plan as it was trained, with all filled in that parent, network and machine decided.

Versions trained before have none.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("versions", sa.Column("resolved", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("versions", "resolved")
