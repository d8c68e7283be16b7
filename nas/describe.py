"""Spaces, tables and predictions as plain data, and as what the command line prints of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nas import console
from nas.errors import RequestError
from nas.graph import Graph
from nas.latency import LatencyTable, space_kernels
from nas.latency.comparison import Comparison
from nas.report import candidates, page
from nas.space import SearchSpace, load

_SAMPLES = 200


def space(found: SearchSpace, runtime: str) -> dict[str, Any]:
    """What `nas spaces NAME` shows; medians are of random architectures."""
    rng = np.random.default_rng(0)
    ends = [found.lower(found.smallest), found.lower(found.largest)]
    drawn = [found.lower(found.sample(rng)) for _ in range(_SAMPLES)]

    def range_of(name: str) -> dict[str, int]:
        values = sorted(getattr(graph, name) for graph in drawn)
        low, high = (getattr(graph, name) for graph in ends)
        return {"smallest": low, "median": values[len(values) // 2], "largest": high}

    return {
        "name": found.name,
        **found.settings,
        "strides": dict(zip([s.name for s in found.stages], found.strides, strict=True)),
        "size": found.size,
        "choices": {key: list(options) for key, options in found.parameters.items()},
        "kernels": {runtime: len(space_kernels(found, runtime))},
        "macs": range_of("macs"),
        "params": range_of("params"),
        "peak_memory_bytes": range_of("peak_memory_bytes"),
        "digest": found.digest,
    }


def show_spaces(found: list[dict[str, Any]]) -> None:
    """A line a space."""
    console.table(
        ["space", "px", "choices", "size", "kernels", "MACs", "parameters"],
        [
            (
                each["name"],
                each["image_size"],
                len(each["choices"]),
                f"{each['size']:.3g}",
                *each["kernels"].values(),
                _ends(each["macs"]),
                _ends(each["params"]),
            )
            for each in found
        ],
    )


def show_space(found: dict[str, Any]) -> None:
    """One space in full."""
    kernels = ", ".join(f"{count} ({name})" for name, count in found["kernels"].items())
    console.say(
        f"{found['name']} at {found['image_size']} px, {found['channels']} channels, "
        f"{found['classes']} classes: {found['size']:.4g} architectures, {kernels} kernels"
    )
    console.table(
        ["", "smallest", "median", "largest"],
        [
            (label, *(console.si(found[key][end]) for end in ("smallest", "median", "largest")))
            for label, key in (
                ("MACs", "macs"),
                ("parameters", "params"),
                ("peak memory, bytes", "peak_memory_bytes"),
            )
        ],
    )
    console.table(
        ["choice", "options"],
        [(key, ", ".join(map(str, options))) for key, options in found["choices"].items()],
    )


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


def graph_of(arch: str, adapted: Callable[[str], SearchSpace]) -> Graph:
    """The graph of `RUN:ID`, or of an architecture's JSON file in its space as `adapted` gives it.

    Raises RequestError for what is neither, or an ID that is unknown or ambiguous.
    """
    path = Path(arch)
    if path.is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            chosen = adapted(record["space"])
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} is not an architecture: {error}.") from error
        return chosen.lower(chosen.from_json(record))
    folder, colon, prefix = arch.rpartition(":")
    if not colon or not Path(folder).is_dir():
        raise RequestError(
            f"There is no architecture {arch!r}.", remedy="Give a JSON file, or RUN:ID."
        )
    return _graph_in_run(Path(folder), prefix)


def _graph_in_run(folder: Path, prefix: str) -> Graph:
    rows = candidates.read(folder / "trials.csv")
    rows = rows[rows["digest"].str.startswith(prefix)]
    if not prefix or len(rows) != 1:
        raise RequestError(
            f"{len(rows)} architectures of {folder} have an id that starts with {prefix!r}.",
            remedy="Give the start of one digest in trials.csv.",
        )
    record = json.loads(rows.iloc[0]["architecture"])
    settings = page.read_run(folder)["settings"]
    for kept in sorted((folder / "spaces").glob("*.py")):
        chosen = load(kept)
        if chosen.name == record["space"]:
            return chosen.on(**settings).lower(chosen.on(**settings).from_json(record))
    raise RequestError(f"{folder} does not hold the space {record['space']}.")


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


def _ends(found: dict[str, int]) -> str:
    return f"{console.si(found['smallest'])} to {console.si(found['largest'])}"
