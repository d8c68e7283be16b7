"""`Prediction`: the latency of a network as a table predicts it, and what it is based on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.record import UNCERTAIN, Record
from nas.latency.runtime import Runtime
from nas.latency.timing import ESTIMATED, MEASURED

MAX_DISPATCH_SHARE = 0.5
"""Share of launches and start in a latency above which a prediction says so.

Networks of three small spaces with 8 pixels were predicted within 7% above this share, 3.3% wrong
on average, and 1.3% wrong below it.
"""

UNCERTAIN_PREDICTION = "launches are known less well than kernels: expect an error of up to 10%"
"""What is said of a prediction of which launches have more than `MAX_DISPATCH_SHARE`."""

MAX_REMEMBERED_BLOCKS = 1 << 16
"""Largest number of blocks, per batch size, whose kernels and latencies are remembered."""


@dataclass(frozen=True)
class Prediction:
    """The predicted latency of one network.

    Args:
        latency_us: latency of the whole network, corrected by the table's correction if there is
            one.
        kernels: kernels that the network launches, in order.
        kernels_us: latency of each kernel.
        dispatch_us: everything but the kernels in the uncorrected latency: launching them, and
            starting the network.
        uncertain_launches: number of launches whose timing is unstable or disturbed.
        basis: `measured` if all latencies are; otherwise `estimated: ` and the methods by which
            some of the kernels and dispatch costs are estimated, each named once.
        uncorrected_us: latency as it is composed of kernels and dispatch costs.
        batch: number of images that run at once; all latencies are those of the whole batch.
        estimated_launches: number of launches whose latency is estimated.
    """

    latency_us: float
    kernels: tuple[Kernel, ...]
    kernels_us: tuple[float, ...]
    dispatch_us: float
    uncertain_launches: int
    basis: str = MEASURED
    uncorrected_us: float = 0.0
    batch: int = 1
    estimated_launches: int = 0

    @property
    def is_corrected(self) -> bool:
        """Whether the table's correction corrected the latency."""
        return self.latency_us != self.uncorrected_us

    @property
    def launches(self) -> int:
        """Number of kernels that run."""
        return len(self.kernels)

    @property
    def dispatch_share(self) -> float:
        """Share of `dispatch_us` in the uncorrected latency, in [0, 1]."""
        # A runtime may run kernels at the same time: the network then takes less than their sum.
        return max(0.0, self.dispatch_us / self.uncorrected_us)

    def by_kernel(self) -> list[tuple[Kernel, int, float]]:
        """Return each kernel with its launches and their latency in microseconds, slowest first."""
        latency = dict(zip(self.kernels, self.kernels_us, strict=True))
        rows = [(k, n, n * latency[k]) for k, n in Counter(self.kernels).items()]
        return sorted(rows, key=lambda row: -row[2])


class KernelCosts(NamedTuple):
    """The kernels of a network or of one of its blocks.

    Args:
        kernels: kernels in launch order.
        warm_us: latency of each kernel with warm caches.
        weight_bytes: size of all weights as the runtime stores them.
        uncertain: number of kernels whose timing is unstable or disturbed.
        bases: bases of the estimated kernels.
    """

    kernels: tuple[Kernel, ...]
    warm_us: tuple[float, ...]
    weight_bytes: int
    uncertain: int
    bases: tuple[str, ...]


class BlockCosts:
    """Looks up the costs of networks, and remembers those of each block.

    Call `forget` after the records have changed.

    Args:
        runtime: runtime that tells the kernels of a network.
        timed_record: function that returns the record of a kernel.
        weight_bytes: function that returns the size of a kernel's weights.
    """

    def __init__(
        self,
        runtime: Runtime,
        timed_record: Callable[[Kernel], Record],
        weight_bytes: Callable[[Kernel], int],
    ) -> None:
        self._runtime = runtime
        self._timed_record, self._weight_bytes = timed_record, weight_bytes
        self._blocks: dict[int, dict[Graph, KernelCosts]] = {}

    def forget(self) -> None:
        """Forget the costs of all blocks."""
        self._blocks.clear()

    def of(self, graph: Graph, batch: int) -> KernelCosts:
        """Return the costs of a network, composed of those of its blocks where possible."""
        blocks = graph.segments if self._runtime.capabilities.has_local_kernels else (graph,)
        if len(blocks) == 1:
            return self._of_block(graph, batch)
        costs = [self._of_block(block, batch) for block in blocks]
        return KernelCosts(
            tuple([kernel for block in costs for kernel in block.kernels]),
            tuple([latency for block in costs for latency in block.warm_us]),
            sum([block.weight_bytes for block in costs]),
            sum([block.uncertain for block in costs]),
            tuple([basis for block in costs for basis in block.bases]),
        )

    def _of_block(self, block: Graph, batch: int) -> KernelCosts:
        remembered = self._blocks.setdefault(batch, {})
        costs = remembered.get(block)
        if costs is None:
            kernels = tuple(self._runtime.kernels(block, batch))
            records = [self._timed_record(kernel) for kernel in kernels]
            costs = KernelCosts(
                kernels,
                tuple([record.latency_us or 0.0 for record in records]),
                sum([self._weight_bytes(kernel) for kernel in kernels]),
                sum([record.status in UNCERTAIN for record in records]),
                tuple([record.basis for record in records if record.is_estimated]),
            )
            if len(remembered) >= MAX_REMEMBERED_BLOCKS:
                remembered.clear()
            remembered[block] = costs
        return costs


def joined_basis(bases: Sequence[str]) -> str:
    """Return one basis that names each method of estimation once; `measured` for none."""
    if not bases:
        return MEASURED
    return ESTIMATED + "; ".join(dict.fromkeys(basis.removeprefix(ESTIMATED) for basis in bases))
