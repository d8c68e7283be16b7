"""The candidates of a run: rows of `trials.csv` and `front.csv`, members of `front.json`.

`Candidate` declares their fields once. Files, the report and the terminal follow from it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import pandas as pd
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from nas import files, statistics
from nas.display.formatting import format_accuracy, format_latency
from nas.errors import RunFolderError
from nas.figures import COUNTS
from nas.files.documents import (
    Count,
    Document,
    Format,
    Fraction,
    Name,
    NetworkDigest,
    Positive,
    Seconds,
    explain,
)
from nas.latency.prediction import MAX_DISPATCH_SHARE
from nas.latency.timing import MEASURED
from nas.run.judged import JudgedImages
from nas.run.objectives import DEVICE_LATENCY
from nas.search import Trial
from nas.space.records import ArchitectureRecord, CountedNetwork
from nas.statistics import Interval, LatencyAgreement

if TYPE_CHECKING:
    from nas.latency import Prediction
    from nas.latency.rounds import Latency


def _parsed(value: Any) -> Any:
    """Return a value that may be written as JSON, as in a table."""
    return json.loads(value) if isinstance(value, str) else value


def _device_latencies(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Return the latencies on further devices by device, from a row or the values of a trial."""
    return {
        name.removeprefix(DEVICE_LATENCY): value
        for name, value in cells.items()
        if name.startswith(DEVICE_LATENCY)
    }


class Candidate(CountedNetwork):
    """One distinct architecture of a run. Its fields are the columns of a table of candidates.

    Attributes:
        state: `complete`, `infeasible` (a limit or a failed kernel excludes it) or `failed`.
        validation_accuracy: accuracy on the search's validation images, by the supernet.
        corrected_accuracy: this accuracy after its correction for size, or what a short training
            says instead, see `nas.run.short_trainings`; None without either.
        score_images: number of images of these accuracies, if the search could leave some out for
            an architecture that another one dominates.
        predicted_us: latency predicted by the table, in microseconds.
        device_predicted_us: the same on each further device of the search, by its name; in a table
            each is a column `predicted_us NAME`.
        measured_us: latency of the whole network, in microseconds; only some are measured.
        measured_low_us, measured_high_us: limits of this latency, see
            `nas.latency.rounds.Latency.interval_us`.
        disturbed: whether the core never ran at full speed while the network was timed; None if it
            was not measured.
        figures: further costs that the search asked the runtime for, by their names, such as
            `sram_kib`; in a table each is a column.
        seconds: time that scoring took.
        error: reason why the architecture is infeasible or failed, or could not be measured.
        holdout_accuracy: accuracy on validation images that the search did not use; only of
            networks that are measured, or that a device will measure.
        trained_accuracy: accuracy after the network was trained to the end, on the images that
            judge trained networks, see `nas.run.judged.JudgedImages.judging_parts`.
        test_accuracy: accuracy on the test images after that training.
        recipe: how the network was trained; trained accuracies of different recipes tell nothing
            about the networks. See `nas.run.trained.TrainedBy`.
        dominated_by: id of a network of the same recipe that is, after training, not worse in any
            objective.
        uncertain_launches: number of launches predicted from timings that did not agree, or were
            disturbed.
        estimated_launches: number of launches predicted from estimates.
        dispatch_share: share of launches and the start of the network in the predicted latency.
        basis: what `measured_us` is: `measured`, or `estimated: <by what>` on a device that only a
            model knows.
        architecture: the architecture; JSON in a table.
    """

    id: NetworkDigest
    architecture: Annotated[ArchitectureRecord, BeforeValidator(_parsed)]
    state: Literal["complete", "infeasible", "failed"]
    validation_accuracy: Fraction | None = None
    corrected_accuracy: Fraction | None = None
    score_images: Count | None = None
    predicted_us: Positive | None = None
    device_predicted_us: dict[Name, Positive] = Field(default_factory=dict)
    measured_us: Positive | None = None
    measured_low_us: Positive | None = None
    measured_high_us: Positive | None = None
    disturbed: bool | None = None
    figures: dict[Name, float] = Field(default_factory=dict)
    seconds: Seconds
    error: str = ""
    holdout_accuracy: Fraction | None = None
    trained_accuracy: Fraction | None = None
    test_accuracy: Fraction | None = None
    recipe: str | None = None
    dominated_by: NetworkDigest | None = None
    uncertain_launches: Count | None = None
    estimated_launches: Count | None = None
    dispatch_share: Fraction | None = None
    basis: str = MEASURED

    @classmethod
    def of_cells(cls, cells: Mapping[str, Any]) -> Candidate:
        """Return the candidate in a row of a table, without its empty cells.

        Raises pydantic's ValidationError for a bad row.
        """
        devices = _device_latencies(cells)
        others = cells.keys() - cls.model_fields.keys() - {"dtype"}
        figures = {name: cells[name] for name in others if not name.startswith(DEVICE_LATENCY)}
        fields = {**cells, "device_predicted_us": devices, "figures": figures}
        return cls.model_validate(fields, strict=False)

    @property
    def dtype(self) -> str | None:
        """Type of weights and activations if the search chose it, in a table a column; or None."""
        return self.architecture.dtype

    @property
    def cells(self) -> dict[str, Any]:
        """The row of a table: values by the name of their column."""
        cells: dict[str, Any] = {}
        for name, value in self:
            if name == "device_predicted_us":
                cells |= {f"{DEVICE_LATENCY}{device}": us for device, us in value.items()}
            elif name == "figures":
                cells |= value
            else:
                cells[name] = value
        architecture = json.dumps(self.architecture.model_dump())
        return {**cells, "dtype": self.dtype, "architecture": architecture}

    @model_validator(mode="after")
    def _is_consistent(self) -> Candidate:
        if not self.digest.startswith(self.id):
            raise ValueError(f"its id {self.id} is not the beginning of its digest {self.digest}")
        is_timed = (self.predicted_us or self.measured_us) is not None
        if self.state == "complete" and (self.validation_accuracy is None or not is_timed):
            raise ValueError("a complete candidate has an accuracy and a latency")
        return self

    def cost(self, name: str) -> float | None:
        """Return a count of the graph or a figure; None for a figure that is not known."""
        return getattr(self, name) if name in COUNTS else self.figures.get(name)

    @property
    def score(self) -> float:
        """The accuracy that the search maximised: the corrected one, if it was corrected."""
        corrected = self.corrected_accuracy
        score = self.validation_accuracy if corrected is None else corrected
        assert score is not None, "only complete candidates have a score"
        return score

    @property
    def latency_us(self) -> float:
        """Measured latency if it is known, else predicted latency, in microseconds."""
        latency = self.predicted_us if self.measured_us is None else self.measured_us
        assert latency is not None, "only complete candidates have a latency"
        return latency

    @property
    def latency_range_us(self) -> tuple[float, float]:
        """Limits of `latency_us`; both are equal for a predicted latency."""
        if self.measured_low_us is None or self.measured_high_us is None:
            return self.latency_us, self.latency_us
        return self.measured_low_us, self.measured_high_us

    def is_told_from(self, other: Candidate) -> bool:
        """Return whether its latency is told from that of another network.

        It is not if both were measured, and the limits of their latencies overlap.
        """
        if self.measured_us is None or other.measured_us is None:
            return True
        (_, high_us), (low_us, _) = sorted((self.latency_range_us, other.latency_range_us))
        return high_us < low_us

    @property
    def latency_basis(self) -> str:
        """What `latency_us` is: `basis`, or `predicted` and what makes the prediction unsure."""
        if self.measured_us is not None:
            basis = self.basis if self.basis == MEASURED else f"({self.basis})"
            low_us, high_us = self.latency_range_us
            limits = f"{format_latency(low_us)} to {format_latency(high_us)}"
            return f"{basis}, disturbed: {limits} at full speed" if self.disturbed else basis
        predicted = "predicted"
        if self.unsure_launches:
            predicted += f", of its launches {self.unsure_launches}"
        if self.is_mostly_launches:
            predicted += f", {self.dispatch_share:.0%} of it launches"
        return predicted if self.basis == MEASURED else f"{predicted} ({self.basis})"

    @property
    def is_mostly_launches(self) -> bool:
        """Whether the predicted latency is launches more than kernels, see `MAX_DISPATCH_SHARE`."""
        return self.dispatch_share is not None and self.dispatch_share > MAX_DISPATCH_SHARE

    @property
    def unsure_launches(self) -> str:
        """Launches of uncertain and estimated kernels: `3 uncertain, 1 estimated`; may be empty."""
        counts = {"uncertain": self.uncertain_launches, "estimated": self.estimated_launches}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)

    def intervals(self, data: JudgedImages) -> dict[str, Interval]:
        """Return the 95% interval of each accuracy that was measured, by the name of its field.

        Args:
            data: the images of the run.
        """
        intervals = {
            "validation_accuracy": data.interval(
                self.validation_accuracy, "search", images=self.score_images
            ),
            "holdout_accuracy": data.interval(self.holdout_accuracy, "holdout"),
            "trained_accuracy": data.interval(self.trained_accuracy, *data.judging_parts),
            "test_accuracy": data.interval(self.test_accuracy, "test"),
        }
        return {name: each for name, each in intervals.items() if each is not None}

    def summary(self, data: JudgedImages) -> str:
        """Return a complete candidate in one line: accuracies, latency, MACs and parameters.

        Args:
            data: the images of the run.
        """
        accuracies = self.intervals(data)
        search = format_accuracy(accuracies["validation_accuracy"])
        where = f"{self.space}, {self.dtype}" if self.dtype else self.space
        parts = [f"{self.id} ({where}): accuracy {search}"]
        if self.trained_accuracy is not None:
            parts.append(f"trained {format_accuracy(accuracies['trained_accuracy'])}")
        parts.append(f"{format_latency(self.latency_us)} {self.latency_basis}")
        for name, latency_us in self.device_predicted_us.items():
            parts.append(f"{format_latency(latency_us)} predicted on {name}")
        parts += [f"{self.macs} MACs", f"{self.params} parameters"]
        parts += [f"{name} {value:.4g}" for name, value in self.figures.items()]
        return ", ".join(parts)


CANDIDATE = Format(
    Candidate,
    "a table of candidates",
    RunFolderError,
    "Run the job again: it writes the table anew.",
)


class HistoryRow(Document):
    """A row of `hypervolume.csv`: the front of a search after a number of completed trials.

    Attributes:
        completed: number of completed trials.
        seconds: duration of the search so far.
        hypervolume: hypervolume of the front; None while it is undefined.
    """

    completed: Count
    seconds: Seconds
    hypervolume: float | None = None

    @classmethod
    def of_cells(cls, cells: Mapping[str, Any]) -> HistoryRow:
        """Return the row in the cells of a table that are not empty."""
        return cls.model_validate(cells, strict=False)


HISTORY = Format(
    HistoryRow,
    "a search's history",
    RunFolderError,
    "Move the file away: the report can be made without it, and the job writes it again.",
)

HISTORY_FILE = "hypervolume.csv"
"""Name of the file with the hypervolume over the completed trials, in the run folder."""

Row = TypeVar("Row", Candidate, HistoryRow)


def read_csv(path: Path, kind: Format[Row]) -> list[Row]:
    """Return the rows of a CSV file.

    Raises the error of `kind` for a file that cannot be read, lacks a column, or has a bad row; the
    message names the file and the line.
    """
    try:
        text = kind.content(path).decode("utf-8")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = list(reader.fieldnames or [])
        lines = [(reader.line_num, line) for line in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise kind.failure(f"{path} cannot be read: {error}") from None
    for name, field in kind.model.model_fields.items():
        if field.is_required() and name not in columns:
            raise kind.failure(f"{path} is not {kind.name}: it has no column {name!r}")
    rows = []
    for number, line in lines:
        filled = {name: cell for name, cell in line.items() if name and cell not in ("", None)}
        try:
            rows.append(kind.model.of_cells(filled))
        except ValidationError as error:
            problem = explain(error.errors(include_url=False)[0])
            raise kind.failure(f"{path}, line {number} is not {kind.name}: {problem}") from None
    return rows


MIN_ID_CHARACTERS = 4
"""Shortest id: in a run of few candidates, ids stay recognisable as digests."""


def from_trials(
    trials: Sequence[Trial],
    *,
    latencies: Mapping[str, Latency] = MappingProxyType({}),
    holdout_accuracy: Mapping[str, float] = MappingProxyType({}),
    problems: Mapping[str, str] = MappingProxyType({}),
    predictions: Mapping[str, Prediction] = MappingProxyType({}),
    figures: Sequence[str] = (),
    basis: str = MEASURED,
) -> pd.DataFrame:
    """Return the trials of a search as a table of candidates, in their order.

    Args:
        trials: trials with the values `predicted_us`, `validation_error`, `corrected_error`,
            `score_images` and the figures where they are known.
        latencies: latency of whole networks by digest.
        holdout_accuracy: accuracy on images that the search did not use, by digest.
        problems: reason why a whole network could not be timed, by digest.
        predictions: predictions of the table, by digest.
        figures: names of the values that are figures of the runtime.
        basis: what latencies of whole networks come from, see `Runtime.network_basis`.
    """
    ids = short_ids([trial.digest for trial in trials])
    return table(
        [
            _candidate(
                trial,
                predictions.get(trial.digest),
                latencies.get(trial.digest),
                id=ids[trial.digest],
                error=trial.error or problems.get(trial.digest, ""),
                holdout_accuracy=holdout_accuracy.get(trial.digest),
                figures={name: trial.values[name] for name in figures if name in trial.values},
                basis=basis,
            )
            for trial in trials
        ]
    )


def _candidate(
    trial: Trial, prediction: Prediction | None, latency: Latency | None, **fields: Any
) -> Candidate:
    values = trial.known_values
    if latency is not None:
        fields |= _latency_fields(latency)
    fields["predicted_us"] = values.get("predicted_us")
    for name, digits in (("validation", 6), ("corrected", 9)):
        if f"{name}_error" in values:
            fields[f"{name}_accuracy"] = round(1 - values[f"{name}_error"], digits)
    if prediction is not None:
        fields["uncertain_launches"] = prediction.uncertain_launches
        fields["estimated_launches"] = prediction.estimated_launches
        fields["dispatch_share"] = round(prediction.dispatch_share, 4)
    return Candidate.of_architecture(
        trial.architecture,
        state=trial.state,
        score_images=int(values["score_images"]) if "score_images" in values else None,
        device_predicted_us=_device_latencies(values),
        seconds=trial.seconds,
        **fields,
    )


def _latency_fields(latency: Latency) -> dict[str, Any]:
    """Return the fields of a candidate whose latency was measured."""
    low_us, high_us = latency.interval_us
    return {
        "measured_us": latency.fastest_us,
        "measured_low_us": low_us,
        "measured_high_us": high_us,
        "disturbed": latency.is_disturbed,
    }


def with_latencies(
    rows: pd.DataFrame, latencies: Mapping[str, Latency], problems: Mapping[str, str]
) -> pd.DataFrame:
    """Return a table of candidates with what was measured since.

    Args:
        rows: the table.
        latencies, problems: see `from_trials`.
    """
    return table(
        [
            each.model_copy(
                update={
                    "error": each.error or problems.get(each.digest, ""),
                    **(_latency_fields(latencies[each.digest]) if each.digest in latencies else {}),
                }
            )
            for each in of_table(rows)
        ]
    )


def table(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Return candidates as a table; its columns are the fields of `Candidate`.

    The latencies on further devices follow that on the device of the search, and figures follow the
    counts of the graph.
    """
    devices = dict.fromkeys(name for each in candidates for name in each.device_predicted_us)
    figures = dict.fromkeys(name for each in candidates for name in each.figures)
    first, last = ["id", "space", "digest"], ["architecture"]
    has_dtype = any(each.dtype for each in candidates)
    others = [name for name in Candidate.model_fields if name not in (*first, *COUNTS, *last)]
    types: dict[str, Any] = {}
    for name in [*first, *others, *last]:
        if name == "device_predicted_us":
            types |= dict.fromkeys([f"{DEVICE_LATENCY}{device}" for device in devices], float)
        elif name == "figures":
            types |= dict.fromkeys(COUNTS, int) | dict.fromkeys(figures, float)
        else:
            if name == "architecture" and has_dtype:
                types["dtype"] = object
            field = Candidate.model_fields[name]
            kinds = get_args(field.annotation) or (field.annotation,)
            # A column of counts that may be empty needs the type of pandas.
            types[name] = float if float in kinds else "Int64" if int in kinds else object
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
