"""Checkpoints: kept in S3 under their digest, loaded only when the bytes still have it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from infra import database, settings, storage
from infra.storage import Gone
from records import versions
from records.versions import checkpoint_key
from vision import network
from vision.network import BadCheckpoint, Loaded


def store(path: Path, digest: str) -> None:
    """Put a checkpoint into S3, once; the object is there before any row names it."""
    storage.connect().write_once(checkpoint_key(digest), path, digest)


def fetch(digest: str) -> Path:
    """The local copy of a checkpoint, downloaded when it is not there or no longer intact."""
    path = _local(digest)
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
        return path
    body = storage.connect().read(checkpoint_key(digest))
    found = hashlib.sha256(body).hexdigest()
    if found != digest:
        raise BadCheckpoint(
            f"{checkpoint_key(digest)} holds other bytes ({found[:12]}…): it was changed after it "
            "was stored; restore it from a backup, or roll back to another version"
        )
    _write(path, body)
    return path


def fetch_weights(key: str) -> Path:
    """The local copy of a file of weights in our bucket; raises `BadCheckpoint` if it is gone."""
    path = settings.load().cache_dir / "weights" / Path(key).name
    try:
        body = storage.connect().read(key)
    except Gone:
        raise BadCheckpoint(
            f"weights=s3://{key}: the bucket has no such object; put it there, or name another"
        ) from None
    _write(path, body)
    return path


def _write(path: Path, body: bytes) -> None:
    """Have a file as a whole or not at all, whatever ends this process or this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    with aside.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def forget(digest: str) -> None:
    """Remove the local copy of a checkpoint, if there is one."""
    _local(digest).unlink(missing_ok=True)


def _local(digest: str) -> Path:
    return settings.load().cache_dir / "checkpoints" / f"{digest}.safetensors"


def load(version_id: int) -> Loaded:
    """A trained version's network, its digest checked; raises `Swept` where that is gone."""
    with database.connect().transaction() as session:
        version = versions.unswept(session, version_id)
    if version.checkpoint_digest is None:
        raise BadCheckpoint(f"version {version_id} is {version.state}: it has no checkpoint")
    loaded = network.load(fetch(version.checkpoint_digest), version.checkpoint_digest)
    if list(loaded.class_names) != version.class_names:
        raise BadCheckpoint(
            f"version {version_id}: the checkpoint names other classes than its row; "
            "restore either from a backup"
        )
    return loaded
