"""Throw-away versions: what was swept of them, and that none is ever the latest.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

CANDIDATE = ["purpose", "snapshot_digest", "plan_digest", "parent_id"]


def upgrade() -> None:
    op.add_column("versions", sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(
        op.f("ck_versions_swept_is_throwaway"),
        "versions",
        "swept_at IS NULL OR (purpose = 'throwaway' AND state = 'trained')",
    )
    # What was swept has no weights to go on with: the same work begins a version of its own.
    _one_candidate("state <> 'failed' AND swept_at IS NULL")
    # Whoever asks for the newest version asks here: of nights alone, whatever else was trained.
    op.execute(
        """
        CREATE VIEW latest AS
        SELECT id AS version_id, checkpoint_digest, trained_at FROM versions
        WHERE purpose = 'nightly' AND state = 'trained' ORDER BY id DESC LIMIT 1
        """
    )


def downgrade() -> None:
    op.execute("DROP VIEW latest")
    _one_candidate("state <> 'failed'")
    op.drop_constraint(op.f("ck_versions_swept_is_throwaway"), "versions")
    op.drop_column("versions", "swept_at")


def _one_candidate(of: str) -> None:
    op.drop_index("one_candidate", "versions")
    op.create_index(
        "one_candidate",
        "versions",
        CANDIDATE,
        unique=True,
        postgresql_where=sa.text(of),
        postgresql_nulls_not_distinct=True,
    )
