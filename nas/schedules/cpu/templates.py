"""Schedule templates of CPUs, by vector unit and threads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules import window
from nas.schedules.cpu import (
    candidates,
    data_movement,
    dense,
    depthwise,
    fused_expansion,
    winograd,
)
from nas.schedules.cpu.dense import DenseTiling
from nas.schedules.cpu.fused_expansion import ExpansionTiling
from nas.schedules.cpu.loops import VectorUnit, vector_unit
from nas.schedules.cpu.winograd import WinogradTiling
from nas.schedules.templates import Constants, Schedule


@dataclass
class CpuTemplates:
    """Write kernels for x86 and Arm CPUs; see `nas.schedules.templates.Templates`.

    Args:
        target: an `llvm` target.
        threads: number of threads that share the outermost loop of a kernel.
        dtype: always `float32`.

    Attributes:
        unit: vector unit of the target.
    """

    target: tvm.target.Target
    threads: int
    dtype: str = "float32"
    unit: VectorUnit = field(init=False)

    def __post_init__(self) -> None:
        self.unit = vector_unit(self.target)

    def candidates(self, kernel: Kernel) -> list[dict[str, Any]]:
        """Return the schedules to measure first; see `Templates.candidates`."""
        return candidates.first_candidates(kernel, self.unit)

    def refinements(self, kernel: Kernel, best: dict[str, Any]) -> list[dict[str, Any]]:
        """Return variations of the fastest schedule so far; see `Templates.refinements`.

        With several threads, every schedule is also tried on one: waking another thread takes
        longer than a small kernel.
        """
        varied = candidates.refinements(kernel, best, self.unit.lanes)
        if self.threads == 1:
            return varied
        return varied + [{**schedule, "threads": 1} for schedule in (best, *varied)]

    def function(self, kernel: Kernel, schedule: Schedule, name: str) -> tirx.PrimFunc:
        """Return the TIR function of a kernel; see `Templates.function`.

        A schedule may have `threads`, which overrides the templates' number of threads.
        """
        threads = schedule.get("threads", self.threads)
        arguments = kernel, schedule, self.unit.lanes, threads, name
        if kernel.is_expanded:
            return fused_expansion.function(*arguments)
        if "winograd" in schedule:
            return winograd.function(*arguments)
        if kernel.is_channelwise:
            return depthwise.function(*arguments)
        if kernel.has_weights:
            return dense.function(*arguments)
        if kernel.kind == "global_pool":
            return data_movement.global_pool(*arguments)
        if kernel.kind in ("concat", "copy"):
            return data_movement.concat(kernel, self.unit.lanes, threads, name)
        raise ValueError(f"no CPU kernel is written for a {kernel.kind}")

    def pack(self, kernel: Kernel, schedule: Schedule, own: Constants) -> list[NDArray[np.float32]]:
        """Return the constants of a kernel as its function reads them; see `Templates.pack`."""
        weight, bias, expansion = own
        if weight is None:
            return []
        if kernel.is_depthwise and not kernel.is_expanded:
            return [window.pack_weight(weight), *([] if bias is None else [bias])]
        t = self._tiling(kernel, schedule)
        constants = [t.pack_weight(weight), *([] if bias is None else [t.pack_bias(bias)])]
        if expansion is None:
            return constants
        return [t.pack_weight(expansion.weight), t.pack_bias(expansion.bias), *constants]

    def _tiling(
        self, kernel: Kernel, schedule: Schedule
    ) -> DenseTiling | ExpansionTiling | WinogradTiling:
        """Return what packs the constants of a kernel with weights, unless it is depthwise."""
        arguments = kernel, schedule, self.unit.lanes
        if kernel.is_expanded:
            return ExpansionTiling(*arguments)
        return WinogradTiling(*arguments) if "winograd" in schedule else DenseTiling(*arguments)
