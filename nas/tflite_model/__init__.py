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
from nas.tflite_model.writer import Writer

__all__ = ["model", "quantised_model"]


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
    """
    folded = graph.folded
    return Writer(folded, Float32(folded, weights)).data(metadata or {})


def quantised_model(
    network: QuantisedNetwork,
    *,
    metadata: Mapping[str, str] | None = None,
    for_accelerator: bool = False,
    for_micro: bool = False,
) -> bytes:
    """Return the int8 file of a quantised network, for any batch size.

    Weights are int8 with one scale for each output channel, biases int32, activations int8. The
    input and the output are those of `model`, in float32 unless the file is for an accelerator.

    Args:
        network: the quantised network.
        metadata: texts that travel in the file, by name.
        for_accelerator: whether the file is for an accelerator or a microcontroller, which have no
            float32: the input and the output are int8, and the batch is 1. A hard swish is then one
            operator. XNNPACK, which runs the file on a CPU otherwise, has none for int8 and is
            several times faster with three operators.
        for_micro: whether the file is for TensorFlow Lite Micro on such a device. Its older copies
            read the first scale alone of a FULLY_CONNECTED operator, whatever its version is, so
            that linear layers are convolutions there, which have scales by channel in all copies.

    Raises:
        ExportError: TensorFlow Lite has no counterpart of an op.
        KeyError: the weights of a slot, or the scale of an output, are missing.
    """
    writer = Writer(
        network.graph,
        Int8(network),
        for_accelerator=for_accelerator or for_micro,
        has_linear=not for_micro,
    )
    return writer.data(metadata or {})
