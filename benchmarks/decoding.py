"""Decode and resize: from JPEG bytes to the square that the network sees, one picture at a time.

Ours is `vision.images.square`, the one path of intake, training and serving. The peers do the same
with Pillow (the plain way), torchvision and OpenCV: decode, take the middle square, make it as
large as the plan says. All on one thread, from the same bytes in memory. How far the pixels are
from Pillow's plain way stands beside each figure, in levels of 255.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from io import BytesIO

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from benchmarks.bench import arguments, facts
from benchmarks.figures import Figure, Goal, Part, Row, take_turns
from benchmarks.photographs import photographs
from vision.images import square
from vision.plan import Geometry

PART = "decode"
GEOMETRY = Geometry(224, 0.875, "bilinear")
ROUNDS = 5
SMALL, MIDDLE, LARGE = 400, 100, 12
PILLOW, TORCHVISION, OPENCV = "Pillow, plain", "torchvision.io", "OpenCV"

Pixels = npt.NDArray[np.uint8]
Decode = Callable[[bytes], Pixels]


def main() -> None:
    """Measure three sizes and write the part."""
    given = arguments(PART)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pictures = [body for _, body in photographs(SMALL, given.data)]
    rows = (
        row("small JPEGs, about 240 pixels a side", pictures),
        row("JPEGs of 1.2 megapixels", upscaled(pictures[:MIDDLE], (1280, 960))),
        row("JPEGs of 6 megapixels", upscaled(pictures[:LARGE], (2832, 2124))),
        row("JPEGs of 6 megapixels with grain", upscaled(pictures[:LARGE], (2832, 2124), grain=12)),
    )
    notes = (
        "A JPEG decoder can leave out the finest parts of each block and give a picture that is 2, "
        "4 or 8 times smaller for much less work; regraft asks for the smallest one that still has "
        "twice the pixels it needs (and 512), and resizes that. A truncated or damaged file is "
        "still noticed, because all the data is read. Small pictures are decoded whole and resized "
        "by torch, whose resizing of bytes gives Pillow's pixels in a third of Pillow's time.",
        "At pictures too small to be decoded reduced, OpenCV and torchvision.io are quicker where "
        "the goal is missed: Pillow's decoder takes longer than theirs for the same JPEG. "
        "Pillow stays because every promise about damaged files is tested with it.",
    )
    Part(PART, "Decode and resize", rows, notes, facts=facts()).save()


def row(what: str, bodies: Sequence[bytes]) -> Row:
    """All contenders in turn over the same bytes, with their errors."""
    contenders: dict[str, Decode] = {
        "regraft": lambda body: square(body, GEOMETRY),
        PILLOW: by_pillow,
        TORCHVISION: by_torchvision,
        OPENCV: by_opencv,
    }
    found = take_turns(
        {name: timed(decode, bodies) for name, decode in contenders.items()}, "images/s", ROUNDS
    )
    noted = [
        Figure(name, figure.unit, figure.values, error(contenders[name], bodies))
        for name, figure in found.items()
    ]
    best = max(noted[1:], key=lambda figure: figure.median)
    goal = Goal(best.name, 1.0, f"as fast as the best peer ({best.name}) or faster")
    return Row(f"{what}, to {GEOMETRY.side} x {GEOMETRY.side}", noted[0], tuple(noted[1:]), (goal,))


def timed(decode: Decode, bodies: Sequence[bytes]) -> Callable[[], float]:
    """Images per second over all of them, once."""

    def rate() -> float:
        begun = time.perf_counter()
        for body in bodies:
            decode(body)
        return len(bodies) / (time.perf_counter() - begun)

    return rate


def error(decode: Decode, bodies: Sequence[bytes]) -> str:
    """Mean and largest distance from Pillow's plain way, over some of the pictures."""
    if decode is by_pillow:
        return "the measure of pixel errors"
    apart = [np.abs(decode(body).astype(int) - by_pillow(body)) for body in bodies[:50]]
    return f"pixels {np.mean(apart):.2f} levels apart, at most {np.max(apart)}"


def by_pillow(body: bytes) -> Pixels:
    """Full decode, plain antialiased resize."""
    image = Image.open(BytesIO(body)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    size = (GEOMETRY.side, GEOMETRY.side)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))


def by_torchvision(body: bytes) -> Pixels:
    """decode_jpeg and the transforms that its documentation shows."""
    image = decode_jpeg(torch.frombuffer(bytearray(body), dtype=torch.uint8), ImageReadMode.RGB)
    squared = functional.center_crop(image, [min(image.shape[1:])] * 2)
    resized = functional.resize(squared, [GEOMETRY.side] * 2, antialias=True)
    return resized.permute(1, 2, 0).numpy()


def by_opencv(body: bytes) -> Pixels:
    """imdecode; by areas where it gets smaller, which is OpenCV's own advice, else linear."""
    image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    how = cv2.INTER_AREA if side > GEOMETRY.side else cv2.INTER_LINEAR
    squared = image[top : top + side, left : left + side]
    return cv2.resize(squared, (GEOMETRY.side, GEOMETRY.side), interpolation=how)


def upscaled(bodies: Sequence[bytes], size: tuple[int, int], grain: float = 0) -> list[bytes]:
    """The pictures enlarged, with the grain of a camera's sensor or without."""
    random = np.random.default_rng(0)
    made = []
    for body in bodies:
        image = Image.open(BytesIO(body)).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        if grain:
            noise = random.normal(0, grain, (size[1], size[0], 1))
            image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


if __name__ == "__main__":
    main()
