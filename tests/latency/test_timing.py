from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Sequence

import pytest

from nas.errors import MeasurementError
from nas.latency import timing
from nas.latency.core_speed import SLOW_FACTOR, CoreSpeed
from nas.latency.timing import Timing
from tests.latency.two_speeds import TwoSpeedCore


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
    assert timing.latency_us == timing.typical_us == 3.0
    assert Timing.from_seconds([1.23456e-3]).samples_us == (1235.0,)


@pytest.mark.parametrize("samples", [[], [1e-6, 0.0], [1e-6, -1e-6], [math.nan], [math.inf]])
def test_from_seconds_refuses_invalid_samples(samples: list[float]) -> None:
    with pytest.raises(MeasurementError, match="no latency"):
        Timing.from_seconds(samples)


def test_measure_fills_a_millisecond_per_sample() -> None:
    clock = Clock(10e-6, *[10e-6] * timing.SAMPLES)
    assert timing.measure(clock).samples_us == (10.0,) * timing.SAMPLES
    assert clock.calls == [100] * timing.SAMPLES
    slow = Clock(10e-6, *[10e-6] * timing.SAMPLES)
    timing.measure(slow, sample_seconds=2e-3)
    assert slow.calls == [200] * timing.SAMPLES
    asked = Clock(10e-6, *[10e-6] * timing.SAMPLES)
    timing.measure(asked, calls=7)
    assert asked.calls == [7] * timing.SAMPLES


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


def test_samples_get_longer_while_noise_exceeds_the_latency() -> None:
    """A run of 100 calls is slower or faster by 5 us, which a longer run divides by more calls."""
    noise_s = itertools.cycle([5e-6, -5e-6])
    timed = timing.measure(
        lambda calls, samples: [3e-8 + next(noise_s) / calls for _ in range(samples)], calls=100
    )
    assert timed.latency_us == pytest.approx(0.03, rel=0.2)
    with pytest.raises(MeasurementError, match="no latency"):
        timing.measure(lambda calls, samples: [-1e-9] * samples, calls=1)


def test_speed_of_this_machine_is_a_share_and_a_factor() -> None:
    speed = timing.watch_speed(0.05)
    assert 0 < speed.full_share <= 1
    assert speed.slow_factor is None or speed.slow_factor > SLOW_FACTOR


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
    monkeypatch.setattr(slow, "slowed_s", lambda: timing.WAIT_SECONDS)
    monkeypatch.setattr(timing, "_SPEED", slow)
    seconds = iter([9.0, 8.0, 7.0, 6.0, 5.0] * 2)
    assert timing.undisturbed_samples(lambda calls, count: [next(seconds)], 1, 2) == [5.0, 5.0]


def test_timing_keeps_its_reading_and_the_first_sample_as_it_was_found(monkeypatch) -> None:
    readings = iter([1.6e-5, 1.6e-5, *[1e-5] * 10])
    speed = CoreSpeed(lambda: next(readings))
    monkeypatch.setattr(speed, "is_full", lambda *values: max(values) < 1.05e-5)
    seconds = iter([9e-6, 8e-6, *[5e-6] * 8])
    with timing.reading(speed):
        timed = timing.measure(lambda calls, count: [next(seconds)], calls=1)
    assert timed.samples_us == (5.0,) * timing.SAMPLES
    assert (timed.reading_us, timed.first_us) == (10.0, 9.0)
    assert timed.typical_us == 9.0


def test_no_speed_is_read_where_none_makes_sense(monkeypatch) -> None:
    monkeypatch.setattr(timing, "_SPEED", CoreSpeed(lambda: pytest.fail("it was read")))
    with timing.reading(None):
        timed = timing.measure(lambda calls, count: [5e-6] * count, calls=1)
    assert timed.reading_us is None


def test_only_the_first_timings_wait_while_a_core_is_slowed(monkeypatch) -> None:
    """Later ones take their samples at once, and leave the waiting to another round."""
    core = TwoSpeedCore(0, full_share=1.0)
    core.install(monkeypatch)
    workload = core.workload(50e-6, 1.6)
    timing.measure(workload)
    core.is_slow = True
    waited_s = []
    for _ in range(3):
        start_s = core.now_s
        timing.measure(workload)
        waited_s.append(core.now_s - start_s)
    assert waited_s[0] >= timing.WAIT_SECONDS
    assert max(waited_s[1:]) < timing.WAIT_SECONDS / 2
