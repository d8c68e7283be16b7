"""Shares the budget of a job among its stages.

A running job fixes no counts: a stage begins with its share of the time that is left, and what it
does not need is left to the stages after it. What a stage does in its time is decided here, too:
the stages ask with what they have measured, and `nas.job.plan` asks beforehand with costs that are
measured in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from nas.data import ImageDataset
from nas.deploy.exporting import job_formats
from nas.machine.torch_device import resolve_device
from nas.run.record import StageRecord
from nas.run.settings import JobSettings
from nas.space import SearchSpace
from nas.supernet.evaluation import measure_score
from nas.supernet.recipe import default_batch_size, most_steps
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

SHARES = {TABLE: 0.5, SUPERNETS: 0.45, SEARCH: 0.13, MEASURE: 0.07, FINALISTS: 0.35}
"""Weights of the stages in what is left of a budget when one of them begins.

Timings are bounded by the share of the latency table, which needs far less in a long job. The
finalists have the rest, and pay for their export and for the published networks.
"""

KERNELS_SHARE = 0.7
"""Share of the stage in which kernels are timed again; the rest times whole networks."""

RETIMING_SHARE = 0.1
"""The same of a table that lacks no kernel: on a busy machine, half of its timings may never agree,
and the networks of the front are timed whole in any case."""

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

EXPORT_FILE_S = 2.4
"""Seconds to export, verify and time one file, beside what its images take.

Three files of a small network take 5 s on an idle machine, and 7 s where their timings disagree.
"""

EXPORT_PASSES = 1.5
"""Time in which a file is made and classifies its images, over that of a training on them.

An int8 network is simulated and compared with others, and a file answers in its own runtime. The
first export of a job corrects it for the others.
"""

MIN_SEARCH_S = 20.0
"""Seconds of a search for which the stages before it have left no time."""

MIN_SCORES = 300
"""Scores of a search before its model may end it, for which it leaves out images if it has no time
for all of them."""

MIN_SCORE_IMAGES = 300
"""Fewest images by which an architecture is scored, unless there are fewer."""

PROPOSAL_S = 0.05
"""Time of a trial beside its score: the model proposes it, and it is recorded."""

DISPATCH_S = 30.0
"""Time to time what a network costs beside its kernels; it was 16 to 30 s on idle machines."""

NETWORK_S = 0.8
"""Time to compile and time one network of the front."""

FINALIST_EPOCHS = 30
"""Epochs of a finalist for which a budget pays before it pays for a further finalist."""

MAX_FINALISTS = 5
"""Most finalists that a budget is spent on. A job file can ask for more."""

LONG_JOB_S = 3600.0
"""Budget in seconds of a job that trains at least `MIN_FINALISTS`; a shorter one trains fewer."""

MIN_FINALISTS = 3

HALVED_NETWORKS = (16, 12, 8, 6, 4)
"""Numbers of candidates that are trained for a short time, of which the largest one is taken for
which the budget pays."""

HALVING_SHARE = 0.2
"""Share of the time of the finalists in which such trainings choose them."""

SHORT_STEPS = 22.0
"""Steps of the shortest of these trainings, at least; an epoch has more if there are many images.
After so many, twelve networks were ordered with a tau of 0.60, and by their scores with 0.31; see
docs/measurements.md."""

MIN_FINALIST_EPOCHS = 10
"""Epochs of each finalist below which a job of less than an hour trains the pick alone."""

SLACK = 0.03
"""Share of a budget that finalists leave free, so that a short delay does not shorten the training
of one of them: then it would have another recipe, and could not be compared with the others."""

SHORTEST = 0.5
"""Epochs of a network whose training is shortened over those of the others, at least."""

MIN_REST = 0.25
"""Share of a budget that must be left behind the latency table: less is no search."""


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

    What the exports of the fewest finalists take is kept from the stages before them, but not more
    than the share of the finalists.

    Args:
        settings: the settings of the job.
        stage: name of the stage, one of the keys of `SHARES`.
        spent_s: seconds that the stages before it took.
    """
    needed = {MEASURE: settings.finish.measure, FINALISTS: settings.finish.retrain}
    weights = [SHARES[each] * (needed.get(each) != 0) for each in SHARES]
    own = list(SHARES).index(stage)
    exports = 0 if stage == FINALISTS else fewest_finalists(settings)
    left_s, shares = max(0.0, settings.budget_s - spent_s), sum(weights[own:]) or 1.0
    export_s = exports * len(job_formats(settings)) * EXPORT_FILE_S
    left_s -= min(export_s, left_s * weights[-1] / shares)
    return left_s * weights[own] / shares


def supernet_s(settings: JobSettings, spent_s: float, spaces: int) -> float:
    """Return the seconds that the training of each of so many supernets may take.

    Anchors of their spaces are paid from the same share.
    """
    networks = spaces * (1 + ANCHOR_COST * settings.anchors)
    return max(1.0, share_s(settings, SUPERNETS, spent_s) / networks)


def supernet_epochs(
    settings: JobSettings, data: ImageDataset, limit_s: float, epoch_s: float
) -> float:
    """Return the epochs of a supernet.

    Args:
        settings: the settings of the job.
        data: its images.
        limit_s: seconds that its training may take, see `supernet_s`.
        epoch_s: seconds of an epoch.
    """
    length = settings.training.length or {}
    limit_s = min(limit_s, 60 * length.get("minutes", math.inf))
    return min(most_epochs(settings, data), limit_s / epoch_s)


def search_s(settings: JobSettings, spent_s: float) -> float:
    """Return the seconds of the search: its share of the budget, or less if the job says so.

    Args:
        settings: the settings of the job.
        spent_s: seconds that the stages before it took.
    """
    limit_s = max(MIN_SEARCH_S, share_s(settings, SEARCH, spent_s))
    minutes = settings.search.minutes
    return limit_s if minutes is None else min(limit_s, 60 * minutes)


def fewest_scores(settings: JobSettings) -> int:
    """Return the number of scores that a search should have time for."""
    return min(MIN_SCORES, settings.search.trials or MIN_SCORES)


def score_images(
    settings: JobSettings, score: tuple[float, float], seconds: float, images: int
) -> int:
    """Return the number of images that score an architecture: all, if time allows.

    Args:
        settings: the settings of the job, whose workers score at the same time.
        score: see `fitting_images`.
        seconds: duration of the search.
        images: number of all images.
    """
    seconds *= settings.search.workers
    return fitting_images(score, seconds, fewest_scores(settings), images)


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

    Beside the pick, these are the networks whose weights supernets start from.
    """
    if settings.finish.retrain is not None:
        return settings.finish.retrain
    fewest = 1 + sum(each.starts_from_weights for each in settings.space)
    return max(fewest, MIN_FINALISTS) if settings.budget_s >= LONG_JOB_S else fewest


def most_finalists(settings: JobSettings) -> int:
    """Return the number of finalists of a job, at most."""
    if settings.finish.retrain is not None:
        return settings.finish.retrain
    return max(fewest_finalists(settings), MAX_FINALISTS)


def most_epochs(settings: JobSettings, data: ImageDataset) -> float:
    """Return the epochs of a training for which a budget may pay at most."""
    steps = steps_per_epoch(settings, data)
    return settings.training.epochs or most_steps(steps) / steps


def steps_per_epoch(settings: JobSettings, data: ImageDataset) -> float:
    """Return the steps of a training in which each image is used once."""
    training = settings.training
    batch = training.batch_size or default_batch_size(resolve_device(training.device))
    return len(data.train) / min(batch, len(data.train))


def allowed_epochs(most: float, epochs: float) -> int:
    """Return the epochs of each finalist if the budget pays for so many, see `most_epochs`."""
    return int(np.clip(epochs, 1, most))


def finalists_s(settings: JobSettings, left_s: float) -> float:
    """Return the seconds that finalists and published networks may take of those that are left."""
    return max(0.0, left_s - SLACK * settings.budget_s)


def halving_rounds(
    settings: JobSettings, data: ImageDataset, networks: int, epoch_s: float, limit_s: float
) -> list[tuple[int, float]]:
    """Return the networks and the epochs of the short trainings of each round of a halving.

    Each round trains half of the networks for twice as long, until the finalists are left. There
    are none if the budget pays for too few, or trains finalists for hardly longer.

    Args:
        settings: the settings of the job.
        data: its images.
        networks: number of candidates.
        epoch_s: seconds of an epoch of one of them.
        limit_s: seconds that all finalists may take, see `finalists_s`.
    """
    first = max(1.0, SHORT_STEPS / steps_per_epoch(settings, data))
    for count in (each for each in HALVED_NETWORKS if each <= networks):
        rounds: list[tuple[int, float]] = []
        while count > max(1, fewest_finalists(settings)):
            rounds.append((count, first * 2 ** len(rounds)))
            count //= 2
        seconds = epoch_s * sum(count * epochs for count, epochs in rounds)
        is_short = rounds and 2 * rounds[-1][1] <= most_epochs(settings, data)
        if is_short and seconds <= HALVING_SHARE * limit_s:
            return rounds
    return []


def decide_finalists(
    settings: JobSettings, most: float, epochs_of: Callable[[int], float]
) -> tuple[int, int]:
    """Return the number of finalists of a job, and the epochs that each of them gets.

    Args:
        settings: the settings of the job.
        most: most epochs of each, see `most_epochs`.
        epochs_of: returns the epochs for which the budget pays if so many finalists share it.
    """
    count = fewest_finalists(settings)
    epochs = epochs_of(count)
    is_free = settings.finish.retrain is None and settings.budget_s < LONG_JOB_S
    while is_free and count > 1 and epochs < MIN_FINALIST_EPOCHS:
        count -= 1  # The pick is shipped, a published network is there to compare it with.
        epochs = epochs_of(count)
    while count < most_finalists(settings) and epochs * count / (count + 1) >= FINALIST_EPOCHS:
        more = epochs_of(count + 1)
        if more < FINALIST_EPOCHS:
            break
        count, epochs = count + 1, more
    return count, allowed_epochs(most, epochs)


def refit_share(settings: JobSettings, data: ImageDataset) -> float:
    """Return the time in which a network is refitted, over that of its training; 0 if it is not.

    An epoch of the refit has all images but the test images.
    """
    images = data.refit_count
    return images / len(data.train) if settings.finish.refits(images) else 0.0


def export_s(settings: JobSettings, data: ImageDataset, epoch_s: float) -> float:
    """Return the seconds to export a network, from those of an epoch of its training."""
    images = len(data.test) + len(data.search) + len(data.holdout)
    share = EXPORT_PASSES * images / len(data.train)
    return len(job_formats(settings)) * (EXPORT_FILE_S + share * epoch_s)


def affords_references(settings: JobSettings, epochs: int, epoch_s: float) -> bool:
    """Return whether a budget trains published networks that the job does not name.

    Args:
        settings: the settings of the job.
        epochs: epochs of each network.
        epoch_s: seconds of an epoch of all these networks together.
    """
    return epochs * epoch_s <= REFERENCES_SHARE * settings.budget_s


def needs_mirroring_experiment(settings: JobSettings, data: ImageDataset) -> bool:
    """Return whether neither the job nor the source says if training images are mirrored."""
    return settings.training.flip == "auto" and data.flip_preserves_class is None


def possible_references(settings: JobSettings, spaces: Mapping[str, SearchSpace]) -> Sequence[str]:
    """Return the published networks that a job trains, or at most trains."""
    if settings.finish.references is not None:
        return settings.finish.references
    return [row.name for space in spaces.values() for row in space.references if not row.is_trained]
