"""Which pictures are kept beside their transactions, and which come into the random stream."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from infra.settings import Settings
from records.transactions import Transaction, image_key


@dataclass(frozen=True)
class Keeping:
    """The rule by which pictures are kept, as shares of all that are served.

    review_share: drawn into the random stream of reviews, whatever was answered. doubtful_share: of
    those that the threshold does not let be shown, or, of a version without one, whose confidence
    is under doubtful_below. image_share: of the rest.
    """

    review_share: float
    doubtful_share: float
    doubtful_below: float
    image_share: float

    @classmethod
    def of(cls, settings: Settings) -> Keeping:
        """The rule that the settings tell."""
        return cls(**{name: getattr(settings, name) for name in cls.__dataclass_fields__})

    def decide(self, row: Transaction, image: bytes) -> Transaction:
        """The row with where its picture is kept, if it is, and with the chance that drew it."""
        drawn = _happens(self.review_share)
        if not drawn and not _happens(self._share(row)):
            return row
        return replace(
            row,
            draw=self.review_share if drawn else None,
            image_key=image_key(row.at, row.sha256, image),
        )

    def _share(self, row: Transaction) -> float:
        doubtful = row.top_confidences[0] < self.doubtful_below if row.shown is None else (
            not row.shown
        )
        return self.doubtful_share if doubtful else self.image_share


def _happens(chance: float) -> bool:
    return random.random() < chance  # noqa: S311  (no secret)
