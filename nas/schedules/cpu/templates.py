"""The kernels of a processor, by its vector width, its registers and its threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import tirx
from tvm.target import codegen

from nas.latency.kernel import Kernel
from nas.schedules.cpu import candidates, dense, depthwise, fused_expansion, loop_nest, winograd
from nas.schedules.metaschedule import definition, program
from nas.schedules.templates import Expansion, Schedule


@dataclass
class CpuTemplates:
    """See `nas.schedules.templates.Templates`. One set for x86 and Arm.

    Args:
        target: an `llvm` target.
        threads: that share the outermost loop of a kernel.
        lanes: float32 elements in a vector register.
        registers: vector registers.
    """

    target: tvm.target.Target
    threads: int
    lanes: int
    registers: int
    dtype: str = "float32"

    @classmethod
    def for_target(cls, target: tvm.target.Target, threads: int) -> CpuTemplates:
        """With the vector registers that the target has."""
        if str(target.attrs.get("mtriple", "")).startswith(("x86_64", "amd64")):
            # TVM 0.27 takes any x86 processor for one with vectors of 512 bits.
            for feature, lanes, registers in (("avx512f", 16, 32), ("avx", 8, 16)):
                if codegen.llvm_cpu_has_features(feature, target):
                    return cls(target, threads, lanes, registers)
            return cls(target, threads, 4, 16)
        lanes = max(4, codegen.llvm_get_vector_width(target) // 32)
        # 64-bit Arm has 32 vector registers.
        many = lanes >= 16 or bool(target.attrs.get("feature.is_aarch64"))
        return cls(target, threads, lanes, 32 if many else 16)

    def candidates(self, kernel: Kernel) -> list[dict[str, Any]]:
        """See `Templates.candidates`."""
        return candidates.first_candidates(kernel, self.lanes, self.registers)

    def refinements(self, kernel: Kernel, best: dict[str, Any]) -> list[dict[str, Any]]:
        """See `Templates.refinements`."""
        found = candidates.refinements(kernel, best, self.lanes)
        if self.threads == 1:
            return found
        # Waking another thread costs more than a small kernel takes.
        return found + [{**each, "threads": 1} for each in (best, *found)]

    def function(self, kernel: Kernel, schedule: Schedule, name: str) -> tirx.PrimFunc:
        """See `Templates.function`. A schedule with `threads` overrides the number of threads.

        A schedule that MetaSchedule found has a trace instead of tile sizes.
        """
        if program.is_tuned(schedule):
            return program.function(kernel, schedule, name)
        return loop_nest.build(
            kernel, schedule, self.lanes, schedule.get("threads", self.threads), name
        )

    def pack(
        self,
        kernel: Kernel,
        schedule: Schedule,
        weight: NDArray[np.float32] | None,
        bias: NDArray[np.float32] | None,
        expansion: Expansion | None = None,
    ) -> list[NDArray[np.float32]]:
        """See `Templates.pack`."""
        if program.is_tuned(schedule):
            assert weight is not None
            return definition.pack(kernel, weight, bias, expansion)
        place = kernel, schedule, self.lanes
        if expansion is not None:
            assert weight is not None
            return [
                fused_expansion.pack_expansion(*place, expansion.weight),
                fused_expansion.pack_bias(*place, expansion.bias),
                fused_expansion.pack_weight(*place, weight),
                *([fused_expansion.pack_bias(*place, bias)] if bias is not None else []),
            ]
        if "winograd" in schedule:
            assert weight is not None
            packed = [winograd.pack_weight(*place, weight)]
            return packed + ([winograd.pack_bias(*place, bias)] if bias is not None else [])
        found = []
        if kernel.has_weights:
            assert weight is not None
            found.append(
                depthwise.pack_weight(weight)
                if kernel.is_depthwise
                else dense.pack_weight(*place, weight)
            )
        if kernel.has_bias:
            assert bias is not None
            found.append(
                np.ascontiguousarray(bias) if kernel.is_depthwise else dense.pack_bias(*place, bias)
            )
        return found
