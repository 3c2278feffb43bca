"""Diagnosis: what is configured, what can be reached, and what is wrong."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from infra import database, embedded, settings, storage

State = Literal["right", "wrong", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `found` says what is there, and for what is wrong the mend."""

    what: str
    state: State
    found: str


def examine() -> list[Finding]:
    """Look at everything, in an order in which the first wrong line is the one to mend."""
    try:
        known = settings.load()
    except settings.BadSettings as error:
        return [Finding("settings", "wrong", str(error))]
    findings = [
        Finding("regraft", "right", f"{version('regraft')}, state in {known.state_dir}"),
        _disk(known),
        _compute(known),
    ]
    for service in embedded.running(known):
        kind = "embedded" if service.embedded else "configured"
        if service.running:
            findings.append(Finding(service.name, "right", f"{kind}, {service.address}"))
        elif service.embedded:
            findings.append(
                Finding(service.name, "note", "embedded, not running: any verb that needs it "
                        "starts it, or `regraft up`")
            )  # fmt: skip
        else:
            findings.append(
                Finding(service.name, "wrong", f"{kind}, {service.address} does not answer: start "
                        "it or mend its address")
            )  # fmt: skip
    running = {one.name for one in embedded.running(known) if one.running}
    if "postgres" in running:
        findings.append(_tables(known))
    if "s3" in running:
        findings.append(_bucket())
    return findings


def _disk(known: settings.Settings) -> Finding:
    folder = known.state_dir if known.state_dir.exists() else known.state_dir.anchor
    free = shutil.disk_usage(folder).free / 1e9
    state: State = "right" if free > known.cache_gigabytes else "note"
    return Finding(
        "disk", state, f"{free:.0f} GB free, the pixel cache may take {known.cache_gigabytes:g} GB"
    )


def _compute(known: settings.Settings) -> Finding:
    """Asked without importing torch, which would make this screen wait."""
    gpus = [name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()]
    found = f"{len(gpus)} GPU" if gpus else "no GPU"
    return Finding(
        "compute", "right", f"{os.cpu_count()} CPU cores, {found}, device {known.device}"
    )


def _tables(known: settings.Settings) -> Finding:
    try:
        current, head = database.migration_state(embedded.addresses(known).database_url)
    except (database.Unreachable, database.SchemaMismatch) as error:
        return Finding("tables", "wrong", str(error))
    if current != head:
        return Finding(
            "tables", "wrong", f"revision {current or 'none'}, wanted {head}: run `regraft up`"
        )
    return Finding("tables", "right", f"revision {current}")


def _bucket() -> Finding:
    try:
        store = storage.connect()
        next(store.list("labelled/"), None)
    except storage.StorageError as error:
        return Finding("bucket", "wrong", str(error))
    return Finding("bucket", "right", f"{store.bucket} can be listed")
