"""How fast this machine multiplies, as a mark beside what the kernels of a table achieve."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from nas.latency import timing

SIZES = (192, 256, 384, 512)
"""Rows and columns of the matrices: large enough for full speed, small enough to stay cached."""

SAMPLES = 40
"""Of each size; the fastest of all counts."""


@dataclass(frozen=True)
class Peak:
    """The best speed that was reached, and by what: the machine's own peak is no lower."""

    gflops: float
    how: str


def measure_peak(threads: int) -> Peak:
    """Times float32 matrix products of numpy's on so many cores.

    numpy's library is tuned for each processor by hand. Clock times vector width would be a better
    bound, but virtual machines do not tell the clock.
    """
    # Comes with scikit-learn.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    best, fastest = 0.0, 0
    rng = np.random.default_rng(0)
    with timing.pinned(threads), threadpool_limits(threads):
        for size in SIZES:
            a, b = rng.random((2, size, size), np.float32)
            out = a @ b
            for _ in range(SAMPLES):
                start = time.perf_counter()
                np.matmul(a, b, out=out)
                gflops = 2 * size**3 / (time.perf_counter() - start) / 1e9
                if gflops > best:
                    best, fastest = gflops, size
    cores = "1 thread" if threads == 1 else f"{threads} threads"
    how = f"a {fastest}x{fastest} float32 matrix product by numpy, {cores}, here and now"
    return Peak(timing.four_digits(best), how)
