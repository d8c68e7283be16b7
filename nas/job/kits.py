"""Kits of a job: written, carried by a transport or a person, and their results taken in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from nas.errors import DeviceAwaitedError
from nas.files import jsonl
from nas.job.folder import JobRun
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable
from nas.latency.kit import RESULTS, KitDevice, run_kit
from nas.run.kits import kit_folder, waiting_text
from nas.run.measurements import Measurement
from nas.run.progress import JobProgress
from nas.run.run import Run


def open_table(run: JobRun, device: KitDevice) -> LatencyTable | None:
    """Return the latency table of a device, with the results of the run's kit; None without any."""
    folder, tables = kit_folder(run, "table"), run.settings.device.tables
    if (folder / RESULTS).exists():
        if device.kit_contents(folder):
            run.progress.begin("results of the kit", "kernel")
            for sentence in device.import_kernels(folder, tables, run.progress.advance):
                run.progress.note(sentence)
        else:
            run.progress.note(
                f"{folder / RESULTS} is left out: the kit beside it is for another device, or of "
                "other versions"
            )
    return LatencyTable.find(tables, run.runtime)


def require_table(run: JobRun, device: KitDevice, dtype: str) -> None:
    """Write the kit that times the kernels which the latency table of a run lacks, if any.

    The kit of an earlier start stays if it has them.

    Raises:
        DeviceAwaitedError: the table lacks timings.
    """
    table, kernels = run.tables.get(dtype), run.kernels[dtype]
    missing: Sequence[Kernel] = kernels if table is None else table.missing(kernels)
    if table is not None and not missing and not table.lacks_dispatch():
        return
    folder = kit_folder(run, "table")
    if not _has(device, folder, [kernel.text for kernel in missing]):
        _set_aside(folder)
        run.progress.begin("kit", "kernel")
        spaces = [f"{name} {space.image_size}px" for name, space in run.spaces.items()]
        device.write_kernels_kit(missing or kernels, spaces, folder, run.progress.advance)
    run.record.waiting = "table"
    run.save()
    if len(missing) < len(kernels):
        run.progress.note(f"{len(missing)} of {len(kernels)} kernels are not timed yet")
    raise DeviceAwaitedError(waiting_text(run))


def time_networks(
    run: Run, device: KitDevice, digests: Sequence[str], progress: JobProgress
) -> None:
    """Take in the results of the kit of a run's networks, or write the kit, and run it if possible.

    Args:
        run: the run, locked for this process, with its candidates.
        device: its device.
        digests: digests of the candidates to time. A kit of an earlier start stays if it has those
            that are not timed yet.
        progress: receives progress and messages.
    """
    folder = kit_folder(run, "networks")
    if (folder / RESULTS).exists() and device.kit_contents(folder):
        _log_timings(run, device, folder)
    timed = {each.digest for each in run.timing_log}
    missing = [digest for digest in digests if digest not in timed]
    run.record.waiting = "networks" if missing else None
    run.save()
    if missing and not _has(device, folder, missing):
        _set_aside(folder)
        progress.begin("kit of networks", "network")
        networks = {digest: run.architecture(digest).graph for digest in missing}
        device.write_networks_kit(networks, run.table.schedules(), folder, progress.advance)
    if missing and device.transport is not None:
        progress.begin("whole networks", "timing")
        run_kit(device, folder, progress.advance)
        _log_timings(run, device, folder)
        run.record.waiting = None
        run.save()


def _log_timings(run: Run, device: KitDevice, folder: Path) -> None:
    """Append the timings of a kit to the log of a run, without those that the log has."""
    jsonl.repair(run.measurements)
    known = Counter((each.digest, each.samples_us) for each in run.timing_log)
    recorded = run.table.device.recorded
    for digest, latency in device.network_latencies(folder, recorded).items():
        candidate, architecture = run.candidate(digest), run.architecture(digest)
        for each in Measurement.of_latency(architecture, candidate.predicted_us, latency):
            if known[digest, each.samples_us]:
                known[digest, each.samples_us] -= 1
                continue
            jsonl.append(run.measurements, each.model_dump(mode="json", by_alias=True))


def _has(device: KitDevice, folder: Path, names: Collection[str]) -> bool:
    """Return whether the kit in a folder times kernels or networks of these names."""
    contents = device.kit_contents(folder)
    return bool(contents) and set(contents).issuperset(names)


def _set_aside(folder: Path) -> None:
    """Rename the folder of a kit that has results; they may have taken hours."""
    if not (folder / RESULTS).exists():
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(aside)
