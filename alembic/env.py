"""Alembic's entry: which database is migrated, and which tables it shall have."""

import sys
from pathlib import Path

from alembic import context
from sqlalchemy import create_engine, pool, text

# The console script `alembic` does not look into the folder that it is started in.
_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from infra import embedded, settings  # noqa: E402
from records.tables import Base  # noqa: E402

# Any number will do as long as it stays the same.
_MIGRATION_LOCK = 7_347_238


def database_url() -> str:
    """Give the caller's database, that of `-x url=…`, or the one that regraft uses."""
    given = context.config.attributes.get("url") or context.get_x_argument(as_dictionary=True).get(
        "url"
    )
    return str(given) if given else embedded.addresses(settings.load()).database_url


def print_migrations() -> None:
    """Print the SQL for `--sql` instead of running it."""
    context.configure(dialect_name="postgresql", target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def run_migrations() -> None:
    """Migrate in one transaction, one process at a time."""
    engine = create_engine(
        database_url(),
        poolclass=pool.NullPool,
        connect_args={
            "connect_timeout": 10,
            "application_name": "regraft migration",
            "options": "-c timezone=utc",
        },
    )
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
        with context.begin_transaction():
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATION_LOCK}
            )
            context.run_migrations()


if context.is_offline_mode():
    print_migrations()
else:
    run_migrations()
