"""Whole networks, written as TensorFlow Lite files like those that are exported."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nas import tflite_model
from nas.graph import Graph
from nas.latency.networks import random_weights
from nas.latency.runtime import CompiledNetwork, Weights
from nas.quantisation.made_up import made_up_network, quantised_network
from nas.runtimes.files import File


class LiteRtNetwork(CompiledNetwork):
    """A network in LiteRT's interpreter. See `nas.latency.runtime.CompiledNetwork`.

    Args:
        file: the file of `network_file`, loaded for batches of this size.
        batch: number of images that run at once.
    """

    def __init__(self, file: File, batch: int = 1) -> None:
        self._file, self._batch = file, batch

    def reloaded(self) -> LiteRtNetwork:
        """See `CompiledNetwork.reloaded`."""
        self._file.reload()
        return self

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs, flat and channels first. See `CompiledNetwork.run`."""
        images = image if self._batch > 1 else image[None]
        output = self._file.run({"images": np.ascontiguousarray(images.transpose(0, 2, 3, 1))})
        if output.ndim == 4:
            output = output.transpose(0, 3, 1, 2)
        flat = output.reshape(self._batch, -1)
        return flat if self._batch > 1 else flat[0]

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Time inferences on an input that is already in place."""
        return self._file.evaluate(calls, samples)


def network_file(graph: Graph, weights: Weights | None, dtype: str) -> bytes:
    """Return the file of a network, for any batch size.

    Args:
        graph: the network.
        weights: weights of the folded graph; None for random ones.
        dtype: `float32` or `int8`.
    """
    folded = graph.folded
    own = random_weights(folded, np.random.default_rng(0)) if weights is None else weights
    if dtype == "float32":
        return tflite_model.model(folded, own)
    quantise = made_up_network if weights is None else quantised_network
    return tflite_model.quantised_model(quantise(folded, own))
