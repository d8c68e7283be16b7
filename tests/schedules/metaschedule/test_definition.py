"""The unscheduled definition of a kernel computes what torch computes."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from nas.latency.kernel import Kernel
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.metaschedule.definition import definition
from nas.schedules.metaschedule.trace import TUNER
from tests.schedules.kernel_reference import KernelCase, flat

UNSCHEDULED = {"tuner": TUNER, "trials": 1, "trace": [[], []]}
"""A trace without steps."""

KERNELS = [
    "conv2d 20x5x7 -> 24x5x7 k1 s1 p0 g1 bias relu",
    "conv2d 20x5x7[4:12] -> 24x5x7 k1 s1 p0 g1",
    "conv2d 7x9x8 -> 13x9x8 k3 s1 p1 g1 bias relu6",
    "conv2d 8x10x10[2:7] -> 6x5x5 k5 s2 p2 g1 bias hard_swish",
    "conv2d 3x13x12 -> 8x4x3 k7 s2 p0 g1 bias",
    "conv2d 16x8x8 -> 24x4x4 k1 s2 p0 g1 bias",
    "conv2d 24x6x5 -> 36x6x5 k1 s1 p0 g3 bias relu",
    "conv2d 8x6x6 -> 16x3x3 k3 s2 p1 g4 bias",
    "conv2d 14x7x7 -> 14x7x7 k3 s1 p1 g14 bias relu",
    "conv2d 20x9x9[3:13] -> 10x4x4 k5 s2 p1 g10 bias",
    "conv2d 6x8x7 expanded bias relu6 -> 18x8x7 k3 s1 p1 g18 bias relu6",
    "conv2d 9x8x7[2:8] expanded bias hard_swish -> 18x4x4 k3 s2 p1 g18 bias",
    "linear 64x1x1 -> 40x1x1 bias",
    "conv2d 12x5x6 -> 8x5x6 k1 s1 p0 g1 bias add relu",
    "conv2d 12x5x6 -> 8x5x6 k1 s1 p0 g1 bias add:20x5x6[3:11]",
    "conv2d 12x5x6 -> 8x5x6 k3 s1 p1 g1 bias hard_sigmoid multiply add",
    "conv2d 12x5x6 -> 8x5x6 k1 s1 p0 g2 bias multiply:16x1x1[4:12] relu",
    "conv2d 12x1x1 -> 8x1x1 k1 s1 p0 g1 bias add hard_sigmoid",
    "conv2d batch2 12x5x6 -> 8x5x6 k1 s1 p0 g1 bias multiply add relu",
    "conv2d batch3 8x6x6 -> 16x3x3 k3 s2 p1 g4 bias",
    "conv2d batch2 6x8x7 expanded bias relu6 -> 18x8x7 k3 s1 p1 g18 bias relu6",
    "linear batch2 64x1x1 -> 40x1x1 bias",
]


@pytest.mark.parametrize("text", KERNELS)
def test_definition_computes_what_torch_computes(text: str) -> None:
    kernel = Kernel.parse(text)
    case = KernelCase.random(kernel)
    templates = TvmRuntime().timer.templates
    function = templates.function(kernel, UNSCHEDULED, "main")
    library = tvm.tirx.build(tvm.IRModule({"main": function}), templates.target, "tirx")
    constants = templates.pack(kernel, UNSCHEDULED, case.weight, case.bias, case.expansion)
    image, *operands = (flat(tensor) for tensor in case.tensors)
    expected = flat(case.expected())
    output = tvm.runtime.tensor(np.zeros(expected.shape, np.float32))
    arrays = [image, *constants, *operands]
    library["main"](*(tvm.runtime.tensor(array) for array in arrays), output)
    assert np.abs(output.numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def test_kernels_without_weights_have_no_definition() -> None:
    with pytest.raises(ValueError, match="convolutions and linear layers"):
        definition(Kernel.parse("max_pool 8x6x6 -> 8x3x3 k2 s2 p0 g1"))
