"""Int8 networks to time: quantised with made-up scales, or with the ranges of random images.

Runtimes time them in the files that an export writes of trained networks. Latency depends on no
value, but scales must be such that runtimes fuse as they do in an export.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nas.graph import WEIGHTED_KINDS, Graph
from nas.quantisation.network import Affine, QuantisedNetwork, WeightBits, assemble, scale_groups
from nas.quantisation.ranges import effective_limits

CALIBRATION_IMAGES = 16
"""Number of images on which the ranges of activations are measured."""

ACTIVATION = Affine(float(np.float32(6 / 255)), -128)
"""Made-up scale of an activation: values in [0, 6]."""

_SIGNED = Affine(float(np.float32(12 / 255)), 0)
"""Made-up scale of an activation that can be negative: values in [-6, 6]."""

_GATE = Affine(float(np.float32(1 / 255)), -128)
"""Scale of a hard sigmoid: values in [0, 1]."""


def made_up_network(
    graph: Graph, weights: Mapping[str, NDArray[np.float32]], *, signed: bool = False
) -> QuantisedNetwork:
    """Return the int8 version of a network, with made-up scales.

    Args:
        graph: folded graph, or a part of one with several inputs.
        weights: its weights, see `nas.quantisation.network.assemble`.
        signed: whether tensors that can be negative have another scale than those that cannot, as
            a runtime may ask that optimises. Otherwise, all but gates have the same.
    """
    activations = {
        at: _GATE if op.kind == "hard_sigmoid" else ACTIVATION for at, op in enumerate(graph.ops)
    }
    if signed:
        activations |= _signed(graph)
    calibration = np.empty((0, *graph.input_shape), np.float32)
    return assemble(graph, weights, activations, calibration, 8)


def _signed(graph: Graph) -> dict[int, Affine]:
    """Return the scales of the tensors that can be negative."""
    is_negative: list[bool] = []
    for op in graph.ops:
        computes = op.kind in WEIGHTED_KINDS or op.kind == "hard_swish"
        clips = op.kind in ("input", "relu", "relu6", "hard_sigmoid")
        is_negative.append(
            computes or (not clips and any(is_negative[source] for source in op.inputs))
        )
    return {
        at: _SIGNED
        for group in scale_groups(graph)
        if any(is_negative[at] for at in group) and effective_limits(graph, group)[0] < 0
        for at in group
    }


def quantised_network(
    graph: Graph, weights: Mapping[str, NDArray[np.float32]], weight_bits: WeightBits = 8
) -> QuantisedNetwork:
    """Return the int8 version of given weights, with the ranges of random images.

    The images are not negative, like the tensors that most blocks of a network read: a runtime then
    fuses a block by itself as it does in a network.

    Args:
        graph: folded graph.
        weights: its weights, see `nas.quantisation.network.assemble`.
        weight_bits: bits of a weight.
    """
    from nas.quantisation.post_training import quantise  # Timing kernels needs no torch.

    shape = (CALIBRATION_IMAGES, *graph.input_shape)
    images = np.random.default_rng(0).random(shape, np.float32)
    return quantise(graph, weights, images, weight_bits=weight_bits)
