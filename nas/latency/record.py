"""The lines of a latency table: what each holds, and what makes one untrustworthy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
KINDS = ("kernel", "dispatch", "calibration")
_NAME = {"kernel": "kernel", "dispatch": "part"}
STATUSES = ("ok", "failed", "unstable")


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
            `nas.latency.footprint`; empty where that was not timed. Of the timing whose median of
            these is the lowest.
        line: where it stands in its file, the header being line 1; 0 before it is written.
    """

    record: str
    name: str = ""
    status: str = "ok"
    latency_us: float | None = None
    samples_us: tuple[float, ...] = ()
    schedule: Mapping[str, Any] | None = None
    basis: str = "measured"
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
    ) -> Record:
        """The record of a successful timing."""
        return cls(
            record,
            name,
            "unstable" if timing.unstable else "ok",
            timing.latency_us,
            timing.samples_us,
            schedule,
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
    def from_json(cls, value: Mapping[str, Any], where: str, line: int) -> Record:
        """Reads and checks a line. Raises TableError that starts with `where` for a bad one."""
        kind, status = value.get("record"), value.get("status")
        if kind not in KINDS:
            raise _bad(where, f"its record is {kind!r}, not one of {', '.join(KINDS)}")
        if status not in STATUSES:
            raise _bad(where, f"its status is {status!r}, not one of {', '.join(STATUSES)}")
        if kind == "calibration":
            return _calibration(value, where, line)
        if not isinstance(value.get(_NAME[kind]), str):
            raise _bad(where, f"it names no {_NAME[kind]}")
        samples = value.get("samples_us") or []
        latency = value.get("latency_us")
        if status == "failed":
            if latency is not None or not value.get("error"):
                raise _bad(where, "a failed record has an error and no latency")
        else:
            _check_latency(latency, samples, where)
        far_samples = value.get("far_samples_us") or []
        if far_samples or value.get("far_us") is not None:
            _check_latency(value.get("far_us"), far_samples, where)
        return cls(
            kind,
            value[_NAME[kind]],
            status,
            latency,
            tuple(samples),
            value.get("schedule"),
            value.get("basis", "measured"),
            value.get("error"),
            value.get("supersedes"),
            None,
            tuple(value.get("medians_us") or ()),
            value.get("settled", True),
            tuple(far_samples),
            line,
        )


def _spread(samples: Sequence[float], count: int) -> tuple[float, ...]:
    """`count` of the samples, evenly over the time that they took."""
    if len(samples) <= count:
        return tuple(samples)
    return tuple(samples[position * len(samples) // count] for position in range(count))


def _calibration(value: Mapping[str, Any], where: str, line: int) -> Record:
    for name in ("slope", "offset_us"):
        if not isinstance(value.get(name), int | float) or not math.isfinite(value[name]):
            raise _bad(where, f"its {name} is {value.get(name)!r}")
    rest = {name: value[name] for name in value if name not in ("record", "status", "supersedes")}
    batch = value.get("batch", 1)
    if not isinstance(batch, int) or batch < 1:
        raise _bad(where, f"its batch is {batch!r}")
    found = Record.of_calibration(rest, batch)
    return replace(found, supersedes=value.get("supersedes"), line=line)


def _check_latency(latency: Any, samples: Any, where: str) -> None:
    if not isinstance(samples, Sequence) or not 0 < len(samples) <= MOST_SAMPLES:
        raise _bad(where, f"it should have 1 to {MOST_SAMPLES} samples")
    for value in (latency, *samples):
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise _bad(where, f"{value!r} us is no latency")
    median = Timing(tuple(samples)).latency_us
    if four_digits(latency) != median:
        raise _bad(where, f"its latency {latency} us is not the median of its samples, {median}")


def _bad(where: str, what: str) -> TableError:
    return TableError(
        f"{where}: {what}.", remedy="The table was edited or damaged; build it again."
    )


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


def read_header(value: Mapping[str, Any], where: str) -> Fingerprint:
    """The device of a table. Raises TableError for another schema, or no header."""
    if value.get("schema") != SCHEMA:
        raise TableError(
            f"{where} is a table of schema {value.get('schema')!r}; this version reads {SCHEMA}.",
            remedy="Use the version of nas that wrote it, or build the table again.",
        )
    try:
        return Fingerprint.from_json(value)
    except (KeyError, TypeError) as error:
        raise TableError(
            f"{where} has no complete header ({error}).", remedy="Build the table again."
        ) from error
