"""Building a latency table: list the kernels that spaces need, and time those that are missing.

Every kernel is timed at several moments, see `nas.latency.timing`. While some kernels are compiled
and timed for the first time, those before them are timed again, so that no time is lost between
their moments. The last moment follows a minute later, or when all kernels have been timed: another
program can slow a machine for many seconds, during which all samples agree and all are wrong.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nas.arguments import checked
from nas.errors import BoardLostError, NasError, first_line
from nas.latency.dispatch import DispatchTimer
from nas.latency.installed_runtimes import default_runtime
from nas.latency.kernel import Kernel
from nas.latency.record import Record, timing_sensitivity
from nas.latency.runtime import KernelTimer, Runtime
from nas.latency.table import LatencyTable
from nas.latency.timer_pool import TimerPool
from nas.latency.timing import MAX_MOMENTS_FACTOR, RETIMING_TOLERANCE, Moments, Timing

if TYPE_CHECKING:
    from nas.space import SearchSpace

KERNELS_IN_TURN = 48
"""Kernels that a device times in turn, because they stay loaded: larger numbers would need more
memory, and compile kernels anew."""

REST_SECONDS = 60.0
"""Time between the last two moments of a kernel, unless all kernels were timed before."""

_MAX_ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class BuildProgress:
    """The state of a build after one timing.

    Args:
        record: the record that was written.
        done: number of timings so far.
        total: number of timings in all; it grows if timings of a kernel disagree.
        seconds: seconds since the start.
    """

    record: Record
    done: int
    total: int
    seconds: float


@dataclass(frozen=True)
class BuildResult:
    """The kernels that a build added or finished, by status.

    Args:
        ok: number of kernels whose timings agree.
        unstable: number of kernels whose timings do not agree.
        failed: number of kernels that could not be compiled or timed.
        seconds: duration of the build.
    """

    ok: int
    unstable: int
    failed: int
    seconds: float

    @property
    def added(self) -> int:
        """Number of kernels that were added or finished, whatever their status."""
        return self.ok + self.unstable + self.failed


@checked(SearchSpace="nas.space")
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
    configured = default_runtime(runtime) if isinstance(runtime, str) else runtime
    kernels: dict[Kernel, None] = {}
    for block in space.block_graphs():
        is_first = block.input_shape[0] == space.channels
        kernels.update(dict.fromkeys(configured.block_kernels(block, first=is_first, batch=batch)))
    return list(kernels)


@checked
def build_table(
    table: LatencyTable,
    kernels: Iterable[Kernel],
    timer: KernelTimer | Sequence[KernelTimer],
    *,
    retry_failed: bool = False,
    again: bool = False,
    progress: Callable[[BuildProgress], None] | bool | None = True,
) -> BuildResult:
    """Time the kernels that a table lacks, and append their records.

    The first timing of a kernel is on the disk before the next timing starts. Later records of the
    kernel supersede it; they have the samples of the two fastest timings, the medians of all, and
    the latency at the quiet speed of the processor. Each kernel is timed at `Runtime.moments`
    moments, and then until its timings agree or it is called unstable.

    A kernel that cannot be compiled or timed becomes a failed record with its error, and the build
    goes on. A build that was stopped continues with the missing kernels when it is started again,
    and with the kernels that were timed at too few moments.

    Args:
        table: table of the device.
        kernels: kernels that the table should have.
        timer: timer of the device, or timers of several equal devices, which share the kernels. If
            a device is lost, its kernel is timed on another one, once. If none is left, the kernel
            becomes a failed record that says so, or keeps the timing that it had.
        retry_failed: whether kernels with a failed record are timed again.
        again: whether kernels that have a latency, and the dispatch costs, are timed again. The
            timings before count as well.
        progress: True shows a bar on a terminal or in a notebook, False nothing; or a function to
            call after every timing.

    Raises:
        TableError: another process writes the table.
        MeasurementError: the dispatch costs cannot be told from noise.
        BoardLostError: no device is left.
        DeviceError: the devices are not equal.
    """
    from nas.console import reported

    timers = TimerPool(timer if isinstance(timer, Sequence) else [timer])
    with (
        table.writing(),
        reported(
            progress, "latency table", "timing", lambda p: (p.done, p.total, p.record.name)
        ) as report,
    ):
        dispatch = DispatchTimer(table, timers, again=again)
        builder = _TableBuilder(table, timers, dispatch, report)
        dispatch.begin()
        missing = table.missing(kernels := list(kernels), include_failed=retry_failed)
        unsettled = [kernel for kernel in dict.fromkeys(kernels) if builder.is_unsettled(kernel)]
        retimed = dict.fromkeys(kernels) if again else ()
        settled = [kernel for kernel in retimed if builder.is_settled(kernel)]
        moments, further = builder.moments, max(1, builder.moments - 1)
        left = sum(builder.timings_left(kernel) for kernel in unsettled)
        builder.expect(moments * len(missing) + left + further * len(settled))
        in_turn = KERNELS_IN_TURN * len(timers)
        for start in range(0, len(settled), in_turn):
            builder.time_again(settled[start : start + in_turn], further)
        builder.time_until_settled([*unsettled, *missing])
        with builder.appending():
            dispatch.finish()
    return builder.result()


def kernels_per_group(timers: int, moments: int) -> int:
    """Return how many kernels are timed for the first time before others are timed again.

    Args:
        timers: number of timers.
        moments: number of moments at which each kernel is timed.
    """
    return max(1, KERNELS_IN_TURN * timers // max(1, moments - 2))


class _TableBuilder:
    """Takes the timings of one build, appends their records, and counts them.

    Attributes:
        dispatch: times the dispatch costs.
        moments: number of moments at which each kernel is timed, at least.
    """

    def __init__(
        self,
        table: LatencyTable,
        timers: TimerPool,
        dispatch: DispatchTimer,
        progress: Callable[[BuildProgress], None] | None,
    ) -> None:
        self._table, self._timers, self._progress = table, timers, progress
        self.dispatch = dispatch
        self._start = time.monotonic()
        self._moments = Moments()
        self.moments = table.runtime.moments
        self._done = self._total = 0
        self._latest: dict[Kernel, Record] = {}
        self._statuses: dict[Kernel, str] = {}

    def expect(self, timings: int) -> None:
        """Set the number of timings that the build takes if all agree."""
        self._total = timings

    def is_unsettled(self, kernel: Kernel) -> bool:
        """Return whether a kernel has a latency and needs another timing."""
        record = self._record_of(kernel)
        return record is not None and record.status != "failed" and not record.settled

    def timings_left(self, kernel: Kernel) -> int:
        """Return how many timings a kernel with a record needs if they agree."""
        record = self._record_of(kernel)
        return max(1, self.moments - len(record.medians_us if record else ()))

    def is_settled(self, kernel: Kernel) -> bool:
        """Return whether a kernel has a latency and needs no other timing."""
        record = self._table.record(kernel)
        return record is not None and record.status != "failed" and record.settled

    def time_first(self, kernels: Sequence[Kernel]) -> None:
        """Find the schedules of kernels and time them for the first time."""
        for kernel, outcome in self._timers.each(kernels, lambda timer, k: timer.time_kernel(k)):
            if isinstance(outcome, Exception):
                self._total -= self.moments - 1
                failed = self._failure(kernel, outcome)
                self._append(failed)
                self._report(failed)
                continue
            schedule, timing = outcome
            basis = self._table.runtime.basis
            record = replace(
                Record.from_timing(
                    "kernel", timing, name=kernel.text, schedule=schedule, basis=basis
                ),
                medians_us=(timing.latency_us,),
                settled=self.moments == 1,
            )
            self._append(record)
            self._report(record)

    def time_again(self, kernels: Sequence[Kernel], moments: int) -> None:
        """Time kernels at further moments, with the schedules of their records.

        Args:
            kernels: kernels with a latency.
            moments: number of moments.
        """
        with self.appending():
            for _ in range(moments if kernels else 0):
                self._time_at_a_moment(kernels)

    def time_until_settled(self, kernels: Sequence[Kernel]) -> None:
        """Time kernels at as many moments as they need, a few kernels at a time.

        Args:
            kernels: kernels that have no latency, or need other timings.
        """
        timers = len(self._timers)
        group_size, max_in_turn = kernels_per_group(timers, self.moments), KERNELS_IN_TURN * timers
        waiting, resting = deque(kernels), deque[tuple[float, Kernel]]()
        in_turn: list[Kernel] = []
        rested = {kernel for kernel in kernels if self.timings_left(kernel) == 1}

        def stay_in_turn(kernels: Sequence[Kernel]) -> list[Kernel]:
            """Return the kernels to time at the next moment; others rest or are settled."""
            staying: list[Kernel] = []
            for kernel in filter(self.is_unsettled, kernels):
                if self.timings_left(kernel) > 1 or kernel in rested:
                    staying.append(kernel)
                else:
                    resting.append((time.monotonic() + REST_SECONDS, kernel))
            self._append_latest(set(self._latest) - set(staying))
            return staying

        with self.appending():
            while waiting or in_turn or resting:
                count = min(group_size, len(waiting)) if len(in_turn) <= max_in_turn else 0
                group = [waiting.popleft() for _ in range(count)]
                self.time_first([kernel for kernel in group if not self.is_unsettled(kernel)])
                in_turn = stay_in_turn([*in_turn, *group])
                is_end = not waiting and rested.issuperset(in_turn)
                while resting and (is_end or resting[0][0] <= time.monotonic()):
                    _, kernel = resting.popleft()
                    rested.add(kernel)
                    in_turn.append(kernel)
                if in_turn:
                    self._time_at_a_moment(in_turn)
                    in_turn = stay_in_turn(in_turn)
                self.dispatch.time_if_due()

    @contextmanager
    def appending(self) -> Iterator[None]:
        """Append all records at the end, and also if an error or Ctrl-C ends the timing."""
        try:
            yield
        finally:
            self._append_latest(set(self._latest))
            self.dispatch.append()

    def _append_latest(self, kernels: Collection[Kernel]) -> None:
        """Append the records of these kernels, in the order of their first new timings."""
        for kernel in [each for each in self._latest if each in kernels]:
            self._append(self._latest.pop(kernel))

    def _time_at_a_moment(self, kernels: Sequence[Kernel]) -> None:
        def retime(timer: KernelTimer, kernel: Kernel) -> Timing:
            record = self._record_of(kernel)
            return timer.retime_kernel(kernel, (record and record.schedule) or {})

        self._moments.wait()
        records = {
            kernel: record
            for kernel in kernels
            if (record := self._record_of(kernel)) is not None and record.status != "failed"
        }
        # The same for all kernels, so that their latencies are at one speed.
        quiet_us = self._table.quiet_us
        current = {each.name: each for each in self._table.records("kernel")}
        current |= {each.name: each for each in self._latest.values()}
        sensitivity = timing_sensitivity(current.values(), quiet_us)
        for kernel, outcome in self._timers.each([*records], retime):
            record = records[kernel]
            if isinstance(outcome, BoardLostError) and not self._timers:
                # The kernel ran before, so the device was not lost because of it.
                continue
            self._latest[kernel] = self._with_outcome(
                kernel, record, outcome, quiet_us, sensitivity
            )
            self._report(self._latest[kernel])

    def _record_of(self, kernel: Kernel) -> Record | None:
        """Return the record of a kernel, with the timings that are not appended yet."""
        return self._latest.get(kernel) or self._table.record(kernel)

    def _with_outcome(
        self,
        kernel: Kernel,
        record: Record,
        outcome: Timing | Exception,
        quiet_us: float,
        sensitivity: float,
    ) -> Record:
        """Return the record of a kernel that was timed again; see `Record.with_timing`."""
        if isinstance(outcome, Exception):
            self._total -= max(0, self.moments - len(record.medians_us) - 1)
            return self._failure(kernel, outcome)
        updated = record.with_timing(
            outcome,
            RETIMING_TOLERANCE,
            self.moments,
            MAX_MOMENTS_FACTOR * self.moments,
            quiet_us,
            sensitivity,
        )
        self._total += not updated.settled and len(updated.medians_us) >= self.moments
        return updated

    def _failure(self, kernel: Kernel, error: Exception) -> Record:
        is_ours = isinstance(error, NasError)
        message = str(error)[:_MAX_ERROR_CHARACTERS] if is_ours else first_line(error)
        return Record("kernel", kernel.text, "failed", error=message)

    def _append(self, record: Record) -> None:
        record = self._table.append(record)
        self._statuses[Kernel.parse(record.name)] = record.status

    def _report(self, record: Record) -> None:
        """Count a timing, and report it."""
        self._done += 1
        if self._progress is not None:
            self._progress(BuildProgress(record, self._done, self._total, self.seconds))

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def result(self) -> BuildResult:
        """Return what was added or finished."""
        counts = Counter(self._statuses.values())
        return BuildResult(counts["ok"], counts["unstable"], counts["failed"], self.seconds)
