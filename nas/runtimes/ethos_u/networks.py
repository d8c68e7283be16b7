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

from nas.graph import WEIGHTED_KINDS, Graph
from nas.latency.runtime import CompiledNetwork, Weights
from nas.quantisation.network import (
    SHARED_SCALE_KINDS,
    Affine,
    QuantisedNetwork,
    assemble,
    scale_groups,
)
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
    """Return a network with int8 weights, and with scales of activations that mean nothing.

    Args:
        graph: the network.
        weights: float32 weights of the folded graph; None for random ones.
    """
    folded = graph.folded
    own = _random_weights(folded) if weights is None else weights
    return assemble(folded, own, _affines(folded), np.empty(0, np.float32), 8)


def quantised_file(network: QuantisedNetwork) -> bytes:
    """Return the int8 TensorFlow Lite file of a quantised network, without float32 at its ends."""
    from nas import tflite_model  # Imports the schema of ai-edge-litert.

    return tflite_model.quantised_model(network, for_accelerator=True)


@cache
def _laplace_pool() -> NDArray[np.float32]:
    rng = np.random.default_rng(WEIGHT_SEED)
    return np.tile(rng.laplace(size=_POOL_SIZE).astype(np.float32), 2)


def _random_weights(graph: Graph) -> dict[str, NDArray[np.float32]]:
    """Return weights from parts of the pool that start at random places."""
    rng = np.random.default_rng(WEIGHT_SEED)
    weights: dict[str, NDArray[np.float32]] = {}
    for op in graph.ops:
        if op.kind in WEIGHTED_KINDS:
            shape, start = graph.weight_shape(op), int(rng.integers(_POOL_SIZE))
            values = _laplace_pool()[start : start + _POOL_SIZE]
            weights[op.slot_name] = np.resize(values[: math.prod(shape)], shape)
            weights[f"{op.slot_name}.bias"] = rng.integers(-999, 1000, shape[0]).astype(np.float32)
    return weights


def _affines(graph: Graph) -> dict[int, Affine]:
    """Return what the values of each op's output stand for, as in a calibrated network."""
    affines: dict[int, Affine] = {}
    for group in scale_groups(graph):
        kinds = {graph.ops[at].kind for at in group} - SHARED_SCALE_KINDS
        if kinds == {"hard_sigmoid"}:
            own = _UNIT
        else:
            own = _NON_NEGATIVE if kinds <= {"relu", "relu6"} else _SIGNED
        affines |= dict.fromkeys(group, own)
    return affines
