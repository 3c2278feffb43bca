"""What answers are worth: figures for one version over one set of images.

A figure that cannot be measured is None, never NaN: NaN passes comparisons in Postgres.
No torch here: records and pages import this.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from vision.answers import Answers

CALIBRATION_BINS = 15
# a float32 softmax underflows to 0; one such image would make the mean loss infinite
LEAST_CONFIDENCE = 1e-7
# two-sided 95%
DEVIATIONS = float(ndtri(0.975))


@dataclass(frozen=True)
class ClassScore:
    """Counts of one class, and what follows from them.

    images: images whose true class this is; predicted: images answered with it; correct: both.
    recall (with its 95% Wilson interval) and f1 are None without images, precision is None when
    the class was never answered.
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


@dataclass(frozen=True)
class Scores:
    """Figures over all images answered; shares are 0..1, None where nothing was measured.

    images: all of them. known: those whose true class the version knows; the others count as
    wrong in accuracy and top-5 accuracy, and are left out of the loss.
    accuracy_low, accuracy_high: 95% Wilson interval.
    top5_accuracy: None when fewer than five answers were kept although there are more classes.
    loss: mean negative log of the probability given to the true class (nats).
    calibration_error: expected calibration error of the best class over 15 bins of equal width.
    classes: one row for each class known, in column order, then unknown true classes by name.
    """

    images: int
    known: int
    correct: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    top5_accuracy: float | None
    loss: float | None
    calibration_error: float | None
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

    precision: share of them that is right, with its 95% Wilson interval; coverage: their share
    of all images; answered: their count; images: the count of all.
    """

    confidence: float
    precision: float
    precision_low: float
    precision_high: float
    coverage: float
    answered: int
    images: int


def interval(correct: int, images: int) -> tuple[float, float] | None:
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


def score(answers: Answers) -> Scores:
    """Score answers overall and class by class."""
    names, true = class_indices(answers)
    images = len(answers)
    right = answers.top[:, 0] == true
    known = true < len(answers.class_names)
    correct = int(right.sum())
    accuracy = interval(correct, images)
    top5_shown = answers.top.shape[1] >= min(5, len(answers.class_names))
    within5 = (answers.top[:, :5] == true[:, None]).any(axis=1)
    given = np.clip(answers.label_confidence[known].astype(np.float64), LEAST_CONFIDENCE, 1)
    return Scores(
        images=images,
        known=int(known.sum()),
        correct=correct,
        accuracy=_share(correct, images),
        accuracy_low=accuracy[0] if accuracy else None,
        accuracy_high=accuracy[1] if accuracy else None,
        top5_accuracy=_share(int(within5.sum()), images) if top5_shown else None,
        # abs instead of a minus sign: -0.0 is no loss that anybody wants to read
        loss=float(np.abs(np.log(given)).mean()) if given.size else None,
        calibration_error=calibration_error(answers),
        classes=_class_scores(names, true, answers.top[:, 0], right),
    )


def calibration_error(answers: Answers) -> float | None:
    """Give the expected calibration error of the best class, 0..1, or None without images.

    15 bins of equal width over (0, 1], each closed on the right: the mean over images of
    |accuracy - mean confidence| of the bin. Few images push it up even when nothing is wrong.
    """
    if len(answers) == 0:
        return None
    confidence = np.clip(answers.confidence.astype(np.float64), 0, 1)
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1)
    surplus = np.bincount(bins.astype(np.int64), weights=answers.correct - confidence)
    return min(1.0, float(np.abs(surplus).sum()) / len(answers))


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


def threshold(answers: Answers, precision: float = 0.95) -> Threshold | None:
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
    """Measure the answers at or above a confidence; None when there are none."""
    # as float64, like a query would compare: 0.9 as float32 is not 0.9
    taken = answers.confidence.astype(np.float64) >= confidence
    answered, right = int(taken.sum()), int(answers.correct[taken].sum())
    bounds = interval(right, answered)
    if bounds is None:
        return None
    return Threshold(
        confidence=confidence,
        precision=right / answered,
        precision_low=bounds[0],
        precision_high=bounds[1],
        coverage=answered / len(answers),
        answered=answered,
        images=len(answers),
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
        bounds = interval(correct, images)
        rows.append(
            ClassScore(
                name=name,
                images=images,
                correct=correct,
                predicted=answered,
                precision=_share(correct, answered),
                recall=_share(correct, images),
                f1=2 * correct / (images + answered) if images else None,
                recall_low=bounds[0] if bounds else None,
                recall_high=bounds[1] if bounds else None,
            )
        )
    return tuple(rows)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
