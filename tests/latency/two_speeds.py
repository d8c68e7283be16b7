"""A simulated core with two speeds, as of a cloud machine with a neighbour.

A quarter of the time is at full speed, and slowed stretches last 10 ms to 7 s: computing then takes
1.5 to 1.9 times as long, and moving memory 1.2 times.
"""

from __future__ import annotations

import numpy as np
import pytest

from nas.latency import core_speed, rounds, timing
from nas.latency.core_speed import CoreSpeed

COMPUTE, MEMORY = 1.6, 1.2
"""Factors by which a slowed core takes longer."""

READING_S = 30e-6
"""Duration of a reading of the speed at full speed."""


class TwoSpeedCore:
    """A core whose clock is moved by work and by waiting alone.

    Args:
        seed: of the stretches and of the noise.
        full_share: share of the time at full speed; 1 for an idle machine.
    """

    def __init__(self, seed: int, full_share: float = 0.25) -> None:
        self._rng = np.random.default_rng(seed)
        self._full_share = full_share
        self.now_s = 0.0
        self.is_slow = False
        self._ends_s = self._stretch_s()

    def _stretch_s(self) -> float:
        if self._full_share == 1:
            return float("inf")
        slow_s = np.clip(self._rng.lognormal(np.log(0.04), 1.2), 0.01, 7.0)
        mean_s = 0.08  # of such stretches
        full_s = self._rng.exponential(mean_s * self._full_share / (1 - self._full_share))
        return float(slow_s if self.is_slow else full_s)

    full_us = 1e6 * READING_S
    """Duration of a reading at full speed in microseconds."""

    def monotonic(self) -> float:
        return self.now_s

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        self._move(seconds, 1.0)

    def work(self, seconds: float, slow_factor: float) -> float:
        """Return how long work takes that takes so many seconds at full speed, less noise."""
        return self._move(seconds * self._rng.lognormal(0, 0.008), slow_factor)

    def _move(self, seconds: float, slow_factor: float) -> float:
        start_s = self.now_s
        while True:
            factor = slow_factor if self.is_slow else 1.0
            if self.now_s + seconds * factor <= self._ends_s:
                self.now_s += seconds * factor
                return self.now_s - start_s
            seconds -= (self._ends_s - self.now_s) / factor
            self.now_s = self._ends_s
            self.is_slow = not self.is_slow
            self._ends_s += self._stretch_s()

    def workload(self, seconds: float, slow_factor: float) -> timing.Evaluate:
        """Return what times calls of a workload."""

        def evaluate(calls: int, samples: int) -> list[float]:
            self.work(seconds, slow_factor)
            return [self.work(calls * seconds, slow_factor) / calls for _ in range(samples)]

        return evaluate

    def reading_s(self) -> float:
        """Return the duration of a reading of the speed."""
        return self.work(READING_S, COMPUTE)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Let timings of this process run on this core."""
        for module in (timing, rounds, core_speed):
            patch.setattr(module, "time", self)
        speed = CoreSpeed()
        patch.setattr(speed, "_multiply", self.reading_s)
        patch.setattr(timing, "_SPEED", speed)
        patch.setattr(timing, "_preemptions", lambda: 0)
