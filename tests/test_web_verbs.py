"""`regraft web` and `regraft key` as people call them, and every route against its description."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import answering
import httpx
import pytest
import worlds
from answering import BODY, NAMES
from typer.testing import CliRunner
from worlds import World

from flows.cli import app
from infra.database import Database
from infra.embedded import Addresses

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,response_headers_conformance,unsupported_method"
)


@pytest.fixture
def world(services: Addresses, template: str) -> Iterator[World]:
    """Three versions, of which the first serves."""
    with worlds.twin(answering.story(services, template)) as made:
        yield made


def test_keys_are_made_listed_and_revoked(
    database: Database, terminal: Callable[..., str]
) -> None:
    """The secret is shown once; who made it, what it may and when it ended stay."""
    secret = terminal("key", "make", "camera", "--scope", "predict", "--by", "Ann").strip()
    assert secret.startswith("regraft_")
    assert len(secret) > 40
    told = terminal("key", "make", "Bob", "--scope", "review", "--scope", "admin", "--json")
    assert json.loads(told)["key"] != secret
    assert "revoked" in terminal("key", "revoke", "camera", "--by", "Bob")
    bob, camera = json.loads(terminal("key", "list", "--json"))
    assert (bob["name"], bob["scopes"], bob["revoked_at"]) == ("Bob", ["review", "admin"], None)
    assert (camera["made_by"], camera["revoked_by"]) == ("Ann", "Bob")
    shown = terminal("key", "list")
    assert "camera" in shown
    assert secret not in shown


@pytest.mark.parametrize("prefix", ["pools", "", "/"])
def test_a_prefix_says_where_it_ends(prefix: str) -> None:
    """`pools` would let clients name `pools-of-others/1.jpg`."""
    done = CliRunner().invoke(app, ["web", "--prefix", prefix])
    assert done.exit_code == 2
    assert "end it with a slash" in done.output


def test_the_service_starts_answers_and_stops_in_order(world: World) -> None:
    """One verb serves on the loopback; SIGTERM ends it and everything answered is written."""
    world.act(worlds.FREE, "DELETE FROM exports")  # deployed before files were kept
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (
        subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "web", "--port", str(port)],
            env=os.environ, stderr=subprocess.PIPE, text=True,
        ) as process,
        httpx.Client(base_url=address, timeout=30) as client,
    ):  # fmt: skip

        def is_there() -> bool:
            try:
                return client.get("/readyz").status_code == 200
            except httpx.TransportError:
                assert process.poll() is None
                return False

        try:
            answering.until(is_there, 180)
            answers = [
                client.post("/v1/predictions", content=BODY, headers={"Content-Type": "image/jpeg"})
                for _ in range(3)
            ]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) in (0, -signal.SIGTERM)
        finally:
            process.kill()  # or a failure would wait for it for ever
        said = process.stderr.read() if process.stderr else ""
    assert address in said
    assert [one.json()["predictions"][0]["label"] for one in answers] == [NAMES[0]] * 3
    assert world.ask("SELECT count(*) FROM transactions") == [(3,)]


def test_every_route_keeps_to_its_description(world: World, tmp_path: Path) -> None:
    """Whatever is made up from the OpenAPI, nothing fails and every answer is as described."""
    with answering.serving() as service:
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run",
                f"{service.client.base_url}/openapi.json", "--checks", CHECKS,
                "--max-examples", "40", "--seed", "1", "--no-color",
            ],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert service.ask().status_code == 200
