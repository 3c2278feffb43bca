"""What answers are worth: figures for one version over one set of images.

A figure that cannot be measured is None, never NaN: NaN passes comparisons in Postgres.
No torch here: records and pages import this.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, ndtri, xlog1py, xlogy

from vision.answers import Answers

CALIBRATION_BINS = 15
# the precision wished of a threshold where nobody wishes another
PRECISION = 0.95
# a float32 softmax underflows to 0; one such image would make the mean loss infinite
LEAST_CONFIDENCE = 1e-7
# two-sided 95%
DEVIATIONS = float(ndtri(0.975))


@dataclass(frozen=True)
class ClassScore:
    """Counts of one class, and what follows from them.

    images: images whose true class this is; predicted: images answered with it; correct: both.
    recall and f1 are None without images, precision is None when the class was never answered.
    _low, _high: 95% intervals; Wilson's for shares, and for F1 Wilson's carried over from
    correct / (images + predicted - correct), of which F1 is a function (`f1_interval`).
    """

    name: str
    images: int
    correct: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None
    recall_low: float | None
    recall_high: float | None
    precision_low: float | None
    precision_high: float | None
    f1_low: float | None
    f1_high: float | None


@dataclass(frozen=True)
class Bin:
    """The answers whose best class was given a confidence above `low`, at most `high`.

    confidence: their mean confidence; accuracy: the share of them that is right, with its 95%
    Wilson interval. As sure as it is right: confidence lies within the interval.
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclass(frozen=True)
class Scores:
    """Figures over all images answered; shares are 0..1, None where nothing was measured.

    images: all of them. known: those whose true class the version knows; the others count as
    wrong in accuracy and top-5 accuracy, and are left out of the loss.
    accuracy_low, accuracy_high: 95% Wilson interval, as for top5_accuracy.
    top5_accuracy: None when fewer than five answers were kept although there are more classes.
    mean_recall, mean_f1: over the classes that have images, each counting the same.
    loss: mean negative log of the probability given to the true class (nats).
    calibration_error: expected calibration error of the best class over 15 bins of equal width.
    calibration_by_chance: the error to expect of a version that is exactly as right as it is
        sure, on so many images; only what exceeds it says anything about this one.
    bins: the reliability curve, without bins that hold no answer.
    classes: one row for each class known, in column order, then unknown true classes by name.
    """

    images: int
    known: int
    correct: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    top5_accuracy: float | None
    top5_low: float | None
    top5_high: float | None
    mean_recall: float | None
    mean_f1: float | None
    loss: float | None
    calibration_error: float | None
    calibration_by_chance: float | None
    bins: tuple[Bin, ...]
    classes: tuple[ClassScore, ...]


@dataclass(frozen=True)
class Confusion:
    """How often images of the class `label` were answered with `predicted`.

    share: of all images of `label`, 0..1.
    """

    label: str
    predicted: str
    images: int
    share: float


@dataclass(frozen=True)
class Threshold:
    """What the answers at or above a confidence are worth.

    precision: share of them that is right, with its 95% Wilson interval, all None where not one
    answer is so sure; coverage: their share of all images; answered: their count; images: the
    count of all.
    """

    confidence: float
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    coverage: float
    answered: int
    images: int


@dataclass(frozen=True)
class ClassTransfer:
    """One class on images that an older and a newer version both answered.

    before, now: how many of the images the older and the newer version have right; lost: right
    before and wrong now; gained: the other way round.
    """

    name: str
    images: int
    before: int
    now: int
    lost: int
    gained: int

    @property
    def change(self) -> float:
        """Recall now minus recall before, -1..1."""
        return (self.now - self.before) / self.images


@dataclass(frozen=True)
class Transfer:
    """What a newer version has lost and gained on images of classes that both know.

    change: accuracy now minus before over all images, -1..1, with a 95% interval for pairs
    (adjusted Wald of Bonett and Price).
    backward_transfer: mean over classes of the change in recall, below 0 where it forgets.
    forgetting: mean over classes of what each has lost, 0..1, gains of others not set against it.
    """

    images: int
    before: int
    now: int
    lost: int
    gained: int
    change: float
    change_low: float
    change_high: float
    backward_transfer: float
    forgetting: float
    classes: tuple[ClassTransfer, ...]


@dataclass(frozen=True)
class Estimate:
    """A share estimated from a sample in which every unit had a known chance to be.

    sampled: units of the sample; effective: how many drawn with equal chances would tell as much;
    share with its 95% interval, 0..1.
    """

    sampled: int
    effective: float
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One share minus another of other units, -1..1, with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def proven(self) -> bool:
        """Whether the interval leaves no difference out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Sums:
    """What an estimate needs of a sample of units with y in 0..1 and a weight w (1 / its chance).

    sampled: their number; w, wy, ww, wwy, wwyy: the sums of w, w y, w^2, w^2 y and w^2 y^2, as SQL
    adds them up.
    """

    sampled: int
    w: float
    wy: float
    ww: float
    wwy: float
    wwyy: float

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


def sums(right: Sequence[float], chances: Sequence[float]) -> Sums:
    """Add up units: how right each is, 0..1, and the chance with which it came in, above 0."""
    y, w = np.asarray(right, np.float64), 1 / np.asarray(chances, np.float64)
    return Sums(
        len(y), float(w.sum()), float(w @ y), float(w @ w), float(w @ (w * y)),
        float((w * y) @ (w * y)),
    )  # fmt: skip


def estimate(of: Sums) -> Estimate | None:
    """Give Hajek's ratio, sum(w y) / sum(w), with a 95% interval, or None without units.

    The interval is Wilson's for as many units of equal weight as have the ratio's own linearised
    variance, at most those sampled (Korn and Graubard 1998); where all are alike, which shows no
    variance, for Kish's number, which unequal weights leave. With equal chances it is `interval`.
    Units count as drawn one by one from very many.
    """
    if of.sampled == 0:
        return None
    share = min(1.0, max(0.0, of.wy / of.w))
    # sum of w^2 (y - share)^2; rounding may leave it a little off 0
    apart = of.wwyy - 2 * share * of.wwy + share**2 * of.ww
    effective = of.w**2 / of.ww
    if apart > 1e-9 * of.ww:
        effective = min(share * (1 - share) * of.w**2 / apart, of.sampled)
    low, high = interval(share * effective, effective) or (0.0, 1.0)
    return Estimate(of.sampled, effective, share, low, high)


def difference(one: Estimate, other: Estimate) -> Difference:
    """Give `one` minus `other`, of units apart, with Newcombe's interval from both their own."""
    value = one.share - other.share
    below = ((one.share - one.low) ** 2 + (other.high - other.share) ** 2) ** 0.5
    above = ((one.high - one.share) ** 2 + (other.share - other.low) ** 2) ** 0.5
    return Difference(value, max(-1.0, value - below), min(1.0, value + above))


def interval(correct: float, images: float) -> tuple[float, float] | None:
    """Give the two-sided 95% Wilson interval of a share, or None without images."""
    if images == 0:
        return None
    share = correct / images
    squared = DEVIATIONS**2 / images
    middle = (share + squared / 2) / (1 + squared)
    spread = share * (1 - share) / images + squared / (4 * images)
    half = DEVIATIONS * spread**0.5 / (1 + squared)
    # rounding may miss the ends by an ulp, and a share outside 0..1 is refused by the tables
    low = 0.0 if correct == 0 else max(0.0, middle - half)
    high = 1.0 if correct == images else min(1.0, middle + half)
    return low, high


def f1_interval(correct: int, images: int, predicted: int) -> tuple[float, float] | None:
    """Give a two-sided 95% interval of F1, or None where the class neither occurs nor is answered.

    F1 is 2s / (1 + s) of the share s = correct / (images + predicted - correct), which rises with
    s: so the ends of s's Wilson interval are carried over (Wilson indirect, arXiv 2309.14621).
    """
    bounds = interval(correct, images + predicted - correct)
    return None if bounds is None else (_f1_of(bounds[0]), _f1_of(bounds[1]))


def _f1_of(share: float) -> float:
    return 2 * share / (1 + share)


def score(answers: Answers) -> Scores:
    """Score answers overall and class by class."""
    names, true = class_indices(answers)
    images = len(answers)
    right = answers.top[:, 0] == true
    known = true < len(answers.class_names)
    correct = int(right.sum())
    accuracy = interval(correct, images)
    top5_shown = answers.top.shape[1] >= min(5, len(answers.class_names))
    within5 = int((answers.top[:, :5] == true[:, None]).any(axis=1).sum())
    top5 = interval(within5, images) if top5_shown else None
    bins = reliability(answers)
    classes = _class_scores(names, true, answers.top[:, 0], right)
    given = np.clip(answers.label_confidence[known].astype(np.float64), LEAST_CONFIDENCE, 1)
    return Scores(
        images=images,
        known=int(known.sum()),
        correct=correct,
        accuracy=_share(correct, images),
        accuracy_low=accuracy[0] if accuracy else None,
        accuracy_high=accuracy[1] if accuracy else None,
        top5_accuracy=_share(within5, images) if top5_shown else None,
        top5_low=top5[0] if top5 else None,
        top5_high=top5[1] if top5 else None,
        mean_recall=_mean([one.recall for one in classes if one.recall is not None]),
        mean_f1=_mean([one.f1 for one in classes if one.f1 is not None]),
        # abs instead of a minus sign: -0.0 is no loss that anybody wants to read
        loss=float(np.abs(np.log(given)).mean()) if given.size else None,
        calibration_error=_error_of(bins),
        calibration_by_chance=_error_by_chance(bins),
        bins=bins,
        classes=classes,
    )


def calibration_error(answers: Answers) -> float | None:
    """Give the expected calibration error of the best class, 0..1, or None without images.

    The mean over images of |accuracy - mean confidence| of their bin of `reliability`. Few images
    push it up even when nothing is wrong.
    """
    return _error_of(reliability(answers))


def calibration_by_chance(answers: Answers) -> float | None:
    """Give the error to expect of a version that is exactly as right as these are sure, 0..1."""
    return _error_by_chance(reliability(answers))


def reliability(answers: Answers) -> tuple[Bin, ...]:
    """Compare how sure the answers are with how right they are.

    15 bins of equal width over (0, 1], each closed on the right; those without answers are left
    out.
    """
    confidence = np.clip(answers.confidence.astype(np.float64), 0, 1)
    place = np.clip(np.ceil(confidence * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1)
    bins = place.astype(np.int64)
    found = []
    for index, images, right, sure in zip(
        range(CALIBRATION_BINS),
        np.bincount(bins, minlength=CALIBRATION_BINS).tolist(),
        np.bincount(bins[answers.correct], minlength=CALIBRATION_BINS).tolist(),
        np.bincount(bins, weights=confidence, minlength=CALIBRATION_BINS).tolist(),
        strict=True,
    ):
        bounds = interval(right, images)
        if bounds is not None:
            edges = index / CALIBRATION_BINS, (index + 1) / CALIBRATION_BINS
            # a sum of ones may exceed their number by rounding
            found.append(Bin(*edges, images, min(1.0, sure / images), right / images, *bounds))
    return tuple(found)


def _error_of(bins: tuple[Bin, ...]) -> float | None:
    images = sum(one.images for one in bins)
    apart = sum(one.images * abs(one.accuracy - one.confidence) for one in bins)
    return min(1.0, apart / images) if images else None


def _error_by_chance(bins: tuple[Bin, ...]) -> float | None:
    """The mean absolute deviation of a binomial count in each bin, by De Moivre's closed form."""
    images = np.array([one.images for one in bins], np.float64)
    sure = np.array([one.confidence for one in bins], np.float64)
    if not images.sum():
        return None
    above = np.minimum(np.floor(images * sure) + 1, images)
    exact = gammaln(images + 1) - gammaln(above + 1) - gammaln(images - above + 1)
    mass = np.exp(exact + xlogy(above, sure) + xlog1py(images - above, -sure))
    return float((2 * above * (1 - sure) * mass).sum() / images.sum())


def confusions(answers: Answers, most: int = 20) -> tuple[Confusion, ...]:
    """List the pairs of true and answered class confused most often, the most frequent first."""
    names, true = class_indices(answers)
    predicted = answers.top[:, 0]
    wrong = predicted != true
    totals = np.bincount(true, minlength=len(names))
    pairs, counts = np.unique(true[wrong] * len(names) + predicted[wrong], return_counts=True)
    found = [
        Confusion(
            label=names[pair // len(names)],
            predicted=names[pair % len(names)],
            images=count,
            share=count / int(totals[pair // len(names)]),
        )
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)
    ]
    # names decide ties, so that the order does not hang on the order of the columns
    return tuple(sorted(found, key=lambda one: (-one.images, one.label, one.predicted))[:most])


def threshold(answers: Answers, precision: float = PRECISION) -> Threshold | None:
    """Find the smallest confidence whose answers at or above it reach the wished precision.

    Fitted on the answers it is measured on, hence a little hopeful: verify it on others with
    `at_or_above`. None when no confidence reaches it. Raises ValueError unless 0 < precision <= 1.
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision={precision}: use a share above 0, at most 1")
    order = np.argsort(-answers.confidence, kind="stable")
    confidence = answers.confidence[order]
    answered = np.arange(1, len(answers) + 1)
    right = np.cumsum(answers.correct[order])
    # equal confidences are answered together or not at all
    last_of_equals = np.append(confidence[1:] != confidence[:-1], True)[: len(answers)]
    reached = np.flatnonzero(last_of_equals & (right / answered >= precision))
    if reached.size == 0:
        return None
    return at_or_above(answers, float(confidence[reached[-1]]))


def at_or_above(answers: Answers, confidence: float) -> Threshold | None:
    """Measure the answers at or above a confidence; None without images."""
    if len(answers) == 0:
        return None
    # as float64, like a query would compare: 0.9 as float32 is not 0.9
    taken = answers.confidence.astype(np.float64) >= confidence
    answered, right = int(taken.sum()), int(answers.correct[taken].sum())
    bounds = interval(right, answered)
    return Threshold(
        confidence=confidence,
        precision=_share(right, answered),
        precision_low=bounds[0] if bounds else None,
        precision_high=bounds[1] if bounds else None,
        coverage=answered / len(answers),
        answered=answered,
        images=len(answers),
    )


def transfer(classes: Iterable[ClassTransfer]) -> Transfer | None:
    """Sum up what a newer version has lost and gained, or None where there is no common image.

    `classes` are those both versions know that have images both answered, each with at least one.
    The order becomes: the largest loss first.
    """
    rows = sorted(classes, key=lambda one: (one.change, one.name))
    if not rows:
        return None
    images = sum(one.images for one in rows)
    lost, gained = sum(one.lost for one in rows), sum(one.gained for one in rows)
    more, fewer = (gained + 1) / (images + 2), (lost + 1) / (images + 2)
    half = DEVIATIONS * ((more + fewer - (more - fewer) ** 2) / (images + 2)) ** 0.5
    return Transfer(
        images=images,
        before=sum(one.before for one in rows),
        now=sum(one.now for one in rows),
        lost=lost,
        gained=gained,
        change=(gained - lost) / images,
        change_low=max(-1.0, more - fewer - half),
        change_high=min(1.0, more - fewer + half),
        backward_transfer=sum(one.change for one in rows) / len(rows),
        forgetting=sum(max(0.0, -one.change) for one in rows) / len(rows),
        classes=tuple(rows),
    )


def class_indices(answers: Answers) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Give all class names, the unknown ones last and sorted, and each image's true index [N]."""
    unknown = sorted(set(answers.labels) - set(answers.class_names))
    names = (*answers.class_names, *unknown)
    place = {name: index for index, name in enumerate(names)}
    true = np.fromiter((place[label] for label in answers.labels), np.int64, len(answers))
    return names, true


def _class_scores(
    names: tuple[str, ...],
    true: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    right: npt.NDArray[np.bool_],
) -> tuple[ClassScore, ...]:
    rows = []
    for name, images, correct, answered in zip(
        names,
        np.bincount(true, minlength=len(names)).tolist(),
        np.bincount(true[right], minlength=len(names)).tolist(),
        np.bincount(predicted, minlength=len(names)).tolist(),
        strict=True,
    ):
        recall, precision = interval(correct, images), interval(correct, answered)
        f1 = f1_interval(correct, images, answered) if images else None
        rows.append(
            ClassScore(
                name=name,
                images=images,
                correct=correct,
                predicted=answered,
                precision=_share(correct, answered),
                recall=_share(correct, images),
                f1=2 * correct / (images + answered) if images else None,
                recall_low=recall[0] if recall else None,
                recall_high=recall[1] if recall else None,
                precision_low=precision[0] if precision else None,
                precision_high=precision[1] if precision else None,
                f1_low=f1[0] if f1 else None,
                f1_high=f1[1] if f1 else None,
            )
        )
    return tuple(rows)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(shares: list[float]) -> float | None:
    return sum(shares) / len(shares) if shares else None
