"""What one version answered for a set of images; checked once here, so that figures can be trusted.

No torch here: records and pages read answers too.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

# float32 probabilities that passed through bfloat16 layers still sum to one within this
SLACK = 1e-3


class BadAnswers(ValueError):
    """Answers that contradict themselves; the message names the image."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The k best classes of each of N images, and what the true class was given.

    images: sha256 of each image, each at most once.
    labels: true class names; they may be unknown to the version.
    class_names: what the version knows, in the order of its columns.
    top: integers [N, k], indices into class_names, best first.
    confidences: float32 [N, k], their probabilities.
    label_confidence: float32 [N], probability given to the true class, 0 for an unknown one.

    The arrays are copied and read-only. Raises `BadAnswers`.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...]
    class_names: tuple[str, ...]
    top: npt.NDArray[np.int64]
    confidences: npt.NDArray[np.float32]
    label_confidence: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        for name in ("images", "labels", "class_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not np.issubdtype(np.asarray(self.top).dtype, np.integer):
            raise BadAnswers(f"top has dtype {np.asarray(self.top).dtype}: use integers")
        for name, kind in (
            ("top", np.int64), ("confidences", np.float32), ("label_confidence", np.float32),
        ):
            copied: npt.NDArray[Any] = np.array(getattr(self, name), dtype=kind)
            copied.setflags(write=False)
            object.__setattr__(self, name, copied)
        self._check_shapes()
        self._check_values()
        self._check_label_confidence()

    def _check_shapes(self) -> None:
        count, classes = len(self.images), len(self.class_names)
        if classes == 0 or len(set(self.class_names)) != classes:
            raise BadAnswers(f"class_names {self.class_names!r}: at least one, each once")
        if len(set(self.images)) != count:
            twice = next(one for one, times in Counter(self.images).items() if times > 1)
            raise BadAnswers(f"image {twice} is answered twice: once each")
        if len(self.labels) != count:
            raise BadAnswers(f"{count} images have {len(self.labels)} labels: one each")
        if self.top.ndim != 2 or self.top.shape[0] != count:
            raise BadAnswers(f"top has shape {self.top.shape}: use [{count}, k]")
        if not 1 <= self.top.shape[1] <= classes:
            raise BadAnswers(f"top has {self.top.shape[1]} columns: 1 to {classes} classes")
        if self.confidences.shape != self.top.shape:
            raise BadAnswers(f"confidences have shape {self.confidences.shape}: as top, "
                             f"{self.top.shape}")
        if self.label_confidence.shape != (count,):
            raise BadAnswers(f"label_confidence has shape {self.label_confidence.shape}: "
                             f"use [{count}]")

    def _check_values(self) -> None:
        classes = len(self.class_names)
        self._refuse_rows((self.top < 0) | (self.top >= classes), "names a class out of range")
        in_order = np.sort(self.top, axis=1)
        self._refuse_rows(in_order[:, 1:] == in_order[:, :-1], "names a class twice")
        # written so that a NaN fails too
        inside = (self.confidences >= 0) & (self.confidences <= 1 + SLACK)
        self._refuse_rows(~inside, "has a confidence that is not between 0 and 1")
        self._refuse_rows(
            self.confidences[:, 1:] > self.confidences[:, :-1], "is not sorted best first"
        )
        total = self.confidences.sum(axis=1, dtype=np.float64, keepdims=True)
        self._refuse_rows(total > 1 + SLACK, "has confidences that sum to more than 1")
        if self.top.shape[1] == classes:
            self._refuse_rows(total < 1 - SLACK, "has confidences of all classes that miss 1")

    def _check_label_confidence(self) -> None:
        given = self.label_confidence
        self._refuse_rows(
            ~((given >= 0) & (given <= 1 + SLACK)), "has a label_confidence not between 0 and 1"
        )
        index = self._label_index()
        self._refuse_rows(
            (index < 0) & (given != 0), "has a label_confidence for a class that is not known"
        )
        place = self.top == index[:, None]
        listed = np.where(place, self.confidences, 0).sum(axis=1)
        self._refuse_rows(
            place.any(axis=1) & (abs(listed - given) > SLACK),
            "has another label_confidence than its own confidences say",
        )

    def _refuse_rows(self, wrong: npt.NDArray[np.bool_], what: str) -> None:
        rows = wrong if wrong.ndim == 1 else wrong.any(axis=1)
        if rows.any():
            raise BadAnswers(f"image {self.images[int(rows.argmax())]} {what}")

    def _label_index(self) -> npt.NDArray[np.int64]:
        column = {name: index for index, name in enumerate(self.class_names)}
        return np.array([column.get(label, -1) for label in self.labels], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def predicted(self) -> tuple[str, ...]:
        """The best class name of each image."""
        return tuple(self.class_names[index] for index in self.top[:, 0])

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether the best class is the true one, [N]; never for a class that is not known."""
        return np.asarray(self.top[:, 0] == self._label_index())

    def correct_among(self, names: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Whether the best of these classes is the true one, [N]: as if there were no others.

        An image whose k best are all others counts as wrong: nothing is known of the rest.
        """
        chosen = set(names)
        allowed = np.array([name in chosen for name in self.class_names])[self.top]
        best = self.top[np.arange(len(self)), allowed.argmax(axis=1)]
        return np.asarray(allowed.any(axis=1) & (best == self._label_index()))

    @property
    def confidence(self) -> npt.NDArray[np.float32]:
        """Probability of the best class, [N]."""
        return self.confidences[:, 0]

    def renamed(self, now: Mapping[str, str]) -> "Answers":
        """The same answers with other names for some classes; where two become one they add up.

        Of k best classes fewer may be left then, equally many of each image.
        """
        if not set(now) & {*self.class_names, *self.labels}:
            return self
        named = [now.get(name, name) for name in self.class_names]
        labels = tuple(now.get(label, label) for label in self.labels)
        names = tuple(dict.fromkeys(named))
        place = {name: index for index, name in enumerate(names)}
        top = np.array([place[name] for name in named], dtype=np.int64)[self.top]
        confidences = self.confidences
        if len(names) < len(named):
            top, confidences = _added_up(top, confidences, len(names), len(named))
        true = np.array([place.get(label, -1) for label in labels], dtype=np.int64)
        listed = top == true[:, None]
        return Answers(
            images=self.images,
            labels=labels,
            class_names=names,
            top=top,
            confidences=confidences,
            label_confidence=np.where(
                listed.any(axis=1),
                np.where(listed, confidences, 0).sum(axis=1),
                np.where(true < 0, 0, self.label_confidence),
            ),
        )

    def select(self, mask: npt.ArrayLike) -> "Answers":
        """Keep the rows of a boolean mask [N] or of integer indices, in their order."""
        chosen = np.asarray(mask)
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise BadAnswers(f"mask has shape {chosen.shape}: use [{len(self)}]")
            chosen = np.flatnonzero(chosen)
        rows = chosen.astype(np.int64)
        return Answers(
            images=tuple(self.images[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            class_names=self.class_names,
            top=self.top[rows],
            confidences=self.confidences[rows],
            label_confidence=self.label_confidence[rows],
        )

    def only(self, images: Iterable[str]) -> "Answers":
        """Keep these images, in the order given; raises `BadAnswers` for one never answered."""
        place = {image: row for row, image in enumerate(self.images)}
        rows = []
        for image in images:
            if image not in place:
                raise BadAnswers(f"image {image} was never answered: predict it first")
            rows.append(place[image])
        return self.select(np.array(rows, dtype=np.int64))


def _added_up(
    top: npt.NDArray[np.int64], confidences: npt.NDArray[np.float32], classes: int, before: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Best classes [N, k] of which some are the same, each once, best first, with their sums.

    classes: how many there are now, and were before.
    """
    same = top[:, :, None] == top[:, None, :]
    summed = np.minimum((same * confidences[:, None, :]).sum(axis=2), 1)
    first = same.argmax(axis=2) == np.arange(top.shape[1])
    kept = int(first.sum(axis=1).min(initial=classes))
    if top.shape[1] < before:  # then no row is known to have all that is left
        kept = max(1, min(kept, classes - 1))
    order = np.argsort(np.where(first, -summed, 1), axis=1, kind="stable")[:, :kept]
    return np.take_along_axis(top, order, axis=1), np.take_along_axis(summed, order, axis=1)


@dataclass(frozen=True, eq=False)
class Identified:
    """What one version says of N pictures whose class nobody has told.

    images: sha256 of each, each at most once.
    class_names: what the version knows, in the order of its columns.
    top: int64 [N, k], indices into class_names, best first.
    confidences: float32 [N, k], their probabilities.
    targets, target_confidences: some of the classes and their probabilities, float32 [N, T],
    among the k best or not.
    entropy: float32 [N], of all probabilities, in nats.
    features: float16 [N, width], what the head was given.

    Raises `BadAnswers` for shapes that do not fit and for what is not finite.
    """

    images: tuple[str, ...]
    class_names: tuple[str, ...]
    top: npt.NDArray[np.int64]
    confidences: npt.NDArray[np.float32]
    targets: tuple[str, ...]
    target_confidences: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]
    features: npt.NDArray[np.float16]

    def __post_init__(self) -> None:
        count = len(self.images)
        if len(set(self.images)) != count:
            raise BadAnswers("an image is answered twice: once each")
        if self.target_confidences.shape != (count, len(self.targets)):
            raise BadAnswers(f"target_confidences have shape {self.target_confidences.shape}: "
                             f"use [{count}, {len(self.targets)}]")
        for name in ("top", "confidences", "entropy", "features"):
            if len(getattr(self, name)) != count:
                raise BadAnswers(f"{name} has {len(getattr(self, name))} rows for {count} images")
        for name in ("confidences", "target_confidences", "entropy", "features"):
            values = getattr(self, name)
            wrong = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            if wrong.any():
                image = self.images[int(wrong.argmax())]
                raise BadAnswers(f"image {image} has {name} that are no numbers: the version is "
                                 "broken, train it again")

    def __len__(self) -> int:
        return len(self.images)

    def only(self, images: Iterable[str]) -> "Identified":
        """Keep these images, in the order given."""
        place = {image: row for row, image in enumerate(self.images)}
        chosen = tuple(images)
        rows = np.array([place[image] for image in chosen], dtype=np.int64)
        return replace(
            self,
            images=chosen,
            top=self.top[rows],
            confidences=self.confidences[rows],
            target_confidences=self.target_confidences[rows],
            entropy=self.entropy[rows],
            features=self.features[rows],
        )
