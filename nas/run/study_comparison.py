"""What a study shows: the found networks against published and random ones, wins and losses alike.

Networks of one kind make a curve: their Pareto front by mean test accuracy and measured latency,
linear in the logarithm of the latency between its members. The curve ends, flat, at the slowest
network of the kind. An interval is that of the seeds: the variance of an accuracy between trainings
of one network is taken to be the same for all networks, and pooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nas.display.formatting import format_latency
from nas.run.study import Kind, StudyNetwork, StudyRecord
from nas.search.pareto import non_dominated
from nas.statistics import CONFIDENCE_LEVEL, Interval

FloatArray = NDArray[np.float64]

GRID = 400
"""Latencies, or accuracies, at which two curves are compared, evenly spaced in the range."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network of a study with its results.

    Attributes:
        network: the network.
        latency_us: its measured latency.
        accuracies: its test accuracies, one for each training.
    """

    network: StudyNetwork
    latency_us: float
    accuracies: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """The mean of the accuracies."""
        return float(np.mean(self.accuracies))


@dataclass(frozen=True)
class SeedNoise:
    """The standard deviation of an accuracy between trainings of one network.

    Attributes:
        deviation: the pooled standard deviation; 0 if no network was trained twice.
        freedom: its degrees of freedom.
    """

    deviation: float
    freedom: int

    @classmethod
    def of(cls, networks: Sequence[TrainedNetwork]) -> SeedNoise:
        """Return the pooled deviation of some networks."""
        squares = sum(
            float(np.sum((np.array(each.accuracies) - each.accuracy) ** 2)) for each in networks
        )
        freedom = sum(len(each.accuracies) - 1 for each in networks)
        return cls(math.sqrt(squares / freedom) if freedom else 0.0, freedom)

    def interval(self, value: float, variance: float) -> Interval:
        """Return a weighted sum of mean accuracies with its interval.

        Args:
            value: the sum.
            variance: its variance as a multiple of the variance of one accuracy.
        """
        if not self.freedom:
            return Interval(value, -math.inf, math.inf)
        half = student_t(self.freedom) * self.deviation * math.sqrt(variance)
        return Interval(value, value - half, value + half)


def student_t(freedom: int) -> float:
    """Return the quantile of Student's t distribution for a two-sided interval."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE_LEVEL) / 2, freedom))


class Curve:
    """The front of networks of one kind.

    Args:
        networks: the networks, at least one.

    Attributes:
        members: the networks on the front, the fastest first.
        slowest_us: latency of the slowest network, also of one that is not on the front.
    """

    def __init__(self, networks: Sequence[TrainedNetwork]) -> None:
        points = [(each.latency_us, -each.accuracy) for each in networks]
        self.members = [networks[at] for at in non_dominated(points)]
        self.slowest_us = max(each.latency_us for each in networks)

    @cached_property
    def _log_latencies(self) -> FloatArray:
        return np.log([each.latency_us for each in self.members])

    @cached_property
    def _accuracies(self) -> FloatArray:
        return np.array([each.accuracy for each in self.members])

    def weights(self, latencies_us: FloatArray) -> FloatArray:
        """Return the weight of each member's accuracy in the curve, `latencies x members`.

        Latencies below that of the fastest member have the weights of that member.
        """
        identity = np.eye(len(self.members))
        return np.stack(
            [np.interp(np.log(latencies_us), self._log_latencies, own) for own in identity], axis=1
        )

    def accuracies(self, latencies_us: FloatArray) -> FloatArray:
        """Return the accuracy of the curve at some latencies."""
        accuracies: FloatArray = self.weights(latencies_us) @ self._accuracies
        return accuracies

    def latencies_us(self, accuracies: FloatArray) -> FloatArray:
        """Return the latency at which the curve reaches some accuracies within its range."""
        return np.exp(np.interp(accuracies, self._accuracies, self._log_latencies))

    def variance(self, weights: FloatArray) -> FloatArray:
        """Return the variance of weighted sums, as a multiple of that of one accuracy."""
        counts = np.array([len(each.accuracies) for each in self.members])
        variance: FloatArray = (weights**2 / counts).sum(-1)
        return variance


@dataclass(frozen=True)
class CurveComparison:
    """The curve of the found networks against that of the published ones.

    Attributes:
        latency_range_us: the latencies that both curves have.
        gain: accuracy of the found networks minus that of the published ones at equal latency, as
            fractions; the mean over the logarithm of the latency.
        better, worse: share of that range in which the found ones are more or less accurate.
        shown_better, shown_worse: the same where the interval of the seeds excludes 0.
        best_gain, worst_gain: largest and smallest gain, each with its latency in microseconds.
        latency_ratio: latency of the found ones over that of the published ones at equal accuracy,
            the geometric mean over `accuracy_range`; None if no accuracy is common.
        accuracy_range: the accuracies that both curves have; None likewise.
        faster: share of the accuracies at which the found ones are faster; None likewise.
    """

    latency_range_us: tuple[float, float]
    gain: Interval
    better: float
    worse: float
    shown_better: float
    shown_worse: float
    best_gain: tuple[float, float]
    worst_gain: tuple[float, float]
    latency_ratio: float | None
    accuracy_range: tuple[float, float] | None
    faster: float | None

    @property
    def text(self) -> list[str]:
        """The comparison in sentences."""
        low, high = map(format_latency, self.latency_range_us)
        at_best, at_worst = (format_latency(at) for _, at in (self.best_gain, self.worst_gain))
        shown = ""
        if math.isfinite(self.gain.low):
            shown = f"; the seeds show it over {self.shown_better:.0%} and {self.shown_worse:.0%}"
        texts = [
            f"At equal measured latency, from {low} to {high}, the networks found are "
            f"{points_text(self.gain)} than the best published ones, on average over the logarithm "
            f"of the latency: from {signed_points(self.worst_gain[0])} at {at_worst} to "
            f"{signed_points(self.best_gain[0])} points at {at_best}. They are more accurate over "
            f"{self.better:.0%} of this range and less accurate over {self.worse:.0%}{shown}."
        ]
        if self.latency_ratio is not None and self.accuracy_range is not None:
            low, high = (f"{each:.1%}" for each in self.accuracy_range)
            texts.append(
                f"At equal accuracy, from {low} to {high}, they take {self.latency_ratio:.2f} of "
                "the latency of the published ones (the geometric mean), and are faster over "
                f"{self.faster:.0%} of this range."
            )
        return texts


def compare_curves(found: Curve, published: Curve, noise: SeedNoise) -> CurveComparison | None:
    """Compare two curves over the range that both have; None if they have no common latency."""
    first = max(curve.members[0].latency_us for curve in (found, published))
    last = min(found.slowest_us, published.slowest_us)
    if first >= last:
        return None
    grid = np.geomspace(first, last, GRID)
    weights, others = found.weights(grid), published.weights(grid)
    gains = found.accuracies(grid) - published.accuracies(grid)
    variances = found.variance(weights) + published.variance(others)
    intervals = [noise.interval(g, v) for g, v in zip(gains, variances, strict=True)]
    variance = float(found.variance(weights.mean(0)) + published.variance(others.mean(0)))
    best, worst = int(gains.argmax()), int(gains.argmin())
    ratio = accuracies = faster = None
    lowest, highest = (
        choose(curve.members[end].accuracy for curve in (found, published))
        for choose, end in ((max, 0), (min, -1))
    )
    if lowest < highest:
        levels = np.linspace(lowest, highest, GRID)
        ratios = np.log(found.latencies_us(levels) / published.latencies_us(levels))
        ratio, accuracies = float(np.exp(ratios.mean())), (lowest, highest)
        faster = float((ratios < 0).mean())
    return CurveComparison(
        latency_range_us=(first, last),
        gain=noise.interval(float(gains.mean()), variance),
        better=float((gains > 0).mean()),
        worse=float((gains < 0).mean()),
        shown_better=float(np.mean([each.low > 0 for each in intervals])),
        shown_worse=float(np.mean([each.high < 0 for each in intervals])),
        best_gain=(float(gains[best]), float(grid[best])),
        worst_gain=(float(gains[worst]), float(grid[worst])),
        latency_ratio=ratio,
        accuracy_range=accuracies,
        faster=faster,
    )


@dataclass(frozen=True)
class RandomComparison:
    """The found networks against random ones of the same space and latency.

    Attributes:
        gain: accuracy of a found network minus the mean of its random ones, the mean over the found
            networks; the interval is that of the networks, and unbounded for a single one.
        gains: the same of each found network, by its name.
        wins: number of found networks that are more accurate than each of their random ones.
        worst_mismatch: largest relative difference of the measured latencies of such a pair.
    """

    gain: Interval
    gains: dict[str, float]
    wins: int
    worst_mismatch: float

    @property
    def text(self) -> str:
        """The comparison in a sentence."""
        return (
            f"Against random networks of the same space and latency, the networks found are "
            f"{points_text(self.gain)}, on average over {len(self.gains)} of them; {self.wins} of "
            f"{len(self.gains)} are more accurate than each random one. The measured latencies of "
            f"a pair differ by at most {self.worst_mismatch:.0%}."
        )


def compare_random(
    found: Sequence[TrainedNetwork], drawn: Sequence[TrainedNetwork]
) -> RandomComparison | None:
    """Compare found networks with the random ones of their latency; None without any."""
    gains: dict[str, float] = {}
    wins, mismatch = 0, 0.0
    for own in found:
        rivals = [each for each in drawn if each.network.found == own.network.name]
        if rivals:
            gains[own.network.name] = own.accuracy - float(np.mean([r.accuracy for r in rivals]))
            wins += all(own.accuracy > rival.accuracy for rival in rivals)
            ratios = [rival.latency_us / own.latency_us for rival in rivals]
            mismatch = max(mismatch, *(abs(ratio - 1) for ratio in ratios))
    if not gains:
        return None
    values = np.array(list(gains.values()))
    interval = Interval(float(values.mean()), -math.inf, math.inf)
    if len(values) > 1:
        half = student_t(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
        interval = Interval(interval.value, interval.value - half, interval.value + half)
    return RandomComparison(interval, gains, wins, mismatch)


@dataclass(frozen=True)
class Rival:
    """A published or random network beside the curve of the found networks.

    Attributes:
        network: the network.
        gain: accuracy of the found networks at its latency minus its own; None if all found ones
            are slower. It counts the best found network where all are faster.
        latency_ratio: latency of the found networks at its accuracy over its own; None if none is
            as accurate. It counts the fastest one where all are more accurate.
    """

    network: TrainedNetwork
    gain: Interval | None
    latency_ratio: float | None

    @classmethod
    def of(cls, network: TrainedNetwork, found: Curve, noise: SeedNoise) -> Rival:
        """Return a network beside the curve."""
        gain = ratio = None
        if network.latency_us >= found.members[0].latency_us:
            at = np.array([network.latency_us])
            variance = float(found.variance(found.weights(at))[0]) + 1 / len(network.accuracies)
            gain = noise.interval(float(found.accuracies(at)[0]) - network.accuracy, variance)
        if network.accuracy <= found.members[-1].accuracy:
            reached = found.latencies_us(np.array([network.accuracy]))
            ratio = float(reached[0]) / network.latency_us
        return cls(network, gain, ratio)


@dataclass(frozen=True)
class StudyComparison:
    """All that a study compares, as far as it has been trained.

    Attributes:
        networks: networks that were trained at least once, by their kind, the fastest first.
        noise: what the seed changes.
        published: the curves of the found and the published networks; None if they have no common
            latency, or none was trained of one kind.
        random: found and random networks; None without any pair.
        rivals: each published network beside the curve of the found ones.
    """

    networks: dict[Kind, list[TrainedNetwork]]
    noise: SeedNoise
    published: CurveComparison | None
    random: RandomComparison | None
    rivals: list[Rival]

    @classmethod
    def of(cls, record: StudyRecord) -> StudyComparison:
        """Return what a study shows."""
        networks: dict[Kind, list[TrainedNetwork]] = {
            kind: [
                TrainedNetwork(network, network.latency_us, tuple(accuracies))
                for network in record.of_kind(kind)
                if (accuracies := record.accuracies(network))
            ]
            for kind in ("found", "published", "random")
        }
        found, published = networks["found"], networks["published"]
        noise = SeedNoise.of([each for own in networks.values() for each in own])
        curve = Curve(found) if found else None
        return cls(
            networks,
            noise,
            compare_curves(curve, Curve(published), noise) if curve and published else None,
            compare_random(found, networks["random"]),
            [Rival.of(each, curve, noise) for each in published] if curve else [],
        )

    @property
    def statements(self) -> list[str]:
        """What the study shows, in sentences."""
        texts = list(self.published.text) if self.published else []
        if self.networks["found"] and self.networks["published"] and not self.published:
            texts.append("No latency is common to the networks found and the published ones.")
        if self.random:
            texts.append(self.random.text)
        if self.noise.freedom:
            texts.append(
                f"Between two trainings of one network, the accuracy has a standard deviation of "
                f"{100 * self.noise.deviation:.2f} points."
            )
        elif texts:
            texts.append("No network was trained twice: nothing says how much the seed changes.")
        return texts


def points_text(gain: Interval) -> str:
    """Return a difference of accuracies in words: "1.2 points (0.4 to 2.0) more accurate"."""
    sign = -1 if gain.value < 0 else 1
    ends = sorted((sign * gain.low, sign * gain.high))
    bounds = f" ({signed_points(ends[0], '')} to {signed_points(ends[1], '')})"
    return (
        f"{100 * abs(gain.value):.1f} points{bounds if math.isfinite(ends[0]) else ''} "
        f"{'more' if sign > 0 else 'less'} accurate"
    )


def signed_points(difference: float, plus: str = "+") -> str:
    """Return a difference of accuracies in points, with its sign."""
    text = f"{100 * difference:{plus}z.1f}"
    return text.replace("-", "\N{MINUS SIGN}")
