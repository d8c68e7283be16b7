"""How far ahead of their use constants are prefetched."""

from __future__ import annotations

import pytest
from tvm import tirx

from nas.latency.kernel import Kernel
from nas.schedules.cpu.loop_nest import LoopNest
from nas.schedules.tir import Stmt

LANES = 16
LARGE = "conv2d 1344x7x7 -> 448x7x7 k1 s1 p0 g1 bias"


def loop_nest(text: str) -> LoopNest:
    kernel = Kernel.parse(text)
    weights = kernel.weight_bytes // 4
    return LoopNest(kernel, LANES, 1, weights, kernel.output[0])


def addresses(statements: list[Stmt]) -> list[int]:
    """Return the offset that each statement prefetches, for a step at offset 0."""
    result = []
    for statement in statements:
        prefetch = statement.value
        assert prefetch.op.name == "tirx.prefetch"
        (index,) = prefetch.args[0].args[0].indices
        result.append(int(tirx.const(0, "int32") + index))
    return result


def test_prefetch_is_far_enough_ahead_for_main_memory() -> None:
    """At two products a cycle and 4 GHz, 25 products take 3 ns and 96 steps 0.3 us."""
    statements = loop_nest(LARGE).prefetch_weights(0, LANES, 1, 25)
    assert addresses(statements) == [96 * LANES]
    statements = loop_nest(LARGE).prefetch_weights(0, 2 * LANES, 2, 50)
    assert addresses(statements) == [48 * 2 * LANES, 48 * 2 * LANES + LANES]


def test_prefetched_weights_fit_in_the_first_level_cache() -> None:
    """A step of a linear layer has few products, so that many steps fit into 0.3 us."""
    statements = loop_nest(LARGE).prefetch_weights(0, 3 * LANES, 3, 3)
    first = addresses(statements)[0]
    assert first == 85 * 3 * LANES
    assert 4 * first <= 16 << 10


@pytest.mark.parametrize(("elements", "lines"), [(LANES, 1), (9 * LANES, 9), (8, 1)])
def test_each_cache_line_is_prefetched_once(elements: int, lines: int) -> None:
    nest = loop_nest(LARGE)
    assert addresses(nest.prefetch(nest.bias, 0, elements)) == [16 * i for i in range(lines)]


def test_few_weights_are_not_prefetched() -> None:
    nest = loop_nest("conv2d 24x7x7 -> 40x7x7 k1 s1 p0 g1 bias")
    assert nest.prefetch_weights(0, LANES, 1, 25) == []
    assert nest.prefetch(None, 0, LANES) == []
