"""Ranking quality among networks of equal latency.

A search that knows all latencies asks one question of a supernet: which of these networks of the
same latency is best?
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas import statistics
from nas.statistics import Interval
from nas.supernet.correction import correct_for_size
from nas.supernet.ranking_records import (
    IntervalRecord,
    MatchedRankingRecord,
    RankedNetworkRecord,
    StratumRecord,
)

NUM_STRATA = 3
"""Number of groups of similar latency, where the networks were not drawn for latency budgets."""

MAX_LATENCY_RATIO = 1.1
"""Ratio of the latencies of two networks up to which they count as equally fast."""

_GAIN_RESAMPLES = 500
"""Number of resamples of an attainable gain, which is computed one resample at a time."""

CORRECTED = "corrected"
"""Name of the order of the scores after their correction for size, by which a search goes."""

TRAINED_AGAIN = "trained again"
"""Name of the order of a second standalone training, with which scores are compared."""

MIN_REPEATED = 3
"""Number of networks trained twice below which the noise of a training is not estimated."""


def compute_matched_ranking(networks: Sequence[RankedNetworkRecord]) -> MatchedRankingRecord:
    """Return the ranking quality among networks of equal latency.

    Args:
        networks: at least one network. Latencies count if all networks have one.
    """
    standalone = np.array([network.standalone_accuracy for network in networks], float)
    orders = _orders(networks)
    has_latency = "latency" in orders
    costs = orders["latency" if has_latency else "macs"]
    strata = _strata(networks, costs)
    is_matched = matched_pairs(costs)
    resamples = fixed_resamples(len(networks))
    taus = {
        name: _taus(values, standalone, is_matched, resamples) for name, values in orders.items()
    }
    counts = [name for name in orders if name in ("macs", "params", "depth", "latency")]
    gains = {name: _gains(values, standalone, strata) for name, values in orders.items()}
    noise, retraining_tau, ceiling = _noise_figures(
        standalone, orders.get(TRAINED_AGAIN), is_matched, resamples
    )
    return MatchedRankingRecord(
        cost="latency" if has_latency else "macs",
        pairs=int(np.triu(is_matched, k=1).sum()),
        kendall_tau={name: interval(*each) for name, each in taus.items()},
        lead=lead(
            *taus["supernet"],
            [taus[name][0] for name in counts],
            [taus[name][1] for name in counts],
        ),
        training_noise=noise,
        retraining_tau=retraining_tau,
        noise_ceiling=ceiling,
        gain={name: interval(*each) for name, each in gains.items()},
        partial_tau={
            name: _partial_tau(values, standalone, costs, resamples)
            for name, values in orders.items()
        },
        global_tau={
            name: interval(*_taus(values, standalone, np.ones_like(is_matched), resamples))
            for name, values in orders.items()
        },
        strata=tuple(
            StratumRecord(
                nets=len(own),
                costs=(float(costs[own].min()), float(costs[own].max())),
                kendall_tau={
                    name: _tau(values[own], standalone[own]) for name, values in orders.items()
                },
                gain={name: _gain(values[own], standalone[own]) for name, values in orders.items()},
            )
            for own in strata
        ),
    )


def matched_pairs(costs: ArrayLike) -> NDArray[np.bool_]:
    """Return which pairs of networks are equally fast, `n x n`; see `MAX_LATENCY_RATIO`.

    Args:
        costs: latency, or another cost, of each network.
    """
    logs = np.log(costs)
    # The margin keeps pairs that are equal but for rounding.
    is_matched: NDArray[np.bool_] = (
        np.abs(np.subtract.outer(logs, logs)) <= np.log(MAX_LATENCY_RATIO) + 1e-9
    )
    return is_matched


def _orders(networks: Sequence[RankedNetworkRecord]) -> dict[str, NDArray[np.float64]]:
    """Return the values that order networks, by name; NaN where a network has none."""
    columns: dict[str, list[float | None]] = {
        "supernet": [network.supernet_accuracy for network in networks],
        CORRECTED: [*correct_for_size(networks)],
        "macs": [network.macs for network in networks],
        "params": [network.params for network in networks],
        "depth": [network.depth for network in networks],
        "latency": [network.latency_us for network in networks],
        TRAINED_AGAIN: [network.repeated_accuracy for network in networks],
    }
    if None in columns["latency"]:
        del columns["latency"]
    if all(value is None for value in columns[TRAINED_AGAIN]):
        del columns[TRAINED_AGAIN]
    return {name: np.array(values, float) for name, values in columns.items()}


def _strata(
    networks: Sequence[RankedNetworkRecord], costs: NDArray[np.float64]
) -> list[NDArray[np.intp]]:
    """Return the positions of the networks of each budget, or of similar cost, in rising order."""
    budgets = {network.budget for network in networks}
    if None in budgets:
        return [
            own for own in np.array_split(np.argsort(costs, kind="stable"), NUM_STRATA) if len(own)
        ]
    budget_of = np.array([network.budget for network in networks])
    groups = [np.flatnonzero(budget_of == budget) for budget in budgets]
    return sorted(groups, key=lambda own: float(np.median(costs[own])))


def _taus(
    values: NDArray[np.float64],
    standalone: NDArray[np.float64],
    pairs: NDArray[np.bool_],
    resamples: NDArray[np.intp],
) -> tuple[float | None, NDArray[np.float64]]:
    """Return Kendall's tau over some pairs, and that of each resample."""
    known = ~np.isnan(values)
    pairs = pairs & np.logical_and.outer(known, known)
    values = np.where(known, values, 0.0)
    return (
        statistics.kendall_tau(values, standalone, pairs),
        statistics.kendall_taus(values, standalone, resamples, pairs),
    )


def _tau(values: NDArray[np.float64], standalone: NDArray[np.float64]) -> float | None:
    known = ~np.isnan(values)
    return statistics.kendall_tau(values[known], standalone[known])


def _partial_tau(
    values: NDArray[np.float64],
    standalone: NDArray[np.float64],
    costs: NDArray[np.float64],
    resamples: NDArray[np.intp],
) -> IntervalRecord | None:
    known = np.flatnonzero(~np.isnan(values))
    triple = values[known], standalone[known], costs[known]
    (value,) = statistics.partial_kendall_taus(*triple, np.arange(len(known))[None])
    if len(known) < len(values):
        resamples = fixed_resamples(len(known))
    return interval(value, statistics.partial_kendall_taus(*triple, resamples))


def _noise_figures(
    standalone: NDArray[np.float64],
    repeated: NDArray[np.float64] | None,
    pairs: NDArray[np.bool_],
    resamples: NDArray[np.intp],
) -> tuple[float | None, IntervalRecord | None, IntervalRecord | None]:
    """Return `training_noise`, `retraining_tau` and `noise_ceiling` of a ranking.

    An accuracy is taken as that of the network plus the noise of the training, both normally
    distributed. The share of the variance that is not noise is the correlation of two trainings,
    and its root that of a training with the network's own accuracy. Kendall's tau follows from a
    correlation by Greiner's relation.
    """
    if repeated is None or np.isfinite(repeated).sum() < MIN_REPEATED:
        return None, None, None
    is_known = np.isfinite(repeated)
    squares = np.where(is_known, (standalone - repeated) ** 2 / 2, 0.0)
    # The networks themselves, and the resamples.
    indices = np.concatenate([np.arange(len(standalone))[None], resamples])
    with np.errstate(invalid="ignore", divide="ignore"):
        noise = squares[indices].sum(axis=1) / is_known[indices].sum(axis=1)
        reliability = 1 - noise / statistics.pair_variances(standalone, indices, pairs)
    reliability = np.maximum(reliability, 0.0)

    def tau(correlation: NDArray[np.float64]) -> IntervalRecord | None:
        value, *resampled = statistics.expected_kendall_tau(correlation)
        return interval(float(value), np.array(resampled))

    return float(np.sqrt(noise[0])), tau(reliability), tau(np.sqrt(reliability))


def _gain(values: NDArray[np.float64], standalone: NDArray[np.float64]) -> float | None:
    """Return the share of the attainable gain; networks with equal values are equally likely."""
    known = ~np.isnan(values)
    values, standalone = values[known], standalone[known]
    if not len(values) or standalone.max() == standalone.mean():
        return None
    picked = standalone[values == values.max()].mean()
    return float((picked - standalone.mean()) / (standalone.max() - standalone.mean()))


def _gains(
    values: NDArray[np.float64],
    standalone: NDArray[np.float64],
    strata: Sequence[NDArray[np.intp]],
) -> tuple[float | None, NDArray[np.float64]]:
    """Return the mean share of the attainable gain, and that of each resample of all strata."""

    def mean(samples: Sequence[NDArray[np.intp]]) -> float:
        shares = [_gain(values[own], standalone[own]) for own in samples]
        defined = [share for share in shares if share is not None]
        return float(np.mean(defined)) if defined else float("nan")

    value = mean(strata)
    rng = np.random.default_rng(0)
    resamples = [
        own[statistics.bootstrap_indices(len(own), rng, _GAIN_RESAMPLES)] for own in strata
    ]
    resampled = np.array([mean(each) for each in zip(*resamples, strict=True)])
    return (None if np.isnan(value) else value), resampled


def lead(
    tau: float | None,
    taus: NDArray[np.float64],
    counts: Iterable[float | None],
    counted_taus: Iterable[NDArray[np.float64]],
) -> IntervalRecord | None:
    """Return by how much a tau leads over the best of several counts; None if undefined."""
    defined = [value for value in counts if value is not None]
    if tau is None or not defined:
        return None
    return interval(tau - max(defined), taus - np.fmax.reduce(list(counted_taus)))


def interval(value: float | None, resampled: NDArray[np.float64]) -> IntervalRecord | None:
    """Return a statistic with its bootstrap interval; None if it is undefined."""
    if value is None or np.isnan(value):
        return None
    own = Interval.from_resamples(float(value), resampled)
    return IntervalRecord(value=own.value, low=own.low, high=own.high)


def fixed_resamples(count: int) -> NDArray[np.intp]:
    """Return bootstrap resamples, always the same, so that a report can be reproduced."""
    return statistics.bootstrap_indices(count, np.random.default_rng(0))
