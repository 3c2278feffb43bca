"""Every engine answers as PyTorch does, and the choice among them is a function of what was
measured.
"""

import json
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from vision import runtime
from vision.calibration import Calibration
from vision.export import METADATA_KEY, BadExport, export
from vision.network import build, head
from vision.plan import Plan
from vision.runtime import ENGINES, Engine, NoEngine, Speed, choose, fastest, named, ready

NAMES = ("cat", "dog", "emu", "gnu")
PLAN = Plan(architecture="test_efficientnet", image_size=48)
SIDE = PLAN.geometry.side
CPU = torch.device("cpu")
PLAIN, CONTIGUOUS, HALF = ENGINES[:3]
ONNX, COMPILED = named("onnxruntime float32"), named("compiled bfloat16 channels last")
# how far a confidence may lie from that of float32: sums in another order, and 8 bits of mantissa
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}


def network(seed: int = 0) -> torch.nn.Module:
    """Return a network whose answers differ between pictures."""
    made = build(replace(PLAN, seed=seed), NAMES)
    with torch.no_grad():
        head(made).weight.mul_(2500)  # type: ignore[operator]
    return made.eval()


def noise(count: int) -> torch.Tensor:
    """Stored pixels of so many pictures."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)


def shares(engine: Engine, made: torch.nn.Module, stored: torch.Tensor) -> torch.Tensor:
    """Confidences of all classes, in one engine, with batches of eight."""
    forward = ready(engine, made, PLAN, "cpu", batch_size=8)
    return torch.cat([forward(some) for some in stored.split(8)]).softmax(dim=1)


@pytest.mark.parametrize(
    "engine", [one for one in ENGINES if one.library != "compiled"], ids=lambda one: one.name
)
def test_every_engine_answers_as_pytorch_does(engine: Engine) -> None:
    """Whole and short batches have the confidences of plain float32."""
    if engine.library == "openvino":
        pytest.importorskip("openvino")
    stored, made = noise(11), network()
    expected = shares(PLAIN, made, stored)
    found = shares(engine, made, stored)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < TOLERANCES[engine.precision]
    assert expected.std(dim=0).min() > TOLERANCES[engine.precision]


@pytest.mark.parametrize(
    "engine", [one for one in ENGINES if one.library != "compiled"], ids=lambda one: one.name
)
def test_every_engine_has_the_features_of_a_backbone(engine: Engine) -> None:
    """A network without head takes pictures as training has them, in whole and short batches."""
    if engine.library == "openvino":
        pytest.importorskip("openvino")
    backbone = network()
    backbone.reset_classifier(0)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(11, 3, PLAN.image_size, PLAN.image_size, generator=generator)
    last = pictures.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = backbone(pictures)
    forward = runtime.ready_backbone(engine, backbone, PLAN, "cpu", batch_size=8)
    found = torch.cat([forward(some) for some in last.split(8)])
    assert found.dtype == torch.float32
    tolerance = TOLERANCES[engine.precision] * float(expected.abs().max())
    assert (found - expected).abs().max() < tolerance
    assert expected.std() > tolerance


class Small(torch.nn.Module):
    """Two layers, which a compiler is done with soon."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = torch.nn.Conv2d(3, 16, 3, stride=4)
            self.norm = torch.nn.BatchNorm2d(16)
            self.classifier = torch.nn.Linear(16, len(NAMES))
        vars(self).update(_regraft=vars(network())["_regraft"])

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """A convolution, its norm, and what is left of the picture on average."""
        features = self.norm(self.conv(batch)).relu().mean(dim=(2, 3))
        outputs: torch.Tensor = self.classifier(50 * features)
        return outputs


def test_two_compiled_networks_keep_their_own_weights() -> None:
    """Frozen into a program, the weights of one network never answer for another of its kind."""
    stored, both = noise(8), [Small(0), Small(1)]
    expected = [shares(PLAIN, one, stored) for one in both]
    assert (expected[0] - expected[1]).abs().max() > 3 * TOLERANCES["bfloat16"]
    forwards = [ready(COMPILED, one, PLAN, "cpu", batch_size=8) for one in both]
    for forward, wanted in zip([*forwards, forwards[0]], [*expected, expected[0]], strict=True):
        found = forward(stored).softmax(dim=1)
        assert (found - wanted).abs().max() < TOLERANCES["bfloat16"]
    short = forwards[1](stored[:3]).softmax(dim=1)
    assert (short - expected[1][:3]).abs().max() < TOLERANCES["bfloat16"]


def test_an_answer_does_not_depend_on_its_neighbours() -> None:
    """A picture alone in a filled-up batch is answered as among others, in the same engine."""
    stored, made = noise(8), Small(0)
    for engine in (PLAIN, ONNX):
        forward = ready(engine, made, PLAN, "cpu", batch_size=8)
        assert torch.allclose(forward(stored)[:1], forward(stored[:1]), atol=1e-5)


@pytest.mark.parametrize("name", ["onnxruntime float32", "openvino float32"])
def test_cores_answer_apart_what_they_answer_together(name: str) -> None:
    """With two threads two batches are computed at once, and each has the answers of its own."""
    if "openvino" in name:
        pytest.importorskip("openvino")
    stored, made = noise(75), network()
    expected = ready(PLAIN, made, PLAN, "cpu")(stored).softmax(dim=1)
    torch.set_num_threads(2)
    forward = ready(named(name), made, PLAN, "cpu")
    assert forward.at_once == 2
    parts = enumerate(stored.split(forward.batch))
    found = torch.cat([outputs for _, outputs in forward.each(parts)]).softmax(dim=1)
    assert (found - expected).abs().max() < TOLERANCES["float32"]


def test_an_engine_is_found_by_its_name() -> None:
    """What is stored with an evaluation names the engine that repeats it."""
    assert [named(one.name) for one in ENGINES] == list(ENGINES)
    assert len({one.name for one in ENGINES}) == len(ENGINES)
    with pytest.raises(NoEngine, match="abacus"):
        named("abacus float32")


# images, networks -> the engine
CHOICES = [
    (100, 1, PLAIN),  # the others save less than they cost, or next to nothing
    (1_000, 1, HALF),
    (4_000, 1, ONNX),
    (4_000, 2, HALF),  # two networks must be translated
    (100_000, 2, COMPILED),
]


@pytest.mark.parametrize(("images", "networks", "expected"), CHOICES)
def test_the_fastest_is_the_one_done_first(images: int, networks: int, expected: Engine) -> None:
    """Set-up and rate both count, so few images take what is ready and many what is quick."""
    speeds = {
        PLAIN: Speed(0, 100),
        HALF: Speed(0.5, 200),
        ONNX: Speed(7, 400),
        COMPILED: Speed(30, 600),
        CONTIGUOUS: Speed(0, 0, "RuntimeError: it does not work here"),
    }
    assert fastest(speeds, images, networks) == expected


def test_what_hardly_saves_anything_is_left_alone() -> None:
    """Noise in a measurement must not leave what is plain."""
    assert fastest({PLAIN: Speed(0, 100), HALF: Speed(0, 109)}, 1000) == PLAIN
    assert fastest({PLAIN: Speed(0, 100), HALF: Speed(0, 120)}, 1000) == HALF


def test_the_plan_has_the_last_word() -> None:
    """A named precision or layout leaves only engines that have it, from the first one on."""
    exact = runtime.possible(replace(PLAN, precision="float32"), CPU)
    assert exact[:3] == [PLAIN, CONTIGUOUS, ONNX]
    assert {one.precision for one in exact} == {"float32"}
    half = runtime.possible(replace(PLAN, precision="bfloat16"), CPU)
    assert half[0] == HALF
    assert {one.precision for one in half} == {"bfloat16"}
    laid_out = runtime.possible(replace(PLAN, channels_last=False), CPU)
    assert laid_out == [CONTIGUOUS, Engine("eager", "bfloat16", False)]
    assert runtime.possible(PLAN, CPU)[0] == PLAIN


def test_few_images_measure_nothing(tmp_path: Path) -> None:
    """A small evaluation takes PyTorch as it comes and leaves no trace."""
    calibration = Calibration(tmp_path / "calibration.json")
    assert choose(network(), PLAN, "cpu", runtime.WORTH_MEASURING - 1, calibration) == PLAIN
    assert not (tmp_path / "calibration.json").exists()


def test_a_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements are kept by architecture, and the second asking only reads them."""
    path = tmp_path / "calibration.json"
    first = choose(network(), PLAN, "cpu", runtime.WORTH_MEASURING, Calibration(path))
    kept = json.loads(path.read_text())
    # PyTorch's own are done so soon that translating this network was not even tried
    assert {json.loads(key)["engine"] for key in kept} == {one.name for one in ENGINES[:4]}
    assert all(one["images_per_second"] > 0 for one in kept.values())
    monkeypatch.delattr(runtime, "measure")
    assert choose(network(1), PLAN, "cpu", runtime.WORTH_MEASURING, Calibration(path)) == first
    larger = replace(PLAN, image_size=64)
    with pytest.raises(NameError):
        choose(network(), larger, "cpu", runtime.WORTH_MEASURING, Calibration(path))


def test_an_engine_that_fails_is_remembered_and_passed_over(tmp_path: Path) -> None:
    """A long job tries all engines; one that cannot take the network answers nothing."""
    exact = replace(PLAN, precision="float32")

    class Unexportable(Small):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return super().forward(batch if batch.sum() > 0 else -batch)

    made = Unexportable(0).eval()
    speed = runtime.measure(ONNX, made, exact, CPU)
    assert speed.problem
    assert "\n" not in speed.problem
    calibration = Calibration(tmp_path / "calibration.json")
    assert choose(made, exact, "cpu", 100_000_000, calibration).library == "eager"
    kept = json.loads((tmp_path / "calibration.json").read_text())
    problems = {json.loads(key)["engine"]: one["problem"] for key, one in kept.items()}
    assert "answer with PyTorch" in problems[ONNX.name]
    assert problems[PLAIN.name] is None
    with pytest.raises(BadExport, match="answer with PyTorch"):
        export(made, exact, tmp_path / "network.onnx")
    assert not (tmp_path / "network.onnx").exists()


def test_an_exported_network_takes_pixels_in_any_number(tmp_path: Path) -> None:
    """The file holds crop, normalisation and class names, and answers as PyTorch does."""
    made, stored = network(), noise(5)
    export(made, PLAN, tmp_path / "network.onnx")
    assert [one.name for one in tmp_path.iterdir()] == ["network.onnx"]
    model = onnx.load(tmp_path / "network.onnx")
    told = {one.key: json.loads(one.value) for one in model.metadata_props}
    assert told[METADATA_KEY]["class_names"] == list(NAMES)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    expected = shares(PLAIN, made, stored)
    for count in (1, 5):
        (logits,) = session.run(None, {"pixels": stored[:count].numpy()})
        found = torch.from_numpy(logits).softmax(dim=1)
        assert (found - expected[:count]).abs().max() < 1e-4


def test_a_missing_library_is_named() -> None:
    """An engine that this device does not have says what to do."""
    with pytest.raises(NoEngine, match="CPUs"):
        runtime.ready(ONNX, network(), PLAN, torch.device("meta"))
    with pytest.raises(NoEngine, match="CPUs"):
        runtime.ready_backbone(ONNX, network(), PLAN, torch.device("meta"))
