"""Schedule templates of NVIDIA GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules import window
from nas.schedules.cuda import (
    candidates,
    data_movement,
    dense,
    depthwise,
    fused_expansion,
    matrix_vector,
)
from nas.schedules.templates import Constants, Schedule


@dataclass
class CudaTemplates:
    """Write kernels for one image on an NVIDIA GPU; see `nas.schedules.templates.Templates`.

    Args:
        target: a `cuda` target with a host target.
        dtype: `float32` or `float16`, of weights and activations; sums are in float32.
    """

    target: tvm.target.Target
    dtype: str = "float32"

    @classmethod
    def for_arch(cls, arch: str, dtype: str) -> CudaTemplates:
        """Return templates for a compute capability such as `sm_80`; no GPU is needed."""
        return cls(tvm.target.Target({"kind": "cuda", "arch": arch}, host="llvm"), dtype)

    def candidates(self, kernel: Kernel) -> list[dict[str, Any]]:
        """Return the schedules to measure first; see `Templates.candidates`."""
        return candidates.first_candidates(kernel, self.dtype)

    def refinements(self, kernel: Kernel, best: dict[str, Any]) -> list[dict[str, Any]]:
        """Return variations of the fastest schedule so far; see `Templates.refinements`."""
        return candidates.refinements(kernel, best, self.dtype)

    def function(self, kernel: Kernel, schedule: Schedule, name: str) -> tirx.PrimFunc:
        """Return the TIR function of a kernel; see `Templates.function`."""
        if kernel.batch > 1:
            raise ValueError("CUDA kernels are written for one image, not for a batch")
        arguments = kernel, schedule, self.dtype, name
        if kernel.is_expanded:
            return fused_expansion.function(*arguments)
        if kernel.is_channelwise:
            return depthwise.function(*arguments)
        if matrix_vector.applies(kernel):
            return matrix_vector.function(*arguments)
        if kernel.has_weights:
            return dense.function(*arguments)
        if kernel.kind == "global_pool":
            return data_movement.global_pool(*arguments)
        if kernel.kind in ("concat", "copy"):
            return data_movement.concat(*arguments)
        raise ValueError(f"no CUDA kernel is written for a {kernel.kind}")

    def pack(self, kernel: Kernel, schedule: Schedule, own: Constants) -> list[NDArray[Any]]:
        """Return the constants of a kernel as its function reads them; see `Templates.pack`."""
        weight, bias, expansion = own
        constants: list[NDArray[Any]] = []
        arguments = kernel, schedule, self.dtype
        if expansion is not None:
            constants += fused_expansion.pack_expansion(*arguments, expansion)
        is_dense = not kernel.is_channelwise and not matrix_vector.applies(kernel)
        if weight is not None:
            if kernel.is_channelwise:
                constants.append(window.pack_weight(weight))
            elif is_dense:
                constants.append(dense.pack_weight(*arguments, weight))
            else:
                constants.append(matrix_vector.pack_weight(*arguments, weight))
        if bias is not None:
            constants.append(dense.pack_bias(*arguments, bias) if is_dense else bias)
        return [np.ascontiguousarray(array).astype(self.dtype) for array in constants]
