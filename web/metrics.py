"""What Prometheus reads: requests, their times, batches, the version that answers, the log."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 20)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The figures of one application, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "regraft_requests", "Requests that were answered.",
            ("method", "route", "status"), registry=self._registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "regraft_request_seconds", "From a request's head to the end of its answer.",
            ("route",), buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self.batches = Histogram(
            "regraft_batch_pictures", "Pictures that were computed together.",
            buckets=(1, 2, 4, 8, 16, 32), registry=self._registry,
        )  # fmt: skip

    def watch(self, name: str, what: str, read: Callable[[], float]) -> None:
        """Have a figure read whenever Prometheus asks."""
        Gauge(name, what, registry=self._registry).set_function(read)

    def told(self) -> bytes:
        """All figures as Prometheus's text."""
        return generate_latest(self._registry)


class Counted:
    """Middleware that counts each answer and how long it took."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count what becomes of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 499  # nobody was told: the client hung up

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            status = 500  # what the server outside of here tells
            raise
        finally:
            # the route's pattern, or a client could invent any number of figures; of methods too
            route = getattr(scope.get("route"), "path", "none")
            method = "any" if route == "none" or status == 405 else scope["method"]
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - begun)
