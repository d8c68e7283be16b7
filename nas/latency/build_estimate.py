"""Estimating how long a latency table takes to build, from a few kernels that are timed now."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from nas.errors import NasError
from nas.latency import timing
from nas.latency.build import KERNELS_IN_TURN, kernels_per_group
from nas.latency.installed_runtimes import default_runtime, open_runtime
from nas.latency.kernel import Kernel
from nas.latency.runtime import KernelTimer, Runtime
from nas.latency.timer_pool import TimerPool
from nas.latency.verify import apportion
from nas.latency.worker_process import timers_for

MAX_TIMED_KERNELS = 8
"""Largest number of kernels that are timed for an estimate."""


@dataclass(frozen=True)
class BuildEstimate:
    """The estimated duration of a build.

    Args:
        kernels: number of kernels to time.
        estimated_seconds: duration of the build; None if there is no estimate.
        timed_kernels: number of kernels that were timed for the estimate.
        reason: why there is no estimate; empty if there is one.
    """

    kernels: int
    estimated_seconds: float | None = None
    timed_kernels: int = 0
    reason: str = ""


def estimate_build(kernels: Sequence[Kernel], runtime_name: str) -> BuildEstimate:
    """Estimate the duration of a build with a runtime for the first of its targets and dtypes.

    If the runtime cannot be used here, the result has the reason instead of an estimate.

    Args:
        kernels: kernels to time.
        runtime_name: name of the runtime.
    """
    try:
        default = default_runtime(runtime_name)
        runtime = open_runtime(runtime_name, target=default.target, dtype=default.dtype)
        return estimate_build_with(kernels, runtime)
    except NasError as error:
        return BuildEstimate(len(kernels), reason=str(error))


def estimate_build_with(kernels: Sequence[Kernel], runtime: Runtime) -> BuildEstimate:
    """Estimate the duration of a build by timing a few kernels of the most numerous kinds.

    The duration of a kernel depends on its kind far more than on its size. The kernels are timed as
    in a build: in the same worker processes, and by all of them at the same time.

    Args:
        kernels: kernels to time.
        runtime: opened runtime.
    """
    with timers_for(runtime) as timers:
        return estimate_build_by(kernels, timers, runtime.moments)


def estimate_build_by(
    kernels: Sequence[Kernel], timers: Sequence[KernelTimer], moments: int
) -> BuildEstimate:
    """Estimate the duration of a build with these timers; see `estimate_build_with`.

    Args:
        kernels: kernels to time.
        timers: see `nas.latency.build.build_table`.
        moments: number of moments at which each kernel is timed.
    """
    groups = _groups(kernels)
    chosen = _choose(groups)
    pool = TimerPool(timers)
    # The first kernel of a timer also starts its worker, as in a build.
    starts = chosen[: len(timers)]
    start = _time(pool, starts, lambda timer, kernel: timer.time_kernel(kernel))
    first = _time(pool, chosen, lambda timer, kernel: timer.time_kernel(kernel))
    schedules = {
        kernel: outcome[0]
        for kernel, outcome in first.outcomes.items()
        if not isinstance(outcome, Exception)
    }
    if not schedules:
        kernel, error = next(iter(first.outcomes.items()))
        reason = f"{kernel} cannot be timed: {type(error).__name__}: {error}"
        return BuildEstimate(len(kernels), reason=reason)
    seconds = max(0.0, start.wall_s - max(first.seconds[kernel] for kernel in starts))
    first_s = first.seconds_of(groups)
    seconds += first_s
    if moments > 1:
        # The first time, a runtime may time more than later, such as cold caches.
        second, later = (
            _time(pool, list(schedules), lambda timer, k: timer.retime_kernel(k, schedules[k]))
            for _ in range(2)
        )
        later_s = later.seconds_of(groups)
        # The last moment comes when all kernels have been timed.
        seconds += max(timing.SECONDS_BETWEEN_MOMENTS, later_s)
        seconds += (moments - 2) * later_s + max(0.0, second.seconds_of(groups) - later_s)
        if moments > 2:
            in_turn = min(1.0, KERNELS_IN_TURN * len(timers) / len(kernels))
            compiled = math.ceil(len(kernels) / kernels_per_group(len(timers), moments))
            seconds += compiled * _wait_s(first_s / compiled + in_turn * later_s)
            # The groups after which no other is compiled become fewer.
            seconds += (moments - 3) * _wait_s(in_turn * later_s / 2)
    return BuildEstimate(len(kernels), round(seconds, 1), len(schedules))


def _wait_s(seconds: float) -> float:
    """Return how long a build waits for the next moment after this many seconds."""
    return max(0.0, timing.SECONDS_BETWEEN_MOMENTS - seconds)


@dataclass(frozen=True)
class _TimedKernels:
    """Kernels that were timed once by a pool of timers.

    Args:
        outcomes: what each kernel gave, or the error that it raised.
        seconds: seconds that each took. In a build, too, the time is spent whatever the outcome.
        wall_s: seconds that all took together.
    """

    outcomes: Mapping[Kernel, Any]
    seconds: Mapping[Kernel, float]
    wall_s: float

    def seconds_of(self, groups: Mapping[str, Sequence[Kernel]]) -> float:
        """Return the seconds that the timers need for all kernels of these groups."""
        kinds: dict[str, list[float]] = {}
        for kernel, seconds in self.seconds.items():
            kinds.setdefault(kernel.detailed_kind, []).append(seconds)
        covered = sum(len(groups[kind]) for kind in kinds)
        all_s = sum(len(groups[kind]) * mean(own) for kind, own in kinds.items())
        at_once = sum(self.seconds.values()) / self.wall_s
        return all_s / at_once * sum(map(len, groups.values())) / covered


def _time(
    pool: TimerPool, kernels: Sequence[Kernel], call: Callable[[KernelTimer, Kernel], Any]
) -> _TimedKernels:
    """Call a function with each kernel and a timer, and return how long that took."""
    seconds: dict[Kernel, float] = {}

    def timed(timer: KernelTimer, kernel: Kernel) -> Any:
        start = time.perf_counter()
        try:
            return call(timer, kernel)
        finally:
            seconds[kernel] = time.perf_counter() - start

    start = time.perf_counter()
    outcomes = dict(pool.each(kernels, timed))
    return _TimedKernels(outcomes, seconds, time.perf_counter() - start)


def _groups(kernels: Sequence[Kernel]) -> dict[str, list[Kernel]]:
    """Return kernels by detailed kind, most numerous kind first, each sorted by size."""
    groups: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault(kernel.detailed_kind, []).append(kernel)
    for group in groups.values():
        group.sort(key=lambda kernel: (kernel.macs, kernel.output, kernel.text))
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _choose(groups: Mapping[str, list[Kernel]]) -> list[Kernel]:
    """Return a few kernels of the most numerous kinds, spread over the sizes of each."""
    sizes = {kind: len(group) for kind, group in groups.items()}
    return [
        groups[kind][len(groups[kind]) * (2 * i + 1) // (2 * count)]
        for kind, count in apportion(sizes, MAX_TIMED_KERNELS).items()
        for i in range(count)
    ]
