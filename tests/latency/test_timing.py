from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from functools import partial

import pytest

from nas.errors import MeasurementError
from nas.latency import timing
from nas.latency.timing import Timing


class Clock:
    """Answers with prepared samples, and remembers how many calls each was of."""

    def __init__(self, once: float, *answers: float) -> None:
        self.once, self.answers = once, list(answers)
        self.calls: list[int] = []

    def __call__(self, calls: int, samples: int) -> Sequence[float]:
        if samples == 3:
            return [self.once] * 3
        self.calls += [calls] * samples
        return [self.answers.pop(0) for _ in range(samples)]


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No preemptions, whatever else this machine does."""
    monkeypatch.setattr(timing, "_preemptions", lambda: 0)


def test_the_latency_is_the_median_with_four_digits() -> None:
    found = Timing.of_seconds([3.00004e-6, 1.00005e-6, 200e-6])
    assert found.samples_us == (3.0, 1.0, 200.0)
    assert found.latency_us == 3.0
    assert Timing.of_seconds([1.23456e-3]).samples_us == (1235.0,)


@pytest.mark.parametrize("bad", [0.0, -1e-6, math.nan, math.inf])
def test_what_is_no_latency_is_refused(bad: float) -> None:
    with pytest.raises(MeasurementError, match="no latency"):
        Timing.of_seconds([1e-6, bad])
    with pytest.raises(MeasurementError):
        Timing.of_seconds([])


def test_a_sample_lasts_a_millisecond() -> None:
    clock = Clock(10e-6, *[10e-6] * 10)
    assert not timing.measure(clock).unstable
    assert clock.calls == [100] * 10


def test_samples_that_spread_are_timed_once_more() -> None:
    wild = [float(i) * 1e-6 for i in range(1, 11)]
    steady = [5e-6 + i * 1e-9 for i in range(10)]
    found = timing.measure(Clock(1e-3, *wild, *steady))
    assert not found.unstable
    assert found.latency_us == pytest.approx(5.0045, rel=1e-3)
    still = timing.measure(Clock(1e-3, *wild, *(value * 2 for value in wild)))
    assert still.unstable
    assert still.samples_us == tuple(range(1, 11))


def test_samples_during_which_the_core_was_taken_away_are_taken_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Asked before and after each sample: the second and third samples are spoilt.
    counts = iter([0, 0, 0, 1, 1, 3, 3, 3, 3, 3])
    monkeypatch.setattr(timing, "_preemptions", lambda: next(counts))
    clock = Clock(1e-3, 1.0, 50.0, 70.0, 2.0, 3.0)
    assert timing.undisturbed(clock, 1, 3) == [1.0, 2.0, 3.0]


def test_a_machine_too_busy_for_calm_samples_gives_its_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = iter(range(1000))
    monkeypatch.setattr(timing, "_preemptions", lambda: next(counts))
    clock = Clock(1e-3, *(float(n) for n in range(timing.ATTEMPTS * 2, 0, -1)))
    assert timing.undisturbed(clock, 1, 2) == [1.0, 2.0]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system pins no threads")
def test_pinning_is_undone() -> None:
    before = os.sched_getaffinity(0)
    with contextlib.suppress(KeyboardInterrupt), timing.pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
        raise KeyboardInterrupt
    assert os.sched_getaffinity(0) == before


def test_the_noise_of_this_machine_is_a_timing() -> None:
    found = timing.noise()
    assert len(found.samples_us) == timing.SAMPLES
    assert found.spread >= 0


def test_the_fastest_of_rounds_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS_APART", 0.0)
    taken: list[str] = []

    def take(name: str, latencies: Iterator[float]) -> Timing:
        taken.append(name)
        return Timing((next(latencies),) * 3)

    found = timing.fastest_of_rounds(
        {
            "a": partial(take, "a", iter([5.0, 3.0, 4.0, *[9.0] * 5])),
            "b": partial(take, "b", iter([1.0, 2.0, *[7.0] * 6])),
        }
    )
    assert {name: each.latency_us for name, each in found.items()} == {"a": 3.0, "b": 1.0}
    assert taken == ["a", "b"] * 8


def test_a_round_that_gave_no_latency_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS_APART", 0.0)
    differences = iter([-7.7e-3, 5e-6, -1e-6, 4e-6, *[6e-6] * 4])

    found = timing.fastest_of_rounds({"weights": lambda: Timing.of_seconds([next(differences)])})
    assert found["weights"].latency_us == 4.0


def test_rounds_that_all_gave_none_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS_APART", 0.0)
    with pytest.raises(MeasurementError, match="is no latency"):
        timing.fastest_of_rounds(
            {"a": lambda: Timing((1.0,)), "b": lambda: Timing.of_seconds([-1e-6])}
        )
