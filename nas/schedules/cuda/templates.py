"""The kernels of an NVIDIA GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import tirx

from nas.latency.kernel import Kernel
from nas.schedules.cuda import candidates, data_movement, dense, depthwise, fused_expansion, vector
from nas.schedules.templates import Expansion, Schedule


@dataclass
class CudaTemplates:
    """See `nas.schedules.templates.Templates`.

    Args:
        target: a `cuda` target with its host's.
        dtype: one of `DTYPES`.
    """

    target: tvm.target.Target
    dtype: str = "float32"

    @classmethod
    def for_arch(cls, arch: str, dtype: str) -> CudaTemplates:
        """For a compute capability such as `sm_80`; compiling for one needs no GPU."""
        return cls(tvm.target.Target({"kind": "cuda", "arch": arch}, host="llvm"), dtype)

    def candidates(self, kernel: Kernel) -> list[dict[str, Any]]:
        """See `Templates.candidates`."""
        return candidates.first_candidates(kernel, self.dtype)

    def refinements(self, kernel: Kernel, best: dict[str, Any]) -> list[dict[str, Any]]:
        """See `Templates.refinements`."""
        return candidates.refinements(kernel, best, self.dtype)

    def function(self, kernel: Kernel, schedule: Schedule, name: str) -> tirx.PrimFunc:
        """See `Templates.function`."""
        if kernel.batch > 1:
            raise ValueError("the GPU's kernels are for one image")
        if kernel.is_expanded:
            return fused_expansion.function(kernel, schedule, self.dtype, name)
        if kernel.is_channelwise:
            return depthwise.function(kernel, schedule, self.dtype, name)
        if vector.fits(kernel):
            return vector.function(kernel, schedule, self.dtype, name)
        if kernel.has_weights:
            return dense.function(kernel, schedule, self.dtype, name)
        if kernel.kind == "global_pool":
            return data_movement.global_pool(kernel, schedule, self.dtype, name)
        if kernel.kind in ("concat", "copy"):
            return data_movement.concat(kernel, schedule, self.dtype, name)
        raise ValueError(f"no GPU kernel is written for a {kernel.kind}")

    def pack(
        self,
        kernel: Kernel,
        schedule: Schedule,
        weight: NDArray[np.float32] | None,
        bias: NDArray[np.float32] | None,
        expansion: Expansion | None = None,
    ) -> list[NDArray[Any]]:
        """See `Templates.pack`."""
        found: list[NDArray[Any]] = []
        if expansion is not None:
            found += fused_expansion.pack(kernel, schedule, self.dtype, expansion)
        tiled = not kernel.is_channelwise and not vector.fits(kernel)
        if kernel.has_weights:
            assert weight is not None
            if kernel.is_channelwise:
                found.append(depthwise.pack_weight(weight))
            elif tiled:
                found.append(dense.pack_weight(kernel, schedule, self.dtype, weight))
            else:
                found.append(vector.pack_weight(kernel, schedule, self.dtype, weight))
        if kernel.has_bias:
            assert bias is not None
            packed = dense.pack_bias(kernel, schedule, self.dtype, bias) if tiled else bias
            found.append(np.ascontiguousarray(packed))
        return [array.astype(self.dtype) for array in found]
