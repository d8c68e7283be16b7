"""The end of a job: time the best candidates as whole networks, and score them on the hold-out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from nas import jsonl
from nas.errors import KernelError, MeasurementError
from nas.job.context import JobContext
from nas.job.folder import RunFolder
from nas.job.measurements import (
    MEASUREMENTS,
    NETWORKS_PER_ROUND,
    Measurement,
    latencies_and_errors,
    unsettled,
)
from nas.latency import Prediction, measure_networks
from nas.run import candidates
from nas.run.front import behind, front, representatives, with_trained
from nas.run.record import JobSearch
from nas.run.trained import read_trained
from nas.search import Trial
from nas.supernet.evaluation import evaluate
from nas.supernet.weights import Supernet

MIN_PER_SPACE = 3
"""Members of each space's own front that are timed, if the job times enough networks."""


def measure_front(
    job: JobContext, run: RunFolder, supernets: dict[str, Supernet], trials: Sequence[Trial]
) -> None:
    """Time the best candidates as whole networks, score them on the hold-out, and write all rows.

    Args:
        job: the job.
        run: the run folder.
        supernets: the trained supernets by space.
        trials: the trials of the search.

    Raises:
        MeasurementError: no candidate could be timed.
    """
    by_digest = {trial.digest: trial for trial in trials}
    # Candidates are chosen by their predictions, not by what was measured, so that a resumed run
    # chooses the same.
    predicted = _rows(job, trials, {}, {}, {}, {})
    timed = {each.digest for each in jsonl.read(run.measurements, MEASUREMENTS)}
    chosen = to_measure(
        predicted, run.record.job.search, list(job.spaces), job.settings.finish.measure, timed
    )
    _measure(job, run, [by_digest[digest] for digest in chosen])
    write_candidates(job, run, supernets, trials)
    measured, problems = latencies_and_errors(jsonl.read(run.measurements, MEASUREMENTS))
    if problems and not measured:
        raise MeasurementError(
            f"No candidate could be timed as a whole network: {next(iter(problems.values()))}",
            remedy=f"{run.measurements} has the errors; remove its lines to try again.",
        )


def write_candidates(
    job: JobContext, run: RunFolder, supernets: dict[str, Supernet], trials: Sequence[Trial]
) -> None:
    """Write the rows of all candidates; those with a measured latency get a hold-out accuracy."""
    by_digest = {trial.digest: trial for trial in trials}
    measured, problems = latencies_and_errors(jsonl.read(run.measurements, MEASUREMENTS))
    holdout = {}
    for digest in measured.keys() & by_digest.keys():
        trial = by_digest[digest]
        (score,) = evaluate(
            supernets[trial.architecture.space.name], [trial.architecture], job.data, "holdout"
        )
        holdout[digest] = score
    rows = _rows(job, trials, measured, holdout, problems, _predictions(job, trials))
    rows = with_trained(rows, read_trained(run.path), run.record.job.search)
    candidates.write(rows, run.trials)


def _measure(job: JobContext, run: RunFolder, chosen: Sequence[Trial]) -> None:
    """Time each network until its timings agree, and append all timings to the log."""
    job.progress.begin("whole networks", "network")
    jsonl.repair(run.measurements)
    graphs = {t.digest: t.architecture.graph for t in chosen}
    log = jsonl.read(run.measurements, MEASUREMENTS)
    waiting = unsettled(log, list(graphs), once=job.runtime.has_constant_networks)
    left = [trial for trial in chosen if trial.digest in waiting]
    for start in range(0, len(left), NETWORKS_PER_ROUND):
        batch = left[start : start + NETWORKS_PER_ROUND]
        timed = measure_networks(
            [graphs[trial.digest] for trial in batch],
            job.runtime,
            job.table.schedules(),
            batch=job.batch,
        )
        for trial, result in zip(batch, timed, strict=True):
            for measurement in Measurement.of_timings(trial, result):
                jsonl.append(run.measurements, measurement.model_dump(mode="json", by_alias=True))
        job.progress.advance(start + len(batch), len(left))


def to_measure(
    rows: pd.DataFrame,
    search: JobSearch,
    spaces: Sequence[str],
    count: int,
    timed: Collection[str] = (),
) -> list[str]:
    """Return the digests of the candidates to time, the most important first.

    These are representatives of each space's own predicted front, so that the report has measured
    members of every space; then those of the common front; then the rest of the front; and then the
    candidates that would be on it if their predictions were a little too high.

    Members of these fronts that were timed before are chosen first. A run that continues with a
    larger count therefore times only as many more, and an interrupted one the same as ever.

    Args:
        rows: the candidates with predicted latencies.
        search: objectives and limits of the job.
        spaces: names of the spaces.
        count: number of candidates to time.
        timed: digests of candidates that were timed before.
    """
    complete = rows[rows["state"] == "complete"]
    members = front(complete, search)
    on_fronts = set(members["digest"])
    chosen: dict[str, None] = {}
    for space in spaces:
        own = front(complete[complete["space"] == space], search)
        most = min(MIN_PER_SPACE, count // len(spaces))
        chosen.update(dict.fromkeys(representatives(own, search, most)))
        on_fronts.update(own["digest"])
    chosen.update(dict.fromkeys(representatives(members, search, count - len(chosen))))
    chosen.update(dict.fromkeys(members["digest"]))
    chosen.update(dict.fromkeys(behind(complete, members, search)))
    first = [digest for digest in chosen if digest in timed and digest in on_fronts]
    return list(dict.fromkeys([*first, *chosen]))[:count]


def _rows(
    job: JobContext,
    trials: Sequence[Trial],
    measured: dict[str, float],
    holdout: dict[str, float],
    problems: dict[str, str],
    predictions: dict[str, Prediction],
) -> pd.DataFrame:
    return candidates.from_trials(
        trials,
        measured_us=measured,
        holdout_accuracy=holdout,
        problems=problems,
        predictions=predictions,
        basis=job.runtime.network_basis,
    )


def _predictions(job: JobContext, trials: Sequence[Trial]) -> dict[str, Prediction]:
    """Return the table's prediction of each network that it can predict, by digest."""
    predictions = {}
    for trial in trials:
        try:
            predictions[trial.digest] = job.table.predict(trial.architecture, job.batch)
        except KernelError:
            continue  # an infeasible candidate, which has no latency
    return predictions
