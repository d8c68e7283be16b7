"""Costs that are differences of other timings."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from nas.errors import MeasurementError
from nas.latency import differences

ROUNDS = differences.ROUNDS
"""The number outside the tests, read before `tests.quick_timing` changes it."""


@pytest.fixture(autouse=True)
def _all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "ROUNDS", ROUNDS)


def test_differences_do_not_rest_on_slow_rounds_of_each_component() -> None:
    """Each component is slowed in every other round, and each at others."""
    rounds = itertools.count()

    def component(seconds: float, undisturbed: int) -> Callable[[], float]:
        # There are two components.
        return lambda: seconds * (1.0 if next(rounds) // 2 % 2 == undisturbed else 1.5)

    timings = differences.measure_differences(
        {"long": component(7e-6, 0), "short": component(2e-6, 1)},
        lambda seconds: {"launch": (seconds["long"] - seconds["short"]) / 5},
    )
    assert timings["launch"].samples_us == (1.0,) * differences.SAMPLES
    assert next(rounds) == 2 * ROUNDS


def test_each_sample_lacks_a_third_of_the_rounds() -> None:
    """The second fastest of twelve rounds counts. The samples lack rounds 3, 4 and 5."""
    rounds = itertools.count()
    timings = differences.measure_differences(
        {"run": lambda: {3: 1e-6, 4: 2e-6, 5: 3e-6}.get(next(rounds), 9e-6)},
        lambda seconds: {"launch": seconds["run"]},
    )
    assert timings["launch"].samples_us == (3.0, 3.0, 2.0)


def test_difference_that_is_no_cost_is_refused_by_its_name() -> None:
    with pytest.raises(MeasurementError, match=r"'launch' .*came out as -1, -1, -1 us"):
        differences.measure_differences(
            {"long": lambda: 1e-6, "short": lambda: 2e-6},
            lambda seconds: {"launch": seconds["long"] - seconds["short"]},
        )


def test_difference_is_timed_at_more_rounds_while_it_is_no_cost() -> None:
    """The shorter component is slowed in all rounds but the last ones."""
    rounds = itertools.count()
    timings = differences.measure_differences(
        {
            "long": lambda: 3e-6,
            "short": lambda: 2e-6 if next(rounds) >= 2 * ROUNDS else 4e-6,
        },
        lambda seconds: {"launch": seconds["long"] - seconds["short"]},
    )
    assert timings["launch"].samples_us == (1.0,) * differences.SAMPLES
    assert 2 * ROUNDS < next(rounds) < 4 * ROUNDS
