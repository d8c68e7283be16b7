"""Scores architectures with a supernet's weights."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from nas.errors import DataError
from nas.graph import Graph
from nas.network import FoldedWeights, fold, run
from nas.space import Architecture
from nas.supernet.batches import in_order
from nas.supernet.data import Data, Images, Part
from nas.supernet.threads import threads_for
from nas.supernet.weights import Supernet

CALIBRATION_IMAGES = 1024
"""Training images from which an architecture's norm statistics are worked out."""


def evaluate(
    supernet: Supernet,
    architectures: Iterable[Architecture],
    data: Data,
    part: Part = "search",
    *,
    calibration_images: int = CALIBRATION_IMAGES,
    batch_size: int = 256,
) -> list[float]:
    """The accuracy, a fraction in [0, 1], of each architecture on a part of `data`.

    Norm statistics are worked out anew for each architecture on training images that are always the
    same, without augmentation, and then folded into the weights. A score depends on nothing but
    the supernet, the architecture and the data: not on order or on what was scored before.

    Raises:
        DataError: the supernet is for other sizes or classes than `data` has.
        RequestError: the part is not one that a search may read.
    """
    images = data.part(part)
    if supernet.space.settings != {
        "image_size": data.image_size,
        "channels": data.channels,
        "classes": len(data.classes),
    }:
        raise DataError(
            f"The supernet was trained for {supernet.space.settings}; the data has "
            f"{data.image_size} px, {data.channels} channels, {len(data.classes)} classes.",
            remedy="Use the data that the supernet was trained on.",
        )
    calibration = _evenly(data.train, calibration_images)
    scores = []
    for architecture in architectures:
        graph = supernet.space.lower(architecture)
        with torch.inference_mode(), threads_for(graph.macs * batch_size):
            scores.append(_accuracy(supernet, graph, data, images, calibration, batch_size))
    return scores


def _accuracy(
    supernet: Supernet,
    graph: Graph,
    data: Data,
    images: Images,
    calibration: Images,
    batch_size: int,
) -> float:
    device = next(supernet.parameters()).device
    batches = (x for x, _ in in_order(calibration, data, batch_size, device))
    statistics = supernet.calibrate(graph, batches)
    weights = FoldedWeights(fold(graph, supernet.extract(graph, statistics)))
    right = sum(
        int((run(graph.folded, x, weights).flatten(1).argmax(1) == labels).sum())
        for x, labels in in_order(images, data, batch_size, device)
    )
    return right / len(images)


def _evenly(images: Images, count: int) -> Images:
    """`count` images spread over all of them, in an order that mixes the classes."""
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)
    chosen = np.random.default_rng(0).permutation(chosen)
    return Images(images.pixels[chosen], images.labels[chosen])
