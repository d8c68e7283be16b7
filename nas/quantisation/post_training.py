"""Post-training quantisation: from float32 weights and ranges to a `QuantisedNetwork`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nas.graph import Graph
from nas.quantisation.network import QuantisedNetwork, WeightBits, assemble
from nas.quantisation.ranges import activations, measure, min_max

FEW_CALIBRATION_IMAGES = 16
"""Number of calibration images below which the user is told how few they are.

Ranges can be measured on fewer: values beyond them are clipped, which costs little accuracy.
"""


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
