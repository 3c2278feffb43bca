"""Memory that runs out: how that is known."""

import torch

# of torch's allocator on Linux and macOS, of the same on Windows, and of oneDNN, which gives no
# reason: where it has another one, the smallest part fails as well, and its words are told
CPU_WITHOUT_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory",
    "could not create a primitive", "could not execute a primitive",
    "could not create a memory object",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether a step found no memory; on a CPU torch has no error of its own for it.

    Where the system promises more memory than it has, as Linux does by default, it kills the
    process instead, and nobody can answer that.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(words in said for words in CPU_WITHOUT_MEMORY)
