"""Latency tables and what they predict, as plain data, and as what the command line prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nas import console
from nas.formatting import format_count, format_latency
from nas.graph import Graph
from nas.latency import LatencyTable, cache_model, space_kernels
from nas.latency.comparison import Comparison, Ratios
from nas.latency.kernel import Kernel
from nas.latency.kinds import by_kind
from nas.latency.merge import Merged
from nas.latency.peak import Peak
from nas.latency.record import MEASURED, Record
from nas.latency.timing import Timing
from nas.space import SearchSpace

_COVERAGE = ("ok", "unstable", "failed", "missing")


def table(
    found: LatencyTable,
    spaces: Sequence[SearchSpace] = (),
    peak: Peak | None = None,
    batch: int = 1,
) -> dict[str, Any]:
    """What `nas table show` shows.

    Args:
        found: the table.
        spaces: whose kernels to look for in it.
        peak: of the device; None where it was not measured.
        batch: images at once for which the spaces' kernels are looked for.
    """
    records = [record for record in found.records() if record.record == "kernel"]
    usable = [record for record in records if record.latency_us is not None]
    total_us = sum(record.latency_us or 0.0 for record in usable)
    kinds = {kind: _kind(own, total_us) for kind, own in by_kind(usable, _kernel).items()}
    return {
        "table": str(found.path),
        "device": found.device.to_json(),
        "kernels": len(records),
        "status": dict(Counter(record.status for record in records)),
        "basis": dict(Counter(record.basis for record in usable)),
        "dispatch_us": found.dispatch_us,
        "unstable_dispatch": found.unstable_dispatch,
        "calibrations": [
            {"batch": 1, **record.calibration}
            for record in found.records()
            if record.calibration is not None
        ],
        "noise": _noise(usable),
        "peak": peak and asdict(peak),
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1]["share_of_time"])),
        "coverage": [coverage(found, space, batch) for space in spaces],
        "failed": {r.name: r.error for r in records if r.status == "failed"},
    }


def coverage(found: LatencyTable, space: SearchSpace, batch: int = 1) -> dict[str, Any]:
    """How many of a space's kernels a table has for a batch size, by status."""
    kernels = space_kernels(space, found.runtime, batch)
    records = [found.record(kernel) for kernel in kernels]
    counts = Counter("missing" if record is None else record.status for record in records)
    return {
        "space": space.name,
        "image_size": space.image_size,
        "batch": batch,
        "kernels": len(kernels),
        **{status: counts[status] for status in _COVERAGE},
    }


def _kernel(record: Record) -> Kernel:
    return Kernel.parse(record.name)


def _kind(records: Sequence[Record], total_us: float) -> dict[str, Any]:
    """Kernels of one kind: how long they take, and how many operations they do in that time."""
    latencies = [record.latency_us or 0.0 for record in records]
    macs = [_kernel(record).macs for record in records]
    # Two operations a multiply-accumulate; 1e9 of them in a second are 1e3 in a microsecond.
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


def _noise(records: Sequence[Record]) -> dict[str, float] | None:
    """Interquartile range over median of the samples: of half the rows, and of 90% of them."""
    spreads = [Timing(record.samples_us).spread for record in records]
    if not spreads:
        return None
    half, most = np.quantile(spreads, (0.5, 0.9))
    return {"median_spread": float(half), "spread_of_90_percent": float(most)}


def show_table(found: dict[str, Any]) -> None:
    """A table in short."""
    device, peak, noise = found["device"], found["peak"], found["noise"]
    versions = ", ".join(f"{name} {version}" for name, version in device["versions"].items())
    console.say(
        f"{found['table']}\n{device['processor']}, {device['runtime']} ({versions}), "
        f"{device['dtype']}, {device['threads']} thread(s)"
    )
    launch = ", ".join(
        f"{part} {us:.3g} us"
        for part, us in found["dispatch_us"].items()
        if not part.startswith("weights_")
    )
    far = ", ".join(
        f"{mib:.3g} MiB at {pace:.3g} us a MiB"
        for pace, mib in cache_model.half_far(cache_model.curves(found["dispatch_us"]))
    )
    status = ", ".join(f"{count} {name}" for name, count in found["status"].items())
    console.say(f"{found['kernels']} kernels ({status}); dispatch: {launch or 'not measured'}")
    for basis, count in found["basis"].items():
        if basis != MEASURED:
            console.say(f"{count} of the kernels are {basis}")
    if found["unstable_dispatch"]:
        console.say(f"unstable dispatch costs: {', '.join(found['unstable_dispatch'])}")
    for each in found["calibrations"]:
        console.say(_calibration(each))
    if far:
        console.say(f"kernels are half way far from their weights in networks of {far}")
    if noise:
        console.say(
            f"noise: the samples of half the kernels spread by at most "
            f"{noise['median_spread']:.1%}, of 90% of them by at most "
            f"{noise['spread_of_90_percent']:.1%} (quartiles over median)"
        )
    if peak:
        console.say(f"this machine reaches {peak['gflops']:.4g} GFLOP/s in {peak['how']}")
    fastest = ["of that product"] if peak else []
    console.print_table(
        ["kind", "kernels", "share of time", "smallest, us", "median, us", "largest, us",
         "median GFLOP/s", "best", *fastest],
        [_kind_row(kind, row, peak) for kind, row in found["kinds"].items()],
    )  # fmt: skip
    if found["coverage"]:
        columns = ["space", "image_size", "batch", "kernels", *_COVERAGE]
        console.print_table(
            [name.replace("_", " ") for name in columns],
            [[row[name] for name in columns] for row in found["coverage"]],
        )
    for name, error in found["failed"].items():
        console.say(f"failed: {name}: {error}")


def _calibration(fitted: Mapping[str, Any]) -> str:
    """A calibration in a line; a table need not say how well it was fitted."""
    text = (
        f"calibration for a batch of {fitted['batch']}: latency = {fitted['slope']:.4f} x "
        f"predicted + {fitted['offset_us']:.3g} us"
    )
    if fitted.get("mape_before") is not None and fitted.get("mape_after") is not None:
        text += (
            f", fitted on {fitted.get('nets')} networks: mean error {fitted['mape_after']:.2%} "
            f"instead of {fitted['mape_before']:.2%}"
        )
    return text


def _kind_row(kind: str, row: dict[str, Any], peak: dict[str, Any] | None) -> list[Any]:
    best, median = row["best_gflops"], row["median_gflops"]
    shown = [kind, row["kernels"], f"{row['share_of_time']:.1%}"]
    shown += [f"{row[key]:.4g}" for key in ("smallest_us", "median_us", "largest_us")]
    shown += ["" if gflops is None else f"{gflops:.3g}" for gflops in (median, best)]
    if peak:
        shown.append("" if best is None else f"{best / peak['gflops']:.0%}")
    return shown


def merged(found: Merged) -> str:
    """What a merge did, in words."""
    taken = "; ".join(f"{count} rows from {path}" for path, count in found.taken.items())
    dispatch = found.dispatch_from or "none: no table has all of them, `nas table build` adds them"
    text = f"{found.path}: {found.kernels} kernels ({found.failed} failed); {taken}; dispatch "
    text += f"costs from {dispatch}"
    if found.calibrations:
        text += "\nA merged table has no calibration: fit one with `nas table calibrate`."
    return text


def comparison(found: Comparison) -> dict[str, Any]:
    """What `nas table diff` shows."""
    return {
        "devices": list(found.devices),
        "median_ratio": found.median_ratio,
        "common": len(found.common),
        "only_before": found.only_before,
        "only_after": found.only_after,
        "unstable": list(found.unstable),
        "estimated": list(found.estimated),
        "kinds": {kind: asdict(ratios) for kind, ratios in found.kinds.items()},
        "changes": [
            {**asdict(change), "kind": change.kind, "ratio": change.ratio}
            for change in found.changes
        ],
    }


def show_comparison(found: Comparison, most: int) -> None:
    """The largest changes, and those of each kind."""
    for difference in found.devices:
        console.say(f"another device: {difference}")
    rows = [
        (
            change.key,
            f"{change.before_us:.4g}",
            f"{change.after_us:.4g}",
            f"{change.ratio:.3f}",
            ", ".join(change.before_flags),
            ", ".join(change.after_flags),
        )
        for change in found.largest(most)
    ]
    columns = ["changed most", "before, us", "after, us", "ratio", "before is", "after is"]
    console.print_table(columns, rows, left=columns[-2:])
    show_ratios(found.kinds)
    median = "no common kernel" if found.median_ratio is None else f"{found.median_ratio:.3f}"
    console.say(
        f"median ratio {median}; {len(found.common)} rows have a latency in both tables, "
        f"{found.only_before} are only in the first, {found.only_after} only in the second"
    )
    for what, (before, after) in (("unstable", found.unstable), ("estimated", found.estimated)):
        console.say(f"{what}: {before} rows of the first, {after} of the second")


def show_ratios(kinds: Mapping[str, Ratios]) -> None:
    """How the latencies of each kind changed."""
    console.print_table(
        ["kind", "kernels", "median ratio", "quartiles"],
        [
            (kind, own.count, f"{own.median:.3f}", f"{own.low:.3f} to {own.high:.3f}")
            for kind, own in kinds.items()
        ],
    )


def prediction(found: LatencyTable, graph: Graph, batch: int = 1) -> dict[str, Any]:
    """What `nas predict` shows: a batch's latency, and each kernel's share, dearest first."""
    predicted = found.predict(graph, batch)
    records = {kernel: found.record(kernel) for kernel in predicted.kernels}
    return {
        "batch": batch,
        "predicted_us": predicted.latency_us,
        "calibrated_us": predicted.calibrated_us,
        "basis": predicted.basis,
        "launches": predicted.launches,
        "unstable_launches": predicted.unstable,
        "estimated_launches": predicted.estimated,
        "unstable_dispatch": found.unstable_dispatch,
        "macs": graph.macs,
        "params": graph.params,
        "kernels": [
            {
                "kernel": kernel.text,
                "launches": count,
                "latency_us": share,
                "status": record.status,
                "basis": record.basis,
            }
            for kernel, count, share in predicted.by_kernel()
            if (record := records[kernel]) is not None
        ],
    }


def show_prediction(found: dict[str, Any]) -> None:
    """A prediction by kernel, and what it rests on."""
    console.print_table(
        ["kernel", "launches", "us", "status"],
        [
            (row["kernel"], row["launches"], f"{row['latency_us']:.4g}", _status(row))
            for row in found["kernels"]
        ],
        left=["status"],
    )
    batch = found["batch"]
    images = f" for {batch} images" if batch > 1 else ""
    an_image = " an image" if batch > 1 else ""
    console.say(
        f"predicted {format_latency(found['predicted_us'])}{images}: {found['launches']} kernels "
        f"({found['unstable_launches']} unstable, {found['estimated_launches']} estimated) and "
        f"their launches, {format_count(found['macs'])} MACs{an_image}"
    )
    if found["basis"] != MEASURED:
        console.say(f"not all of it is measured; the rest is {found['basis']}")
    if found["unstable_dispatch"]:
        console.say(f"unstable dispatch costs: {', '.join(found['unstable_dispatch'])}")
    if found["calibrated_us"] is not None:
        console.say(f"with the table's calibration: {format_latency(found['calibrated_us'])}")


def _status(row: Mapping[str, Any]) -> str:
    return row["status"] if row["basis"] == MEASURED else f"{row['status']}, {row['basis']}"
