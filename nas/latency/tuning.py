"""Tuning the kernels of a table: search faster schedules at length, and keep those that are faster.

The new schedule of a kernel and the schedule on record are timed alternately, so that a busy
machine slows both. The faster one is kept, and the record says what was tried: a table never gets
worse, and nothing is tuned twice.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nas.errors import RequestError, first_line
from nas.latency.build import build_table
from nas.latency.kernel import Kernel
from nas.latency.record import Record
from nas.latency.runtime import KernelTimer, Runtime, Schedule
from nas.latency.table import LatencyTable
from nas.latency.timer_pool import TimerPool
from nas.latency.timing import Timing

DEFAULT_TUNER = "template"
"""The tuner of every build: it tries the few schedules of each kernel that the runtime has."""

DEFAULT_TRIALS = 64
"""Schedules that another tuner tries for each kernel."""

TIMINGS_PER_SCHEDULE = 10
"""Timings of each of two schedules that are compared, in turns."""

KERNELS_PER_ROUND = 4
"""Kernels that a device tunes before the faster ones are timed again: some minutes."""


@dataclass(frozen=True)
class TuningProgress:
    """The state of a tuning after one kernel.

    Args:
        kernel: kernel that was tuned.
        done: number of kernels so far.
        total: number of kernels in all.
        before_us: sum of the latencies of the tuned kernels before.
        after_us: sum of their latencies after.
    """

    kernel: Kernel
    done: int
    total: int
    before_us: float
    after_us: float

    @property
    def gain(self) -> float:
        """Saved latency as a fraction of the latency before."""
        return 1 - self.after_us / self.before_us if self.before_us else 0.0


@dataclass(frozen=True)
class TuningResult:
    """The outcome for the kernels that were asked for.

    Args:
        faster: number of kernels that got a faster schedule.
        unchanged: number of kernels that were tuned without success.
        failed: error of each kernel whose tuning failed; it keeps its record.
        skipped: number of kernels that were tuned before, cannot be tuned or timed, or have no
            weights.
        gain: see `TuningProgress.gain`.
        seconds: duration of the tuning.
    """

    faster: int
    unchanged: int
    failed: Mapping[Kernel, str]
    skipped: int
    gain: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the part of `nas table build --json` about tuning."""
        failed = {kernel.text: error for kernel, error in self.failed.items()}
        return {
            "faster": self.faster,
            "unchanged": self.unchanged,
            "skipped": self.skipped,
            "failed": failed,
            "gain": round(self.gain, 4),
            "seconds": round(self.seconds, 1),
        }

    def __str__(self) -> str:
        summary = (
            f"{self.faster} kernels got faster, {self.unchanged} kept their schedule, "
            f"{len(self.failed)} could not be tuned, {self.skipped} were skipped; the tuned "
            f"kernels take {self.gain:.1%} less time."
        )
        return "\n".join([summary, *(f"{k}: {error}" for k, error in self.failed.items())])


def requested_trials(runtime: Runtime, tuner: str, trials: int | None) -> int:
    """Return the number of trials with which a build tunes each kernel; 0 for `DEFAULT_TUNER`.

    Args:
        runtime: the runtime.
        tuner: name of the tuner.
        trials: number of trials that the user gave; None if none was given.

    Raises:
        RequestError: the runtime does not have the tuner, or trials were given without a tuner.
    """
    if tuner == DEFAULT_TUNER:
        if trials is not None:
            raise RequestError(
                f"--trials counts the schedules that a tuner tries, and --tuner is '{tuner}'.",
                remedy="Name a tuner with --tuner, or leave --trials out.",
            )
        return 0
    runtime.check_tuner(tuner)
    return DEFAULT_TRIALS if trials is None else trials


def completed_trials(record: Record, tuner: str) -> int:
    """Return the number of trials with which a tuner tuned a kernel, successfully or not."""
    schedule = record.schedule or {}
    tried = schedule if schedule.get("tuner") == tuner else schedule.get("tried", {})
    trials = tried.get("trials") if isinstance(tried, Mapping) else None
    return trials if isinstance(trials, int) else 0


def tune_table(
    table: LatencyTable,
    kernels: Iterable[Kernel],
    timer: KernelTimer | Sequence[KernelTimer],
    *,
    tuner: str,
    trials: int,
    progress: Callable[[TuningProgress], None] | None = None,
) -> TuningResult:
    """Tune the kernels with weights that a table has, unless they were tuned with as many trials.

    A kernel whose tuning fails keeps its record, and is tuned again the next time. A tuning that
    was stopped continues with the remaining kernels when it is started again.

    Args:
        table: table of the device.
        kernels: kernels to tune.
        timer: timer of the device, or timers of several equal devices, which share the kernels.
        tuner: one of the tuners of the runtime.
        trials: number of schedules to try for each kernel, at least 1.
        progress: function to call after every kernel.

    Raises:
        RequestError: `trials` is less than 1.
        TableError: another process writes the table.
    """
    if trials < 1:
        raise RequestError(f"trials is {trials}.", remedy="Use 1 or more.")
    timers = list(timer) if isinstance(timer, Sequence) else [timer]
    table_tuner = _TableTuner(table, timers, tuner, trials)
    start_s = time.monotonic()
    with table.writing():
        requested = list(dict.fromkeys(kernels))
        due = [kernel for kernel in requested if table_tuner.is_due(kernel)]
        round_size = KERNELS_PER_ROUND * len(timers)
        for start in range(0, len(due), round_size):
            round_kernels = due[start : start + round_size]
            for kernel in table_tuner.tune(round_kernels):
                if progress is not None:
                    progress(table_tuner.progress(kernel, len(due)))
            # The faster kernels were timed at one moment only; this times them at another.
            build_table(table, round_kernels, timers, progress=None)
    return table_tuner.result(len(requested) - len(due), time.monotonic() - start_s)


@dataclass(frozen=True)
class _ScheduleComparison:
    """A tuned schedule, and alternating timings of it and of the schedule on record."""

    tuned_schedule: Schedule
    tuned: list[Timing]
    recorded: list[Timing]

    @property
    def speedup(self) -> float:
        """The median of how many times faster the tuned schedule is."""
        pairs = zip(self.recorded, self.tuned, strict=True)
        return statistics.median(old.latency_us / new.latency_us for old, new in pairs)


class _TableTuner:
    """Tunes kernels, records the faster schedules, and counts the outcomes."""

    def __init__(
        self, table: LatencyTable, timers: list[KernelTimer], tuner: str, trials: int
    ) -> None:
        self._table, self._tuner, self._trials = table, tuner, trials
        self._timers = TimerPool(timers)
        self._before_us = self._after_us = 0.0
        self._faster = self._unchanged = 0
        self._failed: dict[Kernel, str] = {}

    def is_due(self, kernel: Kernel) -> bool:
        """Return whether a kernel can be tuned, and was not tuned with as many trials."""
        record = self._table.record(kernel)
        return (
            kernel.has_weights
            and record is not None
            and record.status != "failed"
            and completed_trials(record, self._tuner) < self._trials
        )

    def tune(self, kernels: Sequence[Kernel]) -> Iterator[Kernel]:
        """Tune kernels, record the outcome of each, and yield it."""
        records = {kernel: self._record(kernel) for kernel in kernels}

        def compare(timer: KernelTimer, kernel: Kernel) -> _ScheduleComparison:
            recorded_schedule = records[kernel].schedule or {}
            tuned_schedule = timer.tune_kernel(kernel, self._tuner, self._trials)
            recorded: list[Timing] = []
            tuned: list[Timing] = []
            for _ in range(TIMINGS_PER_SCHEDULE):
                recorded.append(timer.retime_kernel(kernel, recorded_schedule))
                tuned.append(timer.retime_kernel(kernel, tuned_schedule))
            return _ScheduleComparison(tuned_schedule, tuned, recorded)

        for kernel, outcome in self._timers.each(kernels, compare):
            if isinstance(outcome, Exception):
                self._failed[kernel] = first_line(outcome)
            else:
                self._append(records[kernel], outcome)
            yield kernel

    def _record(self, kernel: Kernel) -> Record:
        record = self._table.record(kernel)
        assert record is not None
        return record

    def _append(self, record: Record, comparison: _ScheduleComparison) -> None:
        """Append the record with the faster of the two schedules."""
        assert record.latency_us is not None
        speedup = comparison.speedup
        self._before_us += record.latency_us
        if speedup > 1:
            self._faster += 1
            self._after_us += record.latency_us / speedup
            fastest = min(comparison.tuned, key=lambda each: each.latency_us)
            faster = Record.from_timing(
                "kernel",
                fastest,
                name=record.name,
                schedule=comparison.tuned_schedule,
                basis=self._table.runtime.basis,
            )
            self._table.append(
                replace(
                    faster,
                    medians_us=(fastest.latency_us,),
                    references_us=fastest.references_us,
                    settled=False,
                )
            )
            return
        self._unchanged += 1
        self._after_us += record.latency_us
        schedule = {**(record.schedule or {})}
        if schedule.get("tuner") == self._tuner:
            schedule["trials"] = self._trials
        else:
            schedule["tried"] = {
                "tuner": self._tuner,
                "trials": self._trials,
                "speedup": round(speedup, 3),
            }
        self._table.append(replace(record, schedule=schedule, supersedes=None, line=0))

    def progress(self, kernel: Kernel, total: int) -> TuningProgress:
        """Return the state after a kernel."""
        done = self._faster + self._unchanged + len(self._failed)
        return TuningProgress(kernel, done, total, self._before_us, self._after_us)

    def result(self, skipped: int, seconds: float) -> TuningResult:
        """Return the outcome of the whole tuning."""
        gain = 1 - self._after_us / self._before_us if self._before_us else 0.0
        return TuningResult(self._faster, self._unchanged, self._failed, skipped, gain, seconds)
