"""Verifying a table: time a sample of its kernels again on the device that it belongs to.

A cooler, a driver, a frequency governor or another tenant of the same host can change a device
without changing its name. Timing a few dozen kernels again takes a minute, and needs no whole
networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from nas.errors import RequestError, TableError
from nas.latency.comparison import Ratios
from nas.latency.device import Fingerprint
from nas.latency.kernel import Kernel, group_by_kind
from nas.latency.record import UNSTABLE, Record
from nas.latency.runtime import KernelTimer
from nas.latency.table import LatencyTable
from nas.latency.timing import Moments, Timing, latency_at_quiet_speed, with_slowdowns

SAMPLE_SEED = 0
"""Seed of the sample: the same table gives the same kernels, so that verifications can be
compared."""

MAX_ROW_DEVIATION = 0.10
"""Largest difference between a row and its new timing, as a fraction, in a row that holds."""

MAX_MEDIAN_SHIFT = 0.05
"""Largest difference of the median ratio from 1 in a table that holds."""

MAX_FRACTION_OFF = 0.25
"""Largest fraction of deviating rows in a table that holds: single rows are noisy."""

MAX_TIMINGS = 4
"""Largest number of timings of a row that deviates."""

SLOWDOWN_KERNELS = 16
"""Largest number of kernels that tell how much slower than its table a device is."""

MIN_ROWS_PER_KIND = 4
"""Smallest number of rows of one kind from which the kind is judged."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class VerifiedRow:
    """One kernel of the table and its new timing.

    Args:
        kernel: text of the kernel.
        kind: see `Kernel.detailed_kind`.
        before_us: latency in the table.
        now_us: latency measured now; None if it could not be timed.
        error: why it could not be timed.
        is_unstable: whether the table's timing is unstable.
        is_estimated: whether the table's latency is an estimate.
    """

    kernel: str
    kind: str
    before_us: float
    now_us: float | None
    error: str | None = None
    is_unstable: bool = False
    is_estimated: bool = False

    @property
    def ratio(self) -> float | None:
        """The ratio of now to before: above 1 if the device became slower."""
        return None if self.now_us is None else self.now_us / self.before_us

    @property
    def is_off(self) -> bool:
        """Whether it deviates by more than `MAX_ROW_DEVIATION`, or could not be timed."""
        return self.ratio is None or abs(self.ratio - 1) > MAX_ROW_DEVIATION

    def to_json(self) -> dict[str, Any]:
        """Return a row of `nas table verify --json`."""
        return {**asdict(self), "ratio": self.ratio, "off": self.is_off}


@dataclass(frozen=True)
class Verification:
    """A sample of a table's kernels beside their new timings.

    Args:
        rows: the sampled kernels in the order of the table.
        rows_in_table: number of kernels from which the sample was drawn.
        recorded_changes: recorded facts of the device that differ now; they need not matter.
    """

    rows: tuple[VerifiedRow, ...]
    rows_in_table: int
    recorded_changes: tuple[str, ...] = ()

    @property
    def ratios(self) -> Ratios | None:
        """The ratios of all rows that could be timed."""
        return _ratios(self.rows)

    @property
    def kinds(self) -> dict[str, Ratios]:
        """The ratios of each kind of which a row could be timed."""
        groups = group_by_kind(self.rows, lambda row: Kernel.parse(row.kernel))
        statistics = {kind: _ratios(rows) for kind, rows in groups.items()}
        return {kind: ratios for kind, ratios in statistics.items() if ratios is not None}

    @property
    def rows_off(self) -> list[VerifiedRow]:
        """The rows that deviate, in descending order of the deviation."""
        rows = [row for row in self.rows if row.is_off]
        return sorted(rows, key=lambda row: -abs(np.log(row.ratio)) if row.ratio else -np.inf)

    @property
    def problems(self) -> list[str]:
        """The reasons why the table does not hold; empty if it does."""
        problems = []
        failed = sum(row.now_us is None for row in self.rows)
        if failed:
            problems.append(f"{failed} of {len(self.rows)} rows cannot be timed now")
        ratios = self.ratios
        if ratios is not None and abs(ratios.median - 1) > MAX_MEDIAN_SHIFT:
            problems.append(f"rows are {_slower(ratios.median)} now")
        else:
            problems += [
                f"{kind} rows are {_slower(own.median)} now"
                for kind, own in self.kinds.items()
                if own.count >= MIN_ROWS_PER_KIND and abs(own.median - 1) > MAX_ROW_DEVIATION
            ]
        fraction_off = len(self.rows_off) / len(self.rows)
        if not problems and fraction_off > MAX_FRACTION_OFF:
            problems.append(
                f"{fraction_off:.0%} of the rows are off by more than {MAX_ROW_DEVIATION:.0%}"
            )
        return problems

    @property
    def holds(self) -> bool:
        """Whether the table still says how fast this device is."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """`holds`, or `does not hold: ` and the reasons."""
        return "holds" if self.holds else f"does not hold: {'; '.join(self.problems)}"

    def to_json(self) -> dict[str, Any]:
        """Return what `nas table verify --json` prints."""
        return {
            "verdict": self.verdict,
            "holds": self.holds,
            "rows_timed": len(self.rows),
            "rows_in_table": self.rows_in_table,
            "unstable_rows": sum(row.is_unstable for row in self.rows),
            "estimated_rows": sum(row.is_estimated for row in self.rows),
            "ratio": self.ratios and asdict(self.ratios),
            "kinds": {kind: asdict(ratios) for kind, ratios in self.kinds.items()},
            "off_by_10_percent": [row.kernel for row in self.rows_off],
            "changes": list(self.recorded_changes),
            "rows": [row.to_json() for row in self.rows],
        }


def verify_table(
    table: LatencyTable,
    timer: KernelTimer,
    device: Fingerprint,
    *,
    rows: int = 40,
    progress: Callable[[int, int, str], None] | None = None,
) -> Verification:
    """Time a sample of a table's kernels again, each with its own schedule, and change nothing.

    All rows are timed at `Runtime.moments` moments, and their latency is that at the quiet speed of
    the table, as in a build. Rows that deviate are timed again, and the timing nearest to the row
    counts, so that a busy moment does not condemn a table.

    Args:
        table: table of this device.
        timer: the runtime, or a worker process that runs it.
        device: fingerprint of the timer's device.
        rows: largest number of kernels to time, see `stratified_sample`.
        progress: function of (timings done, timings in all, kernel), called after every timing.

    Raises:
        TableDeviceError: the table belongs to another device.
        TableError: no kernel of the table has a latency.
        RequestError: `rows` is less than 1.
    """
    table.device.require_match(device, str(table.path))
    usable = [record for record in table.records("kernel") if record.latency_us is not None]
    if not usable:
        raise TableError(
            f"{table.path} has no kernel with a latency.", remedy="Continue it: nas table build."
        )
    records = stratified_sample(usable, rows)
    moments = table.runtime.moments

    done = 0

    def count(record: Record) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, record.name)

    total = moments * len(records)
    retimed = _RetimedKernels(records, timer, table.quiet_us)
    retimed.time(moments, count)
    verified = retimed.rows
    for _ in range(MAX_TIMINGS - 1):
        off = [i for i, row in enumerate(verified) if row.is_off and row.error is None]
        total = done + len(off)
        for index in off:
            once_more = _RetimedKernels([records[index]], timer, table.quiet_us)
            once_more.time(1, count)
            verified[index] = min(verified[index], *once_more.rows, key=_deviation)
    changes = tuple(_recorded_changes(table.device, device))
    return Verification(tuple(verified), len(usable), changes)


class DeviceSlowdown:
    """How much slower than its table the device is while networks are timed.

    A few kernels of the networks are timed again beside the networks. As for networks, latencies
    are those at the quiet speed of the table, so that the clock of the processor changes nothing.

    Args:
        table: table of the device.
        timer: the runtime, or a worker process that runs it.
        kernels: kernels of the networks; at most `SLOWDOWN_KERNELS` of them are timed, see
            `stratified_sample`.
    """

    def __init__(
        self, table: LatencyTable, timer: KernelTimer, kernels: Collection[Kernel]
    ) -> None:
        records = [table.record(kernel) for kernel in dict.fromkeys(kernels)]
        usable = [record for record in records if record is not None and record.latency_us]
        sample = stratified_sample(usable, SLOWDOWN_KERNELS) if usable else []
        self._kernels = _RetimedKernels(sample, timer, table.quiet_us)

    def measure(self) -> None:
        """Time the kernels at this moment; a kernel that cannot be timed is left out."""
        self._kernels.time(1)

    @property
    def ratios(self) -> Ratios | None:
        """The ratios of now to the table: above 1 if the device is slower; None if not measured."""
        return _ratios(self._kernels.rows)


class _RetimedKernels:
    """Timings of some kernels of a table, with their own schedules.

    Args:
        records: records of the kernels.
        timer: the runtime, or a worker process that runs it.
        quiet_us: duration of the reference workload at the quiet speed of the table.
    """

    def __init__(self, records: Sequence[Record], timer: KernelTimer, quiet_us: float) -> None:
        self._records, self._timer, self._quiet_us = records, timer, quiet_us
        self._timings: dict[str, list[Timing]] = {record.name: [] for record in records}
        self._errors: dict[str, str] = {}

    def time(self, moments: int, on_timing: Callable[[Record], None] = lambda record: None) -> None:
        """Time the kernels in turn at some moments, and call a function after each timing."""
        pause = Moments()
        for _ in range(moments):
            pause.wait()
            for record in self._records:
                self._time_once(record)
                on_timing(record)

    def _time_once(self, record: Record) -> None:
        try:
            timing = self._timer.retime_kernel(Kernel.parse(record.name), record.schedule or {})
        # A compiler may raise anything; whatever it is, it is the result of this row.
        except Exception as error:
            self._errors[record.name] = f"{type(error).__name__}: {str(error).strip()[:300]}"
        else:
            self._timings[record.name].append(timing)

    @property
    def rows(self) -> list[VerifiedRow]:
        """The kernels with their latencies; one that could not be timed once has an error."""
        timings = with_slowdowns([*self._timings.values()], self._quiet_us)
        return [*map(self._row, self._records, timings)]

    def _row(self, record: Record, timings: Sequence[Timing]) -> VerifiedRow:
        error = self._errors.get(record.name)
        return VerifiedRow(
            record.name,
            Kernel.parse(record.name).detailed_kind,
            record.latency_us or 0.0,
            None if error or not timings else latency_at_quiet_speed(timings),
            error,
            is_unstable=record.status == UNSTABLE,
            is_estimated=record.is_estimated,
        )


def stratified_sample(records: Sequence[Record], count: int) -> list[Record]:
    """Return records of kernels that are spread over kinds and latencies, always the same ones.

    The sample is stratified by kind, in proportion to the number of records. The records of a kind
    are sorted by latency and cut into runs of equal length, and one record is drawn from each run.

    Args:
        records: records of kernels.
        count: number of records to return; fewer if there are no more.

    Raises:
        RequestError: `count` is less than 1.
    """
    if count < 1:
        raise RequestError(f"A sample of {count} rows says nothing.", remedy="Give 1 or more.")
    rng = np.random.default_rng(SAMPLE_SEED)
    groups = group_by_kind(records, lambda record: Kernel.parse(record.name))
    largest_first = sorted(groups, key=lambda kind: -len(groups[kind]))
    sizes = {kind: len(groups[kind]) for kind in largest_first}
    chosen = []
    for kind, own_count in apportion(sizes, count).items():
        own = sorted(groups[kind], key=lambda record: (record.latency_us or 0.0, record.name))
        ends = [len(own) * n // own_count for n in range(own_count + 1)]
        chosen += [own[rng.integers(low, high)] for low, high in pairwise(ends)]
    return sorted(chosen, key=lambda record: record.line)


def apportion(sizes: Mapping[Key, int], count: int) -> dict[Key, int]:
    """Share out a number of samples among groups, in proportion to their sizes.

    The first `count` groups get one sample each. The method of highest averages (D'Hondt) shares
    out the rest. No group gets more than its size.

    Args:
        sizes: size of each group.
        count: number of samples.

    Returns:
        Number of samples of each group that gets one.
    """
    counts = dict.fromkeys(list(sizes)[:count], 1)
    for _ in range(min(count, sum(sizes[key] for key in counts)) - len(counts)):
        open_groups = [key for key in counts if counts[key] < sizes[key]]
        counts[max(open_groups, key=lambda key: sizes[key] / (counts[key] + 1))] += 1
    return counts


def _deviation(row: VerifiedRow) -> float:
    return math.inf if row.ratio is None else abs(math.log(row.ratio))


def _ratios(rows: Sequence[VerifiedRow]) -> Ratios | None:
    return Ratios.from_values([row.ratio for row in rows if row.ratio is not None])


def _slower(ratio: float) -> str:
    return f"{ratio - 1:.0%} slower" if ratio > 1 else f"{1 - ratio:.0%} faster"


def _recorded_changes(before: Fingerprint, now: Fingerprint) -> list[str]:
    return [
        f"{name} is {now.recorded.get(name)}, was {before.recorded.get(name)}"
        for name in {**before.recorded, **now.recorded}
        if before.recorded.get(name) != now.recorded.get(name)
    ]
