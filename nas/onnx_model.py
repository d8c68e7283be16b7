"""Writes a `Graph` as an ONNX model, node by node, without torch and without tracing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from nas import __version__, files
from nas.graph import Graph, Op, Shape
from nas.quantisation.network import FUSED_ACTIVATIONS, Affine, QuantisedNetwork, fused_activation

OPSET = 17
"""The oldest operator set that has all ops used here: old runtimes and converters can read it."""

IR_VERSION = 8
"""Version of the file format that came with `OPSET`; ONNX Runtime reads it since 1.12."""

INPUT = "image"
"""Name of the model's input."""

OUTPUT = "logits"
"""Name of the model's output."""

FEATURES = "features"
"""Name of a tensor that the prefix of a network gives and its rest reads."""

BATCH = "batch"
"""Name of the model's dynamic dimension."""

_ELEMENTWISE = {"relu": "Relu", "hard_swish": "HardSwish", "add": "Add", "multiply": "Mul"}
"""Operators of ONNX for kinds of ops whose only arguments are their inputs."""


def model(
    graph: Graph, weights: Mapping[str, NDArray[np.float32]], *, features: int | None = None
) -> onnx.ModelProto:
    """Return the ONNX model of a graph, for any batch size.

    The input is `image`, float32 `batch x channels x height x width`. The output is `logits`,
    `batch x classes`; a graph whose output is not a vector has an output
    `batch x channels x height x width`.

    Args:
        graph: graph to write. Norms are folded before it is written (`graph.folded`).
        weights: weights of `graph.folded`, as `nas.torch_network.folded_weights` returns them. They
            become initialisers called `<slot>.weight` and `<slot>.bias`.
        features: position in `graph.folded` of an op whose output, a map, is a second output of the
            model, `features`; None for no such output.

    Raises:
        KeyError: the weights of a slot are missing.
        ValueError: an op has an unknown kind, an impossible shape or no slot, weights do not fit
            their op, or runtimes disagree about an average.
    """
    writer = _Writer(graph.folded, weights)
    proto = _model(graph.folded, writer)
    if features is not None:
        rename(proto, writer.map_of(features), FEATURES)
        proto.graph.output.append(_value_info(FEATURES, graph.folded.ops[features].shape))
    return proto


def quantised_model(network: QuantisedNetwork) -> onnx.ModelProto:
    """Return the ONNX model of a quantised network, for any batch size.

    Inputs and outputs are float32 as in `model`. The model is in the QDQ format: pairs of
    QuantizeLinear and DequantizeLinear say which tensors are rounded, and to which scale. Weights
    are int8 with a scale for each output channel, biases int32, activations uint8.

    Raises ValueError as `model` does.
    """
    return _model(network.graph, _QuantisedWriter(network))


def _model(folded: Graph, writer: _Writer) -> onnx.ModelProto:
    onnx_graph = helper.make_graph(
        writer.nodes,
        "network",
        [_value_info(INPUT, folded.input_shape)],
        [_value_info(OUTPUT, folded.output_shape, is_vector=_is_vector(folded.output_shape))],
        list(writer.initializers.values()),
    )
    return helper.make_model(
        onnx_graph,
        producer_name="nas",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


def fix_batch(model: onnx.ModelProto, batch: int) -> None:
    """Fix the batch size of a model, for compilers without dynamic shapes."""
    for each in (*model.graph.input, *model.graph.output):
        each.type.tensor_type.shape.dim[0].dim_value = batch


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Give a tensor of a model another name, in all nodes and among inputs and outputs."""
    for each in (*model.graph.input, *model.graph.output):
        each.name = new if each.name == old else each.name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def save(model: onnx.ModelProto, path: Path) -> None:
    """Replace an `.onnx` file atomically.

    Raises:
        ValueError: the file's name does not end in `.onnx`, by which runtimes know the format.
        OSError: the file cannot be written; the old file is kept.
    """
    if path.suffix != ".onnx":
        raise ValueError(f"an ONNX model is saved as .onnx, not as {path.name!r}")
    files.replace(path, model.SerializeToString())


def _value_info(name: str, shape: Shape, *, is_vector: bool = False) -> onnx.ValueInfoProto:
    sizes = [BATCH, *(shape[:1] if is_vector else shape)]
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)


def _is_vector(shape: Shape) -> bool:
    return shape[1:] == (1, 1)


class _Writer:
    """Writes the nodes and initialisers of a folded graph.

    The output of an op is a map (`batch x channels x height x width`) or a vector
    (`batch x features`). It is converted into the other form only if an op needs that, and once.

    Positions (`at`) are those of ops in the graph.
    """

    def __init__(self, graph: Graph, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._graph = graph
        self._weights = weights
        self._used_names = {INPUT, OUTPUT, FEATURES}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._maps = {0: self._finish(0, INPUT)}
        self._vectors: dict[int, str] = {}
        for position, op in enumerate(graph.ops):
            if op.kind != "input":
                self._write(position, op)
        self._rename_output()

    def _write(self, at: int, op: Op) -> None:
        match op.kind:
            case "conv":
                self._write_conv(at, op)
            case "linear":
                self._write_linear(at, op)
            case kind if kind in _ELEMENTWISE:
                self._write_by_channel(at, op, _ELEMENTWISE[kind])
            case "relu6":
                bounds = [self._constant(np.array(bound, np.float32)) for bound in (0, 6)]
                self._write_by_channel(at, op, "Clip", bounds)
            case "hard_sigmoid":
                self._write_by_channel(at, op, "HardSigmoid", alpha=1 / 6, beta=0.5)
            case "concat":
                self._write_by_channel(at, op, "Concat", axis=1)
            case "slice":
                self._write_slice(at, op)
            case "shuffle":
                self._write_shuffle(at, op)
            case "max_pool":
                self._write_pool(at, op, "MaxPool")
            case "avg_pool":
                self._write_avg_pool(at, op)
            case "global_pool":
                x = self._map(op.inputs[0])
                self._maps[at] = self._add_node(at, "GlobalAveragePool", [x])
            case _:
                raise ValueError(f"ops of kind {op.kind!r} have no implementation in ONNX")

    # Ops

    def _write_conv(self, at: int, op: Op) -> None:
        arguments = [self._map(op.inputs[0]), *self._parameters(op)]
        self._maps[at] = self._add_node(
            at, "Conv", arguments, group=op.groups, **_window_attributes(op)
        )

    def _write_linear(self, at: int, op: Op) -> None:
        arguments = [self._vector(op.inputs[0]), *self._parameters(op)]
        self._vectors[at] = self._add_node(at, "Gemm", arguments, transB=1)

    def _write_by_channel(
        self, at: int, op: Op, onnx_op: str, constants: Sequence[str] = (), **attributes: Any
    ) -> None:
        """Write an op that ONNX applies to maps and vectors alike; vectors stay vectors."""
        inputs, outputs = self._inputs_of_one_form(op)
        arguments = [*inputs, *constants]
        outputs[at] = self._add_node(at, onnx_op, arguments, **attributes)

    def _write_slice(self, at: int, op: Op) -> None:
        """Write a slice.

        Slices that together have each channel of a tensor once are written as one Split, which
        copies the tensor only once.
        """
        if at in self._maps or at in self._vectors:
            return
        (x,), outputs = self._inputs_of_one_form(op)
        parts = self._graph.parts(op.inputs[0])
        if not parts:
            bounds = [self._integers(end) for end in (op.start, op.start + op.shape[0], 1)]
            outputs[at] = self._add_node(at, "Slice", [x, *bounds])
            return
        sizes = self._integers(*[self._graph.ops[part].shape[0] for part in parts])
        names = [self._unused_name(self._label(part)) for part in parts]
        name = self._unused_name(f"split_{at}")
        self.nodes.append(helper.make_node("Split", [x, sizes], names, name=name, axis=1))
        for part, name in zip(parts, names, strict=True):
            outputs[part] = self._finish(part, name)

    def _write_shuffle(self, at: int, op: Op) -> None:
        c, h, w = op.shape
        parts = self._integers(0, op.groups, c // op.groups, h, w)  # 0 keeps the batch size.
        x = self._add_node(at, "Reshape", [self._map(op.inputs[0]), parts], ".parts")
        x = self._add_node(at, "Transpose", [x], ".interleaved", perm=[0, 2, 1, 3, 4])
        self._maps[at] = self._add_node(at, "Reshape", [x, self._integers(0, c, h, w)])

    def _write_pool(self, at: int, op: Op, onnx_op: str, **attributes: int) -> None:
        source = op.inputs[0]
        attributes["ceil_mode"] = int(op.overhangs(*self._graph.ops[source].shape[1:]))
        self._maps[at] = self._add_node(
            at, onnx_op, [self._map(source)], **attributes, **_window_attributes(op)
        )

    def _write_avg_pool(self, at: int, op: Op) -> None:
        """Write an average that counts the zeros of the padding, and nothing beyond the padding.

        If ONNX Runtime 1.20 is asked to count the padding, it also counts what lies beyond it (its
        issue 16203). Therefore it is asked only if there is padding. An average with padding and
        overhanging windows would depend on the runtime; no block makes one.
        """
        if op.padding and op.overhangs(*self._graph.ops[op.inputs[0]].shape[1:]):
            raise ValueError(
                "ONNX runtimes differ in averages whose windows overhang the padding; use windows "
                "that end within the padding, or no padding"
            )
        self._write_pool(at, op, "AveragePool", count_include_pad=int(op.padding > 0))

    # Tensors

    def map_of(self, at: int) -> str:
        """Return the name of an op's output, which must be a map."""
        return self._maps[at]

    def _map(self, at: int) -> str:
        """Return the name of an op's output as a map."""
        if at not in self._maps:
            sizes = self._integers(0, *self._graph.ops[at].shape)
            self._maps[at] = self._add_node(at, "Reshape", [self._vectors[at], sizes], ".map")
        return self._maps[at]

    def _vector(self, at: int) -> str:
        """Return the name of an op's output as a vector."""
        if at not in self._vectors:
            self._vectors[at] = self._add_node(at, "Flatten", [self._maps[at]], ".flat")
        return self._vectors[at]

    def _inputs_of_one_form(self, op: Op) -> tuple[list[str], dict[int, str]]:
        """Return the inputs of an op, as vectors if all are vectors, else as maps.

        Returns:
            The names of the inputs, and the dictionary (of maps or vectors) for the op's outputs.
        """
        if all(source in self._vectors for source in op.inputs):
            return [self._vectors[source] for source in op.inputs], self._vectors
        return [self._map(source) for source in op.inputs], self._maps

    def _rename_output(self) -> None:
        last = len(self._graph.ops) - 1
        result = self._vector(last) if _is_vector(self._graph.output_shape) else self._map(last)
        for node in self.nodes:
            node.output[:] = [OUTPUT if name == result else name for name in node.output]

    # Nodes, initialisers and their names

    def _add_node(
        self, at: int, onnx_op: str, inputs: Sequence[str], suffix: str = "", /, **attributes: Any
    ) -> str:
        """Add a node for an op, and return the name of the tensor that other nodes read."""
        return self._finish(
            at, self._append(onnx_op, inputs, self._label(at) + suffix, **attributes)
        )

    def _append(self, onnx_op: str, inputs: Sequence[str], name: str, /, **attributes: Any) -> str:
        """Add a node with one output, and return the name of both."""
        name = self._unused_name(name)
        self.nodes.append(helper.make_node(onnx_op, inputs, [name], name=name, **attributes))
        return name

    def _finish(self, at: int, name: str) -> str:
        """Return the tensor that other nodes read instead of one that a node of an op made."""
        return name

    def _parameters(self, op: Op) -> list[str]:
        """Return the initialisers of an op's weight and, if it has one, of its bias."""
        slot, shape = op.slot_name, self._graph.weight_shape(op)
        names = [self._parameter(slot, f"{slot}.weight", shape)]
        if op.bias:
            names.append(self._parameter(f"{slot}.bias", f"{slot}.bias", shape[:1]))
        return names

    def _parameter(self, key: str, name: str, shape: tuple[int, ...]) -> str:
        array = self._weights[key]
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not float32 {shape}")
        return self._add_initializer(name, array)

    def _integers(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, array: NDArray[Any]) -> str:
        """Return the initialiser of a value that is not a weight; equal values share one."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            values = "_".join(map(str, array.flat))
            self._constants[key] = self._add_initializer(f"{array.dtype.name}_{values}", array)
        return self._constants[key]

    def _add_initializer(self, name: str, array: NDArray[Any]) -> str:
        name = self._unused_name(name)
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def _label(self, at: int) -> str:
        """Return the name of an op's node: its slot, or its kind and position."""
        op = self._graph.ops[at]
        return op.slot.name if op.slot else f"{op.kind}_{at}"

    def _unused_name(self, name: str) -> str:
        """Return a name that nothing else in the model has: a slot may have any name."""
        while name in self._used_names:
            name += "_"
        self._used_names.add(name)
        return name


class _QuantisedWriter(_Writer):
    """Writes a quantised network with a pair of Quantize- and DequantizeLinear behind every node.

    Runtimes replace a node between such pairs by its int8 counterpart, so that nodes which only
    move values have pairs too. A fused activation is not written where the range of the int8 values
    ends at its limits: the pair clips then, and ONNX Runtime would keep a convolution in float32
    whose output is not rounded.
    """

    def __init__(self, network: QuantisedNetwork) -> None:
        self._network = network
        super().__init__(network.graph, {})

    def _write(self, at: int, op: Op) -> None:
        source = op.inputs[0]
        is_fused = fused_activation(self._graph, source) == at
        if is_fused and _clips_like(op, self._network.activations[at]):
            for outputs in (self._maps, self._vectors):
                if source in outputs:
                    outputs[at] = outputs[source]
        else:
            super()._write(at, op)

    def _finish(self, at: int, name: str) -> str:
        fused = fused_activation(self._graph, at)
        scale, zero_point = self._network.activations[at if fused is None else fused]
        # Activations are unsigned: signed ones are slower in ONNX Runtime on x86.
        parameters = [
            self._constant(np.array(scale, np.float32)),
            self._constant(np.array(zero_point + 128, np.uint8)),
        ]
        quantised = self._append("QuantizeLinear", [name, *parameters], f"{name}.quantised")
        return self._append("DequantizeLinear", [quantised, *parameters], f"{name}.rounded")

    def _parameters(self, op: Op) -> list[str]:
        slot, network = op.slot_name, self._network
        names = [
            self._dequantised(f"{slot}.weight", network.weights[slot], network.weight_scales[slot])
        ]
        if op.bias:
            scales = network.bias_scales(op)
            names.append(self._dequantised(f"{slot}.bias", network.biases[slot], scales))
        return names

    def _dequantised(self, name: str, integers: NDArray[Any], scales: NDArray[np.float32]) -> str:
        inputs = [
            self._add_initializer(name, integers),
            self._add_initializer(f"{name}.scales", scales),
            self._add_initializer(f"{name}.zeros", np.zeros_like(scales, integers.dtype)),
        ]
        return self._append("DequantizeLinear", inputs, f"{name}.real", axis=0)


def _clips_like(op: Op, affine: Affine) -> bool:
    """Return whether the range of int8 values ends where a fused activation clips."""
    upper = FUSED_ACTIVATIONS[op.kind] * (1 + 1e-6)  # The scale is rounded to float32.
    return affine.low == 0 and affine.high <= upper


def _window_attributes(op: Op) -> dict[str, list[int]]:
    """Return the ONNX attributes of the window of a convolution or pooling."""
    return {
        "kernel_shape": [op.kernel] * 2,
        "strides": [op.stride] * 2,
        "pads": [op.padding] * 4,
    }
