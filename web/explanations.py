"""Where the version that answers has looked: Grad-CAM, by PyTorch, one request at a time."""

from __future__ import annotations

import base64
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infra import storage
from records.versions import checkpoint_key
from vision.images import Pixels
from web.champion import Serving
from web.thumbnails import encoded

if TYPE_CHECKING:
    from vision.network import Loaded


class Explainer:
    """Loads the checkpoint of a version when somebody first asks why, and keeps the last one.

    PyTorch and its networks take seconds and memory that most services never need.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[str, Loaded] | None = None

    def overlays(
        self, serving: Serving, pixels: Sequence[Pixels], columns: Sequence[int]
    ) -> list[tuple[str, bool]]:
        """For each picture the map over it as a `data:` address, and whether it shows anything.

        columns: the class to explain, of each. Raises `BadCheckpoint` for changed bytes.
        """
        from vision import gradcam

        with self._lock:
            if self._known is None or self._known[0] != serving.checkpoint_digest:
                self._known = None  # or both would be in memory
                self._known = (serving.checkpoint_digest, loaded_by(serving.checkpoint_digest))
            loaded = self._known[1]
            found = gradcam.maps(
                loaded.network, np.stack(pixels), list(columns), loaded.plan, "cpu"
            )
        return [
            (_address(encoded(gradcam.overlay(picture, one))), one.positive)
            for picture, one in zip(pixels, found, strict=True)
        ]


def loaded_by(digest: str) -> Loaded:
    """The network of a checkpoint in S3; raises `BadCheckpoint` for changed bytes."""
    from vision import network

    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        path = Path(folder) / "checkpoint.safetensors"
        path.write_bytes(storage.connect().read(checkpoint_key(digest)))
        return network.load(path, digest)


def _address(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
