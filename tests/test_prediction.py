"""Predictions are the network's own, in any batch, and land in the right columns."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from vision.answers import BadAnswers
from vision.augmentation import centre
from vision.memory import TooLarge
from vision.network import build, head, normalisation
from vision.plan import Plan
from vision.prediction import (
    Forward,
    ahead,
    best_first,
    device_named,
    predict,
    standardised,
)

NAMES = ("cat", "dog", "emu", "gnu")
PLAN = Plan(architecture="test_efficientnet", image_size=48)
SIDE = PLAN.geometry.side


class Noise:
    """Random pixels, one picture for each name."""

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(0)
        self.images = [f"image{index}" for index in range(count)]
        self.stored = dict(zip(
            self.images, random.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8),
            strict=True,
        ))
        for picture in self.stored.values():
            picture.setflags(write=False)

    def gather(self, images: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Return the pictures in this order."""
        return np.stack([self.stored[image] for image in images])


NOISE = Noise(11)
LABELS = ["cat", "dog", "emu", "gnu", "yak"] * 2 + ["cat"]


def network() -> torch.nn.Module:
    """Return a network whose answers differ between pictures."""
    made = build(PLAN, NAMES)
    with torch.no_grad():
        head(made).weight.mul_(50)  # type: ignore[operator]
    return made


def test_answers_are_the_softmax_of_the_centre() -> None:
    """Top classes, confidences and the label's share equal a plain forward pass."""
    made = network()
    answers = predict(made, NAMES, NOISE, NOISE.images, LABELS, PLAN, "cpu", batch_size=4, top=3)
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in normalisation(made, PLAN))
    pictures = centre(torch.from_numpy(NOISE.gather(NOISE.images)), PLAN.image_size)
    with torch.inference_mode():
        shares = made.eval()((pictures - mean) / std).softmax(dim=1).numpy()
    assert answers.top.shape == (11, 3)
    assert np.array_equal(answers.top, np.argsort(-shares, axis=1, kind="stable")[:, :3])
    assert np.allclose(answers.confidences, -np.sort(-shares, axis=1)[:, :3], atol=1e-5)
    for row, label in enumerate(LABELS):
        expected = shares[row, NAMES.index(label)] if label in NAMES else 0.0
        assert answers.label_confidence[row] == pytest.approx(expected, abs=1e-5)
    assert answers.images == tuple(NOISE.images)
    assert len(set(answers.predicted)) > 1


def test_predicting_twice_gives_the_same_bits() -> None:
    """The same network and images answer exactly the same, training mode or not."""
    made = network().train()
    first = predict(made, NAMES, NOISE, NOISE.images, LABELS, PLAN, "cpu", batch_size=4)
    second = predict(made, NAMES, NOISE, NOISE.images, LABELS, PLAN, "cpu", batch_size=4)
    assert np.array_equal(first.confidences, second.confidences)
    assert np.array_equal(first.top, second.top)
    other = predict(made, NAMES, NOISE, NOISE.images, LABELS, PLAN, "cpu", batch_size=11)
    assert np.allclose(first.confidences, other.confidences, atol=1e-5)
    assert first.top.shape == (11, 4)


def test_memory_layout_does_not_change_answers() -> None:
    """Channels last computes the same."""
    made = network()
    plain = predict(made, NAMES, NOISE, NOISE.images, LABELS, PLAN, "cpu")
    last = predict(made, NAMES, NOISE, NOISE.images, LABELS, replace(PLAN, channels_last=True),
                   "cpu")
    assert np.allclose(plain.confidences, last.confidences, atol=1e-5)


def test_equal_confidences_keep_the_order_of_the_classes() -> None:
    """However many classes tie, the best are those of a stable sort of all."""
    random = np.random.default_rng(0)
    shares = torch.from_numpy(random.integers(0, 4, (200, 12)).astype(np.float32))
    shares[:3] = 0.25
    ordered, columns = shares.sort(dim=1, descending=True, stable=True)
    for top in (1, 5, 12):
        values, indices = best_first(shares, top)
        assert torch.equal(values, ordered[:, :top])
        assert torch.equal(indices, columns[:, :top])


def test_pixels_become_what_the_network_was_trained_on() -> None:
    """Any number of pictures is cut, scaled and shifted as the plain formula says."""
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.1)))
    for count in (1, 4, 11):
        stored = torch.from_numpy(NOISE.gather(NOISE.images[:count]))
        expected = (centre(stored, 48) - mean) / std
        found = standardised(stored, 48, mean, std)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match="wants 99 or more"):
        standardised(stored, 99, mean, std)


def test_what_computes_may_be_another_engine() -> None:
    """A function of stored pixels answers in place of the network, batch by batch."""
    made, asked = network(), []

    def forward(stored: torch.Tensor) -> torch.Tensor:
        asked.append(len(stored))
        return torch.eye(4)[torch.full((len(stored),), 2)]

    answers = predict(made, NAMES, NOISE, NOISE.images, LABELS, PLAN, "cpu", batch_size=4,
                      forward=Forward(forward))
    assert set(answers.predicted) == {"emu"}
    assert asked == [4, 4, 3]


def test_answers_that_find_no_memory_are_computed_in_parts(
    caplog: pytest.LogCaptureFixture
) -> None:
    """Batches are halved until they fit, once for all, and the answers are the same."""
    expected = predict(network(), NAMES, NOISE, NOISE.images, LABELS, PLAN, "cpu")
    seen: list[int] = []
    for room, error in ((3, torch.OutOfMemoryError("CUDA out of memory")),
                        (1, RuntimeError("could not create a primitive"))):  # fmt: skip
        def crowded(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            seen.append(len(inputs[0]))
            if len(inputs[0]) > room:  # noqa: B023  (called within the same turn)
                raise error  # noqa: B023

        seen.clear()
        narrow = network()
        narrow.blocks.register_forward_pre_hook(crowded)  # type: ignore[union-attr]
        answers = predict(narrow, NAMES, NOISE, NOISE.images, LABELS, PLAN, "cpu", batch_size=8)
        assert answers.predicted == expected.predicted
        assert np.allclose(answers.confidences, expected.confidences, atol=1e-5)
        assert len([one for one in seen if one > room]) == {3: 2, 1: 3}[room]
    assert "2 at a time" in caplog.text


def test_a_picture_that_does_not_fit_is_one_line_with_the_mend() -> None:
    """Where not even one can be answered the mend is named; another error stays what it is."""
    for error, raised, said in (
        (MemoryError("no more"), TooLarge, r"not even one picture .*\(no more\): use a smaller"),
        (RuntimeError("mat1 and mat2"), RuntimeError, "^mat1 and mat2$"),
    ):
        def full(*_: object) -> None:
            raise error  # noqa: B023  (called within the same turn)

        narrow = network()
        narrow.register_forward_pre_hook(full)
        with pytest.raises(raised, match=said):
            predict(narrow, NAMES, NOISE, NOISE.images, LABELS, PLAN, "cpu")


def test_batches_answered_at_once_keep_their_order() -> None:
    """Two threads call at the same time, never three, and answers stand where their pictures do."""
    both, calling = threading.Barrier(2, timeout=10), []

    def compute(stored: torch.Tensor) -> torch.Tensor:
        calling.append(threading.current_thread().name)
        both.wait()
        return stored[:, 0, 0, :].float()

    pictures = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 1, 1, 4)
    batches = list(enumerate(pictures.split(2)))
    found = list(Forward(compute, batch=2, at_once=2).each(iter(batches)))
    assert [number for number, _ in found] == list(range(10))
    assert torch.equal(torch.cat([outputs for _, outputs in found])[:, 0], torch.arange(20.0))
    assert len(calling) == 10
    assert len(set(calling)) == 2

    def broken(stored: torch.Tensor) -> torch.Tensor:
        raise OSError("no memory")

    with pytest.raises(OSError, match="no memory"):
        list(Forward(broken, at_once=2).each(iter(batches)))
    assert not [one for one in threading.enumerate() if one.name.startswith("regraft-forward")]


def test_nothing_to_predict_is_no_error() -> None:
    """An empty list has empty answers."""
    assert len(predict(network(), NAMES, NOISE, [], [], PLAN, "cpu")) == 0


def test_bad_requests_are_refused() -> None:
    """Foreign class names, an empty top and a missing GPU are said."""
    made = network()
    with pytest.raises(ValueError, match="class_names"):
        predict(made, NAMES[::-1], NOISE, NOISE.images, LABELS, PLAN, "cpu")
    with pytest.raises(ValueError, match="top=0"):
        predict(made, NAMES, NOISE, NOISE.images, LABELS, PLAN, "cpu", top=0)
    with pytest.raises(ValueError, match="batch_size=0"):
        predict(made, NAMES, NOISE, NOISE.images, LABELS, PLAN, "cpu", batch_size=0)
    with pytest.raises(ValueError, match="10 labels"):
        predict(made, NAMES, NOISE, NOISE.images, LABELS[1:], PLAN, "cpu", batch_size=11)
    if not torch.cuda.is_available():
        assert device_named("auto") == torch.device("cpu")
        with pytest.raises(ValueError, match="no GPU"):
            device_named("cuda")


def test_a_network_of_nan_gives_no_answers() -> None:
    """Outputs that are no numbers never become confidences."""
    made = network()
    with torch.no_grad():
        head(made).bias.fill_(float("nan"))  # type: ignore[operator]
    with pytest.raises(BadAnswers, match="between 0 and 1"):
        predict(made, NAMES, NOISE, NOISE.images, LABELS, PLAN, "cpu")


def test_working_ahead_changes_nothing_but_the_time() -> None:
    """Items keep their order, errors arrive, and leaving early ends the thread."""
    assert list(ahead(iter(range(100)))) == list(range(100))

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("disk gone")

    items = ahead(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(items)
    endless = ahead(iter(int, 1))
    next(endless)
    endless.close()  # type: ignore[attr-defined]
    assert not [one for one in threading.enumerate() if one.name == "regraft-ahead"]
