"""How a latency is measured: on one core, with warm caches, in several rounds.

A sample during which the operating system took the core away measures how busy the machine is, not
how fast the kernel is. The system counts such preemptions, and a preempted sample is taken again.

Neighbours on the same host slow a virtual machine from one second to the next, without a trace in
its own counts. So a sample counts between two readings at full speed (`nas.latency.core_speed`).
Where there is none, all samples of one round may agree and be too slow. So kernels, networks and
exported files are timed in several rounds with few samples. Each round keeps its reading, so that
a slow one counts no more as soon as a faster reading is known, and `Latency` says what follows from
all of them; docs/measurements.md has the measurements behind this.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import NamedTuple

from nas.errors import MeasurementError
from nas.latency import core_scheduling
from nas.latency.core_speed import CoreSpeed, SpeedSummary

MEASURED = "measured"
"""Basis of a latency that was measured; the basis of another one starts with `ESTIMATED`."""

ESTIMATED = "estimated: "
"""Start of the basis of an estimated latency; the method follows."""

if sys.platform != "win32":
    import resource

SHORTEST_US, LONGEST_US = 1e-9, 1e12
"""Limits of a latency in microseconds, which no clock reaches and sums and ratios can bear."""

SAMPLES = 3
"""Samples of one timing; its latency is their median."""

SECONDS_BETWEEN_ROUNDS = 0.5
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

WAIT_SECONDS = 10.0
"""How long timings wait for a slowed core: nothing can be timed meanwhile, and stretches of up to
7 s were seen. After that, timings take the samples that they get until it is at full speed again. A
timing that has an undisturbed sample takes `MAX_ATTEMPTS_PER_SAMPLE` attempts at the others.
"""

LONGER_SAMPLES = (1, 10, 100)
"""Factors by which samples get longer while one of them is not above zero."""

_MAX_SHOWN_CHARACTERS = 200
"""Longest list of samples that a message shows."""

MAX_SPREAD = 0.05
"""Interquartile range over median above which a timing is called unstable."""


def round_to_four_digits(value: float) -> float:
    """Return a value with four significant digits, which no timing exceeds in precision."""
    return float(f"{value:.4g}")


class Attempt(NamedTuple):
    """An attempt at a sample.

    Attributes:
        seconds: seconds of one call.
        reading_s: the slower one of the readings of the core's speed before and after it; None
            without readings.
        is_undisturbed: whether the thread was not preempted, and its core ran at full speed.
    """

    seconds: float
    reading_s: float | None
    is_undisturbed: bool


Evaluate = Callable[[int, int], Sequence[float]]
"""A function of (calls, samples) that returns the seconds of one call, one value per sample, after
an untimed warm-up call."""


_SPEED = CoreSpeed()
"""The speed of the cores of this process."""

_READ: ContextVar[CoreSpeed | None] = ContextVar("read")
"""The speed that is read beside timings, if it is not `_SPEED`."""


@dataclass(frozen=True)
class Timing:
    """Samples of one latency in one round, in microseconds per call, with four significant digits.

    Args:
        samples_us: samples of a kernel that is called repeatedly, so that its caches are warm.
        reading_us: duration of the reading of the core's speed beside the samples; None if no speed
            was read.
        first_us: the first sample, whatever disturbed it; None if samples are not taken one by one.

    Raises:
        MeasurementError: there is no sample, or a value is no number within the limits of a
            latency.
    """

    samples_us: tuple[float, ...]
    reading_us: float | None = None
    first_us: float | None = None

    def __post_init__(self) -> None:
        samples = tuple(self.samples_us)
        others = [each for each in (self.reading_us, self.first_us) if each is not None]
        if not samples or not all(map(_is_latency_us, (*samples, *others))):
            given = ", ".join(map(str, (*samples, *others))) or "no sample"
            raise MeasurementError(
                f"Timing gave {given[:_MAX_SHOWN_CHARACTERS]} in us, which is no latency.",
                remedy="Time it again on an idle machine.",
            )
        object.__setattr__(self, "samples_us", tuple(map(float, samples)))

    @classmethod
    def from_seconds(cls, seconds: Sequence[float]) -> Timing:
        """Return the timing with these samples in seconds.

        Raises:
            MeasurementError: there is no sample, or a value is no number within the limits of a
                latency.
        """
        return cls(tuple(map(_rounded_us, seconds)))

    @classmethod
    def from_attempts(cls, attempts: Sequence[Attempt]) -> Timing:
        """Return the timing of one round, with the attempts that count (`chosen_attempts`).

        Raises:
            MeasurementError: a sample is not above zero.
        """
        chosen = chosen_attempts(attempts, SAMPLES)
        seconds = [each.seconds for each in chosen]
        readings = [each.reading_s for each in chosen if each.reading_s is not None]
        first_s = attempts[0].seconds
        return cls(
            tuple(map(_rounded_us, seconds)),
            _rounded_us(statistics.median(readings)) if readings else None,
            _rounded_us(first_s if first_s > 0 else seconds[0]),
        )

    @cached_property
    def latency_us(self) -> float:
        """The median of the samples with warm caches."""
        return round_to_four_digits(statistics.median(self.samples_us))

    @property
    def typical_us(self) -> float:
        """The first sample, whatever disturbed it, if it is known: what users get."""
        return self.latency_us if self.first_us is None else self.first_us

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


def _rounded_us(seconds: float) -> float:
    """Return seconds in microseconds; what is no number stays as it is, and is no latency."""
    return round_to_four_digits(seconds * 1e6) if isinstance(seconds, Real) else seconds


def _is_latency_us(value: object) -> bool:
    """Return whether a value, which another package may have made, is a latency."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return SHORTEST_US <= float(value) <= LONGEST_US


def measure(
    evaluate: Evaluate,
    sample_seconds: float = SAMPLE_SECONDS,
    *,
    calls: int | None = None,
) -> Timing:
    """Return a timing of a few samples in one round.

    Where an overhead is subtracted, noise can exceed what is left of a short latency, so that a
    sample is not above zero. Then longer samples are taken, which average over the noise.

    Args:
        evaluate: function that takes the samples.
        sample_seconds: shortest duration of a sample.
        calls: calls per sample, in place of as many as fill `sample_seconds`.

    Raises:
        MeasurementError: a sample is not above zero, however long it is.
    """
    shortest = calls or calls_per_sample(evaluate, sample_seconds)
    for factor in LONGER_SAMPLES:
        attempts = _attempts(evaluate, factor * shortest, SAMPLES)
        if all(each.seconds > 0 for each in chosen_attempts(attempts, SAMPLES)):
            break
    return Timing.from_attempts(attempts)


def call_seconds(call: Callable[[], object], calls: int, samples: int) -> list[float]:
    """Time a function in this process, as an `Evaluate` does."""
    seconds = []
    for _ in range(samples):
        call()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        seconds.append((time.perf_counter() - start) / calls)
    return seconds


def median_seconds(evaluate: Evaluate, calls: int) -> float:
    """Return the median seconds per call of a few samples, from which differences are computed."""
    return statistics.median(undisturbed_samples(evaluate, calls, QUICK_SAMPLES))


def quick_latency_us(evaluate: Evaluate) -> float:
    """Return an approximate latency in microseconds from few and short samples."""
    calls = calls_per_sample(evaluate, QUICK_SAMPLE_SECONDS)
    return Timing.from_seconds(undisturbed_samples(evaluate, calls, QUICK_SAMPLES)).latency_us


def undisturbed_samples(evaluate: Evaluate, calls: int, samples: int) -> list[float]:
    """Return samples during which the thread was not preempted and its core ran at full speed.

    If no sample is undisturbed, the fastest of the others are returned (`chosen_attempts`).

    Args:
        evaluate: function that takes the samples.
        calls: calls per sample.
        samples: number of samples, at most.

    Returns:
        Seconds per call, one value per sample, at least one.
    """
    attempts = _attempts(evaluate, calls, samples)
    return [each.seconds for each in chosen_attempts(attempts, samples)]


def chosen_attempts(attempts: Sequence[Attempt], samples: int) -> list[Attempt]:
    """Return the attempts at samples that count: the undisturbed ones, or else the fastest ones.

    Args:
        attempts: attempts in their order, one or more.
        samples: number of attempts to choose, at most.
    """
    undisturbed = [each for each in attempts if each.is_undisturbed]
    by_duration = sorted(attempts, key=lambda each: (each.seconds, each.reading_s or 0.0))
    return (undisturbed or by_duration)[:samples]


def _attempts(evaluate: Evaluate, calls: int, samples: int) -> list[Attempt]:
    """Attempt samples, each between two readings of the speed, until enough are undisturbed.

    There are `MAX_ATTEMPTS_PER_SAMPLE` attempts at each sample, and more until one is undisturbed,
    or the core has been slowed for `WAIT_SECONDS`.
    """
    speed = _READ.get(_SPEED)
    # A device takes its own samples again; this thread only waits for them.
    preemptions = _preemptions if speed in (None, _SPEED) else lambda: 0
    taken: list[Attempt] = []
    undisturbed = 0
    left = MAX_ATTEMPTS_PER_SAMPLE * samples
    before = speed.read() if speed else 0.0
    is_waiting = False
    while undisturbed < samples and (left > 0 or is_waiting):
        left -= 1
        preempted_before = preemptions()
        (seconds,) = evaluate(calls, 1)
        is_preempted = preemptions() != preempted_before
        after = speed.read() if speed else 0.0
        is_full = speed is None or speed.is_full(before, after)
        is_undisturbed = is_full and not is_preempted
        undisturbed += is_undisturbed
        taken.append(Attempt(seconds, max(before, after) if speed else None, is_undisturbed))
        is_waiting = bool(
            speed and not is_full and not undisturbed and speed.slowed_s() < WAIT_SECONDS
        )
        before = after
    return taken


@contextmanager
def reading(speed: CoreSpeed | None) -> Iterator[None]:
    """Read the speed of another core than this process's beside timings, or None for no speed."""
    before = _READ.set(speed)
    try:
        yield
    finally:
        _READ.reset(before)


def _preemptions() -> int:
    """Return how often the system preempted this thread; always 0 if the system does not say."""
    if sys.platform != "linux":
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def calls_per_sample(evaluate: Evaluate, sample_seconds: float) -> int:
    """Return the number of calls that fill a sample of this duration."""
    once = min(evaluate(1, 3))
    return max(1, math.ceil(sample_seconds / once)) if once > 0 else 1000


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


def learn_speed(threads: int) -> None:
    """Learn the full speed of a core of this machine, for which the first timing would wait."""
    with pinned(threads):
        _SPEED.is_full(_SPEED.read())


def watch_speed(seconds: float) -> SpeedSummary:
    """Watch the speed of a core of this machine for some seconds, and return a summary."""
    with pinned(1):
        return _SPEED.watch(seconds)
