"""How well predicted latencies agree with measured ones: the figures that `nas` reports anywhere.

The table check and the report of a run judge different networks by the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import RequestError
from nas.ranks import kendall_tau

FEWEST_FOR_AN_ORDER = 3
"""The order of fewer networks says nothing, so there is no Kendall tau of it."""

CLOSE = (0.03, 0.10)
"""Relative difference of measured latencies that makes a pair hard to order, and worth it."""

Latencies = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Predicted against measured latency of `nets` networks; errors are fractions of the measured.

    Args:
        nets: how many networks.
        mape: mean absolute error.
        bias: mean signed error; negative where predictions are low.
        within_5_percent, within_10_percent: share of networks whose prediction is that close.
        kendall_tau: tau-b; None for fewer than `FEWEST_FOR_AN_ORDER` networks, or equal latencies.
        pairs_3_to_10: see `close_pairs_in_order`.
    """

    nets: int
    mape: float
    bias: float
    within_5_percent: float
    within_10_percent: float
    kendall_tau: float | None
    pairs_3_to_10: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def agreement(predicted_us: Latencies, measured_us: Latencies) -> Agreement:
    """The figures for networks with these latencies. Raises RequestError for no network."""
    if not len(measured_us):
        raise RequestError("No network has both a predicted and a measured latency.")
    error = np.asarray(predicted_us, float) / np.asarray(measured_us, float) - 1
    ordered = len(error) >= FEWEST_FOR_AN_ORDER
    return Agreement(
        nets=len(error),
        mape=float(np.abs(error).mean()),
        bias=float(error.mean()),
        within_5_percent=float((np.abs(error) <= 0.05).mean()),
        within_10_percent=float((np.abs(error) <= 0.10).mean()),
        kendall_tau=kendall_tau(predicted_us, measured_us) if ordered else None,
        pairs_3_to_10=close_pairs_in_order(predicted_us, measured_us),
    )


def close_pairs_in_order(predicted_us: Latencies, measured_us: Latencies) -> float | None:
    """The share of close pairs that are predicted in the measured order; None without any.

    A pair is close if the slower network's measured latency is 3% to 10% above the faster one's.
    Kendall's tau over a space is made of pairs that any model orders; these are the pairs that a
    search chooses between. Predicted equal is not in order.
    """
    measured = np.asarray(measured_us, float)
    upper = np.triu_indices(len(measured), k=1)
    fast = np.minimum.outer(measured, measured)[upper]
    slow = np.maximum.outer(measured, measured)[upper]
    apart = slow / fast - 1
    close = (apart >= CLOSE[0]) & (apart <= CLOSE[1])
    if not close.any():
        return None
    return float((_signs(predicted_us) == _signs(measured_us))[close].mean())


def _signs(values: Latencies) -> NDArray[np.float64]:
    """Which of each pair is larger: -1, 0 or 1, pairs in the order of `triu_indices`."""
    array = np.asarray(values, float)
    found: NDArray[np.float64] = np.sign(array[:, None] - array[None, :])
    return found[np.triu_indices(len(array), k=1)]
