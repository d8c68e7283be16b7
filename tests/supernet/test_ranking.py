"""What a supernet's order is worth, on scores whose figures are known or counted by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nas.supernet.ranking import FEWEST_SCORES, RankedNetwork, pool, rank


def networks(scores, alone, macs=None, space="a"):
    macs = range(1, len(scores) + 1) if macs is None else macs
    return [
        RankedNetwork({"space": space}, str(i), int(m), int(m) * 2, 7, float(s), float(t))
        for i, (s, t, m) in enumerate(zip(scores, alone, macs, strict=True))
    ]


def test_an_order_that_is_right_and_one_that_is_reversed():
    truth = np.linspace(0.5, 0.9, 15)
    right, wrong = rank(networks(truth - 0.1, truth)), rank(networks(-truth, truth))
    assert right.kendall_tau.value == right.spearman.value == 1
    assert (right.kendall_tau.low, right.kendall_tau.high) == (1, 1)
    assert wrong.kendall_tau.value == pytest.approx(-1)
    assert right.offset.value == pytest.approx(0.1)
    assert right.regret["supernet"] == 0
    assert wrong.regret["supernet"] > 0.1


def test_counting_is_judged_on_the_same_networks():
    """Depth is the same for all: it orders nothing. MACs and parameters order all of them."""
    rng = np.random.default_rng(1)
    truth = np.linspace(0.5, 0.9, 30)
    found = rank(networks(truth + rng.normal(0, 0.1, 30), truth))
    assert found.counted_tau["depth"] is None
    assert found.counted_tau["macs"].value == found.counted_tau["params"].value == 1
    assert found.lead.value == pytest.approx(found.kendall_tau.value - 1)
    assert found.lead.high < 0, "the best count is surely ahead"


def test_a_lead_is_sure_only_where_it_is_large_against_chance():
    rng = np.random.default_rng(2)
    truth = rng.uniform(0.5, 0.9, 60)
    macs = rng.permutation(60) + 1
    good = rank(networks(truth + rng.normal(0, 0.02, 60), truth, macs))
    assert good.lead.low > 0.4
    poor = rank(networks(rng.uniform(0.5, 0.9, 60), truth, macs))
    assert poor.lead.low < 0 < poor.lead.high + 0.3


def test_few_distinct_scores_are_no_ranking():
    truth = np.linspace(0.5, 0.9, 30)
    scores = np.floor(truth * 20) / 20
    found = rank(networks(scores, truth))
    assert found.distinct_scores < FEWEST_SCORES
    assert found.kendall_tau is found.spearman is found.lead is None
    assert found.strata == ()
    ties = sum(a == b for a, b in itertools.combinations(scores, 2))
    assert found.tied_pairs == ties > 0


def test_strata_are_networks_of_similar_size():
    """The supernet knows sizes and nothing else: right over all, useless within a stratum."""
    rng = np.random.default_rng(3)
    macs = np.arange(1, 91)
    truth = np.repeat([0.5, 0.7, 0.9], 30) + rng.uniform(0, 0.1, 90)
    scores = np.repeat([0.5, 0.7, 0.9], 30) + rng.uniform(0, 0.1, 90)
    found = rank(networks(scores, truth, macs))
    assert found.kendall_tau.value > 0.6
    assert [each.nets for each in found.strata] == [30, 30, 30]
    assert [each.macs for each in found.strata] == [(1, 30), (31, 60), (61, 90)]
    for each in found.strata:
        assert abs(each.kendall_tau.value) < 0.35
        assert each.kendall_tau.low < 0 < each.kendall_tau.high


def test_regret_is_what_a_budget_loses():
    """By hand: within budgets of 1, 2, 3 the supernet picks networks 0, 1, 1."""
    found = rank(networks([0.1, 0.9, 0.5], [0.6, 0.5, 0.8], [1, 2, 3]))
    assert found.regret["supernet"] == pytest.approx((0 + 0.1 + 0.3) / 3)
    assert found.regret["macs"] == pytest.approx((0 + 0.1 + 0) / 3)
    tied = rank(networks([0.9, 0.9], [0.6, 0.8], [1, 1]))
    assert tied.regret["supernet"] == pytest.approx(0.1)


def test_supernets_that_flatter_are_told_from_supernets_that_err():
    truth = np.linspace(0.5, 0.9, 20)
    first = networks(truth[::2] - 0.3, truth[::2], space="a")
    second = networks(truth[1::2], truth[1::2], space="b")
    found = pool([*first, *second])
    assert found.nets == 20
    assert found.offsets["a"].value == pytest.approx(0.3)
    assert found.offsets["b"].value == pytest.approx(0)
    assert found.without_offsets.value == 1
    assert found.kendall_tau.value < 0.8
    few = pool([*first[:4], *second[:4]])
    assert few.kendall_tau is None
    assert few.offsets["a"].value == pytest.approx(0.3)
