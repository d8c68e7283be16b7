"""The kernels that ONNX Runtime really runs, read from a quantised model that it optimised.

The model has few kinds of nodes, so their shapes are worked out here from their attributes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import onnx
from onnx import helper, numpy_helper

from nas.errors import MeasurementError
from nas.graph import Shape
from nas.kernels.kernel import Kernel
from nas.kernels.kernel_text import Operand, epilogue_step
from nas.runtimes.onnxruntime.int8.fusion import LAYOUT_FREE

_TO_CHANNELS_LAST = [0, 2, 3, 1]
_TO_PLAIN = [0, 3, 1, 2]

_SHUFFLE_PERMUTATION = [0, 2, 1, 3, 4]
"""Transposition in a channel shuffle."""

_POOL = {
    "MaxPool": "max_pool",
    "NhwcMaxPool": "max_pool",
    "QLinearAveragePool": "avg_pool",
    "QLinearGlobalAveragePool": "global_pool",
}


_FLOAT_FUNCTIONS = {
    frozenset[str](): "relu",
    frozenset({"Relu"}): "relu",
    frozenset({"Clip"}): "relu",
    frozenset({"HardSigmoid"}): "hard_sigmoid",
    frozenset({"HardSigmoid", "Mul"}): "hard_swish",
}
"""Functions by the nodes between a conversion to float32 and the one back, which clips, too."""


class _Tensor(NamedTuple):
    """Shape and layout of a tensor.

    Args:
        shape: shape with channels first.
        channels_last: whether its channels are last in memory.
    """

    shape: Shape
    channels_last: bool = False

    @property
    def channel_axis(self) -> int:
        return 3 if self.channels_last else 1


def launched_kernels(optimised: onnx.ModelProto) -> list[Kernel]:
    """Return the kernels of an optimised model in the order of its nodes, for one image.

    Raises:
        MeasurementError: no kernel corresponds to a node.
    """
    return _ModelReader(optimised).kernels


class _ModelReader:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.kernels: list[Kernel] = []
        self._constants = {each.name: each for each in model.graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._nodes = list(model.graph.node)
        for node in self._nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        (image,) = model.graph.input
        sizes = [size.dim_value for size in image.type.tensor_type.shape.dim]
        self._tensors = {image.name: _Tensor((sizes[1], sizes[2], sizes[3]))}
        # Outputs of nodes that belong to the kernel of an earlier node.
        self._merged: set[str] = set()
        for node in self._nodes:
            if node.output[0] not in self._merged:
                self._read(node)

    def _read(self, node: onnx.NodeProto) -> None:
        settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        match node.op_type:
            case "QuantizeLinear":
                self._add_unary(node, "quantize")
            case "DequantizeLinear" if nodes := self._float_nodes(node):
                self._float_function(node, nodes)
            case "DequantizeLinear":
                self._add_unary(node, "dequantize")
            case "QLinearConv":
                self._conv(node, settings)
            case kind if kind in _POOL:
                self._pool(node, settings)
            case "QGemm":
                (outputs, _), bias = self._constants[node.input[3]].dims, len(node.input[6]) > 0
                self._add_unary(node, "linear", (outputs, 1, 1), epilogue=("bias",) * bias)
            case "QLinearAdd":
                self._add_unary(node, "copy", epilogue=("add",))
            case "QLinearMul":
                self._multiply(node)
            case "QLinearConcat":
                self._concat(node, settings)
            case "Split":
                self._split(node, settings)
            case "Slice":
                self._slice(node)
            case "Transpose":
                self._convert_layout(node, settings["perm"])
            case "Reshape" if (transposition := self._shuffle_transposition(node)) is not None:
                self._shuffle(node, transposition)
            case "Flatten" | "Reshape":
                self._add_unary(node, "view")
            case kind:
                raise _unknown(kind)

    def _conv(self, node: onnx.NodeProto, settings: Mapping[str, Any]) -> None:
        outputs, inputs, *_ = self._constants[node.input[3]].dims
        tensor = self._tensors[node.input[0]]
        if tensor.channels_last != bool(settings.get("channels_last", 0)):
            raise _unknown("QLinearConv in another layout")
        window, size = _window(settings, tensor.shape)
        bias = len(node.input) > 8 and node.input[8] != ""
        groups = settings.get("group", 1)
        assert inputs * groups == tensor.shape[0]
        self._add_unary(
            node,
            "conv2d",
            (outputs, *size),
            window=(*window, groups),
            epilogue=("bias",) * bias,
        )

    def _pool(self, node: onnx.NodeProto, settings: Mapping[str, Any]) -> None:
        tensor, kind = self._tensors[node.input[0]], _POOL[node.op_type]
        channels = tensor.shape[0]
        if kind == "global_pool":
            self._add_unary(node, kind, (channels, 1, 1))
            return
        window, size = _window(settings, tensor.shape)
        self._add_unary(node, kind, (channels, *size), window=(*window, 1))

    def _multiply(self, node: onnx.NodeProto) -> None:
        pair = [self._tensors[node.input[at]] for at in (0, 3)]
        # The gate may come first or second; the larger tensor is the one it scales.
        scaled = max(pair, key=lambda tensor: math.prod(tensor.shape))
        shape = scaled.shape
        step = epilogue_step("multiply", Operand.whole((shape[0], 1, 1)), shape)
        self._add_kernel(node.output[0], "copy", [Operand.whole(shape)], scaled, epilogue=(step,))

    def _concat(self, node: onnx.NodeProto, settings: Mapping[str, Any]) -> None:
        parts = [self._tensors[name] for name in node.input[2::3]]
        if any(part.channel_axis != settings["axis"] % 4 for part in parts if _is_map(part)):
            raise _unknown("QLinearConcat of something else than channels")
        whole = _Tensor(
            (sum(part.shape[0] for part in parts), *parts[0].shape[1:]), parts[0].channels_last
        )
        self._add_kernel(
            node.output[0], "concat", [Operand.whole(each.shape) for each in parts], whole
        )

    def _split(self, node: onnx.NodeProto, settings: Mapping[str, Any]) -> None:
        tensor = self._tensors[node.input[0]]
        stops: list[int] = []
        for size in self._values(node.input[1]):
            stops.append((stops[-1] if stops else 0) + size)
        starts = [0, *stops[:-1]]
        parts = [Operand(tensor.shape, *ends) for ends in zip(starts, stops, strict=True)]
        self._add_kernel("", "split", parts, tensor)
        for name, part in zip(node.output, parts, strict=True):
            self._tensors[name] = tensor._replace(shape=(part.channels, *tensor.shape[1:]))

    def _slice(self, node: onnx.NodeProto) -> None:
        tensor = self._tensors[node.input[0]]
        (start,), (stop,) = self._values(node.input[1]), self._values(node.input[2])
        part = Operand(tensor.shape, start, min(stop, tensor.shape[0]))
        whole = tensor._replace(shape=(part.channels, *tensor.shape[1:]))
        self._add_kernel(node.output[0], "copy", [part], whole)

    def _convert_layout(self, node: onnx.NodeProto, perm: Sequence[int]) -> None:
        tensor = self._tensors[node.input[0]]
        if perm not in (_TO_CHANNELS_LAST, _TO_PLAIN) or tensor.channels_last != (
            perm == _TO_PLAIN
        ):
            raise _unknown(f"Transpose by {list(perm)}")
        converted = tensor._replace(channels_last=not tensor.channels_last)
        kind = "to_nhwc" if converted.channels_last else "to_plain"
        self._tensors[node.output[0]] = converted
        self._add_kernel(
            "", kind, [Operand.whole(tensor.shape)], tensor._replace(channels_last=True)
        )

    def _shuffle_transposition(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the transposition of a channel shuffle whose first reshape this is, or None."""
        (reader, *others) = self._readers.get(node.output[0], [None])
        return reader if reader and not others and reader.op_type == "Transpose" else None

    def _shuffle(self, node: onnx.NodeProto, transposition: onnx.NodeProto) -> None:
        (after,) = self._readers[transposition.output[0]]
        tensor = self._tensors[node.input[0]]
        perm = list(helper.get_attribute_value(transposition.attribute[0]))
        if after.op_type != "Reshape" or tensor.channels_last or perm != _SHUFFLE_PERMUTATION:
            raise _unknown(f"Transpose by {perm}")
        groups = self._values(node.input[1])[1]
        self._merged |= {transposition.output[0], after.output[0]}
        step = f"shuffle{groups}"
        self._add_kernel("", "copy", [Operand.whole(tensor.shape)], tensor, epilogue=(step,))
        self._tensors[after.output[0]] = tensor._replace(channels_last=False)

    def _float_nodes(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes behind a conversion to float32, to the conversions back."""
        nodes, names = list[onnx.NodeProto](), [node.output[0]]
        while names:
            for reader in self._readers.get(names.pop(), []):
                if reader not in nodes:
                    nodes.append(reader)
                    names += [] if reader.op_type == "QuantizeLinear" else reader.output
        return nodes

    def _float_function(self, node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> None:
        """Add the kernel of a function that is computed in float32 between two uint8 tensors."""
        ends = [each.output[0] for each in nodes if each.op_type == "QuantizeLinear"]
        kinds = frozenset(each.op_type for each in nodes) - {"QuantizeLinear"}
        if kinds not in _FLOAT_FUNCTIONS or len(ends) != 1:
            raise _unknown(f"{nodes[0].op_type} of floats")
        self._merged.update(each.output[0] for each in nodes)
        tensor = self._tensors[node.input[0]]
        operands, step = [Operand.whole(tensor.shape)], _FLOAT_FUNCTIONS[kinds]
        self._add_kernel(ends[0], "copy", operands, tensor, epilogue=(step,))

    def _add_unary(
        self,
        node: onnx.NodeProto,
        kind: str,
        shape: Shape | None = None,
        *,
        window: tuple[int, int, int, int] = (1, 1, 0, 1),
        epilogue: tuple[str, ...] = (),
    ) -> None:
        """Add a kernel that reads the first input; its output has the same shape by default."""
        tensor = self._tensors[node.input[0]]
        output = tensor._replace(shape=shape or tensor.shape)
        operands = [Operand.whole(tensor.shape)]
        self._add_kernel(node.output[0], kind, operands, output, window=window, epilogue=epilogue)

    def _add_kernel(
        self,
        name: str,
        kind: str,
        operands: Sequence[Operand],
        output: _Tensor,
        *,
        window: tuple[int, int, int, int] = (1, 1, 0, 1),
        epilogue: tuple[str, ...] = (),
    ) -> None:
        if name:
            self._tensors[name] = output
        fits_any = kind == "copy" and LAYOUT_FREE.issuperset(epilogue) and epilogue
        kernel = Kernel(
            kind,
            tuple(operands),
            output.shape,
            *window,
            epilogue=epilogue,
            dtype="int8",
            channels_last=output.channels_last and not fits_any,
        )
        self.kernels.append(kernel)

    def _values(self, name: str) -> list[int]:
        return [int(value) for value in numpy_helper.to_array(self._constants[name])]


def _window(
    settings: Mapping[str, Any], shape: Shape
) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Return kernel size, stride and padding, and the height and width of the output."""
    kernel, stride = settings["kernel_shape"][0], settings.get("strides", [1])[0]
    padding = settings.get("pads", [0])[0]
    rounded = math.ceil if settings.get("ceil_mode", 0) else math.floor
    height, width = (rounded((n + 2 * padding - kernel) / stride) + 1 for n in shape[1:])
    return (kernel, stride, padding), (height, width)


def _is_map(tensor: _Tensor) -> bool:
    return tensor.shape[1:] != (1, 1)


def _unknown(node: str) -> MeasurementError:
    return MeasurementError(
        f"ONNX Runtime runs a {node}, to which no kernel of a table corresponds.",
        remedy="Use a version of onnxruntime that this version of nas supports, or float32.",
    )
