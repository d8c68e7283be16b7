"""`Device`: a device of this machine, on which compiled code is loaded and timed."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.support import cc
from tvm.target import codegen

from nas.errors import ExportError
from nas.latency import timing
from nas.machine import this_machine


class Device(ABC):
    """A processor or a GPU of this machine that runs what TVM compiles.

    Args:
        tvm_device: TVM's handle of the device, on which tensors and kernels live.
    """

    def __init__(self, tvm_device: tvm.runtime.Device) -> None:
        self.tvm_device = tvm_device

    @abstractmethod
    def processor(self) -> tuple[str, tuple[str, ...]]:
        """Return the model of the device and its features, sorted."""

    @abstractmethod
    def recorded(self) -> Mapping[str, Any]:
        """Return what the header of a table records about the device, but need not match."""

    def load_network(self, executable: relax.VMExecutable) -> relax.VirtualMachine:
        """Load a compiled network into a virtual machine on the device."""
        return relax.VirtualMachine(executable, self.tvm_device)

    def export_network(self, executable: relax.VMExecutable, path: Path) -> None:
        """Write a compiled network as a shared library that such a device loads.

        Raises:
            ExportError: nothing is installed that links it.
            MeasurementError: it cannot be linked.
        """
        if cc.get_cc() is None:
            raise ExportError(
                "TVM needs a C++ compiler to link a library, and none is installed.",
                remedy="Install g++ or clang++.",
            )
        executable.export_library(str(path))

    def to_device(self, array: NDArray[Any]) -> tvm.runtime.Tensor:
        """Copy an array to the device."""
        return tvm.runtime.tensor(np.ascontiguousarray(array), self.tvm_device)

    def timing_context(self, threads: int) -> AbstractContextManager[None]:
        """Return a context in which nothing disturbs timings of kernels that use `threads`.

        The thread that launches stays on its cores.
        """
        return timing.pinned(threads)


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


class CpuDevice(Device):
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
