from __future__ import annotations

import numpy as np
import pytest

from nas.errors import MeasurementError
from nas.kernels.kernel import Kernel
from nas.runtimes.litert.kernel_timer import LiteRtKernelTimer
from nas.runtimes.litert.repeated import repeat_kernel
from nas.runtimes.litert.session import Session


def test_kernels_of_other_runtimes_are_refused() -> None:
    expanded = "conv2d 8x9x9 expanded bias relu6 -> 24x9x9 k3 s1 p1 g24 bias relu6"
    for text in ("to_plain 8x9x9 -> 8x9x9", "split 8x9x9[0:4] 8x9x9[4:8] -> 8x9x9", expanded):
        with pytest.raises(MeasurementError, match="LiteRT has no kernel"):
            repeat_kernel(Kernel.parse(text), 2, np.random.default_rng(0))


@pytest.mark.parametrize(
    "text",
    [
        "conv2d {}32x14x14 -> 64x14x14 k1 s1 p0 g1 bias relu",  # its outputs are kept
        "conv2d {}64x14x14 -> 64x14x14 k3 s1 p1 g64 bias relu",  # a chain
        "concat {}32x14x14 32x14x14 -> 64x14x14 shuffle2",
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_no_copy_is_dropped(text: str, dtype: str) -> None:
    """Check that many copies take much longer than few, beside LiteRT's own word for it."""
    kernel = Kernel.parse(text.format("int8 " if dtype == "int8" else ""))
    few, many = (
        min(Session(repeat_kernel(kernel, copies, np.random.default_rng(0)), 1).evaluate(20, 10))
        for copies in (2, 32)
    )
    assert many > 6 * few


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_kernel_latency_excludes_the_outputs_and_the_call(dtype: str) -> None:
    """A kernel that does next to nothing has about the latency of a tiny operator."""
    timer = LiteRtKernelTimer(dtype, 1)
    kernel = Kernel.parse(f"copy {'int8 ' if dtype == 'int8' else ''}4x1x1[0:2] -> 2x1x1")
    _, timed = timer.time_kernel(kernel)
    assert timed.latency_us < 1
    assert timer.invocation_s < 1e-4


def test_schedule_keeps_the_weights_of_all_copies_in_the_caches() -> None:
    timer = LiteRtKernelTimer("float32", 1)
    small = timer.choose_copies(Kernel.parse("conv2d 8x4x4 -> 8x4x4 k1 s1 p0 g1 bias"))
    large = timer.choose_copies(Kernel.parse("conv2d 512x4x4 -> 512x4x4 k3 s1 p1 g1 bias"))
    assert small == {"copies": 64, "weights": 64}
    assert large == {"copies": 2, "weights": 2}
