"""Whole networks, written as ONNX models like those of an export, for any batch size."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from nas import onnx_model
from nas.errors import MeasurementError
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.networks import random_weights
from nas.latency.runtime import CompiledNetwork, Weights
from nas.quantisation.made_up import quantised_network
from nas.quantisation.network import native_weight_bits
from nas.runtimes.onnxruntime.fusion import RULES_VERSION, OnnxRuntimeFusion
from nas.runtimes.onnxruntime.nodes import executed_nodes, kernel_nodes
from nas.runtimes.onnxruntime.session import Session

_WITHOUT_A_RULE = (
    "The rules do not cover this network, whatever the version. Time it with another runtime or "
    "dtype, or leave the block with this operation out of the space. An exported file runs all the "
    "same, and `nas benchmark` times it."
)
"""What a user can do where the installed version is that of the rules."""


class OnnxRuntimeNetwork(CompiledNetwork):
    """A network in a session. See `nas.latency.runtime.CompiledNetwork`.

    Args:
        graph: the network.
        weights: weights of the folded graph; None for random ones.
        fusion: fusion rules of the dtype; an int8 network is quantised as an export does.
        threads: number of threads that run one node.
        batch: number of images that run at once.

    Raises:
        MeasurementError: ONNX Runtime fuses in another way than `fusion`, so that a table would
            predict kernels that do not run.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Weights | None,
        fusion: OnnxRuntimeFusion,
        *,
        threads: int,
        batch: int = 1,
    ) -> None:
        if weights is None:
            weights = random_weights(graph, np.random.default_rng(0))
        if fusion.dtype == "int8":
            own = quantised_network(graph.folded, weights, native_weight_bits())
            model = onnx_model.quantised_model(own)
        else:
            model = onnx_model.model(graph, weights)
        self._batch = batch
        inputs = {onnx_model.INPUT: (batch, *graph.input_shape)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimised.onnx"
            self._session = Session(
                model, inputs, threads=threads, optimise=True, optimised_path=path
            )
            require_nodes(onnx.load(path), inputs, fusion.kernels(graph, batch))

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs, flat and channels first. See `CompiledNetwork.run`."""
        if self._batch > 1:
            return self._session.run({onnx_model.INPUT: image}).reshape(self._batch, -1)
        return self._session.run({onnx_model.INPUT: image[None]}).reshape(-1)

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Time inferences on an input that is already in place."""
        return self._session.evaluate(calls, samples)


def require_nodes(
    model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]], kernels: Iterable[Kernel]
) -> None:
    """Raise MeasurementError unless an optimised model runs the nodes of kernels, and no others.

    Args:
        model: the model.
        inputs: shapes of its inputs by name.
        kernels: the kernels that a table predicts with.
    """
    executed = Counter(executed_nodes(model, inputs))
    expected = Counter(node for kernel in kernels for node in kernel_nodes(kernel))
    unexpected, missing = executed - expected, expected - executed
    for node in (*unexpected, *missing):
        difference = "runs" if unexpected else "does not run"
        installed = version("onnxruntime")
        raise MeasurementError(
            f"onnxruntime {installed} {difference} a {node}, unlike the fusion rules by which "
            "tables predict.",
            remedy=_WITHOUT_A_RULE
            if installed.startswith(f"{RULES_VERSION}.")
            else f"The rules are those of {RULES_VERSION}: pip install "
            f"'onnxruntime=={RULES_VERSION}.*', and build the table anew.",
        )
