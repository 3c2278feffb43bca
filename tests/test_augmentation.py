"""Pictures are bent by their own random numbers, whatever batch they come in."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import augmentation_pictures
from vision.augmentation import augment, centre, jpegs, seeds_of, uniform
from vision.plan import Augmentation

STILL = Augmentation(
    flip=False, scale=1.0, rotation=0.0, brightness=0.0, contrast=0.0, saturation=0.0
)
FULL = Augmentation(blur=0.5, erase=0.5, zoom_out=1.3, shift=0.1, jpeg=0.5)


def pictures(count: int, side: int = 40) -> torch.Tensor:
    """Smooth random pictures, uint8 [count, side, side, 3]."""
    coarse = torch.rand((count, 3, 5, 5), generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return (smooth.permute(0, 2, 3, 1) * 255).to(torch.uint8)


def test_no_augmentation_changes_nothing() -> None:
    """With everything off, pictures of the network's size come out as they went in."""
    images = pictures(3, 32)
    same = augment(images, STILL, 32, seeds_of(0, 1, ["a", "b", "c"]))
    assert torch.allclose(same, centre(images, 32), atol=1e-5)


def test_a_picture_is_bent_alike_in_every_batch() -> None:
    """Alone, in another order or at another place, a picture gets the same pixels."""
    images = pictures(6)
    names = [f"image{index}" for index in range(6)]
    together = augment(images, FULL, 32, seeds_of(5, 2, names))
    backwards = augment(images.flip(0), FULL, 32, seeds_of(5, 2, names[::-1]))
    assert torch.allclose(together, backwards.flip(0), atol=1e-6)
    for row, name in enumerate(names):
        alone = augment(images[row:row + 1], FULL, 32, seeds_of(5, 2, [name]))
        assert torch.allclose(together[row], alone[0], atol=1e-6)


def test_epoch_seed_and_image_each_change_the_picture() -> None:
    """No epoch repeats another's pictures, no seed another's run."""
    seeds = np.concatenate(
        [seeds_of(seed, epoch, ["a", "b"]) for seed in (0, 1) for epoch in (1, 2, 11)]
    )
    assert len(set(seeds.tolist())) == 12
    images = pictures(1).expand(12, -1, -1, -1)
    bent = augment(images, FULL, 32, seeds)
    assert len({one.numpy().tobytes() for one in bent}) == 12


def test_colours_stay_colours() -> None:
    """Whatever is bent, the result is float32 in 0 to 1, of the network's size."""
    wild = Augmentation(rotation=180, scale=0.1, brightness=1, contrast=1, saturation=1, blur=1,
                        erase=1, zoom_out=2, shift=0.5, jpeg=1)
    bent = augment(pictures(16), wild, 24, np.arange(16, dtype=np.uint64))
    assert bent.shape == (16, 3, 24, 24)
    assert bent.dtype == torch.float32
    assert bent.isfinite().all()
    assert bent.min() >= 0
    assert bent.max() <= 1


def test_each_picture_can_be_bent_in_its_own_way() -> None:
    """Among pictures bent otherwise, each comes out as if all were bent like it."""
    kinds = [STILL, FULL, Augmentation(flip=False, rotation=90), Augmentation(blur=1, jpeg=1)] * 3
    images, seeds = pictures(12), np.arange(12, dtype=np.uint64)
    mixed = augment(images, kinds, 32, seeds)
    for row, kind in enumerate(kinds):
        alike = augment(images, kind, 32, seeds)
        assert torch.allclose(mixed[row], alike[row], atol=1e-6)
    assert torch.equal(augment(images, [FULL] * 12, 32, seeds), augment(images, FULL, 32, seeds))
    with pytest.raises(ValueError, match="2 augmentations"):
        augment(images, [FULL] * 2, 32, seeds)


def test_flip_mirrors_about_half_of_the_pictures() -> None:
    """Each picture is either as it was or exactly mirrored."""
    images = pictures(1, 32).expand(64, -1, -1, -1)
    only_flip = Augmentation(
        flip=True, scale=1.0, rotation=0, brightness=0, contrast=0, saturation=0
    )
    bent = augment(images, only_flip, 32, np.arange(64, dtype=np.uint64))
    plain = centre(images[:1], 32)[0]
    kept = torch.stack([(one - plain).abs().max() < 1e-4 for one in bent])
    turned = torch.stack([(one - plain.flip(-1)).abs().max() < 1e-4 for one in bent])
    assert bool((kept ^ turned).all())
    assert 16 < int(turned.sum()) < 48


def test_erasing_hides_a_part_behind_grey() -> None:
    """An erased picture has a grey rectangle of a twentieth to a quarter and is else untouched."""
    images = torch.zeros((20, 32, 32, 3), dtype=torch.uint8)
    erase = Augmentation(
        flip=False, scale=1, rotation=0, brightness=0, contrast=0, saturation=0, erase=1.0
    )
    bent = augment(images, erase, 32, np.arange(20, dtype=np.uint64))
    grey = (bent == 0.5).all(dim=1).float().mean(dim=(1, 2))
    assert bool(((grey > 0.03) & (grey < 0.3)).all())
    assert set(bent.ravel().tolist()) == {0.0, 0.5}


def test_jpeg_leaves_its_traces_in_some_pictures() -> None:
    """Each is as it was or as a JPEG of some quality leaves it: the same colours, a little off."""
    images, seeds = pictures(40, 64), np.arange(40, dtype=np.uint64)
    still = augment(images, STILL, 64, seeds)
    some = augment(images, replace(STILL, jpeg=0.5), 64, seeds)
    apart = 255 * (some - still).abs().mean(dim=(1, 2, 3))
    assert 10 < int((apart == 0).sum()) < 30
    assert float(apart[apart > 0].min()) > 0.2
    assert float(apart.max()) < 15
    worse, better = (jpegs(images, [quality] * 40).float() for quality in (10, 90))
    assert float((worse - images).abs().mean()) > 2 * float((better - images).abs().mean())


def test_blur_smooths_and_keeps_the_brightness() -> None:
    """A blurred chessboard has less contrast and the same mean."""
    board = ((torch.arange(32)[:, None] + torch.arange(32)[None]) % 2 * 255).to(torch.uint8)
    images = board[None, :, :, None].expand(4, -1, -1, 3)
    blur = Augmentation(
        flip=False, scale=1, rotation=0, brightness=0, contrast=0, saturation=0, blur=1.0
    )
    bent = augment(images, blur, 32, np.arange(4, dtype=np.uint64))
    assert float(bent.std()) < 0.3
    assert float(bent.mean()) == pytest.approx(0.5, abs=0.02)


def test_random_numbers_are_even_and_independent() -> None:
    """The numbers fill 0 to 1 evenly, and neither seeds nor columns go together."""
    numbers = uniform(np.arange(4000, dtype=np.uint64), 15)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean(axis=0) - 0.5).max() < 0.03
    together = np.corrcoef(numbers.T) - np.eye(15)
    assert abs(together).max() < 0.08
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.08


def test_wrong_shapes_are_refused() -> None:
    """Too small, not square, not uint8 or too few seeds give a sentence, not a picture."""
    seeds = seeds_of(0, 1, ["a"])
    with pytest.raises(ValueError, match="side of 40"):
        augment(pictures(1), STILL, 64, seeds)
    with pytest.raises(ValueError, match="uint8"):
        centre(torch.zeros(1, 32, 32, 3), 32)
    with pytest.raises(ValueError, match="uint8"):
        centre(torch.zeros((1, 32, 31, 3), dtype=torch.uint8), 16)
    with pytest.raises(ValueError, match="seeds"):
        augment(pictures(2), STILL, 32, seeds)


# How far ours may lie from torchvision's, in levels of 255: (on average, anywhere). A crop's
# outermost line looks beyond the crop where torchvision's cannot.
APART = {"scale": (0.5, 255.0)}


@pytest.mark.parametrize(
    "comparison", augmentation_pictures.comparisons(), ids=lambda comparison: comparison.name
)
def test_each_transformation_is_that_of_torchvision(
    comparison: augmentation_pictures.Comparison,
) -> None:
    """On real photographs, torchvision with the parameters a seed drew gives the same pixels."""
    seeds = [augmentation_pictures.telling_seed(comparison)]
    if comparison.name not in ("scale", "flip"):  # other seeds crop between pixels, or not mirror
        seeds += [1, 2, 3]
    mean, most = APART.get(comparison.name, (0.02, 0.05))
    for picture in augmentation_pictures.photographs():
        for seed in seeds:
            bent, theirs, _ = augmentation_pictures.compared(comparison, picture, seed)
            levels = 255 * (bent - theirs).abs()
            assert float(levels.mean()) <= mean
            assert float(levels.max()) <= most
            plain = picture.permute(2, 0, 1) / 255
            assert float((bent - plain).abs().max()) > 0.01, "nothing was bent"
