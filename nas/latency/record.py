"""The lines of a latency table: what each holds, and what makes one untrustworthy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, JsonValue, model_validator

from nas.documents import Count, Document, Format
from nas.errors import TableError
from nas.latency.device import Fingerprint
from nas.latency.timing import (
    LARGEST_SPREAD,
    SAMPLE_SECONDS,
    SAMPLES,
    Timing,
    agree,
    four_digits,
)

SCHEMA = 1
MOST_SAMPLES = 12
UNSTABLE = "unstable"
MEASURED = "measured"
ESTIMATED = "estimated: "
_NAME = {"kernel": "kernel", "dispatch": "part"}

HEADER_START = b'{"schema": 1, "record": "header", "processor": "'
ROW_START = b'{"record": "'
"""How the first line of a table begins as it is written, and how every other one does."""

Text = Annotated[str, Field(max_length=4096)]
"""Names and messages; longer ones would fill a screen."""

Latency = Annotated[float, Field(ge=1e-9, le=1e12)]
"""Microseconds; far beyond what a clock tells, and within what sums and ratios can bear."""

ErrorFraction = Annotated[float, Field(ge=0)]


def _with_finite_numbers(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        _with_finite_numbers(each)
    return value


Object = Annotated[dict[str, JsonValue], AfterValidator(_with_finite_numbers)]
"""A schedule, or what is recorded of a device: JSON without NaN and infinities."""


class _TimedRow(Document):
    """Fields that rows of kernels and of dispatch costs share; see `Record`."""

    status: Literal["ok", "failed", "unstable"]
    latency_us: Latency | None = None
    samples_us: Annotated[tuple[Latency, ...], Field(max_length=MOST_SAMPLES)] = ()
    schedule: Object | None = None
    basis: Annotated[Text, Field(pattern=rf"^({MEASURED}|{ESTIMATED}.+)$")] = MEASURED
    error: Text | None = None
    supersedes: Annotated[int, Field(ge=2)] | None = None
    medians_us: tuple[Latency, ...] = ()
    settled: bool = True
    far_us: Latency | None = None
    far_samples_us: Annotated[tuple[Latency, ...], Field(max_length=MOST_SAMPLES)] = ()

    @model_validator(mode="after")
    def _fits_its_status(self) -> Self:
        if self.status == "failed":
            if self.latency_us is not None or not self.error:
                raise ValueError("a failed record has an error and no latency")
        else:
            _check_median("latency_us", self.latency_us, self.samples_us)
        if self.far_us is not None or self.far_samples_us:
            _check_median("far_us", self.far_us, self.far_samples_us)
        return self


class _KernelRow(_TimedRow):
    name: str = Field(alias="kernel")


class _DispatchRow(_TimedRow):
    name: str = Field(alias="part")


class _CalibrationRow(Document):
    """See `nas.latency.calibration.Calibration`. A batch of 2^20 images fits into no device."""

    status: Literal["ok"]
    slope: Annotated[float, Field(gt=0, le=1e6)]
    offset_us: Annotated[float, Field(ge=0, le=1e12)]
    nets: Count | None = None
    mape_before: ErrorFraction | None = None
    mape_after: ErrorFraction | None = None
    references: Count | None = None
    references_mape_before: ErrorFraction | None = None
    references_mape_after: ErrorFraction | None = None
    fitted_on: tuple[str, ...] | None = None
    batch: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    supersedes: Annotated[int, Field(ge=2)] | None = None


class _AnyRow(Document):
    """What tells the kinds of rows apart."""

    record: Literal["kernel", "dispatch", "calibration"]


R = TypeVar("R", bound=Document)


def _row_format(model: type[R]) -> Format[R]:
    return Format(
        model,
        "a row of a latency table",
        TableError,
        remedy="The table was edited or damaged; build it again.",
    )


_ANY_ROW = _row_format(_AnyRow)
_TIMED_ROWS: dict[str, Format[_KernelRow] | Format[_DispatchRow]] = {
    "kernel": _row_format(_KernelRow),
    "dispatch": _row_format(_DispatchRow),
}
_CALIBRATION_ROW = _row_format(_CalibrationRow)


def _check_median(name: str, latency_us: float | None, samples_us: tuple[float, ...]) -> None:
    if latency_us is None or not samples_us:
        raise ValueError(f"it should have {name}, and 1 to {MOST_SAMPLES} samples of it")
    median = Timing(samples_us).latency_us
    if four_digits(latency_us) != median:
        raise ValueError(f"{name} is {latency_us}, not the median of its samples, {median}")


@dataclass(frozen=True)
class Record:
    """One line behind the header.

    Args:
        record: `kernel`, `dispatch` or `calibration`.
        name: text of the kernel; of a dispatch, the part it measures: `launch`, `invocation`; of a
            calibration, the batch size that it is for: `batch4`, and nothing for 1.
        status: `unstable` predicts, flagged; `failed` has an error and no latency.
        latency_us: median of `samples_us`; None if failed, and in a calibration.
        samples_us: at most 12, with four digits.
        schedule: from which the runtime builds the kernel again.
        basis: `measured`, or `estimated: <by what>`.
        error: of a failed one.
        supersedes: the line of the record that this one replaces.
        calibration: `slope`, `offset_us`, `batch` and how they were fitted.
        medians_us: of every timing of a kernel, each at another moment, in their order. The samples
            are those of the two fastest: other work on a machine only adds time.
        settled: whether it need not be timed again.
        far_samples_us: of a kernel whose weights were far away, see
            `nas.latency.cache_model`; empty where that was not timed. Of the timing whose median of
            these is the lowest.
        line: where it stands in its file, the header being line 1; 0 before it is written.
    """

    record: str
    name: str = ""
    status: str = "ok"
    latency_us: float | None = None
    samples_us: tuple[float, ...] = ()
    schedule: Mapping[str, Any] | None = None
    basis: str = MEASURED
    error: str | None = None
    supersedes: int | None = None
    calibration: Mapping[str, Any] | None = None
    medians_us: tuple[float, ...] = ()
    settled: bool = True
    far_samples_us: tuple[float, ...] = ()
    line: int = 0

    @classmethod
    def of_timing(
        cls,
        record: str,
        timing: Timing,
        *,
        name: str,
        schedule: Mapping[str, Any] | None = None,
        basis: str = MEASURED,
    ) -> Record:
        """Return the record of a successful timing; `basis` is that of the runtime."""
        return cls(
            record,
            name,
            "unstable" if timing.unstable else "ok",
            timing.latency_us,
            timing.samples_us,
            schedule,
            basis,
            far_samples_us=timing.far_samples_us[:MOST_SAMPLES],
        )

    @classmethod
    def of_calibration(cls, fitted: Mapping[str, Any], batch: int) -> Record:
        """The record of a correction for networks that take so many images at once."""
        return cls("calibration", f"batch{batch}" if batch > 1 else "", calibration=fitted)

    def with_timing(self, timing: Timing, agreement: float, most_timings: int) -> Record:
        """This kernel timed once more.

        It is settled once its two fastest timings agree, and called unstable if they do not after
        `most_timings`, or if their samples spread.

        Args:
            agreement: how far apart, as a share, two timings may lie.
            most_timings: that are taken at most.
        """
        half = MOST_SAMPLES // 2
        before = self.samples_us
        kept = (
            [before[:half], before[half:]] if len(self.medians_us) > 1 else [_spread(before, half)]
        )
        fastest = sorted([*kept, _spread(timing.samples_us, half)], key=statistics.median)[:2]
        joined = Timing(tuple(sample for samples in fastest for sample in samples))
        medians = (*self.medians_us, timing.latency_us)
        far = [each for each in (timing.far_samples_us, self.far_samples_us) if each]
        agreed = agree(medians, agreement)
        return replace(
            self,
            status="unstable" if joined.unstable or not agreed else "ok",
            latency_us=joined.latency_us,
            samples_us=joined.samples_us,
            medians_us=medians,
            settled=agreed or len(medians) >= most_timings,
            far_samples_us=min(far, key=statistics.median)[:MOST_SAMPLES]
            if timing.far_samples_us
            else (),
            supersedes=None,
            line=0,
        )

    @property
    def far_us(self) -> float | None:
        """The median of `far_samples_us`; None without any."""
        return Timing(self.far_samples_us).latency_us if self.far_samples_us else None

    @property
    def is_estimated(self) -> bool:
        """Whether the latency was not measured."""
        return self.latency_us is not None and self.basis != MEASURED

    @property
    def flags(self) -> tuple[str, ...]:
        """The reasons to trust the latency less: `unstable`, `estimated: <by what>`."""
        unstable = (UNSTABLE,) if self.status == UNSTABLE else ()
        return (*unstable, self.basis) if self.is_estimated else unstable

    @property
    def key(self) -> str:
        """Two current records of a table never have the same key."""
        return f"{self.record} {self.name}".strip()

    def to_json(self) -> dict[str, Any]:
        """The line to write; what does not apply is left out."""
        found: dict[str, Any] = {"record": self.record}
        if self.record == "calibration":
            found |= {"status": self.status, **(self.calibration or {})}
        else:
            found |= {
                _NAME[self.record]: self.name,
                "status": self.status,
                "latency_us": self.latency_us,
                "samples_us": list(self.samples_us),
            }
            if self.medians_us:
                found["medians_us"] = list(self.medians_us)
            if not self.settled:
                found["settled"] = False
            if self.far_samples_us:
                found |= {"far_us": self.far_us, "far_samples_us": list(self.far_samples_us)}
            if self.schedule is not None:
                found["schedule"] = dict(self.schedule)
            found["basis"] = self.basis
        if self.error is not None:
            found["error"] = self.error
        if self.supersedes is not None:
            found["supersedes"] = self.supersedes
        return found

    @classmethod
    def parse(cls, content: bytes, where: str, line: int) -> Record:
        """Return the record in a line. Raises TableError that starts with `where` for a bad one."""
        kind = _ANY_ROW.parse(content, where).record
        if kind == "calibration":
            fitted = _CALIBRATION_ROW.parse(content, where)
            fields = fitted.model_dump(exclude={"status", "supersedes"}, exclude_unset=True)
            record = cls.of_calibration(fields, fitted.batch)
            return replace(record, supersedes=fitted.supersedes, line=line)
        row = _TIMED_ROWS[kind].parse(content, where)
        return cls(
            kind,
            row.name,
            row.status,
            row.latency_us,
            row.samples_us,
            row.schedule,
            row.basis,
            row.error,
            row.supersedes,
            None,
            row.medians_us,
            row.settled,
            row.far_samples_us,
            line,
        )


def _spread(samples: Sequence[float], count: int) -> tuple[float, ...]:
    """`count` of the samples, evenly over the time that they took."""
    if len(samples) <= count:
        return tuple(samples)
    return tuple(samples[position * len(samples) // count] for position in range(count))


def header(device: Fingerprint) -> dict[str, Any]:
    """The first line of a new table."""
    return {
        "schema": SCHEMA,
        "record": "header",
        **device.to_json(),
        "timing": {
            "statistic": "median",
            "samples": SAMPLES,
            "sample_seconds": SAMPLE_SECONDS,
            "largest_spread": LARGEST_SPREAD,
            "pinned": True,
        },
    }


class Header(Document):
    """The first line of a table: the fields of `Fingerprint`, and how kernels were timed."""

    schema_number: Literal[1] = Field(alias="schema")
    record: Literal["header"]
    processor: Text
    features: tuple[Text, ...]
    runtime: Text
    versions: dict[Text, Text]
    target: Text
    dtype: Text
    threads: Annotated[int, Field(ge=1, le=1 << 16)]
    recorded: Object
    timing: Object | None = None

    @property
    def device(self) -> Fingerprint:
        """The device that the table belongs to."""
        return Fingerprint(
            self.processor,
            self.features,
            self.runtime,
            self.versions,
            self.target,
            self.dtype,
            self.threads,
            self.recorded,
        )


HEADERS = Format(
    Header,
    "the header of a latency table",
    TableError,
    remedy="If it is a latency table, build it again; otherwise name another file.",
)
