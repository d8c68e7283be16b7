"""Ranges of activations: measured on images, and turned into the scales of int8 tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nas.graph import Graph
from nas.quantisation.network import SHARED_SCALE_KINDS, Affine, scale_groups

if TYPE_CHECKING:
    import torch

BINS = 2048
"""Bins of a histogram: eight for each of the 256 values of an int8 tensor."""

_MIN_SCALE = 2.0**-20
"""Smallest scale. A tensor that is always zero has it, and its readers still have finite biases."""

_CANDIDATES = np.linspace(0.2, 1, 81)
"""Limits that `least_squares` tries, as fractions of the largest absolute value."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Values of all tensors that share an `Affine`.

    Attributes:
        low, high: the smallest and the largest value.
        counts: number of values in each of `BINS` bins of equal width between them.
    """

    low: float
    high: float
    counts: NDArray[np.int64]


_ACTIVATION_LIMITS = {
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "hard_swish": (-3.0, math.inf),
    "hard_sigmoid": (-3.0, 3.05),
}
"""Inputs of activations beyond which the output stays what it is at the limit.

If the upper one of the hard sigmoid were 3, inputs would be multiples of 6 / 255 and all outputs in
the middle of two multiples of 1 / 255, so that runtimes would round each of them to either.
"""

RangeMethod = Callable[[Histogram], tuple[float, float]]
"""Returns the range of real numbers that int8 values are spread over."""


def effective_limits(graph: Graph, group: Sequence[int]) -> tuple[float, float]:
    """Return the limits beyond which the values of tensors have the effect of the nearest limit.

    Activations that clip their input have limits. Integers for values beyond would be wasted.
    """
    readers = {reader for at in group for reader in graph.consumers[at]} - set(group)
    kinds = [graph.ops[reader].kind for reader in readers]
    if len(graph.ops) - 1 in group:
        kinds.append("output")
    limits = [_ACTIVATION_LIMITS.get(kind, (-math.inf, math.inf)) for kind in kinds]
    return min(low for low, _ in limits), max(high for _, high in limits)


def measure(
    graph: Graph, weights: Mapping[str, NDArray[np.float32]], images: NDArray[np.float32]
) -> list[Histogram]:
    """Return the histogram of each of `scale_groups` while a network classifies images.

    Values beyond `effective_limits` are counted at the limit.

    Args:
        graph: folded graph.
        weights: its weights, named as in `folded_weights`.
        images: normalised images `N x C x H x W`.
    """
    import torch

    from nas.quantisation.simulation import run_batches
    from nas.torch_network import FoldedWeights

    groups = scale_groups(graph)
    limits = [effective_limits(graph, group) for group in groups]
    # Ops that share the scale of their inputs repeat values of the group's other tensors.
    group_of = {
        at: number
        for number, group in enumerate(groups)
        for at in group
        if graph.ops[at].kind not in SHARED_SCALE_KINDS
    }
    lows, highs = [0.0] * len(groups), [0.0] * len(groups)
    counts = torch.zeros(len(groups), BINS, dtype=torch.float64)

    def find_extremes(at: int, x: torch.Tensor) -> torch.Tensor:
        if at in group_of:
            number = group_of[at]
            low, high = torch.aminmax(x.clamp(*limits[number]))
            lows[number] = min(lows[number], float(low))
            highs[number] = max(highs[number], float(high))
        return x

    def count(at: int, x: torch.Tensor) -> torch.Tensor:
        if at in group_of:
            number = group_of[at]
            low, high = lows[number], highs[number]
            if low < high:
                counts[number] += torch.histc(x.clamp(low, high), BINS, low, high)
            else:  # histc takes equal limits as a request to find them.
                counts[number, 0] += x.numel()
        return x

    tensors = FoldedWeights({name: torch.from_numpy(each) for name, each in weights.items()})
    for visit in (find_extremes, count):
        run_batches(graph, images, tensors, visit)
    return [
        Histogram(*each) for each in zip(lows, highs, counts.numpy().astype(np.int64), strict=True)
    ]


def activations(
    graph: Graph, histograms: Sequence[Histogram], method: RangeMethod
) -> dict[int, Affine]:
    """Return the `Affine` of each tensor that is rounded to int8, by the position of its op."""
    groups = scale_groups(graph)
    affines = [affine(*method(histogram)) for histogram in histograms]
    return {at: each for group, each in zip(groups, affines, strict=True) for at in group}


def affine(low: float, high: float) -> Affine:
    """Return the scale and zero point that spread int8 values over a range and zero.

    Zero has a value of its own, because convolutions pad with zeros (Jacob et al. 2018, section
    2.1).
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(float(np.float32((high - low) / 255)), _MIN_SCALE)
    return Affine(scale, int(np.clip(round(-128 - low / scale), -128, 127)))


def min_max(histogram: Histogram) -> tuple[float, float]:
    """Return the whole range."""
    return histogram.low, histogram.high


def least_squares(histogram: Histogram) -> tuple[float, float]:
    """Return the range with the least mean squared error of rounding and clipping.

    The candidates cut off values beyond a limit on both sides of zero, so that a range whose
    negative part is short, such as that of a hard swish, keeps this part whole.
    """
    edges = np.linspace(histogram.low, histogram.high, BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    largest = max(-histogram.low, histogram.high)
    ranges = [
        (max(histogram.low, -limit), min(histogram.high, limit)) for limit in largest * _CANDIDATES
    ]

    def error(bounds: tuple[float, float]) -> float:
        scale, zero_point = affine(*bounds)
        values = np.clip(np.rint(centres / scale) + zero_point, -128, 127)
        return float(histogram.counts @ (scale * (values - zero_point) - centres) ** 2)

    # Among equal errors the widest range counts.
    return min(reversed(ranges), key=error)
