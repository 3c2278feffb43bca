"""What the service lets its clients do; `regraft web` has an option for each rule."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """Bounds of one service.

    loopback: it listens on the loopback alone and wants no key there. prefixes: where the objects
    lie that a client may name. bytes: of one request's body. pictures: in one request. waiting:
    pictures that may wait for an answer. body_seconds: for a body to arrive. answer_seconds: for an
    answer, once the body is there.
    """

    loopback: bool = True
    prefixes: tuple[str, ...] = ("pools/",)
    bytes: int = 32_000_000
    pictures: int = 16
    waiting: int = 256
    body_seconds: float = 20.0
    answer_seconds: float = 20.0
