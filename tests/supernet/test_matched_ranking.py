"""Ranking quality among equally fast networks, on scores with known figures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import kendalltau

from nas.supernet.correction import SLOPE
from nas.supernet.matched_ranking import TRAINED_AGAIN, compute_matched_ranking
from nas.supernet.ranking import compute_ranking
from tests.supernet.ranked_networks import ranked_network, ranked_networks


def test_strata_show_a_supernet_that_knows_only_sizes():
    """The scores are right over all networks, but useless among networks of similar size."""
    rng = np.random.default_rng(3)
    macs = np.arange(1, 91)
    truth = np.repeat([0.5, 0.7, 0.9], 30) + rng.uniform(0, 0.1, 90)
    scores = np.repeat([0.5, 0.7, 0.9], 30) + rng.uniform(0, 0.1, 90)
    ranking = compute_ranking(ranked_networks(scores, truth, macs))
    assert ranking.kendall_tau.value > 0.6
    strata = ranking.matched.strata
    assert [stratum.nets for stratum in strata] == [30, 30, 30]
    assert [stratum.costs for stratum in strata] == [(1, 30), (31, 60), (61, 90)]
    for stratum in strata:
        assert abs(stratum.kendall_tau["supernet"]) < 0.35


def matched_networks(rng, *, budgets=3, size=8, repeated=None):
    """Return networks of three latency budgets whose accuracy depends on latency and on luck."""
    count = budgets * size
    budget = np.arange(count) % budgets
    latency = 100.0 * 2.0**budget * rng.uniform(0.95, 1.05, count)
    truth = 0.5 + 0.1 * budget + rng.uniform(0, 0.1, count)
    scores = truth - 0.2 * budget + rng.normal(0, 0.01, count)
    return [
        ranked_network(
            i, int(rng.integers(1, 9)), scores[i], truth[i], params=i,
            latency_us=latency[i], budget=int(budget[i]),
            repeated_accuracy=truth[i] if repeated and i < repeated else None,
        )
        for i in range(count)
    ]  # fmt: skip


def brute_force_tau(first, second, pairs):
    """Return Kendall's tau-b by its definition."""
    total, ties = 0, [0, 0]
    for i, j in pairs:
        a, b = np.sign(first[i] - first[j]), np.sign(second[i] - second[j])
        total += a * b
        ties[0] += a != 0
        ties[1] += b != 0
    return total / np.sqrt(ties[0] * ties[1])


def test_matched_tau_is_that_of_equally_fast_pairs():
    """The scores underrate slow networks, and order equally fast ones well."""
    ranked = matched_networks(np.random.default_rng(4))
    ranking = compute_ranking(ranked)
    matched = ranking.matched
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(24), 2)
        if max(ranked[i].latency_us, ranked[j].latency_us)
        <= 1.1 * min(ranked[i].latency_us, ranked[j].latency_us)
    ]
    truth = [each.standalone_accuracy for each in ranked]
    columns = {
        "supernet": [each.supernet_accuracy for each in ranked],
        "macs": [each.macs for each in ranked],
        "latency": [each.latency_us for each in ranked],
    }
    assert (matched.cost, matched.pairs) == ("latency", len(pairs))
    for name, values in columns.items():
        assert matched.kendall_tau[name].value == pytest.approx(
            brute_force_tau(values, truth, pairs)
        )
    assert ranking.kendall_tau.value < 0 < 0.6 < matched.kendall_tau["supernet"].value
    assert matched.global_tau["supernet"].value == ranking.kendall_tau.value
    assert matched.lead.low > 0.1
    assert [stratum.nets for stratum in matched.strata] == [8, 8, 8]
    assert matched.strata[0].costs[1] < matched.strata[1].costs[0]


def test_corrected_scores_are_ranked_beside_the_raw_ones():
    rng = np.random.default_rng(6)
    macs = np.exp(rng.uniform(10, 14, 40)).astype(int)
    truth = 0.5 + 0.08 * (np.log(macs) - 12) + rng.normal(scale=0.03, size=40)
    scores = np.clip(truth - 0.06 * (np.log(macs) - 12), 0.01, 0.99)
    corrected = logit(scores) + SLOPE * np.log(macs)
    matched = compute_matched_ranking(ranked_networks(scores, truth, macs))
    assert matched.global_tau["corrected"].value == pytest.approx(kendalltau(corrected, truth)[0])
    assert matched.global_tau["corrected"].value > matched.global_tau["supernet"].value + 0.1


def test_partial_tau_removes_what_latency_explains():
    ranked = matched_networks(np.random.default_rng(5))
    truth = [each.standalone_accuracy for each in ranked]
    scores = [each.supernet_accuracy for each in ranked]
    latency = [each.latency_us for each in ranked]
    st, sl, tl = (
        kendalltau(*pair).statistic
        for pair in ((scores, truth), (scores, latency), (truth, latency))
    )
    expected = (st - sl * tl) / np.sqrt((1 - sl**2) * (1 - tl**2))
    partial = compute_ranking(ranked).matched.partial_tau
    assert partial["supernet"].value == pytest.approx(expected)
    assert st < 0 < expected
    assert partial["latency"] is None, "nothing is left of it"


def test_gain_is_the_share_of_what_picking_can_bring():
    """By hand: of accuracies 0.5, 0.6 and 0.7 the supernet picks 0.6, then 0.7; a count, 0.5."""
    ranked = [
        ranked_network(i, macs, score, truth, params=1, latency_us=100.0, budget=budget)
        for budget, best in enumerate((1, 2))
        for i, (macs, score, truth) in enumerate(
            zip((9, 5, 4), np.eye(3)[best] + 0.01 * np.arange(3), (0.5, 0.6, 0.7), strict=True)
        )
    ]
    matched = compute_matched_ranking(ranked)
    assert [each.gain["supernet"] for each in matched.strata] == pytest.approx([0, 1])
    assert matched.gain["supernet"].value == pytest.approx(0.5)
    assert matched.gain["macs"].value == pytest.approx(-1)
    assert matched.gain["params"].value == pytest.approx(0), "equal counts pick at random"


def test_second_training_is_ranked_beside_the_scores():
    ranked = matched_networks(np.random.default_rng(6), repeated=9)
    matched = compute_ranking(ranked).matched
    assert matched.kendall_tau[TRAINED_AGAIN].value == pytest.approx(1)
    assert matched.gain[TRAINED_AGAIN].value == pytest.approx(1)
    none = compute_ranking(matched_networks(np.random.default_rng(6))).matched
    assert TRAINED_AGAIN not in none.kendall_tau


@pytest.mark.slow
def test_few_second_trainings_say_what_a_second_training_of_all_reaches():
    """Simulated: accuracies whose deviation is 2 points, and noise of 1 point in each training."""
    rng = np.random.default_rng(7)
    own = rng.normal(0.6, 0.02, 300)
    first, second = own + rng.normal(0, 0.01, (2, 300))
    macs = rng.permutation(300) / 1e5 + 1e6

    def matched(repeated):
        return compute_matched_ranking(
            [
                each.model_copy(update={"repeated_accuracy": second[at] if at < repeated else None})
                for at, each in enumerate(ranked_networks(own, first, macs))
            ]
        )

    few = matched(40)
    assert few.training_noise == pytest.approx(0.01, rel=0.15)
    again = kendalltau(first, second).statistic
    assert few.retraining_tau.value == pytest.approx(again, abs=0.04)
    assert few.noise_ceiling.value == pytest.approx(kendalltau(first, own).statistic, abs=0.04)
    assert few.retraining_tau.low < again < few.retraining_tau.high
    tau = few.kendall_tau[TRAINED_AGAIN]
    assert few.retraining_tau.high - few.retraining_tau.low < 0.6 * (tau.high - tau.low)
    too_few = matched(2)
    assert (too_few.training_noise, too_few.retraining_tau, too_few.noise_ceiling) == (None,) * 3


def test_training_that_is_all_noise_has_a_ceiling_of_zero():
    rng = np.random.default_rng(8)
    ranked = [
        each.model_copy(update={"repeated_accuracy": 0.5 + 0.1 * rng.random()})
        for each in ranked_networks(rng.random(20), 0.5 + 0.01 * rng.random(20), np.full(20, 9))
    ]
    matched = compute_matched_ranking(ranked)
    assert matched.retraining_tau.value == matched.noise_ceiling.value == 0
