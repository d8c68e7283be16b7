"""A space as a whole: its stages at this image size, and the counts of its networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from nas.errors import SpaceError
from nas.figures import COUNTS
from nas.graph import Graph
from nas.space.architecture import Architecture, Value
from nas.space.space import SearchSpace

MAX_SAMPLES = 1000
"""Networks that a distribution is estimated from; a smaller space is enumerated instead."""

Options = Sequence[Value] | dict[str, Any]
"""Options of a choice as plain data, see `nas.space.choice.Choice.to_json`."""


@dataclass(frozen=True)
class CountRange:
    """The smallest and the largest count of all networks of a space."""

    smallest: int
    largest: int


@dataclass(frozen=True)
class Distribution(CountRange):
    """The range of a count over a space, with the deciles and the median of a sample."""

    deciles: list[int]
    median: int


@dataclass(frozen=True)
class ReferenceCounts:
    """The counts of a published network at the space's own input size and classes.

    Attributes:
        name: name of the network.
        macs, params, peak_memory_bytes: its counts; None if it is no network at this size.
        error: why it is none; empty if it is one.
    """

    name: str
    macs: int | None = None
    params: int | None = None
    peak_memory_bytes: int | None = None
    error: str = ""


@dataclass(frozen=True)
class StageSummary:
    """A row of a space's table.

    Attributes:
        name: name of the stage.
        block: name of the block.
        entry: name of the first block; None if it is `block`.
        width, depth: their options; no widths if the block has none.
        table_stride: stride in the table: a number, or one for each option of a network-wide
            choice.
        stride: the stride at this image size, likewise.
        per_stage, per_block: options of the further choices by argument, those made once for the
            stage and those made for every block.
        output_sizes: heights and widths that can leave the stage, the largest first.
    """

    name: str
    block: str
    entry: str | None
    width: Options
    depth: list[int]
    table_stride: int | dict[Any, int]
    stride: int | dict[Any, int]
    per_stage: dict[str, Options]
    per_block: dict[str, Options]
    output_sizes: list[tuple[int, int]]


def sample_graphs(space: SearchSpace) -> list[Graph]:
    """Return `MAX_SAMPLES` different random networks; all networks of a smaller space."""
    if space.size <= MAX_SAMPLES:
        return [architecture.graph for architecture in space.enumerate()]
    rng = np.random.default_rng(0)
    distinct: dict[Architecture, None] = {}
    while len(distinct) < MAX_SAMPLES:
        distinct[space.sample(rng)] = None
    return [architecture.graph for architecture in distinct]


def count_range(space: SearchSpace, count: str) -> CountRange:
    """Return the exact range of a count over all networks of a space."""
    return CountRange(
        getattr(space.extreme(count, "smallest"), count),
        getattr(space.extreme(count, "largest"), count),
    )


def distribution(space: SearchSpace, count: str, sample: Sequence[Graph]) -> Distribution:
    """Return the exact range of a count, with the deciles and the median of a sample."""
    ordered = sorted(getattr(graph, count) for graph in sample)
    # A decile is the count of a network, never something between two networks.
    deciles = [ordered[-(-tenths * len(ordered) // 10) - 1] for tenths in range(1, 10)]
    exact = count_range(space, count)
    return Distribution(exact.smallest, exact.largest, deciles, median=deciles[4])


def count_reference(space: SearchSpace, name: str) -> ReferenceCounts:
    """Return the counts of a published network as a network of a space, at its input size."""
    try:
        graph = space.reference(name).graph
    except SpaceError as error:
        return ReferenceCounts(name, error=str(error))
    return ReferenceCounts(name, *(getattr(graph, count) for count in COUNTS))


def summarise_stages(space: SearchSpace) -> list[StageSummary]:
    """Return the rows of a space's table."""
    rows, shapes = [], space.automaton.output_shapes()
    for index, compiled in enumerate(space.compiled_stages):
        stage = compiled.stage
        per_stage = {choice.argument: choice.to_json() for choice in compiled.stage_choices}
        per_block = compiled.block_options()
        rows.append(
            StageSummary(
                name=stage.name,
                block=_block_name(stage.block),
                entry=None if stage.entry is None else _block_name(stage.entry),
                width=per_stage.pop("width", []),
                depth=list(compiled.depths),
                table_stride=stage.stride if isinstance(stage.stride, int) else dict(stage.stride),
                stride=_adapted_stride(space, index),
                per_stage=per_stage,
                per_block=per_block,
                output_sizes=sorted({(h, w) for _, h, w in shapes[index]}, reverse=True),
            )
        )
    return rows


def _all_network_options(space: SearchSpace) -> Iterator[dict[str, Value]]:
    names = [choice.name for choice in space.network_choices]
    for options in product(*[choice.options for choice in space.network_choices]):
        yield dict(zip(names, options, strict=True))


def _adapted_stride(space: SearchSpace, stage: int) -> int | dict[Any, int]:
    """Return a stage's stride, or a mapping from the options of the choice that decides it."""
    strides = [
        (options, space.strides_for(tuple(options.values()))[stage])
        for options in _all_network_options(space)
    ]
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
