"""The nodes of models that ONNX Runtime has optimised: read as kernels, and written again.

ONNX Runtime writes the model to which it optimises a file. A model can name the ops of that model,
those of ONNX Runtime's own domains among them, and give them inputs in the layout that they need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nas.errors import MeasurementError
from nas.kernels.node import Node, Tensor
from nas.onnx_model import IR_VERSION, OPSET
from nas.runtimes.files import Files

_DTYPES: Mapping[int, str] = {
    TensorProto.FLOAT: "f32",
    TensorProto.FLOAT16: "f16",
    TensorProto.DOUBLE: "f64",
    TensorProto.INT64: "i64",
    TensorProto.INT32: "i32",
    TensorProto.INT16: "i16",
    TensorProto.INT8: "i8",
    TensorProto.UINT8: "u8",
    TensorProto.BOOL: "bool",
}
"""Types of tensors in the texts of nodes."""

_TYPES: Mapping[str, str] = {
    f"tensor({name})": dtype
    for name, dtype in zip(
        ("float", "float16", "double", "int64", "int32", "int16", "int8", "uint8", "bool"),
        _DTYPES.values(),
        strict=True,
    )
}
"""The same by the names that a session gives them."""

_ADDING = frozenset({"add", "conv2d"})
"""Kinds of nodes that overwrite the last tensor that they read, if they read several."""

_ELEMENT_TYPES = {text: number for number, text in _DTYPES.items()}

_DOMAINS = [("", OPSET), ("com.microsoft", 1), ("com.microsoft.nchwc", 1)]
"""Domains of the ops to which ONNX Runtime optimises, with their versions."""


class PlacedNode(NamedTuple):
    """A node of a model, with the names of its tensors.

    Attributes:
        node: what it does.
        inputs: names of the tensors that it reads and that are computed.
        outputs: names of the tensors that it makes.
    """

    node: Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def optimised_nodes(
    files: Files, model: bytes, inputs: Mapping[str, Sequence[int]]
) -> list[PlacedNode]:
    """Return the nodes to which ONNX Runtime optimises a model, in an order in which they can run.

    Args:
        files: loads files with ONNX Runtime.
        model: the model.
        inputs: shapes of its inputs by name.

    Raises:
        MeasurementError: a node has parts that no text describes, such as a model of its own.
    """
    return placed_nodes(files, onnx.load_from_string(files.call("optimised", model)), inputs)


def placed_nodes(
    files: Files, model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]
) -> list[PlacedNode]:
    """Return the nodes of a model that runs as it is; see `optimised_nodes`."""
    tensors = _tensors(files, model, inputs)
    constants = {each.name: each for each in model.graph.initializer}

    def operand(name: str) -> Tensor | None:
        if not name:
            return None
        return _constant(constants[name]) if name in constants else tensors[name]

    return [
        PlacedNode(
            Node(
                f"{node.domain}.{node.op_type}".lstrip("."),
                tuple(map(operand, _without_last_empty(node.input))),
                tuple(tensors[name] for name in node.output if name),
                dict(_attributes(node)),
            ),
            tuple(name for name in node.input if name and name not in constants),
            tuple(name for name in node.output if name),
        )
        for node in model.graph.node
    ]


def _tensors(
    files: Files, model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Return what a model computes, by name."""
    with_outputs = onnx.ModelProto()
    with_outputs.CopyFrom(model)
    for each in with_outputs.graph.input:
        sizes = each.type.tensor_type.shape.dim
        for size, value in zip(sizes, inputs[each.name], strict=True):
            size.dim_value = value
    del with_outputs.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    with_outputs.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    answer = files.call("tensors", with_outputs.SerializeToString(), inputs=dict(inputs))
    return {name: Tensor(_TYPES[dtype], tuple(shape)) for name, (dtype, shape) in answer.items()}


def _constant(proto: TensorProto) -> Tensor:
    """Return a constant; integers of 64 bits are shapes and positions, on which work depends."""
    values = None
    if proto.data_type == TensorProto.INT64:
        values = tuple(int(each) for each in numpy_helper.to_array(proto).flat)
    return Tensor(_DTYPES[proto.data_type], tuple(proto.dims), True, values)


def _without_last_empty(names: Sequence[str]) -> Sequence[str]:
    """Return names of inputs without the last ones that are left out."""
    count = max((at + 1 for at, name in enumerate(names) if name), default=0)
    return names[:count]


def _attributes(node: onnx.NodeProto) -> Iterator[tuple[str, Any]]:
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(each, int | float | bytes) for each in items):
            raise MeasurementError(
                f"ONNX Runtime optimised the network to a {node.op_type} with {attribute.name}, "
                "which cannot be timed alone.",
                remedy="Use another runtime.",
            )
        texts = [each.decode() if isinstance(each, bytes) else each for each in items]
        yield attribute.name, texts if isinstance(value, list) else texts[0]


def repeated(
    node: Node, copies: int, weight_sets: int
) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    """Return a model that runs a node many times, and the shapes of its inputs by name.

    All copies read the same inputs. Nothing reads the outputs of all copies but the last, so they
    share one buffer. Only an addition, alone or in a convolution, reads the output of the copy
    before, because a network overwrites that operand, too.

    Args:
        node: node to repeat.
        copies: number of copies.
        weight_sets: number of different sets of constants that the copies use in rotation.
    """
    rng = np.random.default_rng(0)
    inputs = {
        at: each for at, each in enumerate(node.inputs) if each is not None and not each.is_constant
    }
    sets = [
        {
            at: numpy_helper.from_array(_values(each, node.op, rng), f"constant{at}_{number}")
            for at, each in enumerate(node.inputs)
            if each is not None and each.is_constant
        }
        for number in range(weight_sets)
    ]
    (domain, _, op), last = node.op.rpartition("."), ""
    overwritten = max(inputs, default=0)
    # Products of products would become denormal numbers, which are slow.
    can_chain = node.kind in _ADDING and len(inputs) > 1 and inputs[overwritten] == node.outputs[0]
    nodes, settings = [], cast("dict[str, Any]", node.attributes)
    for copy in range(copies):
        own = sets[copy % weight_sets]
        names = [
            "" if each is None else own[at].name if at in own else f"x{at}"
            for at, each in enumerate(node.inputs)
        ]
        if can_chain and last:
            names[overwritten] = last
        outputs = [f"y{copy}_{at}" for at in range(len(node.outputs))]
        nodes.append(helper.make_node(op, names, outputs, domain=domain, **settings))
        last = outputs[0]
    graph = helper.make_graph(
        nodes,
        "repeated",
        [
            helper.make_tensor_value_info(f"x{at}", _ELEMENT_TYPES[each.dtype], each.shape)
            for at, each in inputs.items()
        ],
        [helper.make_tensor_value_info(last, _ELEMENT_TYPES[node.outputs[0].dtype], None)],
        [each for own in sets for each in own.values()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*each) for each in _DOMAINS],
        ir_version=IR_VERSION,
    )
    return model, {f"x{at}": each.shape for at, each in inputs.items()}


def _values(tensor: Tensor, op: str, rng: np.random.Generator) -> NDArray[Any]:
    """Return values of a constant that a network could have.

    Weights make no result overflow or become a denormal number. Scales and zero points affect no
    latency as long as they are allowed: those of weights have to be 0.
    """
    shape = tensor.shape
    if tensor.values is not None:
        return np.array(tensor.values, np.int64).reshape(shape)
    is_weight = len(shape) > 1
    match tensor.dtype:
        case "i8":
            return rng.integers(-127 * is_weight, 127 * is_weight + 1, shape, np.int8)
        case "u8":
            return rng.integers(0, 256, shape, np.uint8) if is_weight else np.full(shape, 128, "u1")
        case "i32":
            return rng.integers(-999, 999, shape, np.int32)
        case "f32" if is_weight:
            scale = np.float32(np.sqrt(12 / np.prod(shape[1:])))
            return (rng.random(shape, np.float32) - np.float32(0.5)) * scale
        case "f32" if "Linear" in op or "QGemm" in op:
            return np.full(shape, 0.02, np.float32)
        case "f32":
            return rng.random(shape, np.float32)
        case _:
            raise MeasurementError(f"ONNX Runtime made a constant {tensor.text} of a {op}.")
