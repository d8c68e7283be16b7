"""What times kernels far from their weights computes what the kernels compute."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax

from nas.latency import cache_model
from nas.latency.kernel import Kernel
from nas.runtimes.tvm import cache_benchmark, cold_cache
from nas.runtimes.tvm.clock import clock_of, nanoseconds
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.templates import build

LINEAR = Kernel.parse("linear 48x1x1 -> 32x1x1 bias")


@pytest.fixture(scope="module")
def runtime() -> TvmRuntime:
    return TvmRuntime()


def test_the_kernel_runs_on_the_right_tensors(runtime: TvmRuntime) -> None:
    """Against numpy: on its own weights and the input written anew, after all of the arena."""
    templates, place = runtime.timer.templates, runtime.timer.place
    clock = clock_of(templates.target)
    assert clock is not None, "this test runs where there is a clock"
    rng = np.random.default_rng(0)
    schedule = templates.candidates(LINEAR)[0]
    image = rng.standard_normal(48, np.float32)
    sets = [
        (rng.standard_normal((32, 48), np.float32), rng.standard_normal(32, np.float32))
        for _ in range(2)
    ]
    weights, others = (templates.pack(LINEAR, schedule, *parts) for parts in sets)
    shapes = [each.shape for each in weights]
    module = cold_cache.module(LINEAR, schedule, templates, clock, shapes)
    vm = place.virtual_machine(build(module, templates))
    evaluate = cold_cache.run(vm, LINEAR, [image], weights, others, place, cold_cache.arena(place))
    evaluate(1, 1)
    for run in (cold_cache.WARM_UPS + 2, cold_cache.WARM_UPS + 3):
        (seconds,) = evaluate(1, 1)
        assert seconds < 1
        seen, before, made, _ = (each.numpy() for each in vm.get_outputs("main"))
        assert seen.sum() == cold_cache.ARENA_BYTES // 4, "every number of the arena, each a 1"
        sign = (-1) ** run
        for found, (weight, bias), x in (
            (made, sets[0], sign * image),
            (before, sets[1], -sign * image),
        ):
            np.testing.assert_allclose(found, weight @ x + bias, rtol=1e-4, atol=1e-4)
    assert len(evaluate(1, 3)) == 3


@pytest.mark.parametrize(
    ("triple", "clock"),
    [
        ("x86_64-unknown-linux-gnu", 1),
        ("aarch64-linux-gnu", 1),
        ("arm64-apple-darwin", 6),
        ("armv7l-linux-gnueabihf", None),
        ("x86_64-pc-windows-msvc", None),
    ],
)
def test_which_targets_have_a_clock(triple: str, clock: int | None) -> None:
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    assert clock_of(target) == clock


def test_gpus_are_not_timed_so() -> None:
    assert clock_of(tvm.target.Target({"kind": "cuda", "arch": "sm_80"})) is None


def test_small_kernels_are_timed_near_alone(runtime: TvmRuntime) -> None:
    small, large = LINEAR, Kernel.parse("linear 128x1x1 -> 96x1x1 bias")
    assert not cold_cache.matters(small)
    assert cold_cache.matters(large)
    assert not cold_cache.matters(Kernel.parse("max_pool 16x48x48 -> 16x24x24 k3 s2 p1 g1"))
    _, timing = runtime.time_kernel(small)
    assert timing.far_samples_us == ()
    schedule, timing = runtime.time_kernel(large)
    assert len(timing.far_samples_us) == cold_cache.SAMPLES
    runtime.release()
    again = runtime.retime_kernel(large, schedule)
    assert len(again.far_samples_us) == cold_cache.SAMPLES


def test_chains_launch_what_their_parts_say(
    runtime: TvmRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[relax.VMExecutable] = []

    def kept(*arguments: Any) -> relax.VMExecutable:
        made.append(build(*arguments))
        return made[-1]

    monkeypatch.setattr(cache_benchmark, "build", kept)
    timed = cache_benchmark.timed(runtime.timer.templates, runtime.timer.place)
    others = {"launch", "invocation", cache_model.LARGE_LAUNCH}
    assert {*others, *timed} == set(TvmRuntime.dispatch_parts)
    called = re.compile(r"call\s+(once|often|computing|begin|clock)\s")
    functions = re.findall(r"^@(\w+)(.*?)(?=^@|\Z)", made[0].as_text(), re.MULTILINE | re.DOTALL)
    calls = {name: Counter(called.findall(code)) for name, code in functions}
    reads = [("once", 0), ("often", 0), ("often", 8)]
    for parts, (reading, computing) in zip(cache_model.PARTS_BY_PACE, reads, strict=True):
        for mib, part in zip(cache_model.MIB, parts, strict=True):
            assert calls[part][reading] * cache_benchmark.ONCE.weight_bytes == mib << 20
            assert calls[part]["computing"] == computing * calls[part][reading]
            assert calls[part]["begin"] == bool(computing)
            assert calls[part]["clock"] == (2 * calls[part][reading] if computing else 0)
    assert all(0 < seconds < 1 for seconds in timed[cache_model.PARTS[1]](1, 3))
    slow = cache_model.PARTS_BY_PACE[-1]
    fast, slower = (min(timed[part](1, 3)) for part in (cache_model.PARTS[0], slow[0]))
    assert slower > 5 * fast


def test_a_delay_in_one_read_is_no_part_of_what_chains_compute(
    runtime: TvmRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays = iter([50_000_000])

    def delayed(readings: NDArray[np.int64]) -> NDArray[np.int64]:
        found = nanoseconds(readings).copy()
        found[1] += next(delays, 0)
        return found

    monkeypatch.setattr(cache_benchmark, "nanoseconds", delayed)
    timed = cache_benchmark.timed(runtime.timer.templates, runtime.timer.place)
    assert all(0 < seconds < 0.04 for seconds in timed[cache_model.PARTS_BY_PACE[-1][0]](1, 3))
