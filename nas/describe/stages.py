"""The table of a space: a row a stage, as its file has it and as it is at an image size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from nas import console
from nas.describe.layers import stage_outputs
from nas.space import SearchSpace
from nas.space.choice import Choice, Options

Described = list[Any] | dict[str, Any]
"""The options of a choice; with what each passes to the block, where they have names for that."""


def stages(space: SearchSpace) -> list[dict[str, Any]]:
    """The rows of a space's table.

    `stride` is the table's and `stride_here` the one at this image size: a number, or a mapping
    from the options of a network-wide choice. `output_sizes` are the heights and widths that can
    leave the stage.
    """
    strides = [
        (options, space.strides_for(tuple(options.values())))
        for options in _all_network_options(space)
    ]
    outputs = _output_sizes(space)
    return [
        {
            "name": stage.name,
            "block": _name(stage.block),
            "entry": None if stage.entry is None else _name(stage.entry),
            "width": _described(stage.width) if stage.width != () else [],
            "depth": _described(stage.depth),
            "stride": stage.stride if isinstance(stage.stride, int) else dict(stage.stride),
            "stride_here": _strides_here(space, index, strides),
            "per_stage": _all_described(stage.per_stage),
            "per_block": _all_described(stage.per_block),
            "output_sizes": outputs[stage.name],
        }
        for index, stage in enumerate(space.stages)
    ]


def network_choices(space: SearchSpace) -> dict[str, Described]:
    """The choices made once for the whole network."""
    return {choice.name: choice.to_json() for choice in space.network_choices}


def show_stages(rows: list[dict[str, Any]], network: Mapping[str, Described]) -> None:
    """The table, then what stands behind names that pass several arguments."""
    console.table(
        ["stage", "block", "width", "depth", "stride", "further choices", "output"],
        [
            (
                row["name"],
                row["block"] if row["entry"] is None else f"{row['entry']}, {row['block']} ...",
                _listed(row["width"]),
                _listed(row["depth"]),
                _stride(row),
                "; ".join(_further(row)),
                " or ".join("x".join(map(str, size)) for size in row["output_sizes"]),
            )
            for row in rows
        ],
        left=("block", "further choices"),
    )
    for name, options in network.items():
        console.say(f"whole network: {name} {_listed(options)}")
    for line in dict.fromkeys(_bundles(rows, network)):
        console.say(line)


def _output_sizes(space: SearchSpace) -> dict[str, list[list[int]]]:
    """Heights and widths that can leave each stage, the largest first.

    What decides them, such as the kernel of an unpadded convolution, is found by changing each
    choice of the largest networks in turn, for all network-wide options.
    """
    first = {name: options[0] for name, options in space.parameters.items()}
    largest = {**first, **dict(space.largest.choices)}
    found: dict[str, set[tuple[int, int]]] = {stage.name: set() for stage in space.stages}
    for network in _all_network_options(space):
        base = {**largest, **network}
        changed = [
            {**base, name: option}
            for name, options in space.parameters.items()
            for option in options
            if name not in network
        ]
        for choices in (base, *changed):
            graph = space.architecture(choices).graph
            outputs = stage_outputs(graph)
            _, *size = graph.input_shape
            for name, sizes in found.items():
                if name in outputs:
                    _, *size = outputs[name]
                sizes.add((size[0], size[1]))
    return {name: [list(size) for size in sorted(s, reverse=True)] for name, s in found.items()}


def _all_network_options(space: SearchSpace) -> Iterator[dict[str, Any]]:
    for options in product(*[choice.options for choice in space.network_choices]):
        yield {choice.name: o for choice, o in zip(space.network_choices, options, strict=True)}


def _strides_here(
    space: SearchSpace, index: int, strides: list[tuple[dict[str, Any], tuple[int, ...]]]
) -> Any:
    own = [(chosen, all_strides[index]) for chosen, all_strides in strides]
    if len({stride for _, stride in own}) == 1:
        return own[0][1]
    for choice in space.network_choices:
        by_option = {chosen[choice.name]: stride for chosen, stride in own}
        if all(by_option[chosen[choice.name]] == stride for chosen, stride in own):
            return by_option
    return {", ".join(f"{k} {v}" for k, v in chosen.items()): stride for chosen, stride in own}


def _name(block: Any) -> str:
    return block if isinstance(block, str) else block.__name__


def _described(options: Options) -> Described:
    return Choice("", "", "", options).to_json()


def _all_described(choices: Mapping[str, Options]) -> dict[str, Described]:
    return {key: _described(options) for key, options in choices.items()}


def _listed(options: Described) -> str:
    return ", ".join(map(str, options))


def _stride(row: dict[str, Any]) -> str:
    table, here = _stride_text(row["stride"]), _stride_text(row["stride_here"])
    return table if table == here else f"{table}, here {here}"


def _stride_text(stride: int | dict[Any, int]) -> str:
    if isinstance(stride, int):
        return str(stride)
    return ", ".join(f"{value} ({option})" for option, value in stride.items())


def _further(row: dict[str, Any]) -> Iterator[str]:
    """The choices beside width and depth; single values are settings that are no choice."""
    single = {key: options for key, options in row["per_block"].items() if len(options) == 1}
    for key, options in {**row["per_stage"], **single}.items():
        yield f"{key} {_listed(options)}"
    each = [f"{k} {_listed(o)}" for k, o in row["per_block"].items() if k not in single]
    if each:
        yield f"each block: {'; '.join(each)}"


def _bundles(rows: list[dict[str, Any]], network: Mapping[str, Described]) -> Iterator[str]:
    given = [network, *(row[key] for row in rows for key in ("per_stage", "per_block"))]
    for choices in given:
        for key, options in choices.items():
            if isinstance(options, dict):
                for name, passed in options.items():
                    words = ", ".join(f"{k} {v}" for k, v in (passed or {}).items())
                    yield f"{key} {name}: {words or 'the block is left out'}"
