"""The contenders of `benchmarks.training`: each trains one network on one folder, round by round.

Each lives in a process of its own, because regraft changes how its process keeps memory, which
would change the others' speed too. `Contender` is that process, seen from outside.
"""

import json
import math
import multiprocessing
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CLASSES = 8
RATE = 1e-4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 160
# as far as regraft's plan bends pictures by default
SCALE, TURN, TINT = 0.7, 10.0, 0.2
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Task:
    """What is trained: pictures lie in `folder`/jpegs/CLASS and, decoded, in `folder`/pixels.

    images: per round, a multiple of the batch size; precision, channels_last, threads: the fastest
    on this machine, for those who switch them on; epochs: how long regraft believes the run to be.
    """

    folder: Path
    device: str
    architecture: str
    images: int
    batch_size: int
    epochs: int = 1000
    precision: str = "float32"
    channels_last: bool = False
    threads: int = CORES


class Contender:
    """A process that trains when it is told to."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, there), name=name)
        self._process.start()
        there.close()

    def begin(self, task: Task) -> dict[str, Any]:
        """Make everything ready and warm, and return what the contender tells of itself."""
        return self._ask(task)

    def round(self) -> float:
        """Train on all images once; images per second."""
        told: float = self._ask("round")["rate"]
        return told

    def end(self) -> None:
        """Let the process end."""
        if self._process.is_alive():
            self._here.send("end")
        self._process.join()

    def _ask(self, question: Any) -> dict[str, Any]:
        try:
            self._here.send(question)
            answer: dict[str, Any] = self._here.recv()
        except (EOFError, BrokenPipeError):
            raise RuntimeError(f"{self._process.name} was killed: free some memory") from None
        if "error" in answer:
            raise RuntimeError(f"{self._process.name}: {answer['error']}")
        return answer


# What the process's main thread is to do; None ends it.
MAIN_THREAD: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()


def _serve(name: str, told: Connection) -> None:
    """Answer each task, then each round of it."""
    warnings.simplefilter("ignore")
    # a child takes over how it was started; DataLoader's workers are to start as they usually do
    multiprocessing.set_start_method("fork", force=True)
    if name != "regraft":
        _answer(name, told)
        return
    # `fit` stops for each round, so one of the two needs another thread. It is not `fit`: glibc
    # gives other threads heaps of their own, whose memory goes back to the system at each step.
    threading.Thread(target=_answer, args=(name, told)).start()
    while (job := MAIN_THREAD.get()) is not None:
        job()


def _answer(name: str, told: Connection) -> None:
    running: Iterator[dict[str, Any]] | None = None
    while (question := told.recv()) != "end":
        try:
            if isinstance(question, Task):
                if running is not None:
                    running.close()  # type: ignore[attr-defined]
                running = CONTENDERS[name](question)
            told.send(next(running))  # type: ignore[arg-type]
        except Exception as error:
            told.send({"error": f"{type(error).__name__}: {error}"})
    if running is not None:
        running.close()  # type: ignore[attr-defined]
    MAIN_THREAD.put(None)


# --- each yields once when it is ready, then once per round ---


def regraft(task: Task) -> Iterator[dict[str, Any]]:
    """`vision.fitting.fit` itself, stopped between its epochs; everything as it comes."""
    from vision import network as networks
    from vision.calibration import Calibration
    from vision.fitting import Epoch, Examples, fit
    from vision.plan import Plan

    class Enough(Exception):
        """Ends the run, since what follows would only repeat."""

    plan = Plan(architecture=task.architecture, image_size=SIZE, recipe="scratch",
                epochs=task.epochs, batch_size=task.batch_size, learning_rate=RATE)
    examples = cached(task.folder, plan.geometry)
    names = sorted(set(examples.labels))
    train = Examples(examples.pixels, examples.images[:task.images], examples.labels[:task.images])
    held_out = slice(task.images, task.images + 8)
    validation = Examples(examples.pixels, examples.images[held_out], examples.labels[held_out])
    go, heard = threading.Semaphore(0), queue.SimpleQueue[float | Exception]()
    ended = threading.Event()
    over = False

    def told(epoch: Epoch) -> None:
        heard.put(epoch.images_per_second)
        go.acquire()
        if over:
            raise Enough

    def run() -> None:
        try:
            fit(networks.build(plan, names), plan, train, validation,
                task.folder / f"work-{os.getpid()}-{time.monotonic_ns()}", task.device,
                on_epoch=told, calibration=Calibration(task.folder / "calibration.json"))
        except Exception as error:
            heard.put(error)
        finally:
            ended.set()

    def rate() -> float:
        found = heard.get()
        if isinstance(found, Exception):
            raise found
        return found

    MAIN_THREAD.put(run)
    try:
        rate()  # the first epoch warms up
        yield {"machine": _last_machine(task.folder)}
        while True:
            go.release()
            yield {"rate": rate()}
    finally:
        over = True
        go.release()
        ended.wait()


def _last_machine(folder: Path) -> dict[str, Any]:
    from vision.network import read_tensors

    newest = max(folder.glob("work-*/resume.safetensors"), key=lambda path: path.stat().st_mtime)
    _, facts = read_tensors(newest.read_bytes(), str(newest))
    machine: dict[str, Any] = facts["machine"]
    return machine


def limit(task: Task) -> Iterator[dict[str, Any]]:
    """The bare step on one batch that never changes, in the fastest precision and layout."""
    import torch
    from torch.nn import functional

    from vision import memory

    memory.keep_freed()
    network, layout = _network(task, switched=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, fused=True)
    batch = torch.randn(task.batch_size, 3, SIZE, SIZE, device=task.device)
    batch = batch.contiguous(memory_format=layout)
    labels = torch.arange(task.batch_size, device=task.device) % CLASSES
    yield from _rounds(task, lambda: _stepping(
        task, network, optimizer, ((batch, labels) for _ in range(task.images // task.batch_size)),
        functional.cross_entropy, switched=True,
    ))


def loop(task: Task, switched: bool = False) -> Iterator[dict[str, Any]]:
    """The loop of every tutorial: torchvision's ImageFolder and transforms, DataLoader, AdamW."""
    import torch
    from torch.nn import functional
    from torch.utils.data import DataLoader

    network, layout = _network(task, switched)
    options: dict[str, Any] = {}
    if switched:
        options = {"num_workers": CORES, "persistent_workers": True}
    if switched and task.device == "cuda":
        options["pin_memory"] = True
    loader = DataLoader(_folder_of(task), batch_size=task.batch_size, shuffle=True, **options)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=RATE, **({"fused": True} if switched else {})
    )

    def batches() -> Iterator[tuple[Any, Any]]:
        for pictures, labels in loader:
            moved = pictures.to(task.device, non_blocking=True, memory_format=layout)
            yield moved, labels.to(task.device, non_blocking=True)

    yield from _rounds(task, lambda: _stepping(
        task, network, optimizer, batches(), functional.cross_entropy, switched
    ))


def compiled_loop(task: Task) -> Iterator[dict[str, Any]]:
    """The loop with its switches, compiled."""
    import torch
    from torch.nn import functional
    from torch.utils.data import DataLoader

    network, layout = _network(task, switched=True)
    quick = torch.compile(network, dynamic=False)
    loader = DataLoader(_folder_of(task), batch_size=task.batch_size, shuffle=True,
                        num_workers=CORES, persistent_workers=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, fused=True)
    yield from _rounds(task, lambda: _stepping(
        task, quick, optimizer,
        ((one.contiguous(memory_format=layout), labels) for one, labels in loader),
        functional.cross_entropy, switched=True,
    ))


def fastai(task: Task, switched: bool = False) -> Iterator[dict[str, Any]]:
    """fastai's Learner on ImageDataLoaders, its transforms on whole batches."""
    import torch
    from fastai.callback.channelslast import ChannelsLast
    from fastai.optimizer import OptimWrapper
    from fastai.vision.all import (
        CrossEntropyLossFlat,
        ImageDataLoaders,
        Learner,
        Normalize,
        RandomResizedCrop,
        aug_transforms,
    )

    files = [Path(path) for path, _ in _folder_of(task).samples]
    loaders = ImageDataLoaders.from_name_func(
        task.folder, files, label_func=_class_of, valid_pct=0.0, bs=task.batch_size,
        item_tfms=RandomResizedCrop(SIZE, min_scale=SCALE**2),
        batch_tfms=[*aug_transforms(max_rotate=TURN, max_lighting=TINT, max_warp=0.0, max_zoom=1.0),
                    Normalize.from_stats(MEAN, STD)],
        device=torch.device(task.device),
        **({"pin_memory": True} if switched and task.device == "cuda" else {}),
    )
    network, _ = _network(task, switched=False)
    options: dict[str, Any] = {}
    if switched:
        options["opt_func"] = _fused(OptimWrapper)
    learner = Learner(loaders, network, loss_func=CrossEntropyLossFlat(), **options)
    learner.remove_cbs(list(learner.cbs[2:]))  # progress bars and printed tables
    if switched and task.channels_last:
        learner.add_cb(ChannelsLast())
    if switched and task.precision == "bfloat16":
        learner.add_cb(_autocast_of(task))

    def train() -> None:
        with learner.no_logging(), learner.no_bar():
            learner.fit(1, lr=RATE)

    yield from _rounds(task, train)


def _fused(wrapper: Any) -> Callable[..., Any]:
    from functools import partial

    import torch

    return partial(wrapper, opt=torch.optim.AdamW, fused=True)


def _autocast_of(task: Task) -> Any:
    """Mixed precision by a callback: fastai's own `to_bf16` asks CUDA for it."""
    import torch
    from fastai.callback.core import Callback

    class MixedPrecision(Callback):  # type: ignore[misc]
        def before_batch(self) -> None:
            self.cast = torch.autocast(task.device, torch.bfloat16)
            self.cast.__enter__()

        def after_pred(self) -> None:
            self.learn.pred = self.pred.float()

        def after_loss(self) -> None:
            self.cast.__exit__(None, None, None)

    return MixedPrecision()


def _class_of(path: Path | str) -> str:
    return Path(path).parent.name


def trainer(task: Task, switched: bool = False) -> Iterator[dict[str, Any]]:
    """Hugging Face's Trainer, with torchvision's transforms as its example has them."""
    import torch
    from torch import nn
    from torch.nn import functional
    from transformers import Trainer, TrainingArguments
    from transformers.utils import logging as told

    told.set_verbosity_error()

    class Classifier(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixel_values: Any, labels: Any) -> dict[str, Any]:
            logits = self.network(pixel_values)
            return {"loss": functional.cross_entropy(logits.float(), labels), "logits": logits}

    network, layout = _network(task, switched)

    def collate(items: list[tuple[Any, int]]) -> dict[str, Any]:
        pictures = torch.stack([picture for picture, _ in items]).contiguous(memory_format=layout)
        return {"pixel_values": pictures, "labels": torch.tensor([label for _, label in items])}

    options: dict[str, Any] = {}
    if switched:
        options = {"bf16": task.precision == "bfloat16", "optim": "adamw_torch_fused",
                   "dataloader_num_workers": CORES, "dataloader_persistent_workers": True}
    arguments = TrainingArguments(
        output_dir=str(task.folder / "trainer"), per_device_train_batch_size=task.batch_size,
        num_train_epochs=1, learning_rate=RATE, use_cpu=task.device == "cpu", report_to="none",
        remove_unused_columns=False, save_strategy="no", logging_strategy="no", disable_tqdm=True,
        **options,
    )
    model = Classifier(network)
    data = _folder_of(task)
    yield from _rounds(task, lambda: Trainer(
        model=model, args=arguments, train_dataset=data, data_collator=collate
    ).train())


# --- what they share ---


def _rounds(task: Task, train: Callable[[], Any]) -> Iterator[dict[str, Any]]:
    import torch

    train()  # warms up
    yield {}
    while True:
        start = time.perf_counter()
        train()
        if task.device == "cuda":
            torch.cuda.synchronize()
        yield {"rate": task.images / (time.perf_counter() - start)}


def _network(task: Task, switched: bool) -> tuple[Any, Any]:
    """The same random weights for everybody, and the memory format to use."""
    import timm
    import torch

    torch.manual_seed(0)
    if switched:
        torch.set_num_threads(task.threads)
    layout = torch.channels_last if switched and task.channels_last else torch.contiguous_format
    network = timm.create_model(task.architecture, num_classes=CLASSES, drop_rate=0.2)
    return network.to(task.device).to(memory_format=layout).train(), layout


def _stepping(
    task: Task,
    network: Any,
    optimizer: Any,
    batches: Iterator[tuple[Any, Any]],
    loss_of: Callable[[Any, Any], Any],
    switched: bool,
) -> None:
    import torch

    half = switched and task.precision == "bfloat16"
    for pictures, labels in batches:
        optimizer.zero_grad()
        with torch.autocast(task.device, torch.bfloat16) if half else nullcontext():
            outputs = network(pictures)
        loss_of(outputs.float(), labels).backward()
        optimizer.step()


def _folder_of(task: Task) -> Any:
    """torchvision's view of the JPEGs of one round, with the usual random transforms."""
    from torchvision import datasets, transforms

    folder = datasets.ImageFolder(str(task.folder / "jpegs"), transforms.Compose([
        transforms.RandomResizedCrop(SIZE, scale=(SCALE**2, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(TINT, TINT, TINT),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]))
    listed = json.loads((task.folder / "listed.json").read_text())[:task.images]
    of_class = folder.class_to_idx
    folder.samples = [
        (str(task.folder / "jpegs" / name / file), of_class[name]) for name, file, _ in listed
    ]
    folder.targets = [target for _, target in folder.samples]
    return folder


def cached(folder: Path, geometry: Any) -> Any:
    """All listed images as regraft's examples, their pixels from its cache."""
    from vision.fitting import Examples
    from vision.pixels import PixelCache

    listed = json.loads((folder / "listed.json").read_text())
    return Examples(PixelCache(folder / "pixels", 20).open(geometry),
                    [digest for _, _, digest in listed], [name for name, _, _ in listed])


CONTENDERS: dict[str, Callable[[Task], Iterator[dict[str, Any]]]] = {
    "regraft": regraft,
    "limit": limit,
    "loop": loop,
    "loop, switched": lambda task: loop(task, switched=True),
    "loop, compiled": compiled_loop,
    "fastai": fastai,
    "fastai, switched": lambda task: fastai(task, switched=True),
    "Trainer": trainer,
    "Trainer, switched": lambda task: trainer(task, switched=True),
}


def plain_losses(folder: Path, plan: Any, names: list[str], count: int) -> list[float]:
    """Mean loss of each epoch of a plain loop: same start, order, rate and pixels, no regraft step.

    float32; the rate is the plan's cosine, written as torch's own schedule.
    """
    import torch
    from torch.nn import functional

    from vision import network as networks
    from vision.fitting import batches

    examples = cached(folder, plan.geometry)
    chosen = sorted(zip(examples.images[:count], examples.labels[:count], strict=True))
    stored = torch.from_numpy(examples.pixels.gather([image for image, _ in chosen]))
    labels = torch.tensor([names.index(label) for _, label in chosen])
    pictures = stored.permute(0, 3, 1, 2).float() / 255
    pictures = (pictures - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    network = networks.build(plan, names).train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=plan.learning_rate, momentum=0.9, nesterov=True
    )
    steps = plan.epochs * math.ceil(count / plan.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    found = []
    for epoch in range(1, plan.epochs + 1):
        losses = []
        for rows in batches(count, plan.batch_size, plan.seed, epoch):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(pictures[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        found.append(sum(losses) / len(losses))
    return found
