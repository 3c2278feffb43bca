"""Engines that compute answers: PyTorch as it comes or compiled, ONNX Runtime, OpenVINO.

Which is fastest depends on machine and architecture, so each is timed once and the times are kept
(`vision.calibration`). Answers of two versions are only compared when one engine gave them.
"""

import copy
import importlib.util
import logging
import queue
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vision.calibration import Calibration, Measured
from vision.export import OfPixels, export, export_backbone
from vision.memory import InParts
from vision.network import class_names_of
from vision.plan import Plan
from vision.prediction import Forward, autocast, bfloat16_for_answers, device_named, eager, upload

log = logging.getLogger(__name__)

Library = Literal["eager", "compiled", "onnxruntime", "openvino"]

# below so many pictures nothing is measured: PyTorch as it comes
WORTH_MEASURING = 500
# what PyTorch answers within so many seconds is not worth the set-up of another library
WORTH_A_SETUP = 20.0
MEASURING_BATCH = 32
# so many pictures at a time where each core answers for itself: none has long to wait at the end
PIECE = 8
MEASURING_SECONDS = 1.0
MOST_ROUNDS = 5
# what saves less than this share is not worth leaving what is plain
CLEARLY = 0.1


class NoEngine(ValueError):
    """An engine that is not known or not installed here; the message is one line with the mend."""


@dataclass(frozen=True)
class Engine:
    """What computes answers, in which precision; channels_last is None where the engine decides.

    Only PyTorch's own are made for the layout and the device that the plan names.
    """

    library: Library
    precision: Literal["float32", "bfloat16"]
    channels_last: bool | None = None

    @property
    def name(self) -> str:
        """How it is stored and told, such as `eager bfloat16 channels last`."""
        return f"{self.library} {self.precision}{' channels last' if self.channels_last else ''}"

    @property
    def needs_setup(self) -> bool:
        """Whether a network must be translated for it, which takes seconds."""
        return self.library != "eager"

    @property
    def libraries(self) -> dict[str, str]:
        """Versions of what it computes with, PyTorch aside."""
        external = self.library in ("onnxruntime", "openvino")
        return {self.library: installed(self.library)} if external else {}


# Plain first, then by what it takes to make a network ready.
ENGINES = (
    Engine("eager", "float32", True),
    Engine("eager", "float32", False),
    Engine("eager", "bfloat16", True),
    Engine("eager", "bfloat16", False),
    Engine("onnxruntime", "float32"),
    Engine("openvino", "float32"),
    Engine("openvino", "bfloat16"),
    Engine("compiled", "bfloat16", True),
)


@dataclass(frozen=True)
class Speed:
    """What an engine takes here: seconds to make one network ready, then images per second.

    problem: why it cannot be used here, in one line; then the other two are 0.
    """

    setup_seconds: float
    images_per_second: float
    problem: str | None = None

    def seconds(self, images: int, networks: int = 1) -> float:
        """What so many answers of so many networks take in all."""
        return networks * self.setup_seconds + images / self.images_per_second


def named(name: str) -> Engine:
    """The engine of this name; raises `NoEngine`."""
    for engine in ENGINES:
        if engine.name == name:
            return engine
    known = ", ".join(repr(one.name) for one in ENGINES)
    raise NoEngine(f"engine {name!r}: there is no such one, known are {known}")


def plain(plan: Plan, device: torch.device) -> Engine:
    """PyTorch as it comes, in the precision and layout that the plan says."""
    half = plan.precision == "bfloat16" or bfloat16_for_answers(plan, device)
    return Engine("eager", "bfloat16" if half else "float32", plan.channels_last is not False)


def possible(plan: Plan, device: torch.device) -> list[Engine]:
    """The engines that are installed, run on the device and have what the plan names; plain first.

    A plan that names a layout leaves only PyTorch, which has a choice of layouts.
    """
    precisions = ["float32", "bfloat16"] if plan.precision == "auto" else [plan.precision]
    own = ("eager", "compiled") if device.type == "cuda" else Library.__args__  # type: ignore[attr-defined]
    first = plain(plan, device)
    found = [
        engine
        for engine in ENGINES
        if engine.library in own
        and engine.precision in precisions
        and plan.channels_last in (None, engine.channels_last)
        and (engine.library in ("eager", "compiled") or importlib.util.find_spec(engine.library))
    ]
    return [first, *(engine for engine in found if engine != first)]


def fastest(speeds: Mapping[Engine, Speed], images: int, networks: int = 1) -> Engine:
    """The engine with which so many answers are there soonest, of those that were measured.

    The first of the mapping is the plain one: another one must clearly save time.
    """
    usable = {engine: speed for engine, speed in speeds.items() if speed.problem is None}
    seconds = {engine: speed.seconds(images, networks) for engine, speed in usable.items()}
    best = min(seconds, key=lambda engine: seconds[engine])
    first = next(iter(seconds))
    return best if seconds[best] < (1 - CLEARLY) * seconds[first] else first


def choose(
    network: nn.Module,
    plan: Plan,
    device: str | torch.device,
    images: int,
    calibration: Calibration,
    networks: int = 1,
) -> Engine:
    """The engine for so many answers in all, by this network and others like it.

    What the calibration does not know yet is measured, where the job is long enough to pay for
    it, and kept; asked again, the answer is the same.
    """
    place = device_named(device)
    if images < WORTH_MEASURING:
        return plain(plan, place)
    speeds: dict[Engine, Speed] = {}
    engines = possible(plan, place)
    for engine in engines:
        what = _measurement(engine, network, plan, place)
        known = calibration.recall(what)
        if known is None:
            if engine.needs_setup and _soon(speeds, images, networks):
                continue
            speed = measure(engine, network, plan, place)
            known = dict(vars(speed))
            calibration.keep(what, known)
            log.info("%s: %s", engine.name, speed.problem or
                     f"{speed.images_per_second:.0f} images/s after {speed.setup_seconds:.1f} s")
        speeds[engine] = Speed(**known)
    return fastest(speeds, images, networks)


def measure(engine: Engine, network: nn.Module, plan: Plan, device: torch.device) -> Speed:
    """Make a copy of the network ready and answer noise for about a second."""
    side = plan.geometry.side
    shape = (MEASURING_BATCH, side, side, 3)
    noise = upload(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), device)
    begun = time.perf_counter()

    def once() -> None:
        starts = range(0, len(noise), forward.batch)
        parts = [noise[start:start + forward.batch] for start in starts]
        for _, outputs in forward.each(enumerate(parts * forward.at_once)):
            outputs.cpu()

    try:
        forward = ready(engine, copy.deepcopy(network), plan, device, MEASURING_BATCH)
        once()
    except Exception as error:  # no compiler, an operator the library lacks: another engine answers
        return Speed(0.0, 0.0, " ".join(f"{type(error).__name__}: {error}".split())[:300])
    setup = time.perf_counter() - begun
    rounds: list[float] = []
    while len(rounds) < MOST_ROUNDS and sum(rounds) < MEASURING_SECONDS:
        begun = time.perf_counter()
        once()
        rounds.append(time.perf_counter() - begun)
    # the best, because what else the machine does only ever slows a round down
    setup = max(0.0, setup - min(rounds)) if engine.needs_setup else 0.0
    return Speed(setup, len(noise) * forward.at_once / min(rounds))


def ready(
    engine: Engine, network: nn.Module, plan: Plan, device: str | torch.device, batch_size: int = 64
) -> Forward:
    """Make the network ready to answer stored pixels, at most batch_size pictures at a time.

    ONNX Runtime and OpenVINO give each core pictures of its own: all cores in step would wait for
    each other after every layer, and for whatever decodes beside them. Raises `NoEngine` for an
    engine that is not installed or does not run on the device.
    """
    place = device_named(device)
    if engine.library == "eager":
        half, last = engine.precision == "bfloat16", engine.channels_last is True
        return replace(eager(network, plan, place, half, last), batch=batch_size)
    if engine.library == "compiled":
        whole = OfPixels(network, plan)
        return Forward(InParts(_compiled(engine, whole, place, batch_size)), batch_size)
    _refuse_absent(engine, place)
    batch_size, cores = min(PIECE, batch_size), torch.get_num_threads()
    compute = _translated(engine, network, plan, export, batch_size, cores)
    return Forward(InParts(compute), batch_size, cores)


def ready_backbone(
    engine: Engine, network: nn.Module, plan: Plan, device: str | torch.device, batch_size: int = 64
) -> Callable[[Tensor], Tensor]:
    """Make a network without head ready: a function of pictures as they come in training.

    They are float32 [n, 3, size, size], normalised, on the device, for any n up to batch_size;
    their features are float32 [n, width] on it. Raises `NoEngine` as `ready` does.
    """
    place = device_named(device)
    if engine.library == "eager":
        return _plain_backbone(engine, network, place)
    if engine.library == "compiled":
        return _compiled(engine, network, place, batch_size)
    _refuse_absent(engine, place)
    return _translated(engine, network, plan, export_backbone, batch_size, at_once=1)


def _refuse_absent(engine: Engine, device: torch.device) -> None:
    if device.type != "cpu":
        raise NoEngine(f"{engine.name} answers on CPUs here: use an eager or compiled engine")
    if importlib.util.find_spec(engine.library) is None:
        raise NoEngine(f"{engine.name} is not installed: pip install {engine.library}, or let "
                       "another engine answer for all versions that are compared")


def _plain_backbone(
    engine: Engine, network: nn.Module, device: torch.device
) -> Callable[[Tensor], Tensor]:
    layout = torch.channels_last if engine.channels_last else torch.contiguous_format
    network.to(device).to(memory_format=layout).eval()

    def forward(pictures: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(device, engine.precision == "bfloat16"):
            features: Tensor = network(pictures.contiguous(memory_format=layout)).float()
        return features

    return forward


def _compiled(
    engine: Engine, network: nn.Module, device: torch.device, batch_size: int
) -> Callable[[Tensor], Tensor]:
    from torch._inductor import config

    whole = network.to(device).eval().to(memory_format=torch.channels_last)
    run = torch.compile(whole, dynamic=False)

    def forward(inputs: Tensor) -> Tensor:
        with (
            torch.no_grad(),
            autocast(device, engine.precision == "bfloat16"),
            # batch norms are folded and weights laid out for this processor once
            config.patch(freezing=device.type == "cpu"),
        ):
            outputs: Tensor = run(_filled(inputs, batch_size))
        return outputs[: len(inputs)].float()

    return forward


def _translated(
    engine: Engine,
    network: nn.Module,
    plan: Plan,
    write: Callable[[nn.Module, Plan, Path], None],
    batch_size: int,
    at_once: int,
) -> Callable[[Tensor], Tensor]:
    """at_once: how many threads will call it at the same time, and share the cores."""
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        path = Path(folder) / "network.onnx"
        write(network.to("cpu").eval(), plan, path)
        if engine.library == "openvino":
            return _openvino(engine, path, batch_size, at_once)
        return _onnxruntime(path, at_once)


def _onnxruntime(path: Path, at_once: int) -> Callable[[Tensor], Tensor]:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() // at_once
    # waiting threads give the processor to those that decode and gather
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    (taken,) = session.get_inputs()

    def forward(inputs: Tensor) -> Tensor:
        (outputs,) = session.run(None, {taken.name: inputs.contiguous().numpy()})
        return torch.from_numpy(outputs)

    return forward


def _openvino(
    engine: Engine, path: Path, batch_size: int, at_once: int
) -> Callable[[Tensor], Tensor]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    shape = [one.get_length() for one in list(model.input(0).get_partial_shape())[1:]]
    model.reshape([batch_size, *shape])  # a fixed shape is planned once
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if engine.precision == "bfloat16" else "f32",
            "NUM_STREAMS": at_once,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # a stream moves to the core that is free
        },
    )
    idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(at_once):
        idle.put(compiled.create_infer_request())

    def forward(inputs: Tensor) -> Tensor:
        whole = _filled(inputs, batch_size).contiguous().numpy()
        request = idle.get()
        try:
            outputs = request.infer({0: whole}, share_inputs=True)[0]
            return torch.from_numpy(outputs[: len(inputs)].copy())
        finally:
            idle.put(request)

    return forward


def _filled(inputs: Tensor, batch_size: int) -> Tensor:
    """A last, shorter batch filled up with zeros: one shape, one program, one rounding."""
    short = batch_size - len(inputs)
    if short <= 0:
        return inputs
    return torch.cat([inputs, inputs.new_zeros((short, *inputs.shape[1:]))])


def _measurement(
    engine: Engine, network: nn.Module, plan: Plan, device: torch.device
) -> Measured:
    """What is measured, as the calibration knows it; another version of a library is another."""
    return {
        "measured": "answers",
        "engine": engine.name,
        **engine.libraries,
        "device": device.type,
        "architecture": plan.architecture,
        "arguments": plan.arguments,
        "image_size": plan.image_size,
        "classes": _magnitude(class_names_of(network)),
    }


def _magnitude(names: Sequence[str]) -> int:
    """Number of classes to the next power of ten: one more class is no reason to measure anew."""
    return int(10 ** len(str(len(names) - 1)))


def _soon(speeds: Mapping[Engine, Speed], images: int, networks: int) -> bool:
    return min(
        speed.seconds(images, networks) for speed in speeds.values() if not speed.problem
    ) < WORTH_A_SETUP
