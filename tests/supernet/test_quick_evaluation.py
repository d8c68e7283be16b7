from dataclasses import replace
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from nas.data import Images
from nas.supernet.evaluation import evaluate
from nas.supernet.quick_evaluation import (
    accuracy_interval,
    balanced_interval,
    balanced_sample,
    evaluate_quickly,
    stratified_sample,
)
from tests.supernet.scrambled_supernet import scrambled, space_on


def probability(correct, sample, population, all_correct):
    """Return the probability of so many correct answers in a sample, by counting samples."""
    samples = comb(all_correct, correct) * comb(population - all_correct, sample - correct)
    return Fraction(samples, comb(population, sample))


@pytest.mark.parametrize(("sample", "population"), [(5, 12), (10, 30), (12, 12), (1, 4)])
def test_interval_covers_the_truth_in_95_percent_of_samples(sample, population):
    """For every true number of correct answers."""
    for truth in range(population + 1):
        covered = Fraction(0)
        for correct in range(max(0, sample - (population - truth)), min(sample, truth) + 1):
            low, high = accuracy_interval(correct, sample, population)
            if low <= truth / population <= high:
                covered += probability(correct, sample, population, truth)
        assert covered >= Fraction(95, 100), (truth, float(covered))


def test_interval_is_about_as_wide_as_the_normal_approximation():
    low, high = accuracy_interval(80, 100, 1000)
    # Wald accuracy_interval with finite population correction.
    half = 1.96 * np.sqrt(0.8 * 0.2 / 100 * 900 / 999)
    assert high - low == pytest.approx(2 * half, rel=0.1)
    assert accuracy_interval(7, 10, 10) == (0.7, 0.7)


def test_sample_has_the_class_frequencies_of_all_images(digits):
    labels = digits.search.labels
    chosen = stratified_sample(digits.search, 90)
    assert len(set(chosen.tolist())) == 90
    expected = np.bincount(labels) * 90 / len(labels)
    assert np.abs(np.bincount(labels[chosen]) - expected).max() <= 1.0
    assert np.array_equal(stratified_sample(digits.search, 10_000), np.arange(len(labels)))


def test_balanced_sample_has_equally_many_images_of_each_class():
    labels = np.repeat([0, 1, 3], [40, 3, 10])
    images = Images(np.zeros((53, 2, 2, 1), np.uint8), np.random.default_rng(1).permutation(labels))
    for count, expected in ((3, [1, 1, 0, 1]), (9, [3, 3, 0, 3]), (20, [9, 3, 0, 8])):
        chosen = np.bincount(images.labels[balanced_sample(images, count)], minlength=4)
        assert chosen.sum() == count
        assert np.abs(chosen - expected).max() <= (1 if count == 20 else 0)
    assert np.array_equal(balanced_sample(images, 99), np.arange(53))


def test_interval_of_a_balanced_accuracy_covers_it_in_95_percent_of_samples():
    """Classes of other sizes and accuracies, of one of which the sample has all images."""
    rng, sizes, right = np.random.default_rng(0), [400, 60, 12], [360, 30, 3]
    population = np.repeat([0, 1, 2], sizes)
    truth = np.mean(np.array(right) / sizes)
    covered, widths = [], []
    for _ in range(2000):
        hits = rng.hypergeometric(right, np.array(sizes) - right, 12) / 12
        interval = balanced_interval(float(hits.mean()), np.repeat([0, 1, 2], 12), population)
        covered.append(interval.low <= truth <= interval.high)
        widths.append(interval.high - interval.low)
    assert np.mean(covered) >= 0.94
    assert np.mean(widths) < 0.4
    # A class of which nothing is known leaves a third open.
    open_end = balanced_interval(1.0, np.repeat([0, 1], 12), population)
    assert open_end.high == pytest.approx(1)
    assert open_end.low < 2 / 3


def test_quick_evaluation_is_judged_by_the_metric_of_the_data(digits):
    """The sum of the sizes of the classes is 90, of which one has nearly all."""
    labels = digits.search.labels
    chosen = np.concatenate(
        [np.flatnonzero(labels == label)[: 60 if label == 3 else 3] for label in range(10)]
    )
    data = replace(digits, search=digits.search.take(chosen), metric="balanced_accuracy")
    space = space_on(digits, "mobilenet_tiny")
    supernet = scrambled(space)
    (score,) = evaluate(supernet, [space.largest], data)
    (plain,) = evaluate(supernet, [space.largest], replace(data, metric="accuracy"))
    assert score != pytest.approx(plain, abs=0.01)
    everything = evaluate_quickly(supernet, space.largest, data, "search", 10**6)
    assert everything.value == everything.low == everything.high == pytest.approx(score)
    some = evaluate_quickly(supernet, space.largest, data, "search", 40)
    assert some.low <= score <= some.high


def test_quick_evaluation_of_all_images_equals_evaluate(digits):
    space = space_on(digits, "mobilenet_tiny")
    supernet = scrambled(space)
    for architecture in (space.largest, space.smallest):
        (score,) = evaluate(supernet, [architecture], digits)
        everything = evaluate_quickly(supernet, architecture, digits, "search", 10**6)
        assert everything.value == everything.low == everything.high == pytest.approx(score)
        sample = evaluate_quickly(supernet, architecture, digits, "search", 60)
        assert sample.low <= sample.value <= sample.high
        assert sample.low <= score <= sample.high
