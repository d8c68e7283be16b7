"""Confidence: the largest probability of a network, and when an answer counts.

A trained network gets one temperature, by which its logits are divided (Guo et al. 2017, "On
calibration of modern neural networks"). It is folded into the weights of the classifier, so that
every exported file has it. `N` images have logits and probabilities `N x classes`, and labels `N`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from nas.data import ImageDataset
from nas.display.formatting import short_number
from nas.latency.rounds import round_to_four_digits
from nas.run.model_card import Threshold
from nas.run.trained import Calibration, CoverageRow
from nas.supernet.evaluation import network_logits
from nas.torch_network import Network

Floats = NDArray[np.floating[Any]]

BINS = 15
"""Bins of equal width of the expected calibration error, as in Guo et al. 2017."""

COVERAGE_THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Confidences of the coverage curve."""

_MAX_TEMPERATURE = 100.0
"""Largest temperature; its reciprocal is the smallest. Trained networks need 0.3 to 5."""

_LINEAR_KINDS = frozenset({"conv", "linear", "norm"})
"""Kinds of ops whose output is divided with their weight and bias."""

_HOMOGENEOUS_KINDS = frozenset({"relu", "global_pool", "avg_pool", "max_pool"})
"""Kinds of ops with one input whose output is divided with it, for a positive divisor."""


def calibrate(network: Network, data: ImageDataset) -> Calibration:
    """Fit the temperature of a trained network, and divide its logits by it.

    It is fitted on the validation images of the search, and judged on the hold-out images. A
    network whose last ops do not allow it keeps its logits.

    Args:
        network: the network in evaluation mode; its weights are changed.
        data: the images that it was trained on.
    """
    logits = network_logits(network, data, data.holdout).astype(float)
    temperature, images = 1.0, 0
    if _last_module(network) is not None:
        images = len(data.search)
        temperature = fit_temperature(
            network_logits(network, data, data.search), data.search.labels
        )
        divide_logits(network, temperature)
    labels = data.holdout.labels
    before, after = softmax(logits, axis=1), softmax(logits / temperature, axis=1)
    return Calibration(
        temperature=temperature,
        images=images,
        error_before=calibration_error(before, labels),
        error=calibration_error(after, labels),
        coverage=tuple(coverage(after, labels)),
    )


@torch.no_grad()
def divide_logits(network: Network, temperature: float) -> None:
    """Divide the logits of a network by a temperature, if its last ops allow it."""
    if (module := _last_module(network)) is not None:
        for parameter in module.parameters(recurse=False):
            parameter.div_(temperature)


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Return the temperature with the smallest negative log-likelihood, with four digits.

    One further image with a random label counts as well: without it, a network that is right on all
    images would be certain of every answer (compare Platt 1999, "Probabilistic outputs for support
    vector machines", section 2.2).
    """
    logits, count = logits.astype(float), len(labels)
    right = logits[np.arange(count), labels].mean()
    target = (count * right + logits.mean()) / (count + 1)

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float(logsumexp(scale * logits, axis=1).mean() - scale * target)

    limit = math.log(_MAX_TEMPERATURE)
    result = minimize_scalar(loss, bounds=(-limit, limit), method="bounded")
    return round_to_four_digits(math.exp(result.x))


def calibration_error(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Return the expected calibration error.

    It is the mean difference of confidence and accuracy in `BINS` bins of confidence, weighted by
    the images in them.
    """
    confidences = probabilities.max(1)
    excess = confidences - (probabilities.argmax(1) == labels)
    bins = np.ceil(confidences * BINS).astype(int)
    return float(np.abs(np.bincount(bins, excess)).sum() / len(labels))


def coverage(
    probabilities: Floats,
    labels: NDArray[np.int64],
    thresholds: Sequence[float] = COVERAGE_THRESHOLDS,
) -> list[CoverageRow]:
    """Return how many images are answered from each confidence on, and how many of these rightly.

    See El-Yaniv and Wiener 2010, "On the foundations of noise-free selective classification".
    """
    confidences, right = probabilities.max(1), probabilities.argmax(1) == labels
    rows = []
    for threshold in thresholds:
        answered = confidences >= threshold
        accuracy = float(right[answered].mean()) if answered.any() else None
        rows.append(
            CoverageRow(
                min_confidence=threshold, answered=float(answered.mean()), accuracy=accuracy
            )
        )
    return rows


def make_threshold(
    logits: Floats,
    labels: NDArray[np.int64],
    unknown_logits: Floats | None = None,
    *,
    min_confidence: float | None = None,
    min_accuracy: float | None = None,
) -> Threshold:
    """Return the threshold that is asked for, and what it means for hold-out images.

    Args:
        logits: logits of the hold-out images.
        labels: their labels.
        unknown_logits: logits of `M` images of no class, `M x classes`; an answer to one is wrong.
        min_confidence: confidence from which on the model answers.
        min_accuracy: share of the answers that must be right, from which the confidence follows.
            The threshold has no confidence if none reaches it.
    """
    confidences, right = largest_probabilities(logits), logits.argmax(1) == labels
    unknown = np.zeros(0) if unknown_logits is None else largest_probabilities(unknown_logits)
    if min_accuracy is not None:
        min_confidence = smallest_threshold(confidences, right, unknown, min_accuracy)
    answered = confidences >= (min_confidence or 0.0)
    return Threshold(
        min_confidence=min_confidence,
        min_accuracy=min_accuracy,
        images=len(labels),
        answered=int(answered.sum()),
        right=int(right[answered].sum()),
        unknown=len(unknown),
        unknown_answered=int((unknown >= (min_confidence or 0.0)).sum()),
    )


def smallest_threshold(
    confidences: Floats, right: NDArray[np.bool_], unknown: Floats, min_accuracy: float
) -> float | None:
    """Return the smallest confidence from which on so many of the answers are right; None if none.

    Args:
        confidences: confidences in the answers to `N` images.
        right: whether each answer is right.
        unknown: confidences in the answers to `M` images of no class, which are all wrong.
        min_accuracy: share of right answers to reach.
    """
    both = np.concatenate([confidences, unknown])
    order = np.argsort(-both)
    is_right = np.concatenate([right, np.zeros(len(unknown), bool)])[order]
    ordered = both[order]
    accuracies = np.cumsum(is_right) / np.arange(1, len(both) + 1)
    # Images of equal confidence are answered together.
    is_last = np.append(ordered[1:] < ordered[:-1], True)
    reaching = np.flatnonzero(is_last & (accuracies >= min_accuracy))
    if not len(reaching):
        return None
    end = int(reaching[-1])
    if end == len(both) - 1:
        return 0.0
    return short_number(float(ordered[end + 1]), float(ordered[end]))


def largest_probabilities(logits: Floats) -> Floats:
    """Return the largest probability of each image, `N`."""
    return softmax(logits.astype(float), axis=1).max(1)


def _last_module(network: Network) -> torch.nn.Module | None:
    """Return the module whose weight and bias scale the logits; None if no module does."""
    op = network.graph.ops[-1]
    while op.kind in _HOMOGENEOUS_KINDS:
        op = network.graph.ops[op.inputs[0]]
    return network.slot_module(op) if op.kind in _LINEAR_KINDS else None
