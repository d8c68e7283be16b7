from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Sequence

import numpy as np
import pytest

from nas.errors import MeasurementError
from nas.latency import timing
from nas.latency.core_speed import SLOW_FACTOR, CoreSpeed
from nas.latency.timing import Timing
from tests.latency.two_speeds import COMPUTE, MEMORY, TwoSpeedCore


class Clock:
    """An `Evaluate` that returns prepared samples and remembers the calls of each."""

    def __init__(self, once: float, *answers: float) -> None:
        self.once, self.answers = once, list(answers)
        self.calls: list[int] = []

    def __call__(self, calls: int, samples: int) -> Sequence[float]:
        if samples == 3:
            return [self.once] * 3
        self.calls += [calls] * samples
        return [self.answers.pop(0) for _ in range(samples)]


@pytest.fixture(autouse=True)
def no_preemptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report no preemptions, whatever else this machine does."""
    monkeypatch.setattr(timing, "_preemptions", lambda: 0)


def test_latency_is_median_with_four_digits() -> None:
    timing = Timing.from_seconds([3.00004e-6, 1.00005e-6, 200e-6])
    assert timing.samples_us == (3.0, 1.0, 200.0)
    assert timing.latency_us == 3.0
    assert Timing.from_seconds([1.23456e-3]).samples_us == (1235.0,)


@pytest.mark.parametrize("bad", [0.0, -1e-6, math.nan, math.inf])
def test_from_seconds_refuses_invalid_samples(bad: float) -> None:
    with pytest.raises(MeasurementError, match="no latency"):
        Timing.from_seconds([1e-6, bad])
    with pytest.raises(MeasurementError):
        Timing.from_seconds([])


def test_measure_fills_a_millisecond_per_sample() -> None:
    clock = Clock(10e-6, *[10e-6] * timing.SAMPLES)
    assert timing.measure(clock).samples_us == (10.0,) * timing.SAMPLES
    assert clock.calls == [100] * timing.SAMPLES
    slow = Clock(10e-6, *[10e-6] * timing.SAMPLES)
    timing.measure(slow, sample_seconds=2e-3)
    assert slow.calls == [200] * timing.SAMPLES


def test_undisturbed_samples_repeats_preempted_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The count is read before and after each sample: the second and third are preempted.
    counts = iter([0, 0, 0, 1, 1, 3, 3, 3, 3, 3])
    monkeypatch.setattr(timing, "_preemptions", lambda: next(counts))
    clock = Clock(1e-3, 1.0, 50.0, 70.0, 2.0, 3.0)
    assert timing.undisturbed_samples(clock, 1, 3) == [1.0, 2.0, 3.0]


def test_undisturbed_samples_returns_fastest_preempted_samples_if_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = iter(range(1000))
    monkeypatch.setattr(timing, "_preemptions", lambda: next(counts))
    clock = Clock(1e-3, *(float(n) for n in range(timing.MAX_ATTEMPTS_PER_SAMPLE * 2, 0, -1)))
    assert timing.undisturbed_samples(clock, 1, 2) == [1.0, 2.0]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system pins no threads")
def test_pinned_restores_affinity() -> None:
    before = os.sched_getaffinity(0)
    with contextlib.suppress(KeyboardInterrupt), timing.pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
        raise KeyboardInterrupt
    assert os.sched_getaffinity(0) == before


def test_timing_has_as_many_samples_and_calls_as_asked() -> None:
    calls = []

    def evaluate(number: int, samples: int) -> list[float]:
        calls.append(number)
        return [1e-5] * samples

    timed = timing.measure(evaluate, calls=7, samples=1)
    assert set(calls) == {7}
    assert timed.samples_us == (10.0,)


def test_samples_get_longer_while_noise_exceeds_the_latency() -> None:
    """A run of 100 calls is slower or faster by 5 us, which a longer run divides by more calls."""
    noise_s = itertools.cycle([5e-6, -5e-6])
    timed = timing.measure(
        lambda calls, samples: [3e-8 + next(noise_s) / calls for _ in range(samples)], calls=100
    )
    assert timed.latency_us == pytest.approx(0.03, rel=0.2)
    with pytest.raises(MeasurementError, match="no latency"):
        timing.measure(lambda calls, samples: [-1e-9] * samples, calls=1)


def test_latency_is_that_of_the_fastest_moment_without_an_outlier() -> None:
    assert timing.quiet_us([9.0]) == 9.0
    assert timing.quiet_us([12.0, 10.0, 11.0]) == 10.0
    assert timing.quiet_us([12.0, 9.0, *[11.0] * 4, 10.0, 13.0]) == 10.0, "one of eight"
    assert timing.quiet_us([9.0, 9.1, *[11.0] * 13, 10.0]) == 10.0, "two of sixteen"


def test_summary_has_the_quiet_moments_and_the_median():
    moments = [float(us) for us in range(100, 0, -1)]
    assert timing.LatencySummary.of(moments) == (13.0, 50.5)
    assert timing.LatencySummary.of([7.0]) == (7.0, 7.0)


def test_slowdown_is_the_median_over_networks_of_typical_over_quiet_latencies():
    slowdown = timing.Slowdown.of([[10, 10, 10], [10, 11, 12], [100, 130, 160], [5]])
    assert slowdown is not None
    assert slowdown.typical == pytest.approx(1.1)
    assert slowdown.high is None, "a 95% quantile needs 20 moments"
    assert slowdown.text == (
        "typically took 1.10 times as long as at quiet moments, not counting samples while the "
        "core was slowed"
    )
    pooled = timing.Slowdown.of([[10.0] * 10, [*[20.0] * 9, 40.0]])
    # numpy interpolates: 1 + 0.05 * (2 - 1).
    assert pooled == (1.0, pytest.approx(1.05))
    assert "1.05 times or more at the slowest 5% of all moments" in pooled.text
    assert timing.Slowdown.of([[10.0], []]) is None, "nothing was timed at two moments"


def test_latencies_agree_if_every_other_moment_and_the_rest_do() -> None:
    assert timing.compared_us([10.0]) is None
    assert timing.compared_us([10.0, 12.0, 11.0, 9.0]) == (9.0, 10.0)
    agree = {
        (10.0,): False,
        (10.0, 10.3): True,
        (10.0, 10.4): False,
        (20.0, 10.0, 10.3): True,
        (10.0, 20.0, 10.1): False,
        (9.0, *[10.0] * 15): True,
    }
    assert {own: timing.moments_agree(own) for own in agree} == agree
    assert timing.moments_agree((10.0, 10.9), tolerance=0.1)


def test_moments_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS_BETWEEN_MOMENTS", 0.05)
    pause = timing.Moments()
    start = time.monotonic()
    pause.wait()
    pause.wait()
    assert time.monotonic() - start >= 0.05


def test_speed_of_this_machine_is_a_share_and_a_factor() -> None:
    speed = timing.watch_speed(0.05)
    assert 0 < speed.full_share <= 1
    assert speed.slow_factor is None or speed.slow_factor > SLOW_FACTOR


def latency_at_moments_us(evaluate: timing.Evaluate) -> float:
    """Return a latency as networks are timed: at six moments, and then until they agree."""
    moments: list[float] = []
    pause = timing.Moments()
    while len(moments) < 6 or not (timing.moments_agree(moments) or len(moments) >= 24):
        pause.wait()
        moments.append(timing.measure(evaluate).latency_us)
    return timing.quiet_us(moments)


@pytest.mark.parametrize("full_share", [1.0, 0.25])
@pytest.mark.parametrize(
    ("us", "slow_factor"),
    [(5.0, COMPUTE), (50.0, COMPUTE), (50.0, MEMORY), (2000.0, 1.4), (8000.0, 1.5)],
)
def test_latency_on_a_core_with_two_speeds_is_that_at_full_speed(
    monkeypatch, full_share, us, slow_factor
) -> None:
    errors, lowest = [], []
    monkeypatch.setattr(timing, "SECONDS_BETWEEN_MOMENTS", 0.5)
    for seed in range(100):
        core = TwoSpeedCore(seed, full_share)
        core.install(monkeypatch)
        workload = core.workload(us / 1e6, slow_factor)
        measured = latency_at_moments_us(workload)
        errors.append(abs(measured / us - 1))
        lowest.append(measured / us)
    assert np.mean(errors) <= 0.02
    assert np.quantile(errors, 0.9) <= 0.04
    assert min(lowest) > 0.95, "nothing is faster than full speed"


def test_without_readings_of_the_speed_the_same_timings_are_wrong(monkeypatch) -> None:
    """This tells that the simulated core is a hard one."""
    monkeypatch.setattr(timing, "SECONDS_BETWEEN_MOMENTS", 0.5)
    errors = []
    for seed in range(100):
        core = TwoSpeedCore(seed)
        core.install(monkeypatch)
        monkeypatch.setattr(CoreSpeed, "is_full", lambda self, *readings: True)
        measured = latency_at_moments_us(core.workload(8e-3, 1.5))
        errors.append(abs(measured / 8000 - 1))
    assert np.mean(errors) > 0.04


def test_samples_at_another_speed_are_left_out_and_returned_if_there_are_no_others(
    monkeypatch,
) -> None:
    readings = iter([1.0, 1.0, 1.6, 1.0, 1.0, 1.6])
    speed = CoreSpeed(lambda: next(readings))
    monkeypatch.setattr(speed, "is_full", lambda *values: max(values) < 1.05)
    monkeypatch.setattr(timing, "_SPEED", speed)
    seconds = iter([1.0, 9.0, 8.0, 2.0, 7.0])
    assert timing.undisturbed_samples(lambda calls, count: [next(seconds)], 1, 2) == [1.0, 2.0]
    slow = CoreSpeed(lambda: 1.6)
    monkeypatch.setattr(slow, "is_full", lambda *values: False)
    monkeypatch.setattr(timing, "_SPEED", slow)
    seconds = iter([9.0, 8.0, 7.0, 6.0, 5.0] * 2)
    assert timing.undisturbed_samples(lambda calls, count: [next(seconds)], 1, 2) == [5.0, 5.0]
