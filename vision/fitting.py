"""Train a network by a plan: `fit`, its phases, its epochs, and what survives a kill.

On one CPU the result is a function of network, plan and examples alone. Whatever is random comes
from the plan's seed and the epoch's number, so a run that was killed and resumed ends with the
same bits as one that was not.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms import v2

from vision import memory, runtime
from vision.augmentation import augment, seeds_of
from vision.calibration import Calibration
from vision.features import AT_ONCE, Features, Pictures, split
from vision.memory import InParts, TooLarge
from vision.network import (
    BadCheckpoint,
    class_names_of,
    distances,
    freeze_all_but,
    freeze_backbone,
    head,
    head_dropouts,
    normalisation,
    read_tensors,
    write_tensors,
)
from vision.pixels import Pixels
from vision.plan import BadPlan, Plan, Schedule, Way
from vision.prediction import (
    Gatherable,
    ahead,
    autocast,
    bfloat16_for_answers,
    device_named,
    logits,
    on_device,
    standardised,
    upload,
)
from vision.ranks import ALONE, Ranks
from vision.trials import choose, compiled

logger = logging.getLogger(__name__)

RESUME_FILE = "resume.safetensors"
VALIDATION_BATCH = 64
# steps between two looks at the loss on a GPU, because each look waits for it
LOOK_EVERY = 50
PhaseName = Literal["all", "head", "blocks"]


class Diverged(RuntimeError):
    """The loss is no number any more; the message names epoch and step. Nothing was saved."""


class BadExamples(ValueError):
    """Examples that cannot be trained on; the message names the class or count."""


class SmallerParts(RuntimeError):
    """One of several ranks was out of memory: all must begin anew with this `micro_batch`."""

    def __init__(self, micro_batch: int) -> None:
        super().__init__(f"out of memory: {micro_batch} images at a time may fit")
        self.micro_batch = micro_batch


@dataclass(frozen=True)
class Examples:
    """Images with their class names, and where their pixels are."""

    pixels: Gatherable
    images: Sequence[str]
    labels: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise BadExamples(f"{len(self.images)} images have {len(self.labels)} labels: one each")


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    number: from 1, over both phases; train_accuracy: on augmented pictures, as they were learned
    (of mixed ones the larger part counts); train_loss: with class weights and label smoothing;
    validation_loss: without either, and like validation_accuracy of the weights that would be
    saved now, the average where one is kept;
    learning_rate: the head's, averaged over the epoch's steps; seconds: validation included;
    images_per_second: training alone.
    """

    number: int
    phase: PhaseName
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Fitted:
    """The trained network, all its epochs (those before a resume too) and what the machine chose.

    machine: all fields of `Way` and how they came, device, torch, timm, processes.
    """

    network: nn.Module
    epochs: tuple[Epoch, ...]
    machine: dict[str, Any]

    @property
    def validation_accuracy(self) -> float:
        """Accuracy of the network as returned, on the validation images."""
        return self.epochs[-1].validation_accuracy

    @property
    def validation_loss(self) -> float:
        """Loss of the network as returned, on the validation images."""
        return self.epochs[-1].validation_loss


@dataclass(frozen=True)
class Phase:
    """Some epochs with the same weights learning and one schedule of their own."""

    name: PhaseName
    first: int
    last: int
    head_rate: float
    backbone_rate: float | None


@dataclass
class Setting:
    """All that an epoch needs and that does not change from one to the next."""

    network: nn.Module
    plan: Plan
    train: Examples
    validation: Examples
    device: torch.device
    targets: dict[str, int]
    weights: Tensor
    mean: Tensor
    std: Tensor
    bfloat16: bool
    channels_last: bool
    machine: dict[str, Any]
    on_step: Callable[[int, int], None]
    total_steps: int
    micro_batch: int | None  # None: the whole batch at once
    order: list[int] = field(default_factory=list)
    ranks: Ranks = ALONE
    learner: nn.Module = field(init=False)  # the network as it is called in training
    compiled: nn.Module | None = None  # the same, made for whole batches of the plan's size
    average: ModelEmaV3 | None = None  # of the network's weights, once the last phase has begun
    features: Features | None = None  # what the network, then a head alone, is given for pictures

    @property
    def kept(self) -> nn.Module:
        """What would be saved now."""
        return self.network if self.average is None else self.average.module


def fit(
    network: nn.Module,
    plan: Plan,
    train: Examples,
    validation: Examples,
    workdir: Path,
    device: str | torch.device = "auto",
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    ranks: Ranks = ALONE,
    calibration: Calibration | None = None,
    threads: int | None = None,
) -> Fitted:
    """Train the network in place by the plan's recipe, to the end of its schedule.

    After each epoch the state is written to `workdir`, then `on_epoch` is told. Called again with
    the same arguments and `workdir`, it goes on behind the last finished epoch; a damaged state or
    one of other arguments is set aside with a warning. `on_step` hears (steps done, steps in all).
    Where the plan keeps an average of the weights, the network ends with that. Raises `Diverged`,
    `BadExamples`, `TooLarge`, and `BadPlan` for an impossible `unfreeze`.

    How a step is computed (`vision.trials`) is what `calibration` remembers of this machine, else
    measured and kept in it; `threads` None: measured too, up to as many as torch uses now.

    With `ranks`, every one of several processes calls it with the same arguments and has the same
    result; only the leader reads and writes `workdir`. See `vision.distributed`.
    """
    place = device_named(device)
    calibration = calibration or Calibration()
    memory.keep_freed()
    identity = _identity(network, plan, train, validation, place)
    state = ranks.first(lambda: _read_state(workdir / RESUME_FILE, identity))
    with (
        torch.random.fork_rng(devices=[place] if place.type == "cuda" else []),
        _threads_given_back(),
    ):
        setting = _set_up(
            network, plan, train, validation, place, on_step, state, ranks,
            calibration, threads,
        )
        epochs = [Epoch(**one) for one in state.facts["epochs"]] if state else []
        if state:
            _restore_weights(setting, state)
            logger.info("resumed behind epoch %d of %d", len(epochs), plan.epochs)
        for phase in phases(plan):
            if len(epochs) >= phase.last:
                continue
            at_work = _on_features(setting, phase, workdir, calibration) or setting
            optimizer = _begin(at_work, phase)
            if state and len(epochs) >= phase.first:
                _restore_optimizer(optimizer, state)
            while len(epochs) < phase.last:
                epoch = _one_epoch(at_work, phase, optimizer, len(epochs) + 1)
                epochs.append(epoch)
                setting.micro_batch = at_work.micro_batch
                setting.machine["micro_batch"] = setting.micro_batch
                if ranks.leads:
                    _write_state(workdir / RESUME_FILE, identity, setting, optimizer, epochs)
                logger.info(
                    "epoch %d of %d (%s): loss %.4f, validation accuracy %.4f, %.0f images/s",
                    epoch.number, plan.epochs, epoch.phase, epoch.train_loss,
                    epoch.validation_accuracy, epoch.images_per_second,
                )
                on_epoch(epoch)
    if setting.average is not None:
        network.load_state_dict(setting.average.module.state_dict())
    network.requires_grad_(True).eval()
    network.to(memory_format=torch.contiguous_format)
    return Fitted(network, tuple(epochs), setting.machine)


@contextmanager
def _threads_given_back() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolved(plan: Plan, network: nn.Module, machine: Mapping[str, Any]) -> Plan:
    """The plan with all filled in that it left to its parent, its network and the machine.

    What the machine chose stands in `way` alone: answers have an engine of their own, and only
    `precision` and `channels_last` bind that.
    """
    mean, std = normalisation(network, plan)
    return replace(
        plan, mean=mean, std=std, backbone_learning_rate=phases(plan)[-1].backbone_rate,
        way=Way(**{one.name: machine[one.name] for one in fields(Way) if one.name in machine}),
    )


def phases(plan: Plan) -> list[Phase]:
    """The plan's phases in order; all but `two-phase` differ only in what they start from."""
    rate, slow = plan.learning_rate, plan.backbone_learning_rate
    if plan.recipe != "two-phase":
        return [Phase("all", 1, plan.epochs, rate, rate if slow is None else slow)]
    slow = rate / 10 if slow is None else slow
    return [
        Phase("head", 1, plan.head_epochs, rate, None),
        Phase("blocks", plan.head_epochs + 1, plan.epochs, slow, slow),
    ]


def rate_factor(
    step: int, steps: int, warmup_steps: int, schedule: Schedule = "cosine"
) -> float:
    """Share of the peak rate at one step (from 0): a linear rise, then a cosine that ends near 0,
    or the peak to the end.

    It is above 0 at every step, the last one included, and 1 where the warm-up ends.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def class_weights(
    labels: Sequence[int], classes: int, kind: str, beta: float = 0.999
) -> list[float]:
    """One weight per class; they average to 1 over the classes, except that `balanced` ones
    average to 1 over the images. beta: of `effective-number`.
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=classes).astype(np.float64)
    if kind == "none":
        return [1.0] * classes
    if kind == "balanced":
        return [float(one) for one in counts.sum() / (classes * counts)]
    weights = (1 - beta) / (1 - beta**counts)
    return [float(one) for one in weights / weights.mean()]


def batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffled indices in batches; a last batch of one joins the one before it.

    One picture alone has no batch statistics, and dropping it would lose it from this epoch.
    """
    generator = torch.Generator().manual_seed(_mixed(seed, epoch, "order"))
    order = torch.randperm(count, generator=generator).tolist()
    found = [order[start:start + batch_size] for start in range(0, count, batch_size)]
    if len(found) > 1 and len(found[-1]) == 1:
        found[-2].extend(found.pop())
    return found


# --- setting up ---


@dataclass(frozen=True)
class State:
    """What `workdir` held."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def _set_up(
    network: nn.Module,
    plan: Plan,
    train: Examples,
    validation: Examples,
    device: torch.device,
    on_step: Callable[[int, int], None],
    state: State | None,
    ranks: Ranks,
    calibration: Calibration,
    threads: int | None,
) -> Setting:
    names = class_names_of(network)
    targets = {name: index for index, name in enumerate(names)}
    _check(plan, train, validation, names)
    if plan.recipe == "two-phase":
        freeze_all_but(network, plan.unfreeze)  # refused now, and not after the head phase
    network.to(device)
    indices = [targets[label] for label in train.labels]
    weights = class_weights(indices, len(names), plan.class_weights, plan.effective_beta)
    mean, std = on_device(normalisation(network, plan), device)
    setting = Setting(
        network=network, plan=plan, train=train, validation=validation, device=device,
        targets=targets, weights=torch.tensor(weights, device=device), mean=mean, std=std,
        bfloat16=False, channels_last=False, machine={}, on_step=on_step,
        total_steps=len(batches(len(train.images), plan.batch_size, 0, 0)) * plan.epochs,
        micro_batch=None,
        # the order in which images were listed must not decide the result
        order=sorted(range(len(train.images)), key=lambda row: train.images[row]),
        ranks=ranks,
    )
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    setting.machine = dict(state.facts["machine"]) if state else ranks.first(
        lambda: _choose(setting, calibration, threads)
    )
    torch.set_num_threads(setting.machine["threads"])
    setting.bfloat16 = setting.machine["precision"] == "bfloat16"
    setting.channels_last = setting.machine["channels_last"]
    setting.micro_batch = ranks.micro_batch or setting.machine["micro_batch"]
    setting.machine["processes"] = ranks.world
    if setting.channels_last:
        network.to(memory_format=torch.channels_last)
    return setting


def _check(plan: Plan, train: Examples, validation: Examples, names: Sequence[str]) -> None:
    if len(train.images) < 2:
        raise BadExamples(f"{len(train.images)} training images: use two or more")
    if not validation.images:
        raise BadExamples("no validation images: hold some out")
    for what, examples in (("training", train), ("validation", validation)):
        unknown = sorted(set(examples.labels) - set(names))
        if unknown:
            raise BadExamples(f"{what} images of {unknown[0]!r}, which is not among the network's "
                              f"{len(names)} classes: build it with that class")
    for other in sorted(set(plan.class_augmentation) - set(names)):
        # no reason to stop: a class may be short of images tonight
        logger.warning("class_augmentation names %r, which is not among the classes: nothing is "
                       "bent in that way", other)
    empty = [name for name in names if name not in set(train.labels)]
    if empty:
        raise BadExamples(f"class {empty[0]!r} has no training image: leave it out of the network")
    if set(train.images) & set(validation.images):
        both = min(set(train.images) & set(validation.images))
        raise BadExamples(f"image {both} is in training and in validation: split again")


def _choose(
    setting: Setting, calibration: Calibration, threads: int | None
) -> dict[str, Any]:
    """How this machine computes the steps: as the plan says, else as it is fastest."""
    plan, device = setting.plan, setting.device

    def one_batch() -> tuple[Tensor, Tensor]:
        rows = setting.order[:plan.batch_size]
        labels = [setting.targets[setting.train.labels[row]] for row in rows]
        return _prepared(setting, rows, epoch=0), torch.tensor(labels, device=device)

    choice = choose(
        setting.network, plan, device, len(setting.order) * plan.epochs, one_batch, calibration,
        threads, may_compile=setting.ranks.world == 1 and len(setting.order) >= plan.batch_size,
    )
    logger.info("steps are computed with %s (%s)", choice.way, choice.reason)
    return {
        **asdict(choice.way),
        "chosen": choice.reason,
        "measured_seconds": dict(choice.seconds),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


# --- training ---


def _on_features(
    setting: Setting, phase: Phase, workdir: Path, calibration: Calibration
) -> Setting | None:
    """The head phase without the backbone; None where it goes through the whole network."""
    plan, machine, device = setting.plan, setting.machine, setting.device
    if phase.name != "head" or plan.head_views is None or plan.mixes:
        return None  # mixed are pictures, not their features

    def bent(places: list[int], view: int) -> Tensor:
        return _prepared(setting, [setting.order[place] for place in places], epoch=view)

    def centres(places: list[int], _: int) -> Tensor:
        examples = setting.validation
        stored = examples.pixels.gather([examples.images[place] for place in places])
        return standardised(upload(stored, device), plan.image_size, setting.mean, setting.std)

    _set_modes(setting, phase)
    parts = split(setting.network, bent([0, 1], 1))
    if parts is None:
        logger.warning("%s does not end with a head that can learn alone: the head phase goes "
                       "through the whole network", plan.architecture)
        return None
    backbone, alone = parts
    views, count, waits = min(plan.head_views, phase.last), len(setting.order), _waits(setting)
    # a resumed run goes on with the engine that it began with
    if machine.get("features") is None:
        pictures = views * count + len(setting.validation.images)
        machine["features"] = setting.ranks.first(lambda: runtime.choose(
            setting.network, plan, device, pictures, calibration
        ).name)
    try:
        engine = runtime.named(machine["features"])
        compute = runtime.ready_backbone(engine, backbone, plan, device, AT_ONCE)
    except runtime.NoEngine as error:
        raise BadPlan(f"way.features: {error}") from None
    features = Features(
        InParts(compute),
        Pictures(bent, count, waits), Pictures(centres, len(setting.validation.images), waits),
        views, workdir, device, setting.ranks,
    )
    # a step of the head alone is too short to be shared: every rank takes all whole batches
    return replace(setting, network=alone, ranks=ALONE, features=features)


def _begin(setting: Setting, phase: Phase) -> torch.optim.Optimizer:
    """Set what learns in this phase, and an optimizer for it with nothing remembered."""
    network, plan = setting.network, setting.plan
    if phase.name == "head":
        freeze_backbone(network)
    elif phase.name == "blocks":
        freeze_all_but(network, plan.unfreeze)
    else:
        network.requires_grad_(True)
    if plan.ema_decay is not None and phase.last == plan.epochs and setting.average is None:
        setting.average = _averaged(network, plan.ema_decay)
    setting.learner = setting.ranks.learner(network)
    alone = setting.ranks.world == 1
    worth_compiling = setting.machine.get("compiled") and setting.features is None
    setting.compiled = compiled(network) if alone and worth_compiling else None
    # looked up only where it matters: not every network that can learn has blocks
    behind = distances(network) if plan.layer_decay != 1 and phase.backbone_rate else {}
    of_head = {id(parameter) for parameter in head(network).parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            rate = phase.head_rate
            if id(parameter) not in of_head:
                rate = (phase.backbone_rate or 0.0) * plan.layer_decay ** behind.get(parameter, 0)
            # biases and norms are no place for decay
            decay = 0.0 if parameter.ndim <= 1 else plan.weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
    options = [
        {"params": members, "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(options, lr=phase.head_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(options, lr=phase.head_rate, fused=True)


def _averaged(network: nn.Module, decay: float) -> ModelEmaV3:
    return ModelEmaV3(network, decay=decay, use_warmup=True)


def _one_epoch(
    setting: Setting, phase: Phase, optimizer: torch.optim.Optimizer, number: int
) -> Epoch:
    """Train over all images once, then validate."""
    start = time.perf_counter()
    plan = setting.plan
    torch.manual_seed(_mixed(plan.seed, number, _dropout_of(setting.ranks)))
    rows_of = batches(len(setting.order), plan.batch_size, plan.seed, number)
    steps = len(rows_of) * (phase.last - phase.first + 1)
    warmup = round(plan.warmup_epochs * len(rows_of))
    done_before = (number - phase.first) * len(rows_of)
    told_before = (number - 1) * len(rows_of)
    _set_modes(setting, phase)
    losses: list[Tensor] = []
    right = torch.zeros((), dtype=torch.long, device=setting.device)
    rates = 0.0
    for step, (batch, labels, own) in enumerate(_training_batches(setting, rows_of, number)):
        factor = rate_factor(done_before + step, steps, warmup, plan.schedule)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        loss, correct = _step(setting, optimizer, batch, labels, own)
        if setting.average is not None:
            setting.average.update(setting.network, done_before + step + 1)
        losses.append(loss)
        right += correct
        rates += factor * phase.head_rate
        if setting.device.type == "cpu" or len(losses) % LOOK_EVERY == 0:
            _refuse_nan(losses, number)
        setting.on_step(told_before + step + 1, setting.total_steps)
    _refuse_nan(losses, number)
    trained = time.perf_counter()
    validation_loss, validation_accuracy = _validate(setting)
    if not math.isfinite(validation_loss):
        raise Diverged(f"epoch {number}, step {len(rows_of)}: the validation loss is "
                       f"{validation_loss}; lower learning_rate={plan.learning_rate:g}")
    count = len(setting.order)
    return Epoch(
        number=number,
        phase=phase.name,
        train_loss=float(torch.stack(losses).double().mean()),
        train_accuracy=int(right) / count,
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
        learning_rate=rates / len(rows_of),
        seconds=time.perf_counter() - start,
        images_per_second=count / (trained - start),
    )


def _refuse_nan(losses: list[Tensor], epoch: int) -> None:
    recent = torch.stack(losses[-LOOK_EVERY:]).cpu()
    wrong = ~torch.isfinite(recent)
    if wrong.any():
        index = int(wrong.to(torch.uint8).argmax())
        step = len(losses) - len(recent) + index + 1
        raise Diverged(f"epoch {epoch}, step {step}: the loss is {float(recent[index])}; "
                       "lower the learning rate or set gradient_clip")


def _set_modes(setting: Setting, phase: Phase) -> None:
    """Training mode, except for what must not change or must not be noisy."""
    network = setting.network
    if phase.name == "head":
        network.eval()
        # the head's dropout asks the network itself or its own layer
        network.training = True
        head(network).train()
        for dropout in head_dropouts(network):
            dropout.train()
        return
    network.train()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            own = list(module.parameters(recurse=False))
            frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
            if frozen or setting.plan.batch_norm == "eval":
                module.eval()


def _training_batches(
    setting: Setting, rows_of: list[list[int]], epoch: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield (pictures [B, 3, size, size], labels, own) of one epoch, on the device.

    In place of pictures their features [B, width] where the head learns alone. labels: one class
    each, int64 [B]; of mixed pictures the share of every class, float32 [B, classes]. The first
    `own` count; among several ranks one more may follow that another learns from.
    """
    features = setting.features.of(epoch) if setting.features else None

    def produce() -> Iterator[tuple[Tensor, Tensor, int]]:
        for places in rows_of:
            # any two pictures of a batch may be mixed, so each rank needs all of them for a moment
            share, own = (places, 0) if setting.plan.mixes else setting.ranks.share(places)
            rows = [setting.order[place] for place in share]
            labels = torch.tensor(
                [setting.targets[setting.train.labels[row]] for row in rows]
            ).to(setting.device)
            inputs = features(share) if features else _prepared(setting, rows, epoch)
            yield inputs, labels, own

    prepared = ahead(produce()) if _waits(setting) and features is None else produce()
    return _mixed_batches(setting, prepared, epoch) if setting.plan.mixes else prepared


def _waits(setting: Setting) -> bool:
    """Whether pictures are prepared while others are computed.

    On a CPU the cores are busy with the network already, and preparing is a hundredth of the work:
    unless pictures must be fetched and decoded first, which waits for S3.
    """
    return setting.device.type == "cuda" or not isinstance(setting.train.pixels, Pixels)


def _mixed_batches(
    setting: Setting, prepared: Iterator[tuple[Tensor, Tensor, int]], epoch: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Mix whole batches alike in every rank, then give each its share.

    Not in the thread that prepares them, since torchvision draws from the generator of all.
    """
    plan, classes = setting.plan, len(setting.targets)
    kinds = [
        kind(alpha=alpha, num_classes=classes)
        for kind, alpha in ((v2.MixUp, plan.mixup), (v2.CutMix, plan.cutmix)) if alpha
    ]
    mix = v2.RandomChoice(kinds)
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    for number, (pictures, labels, _) in enumerate(prepared):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_mixed(plan.seed, epoch, f"mix {number}"))
            blended, shares = mix(pictures, labels)
        rows, own = setting.ranks.share(range(len(labels)))
        if setting.ranks.world > 1:
            blended, shares = blended[rows], shares[rows]
        yield blended.contiguous(memory_format=layout), shares, own


def _prepared(setting: Setting, rows: list[int], epoch: int) -> Tensor:
    """Augmented and normalised pictures of these training rows, float32 [B, 3, size, size]."""
    plan = setting.plan
    images = [setting.train.images[row] for row in rows]
    stored = upload(setting.train.pixels.gather(images), setting.device)
    seeds = seeds_of(plan.seed, epoch, images)
    with torch.no_grad():
        bends = plan.augmentation_of([setting.train.labels[row] for row in rows])
        bent = augment(stored, bends, plan.image_size, seeds)
        bent.sub_(setting.mean).div_(setting.std)
    if setting.channels_last:
        return bent.contiguous(memory_format=torch.channels_last)
    return bent


def _step(
    setting: Setting, optimizer: torch.optim.Optimizer, batch: Tensor, labels: Tensor, own: int
) -> tuple[Tensor, Tensor]:
    """One optimizer step on the whole batch, in as many parts as the memory asks for.

    Returns loss and number of right answers, both on the device.
    """
    while True:
        optimizer.zero_grad(set_to_none=True)
        try:
            loss, right = _gradients(setting, batch, labels, own)
            break
        except (RuntimeError, MemoryError) as error:
            if not memory.out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        # here, where the error no longer holds on to what it was raised among
        _halve(setting, len(labels), reason)
        if setting.micro_batch and setting.ranks.world > 1:  # the others wait for this one
            raise SmallerParts(setting.micro_batch)
    if setting.plan.gradient_clip is not None:
        learning = [one for group in optimizer.param_groups for one in group["params"]]
        _clip(learning, setting.plan.gradient_clip)
    optimizer.step()
    return loss, right


def _clip(learning: list[nn.Parameter], most: float) -> None:
    """Scale gradients down whose norm over all is more than `most`."""
    norm = nn.utils.get_total_norm([one.grad for one in learning if one.grad is not None])
    # Most are below, and multiplying all of them by one costs a hundredth of a step on a CPU; a
    # GPU would have to be waited for to know it.
    if norm.is_cuda or norm > most:
        nn.utils.clip_grads_with_norm_(learning, most, norm)


def _gradients(
    setting: Setting, batch: Tensor, labels: Tensor, own: int
) -> tuple[Tensor, Tensor]:
    plan, ranks = setting.plan, setting.ranks
    parts = max(1, math.ceil(len(labels) / (setting.micro_batch or len(labels))))
    whole = parts == 1 and len(labels) == plan.batch_size
    learner = setting.learner
    if whole and setting.compiled is not None:
        learner = setting.compiled
    # the sum of weights over the whole batch, so that parts add up to what the whole would give
    # (the mean over the ranks, since their gradients are averaged too)
    weights = setting.weights
    of_batch = weights[labels[:own]] if labels.ndim == 1 else labels[:own] @ weights
    total = ranks.mean(of_batch.sum())
    loss = torch.zeros((), device=setting.device)
    right = torch.zeros((), dtype=torch.long, device=setting.device)
    for number, (pictures, targets) in enumerate(
        zip(batch.tensor_split(parts), labels.tensor_split(parts), strict=True), start=1
    ):
        counted, own = min(own, len(targets)), max(0, own - len(targets))
        with ranks.sending(setting.learner, number == parts):
            with _mixed_precision(setting), ranks.whole_batch(counted):
                outputs = learner(pictures)
            if counted < len(targets):
                outputs, targets = outputs[:counted], targets[:counted]  # noqa: PLW2901
            part = functional.cross_entropy(
                outputs.float(), targets, weight=weights, reduction="sum",
                label_smoothing=plan.label_smoothing,
            ) / total
            part.backward()  # type: ignore[no-untyped-call]
        loss += part.detach()
        wished = targets if targets.ndim == 1 else targets.argmax(dim=1)
        right += (outputs.detach().argmax(dim=1) == wished).sum()
    return ranks.mean(loss), ranks.sum(right)


def _mixed_precision(setting: Setting) -> AbstractContextManager[object]:
    return autocast(setting.device, setting.bfloat16)


def _halve(setting: Setting, count: int, reason: str) -> None:
    tried = min(setting.micro_batch or count, count)
    smaller = tried // 2
    # one picture has no batch statistics, and three in parts of two would leave one
    least = 1 if setting.plan.batch_norm == "eval" else 3
    if smaller < least:
        raise TooLarge(f"images of {setting.plan.image_size} px do not fit into the memory, not "
                       f"even {tried} at a time ({reason}): use a smaller image_size or "
                       "architecture")
    setting.micro_batch = smaller
    memory.release_freed()
    logger.warning("out of memory: gradients of %d images at a time are added up; the batch size "
                   "stays %d", smaller, setting.plan.batch_size)


def _validate(setting: Setting) -> tuple[float, float]:
    """Mean loss and accuracy on the validation images, as precise as `predict` answers."""
    examples, ranks = setting.validation, setting.ranks
    rows_here = slice(ranks.rank, None, ranks.world)
    targets = torch.tensor(
        [setting.targets[label] for label in examples.labels[rows_here]], device=setting.device
    )
    loss = torch.zeros((), dtype=torch.float64, device=setting.device)
    right = torch.zeros((), dtype=torch.long, device=setting.device)
    for rows, outputs in _validation_outputs(setting, examples.images[rows_here]):
        loss += functional.cross_entropy(outputs, targets[rows], reduction="sum").double()
        right += (outputs.argmax(dim=1) == targets[rows]).sum()
    count = len(examples.labels)
    return float(ranks.sum(loss)) / count, int(ranks.sum(right)) / count


def _validation_outputs(
    setting: Setting, images: Sequence[str]
) -> Iterator[tuple[slice, Tensor]]:
    plan, device = setting.plan, setting.device
    bfloat16 = bfloat16_for_answers(plan, device)
    if setting.features is None:
        yield from logits(
            setting.kept, setting.validation.pixels, images, plan, device, VALIDATION_BATCH,
            bfloat16, setting.channels_last,
        )
        return
    setting.network.eval()
    for rows, features in setting.features.of_validation():
        with torch.inference_mode(), autocast(device, bfloat16):
            outputs = setting.network(features).float()
        yield rows, outputs


# --- what survives a kill ---


def _identity(
    network: nn.Module, plan: Plan, train: Examples, validation: Examples, device: torch.device
) -> str:
    """Digest of all that decides the result; a state of another run must not be continued."""
    listed = [
        sorted(zip(examples.images, examples.labels, strict=True))
        for examples in (train, validation)
    ]
    told = [plan.digest(), class_names_of(network), device.type, listed]
    start = fingerprint(network.state_dict())
    return hashlib.sha256(f"{json.dumps(told)}{start}".encode()).hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Sha256 in hex of all names and values: equal weights, equal fingerprints."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_state(
    path: Path,
    identity: str,
    setting: Setting,
    optimizer: torch.optim.Optimizer,
    epochs: list[Epoch],
) -> None:
    """Weights, optimizer and epochs in one file, so that they are always of the same moment."""
    kept = {"network": setting.network}
    if setting.average is not None:
        kept["average"] = setting.average.module
    tensors = {
        f"{whose}/{key}": tensor.detach().to("cpu", copy=True).contiguous()
        for whose, one in kept.items() for key, tensor in one.state_dict().items()
    }
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value.to("cpu", copy=True).contiguous()
    facts = {
        "identity": identity,
        "tensors": fingerprint(tensors),
        "machine": setting.machine,
        "epochs": [asdict(epoch) for epoch in epochs],
    }
    write_tensors(path, tensors, facts)


def _read_state(path: Path, identity: str) -> State | None:
    if not path.exists():
        return None
    try:
        tensors, facts = read_tensors(path.read_bytes(), str(path))
    except BadCheckpoint:
        tensors, facts = {}, {}
    if facts.get("identity") == identity and facts.get("tensors") == fingerprint(tensors):
        return State(tensors, facts)
    # what it held can be trained again, so neither is a reason to stop
    aside = path.with_suffix(".aside")
    path.replace(aside)
    logger.warning("%s is %s: moved to %s, starting anew", path,
                   "damaged" if facts.get("identity") in (identity, None) else "of another run",
                   aside.name)
    return None


def _restore_weights(setting: Setting, state: State) -> None:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.tensors.items():
        whose, _, key = name.partition("/")
        found.setdefault(whose, {})[key] = tensor
    setting.network.load_state_dict(found["network"])
    if "average" in found and setting.plan.ema_decay is not None:
        setting.average = _averaged(setting.network, setting.plan.ema_decay)
        setting.average.module.load_state_dict(found["average"])


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    remembered: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/", 2)
            laid_out = _laid_out_like(parameters[int(index)], tensor)
            remembered.setdefault(int(index), {})[name] = laid_out
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": remembered, "param_groups": groups})


def _laid_out_like(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """Give it the weight's memory layout: a fused step walks through both side by side."""
    if tensor.shape != parameter.shape:  # a step counter
        return tensor
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)


def _dropout_of(ranks: Ranks) -> str:
    """Name the ranks' random numbers, so that each drops other places; the leader as if alone."""
    return "dropout" if ranks.leads else f"dropout of rank {ranks.rank}"


def _mixed(seed: int, epoch: int, use: str) -> int:
    """A seed of its own for each epoch and use."""
    return int.from_bytes(hashlib.sha256(f"{use}/{seed}/{epoch}".encode()).digest()[:7], "big")
