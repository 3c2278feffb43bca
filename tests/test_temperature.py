"""A network says how sure it is as often as it is right, and answers as before."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from vision.network import build, head, load, save
from vision.plan import Plan
from vision.prediction import predict
from vision.scores import calibration_error
from vision.temperature import calibrate, fitted

NAMES = ("circle", "cross", "ring")
PLAN = Plan(architecture="test_resnet", image_size=32, precision="float32", dropout=0.0)


class Noise:
    """Pictures of noise, each a function of its name."""

    def gather(self, images: tuple[str, ...]) -> np.ndarray:
        """Give stored squares of pixels, uint8 [N, side, side, 3]."""
        side = PLAN.geometry.side
        return np.stack([
            np.random.default_rng(int(name)).integers(0, 256, (side, side, 3), np.uint8)
            for name in images
        ])  # fmt: skip


def network_and_truth(scale: float, images: int = 1600) -> tuple[nn.Module, list[str], list[str]]:
    """Draw labels from what a network says, then make it surer by `scale` than it is right."""
    network = build(PLAN, NAMES).eval()
    names = [str(number) for number in range(images)]
    confidence = 0.0
    while confidence < 0.7:  # neither a guess nor certain: both leave nothing to fit
        with torch.no_grad():
            head(network).weight.mul_(1.2)
        answers = predict(network, NAMES, Noise(), names, [NAMES[0]] * images, PLAN, "cpu", top=3)
        confidence = float(answers.confidence.mean())
    random = np.random.default_rng(0)
    labels = [
        NAMES[random.choice(top, p=shares / shares.sum())]
        for top, shares in zip(answers.top, answers.confidences.astype(float), strict=True)
    ]
    with torch.no_grad():
        for parameter in head(network).parameters():
            parameter.mul_(scale)
    return network, names, labels


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_confidence_is_put_right_and_no_answer_changes(scale: float, tmp_path: Path) -> None:
    """The fitted temperature undoes the scale, on other images too; each order of classes stays."""
    network, images, labels = network_and_truth(scale)

    def ask() -> object:
        return predict(network, NAMES, Noise(), images[800:], labels[800:], PLAN, "cpu", top=3)

    before = ask()
    temperature = calibrate(network, Noise(), images[:800], labels[:800], PLAN, "cpu")
    after = ask()
    assert temperature == pytest.approx(scale, rel=0.2)
    assert np.array_equal(before.top, after.top)
    assert calibration_error(after) < calibration_error(before) / 2
    # whoever loads the checkpoint has it without knowing of it
    digest = save(network, tmp_path / "kept.safetensors", PLAN, NAMES)
    loaded = load(tmp_path / "kept.safetensors", digest)
    again = predict(loaded.network, NAMES, Noise(), images[800:], labels[800:], PLAN, "cpu", top=3)
    assert np.array_equal(again.confidences, after.confidences)


def test_the_temperature_has_the_least_loss() -> None:
    """No other one on a fine grid says better what is true, smoothed as the docstring tells."""
    random = np.random.default_rng(1)
    outputs = random.normal(0, 3, (80, 5))
    true = np.where(random.random(80) < 0.6, outputs.argmax(axis=1), random.integers(0, 5, 80))
    targets = np.full((80, 5), 1 / 82 / 4)
    targets[np.arange(80), true] = 81 / 82
    grid = np.geomspace(0.05, 20, 4000)
    losses = [-(targets * log_softmax(outputs / one, axis=1)).sum(axis=1).mean() for one in grid]
    assert fitted(outputs, true) == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)


def test_a_few_images_that_are_all_right_make_nobody_certain() -> None:
    """Ten right answers of ten ask for a confidence of 11 in 12, however far apart the outputs."""
    outputs = np.tile([1.0, 0.0, 0.0], (10, 1))
    temperature = fitted(outputs, np.zeros(10, np.int64))
    shares = np.exp(log_softmax(outputs[0] / temperature))
    assert shares[0] == pytest.approx(11 / 12, abs=0.01)


def test_what_cannot_be_scaled_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Without images, and where something is computed behind the head, not one bit changes."""
    network, images, labels = network_and_truth(4.0, images=20)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert calibrate(network, Noise(), [], [], PLAN, "cpu") is None
    plain = network.forward
    network.forward = lambda batch: plain(batch).tanh()  # type: ignore[method-assign]
    assert calibrate(network, Noise(), images, labels, PLAN, "cpu") is None
    assert "computes more behind its last layer" in caplog.text
    assert all(torch.equal(state[name], one) for name, one in network.state_dict().items())
