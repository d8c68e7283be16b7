"""Building a latency table: list the kernels that spaces need, and time those that are missing.

Every kernel is timed in several rounds, see `nas.latency.timing`: other programs can slow a
machine for many seconds, during which all samples agree and all are wrong. The kernels of a group
are timed in turn, so that no time is lost between their rounds. Those whose timings disagree are
timed again at the end.

The miss curve (`nas.latency.cache_model`) depends on how much of a shared cache other programs
leave, which differs from one second to the next. So its rounds are spread over the build.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nas.display.progress import Advance
from nas.errors import BoardLostError, MeasurementError, NasError, first_line
from nas.kernels.kernel import Kernel
from nas.latency import timer_answers
from nas.latency.installed_runtimes import default_runtime
from nas.latency.record import DISTURBED, UNSTABLE, Record
from nas.latency.runtime import KernelTimer, Runtime
from nas.latency.table import LatencyTable
from nas.latency.timer_pool import TimerPool
from nas.latency.timing import Rounds, Timing

if TYPE_CHECKING:
    from nas.graph import Graph
    from nas.space import SearchSpace

KERNELS_IN_TURN = 48
"""Kernels that a device times in turn, because they stay loaded: larger numbers would need more
memory, and compile kernels anew."""

CURVE_ROUNDS = 12
"""Rounds at which the miss curve is timed, at least."""

SECONDS_BETWEEN_CURVES = 10.0
"""Time after which a build times the miss curve again. One timing takes a tenth of a second."""

MAX_CURVE_DIFFERENCE = 0.1
"""Largest difference of the latencies by two halves of the timings of a stable miss curve, as a
fraction."""

MAX_ATTEMPTS = 3
"""Attempts to time dispatch costs. They are differences of timings, and another process that wakes
up at the wrong moment makes one of them negative."""

_MAX_ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class BuildResult:
    """The kernels that a build added or finished, by status.

    Args:
        ok: number of kernels whose timings agree.
        unstable: number of kernels whose timings do not agree.
        disturbed: number of kernels that were never timed while the core ran at full speed.
        failed: number of kernels that could not be compiled or timed.
        seconds: duration of the build.
    """

    ok: int
    unstable: int
    disturbed: int
    failed: int
    seconds: float

    @property
    def added(self) -> int:
        """Number of kernels that were added or finished, whatever their status."""
        return self.ok + self.unstable + self.disturbed + self.failed


def space_kernels(space: SearchSpace, runtime: Runtime | str, batch: int = 1) -> list[Kernel]:
    """Return every kernel that an architecture of a space can launch, once each.

    A kernel depends on nothing beyond its block, so the blocks of a space contain all of them.

    Args:
        space: the search space, adapted to the images.
        runtime: the runtime, opened or not; or the name of one with its default settings.
        batch: number of images that run at once.

    Raises:
        RequestError: there is no such runtime.
    """
    from nas.space.exits import exit_shapes

    configured = default_runtime(runtime) if isinstance(runtime, str) else runtime
    blocks = list(space.block_graphs())
    kernels = dict.fromkeys(configured.block_kernels(blocks, batch))
    # Networks are divided where an exit is: a part ends there, and images enter the other one.
    shapes = exit_shapes(space)
    for part in (
        [block for block in blocks if block.output_shape in shapes],
        *([block] for block in blocks if block.input_shape in shapes),
    ):
        kernels.update(dict.fromkeys(configured.block_kernels(part, batch)))
    return list(kernels)


def build_table(
    table: LatencyTable,
    kernels: Iterable[Kernel],
    timer: KernelTimer | Sequence[KernelTimer],
    *,
    retry_failed: bool = False,
    again: bool = False,
    seconds: float | None = None,
    progress: Advance | bool | None = True,
) -> BuildResult:
    """Time the kernels that a table lacks, and append their records.

    The first timing of a kernel is on the disk before the next timing starts. A later record of the
    kernel supersedes it; it has the medians of all timings. Each kernel is timed at
    `Capabilities.rounds` rounds, and then until its timings agree or it is called unstable.

    A kernel that cannot be compiled or timed becomes a failed record with its error, and the build
    goes on. A build that was stopped continues with the missing kernels when it is started again,
    and with the kernels that were timed in too few rounds.

    Args:
        table: table of the device.
        kernels: kernels that the table should have.
        timer: timer of the device, or timers of several equal devices, which share the kernels. If
            a device is lost, its kernel is timed on another one, once. If none is left, the kernel
            becomes a failed record that says so, or keeps the timing that it had.
        retry_failed: whether kernels with a failed record are timed again.
        again: whether kernels that have a latency, and the dispatch costs, are timed again. The
            timings before count as well.
        seconds: time after which kernels are only timed for the first time: those whose timings do
            not agree by then are unstable. None means no limit.
        progress: True shows a bar on a terminal or in a notebook, False nothing; or a function to
            call after every timing with the name of the kernel. The number of all timings grows if
            those of a kernel disagree.

    Raises:
        TableError: another process writes the table.
        MeasurementError: the dispatch costs cannot be distinguished from noise.
        BoardLostError: no device is left.
        DeviceError: the devices are not equal.
    """
    from nas.display.console import reported

    timers = TimerPool(timer if isinstance(timer, Sequence) else [timer])
    with (
        table.writing(),
        reported(progress, "latency table", "timing") as report,
    ):
        builder = _TableBuilder(table, timers, report, seconds)
        wanted = list(dict.fromkeys(kernels))
        table.record_blocks()
        builder.time_dispatch(again=again)
        builder.build(wanted, table.missing(wanted, include_failed=retry_failed), again=again)
    return builder.result()


class _TableBuilder:
    """Takes the timings of one build, appends their records, and counts them."""

    def __init__(
        self,
        table: LatencyTable,
        timers: TimerPool,
        progress: Advance | None,
        seconds: float | None,
    ) -> None:
        self._table, self._timers, self._progress = table, timers, progress
        self._start = time.monotonic()
        self._limit_s = math.inf if seconds is None else seconds
        self._min_rounds = table.runtime.capabilities.rounds
        self._pause = Rounds()
        self._done = self._total = 0
        # Kernels whose recorded timings came to an end.
        self._ended: set[Kernel] = set()
        # Records with timings that are not appended yet.
        self._latest: dict[Kernel, Record] = {}
        self._statuses: dict[Kernel, str] = {}
        self._curve = {each.name: each for each in table.records("dispatch") if each.rounds_us}
        self._curve_timed_s = -math.inf

    # Dispatch costs.

    def time_dispatch(self, *, again: bool) -> None:
        """Time the dispatch costs that the table lacks, and the miss curve for the first time.

        Args:
            again: whether costs that the table has are timed again. Of two costs of launching
                kernels, the lower one counts; of the miss curve, all timings count.
        """
        if again or self._table.lacks_dispatch():
            before_us = {} if self._table.lacks_dispatch() else self._table.dispatch.parts_us
            for part, timing in self._attempt(timer_answers.time_dispatch).items():
                if timing.latency_us < before_us.get(part, math.inf):
                    self._table.append(self._dispatch_record(part, timing))
            self._time_curve()
            self._append_latest()

    @property
    def _curve_is_incomplete(self) -> bool:
        return not all(each.complete for each in self._curve.values())

    @property
    def _full_us(self) -> float | None:
        """Reading at full speed, as far as it is known now."""
        known_us = [each for each in (self._table.full_us, self._timers.full_us) if each]
        return min(known_us, default=None)

    def _begin_round(self) -> None:
        if not self._timers.is_recorded:
            self._pause.wait()

    def _time_curve(self) -> bool:
        """Time the miss curve in one round.

        Returns:
            Whether there was one; a runtime may have none, and recorded rounds come to an end.
        """
        self._begin_round()
        timings = self._attempt(timer_answers.time_miss_curve)
        self._curve_timed_s = time.monotonic()
        for part, timing in timings.items():
            record = self._curve.get(part)
            self._curve[part] = (
                self._dispatch_record(part, timing).as_first_of_several(timing, None)
                if record is None
                else record.with_timing(timing, CURVE_ROUNDS, tolerance=MAX_CURVE_DIFFERENCE)
            )
        return bool(timings)

    def _dispatch_record(self, part: str, timing: Timing) -> Record:
        basis = self._table.runtime.basis
        return Record.from_timing("dispatch", timing, name=part, basis=basis)

    def _attempt(self, call: Callable[[KernelTimer], Mapping[str, Timing]]) -> Mapping[str, Timing]:
        """Return what a function of a timer returns, after a few attempts."""
        for _ in range(MAX_ATTEMPTS - 1):
            try:
                return self._timers.call_any(call)
            except MeasurementError:
                continue
        return self._timers.call_any(call)

    # Kernels.

    def build(self, wanted: Sequence[Kernel], missing: Sequence[Kernel], *, again: bool) -> None:
        """Time missing kernels, and those that need further timings, in as many rounds."""
        further_rounds = {
            kernel: max(1, self._min_rounds - len(record.latency.undisturbed) * (not again))
            for kernel in wanted
            if (record := self._table.record(kernel)) is not None
            and record.status != "failed"
            and (again or not record.complete or record.status == DISTURBED)
        }
        self._total = self._min_rounds * len(missing) + sum(further_rounds.values())
        with self._appending():
            for group in self._groups([*missing, *further_rounds]):
                self._time_first([kernel for kernel in group if kernel not in further_rounds])
                left = {
                    kernel: further_rounds.get(kernel, self._min_rounds - 1) for kernel in group
                }
                while left := {kernel: n for kernel, n in left.items() if n > 0}:
                    self._time_in_a_round(list(left))
                    left = {kernel: n - 1 for kernel, n in left.items()}
                self._append_latest()
            while (
                incomplete := [k for k in self._incomplete(wanted) if k not in self._ended]
            ) and self.seconds < self._limit_s:
                self._total += len(incomplete)
                for group in self._groups(incomplete):
                    self._time_in_a_round(group)
            for kernel in self._incomplete(wanted):
                record = self._record_of(kernel)
                if record and record.status == "ok" and not record.latency.agrees():
                    self._latest[kernel] = record.model_copy(update={"status": UNSTABLE})
            has_curve = True
            while has_curve and self._curve_is_incomplete and self.seconds < self._limit_s:
                has_curve = self._time_curve()

    def _groups(self, kernels: Sequence[Kernel]) -> list[Sequence[Kernel]]:
        """Return the kernels that are timed in turn."""
        size = KERNELS_IN_TURN * max(1, len(self._timers))
        return [kernels[start : start + size] for start in range(0, len(kernels), size)]

    def _incomplete(self, kernels: Iterable[Kernel]) -> list[Kernel]:
        """Return the kernels that have a latency and need another timing.

        Timings of the first rounds may have been taken for those at full speed: all are judged by
        what is known now.
        """
        full_us = self._full_us
        incomplete = []
        for kernel in kernels:
            record = self._record_of(kernel)
            if record is None or record.status == "failed":
                continue
            judged = record.judged_by(full_us, self._min_rounds)
            if (judged.status, judged.latency_us) != (record.status, record.latency_us):
                self._latest[kernel] = judged
            if not judged.complete:
                incomplete.append(kernel)
        return incomplete

    def _time_first(self, kernels: Sequence[Kernel]) -> None:
        """Find the schedules of kernels and time them for the first time."""
        full_us = self._full_us
        for kernel, outcome in self._timers.each(kernels, timer_answers.time_kernel):
            if isinstance(outcome, Exception):
                record = self._failure(kernel, outcome)
            else:
                schedule, timing = outcome
                record = Record.from_timing(
                    "kernel",
                    timing,
                    name=kernel.text,
                    schedule=schedule,
                    basis=self._table.runtime.basis,
                )
                if self._min_rounds > 1:
                    record = record.as_first_of_several(timing, full_us)
            self._append(kernel, record)
            self._report(record)

    def _time_in_a_round(self, kernels: Sequence[Kernel]) -> None:
        """Time kernels that have a latency again, with the schedules of their records."""
        records = {
            kernel: record
            for kernel in kernels
            if kernel not in self._ended
            and (record := self._record_of(kernel)) is not None
            and record.status != "failed"
        }
        self._total -= len(kernels) - len(records)
        if not records or self.seconds >= self._limit_s:
            self._total -= len(records)
            return
        self._begin_round()
        full_us = self._full_us
        is_due = time.monotonic() >= self._curve_timed_s + SECONDS_BETWEEN_CURVES
        if is_due and self._curve_is_incomplete:
            self._time_curve()
        for kernel, outcome in self._timers.each(
            list(records),
            lambda timer, each: timer_answers.retime_kernel(
                timer, each, records[each].schedule or {}
            ),
        ):
            if isinstance(outcome, BoardLostError) and not self._timers:
                # The kernel ran before, so the device was not lost because of it.
                continue
            if outcome is None:
                self._ended.add(kernel)
                self._total -= 1
                continue
            self._latest[kernel] = (
                self._failure(kernel, outcome)
                if isinstance(outcome, Exception)
                else records[kernel].with_timing(outcome, self._min_rounds, full_us)
            )
            self._report(self._latest[kernel])

    def _record_of(self, kernel: Kernel) -> Record | None:
        """Return the record of a kernel, with the timings that are not appended yet."""
        return self._latest.get(kernel) or self._table.record(kernel)

    def _failure(self, kernel: Kernel, error: Exception) -> Record:
        text = str(error) if isinstance(error, NasError) else first_line(error)
        # Text that a program printed in another encoding has characters that no file can hold.
        text = text.encode("utf-8", "backslashreplace").decode()[:_MAX_ERROR_CHARACTERS]
        message = text or type(error).__name__
        return Record(kind="kernel", name=kernel.text, status="failed", error=message)

    # Records and progress.

    @contextmanager
    def _appending(self) -> Iterator[None]:
        """Append all records at the end, and also if an error or Ctrl-C ends the timing."""
        try:
            yield
        finally:
            self._append_latest()

    def _append_latest(self) -> None:
        for kernel in list(self._latest):
            self._append(kernel, self._latest.pop(kernel))
        for part, record in self._curve.items():
            if record.line == 0:
                self._curve[part] = self._table.append(record)

    def _append(self, kernel: Kernel, record: Record) -> None:
        self._statuses[kernel] = self._table.append(record).status

    def _report(self, record: Record) -> None:
        """Count a timing, and report it."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, record.name)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def result(self) -> BuildResult:
        """Return what was added or finished."""
        counts = Counter(self._statuses.values())
        return BuildResult(
            counts["ok"], counts[UNSTABLE], counts[DISTURBED], counts["failed"], self.seconds
        )


def add_missing_kernels(
    table: LatencyTable,
    graphs: Sequence[Graph],
    runtime: Runtime,
    batch: int = 1,
    progress: Advance | None = None,
) -> None:
    """Add the kernels that networks need and a table lacks.

    Args:
        table: table of the device.
        graphs: the networks.
        runtime: runtime of the table.
        batch: number of images that run at once.
        progress: function of the kernels that were timed, of all, and of the name of the last one.

    Raises:
        NasError: see `build_table`.
    """
    from nas.latency.worker_process import timers_for

    missing = table.missing([kernel for each in graphs for kernel in runtime.kernels(each, batch)])
    if not missing:
        return
    timed: set[str] = set()

    def report(done: int, total: int | None, text: str = "") -> None:
        timed.add(text)
        if progress is not None:
            progress(len(timed), len(missing), text)

    with timers_for(runtime) as timers:
        build_table(table, missing, timers, progress=report)
