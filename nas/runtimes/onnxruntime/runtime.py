"""`OnnxRuntime`: ONNX Runtime on this machine's processor. Importing this imports no ONNX Runtime.

How it fuses is known from its source and compared with its optimised models, in float32 and int8,
on x86 processors.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.repeated_kernels import DISPATCH_PARTS, RepeatedKernelRuntime
from nas.latency.runtime import Availability, package_availability
from nas.machine import this_machine
from nas.runtimes.onnxruntime.float32.fusion import BlockedFusion, block_size
from nas.runtimes.onnxruntime.fusion import OnnxRuntimeFusion
from nas.runtimes.onnxruntime.int8.fusion import QuantisedFusion

if TYPE_CHECKING:
    from nas.runtimes.onnxruntime.kernel_timer import OnnxKernelTimer


class OnnxRuntime(RepeatedKernelRuntime):
    """Kernels and networks of ONNX Runtime's CPU execution provider.

    See `nas.latency.runtime.Runtime` for the arguments. Networks of dtype `int8` are written
    as an export writes them, see `nas.onnx_model.quantised_model`.
    """

    name = "onnxruntime"
    dtypes = ("float32", "int8")
    dispatch_parts = ("launch", *DISPATCH_PARTS)

    @classmethod
    def availability(cls) -> Availability:
        """Return whether ONNX Runtime is installed, loads, and fuses here by known rules."""
        availability = package_availability(cls.name, "onnxruntime", "onnxruntime")
        if not availability.usable:
            return availability
        import onnxruntime

        reason = ""
        if "CPUExecutionProvider" not in onnxruntime.get_available_providers():
            reason = "it was built without its CPU provider"
        elif block_size(this_machine.processor()[1]) == 1:
            reason = "how it fuses is known for x86 processors only"
        return replace(availability, usable=not reason, reason=reason)

    @cached_property
    def fusion(self) -> OnnxRuntimeFusion:
        """The rules by which ONNX Runtime fuses this dtype on a processor with these features."""
        if self.dtype == "int8":
            return QuantisedFusion()
        features = this_machine.processor()[1] if self.features is None else self.features
        return BlockedFusion(block_size(features))

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """Return the kernels of a network in an order in which they can run."""
        return self.fusion.kernels(graph, batch)

    def kernel_positions(self, graph: Graph, batch: int = 1) -> list[float]:
        """See `RepeatedKernelRuntime.kernel_positions`."""
        return [node.position for node in self.fusion.network_pass(graph).nodes()]

    def block_kernels(self, block: Graph, *, first: bool = False, batch: int = 1) -> list[Kernel]:
        """Return the kernels of a block for every tensor layout in which its input can come."""
        return self.fusion.block_kernels(block, first=first, batch=batch)

    @cached_property
    def timer(self) -> OnnxKernelTimer:
        """The timer of this machine; the first use imports ONNX Runtime."""
        from nas.runtimes.onnxruntime.kernel_timer import OnnxKernelTimer

        return OnnxKernelTimer(self.fusion, self.threads)
