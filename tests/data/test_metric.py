"""The metric that judges networks, and the correction of logits in training, in closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nas import load_dataset
from nas.data import Images
from nas.supernet.optimization import adjusted


def cut(data, counts):
    """Return the digits with these numbers of training images by class."""
    train = data.train
    chosen = np.concatenate(
        [np.flatnonzero(train.labels == label)[:count] for label, count in enumerate(counts)]
    )
    return replace(data, train=Images(train.pixels[chosen], train.labels[chosen]))


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", progress=False)


def test_balanced_accuracy_is_the_mean_over_the_classes_that_occur(digits):
    labels = np.array([0] * 8 + [1] * 2)
    predictions = np.array([0] * 8 + [1, 0])
    assert digits.metric == "accuracy"
    assert digits.score(predictions, labels) == pytest.approx(0.9)
    balanced = replace(digits, metric="balanced_accuracy")
    assert balanced.score(predictions, labels) == pytest.approx((1.0 + 0.5) / 2)


def test_metric_follows_from_the_largest_and_the_smallest_class(digits):
    assert "balanced" not in digits.summary
    forced = load_dataset("digits", metric="balanced_accuracy", progress=False)
    assert forced.metric == "balanced_accuracy"
    assert "judged by the balanced accuracy" in forced.summary


def test_logits_are_corrected_by_the_shares_of_the_classes(digits):
    assert digits.log_priors is None
    counts = [50, 10, *[20] * 8]
    unequal = replace(cut(digits, counts), metric="balanced_accuracy")
    assert np.exp(unequal.log_priors) == pytest.approx(np.array(counts) / 220, rel=1e-5)
    logits = torch.zeros(3, 10)
    assert adjusted(logits, None) is logits
    # A network that says nothing has the frequencies of the classes as its best guess.
    assert adjusted(logits, unequal.log_priors).softmax(1)[0].numpy() == pytest.approx(
        np.array(counts) / 220, rel=1e-5
    )
