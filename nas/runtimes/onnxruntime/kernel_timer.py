"""`OnnxKernelTimer`: time kernels and networks with ONNX Runtime on this machine's processor."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

from nas.errors import MeasurementError
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.kernels.node import Node, Tensor
from nas.latency.repeated_kernels import (
    MAX_COPIES,
    RUN_SECONDS,
    WARM_WEIGHT_BYTES,
    RepeatedKernelTimer,
)
from nas.latency.runtime import Schedule, Weights
from nas.latency.timing import Evaluate
from nas.runtimes.files import Files
from nas.runtimes.onnxruntime.network import OnnxRuntimeNetwork
from nas.runtimes.onnxruntime.nodes import repeated

MIN_COPIES = 4
"""Fewest copies of a kernel in one session."""

_MACS_PER_SECOND = {
    "float32": {"dense": 60e9, "depthwise": 10e9, "grouped": 1e9},
    "int8": {"dense": 150e9, "depthwise": 20e9, "grouped": 20e9},
}
"""Approximate speed of a core, by which the number of copies is chosen that fill `RUN_SECONDS`."""

_TINY_NODE = Node("Relu", (Tensor("f32", (1, 16, 1, 1)),), (Tensor("f32", (1, 16, 1, 1)),))


class OnnxKernelTimer(RepeatedKernelTimer):
    """Compile and time kernels and networks for `nas.runtimes.onnxruntime.runtime.OnnxRuntime`.

    The latency of a kernel is that of a node of an optimised model among copies of itself, which
    have different weights. ONNX Runtime's profiler is no alternative: it counts whole microseconds,
    and profiling slows a node by five to ten microseconds by what it does to the caches.

    Args:
        dtype: `float32` or `int8`.
        threads: number of threads that run one kernel.
        kernels: function that returns the kernels of a network for a batch size.
        files: loads files with ONNX Runtime.
    """

    def __init__(
        self,
        dtype: str,
        threads: int,
        kernels: Callable[[Graph, int], list[Kernel]],
        files: Files,
    ) -> None:
        super().__init__(dtype, threads)
        self._kernels, self._files = kernels, files

    def timing_context(self) -> AbstractContextManager[None]:
        """See `RepeatedKernelTimer`."""
        return self._files.timing_context()

    def choose_copies(self, kernel: Kernel) -> dict[str, int]:
        """See `RepeatedKernelTimer`."""
        kind = "grouped" if kernel.groups > 1 else "dense"
        if kernel.is_depthwise:
            kind = "depthwise"
        estimated_s = 1e-6 + kernel.macs / _MACS_PER_SECOND[kernel.dtype][kind]
        copies = max(MIN_COPIES, min(MAX_COPIES, math.ceil(RUN_SECONDS / estimated_s)))
        if not kernel.weight_bytes:
            return {"copies": copies, "weights": 1}
        weight_sets = math.ceil(WARM_WEIGHT_BYTES / kernel.weight_bytes)
        return {"copies": copies, "weights": min(copies, weight_sets)}

    def load_copies(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        """See `RepeatedKernelTimer`."""
        if kernel.node is None:
            raise MeasurementError(
                f"ONNX Runtime has no kernel '{kernel}'.",
                remedy="It is one of another runtime; build a table of ONNX Runtime's own.",
            )
        return self._load_nodes(kernel.node, schedule["copies"], schedule["weights"])

    def load_tiny_nodes(self, count: int) -> Evaluate:
        """See `RepeatedKernelTimer`."""
        return self._load_nodes(_TINY_NODE, count, 1)

    def _load_nodes(self, node: Node, copies: int, weight_sets: int) -> Evaluate:
        model, inputs = repeated(node, copies, weight_sets)
        data = model.SerializeToString()
        return self._files.load(data, inputs=inputs, optimise=False).evaluate

    def kernels(self, graph: Graph) -> list[Kernel]:
        """See `RepeatedKernelTimer`."""
        return self._kernels(graph, 1)

    def compile(
        self, graph: Graph, weights: Weights | None = None, batch: int = 1
    ) -> OnnxRuntimeNetwork:
        """See `RepeatedKernelTimer`."""
        kernels = self._kernels(graph, batch)
        return OnnxRuntimeNetwork(graph, weights, self.dtype, kernels, self._files, batch)
