"""What was served: one row for each picture that a client asked about."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Transaction:
    """One prediction served, for one picture, as the table `transactions` keeps it.

    id: a UUID of version 7. at: when it was answered, UTC; all pictures of one request share it.
    ordinal: which picture of the request. client: the name of its key, or `local`. shown: whether
    the threshold lets it be shown; None without one. image_key: where its bytes are kept. draw: the
    chance that it had to come into the random stream of reviews, where it did. body_digest: of the
    whole request, where its client named it.
    """

    id: uuid.UUID
    at: datetime
    client: str
    version: int
    sha256: str
    width: int
    height: int
    top_labels: tuple[str, ...]
    top_confidences: tuple[float, ...]
    shown: bool | None
    latency_seconds: float
    ordinal: int = 0
    request_id: str | None = None
    body_digest: str | None = None
    image_key: str | None = None
    draw: float | None = None
