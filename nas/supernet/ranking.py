"""How well the order of a supernet's scores is the order that training alone gives.

A search spends its trials on what a supernet ranks high, so the order is what must be right. It is
held against what costs nothing: counting multiply-accumulates, parameters or layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas import statistics
from nas.statistics import Interval

FEWEST_SCORES = 10
"""Distinct supernet scores below which networks have no order worth a number."""

STRATA = 3
"""Parts, by multiply-accumulates, in which the order is looked at by itself."""

COUNTS = ("macs", "params", "depth")
"""What could be counted instead of training a supernet."""


@dataclass(frozen=True)
class RankedNetwork:
    """One architecture: what a supernet says of it, and what training it alone gave.

    Args:
        architecture: as `Architecture.to_json` writes it.
        digest: of its graph.
        macs, params, depth: counted on the graph.
        supernet_accuracy: on the search's validation images.
        alone_accuracy: after training alone, on the hold-out.
    """

    architecture: Mapping[str, Any]
    digest: str
    macs: int
    params: int
    depth: int
    supernet_accuracy: float
    alone_accuracy: float

    @property
    def space(self) -> str:
        """Name of the space."""
        return str(self.architecture["space"])


@dataclass(frozen=True)
class Stratum:
    """The order among networks of similar size; `kendall_tau` is None where it is not defined."""

    nets: int
    macs: tuple[int, int]
    kendall_tau: Interval | None


@dataclass(frozen=True)
class Ranking:
    """What a supernet's order is worth; intervals are bootstrap intervals over the networks.

    Args:
        nets: how many networks.
        distinct_scores: of the supernet.
        tied_pairs: pairs of networks that the supernet scores alike.
        kendall_tau, spearman: of supernet and training alone; None for fewer than `FEWEST_SCORES`
            distinct scores, which are no ranking.
        counted_tau: Kendall's tau of each of `COUNTS` with training alone on the same networks.
        lead: Kendall's tau less that of the best count; the best one is chosen anew in every
            resample, so a lower end above zero is a lead over all of them.
        strata: from small to large networks.
        regret: of the network that the supernet calls best, how far its accuracy alone is below
            that of the truly best one, a mean over all budgets that one of the networks just meets;
            the same for picking by each count.
        offset: mean of the accuracy alone less the supernet's.
    """

    nets: int
    distinct_scores: int
    tied_pairs: int
    kendall_tau: Interval | None
    spearman: Interval | None
    counted_tau: Mapping[str, Interval | None]
    lead: Interval | None
    strata: tuple[Stratum, ...]
    regret: Mapping[str, float]
    offset: Interval

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Pooled:
    """Networks of several spaces on one axis, as a front over all of them has them.

    Args:
        kendall_tau: of the scores as they are.
        without_offsets: of scores that are moved by the mean offset of their space.
        offsets: by space; where their intervals lie apart, one supernet flatters its networks.
    """

    nets: int
    kendall_tau: Interval | None
    without_offsets: Interval | None
    offsets: Mapping[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def rank(networks: Sequence[RankedNetwork]) -> Ranking:
    """The figures of one space's networks, of which there is at least one."""
    scores = _of(networks, "supernet_accuracy")
    alone = _of(networks, "alone_accuracy")
    macs = _of(networks, "macs")
    counts = {name: _of(networks, name) for name in COUNTS}
    chosen = _resamples(len(networks))
    distinct = len(np.unique(scores))
    sure = distinct >= FEWEST_SCORES
    taus = statistics.kendall_taus(scores, alone, chosen)
    counted = {name: statistics.kendall_taus(own, alone, chosen) for name, own in counts.items()}
    found = {name: statistics.kendall_tau(own, alone) for name, own in counts.items()}
    tau = statistics.kendall_tau(scores, alone) if sure else None
    rho = statistics.spearman(scores, alone) if sure else None
    best = [value for value in found.values() if value is not None]
    lead = None
    if tau is not None and best:
        apart = taus - np.fmax.reduce(list(counted.values()))
        lead = Interval.of(tau - max(best), apart)
    return Ranking(
        nets=len(networks),
        distinct_scores=distinct,
        tied_pairs=_tied_pairs(scores),
        kendall_tau=_interval(tau, taus),
        spearman=_interval(rho, statistics.spearmans(scores, alone, chosen)),
        counted_tau={name: _interval(found[name], counted[name]) for name in COUNTS},
        lead=lead,
        strata=_strata(scores, alone, macs) if sure else (),
        regret={
            name: _regret(own, alone, macs) for name, own in {"supernet": scores, **counts}.items()
        },
        offset=_offset(scores, alone),
    )


def pool(networks: Sequence[RankedNetwork]) -> Pooled:
    """The figures of networks of several spaces together."""
    scores = _of(networks, "supernet_accuracy")
    alone = _of(networks, "alone_accuracy")
    spaces = np.array([network.space for network in networks])
    chosen = _resamples(len(networks))
    moved = scores.copy()
    offsets = {}
    for space in dict.fromkeys(spaces.tolist()):
        own = spaces == space
        offsets[space] = _offset(scores[own], alone[own])
        moved[own] += offsets[space].value
    sure = len(np.unique(scores)) >= FEWEST_SCORES

    def tau(values: NDArray[np.float64]) -> Interval | None:
        found = statistics.kendall_tau(values, alone) if sure else None
        return _interval(found, statistics.kendall_taus(values, alone, chosen))

    return Pooled(len(networks), tau(scores), tau(moved), offsets)


def _of(networks: Sequence[RankedNetwork], name: str) -> NDArray[np.float64]:
    return np.array([getattr(network, name) for network in networks], float)


def _resamples(count: int) -> NDArray[np.intp]:
    """The same ones every time, so that a report says the same when it is written again."""
    return statistics.resamples(count, np.random.default_rng(0))


def _interval(value: float | None, resampled: NDArray[np.float64]) -> Interval | None:
    return None if value is None else Interval.of(value, resampled)


def _tied_pairs(scores: NDArray[np.float64]) -> int:
    _, counts = np.unique(scores, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


def _strata(
    scores: NDArray[np.float64], alone: NDArray[np.float64], macs: NDArray[np.float64]
) -> tuple[Stratum, ...]:
    found = []
    for own in np.array_split(np.argsort(macs, kind="stable"), STRATA):
        tau = statistics.kendall_tau(scores[own], alone[own])
        taus = statistics.kendall_taus(scores[own], alone[own], _resamples(len(own)))
        limits = int(macs[own].min()), int(macs[own].max())
        found.append(Stratum(len(own), limits, _interval(tau, taus)))
    return tuple(found)


def _regret(
    scores: NDArray[np.float64], alone: NDArray[np.float64], macs: NDArray[np.float64]
) -> float:
    """See `Ranking.regret`; of networks with equal scores any is as likely to be picked."""
    lost = []
    for budget in macs:
        within = macs <= budget
        best = scores[within] == scores[within].max()
        lost.append(alone[within].max() - alone[within][best].mean())
    return float(np.mean(lost))


def _offset(scores: NDArray[np.float64], alone: NDArray[np.float64]) -> Interval:
    apart = alone - scores
    return Interval.of(float(apart.mean()), apart[_resamples(len(apart))].mean(axis=1))
