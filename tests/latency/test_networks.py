from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

import nas.space
from nas.errors import MeasurementError
from nas.graph import Graph
from nas.latency import measure_networks
from nas.latency.networks import (
    FEWEST_TIMINGS,
    MOST_TIMINGS,
    agree,
    measure_until_they_agree,
    retiming_spread,
)
from nas.latency.timing import Timing
from tests.latency.fake_runtime import FakeNetwork, FakeRuntime

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
GRAPHS = [SPACE.smallest.graph, SPACE.largest.graph]


@dataclass
class Drifting(FakeNetwork):
    """Slower by a factor for each of its timings, at whose start it names itself in `order`."""

    factors: Sequence[float] = ()
    order: list[str] = field(default_factory=list)
    name: str = ""
    timed: int = 0

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        if samples > 1:  # The first call of a timing, to see how many calls fill a sample.
            self.order.append(self.name)
            self.timed += 1
        at = self.timed - 1
        factor = self.factors[at] if at < len(self.factors) else 1.0
        return [factor * each for each in super().evaluate(calls, samples)]


class DriftingRuntime(FakeRuntime):
    def __init__(self, *factors: Sequence[float]) -> None:
        super().__init__()
        self.factors = list(factors)
        self.order: list[str] = []

    def compile(
        self, graph: Graph, schedules: object, weights: object = None, batch: int = 1
    ) -> FakeNetwork:
        at = len(self.order)
        self.order.append(f"compile {at}")
        return Drifting(self.kernels(graph), self.broken, self.factors[at], self.order, str(at))


def test_the_two_fastest_timings_agree_or_not() -> None:
    assert not agree([10])
    assert agree([10, 10.3])
    assert not agree([10, 10.4])
    assert agree([20, 10, 10.3])


def test_the_spread_is_that_of_the_two_fastest() -> None:
    timings = [[Timing((us,)) for us in own] for own in ((30, 10, 11), (20, 20), (104, 100))]
    assert retiming_spread(timings) == pytest.approx(0.04)


def test_a_network_that_fails_has_its_error_and_the_others_their_timing() -> None:
    runtime = FakeRuntime()
    only_large = set(runtime.kernels(GRAPHS[1])) - set(runtime.kernels(GRAPHS[0]))
    runtime.broken = frozenset({next(iter(only_large)).text})
    small, large = measure_networks(GRAPHS, runtime, {})
    assert small.timing is not None
    assert len(small.timing.samples_us) == 10
    assert large.timing is None
    assert large.error == "RuntimeError: it crashed"
    with pytest.raises(MeasurementError, match="it crashed"):
        _ = large.measured_us
    again = measure_until_they_agree(GRAPHS, runtime, {})
    assert [len(each.timings) for each in again] == [FEWEST_TIMINGS, 0]
    assert [each.error for each in again] == [None, "RuntimeError: it crashed"]


def test_networks_take_turns() -> None:
    runtime = DriftingRuntime((), ())
    measure_until_they_agree(GRAPHS, runtime, {})
    assert runtime.order == ["compile 0", "compile 1", *["0", "1"] * FEWEST_TIMINGS]


def test_a_network_is_timed_until_two_timings_agree() -> None:
    factors = (2.0, 1.5, 1.8, 1.9, 2.1, 2.2, 2.3, 2.4, 1.0, 1.01)
    assert len(factors) == FEWEST_TIMINGS + 2
    runtime = DriftingRuntime((), factors)
    steps: list[tuple[int, int]] = []
    first, second = measure_until_they_agree(
        GRAPHS, runtime, {}, progress=lambda done, total: steps.append((done, total))
    )
    assert (len(first.timings), len(second.timings)) == (FEWEST_TIMINGS, len(factors))
    latencies = [timing.latency_us for timing in second.timings]
    assert latencies == pytest.approx([us * min(latencies) for us in factors], rel=1e-3)
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert steps[0][1] == 2 * (1 + FEWEST_TIMINGS)
    assert steps[-1][0] == steps[-1][1] == 2 + 2 * FEWEST_TIMINGS + 2
    assert all(done <= total for done, total in steps)


def test_a_network_that_never_settles_is_given_up() -> None:
    runtime = DriftingRuntime((), [1.2**n for n in range(MOST_TIMINGS)])
    _, second = measure_until_they_agree(GRAPHS, runtime, {})
    assert len(second.timings) == MOST_TIMINGS
