"""`LiteRtKernelTimer`: time kernels and networks with LiteRT, here or on a device."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import numpy as np

from nas.errors import MeasurementError
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.repeated_kernels import (
    MAX_COPIES,
    RUN_SECONDS,
    WARM_WEIGHT_BYTES,
    RepeatedKernelTimer,
)
from nas.latency.runtime import CompiledNetwork, Schedule, Weights
from nas.latency.timing import Evaluate, Timing
from nas.runtimes.files import Files
from nas.runtimes.litert import fusion
from nas.runtimes.litert.network import LiteRtNetwork, network_file
from nas.runtimes.litert.repeated import forms_chain, repeat_kernel, tiny_operators

_POOLING = "AVERAGE_POOL_2D"
"""Name of the operator of average pooling."""

MIN_COPIES = 2
"""Fewest copies of a kernel in one file."""

_MACS_PER_SECOND = {
    "float32": {"dense": 100e9, "depthwise": 20e9},
    "int8": {"dense": 300e9, "depthwise": 40e9},
}
"""Approximate speed of a core, by which the number of copies is chosen that fill `RUN_SECONDS`."""

_ELEMENTS_PER_SECOND = 4e9
"""Approximate speed of a core at reading and writing tensors."""


class LiteRtKernelTimer(RepeatedKernelTimer):
    """Compile and time kernels and networks for `nas.runtimes.litert.runtime.LiteRt`.

    LiteRT's own profile of operators is no alternative: it counts whole microseconds. A kernel
    costs no more among other kernels than among copies of itself: the difference was below 3 ns.

    Args:
        dtype: `float32` or `int8`.
        threads: number of threads that run one kernel.
        files: loads files with LiteRT.
        has_delegate: whether a delegate of the device takes what it can. A kernel that it does not
            take runs on the processor, and is timed there.
    """

    has_launch_cost = False

    def __init__(
        self, dtype: str, threads: int, files: Files, *, has_delegate: bool = False
    ) -> None:
        super().__init__(dtype, threads)
        self._files, self._has_delegate = files, has_delegate
        self._delegated: dict[Kernel, dict[str, int]] = {}

    def timing_context(self) -> AbstractContextManager[None]:
        """See `RepeatedKernelTimer`."""
        return self._files.timing_context()

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """See `RepeatedKernelTimer`. The schedule has what a delegate took.

        Raises:
            MeasurementError: XNNPACK lacks the kernel. It takes one part of a network, so that what
                lies beyond such a kernel runs without it too, as no kernel alone shows.
        """
        is_lacking = self.dtype == "int8" and kernel.kind == "avg_pool"
        if is_lacking and not self._is_pooled_by_a_delegate(kernel):
            raise MeasurementError(
                "XNNPACK has no average pooling in int8, and leaves the network around it to "
                "LiteRT's own kernels.",
                remedy="Use float32, or a space without average pooling.",
            )
        schedule, timed = super().time_kernel(kernel)
        return {**schedule, **self._delegated.get(kernel, {})}, timed

    def _is_pooled_by_a_delegate(self, kernel: Kernel) -> bool:
        """Return whether another delegate than XNNPACK takes the pooling of a kernel."""
        if not self._has_delegate:
            return False
        data = repeat_kernel(kernel, self.choose_copies(kernel)["copies"], _rng())
        facts = self._files.load(data, batch=kernel.batch).facts
        return facts["delegated"].get(_POOLING, 0) == facts["operators"][_POOLING]

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
            copies = min(copies, WARM_WEIGHT_BYTES // self.weight_bytes(kernel))
        copies = max(MIN_COPIES, copies)
        return {"copies": copies, "weights": copies if kernel.has_weights else 1}

    def load_copies(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        """See `RepeatedKernelTimer`."""
        data = repeat_kernel(kernel, schedule["copies"], _rng())
        file = self._files.load(data, batch=kernel.batch)
        if self._has_delegate:
            delegated, operators = (sum(file.facts[k].values()) for k in ("delegated", "operators"))
            self._delegated[kernel] = {"operators": operators, "delegated_operators": delegated}
        return file.evaluate

    def load_tiny_nodes(self, count: int) -> Evaluate:
        """See `RepeatedKernelTimer`."""
        return self._files.load(tiny_operators(count, self.dtype), batch=1).evaluate

    def overhead_s(self, kernel: Kernel, schedule: Schedule) -> float:
        """See `RepeatedKernelTimer`."""
        outputs = 1 if forms_chain(kernel) else schedule["copies"]
        return self.invocation_s + outputs * self.tiny_node_s

    def kernels(self, graph: Graph) -> list[Kernel]:
        """See `RepeatedKernelTimer`."""
        return fusion.kernels(graph, self.dtype)

    def weight_bytes(self, kernel: Kernel) -> int:
        """See `RepeatedKernelTimer`."""
        return fusion.packed_weight_bytes(kernel)

    def compile(
        self, graph: Graph, weights: Weights | None = None, batch: int = 1
    ) -> CompiledNetwork:
        """See `RepeatedKernelTimer`."""
        file = self._files.load(network_file(graph, weights, self.dtype), batch=batch)
        return LiteRtNetwork(file, batch)


def _rng() -> np.random.Generator:
    """Return the generator of the weights of copies, on which no latency depends."""
    return np.random.default_rng(0)
