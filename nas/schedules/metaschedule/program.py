"""From a definition and a trace to a function that TVM compiles like a handwritten kernel.

A trace is the list of scheduling steps that MetaSchedule took, with the numbers it drew (Shao et
al. 2022, "Tensor Program Optimization with Probabilistic Programs"). It is JSON, so a table's row
is enough to take them again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from nas.latency.kernel import Kernel
from nas.schedules.metaschedule.definition import definition

TUNER = "metaschedule"

_LOWERED = tvm.transform.Sequential(
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
"""The part of TVM's lowering of scheduled functions that is for processors, until what is left is
what `nas.schedules.cpu` writes by hand."""


def is_tuned(schedule: Mapping[str, Any]) -> bool:
    """Whether a schedule is a trace."""
    return schedule.get("tuner") == TUNER


def function(kernel: Kernel, schedule: Mapping[str, Any], name: str) -> tirx.PrimFunc:
    """The function of a kernel whose schedule has a `trace`; see `Templates.function`.

    Raises ValueError for a trace that does not belong to the kernel.
    """
    scheduled = s_tir.Schedule(definition(kernel))
    try:
        s_tir.schedule.Trace.apply_json_to_schedule(tvm_ffi.convert(schedule["trace"]), scheduled)
    except (tvm.error.InternalError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"its trace is not one of this kernel: {error}") from error
    return lowered(scheduled.mod, name)


def lowered(module: tvm.IRModule, name: str) -> tirx.PrimFunc:
    """A scheduled module's one function with plain loops and flat parameters, called `name`."""
    (found,) = _LOWERED(module).functions.values()
    flat, views = [], []
    for buffer in found.params:
        size = math.prod(int(extent) for extent in buffer.shape)
        parameter = tirx.decl_buffer((size,), buffer.dtype, buffer.name)
        flat.append(parameter)
        views.append(tirx.DeclBuffer(buffer, data=parameter.data))
    made = tirx.PrimFunc(flat, tirx.SeqStmt([*views, found.body]))
    return made.with_attr({"global_symbol": name, "tirx.noalias": True})
