"""Pictures bent by one grade of a transformation, and which of them a network still answers right.

Colours and blur are torchvision's, JPEG is libjpeg's. What moves pixels is seen through the same
matrices as in training: torchvision's rotation and zoom leave black borders, which real pictures do
not have.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from vision.augmentation import affine, jpegs, seeds_of, uniform, warp
from vision.failures import GRADES, Flags, Grade
from vision.prediction import Forward, Gatherable, ahead, upload

GREY = 127  # what hides a part of the picture

Draws = npt.NDArray[np.float64]


def answered(
    forward: Forward,
    class_names: Sequence[str],
    pixels: Gatherable,
    images: Sequence[str],
    labels: Sequence[str],
    image_size: int,
    device: torch.device,
    on_picture: Callable[[int], None] = lambda done: None,
) -> tuple[Flags, dict[Grade, Flags]]:
    """Whether each picture is answered rightly, [N]: as it is, and at each grade.

    forward: made by `vision.runtime.ready`. Each picture is gathered once;
    `on_picture` hears how many have been answered, each as often as there are grades and once
    more. Raises ValueError for a label that is not among class_names.
    """
    column = {name: index for index, name in enumerate(class_names)}
    unknown = sorted(set(labels) - set(column))
    if unknown:
        raise ValueError(f"label {unknown[0]!r} is not among the network's classes: leave it out")
    plain = np.zeros(len(images), dtype=np.bool_)
    bent = {grade: np.zeros(len(images), dtype=np.bool_) for grade in GRADES}

    def produce() -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(images), forward.batch):
            rows = slice(start, min(start + forward.batch, len(images)))
            yield rows, upload(pixels.gather(images[rows]), device)

    def pictures() -> Iterator[tuple[tuple[slice, Flags], Tensor]]:
        for rows, stored in ahead(produce()):
            yield (rows, plain), stored
            draws = uniform(seeds_of(0, 0, images[rows]), 2)
            for grade, right in bent.items():
                yield (rows, right), bend(stored, grade, image_size, draws)

    true = torch.tensor([column[label] for label in labels], device=device)
    done = 0
    for (rows, right), outputs in forward.each(pictures()):
        right[rows] = (outputs.argmax(dim=1) == true[rows]).cpu().numpy()
        done += len(outputs)
        on_picture(done)
    return plain, bent


def bend(stored: Tensor, grade: Grade, image_size: int, draws: Draws) -> Tensor:
    """Bend stored pixels uint8 [n, S, S, 3] by one grade; the network sees image_size of S.

    draws: two random numbers for each picture, [n, 2], which place what has a place.
    Returns the same shape and type.
    """
    name, strength = grade
    if name == "occlusion":
        return _hide(stored, strength, image_size, draws)
    if name in ("rotation", "zoom in", "zoom out", "off-centre crop"):
        return _move(stored, grade, image_size, draws)
    if name == "JPEG":
        return jpegs(stored, [round(strength)] * len(stored))
    pictures: Tensor = stored.permute(0, 3, 1, 2)
    if name == "brightness":
        pictures = functional.adjust_brightness(pictures, 1 + strength)
    elif name == "contrast":
        pictures = functional.adjust_contrast(pictures, 1 + strength)
    elif name == "saturation":
        pictures = functional.adjust_saturation(pictures, 1 + strength)
    elif name == "blur":
        size = 2 * round(3 * strength) + 1
        pictures = functional.gaussian_blur(pictures, [size, size], [strength, strength])
    else:
        raise ValueError(f"grade {grade}: there is no such transformation")
    bent: Tensor = pictures.permute(0, 2, 3, 1).contiguous()
    return bent


def _move(stored: Tensor, grade: Grade, image_size: int, draws: Draws) -> Tensor:
    name, strength = grade
    count, side = len(stored), stored.shape[1]
    share = 1 / strength if name.startswith("zoom") else 1.0
    angle = np.deg2rad(strength) if name == "rotation" else 0.0
    # in -1 to 1 of what is stored, of which the network sees a part
    away = 2 * strength * image_size / side if name == "off-centre crop" else 0.0
    across, down = (away * np.where(draws[:, place] < 0.5, -1.0, 1.0) for place in (0, 1))
    matrices = affine(np.full(count, share), angle, 1.0, across, down)
    moved = warp(stored, matrices, side).round_().clamp_(0, 255)
    return moved.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _hide(stored: Tensor, area: float, image_size: int, draws: Draws) -> Tensor:
    """Lay a grey square somewhere over what the network sees."""
    edge = round(image_size * area**0.5)
    start = (stored.shape[1] - image_size) // 2
    places = start + np.floor(draws * (image_size - edge + 1)).astype(int)
    hidden = stored.clone()
    for picture, (left, top) in zip(hidden, places.tolist(), strict=True):
        picture[top:top + edge, left:left + edge] = GREY
    return hidden
