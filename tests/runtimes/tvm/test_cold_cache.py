"""The benchmark of kernels with a cold cache computes what the kernels compute."""

from __future__ import annotations

import numpy as np
import pytest

from nas.kernels.kernel import Kernel
from nas.runtimes.tvm import cold_cache
from nas.runtimes.tvm.clock import clock_of
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.templates import build

LINEAR = Kernel.parse("linear 48x1x1 -> 32x1x1 bias")


@pytest.fixture(scope="module")
def runtime() -> TvmRuntime:
    return TvmRuntime()


def test_benchmark_runs_the_kernel_on_the_right_tensors(runtime: TvmRuntime) -> None:
    """Compare with numpy: the kernel runs on its own weights and the input written anew."""
    templates, device = runtime.timer.templates, runtime.timer.device
    clock = clock_of(templates.target)
    assert clock is not None, "this test runs on machines with a known clock"
    rng = np.random.default_rng(0)
    schedule = templates.candidates(LINEAR)[0]
    image = rng.standard_normal(48, np.float32)
    sets = [
        (rng.standard_normal((32, 48), np.float32), rng.standard_normal(32, np.float32))
        for _ in range(2)
    ]
    weights, others = (templates.pack(LINEAR, schedule, *parts) for parts in sets)
    shapes = [each.shape for each in weights]
    module = cold_cache.benchmark_module(LINEAR, schedule, templates, clock, shapes)
    vm = device.load_network(build(module, templates))
    arena = cold_cache.allocate_arena(device)
    evaluate = cold_cache.evaluator_of(vm, LINEAR, [image], weights, others, device, arena)
    evaluate(1, 1)
    for call in (cold_cache.WARM_UP_CALLS + 2, cold_cache.WARM_UP_CALLS + 3):
        (seconds,) = evaluate(1, 1)
        assert seconds < 1
        line_sums, output_before, output, _ = (each.numpy() for each in vm.get_outputs("main"))
        assert line_sums.sum() == cold_cache.ARENA_BYTES // 4, "every number of the arena is a 1"
        sign = (-1) ** call
        for actual, (weight, bias), x in (
            (output, sets[0], sign * image),
            (output_before, sets[1], -sign * image),
        ):
            np.testing.assert_allclose(actual, weight @ x + bias, rtol=1e-4, atol=1e-4)
    assert len(evaluate(1, 3)) == 3


def test_only_kernels_with_many_weights_are_timed_cold(runtime: TvmRuntime) -> None:
    small, large = LINEAR, Kernel.parse("linear 128x1x1 -> 96x1x1 bias")
    assert not cold_cache.is_timed_cold(small)
    assert cold_cache.is_timed_cold(large)
    assert not cold_cache.is_timed_cold(Kernel.parse("max_pool 16x48x48 -> 16x24x24 k3 s2 p1 g1"))
    _, timing = runtime.timer.time_kernel(small)
    assert timing.cold_samples_us == ()
    schedule, timing = runtime.timer.time_kernel(large)
    assert 1 <= len(timing.cold_samples_us) <= cold_cache.SAMPLES
    runtime.release()
    again = runtime.timer.retime_kernel(large, schedule)
    assert 1 <= len(again.cold_samples_us) <= cold_cache.SAMPLES
