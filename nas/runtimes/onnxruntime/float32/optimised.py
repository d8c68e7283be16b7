"""The kernels that ONNX Runtime really runs, read from a float32 model that it optimised.

In the optimised model, blocked tensors are padded to whole blocks and have new names. The name of a
node still tells which tensor of the original model it makes, and the original model has its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import helper, numpy_helper, shape_inference

from nas.errors import MeasurementError
from nas.graph import Shape
from nas.kernels.kernel import Kernel
from nas.kernels.kernel_text import Operand, epilogue_step

BLOCKED_DOMAIN = "com.microsoft.nchwc"
_BLOCKED_SUFFIX = "_nchwc"

_ACTIVATION = {
    "Relu": "relu",
    "Clip": "relu6",
    "HardSwish": "hard_swish",
    "HardSigmoid": "hard_sigmoid",
}
"""Activations by their names in ONNX, both as ops and as attributes of a convolution."""

_LAYOUT_FREE = frozenset({"Add", "Mul", "Concat", *_ACTIVATION})
"""Ops that ONNX Runtime runs on blocked tensors like on plain ones."""

_POOL = {"MaxPool": "max_pool", "AveragePool": "avg_pool"}


def launched_kernels(
    original: onnx.ModelProto, optimised: onnx.ModelProto, block: int
) -> list[Kernel]:
    """Return the kernels of an optimised model in the order of its nodes, for one image.

    Args:
        original: the model before optimising.
        optimised: the model after optimising.
        block: number of channels in a block.

    Raises:
        MeasurementError: no kernel corresponds to a node.
    """
    return _ModelReader(original, optimised, block).kernels


class _ModelReader:
    def __init__(self, original: onnx.ModelProto, optimised: onnx.ModelProto, block: int) -> None:
        self.kernels: list[Kernel] = []
        self._block = block
        self._constants = {each.name: each for each in optimised.graph.initializer}
        self._nodes = list(optimised.graph.node)
        self._shapes, shapes_by_node = _infer_shapes(original)
        self._blocked: set[str] = set()
        for node in self._nodes:
            stem = node.name.partition(_BLOCKED_SUFFIX)[0]
            shape = shapes_by_node.get(stem) or self._shapes.get(stem)
            if shape and len(node.output) == 1:
                self._shapes.setdefault(node.output[0], shape)
            makes_blocks = node.domain == BLOCKED_DOMAIN and node.op_type != "ReorderOutput"
            keeps_blocks = node.op_type in _LAYOUT_FREE and self._blocked.issuperset(node.input)
            if makes_blocks or keeps_blocks:
                self._blocked.update(node.output)
        # Positions of nodes that belong to the kernel of an earlier node.
        self._merged: set[int] = set()
        for at, node in enumerate(self._nodes):
            if at not in self._merged:
                self._read(at, node)

    def _read(self, at: int, node: onnx.NodeProto) -> None:
        settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        match node.op_type:
            case "Conv" | "FusedConv":
                self._conv(node, settings)
            case "MaxPool" | "AveragePool":
                window = (settings["kernel_shape"][0], settings["strides"][0], settings["pads"][0])
                self._add(node, _POOL[node.op_type], window=(*window, 1))
            case "GlobalAveragePool":
                self._add(node, "global_pool")
            case "Gemm":
                self._add(node, "linear", epilogue=("bias",) * (len(node.input) > 2))
            case "Add" | "Mul":
                kind = "add" if node.op_type == "Add" else "multiply"
                first, second = (self._shape(name) for name in node.input)
                # The gate may come first or second; the larger tensor is the one it scales.
                shape = max(first, second, key=lambda shape: shape[1] * shape[2])
                other = shape if kind == "add" else (shape[0], 1, 1)
                step = epilogue_step(kind, Operand.whole(other), shape)
                self._add(node, "copy", epilogue=(step,), inputs=(shape,), output=shape)
            case "HardSigmoid" if (product := self._hard_swish_product(node)) is not None:
                self._merged.add(product)
                shape = self._shape(node.input[0])
                self._add(node, "copy", epilogue=("hard_swish",), output=shape)
            case kind if kind in _ACTIVATION:
                self._add(node, "copy", epilogue=(_ACTIVATION[kind],))
            case "Concat":
                self._add(node, "concat", inputs=tuple(self._shape(x) for x in node.input))
            case "Split":
                self._split(node)
            case "Slice":
                self._slice(node)
            case "Transpose":
                self._shuffle(node)
            case "ReorderInput":
                self._convert_layout(node, "to_blocked")
            case "ReorderOutput":
                self._convert_layout(node, "to_plain")
            case "Reshape" if self._belongs_to_shuffle(node):
                pass
            case "Flatten" | "Reshape":
                shape = self._shape(node.input[0])
                self._add(node, "view", output=shape)
            case kind:
                raise MeasurementError(
                    f"ONNX Runtime runs a {kind}, to which no kernel of a table corresponds.",
                    remedy="Use a version of onnxruntime that this version of nas supports.",
                )

    def _conv(self, node: onnx.NodeProto, settings: Mapping[str, Any]) -> None:
        output, source = self._shape(node.output[0]), self._shape(node.input[0])
        self._shapes[node.output[0]] = output
        has_input = [name != "" for name in node.input] + [False] * (4 - len(node.input))
        epilogue = ["bias"] * has_input[2] + ["add"] * has_input[3]
        if "activation" in settings:
            epilogue.append(_ACTIVATION[settings["activation"].decode()])
        groups = settings.get("group", 1)
        weight = self._constants[node.input[1]].dims
        if groups == weight[0] and weight[1] == 1 and groups > 1:
            # A depthwise convolution is padded to whole blocks of groups.
            groups = output[0]
        window = (settings["kernel_shape"][0], settings["strides"][0], settings["pads"][0], groups)
        self._add(node, "conv2d", inputs=(source,), window=window, epilogue=tuple(epilogue))

    def _hard_swish_product(self, node: onnx.NodeProto) -> int | None:
        """Return the position of the product that makes a hard sigmoid a hard swish, or None."""
        for at, after in enumerate(self._nodes):
            if after.op_type == "Mul" and set(after.input) == {node.input[0], node.output[0]}:
                self._shapes[after.output[0]] = self._shape(node.input[0])
                return at
        return None

    def _split(self, node: onnx.NodeProto) -> None:
        shape = self._shape(node.input[0])
        stops: list[int] = []
        for size in self._values(node.input[1]):
            stops.append((stops[-1] if stops else 0) + size)
        starts = [0, *stops[:-1]]
        parts = tuple(Operand(shape, *ends) for ends in zip(starts, stops, strict=True))
        self.kernels.append(Kernel("split", parts, shape))

    def _slice(self, node: onnx.NodeProto) -> None:
        shape = self._shape(node.input[0])
        (start,), (stop,) = self._values(node.input[1]), self._values(node.input[2])
        part = Operand(shape, start, min(stop, shape[0]))
        self.kernels.append(Kernel("copy", (part,), (part.channels, *shape[1:])))

    def _belongs_to_shuffle(self, node: onnx.NodeProto) -> bool:
        """Return whether a reshape is next to the transposition of a channel shuffle."""
        transpositions = [each for each in self._nodes if each.op_type == "Transpose"]
        return any(
            node.output[0] == each.input[0] or node.input[0] == each.output[0]
            for each in transpositions
        )

    def _shuffle(self, node: onnx.NodeProto) -> None:
        before = next(each for each in self._nodes if node.input[0] in each.output)
        after = next(each for each in self._nodes if node.output[0] in each.input)
        shape = self._shape(before.input[0])
        self._shapes[after.output[0]] = shape
        groups = self._values(before.input[1])[1]
        self._add(node, "copy", inputs=(shape,), output=shape, epilogue=(f"shuffle{groups}",))

    def _convert_layout(self, node: onnx.NodeProto, kind: str) -> None:
        shape = self._shape(node.input[0])
        self._shapes[node.output[0]] = shape
        self.kernels.append(Kernel(kind, (Operand.whole(shape),), shape, block=self._block))

    def _add(
        self,
        node: onnx.NodeProto,
        kind: str,
        *,
        inputs: tuple[Shape, ...] = (),
        output: Shape | None = None,
        window: tuple[int, int, int, int] = (1, 1, 0, 1),
        epilogue: tuple[str, ...] = (),
    ) -> None:
        shape = output or self._shape(node.output[0])
        self._shapes[node.output[0]] = shape
        input_shapes = inputs or (self._shape(node.input[0]),)
        operands = tuple(Operand.whole(each) for each in input_shapes)
        block = self._block if node.output[0] in self._blocked else 1
        self.kernels.append(Kernel(kind, operands, shape, *window, epilogue=epilogue, block=block))

    def _shape(self, name: str) -> Shape:
        if name not in self._shapes:
            raise MeasurementError(
                f"The shape of tensor {name!r} of the optimised model is unknown."
            )
        return self._shapes[name]

    def _values(self, name: str) -> list[int]:
        return [int(value) for value in numpy_helper.to_array(self._constants[name])]


def _infer_shapes(model: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Return the shapes of a model's tensors by their names, and by the names of their nodes."""
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes: dict[str, Shape] = {}
    for each in (*graph.input, *graph.value_info, *graph.output):
        sizes = [size.dim_value for size in each.type.tensor_type.shape.dim][1:]
        if len(sizes) in (1, 3):
            shapes[each.name] = (sizes[0], *(sizes[1:] or (1, 1)))
    by_node = {node.name: shapes[node.output[0]] for node in graph.node if node.output[0] in shapes}
    return shapes, by_node
