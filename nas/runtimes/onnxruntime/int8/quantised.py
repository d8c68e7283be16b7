"""Quantises ONNX models with ONNX Runtime's own tool."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
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


def quantised(
    model: onnx.ModelProto,
    images: Iterable[NDArray[np.float32]],
    features: Collection[str],
    batch: int = 1,
) -> onnx.ModelProto:
    """The model with its weights and activations in eight bits; inputs and outputs stay float32.

    It is written with pairs of quantising and dequantising nodes (QDQ), which ONNX Runtime fuses.
    Activations are unsigned, weights signed, symmetric and scaled by output channel, as ONNX
    Runtime's documentation recommends for x64: see `quantize_static`. Here, signed activations were
    slower in eleven of twelve comparisons, by up to four times, since some of their convolutions
    stay in float32.

    Args:
        model: float32, with a fixed batch size.
        images: `channels x height x width`, from which the ranges of activations are taken.
        features: of the processor. Without VNNI instructions, sums of products of eight bits can
            overflow; weights have seven there, as the documentation recommends.
        batch: the model's.
    """
    has_vnni = any("vnni" in feature for feature in features)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, after = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        # A file, since the tool changes a model that it is handed.
        onnx.save(model, before)
        quantize_static(
            before,
            after,
            _Images(model.graph.input[0].name, images, batch),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=not has_vnni,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(after)


class _Images(CalibrationDataReader):
    def __init__(self, name: str, images: Iterable[NDArray[np.float32]], batch: int) -> None:
        # An image repeated has the ranges that it has alone.
        self._feeds: Iterator[dict[str, NDArray[np.float32]]] = (
            {name: np.repeat(x[None], batch, axis=0)} for x in images
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch by the input's name; None behind the last."""
        return next(self._feeds, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice to optimise a model first: ours have nothing left to fold."""
    root, before = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
