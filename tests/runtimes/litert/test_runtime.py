from __future__ import annotations

import numpy as np
import pytest

from nas.errors import MeasurementError
from nas.kernels.kernel import Kernel
from nas.runtimes.litert.repeated import repeat_kernel
from nas.runtimes.litert.runtime import LiteRt


def test_kernels_of_other_runtimes_are_refused() -> None:
    expanded = "conv2d 8x9x9 expanded bias relu6 -> 24x9x9 k3 s1 p1 g24 bias relu6"
    for text in ("node Relu f32[1,8,9,9] -> f32[1,8,9,9]", expanded):
        with pytest.raises(MeasurementError, match="LiteRT has no kernel"):
            repeat_kernel(Kernel.parse(text), 2, np.random.default_rng(0))


def test_schedule_keeps_the_weights_of_all_copies_in_the_caches() -> None:
    timer = LiteRt().timer
    small = timer.choose_copies(Kernel.parse("conv2d 8x4x4 -> 8x4x4 k1 s1 p0 g1 bias"))
    large = timer.choose_copies(Kernel.parse("conv2d 512x4x4 -> 512x4x4 k3 s1 p1 g1 bias"))
    assert small == {"copies": 64, "weights": 64}
    assert large == {"copies": 2, "weights": 2}
