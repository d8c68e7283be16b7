"""Statistics that reports show: rank correlations, bootstrap intervals, errors of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import RequestError

Values = Sequence[float] | NDArray[np.float64]

RESAMPLES = 2000
"""Of a bootstrap."""

CONFIDENCE = 0.95
"""Of its intervals."""


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its bootstrap interval, which holds it with `CONFIDENCE`."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def of(cls, value: float, resampled: Values) -> Interval:
        """The percentile interval (Efron 1979) of a figure's values in resamples.

        Resamples in which the figure is not defined (NaN) are left out; without any that are left
        the interval is unbounded.
        """
        found = np.asarray(resampled, float)
        found = found[~np.isnan(found)]
        if not len(found):
            return cls(value, -np.inf, np.inf)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(found, [tail, 1 - tail])
        return cls(value, float(low), float(high))


def resamples(count: int, rng: np.random.Generator, number: int = RESAMPLES) -> NDArray[np.intp]:
    """Positions `number x count` of bootstrap resamples: things drawn with replacement."""
    return rng.integers(count, size=(number, count))


def kendall_tau(first: Values, second: Values) -> float | None:
    """Kendall's tau-b (1945), ties corrected for; None if all values of one are equal."""
    found = float(kendall_taus(first, second, np.arange(len(first))[None])[0])
    return None if np.isnan(found) else found


def kendall_taus(first: Values, second: Values, chosen: NDArray[np.intp]) -> NDArray[np.float64]:
    """Kendall's tau-b of every row of positions `resamples x n`; NaN where it is not defined.

    Equals that of the chosen values themselves, but the signs of all pairs are worked out once: a
    thing that was drawn twice counts twice, and is tied with itself.
    """
    a, b = _signs(first), _signs(second)
    counts = np.zeros((len(chosen), len(a)))
    np.add.at(counts, (np.arange(len(chosen))[:, None], chosen), 1)

    def pairs(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = ((counts @ matrix) * counts).sum(axis=1)
        return found

    with np.errstate(invalid="ignore"):
        taus: NDArray[np.float64] = pairs(a * b) / np.sqrt(pairs(a * a) * pairs(b * b))
    return taus


def spearman(first: Values, second: Values) -> float | None:
    """Spearman's rank correlation (1904), ties at their mean rank; None as for `kendall_tau`."""
    found = float(spearmans(first, second, np.arange(len(first))[None])[0])
    return None if np.isnan(found) else found


def spearmans(first: Values, second: Values, chosen: NDArray[np.intp]) -> NDArray[np.float64]:
    """Spearman's rank correlation of every row of positions; NaN where it is not defined."""
    from scipy.stats import rankdata

    ranks = [rankdata(np.asarray(each, float)[chosen], axis=1) for each in (first, second)]
    a, b = (each - each.mean(axis=1, keepdims=True) for each in ranks)
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = (a * b).sum(axis=1) / np.sqrt(
            (a * a).sum(axis=1) * (b * b).sum(axis=1)
        )
    return found


FEWEST_FOR_AN_ORDER = 3
"""The order of fewer networks says nothing, so there is no Kendall tau of it."""

CLOSE = (0.03, 0.10)
"""Relative difference of measured latencies that makes a pair hard to order, and worth it."""


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


def agreement(predicted_us: Values, measured_us: Values) -> Agreement:
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


def close_pairs_in_order(predicted_us: Values, measured_us: Values) -> float | None:
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
    in_order = _signs(predicted_us)[upper] == _signs(measured_us)[upper]
    return float(in_order[close].mean())


def _signs(values: Values) -> NDArray[np.float64]:
    """Which of each pair is larger, `n x n`: -1, 0 or 1."""
    array = np.asarray(values, float)
    found: NDArray[np.float64] = np.sign(array[:, None] - array[None, :])
    return found
