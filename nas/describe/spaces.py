"""Search spaces: how many networks they have, how large these are, and their tables of stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from itertools import product
from typing import Any, get_args

import numpy as np

from nas import console
from nas.errors import SpaceError
from nas.formatting import format_bytes, format_count, format_duration
from nas.latency import space_kernels
from nas.latency.build_estimate import BuildEstimate
from nas.latency.installed_runtimes import runtime_names
from nas.space import Architecture, SearchSpace
from nas.space.choice import Choice, Options
from nas.space.space import GraphCount

MAX_SAMPLES = 1000
"""Networks that a distribution is estimated from; a smaller space is enumerated instead."""

COUNT_LABELS = {"macs": "MACs", "params": "parameters", "peak_memory_bytes": "peak memory"}
"""The counts of a network with the words that people read."""

HISTOGRAM_BINS = 32
"""Bars of the histogram that is printed as one line."""

Counts = Mapping[str, Sequence[int]]
"""MACs, parameters and peak memory of some networks, by the count's name."""

PlainOptions = list[Any] | dict[str, Any]
"""The options of a choice as plain data; see `nas.space.choice.Choice.to_json`."""


# Spaces as data


def describe_briefly(space: SearchSpace) -> dict[str, Any]:
    """Return what `nas spaces` shows of each space: exact numbers that are quick to compute."""
    return {
        "name": space.name,
        **space.settings,
        "strides": dict(zip([s.name for s in space.stages], space.strides, strict=True)),
        "size": space.size,
        "choices": {key: list(options) for key, options in space.parameters.items()},
        "kernels": {name: len(space_kernels(space, name)) for name in runtime_names()},
        **{count: count_range(space, count) for count in get_args(GraphCount)},
        "references": [_describe_reference(space, each.name) for each in space.references],
        "digest": space.digest,
    }


def describe_space(
    space: SearchSpace, counts: Counts, estimates: Mapping[str, BuildEstimate]
) -> dict[str, Any]:
    """Return what `nas spaces NAME` shows.

    Args:
        space: to describe.
        counts: of networks of the space, from `sample_counts`.
        estimates: by runtime, how long its latency table takes to build.
    """
    return {
        **describe_briefly(space),
        "activation": space.activation,
        "norm": space.norm,
        "network_choices": {each.name: each.to_json() for each in space.network_choices},
        "stages": describe_stages(space),
        "sampled": len(counts["macs"]),
        **{count: distribution(space, count, counts) for count in get_args(GraphCount)},
        "macs_histogram": _histogram(counts["macs"]),
        "table": {name: asdict(estimate) for name, estimate in estimates.items()},
    }


def sample_counts(space: SearchSpace, seed: int = 0) -> Counts:
    """Return the counts of `MAX_SAMPLES` different random networks; of all in a smaller space."""
    if space.size <= MAX_SAMPLES:
        architectures: Sequence[Architecture] = list(space.enumerate())
    else:
        rng = np.random.default_rng(seed)
        distinct: dict[Architecture, None] = {}
        while len(distinct) < MAX_SAMPLES:
            distinct[space.sample(rng)] = None
        architectures = list(distinct)
    graphs = [architecture.graph for architecture in architectures]
    return {count: [getattr(graph, count) for graph in graphs] for count in get_args(GraphCount)}


def count_range(space: SearchSpace, count: GraphCount) -> dict[str, int]:
    """Return the smallest and the largest count of all networks of a space."""
    smallest, largest = (
        getattr(space.extreme(count, "smallest"), count),
        getattr(space.extreme(count, "largest"), count),
    )
    return {"smallest": smallest, "largest": largest}


def distribution(space: SearchSpace, count: GraphCount, counts: Counts) -> dict[str, Any]:
    """Return the exact range of a count, with the deciles and the median of the sample."""
    exact = count_range(space, count)
    # A decile is the count of a network, never something between two networks.
    ordered = sorted(counts[count])
    deciles = [ordered[-(-tenths * len(ordered) // 10) - 1] for tenths in range(1, 10)]
    return {
        "smallest": exact["smallest"],
        "deciles": deciles,
        "median": deciles[4],
        "largest": exact["largest"],
    }


def _histogram(values: Sequence[int]) -> dict[str, Any]:
    # NumPy has no integers of more than 64 bits, which the counts of a network can have.
    counts, edges = np.histogram([float(value) for value in values], bins=HISTOGRAM_BINS)
    return {"smallest": edges[0], "largest": edges[-1], "counts": counts.tolist()}


def _describe_reference(space: SearchSpace, name: str) -> dict[str, Any]:
    """Return the counts of a published network at the space's own input size and classes."""
    try:
        graph = space.reference(name).graph
    except SpaceError as error:
        return {"name": name, **dict.fromkeys(get_args(GraphCount)), "error": str(error)}
    return {
        "name": name,
        **{count: getattr(graph, count) for count in get_args(GraphCount)},
        "error": "",
    }


def describe_stages(space: SearchSpace) -> list[dict[str, Any]]:
    """Return the rows of a space's table.

    `table_stride` is the stride in the table and `stride` the one at this image size: a number, or
    a mapping from the options of a network-wide choice. `output_sizes` are the heights and widths
    that can leave the stage.
    """
    strides = [
        (options, space.strides_for(tuple(options.values())))
        for options in _all_network_options(space)
    ]
    outputs = _output_sizes(space)
    return [
        {
            "name": stage.name,
            "block": _block_name(stage.block),
            "entry": None if stage.entry is None else _block_name(stage.entry),
            "width": _plain_options(stage.width) if stage.width != () else [],
            "depth": _plain_options(stage.depth),
            "table_stride": stage.stride if isinstance(stage.stride, int) else dict(stage.stride),
            "stride": _adapted_stride(space, [(chosen, all_[index]) for chosen, all_ in strides]),
            "per_stage": {key: _plain_options(each) for key, each in stage.per_stage.items()},
            "per_block": {key: _plain_options(each) for key, each in stage.per_block.items()},
            "output_sizes": outputs[stage.name],
        }
        for index, stage in enumerate(space.stages)
    ]


def _output_sizes(space: SearchSpace) -> dict[str, list[list[int]]]:
    """Return the heights and widths that can leave each stage, the largest first.

    The sizes depend on choices such as the kernel of an unpadded convolution. They are found by
    changing each choice of the largest network in turn, for all network-wide options.
    """
    first = {name: options[0] for name, options in space.parameters.items()}
    largest = {**first, **dict(space.largest.choices)}
    sizes_of: dict[str, set[tuple[int, int]]] = {stage.name: set() for stage in space.stages}
    for network_options in _all_network_options(space):
        base = {**largest, **network_options}
        changed = [
            {**base, name: option}
            for name, options in space.parameters.items()
            for option in options
            if name not in network_options
        ]
        for choices in (base, *changed):
            graph = space.architecture(choices).graph
            outputs = {name.split(".")[0]: block.shape for block, name in graph.blocks}
            _, *size = graph.input_shape
            for name, sizes in sizes_of.items():
                # A stage whose blocks are all left out passes its input on.
                if name in outputs:
                    _, *size = outputs[name]
                sizes.add((size[0], size[1]))
    return {
        name: [list(size) for size in sorted(sizes, reverse=True)]
        for name, sizes in sizes_of.items()
    }


def _all_network_options(space: SearchSpace) -> Iterator[dict[str, Any]]:
    names = [choice.name for choice in space.network_choices]
    for options in product(*[choice.options for choice in space.network_choices]):
        yield dict(zip(names, options, strict=True))


def _adapted_stride(space: SearchSpace, strides: list[tuple[dict[str, Any], int]]) -> Any:
    """Return a stage's stride, or a mapping from the options of the choice that decides it."""
    if len({stride for _, stride in strides}) == 1:
        return strides[0][1]
    for choice in space.network_choices:
        by_option = {options[choice.name]: stride for options, stride in strides}
        if all(by_option[options[choice.name]] == stride for options, stride in strides):
            return by_option
    return {
        ", ".join(f"{k} {v}" for k, v in options.items()): stride for options, stride in strides
    }


def _block_name(block: Any) -> str:
    return block if isinstance(block, str) else block.__name__


def _plain_options(options: Options) -> PlainOptions:
    return Choice("", "", "", options).to_json()


# Spaces as people read them


def show_spaces(descriptions: Sequence[dict[str, Any]]) -> None:
    """Print a line for each space."""
    runtimes = list(descriptions[0]["kernels"]) if descriptions else []
    console.print_table(
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
                _size_text(each["size"]),
                _range_text(each["macs"]),
                _range_text(each["params"]),
                *each["kernels"].values(),
                len(each["references"]),
            )
            for each in descriptions
        ],
    )
    console.say("One in full: nas spaces NAME. The published networks: nas spaces --references.")


def show_space(description: dict[str, Any]) -> None:
    """Print one space in full."""
    console.say(
        f"{description['name']} at {description['image_size']} px, "
        f"{description['channels']} channels, {description['classes']} classes: "
        f"{_size_text(description['size'])} different networks, "
        f"activation {description['activation']}, "
        f"{'with' if description['norm'] else 'without'} norms"
    )
    _show_stages(description["stages"], description["network_choices"])
    columns = ["", "smallest", "10%", "median", "90%", "largest"]
    console.print_table(columns, [_distribution_row(description, count) for count in COUNT_LABELS])
    sample = sample_text(description)
    console.say(f"10%, median and 90% of {sample}; the smallest and the largest of all")
    histogram = description["macs_histogram"]
    low, high = format_count(histogram["smallest"]), format_count(histogram["largest"])
    console.say(f"MACs of {sample}: {low} |{console.format_histogram(histogram['counts'])}| {high}")
    if description["references"]:
        console.print_table(
            ["published network, at this size", *COUNT_LABELS.values()],
            [(each["name"], *_reference_cells(each)) for each in description["references"]],
        )
    for runtime, estimate in description["table"].items():
        console.say(f"latency table, {runtime}: {_estimate_text(estimate)}")


def sample_text(description: dict[str, Any]) -> str:
    """Return in words which networks of a space the sample has."""
    sampled = description["sampled"]
    if sampled == description["size"]:
        return f"all {sampled} networks"
    return f"{sampled} networks drawn uniformly"


def _distribution_row(description: dict[str, Any], count: str) -> tuple[str, ...]:
    row = description[count]
    values = (row["smallest"], row["deciles"][0], row["median"], row["deciles"][8], row["largest"])
    return (COUNT_LABELS[count], *(_count_text(count, value) for value in values))


def _reference_cells(reference: dict[str, Any]) -> list[str]:
    if reference["error"]:
        return [reference["error"], *[""] * (len(COUNT_LABELS) - 1)]
    return [_count_text(count, reference[count]) for count in COUNT_LABELS]


def _count_text(count: str, value: float) -> str:
    return format_bytes(value) if count.endswith("_bytes") else format_count(value)


def _range_text(ends: dict[str, int]) -> str:
    return f"{format_count(ends['smallest'])} to {format_count(ends['largest'])}"


def _size_text(size: int) -> str:
    """Return a size exactly up to a million, then in powers of ten; a float could overflow."""
    return f"{size:,}" if size < 10**6 else f"{Decimal(size):.2e}".replace("e+", "e")


def _estimate_text(estimate: dict[str, Any]) -> str:
    kernels = f"{estimate['kernels']} kernels"
    if estimate["estimated_seconds"] is None:
        return f"{kernels}; no estimate of the time to build it: {estimate['reason']}"
    return (
        f"{kernels}; an estimate: about {format_duration(estimate['estimated_seconds'])} to build "
        f"on this machine, from {estimate['timed_kernels']} kernels timed now"
    )


def _show_stages(rows: list[dict[str, Any]], network_choices: Mapping[str, PlainOptions]) -> None:
    """Print the table, then what the names of bundles pass to the blocks."""
    console.print_table(
        ["stage", "block", "width", "depth", "stride", "further choices", "output"],
        [
            (
                row["name"],
                row["block"] if row["entry"] is None else f"{row['entry']}, {row['block']} ...",
                _list_text(row["width"]),
                _list_text(row["depth"]),
                _stride_text(row),
                "; ".join(_further_choices(row)),
                " or ".join("x".join(map(str, size)) for size in row["output_sizes"]),
            )
            for row in rows
        ],
        left=("block", "further choices"),
    )
    for name, options in network_choices.items():
        console.say(f"whole network: {name} {_list_text(options)}")
    for line in dict.fromkeys(_bundle_lines(rows, network_choices)):
        console.say(line)


def _list_text(options: PlainOptions) -> str:
    return ", ".join(map(str, options))


def _stride_text(row: dict[str, Any]) -> str:
    def text(stride: int | dict[Any, int]) -> str:
        if isinstance(stride, int):
            return str(stride)
        return ", ".join(f"{value} ({option})" for option, value in stride.items())

    in_table, adapted = text(row["table_stride"]), text(row["stride"])
    return in_table if in_table == adapted else f"{in_table}, here {adapted}"


def _further_choices(row: dict[str, Any]) -> Iterator[str]:
    """Iterate over the choices beside width and depth, fixed values of all blocks among them."""
    fixed = {key: options for key, options in row["per_block"].items() if len(options) == 1}
    for key, options in {**row["per_stage"], **fixed}.items():
        yield f"{key} {_list_text(options)}"
    each = [f"{k} {_list_text(o)}" for k, o in row["per_block"].items() if k not in fixed]
    if each:
        yield f"each block: {'; '.join(each)}"


def _bundle_lines(
    rows: list[dict[str, Any]], network_choices: Mapping[str, PlainOptions]
) -> Iterator[str]:
    tables = [network_choices, *(row[key] for row in rows for key in ("per_stage", "per_block"))]
    for choices in tables:
        for key, options in choices.items():
            if isinstance(options, dict):
                for name, bundle in options.items():
                    text = ", ".join(f"{k} {v}" for k, v in (bundle or {}).items())
                    yield f"{key} {name}: {text or 'the block is left out'}"
