"""`QuantisedNetwork`: int8 weights and activations of a folded graph, for the writers of files.

The arithmetic is that of Jacob et al. 2018, "Quantization and training of neural networks for
efficient integer-arithmetic-only inference": a real number is `scale * (integer - zero_point)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.graph import Graph


class Affine(NamedTuple):
    """How the int8 values of a tensor stand for real numbers: `scale * (value - zero_point)`.

    Attributes:
        scale: distance of two neighbouring values, above zero.
        zero_point: the value that stands for zero, in [-128, 127].
    """

    scale: float
    zero_point: int


@dataclass(frozen=True, eq=False)
class QuantisedNetwork:
    """A folded graph with int8 weights and the scales of its activations.

    An activation (`ACTIVATIONS`) behind a convolution, linear layer or addition that nothing else
    reads is fused with it: `activations` then has no entry for the output of the first op. Ops that
    only move or choose values (slice, shuffle, concat, max pooling, average pooling) have the same
    `Affine` for their inputs and their output, which TFLite demands.

    Attributes:
        graph: the folded graph.
        activations: scale of the output of each op by its position; a fused output has none.
        weights: int8 weights in [-127, 127] by slot name, `C_out x C_in/groups x K x K`, or
            `C_out x C_in` for a linear layer. Their zero point is 0.
        weight_scales: float32 scales `C_out` by slot name, one for each output channel.
        biases: int32 biases `C_out` by slot name. Their scale is that of the op's input times
            `weight_scales`, their zero point 0.
        calibration: normalised training images `N x C x H x W` that the ranges were found with.
    """

    graph: Graph
    activations: Mapping[int, Affine]
    weights: Mapping[str, NDArray[np.int8]]
    weight_scales: Mapping[str, NDArray[np.float32]]
    biases: Mapping[str, NDArray[np.int32]]
    calibration: NDArray[np.float32]
