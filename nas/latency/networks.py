"""Timing whole networks, each in several rounds until its timings agree.

The timings of one network are apart, with all other networks in between; its latency follows from
all of them, see `nas.latency.rounds.Latency`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.display.progress import Advance
from nas.errors import MeasurementError, first_line
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

    Each network is compiled once, loaded for each round (`CompiledNetwork.reloaded`), and timed
    until its timings agree (`nas.latency.rounds.Latency.is_complete`), in `ROUNDS` rounds or more;
    once if its latency is always the same (`Runtime.has_constant_networks`). A network that cannot
    be compiled or timed has an error instead.

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
    fewest, most = (1, 1) if runtime.has_constant_networks else (rounds.ROUNDS, rounds.MAX_ROUNDS)
    end_s = time.monotonic() + (math.inf if seconds is None else seconds)
    errors: dict[int, str] = {}
    done, steps = 0, len(graphs) * (1 + fewest)

    @contextmanager
    def step(index: int) -> Iterator[None]:
        """Compile or time a network inside; what that raises is the network's error."""
        nonlocal done
        try:
            yield
        # A compiler may raise anything; whatever it is, it is the result of this network.
        except Exception as error:
            errors[index] = first_line(error)
        done += 1
        if progress is not None:
            progress(done, steps)

    compiled: dict[int, CompiledNetwork] = {}
    for index, graph in enumerate(graphs):
        with step(index):
            compiled[index] = runtime.compile(graph, schedules, batch=batch)
    timings: list[list[Timing]] = [[] for _ in graphs]
    waiting = list(compiled)
    pause = timing.Rounds()
    for number in range(most):
        steps = done + len(waiting) * max(1, fewest - number)
        pause.wait()
        with runtime.timing_context():
            for index in waiting:
                with step(index):
                    compiled[index] = compiled[index].reloaded() if number else compiled[index]
                    timed = timing.measure(compiled[index].evaluate, SAMPLE_SECONDS)
                    timings[index].append(timed)
        full_us = full_speed_us((each.round for own in timings for each in own), full_us)
        usable = [index for index in compiled if index not in errors]
        waiting = [
            index
            for index in usable
            if not Latency([each.round for each in timings[index]], full_us).is_complete(fewest)
        ]
        if not waiting or time.monotonic() >= end_s:
            break
        if together:
            waiting = usable
    return [
        NetworkTimings(tuple(own), errors.get(index), full_us) for index, own in enumerate(timings)
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
