"""Identification: what a version says of pictures that nobody has labelled, with what it saw."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vision.answers import Identified
from vision.features import TOLERANCE, Head
from vision.network import class_names_of, head
from vision.plan import Plan
from vision.prediction import best_first, device_named, upload
from vision.runtime import Engine, ready

# pictures that are answered at once
BATCH = 64
TOP = 5
# stored pixels uint8 [n, side, side, 3] on the device -> logits [n, classes], features [n, width]
Seeing = Callable[[Tensor], tuple[Tensor, Tensor]]
LARGEST_HALF = float(np.finfo(np.float16).max)


def seeing(engine: Engine, network: nn.Module, plan: Plan, device: str | torch.device) -> Seeing:
    """Make a network ready to answer and to give what its head was given, both float32.

    One pass through the backbone gives both where the head is one layer at the end; elsewhere a
    second one does. For at most BATCH pictures at once. Raises `NoEngine`.
    """
    place = device_named(device)
    backbone = copy.deepcopy(network).eval()
    backbone.reset_classifier(0)  # type: ignore[operator]
    alone = _head_alone(network, backbone, plan)
    features_of = ready(engine, backbone, plan, place, BATCH)
    if alone is None:
        answers_of = ready(engine, network, plan, place, BATCH)

        def twice(pixels: Tensor) -> tuple[Tensor, Tensor]:
            return answers_of(pixels), features_of(pixels).flatten(1)

        return twice
    last = alone.to(place)

    def once(pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = features_of(pixels)
        with torch.inference_mode():
            return last(features), features

    return once


def _head_alone(network: nn.Module, backbone: nn.Module, plan: Plan) -> Head | None:
    """The head, if it answers for the backbone's features as the whole network does."""
    if not isinstance(head(network), nn.Linear | nn.Conv2d):
        return None
    alone = Head(copy.deepcopy(network)).eval()
    noise = torch.randn(
        (2, 3, plan.image_size, plan.image_size), generator=torch.Generator().manual_seed(0)
    )
    whole = network.eval().to("cpu")
    with torch.inference_mode():
        features, expected = backbone.to("cpu")(noise), whole(noise)
        if not isinstance(features, Tensor) or features.shape != (len(noise), alone.width):
            return None
        apart = (alone.to("cpu")(features) - expected).abs().max()
    return alone if apart <= TOLERANCE * expected.abs().max() else None


def identify(
    forward: Seeing,
    network: nn.Module,
    images: Sequence[str],
    pixels: npt.NDArray[np.uint8],
    targets: Sequence[str],
    device: str | torch.device,
) -> Identified:
    """Answer for pictures, uint8 [N, side, side, 3] of these sha256, by what `seeing` has made.

    targets: classes of the network whose confidence is kept, too. Raises `BadAnswers` for a
    network whose outputs are not numbers.
    """
    names = class_names_of(network)
    place = device_named(device)
    top = min(TOP, len(names))
    columns = torch.tensor([names.index(name) for name in targets], dtype=torch.long, device=place)
    parts = []
    for start in range(0, len(images), BATCH):
        logits, features = forward(upload(pixels[start:start + BATCH], place))
        with torch.inference_mode():
            shares = logits.softmax(dim=1)
            largest, indices = best_first(shares, top)
            entropy = torch.special.entr(shares).sum(dim=1)
            halved = features.clamp(-LARGEST_HALF, LARGEST_HALF).half()
            parts.append((indices, largest, shares[:, columns], entropy, halved))
    if not parts:
        return nothing(names, targets)
    whole = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    return Identified(
        images=tuple(images),
        class_names=names,
        top=whole[0],
        confidences=whole[1],
        targets=tuple(targets),
        target_confidences=whole[2],
        entropy=whole[3],
        features=whole[4],
    )


def nothing(class_names: Sequence[str], targets: Sequence[str]) -> Identified:
    """The answers of a shard in which nothing was new."""
    return Identified(
        images=(),
        class_names=tuple(class_names),
        top=np.zeros((0, 1), np.int64),
        confidences=np.zeros((0, 1), np.float32),
        targets=tuple(targets),
        target_confidences=np.zeros((0, len(targets)), np.float32),
        entropy=np.zeros(0, np.float32),
        features=np.zeros((0, 1), np.float16),
    )
