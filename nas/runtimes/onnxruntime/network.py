"""Whole networks, written as ONNX models like those of an export, for any batch size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from nas import onnx_model
from nas.errors import MeasurementError
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.networks import random_weights
from nas.latency.runtime import CompiledNetwork, Weights
from nas.quantisation.made_up import quantised_network
from nas.quantisation.network import native_weight_bits
from nas.runtimes.files import Files
from nas.runtimes.onnxruntime.nodes import PlacedNode, optimised_nodes


class OnnxRuntimeNetwork(CompiledNetwork):
    """A network in a session. See `nas.latency.runtime.CompiledNetwork`.

    Args:
        graph: the network.
        weights: weights of the folded graph; None for random ones.
        dtype: `float32`, or `int8` for a network that is quantised as an export does.
        kernels: the kernels by which tables predict the network.
        files: loads files with ONNX Runtime.
        batch: number of images that run at once.

    Raises:
        MeasurementError: ONNX Runtime runs other kernels.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Weights | None,
        dtype: str,
        kernels: Iterable[Kernel],
        files: Files,
        batch: int = 1,
    ) -> None:
        if weights is None:
            weights = random_weights(graph, np.random.default_rng(0))
        if dtype == "int8":
            own = quantised_network(graph.folded, weights, native_weight_bits())
            model = onnx_model.quantised_model(own)
        else:
            model = onnx_model.model(graph, weights)
        self._batch = batch
        inputs = {onnx_model.INPUT: (batch, *graph.input_shape)}
        data = model.SerializeToString()
        require_nodes(optimised_nodes(files, data, inputs), kernels)
        self._file = files.load(data, inputs=inputs)

    def reloaded(self) -> OnnxRuntimeNetwork:
        """See `CompiledNetwork.reloaded`."""
        self._file.reload()
        return self

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs, flat and channels first. See `CompiledNetwork.run`."""
        if self._batch > 1:
            return self._file.run({onnx_model.INPUT: image}).reshape(self._batch, -1)
        return self._file.run({onnx_model.INPUT: image[None]}).reshape(-1)

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Time inferences on an input that is already in place."""
        return self._file.evaluate(calls, samples)


def require_nodes(nodes: Iterable[PlacedNode], kernels: Iterable[Kernel]) -> None:
    """Raise MeasurementError unless nodes of an optimised network are the kernels of its blocks."""
    executed = Counter(each.node.text for each in nodes)
    expected = Counter(kernel.text for kernel in kernels)
    unexpected, missing = executed - expected, expected - executed
    for text in (*unexpected, *missing):
        raise MeasurementError(
            f"ONNX Runtime {'runs' if unexpected else 'does not run'} '{text}' in the whole "
            "network, unlike in its blocks, by which tables predict.",
            remedy="Time the space with another runtime or dtype. An exported file runs all the "
            "same, and `nas benchmark` times it.",
        )
