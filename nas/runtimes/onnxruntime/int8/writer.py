"""The nodes that ONNX Runtime optimises a quantised network to.

They are ops of a domain of ONNX Runtime's own (`com.microsoft`), told that channels lie last.
Scales and zero points are some that a network could have: they do not matter to the clock, but that
a concatenation copies a part with the result's own scale, and converts the others number by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from nas.errors import MeasurementError
from nas.graph import Shape
from nas.runtimes.onnxruntime.writer import MICROSOFT_DOMAIN, Writer


class QuantisedWriter(Writer):
    """See `Writer`; for int8 kernels."""

    def element_type(self, name: str) -> int:
        """See `Writer`: unsigned eight bits, but for what enters and leaves a network."""
        floats = {"quantize": ("x0",), "dequantize": (self.last,)}
        is_float = name in floats.get(self._kernel.kind, ())
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
                self._own_node("QLinearAveragePool", [*self._read(), *self._scale("y")], settings)
            case "global_pool":
                operands = [*self._read(), *self._scale("y")]
                self._own_node("QLinearGlobalAveragePool", operands, {"channels_last": last})
            case "to_nhwc":
                x = self._input("x0", kernel.output)
                self._node("Transpose", [x], perm=[0, 2, 3, 1])
            case "to_plain":
                self._node("Transpose", [self._x()], perm=[0, 3, 1, 2])
            case "quantize":
                self._node("QuantizeLinear", self._read())
            case "dequantize":
                self._node("DequantizeLinear", self._read())
            case "view":
                self._node("Flatten", [self._x()], axis=1)
            case "concat":
                self._concat()
            case "split":
                sizes = self._integers("sizes", [part.channels for part in kernel.inputs])
                others = [f"{self.last}_{at}" for at in range(1, len(kernel.inputs))]
                self._node("Split", [self._x(), sizes], others=others, axis=self._axis)
            case _:
                self._copy(before)

    def _linear_node(self, kind: str, settings: dict[str, Any]) -> None:
        """A node with weights; QGemm wants its bias before the result's scale."""
        weight, scale, zero_point, *bias = self._weights()
        operands = [*self._read(), weight, scale, zero_point]
        result = self._scale("y")
        operands += [*(bias or [""]), *result] if kind == "QGemm" else [*result, *bias]
        self._own_node(kind, operands, settings)

    def _concat(self) -> None:
        parts = [
            name
            for at in range(len(self._kernel.inputs))
            for name in (self._x(at), *self._scale("y" if at == 0 else f"x{at}"))
        ]
        self._own_node("QLinearConcat", [*self._scale("y"), *parts], {"axis": self._axis})

    def _copy(self, before: str) -> None:
        kernel = self._kernel
        c, h, w = kernel.output
        match kernel.epilogue:
            case ():
                (part,) = kernel.inputs
                ends = [self._integers(f"at{end}", [end]) for end in (part.start, part.stop)]
                axis, step = self._integers("axis", [self._axis]), self._integers("step", [1])
                self._node("Slice", [self._x(), *ends, axis, step])
            case ("add",):
                other = before or self._input("sum", self._laid(kernel.output))
                operands = [*self._read(), other, *self._scale("sum"), *self._scale("y")]
                self._own_node("QLinearAdd", operands, {})
            case ("multiply",):
                gate = self._input("gate", self._laid((c, 1, 1)))
                operands = [*self._read(), gate, *self._scale("gate"), *self._scale("y")]
                self._own_node("QLinearMul", operands, {})
            case ("relu",):
                x = self._node("DequantizeLinear", self._read(), into="float")
                self._node("QuantizeLinear", [x, *self._scale("y")])
            case ("hard_sigmoid",) | ("hard_swish",):
                x = self._node("DequantizeLinear", self._read(), into="float")
                share = self._node("HardSigmoid", [x], alpha=1 / 6, beta=0.5, into="share")
                if kernel.epilogue == ("hard_swish",):
                    share = self._node("Mul", [x, share], into="product")
                self._node("QuantizeLinear", [share, *self._scale("y")])
            case (_,) if kernel.shuffle_groups > 1:
                self._shuffle(kernel.shuffle_groups, (c, h, w))
            case _:
                raise MeasurementError(f"ONNX Runtime has no int8 kernel '{kernel}'.")

    def _shuffle(self, groups: int, shape: Shape) -> None:
        c, h, w = shape
        sizes = [0, h, w, groups, c // groups] if self._kernel.channels_last else None
        parts = self._integers("parts", sizes or [0, groups, c // groups, h, w])
        x = self._node("Reshape", [self._x(), parts], into="parts")
        perm = [0, 4, 3, 1, 2] if sizes else [0, 2, 1, 3, 4]
        x = self._node("Transpose", [x], perm=perm, into="interleaved")
        self._node("Reshape", [x, self._integers("whole", [0, c, h, w])])

    def _own_node(self, kind: str, operands: Sequence[str], settings: dict[str, Any]) -> None:
        self._node(kind, operands, MICROSOFT_DOMAIN, **settings)

    # Tensors

    @property
    def _axis(self) -> int:
        return 3 if self._kernel.channels_last else 1

    def _laid(self, shape: Shape) -> tuple[int, ...]:
        c, h, w = shape
        return (h, w, c) if self._kernel.channels_last else shape

    def _x(self, at: int = 0) -> str:
        shape = self._kernel.inputs[at].shape
        vector = self._kernel.kind == "linear"
        return self._input(f"x{at}", shape[:1] if vector else self._laid(shape))

    def _read(self) -> list[str]:
        return [self._x(), *self._scale("x0")]

    def _scale(self, name: str) -> list[str]:
        """Scale and zero point of a tensor; no two tensors have the same."""
        share = sum(map(ord, name)) % 17
        zero_point = np.array(120 + share, np.uint8)
        scale = self._float(f"{name}_scale", 0.02 + 0.001 * share)
        return [scale, self._constant(zero_point, f"{name}_zero_point")]

    def _random_parameters(self) -> list[str]:
        """Weights, their scales and zero points, and perhaps bias."""
        kernel = self._kernel
        if not kernel.has_weights:
            return []
        outputs = kernel.weight_shape[0]
        weight = self._rng.integers(-127, 128, kernel.weight_shape, np.int8)
        found = [
            self._constant(weight),
            self._constant(self._rng.uniform(1e-3, 2e-3, outputs).astype(np.float32)),
            self._constant(np.zeros(outputs, np.int8)),
        ]
        if kernel.has_bias:
            found.append(self._constant(self._rng.integers(-999, 999, outputs, np.int32)))
        return found
