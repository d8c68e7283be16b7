"""Every GPU kernel with every schedule of its sweep, run on the processor, against torch.

The generated CUDA source is what runs (see `cuda_emulated`), so indexing, barriers, conditions,
rounding and alignment are those that a GPU would see.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nas.latency.kernel import Kernel
from nas.runtimes.tvm.runtime import CudaRuntime
from nas.schedules.cuda.templates import CudaTemplates
from tests.schedules.cuda.cuda_emulated import Emulated, require_compiler
from tests.schedules.cuda.kernel_reference import Case, flat

KERNELS = [
    # flat 1x1: channels that fill no tile, an addition, a slice of the input
    "conv2d 58x5x5 -> 58x5x5 k1 s1 p0 g1 bias relu",
    "conv2d 36x4x4[12:36] -> 20x4x4 k1 s1 p0 g1 bias add:40x4x4[20:40] hard_swish",
    "conv2d 12x5x5 -> 20x5x5 k1 s1 p0 g1 bias hard_swish multiply:40x1x1[20:40] relu6",
    # windows: a stem, padding, stride, none of it, grouped, grouped with few or odd channels
    "conv2d 3x13x12 -> 20x7x6 k3 s2 p1 g1 bias relu6",
    "conv2d 6x6x6 -> 10x6x6 k5 s1 p2 g1",
    "conv2d 3x15x14 -> 20x5x4 k7 s2 p0 g1 bias relu",
    "conv2d 16x7x7 -> 24x4x4 k1 s2 p0 g1",
    "conv2d 24x4x4 -> 72x4x4 k1 s1 p0 g3 bias relu",
    "conv2d 24x3x3 -> 40x3x3 k1 s1 p0 g8 bias hard_swish",
    "conv2d 8x6x6 -> 16x3x3 k3 s2 p1 g8 bias",
    # depthwise, alone and expanded
    "conv2d 58x7x9 -> 58x7x9 k3 s1 p1 g58 bias relu",
    "conv2d 40x12x12[20:40] -> 20x6x6 k5 s2 p2 g20 bias multiply:40x1x1[20:40] add hard_swish",
    "conv2d 33x3x3 -> 33x3x3 k7 s1 p3 g33 bias relu6",
    "conv2d 20x10x9 -> 20x4x4 k3 s2 p0 g20",
    "conv2d 12x9x9 expanded bias relu6 -> 36x9x9 k3 s1 p1 g36 bias relu6",
    "conv2d 10x9x7[2:10] expanded bias hard_swish -> 34x5x4 k5 s2 p2 g34 bias",
    "conv2d 5x3x3 expanded -> 7x3x3 k7 s1 p3 g7 add",
    # windows that hang over the border
    "max_pool 70x13x13 -> 70x7x7 k3 s2 p1 g1",
    "max_pool 20x7x8 -> 20x3x3 k3 s3 p0 g1",
    "max_pool 38x4x4 -> 38x2x2 k3 s2 p0 g1 hard_sigmoid",
    "avg_pool 20x1x1 -> 20x1x1 k3 s2 p1 g1",
    "avg_pool 33x12x11 -> 33x4x3 k3 s3 p0 g1 relu",
    "avg_pool 20x14x13 -> 20x7x6 k3 s2 p0 g1",
    # vectors
    "linear 64x1x1 -> 40x1x1 bias",
    "linear 33x1x1 -> 11x1x1 bias hard_swish",
    "conv2d 72x1x1 -> 24x1x1 k1 s1 p0 g1 bias relu",
    "conv2d 300x1x1[44:300] -> 58x1x1 k1 s1 p0 g1 bias hard_sigmoid",
    # averages of all pixels
    "global_pool 150x3x3 -> 150x1x1",
    "global_pool 35x7x7 -> 35x1x1 relu",
    "global_pool 40x5x4[8:40] -> 32x1x1",
    # moves
    "concat 116x5x5[0:58] 58x5x5 -> 116x5x5 shuffle2",
    "concat 14x5x5 40x5x5[13:27] 40x5x5[26:40] -> 42x5x5 shuffle2",
    "concat 21x4x4 17x4x4 -> 38x4x4 add",
    "concat 16x4x4 24x4x4 8x4x4 -> 48x4x4 relu",
    "concat 10x5x5 10x5x5 -> 20x5x5 multiply",
    "copy 36x6x6 -> 36x6x6 shuffle3",
    "copy 40x5x5[13:27] -> 14x5x5 add:40x5x5[26:40]",
    "copy 24x7x7 -> 24x7x7 multiply",
    "copy 40x1x1[10:20] -> 10x1x1 hard_swish",
]

TOLERANCE = {"float32": 1e-5, "float16": 2e-3}
"""Largest error over largest value. Sums are float32 in both, so float16 loses what storing the
result (2**-11 of it) and the expanded tensor in between rounds away, and nothing by summing."""


@pytest.fixture(autouse=True, scope="module")
def _compiler() -> None:
    require_compiler()


def sweep(templates: CudaTemplates, kernel: Kernel) -> list[dict]:
    """Every schedule that timing a kernel can try, once each."""
    first = templates.candidates(kernel)
    found = [*first, *(more for each in first for more in templates.refinements(kernel, each))]
    return [each for i, each in enumerate(found) if each not in found[:i]]


def spread(schedules: list[dict]) -> list[dict]:
    """A few schedules between which every setting takes each of its values."""
    kept: list[dict] = []
    seen: set[tuple[str, object]] = set()
    for schedule in schedules:
        if not kept or not seen.issuperset(schedule.items()):
            kept.append(schedule)
            seen.update(schedule.items())
    return kept


@pytest.mark.parametrize("dtype", CudaRuntime.dtypes)
@pytest.mark.parametrize("text", KERNELS)
def test_kernels_compute_what_torch_computes(text: str, dtype: str, tmp_path: Path) -> None:
    kernel = Kernel.parse(text)
    templates = CudaTemplates.for_arch("sm_80", dtype)
    case = Case.of(kernel, dtype)
    schedules = {f"k{i}": s for i, s in enumerate(spread(sweep(templates, kernel)))}
    functions = {name: templates.function(kernel, s, name) for name, s in schedules.items()}
    emulated = Emulated(functions, templates.target, tmp_path)
    expected = case.expected()
    split = len(kernel.inputs)
    for name, schedule in schedules.items():
        constants = templates.pack(kernel, schedule, case.weight, case.bias, case.expansion)
        assert all(each.dtype == dtype for each in constants)
        tensors = [flat(each, dtype) for each in case.tensors]
        output = np.empty(expected.size, dtype)
        arrays = [*tensors[:split], *constants, *tensors[split:], output]
        names = [parameter.name for parameter in functions[name].params]
        emulated.run(name, dict(zip(names, arrays, strict=True)))
        error = np.abs(output.astype(np.float32) - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE[dtype], schedule
