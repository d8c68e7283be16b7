"""Measures what the units of work of a job cost on this machine, for its plan."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np

from nas.errors import MeasurementError
from nas.job.measurements import NETWORKS_PER_ROUND
from nas.latency import timing

if TYPE_CHECKING:
    from nas.data import ImageDataset
    from nas.latency.kernel import Kernel
    from nas.latency.runtime import Runtime
    from nas.space import SearchSpace
    from nas.supernet import TrainingSettings

SEARCH_STEP_S = 0.035
"""Seconds of a trial beside its evaluation on a quiet machine: its proposal, and its record."""

EXPORT_FILE_S = 2.0
"""Seconds to export, verify and time one file on a quiet machine, beside what its images take."""

EXPORT_SCORES = 4.0
"""Time in which a file classifies the test images, over that in which a supernet would."""

_EXPECTED_MOMENTS = 2.5
"""Moments until the timings of all kernels or networks agree, over the smallest number.

There are four times as many at most. On a shared machine, single ones needed all of them.
"""

_SAMPLED_NETWORKS = 16
"""Networks of each space that are sampled to estimate how many kernels a network has."""

_COMPILED_KERNELS = 4
"""Fewest kernels of the blocks that are compiled to estimate how long a network takes."""

_BUSY_SECONDS = 0.5
"""Seconds for which it is observed how busy the machine is."""

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
        finalist_epoch_s: seconds of one epoch of a finalist.
        export_file_s: seconds to export, verify and time one file of a finalist.
        moments_s: seconds between the first and the last moment at which something is timed.
        prepare_s: seconds to open the data, the spaces and the device, and to measure these costs
            if the job has to.
    """

    table_s: float
    epoch_s: Mapping[str, float]
    trial_s: float
    network_s: float
    finalist_epoch_s: float
    export_file_s: float = 0.0
    moments_s: float = 0.0
    prepare_s: float = 0.0

    def measuring_s(self, networks: int) -> float:
        """Return the seconds to compile, time and score whole networks of the front."""
        moments_s = self.moments_s * math.ceil(networks / NETWORKS_PER_ROUND)
        return moments_s + networks * (self.network_s + self.trial_s)


def measure_stage_costs(
    spaces: Sequence[SearchSpace],
    data: ImageDataset,
    training: TrainingSettings,
    runtime: Runtime,
    missing: Sequence[Kernel],
    *,
    seed: int,
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
        batch: number of images that run at once.
        lacks_dispatch: whether the latency table lacks the dispatch costs too.
        lacks_calibration: whether it lacks a calibration, although it may lack no kernel.

    Raises:
        MeasurementError: no kernel can be timed.
    """
    rng = np.random.default_rng(seed)
    moments_s = timing.SECONDS_BETWEEN_MOMENTS * (runtime.moments - 1) + _disturbed_s(runtime)
    network_s, draws_s = _seconds_per_network(runtime, spaces, rng, batch)
    score_s = mean(_seconds_per_score(space, data, rng, seed) for space in spaces)
    busy = _busy_factor()
    table_s = _table_seconds(runtime, missing, busy * runtime.dispatch_seconds * lacks_dispatch)
    if missing or lacks_calibration:
        table_s += _calibration_seconds(runtime, network_s, moments_s) + draws_s
    return StageCosts(
        table_s=table_s,
        epoch_s={space.name: _seconds_per_epoch(space, data, training) for space in spaces},
        trial_s=busy * SEARCH_STEP_S + score_s,
        network_s=network_s,
        finalist_epoch_s=mean(_seconds_per_finalist_epoch(s, data, training, rng) for s in spaces),
        export_file_s=busy * EXPORT_FILE_S
        + EXPORT_SCORES * score_s * len(data.test) / len(data.search),
        moments_s=moments_s,
    )


def _busy_factor() -> float:
    """Return the time that a thread takes now over its processor time, because of other programs.

    What is not measured, but known from a quiet machine, takes so many times longer.
    """
    start, start_cpu = time.perf_counter(), time.thread_time()
    while time.perf_counter() - start < _BUSY_SECONDS:
        pass
    return (time.perf_counter() - start) / max(time.thread_time() - start_cpu, 1e-3)


def _table_seconds(runtime: Runtime, missing: Sequence[Kernel], dispatch_s: float) -> float:
    """Return the time to complete the latency table, from a few of the missing kernels.

    Args:
        runtime: the runtime.
        missing: the kernels that the table lacks.
        dispatch_s: seconds to time the dispatch costs; 0 if the table has them.
    """
    from nas.latency.build_estimate import estimate_build_with

    seconds = 0.0
    if missing:
        estimate = estimate_build_with(missing, runtime)
        if estimate.estimated_seconds is None:
            raise MeasurementError(estimate.reason, remedy="`nas doctor` says what works.")
        seconds = estimate.estimated_seconds
        seconds += _disturbed_s(runtime)
    return seconds + dispatch_s


def _disturbed_s(runtime: Runtime) -> float:
    """Return the seconds of the further moments until the timings of all kernels or networks agree.

    None are needed if latencies are always the same.
    """
    if runtime.moments == 1:
        return 0.0
    return timing.SECONDS_BETWEEN_MOMENTS * runtime.moments * (_EXPECTED_MOMENTS - 1)


def _calibration_seconds(runtime: Runtime, network_s: float, moments_s: float) -> float:
    """Return the time to fit the correction of the table's predictions."""
    from nas.latency.calibration import MIN_NETWORKS
    from nas.latency.record import MEASURED

    # Some kernels are timed beside the networks, and take about as long to compile as a network.
    seconds = (MIN_NETWORKS + 1) * network_s + moments_s
    return seconds if runtime.network_basis == MEASURED else 0.0


def _seconds_per_network(
    runtime: Runtime, spaces: Sequence[SearchSpace], rng: np.random.Generator, batch: int
) -> tuple[float, float]:
    """Return the time to compile a network, and the time to draw those of a calibration.

    Blocks are compiled, because the kernels of a whole network take longer to time.
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
    for index in rng.permutation(len(blocks)):
        own = list(dict.fromkeys(runtime.kernels(blocks[index], batch)))
        schedules = {kernel: runtime.time_kernel(kernel)[0] for kernel in own}
        # The first compilation also loads parts of the compiler.
        for _ in range(1 if seconds else 2):
            start = time.perf_counter()
            runtime.compile(blocks[index], schedules, batch=batch)
            block_s = time.perf_counter() - start
        seconds.append(block_s)
        compiled += len(own)
        if compiled >= _COMPILED_KERNELS:
            break
    return mean(kernels) * sum(seconds) / compiled, draws_s


def _seconds_per_epoch(space: SearchSpace, data: ImageDataset, training: TrainingSettings) -> float:
    """Return the time to train a supernet for one epoch."""
    from nas.supernet import measure_step

    return measure_step(space, data, training, seconds=_TIMED_SECONDS).epoch_seconds


def _seconds_per_score(
    space: SearchSpace, data: ImageDataset, rng: np.random.Generator, seed: int
) -> float:
    """Return the time to score an architecture with an untrained supernet.

    Each is scored twice, and the second time counts: torch takes up to a second to choose its code
    for a layer of a new shape, which a search pays only a few times.
    """
    import torch

    from nas.supernet import Supernet, evaluate

    supernet = Supernet(space, torch.Generator().manual_seed(seed))
    durations: list[float] = []
    while len(durations) < _TIMED_STEPS or sum(durations) < _TIMED_SECONDS / 2:
        architecture = space.sample(rng, uniform_over="choices")
        evaluate(supernet, [architecture], data)
        start = time.perf_counter()
        evaluate(supernet, [architecture], data)
        durations.append(time.perf_counter() - start)
    return mean(durations)


def _seconds_per_finalist_epoch(
    space: SearchSpace, data: ImageDataset, training: TrainingSettings, rng: np.random.Generator
) -> float:
    """Return the time to train a rather large network for one epoch with a teacher."""
    from nas.deploy.retrain import finetuning_settings
    from nas.supernet.distillation import Teacher
    from nas.supernet.standalone import NetworkTrainer
    from nas.torch_network import to_torch

    graphs = [space.sample(rng, uniform_over="choices").graph for _ in range(_SAMPLED_NETWORKS)]
    # Finalists are the most accurate network of the front, which is large, and others.
    graph = sorted(graphs, key=lambda each: each.macs)[3 * _SAMPLED_NETWORKS // 4]
    teacher = Teacher.of_network(to_torch(space.largest.graph))
    settings = finetuning_settings(training, epochs=_FINALIST_EPOCHS)
    trainer = NetworkTrainer(graph, data, settings, seed=0, teacher=teacher)
    durations: list[float] = []
    while len(durations) < trainer.steps and (
        len(durations) < _TIMED_STEPS + _WARM_UP_STEPS
        or sum(durations[_WARM_UP_STEPS:]) < _TIMED_SECONDS
    ):
        start = time.perf_counter()
        trainer.step(len(durations))
        durations.append(time.perf_counter() - start)
    return mean(durations[_WARM_UP_STEPS:] or durations) * trainer.steps / _FINALIST_EPOCHS
