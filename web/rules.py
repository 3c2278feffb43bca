"""What the service lets its clients do; `regraft web` has an option for most of it."""

from __future__ import annotations

from dataclasses import dataclass

from vision.scores import PRECISION


@dataclass(frozen=True)
class Rules:
    """Bounds of one service.

    loopback: it listens on the loopback alone and wants no key there. plain_http: browsers keep
    keys although nothing encrypts them on their way. precision: the one wished of
    the threshold that says whether an answer may be shown. prefixes: where the objects lie that a
    client may name.

    most_bytes: of one body with pictures; form_bytes: of any other. held_bytes: of all bodies
    together. most_pictures: in one request. most_waiting: pictures that are being answered or wait
    for it. body_seconds: for a body to arrive. answer_seconds: for the answer once it is there.
    batch: pictures computed together. linger_seconds: how long the first of a batch waits for
    others.
    """

    loopback: bool = True
    plain_http: bool = False
    precision: float = PRECISION
    prefixes: tuple[str, ...] = ("pools/",)
    most_bytes: int = 32_000_000
    form_bytes: int = 2_000_000
    held_bytes: int = 512_000_000
    most_pictures: int = 16
    most_waiting: int = 256
    body_seconds: float = 20.0
    answer_seconds: float = 20.0
    batch: int = 8
    linger_seconds: float = 0.0
