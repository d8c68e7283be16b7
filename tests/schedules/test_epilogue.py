"""Every activation has a meaning in TIR, and epilogue steps find their operands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm

from nas.graph import ACTIVATIONS
from nas.latency.kernel import Kernel
from nas.schedules import tir
from nas.schedules.epilogue import (
    Step,
    activation,
    epilogue_steps,
)
from tests.schedules import kernel_reference


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
def test_activation_computes_what_torch_computes(kind: str, width: int) -> None:
    values = np.linspace(-8, 8, 64, dtype=np.float32)
    x, y = tir.Buffer("x", len(values)), tir.Buffer("y", len(values))
    body = tir.loop(
        len(values) // width,
        lambda i: [y.store(i * width, activation(kind, x.load(i * width, width), width), width)],
    )
    function = tir.function([x, y], body, "main")
    library = tvm.tirx.build(tvm.IRModule({"main": function}), tvm.target.Target("llvm"), "tirx")
    output = tvm.runtime.tensor(np.zeros_like(values))
    library["main"](tvm.runtime.tensor(values), output)
    expected = kernel_reference.ACTIVATIONS[kind](torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="no activation 'mish'"):
        activation("mish", tir.broadcast(0.0))


def test_epilogue_steps_name_their_operands_and_leave_out_the_shuffle() -> None:
    kernel = Kernel.parse(
        "conv2d 12x5x5 -> 20x5x5 k1 s1 p0 g1 bias add hard_swish multiply:40x1x1[20:40]"
    )
    steps = epilogue_steps(kernel)
    assert steps == [Step("bias"), Step("add", 0), Step("hard_swish"), Step("multiply", 1)]
    assert [step.has_term for step in steps] == [True, True, False, True]
    shuffled = Kernel.parse("concat 58x5x5 58x5x5 -> 116x5x5 shuffle2")
    assert epilogue_steps(shuffled) == []
