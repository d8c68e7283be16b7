"""A network as a table of layers, as people read one: a line a convolution, with its shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, cast

from nas import console
from nas.describe.architectures import Found
from nas.graph import ACTIVATIONS, Graph, Op
from nas.space.block_graph import CompositeGraph

_FOLDED = ACTIVATIONS | {"norm"}
_POOLS = ("max_pool", "avg_pool")


@dataclass
class Layer:
    """An op with the norm and the activations behind it, whose parameters are counted here.

    `activation_bytes` is the size of the result as float32, for one image.
    """

    index: int
    name: str
    stage: str
    operation: str
    kind: str
    kernel: int
    stride: int
    padding: int
    groups: int
    output: tuple[int, int, int]
    macs: int
    params: int
    activation_bytes: int
    folded: list[str] = field(default_factory=list)


def blocks(graph: Graph) -> Iterator[tuple[str, range]]:
    """The names of a lowered network's blocks, each with the positions of its ops."""
    start = 1
    for block, name in cast(CompositeGraph, graph).blocks:
        stop = start + len(block.graph.ops) - 1
        yield name, range(start, stop)
        start = stop


def stage_outputs(graph: Graph) -> dict[str, tuple[int, int, int]]:
    """The shape that leaves each stage; a stage whose blocks are all left out has none."""
    return {name.split(".")[0]: block.shape for block, name in cast(CompositeGraph, graph).blocks}


def layers(graph: Graph) -> list[Layer]:
    """The layers of a lowered network, its input first; their counts add up to the graph's."""
    return _lines(graph)[0]


def peak_layer(graph: Graph) -> int:
    """The index of the first layer during which the peak memory is in use."""
    _, layer_of = _lines(graph)
    peak = graph.peak_memory_bytes
    return next(layer_of[at] for at in range(len(graph.ops)) if _peak_until(graph, at) == peak)


def _peak_until(graph: Graph, position: int) -> int:
    """The peak memory of the ops up to a position, as `Graph.peak_memory_bytes` counts it."""
    read_later = {source for op in graph.ops[position + 1 :] for source in op.inputs}
    # An op without a result keeps alive what the ops that are cut off still read.
    kept = tuple(sorted(source for source in read_later if source <= position))
    reader = Op("concat", kept, (0, 0, 0))
    return Graph((*graph.ops[: position + 1], reader)).peak_memory_bytes


def _lines(graph: Graph) -> tuple[list[Layer], list[int]]:
    """The layers, and for each op the index of the layer that it is part of."""
    found, layer_of = [_layer(graph, 0, 0, "input")], [0]
    for block, positions in blocks(graph):
        for position in positions:
            op = graph.ops[position]
            if op.kind in _FOLDED and op.inputs[0] in positions:
                (source,) = op.inputs
                if len(graph.consumers[source]) == 1:
                    layer = found[layer_of[source]]
                    layer.folded.append(op.kind)
                    layer.params += graph.op_params(op)
                    layer_of.append(layer.index)
                    continue
            layer_of.append(len(found))
            found.append(_layer(graph, position, len(found), block))
    return found, layer_of


def _layer(graph: Graph, position: int, index: int, block: str) -> Layer:
    op = graph.ops[position]
    c, h, w = op.shape
    name = op.slot.name if op.slot is not None else f"{block}.{op.kind}"
    return Layer(
        index=index,
        name=name if position else block,
        stage=block.split(".")[0] if position else "",
        operation=_operation(graph, op),
        kind=op.kind,
        kernel=op.kernel,
        stride=op.stride,
        padding=op.padding,
        groups=op.groups,
        output=op.shape,
        macs=graph.op_macs(op),
        params=graph.op_params(op),
        activation_bytes=4 * c * h * w,
        folded=["bias"] if op.bias else [],
    )


def _operation(graph: Graph, op: Op) -> str:
    """The op in words: `conv 3x3/2`, `depthwise 5x5`, `conv 1x1 in 4 groups`."""
    if op.kind == "slice":
        return f"channels {op.start} to {op.start + op.shape[0]}"
    if op.kind == "shuffle":
        return f"shuffle {op.groups} groups"
    if op.kind != "conv" and op.kind not in _POOLS:
        return op.kind.replace("_", " ")
    is_depthwise = 1 < op.groups == op.shape[0] == graph.input_channels(op)
    words = ["depthwise" if is_depthwise else op.kind.replace("_", " ")]
    words.append(f"{op.kernel}x{op.kernel}" + (f"/{op.stride}" if op.stride > 1 else ""))
    if op.groups > 1 and not is_depthwise:
        words.append(f"in {op.groups} groups")
    if op.kernel > 1 and not op.padding:
        words.append("unpadded")
    return " ".join(words)


def network(found: Found) -> dict[str, Any]:
    """What `nas spaces --arch` shows; `published` are the figures of a reference network."""
    graph = found.architecture.graph
    reference = found.reference
    return {
        "space": found.space.name,
        "architecture": found.architecture.to_json(),
        "settings": found.space.settings,
        "norm": found.space.norm,
        "macs": graph.macs,
        "params": graph.params,
        "peak_memory_bytes": graph.peak_memory_bytes,
        "peak_layer": peak_layer(graph),
        "digest": graph.digest,
        "published": None
        if reference is None
        else {
            "name": reference.name,
            "macs": reference.macs,
            "params": reference.params,
            "image_size": reference.image_size,
            "source": reference.source,
        },
        "layers": [asdict(layer) for layer in layers(graph)],
    }


def show_network(found: dict[str, Any]) -> None:
    """The layer table: stages with their sums, the totals, and what was published beside."""
    settings, published = found["settings"], found["published"]
    title = found["space"] if published is None else f"{published['name']} ({found['space']})"
    console.say(
        f"{title} at {settings['image_size']} px, {settings['channels']} channels, "
        f"{settings['classes']} classes{'' if found['norm'] else ', without norms'}"
    )
    console.table(
        ["#", "layer", "operation", "output", "MACs", "parameters", "activations"],
        _rows(found),
        left=("layer", "operation"),
    )
    peak = found["layers"][found["peak_layer"]]
    console.say(f"{found['macs']:,} MACs{_beside(published, 'macs')}")
    console.say(f"{found['params']:,} parameters{_beside(published, 'params')}")
    console.say(
        f"peak memory {console.size(found['peak_memory_bytes'])} of float32 activations, "
        f"at layer {peak['index']} ({peak['name']})"
    )
    console.say(f"digest {found['digest']}")
    if published is not None:
        console.say(f"source: {published['source']}")


def _rows(found: dict[str, Any]) -> Iterator[Sequence[Any] | None]:
    for stage, grouped in groupby(found["layers"], key=lambda layer: layer["stage"]):
        own = list(grouped)
        if stage:
            yield None
        if len(own) > 1:
            sums = [sum(layer[key] for layer in own) for key in ("macs", "params")]
            output = _shape(own[-1]["output"])
            yield ("", stage, "", output, console.si(sums[0]), f"{sums[1]:,}", "")
        for layer in own:
            name = layer["name"].removeprefix(f"{stage}.")
            yield (
                layer["index"],
                f"  {name}" if stage and name != stage else name,
                ", ".join([layer["operation"], *layer["folded"]]),
                _shape(layer["output"]),
                console.si(layer["macs"]) if layer["macs"] else "",
                f"{layer['params']:,}" if layer["params"] else "",
                console.size(layer["activation_bytes"]),
            )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _beside(published: dict[str, Any] | None, key: str) -> str:
    """A published figure, to stand behind a count."""
    if published is None or published[key] is None:
        return ""
    figure = published[key]
    text = f"{figure:,}" if isinstance(figure, int) else console.si(figure)
    return f" (published: {text}, at {published['image_size']} px and 1000 classes)"
