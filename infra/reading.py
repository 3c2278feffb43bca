"""Questions that are answered at once: one query through the driver, and nothing else loaded.

SQLAlchemy, Alembic and the settings take longer to load than most questions take to answer. So a
question goes straight to the Postgres that is configured, or that runs from the state folder.
Whatever is out of the ordinary (it does not run, refuses, or has other tables) goes the long way
through `infra.database`, which starts, migrates and knows every mend.
"""

import json
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2

from infra.places import default_state_dir

# Every setting there is. A question checks the values of those that it uses, and no others; a
# name that is not here goes the long way, where it is refused.
NAMES = frozenset(
    f"REGRAFT_{name}"
    for name in (
        "STATE_DIR", "DATABASE_URL", "S3_ENDPOINT", "S3_BUCKET", "S3_ACCESS_KEY", "S3_SECRET_KEY",
        "S3_REGION", "CACHE_DIR", "CACHE_GIGABYTES", "DEVICE", "THREADS", "PROCESSES", "WORKERS",
        "COMMIT", "REVIEW_SHARE", "DOUBTFUL_SHARE", "DOUBTFUL_BELOW", "IMAGE_SHARE", "IMAGE_DAYS",
        "TRANSACTION_MONTHS", "SPOOL_DIR", "SPOOL_GIGABYTES",
    )
)  # fmt: skip
_MIGRATIONS = Path(__file__).resolve().parent.parent / "alembic" / "versions"


def rows(query: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The rows of one query, which has `%(name)s` for its values."""
    connection = _straight()
    if connection is not None:
        with closing(connection), connection.cursor() as cursor:
            cursor.execute(query, values)
            return list(cursor.fetchall())
    from infra import database

    with database.connect().transaction() as session:
        found = session.connection().exec_driver_sql(query, dict(values))
        return [tuple(row) for row in found]


def _straight() -> Any | None:
    """A connection to tables of this program's revision, or None for the long way."""
    given = {name for name in os.environ if name.upper().startswith("REGRAFT_")}
    if not given <= NAMES:
        return None
    try:
        connection = psycopg2.connect(
            os.environ.get("REGRAFT_DATABASE_URL", "").replace("+psycopg2", "", 1) or _embedded(),
            connect_timeout=10, application_name="regraft", options="-c timezone=utc",
        )  # fmt: skip
    except (psycopg2.Error, OSError, ValueError, LookupError):
        return None
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT version_num FROM alembic_version")
            if cursor.fetchall() == [(newest_migration(),)]:
                return connection
    except psycopg2.Error:
        pass
    connection.close()
    return None


def _embedded() -> str:
    """The address of the Postgres of the state folder, should it run."""
    folder = Path(os.environ.get("REGRAFT_STATE_DIR") or default_state_dir())
    password = json.loads((folder / "credentials.json").read_text())["postgres_password"]
    port = json.loads((folder / "ports.json").read_text())["postgres"]
    return f"postgresql://regraft:{password}@127.0.0.1:{port}/regraft"


def newest_migration() -> str | None:
    """The revision that this program wants: migrations are numbered, one after the other."""
    return max((path.name[:4] for path in _MIGRATIONS.glob("[0-9]*_*.py")), default=None)
