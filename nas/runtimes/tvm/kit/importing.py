"""Adds what a kit measured to the latency table of its device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nas.display.progress import Advance
from nas.errors import shortened_text
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build_table
from nas.latency.kit import RESULTS
from nas.latency.record import DISTURBED
from nas.runtimes.tvm.kit.results import Results, require_same_device
from nas.runtimes.tvm.kit.runtime import KitRuntime
from nas.runtimes.tvm.kit.timer import RecordedTimer

_AGAIN = "start the program of the kit again, which continues, and import its results again"


def import_kernels(
    target: str, folder: Path, tables: Path | str, progress: Advance | None = None
) -> list[str]:
    """Add the timings of a kit to the latency table of the device.

    Args:
        target: target of the device.
        folder, tables, progress: see `nas.latency.kit.KitDevice.import_kernels`.

    Returns:
        Sentences on what is missing or doubtful.
    """
    results = Results.read(folder, "kernels", KitRuntime(target=target).fingerprint)
    device = KitRuntime(target=target)
    device.recorded = results.device
    table = LatencyTable.open_or_create(tables, device)
    if table.device.recorded:
        what = f"{table.path} with those of {folder / RESULTS}"
        require_same_device(table.device.recorded, results.device, what)
    timer = RecordedTimer(results, table)
    wanted = [
        kernel
        for kernel in timer.kernels
        if timer.is_timed(kernel) or (timer.is_broken(kernel) and table.record(kernel) is None)
    ]
    build_table(table, wanted, timer, retry_failed=True, progress=progress)
    return [*_notes(table, timer.kernels, results, timer.missing_parts)]


def _notes(
    table: LatencyTable, kernels: Sequence[Kernel], results: Results, missing_parts: Sequence[str]
) -> Iterator[str]:
    """Yield sentences on what is missing in a table after an import, or doubtful."""
    records = [record for kernel in kernels if (record := table.record(kernel)) is not None]
    failed = [record for record in records if record.status == "failed"]
    disturbed = sum(record.status == DISTURBED for record in records)
    further = sum(not record.complete and record.status != DISTURBED for record in records)
    if waiting := len(kernels) - len(records):
        yield f"{waiting} of {len(kernels)} kernels were not timed yet: {_AGAIN}."
    if further:
        yield f"{further} kernels were timed in too few rounds: {_AGAIN}."
    if table.lacks_dispatch():
        yield f"What networks cost beside their kernels was not timed yet: {_AGAIN}."
    if missing_parts:
        yield (
            f"The device cannot time {', '.join(missing_parts)}: networks with so many weights are "
            "predicted too fast."
        )
    if failed:
        error = shortened_text(failed[0].error or "", 200)
        yield f"{len(failed)} kernels cannot be timed, such as '{failed[0].name}': {error}."
    if results.overheated_us is not None:
        yield (
            "The device overheated: timings at less than its full speed do not count. Cool it, "
            f"{_AGAIN}."
        )
    if disturbed:
        yield (
            f"{disturbed} kernels are disturbed: the core never ran at full speed while they were "
            "timed, so that their latencies are too high. Close other programs, cool the device, "
            f"and {_AGAIN}."
        )
