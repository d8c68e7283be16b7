"""The end of a job: the best candidates are timed as whole networks and scored once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nas import jsonl
from nas.errors import MeasurementError
from nas.job.folder import RunFolder
from nas.job.opened import Job
from nas.latency import NetworkTiming, measure_networks
from nas.report import candidates
from nas.search import Trial
from nas.supernet import Supernet, evaluate

MEASURED_AT_ONCE = 8
"""Whole networks that are timed in common rounds; a killed job loses at most so many timings."""

FAMILY_SHARE = 3
"""Members of each space's own front that are timed at least, if the job times that many."""


def measure_front(
    job: Job, run: RunFolder, supernets: dict[str, Supernet], trials: Sequence[Trial]
) -> None:
    """Times the best candidates as whole networks, scores them on the hold-out, writes all rows."""
    by_digest = {trial.digest: trial for trial in trials}
    # Chosen from predictions alone, so that a run resumed here chooses what it chose before.
    predicted = _rows(job, trials, {}, {}, {})
    chosen = to_measure(predicted, list(job.spaces), job.settings.finish.measure)
    measured, problems = kept_measurements(jsonl.read(run.measurements))
    waiting = [d for d in chosen if d not in measured and d not in problems]
    _measure(job, run, [by_digest[digest] for digest in waiting])
    measured, problems = kept_measurements(jsonl.read(run.measurements))
    holdout = {}
    for digest in measured.keys() & by_digest.keys():
        trial = by_digest[digest]
        (score,) = evaluate(
            supernets[trial.architecture.space], [trial.architecture], job.data, "holdout"
        )
        holdout[digest] = score
    candidates.write(_rows(job, trials, measured, holdout, problems), run.trials)
    if problems and not measured:
        raise MeasurementError(
            f"No candidate could be timed as a whole network: {next(iter(problems.values()))}",
            remedy=f"{run.measurements} has the errors; remove its lines to try again.",
        )


def _measure(job: Job, run: RunFolder, waiting: Sequence[Trial]) -> None:
    """Adds a line to the measurement log for each network."""
    job.watch.begin("whole networks", "network")
    for start in range(0, len(waiting), MEASURED_AT_ONCE):
        batch = waiting[start : start + MEASURED_AT_ONCE]

        def told(done: int, total: int, start: int = start, size: int = len(batch)) -> None:
            job.watch.advance(start + size * done // total, len(waiting))

        graphs = [job.spaces[t.architecture.space].lower(t.architecture) for t in batch]
        timings = measure_networks(graphs, job.runtime, job.table.schedules(), progress=told)
        for trial, found in zip(batch, timings, strict=True):
            jsonl.append(run.measurements, _measurement(trial, found))


def _measurement(trial: Trial, found: NetworkTiming) -> dict[str, Any]:
    timing = found.timing
    steady = timing is not None and not timing.unstable
    return {
        "schema": 1,
        "digest": trial.digest,
        "architecture": trial.architecture.to_json(),
        "status": "ok" if steady else "unstable" if timing else "failed",
        "predicted_us": trial.values["predicted_us"],
        "measured_us": None if timing is None else timing.latency_us,
        "samples_us": [] if timing is None else list(timing.samples_us),
        "error": found.error,
    }


def to_measure(rows: pd.DataFrame, spaces: Sequence[str], count: int) -> list[str]:
    """Digests of the candidates worth timing, best first.

    The ends and an even spread of the predicted front, and of each space's own front so that every
    family stands in the report with measured members. What is left of `count` goes to the rest of
    the front and then to the candidates just behind it, since predictions may be a little off.
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
    behind = complete[~complete["digest"].isin(list(chosen))]
    while len(chosen) < count and len(behind):
        layer = candidates.front(behind)["digest"].tolist()
        chosen.update(dict.fromkeys(_spread(layer, count - len(chosen))))
        behind = behind[~behind["digest"].isin(layer)]
    return list(chosen)[:count]


def _spread(items: Sequence[str], count: int) -> list[str]:
    """`count` of the items, the ends first among them, evenly spread."""
    if count >= len(items):
        return list(items)
    at = np.linspace(0, len(items) - 1, count).round().astype(int).tolist()
    return [items[position] for position in dict.fromkeys(at)]


def kept_measurements(
    records: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, float], dict[str, str]]:
    """Measured latency, and problems, by digest, from the lines of a measurement log.

    A later line replaces an earlier one of the same network.
    """
    measured: dict[str, float] = {}
    problems: dict[str, str] = {}
    for record in records:
        digest = record["digest"]
        measured.pop(digest, None)
        problems.pop(digest, None)
        if record["status"] == "failed":
            problems[digest] = record["error"]
        else:
            measured[digest] = record["measured_us"]
    return measured, problems


def _rows(
    job: Job,
    trials: Sequence[Trial],
    measured: dict[str, float],
    holdout: dict[str, float],
    problems: dict[str, str],
) -> pd.DataFrame:
    return candidates.candidates(
        trials,
        job.spaces,
        measured_us=measured,
        holdout_accuracy=holdout,
        problems=problems,
    )
