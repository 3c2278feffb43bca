"""What was measured on a machine is measured once, and never makes a run slower than plain."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vision import trials
from vision.calibration import Calibration
from vision.network import build
from vision.plan import BadPlan, Plan, Way

PLAN = Plan(architecture="test_resnet", image_size=32, batch_size=9, epochs=1000)
CPU = torch.device("cpu")
NETWORK = build(PLAN, ("left", "right"))


class Batches:
    """Gives a training batch and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Nine grey pictures."""
        self.asked += 1
        return torch.full((9, 3, 32, 32), 0.5), torch.zeros(9, dtype=torch.long)


def test_a_measurement_is_found_again_by_another_process(tmp_path: Path) -> None:
    """What one object kept, another of the same file recalls, and nothing else."""
    path = tmp_path / "deep" / "calibration.json"
    Calibration(path).keep({"use": "training", "size": 160}, {"seconds": 1.5})
    assert Calibration(path).recall({"size": 160, "use": "training"}) == {"seconds": 1.5}
    assert Calibration(path).recall({"use": "training", "size": 224}) is None
    assert [one.name for one in path.parent.iterdir()] == ["calibration.json"]


def test_two_writers_keep_each_others_measurements(tmp_path: Path) -> None:
    """Objects that were made before the other wrote lose nothing."""
    one, two = Calibration(tmp_path / "file.json"), Calibration(tmp_path / "file.json")
    one.keep({"of": 1}, {"found": 1})
    two.keep({"of": 2}, {"found": 2})
    assert (one.recall({"of": 2}), two.recall({"of": 1})) == ({"found": 2}, {"found": 1})


@pytest.mark.parametrize("body", ["", "{", "[1]", '"text"'])
def test_a_damaged_file_is_measured_anew(
    body: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A cut or foreign file is said to be damaged, recalls nothing and is replaced."""
    path = tmp_path / "calibration.json"
    path.write_text(body)
    with caplog.at_level(logging.WARNING):
        assert Calibration(path).recall({"of": 1}) is None
    assert "measured anew" in caplog.text
    Calibration(path).keep({"of": 1}, {"found": 1})
    assert Calibration(path).recall({"of": 1}) == {"found": 1}


def test_without_a_file_it_lives_as_long_as_the_object() -> None:
    """Two objects without a file know nothing of each other."""
    held = Calibration()
    held.keep({"of": 1}, {"found": 1})
    assert held.recall({"of": 1}) == {"found": 1}
    assert Calibration().recall({"of": 1}) is None


def test_other_threads_are_another_machine(tmp_path: Path) -> None:
    """A measurement with so many threads says nothing about another number of them."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        Calibration(tmp_path / "file.json").keep({"of": 1}, {"found": 1})
        torch.set_num_threads(2)
        assert Calibration(tmp_path / "file.json").recall({"of": 1}) is None
    finally:
        torch.set_num_threads(before)


def test_every_way_is_tried_once_and_the_choice_is_remembered(tmp_path: Path) -> None:
    """The four ways are tried, the file answers the next time, and the network is untouched."""
    calibration = Calibration(tmp_path / "calibration.json")
    before = {key: value.clone() for key, value in NETWORK.state_dict().items()}
    batches = Batches()
    first = trials.choose(NETWORK, PLAN, CPU, 10_000, batches, calibration, threads=1)
    again = trials.choose(NETWORK, PLAN, CPU, 10_000, batches, calibration, threads=1)
    assert (first.reason, again.reason, batches.asked) == ("measured", "measured before", 1)
    assert (again.way, again.seconds) == (first.way, first.seconds)
    assert list(first.seconds) == ["float32, 1 thread", "float32, channels last, 1 thread",
                                   "bfloat16, 1 thread", "bfloat16, channels last, 1 thread"]
    assert all(torch.equal(before[key], value) for key, value in NETWORK.state_dict().items())
    assert all(one.grad is None for one in NETWORK.parameters())


def test_a_plan_that_names_everything_is_not_measured() -> None:
    """Precision and memory format of the plan and given threads leave nothing to be tried."""
    plan = replace(PLAN, precision="bfloat16", channels_last=True)
    batches = Batches()
    chosen = trials.choose(NETWORK, plan, CPU, 10**9, batches, Calibration(), threads=1)
    assert (chosen.way, chosen.reason) == (Way("bfloat16", True, 1), "by the plan")
    assert batches.asked == 0


def test_a_plan_that_names_the_way_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolved plan goes its way, whatever was measured; where it cannot, the mend is named."""
    way = Way("bfloat16", True, 2, compiled=True, features="eager float32")
    plan, batches = replace(PLAN, way=way), Batches()
    chosen = trials.choose(NETWORK, plan, CPU, 10**9, batches, Calibration(), threads=1)
    assert (chosen.way, chosen.reason, batches.asked) == (way, "by the plan", 0)
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with pytest.raises(BadPlan, match=r"way=.*compiled: there is no C\+\+ compiler .* leave way"):
        trials.choose(NETWORK, plan, CPU, 10**9, batches, Calibration(), threads=1)


def test_fewer_threads_are_tried_where_they_are_not_given() -> None:
    """With two threads allowed, one is tried too, and the process keeps its own number."""
    before = torch.get_num_threads()
    plan = replace(PLAN, precision="float32", channels_last=False)
    try:
        torch.set_num_threads(2)
        chosen = trials.choose(NETWORK, plan, CPU, 10_000, Batches(), Calibration())
        assert list(chosen.seconds) == ["float32, 2 threads", "float32, 1 thread"]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_plain_way_wins_unless_another_is_clearly_faster(tmp_path: Path) -> None:
    """Of what is remembered a few percent choose nothing, a fifth does."""
    path = tmp_path / "calibration.json"
    trials.choose(NETWORK, PLAN, CPU, 10_000, Batches(), Calibration(path), threads=1)

    def with_seconds(*seconds: float) -> Way:
        (key, measured), = json.loads(path.read_text()).items()
        for one, each in zip(measured["ways"], seconds, strict=True):
            one["seconds"] = each / 1000
        path.write_text(json.dumps({key: measured}))
        return trials.choose(
            NETWORK, PLAN, CPU, 10_000, Batches(), Calibration(path), threads=1
        ).way

    assert with_seconds(1.0, 0.95, 0.99, 0.94) == Way("float32", False, 1)
    assert with_seconds(1.0, 0.8, 0.99, 0.85) == Way("float32", True, 1)
    assert with_seconds(1.0, 2.0, 3.0, 0.5) == Way("bfloat16", True, 1)


def test_without_a_compiler_nothing_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run long enough to be compiled says why it is not, and goes on."""
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with caplog.at_level(logging.INFO):
        chosen = trials.choose(NETWORK, PLAN, CPU, 10**12, Batches(), Calibration(), threads=1)
    assert "no C++ compiler" in caplog.text
    assert not chosen.way.compiled


class Small(nn.Module):
    """A network on a device whose memory takes a batch only if it `fits`."""

    def __init__(self, fits: Callable[[int], bool], error: Exception) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 2)
        self.fits = fits
        self.error = error

    def forward(self, pictures: Tensor) -> Tensor:
        """Average the colours, or be out of memory."""
        if not self.fits(len(pictures)):
            raise self.error
        outputs: Tensor = self.classifier(pictures.mean(dim=(2, 3)))
        return outputs


# as a GPU, torch's allocator on a CPU, oneDNN and Python say it
NO_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't "
                 "allocate memory: you tried to allocate 9 bytes. Error code 12"),
    RuntimeError("could not create a primitive"),
    MemoryError(),
)  # fmt: skip


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize(
    ("fits", "reason", "tried", "best"),
    [
        (lambda count: False, "too little memory to measure", 0, {"float32, 1 thread"}),
        # eight of the nine
        (lambda count: count <= 8, "measured", 4, None),
        (lambda count: torch.is_autocast_enabled("cpu"), "measured", 2,
         {"bfloat16, 1 thread", "bfloat16, channels last, 1 thread"}),
    ],
    ids=["none", "eight", "half"],
)  # fmt: skip
def test_what_does_not_fit_into_memory_is_left_out(
    fits: Callable[[int], bool], reason: str, tried: int, best: set[str] | None, error: Exception
) -> None:
    """The best of the ways that fit is chosen, with fewer pictures where the batch fits none; if
    none ever does, the plain way goes on, which splits its batches, and nothing is remembered.
    """
    calibration = Calibration()
    network = Small(fits, error)
    for _ in range(2):
        chosen = trials.choose(network, PLAN, CPU, 10_000, Batches(), calibration, threads=1)
        assert len(chosen.seconds) == tried
        assert all(math.isfinite(each) for each in chosen.seconds.values())
        assert best is None or str(chosen.way) in best
        assert chosen.reason == reason
        reason = "measured before" if tried else reason


def test_fewer_threads_are_compared_where_the_plain_way_does_not_fit() -> None:
    """What they save is then a share of the best way that fits."""
    before = torch.get_num_threads()
    network = Small(lambda count: torch.is_autocast_enabled("cpu"), NO_MEMORY[0])
    try:
        torch.set_num_threads(2)
        chosen = trials.choose(network, PLAN, CPU, 10_000, Batches(), Calibration())
    finally:
        torch.set_num_threads(before)
    assert [one for one in chosen.seconds if "float32" in one] == []
    assert [one for one in chosen.seconds if "1 thread" in one] != []


def test_another_error_of_a_trial_is_raised() -> None:
    """A network that cannot compute at all is not taken for one that is too large."""
    broken = Small(lambda count: False, RuntimeError("mat1 and mat2 shapes do not fit"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trials.choose(broken, PLAN, CPU, 10_000, Batches(), Calibration(), threads=1)
