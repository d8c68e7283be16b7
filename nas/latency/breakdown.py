"""`Breakdown`: where the time of a network goes, launch by launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.composition import NetworkCost
from nas.latency.prediction import Prediction

if TYPE_CHECKING:
    from nas.latency.table import LatencyTable
    from nas.space import Architecture


class Launch(NamedTuple):
    """What one launch adds to the latency of a network, in microseconds.

    Attributes:
        kernel: the kernel.
        block: number of its block, see `Graph.segments`; None if the runtime does not know it.
        warm_us: latency of the kernel with its weights in the caches.
        cold_us: its share of the time that the network waits for weights in no cache.
        launch_us: time from the end of the kernel before, or from the start, until it runs. It is
            below 0 if the kernel runs beside others.
    """

    kernel: Kernel
    block: int | None
    warm_us: float
    cold_us: float
    launch_us: float


@dataclass(frozen=True)
class Breakdown:
    """The predicted latency of a network as a sum.

    `start_us`, the three parts of each launch and `correction_us` add up to
    `prediction.latency_us`.

    Args:
        prediction: the prediction.
        start_us: cost of entering the network.
        launches: the launches in order.
    """

    prediction: Prediction
    start_us: float
    launches: tuple[Launch, ...]

    @property
    def correction_us(self) -> float:
        """What the table's correction adds to the latency; below 0 if it lowers it."""
        return self.prediction.latency_us - self.prediction.uncorrected_us


def break_down(table: LatencyTable, network: Graph | Architecture, batch: int = 1) -> Breakdown:
    """Return where the predicted latency of a network goes.

    The launch of a kernel costs what the network takes longer with this kernel than when it ends
    with the one before, apart from the kernel itself. That holds however the runtime composes
    kernels (`Runtime.network_us`).

    Args:
        table: the table of the device.
        network: the network, as for `LatencyTable.predict`.
        batch: number of images that run at once.

    Raises the errors of `LatencyTable.predict`.
    """
    prediction = table.predict(network, batch)
    graph = network if isinstance(network, Graph) else network.graph
    runtime, warm_us, start_us = table.runtime, prediction.kernels_us, table.dispatch.invocation_us

    def network_us(kernels_us: Sequence[float]) -> float:
        return runtime.network_us(NetworkCost(kernels_us, 0, 0), table.dispatch)

    ends_us = [start_us, *(network_us(warm_us[:n]) for n in range(1, len(warm_us) + 1))]
    weights = [table.weight_bytes(kernel) for kernel in prediction.kernels]
    byte_us = (prediction.uncorrected_us - ends_us[-1]) / (sum(weights) or 1)
    blocks: Sequence[int | None] = runtime.kernel_blocks(graph, batch) or [None] * len(warm_us)
    launches = [
        Launch(kernel, block, us, byte_us * weight_bytes, end_us - before_us - us)
        for kernel, block, us, weight_bytes, (before_us, end_us) in zip(
            prediction.kernels, blocks, warm_us, weights, pairwise(ends_us), strict=True
        )
    ]
    return Breakdown(prediction, start_us, tuple(launches))
