"""Bending training pictures as a batch on the device, each by its own random numbers.

Every number is a function of the picture's own seed. So a picture is bent in the same way in
whatever batch it comes, and a resumed run sees what an undisturbed one would have seen.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vision.plan import Augmentation

# one column of random numbers for each use below
(SHARE, LEFT, TOP, FLIP, ANGLE, BRIGHTNESS, CONTRAST, SATURATION, BLUR, BLUR_WIDTH,
 ERASE, ERASE_AREA, ERASE_SHAPE, ERASE_LEFT, ERASE_TOP, JPEG, JPEG_QUALITY) = range(17)
COLUMNS = 17
GREY = 0.5
LUMA = (0.299, 0.587, 0.114)
BLUR_REACH = 3  # pixels to either side; the widest blur has a sigma of 1.5
WORST_QUALITY, BEST_QUALITY = 10, 50

# What a field of `Augmentation` allows: one number for all pictures, or one for each, [B].
Reach = float | npt.NDArray[Any]


def seeds_of(seed: int, epoch: int, images: Sequence[str]) -> npt.NDArray[np.uint64]:
    """One seed per picture from the plan's seed, the epoch and the picture's sha256, [N]."""
    return np.array(
        [
            int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{image}".encode()).digest()[:8], "big")
            for image in images
        ],
        dtype=np.uint64,
    )


def centre(images: Tensor, image_size: int) -> Tensor:
    """Cut the centre out: uint8 [B, S, S, 3] to float32 [B, 3, size, size] in 0 to 1."""
    side = _side(images, image_size)
    start = (side - image_size) // 2
    cut = images[:, start:start + image_size, start:start + image_size]
    return cut.permute(0, 3, 1, 2).float().div_(255)


def augment(
    images: Tensor,
    augmentation: Augmentation | Sequence[Augmentation],
    image_size: int,
    seeds: npt.NDArray[np.uint64],
) -> Tensor:
    """Crop, turn, mirror and tint each picture by its own seed.

    images: uint8 [B, S, S, 3] on the device, S at least image_size; augmentation: one for all
    pictures, or one for each; seeds: uint64 [B].
    Returns float32 [B, 3, image_size, image_size] in 0 to 1. Raises ValueError for other shapes.
    """
    _side(images, image_size)
    if seeds.shape != (images.shape[0],):
        raise ValueError(f"seeds have shape {seeds.shape}: use one for each of {len(images)} "
                         "pictures")
    if not isinstance(augmentation, Augmentation) and len(augmentation) != len(images):
        raise ValueError(f"{len(augmentation)} augmentations: use one, or one for each of "
                         f"{len(images)} pictures")
    draws, reach = uniform(seeds, COLUMNS), _reaches(augmentation)
    bent = warp(_jpeg(images, draws, reach["jpeg"]), _matrices(draws, reach), image_size)
    bent = _tint(bent, draws, reach)
    bent = _blur(bent, draws, reach["blur"])
    return _erase(bent.clamp_(0, 1), draws, reach["erase"])


def warp(images: Tensor, matrices: npt.NDArray[np.float64], size: int) -> Tensor:
    """See each picture through its affine matrix, the border mirrored.

    images: uint8 [B, S, S, 3] on the device; matrices: [B, 2, 3], from where a pixel of the result
    lies in -1 to 1 to where it is looked for. Returns float32 [B, 3, size, size] in 0 to 255.
    """
    return functional.grid_sample(
        images.permute(0, 3, 1, 2).float(),
        _grid(matrices, size, images.device),
        mode="bilinear",
        padding_mode="reflection",  # a turned picture has no black corners
        align_corners=False,
    )


def affine(
    share: Reach, angle: Reach, mirror: Reach, across: Reach, down: Reach
) -> npt.NDArray[np.float64]:
    """Matrices [B, 2, 3] that show a share of the side, turned by an angle in radians.

    mirror: -1 or 1; across, down: where the middle lies, in -1 to 1.
    """
    cos, sin = share * np.cos(angle), share * np.sin(angle)
    rows = np.broadcast_arrays(cos * mirror, -sin, across, sin * mirror, cos, down)
    return np.stack(rows, axis=-1).reshape(-1, 2, 3)


def uniform(seeds: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.float64]:
    """Random numbers in [0, 1), `count` for each seed, [N, count] (splitmix64, all at once)."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = seeds[:, None] + steps[None, :]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    numbers: npt.NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def _side(images: Tensor, image_size: int) -> int:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or (
        images.shape[1] != images.shape[2]
    ):
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: use uint8 "
                         "[B, side, side, 3]")
    side = int(images.shape[1])
    if side < image_size:
        raise ValueError(f"images have a side of {side}: image_size={image_size} needs as much")
    return side


def _reaches(augmentation: Augmentation | Sequence[Augmentation]) -> Mapping[str, Reach]:
    if isinstance(augmentation, Augmentation):
        return vars(augmentation)
    return {
        one.name: np.array([getattr(its, one.name) for its in augmentation])
        for one in fields(Augmentation)
    }


def jpegs(images: Tensor, qualities: Sequence[int]) -> Tensor:
    """Save each picture as JPEG of its quality (1 to 95) and read it again; uint8 [B, S, S, 3].

    One by one on the CPU, by libjpeg itself: what a table of divisors leaves behind is not worth
    imitating with tensors, and torchvision's own is to be removed.
    """
    saved = np.empty(tuple(images.shape), dtype=np.uint8)
    for row, (picture, quality) in enumerate(zip(images.cpu().numpy(), qualities, strict=True)):
        body = io.BytesIO()
        Image.fromarray(picture).save(body, "JPEG", quality=quality)
        saved[row] = np.asarray(Image.open(body))
    return torch.from_numpy(saved).to(images.device)


def _jpeg(images: Tensor, draws: npt.NDArray[np.float64], probability: Reach) -> Tensor:
    """Leave the traces of JPEG in some pictures, before they are bent: so they come to us."""
    chosen = np.flatnonzero(draws[:, JPEG] < probability)
    if len(chosen) == 0:
        return images
    span = BEST_QUALITY - WORST_QUALITY
    qualities = np.rint(WORST_QUALITY + span * draws[chosen, JPEG_QUALITY]).astype(int)
    rows = torch.from_numpy(chosen).to(images.device)
    return images.index_copy(0, rows, jpegs(images[rows], qualities.tolist()))


def _matrices(
    draws: npt.NDArray[np.float64], reach: Mapping[str, Reach]
) -> npt.NDArray[np.float64]:
    """Where each picture is looked at, [B, 2, 3]."""
    share = reach["scale"] + (reach["zoom_out"] - reach["scale"]) * draws[:, SHARE]
    angle = np.deg2rad((2 * draws[:, ANGLE] - 1) * reach["rotation"])
    mirror = np.where((draws[:, FLIP] < 0.5) & np.equal(reach["flip"], True), -1.0, 1.0)
    room = abs(1 - share) + 2 * reach["shift"]  # how far its middle can go from the picture's
    return affine(
        share, angle, mirror, room * (2 * draws[:, LEFT] - 1), room * (2 * draws[:, TOP] - 1)
    )


def _grid(matrices: npt.NDArray[np.float64], size: int, device: torch.device) -> Tensor:
    """Where each output pixel looks, [B, size, size, 2] in -1 to 1."""
    theta = torch.from_numpy(matrices.astype(np.float32)).to(device, non_blocking=True)
    middles = (2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1
    # the columns' share and the rows', added once: a fifth of the time of affine_grid
    across = theta[:, None, None, :, 0] * middles[None, None, :, None]
    down = theta[:, None, None, :, 1] * middles[None, :, None, None] + theta[:, None, None, :, 2]
    return across + down


def _tint(
    images: Tensor, draws: npt.NDArray[np.float64], reach: Mapping[str, Reach]
) -> Tensor:
    """Brightness, then contrast about the picture's own grey, then saturation; 0 to 255 becomes
    0 to 1.

    All three are linear, so each picture's colours go through one matrix and one offset.
    """
    if not any(np.any(reach[name]) for name in ("brightness", "contrast", "saturation")):
        return images.div_(255)
    brightness, contrast, saturation = (
        _factors(draws[:, column], reach[name])
        for column, name in (
            (BRIGHTNESS, "brightness"), (CONTRAST, "contrast"), (SATURATION, "saturation")
        )
    )
    kept = saturation[:, None, None] * np.eye(3)
    greyed = (1 - saturation)[:, None, None] * np.broadcast_to(LUMA, (3, 3))
    matrices = (brightness * contrast / 255)[:, None, None] * (kept + greyed)
    # what contrast adds of the picture's grey; saturation leaves grey as it is
    shares = (brightness * (1 - contrast) / 255)[:, None] * np.array(LUMA)
    both = torch.from_numpy(np.concatenate([matrices, shares[:, None]], axis=1).astype(np.float32))
    both = both.to(images.device, non_blocking=True)
    flat = images.flatten(2)
    offset = (flat.mean(dim=2) * both[:, 3]).sum(dim=1).view(-1, 1, 1)
    return torch.bmm(both[:, :3], flat).add_(offset).view_as(images)


def _factors(draw: npt.NDArray[np.float64], reach: Reach) -> npt.NDArray[np.float64]:
    return 1 + reach * (2 * draw - 1)


def _blur(images: Tensor, draws: npt.NDArray[np.float64], probability: Reach) -> Tensor:
    chosen = np.flatnonzero(draws[:, BLUR] < probability)
    if len(chosen) == 0:
        return images
    sigma = 0.5 + draws[chosen, BLUR_WIDTH, None]
    reach = np.arange(-BLUR_REACH, BLUR_REACH + 1)[None, :]
    kernel = np.exp(-0.5 * (reach / sigma) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    rows = torch.from_numpy(chosen).to(images.device)
    # each picture has a kernel of its own: pictures and colours become groups of one convolution
    weights = torch.from_numpy(np.repeat(kernel, 3, axis=0).astype(np.float32)).to(images.device)
    groups, size = len(chosen) * 3, images.shape[-1]
    flat = images[rows].reshape(1, groups, size, size)
    padded = functional.pad(flat, (BLUR_REACH,) * 4, mode="reflect")
    across = functional.conv2d(padded, weights.view(groups, 1, 1, -1), groups=groups)
    down = functional.conv2d(across, weights.view(groups, 1, -1, 1), groups=groups)
    return images.index_copy(0, rows, down.view(len(chosen), 3, size, size))


def _erase(images: Tensor, draws: npt.NDArray[np.float64], probability: Reach) -> Tensor:
    chosen = draws[:, ERASE] < probability
    if not chosen.any():
        return images
    size = images.shape[-1]
    area = np.where(chosen, 0.05 + 0.2 * draws[:, ERASE_AREA], 0.0)
    aspect = np.exp(np.log(2) * (2 * draws[:, ERASE_SHAPE] - 1))  # from 1:2 to 2:1
    width = np.minimum(np.sqrt(area * aspect), 1.0)
    height = np.minimum(np.sqrt(area / aspect), 1.0)
    left, top = (1 - width) * draws[:, ERASE_LEFT], (1 - height) * draws[:, ERASE_TOP]
    middle = (np.arange(size) + 0.5) / size
    columns = (middle >= left[:, None]) & (middle < (left + width)[:, None])
    rows = (middle >= top[:, None]) & (middle < (top + height)[:, None])
    mask = torch.from_numpy(rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
    return images.masked_fill(mask, GREY)
