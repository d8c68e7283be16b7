"""Readings of the speed of a core, and what they say of a simulated core with two speeds."""

from __future__ import annotations

import numpy as np
import pytest

from nas.latency import core_speed
from nas.latency.core_speed import CoreSpeed, SpeedSummary
from tests.latency.two_speeds import COMPUTE, READING_S, TwoSpeedCore


def test_full_speed_is_that_of_the_fastest_readings_and_follows_them(monkeypatch):
    monkeypatch.setattr(core_speed, "SECONDS_BETWEEN_FIRST_READINGS", 0.0)
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
    for _ in range(core_speed.FIRST_READINGS * core_speed.KEPT_BLOCKS):
        assert not speed.is_full(1.0)
        speed.read()
    assert speed.is_full(1.0)
    speed.expect(0.9)
    assert not speed.is_full(1.0), "a table knows more"


def test_a_reading_takes_the_same_work_and_no_other_core():
    readings = [CoreSpeed().read() for _ in range(20)]
    assert 0 < min(readings) < 1


@pytest.mark.parametrize("seed", range(5))
def test_summary_of_a_core_with_two_speeds(seed, monkeypatch):
    core = TwoSpeedCore(seed)
    core.perf_counter = core.monotonic
    core.install(monkeypatch)
    speed = CoreSpeed(lambda: core.work(READING_S, COMPUTE))
    # A second of readings beside each other, as the command takes five.
    summary = speed.watch(20.0)
    assert summary.full_share == pytest.approx(0.25, abs=0.12)
    assert summary.slow_factor == pytest.approx(COMPUTE, rel=0.02)
    assert 0.01 < summary.stretch_s < 7


def test_an_idle_core_has_one_speed():
    readings = np.random.default_rng(0).normal(1, 0.02, 1000) * 1e-5
    assert SpeedSummary.of(readings, np.cumsum(readings)) == (1.0, None, None)
