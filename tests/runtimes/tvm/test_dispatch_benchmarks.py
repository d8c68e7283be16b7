from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import relax

from nas.latency import cache_model
from nas.runtimes.tvm import dispatch_benchmarks
from nas.runtimes.tvm.clock import nanoseconds
from nas.runtimes.tvm.kernel_timer import tvm_kernels
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.templates import build


@pytest.fixture(scope="module")
def runtime() -> TvmRuntime:
    return TvmRuntime()


def test_launch_networks_are_as_large_as_their_parts_say() -> None:
    networks = dispatch_benchmarks.launch_networks()
    for part, mib in cache_model.LAUNCH_MIB.items():
        weight_bytes = sum(kernel.weight_bytes for kernel in tvm_kernels(networks[part]))
        touched_bytes = weight_bytes + networks[part].peak_memory_bytes
        assert touched_bytes / 2**20 == pytest.approx(mib, abs=0.005), part


@pytest.mark.slow
def test_cache_benchmarks_launch_what_their_parts_say(
    runtime: TvmRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    executables: list[relax.VMExecutable] = []

    def recording_build(*arguments: Any) -> relax.VMExecutable:
        executables.append(build(*arguments))
        return executables[-1]

    monkeypatch.setattr(dispatch_benchmarks, "build", recording_build)
    benchmarks = dispatch_benchmarks.weight_benchmarks(
        runtime.timer.templates, runtime.timer.device
    )
    others = {*cache_model.LAUNCH_PARTS, cache_model.FIRST_CACHE}
    assert {*others, *benchmarks} == set(TvmRuntime.dispatch_parts)
    called = re.compile(r"call\s+(once|often|computing|begin|clock)\s")
    code = executables[0].as_text()
    functions = re.findall(r"^@(\w+)(.*?)(?=^@|\Z)", code, re.MULTILINE | re.DOTALL)
    calls = {name: Counter(called.findall(body)) for name, body in functions}
    set_bytes = dispatch_benchmarks.USES_WEIGHTS_ONCE.weight_bytes
    intensities = [("once", 0), ("often", 0), ("often", 8)]
    for parts, (reader, computations) in zip(
        cache_model.WEIGHT_PARTS_BY_INTENSITY, intensities, strict=True
    ):
        for mib, part in zip(cache_model.WEIGHTS_MIB, parts, strict=True):
            assert calls[part][reader] * set_bytes == mib << 20
            assert calls[part]["computing"] == computations * calls[part][reader]
            assert calls[part]["begin"] == bool(computations)
            assert calls[part]["clock"] == (2 * calls[part][reader] if computations else 0)
    assert all(0 < seconds < 1 for seconds in benchmarks[cache_model.WEIGHT_PARTS[1]](1, 3))
    slow = cache_model.WEIGHT_PARTS_BY_INTENSITY[-1]
    fast_s, slow_s = (
        min(benchmarks[part](1, 3)) for part in (cache_model.WEIGHT_PARTS[0], slow[0])
    )
    assert slow_s > 5 * fast_s


@pytest.mark.slow
def test_delayed_read_does_not_change_the_time_of_the_computations(
    runtime: TvmRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays_ns = iter([50_000_000])

    def delayed(readings: NDArray[np.int64]) -> NDArray[np.int64]:
        elapsed_ns = nanoseconds(readings).copy()
        elapsed_ns[1] += next(delays_ns, 0)
        return elapsed_ns

    monkeypatch.setattr(dispatch_benchmarks, "nanoseconds", delayed)
    benchmarks = dispatch_benchmarks.weight_benchmarks(
        runtime.timer.templates, runtime.timer.device
    )
    slow = cache_model.WEIGHT_PARTS_BY_INTENSITY[-1]
    assert all(0 < seconds < 0.04 for seconds in benchmarks[slow[0]](1, 3))
