"""The candidates of a run as a table, one row for each distinct architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd

from nas import files, statistics
from nas.records import ArchitectureRecord, Candidate
from nas.records.candidate import CANDIDATE, read_csv
from nas.records.fields import DEVICE_LATENCY, FIGURES, MEASURED
from nas.search import Trial
from nas.statistics import LatencyAgreement

if TYPE_CHECKING:
    from nas.latency import Prediction

MIN_ID_CHARACTERS = 4
"""Shortest id: in a run of few candidates, ids stay recognisable as digests."""


def from_trials(
    trials: Sequence[Trial],
    *,
    measured_us: Mapping[str, float],
    holdout_accuracy: Mapping[str, float],
    problems: Mapping[str, str],
    predictions: Mapping[str, Prediction],
    basis: str = MEASURED,
) -> pd.DataFrame:
    """Return the trials of a search as a table of candidates, in their order.

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
    return table(
        [
            _candidate(
                trial,
                predictions.get(trial.digest),
                id=ids[trial.digest],
                measured_us=measured_us.get(trial.digest),
                error=trial.error or problems.get(trial.digest, ""),
                holdout_accuracy=holdout_accuracy.get(trial.digest),
                basis=basis,
            )
            for trial in trials
        ]
    )


def _candidate(trial: Trial, prediction: Prediction | None, **fields: Any) -> Candidate:
    graph, values = trial.architecture.graph, trial.values
    for name in ("predicted_us", *FIGURES):
        fields[name] = values.get(name)
    for name, digits in (("validation", 6), ("corrected", 9)):
        if f"{name}_error" in values:
            fields[f"{name}_accuracy"] = round(1 - values[f"{name}_error"], digits)
    if prediction is not None:
        fields["unstable_launches"] = prediction.unstable_launches
        fields["estimated_launches"] = prediction.estimated_launches
        fields["dispatch_share"] = round(prediction.dispatch_share, 4)
    return Candidate(
        space=trial.architecture.space.name,
        digest=trial.digest,
        state=trial.state,
        score_images=int(values["score_images"]) if "score_images" in values else None,
        device_predicted_us={
            name.removeprefix(DEVICE_LATENCY): value
            for name, value in values.items()
            if name.startswith(DEVICE_LATENCY)
        },
        macs=graph.macs,
        params=graph.params,
        peak_memory_bytes=graph.peak_memory_bytes,
        seconds=trial.seconds,
        architecture=ArchitectureRecord.model_validate(trial.architecture.to_json()),
        **fields,
    )


def table(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Return candidates as a table; its columns are the fields of `Candidate`.

    The latencies on further devices follow that on the device of the search.
    """
    devices = dict.fromkeys(name for each in candidates for name in each.device_predicted_us)
    types: dict[str, Any] = {}
    for name, field in Candidate.model_fields.items():
        if name == "device_predicted_us":
            types |= dict.fromkeys([f"{DEVICE_LATENCY}{device}" for device in devices], float)
        else:
            kinds = get_args(field.annotation) or (field.annotation,)
            # A column of counts that may be empty needs the type of pandas.
            empty = "Int64" if not field.is_required() else int
            types[name] = float if float in kinds else empty if int in kinds else object
    return pd.DataFrame([each.cells for each in candidates], columns=list(types)).astype(types)


def of_table(rows: pd.DataFrame) -> list[Candidate]:
    """Return the candidates in the rows of a table."""
    return [
        Candidate.of_cells({str(name): cell for name, cell in row.items() if not pd.isna(cell)})
        for row in rows.to_dict("records")
    ]


def basis(rows: pd.DataFrame) -> str:
    """Return what the latencies of whole networks come from, see `Runtime.network_basis`."""
    return "; ".join(dict.fromkeys(rows["basis"])) or MEASURED


def score(rows: pd.DataFrame) -> pd.Series:
    """Return the accuracy that the search maximised: the corrected one, if it was corrected."""
    return rows["corrected_accuracy"].fillna(rows["validation_accuracy"])


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
    return table(read_csv(path, CANDIDATE))
