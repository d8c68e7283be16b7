"""A load on a network: images one after the other, or at a fixed rate, for some minutes.

A load runs in windows, each of which returns a histogram of its latencies: minutes of a network
that takes microseconds have more latencies than are kept.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from nas.statistics import has_tail

BIN_RATIO = 1.002
"""Ratio of a latency to that of the bin below it: a quantile is off by 0.1% at most."""

SPIN_SECONDS = 2e-4
"""How long before an image is due the process stops to sleep: a system wakes it too late."""


class Latencies:
    """A histogram of latencies with a bin for each 0.2%.

    Args:
        counts: number of latencies by bin: bin 0 has those of 1 us, bins below it shorter ones.
    """

    def __init__(self, counts: Counter[int] | None = None) -> None:
        self.counts = counts or Counter()

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latencies:
        """Return the histogram of latencies in seconds."""
        microseconds = np.maximum(1e6 * np.asarray(seconds, np.float64), 1e-3)
        bins = np.rint(np.log(microseconds) / math.log(BIN_RATIO)).astype(int)
        values, counts = np.unique(bins, return_counts=True)
        return cls(Counter(dict(zip(values.tolist(), counts.tolist(), strict=True))))

    def __len__(self) -> int:
        return self.counts.total()

    def __add__(self, other: Latencies) -> Latencies:
        return Latencies(self.counts + other.counts)

    def quantile_us(self, fraction: float) -> float:
        """Return the latency in microseconds that this share of all latencies does not exceed."""
        below, needed = 0, fraction * len(self)
        for index in sorted(self.counts):
            below += self.counts[index]
            if below >= needed:
                return float(BIN_RATIO**index)
        raise ValueError("there are no latencies")

    def tail_us(self, fraction: float) -> float | None:
        """Return a quantile near 1; None of too few latencies, see `nas.statistics.has_tail`."""
        return self.quantile_us(fraction) if has_tail(len(self), fraction) else None


@dataclass(frozen=True)
class Load:
    """A load on one process.

    Attributes:
        start_s: when it starts, on the clock `time.monotonic`, which all processes share.
        seconds: how long it lasts.
        rate: images a second; None means that one image follows the other.
    """

    start_s: float
    seconds: float
    rate: float | None = None

    def due_before(self, seconds: float) -> int:
        """Return the number of images that are due so many seconds after the start.

        The first one is due after half of the time between two images, so that no image is due at
        the end of a window of whole seconds, where the process answers.
        """
        return 0 if self.rate is None else max(0, math.ceil(seconds * self.rate - 0.5))


@dataclass
class LoadWindow:
    """What was measured in a window of a load.

    Attributes:
        latencies: latencies of the images.
        waited: number of images that were due while one before them was running.
        unserved: number of images that were due, and not begun at the end of the load.
        busy_s: time in which images were running, without that in which their histogram was made.
        late_s: time by which this process was late with images that waited for no other one.
        clock_mhz: clock of the cores at the end; None if the system does not say.
    """

    latencies: Latencies = field(default_factory=Latencies)
    waited: int = 0
    unserved: int = 0
    busy_s: float = 0.0
    late_s: float = 0.0
    clock_mhz: float | None = None

    def __add__(self, other: LoadWindow) -> LoadWindow:
        """Return what was measured in both windows; it has no clock."""
        return LoadWindow(
            self.latencies + other.latencies,
            self.waited + other.waited,
            self.unserved + other.unserved,
            self.busy_s + other.busy_s,
            self.late_s + other.late_s,
        )


def run_window(run: Callable[[], object], load: Load, begin_s: float, end_s: float) -> LoadWindow:
    """Run a window of a load.

    At a fixed rate the latency of an image counts from the moment at which it is due, so that an
    image that waits for those before it has their time in its latency.

    Args:
        run: classifies an image.
        load: the load.
        begin_s, end_s: begin and end of the window in seconds after the start of the load.
    """
    result = LoadWindow()
    seconds: list[float] = []
    now = time.monotonic
    if load.rate is None:
        _wait_until(load.start_s + begin_s)
        finished = now()
        while finished < load.start_s + end_s:
            began = finished
            run()
            finished = now()
            seconds.append(finished - began)
        result.busy_s = math.fsum(seconds)
    else:
        finished = now()
        last = load.due_before(end_s)
        for number in range(load.due_before(begin_s), last):
            due = load.start_s + (number + 0.5) / load.rate
            if now() >= load.start_s + load.seconds:
                result.unserved = last - number
                break
            _wait_until(due)
            waits, began = finished > due, now()
            run()
            finished = now()
            seconds.append(finished - due)
            result.busy_s += finished - began
            result.waited += waits
            result.late_s += 0.0 if waits else began - due
    result.latencies = Latencies.of(seconds)
    return result


def _wait_until(moment_s: float) -> None:
    """Wait until a moment on the clock `time.monotonic`: sleep, and compute at the end."""
    sleep_s = moment_s - time.monotonic() - SPIN_SECONDS
    if sleep_s > 0:  # A sleep of no time takes 55 us on some machines.
        time.sleep(sleep_s)
    while time.monotonic() < moment_s:
        pass
