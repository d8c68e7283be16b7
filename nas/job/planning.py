"""How much of everything a job does: what its file says, and what its budget leaves room for."""

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
MAX_TRIALS = 2000
"""What a budget buys at most; a job file can ask for more."""

TRAINING_SHARE = 0.75
"""Of what the table and the finish leave of a budget; the search has the rest."""

LEAST_TIMINGS = 2
"""Timings of a whole network until two agree, on a quiet machine."""

_TIMED_KERNELS = 3
_SPREAD_NETS = 16


@dataclass(frozen=True)
class Pace:
    """Quick measurements on this machine, in seconds.

    `kernel` to tune and time one kernel, `epoch` of each space's supernet, `trial` to score one
    architecture, `network` to compile and time one whole network.
    """

    kernel: float
    epoch: Mapping[str, float]
    trial: float
    network: float


def settled(settings: JobSettings, spaces: Sequence[str], missing_kernels: int) -> JobPlan | None:
    """The plan of a job whose file sets epochs and trials itself, so that nothing is measured."""
    epochs, trials = settings.training.epochs, settings.search.trials
    if epochs is None or trials is None:
        return None
    by_space = dict.fromkeys(spaces, epochs)
    return JobPlan(
        kernels=missing_kernels,
        epochs=by_space,
        trials=trials,
        measure=settings.finish.measure,
        seconds={},
    )


def planned(settings: JobSettings, missing_kernels: int, pace: Pace) -> JobPlan:
    """Shares the budget out; epochs and trials that the job file sets stay as they are.

    Raises JobFileError if the table and the finish alone need more than the budget while epochs or
    trials depend on it.
    """
    table = missing_kernels * pace.kernel
    finish = settings.finish.measure * LEAST_TIMINGS * pace.network
    epochs_set, trials_set = settings.training.epochs, settings.search.trials
    left = settings.budget_s - table - finish
    if left <= 0 and None in (epochs_set, trials_set):
        raise JobFileError(
            f"The budget {settings.budget} is too short: the latency table takes about "
            f"{table / 60:.1f} min and timing the front {finish / 60:.1f} min.",
            remedy="Give a longer budget or smaller spaces, or set training.epochs and "
            "search.trials.",
        )
    names = list(pace.epoch)
    if epochs_set is None:
        reserved = 0.0 if trials_set is None else trials_set * pace.trial
        training = max(left - reserved, 0) * (TRAINING_SHARE if trials_set is None else 1)
        epochs = {
            name: int(np.clip(training / len(names) / pace.epoch[name], 1, MAX_EPOCHS))
            for name in names
        }
    else:
        epochs = dict.fromkeys(names, epochs_set)
    training_s = sum(epochs[name] * pace.epoch[name] for name in names)
    trials = trials_set
    if trials is None:
        trials = int(np.clip((left - training_s) / pace.trial, 20 * len(names), MAX_TRIALS))
    return JobPlan(
        kernels=missing_kernels,
        epochs=epochs,
        trials=trials,
        measure=settings.finish.measure,
        seconds={
            "table": round(table, 1),
            "supernets": round(training_s, 1),
            "search": round(trials * pace.trial, 1),
            "finish": round(finish, 1),
        },
    )


def measure_pace(
    spaces: Sequence[SearchSpace],
    data: ImageDataset,
    training: TrainingSettings,
    runtime: Runtime,
    missing: Sequence[Kernel],
    *,
    seed: int,
    batch: int = 1,
) -> Pace:
    """Times a little of each stage; nothing that it measures enters a table or a score."""
    import torch

    from nas.supernet import Supernet, evaluate, measure_step

    rng = np.random.default_rng(seed)
    epoch, trial = {}, []
    for space in spaces:
        step = measure_step(space, data, training)
        epoch[space.name] = step.seconds * step.steps_per_epoch
        supernet = Supernet(space, torch.Generator().manual_seed(seed))
        architectures = [space.sample(rng, uniform_over="choices") for _ in range(3)]
        evaluate(supernet, architectures[:1], data)
        start = time.perf_counter()
        evaluate(supernet, architectures[1:], data)
        trial.append((time.perf_counter() - start) / 2)
    kernel = _kernel_seconds(runtime, missing, rng)
    launched = np.mean(
        [
            len(set(runtime.kernels(space.sample(rng, uniform_over="choices").graph, batch)))
            for space in spaces
            for _ in range(_SPREAD_NETS)
        ]
    )
    return Pace(
        kernel=kernel,
        epoch=epoch,
        trial=float(np.mean(trial)),
        network=_network_seconds(runtime, spaces[0], rng, batch) * float(launched),
    )


def _kernel_seconds(runtime: Runtime, missing: Sequence[Kernel], rng: np.random.Generator) -> float:
    """Mean time to tune a kernel and time it twice, of a few spread over the missing ones."""
    if not missing:
        return 0.0
    chosen = rng.choice(len(missing), size=min(_TIMED_KERNELS, len(missing)), replace=False)
    start = time.perf_counter()
    for position in chosen:
        schedule, _ = runtime.time_kernel(missing[position])
        runtime.retime_kernel(missing[position], schedule)
    return (time.perf_counter() - start) / len(chosen)


def _network_seconds(
    runtime: Runtime, space: SearchSpace, rng: np.random.Generator, batch: int
) -> float:
    """Time a kernel to compile and time a whole network, from one block compiled by itself."""
    from nas.latency.timing import measure

    fragments = list(space.block_graphs())
    fragment = fragments[int(rng.integers(len(fragments)))]
    kernels = list(dict.fromkeys(runtime.kernels(fragment, batch)))
    schedules = {kernel: runtime.time_kernel(kernel)[0] for kernel in kernels}
    start = time.perf_counter()
    measure(runtime.compile(fragment, schedules, batch=batch).evaluate)
    return (time.perf_counter() - start) / len(kernels)
