"""Plans how much each stage of a job does: by its file, or by what its budget allows.

The search is planned with the trials that it is expected to need, not with those that fit: its
model ends it (see `nas.search.budget`). The supernets and the finalists share what is left. After
the front was measured, `plan_finalists_again` gives the finalists the time that is really left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from nas.data import ImageDataset
from nas.errors import JobFileError
from nas.job.inputs import needed_kernels
from nas.job.stage_costs import StageCosts, measure_stage_costs
from nas.latency import LatencyTable, Runtime, lacks_calibration
from nas.run.progress import JobProgress
from nas.run.record import JobPlan, describe_image_changes, describe_shift
from nas.run.settings import JobSettings
from nas.space import SearchSpace

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

FINALIST_PARTS = ("finalists", "export")
"""Parts of a plan whose time is that of its finalists."""

MIN_SHARE_OF_PLANNED_EPOCHS = 0.5
"""Share of a finalist's planned epochs that it gets although earlier stages took their time."""


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


def make_plan(
    settings: JobSettings,
    data: ImageDataset,
    spaces: Mapping[str, SearchSpace],
    runtime: Runtime,
    progress: JobProgress,
    *,
    opened_s: float,
    spent_on_table_s: float | None = None,
) -> JobPlan:
    """Return what a job would do and for how long, from quick measurements.

    Args:
        settings: the settings of the job.
        data, spaces, runtime: its images, spaces and opened runtime.
        progress: receives progress.
        opened_s: seconds that opening these took.
        spent_on_table_s: seconds that earlier starts of a run spent on its latency table; None for
            a job that starts. A run that goes on has a plan even if its budget is spent.
    """
    start = time.perf_counter()
    batch = settings.device.batch
    table = LatencyTable.find(settings.device.tables, runtime)
    kernels = needed_kernels(spaces.values(), runtime, batch)
    missing = kernels if table is None else table.missing(kernels)
    progress.begin("plan", "measurement")
    costs = measure_stage_costs(
        list(spaces.values()),
        data,
        settings.training.settings(),
        runtime,
        missing,
        seed=settings.seed,
        sampler=settings.search.sampler,
        batch=batch,
        lacks_dispatch=(bool(runtime.dispatch_parts) if table is None else table.lacks_dispatch()),
        lacks_calibration=table is None or lacks_calibration(table, spaces.values(), batch),
    )
    progress.advance(1, 1)
    if fixed_plan(settings, [], 0) is None:  # The job measures the costs itself.
        opened_s += time.perf_counter() - start
    costs = replace(costs, prepare_s=opened_s, table_s=costs.table_s + (spent_on_table_s or 0))
    plan = estimate_plan(settings, len(missing), costs, must_fit=spent_on_table_s is None)
    return plan.model_copy(update={"image_changes": planned_image_changes(settings, data)})


def needs_mirroring_experiment(settings: JobSettings, data: ImageDataset) -> bool:
    """Return whether neither the job nor the source says if training images are mirrored."""
    return settings.training.flip == "auto" and data.flip_preserves_class is None


def planned_image_changes(settings: JobSettings, data: ImageDataset) -> str:
    """Return how training images will be mirrored and shifted, without the full stop."""
    training = settings.training.settings()
    shift = training.resolve_shift(data)
    if needs_mirroring_experiment(settings, data):
        return (
            f"training images are {describe_shift(shift)}; an experiment at the start decides "
            "whether they are mirrored"
        )
    return describe_image_changes(training.resolve_flip(data), shift)


def estimate_plan(
    settings: JobSettings, missing_kernels: int, costs: StageCosts, *, must_fit: bool = True
) -> JobPlan:
    """Share the budget among the stages. What the job file sets stays as it is.

    Args:
        settings: the settings of the job.
        missing_kernels: number of kernels that the latency table lacks.
        costs: seconds of the units of work.
        must_fit: whether a budget that is too short is an error.

    Raises:
        JobFileError: the latency table and measuring the front alone need more than the budget, and
            the number of epochs or trials depends on the budget.
    """
    measure_s = costs.measuring_s(settings.finish.measure)
    left_s = settings.budget_s - costs.prepare_s - costs.table_s - measure_s
    if must_fit and left_s <= 0 and None in (settings.training.epochs, settings.search.trials):
        raise JobFileError(
            f"The budget {settings.budget} is too short: the latency table takes about "
            f"{costs.table_s / 60:.1f} min and timing the front {measure_s / 60:.1f} min.",
            remedy="Give a longer budget or smaller spaces, or set training.epochs and "
            "search.trials.",
        )
    trials, expected_trials, search_s = _plan_search(settings, left_s, costs)
    left_s -= search_s
    finalists_share = 0.0 if settings.finish.retrain == 0 else FINALISTS_SHARE
    epochs, supernet_s = _plan_supernets(settings, (1 - finalists_share) * left_s, costs)
    supernets_s = sum(epochs[name] * costs.epoch_s[name] for name in epochs)
    anchors_s = settings.search.anchors * sum(epochs.values()) * costs.network_epoch_s
    export_s = costs.export_file_s * len(settings.finish.export)
    fixed = fixed_plan(settings, list(epochs), missing_kernels)
    if fixed is None:
        finalists, finalist_epochs = _plan_finalists(
            settings, left_s - supernets_s - anchors_s, costs.finalists_epoch_s, export_s
        )
    else:
        finalists, finalist_epochs = fixed.retrain, fixed.retrain_epochs
    return JobPlan(
        kernels=missing_kernels,
        epochs=epochs,
        supernet_seconds=supernet_s,
        trials=trials,
        expected_trials=expected_trials,
        measure=settings.finish.measure,
        retrain=finalists,
        retrain_epochs=finalist_epochs,
        seconds={
            "prepare": round(costs.prepare_s, 3),
            "table": round(costs.table_s, 1),
            "supernets": round(supernets_s, 1),
            **({"anchors": round(anchors_s, 1)} if anchors_s else {}),
            "search": round(search_s, 1),
            "measure": round(measure_s, 1),
            "finalists": round(finalist_epochs * costs.finalists_epoch_s(finalists), 1),
            "export": round(finalists * export_s, 1),
        },
        export_file_s=round(costs.export_file_s, 2),
    )


def replan_numbers(settings: JobSettings, plan: JobPlan) -> JobPlan:
    """Return a plan with the numbers that the job file sets now, and all else as it was.

    Args:
        settings: the settings of the job.
        plan: an earlier plan, whose finalists need as much time each as those that are added.
    """
    trials, finalists = settings.search.trials, settings.finish.retrain
    update: dict[str, object] = {"measure": settings.finish.measure}
    if trials is not None:
        update |= {"trials": trials, "expected_trials": _expected_trials(settings, trials)}
    if finalists is not None and plan.retrain:
        share = finalists / plan.retrain
        scaled = {n: round(share * s, 1) for n, s in plan.seconds.items() if n in FINALIST_PARTS}
        update |= {"retrain": finalists, "seconds": {**plan.seconds, **scaled}}
    return plan.model_copy(update=update)


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

    def epoch_of_all_s(finalists: int) -> float:
        return finalists * epoch_s

    export_s = plan.export_file_s * len(settings.finish.export)
    least_s = MIN_SHARE_OF_PLANNED_EPOCHS * planned_s + plan.retrain * export_s
    left_s = max(settings.budget_s - spent_s, least_s)
    finalists, epochs = _plan_finalists(settings, left_s, epoch_of_all_s, export_s)
    seconds = {
        **plan.seconds,
        "finalists": round(finalists * epochs * epoch_s, 1),
        "export": round(finalists * export_s, 1),
    }
    update = {"retrain": finalists, "retrain_epochs": epochs, "seconds": seconds}
    return plan.model_copy(update=update)


def _plan_search(settings: JobSettings, left_s: float, costs: StageCosts) -> tuple[int, int, float]:
    """Return the largest number of trials, the expected one, and the seconds that these take."""
    search = settings.search
    trials = search.trials
    if trials is None:
        fewest = MIN_TRIALS_PER_SPACE * len(costs.epoch_s)
        trials = int(np.clip(SEARCH_SHARE * left_s / costs.trial_s, fewest, MAX_TRIALS))
    expected = _expected_trials(settings, trials)
    seconds = expected * costs.trial_s
    if search.minutes is not None and 60 * search.minutes < seconds:
        seconds = 60 * search.minutes
        expected = max(1, int(seconds / costs.trial_s))
    return trials, expected, seconds


def _expected_trials(settings: JobSettings, trials: int) -> int:
    """Return after how many of `trials` a search is expected to end."""
    ends_by_model = settings.search.effective_stall == "auto"
    return min(trials, EXPECTED_TRIALS) if ends_by_model else trials


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
        anchor_epoch_s = settings.search.anchors * costs.network_epoch_s
        supernets_and_anchors = sum(1 + anchor_epoch_s / each for each in costs.epoch_s.values())
        own_s = float(
            np.clip(
                available_s / supernets_and_anchors, MIN_EPOCHS * longest, MAX_EPOCHS * shortest
            )
        )
    return {name: round(own_s / costs.epoch_s[name], 2) for name in names}, own_s


def _plan_finalists(
    settings: JobSettings,
    available_s: float,
    epoch_s: Callable[[int], float],
    export_s: float,
) -> tuple[int, int]:
    """Return the number of finalists that are trained and exported, and the epochs of each.

    Args:
        settings: the settings of the job.
        available_s: seconds for training and exporting all of them.
        epoch_s: seconds of one epoch of each of a number of finalists.
        export_s: seconds to export one finalist.
    """

    def epochs(finalists: int) -> float:
        return (available_s - finalists * export_s) / epoch_s(finalists)

    finalists = settings.finish.retrain
    if finalists is None:
        fewest = _fewest_finalists(settings)
        affordable = [n for n in range(fewest, MAX_FINALISTS + 1) if epochs(n) >= FINALIST_EPOCHS]
        finalists = max(affordable, default=fewest)
    return finalists, int(np.clip(epochs(max(finalists, 1)), 1, MAX_EPOCHS))


def _fewest_finalists(settings: JobSettings) -> int:
    return MIN_FINALISTS if settings.budget_s >= LONG_JOB_S else 1
