"""The cache model, compared with values computed by hand."""

from __future__ import annotations

import pytest

from nas.latency.cache_model import WEIGHT_PARTS, WEIGHTS_MIB, DispatchCosts

MIB = 1 << 20


def costs(*curve_us: float) -> DispatchCosts:
    """Return costs with this miss curve, for chains of `WEIGHTS_MIB`."""
    return DispatchCosts(dict(zip(WEIGHT_PARTS, curve_us, strict=True)))


def test_parts_are_named_after_sizes() -> None:
    assert tuple(f"weights_{mib}mib" for mib in WEIGHTS_MIB) == WEIGHT_PARTS


@pytest.mark.parametrize(
    ("mib", "us"),
    [(0, 0), (1, 0), (2.5, 2), (4, 4), (10, 12), (16, 20), (40, 30), (64, 40), (1000, 40)],
)
def test_waiting_for_weights_follows_the_curve(mib: float, us: float) -> None:
    assert costs(20, 24, 28, 36, 40, 60).waiting_us(MIB, mib * MIB) == pytest.approx(us)
    assert costs(20, 24, 28, 36, 40, 60).waiting_us(MIB // 2, mib * MIB) == pytest.approx(us / 2)


def test_cost_of_a_disturbed_chain_is_that_of_the_next_longer_one() -> None:
    assert list(costs(20, 45, 30, 30, 30, 60).miss_curve.values()) == [20, 30, 30, 30, 30, 60]
    assert list(costs(80, 45, 90, 90, 90, 60).miss_curve.values()) == [45, 45, 60, 60, 60, 60]


def test_weights_are_in_no_cache_unless_it_is_known_what_else_is() -> None:
    assert costs(20, 24, 28, 36, 40, 60).waiting_us(MIB // 2) == 20


@pytest.mark.parametrize("flat", [costs(*[30] * 6), costs(*[30] * 5, 29)])
def test_flat_curve_has_no_misses(flat: DispatchCosts) -> None:
    assert flat.waiting_us(MIB) == 0


def test_runtime_without_parts_has_no_costs() -> None:
    none = DispatchCosts({"weights_1mib": 20.0})
    assert (none.launch_us, none.invocation_us, none.miss_curve) == (0, 0, {})
    assert none.waiting_us(MIB) == 0


def test_curve_is_straight_where_no_chain_was_timed() -> None:
    some = DispatchCosts({"weights_1mib": 20.0, "weights_16mib": 50.0, "weights_64mib": 60.0})
    assert some.miss_curve == {1: 20, 16: 50, 64: 60}
    assert some.waiting_us(MIB, 6 * MIB) == pytest.approx(10)
