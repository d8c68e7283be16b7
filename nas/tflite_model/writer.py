"""Writes the operators of a graph, in which tensors are `batch x height x width x channels`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nas.errors import ExportError
from nas.graph import ACTIVATIONS, Graph, Op
from nas.quantisation.network import FUSED_ACTIVATIONS, FUSING_KINDS
from nas.tflite_model.file import FileBuilder, Quantisation
from nas.tflite_model.numbers import Numbers, spans

INPUT = "image"
"""Name of the model's input."""

OUTPUT = "logits"
"""Name of the model's output."""

_FUSED = {
    "relu": schema.ActivationFunctionType.RELU,
    "relu6": schema.ActivationFunctionType.RELU6,
    "hard_sigmoid": schema.ActivationFunctionType.NONE,  # It is a part of the parameters.
}
"""Activations that operators apply to their output, as TensorFlow Lite names them."""

_UNIT_SCALE = np.array([1 / 255], np.float32)
"""Scale of int8 values that are spread over [0, 1]."""

_NON_NEGATIVE_KINDS = frozenset({"relu", "relu6", "hard_sigmoid"})

_SIGN_KEEPING_KINDS = frozenset(
    {"max_pool", "avg_pool", "global_pool", "slice", "shuffle", "concat", "add", "multiply"}
)
"""Kinds of ops whose output has no negative value if their inputs have none."""


class Writer:
    """Writes the operators and constants of a folded graph. Positions (`at`) are those of ops.

    A graph may have more than one op of kind `input`: a part of a network can read several tensors.

    Args:
        graph: the folded graph.
        numbers: how its numbers are written.
        for_accelerator: see `nas.tflite_model.quantised_model`.
        has_linear: whether a linear layer is an operator of its own, and not a convolution.
    """

    def __init__(
        self,
        graph: Graph,
        numbers: Numbers,
        *,
        for_accelerator: bool = False,
        has_linear: bool = True,
    ) -> None:
        self._graph = graph
        self._has_linear = has_linear
        self._numbers = numbers
        self._file = FileBuilder(any_batch=not for_accelerator)
        self._is_int8 = numbers.dtype is np.int8
        self._has_hard_swish = for_accelerator or not self._is_int8
        self._converts_ends = self._is_int8 and not for_accelerator
        self._tensors: dict[int, int] = {}
        inputs = [at for at, op in enumerate(graph.ops) if op.kind == "input"]
        self._model_outputs: list[int] = []
        self._model_inputs = [self._write_input(at) for at in inputs]
        for at, op in enumerate(graph.ops):
            if at not in self._tensors:
                self._write(at, op)
        self._model_outputs = self._write_outputs()

    def data(self, metadata: Mapping[str, str]) -> bytes:
        """Return the contents of the file."""
        return self._file.data(self._model_inputs, self._model_outputs, metadata)

    def _write(self, at: int, op: Op) -> None:
        match op.kind:
            case "conv":
                self._write_conv(at, op)
            case "linear":
                self._write_linear(at, op)
            case "add":
                options = schema.AddOptionsT(self._activation(at))
                self._finish("ADD", self._inputs(op), at, options)
            case "multiply":
                self._finish("MUL", self._inputs(op), at, schema.MulOptionsT())
            case "concat":
                options = schema.ConcatenationOptionsT(axis=3)
                self._finish("CONCATENATION", self._inputs(op), at, options)
            case "slice":
                self._write_slice(at, op)
            case "shuffle":
                self._write_shuffle(at, op)
            case "max_pool":
                self._write_max_pool(at, op)
            case "avg_pool":
                self._write_avg_pool(at, op)
            case "global_pool":
                inputs = [*self._inputs(op), self._integers(1, 2)]
                self._finish("MEAN", inputs, at, schema.ReducerOptionsT(keepDims=True))
            case "relu" | "relu6":
                self._write_relu(at, op)
            case "hard_swish":
                self._write_hard_swish(at, op)
            case "hard_sigmoid":
                self._finish("MUL", self._hard_sigmoid_factors(at, op), at, schema.MulOptionsT())
            case _:
                raise ExportError(
                    f"TensorFlow Lite has no counterpart of '{op.kind}', op {at} of the network.",
                    remedy="Export it as 'torch', which has all ops.",
                )

    # Ops

    def _write_conv(self, at: int, op: Op) -> None:
        channels = self._graph.input_channels(op)
        x, padding = self._padded(at, op)
        options = {
            "padding": padding,
            "strideW": op.stride,
            "strideH": op.stride,
            "fusedActivationFunction": self._activation(at),
        }
        version = 3 if self._is_int8 else 1
        if 1 < op.groups == channels:
            inputs = [x, *self._parameters(at, (1, 2, 3, 0))]
            multiplier = op.shape[0] // channels
            depthwise = schema.DepthwiseConv2DOptionsT(depthMultiplier=multiplier, **options)
            self._finish("DEPTHWISE_CONV_2D", inputs, at, depthwise, version=version)
        else:
            inputs = [x, *self._parameters(at, (0, 2, 3, 1))]
            version = 6 if op.groups > 1 else version
            self._finish("CONV_2D", inputs, at, schema.Conv2DOptionsT(**options), version=version)

    def _write_linear(self, at: int, op: Op) -> None:
        if not self._has_linear:
            inputs = [*self._inputs(op), *self._parameters(at, (0, 2, 3, 1))]
            conv = schema.Conv2DOptionsT(
                padding=schema.Padding.VALID,
                strideW=1,
                strideH=1,
                fusedActivationFunction=self._activation(at),
            )
            self._finish("CONV_2D", inputs, at, conv, version=3)
            return
        inputs = [*self._inputs(op), *self._parameters(at, (0, 1))]
        options = schema.FullyConnectedOptionsT(
            fusedActivationFunction=self._activation(at), keepNumDims=True
        )
        # Version 5 introduced outputs of four dimensions.
        self._finish("FULLY_CONNECTED", inputs, at, options, version=5)

    def _write_slice(self, at: int, op: Op) -> None:
        """Write a slice; the masks say that it takes all of each dimension but the channels."""
        bounds = [
            self._integers(0, 0, 0, op.start),
            self._integers(0, 0, 0, op.start + op.shape[0]),
            self._integers(1, 1, 1, 1),
        ]
        options = schema.StridedSliceOptionsT(beginMask=0b0111, endMask=0b0111)
        self._finish("STRIDED_SLICE", [*self._inputs(op), *bounds], at, options)

    def _write_shuffle(self, at: int, op: Op) -> None:
        """Write a shuffle with the pixels as one dimension; five need a newer TRANSPOSE."""
        c, h, w = op.shape
        groups = op.groups, c // op.groups
        parts = self._reshape(at, self._tensors[op.inputs[0]], (h * w, *groups), "parts")
        interleaved = self._intermediate(at, (h * w, *reversed(groups)), "interleaved")
        order = self._integers(0, 1, 3, 2)
        self._operator("TRANSPOSE", [parts, order], interleaved)
        self._finish("RESHAPE", [interleaved, self._integers(-1, h, w, c)], at, version=1)

    def _write_max_pool(self, at: int, op: Op) -> None:
        lowest = None if self._is_non_negative(op.inputs[0]) else self._lowest(op.inputs[0])
        x, padding = self._padded(at, op, lowest)
        self._finish("MAX_POOL_2D", [x], at, _pool_options(op, padding))

    def _write_avg_pool(self, at: int, op: Op) -> None:
        """Write an average that counts the zeros of the padding, and nothing beyond the padding.

        AVERAGE_POOL_2D counts only pixels of its input. Therefore the zeros of the padding are
        written into its input, and windows that overhang the input are left to its own padding.
        """
        padding = schema.Padding.SAME
        x = self._tensors[op.inputs[0]]
        if not op.overhangs(*self._input_size(op)):
            x, padding = self._padded(at, op, is_counted=True)
        elif op.padding or not self._is_same(op):
            raise ExportError(
                f"TensorFlow Lite has no counterpart of 'avg_pool', op {at} of the network, with "
                f"windows of {op.kernel} pixels that overhang a map of "
                f"{'x'.join(map(str, self._input_size(op)))} pixels.",
                remedy="Export it as 'torch', which has all ops.",
            )
        self._finish("AVERAGE_POOL_2D", [x], at, _pool_options(op, padding))

    def _write_relu(self, at: int, op: Op) -> None:
        """Write a ReLU that is not fused.

        An int8 output whose values all are allowed ones needs only a conversion, which saturates;
        XNNPACK has no int8 ReLU.
        """
        output = self._numbers.quantisation(at)
        if output and spans(output, upper=FUSED_ACTIVATIONS[op.kind]):
            self._finish("QUANTIZE", self._inputs(op), at, version=1)
        else:
            self._finish(op.kind.upper(), self._inputs(op), at)

    def _write_hard_swish(self, at: int, op: Op) -> None:
        """Write a hard swish, as `x * hard_sigmoid(x)` where the operator is unwanted.

        XNNPACK has no int8 HARD_SWISH. MobileNetV3 with it took 4.5 times as long as with three
        operators that XNNPACK has.
        """
        if self._has_hard_swish:
            self._finish("HARD_SWISH", self._inputs(op), at, version=1)
            return
        c, h, w = op.shape
        gate = self._intermediate(at, (h, w, c), "gate", Quantisation(_UNIT_SCALE, -128))
        self._operator("MUL", self._hard_sigmoid_factors(at, op), gate, schema.MulOptionsT())
        self._finish("MUL", [*self._inputs(op), gate], at, schema.MulOptionsT())

    def _hard_sigmoid_factors(self, at: int, op: Op) -> list[int]:
        """Return `relu6(x + 3)` and 1/6, whose product is the hard sigmoid of an op's input."""
        c, h, w = op.shape
        six = Quantisation(6 * _UNIT_SCALE, -128) if self._is_int8 else None
        shifted = self._intermediate(at, (h, w, c), "shifted", six)
        three, sixth = (self._file.shared_constant(*self._numbers.scalar(v)) for v in (3, 1 / 6))
        options = schema.AddOptionsT(schema.ActivationFunctionType.RELU6)
        self._operator("ADD", [*self._inputs(op), three], shifted, options)
        return [shifted, sixth]

    # The ends

    def _write_input(self, at: int) -> int:
        """Write an op of kind `input`, and return the tensor that the model reads."""
        c, h, w = self._graph.ops[at].shape
        name = INPUT if at == 0 else f"{INPUT}_{at}"
        if self._converts_ends:
            image = self._file.tensor(name, (1, h, w, c), np.float32)
            self._finish("QUANTIZE", [image], at, version=1)
            return image
        quantisation = self._numbers.quantisation(at)
        image = self._file.tensor(name, (1, h, w, c), self._numbers.dtype, quantisation)
        self._tensors[at] = image
        return image

    def _write_outputs(self) -> list[int]:
        """Write what follows the last op, and return the tensors that the model writes."""
        last = len(self._graph.ops) - 1
        c, h, w = self._graph.output_shape
        output = self._tensors[last]
        shape: tuple[int, ...] = (h, w, c)
        if (h, w) == (1, 1):
            shape = (c,)
            output = self._reshape(last, output, shape, "vector")
        if self._converts_ends:
            real = self._file.tensor(OUTPUT, (1, *shape), np.float32)
            self._operator("DEQUANTIZE", [output], real)
            output = real
        self._file.rename(output, OUTPUT)
        return [output]

    # Padding

    def _padded(
        self, at: int, op: Op, lowest: int | None = None, *, is_counted: bool = False
    ) -> tuple[int, int]:
        """Return the input of an op with a window, and the padding that its operator adds.

        The operator's own padding ("same") has fixed sizes. Any other padding is written into the
        input.

        Args:
            at: position of the op.
            op: the op.
            lowest: constant to pad with; None for zeros.
            is_counted: whether padding counts as pixels of the input.
        """
        source = op.inputs[0]
        x = self._tensors[source]
        pads = [_pads(op, *sizes) for sizes in self._sizes(op)]
        if not any(map(any, pads)):
            return x, schema.Padding.VALID
        if self._is_same(op) and not is_counted:
            return x, schema.Padding.SAME
        c, h, w = self._graph.ops[source].shape
        shape = (h + sum(pads[0]), w + sum(pads[1]), c)
        padded = self._intermediate(at, shape, "padded", self._numbers.quantisation(source))
        amounts = np.array([(0, 0), *pads, (0, 0)], np.int32)
        inputs = [x, self._file.shared_constant(amounts)]
        if lowest is None:
            self._operator("PAD", inputs, padded)
        else:
            self._operator("PADV2", [*inputs, lowest], padded)
        return padded, schema.Padding.VALID

    def _is_same(self, op: Op) -> bool:
        """Return whether TensorFlow Lite's padding "same" gives an op all the padding it needs.

        That padding is as small as possible, for an output of `size / stride` pixels, rounded up.
        It adds the same number of pixels on both sides, or one more at the end.
        """
        for size, count in self._sizes(op):
            total = max((count - 1) * op.stride + op.kernel - size, 0)
            if count != -(-size // op.stride):
                return False
            if _pads(op, size, count) != (total // 2, total - total // 2):
                return False
        return True

    def _sizes(self, op: Op) -> list[tuple[int, int]]:
        """Return height and width of an op's input and output, each as a pair of the two."""
        return list(zip(self._input_size(op), op.shape[1:], strict=True))

    def _input_size(self, op: Op) -> tuple[int, int]:
        _, h, w = self._graph.ops[op.inputs[0]].shape
        return h, w

    def _is_non_negative(self, at: int) -> bool:
        op = self._graph.ops[at]
        if op.kind in _SIGN_KEEPING_KINDS:
            return all(self._is_non_negative(source) for source in op.inputs)
        return op.kind in _NON_NEGATIVE_KINDS

    def _lowest(self, at: int) -> int:
        """Return a constant below all values of an op's output, in its scale."""
        lowest = -128 if self._is_int8 else np.finfo(np.float32).min
        return self._file.shared_constant(
            np.array([lowest], self._numbers.dtype), self._numbers.quantisation(at)
        )

    # Operators and tensors

    def _inputs(self, op: Op) -> list[int]:
        return [self._tensors[source] for source in op.inputs]

    def _fused_activation(self, at: int) -> int | None:
        """Return the position of the activation that an op applies to its output."""
        consumers = self._graph.consumers[at]
        if self._graph.ops[at].kind not in FUSING_KINDS or len(consumers) != 1:
            return None
        (activation,) = consumers
        if self._graph.ops[activation].kind not in ACTIVATIONS:
            return None
        return activation if self._numbers.fuses(at, activation) else None

    def _activation(self, at: int) -> int:
        """Return the schema's number of the activation that an op applies to its output."""
        fused = self._fused_activation(at)
        if fused is None:
            return int(schema.ActivationFunctionType.NONE)
        return int(_FUSED[self._graph.ops[fused].kind])

    def _finish(
        self,
        kind: str,
        inputs: Sequence[int],
        at: int,
        options: object | None = None,
        *,
        version: int | None = None,
    ) -> None:
        """Write the operator that computes the output of an op, or that of its activation."""
        fused = self._fused_activation(at)
        c, h, w = self._graph.ops[at].shape
        end = at if fused is None else fused
        output = self._file.tensor(
            self._label(at), (1, h, w, c), self._numbers.dtype, self._numbers.quantisation(end)
        )
        self._operator(kind, inputs, output, options, version=version)
        self._tensors[end] = output

    def _operator(
        self,
        kind: str,
        inputs: Sequence[int],
        output: int,
        options: object | None = None,
        *,
        version: int | None = None,
    ) -> None:
        """Add an operator; those with int8 inputs are version 2 unless said otherwise."""
        if version is None:
            version = 2 if self._is_int8 else 1
        self._file.operator(kind, inputs, output, options, version=version)

    def _reshape(self, at: int, x: int, shape: tuple[int, ...], suffix: str) -> int:
        result = self._intermediate(at, shape, suffix)
        self._operator("RESHAPE", [x, self._integers(-1, *shape)], result, version=1)
        return result

    def _intermediate(
        self, at: int, shape: tuple[int, ...], suffix: str, quantisation: Quantisation | None = None
    ) -> int:
        """Add a tensor that belongs to an op, in the scale of its output unless said otherwise."""
        return self._file.tensor(
            f"{self._label(at)}.{suffix}",
            (1, *shape),
            self._numbers.dtype,
            quantisation or self._numbers.quantisation(at),
        )

    def _parameters(self, at: int, order: tuple[int, ...]) -> list[int]:
        """Add weight and bias of an op.

        Args:
            at: position of the op.
            order: for each dimension of the weight in the file, the one of torch's weight; that of
                a linear layer is one of 1 x 1 pixels if there are four.
        """
        slot = self._graph.ops[at].slot_name
        parameters = self._numbers.parameters(at, self._fused_activation(at))
        weight, bias, weight_scales, bias_scales = parameters
        if weight.ndim < len(order):
            weight = weight[:, :, None, None]
        quantisations = [
            None if scales is None else Quantisation(scales, axis=axis)
            for scales, axis in ((weight_scales, order.index(0)), (bias_scales, 0))
        ]
        return [
            self._file.constant(f"{slot}.weight", weight.transpose(order), quantisations[0]),
            self._file.constant(f"{slot}.bias", bias, quantisations[1]),
        ]

    def _integers(self, *values: int) -> int:
        return self._file.shared_constant(np.array(values, np.int32))

    def _label(self, at: int) -> str:
        """Return the name of an op's output: its slot, or its kind and position."""
        op = self._graph.ops[at]
        return op.slot.name if op.slot else f"{op.kind}_{at}"


def _pool_options(op: Op, padding: int) -> schema.Pool2DOptionsT:
    return schema.Pool2DOptionsT(
        padding=padding,
        strideW=op.stride,
        strideH=op.stride,
        filterWidth=op.kernel,
        filterHeight=op.kernel,
    )


def _pads(op: Op, size: int, count: int) -> tuple[int, int]:
    """Return the pixels that the windows of an op need before and behind its input, on one axis.

    Args:
        op: the op.
        size: number of pixels of the input.
        count: number of windows.
    """
    return op.padding, max(0, (count - 1) * op.stride + op.kernel - size - op.padding)
