"""What weights far away cost, against straight lines worked out by hand."""

from __future__ import annotations

import pytest

from nas.latency.footprint import MIB, PARTS, weights_us
from nas.latency.kernel import Kernel

COSTS = dict(zip(PARTS, (20.0, 24.0, 30.0, 50.0), strict=True))
MEBIBYTE = Kernel.parse("conv2d 512x1x1 -> 512x1x1 k1 s1 p0 g1 bias")
POOL = Kernel.parse("max_pool 64x31x31 -> 64x16x16 k3 s2 p1 g1")


def test_the_sizes_are_those_of_the_parts() -> None:
    assert tuple(f"weights_{mib}mib" for mib in MIB) == PARTS
    assert MEBIBYTE.weight_bytes == 1 << 20
    assert POOL.weight_bytes == 0


@pytest.mark.parametrize(
    ("mib", "extra_us"),
    [
        (0, 0),
        (3, 0),
        (4, 0),
        (6, 6 * 2),
        (8, 8 * 4),
        (12, 12 * 7),
        (16, 160),
        (32, 960),
        (40, 1200),
    ],
)
def test_a_network_pays_for_each_of_its_mebibytes(mib: int, extra_us: float) -> None:
    assert weights_us([MEBIBYTE] * mib + [POOL] * 3, COSTS) == pytest.approx(extra_us)


def test_noise_never_makes_weights_far_away_cheaper() -> None:
    noisy = dict(zip(PARTS, (20.0, 18.0, 19.0, 30.0), strict=True))
    assert weights_us([MEBIBYTE] * 8, noisy) == 0
    assert weights_us([MEBIBYTE] * 32, noisy) == 320
