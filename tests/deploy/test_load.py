"""Loads on a clock of our own, compared with a queue that is computed by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest

from nas.deploy import load as load_module
from nas.deploy.load import Latencies, Load, LoadWindow, run_window

TICK = 1e-9
"""Time that a look at the clock takes."""


class Clock:
    """A clock that only sleeping, running and looking at it move."""

    def __init__(self, tick: float = TICK) -> None:
        self.now_s = 0.0
        self.tick = tick

    def monotonic(self) -> float:
        self.now_s += self.tick
        return self.now_s

    def sleep(self, seconds: float) -> None:
        # A system wakes a process too late; what is left to wait for is spent computing.
        self.now_s += seconds + 0.9999 * load_module.SPIN_SECONDS if seconds else 0


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(load_module, "time", clock)
    return clock


def in_windows(run, load: Load, count: int) -> list[LoadWindow]:
    edges = np.linspace(0, load.seconds, count + 1).tolist()
    return [run_window(run, load, *edge) for edge in pairwise(edges)]


def test_quantiles_are_those_of_the_latencies():
    seconds = np.random.default_rng(0).lognormal(-8, 1, 10_000)
    both = Latencies.of(seconds[:3000]) + Latencies.of(seconds[3000:])
    assert len(both) == 10_000
    for share in (0.01, 0.5, 0.95, 0.99, 1.0):
        expected = 1e6 * np.quantile(seconds, share, method="inverted_cdf")
        assert both.quantile_us(share) == pytest.approx(expected, rel=1.1e-3)
    assert not len(Latencies.of([]))
    with pytest.raises(ValueError, match="no latencies"):
        Latencies().quantile_us(0.5)


def test_full_load_leaves_no_gap(clock):
    def run() -> None:
        clock.now_s += 0.03

    first, second = in_windows(run, Load(5.0, 2.0), 2)
    # The last image of the first window ends in the second one.
    assert [len(each.latencies) for each in (first, second)] == [34, 33]
    assert first.latencies.quantile_us(1) == pytest.approx(30_000, rel=2e-3)
    assert first.busy_s == pytest.approx(34 * 0.03, rel=1e-6)
    assert not first.waited


@pytest.mark.parametrize("service_s", [0.02, 0.09, 0.25])
def test_latency_at_a_rate_counts_from_the_due_time(clock, service_s):
    rate, seconds, start_s = 10.0, 6.0, 3.0
    slow = {7: 0.35, 31: 1.2}  # Images that take longer, for which the next ones wait.
    served = iter(range(1000))

    def run() -> None:
        clock.now_s += slow.get(next(served), service_s)

    windows = in_windows(run, Load(start_s, seconds, rate), 4)
    expected, waited, free_s = [], 0, 0.0
    for number in range(60):
        due_s = (number + 0.5) / rate
        begin_s = max(due_s, free_s)
        if begin_s >= seconds:
            break
        waited += free_s > due_s
        free_s = begin_s + slow.get(number, service_s)
        expected.append(free_s - due_s)
    measured = sum((each.latencies for each in windows), Latencies())
    assert len(measured) == len(expected)
    for share in (0.2, 0.5, 0.95, 1.0):
        value = 1e6 * np.quantile(expected, share, method="inverted_cdf")
        assert measured.quantile_us(share) == pytest.approx(value, rel=2e-3)
    assert sum(each.waited for each in windows) == waited
    assert sum(each.unserved for each in windows) == 60 - len(expected)
    assert service_s < 0.1 or len(expected) < 60
    running_s = sum(slow.get(number, service_s) for number in range(len(expected)))
    assert math.isclose(sum(each.busy_s for each in windows), running_s, rel_tol=1e-6)
    assert sum(each.late_s for each in windows) < 60 * 10 * TICK, "the clock was never late"


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_a_rate_below_full_load_is_reached_where_a_sleep_of_no_time_takes_long(clock, share):
    service_s, sleep_s = 5.6e-6, 55e-6
    clock.tick = 5e-8

    def run() -> None:
        clock.now_s += service_s

    def sleep(seconds: float) -> None:
        clock.now_s += seconds + sleep_s

    clock.sleep = sleep
    full = run_window(run, Load(1.0, 0.2), 0.0, 0.2)
    rate = share * len(full.latencies) / full.busy_s
    load = Load(2.0, 0.2, rate)
    windows = in_windows(run, load, 3)
    assert sum(len(each.latencies) for each in windows) == load.due_before(0.2)
    assert not any(each.unserved or each.waited for each in windows)
    measured = sum((each.latencies for each in windows), Latencies())
    assert measured.quantile_us(0.99) == pytest.approx(1e6 * service_s, rel=0.05)


def test_what_a_late_sleep_adds_is_told_apart_from_the_time_of_the_images(clock):
    clock.sleep = lambda seconds: setattr(clock, "now_s", clock.now_s + seconds + 2.3e-3)
    clock.tick = 1e-7

    def run() -> None:
        clock.now_s += 1e-3

    window = run_window(run, Load(1.0, 10.0, 100.0), 0.0, 10.0)
    assert len(window.latencies) == 1000
    assert not window.waited
    late_s = 2.3e-3 - load_module.SPIN_SECONDS
    assert window.late_s == pytest.approx(1000 * late_s, rel=1e-3)
    assert window.busy_s == pytest.approx(1000 * 1e-3, rel=1e-3)
    assert window.latencies.quantile_us(0.5) == pytest.approx(1e6 * (late_s + 1e-3), rel=2e-3)


def test_a_quantile_near_one_needs_samples_above_it():
    assert Latencies.of([1e-3] * 19).tail_us(0.95) is None
    assert Latencies.of([1e-3] * 20).tail_us(0.95) == pytest.approx(1000, rel=2e-3)
    assert Latencies.of([1e-3] * 99).tail_us(0.99) is None
    assert Latencies.of([1e-3] * 100).tail_us(0.99) == pytest.approx(1000, rel=2e-3)
