"""`nas spaces --arch`, `--references` and `--sample`: networks of a space."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from nas.cli.architecture import ResolvedArchitecture, resolve_architecture
from nas.cli.options import Sizes, print_json
from nas.display import console
from nas.display.formatting import format_bytes, format_count
from nas.errors import NasError
from nas.graph import Shape
from nas.space import (
    Limit,
    Reference,
    SearchSpace,
    load_definition,
    sample_within,
    space_names,
)
from nas.space.layers import Layer, LayerTable, layer_table
from nas.space.published import ReferenceComparison, compare_references


def show_network(arch: str, sizes: Sizes, space: str | None, as_json: bool) -> None:
    """Print one network layer by layer."""
    resolved = resolve_architecture(arch, sizes, space)
    table = layer_table(resolved.architecture.graph)
    if as_json:
        print_json(network_document(resolved, table))
    else:
        print_network(resolved, table)


def network_document(resolved: ResolvedArchitecture, table: LayerTable) -> dict[str, Any]:
    """Return what `nas spaces --arch --json` prints."""
    architecture, published = resolved
    space, graph = architecture.space, architecture.graph
    figures = ("name", "macs", "params", "image_size", "source")
    return {
        "space": space.name,
        "architecture": architecture.to_json(),
        "settings": space.settings,
        "norm": space.norm,
        "macs": graph.macs,
        "params": graph.params,
        "peak_memory_bytes": graph.peak_memory_bytes,
        "peak_layer": table.peak.index,
        "digest": graph.digest,
        "published": published and {name: getattr(published, name) for name in figures},
        "layers": table.layers,
    }


def print_network(resolved: ResolvedArchitecture, table: LayerTable) -> None:
    """Print the layers with sums by stage, then the totals beside the published figures."""
    architecture, published = resolved
    space, graph = architecture.space, architecture.graph
    console.say(
        f"{f'{published.name} ({space.name})' if published else space.name} at "
        f"{space.image_size} px, {space.channels} channels, {space.classes} classes"
        f"{'' if space.norm else ', without norms'}"
    )
    console.print_table(
        ["#", "layer", "operation", "output", "MACs", "parameters", "activations"],
        _table_rows(table.layers),
        left=("layer", "operation"),
    )
    console.say(f"{graph.macs:,} MACs{_published_figure(published, 'macs')}")
    console.say(f"{graph.params:,} parameters{_published_figure(published, 'params')}")
    console.say(
        f"peak memory {format_bytes(graph.peak_memory_bytes)} of float32 activations, at layer "
        f"{table.peak.index} ({table.peak.name})"
    )
    console.say(f"digest {graph.digest}")
    if published is not None:
        console.say(f"source: {published.source}")


def _table_rows(layers: Sequence[Layer]) -> Iterator[Sequence[Any] | None]:
    for stage, grouped in groupby(layers, key=lambda layer: layer.stage):
        own = list(grouped)
        if stage:
            yield None
        if len(own) > 1:
            macs, params = sum(layer.macs for layer in own), sum(layer.params for layer in own)
            output = _shape_text(own[-1].output)
            yield ("", stage, "", output, format_count(macs), f"{params:,}", "")
        for layer in own:
            name = layer.name.removeprefix(f"{stage}.")
            yield (
                layer.index,
                f"  {name}" if stage and name != stage else name,
                ", ".join([layer.operation, *layer.fused]),
                _shape_text(layer.output),
                format_count(layer.macs) if layer.macs else "",
                f"{layer.params:,}" if layer.params else "",
                format_bytes(layer.activation_bytes),
            )


def _shape_text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _published_figure(published: Reference | None, name: str) -> str:
    """Return a published figure, to be printed behind a count."""
    if published is None or getattr(published, name) is None:
        return ""
    figure = getattr(published, name)
    text = f"{figure:,}" if isinstance(figure, int) else format_count(figure)
    return f" (published: {text}, at {published.image_size} px and 1000 classes)"


def compare_published(space: str | None, as_json: bool) -> None:
    """Print the published networks of one space, or of all that ship, beside their figures.

    Raises NasError, naming them, if any differ from what was published.
    """
    names = [space] if space else space_names()
    rows = compare_references([load_definition(name) for name in names])
    if as_json:
        print_json(rows)
    else:
        print_comparisons(rows)
    wrong = [row.name for row in rows if not row.agrees]
    if wrong:
        raise NasError(
            f"{len(wrong)} of {len(rows)} reference networks disagree: {', '.join(wrong)}."
        )


def print_comparisons(rows: Sequence[ReferenceComparison]) -> None:
    """Print a line for each published network, marked where it differs from its figures."""
    console.print_records(
        rows,
        {
            "network": lambda row: row.name,
            "space": lambda row: row.space,
            "px": lambda row: row.image_size,
            "parameters": lambda row: _optional(row.params, "{:,}".format),
            "published": lambda row: _optional(row.published_params, "{:,}".format),
            "MACs": lambda row: _optional(row.macs, format_count),
            "published MACs": lambda row: _optional(row.published_macs, format_count),
            "off": _deviation,
            "": lambda row: "agrees" if row.agrees else "DISAGREES",
        },
        left=("space",),
    )
    for row in rows:
        if row.error:
            console.say(f"{row.name}: {row.error}")


def _optional(count: int | None, form: Callable[[int], str]) -> str:
    return "-" if count is None else form(count)


def _deviation(row: ReferenceComparison) -> str:
    """Return how far the MACs are from the published ones, and the tolerance."""
    if row.macs is None or row.published_macs is None:
        return "-"
    return f"{row.macs / row.published_macs - 1:+.1%} of ±{row.tolerance:.1%}"


def print_sample(
    space: SearchSpace,
    count: int,
    limits: Sequence[Limit],
    seed: int,
    as_json: bool,
) -> None:
    """Print random architectures, a line each or as one list.

    Args:
        space: space to draw from.
        count: number of architectures.
        limits: those that each of them meets.
        seed: seed of the draw.
        as_json: whether to print one list.
    """
    rng = np.random.default_rng(seed)
    records = [sample_within(space, rng, limits).to_json() for _ in range(count)]
    if as_json:
        print_json(records)
    else:
        for record in records:
            print(json.dumps(record))
