"""The content and the predictions of a latency table, as plain data and as printed text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nas import console
from nas.formatting import format_count, format_latency
from nas.graph import Graph
from nas.latency import LatencyTable, calibration_text, space_kernels
from nas.latency.cache_model import DispatchCosts
from nas.latency.kernel import Kernel, group_by_kind
from nas.latency.matrix_benchmark import Peak
from nas.latency.merge import MergeResult
from nas.latency.prediction import MAX_DISPATCH_SHARE, ROUGH_PREDICTION
from nas.latency.record import MEASURED, Record
from nas.latency.timing import Timing
from nas.space import Architecture, SearchSpace

_NETWORK_LAUNCHES = (15, 60)
"""Kernels of a short and of a long network, for which the cost of launches is shown."""

_COVERAGE_STATUSES = ("ok", "unstable", "failed", "missing")


def describe_table(
    table: LatencyTable,
    spaces: Sequence[SearchSpace] = (),
    peak: Peak | None = None,
    batch: int = 1,
) -> dict[str, Any]:
    """Return what `nas table show --json` prints.

    Args:
        table: the table.
        spaces: search spaces whose kernels to look for in it.
        peak: speed of a matrix product on the device; None if it was not measured.
        batch: batch size of the spaces' kernels.
    """
    records = table.records("kernel")
    usable = [record for record in records if record.latency_us is not None]
    total_us = sum(record.latency_us or 0.0 for record in usable)
    groups = group_by_kind(usable, _kernel)
    kinds = {kind: _describe_kind(own, total_us) for kind, own in groups.items()}
    return {
        "table": str(table.path),
        "device": table.device.to_json(),
        "kernels": len(records),
        "status": dict(Counter(record.status for record in records)),
        "basis": dict(Counter(record.basis for record in usable)),
        "dispatch_us": table.dispatch_us,
        "unstable_dispatch": table.unstable_dispatch,
        "rough_below": _describe_rough_predictions(table),
        "calibrations": [dict(record.calibration or {}) for record in table.calibrations()],
        "noise": _describe_noise(usable),
        "peak": peak and asdict(peak),
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1]["share_of_time"])),
        "coverage": [describe_coverage(table, space, batch) for space in spaces],
        "failed": {r.name: r.error for r in records if r.status == "failed"},
    }


def describe_coverage(table: LatencyTable, space: SearchSpace, batch: int = 1) -> dict[str, Any]:
    """Return the number of a space's kernels by their status in a table.

    Args:
        table: the table.
        space: the search space, adapted to the images.
        batch: batch size of the kernels.
    """
    kernels = space_kernels(space, table.runtime, batch)
    records = [table.record(kernel) for kernel in kernels]
    counts = Counter("missing" if record is None else record.status for record in records)
    return {
        "space": space.name,
        "image_size": space.image_size,
        "batch": batch,
        "kernels": len(kernels),
        **{status: counts[status] for status in _COVERAGE_STATUSES},
    }


def _kernel(record: Record) -> Kernel:
    return Kernel.parse(record.name)


def _describe_rough_predictions(table: LatencyTable) -> list[dict[str, float]]:
    """Return below which latency more than `MAX_DISPATCH_SHARE` of a prediction are launches.

    It is empty for a table without dispatch costs.
    """
    if table.lacks_dispatch() or not table.dispatch_us:
        return []
    return [
        {"launches": launches, "latency_us": table.launches_us(launches) / MAX_DISPATCH_SHARE}
        for launches in _NETWORK_LAUNCHES
    ]


def _describe_kind(records: Sequence[Record], total_us: float) -> dict[str, Any]:
    """Return the latencies and the speed of the kernels of one kind."""
    latencies = [record.latency_us or 0.0 for record in records]
    macs = [_kernel(record).macs for record in records]
    # A multiply-accumulate is two operations, and 1e9 operations per second are 1e3 per us.
    gflops = [2 * m / us / 1e3 for m, us in zip(macs, latencies, strict=True) if m]
    return {
        "kernels": len(records),
        "smallest_us": min(latencies),
        "median_us": float(np.median(latencies)),
        "largest_us": max(latencies),
        "share_of_time": sum(latencies) / total_us,
        "median_gflops": float(np.median(gflops)) if gflops else None,
        "best_gflops": max(gflops) if gflops else None,
    }


def _describe_noise(records: Sequence[Record]) -> dict[str, float] | None:
    """Return the median and the 90% quantile of the spreads of the records' samples."""
    spreads = [Timing(record.samples_us).spread for record in records]
    if not spreads:
        return None
    median, most = np.quantile(spreads, (0.5, 0.9))
    return {"median_spread": float(median), "spread_of_90_percent": float(most)}


def show_table(description: Mapping[str, Any]) -> None:
    """Print a description that `describe_table` made."""
    _show_device(description)
    _show_dispatch(description)
    for calibration in description["calibrations"]:
        images = f" (batches of {calibration['batch']})" if calibration["batch"] > 1 else ""
        console.say(f"calibration{images}: {calibration_text(calibration)}")
    if noise := description["noise"]:
        console.say(
            f"noise: the samples of half of the kernels spread by at most "
            f"{noise['median_spread']:.1%}, those of 90% by at most "
            f"{noise['spread_of_90_percent']:.1%} (interquartile range over median)"
        )
    peak = description["peak"]
    if peak:
        console.say(f"this machine reaches {peak['gflops']:.4g} GFLOP/s in {peak['how']}")
    columns = ["kind", "kernels", "share of time", "smallest, us", "median, us", "largest, us"]
    columns += ["median GFLOP/s", "best", *(["of that product"] if peak else [])]
    rows = [_kind_row(kind, row, peak) for kind, row in description["kinds"].items()]
    console.print_table(columns, rows)
    if description["coverage"]:
        keys = ["space", "image_size", "batch", "kernels", *_COVERAGE_STATUSES]
        console.print_table(
            [key.replace("_", " ") for key in keys],
            [[row[key] for key in keys] for row in description["coverage"]],
        )
    for name, error in description["failed"].items():
        console.say(f"failed: {name}: {error}")


def _show_device(description: Mapping[str, Any]) -> None:
    device = description["device"]
    versions = ", ".join(f"{name} {version}" for name, version in device["versions"].items())
    console.say(
        f"{description['table']}\n{device['processor']}, {device['runtime']} ({versions}), "
        f"{device['dtype']}, {device['threads']} thread(s)"
    )


def _show_dispatch(description: Mapping[str, Any]) -> None:
    """Print the number of kernels, the dispatch costs and the effect of the caches."""
    costs_us = description["dispatch_us"]
    dispatch = ", ".join(
        f"{part} {us:.3g} us" for part, us in costs_us.items() if not part.startswith("weights_")
    )
    status = ", ".join(f"{count} {name}" for name, count in description["status"].items())
    kernels = f"{description['kernels']} kernels ({status})"
    console.say(f"{kernels}; dispatch: {dispatch or 'not measured'}")
    for basis, count in description["basis"].items():
        if basis != MEASURED:
            console.say(f"{count} of the kernels are {basis}")
    if description["unstable_dispatch"]:
        console.say(f"unstable dispatch costs: {', '.join(description['unstable_dispatch'])}")
    if description["rough_below"]:
        latencies = " or ".join(
            f"{each['latency_us']:.3g} us ({each['launches']} kernels)"
            for each in description["rough_below"]
        )
        console.say(
            f"networks below {latencies} are launches and start more than kernels, and "
            f"{ROUGH_PREDICTION}"
        )
    half_misses = ", ".join(
        f"{mib:.3g} MiB at {intensity:.3g} us per MiB"
        for intensity, mib in DispatchCosts(costs_us).half_miss_sizes()
    )
    if half_misses:
        console.say(f"half of the weights miss the caches in networks of {half_misses}")


def _kind_row(kind: str, row: Mapping[str, Any], peak: Mapping[str, Any] | None) -> list[Any]:
    best, median = row["best_gflops"], row["median_gflops"]
    cells = [kind, row["kernels"], f"{row['share_of_time']:.1%}"]
    cells += [f"{row[key]:.4g}" for key in ("smallest_us", "median_us", "largest_us")]
    cells += ["" if gflops is None else f"{gflops:.3g}" for gflops in (median, best)]
    if peak:
        cells.append("" if best is None else f"{best / peak['gflops']:.0%}")
    return cells


def describe_prediction(
    table: LatencyTable, network: Graph | Architecture, batch: int = 1
) -> dict[str, Any]:
    """Return what `nas predict --json` prints: the latency of a batch, and that of each kernel.

    Args:
        table: the table.
        network: the network.
        batch: number of images that run at once.
    """
    prediction = table.predict(network, batch)
    records = {kernel: table.record(kernel) for kernel in prediction.kernels}
    return {
        "batch": batch,
        "predicted_us": prediction.latency_us,
        "uncorrected_us": prediction.uncorrected_us,
        "dispatch_us": prediction.dispatch_us,
        "dispatch_share": prediction.dispatch_share,
        "basis": prediction.basis,
        "launches": prediction.launches,
        "unstable_launches": prediction.unstable_launches,
        "estimated_launches": prediction.estimated_launches,
        "unstable_dispatch": table.unstable_dispatch,
        "macs": network.macs,
        "params": network.params,
        "kernels": [
            {
                "kernel": kernel.text,
                "launches": count,
                "latency_us": latency_us,
                "status": record.status,
                "basis": record.basis,
                "note": (note := table.runtime.kernel_note(kernel)),
                "rewriting_us": _rewriting_us(table, kernel, count) if note else None,
            }
            for kernel, count, latency_us in prediction.by_kernel()
            if (record := records[kernel]) is not None
        ],
    }


def _rewriting_us(table: LatencyTable, kernel: Kernel, launches: int) -> float | None:
    """Return what a kernel costs more because the device has no code for it; None if not known."""
    record = table.record(kernel)
    each_us = table.runtime.rewriting_us(kernel, (record and record.schedule) or {})
    return None if each_us is None else launches * each_us


def show_prediction(description: Mapping[str, Any]) -> None:
    """Print a description that `describe_prediction` made."""
    console.print_table(
        ["kernel", "launches", "us", "status"],
        [
            (row["kernel"], row["launches"], f"{row['latency_us']:.4g}", _status_text(row))
            for row in description["kernels"]
        ],
        left=["status"],
    )
    batch = description["batch"]
    images = f" for {batch} images" if batch > 1 else ""
    per_image = " per image" if batch > 1 else ""
    console.say(
        f"predicted {format_latency(description['predicted_us'])}{images}: "
        f"{description['launches']} kernels ({description['unstable_launches']} unstable, "
        f"{description['estimated_launches']} estimated) and their launches, "
        f"{format_count(description['macs'])} MACs{per_image}"
    )
    if description["basis"] != MEASURED:
        console.say(f"not all of it is measured; the rest is {description['basis']}")
    if text := _rewriting_text(description):
        console.say(text)
    if description["unstable_dispatch"]:
        console.say(f"unstable dispatch costs: {', '.join(description['unstable_dispatch'])}")
    uncorrected_us = description["uncorrected_us"]
    if description["dispatch_share"] > MAX_DISPATCH_SHARE:
        console.say(
            f"{description['dispatch_share']:.0%} of it are launches and the start of the network; "
            f"{ROUGH_PREDICTION}"
        )
    if uncorrected_us != description["predicted_us"]:
        console.say(
            "corrected by the table's calibration on whole networks; without it "
            f"{format_latency(uncorrected_us)}"
        )


def _rewriting_text(description: Mapping[str, Any]) -> str:
    """Return what the forms cost in which the device runs kernels that it has no code for."""
    costs_us: dict[str, float] = {}
    for row in description["kernels"]:
        if row["rewriting_us"] is not None:
            costs_us[row["note"]] = costs_us.get(row["note"], 0.0) + row["rewriting_us"]
    if not costs_us:
        return ""
    total_us = sum(costs_us.values())
    parts = "; ".join(f"{note} {us:.4g} us" for note, us in costs_us.items())
    return (
        f"{format_latency(total_us)} of it ({total_us / description['uncorrected_us']:.0%}) are "
        f"operations that the device needs because it runs kernels in another form: {parts}"
    )


def _status_text(row: Mapping[str, Any]) -> str:
    """Return the status, the basis of an estimate, and in which form the device runs the kernel."""
    parts = [row["status"], *([] if row["basis"] == MEASURED else [row["basis"]])]
    if row["note"]:
        cost_us = row["rewriting_us"]
        parts.append(row["note"] + ("" if cost_us is None else f" ({cost_us:.4g} us of it)"))
    return ", ".join(parts)


def merge_text(merged: MergeResult) -> str:
    """Return what `nas table merge` prints."""
    taken = "; ".join(f"{count} rows from {path}" for path, count in merged.taken.items())
    dispatch = merged.dispatch_from or "no table, because none has all: continue one with a build"
    text = (
        f"{merged.path}: {merged.kernels} kernels ({merged.failed} failed); {taken}; dispatch "
        f"costs from {dispatch}"
    )
    if merged.calibrations:
        text += "\nA merged table has no calibration: fit one with `nas table calibrate`."
    return text
