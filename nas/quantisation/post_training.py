"""Post-training quantisation: from float32 weights and ranges to a `QuantisedNetwork`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nas.graph import WEIGHTED_KINDS, Graph
from nas.quantisation.network import Affine, QuantisedNetwork, WeightBits
from nas.quantisation.ranges import activations, measure, min_max

FEW_CALIBRATION_IMAGES = 16
"""Number of calibration images below which the user is told how few they are.

Ranges can be measured on fewer: values beyond them are clipped, which costs little accuracy.
"""

LARGEST_WEIGHT: dict[WeightBits, int] = {7: 63, 8: 127}
"""Largest integer of a weight by its bits; the smallest is its negative."""

_LARGEST_BIAS = 1 << 30
"""Largest int32 bias: half of what the accumulator holds stays for the products."""

_MIN_WEIGHT_SCALE = 2.0**-24
"""Smallest scale of a weight, that of a channel of zeros."""


def quantise(
    graph: Graph,
    weights: Mapping[str, NDArray[np.float32]],
    calibration: NDArray[np.float32],
    *,
    weight_bits: WeightBits = 8,
) -> QuantisedNetwork:
    """Return the int8 version of a network, with the whole ranges of its activations.

    Weights have a scale for each output channel; `nas.quantisation.network` says which activations
    share theirs.

    Args:
        graph: folded graph.
        weights: its weights, named as in `folded_weights`.
        calibration: normalised training images `N x C x H x W`, at least one.
        weight_bits: bits of a weight.
    """
    affines = activations(graph, measure(graph, weights, calibration), min_max)
    return assemble(graph, weights, affines, calibration, weight_bits)


def clipped_share(images: int) -> float:
    """Return the share of new images in which the largest value of a tensor is clipped.

    The largest of `images + 1` values of one distribution is equally likely in each of them.

    Args:
        images: number of images that the whole range of the tensor was measured on.
    """
    return 1 / (images + 1)


def assemble(
    graph: Graph,
    weights: Mapping[str, NDArray[np.float32]],
    affines: Mapping[int, Affine],
    calibration: NDArray[np.float32],
    weight_bits: WeightBits,
) -> QuantisedNetwork:
    """Return the int8 version of float32 weights.

    Args:
        graph: folded graph.
        weights: its weights, named as in `folded_weights`.
        affines: see `QuantisedNetwork.activations`.
        calibration: see `QuantisedNetwork.calibration`.
        weight_bits: bits of a weight.
    """
    integers: dict[str, NDArray[np.int8]] = {}
    scales: dict[str, NDArray[np.float32]] = {}
    biases: dict[str, NDArray[np.int32]] = {}
    for op in graph.ops:
        if op.kind not in WEIGHTED_KINDS:
            continue
        slot, input_scale = op.slot_name, affines[op.inputs[0]].scale
        bias = weights[f"{slot}.bias"] if op.bias else np.zeros(op.shape[0], np.float32)
        scales[slot] = weight_scales(weights[slot], bias, input_scale, weight_bits)
        by_channel = scales[slot].reshape(-1, *[1] * (weights[slot].ndim - 1))
        integers[slot] = np.rint(weights[slot] / by_channel).astype(np.int8)
        if op.bias:
            bias_scales = np.float32(input_scale) * scales[slot]
            biases[slot] = np.rint(bias / bias_scales.astype(np.float64)).astype(np.int32)
    return QuantisedNetwork(graph, affines, integers, scales, biases, calibration)


def weight_scales(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    input_scale: float,
    weight_bits: WeightBits = 8,
) -> NDArray[np.float32]:
    """Return the scale of each output channel: its largest weight is the largest integer.

    A channel of tiny weights and a large bias gets a larger scale, with which the bias fits into
    its 32 bits.
    """
    largest = np.abs(weight).reshape(len(weight), -1).max(1) / LARGEST_WEIGHT[weight_bits]
    for_bias = np.abs(bias) / (_LARGEST_BIAS * input_scale)
    return np.maximum(np.maximum(largest, for_bias), _MIN_WEIGHT_SCALE).astype(np.float32)
