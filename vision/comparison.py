"""Two versions on the same images: how far apart they are, and how surely.

No torch here: records and pages compare too.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from vision.answers import Answers


@dataclass(frozen=True)
class Difference:
    """Accuracy of the first minus that of the second, on images that both answered.

    images: of classes that both know. gained, lost: only the first, only the second was right.
    difference, low, high: -1 to 1, with a paired 95% interval.
    """

    images: int
    first_correct: int
    second_correct: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float


def difference(first: Answers, second: Answers, confidence: float = 0.95) -> Difference | None:
    """Compare image by image; None where they share no image of a class that both know.

    The interval is Agresti and Min's (2005): Wald's on the counts of images that the two answer
    differently, with half an image added to each of the four cells, which keeps its promise at
    small counts and has a width when no image is answered differently.
    """
    known = set(first.class_names) & set(second.class_names)
    right = dict(zip(second.images, second.correct.tolist(), strict=True))
    pairs = [
        (mine, right[image])
        for image, label, mine in zip(
            first.images, first.labels, first.correct.tolist(), strict=True
        )
        if image in right and label in known
    ]
    if not pairs:
        return None
    gained = sum(mine and not its for mine, its in pairs)
    lost = sum(its and not mine for mine, its in pairs)
    whole = len(pairs) + 2
    middle = (gained - lost) / whole
    spread = math.sqrt((gained + lost + 1) / whole - middle**2) / math.sqrt(whole)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * spread
    return Difference(
        images=len(pairs),
        first_correct=sum(mine for mine, _ in pairs),
        second_correct=sum(its for _, its in pairs),
        gained=gained,
        lost=lost,
        difference=(gained - lost) / len(pairs),
        low=max(-1.0, middle - reach),
        high=min(1.0, middle + reach),
    )
