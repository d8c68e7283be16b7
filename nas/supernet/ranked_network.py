"""A network with its score from a supernet and its accuracy after standalone training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RankedNetwork:
    """A network with its score from a supernet and its accuracy after standalone training.

    Attributes:
        architecture: the architecture as `Architecture.to_json` returns it.
        digest: digest of the network's graph.
        macs, params, depth: counts of the network's graph.
        supernet_accuracy: accuracy with the supernet's weights on the search split, in [0, 1].
        standalone_accuracy: accuracy after standalone training on the hold-out split, in [0, 1].
        latency_us: predicted latency in microseconds; None without a latency table.
        budget: number of the latency budget that the network was drawn for, from 0; None if it was
            not drawn for one.
        repeated_accuracy: accuracy after standalone training with another seed; None if it was
            trained once.
    """

    architecture: Mapping[str, Any]
    digest: str
    macs: int
    params: int
    depth: int
    supernet_accuracy: float
    standalone_accuracy: float
    latency_us: float | None = None
    budget: int | None = None
    repeated_accuracy: float | None = None

    @property
    def space(self) -> str:
        """Name of the search space."""
        return str(self.architecture["space"])
