from fractions import Fraction
from math import comb

import numpy as np
import pytest

from nas.supernet.evaluation import evaluate
from nas.supernet.quick_evaluation import accuracy_interval, evaluate_quickly, stratified_sample
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
