"""Wrong labels are found among answers out of sample, from what is stored of them."""

import numpy as np
import numpy.typing as npt
from cleanlab.filter import find_label_issues

from vision.answers import Answers
from vision.doubts import doubts, whole_rows

CLASSES = 12
NAMES = tuple(f"class {number:02d}" for number in range(CLASSES))


def probabilities(
    count: int, seed: int = 0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Answers of a good classifier and the true classes: every tenth is hard."""
    random = np.random.default_rng(seed)
    true = random.integers(0, CLASSES, count)
    logits = random.normal(0, 1, (count, CLASSES))
    logits[np.arange(count), true] += np.where(random.random(count) < 0.1, 1.0, 6.0)
    shares = np.exp(logits)
    return shares / shares.sum(axis=1, keepdims=True), true


def kept(
    shares: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], top: int = 5
) -> Answers:
    """The answers as they are stored: the best five, and what the label was given."""
    best = np.argsort(-shares, axis=1, kind="stable")[:, :top]
    return Answers(
        images=tuple(f"{row:064d}" for row in range(len(shares))),
        labels=tuple(NAMES[label] for label in labels),
        class_names=NAMES,
        top=best,
        confidences=np.take_along_axis(shares, best, axis=1).astype(np.float32),
        label_confidence=shares[np.arange(len(shares)), labels].astype(np.float32),
    )


def test_planted_wrong_labels_are_found() -> None:
    """Most of them lead the list, each with its true class suggested."""
    shares, true = probabilities(600)
    labels = true.copy()
    labels[:30] = (true[:30] + 1) % CLASSES
    found = doubts(kept(shares, labels))
    wrong = {f"{row:064d}": NAMES[true[row]] for row in range(30)}
    hits = [one for one in found[:30] if wrong.get(one.image) == one.suggested]
    assert len(hits) >= 18
    assert [one.score for one in found] == sorted(one.score for one in found)
    assert all(one.label != one.suggested and one.score < one.confidence for one in found)
    assert len(found) < 60


def test_five_stored_answers_find_what_whole_rows_find() -> None:
    """What was not kept of a row is spread evenly, and changes no doubt."""
    shares, true = probabilities(800, seed=3)
    labels = true.copy()
    labels[:40] = (true[:40] + 5) % CLASSES
    whole = find_label_issues(labels, shares, filter_by="confident_learning", n_jobs=1)
    found = {int(one.image) for one in doubts(kept(shares, labels))}
    assert found == set(np.flatnonzero(whole).tolist())
    rows = whole_rows(kept(shares, labels), labels)
    assert np.allclose(rows.sum(axis=1), 1)
    assert abs(rows - shares).max() < 0.1
    everything = kept(shares, labels, top=CLASSES)
    assert np.allclose(whole_rows(everything, labels), shares, atol=1e-6)


def test_labels_that_the_version_does_not_know_are_passed_over() -> None:
    """A class that is new to it is no doubt; without any image there is none either."""
    shares, true = probabilities(50)
    answers = kept(shares, true)
    strange = Answers(
        answers.images, ("okapi",) * 50, NAMES, answers.top, answers.confidences, np.zeros(50)
    )
    assert doubts(strange) == ()
    assert doubts(answers.select(np.zeros(50, dtype=bool))) == ()


def test_classes_without_an_image_do_no_harm() -> None:
    """A validation split may lack a class that the version knows, a batch all but one."""
    shares, true = probabilities(200)
    labels = np.where(true == 3, 4, true)
    found = doubts(kept(shares, labels))
    assert {one.label for one in found} <= set(NAMES) - {NAMES[3]}
    assert doubts(kept(shares, np.full_like(true, 3))) == ()
