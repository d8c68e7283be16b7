"""Accuracies of subnets with a supernet's weights, and of standalone networks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nas.data import ImageDataset, Images, Part
from nas.data.batches import normalize, sequential_batches
from nas.errors import DataError
from nas.graph import Graph
from nas.machine.torch_device import map_batches
from nas.space import Architecture, SearchSpace
from nas.supernet.weights import Supernet
from nas.torch_network import FoldedWeights, Network, fold_norms, run_graph

CALIBRATION_IMAGES = 256
"""Number of training images from which the batch-norm statistics of a subnet are computed.

An image takes about three times as long as one that is classified. In results/example, Kendall's
tau with standalone training is 0.47, 0.09 and 0.62 in the three spaces with 256 images, 0.45, 0.04
and 0.55 with all 719 of digits, and 0.45, 0.10 and 0.45 with 64.
"""

CALIBRATION_BATCH_SIZE = 64
"""Images in a calibration batch.

Each batch is normalised by its own statistics, so scores depend on this number.
"""

_MIN_CPU_BATCH_SIZE, _MAX_BATCH_SIZE = 16, 256
"""Limits of the images in an evaluation batch; a GPU gets the largest batch."""

_CACHE_BYTES = 16 << 20
"""Activations of a CPU batch that fit into the processor's caches.

A batch of 256 images took up to three times as long as eight batches of 32.
"""

ROUND_SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
"""Shares of the images after which `evaluate_in_rounds` may stop."""

MIN_ROUND_IMAGES = 250
"""Fewest images of a first round; with a smaller share than this, all images are one round."""

TIMED_IMAGES = 256
"""Images by which the time of a score is measured."""

ROUND_DEVIATIONS = 3.0
"""Standard deviations by which the accuracy on all images may plausibly exceed that on a part."""


Classify = Callable[[Images], np.ndarray]
"""Returns the predicted classes `N` (int64) of `N` images."""


class RoundsScore(NamedTuple):
    """The accuracy of an architecture on some images of a split, or on all of them.

    Attributes:
        accuracy: accuracy on these images, in [0, 1].
        images: number of these images.
    """

    accuracy: float
    images: int

    @property
    def correct(self) -> int:
        """Number of images that are classified correctly."""
        return round(self.accuracy * self.images)


def evaluate(
    supernet: Supernet,
    architectures: Iterable[Architecture],
    data: ImageDataset,
    part: Part = "search",
) -> list[float]:
    """Return the accuracy of each architecture with a supernet's weights.

    The batch-norm statistics of each architecture are computed on training images without
    augmentation, always the same ones, and folded into its weights. A score depends on the
    supernet, the architecture and the data alone, not on the other architectures or their order.

    Args:
        supernet: trained supernet.
        architectures: architectures of the supernet's space.
        data: data that the supernet was trained on.
        part: split whose images are classified: "train", "search" or "holdout".

    Returns:
        Accuracies in [0, 1], in the order of `architectures`.

    Raises:
        DataError: the supernet is for other image sizes or classes than `data` has.
        RequestError: `part` is another split, such as "test".
    """
    images = data.part(part)
    predictions = predict(supernet, architectures, data, images)
    return [data.score(classes, images.labels) for classes in predictions]


def evaluate_in_rounds(
    supernet: Supernet,
    architecture: Architecture,
    data: ImageDataset,
    is_hopeless: Callable[[float], bool],
    rounds: list[RoundsScore],
    images: int | None = None,
) -> RoundsScore:
    """Return the accuracy of an architecture on as many images as it needs.

    The images are classified in rounds. After each round but the last, `is_hopeless` decides
    whether the others are needed, from the largest accuracy on all images that is plausible (Maron
    and Moore 1994, "Hoeffding races", with the deviation of a sample without replacement). On all
    images of the split, the accuracy is that of `evaluate`.

    Args:
        supernet: trained supernet.
        architecture: architecture of the supernet's space.
        data: data that the supernet was trained on.
        is_hopeless: returns whether an accuracy is so small that its exact value does not matter.
        rounds: what this function returned at the end of each round that an earlier call with other
            needs came to; rounds that follow are appended.
        images: number of images that count as all, always the same ones; by default those of the
            split.

    Raises:
        DataError: the supernet is for other image sizes or classes than `data` has.
    """
    split = data.search
    count = len(split) if images is None else images
    require_adapted(supernet.space, data)
    # A part of the images may lack a class, and says less about a mean over classes.
    ends = round_ends(count) if data.metric == "accuracy" else [count]
    order = np.random.default_rng(0).permutation(len(split))
    classify: Classify | None = None
    start = 0
    for number, end in enumerate(ends):
        if number == len(rounds):
            if classify is None:
                classify = _folded_subnet(supernet, architecture, data)
            sample = split.take(np.sort(order[start:end]))
            accuracy = data.score(classify(sample), sample.labels)
            if rounds:
                accuracy = (rounds[-1].correct + round(accuracy * len(sample))) / end
            rounds.append(RoundsScore(accuracy, end))
        start, score = end, rounds[number]
        if is_hopeless(largest_plausible_accuracy(score.correct, end, count)):
            break
    return score


def measure_score(
    supernet: Supernet, architecture: Architecture, data: ImageDataset
) -> tuple[float, float]:
    """Return the seconds that a score takes in any case, and those of each image.

    Both are measured at the second time: torch takes up to a second to choose its code for a layer
    of a new shape, which a search pays only a few times.
    """
    images = data.search.take(slice(0, TIMED_IMAGES))
    _folded_subnet(supernet, architecture, data)(images)
    start = time.perf_counter()
    classify = _folded_subnet(supernet, architecture, data)
    calibrated = time.perf_counter()
    classify(images)
    return calibrated - start, (time.perf_counter() - calibrated) / len(images)


def round_ends(images: int) -> list[int]:
    """Return the numbers of images that are classified at the end of each round."""
    if ROUND_SHARES[0] * images < MIN_ROUND_IMAGES:
        return [images]
    return [round(share * images) for share in ROUND_SHARES]


def largest_plausible_accuracy(correct: int, images: int, total: int) -> float:
    """Return the largest accuracy on all images that is plausible, in [0, 1].

    Args:
        correct: number of correct answers in a random sample of the images.
        images: size of the sample.
        total: number of all images.
    """
    if images == total:
        return correct / total
    # The interval of Wilson 1927. Without replacement, a sample deviates as a larger one would.
    size = images / (1 - images / total)
    share, z = correct / images, ROUND_DEVIATIONS
    deviation = math.sqrt(share * (1 - share) / size + (z / size) ** 2 / 4)
    return (share + z**2 / (2 * size) + z * deviation) / (1 + z**2 / size)


def sampling_variance(correct: int, images: int, total: int) -> float:
    """Return the variance of the deviation of a sample's accuracy from that on all images.

    It is above 0 also where all or none of the answers are correct (Laplace's rule of succession).

    Args:
        correct, images, total: see `largest_plausible_accuracy`.
    """
    share = (correct + 1) / (images + 2)
    return share * (1 - share) * (1 / images - 1 / total)


def accuracy_by_class(
    data: ImageDataset, predictions: np.ndarray, labels: np.ndarray
) -> tuple[float, dict[str, float | None]]:
    """Return the accuracy of some predictions, in all and for each class.

    Args:
        data: the dataset of the images.
        predictions: predicted classes `N` (int64).
        labels: true classes `N` (int64).

    Returns:
        The accuracy in [0, 1], and the accuracies by class name; None for a class without images.
    """
    correct = np.bincount(labels, predictions == labels, minlength=len(data.classes))
    counts = np.bincount(labels, minlength=len(data.classes))
    return data.score(predictions, labels), {
        name: float(class_correct / count) if count else None
        for name, class_correct, count in zip(data.classes, correct, counts, strict=True)
    }


def evaluate_network(network: Network, data: ImageDataset, part: Part = "search") -> float:
    """Return the accuracy in [0, 1] of a standalone network, with its running statistics.

    Raises:
        RequestError: `part` is not one of "train", "search" and "holdout".
    """
    images = data.part(part)
    return data.score(predict_network(network, data, images), images.labels)


def predict_network(network: Network, data: ImageDataset, images: Images) -> np.ndarray:
    """Return the classes `N` (int64) that a standalone network predicts for some images of `data`.

    The network's running statistics are used.
    """
    return network_logits(network, data, images).argmax(1)


def network_logits(network: Network, data: ImageDataset, images: Images) -> np.ndarray:
    """Return the logits `N x classes` (float32) of a standalone network for images of `data`.

    The network's running statistics are used.
    """
    state = network.tensors()
    device = next(iter(state.values())).device
    return folded_outputs(network.graph, state, data, device)(images)


@torch.no_grad()
def calibrated_state(supernet: Supernet, graph: Graph, data: ImageDataset) -> dict[str, Tensor]:
    """Return a subnet's weights with the batch-norm statistics that `evaluate` scores it with.

    Args:
        supernet: trained supernet.
        graph: graph of an architecture of its space.
        data: data that the supernet was trained on.

    Returns:
        The state of a `Network` of the graph, on the device of the supernet.
    """
    images = choose_calibration_images(data.train)
    device = next(supernet.parameters()).device
    batches = (x for x, _ in sequential_batches(images, data, CALIBRATION_BATCH_SIZE, device))
    return supernet.extract(graph, supernet.calibrate(graph, batches))


def predict(
    supernet: Supernet,
    architectures: Iterable[Architecture],
    data: ImageDataset,
    images: Images,
) -> Iterator[np.ndarray]:
    """Yield the predicted classes `N` (int64) of some images, for each architecture.

    Args:
        supernet: trained supernet.
        architectures: architectures of the supernet's space.
        data: data that the supernet was trained on.
        images: `N` images of `data` to classify.

    Raises:
        DataError: the supernet is for other image sizes or classes than `data` has.
    """
    require_adapted(supernet.space, data)
    for architecture in architectures:
        yield _folded_subnet(supernet, architecture, data)(images)


def require_adapted(space: SearchSpace, data: ImageDataset) -> None:
    """Raise DataError unless a space is adapted to the sizes and the classes of some data."""
    sizes = {"image_size": data.image_size, "channels": data.channels, "classes": len(data.classes)}
    if space.settings != sizes:
        raise DataError(
            f"Space {space.name} is adapted to {space.settings}, the data has {sizes}.",
            remedy="Use the data that it is for, or space.adapt(...) with the data's sizes.",
        )


def _folded_subnet(supernet: Supernet, architecture: Architecture, data: ImageDataset) -> Classify:
    """Calibrate a subnet and fold its batch norms, and return what classifies images with it."""
    state = calibrated_state(supernet, architecture.graph, data)
    device = next(supernet.parameters()).device
    logits = folded_outputs(architecture.graph, state, data, device)
    return lambda images: logits(images).argmax(1)


def folded_outputs(
    graph: Graph, state: Mapping[str, Tensor], data: ImageDataset, device: torch.device
) -> Callable[[Images], np.ndarray]:
    """Fold the batch norms of a network's weights, and return what gives its outputs.

    These are `N x C`; a network that ends with a map has its pixels one after the other.
    """
    with torch.inference_mode():
        weights = FoldedWeights(fold_norms(graph, state))
    batch_size = _batch_size(graph, device)

    def run(images: Images) -> np.ndarray:
        @torch.inference_mode()
        def part(start: int) -> Tensor:
            pixels = torch.from_numpy(images.pixels[start : start + batch_size]).to(device)
            return run_graph(graph.folded, normalize(pixels, data), weights).flatten(1)

        starts = range(0, len(images), batch_size)
        batches = map_batches(part, starts, graph.macs * batch_size, device)
        results: np.ndarray = torch.cat(batches).cpu().numpy()
        return results

    return run


def _batch_size(graph: Graph, device: torch.device) -> int:
    if device.type != "cpu":
        return _MAX_BATCH_SIZE
    fitting = _CACHE_BYTES // graph.peak_memory_bytes
    power_of_two = 1 << max(0, fitting.bit_length() - 1)
    return min(_MAX_BATCH_SIZE, max(_MIN_CPU_BATCH_SIZE, power_of_two))


def choose_calibration_images(images: Images, count: int = CALIBRATION_IMAGES) -> Images:
    """Return `count` images, evenly spaced in the data set and shuffled to mix the classes."""
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)
    chosen = np.random.default_rng(0).permutation(chosen)
    return images.take(chosen)
