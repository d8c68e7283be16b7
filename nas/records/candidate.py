"""A candidate of a run: a row of `trials.csv` and `front.csv`, and a member of `front.json`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from nas.documents import Count, Document, Format, Fraction, Positive, explain
from nas.errors import RunFolderError
from nas.formatting import format_latency
from nas.records.fields import (
    COSTS,
    DEVICE_LATENCY,
    FIGURES,
    MAX_DISPATCH_SHARE,
    MEASURED,
    Name,
    NetworkDigest,
    Seconds,
)


class ArchitectureRecord(Document):
    """An architecture: the choices that make one network of a space.

    Attributes:
        space: name of the space.
        choices: chosen value by name of the choice.
    """

    space: Name
    choices: dict[str, int | float | str]


def _parsed(value: Any) -> Any:
    """Return a value that may be written as JSON, as in a table."""
    return json.loads(value) if isinstance(value, str) else value


class Candidate(Document):
    """One distinct architecture of a run. Its fields are the columns of a table of candidates.

    Attributes:
        id: shortest beginning of the digest that is unique in the run.
        space: name of the space.
        digest: digest of the network's graph.
        state: `complete`, `infeasible` (a limit or a failed kernel excludes it) or `failed`.
        validation_accuracy: accuracy on the search's validation images, by the supernet.
        corrected_accuracy: this accuracy after its correction for size; None if the search did not
            correct it.
        score_images: number of images of these accuracies, if the search could leave some out for
            an architecture that another one dominates.
        predicted_us: latency predicted by the table, in microseconds.
        device_predicted_us: the same on each further device of the search, by its name; in a table
            each is a column `predicted_us NAME`.
        measured_us: latency of the whole network, in microseconds; only some are measured.
        macs: multiply-accumulates for one image.
        params: number of trainable parameters.
        peak_memory_bytes: largest number of bytes of activations alive at once.
        sram_kib, flash_kib: largest use of fast memory at a time, and size of the constants as they
            are stored, if the search asked the runtime for them.
        dram_traffic_kib, flash_traffic_kib: what is read from and written to slow memory, likewise.
        mac_utilisation: used multiply-accumulates as a fraction of the possible ones, likewise.
        seconds: time that scoring took.
        error: reason why the architecture is infeasible or failed, or could not be measured.
        holdout_accuracy: accuracy on validation images that the search did not use; only of
            measured networks.
        trained_accuracy: accuracy on the same images after the network was trained to the end.
        test_accuracy: accuracy on the test images after that training.
        dominated_by: id of a trained network that is, after training, not worse in any objective.
        unstable_launches: number of launches predicted from timings that did not agree.
        estimated_launches: number of launches predicted from estimates.
        dispatch_share: share of launches and the start of the network in the predicted latency.
        basis: what `measured_us` is: `measured`, or `estimated: <by what>` on a device that only a
            model knows.
        architecture: the architecture; JSON in a table.
    """

    id: NetworkDigest
    space: Name
    digest: NetworkDigest
    state: Literal["complete", "infeasible", "failed"]
    validation_accuracy: Fraction | None = None
    corrected_accuracy: Fraction | None = None
    score_images: Count | None = None
    predicted_us: Positive | None = None
    device_predicted_us: dict[Name, Positive] = Field(default_factory=dict)
    measured_us: Positive | None = None
    macs: Count
    params: Count
    peak_memory_bytes: Count
    sram_kib: float | None = None
    flash_kib: float | None = None
    dram_traffic_kib: float | None = None
    flash_traffic_kib: float | None = None
    mac_utilisation: float | None = None
    seconds: Seconds
    error: str = ""
    holdout_accuracy: Fraction | None = None
    trained_accuracy: Fraction | None = None
    test_accuracy: Fraction | None = None
    dominated_by: NetworkDigest | None = None
    unstable_launches: Count | None = None
    estimated_launches: Count | None = None
    dispatch_share: Fraction | None = None
    basis: str = MEASURED
    architecture: Annotated[ArchitectureRecord, BeforeValidator(_parsed)]

    @classmethod
    def of_cells(cls, cells: Mapping[str, Any]) -> Candidate:
        """Return the candidate in a row of a table, without its empty cells.

        Raises pydantic's ValidationError for a bad row.
        """
        devices = {
            name.removeprefix(DEVICE_LATENCY): value
            for name, value in cells.items()
            if name.startswith(DEVICE_LATENCY)
        }
        return cls.model_validate({**cells, "device_predicted_us": devices}, strict=False)

    @property
    def cells(self) -> dict[str, Any]:
        """The row of a table: values by the name of their column."""
        cells: dict[str, Any] = {}
        for name, value in self:
            if name == "device_predicted_us":
                cells |= {f"{DEVICE_LATENCY}{device}": us for device, us in value.items()}
            else:
                cells[name] = value
        return {**cells, "architecture": json.dumps(self.architecture.model_dump())}

    @model_validator(mode="after")
    def _is_consistent(self) -> Candidate:
        space = self.architecture.space
        if space != self.space:
            raise ValueError(f"its architecture is of space {space!r}, not {self.space!r}")
        if not self.digest.startswith(self.id):
            raise ValueError(f"its id {self.id} is not the beginning of its digest {self.digest}")
        is_timed = (self.predicted_us or self.measured_us) is not None
        if self.state == "complete" and (self.validation_accuracy is None or not is_timed):
            raise ValueError("a complete candidate has an accuracy and a latency")
        return self

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
    def latency_basis(self) -> str:
        """What `latency_us` is: `basis`, or `predicted` and what makes the prediction unsure."""
        if self.measured_us is not None:
            return self.basis if self.basis == MEASURED else f"({self.basis})"
        unsure = self.unsure_launches
        predicted = f"predicted, of its launches {unsure}" if unsure else "predicted"
        if self.is_rough:
            predicted += f", {self.dispatch_share:.0%} of it launches"
        return predicted if self.basis == MEASURED else f"{predicted} ({self.basis})"

    @property
    def is_rough(self) -> bool:
        """Whether the predicted latency is launches more than kernels, see `MAX_DISPATCH_SHARE`."""
        return self.dispatch_share is not None and self.dispatch_share > MAX_DISPATCH_SHARE

    @property
    def unsure_launches(self) -> str:
        """Number of unstable and estimated launches: `3 unstable, 1 estimated`; may be empty."""
        counts = {"unstable": self.unstable_launches, "estimated": self.estimated_launches}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)

    @property
    def summary(self) -> str:
        """A complete candidate in one line: id, space, accuracy, latency, MACs and parameters."""
        parts = [f"{self.id} ({self.space}): accuracy {self.validation_accuracy:.4f}"]
        if self.trained_accuracy is not None:
            parts.append(f"trained {self.trained_accuracy:.4f}")
        parts.append(f"{format_latency(self.latency_us)} {self.latency_basis}")
        for name, latency_us in self.device_predicted_us.items():
            parts.append(f"{format_latency(latency_us)} predicted on {name}")
        parts += [f"{self.macs} MACs", f"{self.params} parameters"]
        for name in FIGURES:
            if (value := getattr(self, name)) is not None:
                parts.append(f"{COSTS[name].label} {COSTS[name].scale * value:.0f}")
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
