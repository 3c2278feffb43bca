"""The head phase on features computed once: the same head, from far fewer passes."""

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from processes import NAMES, PLAN, examples, fill
from torch import Tensor, nn
from torch.nn import functional

from vision import runtime, trials
from vision.augmentation import augment, seeds_of
from vision.calibration import Calibration
from vision.features import split
from vision.fitting import Epoch, Examples, batches, fit, rate_factor, resolved
from vision.network import build, head, head_dropouts, normalisation, save
from vision.plan import Plan
from vision.prediction import Gatherable

HEAD = replace(
    PLAN, recipe="two-phase", epochs=7, head_epochs=6, head_views=6, unfreeze=1, dropout=0.3,
    warmup_epochs=0.5,
)  # fmt: skip
# sums in another order, because pictures go through the backbone in larger batches
ROUNDING = 1e-5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pixel cache with all pictures."""
    return fill(tmp_path_factory.mktemp("cache"))


class Enough(Exception):
    """Ends a run behind its head phase."""


def after_the_head_phase(
    plan: Plan,
    shown: tuple[Examples, Examples],
    folder: Path,
    network: nn.Module | None = None,
) -> tuple[nn.Module, list[Epoch]]:
    """The network and its epochs as the head phase leaves them."""
    network = network or build(plan, NAMES)
    epochs: list[Epoch] = []

    def heard(epoch: Epoch) -> None:
        epochs.append(epoch)
        if epoch.number == plan.head_epochs:
            raise Enough

    with pytest.raises(Enough):
        fit(network, plan, *shown, folder, "cpu", on_epoch=heard)
    return network, epochs


def weight(network: nn.Module) -> Tensor:
    """The head's weight, [classes, width]."""
    found = head(network).weight
    assert isinstance(found, Tensor)
    return found.detach()


def apart(one: nn.Module, other: nn.Module, plan: Plan) -> float:
    """How far two heads lie from each other, as a share of the way they have come."""
    way = (weight(one) - weight(build(plan, NAMES))).norm()
    return float((weight(one) - weight(other)).norm() / way)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adamw", "learning_rate": 1e-2, "label_smoothing": 0.0,
         "class_weights": "none", "gradient_clip": None},
        {"precision": "auto", "channels_last": True, "head_views": 9},
    ],
)  # fmt: skip
def test_the_head_is_that_of_the_whole_network(
    changes: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    """With a view for each epoch the pictures are those of a run through the network, and so are
    the head, dropout included, and every figure of every epoch.
    """
    plan = replace(HEAD, **changes)
    through, expected = after_the_head_phase(
        replace(plan, head_views=None), examples(cache), tmp_path / "through"
    )
    network, epochs = after_the_head_phase(plan, examples(cache), tmp_path / "features")
    assert apart(through, network, plan) < ROUNDING
    for one, other in zip(epochs, expected, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=ROUNDING)
        assert one.validation_loss == pytest.approx(other.validation_loss, rel=ROUNDING)
        for name in ("number", "phase", "train_accuracy", "validation_accuracy", "learning_rate"):
            assert getattr(one, name) == getattr(other, name)
    before, after = build(plan, NAMES).state_dict(), network.state_dict()
    assert {key.split(".")[0] for key in after if not torch.equal(before[key], after[key])} == {
        "fc"
    }


def test_the_epochs_take_the_views_in_turn(cache: Path, tmp_path: Path) -> None:
    """With fewer views than epochs the head is that of a plain loop through the whole network,
    written down here, that sees the first views again.
    """
    plan = replace(HEAD, head_views=2, dropout=0.0, label_smoothing=0.0, class_weights="none",
                   gradient_clip=None, weight_decay=0.0, warmup_epochs=0.0)  # fmt: skip
    train, validation = examples(cache)
    found, _ = after_the_head_phase(plan, (train, validation), tmp_path)
    network = build(plan, NAMES).eval()
    optimizer = torch.optim.SGD(
        head(network).parameters(), lr=plan.learning_rate, momentum=0.9, nesterov=True
    )
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in normalisation(network, plan))
    listed = sorted(zip(train.images, train.labels, strict=True))
    steps = len(batches(len(listed), plan.batch_size, 0, 1)) * plan.head_epochs
    step = 0
    for epoch in range(1, plan.head_epochs + 1):
        for rows in batches(len(listed), plan.batch_size, plan.seed, epoch):
            images = [listed[row][0] for row in rows]
            seeds = seeds_of(plan.seed, 1 if epoch % 2 else 2, images)
            stored = torch.from_numpy(train.pixels.gather(images))
            pictures = augment(stored, plan.augmentation, plan.image_size, seeds)
            labels = torch.tensor([NAMES.index(listed[row][1]) for row in rows])
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * rate_factor(step, steps, 0)
            optimizer.zero_grad()
            functional.cross_entropy(network((pictures - mean) / std), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
    assert apart(network, found, plan) < ROUNDING


class Counting:
    """Pictures that remember how often they were asked for."""

    def __init__(self, pixels: Gatherable) -> None:
        self.pixels = pixels
        self.asked = 0

    def gather(self, images: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Give them, and count."""
        self.asked += len(images)
        return self.pixels.gather(images)


def test_each_view_goes_through_the_backbone_once(cache: Path, tmp_path: Path) -> None:
    """Six epochs of two views ask for every training picture twice, for the others once; views
    that no epoch comes to are never made.
    """
    train, validation = examples(cache)
    few = 2  # to see whether backbone and head can be told apart
    for views, asked in ((2, 2), (100, 6)):
        counted, once = Counting(train.pixels), Counting(validation.pixels)
        shown = replace(train, pixels=counted), replace(validation, pixels=once)
        plan = replace(HEAD, head_views=views)
        _, epochs = after_the_head_phase(plan, shown, tmp_path / str(views))
        assert counted.asked == asked * len(train.images) + few
        assert once.asked == len(validation.images)
        assert len(epochs) == plan.head_epochs


def test_a_run_killed_in_its_head_phase_ends_with_the_same_bits(
    cache: Path, tmp_path: Path
) -> None:
    """Killed behind each of its epochs, it goes on with the same engine, views and bits; no
    features are left behind.
    """
    plan = replace(HEAD, head_views=2)
    whole = fit(build(plan, NAMES), plan, *examples(cache), tmp_path / "whole", "cpu")

    def die(epoch: Epoch) -> None:
        raise Enough

    for _ in range(plan.head_epochs):
        with pytest.raises(Enough):
            fit(build(plan, NAMES), plan, *examples(cache), tmp_path / "killed", "cpu",
                on_epoch=die)
        assert [one.name for one in (tmp_path / "killed").iterdir()] == ["resume.safetensors"]
    killed = fit(build(plan, NAMES), plan, *examples(cache), tmp_path / "killed", "cpu")
    expected = whole.network.state_dict()
    for key, tensor in killed.network.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    assert killed.machine["features"] == whole.machine["features"] == "eager float32"


def test_the_engine_is_the_one_that_answers_fastest_here(cache: Path, tmp_path: Path) -> None:
    """A long head phase measures the engines once, as an evaluation does, and remembers."""
    plan = replace(HEAD, epochs=41, head_epochs=40, head_views=40, precision="auto",
                   channels_last=None)  # fmt: skip
    calibration = tmp_path / "calibration.json"
    machines = []

    def stop(epoch: Epoch) -> None:
        raise Enough

    for number in range(2):
        with pytest.raises(Enough):
            fit(build(plan, NAMES), plan, *examples(cache), tmp_path / str(number), "cpu",
                on_epoch=stop, calibration=Calibration(calibration))
        machines.append(calibration.read_text())
    assert '\\"measured\\": \\"answers\\"' in machines[0]
    assert machines[0] == machines[1]


def measured(plan: Plan, path: Path) -> Calibration:
    """A machine on which half precision trains fastest and ONNX Runtime answers fastest."""
    network, calibration = build(plan, NAMES), Calibration(path)
    batch = torch.zeros(plan.batch_size, 3, 32, 32), torch.zeros(plan.batch_size, dtype=torch.long)
    trials.choose(network, plan, CPU, trials.WORTH_MEASURING, lambda: batch, calibration)
    (key, found), = json.loads(path.read_text()).items()
    for one in found["ways"]:
        one["seconds"] = 0.1 if one["way"]["precision"] == "bfloat16" else 1.0
    path.write_text(json.dumps({key: found}))
    for engine in runtime.possible(plan, CPU):
        speed = runtime.Speed(0.0, 1000.0 if engine.library == "onnxruntime" else 1.0)
        calibration.keep(runtime._measurement(engine, network, plan, CPU), vars(speed))
    return calibration


def test_a_resolved_plan_computes_the_same_bits_without_what_was_measured(
    cache: Path, tmp_path: Path
) -> None:
    """Trained again by its resolved plan, a run goes the way that was chosen for it, features
    included, on a machine that has forgotten its measurements; another engine computes other bits.
    """
    plan = replace(HEAD, epochs=18, head_epochs=17, head_views=17, precision="auto",
                   channels_last=None)  # fmt: skip

    def trained(
        plan: Plan, name: str, calibration: Calibration | None = None
    ) -> tuple[str, Plan]:
        fitted = fit(build(plan, NAMES), plan, *examples(cache), tmp_path / name, "cpu",
                     calibration=calibration)
        settled = resolved(plan, fitted.network, fitted.machine)
        path = tmp_path / f"{name}.safetensors"
        return save(fitted.network, path, replace(settled, way=None), NAMES), settled

    digest, settled = trained(plan, "chosen", measured(plan, tmp_path / "calibration.json"))
    assert settled.way is not None
    assert (settled.way.precision, settled.way.features) == ("bfloat16", "onnxruntime float32")
    assert trained(settled, "again") == (digest, settled)
    plain = replace(settled, way=replace(settled.way, features="eager float32"))
    assert trained(plain, "plain")[0] != digest


def louder(plan: Plan) -> nn.Module:
    """A network whose answers are not its classifier's alone."""
    network = build(plan, NAMES)
    network.register_forward_hook(lambda module, pictures, outputs: 3 * outputs + 1)
    return network


def test_a_head_that_is_not_the_end_learns_through_the_network(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where head and backbone alone would answer otherwise, the whole network is trained and
    that is said.
    """
    plan = replace(HEAD, dropout=0.0)
    with caplog.at_level(logging.WARNING):
        network, epochs = after_the_head_phase(
            plan, examples(cache), tmp_path / "one", louder(plan)
        )
    assert "through the whole network" in caplog.text
    through, expected = after_the_head_phase(
        replace(plan, head_views=None), examples(cache), tmp_path / "two", louder(plan)
    )
    assert torch.equal(weight(network), weight(through))
    assert [one.train_loss for one in epochs] == [one.train_loss for one in expected]


def test_a_backbone_without_memory_takes_fewer_pictures(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The head is the same, though at most seven pictures go through the backbone at once."""
    narrow = build(HEAD, NAMES)
    narrow.layer3.register_forward_pre_hook(no_more_than_seven)  # type: ignore[union-attr]
    with caplog.at_level(logging.WARNING):
        network, _ = after_the_head_phase(HEAD, examples(cache), tmp_path / "narrow", narrow)
    assert "7 at a time" in caplog.text
    whole, _ = after_the_head_phase(HEAD, examples(cache), tmp_path / "whole")
    assert apart(whole, network, HEAD) < ROUNDING


def no_more_than_seven(_: nn.Module, inputs: tuple[Tensor]) -> None:
    """Be out of memory as torch is."""
    if len(inputs[0]) > 7:
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("architecture", "size"),
    [
        ("mobilenetv2_035", 32),
        ("mobilenetv3_small_050", 32),
        ("efficientnet_b0", 32),
        ("resnet18", 32),
        ("densenet121", 32),
        ("inception_v4", 75),
        ("resnetv2_50", 32),  # its head is a convolution
        ("test_vit", 160),
        ("test_convnext", 32),
    ],
)
def test_every_architecture_is_told_apart(architecture: str, size: int) -> None:
    """Backbone and head alone answer as the network does while its head learns, with the same
    places dropped and without anything else that is random.
    """
    plan = Plan(architecture=architecture, image_size=size, dropout=0.5)
    network = build(plan, NAMES).eval()
    network.training = True
    for module in head_dropouts(network):
        module.train()
    pictures = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    parts = split(network, pictures)
    assert parts is not None
    backbone, alone = parts
    with torch.no_grad():
        torch.manual_seed(7)
        expected = network(pictures)
        torch.manual_seed(7)
        found = alone(backbone(pictures))
        again = alone(backbone(pictures))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (again - expected).abs().max() > 0.1 * expected.abs().max()  # other places are dropped
    assert alone.classifier is head(network)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from vision.features import NoRoom, kept
# files that cannot grow beyond 20,000 bytes fail as they do on a full disk
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
few = kept(Path(sys.argv[1]), iter([torch.ones(2, 3), torch.zeros(1, 3)]))
sys.stderr.write(f"{few.tolist()}")
try:
    kept(Path(sys.argv[1]), (torch.ones(100, 64) for _ in range(10)))
except NoRoom as error:
    sys.stdout.write(f"{error}")
"""


def test_a_full_disk_is_one_line_with_the_mend(tmp_path: Path) -> None:
    """Features that do not fit end in a sentence, not in a bus error, and leave nothing."""
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "work")],
        cwd=Path(__file__).parents[1], text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert run.stderr == "[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]"
    assert "\n" not in run.stdout
    assert "head_views" in run.stdout
    assert list((tmp_path / "work").iterdir()) == []
