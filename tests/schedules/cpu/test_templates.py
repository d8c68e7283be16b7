"""Every schedule that a sweep may choose computes what torch computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm

from nas.graph import ACTIVATIONS, Channels, Graph, Op, Slot
from nas.kernels.kernel import Kernel
from nas.latency import open_runtime
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.cpu import CpuTemplates
from nas.schedules.cpu.loops import AVX, AVX512, SSE, VectorUnit
from tests.schedules.cpu.processors import needs_x86
from tests.schedules.kernel_reference import KernelCase

KERNELS = [
    "conv2d 20x9x9 -> 150x9x9 k1 s1 p0 g1 bias relu",
    "conv2d 7x9x9 -> 37x9x9 k3 s1 p1 g1 bias relu6",
    "conv2d 16x10x10 -> 32x5x5 k5 s2 p2 g1 bias",
    "conv2d 24x6x6 -> 72x6x6 k1 s1 p0 g3 bias relu",
    "conv2d 16x8x8 -> 24x4x4 k1 s2 p0 g1",
    "conv2d 58x13x13 -> 58x13x13 k3 s1 p1 g58 bias relu",
    "conv2d 70x12x12 -> 70x6x6 k5 s2 p2 g70 bias",
    "conv2d 33x3x3 -> 33x3x3 k7 s1 p3 g33 bias relu6",
    "max_pool 70x13x13 -> 70x7x7 k3 s2 p1 g1",
    "global_pool 150x3x3 -> 150x1x1",
    "linear 64x1x1 -> 40x1x1 bias",
    # with an expansion
    "conv2d 20x9x9 expanded bias relu6 -> 70x9x9 k3 s1 p1 g70 bias relu6",
    "conv2d 7x12x11 expanded bias -> 150x6x6 k5 s2 p2 g150 bias hard_swish",
    "conv2d 9x3x3 expanded bias hard_swish -> 33x3x3 k7 s1 p3 g33 bias",
    "conv2d 5x11x8 expanded bias relu -> 20x4x3 k3 s3 p1 g20",
    "conv2d 12x10x9 expanded bias relu -> 20x4x4 k3 s2 p0 g20 bias",
    # with Winograd among the schedules: whole tiles, and tiles that exceed the output
    "conv2d 5x8x12 -> 20x8x12 k3 s1 p1 g1 bias relu",
    "conv2d 37x9x7 -> 70x9x7 k3 s1 p1 g1 bias",
    "conv2d 20x6x11 -> 16x4x9 k3 s1 p0 g1 relu",
    # unpadded
    "conv2d 3x21x20 -> 20x8x7 k7 s2 p0 g1 bias relu",
    "conv2d 20x10x9 -> 20x4x4 k3 s2 p0 g20 bias hard_swish",
    # grouped, with few or odd numbers of channels in a group
    "conv2d 240x5x5 -> 60x5x5 k1 s1 p0 g3 bias relu",
    "conv2d 60x5x5 -> 240x5x5 k1 s1 p0 g3 bias",
    "conv2d 384x3x3 -> 96x3x3 k1 s1 p0 g8 bias relu",
    "conv2d 96x3x3 -> 384x3x3 k1 s1 p0 g8 bias",
    "conv2d 24x5x5 -> 40x5x5 k1 s1 p0 g8 bias hard_swish",
    "conv2d 32x4x4 -> 8x4x4 k1 s1 p0 g8",
    "conv2d 8x6x6 -> 16x3x3 k3 s2 p1 g8 bias",
    "conv2d 24x5x5 -> 36x5x5 k1 s1 p0 g1 bias hard_swish",
    # a squeeze-excite's two layers
    "conv2d 72x1x1 -> 24x1x1 k1 s1 p0 g1 bias relu",
    "conv2d 24x1x1 -> 72x1x1 k1 s1 p0 g1 bias hard_sigmoid",
    # last windows that exceed the padded image
    "max_pool 70x14x14 -> 70x7x7 k3 s2 p0 g1",
    "max_pool 20x7x8 -> 20x3x3 k3 s3 p0 g1",
    "max_pool 20x4x4 -> 20x2x2 k3 s2 p0 g1 hard_sigmoid",
    "avg_pool 70x13x13 -> 70x7x7 k3 s2 p1 g1",
    "avg_pool 20x1x1 -> 20x1x1 k3 s2 p1 g1",
    "avg_pool 33x12x11 -> 33x4x3 k3 s3 p0 g1 relu",
    "avg_pool 20x14x13 -> 20x7x6 k3 s2 p0 g1",
    "avg_pool 20x13x34 -> 20x6x17 k3 s2 p0 g1",
    "avg_pool 20x4x4 -> 20x2x2 k3 s2 p0 g1",
]


@pytest.mark.parametrize("text", KERNELS)
def test_every_schedule_computes_what_torch_computes(text: str) -> None:
    check_all_schedules(Kernel.parse(text), TvmRuntime())


@pytest.mark.parametrize("text", KERNELS[::4])
def test_every_schedule_computes_every_image_of_a_batch(text: str) -> None:
    check_all_schedules(replace(Kernel.parse(text), batch=3), TvmRuntime(threads=2))


@needs_x86
@pytest.mark.parametrize(("model", "unit"), [("haswell", AVX), ("core2", SSE)])
@pytest.mark.parametrize("text", KERNELS[::5])
def test_code_for_a_lesser_processor_computes_the_same(
    text: str, model: str, unit: VectorUnit
) -> None:
    runtime = open_runtime("tvm", target=f"cpu?mcpu={model}")
    assert runtime.timer.templates.unit == unit
    check_all_schedules(Kernel.parse(text), runtime)


def check_all_schedules(kernel: Kernel, runtime: TvmRuntime) -> None:
    """Compile a network of one kernel with every schedule, and compare its output with torch."""
    graph, batch = graph_of(kernel), kernel.batch
    assert runtime.kernels(graph, batch) == [kernel]
    case = KernelCase.random(kernel)
    weights = {"anchor": case.weight, "anchor.bias": case.bias}
    if case.expansion is not None:
        weights |= {"expand": case.expansion.weight, "expand.bias": case.expansion.bias}
    (images,) = case.tensors
    expected = case.expected().reshape(-1)
    schedules = sweep(runtime.timer.templates, kernel)
    assert len(schedules) <= 16
    for schedule in schedules:
        network = runtime.compile(
            graph, {kernel: schedule}, {k: v for k, v in weights.items() if v is not None}, batch
        )
        output = network.run(images if batch > 1 else images[0])
        error = np.abs(output.reshape(-1) - expected).max() / np.abs(expected).max()
        assert error < 1e-5, schedule


def sweep(templates: CpuTemplates, kernel: Kernel) -> list[dict]:
    """Return every schedule that timing a kernel can try."""
    first = templates.candidates(kernel)
    return [*first, *(more for each in first for more in templates.refinements(kernel, each))]


def graph_of(kernel: Kernel) -> Graph:
    """Return a network whose only kernel is this one; its slots are `expand` and `anchor`."""
    kind = {"conv2d": "conv"}.get(kernel.kind, kernel.kind)
    channels = Channels.prefix(kernel.output[0], kernel.output[0])
    window = (kernel.kernel, kernel.stride, kernel.padding, kernel.groups)
    slot = Slot("anchor", channels) if kernel.has_weights else None
    ops = [Op("input", (), kernel.inputs[0].shape)]

    def add(op: Op) -> None:
        ops.append(op._replace(inputs=(len(ops) - 1,)))

    if kernel.expansion is not None:
        between = (kernel.groups, *kernel.inputs[0].shape[1:])
        add(Op("conv", (), between, bias=True, slot=Slot("expand", channels)))
        for step in kernel.expansion[1:]:
            add(Op(step, (), between))
    add(Op(kind, (), kernel.output, *window, kernel.has_bias, 0, slot))
    for step in kernel.epilogue:
        if step in ACTIVATIONS:
            add(Op(step, (), kernel.output))
    return Graph(tuple(ops))


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
