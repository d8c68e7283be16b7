"""Timing whole networks, each in several rounds until its timings agree.

The timings of one network are apart, with all other networks in between; its latency follows from
all of them, see `nas.latency.rounds.Latency`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nas.display.progress import Advance
from nas.errors import DeviceError, MeasurementError
from nas.graph import WEIGHTED_KINDS, Graph
from nas.latency import rounds, timing
from nas.latency.kit import KitDevice, measure_by_kit
from nas.latency.rounds import (
    ONCE,
    Latency,
    Policy,
    Rounds,
    full_speed_us,
    one_at_a_time,
    outcome_of,
)
from nas.latency.runtime import CompiledNetwork, Runtime, Schedules
from nas.latency.timing import Timing

SAMPLE_SECONDS = 0.002
"""Shortest duration of a sample."""


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
) -> list[Latency]:
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
        together: see `nas.latency.rounds.Policy`.
        full_us: reading at full speed in the timings of the table, if it is known. That of all
            timings counts if it is faster.

    Raises:
        DeviceError: the device cannot be used, or is lost.
    """
    if isinstance(runtime, KitDevice):
        if batch > 1:
            raise MeasurementError("A program times whole networks on a device with one image.")
        return measure_by_kit(graphs, runtime, schedules, progress)
    policy = ONCE if runtime.has_constant_networks else Policy(rounds.ROUNDS, together=together)
    compiled: list[CompiledNetwork | Exception] = []
    end_s = math.inf if seconds is None else time.monotonic() + seconds
    for graph in graphs:
        compile_network = partial(runtime.compile, graph, schedules, batch=batch)
        outcome = outcome_of(compile_network)
        if isinstance(outcome, DeviceError):
            raise outcome
        compiled.append(outcome)
        if progress is not None:
            progress(len(compiled), len(graphs) * (1 + policy.fewest))

    def time_network(index: int) -> Timing:
        network = compiled[index]
        if isinstance(network, Exception):
            raise network
        with runtime.timing_context():
            if index in timed.timings:
                network = compiled[index] = network.reloaded()
            return timing.measure(network.evaluate, SAMPLE_SECONDS)

    full_speed = partial(full_speed_us, known_us=full_us)
    timed = Rounds(one_at_a_time(time_network), policy, full_speed=full_speed, end_s=end_s)
    for _ in timed.run(dict.fromkeys(range(len(graphs)), policy.fewest)):
        if progress is not None:
            progress(len(graphs) + timed.done, len(graphs) + timed.total)
    return [timed.latency(index) for index in range(len(graphs))]


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
