"""The rows of a run: one a distinct architecture, and the front among them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nas import files
from nas.documents import Format
from nas.errors import RunFolderError
from nas.report.rows import Row, read_csv
from nas.search import Trial, non_dominated

COLUMNS = [
    "id",
    "space",
    "digest",
    "state",
    "validation_accuracy",
    "predicted_us",
    "measured_us",
    "macs",
    "params",
    "peak_memory_bytes",
    "seconds",
    "error",
    "holdout_accuracy",
    "unstable_launches",
    "estimated_launches",
    "architecture",
]
"""`holdout_accuracy` is the score on validation images that the search never saw; only
architectures that were timed as whole networks have one. `unstable_launches` and
`estimated_launches` count the launches behind `predicted_us` whose timing did not settle, or is an
estimate."""

_NUMBERS = (
    "validation_accuracy",
    "predicted_us",
    "measured_us",
    "holdout_accuracy",
)

_COUNTS = ("unstable_launches", "estimated_launches")

SHORTEST_ID = 4

TRIALS = Format(
    Row, "a table of candidates", RunFolderError, "Run the job again: it writes the table anew."
)


def candidates(
    trials: Sequence[Trial],
    *,
    measured_us: Mapping[str, float],
    holdout_accuracy: Mapping[str, float],
    problems: Mapping[str, str],
    unsure_launches: Mapping[str, tuple[int, int]],
) -> pd.DataFrame:
    """The trials as a table with `COLUMNS`, in the order in which they ended.

    Args:
        trials: with values `predicted_us` and `validation_error` where these are known.
        measured_us: whole-network latency by digest.
        holdout_accuracy: by digest.
        problems: why a whole network could not be timed, by digest.
        unsure_launches: unstable and estimated launches of each network, by digest.
    """
    ids = short_ids([trial.digest for trial in trials])
    rows = []
    for trial in trials:
        graph = trial.architecture.graph
        error = trial.values.get("validation_error")
        unstable, estimated = unsure_launches.get(trial.digest, (None, None))
        rows.append(
            {
                "id": ids[trial.digest],
                "space": trial.architecture.space.name,
                "digest": trial.digest,
                "state": trial.state,
                "validation_accuracy": None if error is None else round(1 - error, 6),
                "predicted_us": trial.values.get("predicted_us"),
                "measured_us": measured_us.get(trial.digest),
                "macs": graph.macs,
                "params": graph.params,
                "peak_memory_bytes": graph.peak_memory_bytes,
                "seconds": trial.seconds,
                "error": trial.error or problems.get(trial.digest, ""),
                "holdout_accuracy": holdout_accuracy.get(trial.digest),
                "unstable_launches": unstable,
                "estimated_launches": estimated,
                "architecture": json.dumps(trial.architecture.to_json()),
            }
        )
    return _table(rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    types: dict[str, Any] = {**dict.fromkeys(_NUMBERS, float), **dict.fromkeys(_COUNTS, "Int64")}
    return pd.DataFrame(rows, columns=COLUMNS).astype(types)


def short_ids(digests: Sequence[str]) -> dict[str, str]:
    """For each digest its shortest prefix, of one length for all, that no other digest shares."""
    distinct = set(digests)
    length = SHORTEST_ID
    while len({digest[:length] for digest in distinct}) < len(distinct):
        length += 1
    return {digest: digest[:length] for digest in distinct}


def front(rows: pd.DataFrame, *, max_latency_us: float | None = None) -> pd.DataFrame:
    """The Pareto front of accuracy and latency, fastest first.

    Only complete rows compete. Where any of them was timed as a whole network, only those that were
    compete, with the measured latency: a prediction never beats a measurement. Rows beyond the
    limit are left out.
    """
    latency = latency_us(rows)
    keep = (rows["state"] == "complete") & latency.notna() & rows["validation_accuracy"].notna()
    if max_latency_us is not None:
        keep &= latency <= max_latency_us
    rows, latency = rows[keep], latency[keep]
    points = np.column_stack([latency, 1 - rows["validation_accuracy"]])
    return rows.iloc[non_dominated(points)]


def latency_us(rows: pd.DataFrame) -> pd.Series:
    """Measured latency if any row has one (missing for the others), else predicted."""
    name = "measured_us" if rows["measured_us"].notna().any() else "predicted_us"
    return rows[name]


def write(rows: pd.DataFrame, path: Path) -> None:
    """Writes rows as CSV, replacing the file at once."""
    files.replace(path, rows.to_csv(index=False))


def read(path: Path) -> pd.DataFrame:
    """Return what `write` wrote, with every row checked.

    Raises RunFolderError for a missing or damaged file; the message names the line.
    """
    rows = [row.model_dump() for row in read_csv(path, TRIALS)]
    return _table(rows)
