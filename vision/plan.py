"""The parameters of one training run, checked when they are written down and not when they hurt.

No torch here: records, pages and the command line read plans too.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, NoReturn

# Raised whenever vision.images makes other pixels for the same geometry, so that cached ones of
# before are not mixed with them.
PIXELS = 2

Interpolation = Literal["bilinear", "bicubic"]
Recipe = Literal["all", "two-phase", "inherit", "scratch"]
Schedule = Literal["cosine", "constant"]

# Fields that plans of before did not have, inner ones as augmentation.NAME. At their default they
# have no part in the digest, so that such a plan keeps the one it was stored with; hence these
# defaults must never change.
LATER = (
    "effective_beta", "shrink", "perturb", "layer_decay", "ema_decay", "mixup", "cutmix",
    "class_augmentation", "targeted", "head_views", "schedule", "way",
    "augmentation.zoom_out", "augmentation.shift", "augmentation.jpeg",
)  # fmt: skip

# What a version without a parent is made of where its plan leaves the network open; and what, left
# at its default beside an open network, is the parent's as well.
ARCHITECTURE = "mobilenetv2_100"
WITH_NETWORK = ("arguments", "image_size", "crop", "interpolation")

# timm keyword arguments that have a field of their own or that the class list decides.
RESERVED_ARGUMENTS = {
    "num_classes": "the class list decides it",
    "pretrained": "use weights='hub'",
    "checkpoint_path": "use weights=PATH",
    "drop_rate": "use dropout",
    "in_chans": "images have three channels",
    "features_only": "a classifier is trained",
}


class BadPlan(ValueError):
    """A plan that cannot be trained; the message is one line: field, value, mend."""


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes a square of pixels: resize, keep the centre, interpolate like this."""

    image_size: int
    crop: float
    interpolation: Interpolation

    @property
    def side(self) -> int:
        """Side in pixels of the stored square; the network sees `image_size` of it."""
        return round(self.image_size / self.crop)

    @property
    def name(self) -> str:
        """File-safe name; geometries of one name have the same stored pixels and share them."""
        return f"{self.side}px-{self.interpolation}-{PIXELS}"


def _means(description: str) -> dict[str, str]:
    """What a field means, under the name by which pydantic and Prefect's pages look for it."""
    return {"description": description}


@dataclass(frozen=True)
class Augmentation:
    """How far training pictures are bent; each field's meaning and unit stand below.

    Raises `BadPlan`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    flip: bool = field(default=True, metadata=_means(
        "whether left and right are mirrored, half of the time"))
    scale: float = field(default=0.7, metadata=_means(
        "smallest share of the side that a random crop keeps, 0.1 to 1; 1: never cropped smaller"))
    rotation: float = field(default=10.0, metadata=_means(
        "largest angle in degrees, either way, 0 to 180"))
    brightness: float = field(default=0.2, metadata=_means("largest relative change, 0 to 1"))
    contrast: float = field(default=0.2, metadata=_means("largest relative change, 0 to 1"))
    saturation: float = field(default=0.2, metadata=_means("largest relative change, 0 to 1"))
    blur: float = field(default=0.0, metadata=_means("probability of a Gaussian blur, 0 to 1"))
    erase: float = field(default=0.0, metadata=_means(
        "probability of a grey rectangle over part of the picture, 0 to 1"))
    zoom_out: float = field(default=1.0, metadata=_means(
        "largest share of the side that a crop shows, 1 to 2; above 1 the picture becomes smaller "
        "and its border is mirrored"))
    shift: float = field(default=0.0, metadata=_means(
        "how much farther a crop's middle may lie from the picture's than its size leaves room "
        "for, as a share of the side, 0 to 0.5; what lies beyond the border is mirrored"))
    jpeg: float = field(default=0.0, metadata=_means(
        "probability of the traces of a JPEG saved at low quality (10 to 50), 0 to 1"))

    def __post_init__(self) -> None:
        _truth(self, "flip")
        _number(self, "scale", 0.1, 1.0)
        _number(self, "rotation", 0.0, 180.0)
        _number(self, "zoom_out", 1.0, 2.0)
        _number(self, "shift", 0.0, 0.5)
        for name in ("brightness", "contrast", "saturation", "blur", "erase", "jpeg"):
            _number(self, name, 0.0, 1.0)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Augmentation":
        """Read it back from JSON; unknown names are refused with the nearest known one."""
        return cls(**_known(cls, "augmentation", values))


@dataclass(frozen=True)
class Way:
    """How a machine computes a training run, as far as the bits depend on it.

    Raises `BadPlan`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    precision: Literal["float32", "bfloat16"] = field(default="float32", metadata=_means(
        "numbers in which steps are computed"))
    channels_last: bool = field(default=False, metadata=_means(
        "whether the colours of a pixel lie side by side"))
    threads: int = field(default=1, metadata=_means("of each process"))
    compiled: bool = field(default=False, metadata=_means("whether the network is compiled"))
    features: str | None = field(default=None, metadata=_means(
        "two-phase: the engine that computes the features of the first phase; null: chosen"))
    micro_batch: int | None = field(default=None, metadata=_means(
        "most images whose gradients are computed at once; null: the batch"))

    def __post_init__(self) -> None:
        _choice(self, "precision", ("float32", "bfloat16"))
        _truth(self, "channels_last")
        _whole(self, "threads", 1, 65_536)
        _truth(self, "compiled")
        if self.features is not None:
            _text(self, "features")
        if self.micro_batch is not None:
            _whole(self, "micro_batch", 1, 65_536)

    def __str__(self) -> str:
        words = [self.precision, *["channels last"] * self.channels_last,
                 f"{self.threads} thread{'s' * (self.threads > 1)}", *["compiled"] * self.compiled]
        return ", ".join(words)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Way":
        """Read it back from JSON; unknown names are refused with the nearest known one."""
        return cls(**_known(cls, "way", values))


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a training run computes.

    What each field means, its unit and its default: below, in `regraft plan`, and beside the
    fields on Prefect's pages. Raises `BadPlan`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    architecture: str | None = field(default=None, metadata=_means(
        "the network, by its name in timm; a parent must have the same. null: the parent's, with "
        "its arguments, image_size, crop and interpolation where those are left at their defaults; "
        f"without a parent {ARCHITECTURE}"))
    arguments: dict[str, Any] = field(default_factory=dict, hash=False, metadata=_means(
        "further keyword arguments of timm's create_model, such as pad_type"))
    weights: str | None = field(default=None, metadata=_means(
        "what a network without a parent starts from: a safetensors file, s3://KEY, or hub "
        "(timm's own); null: at random"))
    image_size: int = field(default=160, metadata=_means(
        "side in pixels of the square that the network sees"))
    crop: float = field(default=0.875, metadata=_means(
        "share of the stored square's side that the network sees, 0.1 to 1"))
    mean: tuple[float, float, float] | None = field(default=None, metadata=_means(
        "taken off each colour, for pixels in 0 to 1; null: the parent's, else the network's own"))
    std: tuple[float, float, float] | None = field(default=None, metadata=_means(
        "each colour is divided by it, for pixels in 0 to 1; null: as for mean"))
    interpolation: Interpolation = field(default="bilinear", metadata=_means(
        "how pictures are resized: bilinear or bicubic"))
    recipe: Recipe = field(default="all", metadata=_means(
        "all: fresh head, every weight learns. two-phase: fresh head on the frozen backbone, then "
        "the last blocks too. inherit: like all, but the parent's rows of the head are kept for "
        "classes of the same name. scratch: a random start, the parent is left out"))
    epochs: int = field(default=20, metadata=_means(
        "times that every training image is seen; two-phase counts both phases"))
    head_epochs: int = field(default=5, metadata=_means(
        "two-phase: how many of the epochs train the head alone"))
    head_views: int | None = field(default=3, metadata=_means(
        "two-phase: in how many ways each picture is bent in the first phase, where features are "
        "computed once for each and the epochs take them in turn; null: bent anew in every epoch, "
        "through the whole network, which is slow; so it is with mixup or cutmix"))
    unfreeze: int = field(default=3, metadata=_means(
        "two-phase: how many of the last blocks learn in the second phase"))
    batch_size: int = field(default=32, metadata=_means(
        "images per step; out of memory, gradients of parts add up to those of the same batch"))
    learning_rate: float = field(default=1e-3, metadata=_means(
        "peak rate per step of the head, reached behind the warm-up"))
    backbone_learning_rate: float | None = field(default=None, metadata=_means(
        "peak rate per step of the backbone's last block; null: learning_rate, and a tenth of it "
        "in the second phase of two-phase, where the head has this rate too"))
    layer_decay: float = field(default=1.0, metadata=_means(
        "each block's rate as a share of the next block's, 0.01 to 1; the stem's is the lowest; "
        "1: all blocks alike"))
    warmup_epochs: float = field(default=1.0, metadata=_means(
        "epochs in which the rate rises to its peak, at the beginning of each phase"))
    schedule: Schedule = field(default="cosine", metadata=_means(
        "how the rate goes on behind the warm-up, in each phase. cosine: down to 0 at its end. "
        "constant: at its peak"))
    weight_decay: float = field(default=0.01, metadata=_means(
        "share of each weight taken off per step, times the rate; not of biases and norms"))
    optimizer: Literal["adamw", "sgd"] = field(default="adamw", metadata=_means(
        "adamw, or sgd with Nesterov momentum 0.9"))
    dropout: float = field(default=0.2, metadata=_means(
        "share of the head's inputs that is left out at each step, 0 to 0.95"))
    label_smoothing: float = field(default=0.1, metadata=_means(
        "share of each label that is spread over all classes, 0 to 0.9"))
    class_weights: Literal["none", "balanced", "effective-number"] = field(
        default="balanced", metadata=_means(
        "what an image counts in the loss. balanced: every class as much as any other in sum. "
        "effective-number: (1 - beta) / (1 - beta^images of its class), which is gentler (Cui et "
        "al. 2019). none: every image alike"))
    effective_beta: float = field(default=0.999, metadata=_means(
        "effective-number: its beta, 0 (like none) to below 1 (like balanced)"))
    mixup: float = field(default=0.0, metadata=_means(
        "alpha of the Beta distribution by which the pictures of a batch and their labels are "
        "blended in pairs, 0 to 10; 0: off"))
    cutmix: float = field(default=0.0, metadata=_means(
        "alpha of the Beta distribution for pasting a box of the next picture into each, 0 to 10; "
        "0: off; with mixup, each batch draws one of the two"))
    batch_norm: Literal["train", "eval"] = field(default="train", metadata=_means(
        "train: layers that learn normalise by the batch and move their running statistics. "
        "eval: running statistics are used and stay"))
    gradient_clip: float | None = field(default=1.0, metadata=_means(
        "largest norm of all gradients of a step together; null: unlimited"))
    ema_decay: float | None = field(default=None, metadata=_means(
        "share of the running average of all weights that each step keeps, 0 to below 1; it warms "
        "up as 1 - (1 + step)^(-2/3) and begins with the last phase. Where it is kept, the average "
        "is what is validated, judged, saved and inherited; the learning weights are thrown away. "
        "null: no average, and the weights behind the last step are all that"))
    shrink: float = field(default=1.0, metadata=_means(
        "what the parent's weights are multiplied with at the start, 0.01 to 1 (Ash & Adams 2020); "
        "1: off"))
    perturb: float = field(default=0.0, metadata=_means(
        "how much of a random start by the plan's seed is added to the parent's weights, 0 to 1; "
        "0: off"))
    precision: Literal["auto", "float32", "bfloat16"] = field(default="auto", metadata=_means(
        "numbers in which steps are computed; weights stay float32; auto: the fastest here"))
    channels_last: bool | None = field(default=None, metadata=_means(
        "whether the colours of a pixel lie side by side; null: the fastest here"))
    way: Way | None = field(default=None, metadata=_means(
        "how steps are computed, down to threads and compilation. A resolved plan has it, so that "
        "the same machine computes the same bits again; null: the fastest here, within precision "
        "and channels_last"))
    augmentation: Augmentation = field(default_factory=Augmentation, metadata=_means(
        "how far training pictures are bent"))
    class_augmentation: dict[str, Augmentation] = field(
        default_factory=dict, hash=False, metadata=_means(
        "classes whose pictures are bent in their own way instead of by augmentation"))
    targeted: bool = field(default=False, metadata=_means(
        "whether a night widens both by what the failure analysis of its parent found"))
    cutoff: int = field(default=40, metadata=_means(
        "fewest usable images, of all splits, with which a class is trained"))
    most: int | None = field(default=1000, metadata=_means(
        "most images that are used of a class, the newest; null: all"))
    seed: int = field(default=0, metadata=_means(
        "of all that is random: start, order, dropout, augmentation; 0 to 2^32 - 1"))

    def __post_init__(self) -> None:
        self._check_network()
        self._check_training()
        self._check_data()
        self._check_contradictions()

    def _check_network(self) -> None:
        if self.architecture is not None:
            _text(self, "architecture")
        _json_arguments(self.arguments)
        if self.weights is not None:
            _text(self, "weights")
        _whole(self, "image_size", 16, 2048)
        _number(self, "crop", 0.1, 1.0)
        _colour(self, "mean", 0.0, 1.0)
        _colour(self, "std", 1e-3, 1.0)
        _choice(self, "interpolation", ("bilinear", "bicubic"))

    def _check_training(self) -> None:
        _choice(self, "recipe", ("all", "two-phase", "inherit", "scratch"))
        _whole(self, "epochs", 1, 10_000)
        _whole(self, "head_epochs", 1, 10_000)
        if self.head_views is not None:
            _whole(self, "head_views", 1, 10_000)
        _whole(self, "unfreeze", 1, 10_000)
        _whole(self, "batch_size", 1, 65_536)
        _number(self, "learning_rate", 1e-9, 100.0)
        if self.backbone_learning_rate is not None:
            _number(self, "backbone_learning_rate", 1e-9, 100.0)
        _number(self, "layer_decay", 0.01, 1.0)
        _number(self, "warmup_epochs", 0.0, 10_000.0)
        _choice(self, "schedule", ("cosine", "constant"))
        _number(self, "weight_decay", 0.0, 10.0)
        _choice(self, "optimizer", ("adamw", "sgd"))
        _number(self, "dropout", 0.0, 0.95)
        _number(self, "label_smoothing", 0.0, 0.9)
        _choice(self, "class_weights", ("none", "balanced", "effective-number"))
        _number(self, "effective_beta", 0.0, 0.999_999_999)
        _number(self, "mixup", 0.0, 10.0)
        _number(self, "cutmix", 0.0, 10.0)
        _choice(self, "batch_norm", ("train", "eval"))
        if self.gradient_clip is not None:
            _number(self, "gradient_clip", 1e-6, 1e6)
        if self.ema_decay is not None:
            _number(self, "ema_decay", 0.0, 0.999_999)
        _number(self, "shrink", 0.01, 1.0)
        _number(self, "perturb", 0.0, 1.0)
        _choice(self, "precision", ("auto", "float32", "bfloat16"))
        if self.channels_last is not None:
            _truth(self, "channels_last")
        if self.way is not None and not isinstance(self.way, Way):
            _refuse(self, "way", "use a Way")

    def _check_data(self) -> None:
        if not isinstance(self.augmentation, Augmentation):
            _refuse(self, "augmentation", "use an Augmentation")
        _class_augmentation(self.class_augmentation)
        _truth(self, "targeted")
        _whole(self, "cutoff", 1, 1_000_000_000)
        if self.most is not None:
            _whole(self, "most", 1, 1_000_000_000)
        _whole(self, "seed", 0, 2**32 - 1)

    def _check_contradictions(self) -> None:
        if (self.mean is None) != (self.std is None):
            missing, given = ("mean", "std") if self.mean is None else ("std", "mean")
            raise BadPlan(f"{given} is set and {missing} is not: give both or neither")
        if self.most is not None and self.most < self.cutoff:
            _refuse(self, "most", f"use cutoff={self.cutoff} or more, or None")
        if self.recipe == "scratch" and self.weights is not None:
            _refuse(self, "weights", "recipe='scratch' starts at random; leave weights out")
        if self.recipe == "inherit" and self.weights is not None:
            _refuse(self, "weights", "recipe='inherit' starts from its parent; leave weights out")
        self._check_way()
        self._check_shrinking()
        if self.batch_size == 1 and self.batch_norm == "train":
            _refuse(self, "batch_size", "one image has no batch statistics; use 2 or more, "
                    "or batch_norm='eval'")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) and self.batch_size == 1:
                _refuse(self, name, "a batch of one image has no other to mix it with; use "
                        "batch_size=2 or more")
        if self.recipe == "two-phase":
            if self.head_epochs >= self.epochs:
                _refuse(self, "head_epochs", f"epochs={self.epochs} counts both phases; "
                        "use fewer head_epochs or more epochs")
            shortest = min(self.head_epochs, self.epochs - self.head_epochs)
            if self.warmup_epochs >= shortest:
                _refuse(self, "warmup_epochs", f"the shorter phase has {shortest} epochs and each "
                        "phase warms up; use less")
        elif self.warmup_epochs >= self.epochs:
            _refuse(self, "warmup_epochs", f"it must be less than epochs={self.epochs}")

    def _check_way(self) -> None:
        if self.way is None:
            return
        if self.precision not in ("auto", self.way.precision):
            _refuse(self, "precision", f"way has {self.way.precision}; leave way out")
        if self.channels_last not in (None, self.way.channels_last):
            _refuse(self, "channels_last", f"way has {self.way.channels_last}; leave way out")

    def _check_shrinking(self) -> None:
        if not self.shrinks:
            return
        name = "shrink" if self.shrink != 1 else "perturb"
        if self.recipe == "scratch":
            _refuse(self, name, "recipe='scratch' has no parent's weights to change; use 'all' or "
                    "'inherit', or leave it out")
        # a convolution that was changed no longer gives what the running statistics were taken of
        if self.batch_norm == "eval":
            _refuse(self, name, "running statistics no longer fit weights that were changed; use "
                    "batch_norm='train'")
        if self.recipe == "two-phase":
            _refuse(self, name, "its head phase needs the backbone as the parent left it; use "
                    "recipe='all' or 'inherit'")

    def ignored(self) -> dict[str, str]:
        """The fields that were changed and have no effect, each with the reason.

        Not refused with the other contradictions: plans that were stored are read back, and are
        the same plan for ever.
        """
        reasons: dict[str, str] = {}
        if self.recipe != "two-phase":
            phased = ("head_epochs", "head_views", "unfreeze")
            reasons |= dict.fromkeys(phased, f"recipe={self.recipe!r} has one phase; use "
                                     "recipe='two-phase', or leave it out")
        elif self.mixes and self.head_views is not None:
            reasons["head_views"] = ("with mixup or cutmix nothing is computed once for several "
                                     "epochs; leave it out")
        if self.class_weights != "effective-number":
            reasons["effective_beta"] = (f"class_weights={self.class_weights!r} has no beta; use "
                                         "class_weights='effective-number', or leave it out")
        usual = Plan()
        return {
            name: reason for name, reason in reasons.items()
            if getattr(self, name) != getattr(usual, name)
        }

    def heeded(self, *, asked: Collection[str] | None = None) -> "Plan":
        """The plan, for whoever asks for a training; raises `BadPlan` where it ignores a field.

        asked: the fields that were asked for, where others come from a stored plan; None: all.
        """
        for name, reason in self.ignored().items():
            if asked is None or name in asked:
                _refuse(self, name, reason)
        return self

    @property
    def shrinks(self) -> bool:
        """Whether the parent's weights are changed before training."""
        return self.shrink != 1 or self.perturb != 0

    @property
    def mixes(self) -> bool:
        """Whether the pictures of a batch are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def timm_name(self) -> str:
        """The network's name in timm; where it is open, what a version without a parent is."""
        return self.architecture or ARCHITECTURE

    def settled(self, parent: "Plan | None" = None) -> "Plan":
        """The plan with its network named: where it is open, the parent's and what goes with it.

        What the plan itself says otherwise than by default stays as it says.
        """
        if self.architecture is not None:
            return self
        if parent is None:
            return replace(self, architecture=ARCHITECTURE)
        usual = Plan()
        theirs = {
            name: getattr(parent, name)
            for name in WITH_NETWORK if getattr(self, name) == getattr(usual, name)
        }
        return replace(self, architecture=parent.timm_name, **theirs)

    @property
    def geometry(self) -> Geometry:
        """How the pictures of this plan are cut and resized."""
        return Geometry(self.image_size, self.crop, self.interpolation)

    @property
    def needs_start(self) -> bool:
        """Whether the recipe makes no sense from random weights: a frozen random backbone."""
        return self.recipe == "two-phase"

    def augmentation_of(self, labels: Sequence[str]) -> Augmentation | list[Augmentation]:
        """How pictures of these classes are bent: one way for all, or one for each picture."""
        if not self.class_augmentation:
            return self.augmentation
        return [self.class_augmentation.get(label, self.augmentation) for label in labels]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Plan":
        """Read a plan back from JSON; what is missing has its default.

        Raises `BadPlan` for unknown names, with the nearest known one, and for bad values.
        """
        known = _known(cls, "plan", values)
        bent = known.get("augmentation")
        if bent is not None and not isinstance(bent, Augmentation):
            known["augmentation"] = Augmentation.from_dict(bent)
        way = known.get("way")
        if isinstance(way, Mapping):
            known["way"] = Way.from_dict(way)
        own = known.get("class_augmentation")
        if isinstance(own, Mapping):
            known["class_augmentation"] = {
                name: one if isinstance(one, Augmentation) else Augmentation.from_dict(one)
                for name, one in own.items()
            }
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` gives an equal plan back."""
        values = asdict(self)
        for name in ("mean", "std"):
            if values[name] is not None:
                values[name] = list(values[name])
        return values

    def told(self) -> list[tuple[str, str, str]]:
        """Each field with its value as JSON and its meaning; inner fields have dotted names."""
        return list(_told(Plan, self.to_dict()))

    def digest(self) -> str:
        """Sha256 in hex of the canonical JSON: equal plans, equal digests."""
        told, plain = self.to_dict(), Plan().to_dict()
        for name in LATER:
            *groups, last = name.split(".")
            inner, usual = told, plain
            for group in groups:
                inner, usual = inner[group], usual[group]
            if inner[last] == usual[last]:
                del inner[last]
        text = json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _told(
    cls: type[Plan] | type[Augmentation], values: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    for one in fields(cls):
        value, meaning = values[one.name], one.metadata["description"]
        if one.default_factory is Augmentation:
            yield one.name, "", meaning
            for name, inner, its in _told(Augmentation, value):
                yield f"{one.name}.{name}", inner, its
        else:
            yield one.name, json.dumps(value), meaning


def _refuse(owner: object, name: str, mend: str) -> NoReturn:
    raise BadPlan(f"{name}={getattr(owner, name)!r}: {mend}")


def _text(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if not isinstance(value, str) or not value or value != value.strip() or not value.isprintable():
        _refuse(owner, name, "use a text without blanks around it")


def _truth(owner: object, name: str) -> None:
    if not isinstance(getattr(owner, name), bool):
        _refuse(owner, name, "use True or False")


def _choice(owner: object, name: str, known: tuple[str, ...]) -> None:
    value = getattr(owner, name)
    if not isinstance(value, str) or value not in known:
        _refuse(owner, name, f"use {', '.join(repr(one) for one in known)}")


def _whole(owner: object, name: str, least: int, most: int) -> None:
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        _refuse(owner, name, f"use a whole number from {least} to {most}")


def _number(owner: object, name: str, least: float, most: float) -> None:
    value = getattr(owner, name)
    if not _is_number(value) or not least <= value <= most:
        _refuse(owner, name, f"use a number from {least:g} to {most:g}")
    # 1 and 1.0 are the same rate, so they must have the same digest
    object.__setattr__(owner, name, float(value))


def _colour(owner: object, name: str, least: float, most: float) -> None:
    value = getattr(owner, name)
    if value is None:
        return
    if (
        not isinstance(value, list | tuple)
        or len(value) != 3
        or not all(_is_number(one) and least <= one <= most for one in value)
    ):
        _refuse(owner, name, f"use three numbers (red, green, blue) from {least:g} to {most:g}")
    object.__setattr__(owner, name, tuple(float(one) for one in value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _class_augmentation(own: object) -> None:
    if not isinstance(own, dict) or not all(
        isinstance(name, str) and name and isinstance(one, Augmentation)
        for name, one in own.items()
    ):
        raise BadPlan(f"class_augmentation={own!r}: use a mapping of class names to Augmentations")


def _json_arguments(arguments: object) -> None:
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise BadPlan(f"arguments={arguments!r}: use a mapping of timm's keyword arguments")
    for key, reason in RESERVED_ARGUMENTS.items():
        if key in arguments:
            raise BadPlan(f"arguments={{{key!r}: {arguments[key]!r}}}: leave it out; {reason}")
    try:
        kept = json.loads(json.dumps(arguments, allow_nan=False))
    except (TypeError, ValueError):
        kept = None
    # a tuple or an integer key would come back from JSON as something else: another digest
    if kept != arguments:
        raise BadPlan(f"arguments={arguments!r}: use JSON values (text, numbers, lists)")


def _known(cls: Callable[..., Any], what: str, values: object) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise BadPlan(f"{what}={values!r}: use a mapping of names to values")
    names = [one.name for one in fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
            mend = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise BadPlan(f"{name!r} is no field of {what}: {mend}")
    return dict(values)
