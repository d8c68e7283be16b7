"""Whole networks that are timed until their timings agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from nas.errors import BoardLostError, MeasurementError
from nas.graph import Graph
from nas.latency import measure_networks, open_runtime, rounds
from nas.latency.rounds import MAX_ROUNDS
from nas.latency.timing import SAMPLES
from nas.runtimes.files import Files
from tests.latency.fake_runtime import FakeNetwork, FakeRuntime
from tests.latency.small_table import SPACE

GRAPHS = [SPACE.smallest.graph, SPACE.largest.graph]
ROUNDS = 4


@pytest.fixture(autouse=True)
def _all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "ROUNDS", ROUNDS)


@dataclass
class Drifting(FakeNetwork):
    """A network whose timings are slowed by `factors`, and which logs its timings in `order`."""

    factors: Sequence[float] = ()
    order: list[str] = field(default_factory=list)
    name: str = ""

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        if samples > 1:  # The first call of a timing finds how many calls fill a sample.
            self.order.append(self.name)
        at = self.order.count(self.name) - 1
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


def test_failed_network_has_error_and_others_have_timings() -> None:
    runtime = FakeRuntime()
    only_large = set(runtime.kernels(GRAPHS[1])) - set(runtime.kernels(GRAPHS[0]))
    runtime.broken = frozenset({next(iter(only_large)).text})
    small, large = measure_networks(GRAPHS, runtime, {})
    assert len(small.rounds) == ROUNDS
    assert {len(each.samples_us) for each in small.rounds} == {SAMPLES}
    assert small.fastest_us == min(small.counted_us)
    assert (large.rounds, large.error) == ((), "RuntimeError: it crashed")
    with pytest.raises(MeasurementError, match="it crashed"):
        _ = large.fastest_us


def test_networks_are_timed_alternately_until_their_timings_agree() -> None:
    """Each round of the second is much faster than the one before, until the last two."""
    factors = (1.5, 1.4, 1.3, 1.2, 1.1, 1.1)
    runtime = DriftingRuntime((), factors)
    steps: list[tuple[int, int]] = []
    first, second = measure_networks(
        GRAPHS, runtime, {}, progress=lambda done, total: steps.append((done, total))
    )
    assert runtime.order == ["compile 0", "compile 1", *["0", "1"] * ROUNDS, "1", "1"]
    assert (len(first.rounds), len(second.rounds)) == (ROUNDS, len(factors))
    first_us = [each.latency_us for each in second.rounds]
    fastest_us = second.fastest_us / factors[-1]
    assert first_us == pytest.approx([us * fastest_us for us in factors], rel=1e-3)
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert steps[0][1] == 2 * (1 + ROUNDS)
    assert steps[-1][0] == steps[-1][1] == 2 + 2 * ROUNDS + 2
    assert all(done <= total for done, total in steps)


def test_networks_that_are_timed_together_have_equally_many_timings() -> None:
    runtime = DriftingRuntime((), (1.5, 1.4, 1.3, 1.2, 1.1, 1.1))
    first, second = measure_networks(GRAPHS, runtime, {}, together=True)
    assert runtime.order == ["compile 0", "compile 1", *["0", "1"] * 6]
    assert (len(first.rounds), len(second.rounds)) == (6, 6)


def test_network_is_timed_at_most_at_max_rounds() -> None:
    runtime = DriftingRuntime((), [0.9**n for n in range(MAX_ROUNDS)])
    _, second = measure_networks(GRAPHS, runtime, {})
    assert len(second.rounds) == MAX_ROUNDS


class Loads(FakeNetwork):
    """A network that takes longer when it is loaded for the second and the third time."""

    loads = 0

    def reloaded(self) -> Loads:
        self.loads += 1
        return self

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        factor = (1.0, 1.2, 1.1, 1.01)[self.loads]
        return [factor * each for each in super().evaluate(calls, samples)]


class LoadingRuntime(FakeRuntime):
    def compile(
        self, graph: Graph, schedules: object, weights: object = None, batch: int = 1
    ) -> FakeNetwork:
        return Loads(self.kernels(graph), self.broken)


def test_each_round_has_a_load_of_its_own() -> None:
    """The latency is that of the loads that are fast and agree."""
    (timed,) = measure_networks(GRAPHS[:1], LoadingRuntime(), {})
    fastest_us = timed.fastest_us
    ratios = [each.latency_us / fastest_us for each in timed.rounds]
    assert ratios == pytest.approx([1.0, 1.2, 1.1, 1.01], rel=1e-3)


@pytest.mark.parametrize("name", ["onnxruntime", "litert"])
def test_network_that_is_loaded_again_computes_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[bytes] = []
    load = Files.open
    monkeypatch.setattr(
        Files,
        "open",
        lambda files, data, options: loads.append(data) or load(files, data, options),
    )
    network = open_runtime(name).compile(GRAPHS[0], {})
    image = np.random.default_rng(0).random(GRAPHS[0].input_shape, np.float32)
    before = network.run(image)
    assert len(loads) == 1
    np.testing.assert_array_equal(network.reloaded().run(image), before)
    assert loads == loads[:1] * 2


class VanishingRuntime(FakeRuntime):
    """A board that is lost after some timings."""

    left: int = 3

    @contextmanager
    def timing_context(self) -> Iterator[None]:
        self.left -= 1
        if self.left < 0:
            raise BoardLostError("the board was lost")
        yield


def test_lost_board_is_no_error_of_the_networks() -> None:
    with pytest.raises(BoardLostError, match="the board was lost"):
        measure_networks(GRAPHS, VanishingRuntime(), {})


def test_networks_are_timed_once_if_there_is_no_time() -> None:
    timed = measure_networks(GRAPHS, FakeRuntime(), {}, seconds=0)
    assert [len(each.rounds) for each in timed] == [1, 1]


class ConstantRuntime(FakeRuntime):
    capabilities = replace(FakeRuntime.capabilities, rounds=1)


class EstimatingRuntime(ConstantRuntime):
    basis = "estimated: test"
    network_basis = "measured"


@pytest.mark.parametrize(
    ("runtime", "timings"), [(ConstantRuntime(), 1), (EstimatingRuntime(), ROUNDS)]
)
def test_networks_are_timed_once_only_if_kernels_and_networks_are_constant(
    runtime: FakeRuntime, timings: int
) -> None:
    (network,) = measure_networks(GRAPHS[:1], runtime, {})
    assert len(network.rounds) == timings
