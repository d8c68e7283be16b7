"""The best candidates of a job are timed as whole networks."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from nas.errors import MeasurementError, RequestError
from nas.files import jsonl
from nas.job import kits, planning
from nas.job.folder import JobRun
from nas.job.source import trained_in_source
from nas.job.trials_file import candidate_rows, write_candidates
from nas.latency import configured_runtime, measure_networks
from nas.latency.kit import KitDevice
from nas.report import page
from nas.run.candidates import with_latencies
from nas.run.front import behind, front, representatives
from nas.run.kits import waiting_text
from nas.run.measurements import (
    NETWORKS_PER_ROUND,
    Measurement,
    errors_by_digest,
    to_time_again,
)
from nas.run.objectives import RunObjective
from nas.run.progress import JobProgress
from nas.run.run import Run
from nas.search import Trial
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
    chosen = networks_to_measure(run, candidate_rows(run, trials))
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


def networks_to_measure(run: Run, rows: pd.DataFrame) -> list[str]:
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
        kits.time_networks(run, device, networks_to_measure(run, run.trials), progress)
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
        for trial, latency in zip(together, timed, strict=True):
            for measurement in Measurement.of_latency(
                trial.architecture, trial.values["predicted_us"], latency
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
