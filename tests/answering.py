"""A service that serves: a world with versions that were deployed, and a real server before it.

No night is played for it. Each version is a network of random weights whose head prefers one class,
so that what answers can be told from what it says.
"""

import functools
import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import httpx
import pictures
import torch
import uvicorn
import worlds
from fastapi import FastAPI
from worlds import FREE, World

from infra.embedded import Addresses
from records import versions
from tasks import checkpoints
from vision import network
from vision.export import export
from vision.plan import Plan
from web.app import create_app
from web.rules import Rules
from web.server import options
from web.transaction_log import TransactionLog

NAMES = ("circle", "cross", "ring", "square")
PLAN = Plan(architecture="test_resnet", recipe="scratch", image_size=32)
KEY = "pools/camera/1.jpg"
BODY = pictures.jpeg(pictures.photograph(1))
PATIENCE = 5.0  # seconds within which a promotion is live


@functools.cache
def story(services: Addresses, template: str) -> World:
    """A world of three versions, the first of them deployed; version n prefers class n.

    It is made once for all tests; change only clones (`worlds.twin`).
    """
    world = worlds.make(services, template)
    with worlds.inside(world):
        for number in range(3):
            _version(world, number)
        world.storage.write(KEY, BODY)
        world.storage.write("labelled/ring/1.jpg", BODY)
        deploy(world, 1)
    return world


def _version(world: World, number: int) -> None:
    plan = replace(PLAN, seed=number)
    made = network.build(plan, NAMES)
    with torch.no_grad():
        network.head(made).bias[number % len(NAMES)] += 5  # type: ignore[index,operator]
    path = world.folder / f"{number}.safetensors"
    digest = network.save(made, path, plan, NAMES)
    checkpoints.store(path, digest)
    world.act(
        FREE,
        """
        INSERT INTO versions (purpose, state, run_id, snapshot_digest, plan, plan_digest,
            architecture, class_names, class_names_digest, checkpoint_digest, machine)
        VALUES ('nightly', 'trained', 1, 's', '{}', :plan, 'test_resnet', :names, 'n', :digest,
                '{}')
        """,
        plan=plan.digest(), names=list(NAMES), digest=digest,
    )  # fmt: skip
    world.act(
        FREE,
        """
        INSERT INTO thresholds (version_id, wished, subject, confidence, precision, precision_low,
            precision_high, answered, images)
        VALUES (:version, 0.95, 'validation', 0.9, 0.95, 0.9, 1, 10, 20)
        """,
        version=number + 1,
    )
    file = world.folder / f"{number}.onnx"
    export(made.eval(), plan, file)
    body = file.read_bytes()
    named = hashlib.sha256(body).hexdigest()
    world.storage.write(versions.export_key(named), body)
    with world.transaction() as session:
        versions.record_export(session, number + 1, digest, named, len(body))


def deploy(world: World, version: int, kind: str = "promotion") -> None:
    """Append a version to the log, as a night or a person does."""
    world.act(
        FREE,
        """
        INSERT INTO deployments (version_id, purpose, previous_id, verdict_id, kind, deployed_by,
            why)
        VALUES (:version, 'nightly', (SELECT max(id) FROM deployments), :version, :kind, 'a test',
                'to see it serve')
        """,
        version=version, kind=kind,
    )  # fmt: skip


@dataclass(frozen=True)
class Service:
    """A server that runs: how to ask it, and where it listens."""

    client: httpx.Client
    port: int
    app: FastAPI

    def ask(self, body: bytes = BODY, **parameters: object) -> httpx.Response:
        """Send one picture."""
        return self.client.post(
            "/v1/predictions", content=body, params=parameters,  # type: ignore[arg-type]
            headers={"Content-Type": "image/jpeg"},
        )  # fmt: skip

    def labels(self) -> str:
        """The label of the picture that everybody sends."""
        return str(self.ask().json()["predictions"][0]["label"])

    def connection(self) -> socket.socket:
        """A bare connection, to misbehave by."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def figure(self, name: str) -> float:
        """One figure of /metrics, its labels added up."""
        lines = self.client.get("/metrics").text.splitlines()
        found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)


@contextmanager
def serving(rules: Rules | None = None, log: TransactionLog | None = None) -> Iterator[Service]:
    """A real server in a thread for the block; it serves the world that was entered."""
    app = create_app(rules, log)
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, **options()))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            port = listening.getsockname()[1]
            until(lambda: server.started)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield Service(client, port, app)
        finally:
            server.should_exit = True
            thread.join()


def until(happened: object, seconds: float = 30.0) -> float:
    """Wait until something is so; seconds that it took. Fails after too many."""
    begun = time.monotonic()
    while not happened():  # type: ignore[operator]
        assert time.monotonic() - begun < seconds, "it did not happen"
        time.sleep(0.02)
    return time.monotonic() - begun


def request(path: str, head: str, body: bytes = b"") -> bytes:
    """The bytes of a request."""
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n".encode() + body


def told(connection: socket.socket) -> bytes:
    """All that a server says until it closes; what it said when it cuts the connection off."""
    said = b""
    try:
        while block := connection.recv(65536):
            said += block
    except ConnectionError:
        pass
    return said


