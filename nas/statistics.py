"""Statistics of reports: intervals and tests of accuracies, rank correlations, and errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nas.errors import RequestError

T = TypeVar("T")

Values = Sequence[float] | NDArray[np.float64]

CONFIDENCE_LEVEL = 0.95
"""Probability with which an interval holds the true value."""

MAX_P_VALUE = 0.05
"""Largest p-value of two networks' answers with which one of them is called better."""

SIGN_FLIPS = 20_000
"""Random changes of sign from which a p-value comes where none is exact: it is 0.05 +- 0.002."""

MIN_NETS_FOR_KENDALL_TAU = 3
"""Fewest networks whose Kendall tau is reported: an order of two is right or wrong by chance."""


@dataclass(frozen=True)
class Interval:
    """A statistic with its confidence interval at `CONFIDENCE_LEVEL`.

    Args:
        value: statistic of the sample.
        low, high: ends of the interval.
    """

    value: float
    low: float
    high: float

    def text(self, digits: int = 2, *, scale: float = 1.0, sign: str = "") -> str:
        """Return the statistic with its interval: `0.68 (0.57 to 0.80)`.

        Args:
            digits: number of digits behind the point.
            scale: factor of all three numbers.
            sign: "+" if positive numbers have a sign, too.
        """
        value, low, high = (
            f"{scale * each:{sign}.{digits}f}" for each in (self.value, self.low, self.high)
        )
        return f"{value} ({low} to {high})"


def gain_text(gain: Interval) -> str:
    """Return a difference of accuracies in words.

    >>> gain_text(Interval(-0.012, -0.021, -0.003))
    '1.2 points (0.3 to 2.1) less accurate'
    """
    sign = 1 if gain.value >= 0 else -1
    low, high = sorted([sign * gain.low, sign * gain.high])
    points, interval = Interval(abs(gain.value), low, high).text(1, scale=100).split(" ", 1)
    return f"{points} points {interval} {'more' if sign > 0 else 'less'} accurate"


def wilson_interval(accuracy: float, strata: Sequence[float]) -> Interval:
    """Return the interval of an accuracy, or of the mean of the accuracies of some strata.

    It is the score interval of Wilson 1927 ("Probable inference, the law of succession, and
    statistical inference"): it has the true accuracies from which the measured one is at most 1.96
    standard deviations away. Several strata have many standard deviations for one mean, and the
    largest counts: the interval holds the mean whatever the accuracies of the strata are. With
    strata of one size it is that of all images together.

    Args:
        accuracy: measured accuracy, in [0, 1].
        strata: number of images of each stratum; one for a plain accuracy, one for each class for
            a balanced accuracy. Strata without images do not count.
    """
    sizes = np.array([size for size in strata if size > 0], float)
    if not len(sizes):
        return Interval(accuracy, 0.0, 1.0)
    low = _lowest_mean(accuracy, sizes)
    return Interval(accuracy, low, 1 - _lowest_mean(1 - accuracy, sizes))


def _lowest_mean(accuracy: float, sizes: NDArray[np.float64]) -> float:
    """Return the lower end of `wilson_interval`.

    The standard deviation of a mean is largest if the accuracies of the strata are
    (1 + slope * size) / 2, limited to [0, 1]: a Lagrange multiplier. So the end follows from
    bisection of the slope, with which the mean grows.
    """
    deviations = NormalDist().inv_cdf((1 + CONFIDENCE_LEVEL) / 2)
    low, high = -1 / sizes.min(), 1 / sizes.min()  # slopes for means of 0 and 1
    for _ in range(60):
        slope = (low + high) / 2
        shares = np.clip((1 + slope * sizes) / 2, 0, 1)
        variance = (shares * (1 - shares) / sizes).sum() / len(sizes) ** 2
        if accuracy - shares.mean() > deviations * np.sqrt(variance):
            low = slope
        else:
            high = slope
    return float(np.clip((1 + high * sizes) / 2, 0, 1).mean())


def paired_p_value(
    first: NDArray[np.bool_], second: NDArray[np.bool_], weights: NDArray[np.float64] | None = None
) -> float:
    """Return the probability of so large a difference if two networks were equally accurate.

    Only images count that one network classifies correctly and the other does not. Without weights
    it is the exact two-sided test of McNemar 1947, that is the sign test. With weights it is the
    permutation test of the weighted difference: each network is the right one of an image with
    probability 1/2. Its random numbers are always the same.

    Args:
        first: whether the first network classifies each image correctly, `n`.
        second: the same of the second network, for the same images.
        weights: weight of each image in the accuracy, `n`, such as 1 over the number of images of
            its class for a balanced accuracy; None for equal ones.
    """
    from scipy.stats import binomtest

    differs = first != second
    first_only = first[differs]
    if not len(first_only):
        return 1.0
    if weights is None:
        return float(binomtest(int(first_only.sum()), len(first_only)).pvalue)
    rng = np.random.default_rng(0)
    values, groups = np.unique(weights[differs], return_inverse=True)
    counts = np.bincount(groups)
    observed = values @ (2 * np.bincount(groups, first_only) - counts)
    flipped = (2 * rng.binomial(counts, 0.5, (SIGN_FLIPS, len(counts))) - counts) @ values
    extreme = (np.abs(flipped) >= abs(observed) - 1e-9 * values.max()).sum()
    return float((extreme + 1) / (SIGN_FLIPS + 1))


def paired_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], strata: Sequence[int]
) -> Interval:
    """Return the accuracy of one network minus that of another one on the same images.

    The interval is method 10 of Newcombe 1998 ("Improved confidence intervals for the difference
    between binomial proportions based on paired data"): the Wilson intervals of both accuracies,
    joined by the correlation of the two networks. The difference of several strata is the mean of
    theirs. Their intervals are joined as those of independent values (Zou and Donner 2008,
    "Construction of confidence limits about effect measures"), and the result is too wide rather
    than too narrow if many strata are small.

    Args:
        first: whether the first network classifies each image correctly, `n`.
        second: the same of the second network, for the same images.
        strata: number of images of each stratum, in the order of the images; one for a plain
            accuracy, one for each class for a balanced accuracy. Strata without images do not
            count.
    """
    ends = np.cumsum(strata)[:-1]
    parts = zip(np.split(first, ends), np.split(second, ends), strict=True)
    differences = [_paired_difference(a, b) for a, b in parts if len(a)]
    if not differences:
        return Interval(0.0, -1.0, 1.0)
    values, lows, highs = np.array([(d.value, d.low, d.high) for d in differences]).T
    mean = float(values.mean())
    below, above = (
        float(np.sqrt((distances**2).sum()) / len(differences))
        for distances in (values - lows, highs - values)
    )
    return Interval(mean, mean - below, mean + above)


def _paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Interval:
    """Return `paired_difference` of one stratum."""
    count = len(first)
    a = wilson_interval(float(first.mean()), [count])
    b = wilson_interval(float(second.mean()), [count])
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    first_only, second_only = int((first & ~second).sum()), int((~first & second).sum())
    covariance: float = both * neither - first_only * second_only
    if covariance > 0:  # the correction for continuity
        covariance = max(0.0, covariance - count / 2)
    scale = math.prod((first.sum(), (~first).sum(), second.sum(), (~second).sum()), start=1.0)
    phi = covariance / math.sqrt(scale) if scale else 0.0

    def distance(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x + y * y - 2 * phi * x * y))

    value = (first_only - second_only) / count
    low = value - distance(a.value - a.low, b.high - b.value)
    high = value + distance(a.high - a.value, b.value - b.low)
    return Interval(value, low, high)


def has_tail(count: int, share: float) -> bool:
    """Return whether one of `count` samples or more is expected above their quantile at `share`.

    The 95% quantile needs 20 samples, and the 99% one 100.
    """
    # Rounded, because 100 * (1 - 0.99) is slightly above 1 and 20 * (1 - 0.95) may be below.
    return round(count * (1 - share), 9) >= 1


def tail_quantile(values: Values, share: float) -> float | None:
    """Return a quantile near 1; None of too few values, see `has_tail`."""
    return float(np.quantile(values, share)) if has_tail(len(values), share) else None


def kendall_tau(first: Values, second: Values) -> float | None:
    """Return Kendall's tau-b (1945), which corrects for ties.

    The result is None if it is undefined: all values of `first`, or all of `second`, are equal.
    """
    from scipy.stats import kendalltau

    if len(first) < 2:  # SciPy warns of one value, which has no order.
        return None
    tau = float(kendalltau(first, second).statistic)
    return None if np.isnan(tau) else tau


def kendall_taus(
    first: Values, second: Values, indices: NDArray[np.intp], pairs: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return Kendall's tau-b of each resample; NaN where it is undefined.

    The result equals tau-b of the resampled values, but the order of each pair of values is
    determined only once. A value that was drawn twice counts twice, and is tied with itself.

    Args:
        first: values, `n`.
        second: values, `n`.
        indices: positions of the values of each resample, `resamples x n`.
        pairs: the pairs that count, `n x n` and symmetric.
    """
    a, b = _pairwise_order(first) * pairs, _pairwise_order(second) * pairs
    both, in_a, in_b = _sums_over_pairs([a * b, a * a, b * b], indices)
    with np.errstate(invalid="ignore"):
        taus: NDArray[np.float64] = both / np.sqrt(in_a * in_b)
    return taus


def pair_variances(
    values: Values, indices: NDArray[np.intp], pairs: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return half the mean squared difference of the pairs of each resample.

    It is the variance of the values if those of a pair have the same mean. A value and itself are
    no pair.

    Args:
        values: values, `n`.
        indices: positions of the values of each resample, `resamples x n`.
        pairs: the pairs that count, `n x n` and symmetric.

    Returns:
        The variance of each resample; NaN without a pair.
    """
    array = np.asarray(values, float)
    is_pair = (pairs & ~np.eye(len(array), dtype=bool)).astype(float)
    squares = np.subtract.outer(array, array) ** 2 / 2
    total, number = _sums_over_pairs([squares * is_pair, is_pair], indices)
    with np.errstate(invalid="ignore"):
        variances: NDArray[np.float64] = total / number
    return variances


def smallest_difference(disagreement: float, strata: Sequence[float]) -> float:
    """Return the smallest difference of two networks' accuracies that a paired test shows.

    The statistic of McNemar 1947 ("Note on the sampling error of the difference between correlated
    proportions or percentages") is (b - c)^2 / (b + c) if one network alone is right on b images
    and the other one on c. So the difference of the accuracies, |b - c| / n, must be 1.96 times the
    square root of (b + c) / n^2. Of the mean of several strata, it is 1.96 standard deviations
    likewise. Fewer than six images never show a difference at 5%: 2 / 2^5 is more.

    Args:
        disagreement: share of the images that one network alone classifies correctly.
        strata: number of images of each stratum, see `wilson_interval`.
    """
    sizes = np.array([size for size in strata if size > 0], float)
    deviations = NormalDist().inv_cdf((1 + CONFIDENCE_LEVEL) / 2)
    shown = deviations * np.sqrt(disagreement * (1 / sizes).sum()) / len(sizes)
    fewest = math.ceil(math.log2(2 / MAX_P_VALUE))
    return float(max(shown, fewest / sizes.sum()))


@dataclass(frozen=True)
class LatencyAgreement:
    """Agreement of predicted and measured latencies of networks.

    Errors are fractions of the measured latency.

    Args:
        nets: number of networks.
        mape: mean absolute percentage error, as a fraction.
        bias: mean signed error; negative where predictions are too low.
        within_5_percent: share of networks whose prediction is at most 5% off.
        within_10_percent: share of networks whose prediction is at most 10% off.
        kendall_tau: Kendall's tau-b; None for fewer than `MIN_NETS_FOR_KENDALL_TAU` networks, or
            where tau is undefined.
    """

    nets: int
    mape: float
    bias: float
    within_5_percent: float
    within_10_percent: float
    kendall_tau: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as plain data."""
        return asdict(self)


def latency_agreement(predicted_us: Values, measured_us: Values) -> LatencyAgreement:
    """Compare the predicted with the measured latencies of the same networks.

    Raises RequestError if there is no network.
    """
    if not len(measured_us):
        raise RequestError(
            "Expected networks with a predicted and a measured latency, and there are none.",
            remedy="Measure at least one network.",
        )
    errors = np.asarray(predicted_us, float) / np.asarray(measured_us, float) - 1
    has_order = len(errors) >= MIN_NETS_FOR_KENDALL_TAU
    return LatencyAgreement(
        nets=len(errors),
        mape=float(np.abs(errors).mean()),
        bias=float(errors.mean()),
        within_5_percent=float((np.abs(errors) <= 0.05).mean()),
        within_10_percent=float((np.abs(errors) <= 0.10).mean()),
        kendall_tau=kendall_tau(predicted_us, measured_us) if has_order else None,
    )


def mape(predicted: Values, measured: Values) -> float:
    """Return the mean absolute percentage error of predictions, as a fraction."""
    return float(np.abs(np.asarray(predicted, float) / np.asarray(measured, float) - 1).mean())


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of the items at even distances with both ends, or all if there are fewer."""
    if count >= len(items):
        return list(items)
    at = np.linspace(0, len(items) - 1, count).round().astype(int).tolist()
    return [items[position] for position in dict.fromkeys(at)]


def _sums_over_pairs(
    matrices: Sequence[NDArray[np.float64]], indices: NDArray[np.intp]
) -> list[NDArray[np.float64]]:
    """Return the sum of each matrix `n x n` over the pairs of values of each resample.

    Args:
        matrices: one number for each pair of values.
        indices: positions of the values of each resample, `resamples x n`.
    """
    counts = np.zeros((len(indices), len(matrices[0])))
    np.add.at(counts, (np.arange(len(indices))[:, None], indices), 1)
    return [((counts @ matrix) * counts).sum(axis=1) for matrix in matrices]


def _pairwise_order(values: Values) -> NDArray[np.float64]:
    """Return the sign of the difference of each pair, `n x n`: -1, 0 or 1."""
    array = np.asarray(values, float)
    signs: NDArray[np.float64] = np.sign(array[:, None] - array[None, :])
    return signs
