"""Static quantisation of ONNX models to int8 with ONNX Runtime's own tool."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from PIL import Image

from nas.graph import Shape

CALIBRATION_IMAGES = 16
"""Number of calibration images. More hardly change the ranges; every digit is among these."""


def calibration_images(
    shape: Shape, count: int = CALIBRATION_IMAGES, start: int = 0
) -> Iterator[NDArray[np.float32]]:
    """Yield images to find the ranges of a network's tensors with.

    They are the handwritten digits that come with scikit-learn, so quantising downloads nothing.
    For a network of other images the ranges are rough, which affects its accuracy and not its
    latency.

    Args:
        shape: shape of an image; all channels are equal.
        count: number of images.
        start: index of the first image among all 1797.

    Yields:
        Arrays `channels x height x width`, scaled to mean 0 and standard deviation 1.
    """
    channels, height, width = shape
    for digit in _digits()[start : start + count]:
        resized = Image.fromarray(digit).resize((width, height), Image.Resampling.BILINEAR)
        yield np.repeat(np.asarray(resized, np.float32)[None], channels, axis=0)


@cache
def _digits() -> NDArray[np.float32]:
    """Return all digits, `n x 8 x 8`."""
    from sklearn.datasets import load_digits

    digits = load_digits().images.astype(np.float32)
    return np.asarray((digits - digits.mean()) / digits.std(), np.float32)


def quantise(
    model: onnx.ModelProto,
    images: Iterable[NDArray[np.float32]],
    features: Collection[str],
    batch: int = 1,
) -> onnx.ModelProto:
    """Return a model with int8 weights and uint8 activations; inputs and outputs stay float32.

    The model has pairs of quantising and dequantising nodes (QDQ), which ONNX Runtime fuses.
    Activations are unsigned; weights are signed, symmetric and scaled by output channel, as ONNX
    Runtime's documentation recommends for x64, see `quantize_static`. On x64, signed activations
    were slower in eleven of twelve comparisons, by up to four times, because some of their
    convolutions stay in float32.

    Args:
        model: float32 model with a fixed batch size.
        images: calibration images `channels x height x width`.
        features: features of the processor. Without VNNI instructions, sums of products can
            overflow, so weights have seven bits, as the documentation recommends.
        batch: batch size of the model.
    """
    has_vnni = any("vnni" in feature for feature in features)
    with tempfile.TemporaryDirectory() as folder, _quiet_logging():
        before, after = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        # Pass a file, because the tool modifies a model in memory.
        onnx.save(model, before)
        quantize_static(
            before,
            after,
            _CalibrationReader(model.graph.input[0].name, images, batch),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=not has_vnni,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(after)


class _CalibrationReader(CalibrationDataReader):
    def __init__(self, name: str, images: Iterable[NDArray[np.float32]], batch: int) -> None:
        # A batch of one repeated image has the ranges of that image.
        self._feeds: Iterator[dict[str, NDArray[np.float32]]] = (
            {name: np.repeat(x[None], batch, axis=0)} for x in images
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch by the name of the input; None after the last batch."""
        return next(self._feeds, None)


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Suppress the advice to optimise a model first: our models have nothing left to fold."""
    root, before = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
