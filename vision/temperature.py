"""Temperature: one number that makes a network as sure as it is right (Guo et al., 2017).

All outputs are divided by it, so the order of the classes, and with it every answer, stays. It is
put into the head's own weights: whoever loads, exports or serves the checkpoint has it without
knowing of it, and recorded answers are repeated as they are.
"""

import copy
import logging
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import nn

from vision.network import class_names_of, head
from vision.plan import Plan
from vision.prediction import (
    Gatherable,
    bfloat16_for_answers,
    channels_last,
    device_named,
    logits,
)

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = 0.05, 20.0
BATCH = 64
# the outputs of a head that was scaled, in units of the largest of them
SAME = 1e-3

Outputs = npt.NDArray[np.float64]


def calibrate(
    network: nn.Module,
    pixels: Gatherable,
    images: Sequence[str],
    labels: Sequence[str],
    plan: Plan,
    device: str | torch.device,
) -> float | None:
    """Fit the temperature on images that did not train, and divide the head's weights by it.

    `labels` are class names, all known to the network. Returns the temperature: below 1 the
    network was less sure than right, above 1 surer. None where the network is left as it is: there
    are no images, or its outputs are not a linear function of its last layer.
    """
    last = head(network)
    if not images or not isinstance(last, nn.Linear | nn.Conv2d):
        return None
    place = device_named(device)
    half, layout = bfloat16_for_answers(plan, place), channels_last(plan)

    def outputs_for(some: Sequence[str]) -> Outputs:
        parts = logits(network, pixels, some, plan, place, BATCH, half, layout)
        return np.concatenate([part.double().cpu().numpy() for _, part in parts])

    outputs = outputs_for(images)
    column = {name: index for index, name in enumerate(class_names_of(network))}
    temperature = fitted(outputs, np.array([column[label] for label in labels]))
    before = copy.deepcopy(last.state_dict())
    divide(last, temperature)
    few = images[:BATCH]
    apart = np.abs(outputs_for(few) * temperature - outputs[: len(few)]).max()
    # bfloat16 rounds other weights otherwise
    if apart > (SAME if not half else 50 * SAME) * max(1.0, float(np.abs(outputs).max())):
        last.load_state_dict(before)
        logger.warning("%s computes more behind its last layer: its confidences stay as they are",
                       plan.architecture)
        return None
    return temperature


def fitted(outputs: Outputs, true: npt.NDArray[np.int64]) -> float:
    """The temperature [0.05, 20] under which outputs [N, classes] say best what is true [N].

    Best: the least mean negative log likelihood. A true class counts as (N + 1) / (N + 2) certain
    and not as certain (Platt's targets): so few images that are all right cannot ask for endless
    confidence.
    """
    count, classes = outputs.shape
    spare = 1 / (count + 2) / (classes - 1)
    own = outputs[np.arange(count), true]
    aim = (1 - classes * spare) * own + spare * outputs.sum(axis=1)

    def loss(logarithm: float) -> float:
        scale = math.exp(-logarithm)
        return float((logsumexp(scale * outputs, axis=1) - scale * aim).mean())

    best = minimize_scalar(loss, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded")
    return math.exp(float(best.x))


def divide(layer: nn.Module, temperature: float) -> None:
    """Divide what a linear layer gives, in place."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.div_(temperature)
