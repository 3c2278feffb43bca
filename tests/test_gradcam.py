"""Maps equal the grad-cam package's, and say so when nothing speaks for a class."""

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from vision.augmentation import centre
from vision.gradcam import SHOWN_SIDE, Map, maps, overlay
from vision.network import build, head, normalisation, target_layer
from vision.plan import Plan

NAMES = ("cat", "dog", "emu", "gnu")
TARGETS = [0, 1, 2, 3, 0]


def pictures(side: int, count: int = len(TARGETS)) -> npt.NDArray[np.uint8]:
    """Smooth random pictures, which give maps with more than noise in them."""
    coarse = torch.rand((count, 3, 6, 6), generator=torch.Generator().manual_seed(2))
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    found: npt.NDArray[np.uint8] = (smooth.permute(0, 2, 3, 1) * 255).to(torch.uint8).numpy()
    return found


def stretched(values: npt.NDArray[np.floating], size: int) -> npt.NDArray[np.float32]:
    """Enlarge to the picture's size and scale to 0 to 1, as the package does last."""
    large = cv2.resize(values.astype(np.float32), (size, size))
    large = large - large.min()
    found: npt.NDArray[np.float32] = large / (1e-7 + large.max())
    return found


@pytest.mark.parametrize(
    "architecture",
    ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "mobilenetv2_100"],
)
def test_maps_equal_the_grad_cam_package(architecture: str) -> None:
    """In batches and with half a graph, each map is the package's within a thousandth."""
    plan = Plan(architecture=architecture, image_size=128)
    network = build(plan, NAMES).eval()
    stored = pictures(plan.geometry.side)
    found = maps(network, stored, TARGETS, plan, "cpu", batch_size=3)
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in normalisation(network, plan))
    batch = (centre(torch.from_numpy(stored), 128) - mean) / std

    def grid(tokens: torch.Tensor) -> torch.Tensor:
        if tokens.ndim == 4:
            return tokens
        return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, 8, 8)

    with GradCAM(network, [target_layer(network)], reshape_transform=grid) as package:
        expected = package(batch, [ClassifierOutputTarget(target) for target in TARGETS])
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.positive == bool(theirs.max() > 0)
        assert abs(stretched(mine.values, 128) - theirs).max() < 1e-3
    assert any(one.positive for one in found)


@pytest.mark.parametrize(
    "architecture", ["resnet50", "inception_v4", "efficientnet_b0", "mobilenetv2_100"]
)
def test_each_named_architecture_is_explained(architecture: str) -> None:
    """The four networks of the bake-off give maps in 0 to 1 that differ between pictures."""
    plan = Plan(architecture=architecture, image_size=128)
    network = build(plan, NAMES)
    found = maps(network, pictures(plan.geometry.side, 2), [0, 0], plan, "cpu")
    for one in found:
        assert one.values.dtype == np.float16
        assert min(one.values.shape) > 1
        assert float(one.values.min()) == 0
        assert float(one.values.max()) == float(one.positive)


def test_explaining_leaves_the_network_as_it_was() -> None:
    """No hook, no gradient and no changed weight is left behind."""
    plan = Plan(architecture="test_resnet", image_size=64)
    network = build(plan, NAMES)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    maps(network, pictures(plan.geometry.side), TARGETS, plan, "cpu")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.is_grad_enabled()


def test_a_class_without_evidence_says_so() -> None:
    """A class that everything speaks against has an empty map, marked as such."""
    plan = Plan(architecture="test_efficientnet", image_size=64)
    network = build(plan, NAMES)
    with torch.no_grad():
        # the last maps are never negative, so weights below zero are evidence against the class
        network.bn2.act = nn.ReLU()  # type: ignore[union-attr]
        head(network).weight[0].fill_(-1.0)  # type: ignore[index]
        head(network).weight[1].fill_(1.0)  # type: ignore[index]
    against, for_it = maps(network, pictures(plan.geometry.side, 2), [0, 1], plan, "cpu")
    assert not against.positive
    assert float(against.values.max()) == 0
    assert (against.peak_x, against.centre_y, against.area) == (0.5, 0.5, 0.0)
    assert for_it.positive


class OneCorner(nn.Module):
    """A network that looks at one place only: the brightness of each cell is its map."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(16)
        self.classifier = nn.Linear(3, len(NAMES))
        nn.init.ones_(self.classifier.weight)
        vars(self).update(_regraft=vars(like)["_regraft"])

    def get_classifier(self) -> nn.Module:
        """As timm does."""
        return self.classifier

    def forward_features(self, batch: torch.Tensor) -> torch.Tensor:
        """Average over cells of 16 pixels."""
        pooled: torch.Tensor = self.pool(batch)
        return pooled

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Add up what the cells say."""
        outputs: torch.Tensor = self.classifier(self.forward_features(batch).mean(dim=(2, 3)))
        return outputs


def test_the_facts_point_to_the_place() -> None:
    """Peak and centre of mass lie where the bright spot of the picture is."""
    plan = Plan(architecture="test_resnet", image_size=64, crop=1.0, mean=(0.0,) * 3,
                std=(1.0,) * 3)
    picture = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    picture[0, 16:32, 48:64] = 255  # second row, last column of four
    (found,) = maps(OneCorner(build(plan, NAMES)), picture, [2], plan, "cpu")
    assert (found.peak_x, found.peak_y) == (0.875, 0.375)
    assert (found.centre_x, found.centre_y) == pytest.approx((0.875, 0.375), abs=1e-3)
    assert found.area == 1 / 16
    assert found.image_size == 64


def test_other_weights_give_other_maps() -> None:
    """The map is made of what the network has learned, not of the picture's edges alone."""
    plan = Plan(architecture="test_resnet", image_size=128)
    stored = pictures(plan.geometry.side)
    first, other = (
        maps(build(replace(plan, seed=seed), NAMES), stored, TARGETS, plan, "cpu")
        for seed in (0, 1)
    )
    assert any(
        abs(one.values.astype(float) - its.values.astype(float)).max() > 0.1
        for one, its in zip(first, other, strict=True)
    )


def test_an_overlay_shows_the_place_or_says_that_there_is_none() -> None:
    """Heat lies on the peak and nowhere else; a map without evidence gives a grey picture."""
    picture = np.full((72, 72, 3), (10, 200, 90), dtype=np.uint8)
    values = np.zeros((4, 4), dtype=np.float16)
    values[0, 0] = 1
    there = overlay(picture, Map(values, True, 64, 0.1, 0.1, 0.1, 0.1, 1 / 16))
    assert isinstance(there, Image.Image)
    assert there.size == (SHOWN_SIDE, SHOWN_SIDE)
    assert there.getpixel((210, 210)) == (10, 200, 90)
    assert there.getpixel((14, 14)) != (10, 200, 90)
    none = overlay(picture, Map(values * 0, False, 64, 0.5, 0.5, 0.5, 0.5, 0.0))
    red, green, blue = none.getpixel((210, 210))  # type: ignore[misc]
    assert red == green == blue
    assert len(set(np.asarray(none)[:15].ravel().tolist())) > 1
    large = np.tile(picture, (4, 4, 1))
    assert overlay(large, Map(values, True, 256, 0.1, 0.1, 0.1, 0.1, 1 / 16)).size == (256, 256)


def test_targets_that_do_not_fit_are_refused() -> None:
    """A class that the network does not have, or too few targets, is said."""
    plan = Plan(architecture="test_resnet", image_size=64)
    network = build(plan, NAMES)
    with pytest.raises(ValueError, match="target 4"):
        maps(network, pictures(plan.geometry.side, 1), [4], plan, "cpu")
    with pytest.raises(ValueError, match="2 pictures have 1"):
        maps(network, pictures(plan.geometry.side, 2), [0], plan, "cpu")
    assert maps(network, pictures(plan.geometry.side, 1)[:0], [], plan, "cpu") == []


