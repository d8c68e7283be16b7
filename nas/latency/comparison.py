"""What changed between two latency tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nas.latency.kernel import Kernel
from nas.latency.record import UNSTABLE, Record
from nas.latency.table import LatencyTable


@dataclass(frozen=True)
class Ratios:
    """Statistics of how several latencies changed, as ratios of after to before.

    Args:
        count: number of latencies.
        median: median ratio.
        low: lower quartile.
        high: upper quartile.
    """

    count: int
    median: float
    low: float
    high: float

    @classmethod
    def from_values(cls, ratios: Sequence[float]) -> Ratios | None:
        """Return the statistics of ratios; None for no ratios."""
        if not ratios:
            return None
        low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        return cls(len(ratios), float(median), float(low), float(high))


@dataclass(frozen=True)
class Change:
    """One kernel, or one dispatch cost, in two tables.

    Args:
        key: `kernel <text>` or `dispatch <part>`.
        before_us: latency in the first table; None if it has none.
        after_us: latency in the second table; None if it has none.
        in_before: whether the first table has a record; a failed record has no latency.
        in_after: whether the second table has a record.
        before_flags: flags in the first table, see `Record.flags`.
        after_flags: flags in the second table.
    """

    key: str
    before_us: float | None
    after_us: float | None
    in_before: bool = True
    in_after: bool = True
    before_flags: tuple[str, ...] = ()
    after_flags: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`Kernel.detailed_kind`, or `dispatch`."""
        kind, _, name = self.key.partition(" ")
        return Kernel.parse(name).detailed_kind if kind == "kernel" else kind

    @property
    def ratio(self) -> float | None:
        """The ratio of after to before; None if either is missing."""
        if self.before_us is None or self.after_us is None:
            return None
        return self.after_us / self.before_us


@dataclass(frozen=True)
class Comparison:
    """Two tables side by side.

    Args:
        device_differences: how the device of the second table differs; empty for the same device.
        changes: every key of either table, in the order of the first.
        speed_ratio: how many times longer the reference workload takes at the quiet speed of the
            second table; None if the processors differ or a speed is not known.
    """

    device_differences: tuple[str, ...]
    changes: tuple[Change, ...]
    speed_ratio: float | None = None

    @property
    def common(self) -> list[Change]:
        """The changes of what has a latency in both tables."""
        return [change for change in self.changes if change.ratio is not None]

    @property
    def median_ratio(self) -> float | None:
        """The median ratio of after to before; None if nothing has a latency in both tables."""
        ratios = [change.ratio for change in self.changes if change.ratio is not None]
        return float(np.median(ratios)) if ratios else None

    def kernel_difference(self, speed_ratio: float = 1.0) -> float | None:
        """Return the mean difference of the kernels that have a latency in both tables.

        Args:
            speed_ratio: what latencies of the second table are divided by.

        Returns:
            The mean absolute logarithm of the ratios, which is a fraction for small differences;
            None for no kernels.
        """
        kernels = [change.ratio for change in self.common if change.kind != "dispatch"]
        logarithms = [abs(math.log(ratio / speed_ratio)) for ratio in kernels if ratio]
        return statistics.mean(logarithms) if logarithms else None

    @property
    def only_before(self) -> int:
        """Number of records that only the first table has."""
        return sum(not change.in_after for change in self.changes)

    @property
    def only_after(self) -> int:
        """Number of records that only the second table has."""
        return sum(not change.in_before for change in self.changes)

    @property
    def unstable(self) -> tuple[int, int]:
        """Number of unstable records in the first and in the second table."""
        return self._count_flagged(lambda flag: flag == UNSTABLE)

    @property
    def estimated(self) -> tuple[int, int]:
        """Number of estimated records in the first and in the second table."""
        return self._count_flagged(lambda flag: flag != UNSTABLE)

    def _count_flagged(self, matches: Callable[[str], bool]) -> tuple[int, int]:
        return (
            sum(any(map(matches, change.before_flags)) for change in self.changes),
            sum(any(map(matches, change.after_flags)) for change in self.changes),
        )

    @property
    def kinds(self) -> dict[str, Ratios]:
        """The ratios of each kind of kernel, and of the dispatch costs, that both tables have."""
        groups: dict[str, list[float]] = {}
        for change in self.changes:
            if change.ratio is not None:
                groups.setdefault(change.kind, []).append(change.ratio)
        statistics = {kind: Ratios.from_values(groups[kind]) for kind in sorted(groups)}
        return {kind: ratios for kind, ratios in statistics.items() if ratios is not None}

    def largest(self, count: int) -> list[Change]:
        """Return the largest changes in either direction of what is in both tables."""
        ratios = [(change, change.ratio) for change in self.changes]
        sizes = [(abs(math.log(ratio)), change) for change, ratio in ratios if ratio is not None]
        return [change for _, change in sorted(sizes, key=lambda each: -each[0])[:count]]


def compare_tables(before: LatencyTable, after: LatencyTable) -> Comparison:
    """Compare every kernel and dispatch cost of two tables, which may be of any devices.

    Two runtimes may use different tensor layouts. Their kernels are compared by what they compute;
    if a table has a kernel in several layouts, the fastest counts.
    """
    is_same_runtime = before.device.runtime == after.device.runtime

    def fastest_records(table: LatencyTable) -> dict[str, Record]:
        fastest: dict[str, Record] = {}
        for record in table.records():
            if record.kind == "calibration":
                continue
            key = record.key if is_same_runtime else _key_without_layout(record)
            known = fastest.get(key)
            if known is None or _latency_us(record) < _latency_us(known):
                fastest[key] = record
        return fastest

    first, second = fastest_records(before), fastest_records(after)
    return Comparison(
        tuple(before.device.differences(after.device)),
        tuple(_change(key, first.get(key), second.get(key)) for key in {**first, **second}),
        _speed_ratio(before, after),
    )


def _speed_ratio(before: LatencyTable, after: LatencyTable) -> float | None:
    """Return `Comparison.speed_ratio`."""
    is_known = math.isfinite(before.quiet_us) and math.isfinite(after.quiet_us)
    if not is_known or before.device.processor != after.device.processor:
        return None
    return after.quiet_us / before.quiet_us


def _latency_us(record: Record) -> float:
    return math.inf if record.latency_us is None else record.latency_us


def _change(key: str, before: Record | None, after: Record | None) -> Change:
    return Change(
        key,
        before.latency_us if before else None,
        after.latency_us if after else None,
        before is not None,
        after is not None,
        before.flags if before else (),
        after.flags if after else (),
    )


def _key_without_layout(record: Record) -> str:
    if record.kind != "kernel":
        return record.key
    kernel = replace(Kernel.parse(record.name), block=1, channels_last=False)
    return f"{record.kind} {kernel.text}"
