"""How a latency is measured: on one core, with warm caches, at many moments.

A sample during which the operating system took the core away measures how busy the machine is, not
how fast the kernel is. The system counts such preemptions, and a preempted sample is taken again.

Neighbours on the same host slow a virtual machine from one second to the next, without a trace in
its own counts. All samples of one moment agree then, and all are too slow. So a kernel and a
network are timed at many moments with few samples, and `latency_at_quiet_speed` chooses among
these; latency_tables/README.md has the measurements behind this.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from nas.errors import MeasurementError
from nas.latency import core_scheduling, processor_speed
from nas.latency.processor_speed import (
    QUIET_MOMENTS,
    has_enough_quiet,
    measure_at_one_speed,
)

MEASURED = "measured"
"""Basis of a latency that was measured; the basis of another one starts with `estimated: `."""


if sys.platform != "win32":
    import resource

SAMPLES = 3
"""Samples of one timing; its latency is their median."""

MOMENTS = 10
"""Moments at which a kernel or a network is timed, at least.

On a shared machine, the fastest of two moments was 3% too slow on average, that of eight 0.5%.
"""

MIN_UNDISTURBED = 6
"""Timings of each kernel or network with a known slowdown, unless there are too few."""

QUANTILE = 0.25
"""Quantile of the timings with a known slowdown that is the latency."""

RETIMING_TOLERANCE = 0.03
"""Largest difference of two latencies of a kernel or network that agree, as a fraction."""

SECONDS_BETWEEN_MOMENTS = 0.5
"""Shortest time from one timing of a kernel or a network to its next.

Timings of a shared machine were slowed alike for 0.1 s, hardly after 0.3 s, and not after 0.5 s.
"""

MAX_MOMENTS_FACTOR = 4
"""Timings of a kernel or a network over the smallest number, after which no others are taken."""

SAMPLE_SECONDS = 1e-3
"""Shortest duration of a sample: a fast kernel is called as often as needed to fill it."""

QUICK_SAMPLES = 5
"""Samples of a quick timing, which only chooses between schedules."""

QUICK_SAMPLE_SECONDS = 2e-4
"""Shortest duration of a sample of a quick timing."""

MAX_ATTEMPTS_PER_SAMPLE = 5
"""Attempts, on average, at a sample without preemption."""

LONGER_SAMPLES = (1, 10, 100)
"""Factors by which samples get longer while one of them is not above zero."""

MAX_SPREAD = 0.05
"""Interquartile range over median above which a timing is called unstable."""

Evaluate = Callable[[int, int], Sequence[float]]
"""A function of (calls, samples) that returns the seconds of one call, one value per sample, after
an untimed warm-up call."""


@dataclass(frozen=True)
class Timing:
    """Samples of one latency in microseconds per call, with four significant digits.

    Args:
        samples_us: samples of a kernel that is called repeatedly, so that its caches are warm.
        cold_samples_us: samples of the same kernel, called once with cold caches, see
            `nas.latency.cache_model`; empty if that was not timed.
        reference_us: duration of the reference workload beside the samples, see
            `processor_speed.reference_us`; None if the samples are not of this machine's processor.
        slowdown: how many times longer the samples took than at the quiet speed of the processor,
            see `with_slowdown`; None if it is not known.
    """

    samples_us: tuple[float, ...]
    cold_samples_us: tuple[float, ...] = ()
    reference_us: float | None = field(default=None, compare=False)
    slowdown: float | None = field(default=None, compare=False)

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
        """The median of the samples with warm caches, at the quiet speed if `slowdown` is known."""
        return round_to_four_digits(statistics.median(self.samples_us) / (self.slowdown or 1.0))

    def with_slowdown(self, quiet_us: float, sensitivity: float = 1.0) -> Timing:
        """Return this timing with its slowdown.

        Args:
            quiet_us: duration of the reference workload at the quiet speed; infinity if it is not
                known.
            sensitivity: how closely timings follow the reference workload, see
                `processor_speed.sensitivity`.
        """
        slowdown = processor_speed.slowdown(self.reference_us, quiet_us)
        return replace(self, slowdown=slowdown and round_to_four_digits(slowdown**sensitivity))

    @property
    def references_us(self) -> tuple[float, ...]:
        """`reference_us` as a tuple; empty if it is None."""
        return () if self.reference_us is None else (self.reference_us,)

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
    samples: int | None = None,
    is_local: bool = True,
) -> Timing:
    """Return a timing of a few samples at one moment.

    Where an overhead is subtracted, noise can exceed what is left of a short latency, so that a
    sample is not above zero. Then longer samples are taken, which average over the noise.

    Args:
        evaluate: function that takes the samples.
        sample_seconds: shortest duration of a sample.
        calls: calls per sample, in place of as many as fill `sample_seconds`.
        samples: number of samples, `SAMPLES` by default.
        is_local: whether the samples are of this machine's processor. If so, the reference workload
            is timed before and after them, see `processor_speed.measure_at_one_speed`.

    Raises:
        MeasurementError: a sample is not above zero, however long it is.
    """
    shortest = calls or calls_per_sample(evaluate, sample_seconds)

    def take() -> Timing:
        seconds: list[float] = []
        for factor in LONGER_SAMPLES:
            seconds = undisturbed_samples(evaluate, factor * shortest, samples or SAMPLES)
            if min(seconds) > 0:
                break
        return Timing.from_seconds(seconds)

    if not is_local:
        return take()
    taken, reference_us = measure_at_one_speed(take)
    return replace(taken, reference_us=round_to_four_digits(reference_us))


def latency_at_quiet_speed(timings: Iterable[Timing]) -> float:
    """Return the latency of a kernel or network from its timings, in microseconds.

    It is the `QUANTILE` of the timings whose slowdown is known, each at the quiet speed of the
    processor. If none is known, it is the fastest timing, because other work on the machine only
    adds time.

    Args:
        timings: timings at several moments, at least one.
    """
    timings = list(timings)
    latencies_us = [each.latency_us for each in timings]
    return round_to_four_digits(quiet_quantile(latencies_us, [each.slowdown for each in timings]))


def quiet_quantile(values: Sequence[float], slowdowns: Sequence[float | None]) -> float:
    """Return the `QUANTILE` of the values with a known slowdown; the smallest if none has one."""
    pairs = zip(values, slowdowns, strict=True)
    undisturbed = [value for value, slowdown in pairs if slowdown is not None]
    return float(np.quantile(undisturbed, QUANTILE)) if undisturbed else min(values)


def references_us(timings: Iterable[Timing]) -> list[float]:
    """Return the durations of the reference workload beside some timings."""
    return [us for each in timings for us in each.references_us]


def with_slowdowns(series: Sequence[Sequence[Timing]], quiet_us: float) -> list[list[Timing]]:
    """Return timings of several kernels or networks with their slowdowns.

    These follow the reference workload as closely as the timings do, all together.

    Args:
        series: timings of each kernel or network.
        quiet_us: duration of the reference workload at the quiet speed; infinity if it is not
            known.
    """
    sensitivity = processor_speed.sensitivity(
        (
            [(statistics.median(each.samples_us), each.reference_us) for each in timings]
            for timings in series
        ),
        quiet_us,
    )
    return [[each.with_slowdown(quiet_us, sensitivity) for each in timings] for timings in series]


def is_disturbed(timings: Sequence[Timing], quiet_us: float) -> bool:
    """Return whether no timing has a known slowdown, although it could.

    Args:
        timings: timings of a kernel or network.
        quiet_us: duration of the reference workload at the quiet speed; infinity if it is not
            known.
    """
    has_reference = bool(references_us(timings)) and math.isfinite(quiet_us)
    return has_reference and all(each.slowdown is None for each in timings)


def has_enough_undisturbed(timings: Sequence[Timing], quiet_us: float, moments: int) -> bool:
    """Return whether the slowdown of enough timings is known; True without a reference workload.

    If the quiet speed is not known, enough timings must be of the quiet moments among them.

    Args:
        timings: timings of a kernel or network.
        quiet_us: duration of the reference workload at the quiet speed; infinity if it is not
            known.
        moments: number of timings that are taken in any case; more are never required.
    """
    own_us = references_us(timings)
    if math.isinf(quiet_us):
        return has_enough_quiet(own_us, wanted=min(QUIET_MOMENTS, moments))
    known = sum(each.slowdown is not None for each in timings)
    return known >= min(MIN_UNDISTURBED, moments) or not own_us


def compared_us(timings: Sequence[Timing]) -> tuple[float, float] | None:
    """Return two latencies in microseconds that tell how precisely a latency is known.

    They are the latencies of every other timing with a known slowdown, and of the rest of these.
    With fewer than two of them, they are the two fastest timings, because other work on the machine
    only adds time.

    Args:
        timings: timings of a kernel or network.

    Returns:
        The latencies in ascending order; None if there are fewer than two timings.
    """
    undisturbed = [each for each in timings if each.slowdown is not None]
    if len(undisturbed) > 1:
        halves = (undisturbed[start::2] for start in (0, 1))
        latencies = sorted(latency_at_quiet_speed(half) for half in halves)
    else:
        latencies = sorted(each.latency_us for each in timings)[:2]
    return (latencies[0], latencies[1]) if len(latencies) > 1 else None


def timings_agree(timings: Sequence[Timing], tolerance: float = RETIMING_TOLERANCE) -> bool:
    """Return whether `compared_us` of some timings differ by at most `tolerance`, a fraction.

    Other programs can slow a machine for many seconds, during which all samples agree and all are
    wrong.
    """
    compared = compared_us(timings)
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


def undisturbed_samples(evaluate: Evaluate, calls: int, samples: int) -> list[float]:
    """Return samples during which the thread was not preempted.

    On a machine that is too busy for that, the fastest preempted samples fill the list up; their
    spread shows that they were disturbed.

    Args:
        evaluate: function that takes the samples.
        calls: calls per sample.
        samples: number of samples.

    Returns:
        Seconds per call, one value per sample.
    """
    undisturbed: list[float] = []
    preempted: list[float] = []
    for _ in range(MAX_ATTEMPTS_PER_SAMPLE * samples):
        before = _preemptions()
        (seconds,) = evaluate(calls, 1)
        (undisturbed if _preemptions() == before else preempted).append(seconds)
        if len(undisturbed) == samples:
            break
    return (undisturbed + sorted(preempted))[:samples]


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
