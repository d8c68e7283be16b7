"""`LiteRtKernelTimer`: time kernels and networks with LiteRT, here or on a board."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

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
from nas.runtimes.files import File, Files
from nas.runtimes.litert import fusion
from nas.runtimes.litert.network import LiteRtNetwork, network_file
from nas.runtimes.litert.repeated import forms_chain, repeat_kernel, tiny_operators

if TYPE_CHECKING:
    from nas.runtimes.boards.tflite_board import FileOnBoard, TfliteBoard

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
    """

    has_launch_cost = False

    def __init__(self, dtype: str, threads: int, files: Files) -> None:
        super().__init__(dtype, threads)
        self._files = files

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """See `RepeatedKernelTimer`.

        Raises:
            MeasurementError: XNNPACK lacks the kernel. It takes one part of a network, so that what
                lies beyond such a kernel runs without it too, as no kernel alone shows.
        """
        is_lacking = self.dtype == "int8" and kernel.kind == "avg_pool"
        if is_lacking and not self.is_pooled_by_a_delegate(kernel):
            raise MeasurementError(
                "XNNPACK has no average pooling in int8, and leaves the network around it to "
                "LiteRT's own kernels.",
                remedy="Use float32, or a space without average pooling.",
            )
        return super().time_kernel(kernel)

    def is_pooled_by_a_delegate(self, kernel: Kernel) -> bool:
        """Return whether another delegate than XNNPACK takes the pooling of a kernel."""
        return False

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

    def load(self, data: bytes, batch: int = 1) -> File | FileOnBoard:
        """Load a file where it is timed."""
        return self._files.load(data, batch=batch)

    def write_copies(self, kernel: Kernel, schedule: Schedule) -> bytes:
        """Return the file with the copies of a kernel."""
        return repeat_kernel(kernel, schedule["copies"], np.random.default_rng(0))

    def load_copies(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        """See `RepeatedKernelTimer`."""
        return self.load(self.write_copies(kernel, schedule), kernel.batch).evaluate

    def load_tiny_nodes(self, count: int) -> Evaluate:
        """See `RepeatedKernelTimer`."""
        return self.load(tiny_operators(count, self.dtype)).evaluate

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


class BoardKernelTimer(LiteRtKernelTimer):
    """Times kernels and networks on a board. Files are written here.

    Args:
        dtype: `float32` or `int8`.
        threads: number of threads that run one kernel.
        board: the board.
    """

    def timing_context(self) -> AbstractContextManager[None]:
        """See `RepeatedKernelTimer.timing_context`."""
        return self._board.timing_context()

    def __init__(self, dtype: str, threads: int, board: TfliteBoard) -> None:
        RepeatedKernelTimer.__init__(self, dtype, threads)
        self._board = board
        self._delegated: dict[Kernel, dict[str, int]] = {}

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """See `LiteRtKernelTimer`. The schedule has what the board's delegate took, if it has one.

        A kernel that the delegate does not take runs on the processor, and is timed there.
        """
        schedule, timed = super().time_kernel(kernel)
        return {**schedule, **self._delegated.get(kernel, {})}, timed

    def is_pooled_by_a_delegate(self, kernel: Kernel) -> bool:
        """See `LiteRtKernelTimer`. The board's delegate says what it takes of a file."""
        if not self._board.describe().delegate:
            return False
        data = self.write_copies(kernel, self.choose_copies(kernel))
        file = self.load(data, kernel.batch)
        return file.delegated.get(_POOLING, 0) == file.operators[_POOLING]

    def load(self, data: bytes, batch: int = 1) -> FileOnBoard:
        """See `LiteRtKernelTimer`."""
        return self._board.load(data, self.threads, batch)

    def load_copies(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        """See `RepeatedKernelTimer`."""
        file = self.load(self.write_copies(kernel, schedule), kernel.batch)
        if self._board.describe().delegate:
            delegated, operators = (sum(n.values()) for n in (file.delegated, file.operators))
            self._delegated[kernel] = {"operators": operators, "delegated_operators": delegated}
        return file.evaluate

    def compile(
        self, graph: Graph, weights: Weights | None = None, batch: int = 1
    ) -> CompiledNetwork:
        """See `RepeatedKernelTimer`."""
        return self.load(network_file(graph, weights, self.dtype), batch)
