from fractions import Fraction
from math import comb

import numpy as np
import pytest

from nas.errors import RequestError
from nas.supernet import evaluate, first_look
from nas.supernet.quick_evaluation import interval, sample_of
from tests.supernet.scrambled_supernet import scrambled, space_on


def chance(right, sample, population, all_right):
    """Of so many right answers in a sample, by counting the ways to draw it."""
    wrong = population - all_right
    return Fraction(comb(all_right, right) * comb(wrong, sample - right), comb(population, sample))


@pytest.mark.parametrize(("sample", "population"), [(5, 12), (10, 30), (12, 12), (1, 4)])
def test_the_interval_covers_what_it_says(sample, population):
    """Whatever the truth is, it is in the interval of at least 95% of the samples."""
    for truth in range(population + 1):
        covered = Fraction(0)
        for right in range(max(0, sample - (population - truth)), min(sample, truth) + 1):
            low, high = interval(right, sample, population)
            if low <= truth / population <= high:
                covered += chance(right, sample, population, truth)
        assert covered >= Fraction(95, 100), (truth, float(covered))


def test_the_interval_is_no_wider_than_it_must_be():
    low, high = interval(80, 100, 1000)
    # Wald's, with the finite population's correction.
    half = 1.96 * np.sqrt(0.8 * 0.2 / 100 * 900 / 999)
    assert high - low == pytest.approx(2 * half, rel=0.1)
    assert interval(7, 10, 10) == (0.7, 0.7)


def test_every_class_has_its_share_of_the_sample(digits):
    labels = digits.search.labels
    chosen = sample_of(digits.search, 90)
    assert len(set(chosen.tolist())) == 90
    expected = np.bincount(labels) * 90 / len(labels)
    assert np.abs(np.bincount(labels[chosen]) - expected).max() <= 1.0
    assert np.array_equal(sample_of(digits.search, 10_000), np.arange(len(labels)))


def test_a_look_at_all_images_is_the_score(digits):
    space = space_on(digits, "mobilenet_tiny")
    supernet = scrambled(space)
    chosen = [space.largest, space.smallest]
    scores = evaluate(supernet, chosen, digits)
    for score, look in zip(scores, first_look(supernet, chosen, digits, images=10**6), strict=True):
        assert look.accuracy == look.low == look.high == pytest.approx(score)
        assert look.images == len(digits.search)
    for score, look in zip(scores, first_look(supernet, chosen, digits, images=60), strict=True):
        assert look.images == 60
        assert look.low <= look.accuracy <= look.high
        assert look.low <= score <= look.high


def test_no_image_is_no_look(digits):
    space = space_on(digits, "mobilenet_tiny")
    with pytest.raises(RequestError, match="sees nothing"):
        first_look(scrambled(space), [space.smallest], digits, images=0)
