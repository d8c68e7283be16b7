"""What changed between two latency tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nas.latency.kernel import Kernel
from nas.latency.kinds import kind_of
from nas.latency.record import UNSTABLE, Record
from nas.latency.table import LatencyTable


@dataclass(frozen=True)
class Ratios:
    """How several latencies changed, as after over before: how many, their median and quartiles."""

    count: int
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratios | None:
        """None for no ratios."""
        if not ratios:
            return None
        low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        return cls(len(ratios), float(median), float(low), float(high))


@dataclass(frozen=True)
class Change:
    """One kernel, or part of the dispatch cost, in two tables; None where a table has no latency.

    Args:
        key: `kernel <text>` or `dispatch <part>`.
        before_us, after_us: its latencies.
        in_before, in_after: whether a table has a row for it; a failed row has no latency.
        before_flags, after_flags: see `Record.flags`.
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
        """See `nas.latency.kinds.kind_of`; `dispatch` for a part of the dispatch cost."""
        record, _, name = self.key.partition(" ")
        return kind_of(Kernel.parse(name)) if record == "kernel" else record

    @property
    def ratio(self) -> float | None:
        """After over before; None where either is missing."""
        if self.before_us is None or self.after_us is None:
            return None
        return self.after_us / self.before_us


@dataclass(frozen=True)
class Comparison:
    """Two tables side by side.

    Args:
        devices: in words, how the second table's device differs; empty for the same device.
        changes: every key of either table, in the order of the first.
    """

    devices: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def median_ratio(self) -> float | None:
        """Median of after over before; None where nothing is in both tables."""
        ratios = [change.ratio for change in self.changes if change.ratio is not None]
        return float(np.median(ratios)) if ratios else None

    @property
    def common(self) -> list[Change]:
        """What has a latency in both tables."""
        return [change for change in self.changes if change.ratio is not None]

    @property
    def only_before(self) -> int:
        """How many rows only the first table has."""
        return sum(not change.in_after for change in self.changes)

    @property
    def only_after(self) -> int:
        """How many rows only the second table has."""
        return sum(not change.in_before for change in self.changes)

    @property
    def unstable(self) -> tuple[int, int]:
        """How many rows of the first, and of the second, would not settle."""
        return self._flagged(lambda flag: flag == UNSTABLE)

    @property
    def estimated(self) -> tuple[int, int]:
        """How many rows of the first, and of the second, are estimated."""
        return self._flagged(lambda flag: flag != UNSTABLE)

    def _flagged(self, counts: Callable[[str], bool]) -> tuple[int, int]:
        return (
            sum(any(map(counts, change.before_flags)) for change in self.changes),
            sum(any(map(counts, change.after_flags)) for change in self.changes),
        )

    @property
    def kinds(self) -> dict[str, Ratios]:
        """The ratios of each kind of kernel that is in both tables, and of the dispatch."""
        groups: dict[str, list[float]] = {}
        for change in self.changes:
            if change.ratio is not None:
                groups.setdefault(change.kind, []).append(change.ratio)
        found = {kind: Ratios.of(groups[kind]) for kind in sorted(groups)}
        return {kind: ratios for kind, ratios in found.items() if ratios is not None}

    def largest(self, count: int) -> list[Change]:
        """The keys in both tables that changed most, by ratio either way."""
        found = [(change, change.ratio) for change in self.changes]
        known = [(abs(math.log(ratio)), change) for change, ratio in found if ratio is not None]
        return [change for _, change in sorted(known, key=lambda each: -each[0])[:count]]


def compare(before: LatencyTable, after: LatencyTable) -> Comparison:
    """Every kernel and dispatch cost of two tables, of whichever devices.

    Two runtimes may keep tensors in different layouts. Their kernels are compared by what they
    compute; of one that a table has in several layouts the fastest counts.
    """
    same_runtime = before.device.runtime == after.device.runtime

    def records(table: LatencyTable) -> dict[str, Record]:
        chosen: dict[str, Record] = {}
        for record in table.records():
            if record.record == "calibration":
                continue
            key = record.key if same_runtime else _without_layout(record)
            known = chosen.get(key)
            if known is None or _latency_us(record) < _latency_us(known):
                chosen[key] = record
        return chosen

    first, second = records(before), records(after)
    return Comparison(
        tuple(before.device.differences(after.device)),
        tuple(_change(key, first.get(key), second.get(key)) for key in {**first, **second}),
    )


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


def _without_layout(record: Record) -> str:
    if record.record != "kernel":
        return record.key
    kernel = replace(Kernel.parse(record.name), block=1, channels_last=False)
    return f"{record.record} {kernel.text}"
