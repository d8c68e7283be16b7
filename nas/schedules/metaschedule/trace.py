"""Apply a MetaSchedule trace to a kernel's definition, and lower the result.

A trace is the list of scheduling steps that MetaSchedule took, with the tile sizes and other
numbers that it drew (Shao et al. 2022, "Tensor Program Optimization with Probabilistic Programs").
It is JSON, so a latency table's row is enough to build the kernel again.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from nas.latency.kernel import Kernel
from nas.schedules.metaschedule.definition import definition
from nas.schedules.templates import Schedule

TUNER = "metaschedule"
"""Value of a schedule's key `tuner`; such a schedule has a `trace` in place of tile sizes."""

_CPU_LOWERING = tvm.transform.Sequential(
    [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.AnnotateIrregularLoop(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
    ]
)
"""TVM's lowering of scheduled functions, as far as CPUs need it.

The result is of the same kind as the functions that `nas.schedules.cpu` writes: loops over flat
buffers, without blocks.
"""


def has_trace(schedule: Schedule) -> bool:
    """Return whether MetaSchedule found a schedule."""
    return schedule.get("tuner") == TUNER


def function(kernel: Kernel, schedule: Schedule, name: str) -> tirx.PrimFunc:
    """Return the function of a kernel whose schedule has a trace; see `Templates.function`.

    Raises:
        ValueError: the trace does not belong to the kernel.
    """
    scheduled = s_tir.Schedule(definition(kernel))
    try:
        s_tir.schedule.Trace.apply_json_to_schedule(tvm_ffi.convert(schedule["trace"]), scheduled)
    except (tvm.error.InternalError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"the trace does not belong to this kernel: {error}") from error
    return lower(scheduled.mod, name)


def lower(module: tvm.IRModule, name: str) -> tirx.PrimFunc:
    """Lower a scheduled module with one function to plain loops and flat parameters.

    Args:
        module: module with one scheduled function.
        name: symbol of the result.
    """
    (lowered,) = _CPU_LOWERING(module).functions.values()
    parameters: list[Any] = []
    views = []
    for buffer in lowered.params:
        size = math.prod(int(extent) for extent in buffer.shape)
        parameter = tirx.decl_buffer((size,), buffer.dtype, buffer.name)
        parameters.append(parameter)
        views.append(tirx.DeclBuffer(buffer, data=parameter.data))
    flat = tirx.PrimFunc(parameters, tirx.SeqStmt([*views, lowered.body]))
    return flat.with_attr({"global_symbol": name, "tirx.noalias": True})
