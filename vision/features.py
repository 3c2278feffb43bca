"""What a frozen backbone makes of the pictures, computed once, so that the head learns without it.

As long as only the head learns, a picture that is bent alike has the same features in every epoch.
So each training picture is bent in a few ways, its views; each view goes once through the backbone,
and the epochs take the views in turn. The head's own dropout comes behind what is kept.
"""

import copy
import errno
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vision.network import head, head_dropout
from vision.prediction import ahead
from vision.ranks import Ranks

logger = logging.getLogger(__name__)

# pictures that go through the backbone at once, on each rank
AT_ONCE = 64
# backbone and head together may answer so far from the network itself, as a share of its largest
# answer: float32 sums in another order; what is left out, such as dropout, is far above
TOLERANCE = 1e-2
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Kept = npt.NDArray[np.float32]


class NoRoom(OSError):
    """The disk has no room for the features; the message is one line with the mend."""


class Head(nn.Module):
    """The head of a network by itself: features [n, width] in, numbers [n, classes] out.

    Its classifier is the network's own, so that what it learns the network has learned.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.head_drop = nn.Dropout(head_dropout(network))  # known as the head's by this name
        self.classifier = head(network)
        # some networks have a convolution of one pixel for it
        self.pooled = (1, 1) if isinstance(self.classifier, nn.Conv2d) else ()

    @property
    def width(self) -> int:
        """How many features a picture has."""
        weight: Tensor = self.classifier.state_dict()["weight"]
        return weight.shape[1]

    def get_classifier(self) -> nn.Module:
        """As timm's networks do."""
        return self.classifier

    def forward(self, features: Tensor) -> Tensor:
        """Drop some, then classify."""
        dropped = self.head_drop(features)
        outputs: Tensor = self.classifier(dropped.view(*dropped.shape, *self.pooled))
        return outputs.flatten(1)


def split(network: nn.Module, pictures: Tensor) -> tuple[nn.Module, Head] | None:
    """A copy of the network's backbone in evaluation mode, and its own head by itself.

    pictures: a few, as in training, float32 [n, 3, size, size]. The network is in the mode in which
    its head learns. None where the two together answer otherwise than the network does, the same
    dropout included: a head that is no single layer at the end, say. Draws random numbers.
    """
    if not isinstance(head(network), nn.Linear | nn.Conv2d):
        return None
    backbone = copy.deepcopy(network).eval().requires_grad_(False)
    backbone.reset_classifier(0)  # type: ignore[operator]
    alone = Head(network).train()
    with torch.no_grad():
        features = backbone(pictures)
        torch.manual_seed(0)
        expected = network(pictures)
        if not isinstance(features, Tensor) or features.shape != (len(pictures), alone.width):
            return None
        torch.manual_seed(0)
        apart = (alone(features) - expected).abs().max()
    return (backbone, alone) if apart <= TOLERANCE * expected.abs().max() else None


@dataclass(frozen=True)
class Pictures:
    """Pictures on their way to the backbone.

    prepared: those of some places (0 to `count` - 1) in some view, as the backbone takes them;
    waits: whether they are fetched from elsewhere, which the backbone need not wait for.
    """

    prepared: Callable[[list[int], int], Tensor]
    count: int
    waits: bool = False


class Features:
    """The features of training and validation pictures, each computed when it is first asked for.

    backbone: of prepared pictures their features, float32 [n, width]. They lie in unnamed files of
    `folder` that are mapped: what the memory has room for stays in it, and a killed process leaves
    nothing behind. Every rank computes its share and keeps all. Raises `NoRoom`.
    """

    def __init__(
        self,
        backbone: Callable[[Tensor], Tensor],
        training: Pictures,
        validation: Pictures,
        views: int,
        folder: Path,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self._backbone, self._training, self._validation = backbone, training, validation
        self._views, self._folder, self._device, self._ranks = views, folder, device, ranks
        self._kept: dict[int, Kept] = {}

    def of(self, epoch: int) -> Callable[[Sequence[int]], Tensor]:
        """Return what gives the features of some places in this epoch's view, [n, width]."""
        features = self._view(self._training, (epoch - 1) % self._views + 1)
        return lambda places: self._taken(features, list(places))

    def of_validation(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, features [n, width]) of the validation pictures in their order."""
        features = self._view(self._validation, 0)
        for start in range(0, len(features), AT_ONCE):
            rows = slice(start, min(start + AT_ONCE, len(features)))
            yield rows, self._taken(features, list(range(rows.start, rows.stop)))

    def _view(self, pictures: Pictures, view: int) -> Kept:
        if view not in self._kept:
            begun = time.perf_counter()
            self._kept[view] = kept(self._folder, self._computed(pictures, view))
            logger.info("features of %d %s pictures (view %d), %.0f a second", pictures.count,
                        "training" if view else "validation", view,
                        pictures.count / (time.perf_counter() - begun))
        return self._kept[view]

    def _computed(self, pictures: Pictures, view: int) -> Iterator[Tensor]:
        together = AT_ONCE * self._ranks.world

        def produce() -> Iterator[tuple[int, Tensor]]:
            for start in range(0, pictures.count, together):
                places = range(start, min(start + together, pictures.count))
                share, _ = self._ranks.share(places)
                yield len(places), pictures.prepared(share, view)

        for count, prepared in ahead(produce()) if pictures.waits else produce():
            yield self._ranks.joined(self._backbone(prepared), count)

    def _taken(self, features: Kept, places: list[int]) -> Tensor:
        return torch.from_numpy(features[places]).to(self._device)


def kept(folder: Path, blocks: Iterator[Tensor]) -> Kept:
    """Put blocks [n, width] below each other into an unnamed file, and map it.

    Raises `NoRoom`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = width = 0
    # written, not mapped: on a full disk a write raises, and a mapped page kills the process
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            for block in blocks:
                count, width = count + len(block), block.shape[1]
                file.write(block.cpu().contiguous().numpy().data)
            file.flush()
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise NoRoom(f"no space left in {folder} for the features of the head phase "
                         f"({error.strerror}): free some, or use fewer head_views, or "
                         "head_views=None") from error
        return np.memmap(file, np.float32, "r", shape=(count, width))
