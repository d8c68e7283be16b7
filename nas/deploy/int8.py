"""`quantise_within`: an int8 version of a trained model, compared with float32."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from nas.data import ImageDataset, Images
from nas.deploy.model import TrainedModel, normalised
from nas.errors import RequestError
from nas.machine.torch_device import map_batches
from nas.quantisation.network import QuantisedNetwork, WeightBits, assemble, native_weight_bits
from nas.quantisation.ranges import RangeMethod, activations, least_squares, measure, min_max
from nas.quantisation.simulation import simulate
from nas.run.model_card import Int8Attempt, Int8Summary
from nas.supernet.evaluation import choose_calibration_images
from nas.supernet.quick_evaluation import stratified_sample

MAX_DROP = 0.005
"""Largest loss of accuracy by default: half a point."""

CALIBRATION_IMAGES = 256
"""Training images that the ranges of activations are measured on; all if there are fewer."""

VALIDATION_IMAGES = 5000
"""Most images of the search that compare int8 with float32. If 2% of the images change their class,
the standard error of the loss is 0.2 points, and more images cost minutes for each method."""

LogitsOf = Callable[[Images], NDArray[np.float32]]
"""Returns the logits `N x classes` of `N` images."""

_BATCH_SIZE = 64

_RANGE_METHODS: dict[str, RangeMethod] = {"min-max": min_max, "least squares": least_squares}
"""Ways to choose the ranges of activations, in the order in which they are tried."""


@dataclass(frozen=True, eq=False)
class Quantisation:
    """A quantised network, and how it was made.

    Attributes:
        network: the first network within the limit, or else the most accurate one.
        judged: that of the weights that were judged, which decided; see `TrainedModel.judged`.
        summary: the calibration images, and every method that was tried.
    """

    network: QuantisedNetwork
    judged: QuantisedNetwork
    summary: Int8Summary


def quantise_within(
    model: TrainedModel,
    data: ImageDataset,
    *,
    max_drop: float = MAX_DROP,
    weight_bits: WeightBits | None = None,
    progress: Callable[[str], None] | None = None,
) -> Quantisation:
    """Return an int8 version of a model, if possible one that loses little accuracy.

    The ranges of activations are first the whole ranges that training images have, and if the loss
    on the validation images of the search is above the limit, those with the least squared error.
    The hold-out and the test images judge what is chosen here, so they are not read. A model that
    was refitted has learned the search images: the weights that were judged decide for it.

    Args:
        model: the trained model.
        data: the images that it was trained on.
        max_drop: largest loss of accuracy, as a fraction.
        weight_bits: bits of a weight; `native_weight_bits` by default.
        progress: receives the name of the current method.

    Raises:
        RequestError: the limit is not in [0, 1].
    """
    if not 0 <= max_drop <= 1:
        raise RequestError(
            f"The largest loss of accuracy cannot be {max_drop}.",
            remedy="Give a fraction from 0 to 1, such as 0.005 for half a point.",
        )
    bits = weight_bits or native_weight_bits()
    validation = _batches(data.search, stratified_sample(data.search, VALIDATION_IMAGES))
    labels = np.concatenate([images.labels for images in validation])

    def classes(
        logits: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    ) -> NDArray[np.int64]:
        return _logits(model, logits, validation).argmax(1)

    judged = model.judged
    float_classes = classes(judged.logits)
    float_accuracy = data.score(float_classes, labels)
    calibration = choose_calibration_images(data.train, CALIBRATION_IMAGES)
    images = normalised(calibration, model.preprocessing)
    started = time.perf_counter()
    histograms = measure(judged.graph, judged.weights, images)
    tried: list[tuple[Int8Attempt, QuantisedNetwork]] = []
    for name, method in _RANGE_METHODS.items():
        if progress:
            progress(name)
        ranges = activations(judged.graph, histograms, method)
        network = assemble(judged.graph, judged.weights, ranges, images, bits)
        own = classes(partial(simulate, network))
        accuracy = data.score(own, labels)
        attempt = Int8Attempt(
            method=name,
            accuracy=accuracy,
            drop=float_accuracy - accuracy,
            agreement=float((own == float_classes).mean()),
            seconds=time.perf_counter() - started,
        )
        tried.append((attempt, network))
        if attempt.drop <= max_drop:
            break
        started = time.perf_counter()
    best, network = max(tried, key=lambda each: each[0].accuracy)
    shipped = network
    if judged is not model:
        histograms = measure(model.graph, model.weights, images)
        ranges = activations(model.graph, histograms, _RANGE_METHODS[best.method])
        shipped = assemble(model.graph, model.weights, ranges, images, bits)
    pixels = np.ascontiguousarray(calibration.pixels[: len(calibration)])
    summary = Int8Summary(
        method=best.method,
        weight_bits=bits,
        calibration_images=len(calibration),
        calibration_digest=hashlib.sha256(pixels.data).hexdigest()[:16],
        validation_images=len(labels),
        float_accuracy=float_accuracy,
        accuracy=best.accuracy,
        max_drop=max_drop,
        attempts=tuple(attempt for attempt, _ in tried),
    )
    return Quantisation(shipped, network, summary)


def logits_as_chosen(model: TrainedModel, data: ImageDataset) -> tuple[LogitsOf, LogitsOf]:
    """Return what gives the logits of images, by the network in the dtype that it was chosen in.

    The first has the weights that were judged, the second those that are shipped.

    Args:
        model: the trained model.
        data: the images that it was trained on.
    """
    if model.graph.dtype != "int8":
        judged = model.judged
        return (
            lambda images: judged.pixel_logits(images.pixels),
            lambda images: model.pixel_logits(images.pixels),
        )
    int8 = quantise_within(model, data)
    return partial(int8_logits, model, int8.judged), partial(int8_logits, model, int8.network)


def int8_logits(
    model: TrainedModel, network: QuantisedNetwork, images: Images
) -> NDArray[np.float32]:
    """Return the logits of images by a quantised network of a model, simulated in torch."""
    batches = _batches(images, np.arange(len(images)))
    return _logits(model, partial(simulate, network), batches)


def _logits(
    model: TrainedModel,
    logits: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    batches: Sequence[Images],
) -> NDArray[np.float32]:
    """Return the logits of the images in some batches, from those of normalised images."""

    def part(images: Images) -> NDArray[np.float32]:
        return logits(normalised(images, model.preprocessing))

    macs = model.graph.macs * _BATCH_SIZE
    return np.concatenate(map_batches(part, batches, macs, torch.device("cpu")))


def _batches(images: Images, positions: NDArray[np.int64]) -> list[Images]:
    starts = range(0, len(positions), _BATCH_SIZE)
    return [images.take(positions[start : start + _BATCH_SIZE]) for start in starts]
