"""What `--target` means to TVM: which kernels are written, and where they run."""

from __future__ import annotations

import tvm
from tvm.target import codegen

from nas.errors import RequestError
from nas.latency.runtimes.tvm.cpu import CpuTemplates
from nas.latency.runtimes.tvm.place import Here, Place
from nas.latency.runtimes.tvm.templates import Templates

TARGETS = ("cpu",)
DTYPES = ("float32",)


def resolve(target: str, threads: int, dtype: str) -> tuple[Templates, Place]:
    """Templates and place of a target.

    Args:
        target: `cpu`, this machine's processor.
        threads: that share the loops of one kernel.
        dtype: `float32`.

    Raises RequestError for settings TVM has not here.
    """
    for setting, value, allowed in (("target", target, TARGETS), ("dtype", dtype, DTYPES)):
        if value not in allowed:
            raise RequestError(
                f"Runtime 'tvm' has no {setting} '{value}'.",
                remedy=f"Allowed: {', '.join(allowed)}.",
            )
    return CpuTemplates.for_target(_this_processor(), threads), Here(threads)


def _this_processor() -> tvm.target.Target:
    return tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": codegen.llvm_get_system_triple(),
            "mcpu": codegen.llvm_get_system_cpu(),
        }
    )
