"""The nodes to which ONNX Runtime optimises a quantised network.

They are ops of ONNX Runtime's own domain `com.microsoft`, with an attribute for channels last.
Scales and zero points are some that a network could have; they affect no latency.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from nas.errors import MeasurementError
from nas.graph import Shape
from nas.runtimes.onnxruntime.writer import MICROSOFT_DOMAIN, KernelWriter


class QuantisedWriter(KernelWriter):
    """Writer of int8 kernels."""

    def element_type(self, name: str) -> int:
        """Return uint8, or float32 for the input and the output of a network."""
        float_tensors = {"quantize": ("x0",), "dequantize": (self.last,)}
        is_float = name in float_tensors.get(self._kernel.kind, ())
        return TensorProto.FLOAT if is_float else TensorProto.UINT8

    def _write(self, before: str) -> None:
        kernel = self._kernel
        last = int(kernel.channels_last)
        match kernel.kind:
            case "conv2d":
                settings = {"group": kernel.groups, "dilations": [1, 1], "channels_last": last}
                self._linear_node("QLinearConv", self._window() | settings)
            case "linear":
                self._linear_node("QGemm", {"transA": 0, "transB": 1, "alpha": 1.0})
            case "max_pool" if kernel.channels_last:
                self._node("NhwcMaxPool", [self._x()], MICROSOFT_DOMAIN, **self._pool())
            case "max_pool":
                self._node("MaxPool", [self._x()], **self._pool())
            case "avg_pool":
                padded = int(kernel.padding > 0)
                settings = {**self._pool(), "count_include_pad": padded, "channels_last": last}
                self._microsoft_node(
                    "QLinearAveragePool", [*self._read(), *self._scale("y")], settings
                )
            case "global_pool":
                operands = [*self._read(), *self._scale("y")]
                self._microsoft_node("QLinearGlobalAveragePool", operands, {"channels_last": last})
            case "to_nhwc":
                x = self._input("x0", kernel.output)
                self._node("Transpose", [x], perm=[0, 2, 3, 1])
            case "to_plain":
                self._node("Transpose", [self._x()], perm=[0, 3, 1, 2])
            case "quantize":
                self._node("QuantizeLinear", self._read())
            case "dequantize":
                self._node("DequantizeLinear", self._read())
            case "concat":
                self._concat()
            case _:
                self._copy(before)

    def _linear_node(self, kind: str, settings: dict[str, Any]) -> None:
        """Add a node with weights; QGemm has its bias before the scale of the result."""
        weight, scale, zero_point, *bias = self._weights()
        operands = [*self._read(), weight, scale, zero_point]
        result = self._scale("y")
        operands += [*(bias or [""]), *result] if kind == "QGemm" else [*result, *bias]
        self._microsoft_node(kind, operands, settings)

    def _concat(self) -> None:
        """Add a concatenation, whose inputs and output have one scale: it only copies."""
        scale = self._scale("y")
        parts = [name for at in range(len(self._kernel.inputs)) for name in (self._x(at), *scale)]
        self._microsoft_node("QLinearConcat", [*scale, *parts], {"axis": self._axis})

    def _copy(self, before: str) -> None:
        kernel = self._kernel
        match kernel.epilogue:
            case ("add",):
                other = before or self._input("sum", self._in_layout(kernel.output))
                operands = [*self._read(), other, *self._scale("sum"), *self._scale("y")]
                self._microsoft_node("QLinearAdd", operands, {})
            case ("multiply",):
                gate = self._input("gate", self._in_layout((kernel.output[0], 1, 1)))
                operands = [*self._read(), gate, *self._scale("gate"), *self._scale("y")]
                self._microsoft_node("QLinearMul", operands, {})
            case ("relu",):
                x = self._node("DequantizeLinear", self._read(), into="float")
                self._node("QuantizeLinear", [x, *self._scale("y")])
            case ("hard_sigmoid",) | ("hard_swish",):
                x = self._node("DequantizeLinear", self._read(), into="float")
                share = self._node("HardSigmoid", [x], alpha=1 / 6, beta=0.5, into="share")
                if kernel.epilogue == ("hard_swish",):
                    share = self._node("Mul", [x, share], into="product")
                self._node("QuantizeLinear", [share, *self._scale("y")])
            case _:
                raise MeasurementError(f"ONNX Runtime has no int8 kernel '{kernel}'.")

    def _microsoft_node(self, kind: str, operands: Sequence[str], settings: dict[str, Any]) -> None:
        self._node(kind, operands, MICROSOFT_DOMAIN, **settings)

    # Tensors.

    def _in_layout(self, shape: Shape) -> tuple[int, ...]:
        """Return a shape `channels x height x width` in the layout of the kernel."""
        c, h, w = shape
        return (h, w, c) if self._kernel.channels_last else shape

    def _x(self, at: int = 0) -> str:
        shape = self._kernel.inputs[at].shape
        vector = self._kernel.kind == "linear"
        return self._input(f"x{at}", shape[:1] if vector else self._in_layout(shape))

    def _read(self) -> list[str]:
        return [self._x(), *self._scale("x0")]

    def _scale(self, name: str) -> list[str]:
        """Add the scale and the zero point of a tensor; they depend on its name."""
        variation = sum(map(ord, name)) % 17
        zero_point = np.array(120 + variation, np.uint8)
        scale = self._float(f"{name}_scale", 0.02 + 0.001 * variation)
        return [scale, self._constant(zero_point, f"{name}_zero_point")]

    def _random_parameters(self) -> list[str]:
        """Add weights, their scales and zero points, and biases; return their names."""
        kernel = self._kernel
        outputs = kernel.weight_shape[0]
        weight = self._rng.integers(-127, 128, kernel.weight_shape, np.int8)
        names = [
            self._constant(weight),
            self._constant(self._rng.uniform(1e-3, 2e-3, outputs).astype(np.float32)),
            self._constant(np.zeros(outputs, np.int8)),
        ]
        if kernel.has_bias:
            names.append(self._constant(self._rng.integers(-999, 999, outputs, np.int32)))
        return names
