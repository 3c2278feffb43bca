"""Grad-CAM against the grad-cam package: one image at a time as its README does, and its batching.

The same trained MobileNetV2, the same pictures as tensors, the same class explained for each (the
one it answers). The package runs gradients through the whole network and enlarges each map to the
picture's size; regraft runs them through what lies behind the explained layer only and keeps the
map as it is, with where its peak and its mass are. The limit is the network's bare forward pass.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # threads that wait leave the core to others

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from benchmarks.bench import arguments, facts
from benchmarks.figures import Figure, Goal, Part, Row, take_turns
from benchmarks.photographs import photographs
from vision.fitting import Examples, fit
from vision.gradcam import Map, maps
from vision.images import decode, prepare
from vision.network import build, normalisation, target_layer
from vision.plan import Augmentation, Plan
from vision.prediction import device_named, predict, standardised

PART = "gradcam"
TRAINED, HELD_OUT, VALIDATED = 320, 64, 32
SIZE = 160
PACKAGE_AT_A_TIME = 24  # images of its slow rounds; the rate is per image
ROUNDS = 3


class Held:
    """Decoded pictures by digest."""

    def __init__(self, bodies: Sequence[bytes], plan: Plan) -> None:
        self.images = [hashlib.sha256(body).hexdigest() for body in bodies]
        decoded = (prepare(decode(body), plan.geometry) for body in bodies)
        self.stored = dict(zip(self.images, decoded, strict=True))

    def gather(self, images: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Their pixels, in this order."""
        return np.stack([self.stored[image] for image in images])


def main() -> None:
    """Train briefly, let all take turns, compare the maps, save the part."""
    given = arguments(PART)
    device = device_named("cuda" if given.gpu else "cpu")
    plan = plan_of(given.weights)
    network, pixels, accuracy = trained(plan, given.data, device)
    network.to(device).eval()
    mean, std = (
        torch.tensor(one, device=device).view(1, 3, 1, 1) for one in normalisation(network, plan)
    )
    batch = standardised(torch.from_numpy(pixels).to(device), SIZE, mean, std).contiguous()
    with torch.inference_mode():
        targets = torch.cat([network(some) for some in batch.split(32)]).argmax(dim=1).tolist()
    layer = target_layer(network)

    def ours() -> float:
        return _rate(lambda: maps(network, pixels, targets, plan, device), len(pixels), device)

    def package(at_once: int) -> Callable[[], float]:
        count = PACKAGE_AT_A_TIME if device.type == "cpu" else len(pixels)
        chosen = batch[:count]

        def explain() -> None:
            with GradCAM(model=network, target_layers=[layer]) as cam:
                for start in range(0, count, at_once):
                    some = slice(start, start + at_once)
                    wanted = [ClassifierOutputTarget(one) for one in targets[:count][some]]
                    cam(input_tensor=chosen[some], targets=wanted)

        return lambda: _rate(explain, count, device)

    def forward() -> float:
        def run() -> None:
            with torch.inference_mode():
                for some in batch.split(32):
                    network(some.contiguous(memory_format=torch.channels_last)).cpu()

        return _rate(run, len(batch), device)

    one, many, bare = "grad-cam, one image at a time", "grad-cam, batches of 24", "bare forward"
    contenders = {"regraft": ours, one: package(1), many: package(24), bare: forward}
    for warm_up in contenders.values():
        warm_up()
    figures = take_turns(contenders, "images/s", ROUNDS)
    found = maps(network, pixels, targets, plan, device)
    apart, positive = compared(network, layer, batch, targets, found)
    share = sum(one.positive for one in found) / len(found)
    assert positive == sum(one.positive for one in found)
    rows = (
        Row(
            f"Grad-CAM of MobileNetV2, {SIZE} px",
            Figure("regraft", "images/s", figures["regraft"].values,
                   f"{share:.0%} of maps non-zero, at most {apart:.1g} from the package's"),
            (figures[one], figures[many], figures[bare]),
            (Goal(one, 8.0, "8 x the package, one image at a time"),),
        ),
        Row(
            f"Maps that are non-zero, of {len(found)} pictures the network was not trained on",
            Figure("regraft", "share", (1 - share,), "share of maps that are all zero"),
            (Figure("a tenth of all", "share", (0.1,)),),
            (Goal("a tenth of all", 1.0, "at least 90% of the maps are non-zero"),),
        ),
        Row(
            "Largest difference to the package's map, of 0 to 1, after enlarging",
            Figure("regraft", "of 1", (apart,)),
            (Figure("one thousandth", "of 1", (1e-3,)),),
            (Goal("one thousandth", 1.0, "equal within 0.001"),),
        ),
    )
    notes = (
        "The same network, pictures and classes for all. The network was "
        + ("started from the weights given and " if given.weights else "")
        + f"trained for {plan.epochs} epochs on {TRAINED} photographs"
        + ("" if given.data else " cut out of two that scikit-learn ships")
        + f" ({accuracy:.0%} of {len(pixels)} others right); maps are of the class it answers. "
        "regraft takes stored pixels (uint8) and answers with map, peak, centre of mass and area; "
        "the package takes the standardised tensor and answers with a map of the picture's size.",
        "What makes the difference: gradients run through what lies behind the explained layer "
        "(for MobileNetV2 pooling and one matrix), not through the whole network, so that most of "
        "the time is the forward pass; batches of 32 with the colours last.",
    )
    part = Part(PART, "Grad-CAM", rows, notes, (), facts())
    part.save("cuda" if given.gpu else "cpu")


def plan_of(weights: Path | None) -> Plan:
    """A short training, from weights or from chance."""
    start = {"weights": str(weights), "arguments": {"pad_type": "same"}} if weights else {}
    return Plan(
        architecture="mobilenetv2_100",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        image_size=SIZE,
        recipe="all" if weights else "scratch",
        epochs=3 if weights else 5,
        learning_rate=2e-3,
        augmentation=Augmentation(rotation=0.0, scale=0.9),
        cutoff=1,
        **start,
    )


def trained(
    plan: Plan, data: Path | None, device: torch.device
) -> tuple[nn.Module, npt.NDArray[np.uint8], float]:
    """A network trained on photographs, the pixels of others, and how many of those it knows."""
    known = photographs(TRAINED + VALIDATED + HELD_OUT, data)
    names = sorted({name for name, _ in known[:TRAINED]})
    known = [one for one in known if one[0] in names]
    labels = [name for name, _ in known]
    held = Held([body for _, body in known], plan)
    network = build(plan, names)
    first, second = TRAINED, TRAINED + VALIDATED
    with tempfile.TemporaryDirectory() as folder:
        fit(
            network, plan,
            Examples(held, held.images[:first], labels[:first]),
            Examples(held, held.images[first:second], labels[first:second]),
            Path(folder), device,
            on_epoch=lambda epoch: print(
                f"  epoch {epoch.number}: loss {epoch.train_loss:.2f}, "
                f"validation {epoch.validation_accuracy:.0%}", flush=True
            ),
        )  # fmt: skip
    rest = held.images[second:]
    answers = predict(network, names, held, rest, labels[second:], plan, device)
    return network, held.gather(rest), float(answers.correct.mean())


def compared(
    network: nn.Module,
    layer: nn.Module,
    batch: torch.Tensor,
    targets: Sequence[int],
    found: Sequence[Map],
) -> tuple[float, int]:
    """Largest difference of any cell of any map, and how many of the package's are non-zero."""
    largest, positive = 0.0, 0
    with GradCAM(model=network, target_layers=[layer]) as cam:
        for start in range(0, len(batch), 24):
            some = slice(start, start + 24)
            theirs = cam(batch[some], [ClassifierOutputTarget(one) for one in targets[some]])
            for mine, its in zip(found[some], theirs, strict=True):
                large = cv2.resize(mine.values.astype(np.float32), (SIZE, SIZE))
                large -= large.min()
                large /= 1e-7 + large.max()
                largest = max(largest, float(np.abs(large - its).max()))
                positive += bool(its.max() > 0)
    return largest, positive


def _rate(work: Callable[[], object], images: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
