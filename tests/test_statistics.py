from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from nas.statistics import Interval, kendall_tau, kendall_taus, resamples, spearman, spearmans


def test_kendalls_tau_by_counting_pairs() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = rng.permutation(9), rng.permutation(9)
        pairs = list(itertools.combinations(range(9), 2))
        agree = sum(1 if (a[i] - a[j]) * (b[i] - b[j]) > 0 else -1 for i, j in pairs)
        assert kendall_tau(list(a), list(b)) == pytest.approx(agree / len(pairs))


def test_kendalls_tau_with_ties() -> None:
    # One pair tied in the first: (2 concordant - 0) / sqrt(2 * 3).
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 6**0.5)
    assert kendall_tau([1, 1], [1, 2]) is None
    assert kendall_tau([1], [1]) is None


def test_correlations_equal_scipys_with_ties_and_in_every_resample() -> None:
    rng = np.random.default_rng(5)
    a = rng.integers(6, size=12).astype(float)
    b = a + rng.integers(4, size=12)
    assert kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    chosen = resamples(12, rng, 40)
    taus, rhos = kendall_taus(a, b, chosen), spearmans(a, b, chosen)
    for at, tau, rho in zip(chosen, taus, rhos, strict=True):
        assert tau == pytest.approx(stats.kendalltau(a[at], b[at]).statistic)
        assert rho == pytest.approx(stats.spearmanr(a[at], b[at]).statistic)


def test_what_has_no_order_has_no_correlation() -> None:
    assert spearman([1, 1], [1, 2]) is None
    assert math.isnan(kendall_taus([1, 2], [1, 2], np.array([[0, 0]]))[0])


def test_an_interval_holds_the_true_value_about_as_often_as_it_says() -> None:
    # The mean of 30 normal values: the percentile bootstrap's coverage is a little below 95%.
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(300):
        values = rng.normal(1.0, 2.0, 30)
        found = Interval.of(values.mean(), values[resamples(30, rng, 400)].mean(axis=1))
        hits += found.low <= 1.0 <= found.high
    assert 0.89 <= hits / 300 <= 0.98


def test_an_interval_leaves_undefined_resamples_out() -> None:
    found = Interval.of(0.5, [math.nan, 0.4, 0.6])
    assert (found.low, found.high) == (pytest.approx(0.405), pytest.approx(0.595))
    unknown = Interval.of(0.5, [math.nan])
    assert (unknown.low, unknown.high) == (-math.inf, math.inf)
