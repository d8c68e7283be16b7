"""The speed of the processor at a moment, which a reference workload tells.

Neighbours on the same host slow a virtual machine from one second to the next, and not all networks
alike: beside the same neighbour, one took 15% longer and another one 55%. A reference workload is
timed before and after every timing. It multiplies matrices, as large networks do, and calls many
short functions, since a neighbour may slow the fetching of code, on which small networks depend,
and little else. It tells the moments at which only the clock of the processor differs from its
quiet speed, which slows everything alike, from the others, which do not count. The reference
workload also differs for reasons of its own, so timings are divided by only as much of its slowdown
as all of them together follow (`sensitivity`). A few moments may be faster than the quiet speed,
while the neighbours of a core idle. No network runs at that speed for long, so they do not count
either.

Waiting for quiet moments would not save time: kernels that are timed in turns, again and again,
meet as many of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

QUIET_QUANTILE = 0.05
"""Quantile of the durations of the reference workload that is its duration at the quiet speed.

In one hour, 2% of the moments were 16% faster than this; in others, 10 to 40% were within 4% of it.
"""

QUIET_TOLERANCE = 0.04
"""Largest difference of the reference workload from its quiet speed at a moment that is called
quiet, as a fraction.

A neighbour on the same core of a host slowed it by 16%, the clock of the host by 10 to 40%; at
quiet moments it differed by at most 3%.
"""

QUIET_MOMENTS = 3
"""Quiet moments at which a network is timed, at least, if its table has no quiet speed."""

MAX_SPEED_CHANGE = 0.12
"""Largest difference of the reference workload at two moments, as a fraction, at which only the
clock of the processor is said to differ.

The speeds of a core with and without a neighbour differed by 25%, moments beside it by up to 10%.
The clock of another processor changed by about a tenth, in steps of 3%.
"""

SENSITIVITY_PRIOR = 0.005
"""Sum of squares, of logarithms, of slowdowns that timings are assumed to follow before any is
known: as many as twelve timings have whose slowdowns vary by 2%."""

MAX_ATTEMPTS = 3
"""Attempts at a measurement during which the processor keeps its speed."""

Measured = TypeVar("Measured")

_MATRIX_SIZE = 48
_PRODUCTS = 15
"""Rows of the square matrices of the reference workload, and their products. They take about as
long as the rest of the workload."""

_BINARY_FUNCTIONS = (np.add, np.multiply, np.maximum, np.minimum, np.subtract, np.divide)
_UNARY_FUNCTIONS = (
    np.exp, np.sqrt, np.negative, np.absolute, np.tanh, np.sin, np.floor, np.square, np.log1p,
    np.cbrt,
)  # fmt: skip
_SYSTEM = np.eye(8, dtype=np.float32) + 0.1

_REFERENCE_RUNS = 2
"""Runs of the reference workload in one sample."""


def reference_us() -> float:
    """Return the microseconds of one run of the reference workload, on the calling thread.

    It is the fastest of three samples of about 0.15 milliseconds each.
    """
    fastest_s = math.inf
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(_REFERENCE_RUNS):
            _run_reference_workload()
        fastest_s = min(fastest_s, time.perf_counter() - start)
    return 1e6 * fastest_s / _REFERENCE_RUNS


def _run_reference_workload() -> None:
    """Multiply matrices, and call many short functions, whose code displaces one another's."""
    matrix, product, vector, result = _reference_operands()
    for _ in range(_PRODUCTS):
        np.matmul(matrix, matrix, out=product)
    for binary in _BINARY_FUNCTIONS:
        binary(vector, vector, out=result)
    for unary in _UNARY_FUNCTIONS:
        unary(vector, out=result)
    np.sort(vector)
    np.cumsum(vector)
    np.argmax(vector)
    np.fft.rfft(vector)
    np.linalg.solve(_SYSTEM, vector[: len(_SYSTEM)])
    np.concatenate((vector, vector))
    np.where(vector > 1, vector, result)
    vector.sum()
    vector.std()


@cache
def _reference_operands() -> tuple[NDArray[np.float32], ...]:
    matrix = np.full((_MATRIX_SIZE, _MATRIX_SIZE), 0.5, np.float32)
    vector = np.linspace(0.5, 1.5, 64, dtype=np.float32)
    return matrix, np.empty_like(matrix), vector, np.empty_like(vector)


def quiet_speed_us(references_us: Collection[float]) -> float:
    """Return the duration of the reference workload at the quiet speed of the processor.

    Args:
        references_us: its durations at many moments; infinity is returned without any.
    """
    if not references_us:
        return math.inf
    # An observed value: between two speeds of a processor lies none.
    return float(np.quantile([*references_us], QUIET_QUANTILE, method="higher"))


def is_too_fast(reference_us: float | None, quiet_us: float) -> bool:
    """Return whether the processor was faster than its quiet speed at a moment.

    Args:
        reference_us: duration of the reference workload at the moment; None if it is not known.
        quiet_us: its duration at the quiet speed; infinity if it is not known.
    """
    if reference_us is None or math.isinf(quiet_us):
        return False
    return (1 + QUIET_TOLERANCE) * reference_us < quiet_us


def is_one_speed(first_us: float, second_us: float) -> bool:
    """Return whether at most the clock of the processor differs between two moments.

    Args:
        first_us, second_us: durations of the reference workload at the moments.
    """
    return max(first_us, second_us) <= (1 + MAX_SPEED_CHANGE) * min(first_us, second_us)


def slowdown(reference_us: float | None, quiet_us: float) -> float | None:
    """Return how many times longer everything takes at a moment than at the quiet speed.

    The clock of a processor changes by some percent, for example with the load of its other cores,
    and slows every network alike. So it is the ratio of the durations of the reference workload.
    Whatever slows the processor more, such as a neighbour on the core, slows every network in
    another way.

    Args:
        reference_us: duration of the reference workload at the moment; None if it is not known.
        quiet_us: its duration at the quiet speed; infinity if it is not known.

    Returns:
        None if more than the clock differs, or the speeds are not known.
    """
    if reference_us is None or not is_one_speed(reference_us, quiet_us):
        return None
    return reference_us / quiet_us


def sensitivity(series: Iterable[Iterable[tuple[float, float | None]]], quiet_us: float) -> float:
    """Return how closely timings follow the slowdown of the reference workload.

    A slowdown `s` of the reference workload slows the timings by `s ** sensitivity`. On some
    machines most of it is the clock of the processor, and timings follow it (0.74 for the kernels
    of a table); on others most of it is noise of the reference workload, which must not become part
    of the latencies (0.10). The sensitivity is the slope of a linear regression of the logarithms
    within each series, of all series together.

    Args:
        series: for each kernel or network, pairs of its latency at a moment, in any unit, and of
            the duration of the reference workload beside it; None if that is not known.
        quiet_us: its duration at the quiet speed; infinity if it is not known.

    Returns:
        The slope, in [0, 1]; near 1 if nothing is known.
    """
    known = [
        (index, latency, each)
        for index, pairs in enumerate(series)
        for latency, reference_us in pairs
        if latency > 0 and (each := slowdown(reference_us, quiet_us)) is not None
    ]
    if not known:
        return 1.0
    indices, latencies, slowdowns = map(np.array, zip(*known, strict=True))
    counts = np.maximum(1, np.bincount(indices))

    def centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values without the mean of their series."""
        return values - (np.bincount(indices, values) / counts)[indices]

    # A neighbour that came and went must not outweigh all other moments.
    limit = math.log(1 + MAX_SPEED_CHANGE)
    own = centred(np.clip(centred(np.log(latencies)), -limit, limit))
    reference = centred(np.log(slowdowns))
    slope = (own @ reference + SENSITIVITY_PRIOR) / (reference @ reference + SENSITIVITY_PRIOR)
    return float(np.clip(slope, 0.0, 1.0))


def count_quiet(references_us: Collection[float], quiet_us: float = math.inf) -> int:
    """Return at how many moments the reference workload ran at its quiet speed.

    Args:
        references_us: its durations at the moments.
        quiet_us: its duration at the quiet speed; if it is infinity, that of these moments.
    """
    if math.isinf(quiet_us):
        quiet_us = quiet_speed_us(references_us)
    return sum(
        us <= (1 + QUIET_TOLERANCE) * quiet_us and not is_too_fast(us, quiet_us)
        for us in references_us
    )


def has_enough_quiet(
    references_us: Collection[float], quiet_us: float = math.inf, wanted: int | None = None
) -> bool:
    """Return whether enough timings are of quiet moments; True without a reference workload.

    Args:
        references_us, quiet_us: see `count_quiet`.
        wanted: number of quiet moments that are enough, `QUIET_MOMENTS` by default.
    """
    enough = QUIET_MOMENTS if wanted is None else wanted
    return not references_us or count_quiet(references_us, quiet_us) >= enough


def measure_at_one_speed(measure: Callable[[], Measured]) -> tuple[Measured, float]:
    """Measure something while the processor keeps its speed, if that succeeds in a few attempts.

    Args:
        measure: function that measures, in some milliseconds.

    Returns:
        What `measure` returned, and the duration of the reference workload before or after it, the
        longer one.
    """
    for _ in range(MAX_ATTEMPTS):
        before_us = reference_us()
        measured = measure()
        after_us = reference_us()
        if is_one_speed(before_us, after_us):
            break
    return measured, max(before_us, after_us)
