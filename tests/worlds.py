"""Whole small worlds for the tests that break things: a database, a bucket and a state folder.

Nights are played once and kept; each test works on a clone, in this process (`inside`) or in one
of its own that it may kill (`begin_night`).
"""

import functools
import importlib
import multiprocessing
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import nights
import pictures
import prefects
import psycopg2
from psycopg2 import sql
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

import infra.database
import infra.storage
from flows.nightly import nightly
from flows.run import Outcome
from infra.database import Database
from infra.embedded import Addresses
from infra.storage import Gone, Storage
from records import runs
from records.invariants import check_invariants
from tasks import benchmark
from tasks.benchmark import BENCHMARK
from tasks.loading import load_folder
from vision.gate import Limits
from vision.plan import Plan

FREE = "SET LOCAL session_replication_role = replica"  # as if there were no triggers and keys
OLD_CLASSES = ("circle", "cross", "square")
NEW_CLASS = "ring"
BROKEN = "labelled/circle/broken.png"
MANIFEST = "manifests/more.csv"
MANIFEST_TEXT = b"""key,label,sub_label,group,box,labelled_by
labelled/circle/100.png,circle,,walk,0.1 0.1 0.8 0.8,person:a test
labelled/circle/101.png,circle,,walk,0.1 0.1 0.8 0.8,person:a test
labelled/circle/nowhere.png,circle,,,,person:a test
"""

FIRST_PLAN = replace(nights.TINY_PLAN, epochs=10, batch_size=8)
SECOND_PLAN = replace(FIRST_PLAN, recipe="all", epochs=6)

# A few dozen pictures prove no accuracy. These limits keep every check that tells whether figures
# may be compared at all, and none that a lucky or unlucky picture would decide.
LIMITS = Limits(
    margin=1, significance=1e-6, veto_recall=1, new_class_floor=0, chance_times=1,
    calibration_bound=1, calibration_worse=1, gap_bound=1, latency_seconds=60, latency_times=1000,
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """Where one story plays."""

    services: Addresses
    url: str
    bucket: str
    folder: Path

    @contextmanager
    def database(self) -> Iterator[Database]:
        """A database object for the block; a copy could not be made beside open connections."""
        database = Database(self.url)
        try:
            yield database
        finally:
            database.engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session for the block, committed at its end."""
        with self.database() as database, database.transaction() as session:
            yield session

    @property
    def storage(self) -> Storage:
        """The bucket."""
        found = self.services
        return Storage(found.s3_endpoint, self.bucket, found.s3_access_key, found.s3_secret_key)

    def environment(self) -> dict[str, str]:
        """What a process needs to live in this world."""
        return {
            "REGRAFT_DATABASE_URL": self.url,
            "REGRAFT_S3_ENDPOINT": self.services.s3_endpoint,
            "REGRAFT_S3_BUCKET": self.bucket,
            "REGRAFT_S3_ACCESS_KEY": self.services.s3_access_key or "",
            "REGRAFT_S3_SECRET_KEY": self.services.s3_secret_key or "",
            # Of its own: a training left half done by one twin must not help the other.
            "REGRAFT_STATE_DIR": str(self.folder),
            "REGRAFT_DEVICE": "cpu",
        }

    def ask(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """The rows of one query."""
        with self.transaction() as session:
            return [tuple(row) for row in session.execute(text(query), values)]

    def act(self, *statements: str, **values: Any) -> None:
        """Run statements in one transaction, as somebody with every right might."""
        with self.transaction() as session:
            for statement in statements:
                session.execute(text(statement), values)

    def check(self) -> None:
        """Raise unless every invariant holds here."""
        with self.database() as database:
            check_invariants(database, self.storage)


def _administer(services: Addresses, statement: str, *names: str) -> None:
    url = make_url(services.database_url).set(drivername="postgresql", database="postgres")
    with closing(psycopg2.connect(url.render_as_string(hide_password=False))) as connection:
        connection.autocommit = True
        connection.cursor().execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def make(services: Addresses, template: str) -> World:
    """A world whose database is a copy of this one, with an empty bucket."""
    name = f"world-{uuid.uuid4().hex}"
    _administer(services, "CREATE DATABASE {} TEMPLATE {}", name, template)
    url = make_url(services.database_url).set(database=name)
    folder = Path(tempfile.mkdtemp(prefix="world-", dir=os.environ["REGRAFT_STATE_DIR"]))
    world = World(services, url.render_as_string(hide_password=False), name, folder)
    world.storage.ensure_bucket()
    return world


def as_server(world: World) -> World:
    """The same world for a login that has the rights of the service, and no more."""
    name = f"server-{uuid.uuid4().hex}"
    statement = "CREATE ROLE {} LOGIN PASSWORD 'test' IN ROLE regraft_server"
    _administer(world.services, statement, name)
    url = make_url(world.url).set(username=name, password="test")  # noqa: S106  (it ends with us)
    return replace(world, url=url.render_as_string(hide_password=False))


def clone(world: World) -> World:
    """A twin with the same rows and objects, and nothing of the state folder."""
    twin = make(world.services, world.bucket)  # the database has the bucket's name
    client = twin.storage._client  # a copy from one bucket to another never leaves the server

    def copy(key: str) -> None:
        client.copy_object(
            Bucket=twin.bucket, Key=key, CopySource={"Bucket": world.bucket, "Key": key}
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(copy, [one.key for one in world.storage.list()]))
    twin.act("UPDATE objects SET bucket = :bucket", bucket=twin.bucket)
    return twin


@contextmanager
def rows_of(world: World) -> Iterator[World]:
    """A copy of the rows alone over the same objects: add some if need be, change none."""
    name = f"rows-{uuid.uuid4().hex}"
    _administer(world.services, "CREATE DATABASE {} TEMPLATE {}", name, world.bucket)
    url = make_url(world.url).set(database=name).render_as_string(hide_password=False)
    folder = Path(tempfile.mkdtemp(prefix="world-", dir=os.environ["REGRAFT_STATE_DIR"]))
    try:
        yield replace(world, url=url, folder=folder)
    finally:
        shutil.rmtree(folder)
        _administer(world.services, "DROP DATABASE {} WITH (FORCE)", name)


def drop(world: World) -> None:
    """End a world."""
    storage = world.storage
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(storage.delete, [one.key for one in storage.list()]))
    with suppress(Gone):
        storage._client.delete_bucket(Bucket=world.bucket)
    _administer(world.services, "DROP DATABASE {} WITH (FORCE)", world.bucket)
    shutil.rmtree(world.folder)


@contextmanager
def twin(world: World) -> Iterator[World]:
    """A clone for the block, entered."""
    found = clone(world)
    try:
        with inside(found):
            yield found
    finally:
        drop(found)


@contextmanager
def inside(world: World) -> Iterator[World]:
    """Let `database.connect()` and all the rest mean this world."""
    before = dict(os.environ)
    os.environ.update(world.environment())
    _forget()
    try:
        yield world
    finally:
        _forget()
        for name in world.environment():
            os.environ.pop(name, None)
        os.environ.update(before)


def _forget() -> None:
    if infra.database.connect.cache_info().currsize:
        infra.database.connect().engine.dispose()
    infra.database.connect.cache_clear()
    infra.storage.connect.cache_clear()


# --- the story ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """The same world at three moments; read them, and change only clones.

    fresh: benchmark frozen, images uploaded, no night yet. waiting: version 1 serves; more images,
    a new class, a broken file and a grown benchmark wait. done: the second night ended.
    """

    fresh: World
    waiting: World
    done: World
    first: Outcome
    second: Outcome


@functools.cache
def story(services: Addresses, template: str) -> Story:
    """Play two undisturbed nights, once for all tests; wants a Prefect server."""
    _processes()
    forkserver.ensure_running()  # its imports run beside the nights
    fresh = make(services, template)
    with tempfile.TemporaryDirectory() as scratch, inside(fresh):
        nights.tiny_library(Path(scratch), OLD_CLASSES)
    waiting = clone(fresh)
    with tempfile.TemporaryDirectory() as scratch, inside(waiting):
        first = nightly(plan=FIRST_PLAN, limits=LIMITS)
        messy = nights.draw(Path(scratch) / "messy", (NEW_CLASS,), 6, seed=1000)
        load_folder(messy, BENCHMARK)
        benchmark.grow("a test", f"{NEW_CLASS} is new")
        nights.more_images(Path(scratch), (*OLD_CLASSES, NEW_CLASS), seed=100)
        waiting.storage.write(BROKEN, pictures.UNREADABLE[4][1]())
        waiting.storage.write(MANIFEST, MANIFEST_TEXT)
    done = clone(waiting)
    with inside(done):
        second = nightly(plan=SECOND_PLAN, limits=LIMITS)
    return Story(fresh, waiting, done, first, second)


# --- nights in a process of their own ---------------------------------------------------------


@functools.cache
def _processes() -> multiprocessing.context.ForkServerContext:
    """Processes forked from one that has done the imports, which take longer than a night."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flows.nightly", "great_expectations", "worlds"])
    return context


def begin_night(
    world: World, plan: Plan = SECOND_PLAN, limits: Limits = LIMITS
) -> ForkServerProcess:
    """Start a real night in a process of its own; join it, or kill it."""
    return begin(world, "flows.nightly", "nightly", plan=plan, limits=limits)


def begin(world: World, module: str, flow: str, **parameters: Any) -> ForkServerProcess:
    """Start a flow or a function of a test, by its names, in a process of its own."""
    environment = world.environment() | {"PREFECT_API_URL": os.environ["PREFECT_API_URL"]}
    process = _processes().Process(target=_play, args=(environment, module, flow, parameters))
    process.start()
    return process


def start(world: World, work: Callable[..., object], *values: Any) -> ForkServerProcess:
    """Do some work, a function of a module, in a process of its own that lives in this world."""
    process = _processes().Process(target=_live, args=(world.environment(), work, values))
    process.start()
    return process


def _live(
    environment: dict[str, str], work: Callable[..., object], values: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    work(*values)


def _play(environment: dict[str, str], module: str, flow: str, parameters: dict[str, Any]) -> None:
    os.environ.update(environment)
    with prefects.used(environment["PREFECT_API_URL"]):
        getattr(importlib.import_module(module), flow)(**parameters)


def undecided_second(world: World) -> int:
    """Take back what was decided of version 2, and begin a run; answers its number."""
    world.act(
        FREE,
        "DELETE FROM deployments WHERE version_id = 2",
        "DELETE FROM checks WHERE verdict_id = 2",
        "UPDATE runs SET verdict_id = NULL WHERE verdict_id = 2",
        "DELETE FROM verdicts WHERE version_id = 2",
    )
    with world.transaction() as session:
        return runs.begin(session, "nightly", {}, None)
