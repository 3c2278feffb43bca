"""Several processes that train one network together: what each takes, and what they agree on.

Together they compute what one process would. Each takes its share of every batch; losses are
divided by what the whole batch weighs, gradients are added up, and batch statistics are those of
the whole batch.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process among `world`; without arguments it is alone, and nothing is changed or sent.

    micro_batch: the most pictures that this run takes at once on one GPU, learned by a try that
    was out of memory.
    """

    rank: int = 0
    world: int = 1
    micro_batch: int | None = None

    @property
    def leads(self) -> bool:
        """Whether this one chooses, writes and speaks for all."""
        return self.rank == 0

    def share(self, rows: Sequence[T]) -> tuple[list[T], int]:
        """Return this rank's rows, and how many of them count.

        All ranks get equally many, so that they take the same steps: where the rows do not divide,
        some end with one that is not theirs.
        """
        mine = list(rows[self.rank :: self.world])
        count = len(mine)
        return mine + list(rows[: math.ceil(len(rows) / self.world) - count]), count

    def joined(self, share: Tensor, count: int) -> Tensor:
        """Undo `share`: what all ranks made of theirs, for all `count` rows in their order."""
        if self.world == 1:
            return share[:count]
        everybodys = [torch.empty_like(share) for _ in range(self.world)]
        distributed.all_gather(everybodys, share)
        return torch.stack(everybodys, dim=1).flatten(0, 1)[:count]

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up over all ranks."""
        if self.world == 1:
            return tensor
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    def mean(self, tensor: Tensor) -> Tensor:
        """Average over all ranks."""
        return tensor if self.world == 1 else self.sum(tensor) / self.world

    def first(self, ask: Callable[[], T]) -> T:
        """Let the leader ask, and tell everybody its answer."""
        if self.world == 1:
            return ask()
        answer: list[Any] = [ask() if self.leads else None]
        distributed.broadcast_object_list(answer, src=0)
        found: T = answer[0]
        return found

    def learner(self, network: nn.Module) -> nn.Module:
        """Return what to call in training, so that gradients become the mean over all ranks."""
        if self.world == 1:
            return network
        with warnings.catch_warnings():  # newer torch has another name for what older ones know so
            warnings.simplefilter("ignore", FutureWarning)
            # all ranks compute the same buffers, nobody needs to be told
            return DistributedDataParallel(network, broadcast_buffers=False)

    def sending(self, learner: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Send gradients to the others behind the last part of a batch, and not before."""
        if last or not isinstance(learner, DistributedDataParallel):
            return nullcontext()
        return learner.no_sync()

    def whole_batch(self, count: int) -> AbstractContextManager[object]:
        """Normalise by the statistics of all ranks' pictures; of our own, the first `count` count.

        For the forward pass; the backward pass remembers.
        """
        return nullcontext() if self.world == 1 else _WholeBatch(self, count)


ALONE = Ranks()


class _WholeBatch(TorchFunctionMode):
    """Lets every batch norm in training, of whatever module, look at all ranks' pictures.

    torch's SyncBatchNorm would do on GPUs only, and would replace modules by their class.
    """

    def __init__(self, ranks: Ranks, count: int) -> None:
        super().__init__()
        self.ranks, self.count = ranks, count

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is functional.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        pictures: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return functional.batch_norm(
                pictures, running_mean, running_var, weight, bias, False, momentum, eps
            )
        with torch.no_grad():
            mean, variance, count = self._statistics(pictures[: self.count])
            if running_mean is not None:
                running_mean.lerp_(mean, momentum)
            if running_var is not None:
                running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)
        weight = torch.ones_like(mean) if weight is None else weight
        bias = torch.zeros_like(mean) if bias is None else bias
        normalised: Tensor = _Normalised.apply(
            pictures, weight, bias, mean, variance, count, eps, self.ranks, self.count
        )
        return normalised

    def _statistics(self, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [C], variance [C] and number of values [] of each channel, over all ranks."""
        channels = own.shape[1]
        if len(own):
            variance, mean = torch.var_mean(own.float(), _all_but_channels(own), correction=0)
        else:
            mean = variance = torch.zeros(channels, device=own.device)
        count = mean.new_full((1,), own.numel() // channels)
        mine = torch.cat([mean, variance, count])
        everybodys = [torch.empty_like(mine) for _ in range(self.ranks.world)]
        distributed.all_gather(everybodys, mine)
        told = torch.stack(everybodys)
        means, variances, counts = told[:, :channels], told[:, channels:-1], told[:, -1:]
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
        return mean, variance, total


class _Normalised(torch.autograd.Function):
    """Batch norm by given statistics that depend on the pictures, on those of other ranks too."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        context, pictures, weight, bias, mean, variance, total, eps, ranks, count
    ):
        context.save_for_backward(pictures, weight, mean, variance, total)
        context.eps, context.ranks, context.count = eps, ranks, count
        return functional.batch_norm(pictures, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(context, gradient):  # type: ignore[no-untyped-def]
        pictures, weight, mean, variance, total = context.saved_tensors
        count = context.count
        # as if the statistics were constants; the last two are sums over this rank's pictures
        of_pictures, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, pictures, weight, mean, variance, None, None, False, context.eps, [True] * 3
        )
        sums = context.ranks.sum(torch.stack([of_bias, of_weight])) / total
        # and what the pictures do through them: gradient minus its mean and its part along x
        scale = (variance + context.eps).rsqrt()
        slope = weight * scale * scale * sums[1]
        shift = weight * scale * sums[0] - slope * mean
        shape = [1, -1] + [1] * (pictures.ndim - 2)
        of_pictures[:count] -= slope.view(shape) * pictures[:count] + shift.view(shape)
        return of_pictures, of_weight, of_bias, None, None, None, None, None, None


def _all_but_channels(pictures: Tensor) -> list[int]:
    return [dimension for dimension in range(pictures.ndim) if dimension != 1]
