"""Writes `trials.csv`, the candidates of a job: during its search, and when the front is timed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from nas.errors import KernelError, RunFolderError
from nas.files import jsonl
from nas.job.folder import JobRun
from nas.latency import Prediction
from nas.latency.moments import Latency
from nas.run import candidates
from nas.run.measurements import MEASUREMENTS, errors_by_digest, latencies_by_digest
from nas.run.settings import COUNTS
from nas.search import Trial
from nas.supernet.evaluation import evaluate
from nas.supernet.weights import Supernet


def write_scored(run: JobRun, trials: Sequence[Trial]) -> None:
    """Write the rows of the candidates so far, with what earlier starts of the run measured.

    Unlike `write_candidates` it scores and predicts nothing, so that it can interrupt a search.
    """
    log = jsonl.read(run.measurements, MEASUREMENTS)
    measured, problems = latencies_by_digest(log), errors_by_digest(log)
    holdout = _holdout_before(run, measured)
    run.write_trials(candidate_rows(run, trials, measured, holdout, problems, {}))


def write_candidates(run: JobRun, supernets: dict[str, Supernet], trials: Sequence[Trial]) -> None:
    """Write the rows of all candidates; those with a measured latency get a hold-out accuracy.

    Those that an earlier start of the run has scored are not scored again.
    """
    by_digest = {trial.digest: trial for trial in trials}
    log = jsonl.read(run.measurements, MEASUREMENTS)
    measured, problems = latencies_by_digest(log), errors_by_digest(log)
    holdout = _holdout_before(run, measured)
    for digest in measured.keys() & by_digest.keys() - holdout.keys():
        trial = by_digest[digest]
        (score,) = evaluate(
            supernets[trial.architecture.space.name], [trial.architecture], run.data, "holdout"
        )
        holdout[digest] = run.record.expected(score, trial.architecture)
    run.write_trials(
        candidate_rows(run, trials, measured, holdout, problems, _predictions(run, trials))
    )


def _holdout_before(run: JobRun, measured: Collection[str]) -> dict[str, float]:
    """Return the hold-out accuracies of measured networks in the table so far, by digest."""
    try:
        before = run.trials_so_far
    except RunFolderError:  # A damaged file is written anew.
        return {}
    known = before[before["digest"].isin(measured)].dropna(subset=["holdout_accuracy"])
    return dict(zip(known["digest"], known["holdout_accuracy"], strict=True))


def candidate_rows(
    run: JobRun,
    trials: Sequence[Trial],
    measured: dict[str, Latency],
    holdout: dict[str, float],
    problems: dict[str, str],
    predictions: dict[str, Prediction],
) -> pd.DataFrame:
    """Return the trials of a search as a table of candidates, see `candidates.from_trials`."""
    return candidates.from_trials(
        trials,
        latencies=measured,
        holdout_accuracy=holdout,
        problems=problems,
        predictions=predictions,
        figures=[name for name in run.settings.search.costs if name not in COUNTS],
        basis=run.runtime.network_basis,
    )


def _predictions(run: JobRun, trials: Sequence[Trial]) -> dict[str, Prediction]:
    """Return the table's prediction of each network that it can predict, by digest."""
    predictions = {}
    for trial in trials:
        try:
            table = run.tables[run.dtype_of(trial.architecture)]
            predictions[trial.digest] = table.predict(trial.architecture, run.settings.device.batch)
        except KernelError:
            continue  # an infeasible candidate, which has no latency
    return predictions
