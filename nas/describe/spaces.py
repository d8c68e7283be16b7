"""Search spaces: their tables, how many networks they have, and how large those are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any, get_args

import numpy as np

from nas import console
from nas.describe.building import Estimate
from nas.describe.stages import network_choices, show_stages, stages
from nas.errors import SpaceError
from nas.latency import space_kernels
from nas.latency.runtime import runtime_names
from nas.space import Architecture, SearchSpace
from nas.space.space import GraphCount

DRAWN = 1000
"""Networks that a distribution is of, or all of a smaller space."""

_LABELS = {"macs": "MACs", "params": "parameters", "peak_memory_bytes": "peak memory"}
_BARS = 32

Counts = Mapping[str, Sequence[int]]
"""MACs, parameters and peak memory of networks, each in the same order."""


def overview(space: SearchSpace) -> dict[str, Any]:
    """What `nas spaces` shows of each space: exact, and quick."""
    return {
        "name": space.name,
        **space.settings,
        "strides": dict(zip([s.name for s in space.stages], space.strides, strict=True)),
        "size": space.size,
        "choices": {key: list(options) for key, options in space.parameters.items()},
        "kernels": {name: len(space_kernels(space, name)) for name in runtime_names()},
        **{measure: ends(space, measure) for measure in get_args(GraphCount)},
        "references": references_here(space),
        "digest": space.digest,
    }


def space(found: SearchSpace, counts: Counts, estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """What `nas spaces NAME` shows.

    Args:
        found: the space.
        counts: of networks drawn from it, see `draw`.
        estimates: by runtime, how long its table takes to build.
    """
    drawn = len(counts["macs"])
    return {
        **overview(found),
        "activation": found.activation,
        "norm": found.norm,
        "network": network_choices(found),
        "stages": stages(found),
        "drawn": drawn,
        **{measure: distribution(found, measure, counts) for measure in get_args(GraphCount)},
        "macs_histogram": _histogram(counts["macs"]),
        "table": {name: asdict(estimate) for name, estimate in estimates.items()},
    }


def draw(space: SearchSpace, seed: int = 0) -> Counts:
    """Counts of `DRAWN` different networks, all equally likely; of all in a smaller space."""
    if space.size <= DRAWN:
        architectures: Sequence[Architecture] = list(space.enumerate())
    else:
        rng = np.random.default_rng(seed)
        different: dict[Architecture, None] = {}
        while len(different) < DRAWN:
            different[space.sample(rng)] = None
        architectures = list(different)
    graphs = [architecture.graph for architecture in architectures]
    return {measure: [getattr(g, measure) for g in graphs] for measure in get_args(GraphCount)}


def ends(space: SearchSpace, measure: GraphCount) -> dict[str, int]:
    """The smallest and the largest count of all networks."""
    low, high = (
        getattr(space.extreme(measure, end).graph, measure) for end in ("smallest", "largest")
    )
    return {"smallest": low, "largest": high}


def distribution(space: SearchSpace, measure: GraphCount, counts: Counts) -> dict[str, Any]:
    """Exact ends, and the deciles and the median of what was drawn."""
    exact = ends(space, measure)
    # A decile is a network's own count, never something between two.
    ordered = sorted(counts[measure])
    deciles = [ordered[-(-tenths * len(ordered) // 10) - 1] for tenths in range(1, 10)]
    return {
        "smallest": exact["smallest"],
        "deciles": deciles,
        "median": deciles[4],
        "largest": exact["largest"],
    }


def _histogram(values: Sequence[int]) -> dict[str, Any]:
    # Integers beyond 64 bits are no numbers to NumPy.
    counts, edges = np.histogram([float(value) for value in values], bins=_BARS)
    return {"smallest": edges[0], "largest": edges[-1], "counts": counts.tolist()}


def references_here(space: SearchSpace) -> list[dict[str, Any]]:
    """The published networks at the space's own input size and classes."""
    return [_reference_here(space, reference.name) for reference in space.references]


def _reference_here(space: SearchSpace, name: str) -> dict[str, Any]:
    try:
        graph = space.reference(name).graph
    except SpaceError as error:
        return {"name": name, **dict.fromkeys(get_args(GraphCount)), "error": str(error)}
    return {
        "name": name,
        **{measure: getattr(graph, measure) for measure in get_args(GraphCount)},
        "error": "",
    }


def show_spaces(found: Sequence[dict[str, Any]]) -> None:
    """A line a space."""
    runtimes = list(found[0]["kernels"]) if found else []
    console.table(
        [
            *("space", "px", "choices", "size", "MACs", "parameters"),
            *(f"{name} kernels" for name in runtimes),
            "references",
        ],
        [
            (
                each["name"],
                each["image_size"],
                len(each["choices"]),
                _size(each["size"]),
                _ends(each["macs"]),
                _ends(each["params"]),
                *each["kernels"].values(),
                len(each["references"]),
            )
            for each in found
        ],
    )
    console.say("One in full: nas spaces NAME. The published networks: nas spaces --references.")


def show_space(found: dict[str, Any]) -> None:
    """One space in full."""
    console.say(
        f"{found['name']} at {found['image_size']} px, {found['channels']} channels, "
        f"{found['classes']} classes: {_size(found['size'])} different networks, "
        f"activation {found['activation']}, {'with' if found['norm'] else 'without'} norms"
    )
    show_stages(found["stages"], found["network"])
    columns = ["", "smallest", "10%", "median", "90%", "largest"]
    console.table(columns, [_spread(found, key) for key in _LABELS])
    drawn = found["drawn"]
    whose = f"all {drawn}" if drawn == found["size"] else f"{drawn} drawn uniformly"
    console.say(f"10%, median and 90% of {whose}; the smallest and the largest of all")
    histogram = found["macs_histogram"]
    low, high = console.si(histogram["smallest"]), console.si(histogram["largest"])
    console.say(f"MACs of {whose}: {low} |{console.bars_of(histogram['counts'])}| {high}")
    if found["references"]:
        console.table(
            ["published network, at this size", *_LABELS.values()],
            [(each["name"], *_counts(each)) for each in found["references"]],
        )
    for runtime, estimate in found["table"].items():
        console.say(f"latency table, {runtime}: {_estimated(estimate)}")


def _spread(found: dict[str, Any], measure: str) -> tuple[str, ...]:
    row = found[measure]
    values = (row["smallest"], row["deciles"][0], row["median"], row["deciles"][8], row["largest"])
    return (_LABELS[measure], *(_count(measure, value) for value in values))


def _counts(reference: dict[str, Any]) -> list[str]:
    if reference["error"]:
        return [reference["error"], *[""] * (len(_LABELS) - 1)]
    return [_count(measure, reference[measure]) for measure in _LABELS]


def _count(measure: str, value: float) -> str:
    return console.size(value) if measure.endswith("_bytes") else console.si(value)


def _estimated(estimate: dict[str, Any]) -> str:
    kernels = f"{estimate['kernels']} kernels"
    if estimate["estimated_seconds"] is None:
        return f"{kernels}; no estimate of the time to build it: {estimate['reason']}"
    return (
        f"{kernels}; an estimate: about {console.duration(estimate['estimated_seconds'])} to build "
        f"on this machine, from {estimate['timed_kernels']} kernels timed now"
    )


def _ends(found: dict[str, int]) -> str:
    return f"{console.si(found['smallest'])} to {console.si(found['largest'])}"


def _size(count: int) -> str:
    """Exact while it can be read, then in powers of ten; a float could not hold all sizes."""
    return f"{count:,}" if count < 10**6 else f"{Decimal(count):.2e}".replace("e+", "e")
