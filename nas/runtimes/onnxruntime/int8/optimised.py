"""Reads the kernels that ONNX Runtime really runs from a quantised model that it optimised.

Its nodes are few and simple, so their shapes are worked out here from what they say themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import onnx
from onnx import helper, numpy_helper

from nas.errors import MeasurementError
from nas.graph import Shape
from nas.latency.kernel import Kernel, Operand, step_for
from nas.runtimes.onnxruntime.int8.fusion import LAYOUT_FREE

_TO_LAST = [0, 2, 3, 1]
_TO_PLAIN = [0, 3, 1, 2]

_SHUFFLES = ([0, 2, 1, 3, 4], [0, 4, 3, 1, 2])
"""Transpositions in a channel shuffle: of a plain tensor, and of one with its channels last."""

_POOL = {
    "MaxPool": "max_pool",
    "NhwcMaxPool": "max_pool",
    "QLinearAveragePool": "avg_pool",
    "QLinearGlobalAveragePool": "global_pool",
}


class _Tensor(NamedTuple):
    """Shape of a tensor, channels first, and whether they lie last."""

    shape: Shape
    last: bool = False

    @property
    def channel_axis(self) -> int:
        return 3 if self.last else 1


def launched(optimised: onnx.ModelProto) -> list[Kernel]:
    """The kernels of an optimised model of one image, in the order of its nodes.

    Raises MeasurementError for a node that no kernel stands for.
    """
    return _Reader(optimised).kernels


class _Reader:
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
        self._read_with_another: set[str] = set()
        for node in self._nodes:
            if node.output[0] not in self._read_with_another:
                self._read(node)

    def _read(self, node: onnx.NodeProto) -> None:
        settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        match node.op_type:
            case "QuantizeLinear":
                self._add(node, "quantize")
            case "DequantizeLinear" if self._is_floats_way_in(node):
                self._in_float(node)
            case "DequantizeLinear" if (again := self._rounds_again(node)) is not None:
                self._read_with_another.add(again)
                tensor = self._tensors[node.input[0]]
                self._emit(again, "copy", [Operand.whole(tensor.shape)], tensor, epilogue=("relu",))
            case "DequantizeLinear":
                self._add(node, "dequantize")
            case "QLinearConv":
                self._conv(node, settings)
            case kind if kind in _POOL:
                self._pool(node, settings)
            case "QGemm":
                (outputs, _), bias = self._constants[node.input[3]].dims, len(node.input[6]) > 0
                self._add(node, "linear", (outputs, 1, 1), epilogue=("bias",) * bias)
            case "QLinearAdd":
                self._add(node, "copy", epilogue=("add",))
            case "QLinearMul":
                self._multiply(node)
            case "QLinearConcat":
                self._concat(node, settings)
            case "Split":
                self._split(node, settings)
            case "Slice":
                self._slice(node)
            case "Transpose":
                self._turn(node, settings["perm"])
            case "Reshape" if (transposition := self._shuffles(node)) is not None:
                self._shuffle(node, transposition)
            case "Flatten" | "Reshape":
                self._add(node, "view")
            case kind:
                raise _unknown(kind)

    def _conv(self, node: onnx.NodeProto, settings: Mapping[str, Any]) -> None:
        outputs, inputs, *_ = self._constants[node.input[3]].dims
        tensor = self._tensors[node.input[0]]
        if tensor.last != bool(settings.get("channels_last", 0)):
            raise _unknown("QLinearConv in another layout")
        window, size = _window(settings, tensor.shape)
        bias = len(node.input) > 8 and node.input[8] != ""
        groups = settings.get("group", 1)
        assert inputs * groups == tensor.shape[0]
        self._add(
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
            self._add(node, kind, (channels, 1, 1))
            return
        window, size = _window(settings, tensor.shape)
        self._add(node, kind, (channels, *size), window=(*window, 1))

    def _multiply(self, node: onnx.NodeProto) -> None:
        pair = [self._tensors[node.input[at]] for at in (0, 3)]
        # A gate may come first or second; the larger tensor is what it scales.
        scaled = max(pair, key=lambda tensor: math.prod(tensor.shape))
        shape = scaled.shape
        step = step_for("multiply", Operand.whole((shape[0], 1, 1)), shape)
        self._emit(node.output[0], "copy", [Operand.whole(shape)], scaled, epilogue=(step,))

    def _concat(self, node: onnx.NodeProto, settings: Mapping[str, Any]) -> None:
        parts = [self._tensors[name] for name in node.input[2::3]]
        if any(part.channel_axis != settings["axis"] % 4 for part in parts if _is_map(part)):
            raise _unknown("QLinearConcat of something else than channels")
        whole = _Tensor((sum(part.shape[0] for part in parts), *parts[0].shape[1:]), parts[0].last)
        self._emit(node.output[0], "concat", [Operand.whole(each.shape) for each in parts], whole)

    def _split(self, node: onnx.NodeProto, settings: Mapping[str, Any]) -> None:
        tensor = self._tensors[node.input[0]]
        stops: list[int] = []
        for size in self._values(node.input[1]):
            stops.append((stops[-1] if stops else 0) + size)
        starts = [0, *stops[:-1]]
        parts = [Operand(tensor.shape, *ends) for ends in zip(starts, stops, strict=True)]
        self._emit("", "split", parts, tensor)
        for name, part in zip(node.output, parts, strict=True):
            self._tensors[name] = tensor._replace(shape=(part.channels, *tensor.shape[1:]))

    def _slice(self, node: onnx.NodeProto) -> None:
        tensor = self._tensors[node.input[0]]
        (start,), (stop,) = self._values(node.input[1]), self._values(node.input[2])
        part = Operand(tensor.shape, start, min(stop, tensor.shape[0]))
        whole = tensor._replace(shape=(part.channels, *tensor.shape[1:]))
        self._emit(node.output[0], "copy", [part], whole)

    def _turn(self, node: onnx.NodeProto, perm: Sequence[int]) -> None:
        tensor = self._tensors[node.input[0]]
        if perm not in (_TO_LAST, _TO_PLAIN) or tensor.last != (perm == _TO_PLAIN):
            raise _unknown(f"Transpose by {list(perm)}")
        turned = tensor._replace(last=not tensor.last)
        kind = "to_nhwc" if turned.last else "to_plain"
        self._tensors[node.output[0]] = turned
        self._emit("", kind, [Operand.whole(tensor.shape)], tensor._replace(last=True))

    def _shuffles(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The transposition between the two reshapes of a channel shuffle; this is the first."""
        (reader, *others) = self._readers.get(node.output[0], [None])
        return reader if reader and not others and reader.op_type == "Transpose" else None

    def _shuffle(self, node: onnx.NodeProto, transposition: onnx.NodeProto) -> None:
        (after,) = self._readers[transposition.output[0]]
        tensor = self._tensors[node.input[0]]
        perm = list(helper.get_attribute_value(transposition.attribute[0]))
        if after.op_type != "Reshape" or perm != _SHUFFLES[tensor.last]:
            raise _unknown(f"Transpose by {perm}")
        groups = self._values(node.input[1])[3 if tensor.last else 1]
        self._read_with_another |= {transposition.output[0], after.output[0]}
        step = f"shuffle{groups}"
        self._emit("", "copy", [Operand.whole(tensor.shape)], tensor, epilogue=(step,))
        self._tensors[after.output[0]] = tensor._replace(last=False)

    def _rounds_again(self, node: onnx.NodeProto) -> str | None:
        """What a conversion back to eight bits makes of this node's floats, if it alone reads."""
        readers = self._readers.get(node.output[0], [])
        kinds = [each.op_type for each in readers]
        return readers[0].output[0] if kinds == ["QuantizeLinear"] else None

    def _is_floats_way_in(self, node: onnx.NodeProto) -> bool:
        return any(each.op_type == "HardSigmoid" for each in self._readers.get(node.output[0], []))

    def _in_float(self, node: onnx.NodeProto) -> None:
        """A function that is worked out in float32 between two eight-bit tensors."""
        (name,), step = node.output, "hard_sigmoid"
        sigmoid = next(each for each in self._readers[name] if each.op_type == "HardSigmoid")
        rest = [each for each in self._readers[name] if each is not sigmoid]
        end = sigmoid
        if rest and rest[0].op_type == "Mul" and sigmoid.output[0] in rest[0].input:
            step, end, rest = "hard_swish", rest[0], rest[1:]
        after = self._readers[end.output[0]]
        if rest or [each.op_type for each in after] != ["QuantizeLinear"]:
            raise _unknown(f"{step.replace('_', ' ')} of floats")
        self._read_with_another |= {sigmoid.output[0], end.output[0], after[0].output[0]}
        tensor = self._tensors[node.input[0]]
        operands = [Operand.whole(tensor.shape)]
        self._emit(after[0].output[0], "copy", operands, tensor, epilogue=(step,))

    def _add(
        self,
        node: onnx.NodeProto,
        kind: str,
        shape: Shape | None = None,
        *,
        window: tuple[int, int, int, int] = (1, 1, 0, 1),
        epilogue: tuple[str, ...] = (),
    ) -> None:
        """A kernel of the first input, shaped like it unless given another shape."""
        tensor = self._tensors[node.input[0]]
        made = tensor._replace(shape=shape or tensor.shape)
        operands = [Operand.whole(tensor.shape)]
        self._emit(node.output[0], kind, operands, made, window=window, epilogue=epilogue)

    def _emit(
        self,
        name: str,
        kind: str,
        operands: Sequence[Operand],
        made: _Tensor,
        *,
        window: tuple[int, int, int, int] = (1, 1, 0, 1),
        epilogue: tuple[str, ...] = (),
    ) -> None:
        if name:
            self._tensors[name] = made
        free = kind == "copy" and LAYOUT_FREE.issuperset(epilogue) and epilogue
        kernel = Kernel(
            kind,
            tuple(operands),
            made.shape,
            *window,
            epilogue=epilogue,
            dtype="int8",
            channels_last=made.last and not free,
        )
        self.kernels.append(kernel)

    def _values(self, name: str) -> list[int]:
        return [int(value) for value in numpy_helper.to_array(self._constants[name])]


def _window(
    settings: Mapping[str, Any], shape: Shape
) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Kernel size, stride and padding, and the size of what comes out."""
    kernel, stride = settings["kernel_shape"][0], settings.get("strides", [1])[0]
    padding = settings.get("pads", [0])[0]
    rounded = math.ceil if settings.get("ceil_mode", 0) else math.floor
    height, width = (rounded((n + 2 * padding - kernel) / stride) + 1 for n in shape[1:])
    return (kernel, stride, padding), (height, width)


def _is_map(tensor: _Tensor) -> bool:
    return tensor.shape[1:] != (1, 1)


def _unknown(what: str) -> MeasurementError:
    return MeasurementError(
        f"ONNX Runtime runs a {what}, which no kernel of a table stands for.",
        remedy="Use a version of onnxruntime that this version of nas knows, or float32.",
    )
