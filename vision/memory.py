"""Memory that runs out: how that is known, what is given back, and smaller parts that may fit."""

import ctypes
import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# names of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# of torch's allocator on Linux and macOS, of the same on Windows, and of oneDNN, which gives no
# reason: where it has another one, the smallest part fails as well, and its words are told
CPU_WITHOUT_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory",
    "could not create a primitive", "could not execute a primitive",
    "could not create a memory object",
)


class TooLarge(RuntimeError):
    """Not even the smallest part of a batch fits into the memory."""


def out_of_memory(error: BaseException) -> bool:
    """Whether a step found no memory; on a CPU torch has no error of its own for it.

    Where the system promises more memory than it has, as Linux does by default, it kills the
    process instead, and nobody can answer that.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(words in said for words in CPU_WITHOUT_MEMORY)


def keep_freed() -> None:
    """Let glibc keep what tensors free, for this process; elsewhere nothing happens.

    By default it hands large blocks back to the system and asks for them anew at every step, and
    the system fills them with zeros each time: 42 against 49 images/s for MobileNetV2 at 160
    pixels on two cores. The price is that memory stays at its peak until the process ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(parameter, value)


def release_freed() -> None:
    """Hand back what torch and `keep_freed` kept: not all that is needed next comes out of it."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return


class InParts:
    """A function of pictures that is called with as many at a time as the memory takes.

    compute: gives a row for each picture, whatever stands beside it. Raises `TooLarge`.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        self._compute = compute
        self._most: int | None = None  # None: whatever comes

    def __call__(self, pictures: Tensor) -> Tensor:
        """The rows of these pictures [n, ...], in their order."""
        while True:
            tried = min(self._most or len(pictures), len(pictures))
            try:
                if tried == len(pictures):
                    return self._compute(pictures)
                starts = range(0, len(pictures), tried)
                return torch.cat([self._compute(pictures[one:one + tried]) for one in starts])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            # here, where the error no longer holds on to what it was raised among
            if tried == 1:
                raise TooLarge(f"not even one picture fits into the memory ({reason}): use a "
                               "smaller image_size or architecture")
            self._most = tried // 2
            release_freed()
            logger.warning("out of memory: pictures go through the network %d at a time",
                           self._most)
