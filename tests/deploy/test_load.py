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

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        self.now_s += TICK
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
    assert math.isclose(sum(each.busy_s for each in windows), sum(expected), rel_tol=1e-3)
