"""Bent pictures keep their shape, are bent alike each time, and find what a network leans on."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from benchmarks.augmentation_pictures import photographs
from vision.failures import GRADES, Grade, sensitivities
from vision.grades import answered, bend
from vision.prediction import Forward

NAMES = ("dark", "light")
SIDE, SIZE = 40, 32
CPU = torch.device("cpu")


class Greys:
    """Noisy pictures, half of them dark and half light."""

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(0)
        self.images = [f"image{index}" for index in range(count)]
        self.labels = [NAMES[index % 2] for index in range(count)]
        noise = random.integers(-30, 31, (count, SIDE, SIDE, 3))
        levels = np.array([115 if name == "dark" else 175 for name in self.labels])
        self.stored = (levels[:, None, None, None] + noise).astype(np.uint8)
        self.asked: list[str] = []

    def gather(self, images: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Return the pictures in this order."""
        self.asked += images
        return self.stored[[self.images.index(image) for image in images]]


def by_brightness(stored: Tensor) -> Tensor:
    """Say `light` where the middle of a picture is lighter than 136."""
    start = (SIDE - SIZE) // 2
    seen = stored[:, start:start + SIZE, start:start + SIZE].float().mean(dim=(1, 2, 3))
    return torch.stack([136 - seen, seen - 136], dim=1)


def test_what_a_network_leans_on_is_found() -> None:
    """One that goes by brightness loses dark pictures made lighter, and none that are turned."""
    greys = Greys(100)
    told: list[int] = []
    plain, bent = answered(
        Forward(by_brightness), NAMES, greys, greys.images, greys.labels, SIZE, CPU, told.append
    )
    assert plain.all()
    drops = {
        (one.class_name, one.transformation, one.strength): one.drop
        for one in sensitivities(plain, bent, greys.labels)
    }
    assert drops["dark", "brightness", 0.25] == 1
    assert drops["light", "brightness", 0.25] == 0
    assert drops["light", "brightness", -0.25] == 1
    assert drops[None, "brightness", 0.25] == 0.5
    assert not any(drop for (_, name, _), drop in drops.items()
                   if name in ("rotation", "saturation", "blur", "JPEG"))  # fmt: skip
    # each picture is read once, however often it is answered
    assert greys.asked == greys.images
    assert told[-1] == 100 * (1 + len(GRADES))


@pytest.mark.parametrize("grade", GRADES, ids=lambda grade: f"{grade[0]} {grade[1]:g}")
def test_every_grade_bends_a_photograph(grade: Grade) -> None:
    """The same shape and type, other pixels, and the same ones in another batch."""
    pictures = torch.stack([one[12:212, 12:212] for one in photographs()])
    before = pictures.clone()
    draws = np.array([[0.1, 0.9], [0.6, 0.3]])
    bent = bend(pictures, grade, 175, draws)
    assert bent.shape == pictures.shape
    assert bent.dtype == torch.uint8
    assert bent.is_contiguous()
    assert torch.equal(pictures, before), "the stored pixels were written to"
    assert torch.equal(bend(pictures[1:], grade, 175, draws[1:])[0], bent[1])
    seen = slice(12, 187)
    moved = (bent[:, seen, seen].float() - pictures[:, seen, seen].float()).abs()
    assert float(moved.mean()) > 1


def test_what_moves_pixels_moves_them_as_torchvision_does() -> None:
    """Turned and zoomed pictures equal torchvision's wherever that one sees the picture."""
    picture = photographs()[0]
    draws = np.zeros((1, 2))
    theirs = picture.permute(2, 0, 1).float()
    turned = functional.rotate(theirs, 30, interpolation=InterpolationMode.BILINEAR)
    inner = slice(60, 164)
    for grade, expected in (
        (Grade("rotation", 30), turned),
        (Grade("zoom in", 1.6), functional.affine(
            theirs, 0, [0, 0], 1.6, [0, 0], interpolation=InterpolationMode.BILINEAR)),
        (Grade("zoom out", 0.8), functional.affine(
            theirs, 0, [0, 0], 0.8, [0, 0], interpolation=InterpolationMode.BILINEAR)),
    ):  # fmt: skip
        ours = bend(picture[None], grade, 224, draws)[0].permute(2, 0, 1).float()
        apart = (ours - expected)[:, inner, inner].abs()
        assert float(apart.max()) <= 1.0, grade  # rounded to whole levels
    away = bend(picture[None], Grade("off-centre crop", 0.125), 224, draws)[0]
    assert int((away[28:, 28:].int() - picture[:-28, :-28].int()).abs().max()) <= 1


def test_occlusion_hides_its_share_of_what_is_seen() -> None:
    """A grey square of a quarter lies within the middle that the network sees, wherever drawn."""
    stored = torch.zeros((5, SIDE, SIDE, 3), dtype=torch.uint8)
    draws = np.array([[0, 0], [0.999, 0.999], [0.5, 0.5], [0.2, 0.8], [0.9, 0.1]])
    hidden = bend(stored, Grade("occlusion", 0.25), SIZE, draws)
    seen = hidden[:, 4:36, 4:36]
    assert [int((one > 0).all(dim=-1).sum()) for one in seen] == [256] * 5
    assert int((hidden > 0).all(dim=-1).sum()) == 5 * 256


def test_a_label_that_the_network_does_not_know_is_refused() -> None:
    """Nobody could answer it rightly, and every drop would look smaller than it is."""
    greys = Greys(4)
    with pytest.raises(ValueError, match="'okapi' is not among"):
        answered(Forward(by_brightness), NAMES, greys, greys.images, ["okapi"] * 4, SIZE, CPU)
