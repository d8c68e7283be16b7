"""`LiteRtKernelTimer`: time kernels and networks with LiteRT on this machine's processor."""

from __future__ import annotations

import math

import numpy as np

from nas.errors import MeasurementError
from nas.graph import Graph
from nas.latency.kernel import Kernel
from nas.latency.repeated_kernels import (
    MAX_COPIES,
    RUN_SECONDS,
    WARM_WEIGHT_BYTES,
    RepeatedKernelTimer,
)
from nas.latency.runtime import Schedule, Weights
from nas.latency.timing import Evaluate, Timing
from nas.runtimes.litert import fusion
from nas.runtimes.litert.network import LiteRtNetwork
from nas.runtimes.litert.repeated import forms_chain, repeat_kernel, tiny_operators
from nas.runtimes.litert.session import Session

MIN_COPIES = 2
"""Fewest copies of a kernel in one file."""

_WEIGHT_READERS = {
    "float32": "conv2d 128x3x3 -> 128x3x3 k1 s1 p0 g1 bias relu",
    "int8": "conv2d int8 256x2x2 -> 256x2x2 k1 s1 p0 g1 bias relu",
}
"""See `RepeatedKernelTimer.weight_reader`."""

_MACS_PER_SECOND = {
    "float32": {"dense": 100e9, "depthwise": 20e9},
    "int8": {"dense": 300e9, "depthwise": 40e9},
}
"""Rough speed of a core, by which the number of copies is chosen that fill `RUN_SECONDS`."""

_ELEMENTS_PER_SECOND = 4e9
"""Rough speed of a core at reading and writing tensors."""


class LiteRtKernelTimer(RepeatedKernelTimer):
    """Compile and time kernels and networks for `nas.runtimes.litert.runtime.LiteRt`.

    LiteRT's own profile of operators is no alternative: it counts whole microseconds. A kernel
    costs no more among other kernels than among copies of itself: the difference was below 3 ns.

    Args:
        dtype: `float32` or `int8`.
        threads: number of threads that run one kernel.
    """

    has_launch_cost = False

    def __init__(self, dtype: str, threads: int) -> None:
        super().__init__(threads)
        self._dtype = dtype

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """See `RepeatedKernelTimer`.

        Raises:
            MeasurementError: XNNPACK lacks the kernel. It takes one part of a network, so that what
                lies beyond such a kernel runs without it too, as no kernel alone shows.
        """
        if self._dtype == "int8" and kernel.kind == "avg_pool":
            raise MeasurementError(
                "XNNPACK has no average pooling in int8, and leaves the network around it to "
                "LiteRT's own kernels.",
                remedy="Use float32, or a space without average pooling.",
            )
        return super().time_kernel(kernel)

    def choose_copies(self, kernel: Kernel) -> dict[str, int]:
        """See `RepeatedKernelTimer`. XNNPACK gives every copy weights of its own."""
        kind = "depthwise" if kernel.is_depthwise else "dense"
        elements = kernel.elements(kernel.output) + sum(
            kernel.elements(operand.shape) for operand in kernel.operands
        )
        estimated_s = 2e-7 + elements / _ELEMENTS_PER_SECOND
        estimated_s += kernel.macs / _MACS_PER_SECOND[kernel.dtype][kind]
        copies = min(MAX_COPIES, math.ceil(RUN_SECONDS / estimated_s))
        if kernel.has_weights:
            copies = min(copies, WARM_WEIGHT_BYTES // kernel.weight_bytes)
        copies = max(MIN_COPIES, copies)
        return {"copies": copies, "weights": copies if kernel.has_weights else 1}

    def load_copies(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        """See `RepeatedKernelTimer`."""
        data = repeat_kernel(kernel, schedule["copies"], np.random.default_rng(0))
        return Session(data, self.threads, kernel.batch).evaluate

    def load_tiny_nodes(self, count: int) -> Evaluate:
        """See `RepeatedKernelTimer`."""
        return Session(tiny_operators(count, self._dtype), self.threads).evaluate

    def overhead_s(self, kernel: Kernel, schedule: Schedule) -> float:
        """See `RepeatedKernelTimer`."""
        outputs = 1 if forms_chain(kernel) else schedule["copies"]
        return self.invocation_s + outputs * self.tiny_node_s

    def kernels(self, graph: Graph) -> list[Kernel]:
        """See `RepeatedKernelTimer`."""
        return fusion.kernels(graph, self._dtype)

    @property
    def weight_reader(self) -> Kernel:
        """See `RepeatedKernelTimer`."""
        return Kernel.parse(_WEIGHT_READERS[self._dtype])

    def compile(
        self, graph: Graph, weights: Weights | None = None, batch: int = 1
    ) -> LiteRtNetwork:
        """See `LiteRt.compile`."""
        return LiteRtNetwork(graph, weights, threads=self.threads, dtype=self._dtype, batch=batch)
