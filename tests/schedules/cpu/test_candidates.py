"""Candidates of CPU kernels fit the vector registers."""

from __future__ import annotations

import pytest

from nas.latency.kernel import Kernel
from nas.schedules.cpu import candidates


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3, 10, 58, 64, 116, 232, 576])
def test_some_candidate_exists_and_all_fit_the_registers(channels: int, lanes: int) -> None:
    registers = 32 if lanes == 16 else 16
    for text in (
        f"conv2d 8x7x7 -> {channels}x7x7 k1 s1 p0 g1 bias",
        f"conv2d 8x13x13 -> {channels}x13x13 k3 s1 p1 g1 bias",
        f"conv2d {channels}x7x7 -> {channels}x7x7 k3 s1 p1 g{channels} bias",
        f"conv2d 8x1x1 -> {channels}x1x1 k1 s1 p0 g1 bias relu",
        f"conv2d 24x7x7 -> {3 * channels}x7x7 k1 s1 p0 g3 bias relu",
        f"avg_pool {channels}x7x7 -> {channels}x4x4 k3 s2 p1 g1",
    ):
        schedules = candidates.first_candidates(Kernel.parse(text), lanes, registers)
        assert schedules
        for schedule in schedules:
            pixels = schedule.get("rows", 1) * schedule.get("columns", schedule.get("pixels"))
            assert pixels * schedule["channels"] <= registers
