"""Evaluation against the bare forward pass of every engine: stored pixels in, rows in Postgres out.

First the limit: one constant batch of floats through each engine, nothing else. Then regraft's
evaluation as the night does it, in the engine that its calibration chooses for many images, with
scores and COPY into a real Postgres: once with the pixels in the cache, once with every image
fetched from a real S3 server and decoded. The limit of these is the best engine's forward pass
plus what the transport costs alone; it shares the cores, so its processor time is measured (of the
servers too), divided by the cores and added.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # threads that wait leave the core to others

import torch
from torch import nn

from benchmarks.bench import arguments, facts
from benchmarks.copying import an_evaluation
from benchmarks.figures import Figure, Goal, Part, Row, take_turns
from benchmarks.photographs import photographs
from vision import memory
from vision.calibration import Calibration
from vision.images import decode, prepare
from vision.network import Loaded, build
from vision.plan import Plan
from vision.prediction import Forward, device_named
from vision.runtime import choose

PART = "evaluate"
BATCH = 64
SMALL = 8  # pictures of a batch that one core answers alone
IN_FLIGHT = 16  # batches begun before all are waited for, where more than one is answered at once
CLASSES = 101
MANY = 100_000  # images of the job for which the engine is chosen
ROUNDS = 3
Contenders = dict[str, Callable[[], float]]


@dataclass(frozen=True)
class Case:
    """One network, its picture's side, and how many images it answers in a round.

    images: from the cache; fetched: of them, how many where each is fetched and decoded.
    """

    title: str
    plan: Plan
    images: int
    fetched: int


CASES = (
    Case("MobileNetV2, 160 px", Plan(architecture="mobilenetv2_100", image_size=160), 4096, 2048),
    Case("ResNet-50, 224 px", Plan(architecture="resnet50", image_size=224), 1024, 1024),
)


def main() -> None:
    """Both networks, each: the engines' limits, then the whole evaluation; save the part."""
    given = arguments(PART)
    device = device_named("cuda" if given.gpu else "cpu")
    memory.keep_freed()  # as in a night, whose training has done so
    rows: list[Row] = []
    notes = [
        "The engines' rows: one constant batch of 64 standardised pictures, float32, again and "
        "again. compiled is torch.compile with frozen weights; ONNX Runtime and OpenVINO run the "
        "same ONNX file, OpenVINO with a fixed shape and its latency hint, or its throughput hint "
        f"and {IN_FLIGHT} requests at a time; all with the same threads. regraft's own figure is "
        "its engine on constant stored pixels (uint8), cut and standardised included.",
    ]
    with services():
        for case in CASES:
            print(f"── {case.title}", flush=True)
            found, note = measured(case, given.data, device)
            rows += found
            notes.append(note)
    Part(PART, "Evaluation", tuple(rows), tuple(notes), (), facts()).save(
        "cuda" if given.gpu else "cpu"
    )


@contextmanager
def services() -> Iterator[None]:
    """A Postgres with our tables and an S3 server of their own, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="regraft-evaluation-", dir="/tmp"))
    folder.chmod(0o755)  # Postgres runs as another user when we are root
    os.environ["REGRAFT_STATE_DIR"] = str(folder)
    from infra import database, embedded, settings, storage

    try:
        found = embedded.addresses(settings.load())
        database.migrate(found.database_url)
        storage.connect().ensure_bucket()
        an_evaluation()
        yield
        database.connect().engine.dispose()
    finally:
        embedded.down(settings.load())
        shutil.rmtree(folder)


def measured(case: Case, data: Path | None, device: torch.device) -> tuple[list[Row], str]:
    """The rows of one network, and what to say about them."""
    from infra import settings
    from tasks import evaluation

    network = build(case.plan, [f"class {number}" for number in range(CLASSES)]).eval()
    loaded = Loaded(network, tuple(f"class {number}" for number in range(CLASSES)), case.plan)
    contenders = dict(engines(network, case.plan, device))
    limits = turns(contenders)
    best = max(limits.values(), key=lambda one: one.median)

    calibration = Calibration(settings.load().cache_dir / "calibration.json")
    begun = time.perf_counter()
    engine = choose(network, case.plan, device, MANY, calibration)
    calibrated = time.perf_counter() - begun
    print(f"  chosen in {calibrated:.0f} s: {engine.name}", flush=True)
    begun = time.perf_counter()
    answering = evaluation.start(loaded, engine)
    made_ready = time.perf_counter() - begun
    side = case.plan.geometry.side
    constant = torch.randint(0, 256, (BATCH, side, side, 3), dtype=torch.uint8).to(device)
    own = again(lambda: answered(answering.forward, constant), IN_FLIGHT * BATCH)
    own()
    engine_row = Row(
        f"{case.title}: forward pass alone",
        Figure("regraft", "images/s", tuple(own() for _ in range(ROUNDS)), engine.name),
        tuple(limits.values()),
    )

    whole, transport = pipeline(case, data, evaluation, answering)
    figures = turns({best.name: contenders[best.name], **transport, **whole})
    rows = [
        of_pipeline(case, figures, best.name, "pixels in the cache", ("pixels", "COPY")),
        of_pipeline(
            case, figures, best.name, "fetched and decoded", ("GET", "decode", "COPY")
        ),
    ]
    per_image = ", ".join(
        f"{name} {1e6 / figures[name].median:.0f}" for name in (best.name, *transport)
    )
    return [engine_row, *rows], (
        f"{case.title}: regraft's calibration of all engines took {calibrated:.0f} s, once per "
        f"machine and architecture, and chose {engine.name} for {MANY:,} images. Making one "
        f"version ready in it took {made_ready:.1f} s, once per evaluation and in none of these "
        f"figures. A round answers and stores {case.images:,} images from the cache in two "
        f"evaluations, or fetches {case.fetched:,}. Microseconds of both cores per image, each "
        f"alone: {per_image}."
    )


def answered(forward: Forward, constant: torch.Tensor) -> None:
    """So many batches by regraft's engine, as many at once as it takes."""
    for _, outputs in forward.each(enumerate(constant.split(forward.batch) * IN_FLIGHT)):
        outputs.cpu()


def turns(contenders: Contenders) -> dict[str, Figure]:
    """Warm each up, then let them take turns."""
    for warm_up in contenders.values():
        warm_up()
    return take_turns(contenders, "images/s", ROUNDS)


def of_pipeline(
    case: Case, figures: dict[str, Figure], best: str, what: str, carried: tuple[str, ...]
) -> Row:
    """The whole evaluation beside its limit, which is made of the parts of the same round."""
    parts = [figures[best].values, *(figures[name].values for name in carried)]
    limit = tuple(1 / sum(1 / value for value in together) for together in zip(*parts, strict=True))
    name = f"limit: {best}, with {', '.join(carried)}"
    return Row(
        f"{case.title}: evaluation, {what}",
        Figure("regraft", "images/s", figures[what].values),
        (Figure(name, "images/s", limit), figures[best]),
        (Goal(name, 0.95, "at least 95% of the best engine's forward pass plus transport"),),
    )


# --- the limit: engines bare ---------------------------------------------------------------


def engines(
    network: nn.Module, plan: Plan, device: torch.device
) -> Iterator[tuple[str, Callable[[], float]]]:
    """Each engine with one constant batch of floats, by name."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn((BATCH, 3, plan.image_size, plan.image_size), generator=generator)
    batch = batch.to(device)
    for half in (False, True):
        for last in (False, True):
            name = f"eager {'bf16' if half else 'fp32'}{', channels_last' if last else ''}"
            yield name, of_torch(network, batch, half, last, compiled=False)
    yield "torch.compile bf16", of_torch(network, batch, True, True, compiled=True)
    if device.type == "cpu":
        yield from of_file(network, batch)


def of_torch(
    network: nn.Module, batch: torch.Tensor, half: bool, last: bool, compiled: bool
) -> Callable[[], float]:
    """PyTorch, as it comes or compiled."""
    import copy

    from torch._inductor import config

    layout = torch.channels_last if last else torch.contiguous_format
    own = copy.deepcopy(network).to(batch.device).to(memory_format=layout)
    run = torch.compile(own, dynamic=False) if compiled else own
    laid = batch.contiguous(memory_format=layout)

    def forward() -> object:
        with (
            torch.no_grad(),
            torch.autocast(batch.device.type, torch.bfloat16, enabled=half),
            config.patch(freezing=compiled and batch.device.type == "cpu"),
        ):
            return run(laid).float().cpu()

    return again(forward, len(batch))


def of_file(
    network: nn.Module, batch: torch.Tensor
) -> Iterator[tuple[str, Callable[[], float]]]:
    """ONNX Runtime and OpenVINO on the ONNX file of the bare network."""
    import warnings

    import onnxruntime

    threads = torch.get_num_threads()
    values = batch.numpy()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "bare.onnx"
        torch.onnx.export(
            network, (batch,), path, dynamo=True, input_names=["x"], output_names=["y"],
            verbose=False, external_data=False, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        yield "ONNX Runtime fp32", again(lambda: session.run(None, {"x": values}), len(batch))
        try:
            import openvino
        except ImportError:
            return
        core = openvino.Core()
        model = core.read_model(path)
        for name, precision in (("OpenVINO fp32", "f32"), ("OpenVINO bf16", "bf16")):
            hints = {
                "INFERENCE_PRECISION_HINT": precision,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
            }
            model.reshape(values.shape)
            request = core.compile_model(model, "CPU", hints).create_infer_request()
            yield name, again(bare(request, values), len(batch))
            hints["PERFORMANCE_HINT"] = "THROUGHPUT"
            model.reshape((SMALL, *values.shape[1:]))
            queue = openvino.AsyncInferQueue(core.compile_model(model, "CPU", hints))
            yield (
                f"{name}, a stream per core, {SMALL} pictures each",
                again(streams(queue, values[:SMALL]), IN_FLIGHT * SMALL),
            )


def bare(request: Any, values: Any) -> Callable[[], object]:
    """One inference of OpenVINO."""
    return lambda: request.infer({0: values}, share_inputs=True)


def streams(queue: Any, values: Any) -> Callable[[], object]:
    """So many inferences of OpenVINO, as many at once as it has chosen itself."""

    def forward() -> None:
        for _ in range(IN_FLIGHT):
            queue.start_async({0: values}, share_inputs=True)
        queue.wait_all()

    return forward


def again(forward: Callable[[], object], images: int) -> Callable[[], float]:
    """Images per second of a function that answers so many, over about a second."""

    def rate() -> float:
        begun, rounds = time.perf_counter(), 0
        while rounds < 1 or time.perf_counter() - begun < 1:
            forward()
            rounds += 1
        return rounds * images / (time.perf_counter() - begun)

    return rate


# --- the whole -----------------------------------------------------------------------------


def pipeline(
    case: Case, data: Path | None, evaluation: Any, answering: Any
) -> tuple[Contenders, Contenders]:
    """regraft's evaluation with and without cached pixels, and each part of its transport alone."""
    from infra import database, settings, storage
    from records import evaluations
    from tasks import pixels
    from vision.scores import score

    geometry, store = case.plan.geometry, storage.connect()
    bodies = {
        hashlib.sha256(body).hexdigest(): body
        for _, body in photographs(case.images, data)
    }
    images = list(bodies)
    labels = [f"class {number % CLASSES}" for number in range(len(images))]
    keys = {sha256: f"labelled/{sha256}.jpg" for sha256 in images}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda sha256: store.write(keys[sha256], bodies[sha256]), images))
    sources = {sha256: (keys[sha256], None) for sha256 in images}

    def evaluate(count: int) -> float:
        begun = time.perf_counter()
        halves = (("validation", slice(count // 2)), ("test", slice(count // 2, count)))
        with evaluation.storing() as keep:
            for subject, rows in halves:
                wanted = {sha256: sources[sha256] for sha256 in images[rows]}
                answers = evaluation.answers_of(answering, wanted, images[rows], labels[rows])
                keep(None, 1, subject, answers, answering.engine)
        return count / (time.perf_counter() - begun)

    def cached() -> float:
        return evaluate(len(images))

    def fetched() -> float:
        shutil.rmtree(pixels.cache().folder, ignore_errors=True)
        rate = evaluate(case.fetched)
        pixels.opened(geometry, sources)  # the others find all of them in the cache
        return rate

    pixels.opened(geometry, sources)
    answers = evaluation.answers_of(answering, sources, images, labels)
    figures = score(answers)

    def copy() -> None:
        with database.connect().transaction() as session:
            evaluations.record(session, 1, "c", "test", answers, figures, {})

    def gather() -> None:
        with pixels.streamed(geometry, sources) as held:
            for start in range(0, len(images), BATCH):
                held.gather(images[start : start + BATCH])

    def over_pool(act: Callable[[str], object]) -> Callable[[], None]:
        def all_of_them() -> None:
            with ThreadPoolExecutor(settings.load().workers) as pool:
                list(pool.map(act, images))

        return all_of_them

    def decoded(sha256: str) -> object:
        return prepare(decode(bodies[sha256]), geometry)

    whole = {"pixels in the cache": cached, "fetched and decoded": fetched}
    transport = {
        "pixels": busy(gather, len(images)),
        "COPY": busy(copy, len(images)),
        "GET": busy(over_pool(lambda sha256: store.read(keys[sha256])), len(images)),
        "decode": busy(over_pool(decoded), len(images)),
    }
    return whole, transport


def busy(act: Callable[[], None], images: int) -> Callable[[], float]:
    """Images per second if all cores did nothing but this: by processor time, servers included."""
    cores = len(os.sched_getaffinity(0))

    def rate() -> float:
        before, begun = processor_seconds(), time.perf_counter()
        rounds = 0
        while rounds < 1 or time.perf_counter() - begun < 0.7:
            act()
            rounds += 1
        wall = time.perf_counter() - begun
        spent = min(processor_seconds() - before, wall * cores)
        return rounds * images * cores / spent

    return rate


def processor_seconds() -> float:
    """What this process and the servers that it has started have used."""
    tick, own = os.sysconf("SC_CLK_TCK"), os.getpid()
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text().partition(") ")
        except OSError:
            continue  # it has just ended
        words, process = rest.split(), int(status.parent.name)
        parents[process] = int(words[1])
        if name.partition("(")[2] in ("postgres", "weed"):
            # of ended children too, which Postgres has one of for each connection
            used[process] = sum(map(int, words[11:15])) / tick

    def is_ours(process: int) -> bool:
        while process in parents and process != own:
            process = parents[process]
        return process == own

    return time.process_time() + sum(spent for one, spent in used.items() if is_ours(one))


if __name__ == "__main__":
    main()
