"""Timing whole networks, each in several rounds until its timings agree.

The timings of one network are apart, with all other networks in between; its latency follows from
all of them, see `nas.latency.rounds.Latency`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nas.display.progress import Advance
from nas.errors import MeasurementError
from nas.graph import WEIGHTED_KINDS, Graph
from nas.latency import rounds, timing
from nas.latency.rounds import Latency, full_speed_us
from nas.latency.runtime import CompiledNetwork, Runtime, Schedules
from nas.latency.timing import Timing

SAMPLE_SECONDS = 0.002
"""Shortest duration of a sample."""


@dataclass(frozen=True)
class NetworkTimings:
    """The timings of one network in several rounds, or the error for which it has none.

    Args:
        timings: the timings.
        error: why there is none.
        full_us: reading at full speed, as far as it is known.
    """

    timings: tuple[Timing, ...]
    error: str | None = None
    full_us: float | None = None

    @property
    def latency(self) -> Latency:
        """The latency of the network.

        Raises:
            MeasurementError: the network could not be timed.
        """
        if not self.timings:
            raise MeasurementError(f"The network could not be timed: {self.error}.")
        return Latency([each.round for each in self.timings], self.full_us)


def measure_networks(
    graphs: Sequence[Graph],
    runtime: Runtime,
    schedules: Schedules,
    *,
    batch: int = 1,
    progress: Advance | None = None,
    seconds: float | None = None,
    together: bool = False,
    full_us: float | None = None,
) -> list[NetworkTimings]:
    """Compile networks with random weights, and time each until its timings agree.

    Each network is compiled once and timed until its timings agree
    (`nas.latency.rounds.Latency.is_complete`), in `ROUNDS` rounds or more; once if its latency is
    always the same (`Runtime.has_constant_networks`). A network that cannot be compiled or timed
    has an error instead.

    Args:
        graphs: the networks.
        runtime: an opened runtime.
        schedules: schedules of all their kernels, from `LatencyTable.schedules`.
        batch: number of images of one inference.
        progress: function to call after each step.
        seconds: time after which no network is timed again; each is timed once in any case.
        together: whether all networks are timed again as long as those of one disagree, so that a
            slow minute of the machine meets all of them.
        full_us: reading at full speed in the timings of the table, if it is known. That of all
            timings counts if it is faster.
    """
    is_constant = runtime.has_constant_networks
    fewest, most = (1, 1) if is_constant else (rounds.ROUNDS, rounds.MAX_ROUNDS)
    end_s = time.monotonic() + (math.inf if seconds is None else seconds)
    timer = _NetworkTimer(runtime, len(graphs) * (1 + fewest), progress)
    timer.compile(graphs, schedules, batch)
    timings: list[list[Timing]] = [[] for _ in graphs]
    waiting = list(range(len(graphs)))
    pause = timing.Rounds()
    for done in range(1, most + 1):
        pause.wait()
        timing.expect_full_speed(full_us)
        for index, new in timer.time(waiting).items():
            timings[index].append(new)
        full_us = full_speed_us((each.round for own in timings for each in own), full_us)
        waiting = [
            index
            for index, own in enumerate(timings)
            if index not in timer.errors
            and not NetworkTimings(tuple(own), full_us=full_us).latency.is_complete(fewest)
        ]
        if not waiting or done == most or time.monotonic() >= end_s:
            break
        if together:
            waiting = [index for index in range(len(graphs)) if index not in timer.errors]
        timer.expect(len(waiting) * max(1, fewest - done))
    return [
        NetworkTimings(tuple(own), timer.errors.get(index), full_us)
        for index, own in enumerate(timings)
    ]


def random_weights(graph: Graph, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Return random weights for timing a network that is not trained.

    They keep activations near one (He et al. 2015, "Delving deep into rectifiers"), so that no
    number is denormal, which would be slow.

    Args:
        graph: the network; the weights are those of the folded graph.
        rng: generator of the random numbers.
    """
    weights: dict[str, NDArray[np.float32]] = {}
    for op in graph.folded.ops:
        if op.kind in WEIGHTED_KINDS:
            shape = graph.folded.weight_shape(op)
            scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
            weights[op.slot_name] = rng.standard_normal(shape, np.float32) * scale
            if op.bias:
                bias = rng.standard_normal(op.shape[0], np.float32) * np.float32(0.1)
                weights[f"{op.slot_name}.bias"] = bias
    return weights


class _NetworkTimer:
    """Compiles and times several networks, which are identified by their index.

    Args:
        runtime: an opened runtime.
        steps: expected number of steps, for the progress.
        progress: function to call after each step.

    Attributes:
        errors: error of each network that could not be compiled or timed.
    """

    def __init__(self, runtime: Runtime, steps: int, progress: Advance | None) -> None:
        self.errors: dict[int, str] = {}
        self._steps = steps
        self._done = 0
        self._runtime = runtime
        self._progress = progress
        self._compiled: dict[int, CompiledNetwork] = {}

    def compile(self, graphs: Sequence[Graph], schedules: Schedules, batch: int) -> None:
        """Compile all networks."""
        for index, graph in enumerate(graphs):
            self._step(index, partial(self._compile, index, graph, schedules, batch))

    def time(self, indices: Iterable[int]) -> dict[int, Timing]:
        """Return a timing of each of these networks, without those that have an error."""
        timings: dict[int, Timing] = {}
        with self._runtime.timing_context():
            for index in indices:
                self._step(index, partial(self._time, index, timings))
        return timings

    def expect(self, timings: int) -> None:
        """Set the number of timings that are still to be taken."""
        self._steps = self._done + timings

    def _compile(self, index: int, graph: Graph, schedules: Schedules, batch: int) -> None:
        self._compiled[index] = self._runtime.compile(graph, schedules, batch=batch)

    def _time(self, index: int, timings: dict[int, Timing]) -> None:
        evaluate = self._compiled[index].evaluate
        timings[index] = timing.measure(evaluate, SAMPLE_SECONDS)

    def _step(self, index: int, action: Callable[[], None]) -> None:
        """Compile or time a network, unless it has an error."""
        if index not in self.errors:
            try:
                action()
            # A compiler may raise anything; whatever it is, it is the result of this network.
            except Exception as error:
                self.errors[index] = f"{type(error).__name__}: {str(error).strip()[:500]}"
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._steps)
