"""Apache TVM on this machine's processor. Importing this imports no TVM; opening it does."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from nas.latency.runtimes import Availability
from nas.latency.runtimes.tvm import fusion

if TYPE_CHECKING:
    from nas.latency.runtimes.tvm.runtime import TvmRuntime

__all__ = ["availability", "fusion", "open"]


def open(*, target: str, threads: int, dtype: str) -> TvmRuntime:  # noqa: A001
    """See `nas.latency.runtimes.open_runtime`."""
    from nas.latency.runtimes.tvm.runtime import TvmRuntime

    return TvmRuntime(target=target, threads=threads, dtype=dtype)


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
