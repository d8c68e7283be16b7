"""Apache TVM on this machine's processor or GPU, or on boards elsewhere.

Importing this imports no TVM; opening it does.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from nas.errors import RequestError
from nas.latency.runtime import Availability, Fusion
from nas.runtimes.tvm import fusion
from nas.runtimes.tvm.cuda import composition as cuda_fusion

if TYPE_CHECKING:
    from nas.runtimes.tvm.runtime import TvmRuntime

__all__ = ["availability", "fusion", "fusion_on", "open"]


def open(*, target: str, threads: int, dtype: str) -> TvmRuntime:  # noqa: A001
    """See `nas.latency.runtime.open_runtime`."""
    if target == "cuda":
        from nas.runtimes.tvm.cuda.runtime import CudaRuntime

        return CudaRuntime(threads=threads, dtype=dtype)
    from nas.runtimes.tvm.runtime import TvmRuntime

    return TvmRuntime(target=target, threads=threads, dtype=dtype)


def fusion_on(features: Collection[str] | None, dtype: str) -> Fusion:
    """How latencies compose on a device with these features; None is a processor's.

    All targets have the same kernels. Raises RequestError for a dtype that none has.
    """
    if dtype not in cuda_fusion.DTYPES:
        raise RequestError(
            f"Runtime 'tvm' has no dtype '{dtype}'.",
            remedy=f"Allowed: {', '.join(cuda_fusion.DTYPES)}.",
        )
    return cuda_fusion if cuda_fusion.FEATURE in (features or ()) else fusion


def availability() -> Availability:
    """Whether TVM is installed, loads, and has an LLVM code generator."""
    try:
        versions = {"apache-tvm": version("apache-tvm")}
    except PackageNotFoundError:
        return Availability("tvm", False, "apache-tvm is not installed")
    try:
        import tvm
    except (ImportError, OSError) as error:
        return Availability("tvm", False, f"apache-tvm does not load ({error})", versions)
    if not tvm.runtime.enabled("llvm"):
        return Availability("tvm", False, "apache-tvm was built without LLVM", versions)
    return Availability("tvm", True, "", versions)
