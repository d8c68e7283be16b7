"""Every schedule that a sweep may choose computes what torch computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tvm

from nas.kernels.kernel import Kernel
from nas.latency import open_runtime
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.cpu import CpuTemplates
from nas.schedules.cpu.loops import AVX, AVX512, NEON, SSE, VectorUnit
from tests.schedules.cpu.processors import needs_x86
from tests.schedules.kernel_reference import KernelCase, sweep
from tests.schedules.kernels import FOR_CPUS, KERNELS

TEXTS = [text for texts in (*KERNELS.values(), FOR_CPUS) for text in texts]


@pytest.mark.parametrize("text", TEXTS)
def test_every_schedule_computes_what_torch_computes(text: str) -> None:
    check_all_schedules(Kernel.parse(text), TvmRuntime().timer.templates)


@pytest.mark.parametrize("text", TEXTS[::6])
def test_every_schedule_computes_every_image_of_a_batch(text: str) -> None:
    kernel = replace(Kernel.parse(text), batch=3)
    check_all_schedules(kernel, TvmRuntime(threads=2).timer.templates)


@needs_x86
@pytest.mark.parametrize(("model", "unit"), [("haswell", AVX), ("core2", SSE)])
@pytest.mark.parametrize("text", TEXTS[1::8])
def test_code_for_a_lesser_processor_computes_the_same(
    text: str, model: str, unit: VectorUnit
) -> None:
    templates = open_runtime("tvm", target=f"cpu?mcpu={model}").timer.templates
    assert templates.unit == unit
    check_all_schedules(Kernel.parse(text), templates)


@pytest.mark.parametrize("unit", [AVX512, NEON])
@pytest.mark.parametrize("text", TEXTS[1::8])
def test_schedules_for_other_vector_units_compute_the_same(text: str, unit: VectorUnit) -> None:
    """Run schedules for vectors and tiles of other processors on this machine."""
    templates = TvmRuntime().timer.templates
    templates.unit = unit
    check_all_schedules(Kernel.parse(text), templates)


def check_all_schedules(kernel: Kernel, templates: CpuTemplates) -> None:
    """Compile a kernel with every schedule, and compare its output with torch."""
    case, schedules = KernelCase.random(kernel), sweep(templates, kernel)
    assert len(schedules) <= 16
    functions = {f"k{i}": templates.function(kernel, s, f"k{i}") for i, s in enumerate(schedules)}
    library = tvm.tirx.build(tvm.IRModule(functions), templates.target, "tirx")
    for name, schedule in zip(functions, schedules, strict=True):
        *read, output = case.arguments(templates, schedule)
        written = tvm.runtime.tensor(output)
        library[name](*map(tvm.runtime.tensor, read), written)
        assert case.error_of(written.numpy()) < 1e-5, schedule


def test_one_thread_is_tried_where_there_are_several() -> None:
    kernel = Kernel.parse("conv2d 20x9x9 -> 48x9x9 k1 s1 p0 g1 bias relu")
    templates = TvmRuntime(threads=2).timer.templates
    best = templates.candidates(kernel)[0]
    assert {**best, "threads": 1} in templates.refinements(kernel, best)


def test_a_kernel_without_a_template_is_refused() -> None:
    kernel = Kernel.parse("view 8x2x2 -> 32x1x1")
    with pytest.raises(ValueError, match="no CPU kernel is written for a view"):
        TvmRuntime().timer.templates.function(kernel, {}, "main")


@pytest.mark.parametrize(
    ("cpu", "unit"), [("skylake-avx512", AVX512), ("haswell", AVX), ("core2", SSE)]
)
def test_x86_features_decide_the_vector_unit(cpu: str, unit: VectorUnit) -> None:
    target = tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": cpu})
    assert CpuTemplates(target, 1).unit == unit
