"""What to expect of a shortlist, from what people said of some of it."""

import pytest
from scipy.stats import betabinom

from vision.outlook import PRIOR, Band, outlook


def test_one_band_is_a_beta_binomial() -> None:
    """Expectation, interval and chance are those of the textbook."""
    told = outlook([Band(0.5, waiting=30, judged=8, right=6)], lacks=20)
    right = betabinom(30, 6 + PRIOR, 2 + PRIOR)
    assert told.expected == pytest.approx(right.mean())
    assert (told.expected_low, told.expected_high) == (right.ppf(0.025), right.ppf(0.975))
    assert told.precision == pytest.approx(right.mean() / 30)
    assert told.chance == pytest.approx(right.sf(19))
    assert (told.unjudged, told.verdict) == (0, "open")


def test_bands_are_told_apart() -> None:
    """What is right among the surest says nothing about the rest, of which nobody judged any."""
    sure, unsure = Band(0.8, 10, judged=40, right=40), Band(0.05, 300, judged=40, right=0)
    both = outlook([sure, unsure], lacks=9)
    assert both.expected == pytest.approx(10 * 40.5 / 41 + 300 * 0.5 / 41)
    assert both.verdict == "likely"
    alone = outlook([sure, Band(0.05, 300, judged=0, right=0)], lacks=9)
    assert alone.expected == pytest.approx(10 * 40.5 / 41)
    assert alone.unjudged == 300
    assert alone.precision_high == 1


@pytest.mark.parametrize(
    ("bands", "lacks", "verdict"),
    [
        ([], 0, "yes"),
        ([], 1, "no"),
        ([Band(0.8, 5, 0, 0)], 5, "open"),
        ([Band(0.8, 5, 0, 0)], 6, "no"),
        ([Band(0.8, 5, 4, 4)], 1, "open"),
        ([Band(0.8, 5, 50, 50)], 6, "no"),
        ([Band(0.8, 5, 50, 50)], 4, "likely"),
        ([Band(0.8, 5, 50, 1)], 4, "unlikely"),
        ([Band(0.8, 5, 50, 1), Band(0.5, 9, 0, 0)], 4, "open"),
        ([Band(0.8, 0, 50, 1)], 4, "no"),
        ([Band(0.8, 4000, 50, 1)], -1, "yes"),
    ],
)
def test_the_verdict_says_no_more_than_is_known(
    bands: list[Band], lacks: int, verdict: str
) -> None:
    """Too few candidates are too few; nothing is promised of what hardly anybody has judged."""
    told = outlook(bands, lacks)
    assert told.verdict == verdict
    assert (told.expected is None) == (told.chance is None)
