"""Two versions are compared by today's names of what they answered, too, not of the labels alone.

Revision ID: 0020
Revises: 0019
"""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

# As in 0017, but for what is right and how alike labels are asked for.
PAIRED = """
    CREATE OR REPLACE VIEW history.paired AS
    WITH newest AS NOT MATERIALIZED (
        SELECT DISTINCT ON (version_id, subject, batch_id) version_id, subject, batch_id, id
        FROM evaluations ORDER BY version_id, subject, batch_id, benchmark_version DESC, id DESC)
    SELECT e.version_id, o.version_id AS other_id, e.subject, e.batch_id, p.sha256,
           coalesce(n.today, p.label) AS class_name, p.correct, p.other_correct,
           p.predicted, p.confidence, p.other_predicted, p.other_confidence
    FROM newest e
    JOIN newest o ON o.subject = e.subject AND o.batch_id IS NOT DISTINCT FROM e.batch_id
    CROSS JOIN LATERAL (
        SELECT sha256, a.label, b.label AS other_label, {mine} AS correct, {its} AS other_correct,
               a.predicted, a.confidence, b.predicted AS other_predicted,
               b.confidence AS other_confidence
        FROM answers a JOIN answers b USING (sha256)
        WHERE a.evaluation_id = e.id AND b.evaluation_id = o.id OFFSET 0) p
    LEFT JOIN class_names n ON n.name = p.label
    LEFT JOIN class_names m ON m.name = p.other_label
    WHERE {same_label}
      AND EXISTS (SELECT FROM history.known_classes k WHERE k.version_id = e.version_id
                  AND k.class_name = coalesce(n.today, p.label))
      AND EXISTS (SELECT FROM history.known_classes k WHERE k.version_id = o.version_id
                  AND k.class_name = coalesce(n.today, p.label))
"""
# A lioness that was answered `lion` is right, once both are lions. Pairs of names that mean one class
# are few, and hashed once: names that are looked up, or joined, for each answer took longer than all
# the rest.
RIGHT = """
    ({0}.correct OR ({0}.predicted, {0}.label) IN (
        SELECT x.name, y.name FROM class_names x JOIN class_names y USING (today)
        WHERE x.name <> y.name))
"""
ALIKE = "coalesce(n.today, p.label) = coalesce(m.today, p.other_label)"
# Postgres takes one in two hundred for equal, of such a CASE one in two: as good as all are, and for a
# handful it goes through all classes for each.
AS_A_RULE = f"CASE WHEN {ALIKE} THEN true END"


def upgrade() -> None:
    now = {"mine": RIGHT.format("a"), "its": RIGHT.format("b"), "same_label": AS_A_RULE}
    op.execute(PAIRED.format(**now))


def downgrade() -> None:
    op.execute(PAIRED.format(mine="a.correct", its="b.correct", same_label=ALIKE))
