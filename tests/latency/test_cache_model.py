"""How far kernels are from their weights, against straight lines worked out by hand."""

from __future__ import annotations

import pytest

from nas.latency.cache_model import (
    LARGE_LAUNCH,
    LAUNCH_MIB,
    MIB,
    PARTS,
    PARTS_BY_PACE,
    curves,
    far_share,
    far_weights_us,
    half_far,
    launch_us,
)

COSTS = dict(zip(PARTS, (20.0, 20.0, 24.0, 28.0, 40.0, 50.0, 55.0, 60.0, 60.0), strict=True))
MEBIBYTE = 1 << 20


def test_the_sizes_are_those_of_the_parts() -> None:
    assert tuple(f"weights_{mib}mib" for mib in MIB) == PARTS
    assert list(MIB) == sorted(MIB)


@pytest.mark.parametrize(
    ("mib", "share"),
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
def test_the_share_follows_the_chains_cost(mib: float, share: float) -> None:
    assert far_share(mib * MEBIBYTE, 1000, curves(COSTS)) == pytest.approx(share)


@pytest.mark.parametrize(
    ("second", "near"),
    [
        (24.0, 24.0),  # The shared cache costs something: that is in the kernels' near latency.
        (39.0, 39.0),
        (41.0, 20.0),  # More than half of the way to 60: there is no shared cache.
        (60.0, 20.0),
    ],
)
def test_a_shared_cache_is_near(second: float, near: float) -> None:
    costs = dict(zip(PARTS, (20.0, second, *[50.0] * 6, 60.0), strict=True))
    costs = {part: max(second, cost) if part != PARTS[0] else cost for part, cost in costs.items()}
    share = far_share(4 * MEBIBYTE, 1000, curves(costs))
    assert share == pytest.approx((second - near) / (60 - near))
    middle = max(second, 50.0)
    share = far_share(16 * MEBIBYTE, 1000, curves(costs))
    assert share == pytest.approx((middle - near) / (60 - near))
    assert far_weights_us(MEBIBYTE, costs) == pytest.approx(60 - near)


def test_noise_never_makes_a_share_less_than_none_or_more_than_all() -> None:
    noisy = {**COSTS, "weights_8mib": 18.0, "weights_24mib": 61.0}
    assert far_share(8 * MEBIBYTE, 1000, curves(noisy)) == 0
    assert far_share(24 * MEBIBYTE, 1000, curves(noisy)) == 1


def test_a_chain_that_met_a_busy_moment_counts_as_what_a_longer_one_took() -> None:
    busy = {**COSTS, "weights_8mib": 45.0, "weights_16mib": 90.0}
    assert curves(busy) == [[20.0, 20.0, 28.0, 28.0, 50.0, 50.0, 55.0, 60.0, 60.0]]


def test_without_a_difference_nothing_is_far() -> None:
    flat = dict.fromkeys(PARTS, 30.0)
    assert far_share(64 * MEBIBYTE, 1000, curves(flat)) == 0
    assert far_weights_us(MEBIBYTE, flat) == 0
    assert far_weights_us(MEBIBYTE, {**flat, PARTS[-1]: 29.0}) == 0


def test_weights_that_were_not_timed_far_cost_what_the_chains_do() -> None:
    assert far_weights_us(MEBIBYTE // 2, COSTS) == 20


@pytest.mark.parametrize(
    ("near_us", "share"),
    [
        (100, 0.0),
        (20 * 16, 0.0),
        (40 * 16, 0.25),  # Half way from 20 to 80 microseconds for a MiB, by the logarithm.
        (80 * 16, 0.5),
        (160 * 16, 0.75),
        (320 * 16, 1.0),
        (10_000, 1.0),
    ],
)
def test_a_slower_network_is_farther(near_us: float, share: float) -> None:
    """By hand, for 16 MiB, which are near in fast chains, half far in slower, far in slow ones."""
    at = MIB.index(16)
    costs = {}
    for parts, near, middle in zip(PARTS_BY_PACE, (20, 80, 320), (0, 20, 40), strict=True):
        values = [near] * at + [near + middle] + [near + 40] * (len(MIB) - at - 1)
        costs |= dict(zip(parts, map(float, values), strict=True))
    assert far_share(16 * MEBIBYTE, near_us, curves(costs)) == pytest.approx(share)


def test_where_networks_are_half_far() -> None:
    assert half_far(curves(COSTS)) == [(20.0, pytest.approx(16.0))]
    flat = dict.fromkeys(PARTS_BY_PACE[1], 30.0)
    assert half_far(curves({**COSTS, **flat})) == [(20.0, pytest.approx(16.0))]
    steep = dict(zip(PARTS, (20.0, 20.0, 60.0, *[60.0] * 6), strict=True))
    assert half_far(curves(steep)) == [(20.0, pytest.approx(6.0))]


def test_a_launch_costs_more_in_a_larger_network() -> None:
    costs = {"launch": 0.2, LARGE_LAUNCH: 0.5}
    small, large = LAUNCH_MIB
    middle = (small * large) ** 0.5
    found = [launch_us(mib * MEBIBYTE, costs) for mib in (0, small, middle, large, 50)]
    assert found == pytest.approx([0.2, 0.2, 0.35, 0.5, 0.5])
    assert launch_us(50 * MEBIBYTE, {"launch": 0.2}) == 0.2
    assert launch_us(50 * MEBIBYTE, {**costs, LARGE_LAUNCH: 0.1}) == 0.2
