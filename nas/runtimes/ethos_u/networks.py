"""Int8 files of networks for the NPU, and the networks that Vela compiles from them.

The cycles of a network depend on its weights, because they are stored compressed. Where a network
has none, they are drawn from a Laplace distribution, which those of trained networks resemble, with
a fixed seed. They do not depend on the scales of activations beyond which of them are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nas.graph import WEIGHTED_KINDS, Graph, Op
from nas.latency.runtime import CompiledNetwork, Weights
from nas.quantisation.network import SHARED_SCALE_KINDS, Affine, QuantisedNetwork
from nas.runtimes.ethos_u.configuration import Configuration
from nas.runtimes.ethos_u.vela import Compilation, compile_file

WEIGHT_DISTRIBUTION = "laplace"
WEIGHT_SEED = 0
"""How weights are drawn; the rows of a table record it."""

_POOL_SIZE = 1 << 20
"""Numbers from which all weights are taken: drawing each anew takes longer than compiling some."""

_SIGNED = Affine(0.03, 4)
_NON_NEGATIVE = Affine(0.02, -128)
_UNIT = Affine(1 / 255, -128)
"""What the int8 values of activations stand for: those of any sign, those of a ReLU, and gates."""

_WEIGHT_SCALE = np.float32(2e-3)


class EthosUNetwork(CompiledNetwork):
    """A whole network with the cycles that Vela estimates for it.

    Args:
        graph: the network.
        weights: weights of the folded graph; None for random ones.
        configuration: the system to compile for.

    Raises:
        MeasurementError: Vela cannot compile the network for the NPU alone.
    """

    def __init__(self, graph: Graph, weights: Weights | None, configuration: Configuration) -> None:
        self._clock_hz = configuration.clock_hz
        self.compilation: Compilation = compile_file(file_of(graph, weights), configuration)

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Return the seconds of the estimated cycles, always the same."""
        return [self.compilation.cycles / self._clock_hz] * samples


def file_of(graph: Graph, weights: Weights | None = None) -> bytes:
    """Return the int8 TensorFlow Lite file of a network, whose input and output are int8, too.

    Args:
        graph: the network.
        weights: float32 weights of the folded graph; None for random ones.
    """
    return quantised_file(uncalibrated_network(graph, weights))


def uncalibrated_network(graph: Graph, weights: Weights | None = None) -> QuantisedNetwork:
    """Return a network with int8 weights, and with biases and scales that mean nothing.

    Args:
        graph: the network.
        weights: float32 weights of the folded graph; None for random ones.
    """
    folded = graph.folded
    rng = np.random.default_rng(WEIGHT_SEED)
    integers: dict[str, NDArray[np.int8]] = {}
    biases: dict[str, NDArray[np.int32]] = {}
    scales: dict[str, NDArray[np.float32]] = {}
    for op in folded.ops:
        if op.kind in WEIGHTED_KINDS:
            slot, shape = op.slot_name, _weight_shape(folded, op)
            real = _random_weights(shape, rng) if weights is None else weights[slot]
            integers[slot] = _rounded(real)
            biases[slot] = rng.integers(-999, 1000, shape[0], np.int32)
            scales[slot] = np.full(shape[0], _WEIGHT_SCALE)
    return QuantisedNetwork(
        folded, _affines(folded), integers, scales, biases, np.empty(0, np.float32)
    )


def quantised_file(network: QuantisedNetwork) -> bytes:
    """Return the int8 TensorFlow Lite file of a quantised network, without float32 at its ends."""
    from nas import tflite_model  # Imports the schema of ai-edge-litert.

    return tflite_model.quantised_model(network, has_hard_swish=True, has_float_ends=False)


def _weight_shape(graph: Graph, op: Op) -> tuple[int, ...]:
    shape = (op.shape[0], graph.input_channels(op) // op.groups, op.kernel, op.kernel)
    return shape if op.kind == "conv" else shape[:2]


@cache
def _laplace_pool() -> NDArray[np.float32]:
    rng = np.random.default_rng(WEIGHT_SEED)
    return np.tile(rng.laplace(size=_POOL_SIZE).astype(np.float32), 2)


def _random_weights(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return weights from a part of the pool that starts at a random place."""
    count, start = math.prod(shape), int(rng.integers(_POOL_SIZE))
    values = _laplace_pool()[start : start + _POOL_SIZE]
    return (values[:count] if count <= _POOL_SIZE else np.resize(values, count)).reshape(shape)


def _rounded(weight: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return weights as integers, the largest of each output channel as 127."""
    rows = weight.reshape(len(weight), -1)
    largest = np.abs(rows).max(1, keepdims=True)
    return (
        np.rint(rows * (127 / np.where(largest > 0, largest, 1)))
        .astype(np.int8)
        .reshape(weight.shape)
    )


def _affines(graph: Graph) -> dict[int, Affine]:
    """Return what the values of each op's output stand for.

    Inputs and outputs of `SHARED_SCALE_KINDS` have one scale, as in a calibrated network.
    """
    groups = list(range(len(graph.ops)))
    for at, op in enumerate(graph.ops):
        if op.kind in SHARED_SCALE_KINDS:
            joined = {groups[source] for source in op.inputs} | {groups[at]}
            groups = [min(joined) if group in joined else group for group in groups]
    affines = {}
    for at in range(len(graph.ops)):
        kinds = {
            op.kind
            for op, group in zip(graph.ops, groups, strict=True)
            if group == groups[at] and op.kind not in SHARED_SCALE_KINDS
        }
        if kinds == {"hard_sigmoid"}:
            affines[at] = _UNIT
        else:
            affines[at] = _NON_NEGATIVE if kinds <= {"relu", "relu6"} else _SIGNED
    return affines
