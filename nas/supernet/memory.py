"""Memory that training frees and needs again a moment later."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of `mallopt` (malloc.h of the GNU C library)."""


@cache
def keep_freed_memory() -> bool:
    """Asks the C library to keep what is freed, for as long as this process lives.

    A training step frees all activations and asks for as many again. By default large ones go back
    to the system each time, which then hands out pages full of zeros one by one: a sixth of the
    time of a step on the processor it was measured on (`tests.benchmarks.supernets`).

    Returns whether it does: only the GNU C library can be asked.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
