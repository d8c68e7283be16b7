"""A linear probe: a classifier on the features of a network that learns nothing else.

With few images it is hard to do better (Kumar et al. 2022, "Fine-tuning can distort pretrained
features and underperform out-of-distribution"), so it is where a training starts, and what its
result is held against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset, Images
from nas.graph import Graph
from nas.machine.torch_device import limit_threads
from nas.supernet.evaluation import folded_outputs

MAX_PROBE_IMAGES = 2000
"""Most images that a probe learns. Features of more take minutes, and hardly change it."""

FOLDS = 5
"""Parts of the images, each of which is classified by probes that learned the others."""

STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(3, -8, -1))
"""Strengths of the L2 regularisation among which cross-validation chooses.

They are factors of half the sum of the squares, for features of unit variance.
"""

MOST_WORSE = 2
"""Strengths without a smaller error after which no weaker ones are tried."""

MAX_ITERATIONS = 200
"""Most iterations of the optimizer of a probe; it usually needs fewer than 50."""

MIN_DEVIATION = 0.2
"""Smallest standard deviation by which a feature is divided, over the mean one of all features.

Features that hardly vary would get weights that are a hundred times as large as those of others:
then int8 leaves nothing of the others. A probe on 150 hand signs was right on 75.3% of others, with
1e-3 in place of it on 73.3%, and its int8 logits erred by 0.02 instead of 0.82 standard deviations.
"""


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier on the features of a network.

    Attributes:
        weight: weights `classes x features`.
        bias: biases `classes`.
        predicted: classes of the `N` images that it learned, by probes that learned other folds.
    """

    weight: Tensor
    bias: Tensor
    predicted: np.ndarray

    def classify(self, features: Tensor) -> np.ndarray:
        """Return the classes `M` (int64) of `M` images by their features."""
        return (features @ self.weight.T + self.bias).argmax(1).numpy()


def classifier_position(graph: Graph) -> int:
    """Return the position of the last op with weights of a graph, which is its classifier."""
    return max(at for at, op in enumerate(graph.ops) if op.slot is not None)


def features_graph(graph: Graph) -> Graph:
    """Return a network without its classifier and what follows it."""
    return Graph(graph.ops[: classifier_position(graph)])


def probe_images(data: ImageDataset) -> Images:
    """Return the training images that a probe learns: `MAX_PROBE_IMAGES` at most, the same ones."""
    order = np.random.default_rng(0).permutation(len(data.train))
    return data.train.take(np.sort(order[:MAX_PROBE_IMAGES]))


def probed_state(
    graph: Graph, state: Mapping[str, Tensor], data: ImageDataset
) -> dict[str, Tensor]:
    """Return the state of a network whose classifier is a probe that learned training images.

    Args:
        graph: network for images and classes like those of `data`.
        state: state of a `Network` of the graph; it may lack the classifier.
        data: only its training split is used.
    """
    images = probe_images(data)
    features = image_features(graph, state, data, images)
    probe = fit_probe(features, images, data)
    classifier = graph.ops[classifier_position(graph)]
    slot = classifier.slot_name
    weight = probe.weight.reshape(graph.weight_shape(classifier))
    return {**state, f"{slot}.weight": weight, f"{slot}.bias": probe.bias}


def fit_probe(features: Tensor, images: Images, data: ImageDataset) -> Probe:
    """Fit a linear probe.

    It is a multinomial logistic regression with L2 regularisation, whose strength has the smallest
    cross-entropy on images of other folds. Classes of a balanced metric weigh the same.

    Args:
        features: features of `N` images, `N x features`.
        images: the images; no group of them is in two folds.
        data: has the number of classes, and the metric.
    """
    classes, labels = len(data.classes), torch.from_numpy(images.labels)
    mean = features.mean(0)
    deviation = features.std(0, correction=0)
    deviation = deviation.clamp_min(MIN_DEVIATION * float(deviation.mean()) or 1.0)
    features = (features - mean) / deviation
    weights = torch.ones(classes)
    if data.metric == "balanced_accuracy":
        weights = len(labels) / torch.bincount(labels, minlength=classes).clamp_min(1) / classes
    if len(features) < features.shape[1]:  # The regression lies in the span of the images.
        basis = torch.linalg.svd(features, full_matrices=False).Vh
    else:
        basis = torch.eye(features.shape[1])
    features = features @ basis.T
    folds = torch.from_numpy(images.folds(FOLDS, np.random.default_rng(0)))
    fitted = [torch.zeros(classes, 1 + features.shape[1]) for _ in range(int(folds.max()) + 1)]
    logits, worse = torch.zeros(len(labels), classes), 0
    error, best, predicted = math.inf, STRENGTHS[0], labels
    with limit_threads(0):
        for strength in STRENGTHS:  # The strongest first, whose solution is near to zeros.
            for fold in range(len(fitted)):
                inside, outside = folds != fold, folds == fold
                own = _fit(features[inside], labels[inside], weights, strength, fitted[fold])
                logits[outside] = features[outside] @ own[:, 1:].T + own[:, 0]
                fitted[fold] = own
            new_error = F.cross_entropy(logits, labels, weights).item()
            if new_error < error:
                error, best, predicted = new_error, strength, logits.argmax(1)
                continue
            worse += 1
            if worse == MOST_WORSE:
                break  # Weaker ones fit the images of their folds better, and others worse.
        chosen = _fit(features, labels, weights, best, torch.stack(fitted).mean(0))
    weight = chosen[:, 1:] @ basis / deviation
    return Probe(weight, chosen[:, 0] - weight @ mean, predicted.numpy())


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


def _fit(
    features: Tensor, labels: Tensor, weights: Tensor, strength: float, start: Tensor
) -> Tensor:
    """Return biases and weights `classes x (1 + features)` of a regression, from a start."""
    fitted = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [fitted],
        max_iter=MAX_ITERATIONS,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-4,
        tolerance_change=1e-7,
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
