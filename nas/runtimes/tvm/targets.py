"""What `--target` means to TVM: which kernels are written, and where they run."""

from __future__ import annotations

import tvm
from tvm.target import codegen

from nas.runtimes.tvm.cuda import device as cuda
from nas.runtimes.tvm.device import Here, Place
from nas.runtimes.tvm.rpc import address
from nas.runtimes.tvm.rpc.code import compiled_for
from nas.runtimes.tvm.rpc.device import Remote
from nas.schedules.cpu import CpuTemplates
from nas.schedules.templates import Templates


def resolve(target: str, threads: int, dtype: str) -> tuple[Templates, Place]:
    """Templates and place of a target.

    Args:
        target: `cpu`, this machine's processor; `cuda`, its GPU; or a board as `remote.address`
            reads it.
        threads: that share the loops of one kernel; 1 for a GPU.
        dtype: `float32`, or `float16` on a GPU.

    Raises RequestError for settings TVM has not here, DeviceError for a GPU that is not there.
    """
    if target == "cuda":
        return cuda.resolve(threads, dtype)
    if address.is_remote(target):
        board = address.parse(target)
        code = compiled_for(board)
        return CpuTemplates.for_target(code, threads), Remote(board, code, threads)
    return CpuTemplates.for_target(_this_processor(), threads), Here(threads)


def _this_processor() -> tvm.target.Target:
    return tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": codegen.llvm_get_system_triple(),
            "mcpu": codegen.llvm_get_system_cpu(),
        }
    )
