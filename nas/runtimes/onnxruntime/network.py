"""Whole networks, written as ONNX models like those of an export, for any batch size."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from nas import onnx_model
from nas.errors import MeasurementError
from nas.graph import Graph
from nas.kernels.kernel import Kernel, batched
from nas.latency.networks import random_weights
from nas.latency.runtime import CompiledNetwork, Weights
from nas.quantisation.made_up import quantised_network
from nas.quantisation.network import native_weight_bits
from nas.runtimes.onnxruntime.float32 import optimised as float32
from nas.runtimes.onnxruntime.fusion import OnnxRuntimeFusion
from nas.runtimes.onnxruntime.int8 import optimised as int8
from nas.runtimes.onnxruntime.session import Session


class OnnxRuntimeNetwork(CompiledNetwork):
    """A network in a session. See `nas.latency.runtime.CompiledNetwork`.

    Args:
        graph: the network.
        weights: weights of the folded graph; None for random ones.
        fusion: fusion rules of the dtype.
        threads: number of threads that run one node.
        dtype: `float32`, or `int8` for a network that is quantised as an export does.
        batch: number of images that run at once.

    Raises:
        MeasurementError: ONNX Runtime fuses in another way than `fusion`, so that a table would
            predict kernels that do not run.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Weights | None,
        *,
        fusion: OnnxRuntimeFusion,
        threads: int,
        dtype: str = "float32",
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
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimised.onnx"
            self._session = Session(
                model,
                {onnx_model.INPUT: (batch, *graph.input_shape)},
                threads=threads,
                optimise=True,
                optimised_path=path,
            )
            optimised = onnx.load(path)
        if dtype == "int8":
            launched = int8.launched_kernels(optimised)
        else:
            launched = float32.launched_kernels(model, optimised, fusion.block)
        self._launched = batched(launched, batch)
        _require_equal(self._launched, fusion.kernels(graph, batch))

    @property
    def launched(self) -> list[Kernel]:
        """Kernels of the optimised model, in the order of its nodes."""
        return self._launched

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs, flat and channels first. See `CompiledNetwork.run`."""
        if self._batch > 1:
            return self._session.run({onnx_model.INPUT: image}).reshape(self._batch, -1)
        return self._session.run({onnx_model.INPUT: image[None]}).reshape(-1)

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Time inferences on an input that is already in place."""
        return self._session.evaluate(calls, samples)


def _require_equal(launched: Sequence[Kernel], expected: Sequence[Kernel]) -> None:
    """Raise MeasurementError unless both have the same kernels equally often."""
    unexpected = Counter(launched) - Counter(expected)
    missing = Counter(expected) - Counter(launched)
    if not unexpected and not missing:
        return
    kernel = next(iter(unexpected or missing))
    difference = "runs" if unexpected else "does not run"
    raise MeasurementError(
        f"onnxruntime {version('onnxruntime')} {difference} kernel '{kernel}', unlike the fusion "
        "rules by which tables predict.",
        remedy="Use a version of onnxruntime that this version of nas supports.",
    )
