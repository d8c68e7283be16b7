"""Ranking quality: how well a supernet's scores order networks by their standalone accuracy.

A search spends its trials on the architectures that a supernet scores highest, so the order of the
scores matters more than their values. The baselines are counts that need no training at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas import statistics
from nas.statistics import Interval

MIN_DISTINCT_SCORES = 10
"""Number of distinct scores below which no rank correlation is reported."""

NUM_STRATA = 3
"""Number of groups of similar MACs for which Kendall's tau is reported separately."""


@dataclass(frozen=True)
class RankedNetwork:
    """A network with its score from a supernet and its accuracy after standalone training.

    Attributes:
        architecture: the architecture as `Architecture.to_json` returns it.
        digest: digest of the network's graph.
        macs, params, depth: counts of the network's graph.
        supernet_accuracy: accuracy with the supernet's weights on the search split, in [0, 1].
        standalone_accuracy: accuracy after standalone training on the hold-out split, in [0, 1].
    """

    architecture: Mapping[str, Any]
    digest: str
    macs: int
    params: int
    depth: int
    supernet_accuracy: float
    standalone_accuracy: float

    @property
    def space(self) -> str:
        """Name of the search space."""
        return str(self.architecture["space"])


@dataclass(frozen=True)
class Stratum:
    """Ranking quality among networks of similar size.

    Attributes:
        nets: number of networks.
        macs: smallest and largest number of multiply-accumulates.
        kendall_tau: rank correlation; None where it is undefined.
    """

    nets: int
    macs: tuple[int, int]
    kendall_tau: Interval | None


@dataclass(frozen=True)
class Ranking:
    """Ranking quality of one supernet; intervals are bootstrap intervals over the networks.

    Attributes:
        nets: number of networks.
        distinct_scores: number of distinct supernet scores.
        tied_pairs: number of pairs of networks with equal supernet scores.
        kendall_tau, spearman: rank correlation of the supernet scores with the standalone
            accuracies; None below `MIN_DISTINCT_SCORES` distinct scores.
        baseline_tau: Kendall's tau of each baseline with the standalone accuracies, by name:
            "macs", "params" and "depth".
        lead: Kendall's tau less that of the best baseline. Each resample chooses its best baseline
            anew, so that a lower end above zero is a lead over all baselines.
        strata: ranking quality by network size, from small to large.
        regret: accuracy lost by choosing the network with the highest score instead of the truly
            best one under a MACs budget, averaged over the budgets that one of the networks just
            meets; of the supernet and of each baseline.
        offset: mean standalone accuracy less mean supernet accuracy.
    """

    nets: int
    distinct_scores: int
    tied_pairs: int
    kendall_tau: Interval | None
    spearman: Interval | None
    baseline_tau: Mapping[str, Interval | None]
    lead: Interval | None
    strata: tuple[Stratum, ...]
    regret: Mapping[str, float]
    offset: Interval

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class PooledRanking:
    """Ranking quality over the networks of several spaces, as on a front with all of them.

    Attributes:
        nets: number of networks.
        kendall_tau: rank correlation of the supernet scores with the standalone accuracies.
        without_offsets: rank correlation after adding the mean offset of its space to each score.
        offsets: `Ranking.offset` of each space. Where the intervals of two spaces lie apart, one
            supernet overestimates its networks against the other.
    """

    nets: int
    kendall_tau: Interval | None
    without_offsets: Interval | None
    offsets: Mapping[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return asdict(self)


def compute_ranking(networks: Sequence[RankedNetwork]) -> Ranking:
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
    resamples = _resamples(len(networks))
    distinct = len(np.unique(scores))
    is_ranking = distinct >= MIN_DISTINCT_SCORES
    tau = statistics.kendall_tau(scores, standalone) if is_ranking else None
    rho = statistics.spearman(scores, standalone) if is_ranking else None
    taus = statistics.kendall_taus(scores, standalone, resamples)
    baseline_tau = {
        name: statistics.kendall_tau(counts, standalone) for name, counts in baselines.items()
    }
    baseline_taus = {
        name: statistics.kendall_taus(counts, standalone, resamples)
        for name, counts in baselines.items()
    }
    defined = [value for value in baseline_tau.values() if value is not None]
    lead = None
    if tau is not None and defined:
        leads = taus - np.fmax.reduce(list(baseline_taus.values()))
        lead = Interval.from_resamples(tau - max(defined), leads)
    return Ranking(
        nets=len(networks),
        distinct_scores=distinct,
        tied_pairs=_count_tied_pairs(scores),
        kendall_tau=_interval(tau, taus),
        spearman=_interval(rho, statistics.spearmans(scores, standalone, resamples)),
        baseline_tau={
            name: _interval(baseline_tau[name], baseline_taus[name]) for name in baselines
        },
        lead=lead,
        strata=_strata(scores, standalone, macs) if is_ranking else (),
        regret={
            name: _regret(values, standalone, macs)
            for name, values in {"supernet": scores, **baselines}.items()
        },
        offset=_offset(scores, standalone),
    )


def compute_pooled_ranking(networks: Sequence[RankedNetwork]) -> PooledRanking:
    """Return the ranking quality over the networks of several spaces together."""
    scores, standalone = _accuracies(networks)
    spaces = np.array([network.space for network in networks])
    resamples = _resamples(len(networks))
    shifted = scores.copy()
    offsets = {}
    for space in dict.fromkeys(spaces.tolist()):
        in_space = spaces == space
        offsets[space] = _offset(scores[in_space], standalone[in_space])
        shifted[in_space] += offsets[space].value
    is_ranking = len(np.unique(scores)) >= MIN_DISTINCT_SCORES

    def tau(values: NDArray[np.float64]) -> Interval | None:
        value = statistics.kendall_tau(values, standalone) if is_ranking else None
        return _interval(value, statistics.kendall_taus(values, standalone, resamples))

    return PooledRanking(len(networks), tau(scores), tau(shifted), offsets)


def _accuracies(
    networks: Sequence[RankedNetwork],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the supernet and the standalone accuracies, an array each."""
    supernet = np.array([network.supernet_accuracy for network in networks], float)
    standalone = np.array([network.standalone_accuracy for network in networks], float)
    return supernet, standalone


def _resamples(count: int) -> NDArray[np.intp]:
    """Return bootstrap resamples, always the same, so that a report can be reproduced."""
    return statistics.bootstrap_indices(count, np.random.default_rng(0))


def _interval(value: float | None, resampled: NDArray[np.float64]) -> Interval | None:
    return None if value is None else Interval.from_resamples(value, resampled)


def _count_tied_pairs(scores: NDArray[np.float64]) -> int:
    _, counts = np.unique(scores, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


def _strata(
    scores: NDArray[np.float64], standalone: NDArray[np.float64], macs: NDArray[np.float64]
) -> tuple[Stratum, ...]:
    strata = []
    for chosen in np.array_split(np.argsort(macs, kind="stable"), NUM_STRATA):
        tau = statistics.kendall_tau(scores[chosen], standalone[chosen])
        resamples = _resamples(len(chosen))
        taus = statistics.kendall_taus(scores[chosen], standalone[chosen], resamples)
        limits = int(macs[chosen].min()), int(macs[chosen].max())
        strata.append(Stratum(len(chosen), limits, _interval(tau, taus)))
    return tuple(strata)


def _regret(
    scores: NDArray[np.float64], standalone: NDArray[np.float64], macs: NDArray[np.float64]
) -> float:
    """Return `Ranking.regret` of some scores; networks with equal scores are equally likely."""
    losses = []
    for budget in macs:
        in_budget = macs <= budget
        top = scores[in_budget] == scores[in_budget].max()
        losses.append(standalone[in_budget].max() - standalone[in_budget][top].mean())
    return float(np.mean(losses))


def _offset(scores: NDArray[np.float64], standalone: NDArray[np.float64]) -> Interval:
    differences = standalone - scores
    resampled_means = differences[_resamples(len(differences))].mean(axis=1)
    return Interval.from_resamples(float(differences.mean()), resampled_means)
