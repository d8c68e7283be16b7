"""`quantise_within`: the cheapest quantisation that keeps the accuracy of the float32 network."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nas.data import ImageDataset, Images
from nas.deploy.model import TrainedModel, normalised
from nas.deploy.quantisation.equalisation import equalise
from nas.deploy.quantisation.fine_tuning import FineTuning, fine_tune
from nas.errors import NasError, RequestError, first_line
from nas.quantisation.post_training import (
    WeightBits,
    assemble,
    correct_biases,
)
from nas.quantisation.ranges import (
    Histogram,
    RangeMethod,
    activations,
    least_squares,
    measure,
    min_max,
    percentile,
)
from nas.quantisation.simulation import simulate
from nas.quantised_network import Affine, QuantisedNetwork
from nas.records import Int8Attempt, Int8Summary
from nas.supernet.evaluation import choose_calibration_images
from nas.supernet.quick_evaluation import stratified_sample
from nas.this_machine import processor

MAX_DROP = 0.005
"""Largest loss of accuracy by default: half a point."""

CALIBRATION_IMAGES = 256
"""Training images that the ranges of activations are measured on; all if there are fewer."""

VALIDATION_IMAGES = 5000
"""Most validation images that compare int8 with float32. If 2% of the images change their class,
the standard error of the loss is 0.2 points, and more images cost minutes for each method."""

_BATCH_SIZE = 64

_MAX_CORRECTION_BYTES = 512 << 20
"""Memory of activations for bias correction, which runs all its images as one batch."""

_RANGE_METHODS: dict[str, RangeMethod] = {
    "min-max": min_max,
    "percentile": percentile,
    "least squares": least_squares,
}

Progress = Callable[[str, float], None]
"""Called with the name of the current method, and the fraction of it that is done."""


@dataclass(frozen=True, eq=False)
class Quantisation:
    """A quantised network, and how it was made.

    Attributes:
        network: the first network within the limit, or else the most accurate one.
        summary: the calibration images, and every method that was tried.
    """

    network: QuantisedNetwork
    summary: Int8Summary

    @property
    def is_within_limit(self) -> bool:
        """Whether the loss of accuracy is within the limit that was asked for."""
        return self.summary.float_accuracy - self.summary.accuracy <= self.summary.max_drop


def quantise_within(
    model: TrainedModel,
    data: ImageDataset,
    *,
    max_drop: float = MAX_DROP,
    weight_bits: WeightBits | None = None,
    fine_tuning: FineTuning | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Quantisation:
    """Return an int8 version of a model that loses little accuracy.

    Methods are tried from the cheapest to the dearest, until the accuracy on validation images is
    within the limit. Each of the last three starts from the most accurate network before it.

    1. `min-max`, `percentile`, `least squares`: ranges of the activations (`ranges`).
    2. `equalisation`: weights whose channels have more equal ranges, if the network has channels
       that can be scaled (`equalisation`).
    3. `bias correction`: biases that make up for the mean error of rounding (`correct_biases`).
    4. `fine-tuning`: a short training that knows the rounding (`fine_tuning`).

    Ranges and weights come from training images. The parts search and holdout decide; test images
    are not read.

    Args:
        model: the trained model.
        data: the images that it was trained on.
        max_drop: largest loss of accuracy, as a fraction.
        weight_bits: bits of a weight; `native_weight_bits` by default.
        fine_tuning: settings of the fine-tuning; `FineTuning()` by default.
        seed: seed of the fine-tuning.
        progress: receives the current method.

    Raises:
        RequestError: the limit is not in [0, 1].
    """
    if not 0 <= max_drop <= 1:
        raise RequestError(
            f"The largest loss of accuracy cannot be {max_drop}.",
            remedy="Give a fraction from 0 to 1, such as 0.005 for half a point.",
        )
    search = _Search(model, data, weight_bits or native_weight_bits(), progress)
    try:
        search.run(fine_tuning or FineTuning(), seed, max_drop)
    # A training may fail in any way; the cheaper methods before it have given a network.
    except Exception as error:
        if not search.attempts:
            raise
        reason = error.message if isinstance(error, NasError) else f"{first_line(error)}."
        warnings.warn(
            f"{reason} The int8 network is that of the method {search.best.method!r}.",
            stacklevel=2,
        )
    return Quantisation(search.best.network, search.summary(max_drop))


def native_weight_bits() -> WeightBits:
    """Return the bits of weights that this processor multiplies with uint8 without overflow."""
    features = processor()[1]
    is_x86 = any(each.startswith(("avx", "sse")) for each in features)
    return 7 if is_x86 and not any("vnni" in each for each in features) else 8


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A quantised network, with what it was made of.

    Attributes:
        method: the last method that made it what it is.
        weights: float32 weights that were rounded.
        range_method: how its ranges were chosen.
        network: the quantised network.
        accuracy: its accuracy on the validation images, once it is known.
    """

    method: str
    weights: Mapping[str, NDArray[np.float32]]
    range_method: RangeMethod
    network: QuantisedNetwork
    accuracy: float = 0.0


class _Search:
    """The candidates for a model, and the best of them.

    Attributes:
        float_accuracy: accuracy of the float32 network on the validation images.
        best: the most accurate candidate, the cheapest of several.
        attempts: records of all candidates.
    """

    def __init__(
        self,
        model: TrainedModel,
        data: ImageDataset,
        weight_bits: WeightBits,
        progress: Progress | None,
    ) -> None:
        self._model, self._data, self._bits = model, data, weight_bits
        self._progress = progress or (lambda method, fraction: None)
        self._calibration = choose_calibration_images(data.train, CALIBRATION_IMAGES)
        self._images = self._normalised(self._calibration)
        self._validation = _validation_images(data)
        self._labels = np.concatenate([images.labels for images in self._validation])
        self._float_classes = self._classes(model.logits)
        self.float_accuracy = float((self._float_classes == self._labels).mean())
        self.best: _Candidate
        self.attempts: list[Int8Attempt] = []

    def run(self, fine_tuning: FineTuning, seed: int, max_drop: float) -> None:
        """Try the methods until the loss of accuracy is within a limit."""
        started = time.perf_counter()
        for candidate in self.candidates(fine_tuning, seed):
            accuracy, agreement = self.evaluate(candidate.network)
            drop = self.float_accuracy - accuracy
            seconds = time.perf_counter() - started
            self.add(
                replace(candidate, accuracy=accuracy),
                Int8Attempt(
                    method=candidate.method,
                    accuracy=accuracy,
                    drop=drop,
                    agreement=agreement,
                    seconds=seconds,
                ),
            )
            if drop <= max_drop:
                break
            started = time.perf_counter()

    def candidates(self, fine_tuning: FineTuning, seed: int) -> Iterator[_Candidate]:
        """Yield the candidates from the cheapest; `add` is called between two of them."""
        graph, weights = self._model.graph, self._model.weights
        self._progress("min-max", 0.0)
        histograms = measure(graph, weights, self._images)
        for name, method in _RANGE_METHODS.items():
            self._progress(name, 0.0)
            yield self._ranged(name, weights, histograms, method)
        self._progress("equalisation", 0.0)
        equalised = equalise(graph, weights)
        if equalised is not None:
            histograms = measure(graph, equalised, self._images)
            yield self._ranged("equalisation", equalised, histograms, self.best.range_method)
        self._progress("bias correction", 0.0)
        images = self._images[: max(1, _MAX_CORRECTION_BYTES // graph.peak_memory_bytes)]
        corrected = correct_biases(self.best.network, self.best.weights, images)
        yield self._changed("bias correction", corrected, self.best.network.activations)
        tuned, affines = fine_tune(
            graph,
            weights,
            self.best.weights,
            self.best.network.activations,
            self._data,
            self._bits,
            fine_tuning,
            seed=seed,
            progress=lambda fraction: self._progress("fine-tuning", fraction),
        )
        yield self._changed("fine-tuning", tuned, affines)

    def _ranged(
        self,
        name: str,
        weights: Mapping[str, NDArray[np.float32]],
        histograms: list[Histogram],
        method: RangeMethod,
    ) -> _Candidate:
        affines = activations(self._model.graph, histograms, method)
        network = assemble(self._model.graph, weights, affines, self._images, self._bits)
        return _Candidate(name, weights, method, network)

    def _changed(
        self,
        name: str,
        weights: Mapping[str, NDArray[np.float32]],
        affines: Mapping[int, Affine],
    ) -> _Candidate:
        """Return the best candidate with other weights and scales."""
        network = assemble(self._model.graph, weights, affines, self._images, self._bits)
        return replace(self.best, method=name, weights=weights, network=network)

    def evaluate(self, network: QuantisedNetwork) -> tuple[float, float]:
        """Return the accuracy of a network, and the share of classes equal to float32's."""
        classes = self._classes(lambda images: simulate(network, images))
        accuracy = float((classes == self._labels).mean())
        return accuracy, float((classes == self._float_classes).mean())

    def add(self, candidate: _Candidate, attempt: Int8Attempt) -> None:
        """Record a candidate whose accuracy is known."""
        if not self.attempts or candidate.accuracy > self.best.accuracy:
            self.best = candidate
        self.attempts.append(attempt)

    def summary(self, max_drop: float) -> Int8Summary:
        """Return the record of the search."""
        pixels = np.ascontiguousarray(self._calibration.pixels[: len(self._calibration)])
        return Int8Summary(
            method=self.best.method,
            weight_bits=self._bits,
            calibration_images=len(self._calibration),
            calibration_digest=hashlib.sha256(pixels.data).hexdigest()[:16],
            validation_images=len(self._labels),
            float_accuracy=self.float_accuracy,
            accuracy=self.best.accuracy,
            max_drop=max_drop,
            attempts=tuple(self.attempts),
        )

    def _classes(
        self, logits: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    ) -> NDArray[np.int64]:
        """Return the classes of the validation images, which are normalised batch by batch."""
        return np.concatenate(
            [logits(self._normalised(images)).argmax(1) for images in self._validation]
        )

    def _normalised(self, images: Images) -> NDArray[np.float32]:
        return normalised(images, self._model.preprocessing)


def _validation_images(data: ImageDataset) -> list[Images]:
    """Return a sample of the validation images in batches, with as many of a part as it has."""
    available = len(data.search) + len(data.holdout)
    share = min(1.0, VALIDATION_IMAGES / available)
    batches = []
    for part in (data.search, data.holdout):
        positions = stratified_sample(part, round(share * len(part)))
        for start in range(0, len(positions), _BATCH_SIZE):
            batch = positions[start : start + _BATCH_SIZE]
            batches.append(part.take(batch))
    return batches
