"""Sweeping: remove checkpoints and embeddings of throw-away versions that served their purpose."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from infra import database, storage
from infra.database import run_lock
from infra.storage import Listed
from records import sweeps
from records.versions import CHECKPOINTS, checkpoint_key
from tasks import checkpoints

AGE = re.compile(r"(\d{1,5})([dhw])")
UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class BadAge(ValueError):
    """No age; the message says how one is written."""


@dataclass(frozen=True)
class Swept:
    """What a sweep removed, or would remove; bytes of embeddings are those of their features."""

    versions: tuple[int, ...]
    checkpoints: int
    checkpoint_bytes: int
    embeddings: int
    embedding_bytes: int
    dry_run: bool

    @property
    def sentence(self) -> str:
        """What it came to, in one line."""
        if not (self.versions or self.checkpoints or self.embeddings):
            return "nothing to sweep"
        which = ", ".join(map(str, self.versions)) or "none, but what an earlier sweep has left"
        return (
            f"{'would sweep' if self.dry_run else 'swept'} versions {which}: {self.checkpoints} "
            f"checkpoints ({self.checkpoint_bytes / 1e6:.1f} MB in S3) and {self.embeddings} "
            f"embeddings ({self.embedding_bytes / 1e6:.1f} MB, which Postgres uses again)"
        )


def age(word: str) -> timedelta:
    """A time as people write it, `30d`, `12h` or `2w`; raises `BadAge`."""
    found = AGE.fullmatch(word.strip())
    if found is None:
        raise BadAge(f"--older-than {word}: write hours, days or weeks, as 12h, 30d or 2w")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def sweep(older_than: timedelta, dry_run: bool = False) -> Swept:
    """Remove what is kept of throw-away versions last used longer ago than this.

    Their rows, figures, answers and shortlists stay. Nothing else is ever swept. What a killed
    sweep has left is removed by the next one, whatever its age says. Raises `Busy` while a night
    trains: it might be storing the same bytes.
    """
    store = database.connect()
    if dry_run:
        with store.transaction() as session:
            due = sweeps.due(session, older_than)
            kept = _there(sweeps.checkpoints(session, due))
            embeddings = sweeps.embeddings(session, due)
        return _told(due, kept, embeddings, dry_run)
    with run_lock(store):
        with store.transaction() as session:
            due = sweeps.mark(session, older_than)
        with store.transaction() as session:
            digests = sweeps.checkpoints(session, [])
            embeddings = sweeps.embeddings(session, [])
        kept = _there(digests)
        for one in kept:
            storage.connect().delete(one.key)
    for digest in digests:
        checkpoints.forget(digest)
    left = True
    while left:
        with store.transaction() as session:
            left = sweeps.delete_embeddings(session) > 0
    return _told(due, kept, embeddings, dry_run)


def _there(digests: set[str]) -> list[Listed]:
    """Those of these checkpoints that lie in S3."""
    keys = {checkpoint_key(digest) for digest in digests}
    return [one for one in storage.connect().list(CHECKPOINTS) if one.key in keys]


def _told(
    due: list[int], kept: list[Listed], embeddings: tuple[int, int], dry_run: bool
) -> Swept:
    size = sum(one.size for one in kept)
    return Swept(tuple(due), len(kept), size, *embeddings, dry_run)
