"""The plan of a job: what it would do and for how long, from measurements of a few seconds.

It asks `nas.job.planning` what each stage will do, as the stages of a running job do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from nas.data import ImageDataset
from nas.display.formatting import format_duration
from nas.errors import BudgetError, KernelError, MeasurementError
from nas.figures import COUNTS
from nas.job import planning
from nas.job.inputs import JobSpaces, needed_kernels, require_complete
from nas.job.int8_losses import measure_losses_s
from nas.job.objectives import LATENCY, PREDICTED, count
from nas.latency import Kernel, LatencyTable, Runtime, lacks_correction
from nas.latency.build_estimate import estimate_build_with
from nas.latency.correction import FITTED_NETWORKS
from nas.latency.kit import KitDevice, carried
from nas.latency.timing import MEASURED
from nas.machine.torch_device import resolve_device
from nas.run.objectives import run_objectives
from nas.run.progress import JobProgress
from nas.run.record import describe_image_changes, describe_shift
from nas.run.settings import JobSettings
from nas.search.feasibility import idle_limits, require_feasible
from nas.search.objectives import Infeasible, Objective, Score
from nas.space import Architecture, SearchSpace
from nas.supernet.engine import measure_epoch
from nas.supernet.recipe import default_batch_size
from nas.supernet.sharding import count_shards
from nas.supernet.training import Trainer
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
        retrain: number of finalists.
        finalist_epochs: number of epochs of each of them.
        references: number of published networks; the largest one if time and latencies decide.
        seconds: expected duration by stage, see `nas.job.planning.planned_stages`. The supernets
            are one stage here.
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
    finalist_epochs: int
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
    spaces: JobSpaces,
    runtimes: Sequence[Runtime],
    progress: JobProgress,
    prepare_s: float,
    *,
    timed: ImageDataset | None = None,
) -> JobPlan:
    """Return what a job would do and for how long, from measurements of a few seconds.

    Args:
        settings: the settings of the job.
        data, spaces: its images and spaces.
        runtimes: its opened runtimes, one for each dtype; without any, its latency tables count as
            complete.
        progress: receives progress.
        prepare_s: seconds that opening these took.
        timed: a part of the images in the size of the spaces, by which speeds are measured; by
            default all of them.

    Raises:
        JobFileError: the budget is too short for the latency table.
        InfeasibleError, TableError: see `_Planner.check_limits`.
        MeasurementError: no kernel can be timed.
    """
    progress.begin("plan", "measurement")
    timed, has_losses = timed or data, len(settings.device.dtypes) > 1
    steps = len(spaces.searched) + 2 + has_losses
    planner = _Planner(settings, data, spaces.searched, runtimes, {planning.PREPARE: prepare_s})
    planner.plan_table()
    idle = planner.check_limits()
    progress.advance(1, steps)
    untrained = [
        Supernet(space, torch.Generator().manual_seed(settings.seed))
        for space in spaces.searched.values()
    ]
    score = planning.score_cost(untrained, timed, settings.seed)
    progress.advance(2, steps)
    epoch_s = {}
    for done, (name, space) in enumerate(spaces.searched.items(), start=3):
        is_published = name in spaces.published
        of_part_s = _epoch_s(space, timed, settings, is_published=is_published)
        epoch_s[name] = of_part_s * len(data.train) / len(timed.train)
        progress.advance(done, steps)
    epochs = planner.plan_training(epoch_s)
    if has_losses:
        planner.seconds[planning.LOSSES] = measure_losses_s(untrained, timed, settings.seed)
        progress.advance(steps, steps)
    images, trials = planner.plan_search(score)
    finalists, finalist_epochs, references = planner.plan_finish(epoch_s)
    return JobPlan(
        kernels=planner.kernels,
        uncertain=planner.uncertain,
        epochs={name: round(each, 2) for name, each in epochs.items()},
        trials=trials,
        score_images=images,
        measure=settings.finish.measure,
        retrain=finalists,
        finalist_epochs=finalist_epochs,
        references=references,
        seconds={name: round(each, 1) for name, each in planner.seconds.items()},
        data=data.summary,
        image_size=timed.image_size,
        image_changes=planned_image_changes(settings, data),
        idle_limits=idle,
        timed_by="a kit" if planner.is_carried else "this machine",
    )


@dataclass
class _Planner:
    """Plans the stages of a job in their order.

    Attributes:
        settings, data, spaces, runtimes: see `make_plan`; `spaces` are those that are searched.
        seconds: expected duration by stage, of those that are planned.
        kernels, uncertain: see `JobPlan`.
        tables: the latency table of each dtype, as far as it is there; None without any.
        slowest_us: latency of the slowest of the kernels that were timed because the table of a
            dtype lacks them; of these dtypes.
    """

    settings: JobSettings
    data: ImageDataset
    spaces: Mapping[str, SearchSpace]
    runtimes: Sequence[Runtime]
    seconds: dict[str, float]
    kernels: int = 0
    uncertain: int = 0
    tables: dict[str, LatencyTable | None] = field(default_factory=dict)
    slowest_us: dict[str, float] = field(default_factory=dict)

    @property
    def _runtimes(self) -> dict[str, Runtime]:
        """The runtimes by dtype; without any, the job times nothing."""
        return dict(zip(self.settings.device.dtypes, self.runtimes, strict=False))

    @property
    def is_carried(self) -> bool:
        """Whether a person carries kits to the device."""
        return any(carried(each) is not None for each in self.runtimes)

    @property
    def spent_s(self) -> float:
        """Seconds of the stages that are planned."""
        return sum(self.seconds.values())

    def plan_table(self) -> None:
        """Plan the latency tables, from the timings of a few kernels that they lack."""
        settings, batch, table_s, check_s = self.settings, self.settings.device.batch, 0.0, 0.0
        share_s = planning.share_s(settings, planning.TABLE, self.spent_s)
        most_s = planning.KERNELS_SHARE * share_s / max(1, len(self.runtimes))
        for dtype, runtime in self._runtimes.items():
            self.tables[dtype] = table = LatencyTable.find(settings.device.tables, runtime)
            missing = _missing_kernels(table, needed_kernels(self.spaces.values(), runtime, batch))
            self.kernels += len(missing)
            if self.is_carried:
                continue
            if missing or table is None or lacks_correction(table, self.spaces.values(), batch):
                is_timed = runtime.network_basis == MEASURED
                check_s += is_timed * FITTED_NETWORKS * planning.NETWORK_S
            if not isinstance(runtime, KitDevice) and (table is None or table.lacks_dispatch()):
                table_s += bool(runtime.capabilities.dispatch_parts) * planning.DISPATCH_S
            if not missing:
                continue
            estimate = estimate_build_with(missing, runtime)
            own_s, first_s = estimate.estimated_seconds, estimate.first_seconds
            if own_s is None:
                raise MeasurementError(estimate.reason, remedy="`nas doctor` says what works.")
            if own_s > max(most_s, first_s):
                untimed = min(1.0, (own_s - most_s) / (own_s - first_s))
                self.uncertain += round(len(missing) * untimed)
                own_s = max(most_s, first_s)
            self.slowest_us[dtype] = estimate.slowest_us
            table_s += own_s
        prepare_s = self.seconds[planning.PREPARE]
        if table_s and prepare_s + table_s > (1 - planning.MIN_REST) * settings.budget_s:
            tables = list(zip(self.runtimes, self.tables.values(), strict=True))
            raise too_short_error(settings, self.spaces, tables, prepare_s, table_s)
        self.seconds[planning.TABLE] = table_s + check_s

    def plan_training(self, epoch_s: Mapping[str, float]) -> dict[str, float]:
        """Plan the supernets and their anchors, and return the epochs by space.

        Args:
            epoch_s: seconds of an epoch of each supernet.
        """
        limit_s = planning.supernet_s(self.settings, self.spent_s, len(epoch_s))
        epochs = {
            name: planning.supernet_epochs(self.settings, self.data, limit_s, each)
            for name, each in epoch_s.items()
        }
        training_s = sum(epochs[name] * each for name, each in epoch_s.items())
        self.seconds[planning.SUPERNETS] = training_s
        if self.settings.anchors:
            anchors_s = training_s * planning.ANCHOR_COST * self.settings.anchors
            self.seconds[planning.ANCHORS] = anchors_s
        return epochs

    def plan_search(self, score: tuple[float, float]) -> tuple[int, int]:
        """Plan the search, and return its images of a score and its trials.

        Args:
            score: seconds that a score takes in any case, and those of each image.
        """
        settings, search = self.settings, self.settings.search
        limit_s = planning.search_s(settings, self.spent_s)
        images = planning.score_images(settings, score, limit_s, len(self.data.search))
        trial_s = (score[0] + images * score[1] + planning.PROPOSAL_S) / search.workers
        wanted = search.trials or math.inf
        if search.effective_stall == "auto":
            wanted = min(wanted, planning.MIN_SCORES)
        trials = max(1, int(min(wanted, limit_s / trial_s)))
        self.seconds[planning.SEARCH] = trials * trial_s
        return images, trials

    def plan_finish(self, epoch_s: Mapping[str, float]) -> tuple[int, int, int]:
        """Plan the stages after the search.

        Args:
            epoch_s: see `plan_training`.

        Returns:
            The number of finalists, that of their epochs, and that of published networks.
        """
        settings = self.settings
        share_s = planning.share_s(settings, planning.MEASURE, self.spent_s)
        measure_s = 0.0 if self.is_carried else planning.NETWORK_S * settings.finish.measure
        self.seconds[planning.MEASURE] = min(share_s, measure_s)
        if settings.finish.retrain == 0:
            return 0, 0, 0
        limit_s = planning.finalists_s(settings, settings.budget_s - self.spent_s)
        network_s = planning.NETWORK_COST * float(np.mean(list(epoch_s.values())))
        rounds = planning.halving_rounds(
            settings, self.data, settings.finish.measure, network_s, limit_s
        )
        halving_s = network_s * sum(count * epochs for count, epochs in rounds)
        limit_s -= halving_s
        export_s = planning.export_s(settings, self.data, network_s)
        finalist_s = (1 + planning.refit_share(settings, self.data)) * network_s

        def epochs_of(count: int, published: float) -> float:
            return (limit_s - count * export_s) / (count * finalist_s + published * network_s)

        fewest = planning.fewest_finalists(settings)
        most = planning.most_epochs(settings, self.data)
        possible = trained = len(planning.possible_references(settings, self.spaces))
        if settings.finish.references is None:
            while trained and not planning.affords_references(
                settings,
                planning.allowed_epochs(most, epochs_of(fewest, trained)),
                trained * network_s,
            ):
                trained -= 1
        finalists, epochs = planning.decide_finalists(
            settings, most, lambda count: epochs_of(count, trained)
        )
        self.seconds[planning.FINALISTS] = halving_s + finalists * epochs * finalist_s
        self.seconds[planning.EXPORT] = finalists * export_s
        if possible:
            self.seconds[planning.REFERENCES] = trained * epochs * network_s
        return finalists, epochs, trained

    def check_limits(self) -> list[str]:
        """Return what `nas.search.feasibility.idle_limits` says before the table is complete.

        No network is assumed to be slower than if each of its kernels took `slowest_us`. Without
        runtimes, nothing is known of the latencies.

        Raises:
            InfeasibleError: the job would end at once, because no architecture meets the limits.
            TableError: the table of a further device lacks kernels.
        """
        search, spaces = self.settings.search, list(self.spaces.values())
        for device in search.device:
            table = LatencyTable.open(device.table)
            require_complete(table, spaces, self.settings.device.batch)
        latency, *others = run_objectives(search, ())
        objectives = [
            Objective.of_each(figure.name, partial(count, figure.name), cheap=True, limit=limit)
            for figure, limit, _ in others
            if figure.name in COUNTS and limit is not None
        ]
        has_kit = any(isinstance(each, KitDevice) for each in self.runtimes)
        # Nothing is known of the latencies on a device that has not timed its kernels.
        if latency.limit is not None and self.tables and not (has_kit and self.kernels):
            limit_us = 1000 * latency.limit
            objectives.append(
                Objective.of_each(
                    LATENCY, self._predict, cheap=True, limit=limit_us, figure=PREDICTED
                )
            )
        known = [each for each in objectives if each.name != LATENCY or not self.kernels]
        require_feasible(spaces, known, self.settings.seed)
        return idle_limits(spaces, objectives, self.settings.seed)

    def _predict(self, architecture: Architecture) -> Score:
        device = self.settings.device
        dtype = device.dtype_of(architecture.graph)
        table, slowest_us = self.tables[dtype], self.slowest_us.get(dtype)
        if table is None or slowest_us is not None:
            kernels = self._runtimes[dtype].kernels(architecture.graph, device.batch)
            return (slowest_us or 0.0) * len(kernels)
        try:
            return table.predict(architecture, device.batch).latency_us
        except KernelError as error:
            return Infeasible(error.message)


def too_short_error(
    settings: JobSettings,
    spaces: Mapping[str, SearchSpace],
    tables: Sequence[tuple[Runtime, LatencyTable | None]],
    prepare_s: float,
    table_s: float,
) -> BudgetError:
    """Return the error for a budget of which the latency tables leave too little.

    Args:
        settings: the settings of the job.
        spaces: its spaces by name.
        tables: its runtimes with their latency tables; None for one that is not there yet.
        prepare_s: seconds before the tables.
        table_s: seconds that the tables take.
    """
    batch = settings.device.batch
    missing = {
        name: {
            (number, kernel)
            for number, (runtime, table) in enumerate(tables)
            for kernel in _missing_kernels(table, needed_kernels([space], runtime, batch))
        }
        for name, space in spaces.items()
    }
    available_s = (1 - planning.MIN_REST) * settings.budget_s - prepare_s
    kernel_s = table_s / max(1, len(set().union(*missing.values())))
    fitting: dict[str, set[tuple[int, Kernel]]] = {}
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
    training = settings.training.recipe()
    shift = training.resolve_shift(data)
    if planning.needs_mirroring_experiment(settings, data):
        return (
            f"training images are {describe_shift(shift)}; an experiment at the start decides "
            "whether they are mirrored"
        )
    return describe_image_changes(training.resolve_flip(data), shift)


def _epoch_s(
    space: SearchSpace, data: ImageDataset, settings: JobSettings, *, is_published: bool
) -> float:
    """Return the time to train a supernet for one epoch, from published weights or random ones."""
    device, macs = resolve_device(settings.training.device), space.largest.macs
    training = settings.training.recipe(batch_size=default_batch_size(device))
    if is_published:
        training = settings.training.fine_tuned(training, len(data.train))
    batch = min(training.batch_size, len(data.train))
    images = batch if device.type == "cuda" else min(batch, max(4, _TIMED_MACS // macs))
    timed = replace(training, batch_size=images)
    epoch_s = measure_epoch(Trainer(space, data, timed, settings.seed), seconds=_TIMED_SECONDS)
    shards = (count_shards(each, macs, device) for each in (images, batch))
    at_once, in_training = (min(each, torch.get_num_threads()) for each in shards)
    return epoch_s * at_once / in_training
