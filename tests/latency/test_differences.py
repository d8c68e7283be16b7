"""Costs that are differences of other timings."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from nas.errors import MeasurementError
from nas.latency import differences, processor_speed
from nas.latency.processor_speed import slowdown as real_slowdown

MOMENTS = differences.MOMENTS
"""The number outside the tests, read before `tests.quick_timing` changes it."""


@pytest.fixture(autouse=True)
def _all_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time at as many moments as outside the tests."""
    monkeypatch.setattr(differences, "MOMENTS", MOMENTS)


def test_differences_do_not_rest_on_slow_moments_of_each_component() -> None:
    """Each component is slowed at every other moment, and each at others."""
    moments = iter(range(10**6))

    def component(seconds: float, quiet: int) -> Callable[[], float]:
        # There are two components.
        return lambda: seconds * (1.0 if next(moments) // 2 % 2 == quiet else 1.5)

    timings = differences.measure_differences(
        {"long": component(7e-6, 0), "short": component(2e-6, 1)},
        lambda seconds: {"launch": (seconds["long"] - seconds["short"]) / 5},
    )
    assert timings["launch"].samples_us == (1.0,) * differences.SAMPLES
    assert timings["launch"].reference_us is not None
    assert next(moments) == 2 * differences.MOMENTS


def test_differences_on_a_board_say_nothing_of_the_speed_of_this_processor(monkeypatch) -> None:
    """The fastest moment counts, as for the kernels of a board."""
    monkeypatch.delattr(processor_speed, "reference_us")
    moments = iter(range(10**6))
    timings = differences.measure_differences(
        {"run": lambda: 1e-6 if next(moments) in (6, 7, 8) else 1.5e-6},
        lambda seconds: {"launch": seconds["run"]},
        is_local=False,
    )
    assert timings["launch"].samples_us == (1.0,) * differences.SAMPLES
    assert timings["launch"].reference_us is None
    assert next(moments) == differences.MOMENTS


def test_difference_that_is_no_cost_is_refused_by_its_name() -> None:
    with pytest.raises(MeasurementError, match=r"'launch' .*came out as -1, -1, -1 us"):
        differences.measure_differences(
            {"long": lambda: 1e-6, "short": lambda: 2e-6},
            lambda seconds: {"launch": seconds["long"] - seconds["short"]},
        )


def test_difference_is_timed_at_more_moments_while_it_is_no_cost() -> None:
    """The shorter component is slowed at all moments but the last ones."""
    moments = itertools.count()
    timings = differences.measure_differences(
        {
            "long": lambda: 3e-6,
            "short": lambda: 2e-6 if next(moments) >= 2 * differences.MOMENTS else 4e-6,
        },
        lambda seconds: {"launch": seconds["long"] - seconds["short"]},
    )
    assert timings["launch"].samples_us == (1.0,) * differences.SAMPLES
    assert 2 * differences.MOMENTS < next(moments) < 4 * differences.MOMENTS


def test_differences_are_those_at_the_quiet_speed(monkeypatch) -> None:
    """The clock changes by some percent, and in every other moment a neighbour comes meanwhile."""
    monkeypatch.setattr(processor_speed, "slowdown", real_slowdown)
    monkeypatch.setattr(processor_speed, "MAX_SPEED_CHANGE", 0.12)
    speeds, calls, current = itertools.cycle([1.0, 1.02, 1.04]), itertools.count(), [1.0]
    has_neighbour = itertools.cycle([False, True])

    def reference_us() -> float:
        # It is called before, between and after the two components.
        if next(calls) % 3 == 0:
            current[0] = next(speeds)
        return 3.5 * current[0]

    def long() -> float:
        if not next(has_neighbour):
            return 7e-6 * current[0]
        current[0] = 1.5
        return 14e-6

    monkeypatch.setattr(processor_speed, "reference_us", reference_us)
    timings = differences.measure_differences(
        {"long": long, "short": lambda: 2e-6 * current[0]},
        lambda seconds: {"launch": (seconds["long"] - seconds["short"]) / 5},
    )
    assert timings["launch"].samples_us == (1.0,) * differences.SAMPLES
    assert timings["launch"].reference_us == 3.5


def test_difference_without_one_third_of_the_moments_is_a_sample() -> None:
    """Only two moments in a row are fast, and each sample has at least one of them."""
    moments = itertools.count()
    timings = differences.measure_differences(
        {"run": lambda: {3: 1e-6, 4: 2e-6}.get(next(moments), 3e-6)},
        lambda seconds: {"launch": seconds["run"]},
        is_local=False,
    )
    assert timings["launch"].samples_us == (2.0, 1.0, 1.0)
