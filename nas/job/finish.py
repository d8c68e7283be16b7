"""The end of a job: the best candidates are timed as whole networks and scored once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from nas import jsonl
from nas.errors import KernelError, MeasurementError
from nas.job.context import Job
from nas.job.folder import RunFolder
from nas.job.measurements import MEASUREMENTS, Measurement, fastest, unsettled
from nas.latency import measure_networks
from nas.latency.verify import LARGEST_SHIFT, Pace
from nas.records import KernelSlowdown
from nas.report import candidates
from nas.search import Trial
from nas.supernet import Supernet, evaluate

MEASURED_AT_ONCE = 8
"""Whole networks that are timed together; a killed job loses at most so many timings."""

PACE_KERNELS = 12
"""Kernels of the table that are timed again beside the networks."""

FAMILY_SHARE = 3
"""Members of each space's own front that are timed at least, if the job times that many."""


def measure_front(
    job: Job, run: RunFolder, supernets: dict[str, Supernet], trials: Sequence[Trial]
) -> None:
    """Times the best candidates as whole networks, scores them on the hold-out, writes all rows.

    Raises MeasurementError if none could be timed.
    """
    by_digest = {trial.digest: trial for trial in trials}
    # Chosen from predictions alone, so that a run resumed here chooses what it chose before.
    predicted = _rows(job, trials, {}, {}, {}, {})
    chosen = to_measure(predicted, list(job.spaces), job.settings.finish.measure)
    _measure(job, run, [by_digest[digest] for digest in chosen])
    write_candidates(job, run, supernets, trials)
    measured, problems = fastest(jsonl.read(run.measurements, MEASUREMENTS))
    if problems and not measured:
        raise MeasurementError(
            f"No candidate could be timed as a whole network: {next(iter(problems.values()))}",
            remedy=f"{run.measurements} has the errors; remove its lines to try again.",
        )


def write_candidates(
    job: Job, run: RunFolder, supernets: dict[str, Supernet], trials: Sequence[Trial]
) -> None:
    """Writes all rows, with what was measured so far; what was is scored on the hold-out."""
    by_digest = {trial.digest: trial for trial in trials}
    measured, problems = fastest(jsonl.read(run.measurements, MEASUREMENTS))
    holdout = {}
    for digest in measured.keys() & by_digest.keys():
        trial = by_digest[digest]
        (score,) = evaluate(
            supernets[trial.architecture.space.name], [trial.architecture], job.data, "holdout"
        )
        holdout[digest] = score
    rows = _rows(job, trials, measured, holdout, problems, _unsure_launches(job, trials))
    candidates.write(rows, run.trials)


def _measure(job: Job, run: RunFolder, chosen: Sequence[Trial]) -> None:
    """Times each network until its timings agree; every timing is a line of the measurement log."""
    job.watch.begin("whole networks", "timing")
    jsonl.repair(run.measurements)
    done = 0
    graphs = {t.digest: t.architecture.graph for t in chosen}
    kernels = [
        kernel for graph in graphs.values() for kernel in job.runtime.kernels(graph, job.batch)
    ]
    pace = Pace(job.table, job.runtime, kernels, PACE_KERNELS)
    while waiting := unsettled(jsonl.read(run.measurements, MEASUREMENTS), list(graphs)):
        again = [trial for trial in chosen if trial.digest in waiting]
        total = done + len(again)
        pace.take()
        for start in range(0, len(again), MEASURED_AT_ONCE):
            batch = again[start : start + MEASURED_AT_ONCE]
            timings = measure_networks(
                [graphs[trial.digest] for trial in batch],
                job.runtime,
                job.table.schedules(),
                batch=job.batch,
            )
            for trial, found in zip(batch, timings, strict=True):
                measurement = Measurement.of_timing(trial, found)
                jsonl.append(run.measurements, measurement.model_dump(mode="json", by_alias=True))
            done += len(batch)
            job.watch.advance(done, total)
    # Where nothing was left to time, an earlier start has said it.
    if pace.ratios is not None:
        run.record.slowdown = KernelSlowdown(**asdict(pace.ratios))
        if abs(pace.ratios.median - 1) > LARGEST_SHIFT:
            job.watch.note(
                f"kernels took {pace.ratios.median:.2f} times what the latency table says while "
                "networks were timed; `nas table verify` tells more"
            )


def to_measure(rows: pd.DataFrame, spaces: Sequence[str], count: int) -> list[str]:
    """Digests of the candidates worth timing, best first.

    The ends and an even spread of the predicted front, and of each space's own front so that every
    family stands in the report with measured members. What is left of `count` goes to the rest of
    the front, and then to the candidates that would be on it if their prediction were only a little
    too high: those first for which the least is enough.
    """
    complete = rows[rows["state"] == "complete"]
    front = candidates.front(complete)
    chosen: dict[str, None] = {}
    for space in spaces:
        own = candidates.front(complete[complete["space"] == space])["digest"].tolist()
        chosen.update(dict.fromkeys(_spread(own, min(FAMILY_SHARE, count // len(spaces)))))
    rest = front["digest"].tolist()
    chosen.update(dict.fromkeys(_spread(rest, max(0, count - len(chosen)))))
    chosen.update(dict.fromkeys(rest))
    chosen.update(dict.fromkeys(_behind(complete, front)))
    return list(chosen)[:count]


def _behind(complete: pd.DataFrame, front: pd.DataFrame) -> list[str]:
    """Digests of the candidates behind the front, the nearest first.

    The distance is by how much a candidate is predicted to be slower than the fastest member of the
    front that is as accurate: the error of its prediction that would put it on the front.
    """
    accuracy = front["validation_accuracy"].to_numpy()
    latency = front["predicted_us"].to_numpy()
    as_accurate = accuracy[None, :] >= complete["validation_accuracy"].to_numpy()[:, None]
    fastest = np.where(as_accurate, latency[None, :], np.inf).min(axis=1)
    slower = complete["predicted_us"].to_numpy() / fastest
    order = np.lexsort((np.arange(len(slower)), slower))
    return complete["digest"].to_numpy()[order].tolist()


def _spread(items: Sequence[str], count: int) -> list[str]:
    """`count` of the items, the ends first among them, evenly spread."""
    if count >= len(items):
        return list(items)
    at = np.linspace(0, len(items) - 1, count).round().astype(int).tolist()
    return [items[position] for position in dict.fromkeys(at)]


def _rows(
    job: Job,
    trials: Sequence[Trial],
    measured: dict[str, float],
    holdout: dict[str, float],
    problems: dict[str, str],
    unsure_launches: dict[str, tuple[int, int]],
) -> pd.DataFrame:
    return candidates.from_trials(
        trials,
        measured_us=measured,
        holdout_accuracy=holdout,
        problems=problems,
        unsure_launches=unsure_launches,
    )


def _unsure_launches(job: Job, trials: Sequence[Trial]) -> dict[str, tuple[int, int]]:
    """Return unstable and estimated launches of each network that the table predicts."""
    counts = {}
    for trial in trials:
        graph = trial.architecture.graph
        try:
            prediction = job.table.predict(graph, job.batch)
        except KernelError:
            continue  # an infeasible candidate, which has no latency
        counts[trial.digest] = prediction.unstable, prediction.estimated
    return counts
