"""`TvmRuntime`: Apache TVM on this machine's processor, its NVIDIA GPU, or another device.

Importing this imports no TVM: a table of a TVM device predicts on machines without TVM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from nas.files.documents import shortened
from nas.graph import Graph
from nas.kernels import fusion
from nas.kernels.kernel import Kernel
from nas.latency import cache_model
from nas.latency.cache_model import DispatchCosts
from nas.latency.capabilities import Capabilities
from nas.latency.composition import NetworkCost
from nas.latency.device import Fingerprint
from nas.latency.runtime import (
    Availability,
    Runtime,
    Schedule,
    Schedules,
    Weights,
    package_availability,
)
from nas.runtimes.tvm.kit import address as kit_address

if TYPE_CHECKING:
    from nas.runtimes.tvm.kernel_timer import TvmKernelTimer
    from nas.runtimes.tvm.relax_network import RelaxNetwork

KERNELS_VERSION = "10"
"""Version of the loop nests, the schedules, the timing method and how networks launch kernels.

It is part of the fingerprint, because latencies of different versions cannot be compared.
"""

MODEL_TARGET = "cpu?mcpu="
"""Start of a target that ends with LLVM's name of a model of processors."""

MAX_WINOGRAD_TILE = 64
"""Largest tile in a schedule. Rounding errors spoil the results of much smaller tiles already."""


def kernel_versions() -> dict[str, str]:
    """Return the versions of TVM and of the kernels, as fingerprints have them."""
    return {"apache-tvm": version("apache-tvm"), "kernels": KERNELS_VERSION}


def stored_weight_bytes(kernel: Kernel, schedule: Schedule) -> int:
    """Return the size of a kernel's weights as its code reads them.

    Winograd's transform of a 3x3 window for `m x m` outputs has `(m + 2) x (m + 2)` numbers instead
    of nine (Lavin and Gray 2016, "Fast algorithms for convolutional neural networks").

    Raises:
        ValueError: the schedule has a tile that no kernel has.
    """
    m = schedule.get("winograd")
    if m is None:
        return kernel.weight_bytes
    if type(m) is not int or not 0 < m <= MAX_WINOGRAD_TILE:
        raise ValueError(f"winograd is {shortened(m)}, not the size of a tile")
    return kernel.weight_bytes * (m + 2) ** 2 // 9


class TvmRuntime(Runtime):
    """Kernels compiled by Apache TVM from the schedules in `nas.schedules`.

    See `nas.latency.runtime.Runtime` for the arguments. A target is `cpu`, this machine's
    processor; `cpu?mcpu=NAME`, the same processor with code for a lesser model, such as znver3;
    `cuda`, its first GPU (`CudaRuntime`); or another device
    (`nas.runtimes.tvm.kit.runtime.KitRuntime`).
    """

    name = "tvm"
    capabilities = Capabilities(
        targets=("cpu", "cpu?mcpu=...", "cuda", "ssh://...", "adb:...", "kit:..."),
        max_threads=None,
        dispatch_parts=("launch", "invocation", *cache_model.WEIGHT_PARTS),
    )

    @classmethod
    def availability(cls) -> Availability:
        """Return whether TVM is installed, loads, and has an LLVM code generator."""
        availability = package_availability(cls.name, "apache-tvm", "tvm")
        if not availability.usable:
            return availability
        import tvm

        if tvm.runtime.enabled("llvm"):
            return availability
        return replace(availability, usable=False, reason="apache-tvm was built without LLVM")

    @classmethod
    def for_target(cls, target: str) -> type[Runtime]:
        """Return `CudaRuntime` for `cuda`, `KitRuntime` for another device, or this class."""
        if kit_address.is_kit(target):
            from nas.runtimes.tvm.kit.runtime import KitRuntime

            return KitRuntime
        return CudaRuntime if target == "cuda" else TvmRuntime

    @classmethod
    def at_address(cls, target: str, address: str | None) -> str:
        """See `Runtime.at_address`."""
        own = cls.for_target(target)
        return (
            super().at_address(target, address) if own is cls else own.at_address(target, address)
        )

    def check_target(self) -> None:
        """Raise RequestError for a target that TVM does not have. Models are checked on opening."""
        if not self.target.startswith(MODEL_TARGET):
            super().check_target()

    @property
    def compiles_beside_timing(self) -> bool:
        """See `Runtime.compiles_beside_timing`."""
        return not self.is_remote

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """Return the kernels of a network; depthwise convolutions take their expansion."""
        return fusion.kernels(graph, batch, fuse_expansions=True)

    def weight_bytes(self, kernel: Kernel, schedule: Schedule) -> int:
        """Return the size of a kernel's weights as its code reads them."""
        return stored_weight_bytes(kernel, schedule)

    @cached_property
    def timer(self) -> TvmKernelTimer:
        """The timer of the device; the first use imports TVM and connects.

        Raises:
            RequestError: the device lacks the settings.
            DeviceError: the device is not there.
        """
        from nas.runtimes.tvm.kernel_timer import TvmKernelTimer

        return TvmKernelTimer(self.target, self.threads, self.dtype)

    def open(self) -> None:
        """Load TVM and choose the device. See `timer` for the errors."""
        _ = self.timer

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The device with TVM's version and the settings."""
        device = self.timer.device
        return self.describe(
            *device.processor(), versions=kernel_versions(), recorded=device.recorded()
        )

    def timing_context(self) -> AbstractContextManager[None]:
        """See `Runtime.timing_context`."""
        return self.timer.device.timing_context(self.threads)

    def compile(
        self, graph: Graph, schedules: Schedules, weights: Weights | None = None, batch: int = 1
    ) -> RelaxNetwork:
        """Compile a network for TVM's Relax virtual machine."""
        return self.timer.compile(graph, schedules, weights, batch)

    def write_library(
        self,
        graph: Graph,
        schedules: Schedules,
        weights: Weights,
        path: Path,
        texts: Mapping[str, str],
    ) -> None:
        """Write a network as a shared library that TVM alone loads and runs.

        Args:
            graph: the network.
            schedules: schedule of each of its kernels.
            weights: weights of the folded graph, which become a part of the library.
            path: path of the library.
            texts: texts that functions of the library return, by the name of the function.

        Raises:
            MissingKernelError: a kernel has no schedule.
            ExportError: there is no compiler to link with.
        """
        from nas.runtimes.tvm.relax_network import compile_network

        templates, device = self.timer.templates, self.timer.device
        code = compile_network(graph, schedules, weights, templates, is_flat=False, texts=texts)
        device.export_network(code.executable, path)


class CudaRuntime(TvmRuntime):
    """TVM on this machine's first NVIDIA GPU.

    A GPU works while the host already launches the next kernels. The latency of a kernel is what it
    adds to a queue that never runs empty, including the gap to the next kernel (see
    `nas.runtimes.tvm.cuda.queue`). In a network the queue can run empty, so latencies compose as in
    a line of two machines, see `network_us`.

    The weights are read from the second-level cache in both cases if the weights of the whole
    network fit there, because the first-level cache is emptied between kernels. So kernels are
    timed with one set of weights, and the cache model adds what larger networks wait for.
    """

    # One thread launches all kernels. Two timings of a kernel on an H100 differed by 1%.
    capabilities = replace(
        TvmRuntime.capabilities, dtypes=("float32", "float16"), max_threads=1, max_batch=1
    )

    @cached_property
    def timer(self) -> TvmKernelTimer:
        """The timer of the GPU; the first use imports TVM."""
        from nas.runtimes.tvm.cuda.kernel_timer import CudaKernelTimer

        return CudaKernelTimer(self.threads, self.dtype)

    def network_us(self, network: NetworkCost, dispatch: DispatchCosts) -> float:
        """Return the latency from entering the virtual machine to the end of the last kernel.

        A kernel starts when the host has launched it and the kernel before it has ended, whichever
        is later. A network of short kernels takes as long as launching them, one of long kernels as
        long as the kernels, and launches hide behind a long kernel until the queue is empty again.
        """
        warm_us = pipeline_us(network.kernels_us, dispatch.launch_us, dispatch.invocation_us)
        return warm_us + dispatch.waiting_us(network.weight_bytes, network.touched_bytes)


def pipeline_us(kernels_us: Sequence[float], launch_us: float, invocation_us: float) -> float:
    """Return when the last kernel of a queue ends, in microseconds.

    Args:
        kernels_us: latency of each kernel, in launch order.
        launch_us: time that the host takes to launch a kernel.
        invocation_us: time after which the first kernel can start.
    """
    launched = end = invocation_us
    for kernel_us in kernels_us:
        end = max(end, launched) + kernel_us
        launched += launch_us
    return end
