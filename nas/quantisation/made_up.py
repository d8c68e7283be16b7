"""Int8 networks to time: quantised with made-up scales, or with the ranges of random images.

Runtimes time them in the files that an export writes of trained networks. Latency depends on no
value, but scales must be such that runtimes fuse as they do in an export.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nas.graph import WEIGHTED_KINDS, Graph
from nas.quantisation.network import Affine, QuantisedNetwork, WeightBits

CALIBRATION_IMAGES = 16
"""Number of images on which the ranges of activations are measured."""

ACTIVATION = Affine(float(np.float32(6 / 255)), -128)
"""Made-up scale of an activation: values in [0, 6]."""

_GATE = Affine(float(np.float32(1 / 255)), -128)
"""Scale of a hard sigmoid: values in [0, 1]."""


def made_up_network(graph: Graph, rng: np.random.Generator) -> QuantisedNetwork:
    """Return a network of random int8 weights, with one scale for all activations but gates.

    Args:
        graph: folded graph, or a part of one with several inputs.
        rng: generator of the weights.
    """
    activations = {
        at: _GATE if op.kind == "hard_sigmoid" else ACTIVATION for at, op in enumerate(graph.ops)
    }
    weights: dict[str, NDArray[np.int8]] = {}
    scales: dict[str, NDArray[np.float32]] = {}
    biases: dict[str, NDArray[np.int32]] = {}
    for op in graph.ops:
        if op.kind not in WEIGHTED_KINDS:
            continue
        inputs = graph.input_channels(op) // op.groups
        shape = (op.shape[0], inputs, op.kernel, op.kernel)[: 4 if op.kind == "conv" else 2]
        weights[op.slot_name] = rng.integers(-127, 128, shape, np.int8)
        # Sums of products have about the size of one product.
        scale = 1 / (127 * np.sqrt(np.prod(shape[1:])))
        scales[op.slot_name] = np.full(shape[0], scale, np.float32)
        if op.bias:
            biases[op.slot_name] = rng.integers(-999, 1000, shape[0], np.int32)
    calibration = np.empty((0, *graph.input_shape), np.float32)
    return QuantisedNetwork(graph, activations, weights, scales, biases, calibration)


def quantised_network(
    graph: Graph, weights: Mapping[str, NDArray[np.float32]], weight_bits: WeightBits = 8
) -> QuantisedNetwork:
    """Return the int8 version of given weights, with the ranges of random images.

    The images are not negative, like the tensors that most blocks of a network read: a runtime then
    fuses a block by itself as it does in a network.

    Args:
        graph: folded graph.
        weights: its weights, named as in `nas.torch_network.folded_weights`.
        weight_bits: bits of a weight.
    """
    from nas.quantisation.post_training import quantise  # Timing kernels needs no torch.

    shape = (CALIBRATION_IMAGES, *graph.input_shape)
    images = np.random.default_rng(0).random(shape, np.float32)
    return quantise(graph, weights, images, weight_bits=weight_bits)
