"""How much memory pictures take at once, and what the C library does with it when it is freed.

glibc gives each thread an arena of its own and keeps in each what was freed there. A service with
many threads, whose networks are replaced, would hold memory that nothing uses.
"""

from __future__ import annotations

import ctypes

# Pixels that each thread may decode at once, whatever the others do. Larger pictures, of which each
# takes up to 1.2 GB (a transparent WEBP), wait for each other: there may be many threads.
AT_ONCE = 8_000_000
ARENAS = 2
_M_ARENA_MAX = -8  # of malloc.h


def keep_little() -> None:
    """Have all threads share few arenas from now on; nothing where the C library is another."""
    _call("mallopt", _M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Give what is free back to the system."""
    _call("malloc_trim", 0)


def _call(name: str, *values: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*values)
