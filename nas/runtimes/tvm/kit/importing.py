"""Adds what a kit measured to the latency table of its device."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from nas.display.progress import Advance
from nas.errors import MeasurementError, shortened_text
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, differences, timing
from nas.latency.build import curve_policy, failed_record
from nas.latency.cache_model import WEIGHT_PARTS, WEIGHTS_MIB
from nas.latency.kit import RESULTS
from nas.latency.record import DISTURBED, Record
from nas.latency.rounds import Policy, fastest_us, full_speed_us
from nas.latency.timing import Attempt, Timing
from nas.runtimes.tvm.dispatch_benchmarks import launch_costs, launch_networks
from nas.runtimes.tvm.kernel_timer import half_cold_us, tvm_kernels
from nas.runtimes.tvm.kit.manifest import Item
from nas.runtimes.tvm.kit.results import Results, require_same_device
from nas.runtimes.tvm.kit.runtime import KitRuntime

_AGAIN = "start the program of the kit again, which continues, and import its results again"


def import_kernels(
    device: KitRuntime, folder: Path, tables: Path | str, progress: Advance | None = None
) -> list[str]:
    """Add the timings of a kit to the latency table of the device.

    Args:
        device: the device.
        folder, tables, progress: see `nas.latency.kit.KitDevice.import_kernels`.

    Returns:
        Sentences on what is missing or doubtful.
    """
    results = Results.read(folder, "kernels", device.fingerprint)
    if device.transport is None:
        device = KitRuntime(target=device.target)
        device.recorded = results.device
    table = LatencyTable.open_or_create(tables, device)
    if device.transport is None:
        what = f"{table.path} with those of {folder / RESULTS}"
        require_same_device(table.device.recorded, results.device, what)
    with table.writing():
        _add_dispatch(table, results)
        _add_kernels(table, results, progress)
    if table.lacks_dispatch():
        _require_launches(results)
    return [*_notes(table, results)]


def _require_launches(results: Results) -> None:
    """Raise MeasurementError if the device cannot time what the costs of launches follow from."""
    for name, (item, *_) in results.items("dispatch").items():
        if name not in WEIGHT_PARTS and item.id in results.errors:
            raise MeasurementError(
                f"The device cannot time what networks cost beside their kernels: of '{name}', "
                f"{results.errors[item.id]}.",
                remedy="Make a kit for another cpu= or other features=; the kernels were imported.",
            )


def _add_kernels(table: LatencyTable, results: Results, progress: Advance | None) -> None:
    """Append what the table lacks of the kernels that were timed, or that cannot be timed."""
    kernels = {Kernel.parse(text): items for text, items in results.items("kernel").items()}
    chosen: dict[Kernel, tuple[Item, list[Timing]]] = {}
    for kernel, items in kernels.items():
        before = table.record(kernel)
        if item := _chosen_item(kernel, items, results, before):
            chosen[kernel] = item, _merged(before, results.timings(item))
    readings_us = [each.reading_us for _, own in chosen.values() for each in own]
    known_us = min(filter(None, (table.full_us, results.overheated_us)), default=None)
    full_us = full_speed_us(readings_us, known_us)
    for done, (kernel, items) in enumerate(kernels.items()):
        before = table.record(kernel)
        if kernel in chosen:
            item, timings = chosen[kernel]
            record = Record.from_timings(
                "kernel",
                timings,
                name=kernel.text,
                policy=Policy(table.runtime.capabilities.rounds),
                full_us=full_us,
                schedule=item.schedule or {},
            )
            if record.differs(before):
                table.append(record)
        elif before is None and all(each.id in results.errors for each in items):
            table.append(failed_record(kernel, MeasurementError(results.errors[items[0].id])))
        if progress is not None:
            progress(done + 1, len(kernels), kernel.text)


def _chosen_item(
    kernel: Kernel, items: Sequence[Item], results: Results, before: Record | None
) -> Item | None:
    """Return the timed candidate of a kernel whose schedule the table has, or else the fastest.

    The program also times a kernel with many weights without Winograd's algorithm, so that the
    choice between the two is made here (`half_cold_us`).
    """

    def cost_us(item: Item) -> float:
        latencies_us = [each.latency_us for each in results.timings(item)]
        return half_cold_us(kernel, item.schedule or {}, fastest_us(latencies_us))

    timed = [item for item in items if results.attempts[item.id]]
    if before is not None and before.latency_us is not None:
        timed = [item for item in timed if item.schedule == before.schedule]
    return min(timed, key=cost_us, default=None)


def _add_dispatch(table: LatencyTable, results: Results) -> None:
    """Append the costs of launching kernels, and the rounds of the miss curve, that it lacks."""
    items = {name: own[0] for name, own in results.items("dispatch").items()}
    for part, cost in _launch_costs(results, items).items():
        if part not in table.dispatch.parts_us:
            table.append(Record.from_timings("dispatch", [cost], name=part))
    before = {each.name: each for each in table.records("dispatch")}
    for part, timings in _miss_curve(results, items).items():
        merged = _merged(before.get(part), timings)
        record = Record.from_timings("dispatch", merged, name=part, policy=curve_policy())
        if record.differs(before.get(part)):
            table.append(record)


def _launch_costs(results: Results, items: Mapping[str, Item]) -> Mapping[str, Timing]:
    """Return the costs of `TvmKernelTimer.time_dispatch`; none if there are too few rounds."""

    def median_seconds(attempts: Sequence[Attempt]) -> float:
        chosen = timing.chosen_attempts(attempts, timing.QUICK_SAMPLES)
        return statistics.median(each.seconds for each in chosen)

    names = [name for name in items if name not in WEIGHT_PARTS]
    seconds = [map(median_seconds, results.attempts[items[name].id]) for name in names]
    rounds = [dict(zip(names, each, strict=True)) for each in zip(*seconds, strict=False)]
    if len(rounds) < differences.ROUNDS:
        return {}
    launched = {name: tvm_kernels(graph) for name, graph in launch_networks().items()}
    return differences.cost_timings(rounds, partial(launch_costs, launched))


def _miss_curve(results: Results, items: Mapping[str, Item]) -> Mapping[str, Sequence[Timing]]:
    """Return the timings of each part of the miss curve in the rounds that all parts have.

    A chain that does not fit into the memory of the device takes as long for a MiB as the next
    smaller one: no network of the device can have as many weights.
    """
    parts: dict[str, Sequence[Timing]] = {}
    for mib, part in zip(WEIGHTS_MIB, WEIGHT_PARTS, strict=True):
        item = items.get(part)
        if item is None:
            return {}
        if item.id in results.errors and parts:
            parts[part] = [*parts.values()][-1]
            continue
        # The program times the whole chain.
        parts[part] = [
            Timing.from_attempts([each._replace(seconds=each.seconds / mib) for each in own])
            for own in results.attempts[item.id]
        ]
    rounds = min(map(len, parts.values()))
    return {part: own[:rounds] for part, own in parts.items()} if rounds else {}


def _merged(before: Record | None, timings: Sequence[Timing]) -> list[Timing]:
    """Return the timings of a record, and those that it lacks, which their first samples tell."""
    known = before.rounds if before is not None and before.latency_us is not None else []
    seen = Counter(each.typical_us for each in known)
    merged = list(known)
    for each in timings:
        if seen[each.typical_us]:
            seen[each.typical_us] -= 1
        else:
            merged.append(each)
    return merged


def _notes(table: LatencyTable, results: Results) -> Iterator[str]:
    """Yield sentences on what is missing in a table after an import, or doubtful."""
    kernels = [Kernel.parse(text) for text in results.items("kernel")]
    missing_parts = [
        name
        for name, (item, *_) in results.items("dispatch").items()
        if name in WEIGHT_PARTS and item.id in results.errors
    ]
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
