"""Timing kernels and launches with TVM on this machine's CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest

from nas.errors import MissingKernelError, RequestError
from nas.kernels.kernel import Kernel
from nas.latency import open_runtime
from nas.latency.timing import SAMPLES, Evaluate
from nas.machine import this_machine
from nas.runtimes.tvm.kernel_timer import MANY_WEIGHT_BYTES
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.example_graphs import GRAPHS
from tests.schedules.cpu.processors import needs_x86


def test_time_kernel_returns_a_candidate_and_its_latency() -> None:
    runtime = TvmRuntime()
    kernel = Kernel.parse("conv2d 20x9x9 -> 48x9x9 k1 s1 p0 g1 bias relu")
    first = runtime.timer.templates.candidates(kernel)
    schedules = [
        *first,
        *(more for each in first for more in runtime.timer.templates.refinements(kernel, each)),
    ]
    schedule, timing = runtime.timer.time_kernel(kernel)
    assert schedule in schedules
    assert timing.latency_us > 0
    assert 1 <= len(timing.samples_us) <= SAMPLES


def test_kernel_without_a_schedule_is_named() -> None:
    with pytest.raises(MissingKernelError, match="conv2d 12x4x4"):
        TvmRuntime().compile(GRAPHS["squeezenet_head"](), {})


@pytest.mark.parametrize(("channels", "is_winograd"), [(64, True), (128, False)])
def test_direct_convolution_is_chosen_if_winograd_has_many_weights(
    channels: int, is_winograd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel.parse(f"conv2d {channels}x7x7 -> {channels}x7x7 k3 s1 p1 g1 bias")
    assert (kernel.weight_bytes < MANY_WEIGHT_BYTES) == is_winograd

    def evaluator(schedule: Mapping[str, Any]) -> Evaluate:
        us = 80 if "winograd" in schedule else 100
        return lambda calls, samples: [1e-6 * us] * samples

    runtime = TvmRuntime()
    timer = runtime.timer
    monkeypatch.setattr(timer, "_compile_candidates", lambda _, all_: [*map(evaluator, all_)])
    schedule, timing = runtime.timer.time_kernel(kernel)
    assert ("winograd" in schedule) == is_winograd
    assert timing.latency_us == (80 if is_winograd else 100)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no threads")
@pytest.mark.skipif(this_machine.allowed_cores() < 2, reason="needs two cores")
def test_opening_a_runtime_of_two_threads_leaves_this_thread_all_cores() -> None:
    before = os.sched_getaffinity(0)
    open_runtime("tvm", threads=2)
    assert os.sched_getaffinity(0) == before


@needs_x86
def test_code_for_a_lesser_processor_has_a_table_of_its_own() -> None:
    runtime = open_runtime("tvm", target="cpu?mcpu=core2")
    own = open_runtime("tvm").fingerprint
    assert runtime.fingerprint.differences(own) == ["target is cpu, not cpu?mcpu=core2"]
    assert runtime.fingerprint.slug != own.slug
    with pytest.raises(RequestError, match="LLVM knows no processor 'z80'"):
        open_runtime("tvm", target="cpu?mcpu=z80")
    with pytest.raises(RequestError, match=r"has no target 'cpu\?mcpu=core2'"):
        open_runtime("onnxruntime", target="cpu?mcpu=core2")


@needs_x86
def test_code_for_a_processor_with_more_vector_units_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = ("avx", "avx2", "f16c", "fma", "sse4_1", "sse4_2")
    monkeypatch.setattr(this_machine, "processor", lambda: ("AMD EPYC", features))
    with pytest.raises(RequestError, match="This machine lacks vector units of znver4: avx512"):
        open_runtime("tvm", target="cpu?mcpu=znver4")
