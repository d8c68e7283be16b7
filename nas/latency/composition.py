"""`Composition`: how networks split into kernels, and how these make up the latency of a network.

A latency table predicts by it, also on machines that do not have the runtime.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas.figures import Figure
from nas.graph import Graph
from nas.kernels import fusion
from nas.kernels.kernel import Kernel
from nas.latency.cache_model import DispatchCosts
from nas.latency.capabilities import Configured
from nas.latency.fused_blocks import FusedBlocks
from nas.quantisation.network import QuantisedNetwork

Schedule = Mapping[str, Any]
"""How a runtime builds a kernel, as JSON can hold it. A table keeps it beside the latency."""


@dataclass(frozen=True)
class NetworkCost:
    """The kernels of a network, from which `Runtime.network_us` works out the network's latency.

    Args:
        kernels_us: latency of each kernel with warm caches in microseconds, in launch order.
        weight_bytes: size of all weights as the runtime stores them.
        activation_bytes: largest size of the activations that are alive at the same time.
    """

    kernels_us: Sequence[float]
    weight_bytes: float
    activation_bytes: float

    @property
    def touched_bytes(self) -> float:
        """Memory that one inference reads or writes."""
        return self.weight_bytes + self.activation_bytes


class Composition(Configured):
    """The part of a runtime that predicts: kernels, sizes and figures. It touches no device.

    The defaults fit a device that launches fused kernels one after the other.
    """

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """Return the kernels of a network in launch order, for batches of this size.

        They must equal, as a multiset, what the compiled network launches. The default fuses each
        convolution with its bias, activations and residual addition, see `nas.kernels.fusion`.

        Raises:
            ValueError: the runtime has no kernel for an op of the graph.
        """
        return fusion.kernels(graph, batch)

    def kernel_blocks(self, graph: Graph, batch: int = 1) -> list[int] | None:
        """Return the number of the block to which each of `kernels` belongs; None if not known.

        Blocks are counted as in `Graph.segments`, and the kernels are in launch order. The report
        groups kernels by them. Override it if `has_local_kernels` is false.
        """
        if not self.capabilities.has_local_kernels:
            return None
        return [n for n, block in enumerate(graph.segments) for _ in self.kernels(block, batch)]

    def block_kernels(self, blocks: Collection[Graph], batch: int = 1) -> list[Kernel]:
        """Return all kernels that blocks can have in any network of them, once each.

        Override it if kernels depend on what is next to a block.
        """
        return list(dict.fromkeys(each for block in blocks for each in self.kernels(block, batch)))

    @property
    def fused_blocks(self) -> FusedBlocks | None:
        """What the runtime makes of blocks, for tables to record; None if rules tell it."""
        return None

    def kernel_note(self, kernel: Kernel) -> str:
        """Return in which form the device runs a kernel that it has no code for; may be empty.

        Predictions show it beside the kernel, such as `hard swish as a lookup table`.
        """
        return ""

    def rewriting_us(self, kernel: Kernel, schedule: Schedule) -> float | None:
        """Return what the form of `kernel_note` adds to a kernel's latency; None if not known.

        It is the time of operations that the network itself does not have, in microseconds, which
        the latency contains.

        Args:
            kernel: a kernel with a note.
            schedule: its schedule, from the row of the latency table.
        """
        return None

    def weight_bytes(self, kernel: Kernel, schedule: Schedule) -> int:
        """Return the size of a kernel's weights as the runtime stores them.

        Raises:
            ValueError: the schedule is none of this runtime's.
        """
        return kernel.weight_bytes

    def activation_bytes(self, graph: Graph, batch: int = 1) -> float:
        """Return the largest size of the activations that are alive at the same time."""
        return batch * graph.peak_memory_bytes / (4 if self.dtype == "int8" else 1)

    def network_us(self, network: NetworkCost, dispatch: DispatchCosts) -> float:
        """Return the latency of a network in microseconds.

        The default adds the kernels, a launch for each and `invocation` once, as far as
        `dispatch_parts` names them, and what waiting for weights costs
        (`nas.latency.cache_model`).
        """
        warm_us = sum(network.kernels_us) + len(network.kernels_us) * dispatch.launch_us
        waiting_us = dispatch.waiting_us(network.weight_bytes, network.touched_bytes)
        return warm_us + dispatch.invocation_us + waiting_us

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What the runtime knows of a whole network beside its latency, such as `sram_kib`.

        A search can optimise and limit them. Those of `kernel_figures` are added up by the table;
        `network_figures` returns the others.
        """
        return self.capabilities.kernel_figures

    def network_figures(self, graph: Graph) -> Mapping[str, float]:
        """Return further costs of a whole network, by the names in `figures`.

        It may take as long as compiling the network, and touches no device.

        Raises:
            MeasurementError: the device cannot run the network.
        """
        return {}

    def device_files(self, network: QuantisedNetwork) -> Mapping[str, bytes]:
        """Return the files that the device needs in place of an exported int8 file.

        Args:
            network: the network of the exported file, with calibrated ranges.

        Returns:
            Contents by what follows the stem of the exported file's name, such as `_vela.tflite`.

        Raises:
            MeasurementError: the device cannot run the network.
        """
        return {}
