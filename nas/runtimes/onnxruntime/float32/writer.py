"""The nodes to which ONNX Runtime optimises a float32 network.

Blocked convolutions, pools and layout conversions are ops of ONNX Runtime's own domain
`com.microsoft.nchwc`, with blocked inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from nas.errors import MeasurementError
from nas.kernels.kernel import Kernel
from nas.runtimes.onnxruntime.writer import MICROSOFT_DOMAIN, KernelWriter

BLOCKED_DOMAIN = "com.microsoft.nchwc"

_ACTIVATION: dict[str, tuple[str, list[float]]] = {
    "relu": ("Relu", []),
    "relu6": ("Clip", [0.0, 6.0]),
    "hard_swish": ("HardSwish", []),
    "hard_sigmoid": ("HardSigmoid", [1 / 6, 0.5]),
}
"""Values of the attributes `activation` and `activation_params` of a convolution."""


class BlockedWriter(KernelWriter):
    """Writer of float32 kernels, blocked or plain."""

    def __init__(self, kernel: Kernel, weight_sets: int, rng: np.random.Generator) -> None:
        self._domain = BLOCKED_DOMAIN if kernel.block > 1 else ""
        super().__init__(kernel, weight_sets, rng)

    def element_type(self, name: str) -> int:
        """See `KernelWriter.element_type`."""
        return TensorProto.FLOAT

    def _write(self, before: str) -> None:
        kernel = self._kernel
        match kernel.kind:
            case "conv2d":
                self._conv(before)
            case "linear":
                self._node("Gemm", [self._x(), *self._weights()], transB=1)
            case "max_pool":
                self._node("MaxPool", [self._x()], self._domain, **self._pool())
            case "avg_pool":
                padded = int(kernel.padding > 0)
                settings = {**self._pool(), "count_include_pad": padded}
                self._node("AveragePool", [self._x()], self._domain, **settings)
            case "global_pool":
                self._node("GlobalAveragePool", [self._x()], self._domain)
            case "to_blocked":
                x = self._input("x0", kernel.output)
                self._node("ReorderInput", [x], BLOCKED_DOMAIN, channels_last=0)
            case "to_plain":
                settings = {"channels": kernel.output[0], "channels_last": 0}
                self._node("ReorderOutput", [self._x()], BLOCKED_DOMAIN, **settings)
            case "concat":
                parts = [self._x(at) for at in range(len(kernel.inputs))]
                self._node("Concat", parts, axis=1)
            case _:
                self._copy(before)

    def _conv(self, before: str) -> None:
        kernel = self._kernel
        operands = [self._x(), *self._weights()]
        if "add" in kernel.epilogue:
            operands += [""] * (3 - len(operands))
            operands.append(before or self._input("sum", self._padded(kernel.output)))
        settings: dict[str, Any] = {
            "group": self._groups,
            **self._window(),
            "dilations": [1, 1],
        }
        for step in kernel.epilogue:
            if step in _ACTIVATION:
                settings["activation"], parameters = _ACTIVATION[step]
                if parameters:
                    settings["activation_params"] = parameters
        if kernel.block > 1:
            self._node("Conv", operands, BLOCKED_DOMAIN, **settings)
        elif "activation" in settings or "add" in kernel.epilogue:
            self._node("FusedConv", operands, MICROSOFT_DOMAIN, **settings)
        else:
            self._node("Conv", operands, **settings)

    def _copy(self, before: str) -> None:
        kernel = self._kernel
        match kernel.epilogue:
            case ("add",):
                other = before or self._input("sum", self._padded(kernel.output))
                self._node("Add", [self._x(), other])
            case ("multiply",):
                gate = self._input("gate", self._padded((kernel.output[0], 1, 1)))
                self._node("Mul", [self._x(), gate])
            case ("relu",):
                self._node("Relu", [self._x()])
            case ("relu6",):
                bounds = [self._float("low", 0.0), self._float("high", 6.0)]
                self._node("Clip", [self._x(), *bounds])
            case ("hard_sigmoid",):
                self._node("HardSigmoid", [self._x()], alpha=1 / 6, beta=0.5)
            case ("hard_swish",):
                share = self._node("HardSigmoid", [self._x()], alpha=1 / 6, beta=0.5, into="share")
                self._node("Mul", [self._x(), share])
            case _:
                raise MeasurementError(f"ONNX Runtime has no kernel '{kernel}'.")

    # Tensors.

    @property
    def _reads_plain(self) -> bool:
        """Whether the kernel reads a plain tensor, as convolutions of less than a block do."""
        kernel = self._kernel
        is_dense = kernel.kind == "conv2d" and kernel.groups == 1
        return kernel.block == 1 or (is_dense and kernel.inputs[0].channels < kernel.block)

    @property
    def _groups(self) -> int:
        kernel = self._kernel
        return self._padded((kernel.groups,))[0] if kernel.is_depthwise else kernel.groups

    def _padded(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return a shape with its channels padded to whole blocks."""
        block = self._kernel.block
        return (math.ceil(shape[0] / block) * block, *shape[1:])

    def _x(self, at: int = 0) -> str:
        kernel, shape = self._kernel, self._kernel.inputs[at].shape
        size = shape[:1] if kernel.kind == "linear" else shape
        return self._input(f"x{at}", size if self._reads_plain else self._padded(size))

    def _random_parameters(self) -> list[str]:
        """Add weights that neither overflow nor become denormal numbers, and biases."""
        kernel = self._kernel
        shape = kernel.weight_shape
        if kernel.kind == "conv2d":
            outputs, inputs = self._padded(shape)[0], shape[1]
            if kernel.groups == 1 and not self._reads_plain:
                inputs = self._padded((inputs,))[0]
            shape = (outputs, inputs, *shape[2:])
        scale = np.float32(math.sqrt(12 / np.prod(shape[1:])))
        names = [self._constant((self._rng.random(shape, np.float32) - np.float32(0.5)) * scale)]
        if kernel.has_bias:
            names.append(self._constant(self._rng.random(shape[0], np.float32)))
        return names
