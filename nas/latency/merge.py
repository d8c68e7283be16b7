"""Several tables of one device made into one, such as those that two people built.

Rows carry no dates, so of two timings of a kernel in different files the newer is not known; the
steadier is. Within a file the current row counts, as always.
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
from nas.latency.record import MEASURED, Record, header
from nas.latency.table import LatencyTable
from nas.latency.timing import Timing

_TRUST = ("ok", "unstable", "failed")
"""Statuses, the most trusted first."""


@dataclass(frozen=True)
class Merged:
    """What a merge made.

    Args:
        path: the new table.
        kernels: how many it has.
        failed: how many of them have no latency in any table.
        taken: for each table, how many of its kernels' rows were taken.
        dispatch_from: the table whose dispatch costs it has; None where none has all of them.
        calibrations: how many tables had a calibration. A merged table has none: its predictions
            are not those that any was fitted on.
    """

    path: Path
    kernels: int
    failed: int
    taken: Mapping[str, int]
    dispatch_from: str | None
    calibrations: int

    def to_json(self) -> dict[str, Any]:
        """What `nas table merge --json` prints."""
        return {
            "table": str(self.path),
            "kernels": self.kernels,
            "failed": self.failed,
            "taken": dict(self.taken),
            "dispatch_from": self.dispatch_from,
            "calibrations_dropped": self.calibrations,
        }


def merge(paths: Sequence[Path], out: Path) -> Merged:
    """Writes a new table with the kernels of several.

    A kernel's row comes from the table that trusts it most: `ok` before `unstable` before `failed`,
    measured before estimated, settled before timed once; among equals the one whose samples spread
    least, then the first. All dispatch costs come from one table, as they were measured together.

    Raises RequestError for fewer than two tables, or an `out` that exists; TableDeviceError for
    tables of different devices; TableError for tables that were timed in different ways, for an
    `out` that cannot be written, and as `LatencyTable.open` does.
    """
    _check_request(paths, out)
    tables = [LatencyTable.open(path) for path in paths]
    for table in tables[1:]:
        _check_alike(tables[0], table)
    dispatch = _dispatch(tables)
    chosen: dict[str, tuple[Record, LatencyTable]] = {}
    for table in tables:
        for record in table.records():
            if record.record == "kernel":
                held = chosen.get(record.key)
                if held is None or _doubt(record) < _doubt(held[0]):
                    chosen[record.key] = (record, table)
    kernels = [record for record, _ in chosen.values()]
    parts = (
        [r for r in dispatch.records() if r.record == "dispatch"] if dispatch is not None else []
    )
    lines = [
        {**header(tables[0].device), "timing": tables[0].timing},
        *(replace(record, supersedes=None).to_json() for record in (*parts, *kernels)),
    ]
    try:
        files.replace(out, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    except OSError as error:
        raise TableError(
            f"{out} cannot be written: {error.strerror}.", remedy="Choose another place for --out."
        ) from None
    LatencyTable.open(out)
    return Merged(
        out,
        len(kernels),
        sum(record.status == "failed" for record in kernels),
        {str(t.path): sum(source is t for _, source in chosen.values()) for t in tables},
        None if dispatch is None else str(dispatch.path),
        sum(any(r.record == "calibration" for r in table.records()) for table in tables),
    )


def _check_request(paths: Sequence[Path], out: Path) -> None:
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise RequestError(
            "A merge needs two tables or more, each once.",
            remedy="nas table merge A.jsonl B.jsonl --out C.jsonl",
        )
    if out.suffix != ".jsonl" or not os.path.isdir(out.parent):
        raise RequestError(
            f"A table cannot be written to {out}.",
            remedy="Name a .jsonl file in a folder that is there.",
        )
    try:
        os.lstat(out)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(
            f"A table cannot be written to {out}: {reason}.", remedy="Choose another name."
        ) from None
    raise RequestError(f"{out} is there already.", remedy="Choose another name for --out.")


def _check_alike(first: LatencyTable, other: LatencyTable) -> None:
    different = first.device.differences(other.device)
    if different:
        raise TableDeviceError(
            f"{other.path} is of another device than {first.path}: {'; '.join(different)}.",
            remedy="Merge tables of one device, runtime, dtype and thread count.",
        )
    if first.timing != other.timing:
        raise TableError(
            f"{other.path} was timed in another way than {first.path}: "
            f"{other.timing}, not {first.timing}.",
            remedy="Build the older one again.",
        )


def _doubt(record: Record) -> tuple[int, bool, bool, float]:
    """Sorts the row to trust most first."""
    spread = Timing(record.samples_us).spread if record.samples_us else 0.0
    return _TRUST.index(record.status), record.basis != MEASURED, not record.settled, spread


def _dispatch(tables: Sequence[LatencyTable]) -> LatencyTable | None:
    """The table whose dispatch costs were the steadiest; None if none has all of them."""
    complete = [table for table in tables if not table.lacks_dispatch()]

    def doubt(table: LatencyTable) -> tuple[int, bool, bool, float]:
        return max(_doubt(record) for record in table.records() if record.record == "dispatch")

    return min(complete, key=doubt, default=None)
