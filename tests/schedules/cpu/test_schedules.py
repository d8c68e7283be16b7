"""Every schedule that a sweep may choose computes what torch computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nas.graph import Channels, Graph, Op, Slot
from nas.latency.kernel import Kernel
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.cpu import candidates

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
    # expanded first
    "conv2d 20x9x9 expanded bias relu6 -> 70x9x9 k3 s1 p1 g70 bias relu6",
    "conv2d 7x12x11 expanded bias -> 150x6x6 k5 s2 p2 g150 bias hard_swish",
    "conv2d 9x3x3 expanded bias hard_swish -> 33x3x3 k7 s1 p3 g33 bias",
    "conv2d 5x11x8 expanded bias relu -> 20x4x3 k3 s3 p1 g20",
    "conv2d 12x10x9 expanded bias relu -> 20x4x4 k3 s2 p0 g20 bias",
    # with Winograd's transforms among the schedules: whole tiles, and tiles that hang over
    "conv2d 5x8x12 -> 20x8x12 k3 s1 p1 g1 bias relu",
    "conv2d 37x9x7 -> 70x9x7 k3 s1 p1 g1 bias",
    "conv2d 20x6x11 -> 16x4x9 k3 s1 p0 g1 relu",
    # unpadded
    "conv2d 3x21x20 -> 20x8x7 k7 s2 p0 g1 bias relu",
    "conv2d 20x10x9 -> 20x4x4 k3 s2 p0 g20 bias hard_swish",
    # grouped, with few or odd channels a group
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
    # windows that hang over the border
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

ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
}


def graph_of(kernel: Kernel) -> Graph:
    kind = {"conv2d": "conv"}.get(kernel.kind, kernel.kind)
    channels = Channels.prefix(kernel.output[0], kernel.output[0])
    window = (kernel.kernel, kernel.stride, kernel.padding, kernel.groups)
    slot = Slot("it", channels) if kernel.has_weights else None
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


def expected(kernel: Kernel, x: torch.Tensor, weights: dict[str, np.ndarray]) -> np.ndarray:
    if kernel.expansion is not None:
        x = F.conv2d(x, *(torch.from_numpy(weights[name]) for name in ("expand", "expand.bias")))
        for step in kernel.expansion[1:]:
            x = ACTIVATIONS[step](x)
    w = torch.from_numpy(weights["it"])
    b = torch.from_numpy(weights["it.bias"]) if kernel.has_bias else None
    if kernel.kind == "conv2d":
        y = F.conv2d(x, w, b, kernel.stride, kernel.padding, 1, kernel.groups)
    elif kernel.kind == "linear":
        y = F.linear(x.flatten(1), w, b)
    elif kernel.kind in ("max_pool", "avg_pool"):
        pool = F.max_pool2d if kernel.kind == "max_pool" else F.avg_pool2d
        window = (kernel.kernel, kernel.stride, kernel.padding)
        both = [pool(x, *window, ceil_mode=overhangs) for overhangs in (False, True)]
        y = next(y for y in both if y.shape[1:] == kernel.output)
    else:
        y = x.mean((2, 3))
    for step in kernel.epilogue:
        if step in ACTIVATIONS:
            y = ACTIVATIONS[step](y)
    return y.flatten(1).numpy()


def sweep(kernel: Kernel, lanes: int, registers: int) -> list[dict]:
    first = candidates.first_candidates(kernel, lanes, registers)
    found = [*first]
    for schedule in first:
        found += candidates.refinements(kernel, schedule, lanes)
    return found


@pytest.mark.parametrize("text", KERNELS)
def test_every_schedule_computes_the_same(text: str) -> None:
    check(Kernel.parse(text), TvmRuntime())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("text", KERNELS[::4])
def test_every_schedule_computes_every_image_of_a_batch(text: str, threads: int) -> None:
    check(replace(Kernel.parse(text), batch=3), TvmRuntime(threads=threads))


def check(kernel: Kernel, runtime: TvmRuntime) -> None:
    """Every schedule of a sweep against torch."""
    graph, batch = graph_of(kernel), kernel.batch
    assert runtime.kernels(graph, batch) == [kernel]
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, *graph.input_shape)).astype(np.float32)
    weights = {
        "it": rng.standard_normal(kernel.weight_shape).astype(np.float32),
        "it.bias": rng.standard_normal(kernel.output[0]).astype(np.float32),
    }
    if kernel.is_expanded:
        weights["expand"] = rng.standard_normal(kernel.expansion_shape).astype(np.float32)
        weights["expand.bias"] = rng.standard_normal(kernel.groups).astype(np.float32)
    reference = expected(kernel, torch.from_numpy(images), weights)
    assert reference.size == kernel.elements(kernel.output)
    candidates = sweep(kernel, runtime.timer.templates.lanes, runtime.timer.templates.registers)
    assert len(candidates) <= 16
    for schedule in candidates:
        found = runtime.compile(graph, {kernel: schedule}, weights, batch).run(
            images if batch > 1 else images[0]
        )
        error = np.abs(found - reference).max() / np.abs(reference).max()
        assert error < 1e-5, schedule


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3, 10, 58, 64, 116, 232, 576])
def test_there_is_always_a_schedule_that_fits_the_registers(channels: int, lanes: int) -> None:
    registers = 32 if lanes == 16 else 16
    for text in (
        f"conv2d 8x7x7 -> {channels}x7x7 k1 s1 p0 g1 bias",
        f"conv2d 8x13x13 -> {channels}x13x13 k3 s1 p1 g1 bias",
        f"conv2d {channels}x7x7 -> {channels}x7x7 k3 s1 p1 g{channels} bias",
        f"conv2d 8x1x1 -> {channels}x1x1 k1 s1 p0 g1 bias relu",
        f"conv2d 24x7x7 -> {3 * channels}x7x7 k1 s1 p0 g3 bias relu",
        f"avg_pool {channels}x7x7 -> {channels}x4x4 k3 s2 p1 g1",
    ):
        found = candidates.first_candidates(Kernel.parse(text), lanes, registers)
        assert found
        for schedule in found:
            pixels = schedule.get("rows", 1) * schedule.get("columns", schedule.get("pixels"))
            assert pixels * schedule["channels"] <= registers


def test_timing_a_kernel_finds_a_schedule_and_a_latency() -> None:
    runtime = TvmRuntime()
    kernel = Kernel.parse("conv2d 20x9x9 -> 48x9x9 k1 s1 p0 g1 bias relu")
    schedule, timing = runtime.time_kernel(kernel)
    assert schedule in sweep(
        kernel, runtime.timer.templates.lanes, runtime.timer.templates.registers
    )
    assert timing.latency_us > 0
    assert len(timing.samples_us) == 10


def test_the_cost_of_a_launch_is_above_zero_and_far_below_a_millisecond() -> None:
    found = TvmRuntime().time_dispatch()
    assert set(found) == set(TvmRuntime.dispatch_parts)
    for timing in found.values():
        assert 0 < timing.latency_us < 1000
