"""What a pooling window counts at the edges of the image."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from nas.latency.kernel import Kernel
from nas.schedules import tir, window


def test_only_a_maximum_must_not_see_zeros_outside_the_image() -> None:
    assert window.ignores_zeros(Kernel.parse("avg_pool 8x6x6 -> 8x3x3 k2 s2 p0 g1"))
    assert window.ignores_zeros(Kernel.parse("conv2d 8x6x6 -> 8x6x6 k3 s1 p1 g8"))
    assert not window.ignores_zeros(Kernel.parse("max_pool 8x6x6 -> 8x3x3 k2 s2 p0 g1"))


@pytest.mark.parametrize(
    ("text", "pixel", "counted"),
    [
        ("avg_pool 8x6x6 -> 8x3x3 k3 s2 p1 g1", 0, 9),  # padding counts
        ("avg_pool 8x6x6 -> 8x3x3 k3 s2 p0 g1", 1, 9),
        ("avg_pool 8x6x6 -> 8x3x3 k3 s2 p0 g1", 2, 4),  # what the window exceeds does not
    ],
)
def test_an_average_counts_padding_but_nothing_beyond(text: str, pixel: int, counted: int) -> None:
    total = tir.broadcast(36.0)
    assert evaluate(window.finish(Kernel.parse(text), total, pixel, pixel)) == 36 / counted


def evaluate(value: tir.Expr) -> float:
    y = tir.Buffer("y", 1)
    module = tvm.IRModule({"main": tir.function([y], [y.store(0, value)], "main")})
    output = tvm.runtime.tensor(np.zeros(1, np.float32))
    tvm.tirx.build(module, tvm.target.Target("llvm"), "tirx")["main"](output)
    return float(output.numpy()[0])
