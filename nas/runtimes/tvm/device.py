"""`Place`: where compiled code is loaded and timed, and what device that is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.target import codegen

from nas.latency import device, timing


class Place(Protocol):
    """A device that TVM's runtime can reach."""

    @property
    def device(self) -> tvm.runtime.Device:
        """What tensors and kernels live on."""
        ...

    def module(self, library: tvm.runtime.Module) -> tvm.runtime.Module:
        """A compiled library, loaded where it runs."""
        ...

    def virtual_machine(self, executable: relax.VMExecutable) -> relax.VirtualMachine:
        """A compiled network, loaded where it runs."""
        ...

    def tensor(self, array: NDArray[Any]) -> tvm.runtime.Tensor:
        """An array, copied to the device."""
        ...

    def timing(self, threads: int) -> AbstractContextManager[None]:
        """Keeps what would disturb a timing away while inside; `threads` run one kernel."""
        ...

    def processor(self) -> tuple[str, tuple[str, ...]]:
        """Model of the device and its features, sorted."""
        ...

    def recorded(self) -> Mapping[str, Any]:
        """What is worth knowing about the device, for a table's header."""
        ...

    @property
    def boards(self) -> int:
        """How many equal devices there are. Raises BoardLostError where a tracker is gone."""
        ...

    @property
    def kept_bytes(self) -> int:
        """Of tensors that kernels may hold there between two timings."""
        ...

    @property
    def copies_inputs(self) -> bool:
        """Whether a virtual machine there has copies of its own of the tensors it is given."""
        ...

    def release(self) -> None:
        """Lets others use a device that has one user at a time; the next use takes it back."""
        ...


class Local:
    """This process, on a device of this machine. See `Place`."""

    boards = 1
    kept_bytes = 256 << 20
    copies_inputs = False

    def __init__(self, device: tvm.runtime.Device) -> None:
        self.device = device

    def module(self, library: tvm.runtime.Module) -> tvm.runtime.Module:
        """See `Place.module`."""
        return library

    def virtual_machine(self, executable: relax.VMExecutable) -> relax.VirtualMachine:
        """See `Place.virtual_machine`."""
        return relax.VirtualMachine(executable, self.device)

    def tensor(self, array: NDArray[Any]) -> tvm.runtime.Tensor:
        """See `Place.tensor`."""
        return tvm.runtime.tensor(np.ascontiguousarray(array), self.device)

    def timing(self, threads: int) -> AbstractContextManager[None]:
        """See `Place.timing`."""
        return timing.pinned(threads)

    def release(self) -> None:
        """See `Place.release`. A machine's own devices have many users."""


class Here(Local):
    """This machine's processor."""

    def __init__(self, threads: int) -> None:
        super().__init__(tvm.cpu())
        if threads > 1:
            big_cores_first = 1
            tvm.get_global_func("runtime.config_threadpool")(big_cores_first, threads)

    def processor(self) -> tuple[str, tuple[str, ...]]:
        """See `Place.processor`."""
        return device.processor()

    def recorded(self) -> Mapping[str, Any]:
        """See `Place.recorded`."""
        return {**device.recorded(), "llvm_cpu": codegen.llvm_get_system_cpu()}
