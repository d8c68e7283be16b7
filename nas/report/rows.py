"""The rows of the CSV files in a run folder, checked whenever a command reads one."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from nas.documents import Count, Document, Format, Fraction, Positive, explain
from nas.records import ArchitectureRecord, Name, NetworkDigest, Seconds
from nas.records.fields import DEVICE_LATENCY, MEASURED


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


EmptyIsNone = BeforeValidator(_none_if_empty)
"""Reads an empty cell of a CSV file as None."""


class CandidateRow(Document):
    """A row of `trials.csv` or `front.csv`: one distinct architecture.

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
        device_predicted_us: the same on each further device, from a column `predicted_us NAME`.
        measured_us: latency of the whole network, in microseconds; only some are measured.
        unstable_launches: number of launches predicted from timings that did not agree.
        estimated_launches: number of launches predicted from estimates.
        dispatch_share: share of launches and the start of the network in the predicted latency.
        basis: what `measured_us` is: `measured`, or `estimated: <by what>` on a device that only a
            model knows.
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
        architecture: the architecture as JSON.
    """

    # The cells of a CSV file are texts.
    model_config = ConfigDict(strict=False)

    id: NetworkDigest
    space: Name
    digest: NetworkDigest
    state: Literal["complete", "infeasible", "failed"]
    validation_accuracy: Annotated[Fraction | None, EmptyIsNone]
    corrected_accuracy: Annotated[Fraction | None, EmptyIsNone] = None
    score_images: Annotated[Count | None, EmptyIsNone] = None
    predicted_us: Annotated[Positive | None, EmptyIsNone]
    device_predicted_us: dict[Name, Annotated[Positive | None, EmptyIsNone]] = Field(
        default_factory=dict
    )
    measured_us: Annotated[Positive | None, EmptyIsNone]
    unstable_launches: Annotated[Count | None, EmptyIsNone] = None
    estimated_launches: Annotated[Count | None, EmptyIsNone] = None
    dispatch_share: Annotated[Fraction | None, EmptyIsNone] = None
    basis: str = MEASURED
    macs: Count
    params: Count
    peak_memory_bytes: Count
    sram_kib: Annotated[float | None, EmptyIsNone] = None
    flash_kib: Annotated[float | None, EmptyIsNone] = None
    dram_traffic_kib: Annotated[float | None, EmptyIsNone] = None
    flash_traffic_kib: Annotated[float | None, EmptyIsNone] = None
    mac_utilisation: Annotated[float | None, EmptyIsNone] = None
    seconds: Seconds
    error: str = ""
    holdout_accuracy: Annotated[Fraction | None, EmptyIsNone]
    trained_accuracy: Annotated[Fraction | None, EmptyIsNone] = None
    test_accuracy: Annotated[Fraction | None, EmptyIsNone] = None
    architecture: str

    @model_validator(mode="before")
    @classmethod
    def _with_devices(cls, cells: Mapping[str | None, Any]) -> dict[str | None, Any]:
        devices = {
            name.removeprefix(DEVICE_LATENCY): value
            for name, value in cells.items()
            if name is not None and name.startswith(DEVICE_LATENCY)
        }
        return {**cells, "device_predicted_us": devices}

    @property
    def cells(self) -> dict[str, Any]:
        """The values by the name of their column."""
        cells = self.model_dump()
        devices = cells.pop("device_predicted_us")
        return cells | {f"{DEVICE_LATENCY}{name}": value for name, value in devices.items()}

    @model_validator(mode="after")
    def _is_consistent(self) -> CandidateRow:
        record = ArchitectureRecord.model_validate_json(self.architecture)
        if record.space != self.space:
            raise ValueError(f"its architecture is of space {record.space!r}, not {self.space!r}")
        if not self.digest.startswith(self.id):
            raise ValueError(f"its id {self.id} is not the beginning of its digest {self.digest}")
        return self


class HistoryRow(Document):
    """A row of `hypervolume.csv`: the front of a search after a number of completed trials.

    Attributes:
        completed: number of completed trials.
        seconds: duration of the search so far.
        hypervolume: hypervolume of the front; None while it is undefined.
    """

    model_config = ConfigDict(strict=False)

    completed: Count
    seconds: Seconds
    hypervolume: Annotated[float | None, EmptyIsNone]


RowType = TypeVar("RowType", CandidateRow, HistoryRow)


def read_csv(path: Path, kind: Format[RowType]) -> list[RowType]:
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
        try:
            rows.append(kind.model.model_validate(line))
        except ValidationError as error:
            problem = explain(error.errors(include_url=False)[0])
            raise kind.failure(f"{path}, line {number} is not {kind.name}: {problem}") from None
    return rows
