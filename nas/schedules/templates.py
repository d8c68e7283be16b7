"""`Templates`: the kernels of a kind of device, as the runtime needs them.

A processor's and a graphics card's kernels have nothing in common but this: candidates to sweep, a
TIR function for each, and weights packed as it reads them. Fusion, sweep, timing and whole networks
are the same for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from nas.latency.kernel import Kernel

Schedule = Mapping[str, Any]
"""Numbers and words that JSON can hold: a table's row is enough to build its kernel again."""


class Expansion(NamedTuple):
    """Weight, shaped `kernel.expansion_shape`, and bias of the expansion of a kernel."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


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

        Parameters, all flat in `height, width, channels` order: inputs, weight and bias of an
        expansion, weight, bias, the epilogue's operands, output; those there are. Raises ValueError
        for a kernel that these templates do not have.
        """
        ...

    def pack(
        self,
        kernel: Kernel,
        schedule: Schedule,
        weight: NDArray[np.float32] | None,
        bias: NDArray[np.float32] | None,
        expansion: Expansion | None = None,
    ) -> list[NDArray[Any]]:
        """The constants of a kernel in the order of its function's parameters.

        Args:
            kernel, schedule: what reads them.
            weight: shaped `kernel.weight_shape`.
            bias: one value an output channel.
            expansion: of a kernel that has one.
        """
        ...


_PASSES = tvm.transform.Sequential(
    [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
)
"""TVM's own lowering without the passes that would fuse or rewrite kernels, or replay them as a
CUDA graph, which launches otherwise than the kernels were timed."""


def build(module: tvm.IRModule, templates: Templates) -> relax.VMExecutable:
    """Compiles a Relax module that consists of calls of these templates' functions."""
    return relax.build(module, templates.target, relax_pipeline=_PASSES, tir_pipeline="tirx")


def flat_type(shape: Sequence[int], dtype: str) -> relax.TensorType:
    """The type of a tensor of a shape, as kernels take it: its elements in a row."""
    return relax.TensorType((int(np.prod(shape)),), dtype)


def random_constants(
    templates: Templates, kernel: Kernel, schedule: Schedule, rng: np.random.Generator
) -> list[NDArray[Any]]:
    """Packed constants that keep activations near one (He et al. 2015), so none is denormal."""

    def weight_of(shape: Sequence[int]) -> NDArray[np.float32]:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return (rng.standard_normal(shape, np.float32) * scale).astype(np.float32)

    def bias_of(count: int) -> NDArray[np.float32]:
        return rng.standard_normal(count, np.float32) * np.float32(0.1)

    expansion = None
    if kernel.is_expanded:
        expansion = Expansion(weight_of(kernel.expansion_shape), bias_of(kernel.groups))
    return templates.pack(
        kernel,
        schedule,
        weight_of(kernel.weight_shape) if kernel.has_weights else None,
        bias_of(kernel.output[0]) if kernel.has_bias else None,
        expansion,
    )
