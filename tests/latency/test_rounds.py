"""What follows from timings in several rounds, on cores of one speed and of two."""

from __future__ import annotations

import numpy as np
import pytest

from nas.latency import rounds, timing
from nas.latency.core_speed import CoreSpeed
from nas.latency.rounds import Latency, Round, Slowdown, fastest_us, full_speed_us
from tests.latency.rounds_without_readings import latency_of
from tests.latency.two_speeds import COMPUTE, MEMORY, TwoSpeedCore


def test_latency_is_that_of_the_fastest_round_without_an_outlier() -> None:
    assert fastest_us([9.0]) == 9.0
    assert fastest_us([12.0, 10.0, 11.0]) == 10.0
    assert fastest_us([12.0, 9.0, *[11.0] * 4, 10.0, 13.0]) == 10.0, "one of eight"
    assert fastest_us([9.0, 9.1, *[11.0] * 13, 10.0]) == 10.0, "two of sixteen"


def test_latency_has_the_fastest_rounds_and_the_median_of_all():
    latency = latency_of([float(us) for us in range(100, 0, -1)])
    assert (latency.fastest_us, latency.typical_us) == (13.0, 50.5)
    assert latency_of([7.0]).interval_us == (7.0, 7.0)
    latency = Latency([Round(5.0, 10.0, 8.0), Round(5.1, 10.0, 9.0), Round(5.0, 10.0, 5.0)])
    assert (latency.fastest_us, latency.typical_us) == (5.0, 8.0)


def test_rounds_at_less_than_full_speed_do_not_count():
    at = [Round(7.0, 16.0, 7.0), Round(5.0, 10.2, 9.0), Round(4.9, 10.6, 4.9)]
    latency = Latency(at, full_us=10.0)
    assert latency.counted_us == [5.0]
    assert (latency.fastest_us, latency.is_disturbed, latency.status()) == (5.0, False, "unstable")
    assert Latency(at).fastest_us == 4.9, "no speed is known"
    assert Latency(at, full_us=10.2).counted_us == [5.0, 4.9]


def test_latency_without_a_round_at_full_speed_is_disturbed():
    latency = Latency([Round(8.0, 16.0, 8.0), Round(9.0, 15.0, 9.0)], full_us=10.0)
    assert (latency.is_disturbed, latency.status()) == (True, "disturbed")
    assert latency.fastest_us == 8.0
    # The readings took 1.5 times as long at least.
    assert latency.interval_us == (pytest.approx(8 / 1.5, rel=1e-3), 8.0)


def test_latency_is_complete_after_enough_rounds_at_full_speed_that_agree():
    full, slow = Round(5.0, 10.0, 5.0), Round(5.0, 15.0, 5.0)
    assert not Latency([full] * 3 + [slow] * 9, 10.0).is_complete(4)
    assert Latency([full] * 4 + [slow] * 9, 10.0).is_complete(4)
    assert not Latency([slow] * (rounds.MAX_ROUNDS - 1), 10.0).is_complete(4)
    assert Latency([slow] * rounds.MAX_ROUNDS, 10.0).is_complete(4)
    rising = [Round(5.0 * 1.1**n, 10.0, 5.0) for n in range(5)]
    assert not Latency(rising, 10.0).is_complete(4)


def test_latency_agrees_if_a_second_round_confirms_it():
    agree = {
        (10.0,): False,
        (10.0, 10.3): True,
        (10.0, 10.4): False,
        (20.0, 10.0, 10.3): True,
        (10.0, 20.0, 10.1): True,
        (9.0, *[10.0] * 7): True,
        (9.0, 9.5, *[10.0] * 7): False,
    }
    assert {own: latency_of(own).agrees() for own in agree} == agree
    assert latency_of((10.0, 10.9)).agrees(tolerance=0.1)
    assert latency_of((10.0, 12.0, 11.0, 9.0)).halves_us == (9.0, 10.0)


def test_full_speed_is_that_of_the_fastest_readings_of_all_rounds():
    readings_us = np.random.default_rng(0).permutation(np.linspace(10, 20, 201))
    at = [Round(1.0, float(each), 1.0) for each in readings_us]
    assert full_speed_us(at) == pytest.approx(10.5)
    assert full_speed_us([Round(1.0, None, 1.0)]) is None


def test_slowdown_is_the_median_over_networks_of_typical_over_fastest_latencies():
    def latencies(*own: list[float]) -> list[Latency]:
        return [latency_of(each) for each in own]

    slowdown = Slowdown.of(latencies([10, 10, 10], [10, 11, 12], [100, 130, 160], [5]))
    assert slowdown is not None
    assert slowdown.typical == pytest.approx(1.1)
    assert slowdown.high is None, "a 95% quantile needs 20 rounds"
    assert slowdown.text == "typically took 1.10 times as long as in the fastest rounds"
    pooled = Slowdown.of(latencies([10.0] * 10, [*[20.0] * 9, 40.0]))
    # numpy interpolates: 1 + 0.05 * (2 - 1).
    assert pooled == (1.0, pytest.approx(1.05))
    assert "1.05 times or more in the slowest 5% of all samples" in pooled.text
    assert Slowdown.of(latencies([10.0])) is None, "nothing was timed in two rounds"
    slowed = [Latency([Round(5.0, 10.0, 5.0), Round(8.0, 15.0, 8.0), Round(5.0, 10.0, 8.0)], 10)]
    assert Slowdown.of(slowed) == (pytest.approx(1.6), None)


def timed_on(core: TwoSpeedCore, workload: timing.Evaluate, full_us: float) -> Latency:
    """Return a latency as tables have it: timed until it is complete."""
    pause = timing.Rounds()
    latency = Latency([], full_us)
    while not latency.is_complete(4):
        pause.wait()
        latency = Latency([*latency.rounds, timing.measure(workload).round], full_us)
    return latency


CORES = 40


@pytest.mark.parametrize(
    ("full_share", "us", "slow_factor"),
    [(1.0, 50.0, COMPUTE), (0.25, 5.0, COMPUTE), (0.25, 50.0, MEMORY), (0.25, 8000.0, 1.5)],
)
def test_latency_on_a_core_with_two_speeds_is_that_at_full_speed(
    monkeypatch, full_share, us, slow_factor
) -> None:
    measured, disturbed = [], 0
    monkeypatch.setattr(timing, "SECONDS_BETWEEN_ROUNDS", 0.5)
    for seed in range(CORES):
        core = TwoSpeedCore(seed, full_share)
        core.install(monkeypatch)
        latency = timed_on(core, core.workload(us / 1e6, slow_factor), core.full_us)
        measured.append(latency.fastest_us)
        disturbed += latency.is_disturbed
        assert latency.typical_us >= 0.98 * us
    errors = np.abs(np.array(measured) / us - 1)
    assert disturbed <= CORES / 20
    assert np.mean(errors) <= 0.02
    assert np.quantile(errors, 0.9) <= 0.04
    assert min(measured) > 0.95 * us, "nothing is faster than full speed"


def test_without_readings_of_the_speed_the_same_timings_are_wrong(monkeypatch) -> None:
    """This tells that the simulated core is a hard one."""
    errors = []
    monkeypatch.setattr(timing, "SECONDS_BETWEEN_ROUNDS", 0.5)
    for seed in range(CORES):
        core = TwoSpeedCore(seed)
        core.install(monkeypatch)
        monkeypatch.setattr(CoreSpeed, "is_full", lambda self, *readings: True)
        latency = timed_on(core, core.workload(8e-3, 1.5), np.inf)
        errors.append(abs(latency.fastest_us / 8000 - 1))
    assert np.mean(errors) > 0.04
