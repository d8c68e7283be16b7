"""Writes `trials.csv`, the candidates of a job: during its search, and when the front is timed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from nas.errors import KernelError, RunFolderError
from nas.figures import COUNTS
from nas.job.folder import JobRun
from nas.latency import Prediction
from nas.run import candidates
from nas.run.measurements import errors_by_digest
from nas.run.short_trainings import with_short_trainings
from nas.search import Trial
from nas.supernet.evaluation import evaluate
from nas.supernet.weights import Supernet


def write_candidates(
    run: JobRun,
    trials: Sequence[Trial],
    supernets: Mapping[str, Supernet] | None = None,
    also: Collection[str] = (),
) -> None:
    """Write the rows of all candidates, with what earlier starts of the run measured.

    Args:
        run: the run.
        trials: the trials of the search so far.
        supernets: the trained supernets by space, which score the measured networks on the hold-out
            images, unless an earlier start has. Without them nothing is scored or predicted, so
            that a search is interrupted for an instant only.
        also: digests of networks that are scored likewise, because a device will time them.
    """
    measured = run.latencies
    scored = measured.keys() | set(also)
    holdout = _holdout_before(run, scored)
    predictions: dict[str, Prediction] = {}
    if supernets is not None:
        for trial in trials:
            architecture = trial.architecture
            if trial.digest in scored and trial.digest not in holdout:
                supernet = supernets[architecture.space.name]
                (score,) = evaluate(supernet, [architecture], run.data, "holdout")
                holdout[trial.digest] = run.record.expected(score, architecture)
        predictions = _predictions(run, trials)
    rows = candidate_rows(
        run,
        trials,
        latencies=measured,
        holdout_accuracy=holdout,
        problems=errors_by_digest(run.timing_log),
        predictions=predictions,
    )
    run.write_trials(with_short_trainings(rows, run.short_trainings))


def _holdout_before(run: JobRun, digests: Collection[str]) -> dict[str, float]:
    """Return the hold-out accuracies of some networks in the table so far, by digest."""
    try:
        before = run.trials_so_far
    except RunFolderError:  # A damaged file is written anew.
        return {}
    known = before[before["digest"].isin(digests)].dropna(subset=["holdout_accuracy"])
    return dict(zip(known["digest"], known["holdout_accuracy"], strict=True))


def candidate_rows(
    run: JobRun, trials: Sequence[Trial], **known: Mapping[str, Any]
) -> pd.DataFrame:
    """Return the trials of a search as a table of candidates.

    Args:
        run: the run.
        trials: the trials.
        known: what else is known of them, see `candidates.from_trials`.
    """
    return candidates.from_trials(
        trials,
        figures=[name for name in run.figures if name not in COUNTS],
        basis=run.runtime.network_basis,
        **known,
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
