"""Our augmentation beside torchvision's, picture by picture: writes docs/augmentation.png.

Each line bends a real photograph by one field of `vision.plan.Augmentation`, once by ours and once
by torchvision's v2 functional with the parameters that our seed drew, both in float32 on pictures
in 0 to 1; JPEG is OpenCV's, since torchvision's is to be removed. Both interpolate bilinearly.
Beyond the border we see the picture mirrored, where torchvision fills with black: it is given the
mirrored border as padding before it turns. A crop of ours may begin between two pixels, one of
torchvision's cannot: the seed shown is one whose crop falls on whole pixels within a hundredth, and
what is left of the difference lies at the outermost line, where torchvision sees nothing beyond the
crop.

Run it as `python -m benchmarks.augmentation_pictures`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from vision import augmentation as ours
from vision.plan import Augmentation

PLACE = Path(__file__).parent.parent / "docs" / "augmentation.png"
SIDE = 224
AMPLIFIED = 20
SEEDS = np.arange(500_000, dtype=np.uint64)

Draws = npt.NDArray[np.float64]  # the numbers of one seed, [COLUMNS]
STILL = Augmentation(
    flip=False, scale=1.0, rotation=0.0, brightness=0.0, contrast=0.0, saturation=0.0
)


@dataclass(frozen=True)
class Comparison:
    """One transformation: a plan that does nothing else, and torchvision's way to the same.

    theirs: float32 [3, side, side] in 0 to 1 and our seed's numbers to the bent picture and the
    parameters in words; strong: how telling a seed is, [N, COLUMNS] to [N].
    """

    name: str
    plan: Augmentation
    theirs: Callable[[Tensor, Draws], tuple[Tensor, str]]
    strong: Callable[[Draws], Draws]


def comparisons() -> list[Comparison]:
    """Every field of `Augmentation`, each alone."""
    return [
        Comparison("scale", _only(scale=0.5), _crop, _whole_pixels),
        Comparison("rotation", _only(rotation=25.0), _rotate,
                   lambda draws: -abs(draws[:, ours.ANGLE] - 0.9)),
        Comparison("flip", _only(flip=True), _flip, lambda draws: -draws[:, ours.FLIP]),
        Comparison("brightness", _only(brightness=0.4), _brightness,
                   lambda draws: draws[:, ours.BRIGHTNESS]),
        Comparison("contrast", _only(contrast=0.6), _contrast,
                   lambda draws: -draws[:, ours.CONTRAST]),
        Comparison("saturation", _only(saturation=0.8), _saturation,
                   lambda draws: -draws[:, ours.SATURATION]),
        Comparison("blur", _only(blur=1.0), _blur, lambda draws: draws[:, ours.BLUR_WIDTH]),
        Comparison("erase", _only(erase=1.0), _erase, lambda draws: draws[:, ours.ERASE_AREA]),
        Comparison("zoom_out", _only(zoom_out=1.5), _zoom_out, lambda draws: draws[:, ours.SHARE]),
        Comparison("shift", _only(shift=0.2), _shift,
                   lambda draws: abs(draws[:, ours.LEFT] - 0.5) + abs(draws[:, ours.TOP] - 0.5)),
        Comparison("jpeg", _only(jpeg=1.0), _jpeg, lambda draws: -draws[:, ours.JPEG_QUALITY]),
    ]  # fmt: skip


def _only(**fields: float) -> Augmentation:
    return Augmentation.from_dict({**STILL.__dict__, **fields})


def telling_seed(comparison: Comparison) -> int:
    """The seed whose numbers show the transformation best."""
    return int(np.argmax(comparison.strong(ours.uniform(SEEDS, ours.COLUMNS))))


def compared(comparison: Comparison, picture: Tensor, seed: int) -> tuple[Tensor, Tensor, str]:
    """Ours and theirs of a uint8 picture [side, side, 3], float32 [3, side, side], in words."""
    seeds = np.array([seed], dtype=np.uint64)
    bent = ours.augment(picture[None], comparison.plan, picture.shape[0], seeds)[0]
    plain = picture.permute(2, 0, 1).float() / 255
    theirs, words = comparison.theirs(plain, ours.uniform(seeds, ours.COLUMNS)[0])
    return bent, theirs, words


# --- torchvision, told what our seed drew -----------------------------------------------------


def _crop_of(draws: Draws, least: float, side: int) -> Draws:
    """Left, top and side of the crop in pixels, [..., 3]."""
    share = least + (1 - least) * draws[..., ours.SHARE]
    room = side * (1 - share)
    return np.stack(
        [room * draws[..., ours.LEFT], room * draws[..., ours.TOP], side * share], axis=-1
    )


def _whole_pixels(draws: Draws) -> Draws:
    crops = _crop_of(draws, 0.5, SIDE)
    between = abs(crops - crops.round()).max(axis=1)
    return np.where(crops[:, 2] < 0.7 * SIDE, -between, -1.0)


def _crop(picture: Tensor, draws: Draws) -> tuple[Tensor, str]:
    side = picture.shape[-1]
    left, top, cut = _crop_of(draws, 0.5, side).round().astype(int).tolist()
    bent = functional.resized_crop(picture, top, left, cut, cut, [side, side], antialias=True)
    return bent, f"{cut} of {side} pixels\nfrom ({left}, {top})"


def _rotate(picture: Tensor, draws: Draws) -> tuple[Tensor, str]:
    side = picture.shape[-1]
    angle = 25.0 * (2 * draws[ours.ANGLE] - 1)
    padded = functional.pad(picture, [side // 2] * 4, padding_mode="symmetric")
    turned = functional.rotate(padded, angle, interpolation=InterpolationMode.BILINEAR)
    return functional.center_crop(turned, [side, side]), f"{angle:+.1f}°"


def _flip(picture: Tensor, draws: Draws) -> tuple[Tensor, str]:
    assert draws[ours.FLIP] < 0.5, "this seed does not mirror"
    return functional.horizontal_flip(picture), "mirrored"


def _brightness(picture: Tensor, draws: Draws) -> tuple[Tensor, str]:
    factor = 1 + 0.4 * (2 * draws[ours.BRIGHTNESS] - 1)
    return functional.adjust_brightness(picture, factor), f"x {factor:.2f}"


def _contrast(picture: Tensor, draws: Draws) -> tuple[Tensor, str]:
    factor = 1 + 0.6 * (2 * draws[ours.CONTRAST] - 1)
    return functional.adjust_contrast(picture, factor), f"x {factor:.2f}"


def _saturation(picture: Tensor, draws: Draws) -> tuple[Tensor, str]:
    factor = 1 + 0.8 * (2 * draws[ours.SATURATION] - 1)
    return functional.adjust_saturation(picture, factor), f"x {factor:.2f}"


def _blur(picture: Tensor, draws: Draws) -> tuple[Tensor, str]:
    sigma = 0.5 + draws[ours.BLUR_WIDTH]
    size = 2 * ours.BLUR_REACH + 1
    return functional.gaussian_blur(picture, [size, size], [sigma, sigma]), f"sigma {sigma:.2f}"


def _erase(picture: Tensor, draws: Draws) -> tuple[Tensor, str]:
    side = picture.shape[-1]
    area, aspect = 0.05 + 0.2 * draws[ours.ERASE_AREA], 4 ** (draws[ours.ERASE_SHAPE] - 0.5)
    width, height = min((area * aspect) ** 0.5, 1.0), min((area / aspect) ** 0.5, 1.0)
    left, top = (1 - width) * draws[ours.ERASE_LEFT], (1 - height) * draws[ours.ERASE_TOP]
    # A pixel is erased when its middle lies within the rectangle.
    x, y, end_x, end_y = (
        int(np.ceil(edge * side - 0.5)) for edge in (left, top, left + width, top + height)
    )
    bent = functional.erase(
        picture, y, x, end_y - y, end_x - x, torch.full((3, 1, 1), ours.GREY)
    )
    return bent, f"{end_x - x} x {end_y - y} pixels\nfrom ({x}, {y})"


def _zoom_out(picture: Tensor, draws: Draws) -> tuple[Tensor, str]:
    share = 1 + 0.5 * draws[ours.SHARE]
    return _looked_at(picture, draws, share, share - 1), f"x {1 / share:.2f}"


def _shift(picture: Tensor, draws: Draws) -> tuple[Tensor, str]:
    moved = _looked_at(picture, draws, 1.0, 0.4)
    return moved, f"by ({0.4 * draws[ours.LEFT] - 0.2:+.0%}, {0.4 * draws[ours.TOP] - 0.2:+.0%})"


def _looked_at(picture: Tensor, draws: Draws, share: float, room: float) -> Tensor:
    """A share of the side whose middle is drawn from the room about the picture's own."""
    side = picture.shape[-1]
    middle = [room * (2 * draws[place] - 1) * side / 2 for place in (ours.LEFT, ours.TOP)]
    padded = functional.pad(picture, [side // 2] * 4, padding_mode="symmetric")
    moved = functional.affine(
        padded, angle=0.0, translate=[-one / share for one in middle], scale=1 / share,
        shear=[0.0, 0.0], interpolation=InterpolationMode.BILINEAR,
    )  # fmt: skip
    return functional.center_crop(moved, [side, side])


def _jpeg(picture: Tensor, draws: Draws) -> tuple[Tensor, str]:
    best, worst = ours.BEST_QUALITY, ours.WORST_QUALITY
    quality = round(worst + (best - worst) * draws[ours.JPEG_QUALITY])
    pixels = (255 * picture).round().to(torch.uint8).permute(1, 2, 0).numpy()
    _, saved = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    read = torch.from_numpy(cv2.imdecode(saved, cv2.IMREAD_COLOR_RGB))
    return read.permute(2, 0, 1) / 255, f"quality {quality}\nbeside OpenCV's"


# --- the picture ------------------------------------------------------------------------------


def photographs() -> list[Tensor]:
    """Two real photographs, uint8 [SIDE, SIDE, 3]."""
    found = []
    for one in load_sample_images().images:
        height, width, _ = one.shape
        left = (width - height) // 2
        square = Image.fromarray(one).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, 0, left + height, height)
        )
        found.append(torch.from_numpy(np.array(square)))
    return found


def draw() -> Figure:
    """One line for each transformation: original, ours, torchvision's, and the difference."""
    rows = comparisons()
    height = 0.95 + 1.8 * len(rows)  # inches
    figure = Figure(figsize=(8.4, height), dpi=100)
    grid = figure.subplots(len(rows), 4, gridspec_kw={
        "left": 0.155, "right": 0.995, "top": 1 - 0.85 / height, "bottom": 0.1 / height,
        "wspace": 0.04, "hspace": 0.04,
    })  # fmt: skip
    titles = ("photograph", "regraft", "torchvision", f"difference x {AMPLIFIED}")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.text(0.5, 1.06, title, transform=axes.transAxes, ha="center", fontweight="bold")
    some = photographs()
    for number, (line, row) in enumerate(zip(grid, rows, strict=True)):
        picture = some[0 if number < 3 else 1]
        mine, theirs, words = compared(row, picture, telling_seed(row))
        levels = 255 * (mine - theirs).abs()
        shown = (picture.permute(2, 0, 1) / 255, mine, theirs, levels * AMPLIFIED / 255)
        for axes, one in zip(line, shown, strict=True):
            axes.imshow(one.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_axis_off()
        line[0].text(-0.06, 0.5, f"{row.name}\n", transform=line[0].transAxes, ha="right",
                     va="center", fontweight="bold")  # fmt: skip
        line[0].text(-0.06, 0.47, words, transform=line[0].transAxes, ha="right", va="top",
                     fontsize=8.5)  # fmt: skip
        line[3].text(0.5, 0.03, f"mean {levels.mean():.3f} levels of 255\n"
                     f"at most {levels.max():.2f}", transform=line[3].transAxes, ha="center",
                     color="white", fontsize=8.5)  # fmt: skip
    figure.text(0.5, 1 - 0.12 / height, "Augmentation with the same parameters, drawn by one seed",
                ha="center", va="top", fontsize=12, fontweight="bold")  # fmt: skip
    figure.text(0.5, 1 - 0.37 / height,
                "both bilinear; beyond the border the picture is mirrored "
                "(torchvision: padded so first)", ha="center", va="top", fontsize=9)  # fmt: skip
    return figure


def main() -> None:
    """Write the picture."""
    draw().savefig(PLACE)
    print(f"wrote {PLACE}")


if __name__ == "__main__":
    main()
