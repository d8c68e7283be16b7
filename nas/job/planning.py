"""Plans how much each stage of a job does: by its file, or by what its budget allows.

The search is planned with the trials that it is expected to need, not with those that fit: its
model ends it (see `nas.search.stopping`). The supernets and the finalists share what is left. After
the front was measured, `plan_finalists_again` gives the finalists the time that is really left.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING

import numpy as np

from nas.errors import JobFileError, MeasurementError
from nas.job.settings import JobSettings
from nas.records import JobPlan

if TYPE_CHECKING:
    from nas.data import ImageDataset
    from nas.latency.kernel import Kernel
    from nas.latency.runtime import Runtime
    from nas.space import SearchSpace
    from nas.supernet import TrainingSettings

MAX_EPOCHS = 200
"""Most epochs of one network that a budget is spent on. A job file can ask for more."""

MIN_EPOCHS = 0.1
"""Fewest epochs that a supernet is planned with."""

MAX_TRIALS = 2000
"""Most trials that a budget is spent on. A job file can ask for more."""

MIN_TRIALS_PER_SPACE = 20
"""Fewest trials that a budget is planned with, for each space."""

EXPECTED_TRIALS = 300
"""Trials after which the model is expected to end a search; 100 to 400 in docs/search.md."""

SEARCH_SHARE = 0.25
"""Largest share of a search in what the latency table and the measuring leave of a budget."""

FINALISTS_SHARE = 0.4
"""Share of the finalists in what these stages and the search leave, the supernets have the rest."""

FINALIST_EPOCHS = 30
"""Epochs of a finalist for which a budget pays before it pays for a further finalist."""

MIN_FINALISTS = 3
"""Fewest finalists of a job of at least `LONG_JOB_S`, so that the user has a choice."""

MAX_FINALISTS = 5
"""Most finalists that a budget is spent on. A job file can ask for more."""

LONG_JOB_S = 3600.0
"""Budget in seconds of a job that trains several finalists; a shorter one trains at least one."""

MIN_SHARE_OF_PLANNED_EPOCHS = 0.5
"""Share of a finalist's planned epochs that it gets although earlier stages took their time."""

DISPATCH_S = 45.0
"""Seconds to time the dispatch costs with TVM on a quiet machine.

A table that lacks them cannot be planned for without this, because timing them takes as long.
"""

EXPORT_FILE_S = 12.0
"""Seconds to export, verify and time one file: all ten formats of a network shall take 120 s."""

MOMENTS_OF_NETWORK_S = 1.5
"""Seconds for which a whole network is timed at several moments, after it was compiled.

Eight networks are timed together, in about eight seconds and some more on a busy machine.
"""

_SAMPLED_NETWORKS = 16
"""Networks of each space that are sampled to estimate how many kernels a network has."""

_TIMED_STEPS = 3
"""Training steps of a finalist that are timed, after a warm-up step."""


@dataclass(frozen=True)
class StageCosts:
    """Seconds of the units of work of a job, measured on this machine.

    Args:
        table_s: seconds to time all kernels that the latency table lacks.
        epoch_s: seconds of one epoch of each space's supernet.
        trial_s: seconds to score one architecture.
        network_s: seconds to compile one whole network.
        finalist_epoch_s: seconds of one epoch of a finalist.
    """

    table_s: float
    epoch_s: Mapping[str, float]
    trial_s: float
    network_s: float
    finalist_epoch_s: float


def fixed_plan(
    settings: JobSettings, spaces: Sequence[str], missing_kernels: int
) -> JobPlan | None:
    """Return the plan of a job whose file sets epochs and trials; None if it sets not both.

    Such a plan needs no measurement. Its finalists are trained for as many epochs as the supernets.
    """
    epochs, trials = settings.training.epochs, settings.search.trials
    if epochs is None or trials is None:
        return None
    finalists = settings.finish.retrain
    return JobPlan(
        kernels=missing_kernels,
        epochs=dict.fromkeys(spaces, epochs),
        trials=trials,
        measure=settings.finish.measure,
        retrain=_fewest_finalists(settings) if finalists is None else finalists,
        retrain_epochs=epochs,
        seconds={},
    )


def estimate_plan(settings: JobSettings, missing_kernels: int, costs: StageCosts) -> JobPlan:
    """Share the budget among the stages. What the job file sets stays as it is.

    Args:
        settings: the settings of the job.
        missing_kernels: number of kernels that the latency table lacks.
        costs: seconds of the units of work.

    Raises:
        JobFileError: the latency table and measuring the front alone need more than the budget, and
            the number of epochs or trials depends on the budget.
    """
    measure_s = settings.finish.measure * (costs.network_s + MOMENTS_OF_NETWORK_S)
    left_s = settings.budget_s - costs.table_s - measure_s
    if left_s <= 0 and None in (settings.training.epochs, settings.search.trials):
        raise JobFileError(
            f"The budget {settings.budget} is too short: the latency table takes about "
            f"{costs.table_s / 60:.1f} min and timing the front {measure_s / 60:.1f} min.",
            remedy="Give a longer budget or smaller spaces, or set training.epochs and "
            "search.trials.",
        )
    trials, search_s = _plan_search(settings, left_s, costs)
    left_s -= search_s
    finalists_share = 0.0 if settings.finish.retrain == 0 else FINALISTS_SHARE
    epochs, supernet_s = _plan_supernets(settings, (1 - finalists_share) * left_s, costs)
    supernets_s = sum(epochs[name] * costs.epoch_s[name] for name in epochs)
    anchors_s = settings.search.anchors * sum(epochs.values()) * costs.finalist_epoch_s
    finalists, finalist_epochs = _plan_finalists(
        settings, left_s - supernets_s - anchors_s, costs.finalist_epoch_s
    )
    return JobPlan(
        kernels=missing_kernels,
        epochs=epochs,
        supernet_seconds=supernet_s,
        trials=trials,
        measure=settings.finish.measure,
        retrain=finalists,
        retrain_epochs=finalist_epochs,
        seconds={
            "table": round(costs.table_s, 1),
            "supernets": round(supernets_s, 1),
            **({"anchors": round(anchors_s, 1)} if anchors_s else {}),
            "search": round(search_s, 1),
            "measure": round(measure_s, 1),
            "finalists": round(finalists * finalist_epochs * costs.finalist_epoch_s, 1),
            "export": round(finalists * _export_seconds(settings), 1),
        },
    )


def plan_finalists_again(settings: JobSettings, plan: JobPlan, spent_s: float) -> JobPlan:
    """Return a plan whose finalists get the time that the other stages left of the budget.

    A search that its model ended early leaves more than was planned. Finalists get at least
    `MIN_SHARE_OF_PLANNED_EPOCHS` of their planned epochs.

    Args:
        settings: the settings of the job.
        plan: the plan of the job; one without an estimate stays as it is.
        spent_s: seconds that all other stages took.
    """
    planned_s = plan.seconds.get("finalists", 0.0)
    if not planned_s:
        return plan
    epoch_s = planned_s / (plan.retrain * plan.retrain_epochs)
    least_s = MIN_SHARE_OF_PLANNED_EPOCHS * planned_s + plan.retrain * _export_seconds(settings)
    left_s = max(settings.budget_s - spent_s, least_s)
    finalists, epochs = _plan_finalists(settings, left_s, epoch_s)
    seconds = {
        **plan.seconds,
        "finalists": round(finalists * epochs * epoch_s, 1),
        "export": round(finalists * _export_seconds(settings), 1),
    }
    update = {"retrain": finalists, "retrain_epochs": epochs, "seconds": seconds}
    return plan.model_copy(update=update)


def _plan_search(settings: JobSettings, left_s: float, costs: StageCosts) -> tuple[int, float]:
    """Return the largest number of trials, and the seconds that the search is expected to take."""
    search = settings.search
    trials = search.trials
    if trials is None:
        fewest = MIN_TRIALS_PER_SPACE * len(costs.epoch_s)
        trials = int(np.clip(SEARCH_SHARE * left_s / costs.trial_s, fewest, MAX_TRIALS))
    expected = min(trials, EXPECTED_TRIALS) if search.effective_stall == "auto" else trials
    seconds = expected * costs.trial_s
    return trials, seconds if search.minutes is None else min(seconds, 60 * search.minutes)


def _plan_supernets(
    settings: JobSettings, available_s: float, costs: StageCosts
) -> tuple[dict[str, float], float | None]:
    """Return the epochs of each space's supernet, and the time budget of each if there is one.

    All supernets are trained for the same time. Their anchors are paid from `available_s` as well.
    """
    names, training = list(costs.epoch_s), settings.training
    if training.epochs is not None:
        return dict.fromkeys(names, float(training.epochs)), None
    if training.minutes is not None:
        own_s = 60 * training.minutes
    else:
        shortest, longest = min(costs.epoch_s.values()), max(costs.epoch_s.values())
        # Anchors are trained for as many epochs as the supernet of their space.
        anchor_epoch_s = settings.search.anchors * costs.finalist_epoch_s
        supernets_and_anchors = sum(1 + anchor_epoch_s / each for each in costs.epoch_s.values())
        own_s = float(
            np.clip(
                available_s / supernets_and_anchors, MIN_EPOCHS * longest, MAX_EPOCHS * shortest
            )
        )
    return {name: round(own_s / costs.epoch_s[name], 2) for name in names}, own_s


def _plan_finalists(settings: JobSettings, available_s: float, epoch_s: float) -> tuple[int, int]:
    """Return the number of finalists that are trained and exported, and the epochs of each."""
    export_s = _export_seconds(settings)
    finalists = settings.finish.retrain
    if finalists is None:
        fewest = _fewest_finalists(settings)
        usual_s = FINALIST_EPOCHS * epoch_s + export_s
        finalists = int(np.clip(available_s / usual_s, fewest, MAX_FINALISTS))
    own_s = available_s / max(finalists, 1) - export_s
    return finalists, int(np.clip(own_s / epoch_s, 1, MAX_EPOCHS))


def _export_seconds(settings: JobSettings) -> float:
    """Return the time to export one network in the formats of the job."""
    return EXPORT_FILE_S * len(settings.finish.export)


def _fewest_finalists(settings: JobSettings) -> int:
    return MIN_FINALISTS if settings.budget_s >= LONG_JOB_S else 1


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

    Raises:
        MeasurementError: no kernel can be timed.
    """
    import torch

    from nas.latency.calibration import MIN_NETWORKS
    from nas.latency.record import MEASURED
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
    kernels_per_network = mean(
        len(set(runtime.kernels(space.sample(rng, uniform_over="choices").graph, batch)))
        for space in spaces
        for _ in range(_SAMPLED_NETWORKS)
    )
    network_s = kernels_per_network * _seconds_per_kernel_of_network(runtime, spaces[0], rng, batch)
    table_s = _table_seconds(runtime, missing, lacks_dispatch=lacks_dispatch)
    if missing and runtime.basis == MEASURED:
        table_s += MIN_NETWORKS * (network_s + MOMENTS_OF_NETWORK_S)
    return StageCosts(
        table_s=table_s,
        epoch_s=epoch_s,
        trial_s=mean(trial_s),
        network_s=network_s,
        finalist_epoch_s=mean(_seconds_per_finalist_epoch(s, data, training, rng) for s in spaces),
    )


def _table_seconds(runtime: Runtime, missing: Sequence[Kernel], *, lacks_dispatch: bool) -> float:
    """Return the time to complete the latency table, from a few of the missing kernels."""
    from nas.latency.build import DISPATCH_INTERVAL_SECONDS
    from nas.latency.build_estimate import estimate_build_with

    seconds = 0.0
    if missing:
        estimate = estimate_build_with(missing, runtime)
        if estimate.estimated_seconds is None:
            raise MeasurementError(estimate.reason, remedy="`nas doctor` says what works.")
        seconds = estimate.estimated_seconds
    if lacks_dispatch:
        # A build that times the dispatch costs times them again after every interval.
        seconds += DISPATCH_S * (1 + int(seconds / DISPATCH_INTERVAL_SECONDS))
    return seconds


def _seconds_per_finalist_epoch(
    space: SearchSpace, data: ImageDataset, training: TrainingSettings, rng: np.random.Generator
) -> float:
    """Return the time to train a random architecture for one epoch with a teacher."""
    from nas.deploy.retrain import finetuning_settings
    from nas.supernet.distillation import Teacher
    from nas.supernet.standalone import NetworkTrainer
    from nas.torch_network import to_torch

    graph = space.sample(rng, uniform_over="choices").graph
    teacher = Teacher.of_network(to_torch(space.largest.graph))
    settings = finetuning_settings(training, epochs=1)
    trainer = NetworkTrainer(graph, data, settings, seed=0, teacher=teacher)
    durations = []
    for step in range(_TIMED_STEPS + 1):
        start = time.perf_counter()
        trainer.step(step)
        durations.append(time.perf_counter() - start)
    return median(durations[1:]) * trainer.steps


def _seconds_per_kernel_of_network(
    runtime: Runtime, space: SearchSpace, rng: np.random.Generator, batch: int
) -> float:
    """Return the time to compile a network, divided by its kernels, from one block."""
    blocks = list(space.block_graphs())
    block = blocks[int(rng.integers(len(blocks)))]
    kernels = list(dict.fromkeys(runtime.kernels(block, batch)))
    schedules = {kernel: runtime.time_kernel(kernel)[0] for kernel in kernels}
    start = time.perf_counter()
    runtime.compile(block, schedules, batch=batch)
    return (time.perf_counter() - start) / len(kernels)
