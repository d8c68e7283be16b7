"""How the lines of a latency table after its header are checked when they are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, JsonValue, model_validator

from nas.documents import Document, Format
from nas.errors import TableError
from nas.latency.correction import CalibrationRow, Latency
from nas.latency.timing import MEASURED, Timing, latency_at_quiet_speed, round_to_four_digits

MAX_SAMPLES = 12
"""Largest number of samples in a record."""

ESTIMATED = "estimated: "
"""Start of the basis of an estimated latency; the method follows."""


Text = Annotated[str, Field(max_length=4096)]
"""A name or message; a longer one would fill a screen."""

Samples = Annotated[tuple[Latency, ...], Field(max_length=MAX_SAMPLES)]


def _check_numbers(value: JsonValue) -> JsonValue:
    """Return the value. Raises ValueError if it contains a NaN or an infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        _check_numbers(each)
    return value


Object = Annotated[dict[str, JsonValue], AfterValidator(_check_numbers)]
"""A schedule, or the recorded facts of a device: JSON without NaN and infinities."""


class _TimedRow(Document):
    """Fields that the records of kernels and of dispatch costs share; see `Record`."""

    status: Literal["ok", "failed", "unstable"]
    latency_us: Latency | None = None
    samples_us: Samples = ()
    schedule: Object | None = None
    basis: Annotated[Text, Field(pattern=rf"^({MEASURED}|{ESTIMATED}.+)$")] = MEASURED
    error: Text | None = None
    supersedes: Annotated[int, Field(ge=2)] | None = None
    medians_us: tuple[Latency, ...] = ()
    references_us: tuple[Latency, ...] = Field((), alias="workload_us")
    slowdowns: tuple[Annotated[float, Field(gt=0)] | None, ...] = ()
    quiet_us: Latency | None = None
    settled: bool = True
    cold_us: Latency | None = None
    cold_samples_us: Samples = ()

    @model_validator(mode="after")
    def _fits_its_status(self) -> Self:
        if self.status == "failed":
            if self.latency_us is not None or not self.error:
                raise ValueError("a failed record has an error and no latency")
        else:
            if self.medians_us and len(self.references_us) not in (0, len(self.medians_us)):
                raise ValueError("it should have one of workload_us for each timing, or none")
            if self.slowdowns:
                self._check_quiet_latency()
            else:
                _check_median("latency_us", self.latency_us, self.samples_us)
        if self.cold_us is not None or self.cold_samples_us:
            _check_median("cold_us", self.cold_us, self.cold_samples_us)
        return self

    def _check_quiet_latency(self) -> None:
        is_complete = self.latency_us is not None and self.samples_us
        if not is_complete or len(self.slowdowns) != len(self.medians_us):
            raise ValueError(
                "it should have latency_us, samples_us, and one of slowdowns for each timing"
            )
        expected = quiet_latency_us(self.medians_us, self.slowdowns)
        if round_to_four_digits(self.latency_us or 0.0) != expected:
            raise ValueError(f"latency_us is {self.latency_us}, and its timings say {expected}")


class _KernelRow(_TimedRow):
    name: str = Field(alias="kernel")


class _DispatchRow(_TimedRow):
    name: str = Field(alias="part")


class _AnyRow(Document):
    """The field that tells the kinds of records apart."""

    record: Literal["kernel", "dispatch", "calibration"]


R = TypeVar("R", bound=Document)


def _row_format(model: type[R]) -> Format[R]:
    return Format(
        model,
        "a row of a latency table",
        TableError,
        remedy="The table was edited or damaged; build it again.",
    )


ANY_ROW = _row_format(_AnyRow)
TIMED_ROWS: dict[str, Format[_KernelRow] | Format[_DispatchRow]] = {
    "kernel": _row_format(_KernelRow),
    "dispatch": _row_format(_DispatchRow),
}
CALIBRATION_ROW = _row_format(CalibrationRow)


def quiet_latency_us(medians_us: Sequence[float], slowdowns: Sequence[float | None]) -> float:
    """Return the latency at the quiet speed from the median and the slowdown of each timing."""
    pairs = zip(medians_us, slowdowns, strict=True)
    return latency_at_quiet_speed(Timing((us,), slowdown=each) for us, each in pairs)


def _check_median(name: str, latency_us: float | None, samples_us: tuple[float, ...]) -> None:
    if latency_us is None or not samples_us:
        raise ValueError(f"it should have {name}, and 1 to {MAX_SAMPLES} samples of it")
    median = Timing(samples_us).latency_us
    if round_to_four_digits(latency_us) != median:
        raise ValueError(f"{name} is {latency_us}, not the median of its samples, {median}")
