"""Tunes kernels that a table has: looks for faster schedules at length, and keeps what is faster.

A tuned kernel is timed in turns with the schedule on record, so that a busy machine slows both. The
faster of the two stays, and the row says what was tried: a table never gets worse, and nothing is
tuned twice.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nas.errors import RequestError, first_line
from nas.latency.build import build_table
from nas.latency.kernel import Kernel
from nas.latency.record import Record
from nas.latency.runtime import KernelTimer, Runtime
from nas.latency.table import LatencyTable
from nas.latency.timer_pool import TimerPool
from nas.latency.timing import Timing

DEFAULT_TUNER = "template"
"""Sweep the few schedules of each kernel that the runtime tries in any case."""

TRIALS = 64
"""Candidates of a kernel, unless asked for another number."""

TURNS = 3
"""Timings of each of two schedules that are compared."""

CHUNK = 4
"""Kernels that are tuned before the faster ones are timed once more: some minutes."""


@dataclass(frozen=True)
class TuningProgress:
    """`done` of `total` kernels are tuned; `before_us` became `after_us` for their sum."""

    kernel: Kernel
    done: int
    total: int
    before_us: float
    after_us: float

    @property
    def gain(self) -> float:
        """How much faster the kernels got, as a share of what they took."""
        return 1 - self.after_us / self.before_us if self.before_us else 0.0


@dataclass(frozen=True)
class TuningResult:
    """What became of the kernels that were asked for.

    Args:
        faster: got a faster schedule.
        kept: were tuned in vain.
        failed: keep their row, by the error that their tuning ended with.
        skipped: were tuned before, cannot be tuned or timed, or have no weights.
        gain: see `TuningProgress.gain`.
        seconds: it took.
    """

    faster: int
    kept: int
    failed: Mapping[Kernel, str]
    skipped: int
    gain: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For a program that reads it."""
        failed = {kernel.text: error for kernel, error in self.failed.items()}
        return {
            "faster": self.faster,
            "kept": self.kept,
            "skipped": self.skipped,
            "failed": failed,
            "gain": round(self.gain, 4),
            "seconds": round(self.seconds, 1),
        }

    def __str__(self) -> str:
        lines = [
            f"{self.faster} kernels got faster, {self.kept} kept their schedule, "
            f"{len(self.failed)} could not be tuned, {self.skipped} had no need; "
            f"{self.gain:.1%} less time in those tuned."
        ]
        return "\n".join([*lines, *(f"{k}: {error}" for k, error in self.failed.items())])


def check_request(runtime: Runtime, tuner: str, trials: int | None) -> int:
    """Return how many trials a build tunes each kernel with; 0 for `DEFAULT_TUNER`.

    Raises:
        RequestError: the runtime does not have the tuner, or trials were given without one.
    """
    if tuner == DEFAULT_TUNER:
        if trials is not None:
            raise RequestError(
                f"--trials counts the schedules that a tuner tries, and --tuner is '{tuner}'.",
                remedy="Name a tuner with --tuner, or leave --trials out.",
            )
        return 0
    runtime.check_tuner(tuner)
    return TRIALS if trials is None else trials


def trials_of(record: Record, tuner: str) -> int:
    """Return how many trials of a tuner a kernel was tuned with, successful or not."""
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
    """Tunes the kernels with weights that a table has and that were not tuned with as many trials.

    A kernel whose tuning fails keeps its row, and is tuned again the next time. Stopped at any
    point and started again, it continues with what was not tuned.

    Args:
        table: of the device.
        kernels: that may get faster.
        timer: the device's, or several of equal devices, which share the kernels.
        tuner: one of the tuners of the runtime.
        trials: candidates for each kernel, 1 or more.
        progress: called after every kernel.

    Raises TableError where another process writes the table, RequestError for no trials.
    """
    if trials < 1:
        raise RequestError(f"trials is {trials}.", remedy="Use 1 or more.")
    timers = list(timer) if isinstance(timer, Sequence) else [timer]
    tuning = _Tuning(table, timers, tuner, trials)
    begun = time.monotonic()
    with table.writing():
        asked = list(dict.fromkeys(kernels))
        todo = [kernel for kernel in asked if tuning.is_due(kernel)]
        step = CHUNK * len(timers)
        for start in range(0, len(todo), step):
            chunk = todo[start : start + step]
            for kernel in tuning.each(chunk):
                if progress is not None:
                    progress(tuning.progress(kernel, len(todo)))
            # What got faster was timed at one moment only; this times it at another.
            build_table(table, chunk, timers)
    return tuning.result(len(asked) - len(todo), time.monotonic() - begun)


@dataclass(frozen=True)
class _Compared:
    """A schedule that was found, and its timings in turns with those of the one on record."""

    schedule: Mapping[str, Any]
    found: list[Timing]
    present: list[Timing]

    @property
    def speedup(self) -> float:
        """How many times faster the found one is, in the turn that is neither best nor worst."""
        turns = zip(self.present, self.found, strict=True)
        return statistics.median(old.latency_us / new.latency_us for old, new in turns)


class _Tuning:
    """How far a tuning is."""

    def __init__(
        self, table: LatencyTable, timers: list[KernelTimer], tuner: str, trials: int
    ) -> None:
        self._table, self._tuner, self._trials = table, tuner, trials
        self._timers = TimerPool(timers)
        self._before_us = self._after_us = 0.0
        self._faster = self._kept = 0
        self._failed: dict[Kernel, str] = {}

    def is_due(self, kernel: Kernel) -> bool:
        """Whether a kernel can be tuned, and was not with as many trials."""
        record = self._table.record(kernel)
        return (
            kernel.has_weights
            and record is not None
            and record.status != "failed"
            and trials_of(record, self._tuner) < self._trials
        )

    def each(self, kernels: Sequence[Kernel]) -> Iterable[Kernel]:
        """Tunes kernels, and adds what became of them to the table."""
        records = {kernel: self._record(kernel) for kernel in kernels}

        def compare(timer: KernelTimer, kernel: Kernel) -> _Compared:
            present = records[kernel].schedule or {}
            schedule = timer.tune_kernel(kernel, self._tuner, self._trials)
            found: list[Timing] = []
            before: list[Timing] = []
            for _ in range(TURNS):
                before.append(timer.retime_kernel(kernel, present))
                found.append(timer.retime_kernel(kernel, schedule))
            return _Compared(schedule, found, before)

        for kernel, outcome in self._timers.each(kernels, compare):
            if isinstance(outcome, Exception):
                self._failed[kernel] = first_line(outcome)
            else:
                self._settle(records[kernel], outcome)
            yield kernel

    def _record(self, kernel: Kernel) -> Record:
        record = self._table.record(kernel)
        assert record is not None
        return record

    def _settle(self, record: Record, compared: _Compared) -> None:
        assert record.latency_us is not None
        speedup = compared.speedup
        self._before_us += record.latency_us
        if speedup > 1:
            self._faster += 1
            self._after_us += record.latency_us / speedup
            best = min(compared.found, key=lambda each: each.latency_us)
            tuned = Record.of_timing(
                "kernel",
                best,
                name=record.name,
                schedule=compared.schedule,
                basis=self._table.runtime.basis,
            )
            self._table.append(replace(tuned, medians_us=(best.latency_us,), settled=False))
            return
        self._kept += 1
        self._after_us += record.latency_us
        tried = {"tuner": self._tuner, "trials": self._trials, "speedup": round(speedup, 3)}
        schedule = {**(record.schedule or {})}
        if schedule.get("tuner") == self._tuner:
            schedule["trials"] = self._trials
        else:
            schedule["tried"] = tried
        self._table.append(replace(record, schedule=schedule, supersedes=None, line=0))

    def progress(self, kernel: Kernel, total: int) -> TuningProgress:
        """After a kernel."""
        done = self._faster + self._kept + len(self._failed)
        return TuningProgress(kernel, done, total, self._before_us, self._after_us)

    def result(self, skipped: int, seconds: float) -> TuningResult:
        """At the end."""
        gain = 1 - self._after_us / self._before_us if self._before_us else 0.0
        return TuningResult(self._faster, self._kept, self._failed, skipped, gain, seconds)
