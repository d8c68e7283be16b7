"""Quick evaluation: the accuracy on a sample of the validation images, with a confidence interval.

A cheap first score of a candidate architecture.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import hypergeom

from nas.data import ImageDataset, Images, Part
from nas.space import Architecture
from nas.statistics import Interval, wilson_interval
from nas.supernet.evaluation import predict
from nas.supernet.weights import Supernet

CONFIDENCE = 0.95
"""Smallest probability with which an interval contains the accuracy on all images."""

_EXACT = 1e-9
"""Share of the images of a class that are taken as left out where none is."""


def evaluate_quickly(
    supernet: Supernet,
    architecture: Architecture,
    data: ImageDataset,
    part: Part,
    images: int,
) -> Interval:
    """Return the accuracy of an architecture on a sample of images, by the metric of the data.

    The sample is stratified by class and always the same. The interval is that of the accuracy on
    all images of the split, with a coverage of at least `CONFIDENCE`. For a balanced accuracy, it
    is the score interval of `nas.statistics.wilson_interval`, whose coverage is about that.

    Args:
        supernet: trained supernet.
        architecture: an architecture of the supernet's space.
        data: data that the supernet was trained on.
        part: split of the images: "train", "search" or "holdout".
        images: number of images in the sample, at least 1; all images of the split if it has fewer.

    Raises:
        RequestError: `part` is another split.
        DataError: the supernet is for other image sizes or classes than `data` has.
    """
    population = data.part(part)
    if data.metric == "balanced_accuracy":
        sample = population.take(balanced_sample(population, images))
        (predictions,) = predict(supernet, [architecture], data, sample)
        score = data.score(predictions, sample.labels)
        return balanced_interval(score, sample.labels, population.labels)
    sample = population.take(stratified_sample(population, images))
    (predictions,) = predict(supernet, [architecture], data, sample)
    correct = int((predictions == sample.labels).sum())
    low, high = accuracy_interval(correct, len(sample), len(population))
    return Interval(correct / len(sample), low, high)


def stratified_sample(images: Images, count: int) -> np.ndarray:
    """Return the sorted positions of a sample with the class frequencies of all images.

    Args:
        images: images to sample from.
        count: size of the sample; at most all images are returned.
    """
    shuffled = np.random.default_rng(0).permutation(len(images))
    by_class = shuffled[np.argsort(images.labels[shuffled], kind="stable")]
    spread = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(np.int64)
    return np.sort(by_class[spread])


def balanced_sample(images: Images, count: int) -> np.ndarray:
    """Return the sorted positions of a sample with equally many images of each class.

    The sample has all images of a class that has fewer.

    Args:
        images: images to sample from.
        count: size of the sample; at most all images are returned.
    """
    shuffled = np.random.default_rng(0).permutation(len(images))
    labels = images.labels[shuffled]
    by_class = np.argsort(labels, kind="stable")
    rank = np.empty(len(images), np.int64)
    rank[by_class] = np.arange(len(images)) - np.searchsorted(labels[by_class], labels[by_class])
    return np.sort(shuffled[np.argsort(rank, kind="stable")[:count]])


def balanced_interval(score: float, sample: np.ndarray, population: np.ndarray) -> Interval:
    """Return the confidence interval of a mean of the accuracies of classes, from a sample.

    Args:
        score: mean over the classes of the sample.
        sample: labels of the sample, which was drawn without replacement.
        population: labels of all images. The accuracy of a class that the sample lacks may be any.
    """
    counts = np.bincount(population)
    own = np.bincount(sample, minlength=len(counts))
    if (own == counts).all():
        return Interval(score, score, score)
    # Without replacement, a sample deviates as a larger one would.
    drawn = own > 0
    sizes = own[drawn] / np.maximum(1 - own[drawn] / counts[drawn], _EXACT)
    interval = wilson_interval(score, sizes.tolist())
    known = float(drawn.sum() / (counts > 0).sum())
    return Interval(score, known * interval.low, 1 - known * (1 - interval.high))


def accuracy_interval(correct: int, sample_size: int, population_size: int) -> tuple[float, float]:
    """Return the exact confidence interval of an accuracy, from a sample without replacement.

    The interval has every number of correct answers in the population for which the sample lies in
    neither tail of the hypergeometric distribution: the counterpart of Clopper and Pearson 1934 for
    finite populations.

    Args:
        correct: number of correct answers in the sample.
        sample_size: number of images in the sample.
        population_size: number of all images.

    Returns:
        The ends of the interval, accuracies in [0, 1].
    """
    tail = (1 - CONFIDENCE) / 2
    totals = np.arange(correct, population_size - sample_size + correct + 1)
    at_least = hypergeom.sf(correct - 1, population_size, totals, sample_size)
    at_most = hypergeom.cdf(correct, population_size, totals, sample_size)
    inside = totals[(at_least > tail) & (at_most > tail)]
    return float(inside[0] / population_size), float(inside[-1] / population_size)
