"""How the numbers of a TensorFlow Lite file are written: as float32, or as int8 with scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nas.graph import Graph, Op
from nas.quantisation.network import FUSED_ACTIVATIONS, QuantisedNetwork
from nas.tflite_model.file import Quantisation

_LARGEST_BIAS = 1 << 30
"""Largest integer to add to a bias: half of what an accumulator holds stays for the products."""


class Parameters(NamedTuple):
    """Weight and bias of a convolution or linear layer, in torch's layout.

    The scales are those of the output channels; None for float32.
    """

    weight: NDArray[Any]
    bias: NDArray[Any]
    weight_scales: NDArray[np.float32] | None = None
    bias_scales: NDArray[np.float32] | None = None


class Numbers(Protocol):
    """How the numbers of a graph are written. Positions (`at`) are those of its ops."""

    dtype: type[np.generic]

    def quantisation(self, at: int) -> Quantisation | None:
        """Return what the integers of an op's output stand for; None for float32."""
        ...

    def fuses(self, at: int, activation: int) -> bool:
        """Return whether a convolution, linear layer or addition applies the activation itself.

        Args:
            at: position of the op.
            activation: position of the activation, the only op that reads the output.
        """
        ...

    def parameters(self, at: int, activation: int | None) -> Parameters:
        """Return the parameters of a convolution or linear layer; a missing bias is zero.

        Args:
            at: position of the op.
            activation: position of the activation that it applies itself, if any.
        """
        ...

    def scalar(self, value: float) -> tuple[NDArray[Any], Quantisation | None]:
        """Return a positive constant."""
        ...


class Float32:
    """Writes the numbers of a folded graph as they are.

    Args:
        graph: the folded graph.
        weights: its weights by slot name, and its biases by `<slot>.bias`.
    """

    dtype: type[np.generic] = np.float32

    def __init__(self, graph: Graph, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self._graph = graph
        self._weights = weights

    def quantisation(self, at: int) -> None:
        """See `Numbers`."""
        return

    def fuses(self, at: int, activation: int) -> bool:
        """See `Numbers`."""
        return self._graph.ops[activation].kind in FUSED_ACTIVATIONS

    def parameters(self, at: int, activation: int | None) -> Parameters:
        """See `Numbers`."""
        op = self._graph.ops[at]
        slot, shape = op.slot_name, self._graph.weight_shape(op)
        weight = _checked(self._weights[slot], f"{slot}.weight", shape, np.float32)
        if not op.bias:
            return Parameters(weight, np.zeros(shape[0], np.float32))
        bias = _checked(self._weights[f"{slot}.bias"], f"{slot}.bias", shape[:1], np.float32)
        return Parameters(weight, bias)

    def scalar(self, value: float) -> tuple[NDArray[Any], None]:
        """See `Numbers`."""
        return np.array([value], np.float32), None


class Int8:
    """Writes the numbers of a quantised network as integers with scales."""

    dtype: type[np.generic] = np.int8

    def __init__(self, network: QuantisedNetwork) -> None:
        self._graph = network.graph
        self._network = network

    def quantisation(self, at: int) -> Quantisation:
        """See `Numbers`."""
        scale, zero_point = self._network.activations[at]
        return Quantisation(np.array([scale], np.float32), zero_point)

    def fuses(self, at: int, activation: int) -> bool:
        """See `Numbers`.

        A hard sigmoid behind a weighted op is fused: in its range it is `x / 6 + 1 / 2`, which the
        parameters can include, and outside of it the output saturates.
        """
        if self._graph.ops[activation].kind != "hard_sigmoid":
            return self._graph.ops[activation].kind in FUSED_ACTIVATIONS
        op = self._graph.ops[at]
        return (
            op.slot is not None
            and spans(self.quantisation(activation), upper=1)
            and bool(np.all(self._halves(op) < _LARGEST_BIAS))
        )

    def parameters(self, at: int, activation: int | None) -> Parameters:
        """See `Numbers`."""
        op = self._graph.ops[at]
        slot, shape = op.slot_name, self._graph.weight_shape(op)
        weight = _checked(self._network.weights[slot], f"{slot}.weight", shape, np.int8)
        scales: NDArray[np.float32] = _checked(
            self._network.weight_scales[slot], f"scales of {slot}", shape[:1], np.float32
        )
        bias_scales = self._network.bias_scales(op)
        bias = np.zeros(shape[0], np.int32)
        if op.bias:
            bias = _checked(self._network.biases[slot], f"{slot}.bias", shape[:1], np.int32)
        if activation is not None and self._graph.ops[activation].kind == "hard_sigmoid":
            bias = bias + np.rint(self._halves(op)).astype(np.int32)
            six = np.float32(6)
            return Parameters(weight, bias, scales / six, bias_scales / six)
        return Parameters(weight, bias, scales, bias_scales)

    def scalar(self, value: float) -> tuple[NDArray[Any], Quantisation]:
        """See `Numbers`."""
        return np.array([127], np.int8), Quantisation(np.array([value / 127], np.float32))

    def _halves(self, op: Op) -> NDArray[np.float64]:
        """Return 1/2 in the scales that the biases of an op have if it computes `x / 6 + 1 / 2`."""
        return 3 / self._network.bias_scales(op).astype(np.float64)


def spans(quantisation: Quantisation, upper: float) -> bool:
    """Return whether the integers of a tensor stand for numbers from 0 to at most `upper`."""
    (scale,) = quantisation.scales
    return quantisation.zero_point == -128 and 255 * scale <= upper * (1 + 1e-6)


def _checked(
    array: NDArray[Any], name: str, shape: tuple[int, ...], dtype: type[np.generic]
) -> NDArray[Any]:
    if array.shape != shape or array.dtype != dtype:
        expected = f"{np.dtype(dtype)} {shape}"
        raise ValueError(f"{name} is {array.dtype} {array.shape}, not {expected}")
    return array
