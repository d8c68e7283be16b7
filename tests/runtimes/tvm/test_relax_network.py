"""What only TVM's networks need: schedules, and code for narrower vectors than this machine's."""

from __future__ import annotations

import pytest

from nas.errors import MissingKernelError
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.cpu.loops import AVX, AVX512, NEON, SSE, VectorUnit
from tests.latency.example_graphs import GRAPHS
from tests.runtimes.outputs import check_network


def test_kernel_without_a_schedule_is_named() -> None:
    with pytest.raises(MissingKernelError, match="conv2d 12x4x4"):
        TvmRuntime().compile(GRAPHS["squeezenet_head"](), {})


@pytest.mark.slow
@pytest.mark.parametrize("unit", [AVX512, AVX, SSE, NEON])
def test_schedules_for_other_vector_units_compute_the_same(unit: VectorUnit) -> None:
    """Run schedules for vectors and tiles of other processors on this machine."""
    runtime = TvmRuntime()
    runtime.timer.templates.unit = unit  # type: ignore[attr-defined]
    for name in (
        "inverted_residual",
        "shuffle_unit",
        "fire",
        "squeeze_excite",
        "shuffle_v1_unit_of_8_groups",
        "shuffle_v1_downsampling",
        "unpadded_stem",
    ):
        check_network(runtime, GRAPHS[name]())
