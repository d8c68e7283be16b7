"""A recording that is played on a core with two speeds: the machine of a cloud with a neighbour.

Kernels, networks and the rules that time them are real; the clock is simulated, so that an hour of
a disturbed machine takes a second.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build, networks, rounds, timing
from nas.latency.check import DrawnNetwork, check_networks
from nas.latency.correction import FITTED_NETWORKS, correct_table
from nas.latency.rounds import Policy
from nas.latency.runtime import CompiledNetwork, Schedule
from nas.latency.timing import Timing
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.statistics import spread
from tests.capabilities import change
from tests.golden.latency import Recording
from tests.latency.fake_runtime import FakeRuntime
from tests.latency.two_speeds import COMPUTE, MEMORY, TwoSpeedCore

SECONDS_LATER = 1200.0

DEPTHWISE = 1.4
"""Factor by which a slowed core takes longer for depthwise convolutions."""


def slow_factor(kernel: Kernel) -> float:
    """Return how many times longer a slowed core takes for a kernel."""
    if not kernel.macs or kernel.kind == "linear":
        return MEMORY
    return DEPTHWISE if kernel.groups > 1 else COMPUTE


class PlayedNetwork(CompiledNetwork):
    """A network whose latency was recorded."""

    def __init__(self, evaluate: timing.Evaluate) -> None:
        self._evaluate = evaluate

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        return self._evaluate(calls, samples)


class PlayedRuntime(FakeRuntime):
    """A runtime that takes as long as a recording, on a core with two speeds.

    Args:
        recording: the recording.
        core: the core.
    """

    def __init__(self, recording: Recording, core: TwoSpeedCore) -> None:
        super().__init__()
        self._recording, self._core = recording, core
        self._rng = np.random.default_rng(0)
        self._networks = {a.graph.digest: own for a, own in recording.networks}

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        schedule = self._recording.schedules[kernel]
        return schedule, self.retime_kernel(kernel, schedule)

    def retime_kernel(self, kernel: Kernel, schedule: Schedule) -> Timing:
        return timing.measure(self._workload(self._recording.kernels[kernel], slow_factor(kernel)))

    def time_dispatch(self) -> Mapping[str, Timing]:
        recorded = self._recording.dispatch
        return {
            part: min(recorded[part], key=_latency_us) for part in self.capabilities.dispatch_parts
        }

    def compile(
        self, graph: Graph, schedules: Any, weights: Any = None, batch: int = 1
    ) -> CompiledNetwork:
        kernels = self.kernels(graph)
        own_us = [self._recording.kernels[each][0].latency_us for each in kernels]
        factors = [slow_factor(each) for each in kernels]
        factor = sum(map(float.__mul__, own_us, factors)) / sum(own_us)
        return PlayedNetwork(self._workload(self._networks[graph.digest], factor))

    def _workload(self, recorded: Sequence[Timing], factor: float) -> timing.Evaluate:
        """Return the workload of one of the rounds that were recorded on an idle machine."""
        least_us = min(each.latency_us for each in recorded)
        near = [each for each in recorded if each.latency_us <= 1.05 * least_us]
        drawn = near[self._rng.integers(len(near))]
        return self._core.workload(statistics.median(drawn.samples_us) / 1e6, factor)


def _latency_us(timing: Timing) -> float:
    return timing.latency_us


def play(core: TwoSpeedCore, patch: pytest.MonkeyPatch, fewest_rounds: int = 4) -> None:
    """Let a new process of this machine time on a core."""
    core.install(patch)
    for module in (build, networks):
        patch.setattr(module, "time", core)
    patch.setattr(timing, "SECONDS_BETWEEN_ROUNDS", 0.5)
    patch.setattr(rounds, "ROUNDS", fewest_rounds)
    change(patch, TvmRuntime, rounds=fewest_rounds)


class Later(NamedTuple):
    """A table that was built on a core, and its check twenty minutes later.

    Attributes:
        error, tau: mean absolute error, and rank correlation, of networks on which the correction
            was not fitted.
        uncorrected_error: the error without the correction.
        stated_error: the error that the correction states for other networks.
        seconds: time that the build took on the simulated core.
        uncertain: kernels and networks that are unstable or disturbed.
    """

    error: float
    tau: float
    uncorrected_error: float
    stated_error: float
    seconds: float
    uncertain: int


def checked_later(
    core: TwoSpeedCore, patch: pytest.MonkeyPatch, recording: Recording, fewest_rounds: int = 4
) -> Later:
    """Build and correct the table of a recording, and check it later, in three processes."""
    with tempfile.TemporaryDirectory() as folder:
        play(core, patch, fewest_rounds)
        runtime = PlayedRuntime(recording, core)
        table = LatencyTable.open_or_create(Path(folder) / "table.jsonl", runtime)
        start_s = core.now_s
        built = build.build_table(table, list(recording.kernels), runtime, progress=False)
        seconds = core.now_s - start_s
        play(core, patch, fewest_rounds)
        drawn: list[DrawnNetwork] = [(None, each) for each, _ in recording.networks]
        drawn.sort(key=lambda each: table.predict(each[1]).uncorrected_us)
        fitted = spread(drawn, FITTED_NETWORKS)
        correction = correct_table(table, check_networks(table, fitted, runtime))
        core.sleep(SECONDS_LATER)
        play(core, patch, fewest_rounds)
        others = [each for each in drawn if each not in fitted]
        check = check_networks(table, others, runtime)
    policy = Policy(fewest_rounds)
    disturbed = sum(each.latency.status(policy) != "ok" for each in check.networks)
    return Later(
        check.agreement.mape,
        check.agreement.kendall_tau or 0.0,
        check.uncorrected_agreement.mape,
        correction.mape_after,
        seconds,
        built.unstable + built.disturbed + disturbed,
    )
