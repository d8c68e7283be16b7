"""Ranking quality: how well a supernet's scores order networks by their standalone accuracy.

A search spends its trials on the architectures that a supernet scores highest, so the order of the
scores matters more than their values. A search that knows all latencies asks one question of a
supernet: which of these networks of the same latency is best? So the figures among networks of
equal latency come first, and those over all sizes, where counting multiply-accumulates is hard to
beat, come last. The baselines are counts that need no training at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nas import statistics
from nas.supernet.matched_ranking import (
    compute_matched_ranking,
    fixed_resamples,
    interval,
    lead,
)
from nas.supernet.ranking_records import (
    BaselineTaus,
    IntervalRecord,
    PooledRanking,
    RankedNetworkRecord,
    Regrets,
    SpaceRanking,
)

MIN_DISTINCT_SCORES = 10
"""Number of distinct scores below which no rank correlation is reported."""


def compute_ranking(networks: Sequence[RankedNetworkRecord]) -> SpaceRanking:
    """Return the ranking quality of one supernet.

    Args:
        networks: at least one network, all of one space.
    """
    scores, standalone = _accuracies(networks)
    macs = np.array([network.macs for network in networks], float)
    baselines = {
        "macs": macs,
        "params": np.array([network.params for network in networks], float),
        "depth": np.array([network.depth for network in networks], float),
    }
    resamples = fixed_resamples(len(networks))
    distinct = len(np.unique(scores))
    is_ranking = distinct >= MIN_DISTINCT_SCORES
    tau = statistics.kendall_tau(scores, standalone) if is_ranking else None
    taus = statistics.kendall_taus(scores, standalone, resamples)
    baseline_tau = {
        name: statistics.kendall_tau(counts, standalone) for name, counts in baselines.items()
    }
    baseline_taus = {
        name: statistics.kendall_taus(counts, standalone, resamples)
        for name, counts in baselines.items()
    }
    return SpaceRanking(
        nets=len(networks),
        distinct_scores=distinct,
        tied_pairs=_count_tied_pairs(scores),
        kendall_tau=interval(tau, taus),
        baseline_tau=BaselineTaus(
            **{name: interval(baseline_tau[name], baseline_taus[name]) for name in baselines}
        ),
        lead=lead(tau, taus, baseline_tau.values(), baseline_taus.values()),
        matched=compute_matched_ranking(networks) if is_ranking else None,
        regret=Regrets(
            **{
                name: _regret(values, standalone, macs)
                for name, values in {"supernet": scores, **baselines}.items()
            }
        ),
        offset=_offset(scores, standalone),
        networks=tuple(networks),
    )


def compute_pooled_ranking(networks: Sequence[RankedNetworkRecord]) -> PooledRanking:
    """Return the ranking quality over the networks of several spaces together."""
    scores, standalone = _accuracies(networks)
    spaces = np.array([network.architecture.space for network in networks])
    resamples = fixed_resamples(len(networks))
    shifted = scores.copy()
    offsets = {}
    for space in dict.fromkeys(spaces.tolist()):
        in_space = spaces == space
        offsets[space] = _offset(scores[in_space], standalone[in_space])
        shifted[in_space] += offsets[space].value
    is_ranking = len(np.unique(scores)) >= MIN_DISTINCT_SCORES

    def tau(values: NDArray[np.float64]) -> IntervalRecord | None:
        value = statistics.kendall_tau(values, standalone) if is_ranking else None
        return interval(value, statistics.kendall_taus(values, standalone, resamples))

    return PooledRanking(
        nets=len(networks),
        kendall_tau=tau(scores),
        without_offsets=tau(shifted),
        offsets=offsets,
    )


def _accuracies(
    networks: Sequence[RankedNetworkRecord],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the supernet and the standalone accuracies, an array each."""
    supernet = np.array([network.supernet_accuracy for network in networks], float)
    standalone = np.array([network.standalone_accuracy for network in networks], float)
    return supernet, standalone


def _count_tied_pairs(scores: NDArray[np.float64]) -> int:
    _, counts = np.unique(scores, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


def _regret(
    scores: NDArray[np.float64], standalone: NDArray[np.float64], macs: NDArray[np.float64]
) -> float:
    """Return the regret of some scores; networks with equal scores are equally likely."""
    losses = []
    for budget in macs:
        in_budget = macs <= budget
        top = scores[in_budget] == scores[in_budget].max()
        losses.append(standalone[in_budget].max() - standalone[in_budget][top].mean())
    return float(np.mean(losses))


def _offset(scores: NDArray[np.float64], standalone: NDArray[np.float64]) -> IntervalRecord:
    differences = standalone - scores
    resampled_means = differences[fixed_resamples(len(differences))].mean(axis=1)
    offset = interval(float(differences.mean()), resampled_means)
    assert offset is not None
    return offset
