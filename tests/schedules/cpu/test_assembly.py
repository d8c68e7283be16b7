"""The sums of a register tile stay in registers, on processors with each kind of vectors."""

from __future__ import annotations

import pytest

from nas.kernels.kernel import Kernel
from nas.schedules.cpu import CpuTemplates
from tests.schedules.cpu.assembly import inner_loops, templates_for

KERNELS = [
    "conv2d 144x8x8 -> 48x8x8 k1 s1 p0 g1 bias add",
    "conv2d 96x32x32 -> 24x32x32 k1 s1 p0 g1 bias",
    "conv2d 64x14x14 -> 64x14x14 k3 s1 p1 g1 bias relu",
]

PROCESSORS = {
    "haswell": "x86_64-linux-gnu",
    "skylake-avx512": "x86_64-linux-gnu",
    "cortex-a72": "aarch64-linux-gnu",
}


@pytest.fixture(params=PROCESSORS)
def templates(request: pytest.FixtureRequest) -> CpuTemplates:
    return templates_for(request.param, PROCESSORS[request.param])


@pytest.mark.parametrize("text", KERNELS)
def test_no_register_tile_goes_through_the_stack(templates: CpuTemplates, text: str) -> None:
    kernel = Kernel.parse(text)
    for channels, pixels in templates.unit.tile_pixels.items():
        if channels * templates.unit.lanes > kernel.output[0]:
            continue
        tile = {"channels": channels, "rows": 1, "columns": min(pixels, kernel.output[2])}
        loops = inner_loops(templates, kernel, {**tile, "order": "pixels", "partial_sums": 1})
        assert any(each.multiply_adds % (channels * tile["columns"]) == 0 for each in loops)
        assert not any(each.spills for each in loops), tile


@pytest.mark.parametrize("text", KERNELS)
def test_a_load_serves_several_multiply_adds(templates: CpuTemplates, text: str) -> None:
    """Unless they read their operand from memory, as those of AVX-512 do."""
    kernel = Kernel.parse(text)
    loops = inner_loops(templates, kernel, templates.candidates(kernel)[0])
    loads = min(each.loads / each.multiply_adds for each in loops)
    assert loads <= (1.1 if templates.unit.lanes == 16 else 0.7)


def test_a_tile_that_exceeds_the_registers_goes_through_the_stack() -> None:
    tile = {"channels": 1, "rows": 1, "columns": 14, "order": "pixels", "partial_sums": 1}
    loops = inner_loops(templates_for("znver3"), Kernel.parse(KERNELS[0]), tile)
    assert any(each.spills > each.multiply_adds / 2 for each in loops)
