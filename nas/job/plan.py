"""The plan of a job: what it would do and for how long, from measurements of a few seconds.

It follows the rule by which a running job shares its budget, see `nas.job.planning`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from nas.data import ImageDataset
from nas.display.formatting import format_duration
from nas.errors import BudgetError, KernelError, MeasurementError
from nas.figures import COUNTS
from nas.job import planning
from nas.job.inputs import needed_kernels
from nas.job.objectives import LATENCY, count
from nas.latency import Kernel, LatencyTable, Runtime
from nas.latency.build_estimate import estimate_build_with
from nas.latency.kit import KitDevice
from nas.machine.torch_device import resolve_device
from nas.run.objectives import run_objectives
from nas.run.progress import JobProgress
from nas.run.record import describe_image_changes, describe_shift
from nas.run.settings import JobSettings
from nas.search.feasibility import idle_limits
from nas.search.objectives import Infeasible, Objective, Score
from nas.space import Architecture, SearchSpace
from nas.supernet.settings import default_batch_size
from nas.supernet.sharding import count_shards
from nas.supernet.training import measure_supernet_epoch
from nas.supernet.weights import Supernet

_TIMED_SECONDS = 0.3
"""Duration of the training of a supernet that is timed, at least."""

_TIMED_MACS = 1_000_000_000
"""Multiply-accumulates of the largest network in a step that is timed: steps of more are timed with
fewer images, and on one thread."""


@dataclass(frozen=True)
class JobPlan:
    """What a job will do, as far as it can be known beforehand.

    Attributes:
        kernels: number of kernels to compile and time.
        uncertain: number of those for which there is no time to wait until their timings agree.
        epochs: number of training epochs by space.
        trials: number of architectures after which the search is expected to end.
        score_images: number of validation images that score an architecture.
        measure: number of whole networks to time.
        retrain: number of finalists; the smallest one if the time decides.
        references: number of published networks; the largest one if time and latencies decide.
        seconds: expected duration by stage.
        data: what was understood of the images, in one line.
        image_size: height and width of the images in pixels.
        image_changes: what happens to training images.
        idle_limits: a sentence for each limit that excludes no architecture.
        timed_by: what times kernels and networks: `this machine`, which reaches the device, or `a
            kit`, whose time on the device is not a part of the job's.
    """

    kernels: int
    uncertain: int
    epochs: dict[str, float]
    trials: int
    score_images: int
    measure: int
    retrain: int
    references: int
    seconds: dict[str, float]
    data: str
    image_size: int
    image_changes: str
    idle_limits: list[str]
    timed_by: Literal["this machine", "a kit"]


def make_plan(
    settings: JobSettings,
    data: ImageDataset,
    spaces: Mapping[str, SearchSpace],
    runtimes: Sequence[Runtime],
    progress: JobProgress,
    prepare_s: float,
) -> JobPlan:
    """Return what a job would do and for how long, from measurements of a few seconds.

    Args:
        settings: the settings of the job.
        data, spaces, runtimes: its images, spaces and opened runtimes, one for each dtype.
        progress: receives progress.
        prepare_s: seconds that opening these took.

    Raises:
        JobFileError: the budget is too short for the latency table.
        MeasurementError: no kernel can be timed.
    """
    progress.begin("plan", "measurement")
    steps = len(spaces) + 2
    planner = _Planner(settings, data, spaces, runtimes, {planning.PREPARE: prepare_s})
    planner.plan_table()
    progress.advance(1, steps)
    untrained = [
        Supernet(space, torch.Generator().manual_seed(settings.seed)) for space in spaces.values()
    ]
    score = planning.score_cost(untrained, data, settings.seed)
    progress.advance(2, steps)
    epoch_s = {}
    for done, (name, space) in enumerate(spaces.items(), start=3):
        epoch_s[name] = _epoch_s(space, data, settings)
        progress.advance(done, steps)
    epochs = planner.plan_training(epoch_s)
    images, trials = planner.plan_search(score)
    finalists, references = planner.plan_finish(epoch_s)
    return JobPlan(
        kernels=planner.kernels,
        uncertain=planner.uncertain,
        epochs={name: round(each, 2) for name, each in epochs.items()},
        trials=trials,
        score_images=images,
        measure=settings.finish.measure,
        retrain=finalists,
        references=references,
        seconds={name: round(each, 1) for name, each in planner.seconds.items()},
        data=data.summary,
        image_size=data.image_size,
        image_changes=planned_image_changes(settings, data),
        idle_limits=planner.idle_limits(),
        timed_by="a kit" if planner.has_kit else "this machine",
    )


@dataclass
class _Planner:
    """Plans the stages of a job in their order.

    Attributes:
        settings, data, spaces, runtimes: see `make_plan`.
        seconds: expected duration by stage, of those that are planned.
        kernels, uncertain: see `JobPlan`.
        table: the latency table of the last runtime, as far as it is there; None without any.
        slowest_us: latency of the slowest of the kernels that were timed because a table lacks
            them; 0 if none does.
    """

    settings: JobSettings
    data: ImageDataset
    spaces: Mapping[str, SearchSpace]
    runtimes: Sequence[Runtime]
    seconds: dict[str, float]
    kernels: int = 0
    uncertain: int = 0
    slowest_us: float = 0.0
    table: LatencyTable | None = None

    @property
    def has_kit(self) -> bool:
        """Whether the device is timed by kits."""
        return isinstance(self.runtimes[0], KitDevice)

    def _share_s(self, stage: str) -> float:
        return planning.share_s(self.settings, stage, sum(self.seconds.values()))

    def plan_table(self) -> None:
        """Plan the latency tables, from the timings of a few kernels that they lack."""
        most_s = planning.KERNELS_SHARE * self._share_s(planning.TABLE) / len(self.runtimes)
        settings, table_s = self.settings, 0.0
        for runtime in self.runtimes:
            self.table = LatencyTable.find(settings.device.tables, runtime)
            kernels = needed_kernels(self.spaces.values(), runtime, settings.device.batch)
            missing = _missing_kernels(self.table, kernels)
            if not missing or self.has_kit:
                self.kernels += len(missing)
                continue
            estimate = estimate_build_with(missing, runtime)
            own_s, first_s = estimate.estimated_seconds, estimate.first_seconds
            if own_s is None:
                raise MeasurementError(estimate.reason, remedy="`nas doctor` says what works.")
            if own_s > max(most_s, first_s):
                untimed = min(1.0, (own_s - most_s) / (own_s - first_s))
                self.uncertain += round(len(missing) * untimed)
                own_s = max(most_s, first_s)
            self.kernels += len(missing)
            self.slowest_us = max(self.slowest_us, estimate.slowest_us)
            table_s += own_s + runtime.dispatch_seconds
        prepare_s = self.seconds[planning.PREPARE]
        if prepare_s + table_s > (1 - planning.MIN_REST) * settings.budget_s:
            raise too_short_error(settings, self.spaces, self.table, runtime, prepare_s, table_s)
        self.seconds[planning.TABLE] = table_s

    def plan_training(self, epoch_s: Mapping[str, float]) -> dict[str, float]:
        """Plan the supernets and their anchors, and return the epochs by space.

        Args:
            epoch_s: seconds of an epoch of each supernet.
        """
        settings, length = self.settings, self.settings.training.length or {}
        own_s = planning.supernet_s(settings, sum(self.seconds.values()), len(epoch_s))
        if "minutes" in length:
            own_s = min(60 * length["minutes"], own_s)
        epochs = {
            name: min(length.get("epochs", math.inf), own_s / each)
            for name, each in epoch_s.items()
        }
        self.seconds[planning.SUPERNETS] = sum(
            epochs[name] * each for name, each in epoch_s.items()
        )
        if settings.anchors:
            self.seconds[planning.ANCHORS] = (
                self.seconds[planning.SUPERNETS] * planning.ANCHOR_COST * settings.anchors
            )
        return epochs

    def plan_search(self, score: tuple[float, float]) -> tuple[int, int]:
        """Plan the search, and return its images of a score and its trials.

        Args:
            score: seconds that a score takes in any case, and those of each image.
        """
        settings, search_s = self.settings.search, self._share_s(planning.SEARCH)
        images = planning.fitting_images(
            score, search_s, planning.MIN_SCORES, len(self.data.search)
        )
        trial_s = score[0] + images * score[1] + planning.PROPOSAL_S
        wanted = settings.trials or math.inf
        if settings.effective_stall == "auto":
            wanted = min(wanted, planning.MIN_SCORES)
        trials = max(1, int(min(wanted, search_s / trial_s)))
        self.seconds[planning.SEARCH] = trials * trial_s
        return images, trials

    def plan_finish(self, epoch_s: Mapping[str, float]) -> tuple[int, int]:
        """Plan the stages after the search, and return the finalists and published networks.

        Args:
            epoch_s: see `plan_training`.
        """
        settings, finish = self.settings, self.settings.finish
        measure_s = 0.0 if self.has_kit else planning.NETWORK_S * finish.measure
        self.seconds[planning.MEASURE] = min(self._share_s(planning.MEASURE), measure_s)
        finalists = planning.fewest_finalists(settings)
        references = len(planning.possible_references(settings, self.spaces)) if finalists else 0
        both_s = self._share_s(planning.FINALISTS) if finalists else 0.0
        if (most_epochs := settings.training.epochs) is not None:
            # The epochs of the supernets are the most of the finalists, too.
            mean_s = planning.NETWORK_COST * float(np.mean(list(epoch_s.values())))
            most = planning.most_finalists(settings) + references
            both_s = min(both_s, most * (most_epochs * mean_s + planning.EXPORT_S))
        self.seconds[planning.FINALISTS] = both_s
        if references:
            own_s = both_s * references / (finalists + references)
            if finish.references is None:
                own_s = min(own_s, planning.REFERENCES_SHARE * settings.budget_s)
            self.seconds[planning.FINALISTS] -= own_s
            self.seconds[planning.REFERENCES] = own_s
        return finalists, references

    def idle_limits(self) -> list[str]:
        """Return what `nas.search.feasibility.idle_limits` says before the table is complete.

        No network is assumed to be slower than if each of its kernels took `slowest_us`.
        """
        latency, *others = run_objectives(self.settings.search, ())
        objectives = [
            Objective.of_each(figure.name, partial(count, figure.name), cheap=True, limit=limit)
            for figure, limit, _ in others
            if figure.name in COUNTS and limit is not None
        ]
        # Nothing is known of the latencies on a device that has not timed its kernels.
        if latency.limit is not None and not (self.has_kit and self.kernels):
            limit_us = 1000 * latency.limit
            objectives.append(Objective.of_each(LATENCY, self._predict, cheap=True, limit=limit_us))
        return idle_limits(list(self.spaces.values()), objectives, self.settings.seed)

    def _predict(self, architecture: Architecture) -> Score:
        batch = self.settings.device.batch
        if self.table is None or self.slowest_us:
            return self.slowest_us * len(self.runtimes[-1].kernels(architecture.graph, batch))
        try:
            return self.table.predict(architecture, batch).latency_us
        except KernelError as error:
            return Infeasible(error.message)


def too_short_error(
    settings: JobSettings,
    spaces: Mapping[str, SearchSpace],
    table: LatencyTable | None,
    runtime: Runtime,
    prepare_s: float,
    table_s: float,
) -> BudgetError:
    """Return the error for a budget of which the latency table leaves too little.

    Args:
        settings: the settings of the job.
        spaces: its spaces by name.
        table: its latency table; None if there is none yet.
        runtime: its runtime.
        prepare_s: seconds before the table.
        table_s: seconds that the table takes.
    """
    batch = settings.device.batch
    missing = {
        name: set(_missing_kernels(table, needed_kernels([space], runtime, batch)))
        for name, space in spaces.items()
    }
    available_s = (1 - planning.MIN_REST) * settings.budget_s - prepare_s
    kernel_s = table_s / max(1, len(set().union(*missing.values())))
    fitting: dict[str, set[Kernel]] = {}
    for name in sorted(missing, key=lambda each: len(missing[each])):
        if kernel_s * len(missing[name].union(*fitting.values())) <= available_s:
            fitting[name] = missing[name]
    smallest = f"{math.ceil((prepare_s + table_s) / (1 - planning.MIN_REST) / 60)}m"
    spaces_text = f"[[space]] {' and '.join(fitting)} alone would fit. " if fitting else ""
    return BudgetError(
        f"The budget {settings.budget} is too short: the latency table of {', '.join(spaces)} "
        f"takes about {format_duration(table_s)}, and the rest of the job needs time as well.",
        remedy=f'The smallest budget that works is "{smallest}". {spaces_text}A second job on '
        "this device finds the latency table, and needs less.",
        smallest=smallest,
    )


def _missing_kernels(table: LatencyTable | None, kernels: list[Kernel]) -> list[Kernel]:
    """Return the kernels that a latency table lacks; all without a table."""
    return kernels if table is None else table.missing(kernels)


def planned_image_changes(settings: JobSettings, data: ImageDataset) -> str:
    """Return how training images will be mirrored and shifted, without the full stop."""
    training = settings.training.settings()
    shift = training.resolve_shift(data)
    if planning.needs_mirroring_experiment(settings, data):
        return (
            f"training images are {describe_shift(shift)}; an experiment at the start decides "
            "whether they are mirrored"
        )
    return describe_image_changes(training.resolve_flip(data), shift)


def _epoch_s(space: SearchSpace, data: ImageDataset, settings: JobSettings) -> float:
    """Return the time to train a supernet for one epoch."""
    device, macs = resolve_device(settings.training.device), space.largest.macs
    training = settings.training.settings(batch_size=default_batch_size(device))
    batch = min(training.batch_size, len(data.train))
    images = batch if device.type == "cuda" else min(batch, max(4, _TIMED_MACS // macs))
    timed = replace(training, batch_size=images)
    epoch_s = measure_supernet_epoch(space, data, timed, seconds=_TIMED_SECONDS)
    shards = (count_shards(each, macs, device) for each in (images, batch))
    at_once, in_training = (min(each, torch.get_num_threads()) for each in shards)
    return epoch_s * at_once / in_training
