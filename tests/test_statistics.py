"""Statistics against their definitions, SciPy, and the coverage that an interval promises."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from nas.errors import RequestError
from nas.statistics import (
    Interval,
    kendall_tau,
    kendall_taus,
    latency_agreement,
    mape,
    pair_variances,
    paired_difference,
    paired_p_value,
    smallest_difference,
    spread,
    wilson_interval,
)


def test_kendall_tau_equals_counting_pairs() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = rng.permutation(9), rng.permutation(9)
        pairs = list(itertools.combinations(range(9), 2))
        agree = sum(1 if (a[i] - a[j]) * (b[i] - b[j]) > 0 else -1 for i, j in pairs)
        assert kendall_tau(list(a), list(b)) == pytest.approx(agree / len(pairs))


def test_kendall_tau_corrects_for_ties() -> None:
    # One of three pairs is tied in the first: (2 concordant - 0 discordant) / sqrt(2 * 3).
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 6**0.5)


@pytest.mark.parametrize(("first", "second"), [([1, 1], [1, 2]), ([1, 2], [1, 1]), ([1], [1])])
def test_rank_correlations_without_an_order_are_none(first, second) -> None:
    assert kendall_tau(first, second) is None


def test_rank_correlations_of_resamples_equal_scipy() -> None:
    rng = np.random.default_rng(5)
    a = rng.integers(6, size=12).astype(float)
    b = a + rng.integers(4, size=12)
    indices = rng.integers(12, size=(40, 12))
    all_pairs = np.ones((12, 12), bool)
    for at, tau in zip(indices, kendall_taus(a, b, indices, all_pairs), strict=True):
        assert tau == pytest.approx(stats.kendalltau(a[at], b[at]).statistic)
    (undefined,) = kendall_taus(a, b, np.array([[0, 0]]), all_pairs)
    assert math.isnan(undefined)


def test_pair_variances_equal_numpy() -> None:
    """All pairs of different values give the variance; within two groups, the pooled one."""
    values = np.array([1.0, 4.0, 6.0, 11.0, 12.0, 19.0])
    everything = np.arange(6)[None]
    all_pairs = np.ones((6, 6), bool)
    assert pair_variances(values, everything, all_pairs) == pytest.approx(np.var(values, ddof=1))
    in_group = np.kron(np.eye(2, dtype=bool), np.ones((3, 3), bool))
    pooled = np.mean([np.var(values[:3], ddof=1), np.var(values[3:], ddof=1)])
    assert pair_variances(values, everything, in_group) == pytest.approx(pooled)
    # A value that is drawn twice is no pair with itself: 1-4, 1-4 and nothing else.
    assert pair_variances(values, np.array([[0, 1, 1]]), all_pairs) == pytest.approx(4.5)
    assert np.isnan(pair_variances(values, np.array([[2, 2, 2]]), all_pairs))


def test_latency_agreement_equals_its_definition() -> None:
    measured = [100, 200, 300, 400]
    agreement = latency_agreement([96, 208, 327, 600], measured)
    assert agreement.nets == 4
    assert agreement.mape == pytest.approx((0.04 + 0.04 + 0.09 + 0.5) / 4)
    assert agreement.bias == pytest.approx((-0.04 + 0.04 + 0.09 + 0.5) / 4)
    assert (agreement.within_5_percent, agreement.within_10_percent) == (0.5, 0.75)
    assert agreement.kendall_tau == 1
    assert agreement.to_json()["mape"] == agreement.mape == mape([96, 208, 327, 600], measured)
    assert latency_agreement([1, 2], [1, 2]).kendall_tau is None
    with pytest.raises(RequestError, match="there are none"):
        latency_agreement([], [])


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, "a"), (2, "ag"), (3, "adg"), (4, "aceg"), (7, "abcdefg"), (9, "abcdefg")],
)
def test_spread_keeps_both_ends_and_even_distances(count, expected):
    assert "".join(spread("abcdefg", count)) == expected


@pytest.mark.parametrize(("correct", "images"), [(0, 7), (3, 3), (912, 1000), (1, 40), (20, 40)])
def test_interval_of_an_accuracy_is_that_of_wilson(correct, images) -> None:
    interval = wilson_interval(correct / images, [images])
    expected = stats.binomtest(correct, images).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_interval_of_strata_of_one_size_is_that_of_all_images() -> None:
    strata, pooled = wilson_interval(0.83, [25, 25, 0, 25, 25]), wilson_interval(0.83, [100])
    assert (strata.low, strata.high) == pytest.approx((pooled.low, pooled.high), abs=1e-9)
    assert wilson_interval(0.0, []) == Interval(0.0, 0.0, 1.0)


@pytest.mark.parametrize("accuracies", [[0.9, 0.9, 0.9, 0.9], [0.5, 0.7, 0.9, 0.99]])
def test_interval_of_a_balanced_accuracy_covers_the_truth(accuracies) -> None:
    """Whatever the accuracies of the classes, in 95% of 500 samples, within their error."""
    rng = np.random.default_rng(5)
    sizes, truth = [12, 40, 150, 600], np.mean(accuracies)
    measured = (rng.binomial(sizes, accuracies, (500, 4)) / sizes).mean(axis=1)
    intervals = [wilson_interval(value, sizes) for value in measured]
    covered = np.mean([each.low <= truth <= each.high for each in intervals])
    assert covered >= 0.93


def test_end_of_the_interval_is_the_furthest_that_any_accuracies_allow() -> None:
    """Brute force: accuracies of two classes from which the measured mean is 1.96 deviations."""
    sizes = np.array([10, 200])
    grid = np.linspace(0, 1, 1001)
    shares = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    deviation = np.sqrt((shares * (1 - shares) / sizes).sum(axis=1)) / 2
    means = shares.mean(axis=1)
    allowed = means[np.abs(means - 0.8) <= 1.959964 * deviation]
    interval = wilson_interval(0.8, [10, 200])
    assert interval.low == pytest.approx(allowed.min(), abs=1e-3)
    assert interval.high == pytest.approx(allowed.max(), abs=1e-3)


def test_paired_test_is_the_sign_test_of_the_images_that_differ() -> None:
    """Of 20 images that only one network gets right, 5 or fewer: 2 * 21700 / 2**20."""
    first, second = np.zeros(100, bool), np.zeros(100, bool)
    first[:15], second[15:20] = True, True
    first[50:], second[50:] = True, True
    assert paired_p_value(first, second) == pytest.approx(2 * 21700 / 2**20)
    assert paired_p_value(second, first) == pytest.approx(2 * 21700 / 2**20)
    assert paired_p_value(first, first) == 1.0
    weighted = paired_p_value(first, second, np.full(100, 0.01))
    assert weighted == pytest.approx(2 * 21700 / 2**20, abs=0.005)


def test_weighted_paired_test_judges_by_the_classes() -> None:
    """The first network is right on 30 images more, the second on 8 of the 10 of a rare class."""
    weights = np.r_[np.full(990, 1 / 990), np.full(10, 1 / 10)]
    first, second = np.zeros(1000, bool), np.zeros(1000, bool)
    first[:60], second[60:90] = True, True
    second[990:998] = True
    assert paired_p_value(first, second) < 0.05
    signs = np.array(list(itertools.product([-1, 1], repeat=8))).sum(axis=1) / 10
    spread_of_others = np.sqrt(90) / 990
    others = np.random.default_rng(0).normal(0, spread_of_others, len(signs))
    expected = np.mean(np.abs(signs + others) >= 0.8 - 30 / 990)
    assert paired_p_value(first, second, weights) == pytest.approx(expected, abs=0.01)


def test_equally_accurate_networks_differ_in_5_percent_of_the_tests_at_most() -> None:
    rng = np.random.default_rng(1)
    weights = np.repeat([1 / 20, 1 / 80], [20, 80])
    p_values = [paired_p_value(*(rng.random((2, 100)) < 0.7), weights=weights) for _ in range(100)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.08


@pytest.mark.parametrize(("images", "disagreement"), [(240, 0.1), (1000, 0.05), (5000, 0.2)])
def test_smallest_difference_is_that_from_which_the_paired_test_shows_one(images, disagreement):
    differing = round(images * disagreement)
    for alone in range(differing // 2, differing + 1):
        first = np.zeros(images, bool)
        second = np.zeros(images, bool)
        first[:alone] = True
        second[alone:differing] = True
        if paired_p_value(first, second) <= 0.05:
            break
    shown = smallest_difference(disagreement, [images])
    # The exact test needs a little more than the normal distribution says.
    assert 0 <= (2 * alone - differing) - images * shown <= 4
    assert smallest_difference(disagreement, [images / 5] * 5) == pytest.approx(shown)


def test_fewer_than_six_images_show_no_difference():
    assert smallest_difference(0.0, [100]) == 0.06
    first, second = np.zeros(100, bool), np.zeros(100, bool)
    first[:5] = True
    assert paired_p_value(first, second) > 0.05
    first[:6] = True
    assert paired_p_value(first, second) <= 0.05


def draw_answers(rng, count: int, both: float, first_only: float, second_only: float):
    """Draw whether two networks classify images correctly, with these probabilities."""
    kinds = [both, first_only, second_only, 1 - both - first_only - second_only]
    drawn = rng.choice(4, p=kinds, size=count)
    return np.isin(drawn, (0, 1)), np.isin(drawn, (0, 2))


@pytest.mark.parametrize(
    ("both", "first_only", "second_only", "strata"),
    [(0.9, 0.05, 0.02, [200]), (0.6, 0.2, 0, [40, 160])],
)
def test_interval_of_a_paired_difference_holds_the_true_one(both, first_only, second_only, strata):
    """Of 200 intervals, 95% hold it: 190, with a standard deviation of 3.1."""
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(200):
        answers = draw_answers(rng, sum(strata), both, first_only, second_only)
        interval = paired_difference(*answers, strata)
        assert interval.low <= interval.value <= interval.high
        held += interval.low <= first_only - second_only <= interval.high
    assert 181 <= held <= 200


def test_paired_difference_of_networks_that_ignore_each_other_has_the_width_of_unpaired_ones():
    """Without correlation, it is Newcombe's interval of two independent accuracies."""
    first = np.arange(100) % 10 < 8
    second = np.arange(100) // 10 < 6
    a, b = wilson_interval(0.8, [100]), wilson_interval(0.6, [100])
    interval = paired_difference(first, second, [100])
    assert interval.value == pytest.approx(0.2)
    assert interval.low == pytest.approx(0.2 - math.hypot(0.8 - a.low, b.high - 0.6))
    assert interval.high == pytest.approx(0.2 + math.hypot(a.high - 0.8, 0.6 - b.low))


def test_paired_difference_is_narrower_where_networks_agree_and_the_opposite_the_other_way():
    rng = np.random.default_rng(2)
    first, second = draw_answers(rng, 500, 0.7, 0.06, 0.04)
    interval, opposite = (
        paired_difference(first, second, [500]),
        paired_difference(second, first, [500]),
    )
    assert (interval.low, interval.high) == pytest.approx((-opposite.high, -opposite.low))
    shuffled = paired_difference(first, rng.permutation(second), [500])
    assert interval.high - interval.low < 0.7 * (shuffled.high - shuffled.low)
    equal = paired_difference(first, first, [500])
    assert equal.low < 0 == equal.value < equal.high, "500 images do not show that they are equal"


def test_classes_count_alike_in_a_balanced_difference():
    first = np.array([True] * 90 + [False] * 10)
    second = np.array([False] * 9 + [True] * 81 + [True] * 10)
    interval = paired_difference(first, second, [90, 0, 10])
    assert interval.value == pytest.approx((9 / 90 - 10 / 10) / 2)
    assert interval.low < interval.value < interval.high
    assert paired_difference(first[:0], second[:0], [0]) == Interval(0.0, -1.0, 1.0)
