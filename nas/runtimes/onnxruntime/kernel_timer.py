"""`OnnxKernelTimer`: time kernels and networks with ONNX Runtime on this machine's processor."""

from __future__ import annotations

import math

from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.repeated_kernels import (
    MAX_COPIES,
    RUN_SECONDS,
    WARM_WEIGHT_BYTES,
    RepeatedKernelTimer,
)
from nas.latency.runtime import Schedule, Weights
from nas.latency.timing import Evaluate
from nas.runtimes.onnxruntime.fusion import OnnxRuntimeFusion
from nas.runtimes.onnxruntime.network import OnnxRuntimeNetwork
from nas.runtimes.onnxruntime.repeated import repeat_kernel
from nas.runtimes.onnxruntime.session import Session

MIN_COPIES = 4
"""Fewest copies of a kernel in one session."""

_WEIGHT_READERS = {
    "float32": "conv2d {layout}128x3x3 -> 128x3x3 k1 s1 p0 g1 bias relu",
    "int8": "conv2d int8 nhwc 256x2x2 -> 256x2x2 k1 s1 p0 g1 bias",
}
"""See `RepeatedKernelTimer.weight_reader`."""

_MACS_PER_SECOND = {
    "float32": {"dense": 60e9, "depthwise": 10e9, "grouped": 1e9},
    "int8": {"dense": 150e9, "depthwise": 20e9, "grouped": 20e9},
}
"""Approximate speed of a core, by which the number of copies is chosen that fill `RUN_SECONDS`."""

_TINY_KERNEL = Kernel.parse("copy 16x1x1 -> 16x1x1 relu")


class OnnxKernelTimer(RepeatedKernelTimer):
    """Compile and time kernels and networks for `nas.runtimes.onnxruntime.runtime.OnnxRuntime`.

    The latency of a kernel is that of a node among copies of itself. The copies are written as the
    ops to which ONNX Runtime optimises, so that no layout conversions surround them, and have
    different weights. A quantised kernel is timed as the int8 op to which a quantised network is
    fused; a function that such a network computes in float32 is timed with its conversions. ONNX
    Runtime's profiler is no alternative: it counts whole microseconds, and profiling slows a node
    by five to ten microseconds by what it does to the caches.

    Args:
        fusion: fusion rules of the dtype.
        threads: number of threads that run one kernel.
    """

    def __init__(self, fusion: OnnxRuntimeFusion, threads: int) -> None:
        super().__init__(threads)
        self._fusion = fusion

    def choose_copies(self, kernel: Kernel) -> dict[str, int]:
        """See `RepeatedKernelTimer`."""
        has_preferred_layout = kernel.block > 1 or kernel.channels_last
        if kernel.is_depthwise and has_preferred_layout:
            kind = "depthwise"
        else:
            kind = "grouped" if kernel.groups > 1 and kernel.block == 1 else "dense"
        estimated_s = 1e-6 + kernel.macs / _MACS_PER_SECOND[kernel.dtype][kind]
        copies = max(MIN_COPIES, min(MAX_COPIES, math.ceil(RUN_SECONDS / estimated_s)))
        if not kernel.has_weights:
            return {"copies": copies, "weights": 1}
        weight_sets = math.ceil(WARM_WEIGHT_BYTES / kernel.weight_bytes)
        return {"copies": copies, "weights": min(copies, weight_sets)}

    def load_copies(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        """See `RepeatedKernelTimer`."""
        model, inputs = repeat_kernel(kernel, schedule["copies"], schedule["weights"])
        return Session(model, inputs, threads=self.threads, optimise=False).evaluate

    def load_tiny_nodes(self, count: int) -> Evaluate:
        """See `RepeatedKernelTimer`."""
        return self.load_copies(_TINY_KERNEL, {"copies": count, "weights": 1})

    def kernels(self, graph: Graph) -> list[Kernel]:
        """See `RepeatedKernelTimer`."""
        return self._fusion.kernels(graph)

    @property
    def weight_reader(self) -> Kernel:
        """See `RepeatedKernelTimer`."""
        layout = f"blocked{self._fusion.block} " if self._fusion.block > 1 else ""
        return Kernel.parse(_WEIGHT_READERS[self._fusion.dtype].format(layout=layout))

    def compile(
        self, graph: Graph, weights: Weights | None = None, batch: int = 1
    ) -> OnnxRuntimeNetwork:
        """See `RepeatedKernelTimer`."""
        return OnnxRuntimeNetwork(graph, weights, self._fusion, threads=self.threads, batch=batch)
