"""How ONNX Runtime splits a graph into kernels on a processor. Imports nothing heavy.

What it fuses, and in which layouts tensors lie, differs between float32 and int8: each dtype has
rules of its own, in a folder of its own. Shared are the walk over a graph (`walk`) and, here, how
kernels compose.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from nas.graph import Graph
from nas.latency.kernel import Kernel


class OnnxRuntimeFusion(ABC):
    """See `nas.latency.runtime.Runtime`; with what one dtype's rules have to add."""

    block: int = 1
    """Channels that lie together where tensors are kept in blocks; 1 where not."""

    @abstractmethod
    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """See `Runtime.kernels`; in an order in which they can run."""

    @abstractmethod
    def block_kernels(self, graph: Graph, *, first: bool = False, batch: int = 1) -> list[Kernel]:
        """The kernels that a block can have in any network, given the block alone; once each.

        What leaves a block is turned where it is read, but for the vector that leaves a network.

        Args:
            graph: the block.
            first: whether images may enter it.
            batch: images that run at once.
        """
