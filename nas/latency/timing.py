"""How a latency is measured: on one core, with warm caches, at several moments.

A sample during which the operating system took the core away measures how busy the machine is, not
how fast the kernel is. The system counts such preemptions, and a preempted sample is taken again.

Neighbours on the same host slow a virtual machine from one second to the next, without a trace in
its own counts. So a sample counts between two readings at full speed (`nas.latency.core_speed`).
Where there is none, all samples of one moment may agree and be too slow. So kernels, networks and
exported files are timed at several moments with few samples, and `LatencySummary` says what they
take at quiet moments and typically; docs/measurements.md has the measurements behind this.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from nas.errors import MeasurementError
from nas.latency import core_scheduling
from nas.latency.core_speed import CoreSpeed, SpeedSummary
from nas.statistics import tail_quantile

MEASURED = "measured"
"""Basis of a latency that was measured; the basis of another one starts with `ESTIMATED`."""

ESTIMATED = "estimated: "
"""Start of the basis of an estimated latency; the method follows."""

if sys.platform != "win32":
    import resource

SAMPLES = 3
"""Samples of one timing; its latency is their median."""

MOMENTS = 6
"""Moments at which a kernel or a network is timed, at least.

With ten moments, predictions of three tables were 0.2 points better (docs/measurements.md).
"""

MAX_MOMENTS = 24
"""Moments after which a kernel or a network whose timings disagree is timed no more."""

MOMENTS_PER_OUTLIER = 8
"""One of so many moments may be faster than all others, while the neighbours of a core idle."""

RETIMING_TOLERANCE = 0.03
"""Largest difference of two latencies of a kernel or network that agree, as a fraction."""

SECONDS_BETWEEN_MOMENTS = 0.5
"""Shortest time from one timing of a kernel or a network to its next.

Timings of a shared machine were slowed alike for 0.1 s, hardly after 0.3 s, and not after 0.5 s.
"""

SAMPLE_SECONDS = 1e-3
"""Shortest duration of a sample: a fast kernel is called as often as needed to fill it."""

QUICK_SAMPLES = 5
"""Samples of a quick timing, which only chooses between schedules."""

QUICK_SAMPLE_SECONDS = 2e-4
"""Shortest duration of a sample of a quick timing."""

MAX_ATTEMPTS_PER_SAMPLE = 5
"""Attempts, on average, at an undisturbed sample."""

WAIT_SECONDS = 0.25
"""How long a timing waits for an undisturbed sample: slowed stretches of a core are often shorter.
A timing that has one waits for the others as long as `MAX_ATTEMPTS_PER_SAMPLE` says."""

LONGER_SAMPLES = (1, 10, 100)
"""Factors by which samples get longer while one of them is not above zero."""

MAX_SPREAD = 0.05
"""Interquartile range over median above which a timing is called unstable."""

Evaluate = Callable[[int, int], Sequence[float]]
"""A function of (calls, samples) that returns the seconds of one call, one value per sample, after
an untimed warm-up call."""


_SPEED = CoreSpeed()
"""The speed of the cores of this process."""


@dataclass(frozen=True)
class Timing:
    """Samples of one latency in microseconds per call, with four significant digits.

    Args:
        samples_us: samples of a kernel that is called repeatedly, so that its caches are warm.
        cold_samples_us: samples of the same kernel, called once with cold caches, see
            `nas.latency.cache_model`; empty if that was not timed.
    """

    samples_us: tuple[float, ...]
    cold_samples_us: tuple[float, ...] = ()

    @classmethod
    def from_seconds(cls, seconds: Sequence[float]) -> Timing:
        """Return the timing with these samples in seconds.

        Raises:
            MeasurementError: there is no sample, or one is not finite and above zero.
        """
        samples = tuple(round_to_four_digits(value * 1e6) for value in seconds)
        if not samples or not all(math.isfinite(each) and each > 0 for each in samples):
            raise MeasurementError(
                f"Timing gave {list(samples)} us, which is no latency.",
                remedy="Time it again on an idle machine.",
            )
        return cls(samples)

    def with_cold_seconds(self, seconds: Sequence[float]) -> Timing:
        """Return this timing with samples in seconds that were taken with cold caches.

        Raises:
            MeasurementError: see `from_seconds`.
        """
        return replace(self, cold_samples_us=Timing.from_seconds(seconds).samples_us)

    @property
    def latency_us(self) -> float:
        """The median of the samples with warm caches."""
        return round_to_four_digits(statistics.median(self.samples_us))

    @property
    def spread(self) -> float:
        """The interquartile range of the samples over their median."""
        if len(self.samples_us) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples_us, n=4, method="inclusive")
        return (high - low) / statistics.median(self.samples_us)

    @property
    def is_unstable(self) -> bool:
        """Whether the samples disagree by more than `MAX_SPREAD`."""
        return self.spread > MAX_SPREAD


def measure(
    evaluate: Evaluate,
    sample_seconds: float = SAMPLE_SECONDS,
    *,
    calls: int | None = None,
    samples: int = SAMPLES,
) -> Timing:
    """Return a timing of a few samples at one moment.

    Where an overhead is subtracted, noise can exceed what is left of a short latency, so that a
    sample is not above zero. Then longer samples are taken, which average over the noise.

    Args:
        evaluate: function that takes the samples.
        sample_seconds: shortest duration of a sample.
        calls: calls per sample, in place of as many as fill `sample_seconds`.
        samples: number of samples.

    Raises:
        MeasurementError: a sample is not above zero, however long it is.
    """
    shortest = calls or calls_per_sample(evaluate, sample_seconds)
    seconds: list[float] = []
    for factor in LONGER_SAMPLES:
        seconds = undisturbed_samples(evaluate, factor * shortest, samples, wait_s=WAIT_SECONDS)
        if min(seconds) > 0:
            break
    return Timing.from_seconds(seconds)


def quiet_us(moments_us: Sequence[float]) -> float:
    """Return the latency at quiet moments, from the latencies at several moments.

    Other work on the machine only adds time, so it is the fastest one, after one of each
    `MOMENTS_PER_OUTLIER` moments is left out.

    Args:
        moments_us: latencies of a kernel, network or file in microseconds, at least one.
    """
    return sorted(moments_us)[len(moments_us) // MOMENTS_PER_OUTLIER]


class LatencySummary(NamedTuple):
    """Latencies at several moments in two figures, in microseconds.

    Attributes:
        quiet_us: see `quiet_us`; what tables, searches and comparisons use, as it depends least on
            the other work on the machine.
        typical_us: the median.
    """

    quiet_us: float
    typical_us: float

    @classmethod
    def of(cls, moments_us: Sequence[float]) -> LatencySummary:
        """Return the summary of latencies at one moment or more."""
        figures = quiet_us(moments_us), statistics.median(moments_us)
        return cls(*map(round_to_four_digits, figures))


class Slowdown(NamedTuple):
    """How much slower than at quiet moments a machine was.

    Attributes:
        typical: median over all that was timed of its typical over its quiet latency.
        high: the 95% quantile over all moments of the latency over the quiet one; None of too few
            moments, see `nas.statistics.has_tail`.
    """

    typical: float
    high: float | None

    @classmethod
    def of(cls, latencies: Iterable[Sequence[float]]) -> Slowdown | None:
        """Return the slowdown while some latencies were timed; None if none was timed again.

        Args:
            latencies: latencies of each kernel or network at several moments.
        """
        ratios = [
            [each / quiet_us(moments) for each in moments]
            for moments in latencies
            if len(moments) > 1
        ]
        if not ratios:
            return None
        typical = statistics.median(map(statistics.median, ratios))
        return cls(typical, tail_quantile([each for own in ratios for each in own], 0.95))

    @property
    def text(self) -> str:
        """A clause that follows the name of what was timed."""
        text = f"typically took {self.typical:.2f} times as long as at quiet moments"
        if self.high is not None:
            text += f", and {self.high:.2f} times or more at the slowest 5% of all moments"
        return f"{text}, not counting samples while the core was slowed"


def compared_us(moments_us: Sequence[float]) -> tuple[float, float] | None:
    """Return two latencies in microseconds that tell how precisely a latency is known.

    They are those of every other moment, and of the rest.

    Args:
        moments_us: latencies of a kernel or network at several moments.

    Returns:
        The latencies in ascending order; None if there are fewer than two moments.
    """
    if len(moments_us) < 2:
        return None
    first, second = (quiet_us(moments_us[start::2]) for start in (0, 1))
    return min(first, second), max(first, second)


def moments_agree(moments_us: Sequence[float], tolerance: float = RETIMING_TOLERANCE) -> bool:
    """Return whether `compared_us` differ by at most `tolerance`, a fraction."""
    compared = compared_us(moments_us)
    return compared is not None and compared[1] <= (1 + tolerance) * compared[0]


class Moments:
    """Moments at which things are timed, at least `SECONDS_BETWEEN_MOMENTS` apart."""

    def __init__(self) -> None:
        self._next_s = -math.inf

    def wait(self) -> None:
        """Wait until the next moment, and begin it."""
        time.sleep(max(0.0, self._next_s - time.monotonic()))
        self._next_s = time.monotonic() + SECONDS_BETWEEN_MOMENTS


def median_seconds(evaluate: Evaluate, calls: int) -> float:
    """Return the median seconds per call of a few samples, from which differences are computed."""
    return statistics.median(undisturbed_samples(evaluate, calls, QUICK_SAMPLES))


def quick_latency_us(evaluate: Evaluate) -> float:
    """Return a rough latency in microseconds from few and short samples."""
    calls = calls_per_sample(evaluate, QUICK_SAMPLE_SECONDS)
    return Timing.from_seconds(undisturbed_samples(evaluate, calls, QUICK_SAMPLES)).latency_us


def undisturbed_samples(
    evaluate: Evaluate, calls: int, samples: int, *, wait_s: float = 0.0
) -> list[float]:
    """Return samples during which the thread was not preempted and its core ran at full speed.

    Each sample is taken between two readings of the speed, see `nas.latency.core_speed`. If no
    sample is undisturbed, the fastest of the others are returned; those of another moment are then
    faster.

    Args:
        evaluate: function that takes the samples.
        calls: calls per sample.
        samples: number of samples, at most.
        wait_s: seconds in which samples are taken until one is undisturbed, beyond
            `MAX_ATTEMPTS_PER_SAMPLE` attempts for each sample.

    Returns:
        Seconds per call, one value per sample, at least one.
    """
    undisturbed: list[float] = []
    disturbed: list[float] = []
    end, attempts = time.monotonic() + wait_s, MAX_ATTEMPTS_PER_SAMPLE * samples
    speed_before = _SPEED.read()
    while len(undisturbed) < samples and (
        attempts > 0 or (not undisturbed and time.monotonic() < end)
    ):
        attempts -= 1
        preempted_before = _preemptions()
        (seconds,) = evaluate(calls, 1)
        is_preempted = _preemptions() != preempted_before
        speed = _SPEED.read()
        is_undisturbed = not is_preempted and _SPEED.is_full(speed_before, speed)
        (undisturbed if is_undisturbed else disturbed).append(seconds)
        speed_before = speed
    return undisturbed or sorted(disturbed)[:samples]


def _preemptions() -> int:
    """Return how often the system preempted this thread; always 0 if the system does not say."""
    if sys.platform != "linux":
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def calls_per_sample(evaluate: Evaluate, sample_seconds: float) -> int:
    """Return the number of calls that fill a sample of this duration."""
    once = min(evaluate(1, 3))
    return max(1, math.ceil(sample_seconds / once)) if once > 0 else 1000


def round_to_four_digits(value: float) -> float:
    """Return a value with four significant digits, which no timing exceeds in precision."""
    return float(f"{value:.4g}")


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep the calling thread on one core, or on as many cores as it uses threads.

    If several processes share the machine, entering waits until this process may time
    (`nas.latency.core_scheduling`). On systems without `sched_setaffinity` (macOS, Windows) nothing
    is pinned.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    with core_scheduling.reserved_cores(threads) as cores:
        os.sched_setaffinity(0, cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def watch_speed(seconds: float) -> SpeedSummary:
    """Watch the speed of a core of this machine for some seconds, and return a summary."""
    with pinned(1):
        return _SPEED.watch(seconds)
