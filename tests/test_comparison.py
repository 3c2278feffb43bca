"""Two versions on the same images: the difference, its interval, and what it is taken over."""

from dataclasses import replace

import numpy as np
import pytest

from tasks.lineage import Worth
from vision.answers import Answers
from vision.comparison import Difference, difference


def answers(right: list[bool], names: tuple[str, ...] = ("a", "b"), first: int = 0) -> Answers:
    """A version's answers for images `first`, `first + 1`, …, all of class `a`."""
    best = np.where(right, 0, 1)
    return Answers(
        images=tuple(f"{first + place:064x}" for place in range(len(right))),
        labels=("a",) * len(right),
        class_names=names,
        top=np.stack([best, 1 - best], axis=1),
        confidences=np.tile(np.float32([0.75, 0.25]), (len(right), 1)),
        label_confidence=np.where(right, 0.75, 0.25) * ("a" in names),
    )


def test_it_counts_image_by_image() -> None:
    """Gained and lost are told apart, and the interval goes around the difference."""
    first = answers([True] * 70 + [True] * 20 + [False] * 5 + [False] * 5)
    second = answers([True] * 70 + [False] * 20 + [True] * 5 + [False] * 5)
    found = difference(first, second)
    assert found is not None
    assert (found.images, found.first_correct, found.second_correct) == (100, 90, 75)
    assert (found.gained, found.lost, found.difference) == (20, 5, 0.15)
    # by hand: 15/102 ± 1.96 sqrt(26/102 - (15/102)^2) / sqrt(102)
    assert (found.low, found.high) == pytest.approx((0.0533, 0.2408), abs=1e-4)
    turned = difference(second, first)
    assert turned is not None
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_equals_are_not_told_apart_for_sure() -> None:
    """No image answered differently is no proof: few images leave a wide interval."""
    few = difference(answers([True] * 5), answers([True] * 5))
    many = difference(answers([True] * 500), answers([True] * 500))
    assert few is not None
    assert many is not None
    assert few.low < -0.2
    assert few.high > 0.2
    assert many.high < 0.01


def test_the_interval_keeps_its_promise() -> None:
    """Of drawn pairs with a known difference it holds the truth in about 95 of 100."""
    random = np.random.default_rng(0)
    cells = [0.8, 0.09, 0.04, 0.07]  # both right, first only, second only, neither
    held = 0
    for _ in range(400):
        drawn = random.choice(4, size=150, p=cells)
        found = difference(answers(list(drawn < 2)), answers(list((drawn == 0) | (drawn == 2))))
        assert found is not None
        held += found.low <= 0.05 <= found.high
    assert 370 <= held <= 395


def test_only_what_both_could_know_counts() -> None:
    """Images that one never answered, and classes that one does not know, are left out."""
    found = difference(answers([True] * 4), answers([False] * 4, first=2))
    assert found is not None
    assert found.images == 2
    assert difference(answers([True]), answers([True], first=9)) is None
    assert difference(answers([True]), answers([False], names=("c", "d"), first=0)) is None


@pytest.mark.parametrize(
    ("low", "high", "verdict", "said"),
    [
        (0.01, 0.05, "pays", "the warm lineage pays: on 100 benchmark images champion 5 has 90.0%"),
        (-0.05, -0.01, "hurts", "`regraft adopt 6` puts the control through the gate"),
        (-0.01, 0.02, "open", "neither pays nor hurts for sure"),
    ],
)
def test_the_lineage_is_judged_by_the_interval(
    low: float, high: float, verdict: str, said: str
) -> None:
    """Only an interval without zero says that warm starts pay or hurt."""
    on = Difference(100, 90, 88, 5, 3, 0.02, low, high)
    worth = Worth(5, 6, 1, "from a random start", 4, 20, 60.0, 220, 900.0, 120, 400.0, on, None, {})
    assert worth.verdict == verdict
    assert said in worth.sentence
    other = replace(worth, other_plan={"epochs": (20, 120)})
    assert "plans that differ in epochs" in other.sentence
    fresh = replace(worth, depth=0)
    assert fresh.verdict == "none"
    assert "no warm start yet" in fresh.sentence
