"""Whole networks: written as ONNX, and optimised by ONNX Runtime as it does for any user."""

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
from nas.latency import device
from nas.latency.kernel import Kernel, batched
from nas.latency.runtime import CompiledNetwork, Weights
from nas.runtimes.onnxruntime.float32 import optimised as float32
from nas.runtimes.onnxruntime.fusion import OnnxRuntimeFusion
from nas.runtimes.onnxruntime.int8 import calibration
from nas.runtimes.onnxruntime.int8 import optimised as int8
from nas.runtimes.onnxruntime.int8.quantised import quantised
from nas.runtimes.onnxruntime.session import Session


class OnnxRuntimeNetwork(CompiledNetwork):
    """A graph in a session. See `nas.latency.runtime.CompiledNetwork`.

    Args:
        weights: of the folded graph; random ones if None.
        fusion: how the dtype fuses.
        dtype: `float32`, or `int8` for a network that is quantised first.
        batch: images that run at once.

    Raises MeasurementError where ONNX Runtime fuses in another way than `fusion` says: a table
    would predict kernels that do not run.
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
            weights = onnx_model.random_weights(graph, np.random.default_rng(0))
        model = _of_batch(onnx_model.model(graph, weights), batch)
        if dtype == "int8":
            features = device.processor()[1]
            model = quantised(model, calibration.images(graph.input_shape), features, batch)
        self._batch = batch
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimised.onnx"
            self._session = Session(
                model,
                {onnx_model.INPUT: (batch, *graph.input_shape)},
                threads=threads,
                optimise=True,
                write=path,
            )
            optimised = onnx.load(path)
        if dtype == "int8":
            found = int8.launched(optimised)
        else:
            found = float32.launched(model, optimised, fusion.block)
        self._launched = batched(found, batch)
        _require_same(self._launched, fusion.kernels(graph, batch))

    @property
    def launched(self) -> list[Kernel]:
        """The kernels of the model that ONNX Runtime made of the graph, in its order."""
        return self._launched

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output of one image `channels x height x width`, flat and channels first.

        With a batch, `batch x channels x height x width` becomes a row of these an image.
        """
        if self._batch > 1:
            return self._session.run({onnx_model.INPUT: image}).reshape(self._batch, -1)
        return self._session.run({onnx_model.INPUT: image[None]}).reshape(-1)

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Seconds of one inference with the input already in place; see `timing.Evaluate`."""
        return self._session.evaluate(calls, samples)


def _of_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The model with its batch size set, in place."""
    for each in (*model.graph.input, *model.graph.output):
        each.type.tensor_type.shape.dim[0].dim_value = batch
    return model


def _require_same(real: Sequence[Kernel], expected: Sequence[Kernel]) -> None:
    found, known = Counter(real), Counter(expected)
    if found == known:
        return
    one = next(iter((found - known) or (known - found)))
    what = "runs" if one in found - known else "does not run"
    raise MeasurementError(
        f"onnxruntime {version('onnxruntime')} {what} kernel '{one}', which the table's rules "
        f"{'do not know of' if what == 'runs' else 'ask for'}.",
        remedy="Use a version of onnxruntime that this version of nas knows.",
    )
