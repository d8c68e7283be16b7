"""The cache model, compared with values computed by hand."""

from __future__ import annotations

import pytest

from nas.latency.cache_model import WEIGHT_PARTS, WEIGHTS_MIB, DispatchCosts

MIB = 1 << 20


def costs(*curve_us: float) -> DispatchCosts:
    """Return costs with this miss curve, for 1, 4, 16 and 64 MiB."""
    return DispatchCosts(dict(zip(WEIGHT_PARTS, curve_us, strict=True)))


def test_parts_are_named_after_sizes() -> None:
    assert tuple(f"weights_{mib}mib" for mib in WEIGHTS_MIB) == WEIGHT_PARTS


@pytest.mark.parametrize(
    ("mib", "fraction"),
    [(0, 0), (1, 0), (2.5, 0.05), (4, 0.1), (10, 0.3), (16, 0.5), (40, 0.75), (64, 1), (1000, 1)],
)
def test_miss_fraction_follows_the_curve(mib: float, fraction: float) -> None:
    assert costs(20, 24, 40, 60).miss_fraction(mib * MIB) == pytest.approx(fraction)


def test_cost_of_a_disturbed_chain_is_that_of_the_next_longer_one() -> None:
    assert costs(20, 45, 30, 60).miss_curve == [20, 30, 30, 60]
    assert costs(80, 45, 90, 60).miss_curve == [45, 45, 60, 60]


def test_cold_weights_cost_the_difference_of_the_chains() -> None:
    assert costs(20, 24, 40, 60).cold_weights_us(MIB // 2) == 20


@pytest.mark.parametrize("without", [costs(30, 30, 30, 30), costs(30, 30, 30, 29)])
def test_flat_curve_has_no_misses(without: DispatchCosts) -> None:
    assert without.miss_fraction(64 * MIB) == without.cold_weights_us(MIB) == 0


def test_runtime_without_parts_has_no_costs() -> None:
    none = DispatchCosts({"weights_1mib": 20.0})
    assert (none.launch_us, none.invocation_us, none.miss_curve) == (0, 0, [])
    assert none.miss_fraction(64 * MIB) == none.cold_weights_us(MIB) == 0
