"""Training learns, repeats itself bit for bit, survives kills, and refuses to save nonsense."""

import hashlib
import itertools
import logging
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vision.calibration import Calibration
from vision.fitting import (
    BadExamples,
    Diverged,
    Epoch,
    Examples,
    batches,
    class_weights,
    fingerprint,
    fit,
    phases,
    rate_factor,
    resolved,
)
from vision.memory import TooLarge
from vision.network import (
    Loaded,
    build,
    head,
    head_keys,
    load,
    normalisation,
    read_tensors,
    save,
    warm_start,
)
from vision.plan import Augmentation, BadPlan, Plan, Way
from vision.prediction import predict

NAMES = ("disc", "ring", "stripes")
PLAN = Plan(
    architecture="test_resnet", image_size=32, epochs=3, batch_size=8, warmup_epochs=0.5,
    learning_rate=3e-3, precision="float32", channels_last=False,
    augmentation=Augmentation(rotation=5, scale=0.8),
)


class Pictures:
    """Drawn shapes in random colours, kept in memory as a cache would keep them on disk."""

    def __init__(self, count: int, side: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.side = side
        self.labels = [NAMES[index % len(NAMES)] for index in range(count)]
        self.images = [
            hashlib.sha256(f"{seed}/{index}".encode()).hexdigest() for index in range(count)
        ]
        self.stored = {
            image: self._drawn(label, random)
            for image, label in zip(self.images, self.labels, strict=True)
        }

    def _drawn(self, label: str, random: np.random.Generator) -> npt.NDArray[np.uint8]:
        rows, columns = np.mgrid[: self.side, : self.side] / self.side
        distance = np.hypot(rows - random.uniform(0.4, 0.6), columns - random.uniform(0.4, 0.6))
        shape = {
            "disc": distance < 0.3,
            "ring": (distance < 0.35) & (distance > 0.25),
            "stripes": (columns * 8).astype(int) % 2 == 0,
        }[label]
        paper, ink = random.integers(0, 110, 3), random.integers(140, 255, 3)
        noise = random.normal(0, 8, (self.side, self.side, 3))
        drawn = np.where(shape[..., None], ink, paper) + noise
        return drawn.clip(0, 255).astype(np.uint8)

    def gather(self, images: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Return the pictures in this order."""
        return np.stack([self.stored[image] for image in images])

    def examples(self) -> Examples:
        """All of them with their labels."""
        return Examples(self, self.images, self.labels)


SIDE = PLAN.geometry.side
TRAIN = Pictures(25, SIDE, 1).examples()  # 25 in batches of 8: the last one joins the third
VALIDATION = Pictures(12, SIDE, 2).examples()


class KilledError(Exception):
    """Stands for a process that dies between two epochs."""


def digest_of(network: nn.Module, plan: Plan, folder: Path) -> str:
    """Return the digest of the checkpoint that this network would be."""
    return save(network, folder / "checkpoint.safetensors", plan, NAMES)


def trained(plan: Plan, folder: Path, train: Examples = TRAIN) -> str:
    """Train from the plan's own start without a break and return the checkpoint's digest."""
    fitted = fit(build(plan, NAMES), plan, train, VALIDATION, folder, "cpu")
    return digest_of(fitted.network, plan, folder)


def test_a_network_learns_shapes_from_scratch(tmp_path: Path) -> None:
    """Shapes that can be told apart are told apart, on pictures never trained on."""
    plan = replace(PLAN, recipe="scratch", epochs=10, batch_size=16)
    train = Pictures(150, SIDE, 3).examples()
    unseen = Pictures(60, SIDE, 4).examples()
    heard: list[Epoch] = []
    steps: list[tuple[int, int]] = []
    fitted = fit(
        build(plan, NAMES), plan, train, unseen, tmp_path, "cpu",
        on_epoch=heard.append, on_step=lambda done, total: steps.append((done, total)),
    )
    assert fitted.validation_accuracy > 0.9
    assert heard == list(fitted.epochs)
    assert [epoch.number for epoch in heard] == list(range(1, 11))
    assert heard[-1].train_loss < heard[0].train_loss
    assert heard[-1].train_accuracy > 0.9
    assert steps == [(done, 100) for done in range(1, 101)]
    assert not fitted.network.training
    assert fitted.machine["precision"] == "float32"
    assert fitted.machine["device"] == "cpu"
    assert all(math.isfinite(epoch.images_per_second) for epoch in heard)


def test_classes_are_bent_in_their_own_ways(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bends given to each class train what the same bends given to all train; to one, another."""
    wild = Augmentation(rotation=60, blur=1, jpeg=0.5, shift=0.2)
    short = replace(PLAN, epochs=1)
    plans = (
        replace(short, augmentation=wild),
        replace(short, class_augmentation=dict.fromkeys(NAMES, wild)),
        replace(short, class_augmentation={"ring": wild, "square": wild}),
    )
    of_all, of_each, of_one = (
        fit(build(plan, NAMES), plan, TRAIN, VALIDATION, tmp_path / str(number), "cpu")
        .network.state_dict()
        for number, plan in enumerate(plans)
    )
    assert all(torch.equal(tensor, of_each[key]) for key, tensor in of_all.items())
    assert not all(torch.equal(tensor, of_one[key]) for key, tensor in of_all.items())
    assert "class_augmentation names 'square'" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": "all"},
        {"recipe": "all", "optimizer": "sgd", "learning_rate": 0.02, "batch_norm": "eval"},
        {"recipe": "two-phase", "epochs": 4, "head_epochs": 2, "unfreeze": 2},
        {"recipe": "scratch", "precision": "bfloat16", "channels_last": True},
        {"ema_decay": 0.5, "mixup": 0.4, "cutmix": 1.0, "class_weights": "effective-number"},
        {"recipe": "two-phase", "epochs": 4, "head_epochs": 2, "unfreeze": 4, "ema_decay": 0.5,
         "layer_decay": 0.5, "channels_last": True},
    ],
)
def test_a_killed_run_ends_with_the_same_bits(
    changes: dict[str, object], tmp_path: Path
) -> None:
    """Killed after every single epoch and run again, the checkpoint has the same digest."""
    plan = replace(PLAN, **changes)  # type: ignore[arg-type]
    undisturbed = trained(plan, tmp_path / "undisturbed")
    for _ in range(plan.epochs):
        def die(_: Epoch) -> None:
            raise KilledError

        with pytest.raises(KilledError):
            fit(build(plan, NAMES), plan, TRAIN, VALIDATION, tmp_path / "killed", "cpu",
                on_epoch=die)
    heard: list[Epoch] = []
    fitted = fit(build(plan, NAMES), plan, TRAIN, VALIDATION, tmp_path / "killed", "cpu",
                 on_epoch=heard.append)
    assert heard == []
    assert [epoch.number for epoch in fitted.epochs] == list(range(1, plan.epochs + 1))
    assert digest_of(fitted.network, plan, tmp_path) == undisturbed


def test_the_result_is_a_function_of_plan_and_examples(tmp_path: Path) -> None:
    """Two runs agree, in whatever order images are listed; another seed gives another network."""
    first = trained(PLAN, tmp_path / "first")
    backwards = Examples(TRAIN.pixels, TRAIN.images[::-1], TRAIN.labels[::-1])
    torch.manual_seed(99)
    assert trained(PLAN, tmp_path / "second", backwards) == first
    assert trained(replace(PLAN, seed=1), tmp_path / "third") != first


def test_two_processes_make_the_same_checkpoint(tmp_path: Path) -> None:
    """With everything on that draws numbers, two processes of other hash seeds agree to the bit."""
    code = (
        "import sys, torch, test_fitting as its\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "torch.set_num_threads(1)\n"
        "plan = replace(its.PLAN, ema_decay=0.9, mixup=0.4, cutmix=1.0, layer_decay=0.8,\n"
        "               class_weights='effective-number')\n"
        "print(its.trained(plan, Path(sys.argv[1])))\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / seed)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for seed in ("1", "2")
    ]
    said = [process.communicate()[0].strip() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0] == said[1]
    assert len(said[0]) == 64


def test_training_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    """The global generator goes on as if nothing had been trained."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(replace(PLAN, epochs=1, warmup_epochs=0), tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_a_state_of_another_run_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A work folder left by another plan is said to be so and never continued."""
    trained(PLAN, tmp_path)
    other = replace(PLAN, learning_rate=1e-3)
    with caplog.at_level(logging.WARNING):
        found = trained(other, tmp_path)
    assert "another run" in caplog.text
    assert (tmp_path / "resume.aside").exists()
    assert found == trained(other, tmp_path / "clean")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_state_is_trained_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A cut or bit-flipped resume file is noticed, and the run ends as if it had never been."""
    plan = replace(PLAN, epochs=2)
    whole = trained(plan, tmp_path)
    path = tmp_path / "resume.safetensors"
    body = bytearray(path.read_bytes())
    body[-9] ^= 64
    path.write_bytes({"cut": bytes(body[:1000]), "flipped": bytes(body), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert trained(plan, tmp_path) == whole
    assert "is damaged" in caplog.text


class Spoilt(nn.Module):
    """A network whose outputs become NaN at its nth batch in training."""

    def __init__(self, network: nn.Module, at: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 3)
        self.at = at
        self.seen = 0
        vars(self).update(_regraft=vars(network)["_regraft"])

    def get_classifier(self) -> nn.Module:
        """As timm does."""
        return self.classifier

    def forward(self, pictures: Tensor) -> Tensor:
        """Average the colours and spoil the result in time."""
        outputs: Tensor = self.classifier(pictures.mean(dim=(2, 3)))
        self.seen += self.training
        return outputs * (float("nan") if self.training and self.seen == self.at else 1.0)


def test_a_loss_that_is_no_number_ends_the_run_by_name(tmp_path: Path) -> None:
    """The error names epoch and step, and no state of that epoch is written."""
    network = Spoilt(build(PLAN, NAMES), at=5)  # three steps an epoch
    heard: list[int] = []
    with pytest.raises(Diverged, match="epoch 2, step 2"):
        fit(network, PLAN, TRAIN, VALIDATION, tmp_path, "cpu",
            on_epoch=lambda epoch: heard.append(epoch.number))
    assert heard == [1]


def test_a_rate_that_explodes_never_becomes_a_checkpoint(tmp_path: Path) -> None:
    """A hopeless learning rate ends as Diverged, with nothing in the work folder."""
    plan = replace(PLAN, optimizer="sgd", learning_rate=100.0, warmup_epochs=0, epochs=2,
                   gradient_clip=None, weight_decay=10.0)
    with pytest.raises(Diverged, match="epoch 1, step"):
        trained(plan, tmp_path)
    assert list(tmp_path.iterdir()) == []


class Watched(nn.Module):
    """A network that keeps what it was given in training, and its bias before each step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 3)
        self.given: list[Tensor] = []
        self.biases: list[Tensor] = []
        vars(self).update(_regraft=vars(network)["_regraft"])

    def get_classifier(self) -> nn.Module:
        """As timm does."""
        return self.classifier

    def forward(self, pictures: Tensor) -> Tensor:
        """Average the colours."""
        if self.training:
            self.given.append(pictures.clone())
            self.biases.append(self.classifier.bias.detach().clone())
        outputs: Tensor = self.classifier(pictures.mean(dim=(2, 3)))
        return outputs


def test_the_average_is_what_is_validated_and_returned(tmp_path: Path) -> None:
    """Learning goes on as without one; every figure and the result are the average's."""
    plan = replace(PLAN, ema_decay=0.9)
    fitted = fit(build(plan, NAMES), plan, TRAIN, VALIDATION, tmp_path / "average", "cpu")
    plain = fit(build(PLAN, NAMES), PLAN, TRAIN, VALIDATION, tmp_path / "plain", "cpu")
    body = (tmp_path / "average" / "resume.safetensors").read_bytes()
    tensors, _ = read_tensors(body, "state")
    returned = fitted.network.state_dict()
    for key, tensor in plain.network.state_dict().items():
        assert torch.equal(tensors[f"network/{key}"], tensor)
        assert torch.equal(tensors[f"average/{key}"], returned[key])
    assert not torch.equal(returned["fc.weight"], plain.network.state_dict()["fc.weight"])
    answers = predict(fitted.network, NAMES, VALIDATION.pixels, VALIDATION.images,
                      VALIDATION.labels, plan, "cpu")
    assert float(answers.correct.mean()) == fitted.validation_accuracy
    loss = -float(np.log(answers.label_confidence.astype(np.float64)).mean())
    assert loss == pytest.approx(fitted.validation_loss, rel=1e-4)
    assert fitted.validation_loss != plain.validation_loss


def test_the_averages_decay_warms_up(tmp_path: Path) -> None:
    """Step by step it is 1 - (1 + step)^(-2/3), from 0, and never more than the plan's."""
    plan = replace(PLAN, ema_decay=0.5, epochs=2)
    network = Watched(build(plan, NAMES))
    fit(network, plan, TRAIN, VALIDATION, tmp_path, "cpu")
    tensors, _ = read_tensors((tmp_path / "resume.safetensors").read_bytes(), "state")
    behind = [*network.biases[1:], tensors["network/classifier.bias"]]  # behind each step
    assert len(behind) == 6
    average = behind[0]
    for step, bias in enumerate(behind):
        decay = min(0.5, 1 - (1 + step) ** (-2 / 3))
        average = decay * average + (1 - decay) * bias
    assert torch.allclose(network.classifier.bias.detach(), average, atol=1e-6)


def test_earlier_blocks_learn_more_slowly(tmp_path: Path) -> None:
    """With a layer decay of 0.01 each block moves a hundredth as far as the next one."""
    plan = replace(PLAN, optimizer="sgd", learning_rate=0.02, layer_decay=0.01, epochs=1,
                   warmup_epochs=0, batch_norm="eval", weight_decay=0)
    network = build(plan, NAMES)
    before = {name: one.detach().clone() for name, one in network.named_parameters()}
    fit(network, plan, TRAIN, VALIDATION, tmp_path, "cpu")
    moved = {
        name: max(float((one.detach() - before[key]).abs().max())
                  for key, one in network.named_parameters() if key.startswith(name))
        for name in ("fc", "layer4", "layer3", "layer2")
    }
    assert moved["fc"] > 0
    for later, earlier in itertools.pairwise(("layer4", "layer3", "layer2")):
        assert 1e-3 * moved[later] < moved[earlier] < 0.1 * moved[later]


@pytest.mark.parametrize(
    ("changes", "blended", "pasted"),
    [({}, False, False), ({"mixup": 1.0}, True, False), ({"cutmix": 1.0}, False, True)],
)
def test_pictures_are_mixed_only_as_the_plan_says(
    changes: dict[str, float], blended: bool, pasted: bool, tmp_path: Path
) -> None:
    """Mixup blends whole pictures, cutmix pastes a box of one into another, 0 leaves them."""
    plain = Augmentation(flip=False, scale=1, rotation=0, brightness=0, contrast=0, saturation=0)
    plan = replace(PLAN, epochs=1, warmup_epochs=0, augmentation=plain, mean=(0.0,) * 3,
                   std=(1.0,) * 3, **changes)  # type: ignore[arg-type]
    pictures = Pictures(25, SIDE, 1)
    greys = {"disc": 0, "ring": 100, "stripes": 200}
    for image, label in zip(pictures.images, pictures.labels, strict=True):
        pictures.stored[image] = np.full((SIDE, SIDE, 3), greys[label], dtype=np.uint8)
    network = Watched(build(plan, NAMES))
    fit(network, plan, pictures.examples(), VALIDATION, tmp_path, "cpu")
    seen = [
        {round(float(value) * 255) for value in picture.unique()}
        for batch in network.given for picture in batch
    ]
    assert len(seen) == 25
    assert any(not found <= set(greys.values()) for found in seen) is blended
    assert any(len(found) > 1 for found in seen) is pasted


class Narrow(nn.Module):
    """A network on a device whose memory takes only so many pictures at once."""

    def __init__(self, network: nn.Module, room: int, error: Exception | None = None) -> None:
        super().__init__()
        self.inner = network
        self.room = room
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")
        vars(self).update(_regraft=vars(network)["_regraft"])

    def get_classifier(self) -> nn.Module:
        """As timm does."""
        return head(self.inner)

    def forward(self, pictures: Tensor) -> Tensor:
        """Answer, or be out of memory as torch is."""
        if self.training and len(pictures) > self.room:
            raise self.error
        outputs: Tensor = self.inner(pictures)
        return outputs


def test_out_of_memory_splits_the_batch_and_not_the_plan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Gradients of parts add up to the whole batch's, which is said and recorded."""
    plan = replace(PLAN, batch_norm="eval", dropout=0.0, epochs=2)
    whole = fit(build(plan, NAMES), plan, TRAIN, VALIDATION, tmp_path / "whole", "cpu")
    with caplog.at_level(logging.WARNING):
        parts = fit(Narrow(build(plan, NAMES), 3), plan, TRAIN, VALIDATION, tmp_path / "parts",
                    "cpu")
    assert "batch size stays 8" in caplog.text
    assert (whole.machine["micro_batch"], parts.machine["micro_batch"]) == (None, 2)
    losses = [[epoch.train_loss for epoch in fitted.epochs] for fitted in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=5e-3)


def test_a_measured_machine_without_memory_splits_the_batch_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that is long enough to be measured learns as well, though no trial fits."""
    plan = replace(PLAN, precision="auto", channels_last=None, batch_norm="eval", epochs=200)

    def stop(_: Epoch) -> None:
        raise KilledError

    with caplog.at_level(logging.WARNING), pytest.raises(KilledError):
        fit(Narrow(build(plan, NAMES), 3), plan, TRAIN, VALIDATION, tmp_path, "cpu", on_epoch=stop)
    assert "gradients of 2 images at a time" in caplog.text
    _, facts = read_tensors((tmp_path / "resume.safetensors").read_bytes(), "state")
    assert facts["machine"]["chosen"] == "too little memory to measure"


class Greedy(Narrow):
    """A network whose steps ask torch for more memory than any machine has.

    A process under a real limit will not do: oneDNN does not check what its backward pass is given
    and ends one run in five with a segmentation fault, which nobody can answer.
    """

    def forward(self, pictures: Tensor) -> Tensor:
        """Answer, or be refused by torch's own allocator."""
        if self.training and len(pictures) > self.room:
            torch.empty(2**50, dtype=torch.uint8)
        outputs: Tensor = self.inner(pictures)
        return outputs


def test_a_cpu_without_memory_splits_the_batch_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where torch's own allocator is refused the memory of a whole batch, training ends well."""
    plan = replace(PLAN, batch_norm="eval", epochs=1)
    with caplog.at_level(logging.WARNING):
        fitted = fit(Greedy(build(plan, NAMES), 3), plan, TRAIN, VALIDATION, tmp_path, "cpu")
    assert fitted.machine["micro_batch"] == 2
    assert "batch size stays 8" in caplog.text


def test_no_memory_at_all_is_said_in_one_line(tmp_path: Path) -> None:
    """Where not even a few pictures fit, the mend is named instead of an endless halving.

    Four are the fewest that halves of a batch of eight may have while they make its statistics.
    """
    for mode, fewest in (("train", 4), ("eval", 1)):
        plan = replace(PLAN, batch_norm=mode)  # type: ignore[arg-type]
        said = f"not even {fewest} at a time .* use a smaller image_size or architecture"
        with pytest.raises(TooLarge, match=said):
            fit(Narrow(build(plan, NAMES), 0), plan, TRAIN, VALIDATION, tmp_path, "cpu")


def test_another_error_is_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    """What else a step raises is raised, and no batch is split for it."""
    broken = Narrow(build(PLAN, NAMES), 3, RuntimeError("mat1 and mat2 shapes do not fit"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(broken, PLAN, TRAIN, VALIDATION, tmp_path, "cpu")


def test_pixels_that_could_hold_nan_are_refused(tmp_path: Path) -> None:
    """Pictures are whole numbers from 0 to 255, which are never NaN; others are not trained on."""
    pictures = Pictures(25, SIDE, 1)
    spoilt = {image: one.astype(np.float32) * np.nan for image, one in pictures.stored.items()}
    pictures.stored = spoilt  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"images are torch\.float32 .*: use uint8"):
        fit(build(PLAN, NAMES), PLAN, pictures.examples(), VALIDATION, tmp_path, "cpu")


def test_the_head_phase_changes_the_head_alone(tmp_path: Path) -> None:
    """Until the head phase ends, neither weights nor statistics of the backbone move."""
    plan = replace(PLAN, recipe="two-phase", epochs=4, head_epochs=2, unfreeze=1)
    network = build(plan, NAMES)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    moved: list[set[str]] = []

    def compare(epoch: Epoch) -> None:
        now = network.state_dict()
        moved.append({key for key in now if not torch.equal(now[key], before[key])})

    fitted = fit(network, plan, TRAIN, VALIDATION, tmp_path, "cpu", on_epoch=compare)
    assert [epoch.phase for epoch in fitted.epochs] == ["head", "head", "blocks", "blocks"]
    assert moved[1] == head_keys(network)
    assert head_keys(network) < moved[3]
    assert all(key.startswith(("layer4", "fc")) for key in moved[3])
    assert all(parameter.requires_grad for parameter in fitted.network.parameters())


@pytest.mark.parametrize("recipe", ["all", "two-phase", "scratch"])
def test_running_statistics_stay_when_the_plan_says_so(
    recipe: str, tmp_path: Path
) -> None:
    """batch_norm='eval' keeps every mean and variance in every recipe, 'train' moves them."""
    for mode in ("eval", "train"):
        plan = replace(PLAN, recipe=recipe, batch_norm=mode, head_epochs=1,  # type: ignore[arg-type]
                       unfreeze=1)
        network = build(plan, NAMES)
        layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        before = [layer.running_mean.clone() for layer in layers if layer.running_mean is not None]
        fit(network, plan, TRAIN, VALIDATION, tmp_path / mode, "cpu")
        after = [layer.running_mean for layer in layers if layer.running_mean is not None]
        same = [torch.equal(one, two) for one, two in zip(before, after, strict=True)]
        assert all(same) is (mode == "eval")


def test_too_many_blocks_are_refused_before_any_step(tmp_path: Path) -> None:
    """An impossible unfreeze ends with the number of blocks there are."""
    plan = replace(PLAN, recipe="two-phase", head_epochs=1, unfreeze=30)
    with pytest.raises(BadPlan, match="unfreeze=30: test_resnet has 4 blocks"):
        fit(build(plan, NAMES), plan, TRAIN, VALIDATION, tmp_path, "cpu",
            on_epoch=lambda _: pytest.fail("an epoch was trained"))


def test_a_warm_start_is_better_than_none(tmp_path: Path) -> None:
    """What a parent has learned is still there for a child with other classes beside it."""
    plan = replace(PLAN, epochs=8, batch_size=16)
    fitted = fit(build(plan, NAMES), plan, Pictures(120, SIDE, 3).examples(), VALIDATION,
                 tmp_path / "parent", "cpu")
    save(fitted.network, tmp_path / "parent.safetensors", plan, NAMES)
    parent = load(tmp_path / "parent.safetensors")
    short = replace(PLAN, epochs=2)
    child = fit(warm_start(Loaded(parent.network, parent.class_names, parent.plan), short, NAMES),
                short, TRAIN, VALIDATION, tmp_path / "child", "cpu")
    cold = fit(build(short, NAMES), short, TRAIN, VALIDATION, tmp_path / "cold", "cpu")
    assert child.validation_loss < cold.validation_loss


def test_examples_that_cannot_be_learned_are_refused(tmp_path: Path) -> None:
    """Unknown labels, empty classes, leaks and empty sets are named before any step."""
    images, labels = list(TRAIN.images), list(TRAIN.labels)

    def refused(train: Examples, validation: Examples, words: str) -> None:
        with pytest.raises(BadExamples, match=words):
            fit(build(PLAN, NAMES), PLAN, train, validation, tmp_path, "cpu")

    refused(Examples(TRAIN.pixels, images, ["gnu", *labels[1:]]), VALIDATION, "'gnu'")
    refused(Examples(TRAIN.pixels, images[:2], labels[:2]), VALIDATION, "'stripes' has no")
    refused(TRAIN, Examples(VALIDATION.pixels, [], []), "no validation")
    refused(TRAIN, TRAIN, "in training and in validation")
    refused(Examples(TRAIN.pixels, images[:1], labels[:1]), VALIDATION, "two or more")
    with pytest.raises(BadExamples, match="labels"):
        Examples(TRAIN.pixels, images, labels[1:])


def test_the_machine_is_measured_once_and_remembered(tmp_path: Path) -> None:
    """A long run on `auto` measures, a resumed one goes on as it began, the next one recalls."""
    plan = replace(PLAN, precision="auto", channels_last=None, epochs=200, batch_size=25)
    short = replace(plan, epochs=2)
    fresh = fit(build(short, NAMES), short, TRAIN, VALIDATION, tmp_path / "fresh", "cpu",
                calibration=Calibration(tmp_path / "none.json"))
    assert fresh.machine["chosen"] == "too short to measure"
    assert (fresh.machine["precision"], fresh.machine["channels_last"]) == ("float32", False)

    def die(_: Epoch) -> None:
        raise KilledError

    machines = []
    for _ in range(2):
        with pytest.raises(KilledError):
            fit(build(plan, NAMES), plan, TRAIN, VALIDATION, tmp_path / "long", "cpu",
                on_epoch=die, calibration=Calibration(tmp_path / "calibration.json"))
        _, facts = read_tensors((tmp_path / "long" / "resume.safetensors").read_bytes(), "state")
        machines.append(facts["machine"])
    assert machines[0] == machines[1]
    assert machines[0]["chosen"] == "measured"
    assert len(machines[0]["measured_seconds"]) == 4
    again = fit(build(short, NAMES), short, TRAIN, VALIDATION, tmp_path / "again", "cpu",
                calibration=Calibration(tmp_path / "calibration.json"))
    assert again.machine["chosen"] == "measured before"
    assert again.machine["measured_seconds"] == machines[0]["measured_seconds"]
    for key in ("precision", "channels_last", "threads", "compiled"):
        assert again.machine[key] == machines[0][key]


def test_threads_that_are_given_are_used_and_handed_back(tmp_path: Path) -> None:
    """A run takes the threads it is told to take, and leaves the process as it was."""
    heard: list[int] = []
    fitted = fit(build(PLAN, NAMES), PLAN, TRAIN, VALIDATION, tmp_path, "cpu", threads=2,
                 on_epoch=lambda _: heard.append(torch.get_num_threads()))
    assert heard == [2] * PLAN.epochs
    assert fitted.machine["threads"] == 2
    assert torch.get_num_threads() == 1


def test_each_epoch_sees_every_image_once_and_no_batch_of_one() -> None:
    """Batches are a shuffled whole; a lonely last image joins the batch before it."""
    found = batches(25, 8, seed=0, epoch=1)
    assert [len(one) for one in found] == [8, 8, 9]
    assert sorted(itertools.chain(*found)) == list(range(25))
    assert found == batches(25, 8, seed=0, epoch=1)
    assert found != batches(25, 8, seed=0, epoch=2)
    assert [len(one) for one in batches(3, 1, 0, 1)] == [1, 2]


def test_the_rate_rises_then_falls_to_nothing() -> None:
    """Warm-up ends at the peak, the cosine at almost nothing, and no step is wasted at zero."""
    factors = [rate_factor(step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.001
    assert rate_factor(0, 1, 0) == 1.0


def test_a_constant_rate_warms_up_and_stays(tmp_path: Path) -> None:
    """Behind the warm-up every step has the peak rate, in each phase anew."""
    factors = [rate_factor(step, 100, 10, "constant") for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(factors[10:]) == {1.0}
    plan = replace(PLAN, schedule="constant", recipe="two-phase", epochs=4, head_epochs=2)
    fitted = fit(build(plan, NAMES), plan, TRAIN, VALIDATION, tmp_path, "cpu")
    rates = [epoch.learning_rate for epoch in fitted.epochs]
    assert rates[0] < rates[1] == pytest.approx(plan.learning_rate)
    assert rates[2] < rates[3] == pytest.approx(plan.learning_rate / 10)


def test_phases_have_the_rates_of_the_plan() -> None:
    """Two phases: head alone, then blocks at a tenth, unless the plan names a rate."""
    two = phases(replace(PLAN, recipe="two-phase", epochs=5, head_epochs=2, learning_rate=0.01))
    assert [(one.name, one.first, one.last) for one in two] == [("head", 1, 2), ("blocks", 3, 5)]
    assert [one.head_rate for one in two] == pytest.approx([0.01, 0.001])
    named = phases(replace(PLAN, backbone_learning_rate=1e-5))
    assert (named[0].head_rate, named[0].backbone_rate) == (3e-3, 1e-5)


def test_rare_classes_weigh_more() -> None:
    """Balanced weights even out the classes, effective numbers do so more gently."""
    labels = [0] * 90 + [1] * 10
    assert class_weights(labels, 2, "none") == [1.0, 1.0]
    balanced = class_weights(labels, 2, "balanced")
    assert balanced[0] * 90 == pytest.approx(balanced[1] * 10) == pytest.approx(50)
    effective = class_weights(labels, 2, "effective-number")
    assert sum(effective) == pytest.approx(2)
    assert 1 < effective[1] / effective[0] < balanced[1] / balanced[0]
    assert class_weights(labels, 2, "effective-number", 0.0) == [1.0, 1.0]
    nearly = class_weights(labels, 2, "effective-number", 0.999_999)
    assert nearly[1] / nearly[0] == pytest.approx(9, rel=1e-3)


def test_a_resolved_plan_leaves_nothing_open(tmp_path: Path) -> None:
    """What parent, network and machine decided stands in it, and it trains the same weights."""
    plan = replace(PLAN, precision="auto", channels_last=None, recipe="two-phase", head_epochs=1,
                   unfreeze=2)
    fitted = fit(build(plan, NAMES), plan, TRAIN, VALIDATION, tmp_path / "asked", "cpu")
    found = resolved(plan, fitted.network, fitted.machine)
    mean, std = normalisation(fitted.network, plan)
    assert found == replace(
        plan, mean=mean, std=std, backbone_learning_rate=plan.learning_rate / 10,
        way=Way("float32", False, torch.get_num_threads(), features="eager float32 channels last"),
    )
    again = fit(build(found, NAMES), found, TRAIN, VALIDATION, tmp_path / "again", "cpu")
    assert fingerprint(again.network.state_dict()) == fingerprint(fitted.network.state_dict())
    assert resolved(found, again.network, again.machine) == found


def test_a_way_of_the_plan_is_gone_whatever_is_set(tmp_path: Path) -> None:
    """Its threads are taken and its parts are added up, though nothing else asks for them."""
    way = Way("bfloat16", True, 2, micro_batch=4)
    plan = replace(PLAN, precision="auto", channels_last=None, epochs=1, warmup_epochs=0, way=way)
    heard: list[int] = []
    seen = Watched(build(plan, NAMES))
    fitted = fit(seen, plan, TRAIN, VALIDATION, tmp_path, "cpu", threads=1,
                 on_epoch=lambda _: heard.append(torch.get_num_threads()))
    assert heard == [2]
    assert max(map(len, seen.given)) == 4
    assert {name: fitted.machine[name] for name in vars(way)} == vars(way)


def test_an_engine_that_is_not_here_is_named_with_the_mend(tmp_path: Path) -> None:
    """A plan resolved on a machine with other engines is refused before any step."""
    plan = replace(PLAN, recipe="two-phase", epochs=4, head_epochs=2,
                   way=Way(features="abacus float32"))
    with pytest.raises(BadPlan, match=r"way\.features: engine 'abacus float32': .* known are"):
        fit(build(plan, NAMES), plan, TRAIN, VALIDATION, tmp_path, "cpu")
