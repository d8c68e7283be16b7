"""Whether a table still holds: a sample of its rows, timed again on the device it belongs to.

A cooler, a driver, a governor or a neighbour on the same host can change a device without changing
its name. Timing a few dozen rows again takes a minute and tells, without whole networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from nas.errors import RequestError, TableError
from nas.latency.comparison import Ratios
from nas.latency.device import Fingerprint
from nas.latency.kernel import Kernel
from nas.latency.kinds import by_kind, kind_of, shares
from nas.latency.record import UNSTABLE, Record
from nas.latency.runtime import KernelTimer
from nas.latency.table import LatencyTable

SEED = 0
"""Of the sample: the same table gives the same rows, so that two verifications compare."""

OFF = 0.10
"""A row this far from its new timing, as a fraction of the row, is off."""

LARGEST_SHIFT = 0.05
"""How far the median ratio may be from 1 in a table that holds."""

LARGEST_SHARE_OFF = 0.25
"""The share of rows that may be off in a table that holds: single rows are noisy."""

MOST_TIMINGS = 4
"""Timings of a row that is off, at most."""

FEWEST_OF_A_KIND = 4
"""Rows of one kind that can speak for the kind; fewer speak only for themselves."""


@dataclass(frozen=True)
class VerifiedRow:
    """One row of the table and its new timing.

    Args:
        kernel: the kernel's text.
        kind: see `nas.latency.kinds.kind_of`.
        before_us: what the table says.
        now_us: what was measured now; None if it could not be timed.
        error: why it could not.
        is_unstable: whether the table's timing did not settle.
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
        """Now over before: above 1 where the device got slower."""
        return None if self.now_us is None else self.now_us / self.before_us

    @property
    def off(self) -> bool:
        """Whether the two differ by more than `OFF`, or the row could not be timed."""
        return self.ratio is None or abs(self.ratio - 1) > OFF

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "ratio": self.ratio, "off": self.off}


@dataclass(frozen=True)
class Verification:
    """A sample of a table's rows beside their new timings.

    Args:
        rows: in the order of the table.
        of: how many rows the table has that could have been in the sample.
        changes: what is recorded of the device and differs now; it need not matter.
    """

    rows: tuple[VerifiedRow, ...]
    of: int
    changes: tuple[str, ...] = ()

    @property
    def ratios(self) -> Ratios | None:
        """Of all rows that could be timed."""
        return _ratios(self.rows)

    @property
    def kinds(self) -> dict[str, Ratios]:
        """Of each kind that could be timed."""
        groups = by_kind(self.rows, lambda row: Kernel.parse(row.kernel))
        found = {kind: _ratios(rows) for kind, rows in groups.items()}
        return {kind: ratios for kind, ratios in found.items() if ratios is not None}

    @property
    def off(self) -> list[VerifiedRow]:
        """The rows that are off, the farthest first."""
        wrong = [row for row in self.rows if row.off]
        return sorted(wrong, key=lambda row: -abs(np.log(row.ratio)) if row.ratio else -np.inf)

    @property
    def problems(self) -> list[str]:
        """Why the table does not hold, in words; empty if it does."""
        found = []
        failed = sum(row.now_us is None for row in self.rows)
        if failed:
            found.append(f"{failed} of {len(self.rows)} rows cannot be timed now")
        ratios = self.ratios
        if ratios is not None and abs(ratios.median - 1) > LARGEST_SHIFT:
            found.append(f"rows are {_slower(ratios.median)} now")
        else:
            found += [
                f"{kind} rows are {_slower(own.median)} now"
                for kind, own in self.kinds.items()
                if own.count >= FEWEST_OF_A_KIND and abs(own.median - 1) > OFF
            ]
        share = len(self.off) / len(self.rows)
        if not found and share > LARGEST_SHARE_OFF:
            found.append(f"{share:.0%} of the rows are off by more than {OFF:.0%}")
        return found

    @property
    def holds(self) -> bool:
        """Whether the table still tells what this device does."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """`holds`, or `does not hold: ` and why."""
        return "holds" if self.holds else f"does not hold: {'; '.join(self.problems)}"

    def to_json(self) -> dict[str, Any]:
        """What `nas table verify --json` prints."""
        return {
            "verdict": self.verdict,
            "holds": self.holds,
            "rows_timed": len(self.rows),
            "rows_in_table": self.of,
            "unstable_rows": sum(row.is_unstable for row in self.rows),
            "estimated_rows": sum(row.is_estimated for row in self.rows),
            "ratio": self.ratios and asdict(self.ratios),
            "kinds": {kind: asdict(ratios) for kind, ratios in self.kinds.items()},
            "off_by_10_percent": [row.kernel for row in self.off],
            "changes": list(self.changes),
            "rows": [row.to_json() for row in self.rows],
        }


def verify(
    table: LatencyTable,
    timer: KernelTimer,
    device: Fingerprint,
    *,
    rows: int = 40,
    progress: Callable[[int, int, str], None] | None = None,
) -> Verification:
    """Times a sample of a table's rows again, each with its own schedule. Changes nothing.

    Rows that are off are timed again after all the others, and the timing nearest to the row
    counts: a busy neighbour must not condemn a table.

    Args:
        table: of this device.
        timer: its runtime, or what isolates that.
        device: of the timer.
        rows: how many to time at most; see `sample`.
        progress: called with (timings done, timings in all, the kernel).

    Raises TableDeviceError for another device's table, TableError for one without a usable row.
    """
    table.device.require(device, str(table.path))
    usable = [r for r in table.records() if r.record == "kernel" and r.latency_us is not None]
    if not usable:
        raise TableError(
            f"{table.path} has no kernel with a latency.", remedy="Continue it: nas table build."
        )
    chosen = sample(usable, rows)
    found: list[VerifiedRow] = []

    def timed(record: Record, done: int, total: int) -> VerifiedRow:
        row = _timed(record, timer)
        if progress is not None:
            progress(done, total, record.name)
        return row

    for record in chosen:
        found.append(timed(record, len(found) + 1, len(chosen)))
    done = len(chosen)
    for _ in range(MOST_TIMINGS - 1):
        again = [at for at, row in enumerate(found) if row.off and row.error is None]
        total = done + len(again)
        for at in again:
            done += 1
            found[at] = min(found[at], timed(chosen[at], done, total), key=_distance)
    return Verification(tuple(found), len(usable), tuple(_recorded_changes(table.device, device)))


class Pace:
    """How fast the device is while networks are timed, beside what its table says.

    A few of the networks' kernels are timed again between them. Like networks, each counts with
    its fastest timing: other work on the machine only adds time.

    Args:
        table: of the device.
        timer: as for `verify`.
        kernels: of the networks.
        count: how many of them to time; see `sample`.
    """

    def __init__(
        self, table: LatencyTable, timer: KernelTimer, kernels: Collection[Kernel], count: int
    ) -> None:
        found = [table.record(kernel) for kernel in dict.fromkeys(kernels)]
        usable = [record for record in found if record is not None and record.latency_us]
        self._timer = timer
        self._records = sample(usable, count) if usable else []
        self._ratios: list[float] = [math.inf] * len(self._records)

    def take(self) -> None:
        """Times the kernels once more; one that cannot be timed now is left out."""
        for at, record in enumerate(self._records):
            row = _timed(record, self._timer)
            self._ratios[at] = min(self._ratios[at], row.ratio or math.inf)

    @property
    def ratios(self) -> Ratios | None:
        """Now over the table's: above 1 where the device is slower; None before `take`."""
        return Ratios.of([each for each in self._ratios if math.isfinite(each)])


def sample(records: Sequence[Record], count: int) -> list[Record]:
    """`count` of the kernel records, spread over kinds and latencies, always the same ones.

    Every kind gets one row if there are enough, and then shares in proportion to its size. The
    rows of a kind are cut into as many runs by latency as it has shares, and one is drawn of each.
    Raises RequestError for a count below one.
    """
    if count < 1:
        raise RequestError(f"A sample of {count} rows says nothing.", remedy="Give 1 or more.")
    rng = np.random.default_rng(SEED)
    groups = by_kind(records, lambda record: Kernel.parse(record.name))
    largest_first = sorted(groups, key=lambda kind: -len(groups[kind]))
    chosen = []
    for kind, share in shares({kind: len(groups[kind]) for kind in largest_first}, count).items():
        own = sorted(groups[kind], key=lambda record: (record.latency_us or 0.0, record.name))
        ends = [len(own) * n // share for n in range(share + 1)]
        chosen += [own[rng.integers(low, high)] for low, high in pairwise(ends)]
    return sorted(chosen, key=lambda record: record.line)


def _timed(record: Record, timer: KernelTimer) -> VerifiedRow:
    kernel = Kernel.parse(record.name)
    row = VerifiedRow(
        record.name,
        kind_of(kernel),
        record.latency_us or 0.0,
        None,
        is_unstable=record.status == UNSTABLE,
        is_estimated=record.is_estimated,
    )
    try:
        now_us = timer.retime_kernel(kernel, record.schedule or {}).latency_us
    # A compiler may raise anything; whatever it is, it is what became of this row.
    except Exception as error:
        return replace(row, error=f"{type(error).__name__}: {str(error).strip()[:300]}")
    return replace(row, now_us=now_us)


def _distance(row: VerifiedRow) -> float:
    return float("inf") if row.ratio is None else abs(float(np.log(row.ratio)))


def _ratios(rows: Sequence[VerifiedRow]) -> Ratios | None:
    return Ratios.of([row.ratio for row in rows if row.ratio is not None])


def _slower(ratio: float) -> str:
    return f"{ratio - 1:.0%} slower" if ratio > 1 else f"{1 - ratio:.0%} faster"


def _recorded_changes(before: Fingerprint, now: Fingerprint) -> list[str]:
    return [
        f"{name} is {now.recorded.get(name)}, was {before.recorded.get(name)}"
        for name in {**before.recorded, **now.recorded}
        if before.recorded.get(name) != now.recorded.get(name)
    ]
