"""Labels that a version's own answers contradict, found by cleanlab's confident learning.

Only for answers out of sample: a network believes whatever label it was trained with.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vision.answers import Answers


@dataclass(frozen=True)
class Doubt:
    """An image whose label may be wrong.

    score: probability that the answers give to the label, 0 to 1: the smaller, the more doubtful;
    confidence: what they give to the suggested one.
    """

    image: str
    label: str
    suggested: str
    score: float
    confidence: float


def doubts(answers: Answers) -> tuple[Doubt, ...]:
    """List doubtful labels, the most doubtful first; labels unknown to the version are passed over.

    An image is doubtful when it is answered with another class, and a class that is not its own
    has at least the confidence that images labelled with it have in it on average (cleanlab's
    `confident_learning`).
    """
    from cleanlab.filter import find_label_issues  # loads pandas and scikit-learn

    column = {name: place for place, name in enumerate(answers.class_names)}
    known = answers.select(np.array([label in column for label in answers.labels], dtype=bool))
    if len(set(known.labels)) < 2:
        return ()  # nothing can be doubted in favour of a class without an image
    labels = np.array([column[label] for label in known.labels])
    with warnings.catch_warnings():
        # it warns of classes without an image here
        warnings.simplefilter("ignore", UserWarning)
        rows = find_label_issues(
            labels,
            whole_rows(known, labels),
            filter_by="confident_learning",
            return_indices_ranked_by="self_confidence",
            n_jobs=1,  # processes of its own would take longer to start than this to end
        )
    return tuple(_doubt(known, int(row)) for row in rows)


def whole_rows(answers: Answers, labels: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[
    np.float64
]:
    """Probabilities of all classes, [N, classes], from the best k and the label's own.

    What those leave is spread evenly over the classes that were not kept. With five kept, each of
    the others has less than a sixth, where cleanlab would hardly look for another label.
    """
    count, classes = len(answers), len(answers.class_names)
    rows = np.full((count, classes), np.nan)
    rows[np.arange(count), labels] = answers.label_confidence
    np.put_along_axis(rows, answers.top, answers.confidences.astype(np.float64), axis=1)
    absent = np.isnan(rows)
    left = np.clip(1 - np.nansum(rows, axis=1), 0, None) / np.maximum(absent.sum(axis=1), 1)
    rows[absent] = np.broadcast_to(left[:, None], rows.shape)[absent]
    whole: npt.NDArray[np.float64] = rows / rows.sum(axis=1, keepdims=True)
    return whole


def _doubt(answers: Answers, row: int) -> Doubt:
    return Doubt(
        image=answers.images[row],
        label=answers.labels[row],
        suggested=answers.predicted[row],
        score=float(answers.label_confidence[row]),
        confidence=float(answers.confidence[row]),
    )
