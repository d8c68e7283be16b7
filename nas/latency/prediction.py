"""`Prediction`: the latency of a network as a table predicts it, and what it is based on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nas.errors import TableError
from nas.graph import Graph
from nas.latency.cache_model import DispatchCosts
from nas.latency.kernel import Kernel
from nas.latency.record_rows import ESTIMATED
from nas.latency.runtime import NetworkCost
from nas.latency.table_records import TableRecords
from nas.latency.timing import MEASURED

MAX_DISPATCH_SHARE = 0.5
"""Share of launches and start in a latency above which its prediction is called rough.

Networks of three small spaces with 8 pixels were predicted within 7% above this share, 3.3% wrong
on average, and 1.3% wrong below it.
"""


ROUGH_PREDICTION = "launches are known less well than kernels: expect an error of up to 10%"
"""What is said of a prediction of which launches have more than `MAX_DISPATCH_SHARE`."""


MAX_REMEMBERED_BLOCKS = 1 << 16
"""Largest number of blocks, per batch size, whose kernels and latencies are remembered."""


@dataclass(frozen=True)
class Prediction:
    """The predicted latency of one network.

    Args:
        latency_us: latency of the whole network, corrected by the table's calibration if that is
            used.
        kernels: kernels that the network launches, in order.
        kernels_us: latency of each kernel.
        dispatch_us: everything but the kernels in the uncorrected latency: launching them, and
            starting the network.
        unstable_launches: number of launches whose timing is unstable.
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
    unstable_launches: int
    basis: str = MEASURED
    uncorrected_us: float = 0.0
    batch: int = 1
    estimated_launches: int = 0

    @property
    def is_corrected(self) -> bool:
        """Whether the table's calibration corrected the latency."""
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


class _KernelCosts(NamedTuple):
    """The kernels of a network or of one of its blocks.

    Args:
        kernels: kernels in launch order.
        warm_us: latency of each kernel with warm caches.
        cold_penalty_us: additional time of all of them with cold caches.
        weight_bytes: size of all weights as the runtime stores them.
        unstable: number of kernels whose timing is unstable.
        bases: bases of the estimated kernels.
    """

    kernels: tuple[Kernel, ...]
    warm_us: tuple[float, ...]
    cold_penalty_us: float
    weight_bytes: int
    unstable: int
    bases: tuple[str, ...]


class Predictor:
    """Predicts latencies from the records of a table, and remembers the costs of each block.

    Call `forget` after the records have changed.

    Args:
        records: records of the table.
    """

    def __init__(self, records: TableRecords) -> None:
        self._records = records
        self._runtime = records.runtime
        self._blocks: dict[int, dict[Graph, _KernelCosts]] = {}

    def forget(self) -> None:
        """Forget the costs of all blocks."""
        self._blocks.clear()

    def predict(
        self,
        graph: Graph,
        batch: int,
        dispatch_us: Mapping[str, float] | None,
        space: str | None = None,
    ) -> Prediction:
        """See `nas.latency.table.LatencyTable.predict`."""
        records = self._records
        if records.lacks_dispatch():
            raise TableError(
                f"{records.path} has no dispatch overhead.",
                remedy="Continue it with `nas table build`.",
            )
        kernels, warm_us, cold_penalty_us, weight_bytes, unstable, bases = self._costs(graph, batch)
        network = NetworkCost(
            warm_us, cold_penalty_us, weight_bytes, self._runtime.activation_bytes(graph, batch)
        )
        dispatch = records.dispatch if dispatch_us is None else DispatchCosts(dispatch_us)
        uncorrected_us = self._runtime.network_us(network, dispatch)
        latency_us = uncorrected_us
        if correction := records.correction(batch, space):
            without_launches_us = uncorrected_us
            # No other correction reads it, and searches predict many networks.
            if correction.replaces_launches:
                without_launches_us = self._runtime.network_us(network, dispatch.without_launches)
            latency_us = correction.apply(uncorrected_us, without_launches_us, len(kernels))
        return Prediction(
            latency_us,
            kernels,
            warm_us,
            uncorrected_us - sum(warm_us),
            unstable,
            _joined_basis((*bases, *records.dispatch_bases.values())),
            uncorrected_us,
            batch,
            len(bases),
        )

    def launches_us(self, launches: int) -> float:
        """See `nas.latency.table.LatencyTable.launches_us`."""
        network = NetworkCost((0.0,) * launches, 0.0, 0.0, 0.0)
        return self._runtime.network_us(network, self._records.dispatch)

    def _costs(self, graph: Graph, batch: int) -> _KernelCosts:
        """Return the costs of a network, composed of those of its blocks where possible."""
        blocks = graph.pieces if self._runtime.has_local_kernels else (graph,)
        if len(blocks) == 1:
            return self._block_costs(graph, batch)
        costs = [self._block_costs(block, batch) for block in blocks]
        has_estimates = bool(self._records.estimated)
        return _KernelCosts(
            tuple([kernel for block in costs for kernel in block.kernels]),
            tuple([latency for block in costs for latency in block.warm_us]),
            sum([block.cold_penalty_us for block in costs]),
            sum([block.weight_bytes for block in costs]),
            sum([block.unstable for block in costs]),
            tuple([basis for block in costs for basis in block.bases]) if has_estimates else (),
        )

    def _block_costs(self, block: Graph, batch: int) -> _KernelCosts:
        remembered = self._blocks.setdefault(batch, {})
        costs = remembered.get(block)
        if costs is None:
            records = self._records
            kernels = tuple(self._runtime.kernels(block, batch))
            costs = _KernelCosts(
                kernels,
                tuple([records.latency_us(kernel) for kernel in kernels]),
                sum([records.cold_penalty_us(kernel) for kernel in kernels]),
                sum([records.weight_bytes(kernel) for kernel in kernels]),
                sum([kernel in records.unstable for kernel in kernels]),
                tuple([records.estimated[k] for k in kernels if k in records.estimated]),
            )
            if len(remembered) >= MAX_REMEMBERED_BLOCKS:
                remembered.clear()
            remembered[block] = costs
        return costs


def _joined_basis(bases: Sequence[str]) -> str:
    """Return one basis that names each method of estimation once; `measured` for none."""
    if not bases:
        return MEASURED
    return ESTIMATED + "; ".join(dict.fromkeys(basis.removeprefix(ESTIMATED) for basis in bases))
