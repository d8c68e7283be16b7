"""What changed between two latency tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nas.latency.table import LatencyTable


@dataclass(frozen=True)
class Change:
    """One kernel, or part of the dispatch cost, in two tables; None where a table has no latency.

    Args:
        key: `kernel <text>` or `dispatch <part>`.
        before_us, after_us: its latencies.
    """

    key: str
    before_us: float | None
    after_us: float | None

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

    def largest(self, count: int) -> list[Change]:
        """The keys in both tables that changed most, by ratio either way."""
        found = [(change, change.ratio) for change in self.changes]
        known = [(abs(math.log(ratio)), change) for change, ratio in found if ratio is not None]
        return [change for _, change in sorted(known, key=lambda each: -each[0])[:count]]


def compare(before: LatencyTable, after: LatencyTable) -> Comparison:
    """Every kernel and dispatch cost of two tables, of whichever devices."""

    def latencies(table: LatencyTable) -> Iterator[tuple[str, float | None]]:
        for record in table.records():
            if record.record != "calibration":
                yield record.key, record.latency_us

    first, second = dict(latencies(before)), dict(latencies(after))
    return Comparison(
        tuple(before.device.differences(after.device)),
        tuple(Change(key, first.get(key), second.get(key)) for key in {**first, **second}),
    )
