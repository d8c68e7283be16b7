from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

import nas.space
from nas.errors import MeasurementError
from nas.graph import Graph
from nas.latency import measure_networks
from nas.latency.networks import (
    MAX_TIMINGS,
    MIN_TIMINGS,
    retiming_spread,
)
from nas.latency.processor_speed import slowdown
from nas.latency.timing import (
    MIN_UNDISTURBED,
    SAMPLES,
    Timing,
    is_disturbed,
)
from tests.latency.fake_runtime import FakeNetwork, FakeRuntime

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
GRAPHS = [SPACE.smallest.graph, SPACE.largest.graph]


@dataclass
class Drifting(FakeNetwork):
    """A network whose timings are slowed by `factors`, and which logs its timings in `order`."""

    factors: Sequence[float] = ()
    order: list[str] = field(default_factory=list)
    name: str = ""
    timed: int = 0

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        if samples > 1:  # The first call of a timing finds how many calls fill a sample.
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


def test_retiming_spread_is_median_over_networks() -> None:
    timings = [[Timing((us,)) for us in own] for own in ((30, 10, 11), (20, 20), (104, 100))]
    assert retiming_spread(timings) == pytest.approx(0.04)


def test_failed_network_has_error_and_others_have_timings() -> None:
    runtime = FakeRuntime()
    only_large = set(runtime.kernels(GRAPHS[1])) - set(runtime.kernels(GRAPHS[0]))
    runtime.broken = frozenset({next(iter(only_large)).text})
    small, large = measure_networks(GRAPHS, runtime, {})
    assert len(small.timings) == MIN_TIMINGS
    assert {len(timing.samples_us) for timing in small.timings} == {SAMPLES}
    assert small.measured_us == min(timing.latency_us for timing in small.timings)
    assert large.timings == ()
    assert large.error == "RuntimeError: it crashed"
    with pytest.raises(MeasurementError, match="it crashed"):
        _ = large.measured_us


def test_networks_are_timed_alternately() -> None:
    runtime = DriftingRuntime((), ())
    measure_networks(GRAPHS, runtime, {})
    assert runtime.order == ["compile 0", "compile 1", *["0", "1"] * MIN_TIMINGS]


def test_network_is_timed_until_its_timings_agree() -> None:
    # The lower quartiles of every other timing and of the rest are 1.2 and 1.0 after ten timings,
    # 1.05 and 1.0 after eleven, and 1.05 after twelve.
    factors = (1.0, 1.0, 1.2, 1.0, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.0, 1.2)
    assert len(factors) == MIN_TIMINGS + 2
    runtime = DriftingRuntime((), factors)
    steps: list[tuple[int, int]] = []
    first, second = measure_networks(
        GRAPHS, runtime, {}, progress=lambda done, total: steps.append((done, total))
    )
    assert (len(first.timings), len(second.timings)) == (MIN_TIMINGS, len(factors))
    latencies = [timing.latency_us for timing in second.timings]
    assert latencies == pytest.approx([us * min(latencies) for us in factors], rel=1e-3)
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert steps[0][1] == 2 * (1 + MIN_TIMINGS)
    assert steps[-1][0] == steps[-1][1] == 2 + 2 * MIN_TIMINGS + 2
    assert all(done <= total for done, total in steps)


def test_timings_above_the_quiet_speed_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two of a dozen moments are a fifth faster, and the reference workload as well."""
    monkeypatch.setattr("nas.latency.processor_speed.QUIET_TOLERANCE", 0.04)
    monkeypatch.setattr("nas.latency.processor_speed.MAX_SPEED_CHANGE", 0.12)
    monkeypatch.setattr("nas.latency.processor_speed.slowdown", slowdown)
    runtime = DriftingRuntime([0.8, 0.8])

    def reference_us() -> float:
        return 2.8 if runtime.order.count("0") < 3 else 3.5

    monkeypatch.setattr("nas.latency.processor_speed.reference_us", reference_us)
    (measured,) = measure_networks(GRAPHS[:1], runtime, {}, quiet_us=3.5)
    (undisturbed,) = measure_networks(GRAPHS[:1], FakeRuntime(), {})
    assert measured.measured_us == pytest.approx(undisturbed.measured_us)
    assert 0 < len(measured.timings) < MIN_TIMINGS
    (only_faster,) = measure_networks(GRAPHS[:1], FakeRuntime(), {}, quiet_us=1e9)
    assert len(only_faster.timings) == MAX_TIMINGS, "there are no others"


def test_clock_of_the_processor_does_not_change_a_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is 6% slower at all moments, and a neighbour slows the first nine further."""
    monkeypatch.setattr("nas.latency.processor_speed.MAX_SPEED_CHANGE", 0.12)
    monkeypatch.setattr("nas.latency.processor_speed.slowdown", slowdown)
    neighbour = 9
    runtime = DriftingRuntime([1.06 * 1.2] * neighbour + [1.06] * MAX_TIMINGS)

    def reference_us() -> float:
        return 1.06 * 2.5 * (1.5 if runtime.order.count("0") <= neighbour else 1.0)

    monkeypatch.setattr("nas.latency.processor_speed.reference_us", reference_us)
    (measured,) = measure_networks(GRAPHS[:1], runtime, {}, quiet_us=2.5)
    (undisturbed,) = measure_networks(GRAPHS[:1], FakeRuntime(), {})
    assert measured.measured_us == pytest.approx(undisturbed.measured_us, rel=1e-3)
    known = [timing for timing in measured.timings if timing.slowdown is not None]
    assert len(known) == MIN_UNDISTURBED
    assert {timing.slowdown for timing in known} == {1.06}
    raw_us = min(sample for timing in known for sample in timing.samples_us)
    assert raw_us == pytest.approx(1.06 * measured.measured_us, rel=1e-3)
    assert not is_disturbed(measured.timings, 2.5)
    assert is_disturbed(measured.timings[:neighbour], 2.5)
    assert not is_disturbed(undisturbed.timings, math.inf), "the quiet speed is not known"


def test_network_is_timed_at_most_max_timings() -> None:
    runtime = DriftingRuntime((), [1.2**n for n in range(MAX_TIMINGS)])
    _, second = measure_networks(GRAPHS, runtime, {})
    assert len(second.timings) == MAX_TIMINGS


class ConstantRuntime(FakeRuntime):
    moments = 1


class EstimatingRuntime(ConstantRuntime):
    basis = "estimated: test"
    network_basis = "measured"


@pytest.mark.parametrize(
    ("runtime", "timings"), [(ConstantRuntime(), 1), (EstimatingRuntime(), MIN_TIMINGS)]
)
def test_networks_are_timed_once_only_if_kernels_and_networks_are_constant(
    runtime: FakeRuntime, timings: int
) -> None:
    (network,) = measure_networks(GRAPHS[:1], runtime, {})
    assert len(network.timings) == timings
