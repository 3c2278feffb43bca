"""Answers of a network for stored pixels: deterministic, batched, in float32 where it counts."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vision.answers import Answers
from vision.memory import InParts
from vision.network import class_names_of, normalisation
from vision.plan import Plan

T = TypeVar("T")
# so many pictures at once become floats: their 1 MB stays in the processor's cache
PART = 4
# of so many pictures the best classes are found at once
BLOCK = 64


class Gatherable(Protocol):
    """Where decoded pictures come from, such as `vision.pixels.Pixels`."""

    def gather(self, images: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Return the pictures of these sha256, uint8 [N, side, side, 3], in this order."""
        ...


@dataclass(frozen=True)
class Forward:
    """What computes answers: of stored pixels uint8 [n, side, side, 3] float32 [n, classes].

    batch: the most pictures it takes at a time. at_once: how many threads may call it at the same
    time; each then computes on a core of its own, and none waits for another after every layer.
    """

    compute: Callable[[Tensor], Tensor]
    batch: int = 64
    at_once: int = 1

    def __call__(self, stored: Tensor) -> Tensor:
        """The outputs of one batch, on the device that the pixels are on."""
        return self.compute(stored)

    def each(self, batches: Iterable[tuple[T, Tensor]]) -> Iterator[tuple[T, Tensor]]:
        """The outputs of each batch in its turn, with what stands beside it."""
        if self.at_once == 1:
            for beside, stored in batches:
                yield beside, self(stored)
            return
        with ThreadPoolExecutor(self.at_once, "regraft-forward") as threads:
            begun: deque[tuple[T, Future[Tensor]]] = deque()
            for beside, stored in batches:
                begun.append((beside, threads.submit(self, stored)))
                # twice, so that no core waits until the answers before are read
                if len(begun) > 2 * self.at_once:
                    first, outputs = begun.popleft()
                    yield first, outputs.result()
            for first, outputs in begun:
                yield first, outputs.result()


def predict(
    network: nn.Module,
    class_names: Sequence[str],
    pixels: Gatherable,
    images: Sequence[str],
    labels: Sequence[str],
    plan: Plan,
    device: str | torch.device,
    batch_size: int | None = None,
    top: int = 5,
    forward: Forward | None = None,
) -> Answers:
    """Answer for each image; `labels` are the true class names, known to the network or not.

    forward: what computes, made by `vision.runtime.ready` for this very network; by default
    PyTorch as it comes. batch_size: by default the most that `forward` takes. The network is moved
    to the device and left in evaluation mode. Memory grows with images x top, not with images x
    classes. Raises ValueError for class names that are not the network's, `BadAnswers` for a
    network whose outputs are not numbers, `TooLarge` where no picture fits into the memory.
    """
    names = tuple(class_names)
    if names != class_names_of(network):
        raise ValueError("class_names are not the network's own: use class_names_of(network)")
    if len(labels) != len(images):
        raise ValueError(f"{len(images)} images have {len(labels)} labels: one each")
    if top < 1:
        raise ValueError(f"top={top}: use 1 or more")
    place = device_named(device)
    top = min(top, len(names))
    column = {name: index for index, name in enumerate(names)}
    known = torch.tensor([column.get(label, -1) for label in labels], dtype=torch.long)
    best = np.zeros((len(images), top), dtype=np.int64)
    confidences = np.zeros((len(images), top), dtype=np.float32)
    label_confidence = np.zeros(len(images), dtype=np.float32)
    forward = forward or eager(
        network, plan, place, bfloat16_for_answers(plan, place), channels_last(plan)
    )
    # one batch behind, so that a GPU has the next one to compute while this one is read
    batch_size = forward.batch if batch_size is None else batch_size
    for rows, outputs in _behind(_outputs(forward, pixels, images, place, batch_size)):
        shares = outputs.softmax(dim=1)
        largest, indices = best_first(shares, top)
        best[rows] = indices.cpu().numpy()
        confidences[rows] = largest.cpu().numpy()
        index = known[rows].to(place)
        of_label = shares.gather(1, index.clamp(min=0)[:, None])[:, 0]
        label_confidence[rows] = torch.where(index >= 0, of_label, 0.0).cpu().numpy()
    return Answers(tuple(images), tuple(labels), names, best, confidences, label_confidence)


def logits(
    network: nn.Module,
    pixels: Gatherable,
    images: Sequence[str],
    plan: Plan,
    device: torch.device,
    batch_size: int,
    bfloat16: bool,
    last: bool,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, float32 [n, classes] on the device) for the images' centres, batch by batch.

    `bfloat16` and `last` (channels last) say how it is computed; the outputs are float32 anyway.
    """
    forward = eager(network, plan, device, bfloat16, last)
    return _outputs(forward, pixels, images, device, batch_size)


def eager(
    network: nn.Module, plan: Plan, device: torch.device, bfloat16: bool, last: bool
) -> Forward:
    """The network as PyTorch runs it layer by layer; it is moved to the device and its layout.

    Out of memory, batches are computed in parts.
    """
    layout = torch.channels_last if last else torch.contiguous_format
    network.to(device).to(memory_format=layout).eval()
    colours = on_device(normalisation(network, plan), device)

    def forward(stored: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(device, bfloat16):
            batch = standardised(stored, plan.image_size, *colours).contiguous(memory_format=layout)
            outputs: Tensor = network(batch).float()
        return outputs

    return Forward(InParts(forward))


def standardised(stored: Tensor, image_size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Centres of uint8 [n, side, side, 3] as the network wants them, float32 [n, 3, size, size].

    Laid out with the colours last, as the pixels are stored. mean, std: [1, 3, 1, 1].
    """
    side = stored.shape[1]
    if side < image_size:
        raise ValueError(f"pictures of {side} pixels: the network wants {image_size} or more")
    start = (side - image_size) // 2
    cut = stored[:, start:start + image_size, start:start + image_size]
    scale, shift = ((1 / (255 * std)).flatten(), (-mean / std).flatten())
    if stored.device.type != "cpu":
        return torch.addcmul(shift, cut.float(), scale).permute(0, 3, 1, 2)
    # By whole rows and a few pictures at a time: 50 instead of 350 microseconds for one of 160
    # pixels, which is a fifth of what the fastest engines take for all the rest.
    scale, shift = scale.repeat(image_size, 1), shift.repeat(image_size, 1)
    batch = torch.empty(cut.shape)
    for start in range(0, len(batch), PART):
        part = batch[start:start + PART].copy_(cut[start:start + PART])
        torch.addcmul(shift, part, scale, out=part)
    return batch.permute(0, 3, 1, 2)


def _outputs(
    forward: Forward,
    pixels: Gatherable,
    images: Sequence[str],
    device: torch.device,
    batch_size: int,
) -> Iterator[tuple[slice, Tensor]]:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: use 1 or more")

    def produce() -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(images), batch_size):
            rows = slice(start, min(start + batch_size, len(images)))
            yield rows, upload(pixels.gather(images[rows]), device)

    return forward.each(ahead(produce()))


def _behind(outputs: Iterable[tuple[slice, Tensor]]) -> Iterator[tuple[slice, Tensor]]:
    """The same rows in larger blocks, each given only when the next batch has been begun."""
    waiting: list[tuple[slice, Tensor]] = []
    for rows, some in outputs:
        if waiting and waiting[-1][0].stop - waiting[0][0].start >= BLOCK:
            yield _joined(waiting)
            waiting = []
        waiting.append((rows, some))
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[tuple[slice, Tensor]]) -> tuple[slice, Tensor]:
    rows = slice(parts[0][0].start, parts[-1][0].stop)
    return rows, torch.cat([some for _, some in parts]) if len(parts) > 1 else parts[0][1]


def best_first(shares: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` largest of each row with their columns, best first; equal ones as they stand.

    As a stable sort of whole rows would give them, without sorting thousands of classes.
    """
    values, columns = shares.topk(top, dim=1)
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    # where the last of them has equals that were left out, topk has taken any of them
    tied = ((shares >= values[:, -1:]).sum(dim=1) > top).nonzero()[:, 0]
    if len(tied):
        ordered, every = shares[tied].sort(dim=1, descending=True, stable=True)
        values[tied], columns[tied] = ordered[:, :top], every[:, :top]
    return values, columns


def device_named(device: str | torch.device) -> torch.device:
    """Turn `auto`, `cpu` or `cuda` into a device; raises ValueError where there is none."""
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.device(device)
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise ValueError(f"device={device}: torch sees no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def bfloat16_for_answers(plan: Plan, device: torch.device) -> bool:
    """Whether answers are computed in bfloat16: on GPUs that have it, unless the plan says no."""
    return (
        device.type == "cuda" and plan.precision != "float32" and torch.cuda.is_bf16_supported()
    )


def channels_last(plan: Plan) -> bool:
    """Whether a network sees the colours last: as pixels are stored, unless the plan says no."""
    return plan.channels_last is not False


def autocast(device: torch.device, bfloat16: bool) -> AbstractContextManager[object]:
    """Mixed precision, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)


def on_device(
    colours: tuple[Sequence[float], Sequence[float]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and std as tensors [1, 3, 1, 1]."""
    mean, std = (torch.tensor(list(one), device=device).view(1, 3, 1, 1) for one in colours)
    return mean, std


def upload(stored: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Bring pixels to the device, without waiting for a GPU to take them."""
    # a copy where the array is a read-only view of the cache file, which torch must not write to
    whole = torch.from_numpy(np.require(stored, requirements=["C", "W"]))
    return whole.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else whole


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield the same items, made by one background thread that is at most `depth` ahead.

    An error in the thread is raised here; leaving early ends the thread.
    """
    waiting: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(maxsize=depth)
    left = threading.Event()

    def offer(more: bool, item: T | BaseException | None) -> bool:
        while not left.is_set():
            try:
                waiting.put((more, item), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer(True, item):
                    return
            offer(False, None)
        except BaseException as error:  # handed to the reader, who raises it
            offer(False, error)

    thread = threading.Thread(target=work, name="regraft-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = waiting.get()
            if more:
                yield item  # type: ignore[misc]
            elif isinstance(item, BaseException):
                raise item
            else:
                return
    finally:
        left.set()
        thread.join()
