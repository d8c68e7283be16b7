"""Shares the budget of a job among its stages, and says beforehand what that gives.

A running job fixes no counts: a stage begins with its share of the time that is left, and what it
does not need is left to the stages after it. `make_plan` follows the same rule with costs that are
measured in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from nas.data import ImageDataset
from nas.display.formatting import format_duration
from nas.errors import BudgetError, KernelError, MeasurementError
from nas.figures import COUNTS
from nas.job.inputs import needed_kernels
from nas.job.objectives import LATENCY
from nas.latency import Kernel, LatencyTable, Runtime
from nas.latency.build_estimate import BuildEstimate, estimate_build_with
from nas.machine.torch_device import resolve_device
from nas.run.objectives import run_objectives
from nas.run.progress import JobProgress
from nas.run.record import StageRecord, describe_image_changes, describe_shift
from nas.run.settings import JobSettings
from nas.search.feasibility import idle_limits
from nas.search.objectives import Infeasible, Objective, Score
from nas.space import Architecture, SearchSpace
from nas.supernet.evaluation import measure_score
from nas.supernet.settings import default_batch_size
from nas.supernet.sharding import count_shards
from nas.supernet.training import measure_supernet_epoch
from nas.supernet.weights import Supernet

PREPARE = "prepare"
TABLE = "latency table"
SUPERNETS = "supernet"
ANCHORS = "anchors"
LOSSES = "losses of int8"
SEARCH = "search"
MEASURE = "measure the front"
FINALISTS = "train the finalists"
EXPORT = "export"
REFERENCES = "published networks"
STAGES = (
    *(PREPARE, TABLE, SUPERNETS, ANCHORS, LOSSES, SEARCH, MEASURE, FINALISTS, EXPORT),
    REFERENCES,
)
"""Names of the stages in their order; each supernet is a stage, whose name begins so."""

SHARES = {TABLE: 0.5, SUPERNETS: 0.55, SEARCH: 0.15, MEASURE: 0.08, FINALISTS: 0.22}
"""Weights of the stages in what is left of a budget when one of them begins.

Timings are bounded by the share of the latency table, which needs far less in a long job. The
finalists have the rest, and pay for their export and for the published networks.
"""

KERNELS_SHARE = 0.7
"""Share of the stage in which kernels are timed again; the rest times whole networks."""

REFERENCES_SHARE = 0.1
"""Share of a budget in which published networks are trained that the job does not name."""

NETWORK_COST = 0.25
"""Time of a network over that of its supernet, which trains four networks in a step."""

ANCHOR_EPOCHS = 1 / 3
"""Epochs of an anchor over those of its supernet.

Anchors compare spaces, whose supernets score networks of equal accuracy many points apart. A short
training shows that; see docs/ranking.md.
"""

ANCHOR_COST = NETWORK_COST * ANCHOR_EPOCHS
"""Time of an anchor over that of its supernet."""

EXPORT_S = 3.0
"""Time to export a small finalist in the default formats."""

MIN_SCORES = 300
"""Scores of a search before its model may end it, for which it leaves out images if it has no time
for all of them."""

MIN_SCORE_IMAGES = 300
"""Fewest images by which an architecture is scored, unless there are fewer."""

PROPOSAL_S = 0.05
"""Time of a trial beside its score: the model proposes it, and it is recorded."""

NETWORK_S = 0.8
"""Time to compile and time one network of the front."""

FINALIST_EPOCHS = 30
"""Epochs of a finalist for which a budget pays before it pays for a further finalist."""

MAX_FINALISTS = 5
"""Most finalists that a budget is spent on. A job file can ask for more."""

LONG_JOB_S = 3600.0
"""Budget in seconds of a job that trains at least `MIN_FINALISTS`; a shorter one trains fewer."""

MIN_FINALISTS = 3

MIN_REST = 0.25
"""Share of a budget that must be left behind the latency table: less is no search."""

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


def planned_stages(
    settings: JobSettings, spaces: Mapping[str, SearchSpace], *, search_only: bool = False
) -> list[str]:
    """Return the names of the stages of a job in their order.

    Args:
        settings: the settings of the job.
        spaces: its spaces by name, each of which has a supernet.
        search_only: whether the job ends with its search.
    """
    is_needed = {
        ANCHORS: settings.anchors > 0,
        LOSSES: len(settings.device.dtypes) > 1,
        FINALISTS: settings.finish.retrain != 0,
        EXPORT: settings.finish.retrain != 0,
        REFERENCES: settings.finish.retrain != 0 and bool(possible_references(settings, spaces)),
    }
    stages = STAGES[: STAGES.index(SEARCH) + 1] if search_only else STAGES
    names: list[str] = []
    for stage in stages:
        if stage == SUPERNETS:
            names += [f"{SUPERNETS} {space}" for space in spaces]
        elif is_needed.get(stage, True):
            names.append(stage)
    return names


def spent_before(stages: Mapping[str, StageRecord], stage: str) -> float:
    """Return the seconds that the stages before one took, in all starts of a run."""
    at = STAGES.index(stage)
    earlier = STAGES[:at]
    return sum(each.seconds for name, each in stages.items() if name.startswith(earlier))


def share_s(settings: JobSettings, stage: str, spent_s: float) -> float:
    """Return the seconds that a stage may take: its share of what is left of the budget.

    Args:
        settings: the settings of the job.
        stage: name of the stage, one of the keys of `SHARES`.
        spent_s: seconds that the stages before it took.
    """
    needed = {MEASURE: settings.finish.measure, FINALISTS: settings.finish.retrain}
    weights = [SHARES[each] * (needed.get(each) != 0) for each in SHARES]
    own = list(SHARES).index(stage)
    left_s = max(0.0, settings.budget_s - spent_s)
    return left_s * weights[own] / (sum(weights[own:]) or 1.0)


def supernet_s(settings: JobSettings, spent_s: float, spaces: int) -> float:
    """Return the seconds that the training of each of so many supernets may take.

    Anchors of their spaces are paid from the same share.
    """
    networks = spaces * (1 + ANCHOR_COST * settings.anchors)
    return share_s(settings, SUPERNETS, spent_s) / networks


def fitting_images(score: tuple[float, float], seconds: float, scores: float, images: int) -> int:
    """Return the number of images of a score with which so many scores fit into a search.

    Args:
        score: seconds that a score takes in any case, and those of each image.
        seconds: duration of the search.
        scores: number of scores.
        images: number of all images.
    """
    own_s, image_s = score
    fitting = (seconds / scores - own_s - PROPOSAL_S) / image_s
    return int(np.clip(fitting, min(MIN_SCORE_IMAGES, images), images))


def score_cost(supernets: Iterable[Supernet], data: ImageDataset, seed: int) -> tuple[float, float]:
    """Return the mean cost of a score with some supernets, see `measure_score`."""
    rng = np.random.default_rng(seed)
    costs = [
        measure_score(supernet, supernet.space.sample(rng, uniform_over="choices"), data)
        for supernet in supernets
    ]
    own_s, image_s = np.mean(costs, axis=0)
    return float(own_s), float(image_s)


def fewest_finalists(settings: JobSettings) -> int:
    """Return the number of finalists of a job, at least.

    Beside the pick, these are the published networks whose weights supernets start from.
    """
    if settings.finish.retrain is not None:
        return settings.finish.retrain
    fewest = 1 + sum(each.pretrained is not None for each in settings.space)
    return max(fewest, MIN_FINALISTS) if settings.budget_s >= LONG_JOB_S else fewest


def most_finalists(settings: JobSettings) -> int:
    """Return the number of finalists of a job, at most."""
    if settings.finish.retrain is not None:
        return settings.finish.retrain
    return max(fewest_finalists(settings), MAX_FINALISTS)


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
        name: set(missing_kernels(table, needed_kernels([space], runtime, batch)))
        for name, space in spaces.items()
    }
    available_s = (1 - MIN_REST) * settings.budget_s - prepare_s
    kernel_s = table_s / max(1, len(set().union(*missing.values())))
    fitting: dict[str, set[Kernel]] = {}
    for name in sorted(missing, key=lambda each: len(missing[each])):
        if kernel_s * len(missing[name].union(*fitting.values())) <= available_s:
            fitting[name] = missing[name]
    smallest = f"{math.ceil((prepare_s + table_s) / (1 - MIN_REST) / 60)}m"
    spaces_text = f"[[space]] {' and '.join(fitting)} alone would fit. " if fitting else ""
    return BudgetError(
        f"The budget {settings.budget} is too short: the latency table of {', '.join(spaces)} "
        f"takes about {format_duration(table_s)}, and the rest of the job needs time as well.",
        remedy=f'The smallest budget that works is "{smallest}". {spaces_text}A second job on '
        "this device finds the latency table, and needs less.",
        smallest=smallest,
    )


def missing_kernels(table: LatencyTable | None, kernels: list[Kernel]) -> list[Kernel]:
    """Return the kernels that a latency table lacks; all without a table."""
    return kernels if table is None else table.missing(kernels)


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
    missing, table_s, slowest_us, uncertain = 0, 0.0, 0.0, 0
    most_s = KERNELS_SHARE * share_s(settings, TABLE, prepare_s) / len(runtimes)
    for runtime in runtimes:
        table = LatencyTable.find(settings.device.tables, runtime)
        kernels = needed_kernels(spaces.values(), runtime, settings.device.batch)
        own = missing_kernels(table, kernels)
        estimate = _table_estimate(own, runtime)
        own_s = estimate.estimated_seconds or 0.0
        again_s = own_s - estimate.first_seconds
        if own_s > most_s and again_s > 0:
            uncertain += round(len(own) * min(1.0, (own_s - most_s) / again_s))
            own_s = max(most_s, estimate.first_seconds)
        missing, slowest_us = missing + len(own), max(slowest_us, estimate.slowest_us)
        table_s += own_s + (runtime.dispatch_seconds if own else 0.0)
    progress.advance(1, steps)
    if prepare_s + table_s > (1 - MIN_REST) * settings.budget_s:
        raise too_short_error(settings, spaces, table, runtime, prepare_s, table_s)
    seconds = {PREPARE: prepare_s, TABLE: table_s}
    untrained = [
        Supernet(space, torch.Generator().manual_seed(settings.seed)) for space in spaces.values()
    ]
    score = score_cost(untrained, data, settings.seed)
    progress.advance(2, steps)
    epoch_s = {}
    for done, (name, space) in enumerate(spaces.items(), start=3):
        epoch_s[name] = _epoch_s(space, data, settings)
        progress.advance(done, steps)
    own_s = supernet_s(settings, prepare_s + table_s, len(spaces))
    epochs = {name: own_s / each for name, each in epoch_s.items()}
    length = settings.training.length or {}
    if "epochs" in length:
        epochs = {name: min(length["epochs"], each) for name, each in epochs.items()}
    if "minutes" in length:
        epochs = {name: min(60 * length["minutes"], own_s) / s for name, s in epoch_s.items()}
    seconds[SUPERNETS] = sum(epochs[name] * epoch_s[name] for name in spaces)
    if settings.anchors:
        seconds[ANCHORS] = seconds[SUPERNETS] * ANCHOR_COST * settings.anchors
    search_s = share_s(settings, SEARCH, sum(seconds.values()))
    images = fitting_images(score, search_s, MIN_SCORES, len(data.search))
    trial_s = score[0] + images * score[1] + PROPOSAL_S
    wanted = settings.search.trials or math.inf
    if settings.search.effective_stall == "auto":
        wanted = min(wanted, MIN_SCORES)
    trials = max(1, int(min(wanted, search_s / trial_s)))
    seconds[SEARCH] = trials * trial_s
    measure_s = share_s(settings, MEASURE, sum(seconds.values()))
    seconds[MEASURE] = min(measure_s, NETWORK_S * settings.finish.measure)
    finalists = fewest_finalists(settings)
    references = possible_references(settings, spaces) if finalists else []
    seconds[FINALISTS] = share_s(settings, FINALISTS, sum(seconds.values())) if finalists else 0.0
    if "epochs" in length:
        # The epochs of the supernets are the most of the finalists, too.
        mean_s = NETWORK_COST * float(np.mean(list(epoch_s.values())))
        each_s = length["epochs"] * mean_s + EXPORT_S
        most = most_finalists(settings) + len(references)
        seconds[FINALISTS] = min(seconds[FINALISTS], most * each_s)
    if references:
        share = len(references) / (finalists + len(references))
        own_s = share * seconds[FINALISTS]
        if settings.finish.references is None:
            own_s = min(own_s, REFERENCES_SHARE * settings.budget_s)
        seconds[FINALISTS] -= own_s
        seconds[REFERENCES] = own_s
    return JobPlan(
        kernels=missing,
        uncertain=uncertain,
        epochs={name: round(each, 2) for name, each in epochs.items()},
        trials=trials,
        score_images=images,
        measure=settings.finish.measure,
        retrain=finalists,
        references=len(references),
        seconds={name: round(each, 1) for name, each in seconds.items()},
        data=data.summary,
        image_size=data.image_size,
        image_changes=planned_image_changes(settings, data),
        idle_limits=_idle_limits(settings, spaces, runtimes[-1], table, slowest_us),
    )


def _idle_limits(
    settings: JobSettings,
    spaces: Mapping[str, SearchSpace],
    runtime: Runtime,
    table: LatencyTable | None,
    slowest_us: float,
) -> list[str]:
    """Return what `nas.search.feasibility.idle_limits` says before the table is complete.

    Args:
        settings, spaces, runtime: those of the job.
        table: the latency table, as far as it is there.
        slowest_us: latency of the slowest of the kernels that were timed because the table lacks
            them; 0 if it lacks none. No network is assumed to be slower than if each of its kernels
            took so long.
    """
    batch, limited = settings.device.batch, run_objectives(settings.search, ())

    def predicted_us(architecture: Architecture) -> Score:
        if table is None or slowest_us:
            return slowest_us * len(runtime.kernels(architecture.graph, batch))
        try:
            return table.predict(architecture, batch).latency_us
        except KernelError as error:
            return Infeasible(error.message)

    def value(name: str, architectures: Sequence[Architecture]) -> list[Score]:
        if name == LATENCY:
            return list(map(predicted_us, architectures))
        return [float(getattr(each.graph, name)) for each in architectures]

    named = {
        figure.name: limit
        for figure, limit, _ in limited
        if figure.name in COUNTS and limit is not None
    }
    if (max_latency_ms := limited[0].limit) is not None:
        named[LATENCY] = 1000 * max_latency_ms
    objectives = [
        Objective(name, partial(value, name), cheap=True, limit=limit)
        for name, limit in named.items()
    ]
    return idle_limits(list(spaces.values()), objectives, settings.seed)


def possible_references(settings: JobSettings, spaces: Mapping[str, SearchSpace]) -> Sequence[str]:
    """Return the published networks that a job trains, or at most trains."""
    if settings.finish.references is not None:
        return settings.finish.references
    return [row.name for space in spaces.values() for row in space.references]


def _table_estimate(missing: list[Kernel], runtime: Runtime) -> BuildEstimate:
    """Return how long the kernels take that a latency table lacks, from a few of them."""
    if not missing:
        return BuildEstimate(0, 0.0)
    estimate = estimate_build_with(missing, runtime)
    if estimate.estimated_seconds is None:
        raise MeasurementError(estimate.reason, remedy="`nas doctor` says what works.")
    return estimate


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
