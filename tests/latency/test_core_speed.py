"""Readings of the speed of a core, and what they say of it."""

from __future__ import annotations

import numpy as np
import pytest

from nas.latency import core_speed
from nas.latency.core_speed import CoreSpeed, SpeedSummary


def test_full_speed_is_that_of_the_fastest_readings_and_follows_them(monkeypatch):
    monkeypatch.setattr(core_speed, "BLOCK_SECONDS", 0.0)
    rng = np.random.default_rng(0)
    level = [1.0]
    speed = CoreSpeed(
        lambda: level[0] * (1.6 if rng.random() < 0.8 else 1.0) * rng.lognormal(0, 0.005)
    )
    assert speed.is_full(1.02)
    assert not speed.is_full(1.02, 1.1)
    level[0] = 0.9  # A processor that has cooled down.
    for _ in range(core_speed.FIRST_READINGS):
        speed.read()
    assert not speed.is_full(1.0)
    assert speed.is_full(0.91)
    level[0] = 1.0  # It is warm again, after some time.
    for _ in range(core_speed.FIRST_READINGS * core_speed.FULL_SPEED_BLOCKS):
        assert not speed.is_full(1.0)
        speed.read()
    assert speed.is_full(1.0)


def test_reading_lasts_until_the_core_is_at_full_speed(monkeypatch):
    monkeypatch.setattr(core_speed, "RAMP_SECONDS", 60.0)
    monkeypatch.setattr(core_speed, "FIRST_READINGS", 1)
    products_s = iter([2.0, 1.5, 1.2, 1.04, 9.0, 1.6, 1.5])
    speed = CoreSpeed()
    speed._full_s.append(1.0)
    monkeypatch.setattr(speed, "_multiply", lambda: next(products_s))
    assert speed.read() == 1.04
    assert next(products_s) == 9.0
    monkeypatch.setattr(core_speed, "RAMP_SECONDS", 0.0)
    assert speed.read() == 1.6  # A neighbour slows the core, so that waiting is of no use.
    assert not speed.is_full(1.6)


def test_summary_tells_share_factor_and_stretches_of_the_slow_speed():
    """The core is at full speed for 1 ms three times, and slowed for 1.6 and for 4.8 ms between."""
    full, slow = [1e-5] * 100, [1.6e-5] * 100
    readings = np.array([*full, *slow, *full, *slow * 3, *full])
    assert SpeedSummary.of(readings, np.cumsum(readings)) == (
        pytest.approx(3 / 9.4), pytest.approx(1.6), pytest.approx(4.8e-3),
    )  # fmt: skip
    assert SpeedSummary.of(readings[:100], np.cumsum(readings[:100])) == (1.0, None, None)
