"""A role for the service: it appends to the logs and cannot rewrite them, nor make itself a key.

Revision ID: 0019
Revises: 0018
"""

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

# The service needs no right to make tables: this one alone, and it is the owner's.
MONTH = """
    CREATE FUNCTION add_transactions_month(first date) RETURNS void LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = public, pg_temp AS $$
    DECLARE
        name text := to_char(first, '"transactions_"YYYY_MM');
        begins timestamp := date_trunc('month', first::timestamp);
    BEGIN
        -- Made and then attached: made as a partition it would keep out everybody who reads.
        EXECUTE format(
            'CREATE TABLE %I (LIKE transactions INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
        EXECUTE format(
            'ALTER TABLE transactions ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name,
            begins AT TIME ZONE 'UTC', (begins + interval '1 month') AT TIME ZONE 'UTC');
    END
    $$
"""
APPENDED = (
    "benchmarks", "checks", "class_acts", "exports", "image_acts", "label_changes", "library_acts",
    "log_gaps", "looks", "pool_acts", "pool_answers", "rejections", "reviews", "served_requests",
    "set_images", "snapshot_choices", "snapshot_classes", "snapshots", "transactions",
    "validations", "verdicts",
)  # fmt: skip
READ = ("alembic_version", "api_keys", "log_retentions")
# Where roles are made by somebody else (a managed Postgres), the administrator grants the same.
ROLE = f"""
    DO $$
    DECLARE
        name text;
    BEGIN
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'regraft_server') THEN
            CREATE ROLE regraft_server NOLOGIN;
        END IF;
        GRANT USAGE ON SCHEMA history TO regraft_server;
        GRANT SELECT ON ALL TABLES IN SCHEMA public, history TO regraft_server;
        GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO regraft_server;
        REVOKE UPDATE, DELETE ON {", ".join(APPENDED)} FROM regraft_server;
        -- Who locks this log must be allowed to update it, which its trigger refuses all the same.
        REVOKE DELETE ON deployments FROM regraft_server;
        REVOKE INSERT, UPDATE, DELETE ON {", ".join(READ)} FROM regraft_server;
        FOR name IN SELECT inhrelid::regclass FROM pg_inherits
                    WHERE inhparent = 'transactions'::regclass LOOP
            EXECUTE format('REVOKE ALL ON %s FROM regraft_server', name);
        END LOOP;
        GRANT EXECUTE ON FUNCTION add_transactions_month TO regraft_server;
    EXCEPTION WHEN insufficient_privilege THEN
        RAISE NOTICE 'role regraft_server was not made: see docs/serving.md';
    END $$
"""  # noqa: S608  (constants)


def upgrade() -> None:
    op.execute(MONTH)
    op.execute("REVOKE EXECUTE ON FUNCTION add_transactions_month FROM PUBLIC")
    op.execute(ROLE)


def downgrade() -> None:
    op.execute(
        """
        DO $$
        BEGIN
            IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'regraft_server') THEN
                REVOKE ALL ON ALL TABLES IN SCHEMA public, history FROM regraft_server;
                REVOKE USAGE ON SCHEMA history FROM regraft_server;
            END IF;
        END $$
        """
    )
    op.execute("DROP FUNCTION add_transactions_month")
