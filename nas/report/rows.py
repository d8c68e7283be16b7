"""The rows of the CSV files in a run folder, checked whenever a command reads one."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from nas.documents import Count, Document, Format, Fraction, Positive, explain
from nas.records import ArchitectureRecord, Digest, Name


def _empty(value: Any) -> Any:
    return None if value == "" else value


EmptyIsNone = BeforeValidator(_empty)
"""An empty cell of a CSV file stands for None."""


class Row(Document):
    """A line of `trials.csv` or `front.csv`: one distinct architecture."""

    # A CSV file has texts only.
    model_config = ConfigDict(strict=False)

    id: Digest
    space: Name
    digest: Digest
    state: Literal["complete", "infeasible", "failed"]
    validation_accuracy: Annotated[Fraction | None, EmptyIsNone]
    predicted_us: Annotated[Positive | None, EmptyIsNone]
    measured_us: Annotated[Positive | None, EmptyIsNone]
    unstable_launches: Annotated[Count | None, EmptyIsNone] = None
    estimated_launches: Annotated[Count | None, EmptyIsNone] = None
    macs: Count
    params: Count
    peak_memory_bytes: Count
    seconds: Annotated[float, Field(ge=0)]
    error: str = ""
    holdout_accuracy: Annotated[Fraction | None, EmptyIsNone]
    architecture: str

    @model_validator(mode="after")
    def _is_consistent(self) -> Row:
        record = ArchitectureRecord.model_validate_json(self.architecture)
        if record.space != self.space:
            raise ValueError(f"its architecture is of space {record.space!r}, not {self.space!r}")
        if not self.digest.startswith(self.id):
            raise ValueError(f"its id {self.id} is not the beginning of its digest {self.digest}")
        return self


class HistoryRow(Document):
    """A line of `hypervolume.csv`: the front after so many completed trials."""

    model_config = ConfigDict(strict=False)

    completed: Count
    seconds: Annotated[float, Field(ge=0)]
    hypervolume: Annotated[float | None, EmptyIsNone]


T = TypeVar("T", Row, HistoryRow)


def read_csv(path: Path, kind: Format[T]) -> list[T]:
    """Return the rows of a CSV file. Raises the error of `kind`, naming file and line."""
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
