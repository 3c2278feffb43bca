"""The service follows the deployment log: without a pause, and never to what it cannot trust."""

import functools
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import answering
import httpx
import pytest
import worlds
from answering import BODY, NAMES, PATIENCE, Service
from worlds import FREE, World

from infra import database, storage
from infra.embedded import Addresses
from infra.storage import Storage
from records import keys
from records.versions import export_key
from web import champion
from web.errors import AWAY
from web.rules import Rules
from web.transaction_log import open_log

THREADS = 60  # of pages, of which a process has 40
MOST_CONNECTIONS = 15  # of SQLAlchemy's pool, 5 that stay and 10 more


@pytest.fixture
def world(services: Addresses, template: str) -> Iterator[World]:
    """Three versions, of which the first serves."""
    with worlds.twin(answering.story(services, template)) as made:
        yield made


@dataclass
class Load:
    """What clients were answered while they kept on asking."""

    service: Service
    statuses: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        """Ask without a pause until it is enough."""
        with httpx.Client(base_url=self.service.client.base_url, timeout=30) as client:
            while not self.stop.is_set():
                answer = client.post(
                    "/v1/predictions", content=BODY, headers={"Content-Type": "image/jpeg"}
                )
                self.statuses.append(answer.status_code)
                told = answer.json()
                label = told["predictions"][0]["label"]
                if label != NAMES[told["version"] - 1]:
                    self.wrong.append(f"version {told['version']} said {label}")


def test_promotions_and_a_rollback_lose_no_request(world: World) -> None:
    """Under load each is live within five seconds; every request is answered, by one version, and
    stands in the log exactly once.
    """
    with answering.serving(log=open_log()) as service:
        load = Load(service)
        clients = [threading.Thread(target=load.ask) for _ in range(4)]
        for thread in clients:
            thread.start()
        for version, kind in ((2, "promotion"), (3, "approval"), (2, "rollback")):
            answering.deploy(world, version, kind)
            seconds = answering.until(lambda: service.labels() == NAMES[version - 1])  # noqa: B023
            assert seconds < PATIENCE
        load.stop.set()
        for thread in clients:
            thread.join()
        assert set(load.statuses) == {200}
        assert load.wrong == []
        answered = service.figure("regraft_batch_pictures_sum")
        assert answered >= len(load.statuses)
    [(rows, distinct)] = world.ask("SELECT count(*), count(DISTINCT id) FROM transactions")
    assert rows == distinct == answered
    versions = world.ask("SELECT DISTINCT version_id FROM transactions ORDER BY 1")
    assert versions == [(1,), (2,), (3,)]


def broken(world: World, how: str) -> None:
    """Damage what would let version 2 serve, then deploy it."""
    [(digest,)] = world.ask("SELECT digest FROM exports WHERE version_id = 2")
    if how == "gone":
        world.storage.delete(export_key(digest))
    elif how == "changed":
        body = bytearray(world.storage.read(export_key(digest)))
        body[len(body) // 2] ^= 1
        world.storage.write(export_key(digest), bytes(body))
    elif how == "never written":
        world.act(FREE, "DELETE FROM exports WHERE version_id = 2")
    else:
        world.act(FREE, "UPDATE versions SET class_names = '{a,b,c,d}' WHERE id = 2")
    answering.deploy(world, 2)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("gone", "is gone from S3"),
        ("changed", "holds other bytes"),
        ("never written", "no file was written for it"),
        ("of other classes", "names other classes than its row"),
    ],
)
def test_a_champion_that_cannot_be_trusted_does_not_answer(
    world: World, how: str, says: str
) -> None:
    """The one before goes on, the figures raise the alarm, and the next good one is followed."""
    with answering.serving() as service:
        broken(world, how)
        answering.until(lambda: service.figure("regraft_behind") == 1, PATIENCE)
        ready = service.client.get("/readyz").json()
        assert ready["version"] == 1
        assert says in ready["problem"]
        assert service.labels() == NAMES[0]
        answering.deploy(world, 3)
        answering.until(lambda: service.labels() == NAMES[2], PATIENCE)
        assert service.client.get("/readyz").json() == {"version": 3, "problem": None}


def away(world: World, gone: bool) -> None:
    """Cut this world's database off, or let it be reached again."""
    name = world.url.rpartition("/")[2]
    worlds._administer(
        world.services, f"ALTER DATABASE {{}} ALLOW_CONNECTIONS {str(not gone).lower()}", name
    )
    cut = f"SELECT pg_terminate_backend(pid, 9000) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608  (a name of ours)
    worlds._administer(world.services, cut)


def test_predictions_go_on_while_postgres_is_away(world: World) -> None:
    """Known keys too; what was answered meanwhile is in the log when it is back."""
    with world.transaction() as session:
        key = keys.make(session, "camera", ["predict"], "a test")
    with answering.serving(Rules(loopback=False), open_log()) as service:
        service.client.headers["Authorization"] = f"Bearer {key}"
        assert service.ask().status_code == 200
        away(world, True)
        answering.until(lambda: service.figure("regraft_behind") == 1, 20)
        statuses = [service.ask().status_code for _ in range(10)]
        assert statuses == [200] * 10
        ready = service.client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["problem"] == AWAY  # and no host's name
        away(world, False)
        answering.until(lambda: service.figure("regraft_behind") == 0, 20)
        answering.until(lambda: world.ask("SELECT count(*) FROM transactions") == [(11,)], 20)


def test_pages_that_are_slow_keep_no_promotion_waiting(world: World) -> None:
    """Whoever follows the log, and whoever writes it, has connections of their own."""
    with answering.serving(log=open_log()) as service, ExitStack() as slow:
        for _ in range(MOST_CONNECTIONS):
            slow.enter_context(database.connect().engine.connect())
        answering.deploy(world, 2)
        answering.until(lambda: service.labels() == NAMES[1], PATIENCE)
        answering.until(lambda: service.figure("regraft_log_written") >= 1, PATIENCE)


def test_a_revoked_key_counts_no_longer_while_a_version_is_loaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who follows the log waits for S3, which hangs; whoever reads the keys does not."""
    with world.transaction() as session:
        key = keys.make(session, "camera", ["predict"], "a test")
    deaf = socket.create_server(("127.0.0.1", 0))
    nowhere = Storage(f"http://127.0.0.1:{deaf.getsockname()[1]}", "none", "key", "secret")
    with answering.serving(Rules(loopback=False)) as service, closing(deaf):
        service.client.headers["Authorization"] = f"Bearer {key}"
        assert service.ask().status_code == 200
        monkeypatch.setattr(storage, "connect", lambda: nowhere)
        answering.deploy(world, 2)
        deaf.settimeout(PATIENCE)
        reading, _ = deaf.accept()
        with closing(reading), world.transaction() as session:
            keys.revoke(session, "camera", "a test")
            session.commit()
            answering.until(lambda: service.ask().status_code == 401, PATIENCE)


def test_more_requests_than_threads_and_connections_are_answered(world: World) -> None:
    """Nobody who has a connection waits for a thread, while all threads wait for a connection."""
    statuses: list[int] = []
    with answering.serving() as service:

        def ask() -> None:
            asked = httpx.get(f"{service.client.base_url}/v1/history/live", timeout=60)
            statuses.append(asked.status_code)

        clients = [threading.Thread(target=ask) for _ in range(3 * THREADS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert statuses == [200] * len(clients)


def test_pages_that_are_slow_keep_no_named_request_waiting(world: World) -> None:
    """Whoever looks for what was answered before has threads of its own."""
    slow: list[threading.Thread] = []
    with answering.serving(Rules(answer_seconds=3), open_log()) as service:
        with database.connect().engine.begin() as holding:
            holding.exec_driver_sql("LOCK TABLE deployments")
            for _ in range(THREADS):
                ask = functools.partial(httpx.get, f"{service.client.base_url}/v1/history/live",
                                        timeout=60)  # fmt: skip
                slow.append(threading.Thread(target=ask))
                slow[-1].start()
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            with database.Database(world.url).engine.connect() as looking:
                answering.until(
                    lambda: looking.exec_driver_sql(waiting).scalar_one() >= MOST_CONNECTIONS - 2
                )
            answer = service.client.post(
                "/v1/predictions", content=BODY,
                headers={"Content-Type": "image/jpeg", "Idempotency-Key": "ann:1"},
            )  # fmt: skip
            assert answer.status_code == 200, answer.text
        for thread in slow:
            thread.join()


def test_a_database_that_hangs_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what watches over the service, though nothing fails: there is no answer at all."""
    monkeypatch.setattr(champion, "BEHIND_SECONDS", 2.0)
    with answering.serving() as service:
        with database.connect().engine.begin() as holding:
            holding.exec_driver_sql("LOCK TABLE deployments")
            answering.until(
                lambda: service.client.get("/readyz").json()["problem"] == champion.LATE, 10
            )
            assert service.figure("regraft_behind") == 1
        answering.until(lambda: service.client.get("/readyz").json()["problem"] is None, 10)


def test_nothing_serves_until_something_does(world: World) -> None:
    """Without a champion the service says so, and takes the first one when it comes."""
    world.act(FREE, "DELETE FROM deployments")
    with answering.serving() as service:
        for answer in (service.ask(), service.client.get("/readyz")):
            assert answer.status_code == 503
            assert "no version serves yet: `regraft nightly`" in answer.json()["detail"]
        assert service.client.get("/healthz").status_code == 200
        answering.deploy(world, 1)
        answering.until(lambda: service.ask().status_code == 200, PATIENCE)


def test_a_threshold_that_is_fitted_anew_counts_at_once(world: World) -> None:
    """`show` follows what `regraft evaluate` has found, without a restart."""
    with answering.serving() as service:
        before = service.ask().json()["predictions"][0]
        limit = 0.0 if before["confidence"] < 0.9 else 1.0
        world.act("UPDATE thresholds SET confidence = :limit", limit=limit)
        answering.until(
            lambda: service.ask().json()["predictions"][0]["show"] is not before["show"], PATIENCE
        )
        world.act("UPDATE thresholds SET confidence = NULL, answered = 0, precision = NULL, "
                  "precision_low = NULL, precision_high = NULL")  # fmt: skip
        answering.until(
            lambda: service.ask().json()["predictions"][0]["show"] is None, PATIENCE
        )
