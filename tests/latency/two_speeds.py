"""Cores with two speeds, on a clock of their own, as of a cloud machine with a neighbour.

`TwoSpeedCore` is simulated: a quarter of the time is at full speed, and slowed stretches last 10 ms
to 7 s: computing then takes 1.5 to 1.9 times as long, and moving memory 1.2 times. `TraceCore`
plays what was measured on such a core.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from nas.latency import core_speed, timing
from nas.latency.core_speed import FASTEST_SHARE, FULL_SPEED_TOLERANCE, CoreSpeed

COMPUTE, MEMORY = 1.6, 1.2
"""Factors by which a slowed core takes longer."""

NEAR_ROWS = 200
"""Rows of a trace that tell what a workload takes at full speed at some time."""

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
        install(self, patch)


class TraceCore:
    """The core of a trace, of which each row has the durations of references and workloads.

    Args:
        trace: the table, with durations in microseconds.
        start_s: time in the trace at which the clock starts.
    """

    def __init__(self, trace: pd.DataFrame, start_s: float = 0.0) -> None:
        self._ends_s = trace["seconds"].to_numpy()
        columns = [str(name) for name in trace.columns[1:]]
        durations = trace[columns].to_numpy()
        # A reference takes longer after a sweep over memory, so that each has a full speed.
        full = np.quantile(durations, FASTEST_SHARE, axis=0)
        self._references = durations[:, ::2] / full[::2]
        self._workloads = dict(zip(columns[1::2], durations[:, 1::2].T / 1e6, strict=True))
        self._names = columns[1::2]
        self._speed = 0.0
        self.now_s = start_s

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def reading_s(self) -> float:
        """Return the duration of the reference after the latest workload."""
        return READING_S * self._speed

    full_us = 1e6 * READING_S
    """Duration of a reading at full speed in microseconds."""

    def full_s(self, name: str, start_s: float) -> float:
        """Return what a workload takes in the middle of stretches at full speed.

        It changes with the temperature, so the next `NEAR_ROWS` of such rows count.
        """
        is_full = (self._references <= 1 + FULL_SPEED_TOLERANCE).all(axis=1)
        middle = np.flatnonzero(np.convolve(is_full, np.ones(3), mode="same") == 3)
        nearest = np.argsort(np.abs(self._ends_s[middle] - start_s))[:NEAR_ROWS]
        return float(np.median(self._workloads[name][middle[nearest]]))

    def workload(self, name: str, rows: int = 1) -> timing.Evaluate:
        """Return what times a workload that is repeated in a number of rows."""
        durations, at = self._workloads[name], self._names.index(name)

        def evaluate(calls: int, samples: int) -> list[float]:
            first = int(np.searchsorted(self._ends_s, self.now_s)) % (len(durations) - rows)
            last = first + rows - 1
            before = self._references[first, at]
            after = self._references[last, at + 1] if at + 1 < 4 else self._references[last + 1, 0]
            self._speed = max(before, after)
            self.now_s += self._ends_s[last + 1] - self._ends_s[first]
            return [durations[first : last + 1].sum()]

        return evaluate

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Let timings of this process run on this core."""
        self._speed = 1.0
        install(self, patch)


def install(core: TwoSpeedCore | TraceCore, patch: pytest.MonkeyPatch) -> None:
    """Let timings of this process run on a core."""
    patch.setattr(timing, "time", core)
    patch.setattr(core_speed, "time", core)
    patch.setattr(timing, "_SPEED", CoreSpeed(core.reading_s))
    patch.setattr(timing, "_expected_s", math.inf)
    patch.setattr(timing, "_preemptions", lambda: 0)
