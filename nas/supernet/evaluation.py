"""Scores architectures with a supernet's weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from nas.data import ImageDataset, Images, Part
from nas.data.batches import sequential_batches
from nas.errors import DataError
from nas.graph import Graph
from nas.space import Architecture
from nas.supernet.threads import threads_for
from nas.supernet.weights import Supernet
from nas.torch_network import FoldedWeights, Network, fold, run

CALIBRATION_IMAGES = 1024
"""Training images from which an architecture's norm statistics are worked out."""

CALIBRATION_BATCH = 64
"""Of these, images at once: their own statistics normalise them, so scores depend on it."""

_CACHED_BYTES = 16 << 20
_BATCHES = (16, 256)
"""On a processor, images are answered so many at a time that their activations stay in its caches,
at least and at most. A batch of 256 takes up to three times as long as eight of 32."""


def evaluate(
    supernet: Supernet,
    architectures: Iterable[Architecture],
    data: ImageDataset,
    part: Part = "search",
    *,
    calibration_images: int = CALIBRATION_IMAGES,
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
    found = answers(supernet, architectures, data, images, calibration_images)
    return [float((own == images.labels).mean()) for own in found]


def evaluate_by_class(
    supernet: Supernet, architecture: Architecture, data: ImageDataset, part: Part = "search"
) -> tuple[float, dict[str, float | None]]:
    """What `evaluate` gives, and the same by class; None for a class without images.

    Raises what `evaluate` raises.
    """
    images = data.part(part)
    labels = images.labels
    found = next(answers(supernet, [architecture], data, images))
    right = np.bincount(labels, found == labels, minlength=len(data.classes))
    count = np.bincount(labels, minlength=len(data.classes))
    return float((found == labels).mean()), {
        name: float(r / n) if n else None
        for name, r, n in zip(data.classes, right, count, strict=True)
    }


def evaluate_network(network: Network, data: ImageDataset, part: Part = "search") -> float:
    """The accuracy of a network with weights and norm statistics of its own.

    Raises RequestError for a part that is not one that a search may read.
    """
    state = network.state_dict()
    device = next(iter(state.values())).device
    images = data.part(part)
    with torch.inference_mode():
        found = _classified(network.graph, fold(network.graph, state), images, data, device)
    return float((found == images.labels).mean())


def answers(
    supernet: Supernet,
    architectures: Iterable[Architecture],
    data: ImageDataset,
    images: Images,
    calibration_images: int = CALIBRATION_IMAGES,
) -> Iterator[np.ndarray]:
    """The class `n` that each architecture takes each of `images`, some of `data`, for.

    See `evaluate`; raises DataError as it does.
    """
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
    device = next(supernet.parameters()).device
    for architecture in architectures:
        graph = supernet.space.lower(architecture)
        with torch.inference_mode():
            with threads_for(graph.macs * CALIBRATION_BATCH):
                batches = (
                    x for x, _ in sequential_batches(calibration, data, CALIBRATION_BATCH, device)
                )
                statistics = supernet.calibrate(graph, batches)
            folded = fold(graph, supernet.extract(graph, statistics))
            found = _classified(graph, folded, images, data, device)
        yield found


def _classified(
    graph: Graph,
    folded: Mapping[str, Tensor],
    images: Images,
    data: ImageDataset,
    device: torch.device,
) -> np.ndarray:
    """The class `n` that a network with folded weights takes each image for."""
    weights = FoldedWeights(folded)
    size = _batch_size(graph, device)
    with threads_for(graph.macs * size):
        found = [
            run(graph.folded, x, weights).flatten(1).argmax(1)
            for x, _ in sequential_batches(images, data, size, device)
        ]
    classes: np.ndarray = torch.cat(found).cpu().numpy()
    return classes


def _batch_size(graph: Graph, device: torch.device) -> int:
    least, most = _BATCHES
    if device.type != "cpu":
        return most
    fitting = _CACHED_BYTES // graph.peak_memory_bytes
    return min(most, max(least, 1 << max(0, fitting.bit_length() - 1)))


def _evenly(images: Images, count: int) -> Images:
    """`count` images spread over all of them, in an order that mixes the classes."""
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)
    chosen = np.random.default_rng(0).permutation(chosen)
    return Images(images.pixels[chosen], images.labels[chosen])
