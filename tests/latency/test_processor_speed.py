"""The speed of a processor, with made-up durations of the reference workload."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nas.latency import processor_speed
from nas.latency.processor_speed import (
    MAX_ATTEMPTS,
    measure_at_one_speed,
    sensitivity,
    slowdown,
)


def test_quiet_speed_is_that_of_the_fastest_moments_but_a_few(monkeypatch) -> None:
    monkeypatch.setattr(processor_speed, "QUIET_TOLERANCE", 0.04)
    slow_and_quiet = [12.0, 10.0, 10.3, 11.7, 10.41]
    assert processor_speed.quiet_speed_us(slow_and_quiet) == 10.3
    assert processor_speed.quiet_speed_us([]) == math.inf
    two_speeds = [2.9] * 2 + [3.4, 3.41, 3.42] * 20
    assert processor_speed.quiet_speed_us(two_speeds) == 3.4
    assert processor_speed.quiet_speed_us([2.9] * 20 + two_speeds) == 2.9
    assert [processor_speed.is_too_fast(us, 3.4) for us in (2.9, 3.26, 3.28, 5.0, None)] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert not processor_speed.is_too_fast(2.9, math.inf)
    assert processor_speed.count_quiet(slow_and_quiet) == 3
    assert processor_speed.count_quiet(slow_and_quiet, quiet_us=11.5) == 1
    assert processor_speed.count_quiet([12.0, 12.1], quiet_us=10.0) == 0
    assert processor_speed.has_enough_quiet([], 10.0), "a board has no reference workload"
    assert processor_speed.has_enough_quiet([12.0, 12.1, 12.2])
    assert not processor_speed.has_enough_quiet([12.0, 12.1, 12.2], quiet_us=10.0)
    assert processor_speed.has_enough_quiet(slow_and_quiet, wanted=3)


def test_sensitivity_is_the_slope_within_each_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of least squares with a constant for each series."""
    monkeypatch.setattr(processor_speed, "slowdown", slowdown)
    monkeypatch.setattr(processor_speed, "SENSITIVITY_PRIOR", 0.0)
    rng = np.random.default_rng(0)
    slowdowns = rng.uniform(1.0, 1.1, (3, 8))
    latencies = np.array([[2.0], [30.0], [0.4]]) * slowdowns**0.6 * rng.normal(1, 0.003, (3, 8))
    columns = np.zeros((24, 4))
    columns[:, 0] = np.log(slowdowns).ravel()
    columns[np.arange(24), 1 + np.arange(24) // 8] = 1
    expected, *_ = np.linalg.lstsq(columns, np.log(latencies).ravel(), rcond=None)[0]
    series = [[*zip(*each, strict=True)] for each in zip(latencies, slowdowns, strict=True)]
    assert sensitivity(series, quiet_us=1.0) == pytest.approx(expected)
    assert expected == pytest.approx(0.6, abs=0.05)
    disturbed = [[*own, (9.0, None)] for own in series]
    assert sensitivity(disturbed, quiet_us=1.0) == pytest.approx(expected)


def test_sensitivity_is_between_none_and_that_of_the_reference_workload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processor_speed, "slowdown", slowdown)
    falling, steep = ([(1.1**power, 1.1), (1.0, 1.0)] * 50 for power in (-1, 3))
    assert sensitivity([falling], quiet_us=1.0) == 0.0
    assert sensitivity([steep], quiet_us=1.0) == 1.0
    assert sensitivity([], quiet_us=1.0) == sensitivity([[(5.0, 1.1)]], quiet_us=1.0) == 1.0
    noise = [(1.0, 1.0 + 0.02 * (index % 2)) for index in range(40)]
    assert 0.2 < sensitivity([noise[:20]], quiet_us=1.0) < 0.8, "little is known"
    assert sensitivity([noise] * 20, quiet_us=1.0) < 0.1
    neighbour = [*noise, (1.5, 1.02)]
    monkeypatch.setattr(processor_speed, "MAX_SPEED_CHANGE", 9.0)
    assert sensitivity([neighbour] * 20, quiet_us=1.0) > 0.9
    monkeypatch.setattr(processor_speed, "MAX_SPEED_CHANGE", 0.12)
    assert sensitivity([neighbour] * 20, quiet_us=1.0) < 0.4


def test_slowdown_is_known_if_only_the_clock_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_speed, "MAX_SPEED_CHANGE", 0.12)
    assert slowdown(2.75, 2.5) == pytest.approx(1.1)
    assert slowdown(2.25, 2.5) == pytest.approx(0.9)
    assert slowdown(2.81, 2.5) is None, "something else slows the processor"
    assert slowdown(2.23, 2.5) is None
    assert slowdown(2.5, math.inf) is None
    assert slowdown(None, 2.5) is None, "a board has no reference workload"


def test_measurement_is_repeated_if_the_speed_changed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    references_us = iter([2.9, 3.6, 3.6, 3.9])
    monkeypatch.setattr(processor_speed, "MAX_SPEED_CHANGE", 0.12)
    monkeypatch.setattr(processor_speed, "reference_us", lambda: next(references_us))
    latencies_us = iter([20.0, 25.0])
    assert measure_at_one_speed(lambda: next(latencies_us)) == (25.0, 3.9)


def test_measurement_is_not_repeated_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    references_us = iter([2.9, 3.6] * MAX_ATTEMPTS)
    monkeypatch.setattr(processor_speed, "MAX_SPEED_CHANGE", 0.12)
    monkeypatch.setattr(processor_speed, "reference_us", lambda: next(references_us))
    latencies_us = iter(range(MAX_ATTEMPTS))
    assert measure_at_one_speed(lambda: next(latencies_us)) == (MAX_ATTEMPTS - 1, 3.6)
