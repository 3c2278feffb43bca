"""The parameters of one training run, checked when they are written down and not when they hurt.

No torch here: records, pages and the command line read plans too.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, NoReturn

# Raised whenever vision.images makes other pixels for the same geometry, so that cached ones of
# before are not mixed with them.
PIXELS = 2

Interpolation = Literal["bilinear", "bicubic"]
Recipe = Literal["all", "two-phase", "scratch"]

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


@dataclass(frozen=True)
class Augmentation:
    """How far training pictures are bent.

    flip: mirror left and right, half of the time.
    scale: smallest share of the side that a random crop keeps, 0.1 to 1 (1: never cropped smaller).
    rotation: largest angle in degrees, either way, 0 to 180.
    brightness, contrast, saturation: largest relative change, 0 to 1.
    blur, erase: probability of a Gaussian blur, and of a grey rectangle over part of the picture.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    flip: bool = True
    scale: float = 0.7
    rotation: float = 10.0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    blur: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        _truth(self, "flip")
        _number(self, "scale", 0.1, 1.0)
        _number(self, "rotation", 0.0, 180.0)
        for name in ("brightness", "contrast", "saturation", "blur", "erase"):
            _number(self, name, 0.0, 1.0)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Augmentation":
        """Read it back from JSON; unknown names are refused with the nearest known one."""
        return cls(**_known(cls, "augmentation", values))


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a training run computes.

    Rates are per optimizer step of one batch; `epochs` counts both phases of `two-phase`;
    `backbone_learning_rate` defaults to a tenth of `learning_rate` in the second phase of
    `two-phase` and to `learning_rate` itself in the other recipes; `head_views`: in how many ways
    each picture is bent in the first phase of `two-phase`, where features are computed once for
    each of them and the epochs take them in turn (None: bent anew in every epoch, and always
    through the whole network, at the price of the phase's speed); `weights` is a safetensors file
    or `hub`; `mean` and `std` default to the network's own. Raises `BadPlan`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    architecture: str = "mobilenetv2_100"
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)
    weights: str | None = None
    image_size: int = 160
    crop: float = 0.875
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Interpolation = "bilinear"
    recipe: Recipe = "all"
    epochs: int = 20
    head_epochs: int = 5
    head_views: int | None = 3
    unfreeze: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-3
    backbone_learning_rate: float | None = None
    warmup_epochs: float = 1.0
    weight_decay: float = 0.01
    optimizer: Literal["adamw", "sgd"] = "adamw"
    dropout: float = 0.2
    label_smoothing: float = 0.1
    class_weights: Literal["none", "balanced", "effective-number"] = "balanced"
    batch_norm: Literal["train", "eval"] = "train"
    gradient_clip: float | None = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    cutoff: int = 40
    most: int | None = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_network()
        self._check_training()
        self._check_data()
        self._check_contradictions()

    def _check_network(self) -> None:
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
        _choice(self, "recipe", ("all", "two-phase", "scratch"))
        _whole(self, "epochs", 1, 10_000)
        _whole(self, "head_epochs", 1, 10_000)
        if self.head_views is not None:
            _whole(self, "head_views", 1, 10_000)
        _whole(self, "unfreeze", 1, 10_000)
        _whole(self, "batch_size", 1, 65_536)
        _number(self, "learning_rate", 1e-9, 100.0)
        if self.backbone_learning_rate is not None:
            _number(self, "backbone_learning_rate", 1e-9, 100.0)
        _number(self, "warmup_epochs", 0.0, 10_000.0)
        _number(self, "weight_decay", 0.0, 10.0)
        _choice(self, "optimizer", ("adamw", "sgd"))
        _number(self, "dropout", 0.0, 0.95)
        _number(self, "label_smoothing", 0.0, 0.9)
        _choice(self, "class_weights", ("none", "balanced", "effective-number"))
        _choice(self, "batch_norm", ("train", "eval"))
        if self.gradient_clip is not None:
            _number(self, "gradient_clip", 1e-6, 1e6)
        _choice(self, "precision", ("auto", "float32", "bfloat16"))
        if self.channels_last is not None:
            _truth(self, "channels_last")

    def _check_data(self) -> None:
        if not isinstance(self.augmentation, Augmentation):
            _refuse(self, "augmentation", "use an Augmentation")
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
        if self.batch_size == 1 and self.batch_norm == "train":
            _refuse(self, "batch_size", "one image has no batch statistics; use 2 or more, "
                    "or batch_norm='eval'")
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

    @property
    def geometry(self) -> Geometry:
        """How the pictures of this plan are cut and resized."""
        return Geometry(self.image_size, self.crop, self.interpolation)

    @property
    def needs_start(self) -> bool:
        """Whether the recipe makes no sense from random weights: a frozen random backbone."""
        return self.recipe == "two-phase"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Plan":
        """Read a plan back from JSON; what is missing has its default.

        Raises `BadPlan` for unknown names, with the nearest known one, and for bad values.
        """
        known = _known(cls, "plan", values)
        bent = known.get("augmentation")
        if bent is not None and not isinstance(bent, Augmentation):
            known["augmentation"] = Augmentation.from_dict(bent)
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` gives an equal plan back."""
        values = asdict(self)
        for name in ("mean", "std"):
            if values[name] is not None:
                values[name] = list(values[name])
        return values

    def digest(self) -> str:
        """Sha256 in hex of the canonical JSON: equal plans, equal digests."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


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
