"""How a latency is measured: warm, on one core, often enough, and judged by its own spread.

A sample during which the system took the core away says how busy the machine is, not how fast the
kernel: the system counts such preemptions, and such samples are taken again.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from nas.errors import MeasurementError
from nas.latency import core_scheduling

if sys.platform != "win32":
    import resource

SAMPLES = 10
"""Samples of one timing; a latency is their median."""

SAMPLE_SECONDS = 1e-3
"""Shortest duration of a sample: fast kernels are called as often as that takes."""

QUICK_SAMPLES = 5
QUICK_SAMPLE_SECONDS = 2e-4
"""The same for a first look, which only chooses between schedules."""

ATTEMPTS = 5
"""Samples taken, at most, for each one kept, while preemptions spoil them."""

LARGEST_SPREAD = 0.05
"""Interquartile range over median above which a timing is repeated, then called unstable."""

Evaluate = Callable[[int, int], Sequence[float]]
"""`(calls, samples)` to seconds a call, one value a sample, after an untimed warm-up call."""


@dataclass(frozen=True)
class Timing:
    """Samples of one latency, in microseconds a call, with four significant digits.

    Args:
        samples_us: of a kernel, those of one that is called over and over.
        far_samples_us: of the same kernel called once with its weights far away, see
            `nas.latency.cache_model`; empty where that was not timed.
    """

    samples_us: tuple[float, ...]
    far_samples_us: tuple[float, ...] = ()

    @classmethod
    def of_seconds(cls, seconds: Sequence[float], far_seconds: Sequence[float] = ()) -> Timing:
        """Raises MeasurementError for no samples, or one that is not finite and above zero."""
        samples = tuple(four_digits(value * 1e6) for value in seconds)
        far = tuple(four_digits(value * 1e6) for value in far_seconds)
        if not samples or not all(math.isfinite(each) and each > 0 for each in (*samples, *far)):
            raise MeasurementError(
                f"Timing gave {list(samples + far)} us, which is no latency.",
                remedy="Time it again on an idle machine.",
            )
        return cls(samples, far)

    @property
    def latency_us(self) -> float:
        """The median of the samples."""
        return four_digits(statistics.median(self.samples_us))

    @property
    def spread(self) -> float:
        """Interquartile range over median."""
        if len(self.samples_us) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples_us, n=4, method="inclusive")
        return (high - low) / statistics.median(self.samples_us)

    @property
    def unstable(self) -> bool:
        """Whether the samples disagree by more than `LARGEST_SPREAD`."""
        return self.spread > LARGEST_SPREAD


def measure(evaluate: Evaluate) -> Timing:
    """`SAMPLES` samples; where they spread, a second set, and the steadier of the two."""
    calls = calls_in(evaluate, SAMPLE_SECONDS)
    timing = Timing.of_seconds(undisturbed(evaluate, calls, SAMPLES))
    if not timing.unstable:
        return timing
    again = Timing.of_seconds(undisturbed(evaluate, calls, SAMPLES))
    return min(timing, again, key=lambda each: each.spread)


def agree(latencies_us: Collection[float], tolerance: float) -> bool:
    """Whether the two fastest of several timings are within `tolerance`, a share, of each other.

    A busy neighbour can slow a machine for many seconds, in which all samples agree and all are
    wrong; it cannot make one faster.
    """
    fastest = sorted(latencies_us)[:2]
    return len(fastest) == 2 and fastest[1] <= (1 + tolerance) * fastest[0]


def steadiest(once: Callable[[], Mapping[str, float]], sets: int) -> dict[str, Timing]:
    """Parts that are worked out together as differences of timings, `SAMPLES` times.

    Differences of timings are noisier than timings: a set of samples with one that is not above
    zero, or that spreads, is taken again, and the steadiest set counts.

    Args:
        once: seconds by part.
        sets: that are taken at most.

    Raises MeasurementError where noise leaves no set above zero.
    """
    found: list[dict[str, Timing]] = []
    for attempt in range(1, sets + 1):
        samples = [once() for _ in range(SAMPLES)]
        try:
            found.append(
                {part: Timing.of_seconds([each[part] for each in samples]) for part in samples[0]}
            )
        except MeasurementError:
            if attempt == sets and not found:
                raise
            continue
        if not any(timing.unstable for timing in found[-1].values()):
            break
    return min(found, key=lambda parts: max(timing.spread for timing in parts.values()))


def median_s(evaluate: Evaluate, calls: int) -> float:
    """Seconds a call, from a few samples of `calls`: what a difference of timings is made of."""
    return statistics.median(undisturbed(evaluate, calls, QUICK_SAMPLES))


def quick_us(evaluate: Evaluate) -> float:
    """A first look at a latency, in microseconds."""
    calls = calls_in(evaluate, QUICK_SAMPLE_SECONDS)
    return Timing.of_seconds(undisturbed(evaluate, calls, QUICK_SAMPLES)).latency_us


_ROUNDS = 8
SECONDS_APART = 0.2
"""Of `fastest_of_rounds`, and between two."""


def undisturbed(evaluate: Evaluate, calls: int, samples: int) -> list[float]:
    """Seconds a call of `samples` samples that no preemption spoiled.

    On a machine too busy for that, the fastest of the spoilt ones make up the number; they spread.
    """
    kept: list[float] = []
    spoilt: list[float] = []
    for _ in range(ATTEMPTS * samples):
        before = _preemptions()
        (seconds,) = evaluate(calls, 1)
        (kept if _preemptions() == before else spoilt).append(seconds)
        if len(kept) == samples:
            break
    return (kept + sorted(spoilt))[:samples]


def _preemptions() -> int:
    """How often the system took the core from this thread; always 0 where it does not tell."""
    if sys.platform != "linux":
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def fastest_of_rounds(timed: Mapping[str, Callable[[], Timing]]) -> dict[str, Timing]:
    """Each of several things timed in rounds, apart from each other; the fastest of each counts.

    For what other programs slow by taking a shared cache: how much they leave differs from one
    moment to the next.

    Raises MeasurementError where no round gave one of the things a latency.
    """
    found: dict[str, list[Timing]] = {name: [] for name in timed}
    failures: dict[str, MeasurementError] = {}
    for _ in range(_ROUNDS):
        for name, take in timed.items():
            try:
                found[name].append(take())
            except MeasurementError as failure:
                failures[name] = failure
        time.sleep(SECONDS_APART)
    for name, each in found.items():
        if not each:
            raise failures[name]
    return {name: min(each, key=lambda t: t.latency_us) for name, each in found.items()}


def calls_in(evaluate: Evaluate, sample_seconds: float) -> int:
    """Calls that fill a sample."""
    once = min(evaluate(1, 3))
    return max(1, math.ceil(sample_seconds / once)) if once > 0 else 1000


def noise() -> Timing:
    """Times a small matrix product that always takes the same work, on one core.

    Its `spread` is what a timing on this machine, right now, cannot do better than.
    """
    matrix = np.ones((64, 64), np.float32)
    out = np.empty_like(matrix)

    def evaluate(calls: int, samples: int) -> list[float]:
        found = []
        for _ in range(samples):
            np.matmul(matrix, matrix, out=out)
            start = time.perf_counter()
            for _ in range(calls):
                np.matmul(matrix, matrix, out=out)
            found.append((time.perf_counter() - start) / calls)
        return found

    with pinned(1):
        return Timing.of_seconds(undisturbed(evaluate, calls_in(evaluate, SAMPLE_SECONDS), SAMPLES))


def four_digits(value: float) -> float:
    """Rounded to four significant digits, which is more than any timing is good for."""
    return float(f"{value:.4g}")


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keeps the calling thread on one core, or on as many as it uses threads, while inside.

    Waits for its turn where processes share the machine (`nas.latency.core_scheduling`). Systems
    without
    `sched_setaffinity` (macOS, Windows) schedule as they like.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    with core_scheduling.turn(threads) as cores:
        os.sched_setaffinity(0, cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)
