"""How the numbers of a TensorFlow Lite file are written: as float32, or as int8 with scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.graph import Graph, Op
from nas.quantisation.network import FUSED_ACTIVATIONS, LARGEST_BIAS, QuantisedNetwork
from nas.tflite_model.file import Quantisation


class Parameters(NamedTuple):
    """Weight and bias of a convolution or linear layer, in torch's layout.

    The scales are those of the output channels; None for float32.
    """

    weight: NDArray[Any]
    bias: NDArray[Any]
    weight_scales: NDArray[np.float32] | None = None
    bias_scales: NDArray[np.float32] | None = None


class Float32:
    """Writes the numbers of a folded graph as they are. Positions (`at`) are those of its ops.

    Args:
        graph: the folded graph.
        weights: its weights by slot name, and its biases by `<slot>.bias`.
    """

    dtype = np.float32

    def __init__(self, graph: Graph, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self._graph = graph
        self._weights = weights

    def quantisation(self, at: int) -> Quantisation | None:
        """Return what the integers of an op's output stand for; None for float32."""
        return None

    def fuses(self, at: int, activation: int) -> bool:
        """Return whether a convolution, linear layer or addition applies the activation itself.

        Args:
            at: position of the op.
            activation: position of the activation, the only op that reads the output.
        """
        return self._graph.ops[activation].kind in FUSED_ACTIVATIONS

    def parameters(self, at: int, activation: int | None) -> Parameters:
        """Return the parameters of a convolution or linear layer; a missing bias is zero.

        Args:
            at: position of the op.
            activation: position of the activation that it applies itself, if any.
        """
        op = self._graph.ops[at]
        weight = self._weights[op.slot_name]
        if not op.bias:
            return Parameters(weight, np.zeros(len(weight), np.float32))
        return Parameters(weight, self._weights[f"{op.slot_name}.bias"])

    def scalar(self, value: float) -> tuple[NDArray[Any], Quantisation | None]:
        """Return a positive constant."""
        return np.array([value], np.float32), None


class Int8:
    """Writes the numbers of a quantised network as integers with scales."""

    dtype = np.int8

    def __init__(self, network: QuantisedNetwork) -> None:
        self._graph = network.graph
        self._network = network

    def quantisation(self, at: int) -> Quantisation:
        """See `Float32`."""
        scale, zero_point = self._network.activations[at]
        return Quantisation(np.array([scale], np.float32), zero_point)

    def fuses(self, at: int, activation: int) -> bool:
        """See `Float32`.

        A hard sigmoid behind a weighted op is fused: in its range it is `x / 6 + 1 / 2`, which the
        parameters can include, and outside of it the output saturates.
        """
        if self._graph.ops[activation].kind != "hard_sigmoid":
            return self._graph.ops[activation].kind in FUSED_ACTIVATIONS
        op = self._graph.ops[at]
        return (
            op.slot is not None
            and spans(self.quantisation(activation), upper=1)
            and bool(np.all(self._halves(op) < LARGEST_BIAS))
        )

    def parameters(self, at: int, activation: int | None) -> Parameters:
        """See `Float32`."""
        op = self._graph.ops[at]
        weight, scales = (
            self._network.weights[op.slot_name],
            self._network.weight_scales[op.slot_name],
        )
        bias_scales = self._network.bias_scales(op)
        bias = self._network.biases[op.slot_name] if op.bias else np.zeros(len(weight), np.int32)
        if activation is not None and self._graph.ops[activation].kind == "hard_sigmoid":
            bias = bias + np.rint(self._halves(op)).astype(np.int32)
            six = np.float32(6)
            return Parameters(weight, bias, scales / six, bias_scales / six)
        return Parameters(weight, bias, scales, bias_scales)

    def scalar(self, value: float) -> tuple[NDArray[Any], Quantisation]:
        """See `Float32`."""
        return np.array([127], np.int8), Quantisation(np.array([value / 127], np.float32))

    def _halves(self, op: Op) -> NDArray[np.float64]:
        """Return 1/2 in the scales that the biases of an op have if it computes `x / 6 + 1 / 2`."""
        return 3 / self._network.bias_scales(op).astype(np.float64)


Numbers = Float32 | Int8
"""How the numbers of a graph are written."""


def spans(quantisation: Quantisation, upper: float) -> bool:
    """Return whether the integers of a tensor stand for numbers from 0 to at most `upper`."""
    (scale,) = quantisation.scales
    return quantisation.zero_point == -128 and 255 * scale <= upper * (1 + 1e-6)
