"""Comparing two tables, and merging several tables of one device into a new one."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas import files
from nas.errors import RequestError, TableDeviceError, TableError
from nas.kernels.kernel import Kernel
from nas.latency.record import AnyRecord, Record, new_header
from nas.latency.table import LatencyTable
from nas.latency.timing import MEASURED, Timing

_STATUSES = ("ok", "unstable", "disturbed", "failed")
"""Statuses in descending order of trust."""


@dataclass(frozen=True)
class Change:
    """One kernel, or one dispatch cost, in two tables.

    Args:
        key: `kernel <text>` or `dispatch <part>`.
        before: record in the first table; None if it has none.
        after: record in the second table; None if it has none.
    """

    key: str
    before: Record | None
    after: Record | None

    @property
    def kind(self) -> str:
        """`Kernel.detailed_kind`, or `dispatch`."""
        kind, _, name = self.key.partition(" ")
        return Kernel.parse(name).detailed_kind if kind == "kernel" else kind

    @property
    def ratio(self) -> float | None:
        """The ratio of after to before; None if either has no latency."""
        before_us = self.before.latency_us if self.before else None
        after_us = self.after.latency_us if self.after else None
        return None if before_us is None or after_us is None else after_us / before_us


@dataclass(frozen=True)
class Comparison:
    """Two tables side by side.

    Args:
        device_differences: how the device of the second table differs; empty for the same device.
        changes: every key of either table, in the order of the first.
    """

    device_differences: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def ratios(self) -> list[tuple[Change, float]]:
        """What has a latency in both tables, with its ratio; the largest changes come first."""
        pairs = [(each, each.ratio) for each in self.changes]
        common = [(change, ratio) for change, ratio in pairs if ratio is not None]
        return sorted(common, key=lambda pair: -abs(math.log(pair[1])))

    @property
    def median_ratio(self) -> float | None:
        """The median ratio of after to before; None if nothing has a latency in both tables."""
        ratios = [ratio for _, ratio in self.ratios]
        return statistics.median(ratios) if ratios else None

    @property
    def kinds(self) -> dict[str, list[float]]:
        """The ratios of each kind of kernel, and of the dispatch costs, that both tables have."""
        kinds: dict[str, list[float]] = {}
        for change, ratio in self.ratios:
            kinds.setdefault(change.kind, []).append(ratio)
        return dict(sorted(kinds.items()))

    def to_json(self) -> dict[str, Any]:
        """Return what `nas table diff --json` prints."""
        return {
            "devices": list(self.device_differences),
            "median_ratio": self.median_ratio,
            "common": len(self.ratios),
            "only_before": sum(each.after is None for each in self.changes),
            "only_after": sum(each.before is None for each in self.changes),
            "kinds": {
                kind: {"count": len(own), "median": statistics.median(own)}
                for kind, own in self.kinds.items()
            },
            "changes": [
                {
                    "key": each.key,
                    "kind": each.kind,
                    "before_us": each.before and each.before.latency_us,
                    "after_us": each.after and each.after.latency_us,
                    "before_flags": list(each.before.flags) if each.before else [],
                    "after_flags": list(each.after.flags) if each.after else [],
                    "ratio": each.ratio,
                }
                for each in self.changes
            ],
        }


def compare_tables(before: LatencyTable, after: LatencyTable) -> Comparison:
    """Compare every kernel and dispatch cost of two tables, which may be of any devices."""
    first, second = (
        {each.key: each for each in (*table.records("dispatch"), *table.records("kernel"))}
        for table in (before, after)
    )
    return Comparison(
        tuple(before.device.differences(after.device)),
        tuple(Change(key, first.get(key), second.get(key)) for key in {**first, **second}),
    )


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote.

    Args:
        path: the new table.
        kernels: number of kernels that it has.
        failed: number of kernels that have no latency in any table.
        taken: number of kernel records taken from each table, by its path.
        dispatch_from: table from which the dispatch costs are taken; None if no table has all.
    """

    path: Path
    kernels: int
    failed: int
    taken: Mapping[str, int]
    dispatch_from: str | None

    def to_json(self) -> dict[str, Any]:
        """Return what `nas table merge --json` prints."""
        return {
            "table": str(self.path),
            "kernels": self.kernels,
            "failed": self.failed,
            "taken": dict(self.taken),
            "dispatch_from": self.dispatch_from,
        }


def merge_tables(paths: Sequence[Path], out: Path) -> MergeResult:
    """Write a new table with the kernels of several tables, or the current records of one.

    The record of a kernel comes from the table where it is most trustworthy: `ok` before `unstable`
    before `failed`, measured before estimated, complete before timed once; among equals the one
    whose samples spread least, and then the first. All dispatch costs come from one table, because
    they were measured together. A table merged from several has no correction, because its
    predictions are not those on which one was fitted; a single table keeps its own.

    Args:
        paths: the tables, one or more.
        out: the new table, a file that does not exist.

    Raises:
        RequestError: there is no table, one is named twice, or `out` exists.
        TableDeviceError: the tables belong to different devices.
        TableError: a table is damaged, the tables were timed differently, or `out` cannot be
            written.
    """
    _check_request(paths, out)
    tables = [LatencyTable.open(path) for path in paths]
    for table in tables[1:]:
        _check_compatible(tables[0], table)
    dispatch_table = tables[0] if len(tables) == 1 else _steadiest_dispatch(tables)
    chosen: dict[str, tuple[Record, LatencyTable]] = {}
    for table in tables:
        for record in table.records("kernel"):
            known = chosen.get(record.key)
            if known is None or _distrust(record) < _distrust(known[0]):
                chosen[record.key] = (record, table)
    kernels = [record for record, _ in chosen.values()]
    dispatch = [] if dispatch_table is None else dispatch_table.records("dispatch")
    corrections = tables[0].corrections() if len(tables) == 1 else []
    lines = [{**new_header(tables[0].device), "timing": tables[0].timing}]
    latest: dict[str, int] = {}
    blocks = {each.key: each for table in tables for each in table.blocks}
    records: list[AnyRecord] = [*dispatch, *kernels, *blocks.values(), *corrections]
    for each in records:
        superseding = each.model_copy(update={"supersedes": latest.get(each.key)})
        lines.append(superseding.to_json())
        latest[each.key] = len(lines)
    try:
        files.replace(out, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    except OSError as error:
        raise TableError(
            f"{out} cannot be written: {error.strerror}.", remedy="Choose another place for --out."
        ) from None
    LatencyTable.open(out)
    return MergeResult(
        out,
        len(kernels),
        sum(record.status == "failed" for record in kernels),
        {str(t.path): sum(source is t for _, source in chosen.values()) for t in tables},
        None if dispatch_table is None else str(dispatch_table.path),
    )


def _check_request(paths: Sequence[Path], out: Path) -> None:
    if len({path.resolve() for path in paths}) < max(1, len(paths)):
        raise RequestError(
            "A merge needs one table or more, each once.",
            remedy="nas table merge A.jsonl B.jsonl --out C.jsonl",
        )
    if out.suffix != ".jsonl" or not os.path.isdir(out.parent):
        raise RequestError(
            f"A table cannot be written to {out}.",
            remedy="Name a .jsonl file in a folder that exists.",
        )
    if os.path.lexists(out):
        raise RequestError(f"{out} exists already.", remedy="Choose another name for --out.")


def _check_compatible(first: LatencyTable, other: LatencyTable) -> None:
    differences = first.device.differences(other.device)
    if differences:
        raise TableDeviceError(
            f"{other.path} is of another device than {first.path}: {'; '.join(differences)}.",
            remedy="Merge tables of one device, runtime, dtype and thread count.",
        )
    if first.timing != other.timing:
        raise TableError(
            f"{other.path} was timed in another way than {first.path}: "
            f"{other.timing}, not {first.timing}.",
            remedy="Build the older one again.",
        )


def _distrust(record: Record) -> tuple[int, bool, bool, float]:
    """Return a sort key that is smallest for the most trustworthy record."""
    spread = Timing(record.samples_us).spread if record.samples_us else 0.0
    return _STATUSES.index(record.status), record.basis != MEASURED, not record.complete, spread


def _steadiest_dispatch(tables: Sequence[LatencyTable]) -> LatencyTable | None:
    """Return the table with the steadiest dispatch costs; None if no table has all of them."""
    complete = [table for table in tables if not table.lacks_dispatch()]

    def distrust(table: LatencyTable) -> tuple[int, bool, bool, float]:
        records = table.records("dispatch")
        # A runtime may have no dispatch costs at all.
        return max(map(_distrust, records), default=(0, False, False, 0.0))

    return min(complete, key=distrust, default=None)
