"""Writes a `Graph` as a TensorFlow Lite file, in float32 or int8, without tracing or conversion.

Tensors are `batch x height x width x channels`, as TensorFlow Lite has them. An int8 file computes
with integers only, apart from one operator at each end: its input and its output are float32, so
that one file can replace the other in an application.

The package `ai-edge-litert` provides the schema of the files; nothing else of it is used here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nas.graph import Graph
from nas.quantisation.network import QuantisedNetwork
from nas.tflite_model.numbers import Float32, Int8
from nas.tflite_model.writer import INPUT, OUTPUT, Writer

__all__ = ["INPUT", "OUTPUT", "model", "quantised_model"]


def model(
    graph: Graph,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the float32 file of a graph, for any batch size.

    The input is `image`, float32 `batch x height x width x channels`. The output is `logits`,
    `batch x classes`; a graph whose output is not a vector has an output
    `batch x height x width x channels`. The batch is 1 until the input is resized.

    Args:
        graph: graph to write. Norms are folded before it is written (`graph.folded`).
        weights: weights of `graph.folded`, as `nas.torch_network.folded_weights` returns them. They
            become tensors called `<slot>.weight` and `<slot>.bias`.
        metadata: texts that travel in the file, by name.

    Raises:
        ExportError: TensorFlow Lite has no counterpart of an op.
        KeyError: the weights of a slot are missing.
        ValueError: an op has an impossible shape or no slot, or weights do not fit their op.
    """
    folded = graph.folded
    return Writer(folded, Float32(folded, weights)).data(metadata or {})


def quantised_model(
    network: QuantisedNetwork,
    *,
    metadata: Mapping[str, str] | None = None,
    has_hard_swish: bool = False,
    has_float_ends: bool = True,
) -> bytes:
    """Return the int8 file of a quantised network, for any batch size.

    Weights are int8 with one scale for each output channel, biases int32, activations int8. The
    input and the output are those of `model`, in float32 unless `has_float_ends` says otherwise.

    Args:
        network: the quantised network.
        metadata: texts that travel in the file, by name.
        has_hard_swish: whether a hard swish is one operator. Accelerators have it. XNNPACK, which
            runs the file on a CPU, has none for int8 and is several times faster with the three
            operators that a hard swish is written as otherwise.
        has_float_ends: whether an operator at each end converts float32 images and logits.
            Accelerators have no float32; their input and output are int8, and their batch is 1.

    Raises:
        ExportError: TensorFlow Lite has no counterpart of an op.
        KeyError: the weights of a slot, or the scale of an output, are missing.
        ValueError: an op has an impossible shape or no slot, or weights do not fit their op.
    """
    writer = Writer(
        network.graph,
        Int8(network),
        has_hard_swish=has_hard_swish,
        has_float_ends=has_float_ends,
    )
    return writer.data(metadata or {})
