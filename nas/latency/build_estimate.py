"""Estimating how long a latency table takes to build, from a few kernels that are timed now."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.errors import KernelError, NasError, TableError, first_line
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.build import CURVE_ROUNDS, SECONDS_BETWEEN_CURVES
from nas.latency.installed_runtimes import default_runtime, open_runtime
from nas.latency.kit import KitDevice
from nas.latency.networks import measure_networks
from nas.latency.runtime import Runtime
from nas.latency.table import LatencyTable
from nas.latency.timer_answers import time_kernel
from nas.latency.timer_pool import TimerPool
from nas.latency.timing import SECONDS_BETWEEN_ROUNDS, watch_speed
from nas.latency.worker_process import timers_for
from nas.space import Architecture
from nas.statistics import spread

MAX_TIMED_KERNELS = 8
"""Largest number of kernels that are timed for an estimate."""

MAX_NETWORK_SECONDS = 5.0
"""Time after which a network is not timed again for an estimate."""

WATCH_SECONDS = 1.0
"""How long the speed of the core is watched for an estimate."""

KIT_KERNEL_SECONDS = 0.3
"""Time for which a kernel is timed by the program of a kit: three or four candidates of a schedule
once, and the fastest one in four rounds."""

LEAST_FULL_SHARE = 0.1
"""Smallest share of the time at full speed for which a build waits: it gives up in between."""


@dataclass(frozen=True)
class BuildEstimate:
    """The estimated duration of a build.

    Args:
        kernels: number of kernels to time.
        estimated_seconds: duration of the build; None if there is no estimate.
        first_seconds: part of it in which each kernel is compiled and timed for the first time.
        full_share: share of the time in which the core runs at full speed; 1 on other machines.
        timed_kernels: number of kernels that were timed for the estimate.
        slowest_us: latency of the slowest of these kernels, in microseconds.
        reason: why there is no estimate; empty if there is one.
    """

    kernels: int
    estimated_seconds: float | None = None
    first_seconds: float = 0.0
    full_share: float = 1.0
    timed_kernels: int = 0
    slowest_us: float = 0.0
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
    """Estimate the duration of a build by timing kernels that are spread over kinds and sizes.

    They are timed as in a build: in the same worker processes, and by all of them at the same time.

    A device that a transport carries kits to is not touched: kits of these kernels are compiled.

    Args:
        kernels: kernels to time.
        runtime: opened runtime.
    """
    by_size = sorted(kernels, key=lambda each: (each.detailed_kind, each.macs, each.text))
    chosen = spread(by_size, MAX_TIMED_KERNELS)
    with timers_for(runtime) as timers:
        if isinstance(timers, KitDevice):
            return _estimate_by_kits(chosen, len(kernels), timers)
        pool = TimerPool(timers)
        # The first request of a timer also starts its worker.
        dict(pool.each(chosen[: len(timers)], time_kernel))
        start = time.perf_counter()
        first = dict(pool.each(chosen, time_kernel))
        first_s = time.perf_counter() - start
        timed = {k: outcome for k, outcome in first.items() if not isinstance(outcome, Exception)}
        if not timed:
            kernel, error = next(iter(first.items()))
            assert isinstance(error, Exception)
            reason = f"{kernel} cannot be timed: {first_line(error)}"
            return BuildEstimate(len(kernels), reason=reason)
        start = time.perf_counter()
        if runtime.capabilities.rounds > 1:
            dict(pool.each(list(timed), lambda timer, k: timer.retime_kernel(k, timed[k][0])))
        again_s = time.perf_counter() - start
    share = len(kernels) / len(chosen)
    round_s = max(SECONDS_BETWEEN_ROUNDS, share * again_s)
    # A build waits for full speed, which these few timings may not have met.
    has_reading = any(timing.reading_us is not None for _, timing in timed.values())
    full_share = watch_speed(WATCH_SECONDS).full_share if has_reading else 1.0
    seconds = share * first_s + (runtime.capabilities.rounds - 1) * round_s / max(
        full_share, LEAST_FULL_SHARE
    )
    slowest_us = max(timing.latency_us for _, timing in timed.values())
    return BuildEstimate(
        len(kernels),
        round(seconds, 1),
        round(share * first_s, 1),
        full_share,
        len(timed),
        slowest_us,
    )


def _estimate_by_kits(chosen: Sequence[Kernel], count: int, device: KitDevice) -> BuildEstimate:
    """Estimate a build from the time to compile the kits of one kernel and of a few kernels."""
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="nas-kit-") as folder:
        for some in (chosen[:1], chosen):
            start = time.perf_counter()
            device.write_kernels_kit(some, (), Path(folder) / str(len(seconds)))
            seconds.append(time.perf_counter() - start)
    kernel_s = max(0.0, seconds[1] - seconds[0]) / max(1, len(chosen) - 1)
    compiling_s = seconds[0] + (count - 1) * kernel_s
    # The rounds of the miss curve are in between those of kernels.
    own_s = count * KIT_KERNEL_SECONDS / len(device.devices)
    total_s = round(compiling_s + max(CURVE_ROUNDS * SECONDS_BETWEEN_CURVES, own_s), 1)
    return BuildEstimate(count, total_s, total_s)


def network_latencies_us(
    networks: Sequence[Architecture],
    timed: int,
    table: LatencyTable | None,
    runtime: Runtime | None,
    *,
    batch: int = 1,
) -> NDArray[np.float64]:
    """Return the latency of each of some networks in microseconds, as far as it is known or cheap.

    The networks are one at several image sizes. What the latency table does not predict takes as
    long for each multiply-accumulate as the others, or as one that is measured for some seconds.
    All are 0 if nothing is known.

    Args:
        networks: the networks.
        timed: position of the one that is measured if the table predicts none.
        table: latency table of the device; None without one.
        runtime: opened runtime of the device; None for one that cannot measure now.
        batch: number of images that run at once.
    """
    known: dict[int, float] = {}
    for at, network in enumerate(networks):
        if table is not None:
            with suppress(KernelError, TableError):
                known[at] = table.predict(network, batch).latency_us
    if not known and runtime is not None and not isinstance(runtime, KitDevice):
        known = {timed: estimate_network_us(networks[timed].graph, runtime, batch)}
    rates_us = [each_us / networks[at].macs for at, each_us in known.items()]
    rate_us = float(np.mean(rates_us)) if rates_us else 0.0
    return np.array([known.get(at, rate_us * each.macs) for at, each in enumerate(networks)])


def estimate_network_us(graph: Graph, runtime: Runtime, batch: int = 1) -> float:
    """Estimate the latency of a network in microseconds, from measurements of a few seconds.

    The network is timed once. With a runtime that needs the schedule of each kernel, a few kernels
    are: others then take as long for each multiply-accumulate as those of their kind, or as all.
    The result is 0 if none can be timed.

    Args:
        graph: the network.
        runtime: opened runtime.
        batch: number of images that run at once.
    """
    (whole,) = measure_networks([graph], runtime, {}, batch=batch, seconds=MAX_NETWORK_SECONDS)
    if whole.rounds:
        return whole.fastest_us
    kernels = [each for each in runtime.kernels(graph, batch) if each.macs]
    by_size = sorted(dict.fromkeys(kernels), key=lambda each: (each.detailed_kind, each.macs))
    with timers_for(runtime) as timers:
        assert not isinstance(timers, KitDevice)  # Its callers estimate none of these.
        outcomes = dict(TimerPool(timers).each(spread(by_size, MAX_TIMED_KERNELS), time_kernel))
    timed = {
        kernel: outcome[1].latency_us
        for kernel, outcome in outcomes.items()
        if not isinstance(outcome, Exception)
    }
    if not timed:
        return 0.0

    def estimate_us(kernel: Kernel) -> float:
        alike = [each for each in timed if each.detailed_kind == kernel.detailed_kind] or timed
        rate_us = sum(timed[each] for each in alike) / sum(each.macs for each in alike)
        return timed.get(kernel, rate_us * kernel.macs)

    return sum(map(estimate_us, kernels))
