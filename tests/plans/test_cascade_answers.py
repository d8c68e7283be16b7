"""Chains of networks: thresholds against an enumeration of all, latencies against closed forms."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import binomtest

from nas.plans import cascade_answers
from nas.plans.cascade_answers import NetworkAnswers, chains_of

LATENCIES_US = (1.0, 3.0, 10.0)


def random_answers(seed: int, counts=(9, 6, 10), *, is_balanced: bool = False) -> NetworkAnswers:
    """Return answers of three networks whose errors and confidences depend on each other."""
    rng = np.random.default_rng(seed)
    count = sum(counts)
    hardness = rng.random(count)
    skill = np.array([[0.5], [0.7], [0.9]])
    is_right = rng.random((3, count)) < skill + 0.4 * (1 - hardness) - 0.2
    confidences = np.clip(1 - 0.6 * hardness + 0.2 * rng.standard_normal((3, count)), 0.1, 1)
    return NetworkAnswers(
        ("a", "b", "c"), np.array(LATENCIES_US), is_right, confidences.round(2),
        np.array(counts), is_balanced,
    )  # fmt: skip


def answered(answers: NetworkAnswers, chain, thresholds):
    """Return latency and correctness of each image, one image after the other."""
    latencies, right = [], []
    for image in range(answers.is_right.shape[1]):
        latency_us = 0.0
        for at, threshold in zip(chain, (*thresholds, 0.0), strict=True):
            latency_us += LATENCIES_US[at]
            if answers.confidences[at, image] >= threshold:
                right.append(bool(answers.is_right[at, image]))
                break
        latencies.append(latency_us)
    return np.array(latencies), np.array(right)


def accuracy(right, counts, is_balanced):
    parts = np.split(right, np.cumsum(counts)[:-1])
    return np.mean([part.mean() for part in parts]) if is_balanced else right.mean()


def every_point(answers: NetworkAnswers, chain):
    """Return mean latency and accuracy of all thresholds of a chain, by enumeration."""
    grids = [sorted(set(answers.confidences[at].tolist())) for at in chain[:-1]]
    points = set()
    for thresholds in product(*(grid[1:] for grid in grids)):
        latencies, right = answered(answers, chain, thresholds)
        own = accuracy(right, answers.counts, answers.is_balanced)
        points.add((round(float(latencies.mean()), 9), round(float(own), 9)))
    return points


def front(points):
    return {
        point
        for point in points
        if not any(o != point and o[0] <= point[0] and o[1] >= point[1] for o in points)
    }


@pytest.mark.parametrize("is_balanced", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_settings_of_a_chain_are_the_best_of_all_thresholds(seed, is_balanced):
    answers = random_answers(seed, is_balanced=is_balanced)
    for chain in [(0, 1), (0, 2), (1, 2), (0, 1, 2)]:
        settings = list(answers.settings(chain))
        own = [(round(each.mean_us, 9), round(each.accuracy, 9)) for each in settings]
        assert sorted(own) == sorted(front(every_point(answers, chain)))
        for each in settings:
            latencies, right = answered(answers, chain, each.thresholds)
            assert each.mean_us == pytest.approx(latencies.mean())
            stages = answers.stages(chain, each.thresholds)
            assert (answers.latencies_of(chain, stages) == latencies).all()
            assert (answers.right_of(chain, stages) == right).all()


@pytest.mark.parametrize("seed", range(4))
def test_front_is_that_of_all_chains_and_single_networks(seed):
    answers = random_answers(seed)
    chains = [c for length in (2, 3) for c in combinations(range(3), length)]
    assert chains_of(range(3), 2, 3) == chains
    cascades = set().union(*(every_point(answers, chain) for chain in chains))
    single = {
        (us, round(float(right.mean()), 9))
        for us, right in zip(LATENCIES_US, answers.is_right, strict=True)
    }
    settings = answers.front(chains)
    own = {(round(each.mean_us, 9), round(each.accuracy, 9)) for each in settings}
    assert own == front(cascades | single) - single
    for each in settings:  # The thresholds are written with few decimals, and do the same.
        assert each.mean_us == pytest.approx(
            answered(answers, each.chain, each.thresholds)[0].mean()
        )
        assert all(len(str(threshold)) <= 4 for threshold in each.thresholds)


def test_latency_of_independent_networks_is_the_closed_form():
    """A threshold passes on its own share of images if confidences are uniform and independent.

    The mean latency is L1 + t1 L2 + t1 t2 L3, and the accuracy the mean of those of the networks.
    """
    levels = np.arange(10) / 10
    first, second, right = (
        each.ravel() for each in np.meshgrid(levels, levels, np.arange(10), indexing="ij")
    )
    is_right = np.array([right < 6, right < 8, right < 9])
    answers = NetworkAnswers(
        ("a", "b", "c"), np.array(LATENCIES_US), is_right,
        np.array([first, second, np.ones(1000)]), np.array([1000]), False,
    )  # fmt: skip
    for t1, t2 in [(0.3, 0.7), (0.9, 0.1), (0.5, 0.5)]:
        stages = answers.stages((0, 1, 2), (t1, t2))
        latencies = answers.latencies_of((0, 1, 2), stages)
        assert latencies.mean() == pytest.approx(1 + 3 * t1 + 10 * t1 * t2)
        assert latencies.max() == 14
        expected = (1 - t1) * 0.6 + t1 * (1 - t2) * 0.8 + t1 * t2 * 0.9
        assert answers.right_of((0, 1, 2), stages).mean() == pytest.approx(expected)
    settings = {each.thresholds: each for each in answers.settings((0, 2))}
    for (threshold,), each in settings.items():
        assert each.mean_us == pytest.approx(1 + 10 * threshold)
        assert each.accuracy == pytest.approx(0.6 + 0.3 * threshold)
    assert sorted(settings) == [(each,) for each in levels[1:].tolist()]


def test_few_thresholds_of_many_are_tried_evenly(monkeypatch):
    answers = random_answers(0, counts=(400,))
    monkeypatch.setattr(cascade_answers, "MAX_COMBINATIONS", 25)
    tried = [list(answers.settings((0, 1))), list(answers.settings((0, 1, 2)))]
    assert all(0 < len(each) <= 25 for each in tried)


def test_halves_divide_the_images_of_each_class():
    answers = random_answers(1, counts=(8, 1, 5))
    first, second = answers.halves(seed=3)
    assert first.counts.tolist() == [4, 0, 2]
    assert second.counts.tolist() == [4, 1, 3]
    both = np.concatenate([first.confidences, second.confidences], axis=1)
    assert sorted(map(tuple, both.T)) == sorted(map(tuple, answers.confidences.T))
    assert (answers.halves(seed=3)[0].confidences == first.confidences).all()
    assert (answers.halves(seed=4)[0].confidences != first.confidences).any()
    # A class without images does not count, and the weights say the same as the counts.
    balanced = random_answers(1, counts=(8, 1, 5), is_balanced=True).halves(seed=3)[0]
    parts = np.split(balanced.is_right[0], [4])
    assert balanced.accuracies[0] == pytest.approx(np.mean([part.mean() for part in parts]))


@pytest.mark.parametrize("seed", range(3))
def test_no_group_is_in_both_halves(seed):
    """Frames of one video answer alike: thresholds chosen on some would be judged by the others."""
    groups = np.random.default_rng(seed).integers(12, size=60)
    answers = replace(random_answers(1, counts=(20, 25, 15)), groups=groups)
    first, second = answers.halves(seed)
    assert set(first.groups).isdisjoint(second.groups)
    assert sorted([*first.groups, *second.groups]) == sorted(groups)
    both = np.concatenate([first.confidences, second.confidences], axis=1)
    assert sorted(map(tuple, both.T)) == sorted(map(tuple, answers.confidences.T))
    assert first.counts.sum() == pytest.approx(30, abs=6)


def test_halves_of_a_single_group_have_images():
    answers = replace(random_answers(1, counts=(8, 6)), groups=np.zeros(14, np.int64))
    first, second = answers.halves(seed=3)
    assert first.counts.tolist() == second.counts.tolist() == [4, 3]


def test_gain_is_judged_by_the_exact_paired_test():
    right = np.array([True] * 90 + [False] * 10)
    other = np.array([True] * 80 + [False] * 17 + [True] * 3)
    answers = NetworkAnswers(
        ("a",), np.array([1.0]), other[None], np.ones((1, 100)), np.array([100]), False
    )
    gain, is_shown = answers.gain(right, 0)
    assert gain.value == pytest.approx(0.07)
    assert gain.low < 0.07 < gain.high
    assert is_shown == (binomtest(10, 13).pvalue <= 0.05)
    assert not answers.gain(other, 0)[1]
    interval = answers.interval(right)
    assert interval.value == pytest.approx(0.9)
    assert interval.low < 0.9 < interval.high


def test_network_that_is_always_equally_confident_begins_no_chain():
    answers = random_answers(0)
    same = NetworkAnswers(
        answers.names, answers.latencies_us, answers.is_right, np.full((3, 25), 0.5),
        answers.counts, False,
    )  # fmt: skip
    assert list(same.settings((0, 1))) == []
    assert same.front([(0, 1), (0, 1, 2)]) == []
