"""Memory that training frees and needs again a moment later."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of `mallopt`, from malloc.h of the GNU C library."""


@cache
def keep_freed_memory() -> bool:
    """Make the C library keep freed memory for the rest of this process's life.

    A training step frees all its activations, and the next step needs as many again. By default,
    large blocks go back to the system each time, which then has to map and zero every page again:
    a sixth of the time of a step on the processor where it was measured
    (`tests.benchmarks.supernets`).

    Returns:
        Whether freed memory is kept: only the GNU C library can do so.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
