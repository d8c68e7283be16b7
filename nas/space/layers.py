"""The layers of a network: its ops, each with the norm and the activations behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from nas.graph import ACTIVATIONS, POOLING_KINDS, Graph, Op, Shape
from nas.space.block_graph import CompositeGraph

_FUSED_KINDS = ACTIVATIONS | {"norm"}
"""Op kinds that belong to the layer of the op before them."""


@dataclass
class Layer:
    """An op with the norm and the activations behind it.

    Attributes:
        index: position among the layers.
        name: name of the weights, or of the block and the kind of op.
        stage: name of the stage.
        operation: the op in words.
        kind, kernel, stride, padding, groups: see `nas.graph.Op`.
        output: shape of the result.
        macs: multiply-accumulates for one image.
        params: trainable parameters, including those of the norm.
        activation_bytes: size of the result as float32, for one image.
        fused: the bias, the norm and the activations of the layer.
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
    output: Shape
    macs: int
    params: int
    activation_bytes: int
    fused: list[str] = field(default_factory=list)


class LayerTable(NamedTuple):
    """The layers of a network, its input first; their counts add up to the graph's.

    Attributes:
        layers: the layers.
        peak: the first layer during which the peak memory is in use.
    """

    layers: list[Layer]
    peak: Layer


def layer_table(graph: CompositeGraph) -> LayerTable:
    """Return the layers of a network."""
    layers = [_layer(graph, 0, 0, "input")]
    layer_of = [0]  # the index of the layer that each op belongs to
    for block, name in graph.blocks:
        start = len(layer_of)
        for position in range(start, start + len(block.graph.ops) - 1):
            op = graph.ops[position]
            source = op.inputs[0]
            is_fused = op.kind in _FUSED_KINDS and len(graph.consumers[source]) == 1
            if is_fused and source >= start:
                layer = layers[layer_of[source]]
                layer.fused.append(op.kind)
                layer.params += graph.op_params(op)
                layer_of.append(layer.index)
            else:
                layer_of.append(len(layers))
                layers.append(_layer(graph, position, len(layers), name))
    live_bytes = graph.live_bytes
    return LayerTable(layers, layers[layer_of[live_bytes.index(max(live_bytes))]])


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
        fused=["bias"] if op.bias else [],
    )


def _operation(graph: Graph, op: Op) -> str:
    """Return an op in words, such as `conv 3x3/2`, `depthwise 5x5` or `conv 1x1 in 4 groups`."""
    if op.kind == "slice":
        return f"channels {op.start} to {op.start + op.shape[0]}"
    if op.kind == "shuffle":
        return f"shuffle {op.groups} groups"
    if op.kind != "conv" and op.kind not in POOLING_KINDS:
        return op.kind.replace("_", " ")
    is_depthwise = 1 < op.groups == op.shape[0] == graph.input_channels(op)
    parts = ["depthwise" if is_depthwise else op.kind.replace("_", " ")]
    parts.append(f"{op.kernel}x{op.kernel}" + (f"/{op.stride}" if op.stride > 1 else ""))
    if op.groups > 1 and not is_depthwise:
        parts.append(f"in {op.groups} groups")
    if op.kernel > 1 and not op.padding:
        parts.append("unpadded")
    return " ".join(parts)
