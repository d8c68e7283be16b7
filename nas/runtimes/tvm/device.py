"""`Device`: a device that TVM reaches, on which compiled code is loaded and timed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.support import cc
from tvm.target import codegen

from nas.errors import ExportError
from nas.latency import timing
from nas.machine import this_machine


class Device(Protocol):
    """A processor, a GPU or a board that runs what TVM compiles."""

    @property
    def tvm_device(self) -> tvm.runtime.Device:
        """TVM's handle of the device, on which tensors and kernels live."""
        ...

    def load_library(self, library: tvm.runtime.Module) -> tvm.runtime.Module:
        """Load a compiled library on the device."""
        ...

    def load_network(self, executable: relax.VMExecutable) -> relax.VirtualMachine:
        """Load a compiled network into a virtual machine on the device."""
        ...

    def export_network(self, executable: relax.VMExecutable, path: Path) -> None:
        """Write a compiled network as a shared library that such a device loads.

        Raises:
            ExportError: nothing is installed that links it.
            MeasurementError: it cannot be linked.
        """
        ...

    def to_device(self, array: NDArray[Any]) -> tvm.runtime.Tensor:
        """Copy an array to the device."""
        ...

    def timing_context(self, threads: int) -> AbstractContextManager[None]:
        """Return a context in which nothing disturbs timings of kernels that use `threads`."""
        ...

    def processor(self) -> tuple[str, tuple[str, ...]]:
        """Return the model of the device and its features, sorted."""
        ...

    def recorded(self) -> Mapping[str, Any]:
        """Return what the header of a table records about the device, but need not match."""
        ...

    @property
    def device_count(self) -> int:
        """Number of equal devices. Raises BoardLostError if their tracker is gone."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Largest size in bytes of the kernels that stay loaded."""
        ...

    @property
    def library_bytes(self) -> int:
        """Size in bytes of a loaded library, without the tensors that it is called with."""
        ...

    def release(self) -> None:
        """Let others use a device that has one user at a time; the next use takes it back."""
        ...


class LocalDevice:
    """A device of this machine, used by this process. See `Device`."""

    device_count = 1
    cache_bytes = 1 << 30
    library_bytes = 3 << 20  # LLVM's compiler stays in memory with the code that it made.

    def __init__(self, tvm_device: tvm.runtime.Device) -> None:
        self.tvm_device = tvm_device

    def load_library(self, library: tvm.runtime.Module) -> tvm.runtime.Module:
        """See `Device.load_library`."""
        return library

    def load_network(self, executable: relax.VMExecutable) -> relax.VirtualMachine:
        """See `Device.load_network`."""
        return relax.VirtualMachine(executable, self.tvm_device)

    def export_network(self, executable: relax.VMExecutable, path: Path) -> None:
        """See `Device.export_network`."""
        if cc.get_cc() is None:
            raise ExportError(
                "TVM needs a C++ compiler to link a library, and none is installed.",
                remedy="Install g++ or clang++.",
            )
        executable.export_library(str(path))

    def to_device(self, array: NDArray[Any]) -> tvm.runtime.Tensor:
        """See `Device.to_device`."""
        return tvm.runtime.tensor(np.ascontiguousarray(array), self.tvm_device)

    def timing_context(self, threads: int) -> AbstractContextManager[None]:
        """See `Device.timing_context`. The thread that launches stays on its cores."""
        return timing.pinned(threads)

    def release(self) -> None:
        """See `Device.release`. Devices of this machine have many users."""


def use_threads(threads: int) -> None:
    """Make networks of this process run on a number of threads.

    TVM binds its threads to cores, the calling one too. The binding of that thread is undone: all
    that it does later, such as training, would otherwise have one core.
    """
    is_bound = hasattr(os, "sched_getaffinity")
    allowed = os.sched_getaffinity(0) if is_bound else set()
    big_cores_first = 1
    tvm.get_global_func("runtime.config_threadpool")(big_cores_first, threads)
    if is_bound:
        os.sched_setaffinity(0, allowed)


class CpuDevice(LocalDevice):
    """This machine's processor.

    Args:
        threads: number of threads that run one kernel.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(tvm.cpu())
        if threads > 1:
            use_threads(threads)

    def processor(self) -> tuple[str, tuple[str, ...]]:
        """See `Device.processor`."""
        return this_machine.processor()

    def recorded(self) -> Mapping[str, Any]:
        """See `Device.recorded`."""
        return {**this_machine.recorded_facts(), "llvm_cpu": codegen.llvm_get_system_cpu()}
