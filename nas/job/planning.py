"""JobPlan how many epochs and trials a job does: from its file, or from what its budget allows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nas.errors import JobFileError
from nas.job.settings import JobSettings
from nas.records import JobPlan

if TYPE_CHECKING:
    from nas.data import ImageDataset
    from nas.latency.kernel import Kernel
    from nas.latency.runtime import Runtime
    from nas.space import SearchSpace
    from nas.supernet import TrainingSettings

MAX_EPOCHS = 200
"""Most epochs of one supernet that a budget is spent on. A job file can ask for more."""

MAX_TRIALS = 2000
"""Most trials that a budget is spent on. A job file can ask for more."""

MIN_TRIALS_PER_SPACE = 20
"""Fewest trials that a budget is planned with, for each space."""

TRAINING_SHARE = 0.75
"""Share of training in what the latency table and the finish leave of a budget."""

TIMINGS_PER_NETWORK = 2
"""Timings of a whole network until two agree, on a quiet machine."""

_TIMED_KERNELS = 3
"""Kernels that are timed to estimate the time of one."""

_SAMPLED_NETWORKS = 16
"""Networks of each space that are sampled to estimate how many kernels a network has."""


@dataclass(frozen=True)
class StageCosts:
    """Seconds of the units of work of a job, measured on this machine.

    Args:
        kernel_s: seconds to find a kernel's schedule and to time it twice.
        epoch_s: seconds of one epoch of each space's supernet.
        trial_s: seconds to score one architecture.
        network_s: seconds to compile and time one whole network.
    """

    kernel_s: float
    epoch_s: Mapping[str, float]
    trial_s: float
    network_s: float


def fixed_plan(
    settings: JobSettings, spaces: Sequence[str], missing_kernels: int
) -> JobPlan | None:
    """Return the plan of a job whose file sets epochs and trials; None if it sets not both.

    Such a plan needs no measurement.
    """
    epochs, trials = settings.training.epochs, settings.search.trials
    if epochs is None or trials is None:
        return None
    return JobPlan(
        kernels=missing_kernels,
        epochs=dict.fromkeys(spaces, epochs),
        trials=trials,
        measure=settings.finish.measure,
        seconds={},
    )


def estimate_plan(settings: JobSettings, missing_kernels: int, costs: StageCosts) -> JobPlan:
    """Share the budget among the stages. Epochs and trials of the job file stay as they are.

    Args:
        settings: the settings of the job.
        missing_kernels: number of kernels that the latency table lacks.
        costs: seconds of the units of work.

    Raises:
        JobFileError: the latency table and the finish alone need more than the budget, and the
            number of epochs or trials depends on the budget.
    """
    table_s = missing_kernels * costs.kernel_s
    finish_s = settings.finish.measure * TIMINGS_PER_NETWORK * costs.network_s
    fixed_epochs, fixed_trials = settings.training.epochs, settings.search.trials
    left_s = settings.budget_s - table_s - finish_s
    if left_s <= 0 and None in (fixed_epochs, fixed_trials):
        raise JobFileError(
            f"The budget {settings.budget} is too short: the latency table takes about "
            f"{table_s / 60:.1f} min and timing the front {finish_s / 60:.1f} min.",
            remedy="Give a longer budget or smaller spaces, or set training.epochs and "
            "search.trials.",
        )
    names = list(costs.epoch_s)
    if fixed_epochs is None:
        reserved_s = 0.0 if fixed_trials is None else fixed_trials * costs.trial_s
        share = TRAINING_SHARE if fixed_trials is None else 1
        training_s = max(left_s - reserved_s, 0) * share
        epochs = {
            name: int(np.clip(training_s / len(names) / costs.epoch_s[name], 1, MAX_EPOCHS))
            for name in names
        }
    else:
        epochs = dict.fromkeys(names, fixed_epochs)
    training_s = sum(epochs[name] * costs.epoch_s[name] for name in names)
    trials = fixed_trials
    if trials is None:
        fewest = MIN_TRIALS_PER_SPACE * len(names)
        trials = int(np.clip((left_s - training_s) / costs.trial_s, fewest, MAX_TRIALS))
    return JobPlan(
        kernels=missing_kernels,
        epochs=epochs,
        trials=trials,
        measure=settings.finish.measure,
        seconds={
            "table": round(table_s, 1),
            "supernets": round(training_s, 1),
            "search": round(trials * costs.trial_s, 1),
            "finish": round(finish_s, 1),
        },
    )


def measure_stage_costs(
    spaces: Sequence[SearchSpace],
    data: ImageDataset,
    training: TrainingSettings,
    runtime: Runtime,
    missing: Sequence[Kernel],
    *,
    seed: int,
    batch: int = 1,
) -> StageCosts:
    """Time a little of each stage. Nothing that is measured enters a table or a score.

    Args:
        spaces: the search spaces of the job.
        data: the images of the job.
        training: settings of supernet training.
        runtime: the runtime of the job.
        missing: kernels that the latency table lacks.
        seed: seed of the networks and kernels that are drawn.
        batch: number of images that run at once.
    """
    import torch

    from nas.supernet import Supernet, evaluate, measure_step

    rng = np.random.default_rng(seed)
    epoch_s: dict[str, float] = {}
    trial_s: list[float] = []
    for space in spaces:
        step = measure_step(space, data, training)
        epoch_s[space.name] = step.seconds * step.steps_per_epoch
        supernet = Supernet(space, torch.Generator().manual_seed(seed))
        architectures = [space.sample(rng, uniform_over="choices") for _ in range(3)]
        evaluate(supernet, architectures[:1], data)
        start = time.perf_counter()
        evaluate(supernet, architectures[1:], data)
        trial_s.append((time.perf_counter() - start) / 2)
    kernel_s = _seconds_per_kernel(runtime, missing, rng)
    kernels_per_network = np.mean(
        [
            len(set(runtime.kernels(space.sample(rng, uniform_over="choices").graph, batch)))
            for space in spaces
            for _ in range(_SAMPLED_NETWORKS)
        ]
    )
    compile_s = _seconds_per_kernel_of_network(runtime, spaces[0], rng, batch)
    return StageCosts(
        kernel_s=kernel_s,
        epoch_s=epoch_s,
        trial_s=float(np.mean(trial_s)),
        network_s=compile_s * float(kernels_per_network),
    )


def _seconds_per_kernel(
    runtime: Runtime, missing: Sequence[Kernel], rng: np.random.Generator
) -> float:
    """Return the mean time to time a kernel twice, from a few of the missing ones."""
    if not missing:
        return 0.0
    chosen = rng.choice(len(missing), size=min(_TIMED_KERNELS, len(missing)), replace=False)
    start = time.perf_counter()
    for position in chosen:
        schedule, _ = runtime.time_kernel(missing[position])
        runtime.retime_kernel(missing[position], schedule)
    return (time.perf_counter() - start) / len(chosen)


def _seconds_per_kernel_of_network(
    runtime: Runtime, space: SearchSpace, rng: np.random.Generator, batch: int
) -> float:
    """Return the time to compile and time a network, divided by its kernels, from one block."""
    from nas.latency.timing import measure

    blocks = list(space.block_graphs())
    block = blocks[int(rng.integers(len(blocks)))]
    kernels = list(dict.fromkeys(runtime.kernels(block, batch)))
    schedules = {kernel: runtime.time_kernel(kernel)[0] for kernel in kernels}
    start = time.perf_counter()
    measure(runtime.compile(block, schedules, batch=batch).evaluate)
    return (time.perf_counter() - start) / len(kernels)
