"""ONNX models that repeat one kernel, written in the ops that ONNX Runtime optimises to.

These ops belong to ONNX Runtime's own domains, and a model can name them. It then gives them inputs
in the layout that they need, without layout conversions around them. Weights are random, so their
order does not matter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from nas.kernels.kernel import Kernel

MICROSOFT_DOMAIN = "com.microsoft"


class KernelWriter(ABC):
    """Writer of the nodes, initialisers and inputs of a model; each dtype has its own nodes.

    Args:
        kernel: kernel to repeat.
        weight_sets: number of different sets of weights that the copies use in rotation.
        rng: generator of the weights.
    """

    def __init__(self, kernel: Kernel, weight_sets: int, rng: np.random.Generator) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.last = ""
        self._names: set[str] = set()
        self._kernel, self._rng = kernel, rng
        sets = range(weight_sets if kernel.has_weights else 0)
        self._parameters = [self._random_parameters() for _ in sets]
        self._copies = 0

    def add_copy(self) -> None:
        """Add a copy of the kernel.

        Raises:
            MeasurementError: ONNX Runtime has no node for the kernel.
        """
        before, self.last = self.last, f"y{self._copies}"
        if not self._move():
            self._write(before)
        self._copies += 1

    @abstractmethod
    def element_type(self, name: str) -> int:
        """Return the `onnx.TensorProto.DataType` of an input or of `last`."""

    @abstractmethod
    def _write(self, before: str) -> None:
        """Add nodes that make `last` from the inputs, unless `_move` has.

        Args:
            before: output of the copy before; empty for the first copy.
        """

    @abstractmethod
    def _x(self, at: int = 0) -> str:
        """Add an input of the kernel, and return its name."""

    @abstractmethod
    def _random_parameters(self) -> list[str]:
        """Add one set of weights and biases; return their names."""

    # What all dtypes share.

    @property
    def _axis(self) -> int:
        """The axis of the channels."""
        return 3 if self._kernel.channels_last else 1

    def _move(self) -> bool:
        """Add the nodes of a kernel that moves values without computing, and return whether it is.

        Concatenations are not among them: quantised ones have scales.
        """
        kernel, groups = self._kernel, self._kernel.shuffle_groups
        if kernel.kind == "view":
            self._node("Flatten", [self._x()], axis=1)
        elif kernel.kind == "split":
            sizes = self._integers("sizes", [part.channels for part in kernel.inputs])
            others = [f"{self.last}_{at}" for at in range(1, len(kernel.inputs))]
            self._node("Split", [self._x(), sizes], others=others, axis=self._axis)
        elif kernel.kind == "copy" and not kernel.epilogue:
            (part,) = kernel.inputs
            ends = [self._integers(f"at{end}", [end]) for end in (part.start, part.stop)]
            self._node("Slice", [self._x(), *ends, self._integers("axis", [self._axis])])
        elif kernel.kind == "copy" and groups > 1:
            c, h, w = kernel.output
            parts = self._integers("parts", [0, groups, c // groups, h, w])
            x = self._node("Reshape", [self._x(), parts], into="parts")
            x = self._node("Transpose", [x], perm=[0, 2, 1, 3, 4], into="interleaved")
            self._node("Reshape", [x, self._integers("whole", [0, c, h, w])])
        else:
            return False
        return True

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

    # Tensors.

    def _input(self, name: str, shape: tuple[int, ...]) -> str:
        """Add an input of the model, which has `shape` for each image."""
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
        """Add a node and return the name of its output: `last`, or `into` for intermediate ones."""
        output = f"{self.last}_{into}" if into else self.last
        name = f"node{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [output, *others], name, domain=domain, **settings)
        )
        return output
