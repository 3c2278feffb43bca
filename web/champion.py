"""The version that answers: the deployment log is followed, and nobody waits while it changes."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from infra import database, storage
from infra.database import Database
from infra.storage import Gone
from records import deployments, evaluations, keys, versions
from records.deployments import Champion
from records.versions import ExportRow
from vision.export import BadExport
from vision.serving import Served
from web import memory
from web.access import Access
from web.errors import AWAY

log = logging.getLogger("regraft.web")

EVERY = 1.0  # seconds; a promotion must be live within five
BEHIND_SECONDS = 10.0  # without a word from the database
LATE = "Postgres or S3 takes long to say what serves: look at what they do"
BAD_SECONDS = 60.0  # until a file that is not what was stored is read again
STOP_SECONDS = 5.0


class NothingServes(RuntimeError):
    """The champion cannot answer here; the message says why and the mend."""

    status = 503


@dataclass(frozen=True, eq=False)
class Serving:
    """A version as it answers; threshold: the confidence from which an answer may be shown."""

    deployment_id: int
    version_id: int
    checkpoint_digest: str
    threshold: float | None
    network: Served


class Follower:
    """A thread that reads the newest deployment, its threshold and the keys, over and over.

    A new champion is fetched, its bytes hashed, its classes compared, and warmed; only then it
    takes the place of the one before. Whatever fails, that one goes on answering. Another thread
    reads the keys alone: a revoked one must not count for as long as S3 takes to give a version.

    serving: the version that answers now, None before there is one. problem: why it is not what
    the database wants, or None, in words for clients: what names hosts goes to the log. seen_at:
    when that was last known, on the monotonic clock.
    """

    def __init__(self, access: Access, precision: float, threads: int, batch: int) -> None:
        """threads: how many compute one batch together. batch: the most pictures of one."""
        self.serving: Serving | None = None
        self.problem: str | None = None
        self.seen_at = time.monotonic()
        self._told: str | None = None
        self._bad: tuple[int, str] | None = None  # a deployment and a file that is not for it
        self._again_at = 0.0
        # Its own: pages that are slow must not keep a promotion waiting.
        self._database = Database(database.connect().url)
        self._access, self._precision = access, precision
        self._threads, self._batch = threads, batch
        self._stop = threading.Event()
        self._following = [
            threading.Thread(target=self._repeat, args=(act,), name=f"regraft-{name}", daemon=True)
            for name, act in (("follow", self.look), ("keys", self._read_keys))
        ]

    def start(self) -> None:
        """Read once, then follow until `close`."""
        self.look()
        for thread in self._following:
            thread.start()

    def close(self) -> None:
        """End the threads."""
        self._stop.set()
        for thread in self._following:
            thread.join(STOP_SECONDS / 2)  # a Postgres that hangs holds it

    def now(self) -> Serving:
        """The version that answers; raises `NothingServes`."""
        if self.serving is None:
            raise NothingServes(self.problem or "no version serves yet")
        return self.serving

    @property
    def behind(self) -> str | None:
        """Why it cannot be followed what the database wants, or None."""
        late = time.monotonic() - self.seen_at > BEHIND_SECONDS
        return self.problem or (LATE if late else None)

    def look(self) -> None:
        """Read the database once and do what it says."""
        problem = told = None
        try:
            with self._database.transaction() as session:
                self._access.renew(keys.listed(session, revoked=False))
                champion = deployments.champion(session)
                threshold = self._threshold(session, champion)
            self._change(champion, threshold)
            self.seen_at = time.monotonic()
        except Exception as error:  # whatever it is, the version that answers goes on
            told = " ".join(str(error).split())
            problem = told if isinstance(error, NothingServes | BadExport) else AWAY
        if told and told != self._told:
            log.error("%s", told)
        self._told, self.problem = told, problem

    def _repeat(self, act: Callable[[], None]) -> None:
        while not self._stop.wait(EVERY):
            act()

    def _read_keys(self) -> None:
        # What goes wrong here does so in `look` as well, which tells of it.
        with suppress(Exception), self._database.transaction() as session:
            self._access.renew(keys.listed(session, revoked=False))

    def _threshold(self, session: Session, champion: Champion | None) -> float | None:
        """The confidence that reaches the wished precision; None where none does."""
        if champion is None:
            return None
        rows = evaluations.thresholds(session, champion.version_id)
        fitted = [one for one in rows if one.subject == "validation"]
        return next((one.confidence for one in fitted if one.wished == self._precision), None)

    def _change(self, champion: Champion | None, threshold: float | None) -> None:
        if champion is None:
            raise NothingServes("no version serves yet: `regraft nightly` trains and judges one")
        before = self.serving
        if before and before.deployment_id == champion.deployment_id:
            if before.threshold != threshold:
                self.serving = replace(before, threshold=threshold)
            return
        begun = time.monotonic()
        network = self._loaded(champion)
        network.warm(self._batch)
        self.problem = None  # first: nobody sees the new version beside what the old one lacked
        self.serving = Serving(
            champion.deployment_id, champion.version_id, champion.checkpoint_digest, threshold,
            network,
        )  # fmt: skip
        del before
        memory.give_back()
        log.info(
            "version %d answers from now on, %.1f s after it was seen",
            champion.version_id, time.monotonic() - begun,
        )  # fmt: skip

    def _loaded(self, champion: Champion) -> Served:
        version_id = champion.version_id
        with self._database.transaction() as session:
            version = versions.get(session, version_id)
            row = versions.exported(session, version_id)
        if row is None or row.checkpoint_digest != champion.checkpoint_digest:
            raise NothingServes(
                f"version {version_id} serves, but no file was written for it: start "
                "`regraft web` again, which writes it"
            )
        wanted = champion.deployment_id, row.digest
        if self._bad == wanted and time.monotonic() < self._again_at:
            raise BadExport(self.problem or "")  # not read again every second
        try:
            network = Served(_body(version_id, row), self._threads)
            if list(network.class_names) != version.class_names:
                raise BadExport(
                    f"version {version_id}: its file names other classes than its row; restore "
                    "either from a backup"
                )
        except BadExport:
            self._bad, self._again_at = wanted, time.monotonic() + BAD_SECONDS
            raise
        return network


def _body(version_id: int, row: ExportRow) -> bytes:
    try:
        body = storage.connect().read(versions.export_key(row.digest))
    except Gone:
        raise BadExport(
            f"version {version_id}: the file that serves it is gone from S3; start `regraft web` "
            "again, which writes it anew"
        ) from None
    found = hashlib.sha256(body).hexdigest()
    if found != row.digest:
        raise BadExport(
            f"version {version_id}: the file that serves it holds other bytes ({found[:12]}…) than "
            "were stored; start `regraft web` again, which writes it anew"
        )
    return body
