"""What follows from timings in several rounds, on cores of one speed and of two."""

from __future__ import annotations

import signal
import sys

import numpy as np
import pytest

from nas.errors import BoardLostError, DeviceError, MeasurementError
from nas.latency import rounds, timing
from nas.latency.core_speed import CoreSpeed
from nas.latency.rounds import (
    ONCE,
    Latency,
    Policy,
    Rounds,
    Slowdown,
    fastest_us,
    full_speed_us,
    outcome_of,
)
from nas.latency.timing import Timing
from tests.latency.rounds_without_readings import latency_of
from tests.latency.two_speeds import COMPUTE, MEMORY, TwoSpeedCore

FOUR = Policy(4)


def test_latency_is_that_of_the_fastest_round_without_an_outlier() -> None:
    assert fastest_us([9.0]) == 9.0
    assert fastest_us([12.0, 10.0, 11.0]) == 10.0
    assert fastest_us([12.0, 9.0, *[11.0] * 4, 10.0, 13.0]) == 10.0, "one of eight"
    assert fastest_us([9.0, 9.1, *[11.0] * 13, 10.0]) == 10.0, "two of sixteen"


def test_latency_has_the_fastest_rounds_and_the_median_of_all():
    latency = latency_of([float(us) for us in range(100, 0, -1)])
    assert (latency.fastest_us, latency.typical_us) == (13.0, 50.5)
    assert latency_of([7.0]).interval_us == (7.0, 7.0)
    latency = Latency([Timing((us,), 10.0, first) for us, first in ((5, 8), (5.1, 9), (5, 5))])
    assert (latency.fastest_us, latency.typical_us) == (5.0, 8.0)


def test_rounds_at_less_than_full_speed_do_not_count():
    at = [Timing((7.0,), 16.0, 7.0), Timing((5.0,), 10.2, 9.0), Timing((4.9,), 10.6, 4.9)]
    latency = Latency(at, full_us=10.0)
    assert latency.counted_us == [5.0]
    assert (latency.fastest_us, latency.is_disturbed, latency.status(FOUR)) == (
        5.0,
        False,
        "unstable",
    )
    assert Latency(at).fastest_us == 4.9, "no speed is known"
    assert Latency(at, full_us=10.2).counted_us == [5.0, 4.9]


def test_latency_without_a_round_at_full_speed_is_disturbed():
    latency = Latency([Timing((8.0,), 16.0, 8.0), Timing((9.0,), 15.0, 9.0)], full_us=10.0)
    assert (latency.is_disturbed, latency.status(FOUR)) == (True, "disturbed")
    assert latency.fastest_us == 8.0
    # The readings took 1.5 times as long at least.
    assert latency.interval_us == (pytest.approx(8 / 1.5, rel=1e-3), 8.0)


def test_latency_is_complete_after_enough_rounds_at_full_speed_that_agree():
    full, slow = Timing((5.0,), 10.0, 5.0), Timing((5.0,), 15.0, 5.0)
    assert not Latency([full] * 3 + [slow] * 9, 10.0).is_complete(FOUR)
    assert Latency([full] * 4 + [slow] * 9, 10.0).is_complete(FOUR)
    assert not Latency([slow] * (rounds.MAX_ROUNDS - 1), 10.0).is_complete(FOUR)
    assert Latency([slow] * rounds.MAX_ROUNDS, 10.0).is_complete(FOUR)
    rising = [Timing((5.0 * 1.1**n,), 10.0, 5.0) for n in range(5)]
    assert not Latency(rising, 10.0).is_complete(FOUR)


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
    assert full_speed_us([*map(float, readings_us), None]) == pytest.approx(10.5)
    assert full_speed_us(map(float, readings_us), known_us=9.0) == 9.0
    assert full_speed_us([None]) is None


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
    slowed = [Timing((us,), *others) for us, *others in ((5, 10, 5), (8, 15, 8), (5, 10, 8))]
    assert Slowdown.of([Latency(slowed, 10)]) == (pytest.approx(1.6), None)


def test_latency_of_one_round_is_worth_what_its_samples_are_if_one_is_enough():
    wild = Latency([Timing((1.0, 5.0, 9.0))])
    assert (wild.status(ONCE), wild.is_complete(ONCE)) == ("unstable", True)
    steady = latency_of([5.0])
    assert (steady.status(ONCE), steady.is_complete(ONCE)) == ("ok", True)
    assert (steady.status(FOUR), steady.is_complete(FOUR)) == ("unstable", False)
    disagreeing = latency_of([5.0, 7.0])
    assert disagreeing.is_complete(ONCE)
    assert not disagreeing.is_complete(Policy(1)), "it was timed again, and disagrees"


def test_latency_without_timings_says_why():
    with pytest.raises(MeasurementError, match="it crashed"):
        _ = Latency((), error="it crashed").fastest_us


class Timed:
    """Things with prepared latencies in us, or errors; they log their order."""

    def __init__(self, **outcomes):
        self.outcomes = {name: list(own) for name, own in outcomes.items()}
        self.order = []

    def __call__(self, names):
        self.order.append("".join(names))
        for name in names:
            own = self.outcomes[name]
            us = own.pop(0) if len(own) > 1 else own[0]
            yield name, Timing((us,)) if isinstance(us, float) else us


def run(take, policy, needed, **options):
    """Return what was timed in each round, the loop, and its totals after every timing."""
    timed = Rounds(take, policy, **options)
    totals = [(timed.done, timed.total) for _ in timed.run(needed)]
    return take.order, timed, totals


def test_things_are_timed_in_turn_until_the_timings_of_each_agree():
    take = Timed(a=[5.0], b=[9.0, 7.0, 5.0])
    order, timed, totals = run(take, Policy(2), {"a": 2, "b": 2})
    assert order == ["ab", "ab", "b", "b"]
    assert timed.latency("b").counted_us == [9.0, 7.0, 5.0, 5.0]
    assert totals == [(1, 4), (2, 4), (3, 4), (4, 4), (5, 5), (6, 6)]
    together = Policy(2, together=True)
    order, *_ = run(Timed(a=[5.0], b=[9.0, 7.0, 5.0]), together, {"a": 2, "b": 2})
    assert order == ["ab"] * 4


def test_groups_get_their_first_rounds_in_turn_and_the_others_after_all_groups():
    take = Timed(a=[9.0, 7.0, 7.0], b=[5.0], c=[5.0, 3.0], d=[5.0])
    policy = Policy(2, in_turn=2)
    known = {"d": [Timing((5.0,))]}
    order, timed, _ = run(take, policy, {"a": 2, "b": 2, "c": 2, "d": 1}, known=known)
    assert order == ["ab", "ab", "cd", "c", "ac"]
    assert len(timed.latency("d").rounds) == 2


def test_error_of_a_thing_is_its_result():
    broken = ValueError("no such instruction")
    take = Timed(a=[5.0], b=[6.0, broken], c=[broken])
    order, timed, totals = run(take, Policy(3), dict.fromkeys("abc", 3))
    assert order == ["abc", "ab", "a"]
    assert timed.errors == {"b": broken, "c": broken}
    assert timed.latency("b").error == "ValueError: no such instruction"
    assert [len(timed.latency(each).rounds) for each in "abc"] == [3, 1, 0]
    assert timed.incomplete("abc") == []
    assert totals[-1] == (6, 6)


@pytest.mark.parametrize("error", [DeviceError("two boards"), BoardLostError("it is gone")])
def test_error_of_the_device_ends_all(error):
    with pytest.raises(DeviceError, match=str(error)):
        run(Timed(a=[5.0], b=[error]), Policy(2), dict.fromkeys("ab", 2))


def test_without_time_only_what_has_no_timing_is_timed():
    known = {"a": [Timing((5.0,))]}
    order, timed, _ = run(
        Timed(a=[5.0], b=[5.0]), Policy(3), dict.fromkeys("ab", 3), known=known, end_s=0
    )
    assert order == ["b"]
    assert timed.incomplete("ab") == ["a", "b"]
    assert timed.done == timed.total == 1


def test_complete_latency_is_timed_again_once_a_faster_reading_is_known():
    known = {"a": [Timing((5.0,), 20.0)] * 2}
    timed = Rounds(
        lambda things: [(each, Timing((4.0,), 10.0)) for each in things],
        Policy(2),
        full_speed=min,
        known=known,
    )
    assert list(timed.run({"a": 0, "b": 2})) == ["b", "b", "a", "a"]
    assert timed.latency("a").counted_us == [4.0, 4.0]


def test_rounds_are_apart(monkeypatch):
    core = TwoSpeedCore(0, full_share=1.0)
    core.install(monkeypatch)
    monkeypatch.setattr(timing, "SECONDS_BETWEEN_ROUNDS", 0.5)
    begins_at_s = []

    def take(names):
        begins_at_s.append(core.now_s)
        return [(name, Timing((5.0,))) for name in names]

    list(Rounds(take, Policy(3)).run({"a": 3}))
    assert begins_at_s == [0.0, 0.5, 1.0]


def test_whatever_a_call_raises_is_its_outcome():
    assert outcome_of(divmod, 7, 2) == (3, 1)
    assert isinstance(outcome_of(divmod, 7, 0), ZeroDivisionError)
    assert "sys.exit(3)" in str(outcome_of(sys.exit, 3))
    with pytest.raises(KeyboardInterrupt):
        outcome_of(signal.default_int_handler, signal.SIGINT, None)


def timed_on(core: TwoSpeedCore, workload: timing.Evaluate, full_us: float) -> Latency:
    """Return a latency as tables have it: timed until it is complete."""

    def take(names):
        return ((name, timing.measure(workload)) for name in names)

    timed = Rounds(take, FOUR, full_speed=lambda readings_us: full_us)
    assert set(timed.run({"workload": 4})) == {"workload"}
    return timed.latency("workload")


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
