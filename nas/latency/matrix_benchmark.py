"""How steady and how fast this machine is, measured with matrix products by numpy."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from nas.latency.timing import (
    SAMPLE_SECONDS,
    SAMPLES,
    Timing,
    calls_per_sample,
    pinned,
    round_to_four_digits,
    undisturbed_samples,
)

PEAK_SIZES = (192, 256, 384, 512)
"""Rows and columns of the matrices that measure the peak: large enough for full speed, and small
enough to stay in the caches."""

PEAK_SAMPLES = 40
"""Samples of each size; the fastest of all counts."""


@dataclass(frozen=True)
class Peak:
    """The best speed that a matrix product reached: a lower bound of the machine's peak.

    Args:
        gflops: billions of floating-point operations per second.
        how: description of the product that reached it.
    """

    gflops: float
    how: str


def measure_noise() -> Timing:
    """Time a small matrix product, which always takes the same work, on one core.

    The `spread` of the result is the smallest spread that a timing on this machine can have now.
    """
    matrix = np.ones((64, 64), np.float32)
    out = np.empty_like(matrix)

    def evaluate(calls: int, samples: int) -> list[float]:
        seconds = []
        for _ in range(samples):
            np.matmul(matrix, matrix, out=out)
            start = time.perf_counter()
            for _ in range(calls):
                np.matmul(matrix, matrix, out=out)
            seconds.append((time.perf_counter() - start) / calls)
        return seconds

    with pinned(1):
        calls = calls_per_sample(evaluate, SAMPLE_SECONDS)
        return Timing.from_seconds(undisturbed_samples(evaluate, calls, SAMPLES))


def measure_peak(threads: int) -> Peak:
    """Measure the speed of numpy's float32 matrix product on this many cores.

    The library behind numpy is tuned for each processor by hand. The product of clock frequency and
    vector width would be a better bound, but virtual machines do not reveal the clock frequency.
    """
    # threadpoolctl comes with scikit-learn.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    best_gflops, best_size = 0.0, 0
    rng = np.random.default_rng(0)
    with pinned(threads), threadpool_limits(threads):
        for size in PEAK_SIZES:
            a, b = rng.random((2, size, size), np.float32)
            out = a @ b
            for _ in range(PEAK_SAMPLES):
                start = time.perf_counter()
                np.matmul(a, b, out=out)
                gflops = 2 * size**3 / (time.perf_counter() - start) / 1e9
                if gflops > best_gflops:
                    best_gflops, best_size = gflops, size
    cores = "1 thread" if threads == 1 else f"{threads} threads"
    how = f"a {best_size}x{best_size} float32 matrix product by numpy, {cores}, here and now"
    return Peak(round_to_four_digits(best_gflops), how)
