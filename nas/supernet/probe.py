"""A linear probe: a classifier on the features of a network that learns nothing else.

With few images it is hard to do better (Kumar et al. 2022, "Fine-tuning can distort pretrained
features and underperform out-of-distribution"), so it is where a training starts, and what its
result is held against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset, Images
from nas.graph import Graph
from nas.supernet.evaluation import folded_outputs

MAX_PROBE_IMAGES = 2000
"""Most images that a probe learns. Features of more take minutes, and hardly change it."""

FOLDS = 5
"""Parts of the images, each of which is classified by probes that learned the others."""

STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(3, -8, -1))
"""Strengths of the L2 regularisation among which cross-validation chooses.

They are factors of half the sum of the squares, for features of unit variance.
"""

MAX_ITERATIONS = 200
"""Most iterations of the optimizer of a probe; it usually needs fewer than 50."""

MIN_DEVIATION = 1e-3
"""Smallest standard deviation by which a feature is divided; one that varies less tells nothing."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier on the features of a network.

    Attributes:
        weight: weights `classes x features`.
        bias: biases `classes`.
        accuracy: accuracy on images that it did not learn, by cross-validation, in [0, 1].
        images: number of images that it learned.
    """

    weight: Tensor
    bias: Tensor
    accuracy: float
    images: int


def classifier_position(graph: Graph) -> int:
    """Return the position of the last op with weights of a graph, which is its classifier."""
    return max(at for at, op in enumerate(graph.ops) if op.slot is not None)


def features_graph(graph: Graph) -> Graph:
    """Return a network without its classifier and what follows it."""
    return Graph(graph.ops[: classifier_position(graph)])


def fit_probe(graph: Graph, state: Mapping[str, Tensor], data: ImageDataset) -> Probe:
    """Fit a linear probe on training images of `data`, as they are.

    It is a multinomial logistic regression with L2 regularisation, whose strength has the smallest
    cross-entropy on images of other folds. Always the same `MAX_PROBE_IMAGES` are learned if there
    are more. Classes of a balanced metric weigh the same.

    Args:
        graph: network for images and classes like those of `data`.
        state: state of a `Network` of the graph; its classifier does not matter.
        data: only its training split is used.
    """
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(data.train))[:MAX_PROBE_IMAGES])
    images = data.train.take(chosen)
    features = image_features(graph, state, data, images)
    mean = features.mean(0)
    deviation = features.std(0, correction=0).clamp_min(MIN_DEVIATION)
    features = (features - mean) / deviation
    labels = torch.from_numpy(images.labels)
    classes = len(data.classes)
    weights = torch.ones(classes)
    if data.metric == "balanced_accuracy":
        weights = len(labels) / torch.bincount(labels, minlength=classes).clamp_min(1) / classes
    folds = _folds(images.labels, rng)
    logits = {strength: torch.zeros(len(labels), classes) for strength in STRENGTHS}
    for fold in range(FOLDS):
        inside, outside = folds != fold, folds == fold
        start = torch.zeros(classes, features.shape[1] + 1)
        for strength in STRENGTHS:  # The strongest first, whose solution is near to zeros.
            start = _fit(features[inside], labels[inside], weights, strength, start)
            logits[strength][outside] = features[outside] @ start[:, 1:].T + start[:, 0]

    def error(strength: float) -> float:
        return F.cross_entropy(logits[strength], labels, weights).item()

    best = min(STRENGTHS, key=error)
    fitted = _fit(features, labels, weights, best, torch.zeros(classes, features.shape[1] + 1))
    weight = fitted[:, 1:] / deviation
    return Probe(
        weight,
        fitted[:, 0] - weight @ mean,
        data.score(logits[best].argmax(1).numpy(), images.labels),
        len(images),
    )


def image_features(
    graph: Graph, state: Mapping[str, Tensor], data: ImageDataset, images: Images
) -> Tensor:
    """Return what a network's classifier reads, the mean over all pixels, `N x features`."""
    body = features_graph(graph)
    slots = {op.slot_name for op in body.ops if op.slot}
    own = {name: each for name, each in state.items() if name.rpartition(".")[0] in slots}
    device = next(iter(own.values())).device
    outputs = torch.from_numpy(folded_outputs(body, own, data, device)(images))
    return outputs.reshape(len(images), body.output_shape[0], -1).mean(2)


def _folds(labels: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Return the fold of each image; the images of a class are spread evenly over the folds."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), np.int64)
    folds[order] = np.arange(len(labels)) % FOLDS
    return torch.from_numpy(folds)


def _fit(
    features: Tensor, labels: Tensor, weights: Tensor, strength: float, start: Tensor
) -> Tensor:
    """Return biases and weights `classes x (1 + features)` of a regression, from a start."""
    fitted = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [fitted], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe", tolerance_grad=1e-5
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = features @ fitted[:, 1:].T + fitted[:, 0]
        value = F.cross_entropy(logits, labels, weights)
        value = value + strength / 2 * fitted[:, 1:].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return fitted.detach()
