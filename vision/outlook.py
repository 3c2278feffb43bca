"""What a shortlist may still bring: from what people said of some candidates to the rest.

Not from validation: a pool has another mix of classes, and most of it is none that is known.
No torch here: the command line imports this.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, gammaln

# Scores from which a picture is a candidate of its class, and where bands of candidates begin:
# people confirm the surest first, and what holds of those does not hold of the rest.
BANDS = (0.05, 0.2, 0.5, 0.8)
# Jeffreys' prior of a share that nothing is known of
PRIOR = 0.5
# Fewer judged ones of a band tell nothing: in a band of low scores they are often chance finds of
# somebody who looked at another class.
ENOUGH = 5
LIKELY = 0.9


@dataclass(frozen=True)
class Band:
    """Candidates of one class whose scores are alike.

    low: the score from which they are in it; waiting: nobody has judged them; judged: people have;
    right: those of them that are of the class.
    """

    low: float
    waiting: int
    judged: int
    right: int


@dataclass(frozen=True)
class Outlook:
    """What to expect of the candidates of one class that wait in bands where enough were judged.

    expected: how many of them are right, with a 95% interval; precision: their share, with its
    own; all None where there is no such band. unjudged: candidates that wait in the other bands, of
    which nothing is known. verdict: `yes`, `likely`, `open`, `unlikely` or
    `no`, whether the class gets what it lacks; chance: of that, from the judged bands alone.
    """

    expected: float | None
    expected_low: int | None
    expected_high: int | None
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    unjudged: int
    chance: float | None
    verdict: str


def outlook(bands: Sequence[Band], lacks: int) -> Outlook:
    """Carry over what people confirmed, band by band, to the candidates that wait.

    How many of a band are right follows a beta-binomial distribution: the share is only known as
    well as the judged ones tell, and the rest is drawn from it.
    """
    waiting = sum(one.waiting for one in bands)
    known = [one for one in bands if one.judged >= ENOUGH and one.waiting]
    told = sum(one.waiting for one in known)
    unjudged = waiting - told
    if not known:
        verdict = "yes" if lacks <= 0 else "no" if waiting < lacks else "open"
        return Outlook(None, None, None, None, None, None, unjudged, None, verdict)
    shares = np.ones(1)
    for one in known:
        shares = np.convolve(shares, _right_of(one))
    up_to = np.cumsum(shares)
    low, high = (int(np.searchsorted(up_to, one)) for one in (0.025, 0.975))
    expected = float(shares @ np.arange(len(shares)))
    chance = float(min(1.0, shares[max(lacks, 0):].sum()))
    return Outlook(
        expected=expected,
        expected_low=low,
        expected_high=min(high, told),
        precision=expected / told,
        precision_low=low / told,
        precision_high=min(high, told) / told,
        unjudged=unjudged,
        chance=chance,
        verdict=_verdict(lacks, waiting, unjudged, chance),
    )


def _right_of(band: Band) -> npt.NDArray[np.float64]:
    """The chance that 0, 1, … of those waiting in a band are right."""
    right = band.right + PRIOR
    wrong = band.judged - band.right + PRIOR
    count = np.arange(band.waiting + 1)
    ways = gammaln(band.waiting + 1) - gammaln(count + 1) - gammaln(band.waiting - count + 1)
    chances = np.exp(
        ways + betaln(count + right, band.waiting - count + wrong) - betaln(right, wrong)
    )
    return np.asarray(chances / chances.sum())


def _verdict(lacks: int, waiting: int, unjudged: int, chance: float) -> str:
    if lacks <= 0:
        return "yes"
    if waiting < lacks:
        return "no"
    if chance >= LIKELY:
        return "likely"
    # those of which nothing is known may still do it
    return "unlikely" if chance <= 1 - LIKELY and unjudged == 0 else "open"
