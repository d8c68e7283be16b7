"""Writes ONNX models of one kernel, many times over, in the ops that ONNX Runtime optimises to.

Such ops are ordinary ones of domains of ONNX Runtime's own, so a model can name them, with inputs
in the layout that they want, and needs no reordering around them. Weights are random: in which
order they lie does not matter to the clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from nas.latency.kernel import Kernel

MICROSOFT_DOMAIN = "com.microsoft"


class Writer(ABC):
    """Nodes, initialisers and inputs of a model; each dtype has nodes of its own.

    Args:
        kernel: what to repeat.
        weights: how many different sets of weights the copies take turns with.
        rng: makes them.
    """

    def __init__(self, kernel: Kernel, weights: int, rng: np.random.Generator) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.last = ""
        self._names: set[str] = set()
        self._kernel, self._rng = kernel, rng
        self._parameters = [self._random_parameters() for _ in range(weights)]
        self._copies = 0

    def add(self) -> None:
        """One more copy of the kernel. Raises MeasurementError for one that no node stands for."""
        before, self.last = self.last, f"y{self._copies}"
        self._write(before)
        self._copies += 1

    @abstractmethod
    def element_type(self, name: str) -> int:
        """The `onnx.TensorProto.DataType` of an input, or of `last`."""

    @abstractmethod
    def _write(self, before: str) -> None:
        """Nodes that make `last` from the inputs; `before` is what the copy before made."""

    @abstractmethod
    def _random_parameters(self) -> list[str]:
        """One set of weights, with all that goes with them; empty for a kernel without any."""

    # Attributes that the ops of all dtypes share

    def _window(self) -> dict[str, list[int]]:
        kernel = self._kernel
        return {
            "kernel_shape": [kernel.kernel] * 2,
            "strides": [kernel.stride] * 2,
            "pads": [kernel.padding] * 4,
        }

    def _pool(self) -> dict[str, Any]:
        kernel = self._kernel
        sizes = zip(kernel.output[1:], kernel.inputs[0].shape[1:], strict=True)
        overhangs = any(
            (count - 1) * kernel.stride + kernel.kernel > size + 2 * kernel.padding
            for count, size in sizes
        )
        return {**self._window(), "ceil_mode": int(overhangs)}

    # Tensors

    def _input(self, name: str, shape: tuple[int, ...]) -> str:
        """A tensor that the model is given: `shape` for each image."""
        self.inputs[name] = (self._kernel.batch, *shape)
        return name

    def _weights(self) -> list[str]:
        return self._parameters[self._copies % len(self._parameters)]

    def _constant(self, array: NDArray[Any], name: str = "") -> str:
        name = name or f"constant{len(self.initializers)}"
        if name not in self._names:
            self._names.add(name)
            self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def _integers(self, name: str, values: Sequence[int]) -> str:
        return self._constant(np.array(values, np.int64), name)

    def _float(self, name: str, value: float) -> str:
        return self._constant(np.array(value, np.float32), name)

    def _node(
        self,
        kind: str,
        inputs: Sequence[str],
        domain: str = "",
        *,
        into: str = "",
        others: Sequence[str] = (),
        **settings: Any,
    ) -> str:
        """Adds a node; its output is this copy's, or an intermediate one called like `into`."""
        output = f"{self.last}_{into}" if into else self.last
        name = f"node{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [output, *others], name, domain=domain, **settings)
        )
        return output
