"""Serving: the file that answers for a version, written from its checkpoint and kept in S3."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from infra import database, settings, storage
from infra.storage import Gone
from records import versions
from records.versions import ExportRow
from tasks import checkpoints
from vision.export import export
from vision.network import Loaded
from vision.serving import Served

# Of this machine, so that it is written once though it is measured, judged and deployed.
FOLDER = "exports"


def written(loaded: Loaded, checkpoint_digest: str) -> Path:
    """The file that would serve a version, written on this machine unless it was before.

    Seen to answer as PyTorch does; raises `BadExport`.
    """
    path = settings.load().cache_dir / FOLDER / f"{checkpoint_digest}.onnx"
    if not path.exists():
        export(loaded.network.to("cpu").eval(), loaded.plan, path)
    return path


def prepare(version_id: int) -> Served:
    """Have the file that serves a version in S3, with its digest in Postgres, and ready to answer.

    Does nothing where that is so already and the bytes are what they were. Raises `BadExport`,
    `BadCheckpoint`.
    """
    with database.connect().transaction() as session:
        known = versions.exported(session, version_id)
        checkpoint_digest = versions.get(session, version_id).checkpoint_digest
    body = _kept(known) if known else None
    if body is None or checkpoint_digest is None:
        loaded = checkpoints.load(version_id)  # which says what is wrong with an untrained one
        checkpoint_digest = checkpoint_digest or ""
        path = written(loaded, checkpoint_digest)
        body = path.read_bytes()
        digest = hashlib.sha256(body).hexdigest()
        storage.connect().write_once(versions.export_key(digest), path, digest)
        with database.connect().transaction() as session:
            versions.record_export(session, version_id, checkpoint_digest, digest, len(body))
    return Served(body, threads=cores())


def _kept(row: ExportRow) -> bytes | None:
    """The bytes of a kept file, None where they are gone or were changed: it is written anew."""
    try:
        body = storage.connect().read(versions.export_key(row.digest))
    except Gone:
        return None
    return body if hashlib.sha256(body).hexdigest() == row.digest else None


def cores() -> int:
    """How many this process may compute on."""
    return settings.load().threads or len(os.sched_getaffinity(0))
