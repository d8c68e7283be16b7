"""The speed at which a core runs now, by a short workload that always takes the same work.

A core of a cloud machine can have two speeds: a neighbour that shares its execution units slows it
for 10 ms to some seconds at a time. Computing then takes 1.5 to 1.9 times as long, and moving
memory 1.2 times, so that no factor corrects a timing. A timing between two readings of the workload
at full speed is right; docs/measurements.md has the figures.

A core also slows itself down where it computes little, and gets faster again as it computes. So a
reading computes until the core is at full speed, for `RAMP_SECONDS` at most.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SIDE = 64
"""Side of the matrices of the workload: OpenBLAS multiplies larger ones on several threads."""

PRODUCTS = 6
"""Products of a reading, which takes about 30 us."""

READING = f"{PRODUCTS} products of {SIDE} x {SIDE} matrices, numpy {np.__version__}"
"""What a reading is on a processor: those of another library take another time."""

FULL_SPEED_TOLERANCE = 0.05
"""How much longer than at full speed a reading may take, as a fraction.

On a machine with two speeds, timings between readings of 3% to 5% were off by 0.3 to 1.7% on
average, and of 8% by 1.1 to 2.4%.
"""

FASTEST_SHARE = 0.05
"""Share of the readings that are at full speed at least; their slowest one tells that speed."""

RAMP_SECONDS = 8e-3
"""How long a core may take to get to full speed: a server of 2019 computed at 0.4 of it after 20 ms
of sleep, at 0.8 after 5 ms of work without vectors, and needed 7 and 5 ms of products for the rest.
"""

FIRST_READINGS = 50
"""Readings before the full speed of a core counts as known, which take about half a second."""

BLOCK_SECONDS = 0.5
"""Shortest time of the readings that tell one full speed, which are `FIRST_READINGS` at least."""

FULL_SPEED_BLOCKS = 60
"""Latest full speeds, the fastest of which counts: it changes with the temperature, and a core may
be slowed for ten seconds."""

SLOW_FACTOR = 1.2
"""Duration of a reading over the one at full speed from which a core counts as slowed."""


def is_at_full_speed(reading: float, full: float) -> bool:
    """Return whether a core ran at full speed at a reading, given the one at full speed."""
    return reading <= (1 + FULL_SPEED_TOLERANCE) * full


def _multiply() -> Callable[[], float]:
    """Return a function that takes a reading: the seconds of the workload, with warm caches."""
    matrix = np.full((SIDE, SIDE), 0.5, np.float32)
    product = np.empty_like(matrix)

    def reading_s() -> float:
        np.matmul(matrix, matrix, out=product)
        start = time.perf_counter()
        for _ in range(PRODUCTS):
            np.matmul(matrix, matrix, out=product)
        return time.perf_counter() - start

    return reading_s


class CoreSpeed:
    """Readings of the speed of the cores of this process.

    Args:
        take: function that takes a reading; by default products of matrices, until the core is at
            full speed.
    """

    def __init__(self, take: Callable[[], float] | None = None) -> None:
        self._take = take or self._ramped
        self._multiply = _multiply()
        self._tells = True
        self._block: list[float] = []
        self._block_ends_at_s = -math.inf
        self._full_s: deque[float] = deque(maxlen=FULL_SPEED_BLOCKS)
        self._was_full_at_s = math.inf

    def read(self) -> float:
        """Return the seconds that the workload takes now, after up to `RAMP_SECONDS` of it."""
        seconds = self._take()
        if self._tells:
            self._block.append(seconds)
        if len(self._block) >= FIRST_READINGS and time.monotonic() >= self._block_ends_at_s:
            self._full_s.append(float(np.quantile(self._block, FASTEST_SHARE)))
            self._block.clear()
            self._block_ends_at_s = time.monotonic() + BLOCK_SECONDS
        return seconds

    def _ramped(self) -> float:
        """Return the fastest of readings that are taken until the core is at full speed.

        One that ends while the core still becomes faster does not tell what full speed is.
        """
        end = time.perf_counter() + RAMP_SECONDS
        fastest, count = self._multiply(), 1
        while (left := time.perf_counter() < end) and not (
            self._full_s and is_at_full_speed(fastest, min(self._full_s))
        ):
            fastest, count = min(fastest, self._multiply()), count + 1
        self._tells = count == 1 or not left
        return fastest

    def is_full(self, *readings: float) -> bool:
        """Return whether the core ran at full speed, as far as is known, at some readings."""
        while not self._full_s:
            self.read()
        full = is_at_full_speed(max(readings), min(self._full_s))
        if full or self._was_full_at_s == math.inf:
            self._was_full_at_s = time.monotonic()
        return full

    def slowed_s(self) -> float:
        """Return the seconds since the latest readings at full speed, or since the first ones."""
        return time.monotonic() - self._was_full_at_s

    def watch(self, seconds: float) -> SpeedSummary:
        """Read the speed for some seconds, and return a summary."""
        end = time.perf_counter() + seconds
        ends: list[float] = []
        readings: list[float] = []
        while not ends or ends[-1] < end:
            readings.append(self._multiply())
            ends.append(time.perf_counter())
        return SpeedSummary.of(np.array(readings), np.array(ends))


class SpeedSummary(NamedTuple):
    """The speed of a core over some seconds.

    Attributes:
        full_share: share of the time at full speed.
        slow_factor: median duration of the workload while the core was slowed, over that at full
            speed; None if it never was.
        stretch_s: duration of the stretches at less than full speed that hold the middle of their
            time, when they are sorted by duration; None without any.
    """

    full_share: float
    slow_factor: float | None
    stretch_s: float | None

    @classmethod
    def of(cls, readings: np.ndarray, ends_s: np.ndarray) -> SpeedSummary:
        """Return the summary of readings in seconds, and the moments at which they ended."""
        full = np.quantile(readings, FASTEST_SHARE)
        is_slow = readings > SLOW_FACTOR * full
        lengths = np.diff(ends_s, prepend=ends_s[0] - readings[0])
        if not is_slow.any():
            return cls(1.0, None, None)
        stretch = np.cumsum(np.diff(is_slow, prepend=is_slow[0]))
        durations = np.sort(np.bincount(stretch[is_slow], lengths[is_slow]))
        slow_s = durations.sum()
        return cls(
            float(1 - slow_s / lengths.sum()),
            float(np.median(readings[is_slow]) / full),
            float(durations[np.searchsorted(np.cumsum(durations), slow_s / 2)]),
        )
