"""The candidates of a run, one row for each distinct architecture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nas import files, statistics
from nas.documents import Format
from nas.errors import RunFolderError
from nas.records import TrainedRecord
from nas.records.fields import DEVICE_LATENCY, FIGURES, MEASURED
from nas.report.rows import CandidateRow, read_csv
from nas.search import Trial
from nas.statistics import LatencyAgreement

if TYPE_CHECKING:
    from nas.latency import Prediction

COLUMNS = [
    "id",
    "space",
    "digest",
    "state",
    "validation_accuracy",
    "corrected_accuracy",
    "score_images",
    "predicted_us",
    "measured_us",
    "macs",
    "params",
    "peak_memory_bytes",
    *FIGURES,
    "seconds",
    "error",
    "holdout_accuracy",
    "trained_accuracy",
    "test_accuracy",
    "unstable_launches",
    "estimated_launches",
    "dispatch_share",
    "basis",
    "architecture",
]
"""Columns of `trials.csv` and `front.csv`; `nas.report.rows.CandidateRow` describes them.

The predicted latencies on further devices of a search follow that on its own device.
"""

_FLOAT_COLUMNS = (
    "validation_accuracy",
    "corrected_accuracy",
    "predicted_us",
    "measured_us",
    "holdout_accuracy",
    "trained_accuracy",
    "test_accuracy",
    *FIGURES,
    "dispatch_share",
)

_INTEGER_COLUMNS = ("score_images", "unstable_launches", "estimated_launches")

MIN_ID_CHARACTERS = 4
"""Shortest id: in a run of few candidates, ids stay recognisable as digests."""

TRIALS = Format(
    CandidateRow,
    "a table of candidates",
    RunFolderError,
    "Run the job again: it writes the table anew.",
)


def from_trials(
    trials: Sequence[Trial],
    *,
    measured_us: Mapping[str, float],
    holdout_accuracy: Mapping[str, float],
    problems: Mapping[str, str],
    predictions: Mapping[str, Prediction],
    basis: str = MEASURED,
) -> pd.DataFrame:
    """Return the trials of a search as a table with `COLUMNS`, in their order.

    Args:
        trials: trials with the values `predicted_us`, `validation_error`, `corrected_error`,
            `score_images` and the `FIGURES` where they are known.
        measured_us: latency of whole networks by digest, in microseconds.
        holdout_accuracy: accuracy on images that the search did not use, by digest.
        problems: reason why a whole network could not be timed, by digest.
        predictions: predictions of the table, by digest.
        basis: what latencies of whole networks come from, see `Runtime.network_basis`.
    """
    ids = short_ids([trial.digest for trial in trials])
    names = dict.fromkeys(name for trial in trials for name in trial.values)
    devices = [name for name in names if name.startswith(DEVICE_LATENCY)]
    rows: list[dict[str, Any]] = []
    for trial in trials:
        graph = trial.architecture.graph
        prediction = predictions.get(trial.digest)
        rows.append(
            {
                "id": ids[trial.digest],
                "space": trial.architecture.space.name,
                "digest": trial.digest,
                "state": trial.state,
                "validation_accuracy": _accuracy(trial, "validation_error", digits=6),
                "corrected_accuracy": _accuracy(trial, "corrected_error", digits=9),
                "score_images": trial.values.get("score_images"),
                "predicted_us": trial.values.get("predicted_us"),
                "measured_us": measured_us.get(trial.digest),
                "macs": graph.macs,
                "params": graph.params,
                "peak_memory_bytes": graph.peak_memory_bytes,
                **{figure: trial.values.get(figure) for figure in FIGURES},
                **{name: trial.values.get(name) for name in devices},
                "seconds": trial.seconds,
                "error": trial.error or problems.get(trial.digest, ""),
                "holdout_accuracy": holdout_accuracy.get(trial.digest),
                "unstable_launches": prediction and prediction.unstable_launches,
                "estimated_launches": prediction and prediction.estimated_launches,
                "dispatch_share": prediction and round(prediction.dispatch_share, 4),
                "basis": basis,
                "architecture": json.dumps(trial.architecture.to_json()),
            }
        )
    return _table(rows)


def basis(rows: pd.DataFrame) -> str:
    """Return what the latencies of whole networks come from, see `Runtime.network_basis`."""
    return "; ".join(dict.fromkeys(rows["basis"])) or MEASURED


def _accuracy(trial: Trial, error: str, digits: int) -> float | None:
    return round(1 - trial.values[error], digits) if error in trial.values else None


def score(rows: pd.DataFrame) -> pd.Series:
    """Return the accuracy that the search maximised: the corrected one, if it was corrected."""
    return rows["corrected_accuracy"].fillna(rows["validation_accuracy"])


def with_trained(rows: pd.DataFrame, trained: Mapping[str, TrainedRecord]) -> pd.DataFrame:
    """Return candidates with the accuracies of those that were trained to the end.

    Args:
        rows: candidates of a run.
        trained: records of trained networks by digest.
    """
    records = [trained.get(digest) for digest in rows["digest"]]

    def column(accuracy: Callable[[TrainedRecord], float]) -> pd.Series:
        values = [None if each is None else accuracy(each) for each in records]
        return pd.Series(values, rows.index, dtype=float)

    return rows.assign(
        trained_accuracy=column(lambda record: record.holdout.accuracy),
        test_accuracy=column(lambda record: record.test.accuracy),
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    names = dict.fromkeys(name for row in rows for name in row)
    devices = [name for name in names if name.startswith(DEVICE_LATENCY)]
    types: dict[str, Any] = {
        **dict.fromkeys((*_FLOAT_COLUMNS, *devices), float),
        **dict.fromkeys(_INTEGER_COLUMNS, "Int64"),
    }
    at = COLUMNS.index("predicted_us") + 1
    return pd.DataFrame(rows, columns=[*COLUMNS[:at], *devices, *COLUMNS[at:]]).astype(types)


def short_ids(digests: Sequence[str]) -> dict[str, str]:
    """Return the shortest prefixes, all of one length, that tell the digests apart."""
    distinct = set(digests)
    length = MIN_ID_CHARACTERS
    while len({digest[:length] for digest in distinct}) < len(distinct):
        length += 1
    return {digest: digest[:length] for digest in distinct}


def latency_us(rows: pd.DataFrame) -> pd.Series:
    """Return the measured latencies if any row has one, else the predicted ones."""
    name = "measured_us" if rows["measured_us"].notna().any() else "predicted_us"
    return rows[name]


def latency_agreement(rows: pd.DataFrame) -> LatencyAgreement | None:
    """Compare predicted with measured latencies; None if no row has both."""
    both = rows.dropna(subset=["predicted_us", "measured_us"])
    if both.empty:
        return None
    return statistics.latency_agreement(
        both["predicted_us"].to_numpy(float), both["measured_us"].to_numpy(float)
    )


def write(rows: pd.DataFrame, path: Path) -> None:
    """Replace a CSV file of candidates atomically. Raises OSError; the old file is kept."""
    files.replace(path, rows.to_csv(index=False))


def read(path: Path) -> pd.DataFrame:
    """Return the table in a CSV file of candidates, every row checked.

    Raises RunFolderError for a missing or damaged file; the message names the line.
    """
    return _table([row.cells for row in read_csv(path, TRIALS)])
