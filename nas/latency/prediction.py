"""`Prediction`: what a latency table says of one network, and what the number rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nas.latency.kernel import Kernel
from nas.latency.record import ESTIMATED, MEASURED


@dataclass(frozen=True)
class Prediction:
    """Predicted latency of one network.

    Args:
        latency_us: of the whole network.
        kernels: what it launches, in order.
        kernels_us: latency of each.
        dispatch_us: everything but the kernels: launching them, and starting the network.
        unstable: how many launches rest on a timing that would not settle.
        basis: `measured`; or `estimated: ` and what its estimated kernels and dispatch costs are
            estimated by, each named once. The other ones are measured.
        calibrated_us: with the table's whole-network correction for this batch size; None without
            one.
        batch: images that run at once; all latencies are those of the whole batch.
        estimated: how many launches have an estimated latency.
    """

    latency_us: float
    kernels: tuple[Kernel, ...]
    kernels_us: tuple[float, ...]
    dispatch_us: float
    unstable: int
    basis: str = MEASURED
    calibrated_us: float | None = None
    batch: int = 1
    estimated: int = 0

    @property
    def launches(self) -> int:
        """How many kernels run."""
        return len(self.kernels)

    def by_kernel(self) -> list[tuple[Kernel, int, float]]:
        """Every kernel, how often it runs, and its share in microseconds; the dearest first."""
        latency = dict(zip(self.kernels, self.kernels_us, strict=True))
        rows = [(k, n, n * latency[k]) for k, n in Counter(self.kernels).items()]
        return sorted(rows, key=lambda row: -row[2])


def joined_basis(bases: Sequence[str]) -> str:
    """Return one basis for all estimates with these: `measured` for none."""
    if not bases:
        return MEASURED
    return ESTIMATED + "; ".join(dict.fromkeys(basis.removeprefix(ESTIMATED) for basis in bases))
