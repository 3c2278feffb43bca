"""What a version fails at is told with its interval, and only what is sure widens the next plan."""

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from vision.failures import (
    GRADES,
    LEAST_IMAGES,
    TRANSFORMATIONS,
    Flags,
    Grade,
    aimed,
    derive,
    evenly,
    sensitivities,
    told,
    widest,
)
from vision.plan import Augmentation, Plan

PLAN = Plan(augmentation=Augmentation(flip=False, rotation=10, scale=0.8))
TURNED = Grade("rotation", 15)
Lost = dict[tuple[str, Grade], int]


def measured(sizes: dict[str, int], lost: Lost) -> tuple[Flags, dict[Grade, Flags], list[str]]:
    """Pictures that are all answered rightly as they are, and those that a grade loses by class."""
    labels = [name for name, images in sizes.items() for _ in range(images)]
    bent = {grade: np.ones(len(labels), dtype=np.bool_) for grade in GRADES}
    for (name, grade), many in lost.items():
        bent[grade][np.flatnonzero(np.array(labels) == name)[:many]] = False
    return np.ones(len(labels), dtype=np.bool_), bent, labels


def told_of(sizes: dict[str, int], lost: Lost, plan: Plan = PLAN) -> list[tuple[object, ...]]:
    """The changes that follow, without their sentences."""
    found = sensitivities(*measured(sizes, lost))
    return [
        (one.class_name, one.field, one.before, one.after) for one in derive(found, plan).changes
    ]


def test_a_drop_is_counted_in_pairs() -> None:
    """Only answers that turned count; the interval is that of Agresti and Min."""
    plain = np.array([True] * 30 + [False] * 10)
    turned = plain.copy()
    turned[:8], turned[30:32] = False, True
    one = sensitivities(plain, {TURNED: turned}, ["okapi"] * 40)[0]
    assert (one.images, one.correct, one.lost, one.gained) == (40, 30, 8, 2)
    assert one.drop == pytest.approx(6 / 40)
    assert one.accuracy == pytest.approx(24 / 40)
    # (8.5 - 2.5) / 42 -+ 1.96 * sqrt(8.5 + 2.5 - 6**2 / 42) / 42
    assert (one.drop_low, one.drop_high) == pytest.approx((-0.0058, 0.2915), abs=1e-4)


def test_the_interval_holds_what_it_promises() -> None:
    """Of many measurements of a known drop, about 95% have it within their interval.

    Counts come in steps, so it is a little more or less for each drop and number of pictures.
    """
    random = np.random.default_rng(5)
    plain = random.random((2000, 60)) < 0.9
    turned = np.where(random.random(plain.shape) < 0.15, False, plain)
    held = 0
    for before, after in zip(plain, turned, strict=True):
        one = sensitivities(before, {TURNED: after}, ["okapi"] * 60)[0]
        assert one.drop_low is not None
        assert one.drop_high is not None
        held += one.drop_low <= 0.9 * 0.15 <= one.drop_high
    assert 0.9 < held / 2000 < 0.99


def test_too_few_images_say_nothing() -> None:
    """A class with few images has counts and no figure, and changes nothing."""
    sizes = {"lion": 60, "okapi": LEAST_IMAGES - 1}
    found = sensitivities(*measured(sizes, {("okapi", TURNED): LEAST_IMAGES - 1}))
    small = next(one for one in found if one.class_name == "okapi" and one.lost)
    assert (small.images, small.lost, small.drop, small.drop_low) == (9, 9, None, None)
    assert all(one.class_name is None for one in derive(found, PLAN).changes)


def test_what_all_classes_lose_widens_the_bend_of_all() -> None:
    """First so that the realistic strength is trained, then to the bound, then no farther."""
    lost = {(name, TURNED): 9 for name in ("lion", "okapi", "zebra")}
    sizes = dict.fromkeys(("lion", "okapi", "zebra"), 40)
    assert told_of(sizes, lost) == [(None, "rotation", 10, 15)]
    trained = Plan(augmentation=Augmentation(rotation=15))
    assert told_of(sizes, lost, trained) == [(None, "rotation", 15, 30)]
    assert told_of(sizes, lost, Plan(augmentation=Augmentation(rotation=30))) == [
        (None, "rotation", 30, 30)
    ]


def test_what_one_class_loses_widens_its_own() -> None:
    """The others keep their bends, and the sentence has the numbers of both."""
    sizes = {f"class {number}": 40 for number in range(20)}
    found = sensitivities(*measured(sizes, {("class 3", Grade("brightness", -0.25)): 20}))
    derived = derive(found, PLAN)
    assert derived.augmentation == PLAN.augmentation
    assert list(derived.class_augmentation) == ["class 3"]
    assert derived.class_augmentation["class 3"].brightness == 0.3
    assert derived.class_augmentation["class 3"].flip is False
    [change] = derived.changes
    assert change.sentence == (
        "class 3: brightness -25% costs 50.0 points (95%: 31.8 to 63.4, 40 images), all classes "
        "2.5: brightness 0.2 to 0.3"
    )


def test_a_class_that_loses_what_all_lose_gets_nothing_of_its_own() -> None:
    """A weakness of the whole network is no weakness of one class."""
    sizes = {f"class {number}": 40 for number in range(20)}
    lost = {(name, Grade("JPEG", 40)): 12 for name in sizes}
    assert told_of(sizes, lost) == [(None, "jpeg", 0, 0.25)]


def test_what_only_the_strongest_grade_costs_changes_nothing() -> None:
    """Half a picture hidden is no use to train for: only realistic strengths decide."""
    sizes = dict.fromkeys(("lion", "okapi"), 60)
    strong = {(name, Grade(one.name, strength)): 30 for name in sizes for one in TRANSFORMATIONS
              for strength in one.strong}  # fmt: skip
    assert told_of(sizes, strong) == []


def test_chance_seldom_changes_a_plan() -> None:
    """Of many versions that lose nothing but flip a few answers, hardly any widens a bend."""
    random = np.random.default_rng(1)
    labels = [f"class {number}" for number in range(30) for _ in range(30)]
    changed = 0
    for _ in range(40):
        plain = random.random(len(labels)) < 0.85
        bent = {
            grade: np.where(random.random(len(labels)) < 0.1, random.random(len(labels)) < 0.85,
                            plain)
            for grade in GRADES
        }  # fmt: skip
        changed += bool(derive(sensitivities(plain, bent, labels), PLAN).changes)
    assert changed <= 6


def test_aiming_only_widens() -> None:
    """What was asked for stays where it is wider; mirroring and classes unheard of stay too."""
    derived = derive(
        sensitivities(*measured(
            {"lion": 40, "okapi": 40, "zebra": 1500}, {("okapi", TURNED): 30}
        )), PLAN
    )  # fmt: skip
    asked = Plan(
        augmentation=Augmentation(rotation=20, scale=0.9), targeted=True,
        class_augmentation={"yak": Augmentation(blur=1)},
    )  # fmt: skip
    plan = aimed(asked, derived, ["lion", "okapi"])
    assert plan.augmentation == Augmentation(rotation=20, scale=0.8)
    assert plan.class_augmentation == {"yak": Augmentation(blur=1)}
    narrow = aimed(Plan(augmentation=Augmentation(rotation=5)), derived, ["lion", "okapi"])
    assert narrow.augmentation.rotation == 10
    assert {name: one.rotation for name, one in narrow.class_augmentation.items()} == {"okapi": 15}
    assert aimed(narrow, derived, ["lion", "okapi"]) == narrow


def test_the_widest_of_two() -> None:
    """A smaller crop is wider, as is a larger angle; what no transformation trains stays."""
    one = Augmentation(flip=False, scale=0.9, rotation=20)
    other = Augmentation(flip=True, scale=0.6, rotation=10)
    assert widest(one, other) == Augmentation(flip=False, scale=0.6, rotation=20)


@pytest.mark.parametrize(
    ("most", "chosen"),
    [(0, []), (3, [0, 4, 5]), (5, [0, 1, 4, 5, 6]), (99, [0, 1, 2, 3, 4, 5, 6])],
)
def test_a_sample_is_even_over_classes(most: int, chosen: Sequence[int]) -> None:
    """Small classes are there whole before a large one gets more."""
    assert evenly(["lion"] * 4 + ["okapi"] + ["zebra"] * 2, most) == chosen


def test_every_transformation_can_be_trained_for() -> None:
    """Each names a field that its two steps widen within what a plan allows, and can be told."""
    for one in TRANSFORMATIONS:
        for value in (one.first, one.last):
            Augmentation(**{one.field: value})
        assert widest(Augmentation(**{one.field: one.first}),
                      Augmentation(**{one.field: one.last})) == Augmentation(
            **{one.field: one.last})  # fmt: skip
        for grade in one.grades:
            assert told(*grade).startswith(one.name)
    assert told("rotation", 15.0) == "rotation +15°"
    assert len({one.field for one in TRANSFORMATIONS}) == len(TRANSFORMATIONS)


def test_failures_import_no_torch() -> None:
    """Records and the command line read them without waiting for torch or cleanlab."""
    code = "import sys, vision.failures, records.failures; " \
           "sys.exit(bool({'torch', 'cleanlab', 'pandas'} & set(sys.modules)))"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
