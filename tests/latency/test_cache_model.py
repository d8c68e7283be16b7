"""The cache model, compared with values computed by hand."""

from __future__ import annotations

import pytest

from nas.latency.cache_model import (
    FIRST_CACHE,
    FIRST_CACHE_KIB,
    LAUNCH_MIB,
    WEIGHT_PARTS,
    WEIGHT_PARTS_BY_INTENSITY,
    WEIGHTS_MIB,
    DispatchCosts,
)

COSTS = dict(zip(WEIGHT_PARTS, (20.0, 20.0, 24.0, 28.0, 40.0, 50.0, 55.0, 60.0, 60.0), strict=True))
MEBIBYTE = 1 << 20


def test_parts_are_named_after_sizes() -> None:
    assert tuple(f"weights_{mib}mib" for mib in WEIGHTS_MIB) == WEIGHT_PARTS
    assert list(WEIGHTS_MIB) == sorted(WEIGHTS_MIB)


@pytest.mark.parametrize(
    ("mib", "fraction"),
    [
        (0, 0),
        (4, 0),
        (6, 2 / 40),
        (8, 4 / 40),
        (14, 14 / 40),
        (16, 20 / 40),
        (28, 37.5 / 40),
        (32, 1),
        (64, 1),
        (1000, 1),
    ],
)
def test_miss_fraction_follows_the_cost_of_the_chains(mib: float, fraction: float) -> None:
    assert DispatchCosts(COSTS).miss_fraction(mib * MEBIBYTE, 1000) == pytest.approx(fraction)


@pytest.mark.parametrize(
    ("second", "warm"),
    [
        (24.0, 24.0),  # The cost of the shared cache is part of the warm latency.
        (39.0, 39.0),
        (41.0, 20.0),  # More than half of the way to 60: no shared cache.
        (60.0, 20.0),
    ],
)
def test_shared_cache_counts_as_warm(second: float, warm: float) -> None:
    costs = dict(zip(WEIGHT_PARTS, (20.0, second, *[50.0] * 6, 60.0), strict=True))
    costs = {
        part: max(second, cost) if part != WEIGHT_PARTS[0] else cost for part, cost in costs.items()
    }
    fraction = DispatchCosts(costs).miss_fraction(4 * MEBIBYTE, 1000)
    assert fraction == pytest.approx((second - warm) / (60 - warm))
    middle = max(second, 50.0)
    fraction = DispatchCosts(costs).miss_fraction(16 * MEBIBYTE, 1000)
    assert fraction == pytest.approx((middle - warm) / (60 - warm))
    assert DispatchCosts(costs).cold_weights_us(MEBIBYTE) == pytest.approx(60 - warm)


def test_slow_chains_of_four_mib_are_not_taken_for_warm() -> None:
    """The shared cache costs 2 us more a MiB. What the slow chain of 4 MiB costs beyond is misses.

    Its costs are 300, 308 and then 318 us, of which 302 us are warm.
    """
    often, slow = WEIGHT_PARTS_BY_INTENSITY[1:]
    costs = dict(zip(WEIGHT_PARTS, (10.0, 12.0, *[28.0] * 7), strict=True))
    costs |= dict(zip(often, (100.0, 101.0, *[118.0] * 7), strict=True))
    costs |= dict(zip(slow, (300.0, 308.0, *[318.0] * 7), strict=True))
    four_mib = 4 * MEBIBYTE
    assert DispatchCosts(costs).miss_fraction(four_mib, 4 * 300.0) == pytest.approx(6 / 16)
    assert DispatchCosts(costs).miss_fraction(four_mib, 4 * 100.0) == 0
    assert DispatchCosts(costs).miss_fraction(four_mib, 4 * 10.0) == 0


def test_miss_fraction_stays_between_0_and_1_with_noise() -> None:
    noisy = {**COSTS, "weights_8mib": 18.0, "weights_24mib": 61.0}
    assert DispatchCosts(noisy).miss_fraction(8 * MEBIBYTE, 1000) == 0
    assert DispatchCosts(noisy).miss_fraction(24 * MEBIBYTE, 1000) == 1


def test_miss_curve_replaces_cost_of_disturbed_chain() -> None:
    busy = {**COSTS, "weights_8mib": 45.0, "weights_16mib": 90.0}
    assert DispatchCosts(busy).miss_curves == [
        [20.0, 20.0, 28.0, 28.0, 50.0, 50.0, 55.0, 60.0, 60.0]
    ]


def test_flat_miss_curve_has_no_misses() -> None:
    flat = dict.fromkeys(WEIGHT_PARTS, 30.0)
    assert DispatchCosts(flat).miss_fraction(64 * MEBIBYTE, 1000) == 0
    assert DispatchCosts(flat).cold_weights_us(MEBIBYTE) == 0
    assert DispatchCosts({**flat, WEIGHT_PARTS[-1]: 29.0}).cold_weights_us(MEBIBYTE) == 0


def test_cold_weights_cost_the_difference_of_the_chains() -> None:
    assert DispatchCosts(COSTS).cold_weights_us(MEBIBYTE // 2) == 20


def test_cold_weights_cost_what_chains_of_their_intensity_say() -> None:
    costs = {part: 100 + 3 * us for part, us in COSTS.items()}
    steady = dict(zip(WEIGHT_PARTS_BY_INTENSITY[1], costs.values(), strict=True))
    measured = DispatchCosts({**COSTS, **steady})
    assert [measured.cold_weights_us(MEBIBYTE, intensity) for intensity in (0, 1)] == [40, 120]
    assert DispatchCosts(COSTS).cold_weights_us(MEBIBYTE, 1) == 40, "not measured"
    assert DispatchCosts({}).cold_weights_us(MEBIBYTE, 1) == 0


@pytest.mark.parametrize(
    ("warm_us", "fraction"),
    [
        (100, 0.0),
        (20 * 16, 0.0),
        (50 * 16, 0.25),  # Halfway from 20 to 80 us per MiB.
        (80 * 16, 0.5),
        (200 * 16, 0.75),
        (320 * 16, 1.0),
        (10_000, 1.0),
    ],
)
def test_miss_fraction_rises_with_duration(warm_us: float, fraction: float) -> None:
    """16 MiB are warm at low intensity, half cold at medium and cold at high intensity."""
    position = WEIGHTS_MIB.index(16)
    costs = {}
    for parts, warm, middle in zip(
        WEIGHT_PARTS_BY_INTENSITY, (20, 80, 320), (0, 20, 40), strict=True
    ):
        values = (
            [warm] * position + [warm + middle] + [warm + 40] * (len(WEIGHTS_MIB) - position - 1)
        )
        costs |= dict(zip(parts, map(float, values), strict=True))
    assert DispatchCosts(costs).miss_fraction(16 * MEBIBYTE, warm_us) == pytest.approx(fraction)


def test_half_miss_sizes_interpolate_between_chains() -> None:
    assert DispatchCosts(COSTS).half_miss_sizes() == [(20.0, pytest.approx(16.0))]
    flat = dict.fromkeys(WEIGHT_PARTS_BY_INTENSITY[1], 30.0)
    assert DispatchCosts({**COSTS, **flat}).half_miss_sizes() == [(20.0, pytest.approx(16.0))]
    steep = dict(zip(WEIGHT_PARTS, (20.0, 20.0, 60.0, *[60.0] * 6), strict=True))
    assert DispatchCosts(steep).half_miss_sizes() == [(20.0, pytest.approx(6.0))]


def test_launch_costs_more_in_larger_network() -> None:
    costs = {"launch_2mib": 0.5, "launch": 0.3, "launch_small": 0.2, "launch_few": 0.1}
    few, small, middle, large = LAUNCH_MIB.values()
    sizes = [0, few, small, (small + middle) / 2, middle, (middle + large) / 2, large, 50]

    def launches_us(costs: dict[str, float]) -> list[float]:
        return [DispatchCosts(costs).launch_us(mib * MEBIBYTE) for mib in sizes]

    assert launches_us(costs) == pytest.approx([0.1, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.5])
    assert launches_us({**costs, "launch_2mib": 0.1})[4:] == [0.3] * 4, "noise is no saving"
    assert launches_us({"launch": 0.2}) == [0.2] * 8
    assert launches_us({"invocation": 9.0}) == [0.0] * 8


def test_small_network_waits_for_the_first_cache_by_its_size() -> None:
    costs = DispatchCosts({FIRST_CACHE: 0.6})
    kib = [0, FIRST_CACHE_KIB / 3, FIRST_CACHE_KIB, 1000]
    assert [costs.first_cache_us(1024 * each) for each in kib] == pytest.approx([0, 0.2, 0.6, 0.6])
    assert DispatchCosts({}).first_cache_us(1e6) == 0
    assert costs.without_launches.first_cache_us(1e6) == 0.6, "it is no cost of launching"
