"""Latency tables and what they predict, as plain data, and as what the command line prints."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from nas import console
from nas.graph import Graph
from nas.latency import LatencyTable
from nas.latency.comparison import Comparison


def table(found: LatencyTable) -> dict[str, Any]:
    """What `nas table show` shows."""
    records = [record for record in found.records() if record.record == "kernel"]
    usable = [r for r in records if r.latency_us is not None and r.status != "failed"]
    kinds: dict[str, list[float]] = {}
    for record in usable:
        kinds.setdefault(record.name.split()[0], []).append(record.latency_us or 0.0)
    return {
        "table": str(found.path),
        "device": found.device.to_json(),
        "kernels": len(records),
        "status": dict(Counter(record.status for record in records)),
        "dispatch_us": found.dispatch_us,
        "kinds": {
            kind: {
                "kernels": len(values),
                "smallest_us": min(values),
                "median_us": float(np.median(values)),
                "largest_us": max(values),
            }
            for kind, values in sorted(kinds.items())
        },
        "failed": {r.name: r.error for r in records if r.status == "failed"},
    }


def show_table(found: dict[str, Any]) -> None:
    """A table in short."""
    device = found["device"]
    console.say(
        f"{found['table']}\n{device['processor']}, {device['runtime']}, {device['dtype']}, "
        f"{device['threads']} thread(s)"
    )
    launch = ", ".join(f"{part} {us:.3g} us" for part, us in found["dispatch_us"].items())
    status = ", ".join(f"{count} {name}" for name, count in found["status"].items())
    console.say(f"{found['kernels']} kernels ({status}); dispatch: {launch}")
    console.table(
        ["kind", "kernels", "smallest, us", "median, us", "largest, us"],
        [
            (kind, row["kernels"], *(f"{row[key]:.4g}" for key in list(row)[1:]))
            for kind, row in found["kinds"].items()
        ],
    )
    for name, error in found["failed"].items():
        console.say(f"failed: {name}: {error}")


def comparison(found: Comparison) -> dict[str, Any]:
    """What `nas table diff` shows."""
    return {
        "devices": list(found.devices),
        "median_ratio": found.median_ratio,
        "changes": [{**asdict(change), "ratio": change.ratio} for change in found.changes],
    }


def show_comparison(found: Comparison, most: int) -> None:
    """The largest changes."""
    for difference in found.devices:
        console.say(f"another device: {difference}")
    rows = [
        (change.key, f"{change.before_us:.4g}", f"{change.after_us:.4g}", f"{change.ratio:.3f}")
        for change in found.largest(most)
    ]
    console.table(["changed most", "before, us", "after, us", "ratio"], rows)
    one_sided = [change for change in found.changes if change.ratio is None]
    median = "no common kernel" if found.median_ratio is None else f"{found.median_ratio:.3f}"
    console.say(
        f"median ratio {median}; {len(one_sided)} of {len(found.changes)} rows have a latency in "
        "one table only"
    )


def prediction(found: LatencyTable, graph: Graph) -> dict[str, Any]:
    """What `nas predict` shows: the latency, and each kernel's share, dearest first."""
    predicted = found.predict(graph)
    return {
        "predicted_us": predicted.latency_us,
        "launches": predicted.launches,
        "macs": graph.macs,
        "params": graph.params,
        "kernels": [
            {"kernel": kernel.text, "launches": count, "latency_us": share}
            for kernel, count, share in predicted.by_kernel()
        ],
    }


def show_prediction(found: dict[str, Any]) -> None:
    """A prediction by kernel."""
    console.table(
        ["kernel", "launches", "us"],
        [(row["kernel"], row["launches"], f"{row['latency_us']:.4g}") for row in found["kernels"]],
    )
    console.say(
        f"predicted {found['predicted_us'] / 1000:.4g} ms: {found['launches']} kernels and their "
        f"launches, {console.si(found['macs'])} MACs"
    )
