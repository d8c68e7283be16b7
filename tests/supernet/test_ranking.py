"""Ranking quality, on scores whose figures are known or computed by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import kendalltau

from nas.statistics import Interval
from nas.supernet.correction import SLOPE
from nas.supernet.ranking import MIN_DISTINCT_SCORES, compute_pooled_ranking, compute_ranking
from nas.supernet.ranking_records import read_ranking
from tests.supernet.ranked_networks import ranked_network, ranked_networks

EXAMPLE = Path(__file__).parents[2] / "results" / "example"


def test_ranking_of_equal_and_of_reversed_orders():
    truth = np.linspace(0.5, 0.9, 15)
    equal = compute_ranking(ranked_networks(truth - 0.1, truth))
    assert equal.kendall_tau["supernet"] == Interval(1, 1, 1)
    assert equal.kendall_tau["macs"] is None, "all are equal"
    assert equal.offset.value == pytest.approx(0.1)
    reversed_order = compute_ranking(ranked_networks(1 - truth, truth))
    assert reversed_order.kendall_tau["supernet"].value == pytest.approx(-1)


def brute_force_tau(first, second, pairs):
    """Return Kendall's tau-b by its definition."""
    total, ties = 0, [0, 0]
    for i, j in pairs:
        a, b = np.sign(first[i] - first[j]), np.sign(second[i] - second[j])
        total += a * b
        ties[0] += a != 0
        ties[1] += b != 0
    return total / np.sqrt(ties[0] * ties[1])


@pytest.mark.parametrize("cost", ["latency", "macs"])
def test_tau_is_that_of_equally_fast_pairs(cost):
    """The scores underrate slow networks, and order equally fast ones well."""
    rng = np.random.default_rng(4)
    budget = np.arange(24) % 3
    costs = 1000.0 * 2.0**budget * rng.uniform(0.95, 1.05, 24)
    truth = 0.5 + 0.1 * budget + rng.uniform(0, 0.1, 24)
    scores = truth - 0.2 * budget + rng.normal(0, 0.01, 24)
    macs = costs.astype(int) if cost == "macs" else rng.integers(1, 9, 24)
    ranking = compute_ranking(
        [
            ranked_network(
                i, macs[i], scores[i], truth[i], latency_us=costs[i] if cost == "latency" else None
            )
            for i in range(24)
        ]
    )
    equal = macs if cost == "macs" else costs
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(24), 2)
        if max(equal[i], equal[j]) <= 1.1 * min(equal[i], equal[j])
    ]
    assert (ranking.cost, ranking.pairs) == (cost, len(pairs))
    orders = {"supernet": scores, "corrected": logit(scores) + SLOPE * np.log(macs), "macs": macs}
    for name, values in orders.items():
        expected = brute_force_tau(values, truth, pairs)
        assert ranking.kendall_tau[name].value == pytest.approx(expected)
    tau = ranking.kendall_tau["supernet"]
    assert kendalltau(scores, truth)[0] < 0 < tau.low <= tau.value <= tau.high


def test_interval_of_tau_holds_that_of_all_networks():
    """Scores that agree with the truth by a known correlation, in 38 of 40 samples."""
    rng = np.random.default_rng(2)
    truth, scores = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=(40, 30)).T
    expected = 2 / np.pi * np.arcsin(0.6)
    taus = [
        compute_ranking(ranked_networks(*rows, macs=[1000] * 30)).kendall_tau["supernet"]
        for rows in zip(np.tanh(scores.T) / 2 + 0.5, truth.T, strict=True)
    ]
    assert sum(tau.low <= expected <= tau.high for tau in taus) >= 34


def test_ranking_has_no_correlation_for_few_distinct_scores():
    truth = np.linspace(0.5, 0.9, 30)
    scores = np.floor(truth * 20) / 20
    ranking = compute_ranking(ranked_networks(scores, truth))
    assert ranking.distinct_scores < MIN_DISTINCT_SCORES
    assert ranking.kendall_tau == {}


def test_few_second_trainings_say_what_a_second_training_of_all_reaches():
    """Simulated: accuracies whose deviation is 2 points, and noise of 1 point in each training."""
    rng = np.random.default_rng(7)
    own = rng.normal(0.6, 0.02, 300)
    first, second = own + rng.normal(0, 0.01, (2, 300))

    def retraining_tau(repeated):
        networks = [
            each.model_copy(update={"repeated_accuracy": second[at] if at < repeated else None})
            for at, each in enumerate(ranked_networks(own, first))
        ]
        return compute_ranking(networks).kendall_tau["second training"]

    few, again = retraining_tau(40), kendalltau(first, second).statistic
    assert few.value == pytest.approx(again, abs=0.04)
    assert few.low < again < few.high < few.low + 0.4
    assert retraining_tau(2) is None


def test_second_training_that_is_all_noise_has_a_tau_of_zero():
    rng = np.random.default_rng(8)
    networks = [
        each.model_copy(update={"repeated_accuracy": 0.5 + 0.1 * rng.random()})
        for each in ranked_networks(rng.random(20), 0.5 + 0.01 * rng.random(20))
    ]
    assert compute_ranking(networks).kendall_tau["second training"].value == 0


def test_pooled_ranking_removes_the_offsets_of_the_spaces():
    truth = np.linspace(0.5, 0.9, 20)
    first = ranked_networks(truth[::2] - 0.3, truth[::2], space="a")
    second = ranked_networks(truth[1::2], truth[1::2], space="b")
    pooled = compute_pooled_ranking([*first, *second])
    assert pooled.nets == 20
    assert pooled.without_offsets.value == 1
    assert pooled.kendall_tau.value < 0.8
    assert compute_pooled_ranking([*first[:4], *second[:4]]).kendall_tau is None


def test_text_of_interval_has_digits_scale_and_sign():
    interval = Interval(0.684, 0.571, 0.802)
    assert interval.text() == "0.68 (0.57 to 0.80)"
    assert interval.text(1, scale=100, sign="+") == "+68.4 (+57.1 to +80.2)"


def test_standalone_range_holds_most_networks(tmp_path):
    assert read_ranking(tmp_path) is None
    ranking = read_ranking(EXAMPLE).spaces["squeezenet_tiny"]
    differences = [each.standalone_accuracy - each.supernet_accuracy for each in ranking.networks]
    low, high = ranking.standalone_range(0.5)
    assert (low + high) / 2 == pytest.approx(0.5 + ranking.offset.value)
    assert sum(low <= 0.5 + each <= high for each in differences) >= 0.9 * len(differences)
    assert ranking.standalone_range(0.999)[1] == 1
