"""Where a network looked: Grad-CAM as the grad-cam package computes it, but in batches.

Gradients run only through the part behind the target layer; all before it runs as in prediction.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from vision.network import class_names_of, normalisation, target_layer
from vision.plan import Plan
from vision.prediction import device_named, on_device, standardised, upload

SHOWN_SIDE = 224  # pixels: people cannot see anything in fewer, nor words be written
NO_EVIDENCE = "no positive evidence"
# from nothing to everything: transparent blue, cyan, yellow, red
HEAT = np.array([[0, 0, 128], [0, 96, 255], [0, 224, 224], [255, 224, 0], [224, 0, 0]])


@dataclass(frozen=True, eq=False)
class Map:
    """The evidence for one class over one picture.

    values: float16 [h, w] in 0 to 1 at the target layer's resolution; all 0 if not `positive`.
    positive: whether anything in the picture speaks for the class at all.
    image_size: side in pixels of the picture's centre, which the map covers.
    peak_x, peak_y, centre_x, centre_y: where the most evidence is, and its centre of mass, as
    shares of that square from its left and top; the middle if there is none.
    area: share of the square with more than half of the peak's evidence.
    """

    values: npt.NDArray[np.float16]
    positive: bool
    image_size: int
    peak_x: float
    peak_y: float
    centre_x: float
    centre_y: float
    area: float


def maps(
    network: nn.Module,
    pixels: npt.NDArray[np.uint8],
    targets: Sequence[int],
    plan: Plan,
    device: str | torch.device,
    batch_size: int = 32,
) -> list[Map]:
    """Explain one class per picture.

    pixels: uint8 [N, side, side, 3] as stored; targets: N indices into the network's classes.
    The network is moved to the device and left in evaluation mode. Raises ValueError for targets
    that do not fit, `BadPlan` for a network without a map.
    """
    classes = len(class_names_of(network))
    if len(targets) != len(pixels):
        raise ValueError(f"{len(pixels)} pictures have {len(targets)} targets: one each")
    wrong = [target for target in targets if not 0 <= target < classes]
    if wrong:
        raise ValueError(f"target {wrong[0]}: the network has classes 0 to {classes - 1}")
    place = device_named(device)
    network.to(place).to(memory_format=torch.channels_last).eval()
    mean, std = on_device(normalisation(network, plan), place)
    found: list[Map] = []
    layer = target_layer(network)
    for start in range(0, len(pixels), batch_size):
        rows = slice(start, start + batch_size)
        batch = standardised(upload(pixels[rows], place), plan.image_size, mean, std)
        evidence = _evidence(network, layer, batch, torch.tensor(targets[rows], device=place))
        found.extend(_map(one, plan.image_size) for one in evidence.cpu().numpy())
    return found


def overlay(pixels: npt.NDArray[np.uint8], explained: Map) -> Image.Image:
    """Draw the map over the centre of the stored picture, uint8 [side, side, 3].

    Small pictures are enlarged to SHOWN_SIDE. Without evidence the picture is shown in grey and
    says so.
    """
    seen = explained.image_size
    start, size = (pixels.shape[0] - seen) // 2, max(seen, SHOWN_SIDE)
    picture = Image.fromarray(pixels[start:start + seen, start:start + seen])
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    if not explained.positive:
        plain = picture.convert("L").convert("RGB")
        draw = ImageDraw.Draw(plain)
        draw.rectangle((0, 0, size, 14), fill=(0, 0, 0))
        draw.text((3, 1), NO_EVIDENCE, fill=(255, 255, 255))
        return plain
    small = Image.fromarray(explained.values.astype(np.float32))
    values = np.asarray(small.resize((size, size), Image.Resampling.BILINEAR)).clip(0, 1)
    steps = np.linspace(0, 1, len(HEAT))
    heat = np.stack([np.interp(values, steps, HEAT[:, colour]) for colour in range(3)], axis=-1)
    # where nothing speaks for the class, the picture stays as it is
    opacity = (0.6 * np.sqrt(values))[..., None]
    mixed = np.asarray(picture) * (1 - opacity) + heat * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def _evidence(network: nn.Module, layer: nn.Module, batch: Tensor, targets: Tensor) -> Tensor:
    """Class activation maps before scaling, negative parts cut, float32 [B, h, w]."""
    with _leaf(layer) as leaves, torch.no_grad():
        outputs = network(batch)
    with torch.enable_grad():
        chosen = outputs.gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, leaves[-1])
    activation, slope = _grid(network, leaves[-1].detach()), _grid(network, gradient)
    return (slope.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1).relu()


@contextmanager
def _leaf(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Cut the graph at the layer's output: what comes before needs no gradient at all."""
    leaves: list[Tensor] = []

    def cut(module: nn.Module, _: object, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        leaf = output.detach().requires_grad_()
        leaves.append(leaf)
        return leaf.clone()  # the next layer may work in place, which a leaf does not allow

    hook = layer.register_forward_hook(cut)
    try:
        yield leaves
    finally:
        hook.remove()


def _grid(network: nn.Module, values: Tensor) -> Tensor:
    """Bring a layer's output into [B, C, h, w], whether it is a map or a row of tokens."""
    if values.ndim == 4:
        last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return values.permute(0, 3, 1, 2) if last else values
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    tokens = values[:, prefix:]
    side = math.isqrt(tokens.shape[1])  # pictures are squares
    return tokens.transpose(1, 2).reshape(len(values), -1, side, side)


def _map(evidence: npt.NDArray[np.float32], image_size: int) -> Map:
    lowest, highest = float(evidence.min()), float(evidence.max())
    positive = highest > 0
    if highest > lowest:
        scaled = (evidence - lowest) / (highest - lowest)
    else:  # the same everywhere: all of the picture speaks for the class, or none of it
        scaled = np.full_like(evidence, float(positive))
    height, width = scaled.shape
    peak_x = peak_y = centre_x = centre_y = 0.5
    if positive:
        top, left = np.unravel_index(int(scaled.argmax()), scaled.shape)
        peak_x, peak_y = (float(left) + 0.5) / width, (float(top) + 0.5) / height
        mass = float(scaled.sum(dtype=np.float64))
        across, down = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
        centre_x = float((scaled.sum(axis=0, dtype=np.float64) * across).sum()) / mass
        centre_y = float((scaled.sum(axis=1, dtype=np.float64) * down).sum()) / mass
    return Map(
        values=scaled.astype(np.float16), positive=positive, image_size=image_size,
        peak_x=peak_x, peak_y=peak_y, centre_x=centre_x, centre_y=centre_y,
        area=float((scaled > 0.5).mean()),
    )
