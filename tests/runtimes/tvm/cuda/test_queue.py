"""Timings of kernels in the queue of a simulated GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tvm import relax

from nas.errors import MeasurementError
from nas.kernels.kernel import Kernel
from nas.latency.timing import Evaluate
from nas.runtimes.tvm.cuda import queue
from nas.schedules.cuda.templates import CudaTemplates
from tests.runtimes.tvm.cuda.simulated_gpu import STEP_S, SimulatedGpu, SimulatedVm
from tests.schedules.cuda.cuda_emulator import EmulatedKernels

TINY = Kernel.parse("copy 8x2x2 -> 8x2x2 relu")


@dataclass
class LoadedCode(SimulatedGpu):
    """A simulated GPU that keeps the CUDA source of each network that it loads."""

    sources: list[str] = field(default_factory=list)

    def load_network(self, executable: relax.VMExecutable) -> SimulatedVm:
        (device_code,) = executable.mod.imports[0].imports
        self.sources.append(str(device_code.inspect_source()))
        return super().load_network(executable)


def tiny_evaluator(gpu: SimulatedGpu) -> Evaluate:
    templates = CudaTemplates.for_arch("sm_80", "float32")
    schedules = templates.candidates(TINY)[:1]
    (evaluate,) = queue.queued_evaluators(TINY, schedules, templates, gpu)
    return evaluate


def test_latency_excludes_the_launch_of_a_short_kernel() -> None:
    for kernel_s in (3e-7, 2e-6, 4e-5):
        gpu = SimulatedGpu(kernel_s=kernel_s)
        # The clock of the host does not move, so launching takes no time on the host.
        assert tiny_evaluator(gpu)(100, 3) == pytest.approx([kernel_s] * 3)
        (functions,) = gpu.networks
        assert functions["blocking_only"] == ["blocking_kernel"]
        assert functions["main"] == ["blocking_kernel"] + ["kernel"] * queue.LAUNCHES


def test_schedules_compiled_at_once_are_timed_in_their_order() -> None:
    kernel = Kernel.parse("conv2d 32x8x8 -> 32x8x8 k1 s1 p0 g1 bias")
    templates = CudaTemplates.for_arch("sm_80", "float32")
    schedules = templates.candidates(kernel)
    assert len(schedules) > 1
    one_by_one, at_once = LoadedCode(), LoadedCode()
    for schedule in schedules:
        queue.queued_evaluators(kernel, [schedule], templates, one_by_one)
    evaluators = queue.queued_evaluators(kernel, schedules, templates, at_once)
    assert [evaluate(1, 1) for evaluate in evaluators] == [pytest.approx([2e-6])] * len(schedules)
    assert at_once.sources == one_by_one.sources
    assert len(set(at_once.sources)) == len(schedules)
    assert queue.queued_evaluators(kernel, [], templates, at_once) == []


def test_blocking_kernel_outlasts_all_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimulatedGpu(launch_s=4e-5)
    monkeypatch.setattr(queue, "time", SimpleNamespace(perf_counter=lambda: gpu.now))
    assert queue.LAUNCHES * gpu.launch_s > queue.MIN_BLOCKING_STEPS * STEP_S
    evaluate = tiny_evaluator(gpu)
    assert evaluate(1, 1) == pytest.approx([gpu.kernel_s])


def test_launches_that_wait_for_the_gpu_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimulatedGpu(blocking=True)
    monkeypatch.setattr(queue, "time", SimpleNamespace(perf_counter=lambda: gpu.now))
    evaluate = tiny_evaluator(gpu)
    with pytest.raises(MeasurementError, match="CUDA_LAUNCH_BLOCKING"):
        evaluate(1, 1)


def test_run_that_another_process_interrupts_does_not_count() -> None:
    gpu = SimulatedGpu(stolen_s=1e-2)
    evaluate = tiny_evaluator(gpu)
    assert evaluate(3 * queue.LAUNCHES, 1) == pytest.approx([gpu.kernel_s])


def test_blocking_kernel_counts(tmp_path: Path) -> None:
    templates = CudaTemplates.for_arch("sm_80", "float32")
    emulated = EmulatedKernels(
        {"blocking": queue.blocking_kernel("blocking")}, templates.target, tmp_path
    )
    steps, out = np.array([1000], np.int32), np.zeros(1, np.int32)
    emulated.run("blocking", [steps, out])
    state = 1000
    for _ in range(1000):
        state = (state * 1103515245 + 12345) % 2**32
    assert out[0] == np.uint32(state).astype(np.int32)
