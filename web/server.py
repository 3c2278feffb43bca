"""The server of the application: uvicorn, told to trust nobody and to wait for nobody for ever."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from web import memory

HEAD_SECONDS = 10.0
HEAD_BYTES = 64 * 1024
IDLE_SECONDS = 20
# What comes in by them is bounded by `web.rules`; who only stays connected must keep out no probe.
CONNECTIONS = 4096
# An orderly stop answers what was begun, no longer than this.
STOP_SECONDS = 30


class Patient(HttpToolsProtocol):
    """A connection whose next request must have its whole head within `HEAD_SECONDS`.

    It may have `HEAD_BYTES`. Who takes nothing of an answer for `IDLE_SECONDS` is cut off, and so
    is who has not sent the rest of an answered request's body by then. uvicorn itself bounds only
    how long a connection rests between two requests.
    """

    _late: asyncio.TimerHandle | None = None
    _head = 0  # bytes that came while a head was not complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * self.timeout_keep_alive)
        )
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what came, and end a head that does not end."""
        super().data_received(data)
        self._head += len(data)
        if self._late is None:
            self._head = 0
        elif self._head > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"A head of more than {HEAD_BYTES // 1024} kB is not read.")

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a head."""
        super()._unset_keepalive_if_required()
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop waiting: how long the body may take is the application's to say."""
        self._arrived()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting for whoever has gone."""
        self._arrived()
        super().connection_lost(exc)

    def _unset_keepalive_if_required(self) -> None:
        """Stop waiting for a next request; what comes of a body that nobody reads is none."""
        if self.cycle is None or not (self.cycle.response_complete and self.cycle.more_body):
            super()._unset_keepalive_if_required()

    def _wait(self) -> None:
        self._arrived()
        self._late = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; what was begun is answered and written down first."""
    # Each thread that decodes is one core's; a team of helpers for each would wait for the others.
    torch.set_num_threads(1)
    memory.keep_little()
    _open_files()
    # What it finds wrong with a form its client is told.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    uvicorn.run(app, host=host, port=port, **options())


def _open_files() -> None:
    """As many as the system lets this process have: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def options() -> dict[str, Any]:
    """How uvicorn runs, here and in tests."""
    return {
        "http": Patient,
        "proxy_headers": False,  # who asks is whom the connection comes from
        "server_header": False,
        "access_log": False,
        "log_level": "warning",
        "limit_concurrency": CONNECTIONS,
        "timeout_keep_alive": IDLE_SECONDS,
        "timeout_graceful_shutdown": STOP_SECONDS,
    }
