"""Int8 files of networks for the NPU, and the networks that Vela compiles from them.

The cycles of a network depend on its weights, because they are stored compressed. Where a network
has none, they are drawn from a Laplace distribution, which those of trained networks resemble, with
a fixed seed. They do not depend on the scales of activations, which are made up as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nas.graph import WEIGHTED_KINDS, Graph
from nas.latency.runtime import CompiledNetwork, Weights
from nas.quantisation.made_up import made_up_network
from nas.quantisation.network import QuantisedNetwork
from nas.runtimes.ethos_u.configuration import Configuration
from nas.runtimes.ethos_u.vela import Compilation, compile_file

WEIGHT_DISTRIBUTION = "laplace"
WEIGHT_SEED = 0
"""How weights are drawn; the rows of a table record it."""

_POOL_SIZE = 1 << 20
"""Numbers from which all weights are taken: drawing each anew takes longer than compiling some."""


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
    folded = graph.folded
    own = _random_weights(folded) if weights is None else weights
    return quantised_file(made_up_network(folded, own))


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
