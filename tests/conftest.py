"""Real services for the tests: one embedded Postgres and S3 for all, a fresh database and
bucket for each test that asks for one.
"""

import os

# Before anything loads a numeric library: tests share few cores, and one thread repeats itself.
os.environ["OMP_NUM_THREADS"] = "1"

import logging
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import sql
from sqlalchemy.engine import make_url
from typer.testing import CliRunner

import infra.database
import infra.storage
from infra import embedded, settings
from infra.database import Database
from infra.storage import Storage

for _name in [name for name in os.environ if name.startswith(("REGRAFT_", "PREFECT_"))]:
    del os.environ[_name]  # a developer's own services must not be touched by tests


@pytest.fixture(scope="session", autouse=True)
def state_dir() -> Iterator[Path]:
    """Have a state folder for this run of the tests; whatever was started in it is stopped."""
    # Not pytest's tmp_path: Postgres runs as another user when we are root, and must get in.
    folder = Path(tempfile.mkdtemp(prefix="regraft-tests-", dir="/tmp"))
    folder.chmod(0o755)
    os.environ["REGRAFT_STATE_DIR"] = str(folder)
    try:
        yield folder
    finally:
        os.environ["REGRAFT_STATE_DIR"] = str(folder)
        embedded.down(settings.load())
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def services(state_dir: Path) -> embedded.Addresses:
    """Have the embedded Postgres and S3 running."""
    found = embedded.addresses(settings.load())
    # Every DROP DATABASE is a checkpoint, and nothing here must outlive a power loss.
    _administer(found, "ALTER SYSTEM SET fsync = off")
    _administer(found, "SELECT pg_reload_conf()")
    return found


@pytest.fixture(scope="session")
def prefect_server(services: embedded.Addresses) -> Iterator[str]:
    """Have a Prefect server running on the embedded Postgres, used by this process."""
    import prefects

    address = embedded.addresses(settings.load(), prefect=True).prefect_api_url
    assert address is not None
    with prefects.used(address):
        os.environ["PREFECT_API_URL"] = address
        try:
            yield address
        finally:
            del os.environ["PREFECT_API_URL"]


def _administer(services: embedded.Addresses, statement: str, *names: str) -> None:
    url = make_url(services.database_url).set(drivername="postgresql", database="postgres")
    connection = psycopg2.connect(url.render_as_string(hide_password=False))
    connection.autocommit = True
    try:
        cursor = connection.cursor()
        cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
    finally:
        connection.close()


def _database_url(services: embedded.Addresses, name: str) -> str:
    url = make_url(services.database_url).set(database=name)
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def template(services: embedded.Addresses) -> str:
    """Have one migrated database to copy; migrations are what makes the tables, here as there."""
    name = "template_regraft"
    _administer(services, "CREATE DATABASE {}", name)
    infra.database.migrate(_database_url(services, name))
    return name


@pytest.fixture
def empty_database_url(services: embedded.Addresses) -> Iterator[str]:
    """Have a database without any table, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    _administer(services, "CREATE DATABASE {}", name)
    try:
        yield _database_url(services, name)
    finally:
        _administer(services, "DROP DATABASE {} WITH (FORCE)", name)


@pytest.fixture
def database(
    services: embedded.Addresses, template: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    """Have a fresh migrated database, which infra.database.connect() gives too."""
    name = f"test_{uuid.uuid4().hex}"
    _administer(services, "CREATE DATABASE {} TEMPLATE {}", name, template)
    url = _database_url(services, name)
    monkeypatch.setenv("REGRAFT_DATABASE_URL", url)
    infra.database.connect.cache_clear()
    database = Database(url)
    try:
        yield database
    finally:
        database.engine.dispose()
        if infra.database.connect.cache_info().currsize:
            infra.database.connect().engine.dispose()
        infra.database.connect.cache_clear()
        _administer(services, "DROP DATABASE {} WITH (FORCE)", name)


def empty_and_delete(storage: Storage) -> None:
    """Give a bucket's space back, of which the embedded S3 has a limited number of pieces."""
    client = storage._client
    keys = [found.key for found in storage.list()]
    for start in range(0, len(keys), 1000):
        batch = keys[start : start + 1000]
        client.delete_objects(
            Bucket=storage.bucket, Delete={"Objects": [{"Key": key} for key in batch]}
        )
    client.delete_bucket(Bucket=storage.bucket)


@pytest.fixture
def storage(services: embedded.Addresses, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """Have a fresh bucket, which infra.storage.connect() gives too."""
    assert services.s3_access_key is not None
    assert services.s3_secret_key is not None
    bucket = f"test-{uuid.uuid4().hex}"
    monkeypatch.setenv("REGRAFT_S3_ENDPOINT", services.s3_endpoint)
    monkeypatch.setenv("REGRAFT_S3_BUCKET", bucket)
    monkeypatch.setenv("REGRAFT_S3_ACCESS_KEY", services.s3_access_key)
    monkeypatch.setenv("REGRAFT_S3_SECRET_KEY", services.s3_secret_key)
    infra.storage.connect.cache_clear()
    storage = Storage(services.s3_endpoint, bucket, services.s3_access_key, services.s3_secret_key)
    storage.ensure_bucket()
    try:
        yield storage
    finally:
        infra.storage.connect.cache_clear()
        empty_and_delete(storage)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Call a verb and have all that a terminal shows of it, standard error included."""
    from flows.cli import app

    # the handler that the first verb of this process added writes where that one's terminal was
    monkeypatch.setattr(logging.getLogger("regraft"), "handlers", [])

    def shown(*words: str) -> str:
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return shown
