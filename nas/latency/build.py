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
import shutil
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas.display.progress import Advance
from nas.errors import BoardLostError, MeasurementError, NasError, first_line
from nas.files.locks import Lock
from nas.kernels.kernel import Kernel
from nas.latency import timer_answers
from nas.latency.installed_runtimes import default_runtime
from nas.latency.kit import RESULTS, KitDevice, run_kit
from nas.latency.record import DISTURBED, UNSTABLE, Record
from nas.latency.rounds import ONCE, Policy, Rounds, outcome_of
from nas.latency.runtime import KernelTimer, Runtime, Schedule
from nas.latency.table import LatencyTable
from nas.latency.table_file import locked
from nas.latency.timer_pool import TimerPool
from nas.latency.timing import Timing

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
    timer: KernelTimer | Sequence[KernelTimer] | KitDevice,
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
            becomes a failed record that says so, or keeps the timing that it had. Or a device whose
            kits a transport carries: a program of all kernels is compiled, and runs there.
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

    if isinstance(timer, KitDevice):
        with reported(progress, "latency table", "timing") as report:
            wanted = list(dict.fromkeys(kernels))
            missing = wanted if again else table.missing(wanted, include_failed=retry_failed)
            return _build_by_kit(table, timer, wanted, missing, report)
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


def _build_by_kit(
    table: LatencyTable,
    device: KitDevice,
    wanted: Sequence[Kernel],
    missing: Sequence[Kernel],
    progress: Advance | None,
) -> BuildResult:
    """Time missing kernels, and the costs beside kernels, by kits that transports carry.

    Equal devices share the kernels; those of a lost device go to the others. The kits lie beside
    the table until they are done, so that a build that was stopped goes on.
    """
    start, folder = time.monotonic(), table.path.with_suffix(".kit")
    devices, left = list(device.devices), list(missing)
    batch = max((each.batch for each in wanted), default=1)
    with locked(Lock(folder.with_name(f".{folder.name}.lock"), is_removed=True), table.path):
        while left or table.lacks_dispatch():
            count = max(1, min(len(devices), len(left)))
            kits = {}
            for number, each in enumerate(devices[:count]):
                own = folder.with_name(f"{folder.name}{number or ''}")
                share = left[number::count] or wanted[:1]
                _write_kit(table, each, share, own, batch, progress)
                kits[own] = each
            lost = _run_kits(kits, progress)
            devices = [each for each in devices if each not in lost]
            for own, each in kits.items():
                if each not in lost or devices:
                    for sentence in each.import_kernels(own, table.path, progress):
                        warnings.warn(sentence, stacklevel=3)
                    shutil.rmtree(own)
            table.refresh()
            left = table.missing(left)
            if not lost:
                break
            if not devices:
                raise next(iter(lost.values()))
    records = [table.record(kernel) for kernel in missing]
    statuses = Counter(str(each.status) for each in records if each is not None)
    return BuildResult(
        statuses["ok"],
        statuses[str(UNSTABLE)],
        statuses[str(DISTURBED)],
        statuses["failed"],
        time.monotonic() - start,
    )


def _write_kit(
    table: LatencyTable,
    device: KitDevice,
    kernels: Sequence[Kernel],
    folder: Path,
    batch: int,
    progress: Advance | None,
) -> None:
    """Write the kit of some kernels, unless a build that was stopped has written it.

    What the kit of another build measured, which was stopped, is added first.
    """
    contents = set(device.kit_contents(folder))
    if contents and contents.issuperset(each.text for each in kernels):
        return
    if contents and (folder / RESULTS).exists():
        device.import_kernels(folder, table.path, progress)
    shutil.rmtree(folder, ignore_errors=True)
    device.write_kernels_kit(kernels, (), folder, progress, batch=batch)


def _run_kits(
    kits: Mapping[Path, KitDevice], progress: Advance | None
) -> dict[KitDevice, BoardLostError]:
    """Run kits at the same time, each on its device, and return the devices that were lost.

    Raises:
        DeviceError: see `run_kit`; the other kits end before.
    """
    outcomes: dict[Path, Exception | None] = {}
    if len(kits) == 1:
        ((folder, device),) = kits.items()
        outcomes[folder] = outcome_of(run_kit, device, folder, progress)
    else:
        steps: dict[Path, tuple[int, int]] = {}
        is_stopped = threading.Event()

        def run(folder: Path) -> None:
            def advance(done: int, total: int | None, text: str = "") -> None:
                if is_stopped.is_set():
                    raise MeasurementError("the build was stopped")
                steps[folder] = done, total or 0
                if progress is not None:
                    shown = tuple(steps.values())
                    progress(sum(each for each, _ in shown), sum(each for _, each in shown), text)

            outcomes[folder] = outcome_of(run_kit, kits[folder], folder, advance)

        threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in kits]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            is_stopped.set()
    lost = {}
    for folder, error in outcomes.items():
        if isinstance(error, BoardLostError):
            lost[kits[folder]] = error
        elif error is not None:
            raise error
    return lost


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
        end_s = self._start + (math.inf if seconds is None else seconds)
        fewest, in_turn = table.runtime.capabilities.rounds, KERNELS_IN_TURN * max(1, len(timers))
        self._policy = Policy(fewest, in_turn=in_turn)
        self._kernels: Rounds[Kernel] = Rounds(
            self._take_kernels, self._policy, full_speed=lambda _: table.full_us, end_s=end_s
        )
        self._schedules: dict[Kernel, Schedule | None] = {}
        self._statuses: dict[str, str] = {}
        self._curve: Rounds[str] = Rounds(
            self._take_curve,
            curve_policy(),
            # Other programs slow it by what they take of a cache, at any speed of the core.
            full_speed=lambda _: None,
            known={each.name: each.rounds for each in table.records("dispatch") if each.rounds_us},
            end_s=end_s,
        )
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
                    self._table.append(self._dispatch_record(part, [timing], ONCE))
            list(self._curve.round([]))
            self._append_curve()
        if self._table.lacks_dispatch():
            runtime = self._table.runtime
            lacking = set(runtime.capabilities.dispatch_parts) - set(self._table.dispatch.parts_us)
            raise MeasurementError(
                f"The timer of runtime '{runtime.name}' returns no {', '.join(sorted(lacking))}, "
                "which its capabilities name among the dispatch costs.",
                remedy="Its package has to time them, or to leave them out.",
            )

    def _take_curve(self, parts: Sequence[str]) -> Iterable[tuple[str, Timing | Exception]]:
        """Time the miss curve, whose parts are known once it was timed; a runtime may have none."""
        timings = self._attempt(timer_answers.time_miss_curve)
        self._curve_timed_s = time.monotonic()
        outcomes: dict[str, Timing | Exception] = {**timings}
        for part in parts:
            outcomes.setdefault(part, MeasurementError("It was not timed again."))
        return outcomes.items()

    def _dispatch_record(self, part: str, timings: Sequence[Timing], policy: Policy) -> Record:
        basis = self._table.runtime.basis
        return Record.from_timings("dispatch", timings, name=part, policy=policy, basis=basis)

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
        """Time missing kernels, and those that need further timings, in as many rounds.

        All records are appended at the end, and also if an error or Ctrl-C ends the timing.
        """
        fewest = self._policy.fewest
        needed = dict.fromkeys(missing, fewest)
        for kernel in wanted:
            record = self._table.record(kernel)
            if kernel in needed or record is None or record.status == "failed":
                continue
            if again or not record.complete or record.status == DISTURBED:
                needed[kernel] = max(1, fewest - len(record.latency.undisturbed) * (not again))
                self._know(kernel, record)
        needed |= self._judged_otherwise(wanted)
        taken: Counter[Kernel] = Counter()
        known = set(self._kernels.timings)
        try:
            while needed:
                for kernel in self._kernels.run(needed):
                    taken[kernel] += 1
                    is_first = taken[kernel] == 1 and kernel not in known
                    is_last = taken[kernel] == needed[kernel] or kernel in self._kernels.errors
                    if is_first or is_last:
                        self._append(self._record(kernel))
                    if self._progress is not None:
                        self._progress(self._kernels.done, self._kernels.total, kernel.text)
                needed = self._judged_otherwise(wanted)
            list(self._curve.run(dict.fromkeys(self._curve.timings, 0)))
        finally:
            self._append_changed()

    def _know(self, kernel: Kernel, record: Record) -> None:
        """Take over the timings of a record."""
        self._kernels.timings[kernel] = record.rounds
        self._schedules[kernel] = record.schedule

    def _judged_otherwise(self, wanted: Iterable[Kernel]) -> dict[Kernel, int]:
        """Return the finished kernels of which another reading at full speed is known now.

        They may be incomplete. None needs a timing in any case.
        """
        full_us, judged = self._table.full_us, {}
        for kernel in wanted:
            record = self._table.record(kernel)
            if full_us is None or record is None or kernel in self._kernels.timings:
                continue
            if record.readings_us and record.full_us != full_us:
                self._know(kernel, record)
                judged[kernel] = 0
        return judged

    def _take_kernels(
        self, kernels: Sequence[Kernel]
    ) -> Iterator[tuple[Kernel, Timing | Exception]]:
        """Time kernels once each, and then the miss curve if it is time for it."""
        for kernel, outcome in self._timers.each(kernels, self._time_kernel):
            if isinstance(outcome, BoardLostError):
                if kernel in self._kernels.timings and not self._timers:
                    # The kernel ran before, so the device was not lost because of it.
                    raise self._timers.none_left()
                outcome = MeasurementError(outcome.message, remedy=outcome.remedy)
            yield kernel, outcome
        is_due = time.monotonic() >= self._curve_timed_s + SECONDS_BETWEEN_CURVES
        parts = self._curve.incomplete(self._curve.timings)
        if is_due and parts and not self._kernels.is_late:
            list(self._curve.round(list(self._curve.timings)))
            self._append_curve()

    def _time_kernel(self, timer: KernelTimer, kernel: Kernel) -> Timing:
        """Find the schedule of a kernel and time it, or time it again with its schedule."""
        if kernel in self._kernels.timings:
            return timer_answers.retime_kernel(timer, kernel, self._schedules[kernel] or {})
        self._schedules[kernel], timing = timer_answers.time_kernel(timer, kernel)
        return timing

    # Records.

    def _record(self, kernel: Kernel) -> Record:
        """Return the record of a kernel by what is known now."""
        if kernel in self._kernels.errors:
            return failed_record(kernel, self._kernels.errors[kernel])
        return Record.from_timings(
            "kernel",
            self._kernels.timings[kernel],
            name=kernel.text,
            policy=self._policy,
            full_us=self._kernels.full_us,
            schedule=self._schedules[kernel],
            basis=self._table.runtime.basis,
        )

    def _append_changed(self) -> None:
        """Append the records of timings that the table lacks, and those judged otherwise now."""
        for kernel in self._kernels.timings:
            record = self._record(kernel)
            if record.differs(self._table.record(kernel)):
                self._append(record)
        self._append_curve()

    def _append_curve(self) -> None:
        """Append what the table lacks of the miss curve."""
        before = {each.name: each for each in self._table.records("dispatch")}
        for part, timings in self._curve.timings.items():
            record = self._dispatch_record(part, timings, curve_policy())
            if record.differs(before.get(part)):
                self._table.append(record)

    def _append(self, record: Record) -> None:
        self._statuses[record.name] = self._table.append(record).status

    def result(self) -> BuildResult:
        """Return what was added or finished."""
        counts, seconds = Counter(self._statuses.values()), time.monotonic() - self._start
        return BuildResult(
            counts["ok"], counts[UNSTABLE], counts[DISTURBED], counts["failed"], seconds
        )


def curve_policy() -> Policy:
    """Return how often the miss curve is timed."""
    return Policy(CURVE_ROUNDS, tolerance=MAX_CURVE_DIFFERENCE, together=True)


def failed_record(kernel: Kernel, error: Exception) -> Record:
    """Return the record of a kernel that cannot be compiled or timed."""
    text = str(error) if isinstance(error, NasError) else first_line(error)
    # Text that a program printed in another encoding has characters that no file can hold.
    text = text.encode("utf-8", "backslashreplace").decode()[:_MAX_ERROR_CHARACTERS]
    message = text or type(error).__name__
    return Record(kind="kernel", name=kernel.text, status="failed", error=message)


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
        progress: see `build_table`.

    Raises:
        NasError: see `build_table`.
    """
    from nas.latency.worker_process import timers_for

    missing = table.missing([kernel for each in graphs for kernel in runtime.kernels(each, batch)])
    if missing:
        with timers_for(runtime) as timers:
            build_table(table, missing, timers, progress=progress or False)
