"""The nodes that a model runs, by which a network is compared with the kernels that are timed.

ONNX Runtime writes the model to which it optimises a network. Its nodes, with the shapes of their
tensors, have to be those of the models in which the network's kernels are timed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import onnx
from onnx import helper, numpy_helper

from nas.kernels.kernel import Kernel
from nas.runtimes.onnxruntime.repeated import repeat_kernel
from nas.runtimes.onnxruntime.session import Session

_SETTINGS: Mapping[str, Any] = {
    "activation": b"",
    "channels_last": 0,
    "group": 1,
    "kernel_shape": [1, 1],
    "pads": [0, 0, 0, 0],
    "perm": [],
    "strides": [1, 1],
}
"""Attributes that the shapes of a node's tensors do not tell, with their defaults."""

_LAYOUT_FREE = frozenset(
    {"Add", "DequantizeLinear", "HardSigmoid", "Mul", "QLinearAdd", "QuantizeLinear"}
)
"""Ops that treat every number alike, so that one kernel stands for all layouts."""

_CLIPPING = frozenset({"Clip", "Relu"})


class Node(NamedTuple):
    """What a node does, whatever its tensors are called and hold.

    Args:
        kind: its op.
        settings: its attributes in the order of `_SETTINGS`, and where a slice starts.
        shapes: shapes of its operands in ascending order, then those of its results. Scales, zero
            points and bounds are left out.
    """

    kind: str
    settings: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        sizes = ["x".join(map(str, shape)) for shape in self.shapes]
        return f"{self.kind} of {', '.join(sizes)}"


@lru_cache(maxsize=1 << 12)
def kernel_nodes(kernel: Kernel) -> tuple[Node, ...]:
    """Return the nodes as which a kernel is timed.

    Raises:
        MeasurementError: ONNX Runtime does not have the kernel.
    """
    return tuple(executed_nodes(*repeat_kernel(kernel, 1, 1)))


def executed_nodes(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> list[Node]:
    """Return the nodes of a model that is run as it is.

    A quantised network computes a function in float32 between two conversions, the second of which
    clips. So what else clips in between is left out.

    Args:
        model: the model.
        inputs: shapes of its inputs by name.
    """
    nodes, constants = model.graph.node, {each.name: each for each in model.graph.initializer}
    with_outputs = onnx.ModelProto()
    with_outputs.CopyFrom(model)
    del with_outputs.graph.output[:]
    names = [name for node in nodes for name in node.output if name]
    with_outputs.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = Session(with_outputs, inputs, threads=1, optimise=False)
    shapes = {**{name: tuple(shape) for name, shape in inputs.items()}, **session.output_shapes}
    dequantised = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}

    def describe(node: onnx.NodeProto) -> Node:
        own = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        settings = [str(own.get(name, default)) for name, default in _SETTINGS.items()]
        if node.op_type == "Slice":
            settings.append(str(numpy_helper.to_array(constants[node.input[1]])))
        read = [shapes[name] for name in node.input if name in shapes]
        read += [
            tuple(constants[name].dims)
            for name in node.input
            if name in constants and _is_operand(node, constants[name])
        ]
        tensors = [*sorted(read), *(shapes[name] for name in node.output if name)]
        if node.op_type in _LAYOUT_FREE:
            tensors = [tuple(sorted(size for size in shape if size > 1)) for shape in tensors]
        tensors = list(map(_squeezed, tensors))
        kind = "Reshape" if node.op_type == "Flatten" else node.op_type
        return Node(f"{node.domain}.{kind}".lstrip("."), tuple(settings), tuple(tensors))

    return [
        describe(node)
        for node in nodes
        if not (node.op_type in _CLIPPING and node.input[0] in dequantised)
    ]


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the sizes of 1 at its end, which a vector does not have."""
    return shape if not shape or shape[-1] != 1 else _squeezed(shape[:-1])


def _is_operand(node: onnx.NodeProto, constant: onnx.TensorProto) -> bool:
    """Return whether a constant holds weights or biases."""
    if len(constant.dims) != 1:
        return len(constant.dims) > 1
    is_quantised = node.op_type.startswith("Q")
    return constant.data_type == (
        onnx.TensorProto.INT32 if is_quantised else onnx.TensorProto.FLOAT
    )
