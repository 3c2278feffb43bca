"""A network as an ONNX file that takes stored pixels, for engines that need no PyTorch.

The file holds all that must not differ between training and serving: how a picture becomes its
pixels, the centre that the network sees, its normalisation, its class names. Input `pixels` uint8
[n, side, side, 3] as the pixel cache and `vision.images.prepare` give them, any n; output `logits`
float32 [n, classes].
"""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vision.network import class_names_of, normalisation
from vision.plan import Plan

# float32 sums in another order; far below what changes a confidence in its fourth digit
EXPORT_TOLERANCE = 1e-3
METADATA_KEY = "regraft"


class BadExport(RuntimeError):
    """A network that cannot be written as ONNX, or whose file does not answer as it does."""


class OfPixels(nn.Module):
    """A network with all that comes before it: stored pixels in, one number per class out."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.network = network
        self.image_size = plan.image_size
        mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in normalisation(network, plan))
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Uint8 [n, side, side, 3] to float32 [n, classes]."""
        start, size = (pixels.shape[1] - self.image_size) // 2, self.image_size
        cut = pixels[:, start:start + size, start:start + size].permute(0, 3, 1, 2)
        outputs: Tensor = self.network(cut.float() * self.scale + self.shift)
        return outputs


def export(network: nn.Module, plan: Plan, path: Path) -> None:
    """Write the network, which is on the CPU, as ONNX, and see that the file answers as it does.

    The file appears complete or not at all. Raises `BadExport`.
    """
    side = plan.geometry.side
    noise = np.random.default_rng(plan.seed).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    _export(OfPixels(network, plan).eval(), noise, ("pixels", "logits"), network, plan, path)


def export_backbone(network: nn.Module, plan: Plan, path: Path) -> None:
    """Write a network without head likewise: `pictures` float32 [n, 3, size, size], normalised, in,
    `features` float32 [n, width] out.
    """
    shape = (3, 3, plan.image_size, plan.image_size)
    noise = np.random.default_rng(plan.seed).standard_normal(shape, dtype=np.float32)
    _export(network.eval(), noise, ("pictures", "features"), network, plan, path)


def _export(
    wrapped: nn.Module,
    noise: npt.NDArray[Any],
    names: tuple[str, str],
    network: nn.Module,
    plan: Plan,
    path: Path,
) -> None:
    import onnxruntime  # type: ignore[import-untyped]

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        aside = Path(folder) / "network.onnx"
        try:
            with _quiet(), torch.no_grad():
                told = {
                    "class_names": list(class_names_of(network)),
                    "geometry": asdict(plan.geometry),
                }
                _write(wrapped, torch.from_numpy(noise[:2]), names, told, aside)
        except Exception as error:  # the exporter raises what it likes, over many lines
            line = " ".join(str(error).split())[:200]
            raise BadExport(
                f"{plan.architecture} cannot be written as ONNX ({type(error).__name__}: {line}): "
                "answer with PyTorch"
            ) from error
        session = onnxruntime.InferenceSession(aside, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {names[0]: noise})
        with torch.inference_mode():
            expected = wrapped(torch.from_numpy(noise)).numpy()
        apart = float(np.abs(found - expected).max())
        if not apart <= EXPORT_TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise BadExport(
                f"{plan.architecture} as ONNX answers otherwise than PyTorch, by up to "
                f"{apart:.3g}: answer with PyTorch"
            )
        os.replace(aside, path)


def _write(
    wrapped: nn.Module,
    example: Tensor,
    names: tuple[str, str],
    told: dict[str, Any],
    path: Path,
) -> None:
    import onnx

    program = torch.onnx.export(
        wrapped,
        (example,),
        dynamo=True,
        input_names=[names[0]],
        output_names=[names[1]],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        verbose=False,
    )
    assert program is not None  # noqa: S101  (None only for a path given, which mypy cannot know)
    model = program.model_proto
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(told)})
    onnx.save(model, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter says about itself; what it fails at it raises."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
