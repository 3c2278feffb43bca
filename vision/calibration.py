"""What was measured on this machine, kept in a file so that it is measured once and not per run.

Asked again, the machine chooses as before: a run that is repeated computes the same bits.
"""

import json
import logging
import os
import platform
import secrets
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

Measured = dict[str, Any]


class Calibration:
    """Measurements by what was measured; without a file they live as long as this object."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, Measured] = {}

    def recall(self, what: Mapping[str, Any]) -> Measured | None:
        """What this machine, with this torch and these threads, once measured of it, or None."""
        return self._read().get(_key(what))

    def keep(self, what: Mapping[str, Any], measured: Measured) -> None:
        """Keep a measurement (JSON values); the newest of two processes that measured wins."""
        self._known = self._read() | {_key(what): measured}
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_suffix(f".{secrets.token_hex(4)}.part")
        aside.write_text(json.dumps(self._known, indent=1, sort_keys=True, allow_nan=False))
        aside.replace(self._path)

    def _read(self) -> dict[str, Measured]:
        if self._path is None or not self._path.exists():
            return self._known
        try:
            found = json.loads(self._path.read_text())
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        log.warning("%s is damaged: this machine is measured anew", self._path)
        return {}


def _key(what: Mapping[str, Any]) -> str:
    return json.dumps({**machine(), "threads": torch.get_num_threads(), **what}, sort_keys=True)


@cache
def machine() -> dict[str, Any]:
    """What decides how fast it computes: processor, cores that may be used, GPU, torch."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def processor() -> str:
    """The processor's name, as the system tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
