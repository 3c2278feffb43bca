"""Answers that contradict themselves are never taken."""

from typing import Any

import numpy as np
import pytest

from vision.answers import Answers, BadAnswers


def answers(**changes: Any) -> Answers:
    """Three images, two of them right, one of a class the version does not know."""
    values: dict[str, Any] = {
        "images": ("a", "b", "c"),
        "labels": ("cat", "dog", "gnu"),
        "class_names": ("cat", "dog", "emu"),
        "top": np.array([[0, 1], [1, 2], [2, 0]]),
        "confidences": np.array([[0.7, 0.2], [0.5, 0.4], [0.6, 0.3]], dtype=np.float32),
        "label_confidence": np.array([0.7, 0.5, 0.0], dtype=np.float32),
    }
    return Answers(**(values | changes))


def test_the_best_class_is_the_prediction() -> None:
    """Predictions, their confidence and their correctness follow from the first column."""
    given = answers()
    assert given.predicted == ("cat", "dog", "emu")
    assert given.correct.tolist() == [True, True, False]
    assert given.confidence.tolist() == pytest.approx([0.7, 0.5, 0.6])
    assert len(given) == 3


def test_an_unknown_class_is_never_right() -> None:
    """An image of a class that the version does not know counts as wrong."""
    assert not answers().correct[2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": ("a", "a", "c")}, "image a is answered twice"),
        ({"labels": ("cat", "dog")}, "2 labels"),
        ({"class_names": ("cat", "cat", "emu")}, "each once"),
        ({"class_names": ()}, "at least one"),
        ({"top": np.zeros((3, 4), dtype=int)}, "4 columns"),
        ({"top": np.zeros((2, 2), dtype=int)}, "shape"),
        ({"top": np.array([[0.0, 1], [1, 2], [2, 0]])}, "integers"),
        ({"top": np.array([[0, 1], [1, 3], [2, 0]])}, "image b names a class out of range"),
        ({"top": np.array([[0, 1], [1, 1], [2, 0]])}, "image b names a class twice"),
        ({"confidences": np.array([[0.7, 0.2]])}, "shape"),
        ({"confidences": np.array([[0.7, 0.2], [0.5, np.nan], [0.6, 0.3]])}, "image b"),
        ({"confidences": np.array([[0.7, 0.2], [0.5, -0.1], [0.6, 0.3]])}, "between 0 and 1"),
        ({"confidences": np.array([[0.7, 0.2], [0.4, 0.5], [0.6, 0.3]])}, "best first"),
        ({"confidences": np.array([[0.7, 0.2], [0.5, 0.4], [0.9, 0.3]])}, "sum to more"),
        ({"label_confidence": np.array([0.7, 0.5])}, "shape"),
        ({"label_confidence": np.array([0.7, np.nan, 0.0])}, "image b"),
        ({"label_confidence": np.array([0.7, 0.5, 0.1])}, "not known"),
        ({"label_confidence": np.array([0.7, 0.1, 0.0])}, "image b has another"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], words: str) -> None:
    """Wrong shapes, NaN, sums above one and disagreeing columns are named and refused."""
    with pytest.raises(BadAnswers, match=words):
        answers(**changes)


def test_all_classes_must_sum_to_one() -> None:
    """Confidences of all classes that do not reach one are no probabilities."""
    with pytest.raises(BadAnswers, match="miss 1"):
        answers(
            class_names=("cat", "dog"), labels=("cat", "dog", "gnu"),
            top=np.array([[0, 1], [1, 0], [1, 0]]),
        )


def test_answers_cannot_be_changed_afterwards() -> None:
    """Arrays are copied in and read-only, so checked answers stay checked."""
    source = np.array([[0, 1], [1, 2], [2, 0]])
    given = answers(top=source)
    source[0, 0] = 2
    assert given.top[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        given.top[0, 0] = 1


def test_rows_are_chosen_by_mask_and_by_image() -> None:
    """A mask keeps rows in place, names give them in the order asked for."""
    given = answers()
    assert given.select(given.correct).images == ("a", "b")
    chosen = given.only(["c", "a"])
    assert chosen.images == ("c", "a")
    assert chosen.predicted == ("emu", "cat")
    assert chosen.label_confidence.tolist() == pytest.approx([0.0, 0.7])
    assert len(given.only([])) == 0
    with pytest.raises(BadAnswers, match="zzz"):
        given.only(["zzz"])
    with pytest.raises(BadAnswers, match="mask"):
        given.select(np.array([True]))
