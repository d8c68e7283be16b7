"""`QuantisedNetwork`: a folded graph with int8 weights and activations, for the writers of files.

The arithmetic is that of Jacob et al. 2018, "Quantization and training of neural networks for
efficient integer-arithmetic-only inference": a real number is `scale * (integer - zero_point)`.

Which tensors are rounded to int8:

- The images and the output of every op are, with one exception. A ReLU or ReLU6 that alone reads
  the output of a convolution, linear layer or addition is fused with it (`fused_activation`): the
  output of the first op is not rounded and has no `Affine`, the output of the activation has one.
- No other activation is fused. The output of a convolution before a hard swish has an `Affine`, and
  so has the output of the hard swish.
- Tensors inside of one op, such as the hard sigmoid in a hard swish, are the writer's business.
- The inputs and the output of an op that only moves, chooses or averages values have one `Affine`
  (`SHARED_SCALE_KINDS`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.graph import WEIGHTED_KINDS, Graph, Op
from nas.machine.this_machine import processor

FUSED_ACTIVATIONS = {"relu": math.inf, "relu6": 6.0}
"""Activations that clip to 0 and an upper limit: runtimes fuse them with the op before, at the cost
of nothing."""

FUSING_KINDS = frozenset({"conv", "linear", "add"})
"""Ops that runtimes fuse an activation with."""

SHARED_SCALE_KINDS = frozenset({"slice", "shuffle", "concat", "max_pool", "avg_pool"})
"""Ops whose inputs and output have one `Affine`, which TFLite demands and which costs no time."""

WeightBits = Literal[7, 8]
"""Bits of a weight. Processors of the x86 family without VNNI instructions add products in 16 bits,
which overflow with weights of eight bits and unsigned activations (ONNX Runtime's documentation,
"Quantize ONNX models", section on U8S8)."""

LARGEST_WEIGHT: dict[WeightBits, int] = {7: 63, 8: 127}
"""Largest integer of a weight by its bits; the smallest is its negative."""

LARGEST_BIAS = 1 << 30
"""Largest int32 bias: half of what the accumulator holds stays for the products."""

_MIN_WEIGHT_SCALE = 2.0**-24
"""Smallest scale of a weight, that of a channel of zeros."""


def native_weight_bits() -> WeightBits:
    """Return the bits of weights that this processor multiplies with uint8 without overflow."""
    features = processor()[1]
    is_x86 = any(each.startswith(("avx", "sse")) for each in features)
    return 7 if is_x86 and not any("vnni" in each for each in features) else 8


class Affine(NamedTuple):
    """How the int8 values of a tensor stand for real numbers: `scale * (value - zero_point)`.

    Attributes:
        scale: distance of two neighbouring values, above zero, exact in float32.
        zero_point: the value that stands for zero, in [-128, 127].
    """

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The smallest real number that a value stands for."""
        return self.scale * (-128 - self.zero_point)

    @property
    def high(self) -> float:
        """The largest real number that a value stands for."""
        return self.scale * (127 - self.zero_point)


def fused_activation(graph: Graph, at: int) -> int | None:
    """Return the position of the ReLU or ReLU6 that is fused with an op; None if there is none."""
    if graph.ops[at].kind not in FUSING_KINDS or len(graph.consumers[at]) != 1:
        return None
    (reader,) = graph.consumers[at]
    return reader if graph.ops[reader].kind in FUSED_ACTIVATIONS else None


def scale_groups(graph: Graph) -> list[tuple[int, ...]]:
    """Return the positions of the tensors that share an `Affine`, for each `Affine`.

    The positions of all groups together are those that `QuantisedNetwork.activations` has.
    """
    group = list(range(len(graph.ops)))
    for at, op in enumerate(graph.ops):
        if op.kind in SHARED_SCALE_KINDS:
            joined = {group[source] for source in op.inputs}
            group = [at if each in joined else each for each in group]
    members: dict[int, list[int]] = {}
    for at in range(len(graph.ops)):
        if fused_activation(graph, at) is None:
            members.setdefault(group[at], []).append(at)
    return [tuple(positions) for positions in members.values()]


@dataclass(frozen=True, eq=False)
class QuantisedNetwork:
    """A folded graph with int8 weights and the scales of its activations.

    Attributes:
        graph: the folded graph.
        activations: `Affine` of the output of each op by its position, of the images at 0. The
            module says which ops have none.
        weights: int8 weights in [-127, 127] by slot name, `C_out x C_in/groups x K x K`, or
            `C_out x C_in` for a linear layer. Their zero point is 0.
        weight_scales: float32 scales `C_out` by slot name, one for each output channel.
        biases: int32 biases `C_out` by slot name, for ops with a bias. Their scales are
            `bias_scales`, their zero points 0.
        calibration: normalised training images `N x C x H x W` that the ranges were measured on.
    """

    graph: Graph
    activations: Mapping[int, Affine]
    weights: Mapping[str, NDArray[np.int8]]
    weight_scales: Mapping[str, NDArray[np.float32]]
    biases: Mapping[str, NDArray[np.int32]]
    calibration: NDArray[np.float32]

    def bias_scales(self, op: Op) -> NDArray[np.float32]:
        """Return the scales `C_out` of an op's bias: its input's scale times the weight's."""
        return np.float32(self.activations[op.inputs[0]].scale) * self.weight_scales[op.slot_name]

    @cached_property
    def dequantised(self) -> Mapping[str, NDArray[np.float32]]:
        """The real numbers that weights and biases stand for, named as in `folded_weights`."""
        tensors: dict[str, NDArray[np.float32]] = {}
        for op in self.graph.ops:
            if op.kind in WEIGHTED_KINDS:
                weight = self.weights[op.slot_name]
                scales = self.weight_scales[op.slot_name]
                tensors[op.slot_name] = weight * scales.reshape(-1, *[1] * (weight.ndim - 1))
                if op.bias:
                    bias = self.biases[op.slot_name] * self.bias_scales(op).astype(np.float64)
                    tensors[f"{op.slot_name}.bias"] = bias.astype(np.float32)
        return tensors


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
    for_bias = np.abs(bias) / (LARGEST_BIAS * input_scale)
    return np.maximum(np.maximum(largest, for_bias), _MIN_WEIGHT_SCALE).astype(np.float32)
