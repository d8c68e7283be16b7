"""Builds a latency table: enumerates what spaces need, times what is missing, row by row.

Every kernel is timed at two moments at least, half a minute apart: a busy neighbour slows a machine
for seconds on end, in which all samples agree and all are wrong.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from nas.errors import BoardLostError, NasError, first_line
from nas.graph import Graph
from nas.latency import cache_model
from nas.latency.kernel import Kernel
from nas.latency.record import Record
from nas.latency.runtime import KernelTimer, Runtime, Schedule, configured_runtime
from nas.latency.table import LatencyTable
from nas.latency.timer_pool import TimerPool
from nas.latency.timing import Timing


class Fragmented(Protocol):
    """What this module needs of a `nas.space.SearchSpace`."""

    def block_graphs(self) -> Iterable[Graph]:
        """Every block by itself, for every input shape that can reach it."""
        ...

    @property
    def channels(self) -> int:
        """Of the images."""
        ...


ROUND = 48
"""Kernels that are timed for the first time before they are timed again: some twenty seconds."""

AGREEMENT = 0.04
"""How far apart, as a share, the two fastest timings of a kernel may lie to be believed."""

MOST_TIMINGS = 5
"""Timings of a kernel before it is called unstable."""

BESIDE_SECONDS = 100.0
"""What lies beside the kernels is timed again after so long: at several moments of a long build,
since what neighbours leave of a shared cache differs from one to the next."""


@dataclass(frozen=True)
class Progress:
    """A timing is done: the `done`-th of `total`, `seconds` after the start.

    A kernel is timed at least twice; where timings disagree, `total` grows.
    """

    record: Record
    done: int
    total: int
    seconds: float

    @property
    def remaining_seconds(self) -> float:
        """An estimate from the mean so far."""
        return self.seconds / self.done * (self.total - self.done)


@dataclass(frozen=True)
class BuildResult:
    """The kernels that a build added or settled, by status, and how long it took."""

    ok: int
    unstable: int
    failed: int
    seconds: float

    @property
    def added(self) -> int:
        """Kernels added or settled, whatever their status."""
        return self.ok + self.unstable + self.failed


def space_kernels(space: Fragmented, runtime: Runtime | str, batch: int = 1) -> list[Kernel]:
    """Return every kernel that any architecture of a space can launch, once each.

    Kernels depend on nothing beyond the neighbouring block, so the fragments of a space have all.

    Args:
        space: the search space, adapted to the images.
        runtime: the runtime, opened or not; or the name of one with its default settings.
        batch: number of images that run at once.

    Raises:
        RequestError: there is no such runtime.
    """
    configured = configured_runtime(runtime) if isinstance(runtime, str) else runtime
    kernels: dict[Kernel, None] = {}
    for fragment in space.block_graphs():
        first = fragment.input_shape[0] == space.channels
        kernels.update(dict.fromkeys(configured.block_kernels(fragment, first=first, batch=batch)))
    return list(kernels)


def build_table(
    table: LatencyTable,
    kernels: Iterable[Kernel],
    timer: KernelTimer | Sequence[KernelTimer],
    *,
    retry_failed: bool = False,
    again: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> BuildResult:
    """Times the kernels that a table does not have; each is on the disk before the next starts.

    A kernel's second timing supersedes its first, and holds samples of both. Where the two disagree
    it is timed on, until the two fastest do or it is called unstable.

    A kernel that cannot be compiled or timed becomes a failed record with its error, and the build
    goes on. Stopped at any point and started again, a build continues with what is missing, and
    times again what was timed once.

    Args:
        table: of the device.
        kernels: that it should have.
        timer: the device's, or several of equal devices, which share the kernels. A kernel in
            flight on a device that is lost goes to another, once; where none is left it becomes a
            failed record that says so, or keeps the timing it had.
        retry_failed: whether kernels with a failed record are timed once more.
        again: whether kernels that have a latency, and what lies beside the kernels, are timed once
            more, at what may be a quieter moment: the fastest timings count.
        progress: called after every timing.

    Raises TableError where another process writes the table, MeasurementError where the cost of a
    launch cannot be told from noise, BoardLostError where no device is left, DeviceError for
    devices that are not equal.
    """
    timers = TimerPool(timer if isinstance(timer, Sequence) else [timer])
    build = _Build(table, timers, progress)
    with table.writing():
        if timed_beside := again or table.lacks_dispatch():
            build.time_dispatch()
        missing = table.missing(kernels := list(kernels), failed=retry_failed)
        once = [kernel for kernel in dict.fromkeys(kernels) if build.is_unsettled(kernel)]
        timed = dict.fromkeys(kernels) if again else ()
        settled = [kernel for kernel in timed if build.is_settled(kernel)]
        build.expect(2 * len(missing) + len(once) + len(settled))
        build.time_again(settled)
        step = ROUND * len(timers)
        for start in range(0, max(len(missing), 1), step):
            chunk = missing[start : start + step]
            build.time(chunk)
            waiting = [kernel for kernel in (*once, *chunk) if build.is_unsettled(kernel)]
            once = []
            while waiting:
                build.time_again(waiting)
                waiting = [kernel for kernel in waiting if build.is_unsettled(kernel)]
            if timed_beside and build.seconds > build.beside_s + BESIDE_SECONDS:
                build.time_dispatch()
    return build.result()


class _Build:
    """The timings of one build, and how far it is.

    `beside_s` is when, by `seconds`, what lies beside the kernels was timed last.
    """

    def __init__(
        self,
        table: LatencyTable,
        timers: TimerPool,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._table, self._timers, self._progress = table, timers, progress
        self._start = time.monotonic()
        self.beside_s = 0.0
        self._done = self._total = 0
        self._touched: dict[Kernel, str] = {}

    def expect(self, timings: int) -> None:
        """How many timings there will be if all agree."""
        self._total = timings

    def is_unsettled(self, kernel: Kernel) -> bool:
        """Whether a kernel needs another timing."""
        record = self._table.record(kernel)
        return record is not None and record.status != "failed" and not record.settled

    def is_settled(self, kernel: Kernel) -> bool:
        """Whether a kernel has a latency and needs no other timing."""
        record = self._table.record(kernel)
        return record is not None and record.status != "failed" and record.settled

    def time_dispatch(self) -> None:
        """Times what lies beside the kernels; of two timings of a part the faster one stays.

        The chains of one pace stay or go together: one alone would be of another moment than those
        that it is compared with.
        """
        before = self._table.dispatch_us
        found = self._timers.any(lambda each: each.time_dispatch())
        chains = [parts for parts in cache_model.PARTS_BY_PACE if parts[0] in found]
        alone = [(part,) for part in found if not any(part in parts for parts in chains)]
        for parts in (*alone, *chains):
            known = sum(before.get(part, math.inf) for part in parts)
            if sum(found[part].latency_us for part in parts) < known:
                for part in parts:
                    self._table.append(self._record("dispatch", found[part], part))
        self.beside_s = self.seconds

    def time(self, kernels: Sequence[Kernel]) -> None:
        """Finds the schedules of kernels and times them for the first time."""
        for kernel, found in self._timers.each(kernels, lambda timer, k: timer.time_kernel(k)):
            if isinstance(found, Exception):
                self._total -= 1
                self._append(Record("kernel", kernel.text, "failed", error=_words(found)))
                continue
            schedule, timing = found
            first = self._record("kernel", timing, kernel.text, schedule)
            self._append(replace(first, medians_us=(timing.latency_us,), settled=False))

    def time_again(self, kernels: Sequence[Kernel]) -> None:
        """Times kernels at another moment, with the schedules on record."""
        before = {kernel: self._table.record(kernel) for kernel in kernels}

        def again(timer: KernelTimer, kernel: Kernel) -> Timing:
            record = before[kernel]
            return timer.retime_kernel(kernel, (record and record.schedule) or {})

        for kernel, found in self._timers.each(kernels, again):
            record = before[kernel]
            assert record is not None
            if isinstance(found, BoardLostError) and not self._timers:
                # It ran before, so it is not what the device was lost by.
                continue
            if isinstance(found, Exception):
                self._append(Record("kernel", kernel.text, "failed", error=_words(found)))
                continue
            timed = record.with_timing(found, AGREEMENT, MOST_TIMINGS)
            self._total += not timed.settled
            self._append(timed)

    def _record(
        self, kind: str, timing: Timing, name: str, schedule: Schedule | None = None
    ) -> Record:
        basis = self._table.runtime.basis
        return Record.of_timing(kind, timing, name=name, schedule=schedule, basis=basis)

    def _append(self, record: Record) -> None:
        record = self._table.append(record)
        self._touched[Kernel.parse(record.name)] = record.status
        self._done += 1
        if self._progress is not None:
            self._progress(Progress(record, self._done, self._total, self.seconds))

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._start

    def result(self) -> BuildResult:
        """What was added or settled."""
        counts = Counter(self._touched.values())
        return BuildResult(counts["ok"], counts["unstable"], counts["failed"], self.seconds)


def _words(error: Exception) -> str:
    return str(error)[:500] if isinstance(error, NasError) else first_line(error)
