"""Ranking quality, on scores whose figures are known or computed by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nas.supernet.ranking import MIN_DISTINCT_SCORES, compute_pooled_ranking, compute_ranking
from tests.supernet.ranked_networks import ranked_networks


def test_ranking_of_equal_and_of_reversed_orders():
    truth = np.linspace(0.5, 0.9, 15)
    equal = compute_ranking(ranked_networks(truth - 0.1, truth))
    assert equal.kendall_tau.value == 1
    assert (equal.kendall_tau.low, equal.kendall_tau.high) == (1, 1)
    assert equal.offset.value == pytest.approx(0.1)
    assert equal.regret.supernet == 0
    reversed_order = compute_ranking(ranked_networks(1 - truth, truth))
    assert reversed_order.kendall_tau.value == pytest.approx(-1)
    assert reversed_order.regret.supernet > 0.1


def test_baselines_are_ranked_on_the_same_networks():
    """All networks have the same depth; MACs and parameters order all of them correctly."""
    rng = np.random.default_rng(1)
    truth = np.linspace(0.5, 0.9, 30)
    ranking = compute_ranking(ranked_networks(truth + rng.normal(0, 0.1, 30), truth))
    assert ranking.baseline_tau.depth is None
    assert ranking.baseline_tau.macs.value == ranking.baseline_tau.params.value == 1
    assert ranking.lead.value == pytest.approx(ranking.kendall_tau.value - 1)
    assert ranking.lead.high < 0, "the best baseline leads"


def test_lead_excludes_zero_only_for_a_clearly_better_supernet():
    rng = np.random.default_rng(2)
    truth = rng.uniform(0.5, 0.9, 60)
    macs = rng.permutation(60) + 1
    good = compute_ranking(ranked_networks(truth + rng.normal(0, 0.02, 60), truth, macs))
    assert good.lead.low > 0.4
    poor = compute_ranking(ranked_networks(rng.uniform(0.5, 0.9, 60), truth, macs))
    assert poor.lead.low < 0 < poor.lead.high + 0.3


def test_ranking_has_no_correlation_for_few_distinct_scores():
    truth = np.linspace(0.5, 0.9, 30)
    scores = np.floor(truth * 20) / 20
    ranking = compute_ranking(ranked_networks(scores, truth))
    assert ranking.distinct_scores < MIN_DISTINCT_SCORES
    assert ranking.kendall_tau is ranking.lead is None
    assert ranking.matched is None
    ties = sum(a == b for a, b in itertools.combinations(scores, 2))
    assert ranking.tied_pairs == ties > 0


def test_regret_is_the_mean_loss_over_budgets():
    """By hand: under budgets of 1, 2 and 3 the supernet chooses networks 0, 1 and 1."""
    ranking = compute_ranking(ranked_networks([0.1, 0.9, 0.5], [0.6, 0.5, 0.8], [1, 2, 3]))
    assert ranking.regret.supernet == pytest.approx((0 + 0.1 + 0.3) / 3)
    assert ranking.regret.macs == pytest.approx((0 + 0.1 + 0) / 3)
    tied = compute_ranking(ranked_networks([0.9, 0.9], [0.6, 0.8], [1, 1]))
    assert tied.regret.supernet == pytest.approx(0.1)


def test_pooled_ranking_removes_the_offsets_of_the_spaces():
    truth = np.linspace(0.5, 0.9, 20)
    first = ranked_networks(truth[::2] - 0.3, truth[::2], space="a")
    second = ranked_networks(truth[1::2], truth[1::2], space="b")
    pooled = compute_pooled_ranking([*first, *second])
    assert pooled.nets == 20
    assert pooled.offsets["a"].value == pytest.approx(0.3)
    assert pooled.offsets["b"].value == pytest.approx(0)
    assert pooled.without_offsets.value == 1
    assert pooled.kendall_tau.value < 0.8
    few = compute_pooled_ranking([*first[:4], *second[:4]])
    assert few.kendall_tau is None
    assert few.offsets["a"].value == pytest.approx(0.3)
