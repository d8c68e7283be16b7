"""`OnnxRuntime`: ONNX Runtime on this machine's processor. Importing this imports no ONNX Runtime.

How it fuses is what its own optimiser makes of the blocks of a space, which a latency table
records.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.capabilities import Capabilities
from nas.latency.fused_blocks import FusedBlock, FusedBlocks, Place
from nas.latency.repeated_kernels import DISPATCH_PARTS
from nas.latency.runtime import Availability, package_availability
from nas.runtimes.file_runtime import FileRuntime

if TYPE_CHECKING:
    from nas.runtimes.onnxruntime.kernel_timer import OnnxKernelTimer


class OnnxRuntime(FileRuntime):
    """Kernels and networks of ONNX Runtime's CPU execution provider.

    See `nas.latency.runtime.Runtime` for the arguments. Networks of dtype `int8` are written
    as an export writes them, see `nas.onnx_model.quantised_model`.
    """

    name = "onnxruntime"
    module = "nas.runtimes.onnxruntime.session"
    packages = ("onnxruntime",)
    install = "onnxruntime"
    capabilities = Capabilities(
        targets=("cpu", "ssh://...", "adb:..."),
        dtypes=("float32", "int8"),
        max_threads=None,
        dispatch_parts=("launch", *DISPATCH_PARTS),
        has_local_kernels=False,
    )

    @classmethod
    def availability(cls) -> Availability:
        """Return whether ONNX Runtime is installed and loads."""
        availability = package_availability(cls.name, "onnxruntime", "onnxruntime")
        if not availability.usable:
            return availability
        import onnxruntime

        if "CPUExecutionProvider" not in onnxruntime.get_available_providers():
            reason = "it was built without its CPU provider"
            return replace(availability, usable=False, reason=reason)
        return availability

    @cached_property
    def fused_blocks(self) -> FusedBlocks:
        """See `Runtime.fused_blocks`."""
        return FusedBlocks(self._fuse)

    def _fuse(self, block: Graph, place: Place) -> FusedBlock:
        from nas.runtimes.onnxruntime.fusion import fuse_block

        return fuse_block(self.files, block, place, self.dtype)

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """Return the kernels of a network, block by block, in an order in which they can run."""
        return list(chain.from_iterable(self.fused_blocks.network(graph, batch)))

    def kernel_blocks(self, graph: Graph, batch: int = 1) -> list[int]:
        """See `Runtime.kernel_blocks`. A tensor is converted by the block that reads it."""
        blocks = enumerate(self.fused_blocks.network(graph, batch))
        return [number for number, kernels in blocks for _ in kernels]

    def block_kernels(self, blocks: Collection[Graph], batch: int = 1) -> list[Kernel]:
        """Return the kernels of blocks in every place in which they can stand."""
        return self.fused_blocks.kernels(blocks, batch)

    @cached_property
    def timer(self) -> OnnxKernelTimer:
        """The timer of this machine; the first use imports ONNX Runtime."""
        from nas.runtimes.onnxruntime.kernel_timer import OnnxKernelTimer

        return OnnxKernelTimer(self.dtype, self.threads, self.kernels, self.files)
