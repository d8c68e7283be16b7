"""Merging several tables of one device, such as those that two people built.

A single table is compacted: the new one has its current records alone. Records carry no dates. If
several tables have a timing of the same kernel, it is not known which one is newest, so the
steadiest one is taken. Within a table the current record counts, as always.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas import files
from nas.errors import RequestError, TableDeviceError, TableError
from nas.latency.header import new_header
from nas.latency.record import MEASURED, Record
from nas.latency.table import LatencyTable
from nas.latency.timing import Timing

_STATUSES = ("ok", "unstable", "failed")
"""Statuses in descending order of trust."""


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote.

    Args:
        path: the new table.
        kernels: number of kernels that it has.
        failed: number of kernels that have no latency in any table.
        taken: number of kernel records taken from each table, by its path.
        dispatch_from: table from which the dispatch costs are taken; None if no table has all.
        calibrations: number of tables whose calibration was left out. A table merged from several
            has none, because its predictions are not those on which a calibration was fitted.
    """

    path: Path
    kernels: int
    failed: int
    taken: Mapping[str, int]
    dispatch_from: str | None
    calibrations: int

    def to_json(self) -> dict[str, Any]:
        """Return what `nas table merge --json` prints."""
        return {
            "table": str(self.path),
            "kernels": self.kernels,
            "failed": self.failed,
            "taken": dict(self.taken),
            "dispatch_from": self.dispatch_from,
            "calibrations_dropped": self.calibrations,
        }


def merge_tables(paths: Sequence[Path], out: Path) -> MergeResult:
    """Write a new table with the kernels of several tables, or the current records of one.

    The record of a kernel comes from the table where it is most trustworthy: `ok` before `unstable`
    before `failed`, measured before estimated, settled before timed once; among equals the one
    whose samples spread least, and then the first. All dispatch costs come from one table, because
    they were measured together. Kernels of tables with another quiet speed of the processor get
    their latency at the speed of that table.

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
    # A single table predicts the same afterwards, with the dispatch costs and corrections it has.
    is_single = len(tables) == 1
    dispatch_table = tables[0] if is_single else _steadiest_dispatch(tables)
    chosen: dict[str, tuple[Record, LatencyTable]] = {}
    for table in tables:
        for record in table.records("kernel"):
            known = chosen.get(record.key)
            if known is None or _distrust(record) < _distrust(known[0]):
                chosen[record.key] = (record, table)
    kernels = [record for record, _ in chosen.values()]
    if not is_single:
        # A table without kernels is falsy.
        speed_table = tables[0] if dispatch_table is None else dispatch_table
        kernels = [record.at_speed(speed_table.quiet_us) for record in kernels]
    dispatch = dispatch_table.records("dispatch") if dispatch_table is not None else []
    calibrations = tables[0].calibrations() if is_single else []
    lines = [{**new_header(tables[0].device), "timing": tables[0].timing}]
    latest: dict[str, int] = {}
    for record in (*dispatch, *kernels, *calibrations):
        lines.append(replace(record, supersedes=latest.get(record.key)).to_json())
        latest[record.key] = len(lines)
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
        0 if is_single else sum(bool(table.records("calibration")) for table in tables),
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
    try:
        os.lstat(out)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(
            f"A table cannot be written to {out}: {reason}.", remedy="Choose another name."
        ) from None
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
    return _STATUSES.index(record.status), record.basis != MEASURED, not record.settled, spread


def _steadiest_dispatch(tables: Sequence[LatencyTable]) -> LatencyTable | None:
    """Return the table with the steadiest dispatch costs; None if no table has all of them."""
    complete = [table for table in tables if not table.lacks_dispatch()]

    def distrust(table: LatencyTable) -> tuple[int, bool, bool, float]:
        records = table.records("dispatch")
        # A runtime may have no dispatch costs at all.
        return max(map(_distrust, records), default=(0, False, False, 0.0))

    return min(complete, key=distrust, default=None)
