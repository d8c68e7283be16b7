"""The end of a job: the best candidates are timed, and some of them are trained and exported."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from nas.deploy.exporting import export_networks, job_formats
from nas.deploy.requests import ExportRequest
from nas.deploy.retrain import Retraining, finalist, measure_epoch, train_networks
from nas.errors import (
    IncompleteExportError,
    MeasurementError,
    NasError,
    RequestError,
)
from nas.files import jsonl
from nas.job import kits, planning
from nas.job.folder import JobRun
from nas.job.references import affordable, published_networks, untrained
from nas.job.source import trained_in_source
from nas.job.trials_file import candidate_rows, write_candidates
from nas.latency import configured_runtime, measure_networks
from nas.latency.kit import KitDevice
from nas.report import page
from nas.run.candidates import of_table, with_latencies
from nas.run.front import behind, front, representatives, without_second_dtypes
from nas.run.kits import waiting_text
from nas.run.measurements import (
    NETWORKS_PER_ROUND,
    Measurement,
    errors_by_digest,
    to_time_again,
)
from nas.run.objectives import RunObjective
from nas.run.progress import JobProgress
from nas.run.record import FinalistsRecord
from nas.run.run import Run
from nas.run.selection import Option, Selection, knee, member_options
from nas.search import Trial
from nas.space import Architecture
from nas.supernet.probe_choice import FOLDS
from nas.supernet.weights import Supernet

FIRST_SHARE = 0.6
"""Share of the time for timing networks after which those whose timings agree are timed no more."""

SATURATED_NETWORKS = 10
"""Networks with the highest hold-out accuracies that the images should tell apart."""

MIN_PER_SPACE = 3
"""Members of each space's own front that are timed, if the job times enough networks."""


def measure_front(run: JobRun, supernets: dict[str, Supernet], trials: Sequence[Trial]) -> None:
    """Time the best candidates as whole networks, score them on the hold-out, and write all rows.

    Args:
        run: the run.
        supernets: the trained supernets by space.
        trials: the trials of the search.

    Raises:
        MeasurementError: no candidate could be timed.
    """
    chosen = _to_measure_of(run, candidate_rows(run, trials))
    if isinstance(run.runtime, KitDevice):
        kits.time_networks(run, run.runtime, chosen, run.progress)
    else:
        by_digest = {trial.digest: trial for trial in trials}
        chosen_trials = [by_digest[digest] for digest in chosen]
        _measure(run, chosen_trials, run.seconds_for(planning.MEASURE))
    write_candidates(run, trials, supernets, also=chosen)
    if sentence := _saturation(run):
        run.progress.note(sentence)
    problems = errors_by_digest(run.timing_log)
    if problems and not run.measured_us:
        raise MeasurementError(
            f"No candidate could be timed as a whole network: {next(iter(problems.values()))}",
            remedy=f"{run.measurements} has the errors; remove its lines to try again.",
        )


def _to_measure_of(run: Run, rows: pd.DataFrame) -> list[str]:
    """Return the digests of the candidates of a run to time, see `to_measure`.

    Candidates are chosen by their predictions, not by what was measured, so that a resumed run
    chooses the same.
    """
    timed = {each.digest for each in run.timing_log}
    timed |= trained_in_source(run).keys()  # Only a measured network is on the front.
    return to_measure(
        rows.assign(measured_us=np.nan),
        run.objectives,
        list(run.spaces),
        run.settings.finish.measure,
        published=run.published_networks,
        timed=timed,
    )


def time_by_kit(run: Run, progress: JobProgress) -> str:
    """Take in the results of the kit of a run's networks, or write the kit; and renew the report.

    Args:
        run: the run, whose search has ended.
        progress: receives progress and messages.

    Returns:
        What the run waits for, see `waiting_text`; empty if its networks are timed.

    Raises:
        RequestError: the device of the run is not timed by kits.
        RunFolderError: the run has no candidates.
    """
    settings = run.settings.device
    device = configured_runtime(settings.runtime, **settings.runtime_options())
    if not isinstance(device, KitDevice):
        raise RequestError(
            f"The device of {run.path} is '{settings.target}', which is timed from this machine.",
            remedy=f"Time its networks: {run.continue_command}",
        )
    with run.locked():
        kits.time_networks(run, device, _to_measure_of(run, run.trials), progress)
        problems = errors_by_digest(run.timing_log)
        run.write_trials(with_latencies(run.trials, run.latencies, problems))
    page.build(run)  # Within the lock, the page would say that a job runs.
    return waiting_text(run)


def _measure(run: JobRun, chosen: Sequence[Trial], limit_s: float) -> None:
    """Time each network until its timings agree, and append all timings to the log.

    Networks whose timings do not agree after `FIRST_SHARE` of the time are timed again in the rest
    of it: a slow minute is over then. Each is timed once in any case, and so is one that an earlier
    start left with a disturbed latency.
    """
    run.progress.begin("whole networks", "network")
    jsonl.repair(run.measurements)
    once = run.runtime.has_constant_networks or limit_s <= 0
    start = time.monotonic()

    def left(also: Collection[str] = ()) -> list[Trial]:
        digests = [trial.digest for trial in chosen]
        waiting = to_time_again(run.timing_log, digests, once=once) | set(also)
        return [trial for trial in chosen if trial.digest in waiting]

    disturbed = [digest for digest, latency in run.latencies.items() if latency.is_disturbed]
    _measure_in_rounds(run, left(disturbed), start + FIRST_SHARE * limit_s)
    if time.monotonic() < start + limit_s:
        _measure_in_rounds(run, left(), start + limit_s)


def _measure_in_rounds(run: JobRun, left: Sequence[Trial], end: float) -> None:
    """Time networks, a few at a time, until the end of their time; append all timings."""
    rounds: list[tuple[str, list[Trial]]] = []
    for dtype in run.runtimes:
        own = [trial for trial in left if run.dtype_of(trial.architecture) == dtype]
        starts = range(0, len(own), NETWORKS_PER_ROUND)
        rounds += [(dtype, own[start : start + NETWORKS_PER_ROUND]) for start in starts]
    done = 0
    for number, (dtype, together) in enumerate(rounds):
        table = run.tables[dtype]
        timed = measure_networks(
            [trial.architecture.graph for trial in together],
            run.runtimes[dtype],
            table.schedules(),
            batch=run.settings.device.batch,
            seconds=max(0.0, end - time.monotonic()) / (len(rounds) - number),
            full_us=table.full_us,
        )
        for trial, result in zip(together, timed, strict=True):
            for measurement in Measurement.of_timings(
                trial.architecture, trial.values["predicted_us"], result
            ):
                jsonl.append(run.measurements, measurement.model_dump(mode="json", by_alias=True))
        done += len(together)
        run.progress.advance(done, len(left))


def _saturation(run: JobRun) -> str:
    """Return what to say if the accuracies of the best networks are nearly equal; else nothing."""
    rows, counts = run.trials, np.array(list(run.images.class_counts["holdout"]))
    accuracies = np.sort(rows["holdout_accuracy"].dropna())[::-1][:SATURATED_NETWORKS]
    image = 1 / (len(counts) * counts.min()) if run.images.is_balanced else 1 / counts.sum()
    if len(accuracies) < SATURATED_NETWORKS or accuracies[0] - accuracies[-1] > 1.001 * image:
        return ""
    return (
        f"the accuracies of the {SATURATED_NETWORKS} best networks differ by at most one of "
        f"{counts.sum()} hold-out images: the images cannot tell them apart, and the fastest is "
        "chosen. More hold-out images, a space of smaller networks or a smaller image_size could "
        "tell more"
    )


def to_measure(
    rows: pd.DataFrame,
    objectives: Sequence[RunObjective],
    spaces: Sequence[str],
    count: int,
    *,
    published: Collection[str] = (),
    timed: Collection[str] = (),
) -> list[str]:
    """Return the digests of the candidates to time, the most important first.

    Published networks come first, and then members of the fronts that were timed before: a run that
    continues with a larger count times only as many more, and an interrupted one the same as ever.
    Representatives of each space's own predicted front follow, so that the report has measured
    members of every space; then those of the common front; then the rest of the front; and then the
    candidates that would be on it if their predictions were a little too high.

    Args:
        rows: the candidates with predicted latencies.
        objectives: objectives and limits of the run.
        spaces: names of the spaces.
        count: number of candidates to time.
        published: digests of published networks from which supernets start.
        timed: digests of candidates that were timed before, or that are trained.
    """
    complete = rows[rows["state"] == "complete"]
    members = front(complete, objectives)
    on_fronts = set(members["digest"])
    chosen: dict[str, None] = {}
    for space in spaces:
        own = front(complete[complete["space"] == space], objectives)
        most = min(MIN_PER_SPACE, count // len(spaces))
        chosen.update(dict.fromkeys(representatives(own, objectives, most)))
        on_fronts.update(own["digest"])
    chosen.update(dict.fromkeys(representatives(members, objectives, count - len(chosen))))
    chosen.update(dict.fromkeys(members["digest"]))
    chosen.update(dict.fromkeys(behind(complete, members, objectives)))
    first = [digest for digest in published if digest in set(complete["digest"])]
    first += [digest for digest in chosen if digest in timed and digest in on_fronts]
    return list(dict.fromkeys([*first, *chosen]))[:count]


def train_finalists(run: JobRun) -> tuple[list[str], dict[str, NasError]]:
    """Train networks of the front of a run to the end: what `nas select` picks, and others.

    The first is the pick by the scores. Another one is trained at the end if training has made it
    the pick.

    Args:
        run: the run, with the candidates and their measured latencies.

    Returns:
        The names of their folders in `models`, the pick first; and the error of each network that
        could not be trained, by its name. The run's record has the reasons, too.
    """
    decided = _decide_finalists(run)
    chosen = _finalists(run, decided.count)
    if not chosen:
        run.record.training_errors = {}
        return [], {}
    setup = _retraining(run, decided.epochs)
    _, errors = train_networks(setup, chosen, run.progress)
    picked = Selection(_options(run), run.images, run.models).choose()
    name, architecture = finalist(run, picked.member.digest)
    if name not in chosen:
        chosen[name] = architecture
        if not picked.is_trained:
            run.progress.note(f"{name} is trained, too: after these trainings, nas select picks it")
            _, own = train_networks(setup, {name: architecture}, run.progress)
            errors |= own
    run.record.training_errors = {each: error.message for each, error in errors.items()}
    return sorted(chosen.keys() - errors.keys(), key=[name, *chosen].index), errors


def _retraining(run: JobRun, epochs: int) -> Retraining:
    """Return what finalists of a job are trained with, for so many epochs."""
    probed = {name: each for name, each in run.published.items() if each.origin is None}
    return Retraining(run, epochs, probed=probed)


def _finalists(run: JobRun, count: int) -> dict[str, Architecture]:
    """Return so many networks of the front by folder.

    They are the pick, the published networks whose weights supernets start from, the knee, and
    representatives.

    Pick and knee are those of the scores, so that a job that was interrupted chooses them again.
    """
    rows = _front(run)
    if rows.empty:
        return {}
    options = _options(run, by_scores=True)
    wanted = [Selection(options, run.images).choose(), knee(options)]
    digests = [each.member.digest for each in wanted if each is not None]
    on_front = set(rows["digest"])
    digests[1:1] = [digest for digest in run.published_networks if digest in on_front]
    digests += representatives(rows, run.objectives, count, run.trained)
    return dict(finalist(run, digest) for digest in list(dict.fromkeys(digests))[:count])


def _front(run: JobRun) -> pd.DataFrame:
    """Return the front of a run from which finalists are chosen.

    If it has a network in two dtypes, only the faster one is returned. While a device has not timed
    its kit, only networks of the kit are returned: no others will be on the front.
    """
    rows = run.front
    if run.record.waiting is not None:
        return rows[rows["digest"].isin(_to_measure_of(run, run.trials))]
    return rows if len(run.settings.device.dtypes) == 1 else without_second_dtypes(rows)


def _options(run: JobRun, *, by_scores: bool = False) -> list[Option]:
    """Return the members of the front as options of `nas select`.

    Args:
        run: the run.
        by_scores: whether they are compared as if none was trained.
    """
    members, device = of_table(_front(run)), run.settings.device
    if by_scores:
        scored = [each.model_copy(update={"trained_accuracy": None}) for each in members]
        return member_options(scored, (), device)
    return member_options(members, run.models, device)


def _decide_finalists(run: JobRun) -> FinalistsRecord:
    """Decide and record how many finalists are trained, and for how many epochs.

    All get as many epochs, with which their training and export fill what is left of the budget,
    but no more than the job sets. Published networks get as many, and take their part of the time.
    What an earlier start decided stays, unless the budget has changed.
    """
    settings, known = run.settings, run.record.finalists
    fewest = planning.fewest_finalists(settings)
    limit_s, times = run.seconds_for(planning.FINALISTS), _EpochTimes(run)

    def epochs_of(count: int, published_s: float) -> float:
        networks = _finalists(run, count)
        own = times.of(networks)
        export_s = sum(planning.export_s(settings, run.data, epoch_s) for epoch_s in own)
        own_s = sum(own) + sum(times.of_validation(networks))
        return (limit_s - export_s) / max(1e-9, own_s + published_s)

    def choose_references(epochs: Callable[[float], int]) -> list[str] | None:
        if settings.finish.references is not None:
            return None
        return affordable(run, lambda networks: sum(times.of(networks)), epochs)

    if known is not None and known.budget == settings.budget:
        if settings.finish.retrain is not None:
            known.count = settings.finish.retrain
        if known.references is None:
            known.references = choose_references(lambda _: known.epochs)
        return known
    chosen = choose_references(
        lambda published_s: planning.allowed_epochs(settings, epochs_of(fewest, published_s))
    )
    networks, _ = published_networks(run, settings.finish.references or chosen or ())
    published_s = sum(times.of(untrained(run, networks)))
    count, epochs = planning.decide_finalists(settings, lambda count: epochs_of(count, published_s))
    decided = FinalistsRecord(budget=settings.budget, count=count, epochs=epochs, references=chosen)
    run.record.finalists = decided
    run.save()
    spent_s = run.seconds_before(planning.FINALISTS)
    beside = f"; so do the published networks {', '.join(networks)}" if networks else ""
    run.progress.note(
        f"{spent_s / 60:.1f} min of {settings.budget} are spent: finalists are {count} networks of "
        f"the front, and get {decided.epochs} epochs each{beside}"
    )
    return decided


class _EpochTimes:
    """The seconds that an epoch of networks takes, each measured once.

    Args:
        run: the run.
    """

    def __init__(self, run: JobRun) -> None:
        self._setup = _retraining(run, epochs=1)
        self._progress = run.progress
        self._seconds: dict[str, float] = {}

    def of(self, networks: Mapping[str, Architecture]) -> list[float]:
        """Return the seconds of an epoch of each network."""
        for name in [each for each in networks if each not in self._seconds]:
            if not self._seconds:
                self._progress.begin("epochs of the finalists", "network")
            self._seconds[name] = measure_epoch(self._setup, networks[name])
            self._progress.advance(len(self._seconds), None, name)
        return [self._seconds[name] for name in networks]

    def of_validation(self, networks: Mapping[str, Architecture]) -> list[float]:
        """Return the seconds by which a choice between weights prolongs an epoch of networks."""
        own = {name: each for name, each in networks.items() if self._setup.cross_validates(each)}
        # Each of the trainings leaves out one of so many parts of the images.
        return [(FOLDS - 1) * epoch_s for epoch_s in self.of(own)]


def export_finalists(run: JobRun, finalists: Sequence[str]) -> dict[str, NasError]:
    """Export the finalists of a job in the formats of `[finish] export`.

    Args:
        run: the run, with the trained finalists.
        finalists: names of their folders in `models`.

    Returns:
        The error of each finalist that could not be exported in all formats, by its name. The run's
        record has the reasons by format; under "all" if none was written.
    """
    request = ExportRequest(job_formats(run.settings))
    errors = export_networks(run, finalists, request, run.progress, in_job=True)
    run.record.export_errors = {
        name: {format_: own.message for format_, own in error.failed.items()}
        if isinstance(error, IncompleteExportError)
        else {"all": error.message}
        for name, error in errors.items()
    }
    return errors
