"""Timing kernels and launches with TVM on this machine's CPU."""

from __future__ import annotations

import pytest

from nas.latency.kernel import Kernel
from nas.latency.timing import SAMPLES
from nas.runtimes.tvm.runtime import TvmRuntime


def test_time_kernel_returns_a_candidate_and_its_latency() -> None:
    runtime = TvmRuntime()
    kernel = Kernel.parse("conv2d 20x9x9 -> 48x9x9 k1 s1 p0 g1 bias relu")
    first = runtime.timer.templates.candidates(kernel)
    schedules = [
        *first,
        *(more for each in first for more in runtime.timer.templates.refinements(kernel, each)),
    ]
    schedule, timing = runtime.time_kernel(kernel)
    assert schedule in schedules
    assert timing.latency_us > 0
    assert len(timing.samples_us) == SAMPLES


@pytest.mark.long
def test_time_dispatch_returns_a_cost_above_zero_for_every_part() -> None:
    runtime = TvmRuntime()
    timings = {**runtime.time_dispatch(), **runtime.time_miss_curves()}
    assert set(timings) == set(TvmRuntime.dispatch_parts)
    assert all(timing.latency_us > 0 for timing in timings.values())
