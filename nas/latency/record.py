"""The records of a latency table, the lines after its header."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from nas.latency import processor_speed
from nas.latency.correction import Correction
from nas.latency.record_rows import (
    ANY_ROW,
    CALIBRATION_ROW,
    MAX_SAMPLES,
    TIMED_ROWS,
    quiet_latency_us,
)
from nas.latency.timing import (
    MEASURED,
    Timing,
    has_enough_undisturbed,
    is_disturbed,
    latency_at_quiet_speed,
    round_to_four_digits,
    timings_agree,
)

UNSTABLE = "unstable"

RECORD_START = b'{"record": "'
"""How every line after the header starts as it is written."""

_NAME_KEYS = {"kernel": "kernel", "dispatch": "part"}
"""The JSON key of `Record.name` by `Record.kind`."""


@dataclass(frozen=True)
class Record:
    """One line after the header of a latency table.

    Args:
        kind: `kernel`, `dispatch` or `calibration`.
        name: text of the kernel; the part of the dispatch cost, such as `launch`; or the batch size
            of a calibration, `batch4`, which is empty for 1.
        status: `ok`; `unstable`, which predicts, flagged; or `failed`, with an error and without a
            latency.
        latency_us: latency at the quiet speed of the processor, see
            `nas.latency.timing.latency_at_quiet_speed`; without `slowdowns`, the median of
            `samples_us`. None if failed, and in a calibration.
        samples_us: at most `MAX_SAMPLES` samples with four significant digits.
        schedule: schedule from which the runtime can build the kernel again.
        basis: `measured`, or `estimated: <by what>`.
        error: why it failed.
        supersedes: line of the record that this one replaces.
        calibration: fields of a `nas.latency.calibration.Calibration`.
        medians_us: median of every timing of a kernel or a miss curve, in order; the timings were
            taken at different moments, and the samples are those of the two fastest timings.
        references_us: duration of the reference workload beside each of these timings, see
            `nas.latency.timing`; empty if the kernel does not run on this machine's processor. That
            of a cost of launches is at the speed of its latency.
        slowdowns: how many times longer each of these timings took than at the quiet speed, see
            `Timing.slowdown`; empty if that is not known for any of them.
        quiet_us: duration of the reference workload at the quiet speed, of which `slowdowns` and
            `latency_us` are; None if it is not known.
        settled: whether no further timing is needed.
        cold_samples_us: samples of a kernel with cold caches, see `nas.latency.cache_model`; those
            of the timing with the lowest median. Empty if that was not timed.
        line: number of the line in its file, where the header is line 1; 0 before it is written.
    """

    kind: str
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
    cold_samples_us: tuple[float, ...] = ()
    references_us: tuple[float, ...] = ()
    slowdowns: tuple[float | None, ...] = ()
    quiet_us: float | None = None
    line: int = 0

    @classmethod
    def from_timing(
        cls,
        kind: str,
        timing: Timing,
        *,
        name: str,
        schedule: Mapping[str, Any] | None = None,
        basis: str = MEASURED,
    ) -> Record:
        """Return the record of a successful timing; `basis` is that of the runtime."""
        return cls(
            kind,
            name,
            UNSTABLE if timing.is_unstable else "ok",
            timing.latency_us,
            timing.samples_us,
            schedule,
            basis,
            cold_samples_us=timing.cold_samples_us[:MAX_SAMPLES],
            references_us=timing.references_us,
        )

    @classmethod
    def from_calibration(cls, fitted: Mapping[str, Any], batch: int) -> Record:
        """Return the record of a calibration for networks with this batch size."""
        return cls("calibration", f"batch{batch}" if batch > 1 else "", calibration=fitted)

    def with_timing(
        self,
        timing: Timing,
        tolerance: float,
        min_timings: int,
        max_timings: int,
        quiet_us: float = math.inf,
        sensitivity: float = 1.0,
    ) -> Record:
        """Return the record of this kernel with one more timing.

        After `min_timings` it is settled if its timings agree (`nas.latency.timing.timings_agree`)
        and the slowdown of enough of them is known, and after `max_timings` in any case. It is
        unstable if they do not agree, or if no slowdown is known although there is a reference
        workload.

        Args:
            timing: the new timing.
            tolerance: largest difference of two timings that agree, as a fraction.
            min_timings: smallest number of timings.
            max_timings: largest number of timings.
            quiet_us: duration of the reference workload at the quiet speed of the table.
            sensitivity: how closely timings follow the reference workload, see
                `nas.latency.processor_speed.sensitivity`.
        """
        medians = (*self.medians_us, timing.latency_us)
        references = (*self.references_us, *timing.references_us)
        timings = [
            Timing((us,), reference_us=reference).with_slowdown(quiet_us, sensitivity)
            for us, reference in _pairs(medians, references)
        ]
        is_known = any(each.slowdown is not None for each in timings)
        agreed = timings_agree(timings, tolerance)
        is_enough = len(medians) >= min_timings and has_enough_undisturbed(
            timings, quiet_us, min_timings
        )
        samples = self._fastest_samples(timing)
        cold_sets = [each for each in (timing.cold_samples_us, self.cold_samples_us) if each]
        return replace(
            self,
            status="ok" if agreed and not is_disturbed(timings, quiet_us) else UNSTABLE,
            latency_us=latency_at_quiet_speed(timings) if is_known else Timing(samples).latency_us,
            samples_us=samples,
            medians_us=medians,
            settled=(agreed and is_enough) or len(medians) >= max_timings,
            cold_samples_us=min(cold_sets, key=statistics.median, default=())[:MAX_SAMPLES],
            references_us=references,
            slowdowns=tuple(each.slowdown for each in timings) if is_known else (),
            quiet_us=quiet_us if is_known and math.isfinite(quiet_us) else None,
            supersedes=None,
            line=0,
        )

    def at_speed(self, quiet_us: float) -> Record:
        """Return this record with its latency at another speed of the processor.

        A record stays as it is if its speed is not known, or if more than the clock differs (see
        `processor_speed.slowdown`).

        Args:
            quiet_us: duration of the reference workload at that speed; infinity if it is not known.
        """
        factor = processor_speed.slowdown(self.quiet_us, quiet_us)
        if factor is None or not self.slowdowns:
            return self
        slowdowns = tuple(each and round_to_four_digits(factor * each) for each in self.slowdowns)
        return replace(
            self,
            latency_us=quiet_latency_us(self.medians_us, slowdowns),
            slowdowns=slowdowns,
            quiet_us=quiet_us,
        )

    def _fastest_samples(self, timing: Timing) -> tuple[float, ...]:
        """Return samples of the two fastest timings among those before and this one."""
        half = MAX_SAMPLES // 2
        before = self.samples_us
        if len(self.medians_us) > 1:
            sample_sets = [before[: len(before) // 2], before[len(before) // 2 :]]
        else:
            sample_sets = [_evenly_spaced(before, half)]
        sample_sets.append(_evenly_spaced(timing.samples_us, half))
        fastest = sorted(sample_sets, key=statistics.median)[:2]
        return tuple(sample for samples in fastest for sample in samples)

    @property
    def fastest_us(self) -> float:
        """The median of `samples_us`, at the speed that the processor had."""
        return Timing(self.samples_us).latency_us

    @property
    def cold_us(self) -> float | None:
        """The median of `cold_samples_us`; None without samples."""
        return Timing(self.cold_samples_us).latency_us if self.cold_samples_us else None

    @property
    def is_estimated(self) -> bool:
        """Whether the latency was not measured."""
        return self.latency_us is not None and self.basis != MEASURED

    @property
    def flags(self) -> tuple[str, ...]:
        """The reasons to trust the latency less: `unstable` and `estimated: <by what>`."""
        unstable = (UNSTABLE,) if self.status == UNSTABLE else ()
        return (*unstable, self.basis) if self.is_estimated else unstable

    @property
    def key(self) -> str:
        """Kind and name. No two current records of a table have the same key."""
        return f"{self.kind} {self.name}".strip()

    def to_json(self) -> dict[str, Any]:
        """Return the line to write, without the fields that do not apply."""
        line: dict[str, Any] = {"record": self.kind}
        if self.kind == "calibration":
            line |= {"status": self.status, **(self.calibration or {})}
        else:
            line |= {
                _NAME_KEYS[self.kind]: self.name,
                "status": self.status,
                "latency_us": self.latency_us,
                "samples_us": list(self.samples_us),
            }
            if self.medians_us:
                line["medians_us"] = list(self.medians_us)
            if self.references_us:
                line["workload_us"] = list(self.references_us)
            if self.slowdowns:
                line |= {"slowdowns": list(self.slowdowns), "quiet_us": self.quiet_us}
            if not self.settled:
                line["settled"] = False
            if self.cold_samples_us:
                line |= {"cold_us": self.cold_us, "cold_samples_us": list(self.cold_samples_us)}
            if self.schedule is not None:
                line["schedule"] = dict(self.schedule)
            line["basis"] = self.basis
        if self.error is not None:
            line["error"] = self.error
        if self.supersedes is not None:
            line["supersedes"] = self.supersedes
        return line

    @cached_property
    def correction(self) -> Correction | None:
        """What corrects predictions; None if this is no calibration, or one that is not used."""
        fitted = self.calibration
        if not fitted or not fitted["used"]:
            return None
        return Correction.from_fields(fitted)

    @classmethod
    def parse(cls, content: bytes, where: str, line: int) -> Record:
        """Return the record in a line.

        Args:
            content: the line.
            where: file and line number, for messages.
            line: number of the line.

        Raises:
            TableError: the line is no record.
        """
        kind = ANY_ROW.parse(content, where).record
        if kind == "calibration":
            fitted = CALIBRATION_ROW.parse(content, where)
            values = fitted.model_dump(exclude={"status", "supersedes"}, exclude_unset=True)
            record = cls.from_calibration(values, fitted.batch)
            return replace(record, supersedes=fitted.supersedes, line=line)
        row = TIMED_ROWS[kind].parse(content, where)
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
            row.cold_samples_us,
            row.references_us,
            row.slowdowns,
            row.quiet_us,
            line,
        )


def timing_sensitivity(records: Iterable[Record], quiet_us: float) -> float:
    """Return how closely the timings of kernels or miss curves follow the reference workload.

    See `nas.latency.processor_speed.sensitivity`.

    Args:
        records: their records.
        quiet_us: duration of the reference workload at the quiet speed.
    """
    series = (_pairs(each.medians_us, each.references_us) for each in records)
    return processor_speed.sensitivity(series, quiet_us)


def _pairs(
    medians_us: Sequence[float], references_us: Sequence[float]
) -> list[tuple[float, float | None]]:
    """Return each timing with the reference workload beside it."""
    beside_us: Sequence[float | None] = references_us or [None] * len(medians_us)
    return [*zip(medians_us, beside_us, strict=True)]


def _evenly_spaced(samples: Sequence[float], count: int) -> tuple[float, ...]:
    """Return at most `count` of the samples, evenly spaced in time."""
    if len(samples) <= count:
        return tuple(samples)
    return tuple(samples[position * len(samples) // count] for position in range(count))
