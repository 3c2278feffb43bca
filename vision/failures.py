"""What a version is too sensitive to, and how the next plan should bend pictures because of it.

The untouched and the bent picture are a pair: only pairs of which one is answered rightly and the
other wrongly say anything. No torch here: records and the command line read this.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from vision.plan import Augmentation, Plan
from vision.scores import DEVIATIONS

# below so many pictures nothing is said of a class
LEAST_IMAGES = 10
# share of the answers that must be lost before anything is changed
LEAST_DROP = 0.03
# of all that is found to cost more than it should, at most this share is expected to be chance
FALSE_FINDINGS = 0.05

Flags = npt.NDArray[np.bool_]


class Grade(NamedTuple):
    """One transformation at one strength, in the transformation's own unit."""

    transformation: str
    strength: float


@dataclass(frozen=True)
class Transformation:
    """A way in which pictures of real use differ from those that trained, and what trains for it.

    told: how a strength is written; realistic, strong: the strengths that are tried, and only the
    realistic ones decide; field: of `Augmentation`; first: what the field is widened to so that
    the realistic strengths are trained; last: its bound, which reaches the strong ones.
    """

    name: str
    told: str
    realistic: tuple[float, ...]
    strong: tuple[float, ...]
    field: str
    first: float
    last: float

    @property
    def grades(self) -> tuple[Grade, ...]:
        """All strengths, from the smallest number to the largest."""
        return tuple(Grade(self.name, one) for one in sorted(self.realistic + self.strong))


TRANSFORMATIONS = (
    Transformation("rotation", "{:+g}°", (-15, 15), (-30, 30), "rotation", 15, 30),
    Transformation("zoom in", "x {:g}", (1.25,), (1.6,), "scale", 0.7, 0.5),
    Transformation("zoom out", "x {:g}", (0.8,), (0.6,), "zoom_out", 1.15, 1.5),
    # along a diagonal, as a share of the side that the network sees
    Transformation("off-centre crop", "by {:.0%}", (0.1,), (0.2,), "shift", 0.1, 0.2),
    Transformation("brightness", "{:+.0%}", (-0.25, 0.25), (-0.5, 0.5), "brightness", 0.3, 0.5),
    Transformation("contrast", "{:+.0%}", (-0.25, 0.25), (-0.5, 0.5), "contrast", 0.3, 0.5),
    Transformation("saturation", "{:+.0%}", (-0.5, 0.5), (-1, 1), "saturation", 0.5, 1),
    # the standard deviation of a Gaussian, in pixels that the network sees
    Transformation("blur", "sigma {:g} px", (1,), (2,), "blur", 0.25, 0.5),
    Transformation("JPEG", "quality {:g}", (40,), (15,), "jpeg", 0.25, 0.5),
    # a grey square over this share of what the network sees
    Transformation("occlusion", "{:.0%} hidden", (0.1,), (0.25,), "erase", 0.25, 0.5),
)
GRADES = tuple(grade for one in TRANSFORMATIONS for grade in one.grades)


@dataclass(frozen=True)
class Sensitivity:
    """What one grade costs the pictures of a class, or all of them (class_name None).

    correct: answered rightly as they are; lost: of those, answered wrongly when bent; gained: the
    other way round. drop: (lost - gained) / images with its 95% interval, -1 to 1; None below
    `LEAST_IMAGES` pictures.
    """

    class_name: str | None
    transformation: str
    strength: float
    images: int
    correct: int
    lost: int
    gained: int
    drop: float | None
    drop_low: float | None
    drop_high: float | None

    @property
    def accuracy(self) -> float | None:
        """Share of the bent pictures that is answered rightly, None without pictures."""
        return (self.correct - self.lost + self.gained) / self.images if self.images else None


@dataclass(frozen=True)
class Change:
    """One field of the next plan's augmentation, of one class or of all (class_name None).

    before equals after where the field is at its bound already: there is nothing left to widen.
    """

    class_name: str | None
    transformation: str
    field: str
    before: float
    after: float
    sentence: str


@dataclass(frozen=True)
class Derived:
    """How the next plan should bend pictures, and why: each change with its reason."""

    augmentation: Augmentation
    class_augmentation: dict[str, Augmentation]
    changes: tuple[Change, ...]


def told(transformation: str, strength: float) -> str:
    """A grade in words, such as `rotation +15°`."""
    return f"{transformation} {_named(transformation).told.format(strength)}"


def evenly(labels: Sequence[str], most: int) -> list[int]:
    """Choose at most so many rows, as many of each class as there are or as is fair, in order."""
    turn: dict[str, int] = {}
    turns = []
    for label in labels:
        turn[label] = turn.get(label, 0) + 1
        turns.append(turn[label])
    chosen = sorted(range(len(labels)), key=lambda row: (turns[row], row))[:most]
    return sorted(chosen)


def sensitivities(
    plain: Flags, bent: Mapping[Grade, Flags], labels: Sequence[str]
) -> tuple[Sensitivity, ...]:
    """Compare each grade with the untouched pictures: over all, then class by class by name.

    plain, and each of bent: whether each picture was answered rightly, [N]; labels: their classes.
    """
    true = np.asarray(labels)
    groups: list[tuple[str | None, Flags]] = [(None, np.ones(len(labels), dtype=np.bool_))]
    groups += [(name, true == name) for name in sorted(set(labels))]
    return tuple(
        _sensitivity(name, grade, plain[own], right[own])
        for name, own in groups
        for grade, right in bent.items()
    )


def _sensitivity(name: str | None, grade: Grade, plain: Flags, bent: Flags) -> Sensitivity:
    images, lost, gained = len(plain), int((plain & ~bent).sum()), int((bent & ~plain).sum())
    drop, low, high = None, None, None
    if images >= LEAST_IMAGES:
        middle, error = _paired(lost, gained, images)
        drop = (lost - gained) / images
        low = max(-1.0, middle - DEVIATIONS * error)
        high = min(1.0, middle + DEVIATIONS * error)
    return Sensitivity(name, *grade, images, int(plain.sum()), lost, gained, drop, low, high)


def _paired(lost: int, gained: int, images: int) -> tuple[float, float]:
    """Middle and standard error of a paired drop (Agresti and Min 2005).

    Half an image more in each of the four cells: honest where few pictures, or none, have turned.
    """
    more_lost, more_gained, more = lost + 0.5, gained + 0.5, images + 2
    drop = (more_lost - more_gained) / more
    return drop, math.sqrt(more_lost + more_gained - more * drop**2) / more


# --- the next plan ----------------------------------------------------------------------------


def derive(found: Iterable[Sensitivity], plan: Plan) -> Derived:
    """Widen what the version is sensitive to, from the bends of its own plan.

    Only realistic strengths decide. A field is widened for all classes when such a strength costs
    `LEAST_DROP` or more of the answers and surely something; for one class when it costs that
    class as much and surely more than all classes together. It is widened in two steps, so that a
    later night can tell whether the first was enough: until the realistic strengths are trained,
    then to its bound. `surely` counts all that is compared (Benjamini and Hochberg).
    """
    decided = [one for one in found if one.drop is not None and _is_realistic(one)]
    general = {Grade(one.transformation, one.strength): one for one in decided
               if one.class_name is None}  # fmt: skip
    costly = _costly(decided, general)
    augmentation, changes = _widen(plan.augmentation, None, costly.pop(None, []), general)
    own: dict[str, Augmentation] = {}
    for name, before in plan.class_augmentation.items():
        own[name] = widest(before, augmentation)
    for sensitive, worst in costly.items():
        if sensitive is not None:
            start = own.get(sensitive, augmentation)
            own[sensitive], more = _widen(start, sensitive, worst, general)
            changes += more
    return Derived(
        augmentation,
        {name: one for name, one in sorted(own.items()) if one != augmentation},
        tuple(changes),
    )


def widest(one: Augmentation, other: Augmentation) -> Augmentation:
    """The first with every field that a transformation trains at the wider of the two."""
    wide: dict[str, Any] = {
        each.field: _wider(each, getattr(one, each.field), getattr(other, each.field))
        for each in TRANSFORMATIONS
    }
    return replace(one, **wide)


def aimed(plan: Plan, derived: Derived, class_names: Iterable[str]) -> Plan:
    """The plan with its bends widened by what was derived, for the classes it will train.

    Nothing is narrowed: what was widened stays so as long as each night is aimed at its parent.
    """
    general = widest(plan.augmentation, derived.augmentation)
    own = dict(plan.class_augmentation)
    for name in sorted(class_names):
        wide = widest(
            plan.class_augmentation.get(name, general),
            derived.class_augmentation.get(name, derived.augmentation),
        )
        if name in own or wide != general:
            own[name] = wide
    return replace(plan, augmentation=general, class_augmentation=own)


def _is_realistic(one: Sensitivity) -> bool:
    return one.strength in _named(one.transformation).realistic


def _costly(
    decided: Sequence[Sensitivity], general: Mapping[Grade, Sensitivity]
) -> dict[str | None, list[Sensitivity]]:
    """What costs too much by class, the dearest strength of each transformation alone."""
    from scipy.stats import false_discovery_control  # slow to load, and questions need none of it

    if not decided:
        return {}
    chances = false_discovery_control([_chance(one, general) for one in decided])
    worst: dict[tuple[str | None, str], Sensitivity] = {}
    for one, chance in zip(decided, chances.tolist(), strict=True):
        place = (one.class_name, one.transformation)
        if chance <= FALSE_FINDINGS and _drop(one) >= LEAST_DROP and (
            place not in worst or _drop(one) > _drop(worst[place])
        ):
            worst[place] = one
    found: dict[str | None, list[Sensitivity]] = {}
    for (name, _), one in worst.items():
        found.setdefault(name, []).append(one)
    return found


def _chance(one: Sensitivity, general: Mapping[Grade, Sensitivity]) -> float:
    """How likely so large a drop is when the truth is no drop, or that of all classes."""
    usual = 0.0
    if one.class_name is not None:
        usual = max(0.0, _drop(general[Grade(one.transformation, one.strength)]))
    middle, error = _paired(one.lost, one.gained, one.images)
    return float(ndtr((usual - middle) / error))


def _widen(
    before: Augmentation,
    name: str | None,
    costly: Iterable[Sensitivity],
    general: Mapping[Grade, Sensitivity],
) -> tuple[Augmentation, list[Change]]:
    after, changes = before, []
    for one in costly:
        transformation = _named(one.transformation)
        now = float(getattr(before, transformation.field))
        wide = _wider(transformation, now, transformation.first)
        if wide == now:  # the realistic strengths were trained already, and it was not enough
            wide = _wider(transformation, now, transformation.last)
        values: dict[str, Any] = {transformation.field: wide}
        after = replace(after, **values)
        sentence = _sentence(one, transformation, now, wide, general)
        changes.append(
            Change(name, one.transformation, transformation.field, now, wide, sentence)
        )
    return after, changes


def _sentence(
    one: Sensitivity,
    transformation: Transformation,
    before: float,
    after: float,
    general: Mapping[Grade, Sensitivity],
) -> str:
    low, high = one.drop_low or 0.0, one.drop_high or 0.0
    cost = (f"costs {100 * _drop(one):.1f} points (95%: {100 * low:.1f} to {100 * high:.1f}, "
            f"{one.images} images)")  # fmt: skip
    who = ""
    if one.class_name is not None:
        usual = _drop(general[Grade(one.transformation, one.strength)])
        who, cost = f"{one.class_name}: ", f"{cost}, all classes {100 * usual:.1f}"
    what = (f"{transformation.field} {before:g} to {after:g}" if before != after
            else f"{transformation.field} stays {before:g}, its bound")  # fmt: skip
    return f"{who}{told(one.transformation, one.strength)} {cost}: {what}"


def _wider(transformation: Transformation, one: float, other: float) -> float:
    return min(one, other) if transformation.last < transformation.first else max(one, other)


def _drop(one: Sensitivity) -> float:
    return one.drop or 0.0


def _named(transformation: str) -> Transformation:
    return next(one for one in TRANSFORMATIONS if one.name == transformation)
