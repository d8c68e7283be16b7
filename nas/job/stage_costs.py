"""Measures what the units of work of a job cost on this machine, for its plan."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np

from nas.errors import MeasurementError
from nas.job.measurements import NETWORKS_PER_ROUND
from nas.latency import timing

if TYPE_CHECKING:
    from nas.data import ImageDataset
    from nas.graph import Graph
    from nas.latency.kernel import Kernel
    from nas.latency.runtime import Runtime, Schedule
    from nas.space import Architecture, SearchSpace
    from nas.supernet.settings import TrainingSettings

EXPORT_FILE_S = 1.05
"""Seconds to export, verify and time one file on a quiet machine, beside what its images take.

The machine is one on which Python takes `_PYTHON_S` for a fixed computation.
"""

EXPORT_SCORES = 4.0
"""Time in which a file classifies the test images, over that in which a supernet would."""

_SEARCH_STEPS = 60
"""Number of trials of the short search that is timed.

In a longer search each plan takes longer, but more trials share it, so that a trial takes as long.
"""

_TIMED_MOMENTS = 4
"""Number of timings of each of a few kernels that estimate how many moments the others need."""

_SAMPLED_NETWORKS = 16
"""Networks of each space that are sampled to estimate how many kernels a network has."""

_COMPILED_KERNELS = 4
"""Fewest kernels of the blocks that are compiled to estimate how long a network takes."""

_PYTHON_S = 0.0033
"""Seconds of a fixed computation in Python on the machine of `EXPORT_FILE_S`.

The time of the same computation on this machine scales `EXPORT_FILE_S` and the seconds of dispatch
costs (`Runtime.dispatch_seconds`), which are not measured here.
"""

_PYTHON_REPETITIONS = 100
"""How often the fixed computation is repeated to tell how fast the machine is now."""

_FINALIST_EPOCHS = 10
"""Epochs of the finalist's training that is begun; a short one may be over too soon."""

_WARM_UP_STEPS = 2
"""Steps of a finalist that are not timed: torch chooses its code in the first ones."""

_TIMED_SECONDS = 1.0
_TIMED_STEPS = 3
"""Duration, and fewest steps, of the training of a supernet or a finalist that is timed."""


@dataclass(frozen=True)
class StageCosts:
    """Seconds of the units of work of a job, measured on this machine.

    Args:
        table_s: seconds to complete the latency table.
        epoch_s: seconds of one epoch of each space's supernet.
        trial_s: seconds to score one architecture.
        network_s: seconds to compile one whole network.
        best_epoch_s: seconds of one epoch of the most accurate finalist, which is a large network.
        network_epoch_s: seconds of one epoch of another finalist, or of an anchor.
        export_file_s: seconds to export, verify and time one file of a finalist.
        moments_s: seconds between the first and the last moment at which something is timed.
        prepare_s: seconds to open the data, the spaces and the device, and to measure these costs
            if the job has to.
    """

    table_s: float
    epoch_s: Mapping[str, float]
    trial_s: float
    network_s: float
    best_epoch_s: float
    network_epoch_s: float
    export_file_s: float = 0.0
    moments_s: float = 0.0
    prepare_s: float = 0.0

    def measuring_s(self, networks: int) -> float:
        """Return the seconds to compile, time and score whole networks of the front."""
        moments_s = self.moments_s * math.ceil(networks / NETWORKS_PER_ROUND)
        return moments_s + networks * (self.network_s + self.trial_s)

    def finalists_epoch_s(self, finalists: int) -> float:
        """Return the seconds of one epoch of each of so many finalists."""
        return min(finalists, 1) * self.best_epoch_s + max(0, finalists - 1) * self.network_epoch_s


def measure_stage_costs(
    spaces: Sequence[SearchSpace],
    data: ImageDataset,
    training: TrainingSettings,
    runtime: Runtime,
    missing: Sequence[Kernel],
    *,
    seed: int,
    sampler: str = "auto",
    batch: int = 1,
    lacks_dispatch: bool = False,
    lacks_calibration: bool = False,
) -> StageCosts:
    """Time a little of each stage. Nothing that is measured enters a table or a score.

    Args:
        spaces: the search spaces of the job.
        data: the images of the job.
        training: settings of supernet training.
        runtime: the runtime of the job.
        missing: kernels that the latency table lacks.
        seed: seed of the networks that are drawn.
        sampler: the sampler of the job's search.
        batch: number of images that run at once.
        lacks_dispatch: whether the latency table lacks the dispatch costs too.
        lacks_calibration: whether it lacks a calibration, although it may lack no kernel.

    Raises:
        MeasurementError: no kernel can be timed.
    """
    rng = np.random.default_rng(seed)
    network_s, draws_s, disagreeing = _compile_and_time(runtime, spaces, rng, batch)
    further_s = _further_moments_s(runtime, disagreeing)
    moments_s = timing.SECONDS_BETWEEN_MOMENTS * (runtime.moments - 1) + further_s
    score_s = mean(_seconds_per_score(space, data, rng, seed) for space in spaces)
    slowness = _slowness()
    table_s = slowness * runtime.dispatch_seconds * lacks_dispatch
    if missing:
        table_s += _seconds_of_kernels(runtime, missing) + further_s
    if missing or lacks_calibration:
        table_s += _calibration_seconds(runtime, network_s, moments_s) + draws_s
    largest = [space.largest.graph for space in spaces]
    return StageCosts(
        table_s=table_s,
        epoch_s={space.name: _seconds_per_epoch(space, data, training) for space in spaces},
        trial_s=_seconds_per_search_step(spaces, runtime, sampler, seed, batch) + score_s,
        network_s=network_s,
        # Which space has the most accurate network is not known yet.
        best_epoch_s=mean(_seconds_per_network_epoch(own, own, data, training) for own in largest),
        network_epoch_s=mean(
            _seconds_per_network_epoch(_rather_large(space, rng), teacher, data, training)
            for space, teacher in zip(spaces, largest, strict=True)
        ),
        export_file_s=slowness * EXPORT_FILE_S
        + EXPORT_SCORES * score_s * len(data.test) / len(data.search),
        moments_s=moments_s,
    )


def _slowness() -> float:
    """Return the time of a fixed computation in Python over `_PYTHON_S`.

    It is higher on a slower machine, and while other programs use the processor.
    """
    start = time.perf_counter()
    for _ in range(_PYTHON_REPETITIONS):
        sum(number * number for number in range(100_000))
    return (time.perf_counter() - start) / _PYTHON_REPETITIONS / _PYTHON_S


def _seconds_of_kernels(runtime: Runtime, missing: Sequence[Kernel]) -> float:
    """Return the time to time the kernels that a latency table lacks, from a few of them."""
    from nas.latency.build_estimate import estimate_build_with

    estimate = estimate_build_with(missing, runtime)
    if estimate.estimated_seconds is None:
        raise MeasurementError(estimate.reason, remedy="`nas doctor` says what works.")
    return estimate.estimated_seconds


def _further_moments_s(runtime: Runtime, disagreeing: float) -> float:
    """Return the seconds of the further moments until all timings agree.

    Args:
        runtime: the runtime.
        disagreeing: share of the kernels whose timings do not agree after a few moments. The more
            there are, the longer the last one of many kernels or networks takes.
    """
    further = timing.MAX_MOMENTS - runtime.moments
    return timing.SECONDS_BETWEEN_MOMENTS * further * disagreeing


def _calibration_seconds(runtime: Runtime, network_s: float, moments_s: float) -> float:
    """Return the time to fit the correction of the table's predictions."""
    from nas.latency.calibration import MIN_NETWORKS
    from nas.latency.timing import MEASURED

    # Some kernels are timed beside the networks, and take about as long to compile as a network.
    seconds = (MIN_NETWORKS + 1) * network_s + moments_s
    return seconds if runtime.network_basis == MEASURED else 0.0


def _compile_and_time(
    runtime: Runtime, spaces: Sequence[SearchSpace], rng: np.random.Generator, batch: int
) -> tuple[float, float, float]:
    """Compile and time a few blocks.

    Blocks are compiled, because the kernels of a whole network take longer to time.

    Returns:
        The seconds to compile a network, those to draw the networks of a calibration, and the share
        of the blocks' kernels whose timings do not agree.
    """
    from nas.latency.calibration import DRAWS

    start = time.perf_counter()
    kernels = [
        len(set(runtime.kernels(space.sample(rng, uniform_over="choices").graph, batch)))
        for space in spaces
        for _ in range(_SAMPLED_NETWORKS)
    ]
    draws_s = (time.perf_counter() - start) * DRAWS / _SAMPLED_NETWORKS
    blocks = list(spaces[0].block_graphs())
    compiled = 0
    seconds: list[float] = []
    schedules: dict[Kernel, Schedule] = {}
    for index in rng.permutation(len(blocks)):
        own = list(dict.fromkeys(runtime.kernels(blocks[index], batch)))
        schedules |= {kernel: runtime.timer.time_kernel(kernel)[0] for kernel in own}
        # The first compilation also loads parts of the compiler.
        for _ in range(1 if seconds else 2):
            start = time.perf_counter()
            runtime.compile(blocks[index], schedules, batch=batch)
            block_s = time.perf_counter() - start
        seconds.append(block_s)
        compiled += len(own)
        if compiled >= _COMPILED_KERNELS:
            break
    return mean(kernels) * sum(seconds) / compiled, draws_s, _disagreeing(runtime, schedules)


def _disagreeing(runtime: Runtime, schedules: Mapping[Kernel, Schedule]) -> float:
    """Return the share of some kernels whose timings at a few moments do not agree."""
    if runtime.moments == 1:
        return 0.0
    moments = timing.Moments()
    timings: list[list[float]] = [[] for _ in schedules]
    for _ in range(_TIMED_MOMENTS):
        moments.wait()
        for own, (kernel, schedule) in zip(timings, schedules.items(), strict=True):
            own.append(runtime.timer.retime_kernel(kernel, schedule).latency_us)
    return mean(not timing.moments_agree(own) for own in timings)


def _seconds_per_search_step(
    spaces: Sequence[SearchSpace], runtime: Runtime, sampler: str, seed: int, batch: int
) -> float:
    """Return the time of a trial beside its evaluation: its proposal, and its record.

    A short search with random errors is timed. Its cheap objective counts the multiply-accumulates
    of the kernels, because the latency table may not exist yet.
    """
    from nas.search import Objective, run_search

    rng = np.random.default_rng(seed)

    def kernel_macs(architectures: Sequence[Architecture]) -> list[float]:
        graphs = [architecture.graph for architecture in architectures]
        return [
            float(sum(kernel.macs for kernel in runtime.kernels(graph, batch))) for graph in graphs
        ]

    def error(architectures: Sequence[Architecture]) -> list[float]:
        return rng.random(len(architectures)).tolist()

    objectives = [Objective("kernel_macs", kernel_macs, cheap=True), Objective("error", error)]
    ends: list[float] = []
    run_search(
        list(spaces),
        objectives,
        trials=_SEARCH_STEPS,
        seed=seed,
        sampler=sampler,
        on_trial=lambda *_: ends.append(time.perf_counter()),
        progress=None,
    )
    # The sampler's model proposes in the second half.
    modelled = ends[len(ends) // 2 :]
    return (modelled[-1] - modelled[0]) / max(1, len(modelled) - 1)


def _seconds_per_epoch(space: SearchSpace, data: ImageDataset, training: TrainingSettings) -> float:
    """Return the time to train a supernet for one epoch."""
    from nas.supernet.training import measure_epoch

    return measure_epoch(space, data, training, seconds=_TIMED_SECONDS)


def _seconds_per_score(
    space: SearchSpace, data: ImageDataset, rng: np.random.Generator, seed: int
) -> float:
    """Return the time to score an architecture with an untrained supernet.

    Each is scored twice, and the second time counts: torch takes up to a second to choose its code
    for a layer of a new shape, which a search pays only a few times.
    """
    import torch

    from nas.supernet.evaluation import evaluate
    from nas.supernet.weights import Supernet

    supernet = Supernet(space, torch.Generator().manual_seed(seed))
    durations: list[float] = []
    while len(durations) < _TIMED_STEPS or sum(durations) < _TIMED_SECONDS / 2:
        architecture = space.sample(rng, uniform_over="choices")
        evaluate(supernet, [architecture], data)
        start = time.perf_counter()
        evaluate(supernet, [architecture], data)
        durations.append(time.perf_counter() - start)
    return mean(durations)


def _rather_large(space: SearchSpace, rng: np.random.Generator) -> Graph:
    """Return the graph of a random network of a space that is larger than most."""
    graphs = [space.sample(rng, uniform_over="choices").graph for _ in range(_SAMPLED_NETWORKS)]
    return sorted(graphs, key=lambda each: each.macs)[3 * _SAMPLED_NETWORKS // 4]


def _seconds_per_network_epoch(
    graph: Graph, teacher: Graph, data: ImageDataset, training: TrainingSettings
) -> float:
    """Return the time to train a network for one epoch with a teacher."""
    from nas.supernet.distillation import Teacher
    from nas.supernet.standalone import NetworkTrainer
    from nas.torch_network import to_torch

    settings = replace(training, epochs=_FINALIST_EPOCHS, seconds=None)
    own_teacher = Teacher.of_network(to_torch(teacher))
    trainer = NetworkTrainer(graph, data, settings, seed=0, teacher=own_teacher)
    durations: list[float] = []
    while len(durations) < trainer.steps and (
        len(durations) < _TIMED_STEPS + _WARM_UP_STEPS
        or sum(durations[_WARM_UP_STEPS:]) < _TIMED_SECONDS
    ):
        start = time.perf_counter()
        trainer.step(len(durations))
        durations.append(time.perf_counter() - start)
    return mean(durations[_WARM_UP_STEPS:] or durations) * trainer.steps / _FINALIST_EPOCHS
