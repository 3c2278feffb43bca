"""Figures are right on counts done by hand, and never NaN."""

import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    confusion_matrix,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)

from vision.answers import Answers
from vision.scores import (
    ClassTransfer,
    Scores,
    at_or_above,
    calibration_error,
    confusions,
    difference,
    estimate,
    f1_interval,
    interval,
    reliability,
    score,
    sums,
    threshold,
    transfer,
)


def answers_of(
    labels: list[str], probabilities: list[list[float]], names: tuple[str, ...], keep: int
) -> Answers:
    """Keep the best answers of full rows of probabilities."""
    rows = np.array(probabilities, np.float32).reshape(len(labels), len(names))
    top = np.argsort(-rows, axis=1, kind="stable")[:, :keep]
    given = [
        rows[index, names.index(label)] if label in names else 0.0
        for index, label in enumerate(labels)
    ]
    return Answers(
        images=tuple(f"{index:064x}" for index in range(len(labels))),
        labels=tuple(labels),
        class_names=names,
        top=top,
        confidences=np.take_along_axis(rows, top, axis=1),
        label_confidence=np.array(given, np.float32),
    )


def sure(labels: list[str], predicted: list[str], confidence: list[float]) -> Answers:
    """Answer with one class and leave the rest to a class that never occurs."""
    names = (*sorted(set(labels) | set(predicted)), "~rest")
    rows = []
    for name, share in zip(predicted, confidence, strict=True):
        row = [0.0] * len(names)
        row[names.index(name)] = share
        row[-1] = 1 - share
        rows.append(row)
    return answers_of(labels, rows, names, 2)


def random_answers(random: np.random.Generator, unknown: bool = False) -> Answers:
    """Draw answers of any size, at times of none or all wrong."""
    classes = int(random.integers(1, 12))
    names = tuple(f"class {index}" for index in range(classes))
    images = int(random.integers(0, 60))
    labels = [names[index] for index in random.integers(0, classes, images)]
    if unknown:
        labels = [label if random.random() < 0.7 else "stranger" for label in labels]
    rows = random.dirichlet(np.full(classes, 0.3), images)
    return answers_of(labels, rows.tolist(), names, int(random.integers(1, classes + 1)))


def test_counts_done_by_hand() -> None:
    """Accuracy, precision, recall and F1 are what a person counts."""
    scores = score(
        sure(list("aaabbc"), list("aabbca"), [0.9, 0.8, 0.7, 0.9, 0.6, 0.95])
    )
    rows = {row.name: row for row in scores.classes}
    assert (scores.images, scores.known, scores.correct, scores.accuracy) == (6, 6, 3, 0.5)
    assert (rows["a"].images, rows["a"].correct, rows["a"].predicted) == (3, 2, 3)
    assert rows["a"].precision == rows["a"].recall == rows["a"].f1 == 2 / 3
    assert (rows["c"].precision, rows["c"].recall, rows["c"].f1) == (0.0, 0.0, 0.0)
    assert rows["~rest"].recall is None
    assert rows["~rest"].precision is None
    assert rows["~rest"].f1 is None


def test_agrees_with_scikit_learn() -> None:
    """Precision, recall, F1 and loss equal scikit-learn's on random answers."""
    random = np.random.default_rng(1)
    names = tuple(f"class {index}" for index in range(6))
    labels = [names[index] for index in random.integers(0, 6, 400)]
    rows = random.dirichlet(np.ones(6), 400).astype(np.float32).astype(np.float64)
    answers = answers_of(labels, rows.tolist(), names, 6)
    scores = score(answers)
    predicted = list(answers.predicted)
    for figure, peer in (
        ("precision", precision_score), ("recall", recall_score), ("f1", f1_score)
    ):
        expected = peer(labels, predicted, labels=names, average=None)
        assert [getattr(row, figure) for row in scores.classes] == pytest.approx(expected)
    assert scores.mean_recall == pytest.approx(
        recall_score(labels, predicted, labels=names, average="macro")
    )
    assert scores.mean_f1 == pytest.approx(
        f1_score(labels, predicted, labels=names, average="macro")
    )
    assert scores.top5_accuracy == pytest.approx(
        top_k_accuracy_score(labels, rows, k=5, labels=names)
    )
    counted = np.zeros((6, 6), int)
    for one in confusions(answers, most=36):
        counted[names.index(one.label), names.index(one.predicted)] = one.images
    wrong = confusion_matrix(labels, predicted, labels=names)
    np.fill_diagonal(wrong, 0)
    assert (counted == wrong).all()
    rows /= rows.sum(axis=1, keepdims=True)
    assert scores.loss == pytest.approx(log_loss(labels, rows, labels=names), rel=1e-5)


def test_no_figure_is_ever_nan() -> None:
    """Whatever the answers, each figure is a finite number or None, and fits into JSON."""
    random = np.random.default_rng(2)
    for draw in range(200):
        answers = random_answers(random, unknown=draw % 2 == 1)
        scores = score(answers)
        json.dumps(dataclasses.asdict(scores), allow_nan=False)
        for value in shares(scores):
            assert value is None or 0 <= value <= 1
        for row in scores.classes:
            assert (row.recall is None) == (row.images == 0)
            if row.f1 is not None:
                assert row.f1_low is not None
                assert row.f1_high is not None
                assert row.f1_low - 1e-12 <= row.f1 <= row.f1_high + 1e-12


def shares(scores: Scores) -> list[float | None]:
    """Collect what a table would check to lie between 0 and 1."""
    found = [scores.accuracy, scores.accuracy_low, scores.accuracy_high, scores.top5_accuracy,
             scores.top5_low, scores.top5_high, scores.mean_recall, scores.mean_f1,
             scores.calibration_error, scores.calibration_by_chance]
    for row in scores.classes:
        found += [row.precision, row.recall, row.f1, row.recall_low, row.recall_high,
                  row.precision_low, row.precision_high, row.f1_low, row.f1_high]
    for one in scores.bins:
        found += [one.low, one.high, one.confidence, one.accuracy, one.accuracy_low,
                  one.accuracy_high]
    return found


def test_no_images_give_no_figures() -> None:
    """Without images nothing is measured, and nothing raises."""
    empty = answers_of([], [], ("a", "b"), 2)
    scores = score(empty)
    assert scores.images == 0
    assert scores.accuracy is None
    assert scores.loss is None
    assert scores.calibration_error is None
    assert threshold(empty) is None
    assert confusions(empty) == ()


def test_unknown_classes_count_as_wrong_but_not_in_the_loss() -> None:
    """An image of a class that the version does not know is wrong, with no loss of its own."""
    answers = answers_of(["a", "new"], [[0.8, 0.2], [0.8, 0.2]], ("a", "b"), 2)
    scores = score(answers)
    assert (scores.known, scores.accuracy) == (1, 0.5)
    assert scores.loss == pytest.approx(-math.log(0.8), rel=1e-5)
    assert scores.classes[-1].name == "new"
    assert scores.classes[-1].recall == 0
    assert confusions(answers)[0].label == "new"


def test_a_probability_of_zero_costs_a_finite_loss() -> None:
    """The true class given no probability at all costs much, not infinitely much."""
    scores = score(answers_of(["b"], [[1.0, 0.0]], ("a", "b"), 1))
    assert scores.loss == pytest.approx(-math.log(1e-7))


def test_top5_needs_five_answers() -> None:
    """Top-5 accuracy is None when fewer were kept although there are more classes."""
    names = tuple("abcdefg")
    row = [0.3, 0.2, 0.15, 0.13, 0.1, 0.07, 0.05]
    assert score(answers_of(["e", "f"], [row, row], names, 7)).top5_accuracy == 0.5
    assert score(answers_of(["e", "f"], [row, row], names, 5)).top5_accuracy == 0.5
    assert score(answers_of(["e", "f"], [row, row], names, 4)).top5_accuracy is None
    assert score(answers_of(["b"], [[0.6, 0.4]], ("a", "b"), 2)).top5_accuracy == 1


def test_wilson_interval_by_the_book() -> None:
    """The interval equals published values and stays within 0 and 1."""
    assert interval(0, 0) is None
    assert interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    for images in (1, 3, 49, 10**6):
        for correct in (0, 1, images):
            low, high = interval(correct, images) or (-1.0, -1.0)
            assert 0 <= low <= correct / images <= high <= 1


def test_calibration_error_of_known_answers() -> None:
    """A version 90% sure and half right is off by 40 points; one as right as it is sure by none."""
    half = sure(["a", "b"] * 10, ["a", "a"] * 10, [0.9] * 20)
    assert calibration_error(half) == pytest.approx(0.4, abs=1e-6)
    honest = sure(["a"] * 10, ["a"] * 9 + ["b"], [0.9] * 10)
    assert calibration_error(honest) == pytest.approx(0, abs=1e-6)
    # two bins that would cancel out if they were one
    both = sure(["a", "b"], ["a", "a"], [0.6, 0.95])
    assert calibration_error(both) == pytest.approx((0.4 + 0.95) / 2, abs=1e-6)


def test_confusions_are_ordered_and_cut() -> None:
    """The most frequent pair comes first, ties go by name, and no more than asked for."""
    answers = sure(list("aaabbcc"), list("bbcaacb"), [0.9] * 7)
    found = [(one.label, one.predicted, one.images) for one in confusions(answers)]
    assert found == [("a", "b", 2), ("b", "a", 2), ("a", "c", 1), ("c", "b", 1)]
    assert confusions(answers)[0].share == pytest.approx(2 / 3)
    assert len(confusions(answers, most=1)) == 1


def test_threshold_is_the_smallest_that_reaches_the_precision() -> None:
    """Against every possible threshold tried one by one, ties included."""
    random = np.random.default_rng(3)
    for _ in range(100):
        images = int(random.integers(1, 40))
        confidence = random.choice([0.6, 0.7, 0.8, 0.9, 0.95], images).tolist()
        predicted = ["a" if random.random() < share else "b" for share in confidence]
        answers = sure(["a"] * images, predicted, confidence)
        best = None
        for candidate in sorted(set(answers.confidence.tolist()), reverse=True):
            taken = answers.confidence >= candidate
            if answers.correct[taken].mean() >= 0.8:
                best = candidate
        found = threshold(answers, 0.8)
        assert (found.confidence if found else None) == best
        if found:
            assert found.precision >= 0.8
            assert found.precision_low <= found.precision <= found.precision_high
            assert found.coverage == found.answered / images


def test_threshold_is_none_when_nothing_reaches_it() -> None:
    """A version wrong where it is surest, and everywhere else, has no threshold."""
    assert threshold(sure(["a", "a"], ["b", "b"], [0.9, 0.8])) is None
    nobody = at_or_above(sure(["a"], ["a"], [0.9]), 0.99)
    assert nobody is not None
    # said as absent: no precision of 0, and none of 1
    assert (nobody.answered, nobody.coverage, nobody.precision) == (0, 0.0, None)
    with pytest.raises(ValueError, match="precision=nan"):
        threshold(sure(["a"], ["a"], [0.9]), math.nan)


def test_f1_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 2,000 draws from known rates nearly 95% of the intervals hold the true F1."""
    random = np.random.default_rng(4)
    # a class of 30% of the images, found at 80%; other images are answered with it at 10%
    share, found, wrongly = 0.3, 0.8, 0.1
    precision = share * found / (share * found + (1 - share) * wrongly)
    true = 2 * precision * found / (precision + found)
    held = 0
    for _ in range(2000):
        images = random.binomial(200, share)
        correct = random.binomial(images, found)
        low, high = f1_interval(correct, images, correct + random.binomial(200 - images, wrongly))
        held += low <= true <= high
    assert 0.93 <= held / 2000 <= 0.97
    assert f1_interval(0, 0, 0) is None
    assert f1_interval(5, 5, 5)[1] == 1
    assert f1_interval(0, 5, 5)[0] == 0


def test_reliability_agrees_with_scikit_learn() -> None:
    """The curve is scikit-learn's, and its intervals and counts are those of its bins."""
    random = np.random.default_rng(5)
    names = tuple(f"class {index}" for index in range(4))
    labels = [names[index] for index in random.integers(0, 4, 300)]
    answers = answers_of(labels, random.dirichlet(np.full(4, 0.4), 300).tolist(), names, 4)
    bins = reliability(answers)
    right, sure_of = calibration_curve(answers.correct, answers.confidence, n_bins=15)
    assert [one.accuracy for one in bins] == pytest.approx(right)
    assert [one.confidence for one in bins] == pytest.approx(sure_of, abs=1e-6)
    assert sum(one.images for one in bins) == 300
    for one in bins:
        assert one.low < one.confidence <= one.high
        assert interval(round(one.accuracy * one.images), one.images) == (
            one.accuracy_low, one.accuracy_high,
        )  # fmt: skip


def test_calibration_by_chance_is_what_honest_answers_show() -> None:
    """A version as right as it is sure shows on average the error that is put down to chance."""
    random = np.random.default_rng(6)
    confidence = random.uniform(0.5, 1, 120).tolist()
    errors, expected = [], []
    for _ in range(400):
        predicted = ["a" if random.random() < share else "b" for share in confidence]
        scores = score(sure(["a"] * 120, predicted, confidence))
        errors.append(scores.calibration_error)
        expected.append(scores.calibration_by_chance)
    assert np.mean(errors) == pytest.approx(np.mean(expected), rel=0.05)
    assert score(sure(["a"] * 5, ["a"] * 5, [1.0] * 5)).calibration_by_chance == 0


def test_transfer_done_by_hand() -> None:
    """Losses and gains are counted by class; gains of one class hide no losses of another."""
    lost = ClassTransfer("old", images=10, before=9, now=6, lost=4, gained=1)
    won = ClassTransfer("other", images=30, before=15, now=24, lost=0, gained=9)
    found = transfer([won, lost])
    assert found is not None
    assert [one.name for one in found.classes] == ["old", "other"]
    assert (found.images, found.before, found.now, found.lost, found.gained) == (40, 24, 30, 4, 10)
    assert found.change == pytest.approx(6 / 40)
    assert found.backward_transfer == pytest.approx((-0.3 + 0.3) / 2)
    assert found.forgetting == pytest.approx(0.3 / 2)
    # by Bonett and Price: the mean of pairs is (11 - 5) / 42
    assert (found.change_low + found.change_high) / 2 == pytest.approx(6 / 42)
    assert found.change_low < 0 < found.change < found.change_high
    assert transfer([]) is None


def test_an_estimate_of_unequal_chances_holds_the_truth() -> None:
    """Doubtful answers are drawn twenty times as often: the plain mean is far off, Hajek's is not,
    and its interval holds the truth as often as it says.
    """
    random = np.random.default_rng(8)
    chances = np.where(np.arange(20_000) < 2000, 0.2, 0.01)
    right = (random.random(20_000) < np.where(chances > 0.1, 0.5, 0.95)).astype(float)
    held, found, plain = 0, [], []
    for _ in range(1000):
        drawn = random.random(20_000) < chances
        made = estimate(sums(right[drawn], chances[drawn]))
        assert made is not None
        held += made.low <= right.mean() <= made.high
        found.append(made.share)
        plain.append(right[drawn].mean())
    assert 0.93 <= held / 1000 <= 0.98
    assert np.mean(found) == pytest.approx(right.mean(), abs=0.003)
    assert right.mean() - np.mean(plain) > 0.2


def test_an_estimate_of_equal_chances_is_wilsons() -> None:
    """Whatever the chance; parts of a sample add up to the whole, and none is no estimate."""
    made = estimate(sums([1] * 18 + [0] * 2, [0.02] * 20))
    assert made is not None
    assert (made.share, made.effective) == pytest.approx((0.9, 20))
    assert (made.low, made.high) == pytest.approx(interval(18, 20))
    assert sums([1, 0.5], [0.1, 0.2]) + sums([0], [0.5]) == sums([1, 0.5, 0], [0.1, 0.2, 0.5])
    assert estimate(sums([], [])) is None
    certain = estimate(sums([1] * 5, [0.3] * 5))
    assert certain is not None
    assert (certain.low, certain.high) == pytest.approx(interval(5, 5))


def test_a_difference_of_estimates_is_newcombes() -> None:
    """The example of Newcombe (1998, table II a): 56/70 and 48/80, 0.0524 to 0.3339."""
    one, other = (estimate(sums([1] * right + [0] * (of - right), [1] * of))
                  for right, of in ((56, 70), (48, 80)))  # fmt: skip
    assert one is not None
    assert other is not None
    found = difference(one, other)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert found.proven
    assert not difference(other, other).proven
