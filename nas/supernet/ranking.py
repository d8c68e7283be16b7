"""Ranking quality: how well a supernet's scores order networks by their standalone accuracy.

A search spends its trials on the architectures that a supernet scores highest, so the order of the
scores matters more than their values. A search that knows all latencies asks one question of a
supernet: which of these networks of the same latency is best? So only pairs of networks count that
are about equally fast. Two orders say what a tau is worth: that of multiply-accumulates needs no
training at all, and a second standalone training has no error but the noise of training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas import statistics
from nas.statistics import Interval
from nas.supernet.correction import correct_for_size
from nas.supernet.ranking_records import (
    PooledRanking,
    RankedNetworkRecord,
    SpaceRanking,
)

MIN_DISTINCT_SCORES = 10
"""Number of distinct scores below which no rank correlation is reported."""

MAX_LATENCY_RATIO = 1.1
"""Ratio of the latencies of two networks up to which they count as equally fast."""

BOOTSTRAP_RESAMPLES = 2000
"""Number of resamples of a bootstrap: the ends of a 95% interval are then set by 50 of them."""

MIN_REPEATED = 3
"""Number of networks trained twice below which the noise of a training is not estimated."""


def compute_ranking(networks: Sequence[RankedNetworkRecord]) -> SpaceRanking:
    """Return the ranking quality of one supernet.

    Args:
        networks: at least one network, all of one space. Latencies count if all networks have one.
    """
    scores, standalone = _accuracies(networks)
    macs = np.array([network.macs for network in networks], float)
    latencies = [network.latency_us for network in networks]
    has_latency = None not in latencies
    is_matched = matched_pairs(np.array(latencies, float) if has_latency else macs)
    distinct = len(np.unique(scores))
    ranking = SpaceRanking(
        nets=len(networks),
        distinct_scores=distinct,
        cost="latency" if has_latency else "macs",
        pairs=int(np.triu(is_matched, k=1).sum()),
        kendall_tau={},
        offset=_offset(scores, standalone),
        networks=tuple(networks),
    )
    if distinct < MIN_DISTINCT_SCORES:
        return ranking
    corrected = np.array(correct_for_size(networks))
    repeated = np.array([network.repeated_accuracy for network in networks], float)
    taus = {
        "supernet": _kendall_tau(scores, standalone, is_matched),
        "corrected": _kendall_tau(corrected, standalone, is_matched),
        "macs": _kendall_tau(macs, standalone, is_matched),
        "second training": _retraining_tau(standalone, repeated, is_matched),
    }
    return ranking.model_copy(update={"kendall_tau": taus})


def compute_pooled_ranking(networks: Sequence[RankedNetworkRecord]) -> PooledRanking:
    """Return the ranking quality over the networks of several spaces together."""
    scores, standalone = _accuracies(networks)
    if len(np.unique(scores)) < MIN_DISTINCT_SCORES:
        return PooledRanking(nets=len(networks), kendall_tau=None, without_offsets=None)
    spaces = np.array([network.architecture.space for network in networks])
    shifted = scores.copy()
    for space in np.unique(spaces):
        in_space = spaces == space
        shifted[in_space] += _offset(scores[in_space], standalone[in_space]).value
    all_pairs = np.ones((len(networks), len(networks)), bool)
    return PooledRanking(
        nets=len(networks),
        kendall_tau=_kendall_tau(scores, standalone, all_pairs),
        without_offsets=_kendall_tau(shifted, standalone, all_pairs),
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


def _accuracies(
    networks: Sequence[RankedNetworkRecord],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the supernet and the standalone accuracies, an array each."""
    supernet = np.array([network.supernet_accuracy for network in networks], float)
    standalone = np.array([network.standalone_accuracy for network in networks], float)
    return supernet, standalone


def _kendall_tau(
    values: NDArray[np.float64], standalone: NDArray[np.float64], pairs: NDArray[np.bool_]
) -> Interval | None:
    return _interval(statistics.kendall_taus(values, standalone, _samples(len(standalone)), pairs))


def _retraining_tau(
    standalone: NDArray[np.float64], repeated: NDArray[np.float64], pairs: NDArray[np.bool_]
) -> Interval | None:
    """Return the Kendall's tau that a second training of all networks is expected to reach.

    An accuracy is taken as that of the network plus the noise of the training, both normally
    distributed. The noise follows from the networks that were trained twice. The share of the
    variance that is not noise is the correlation of two trainings, and Kendall's tau follows from
    it by Greiner's relation (1909), tau = 2 / pi * arcsin(correlation). The result is more precise
    than the tau of the few networks that were trained twice.
    """
    is_known = np.isfinite(repeated)
    if is_known.sum() < MIN_REPEATED:
        return None
    squares = np.where(is_known, (standalone - repeated) ** 2 / 2, 0.0)
    samples = _samples(len(standalone))
    with np.errstate(invalid="ignore", divide="ignore"):
        noise = squares[samples].sum(axis=1) / is_known[samples].sum(axis=1)
        reliability = 1 - noise / statistics.pair_variances(standalone, samples, pairs)
    return _interval(2 / np.pi * np.arcsin(np.maximum(reliability, 0.0)))


def _offset(scores: NDArray[np.float64], standalone: NDArray[np.float64]) -> Interval:
    offset = _interval((standalone - scores)[_samples(len(scores))].mean(axis=1))
    assert offset is not None
    return offset


def _samples(count: int) -> NDArray[np.intp]:
    """Return the positions of all networks, and below them those of bootstrap resamples.

    The resamples are always the same, so that a report can be reproduced.
    """
    resamples = np.random.default_rng(0).integers(count, size=(BOOTSTRAP_RESAMPLES, count))
    return np.concatenate([np.arange(count)[None], resamples])


def _interval(values: NDArray[np.float64]) -> Interval | None:
    """Return the statistic of `_samples` with its percentile interval (Efron 1979).

    Resamples in which it is undefined are ignored. The result is None if the statistic of all
    networks is undefined.
    """
    value, resampled = values[0], values[1:]
    if np.isnan(value):
        return None
    tail = (1 - statistics.CONFIDENCE_LEVEL) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))
