"""`Templates`: the kernels of a kind of device, as the runtime needs them.

A processor's and a graphics card's kernels have nothing in common but this: candidates to sweep, a
TIR function for each, and weights packed as it reads them. Fusion, sweep, timing and whole networks
are the same for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from nas.latency.kernel import Kernel

Schedule = Mapping[str, Any]
"""Numbers and words that JSON can hold: a table's row is enough to build its kernel again."""


class Templates(Protocol):
    """Writes kernels for one TVM target.

    Args:
        target: what the functions are compiled for.
        dtype: of weights and activations, as numpy and TVM name it.
    """

    target: tvm.target.Target
    dtype: str

    def candidates(self, kernel: Kernel) -> list[dict[str, Any]]:
        """Schedules to time first; at least one."""
        ...

    def refinements(self, kernel: Kernel, best: dict[str, Any]) -> list[dict[str, Any]]:
        """Variations of the best schedule so far that are worth timing; may be none."""
        ...

    def function(self, kernel: Kernel, schedule: Schedule, name: str) -> tirx.PrimFunc:
        """The TIR function of a kernel; its symbol is `name`.

        Parameters, all flat in `height, width, channels` order: inputs, weight, bias, the
        epilogue's operands, output; those there are. Raises ValueError for a kernel that these
        templates do not have.
        """
        ...

    def pack(
        self,
        kernel: Kernel,
        schedule: Schedule,
        weight: NDArray[np.float32] | None,
        bias: NDArray[np.float32] | None,
    ) -> list[NDArray[Any]]:
        """The constants of a kernel as its function takes them: weight, then bias, if it has them.

        Args:
            kernel, schedule: what reads them.
            weight: shaped `kernel.weight_shape`.
            bias: one value an output channel.
        """
        ...

    def passes(self) -> tvm.transform.Pass:
        """What lowers a Relax module that consists of calls of these functions."""
        ...


def flat_type(shape: Sequence[int], dtype: str) -> relax.TensorType:
    """The type of a tensor of a shape, as kernels take it: its elements in a row."""
    return relax.TensorType((int(np.prod(shape)),), dtype)


def random_weights(
    kernel: Kernel, rng: np.random.Generator
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Weight and bias that keep activations near one (He et al. 2015), so none is denormal."""
    weight = bias = None
    if kernel.has_weights:
        shape = kernel.weight_shape
        scale = np.sqrt(2 / np.prod(shape[1:]))
        weight = (rng.standard_normal(shape, np.float32) * scale).astype(np.float32)
    if kernel.has_bias:
        bias = rng.standard_normal(kernel.output[0], np.float32) * np.float32(0.1)
    return weight, bias
