"""ONNX files in float32 and int8, checked with ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nas.deploy.formats.base import (
    PREPROCESSING_KEY,
    LoadedModel,
    ModelFormat,
)
from nas.deploy.formats.on_device import ModelOnDevice

if TYPE_CHECKING:
    import onnx

    from nas.deploy.model import TrainedModel
    from nas.quantisation.network import QuantisedNetwork
    from nas.runtimes.file_runtime import FileRuntime
    from nas.runtimes.files import File

_INT8_LAYERS = frozenset({"QLinearConv", "QGemm", "QLinearMatMul"})
"""Nodes of convolutions and linear layers in int8."""

_FLOAT_LAYERS = frozenset({"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul"})
"""Nodes of convolutions and linear layers in float32."""


class Onnx(ModelFormat):
    """`model.onnx`: the float32 network, its batch norms folded.

    Attributes:
        batch: batch size of the file; None for any.
    """

    name = "onnx"
    file_name = "model.onnx"
    packages = ("onnxruntime",)
    runtimes: tuple[str, ...] = ("onnxruntime",)
    batch: int | None = None
    requirements: tuple[str, ...] = ("onnxruntime>=1.12",)  # See `nas.onnx_model.IR_VERSION`.

    def write(self, model: TrainedModel, quantised: QuantisedNetwork | None, path: Path) -> None:
        """See `ModelFormat.write`."""
        from onnx import helper

        from nas import onnx_model

        proto = make_proto(model, quantised)
        if self.batch:
            onnx_model.fix_batch(proto, self.batch)
        helper.set_model_props(proto, {PREPROCESSING_KEY: model.preprocessing.embedded})
        onnx_model.save(proto, path)

    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        """See `ModelFormat.load`."""
        return OnnxModel(path, threads)

    def load_on(self, device: str, path: Path, threads: int = 1) -> LoadedModel:
        """See `ModelFormat.load_on`."""
        from nas import onnx_model

        def load(runtime: FileRuntime, shape: Sequence[int]) -> File:
            return runtime.files.load(path.read_bytes(), inputs={onnx_model.INPUT: (1, *shape)})

        (runtime,) = self.runtimes
        return ModelOnDevice(
            runtime, device, threads, load, lambda image: {onnx_model.INPUT: image}
        )


class OnnxInt8(Onnx):
    """`model-int8.onnx`: int8 weights and uint8 activations in the QDQ format."""

    name = "onnx-int8"
    file_name = "model-int8.onnx"
    precision = "int8"
    # ONNX Runtime adds integers where the simulation adds float32, so that few values are rounded
    # to the next step, and these differences grow with the depth: 0.03 in networks of 40 ops. A
    # wrong scale or layout gives 1 and more.
    tolerance = 0.25


def make_proto(model: TrainedModel, quantised: QuantisedNetwork | None) -> onnx.ModelProto:
    """Return the ONNX model of a quantised network, or without one that of the float32 network."""
    from nas import onnx_model

    if quantised is None:
        return onnx_model.model(model.graph, model.weights)
    return onnx_model.quantised_model(quantised)


class OnnxModel(LoadedModel):
    """An ONNX file in a session of ONNX Runtime.

    Args:
        path: path of the file.
        threads: number of threads that run one node.
    """

    def __init__(self, path: Path, threads: int) -> None:
        from nas.latency.timing import pinned
        from nas.runtimes.onnxruntime.session import open_session

        self._path = path
        # Workers stay on the cores on which the thread that made them was.
        with pinned(threads) if threads > 1 else nullcontext():
            self._session = open_session(path, threads)
        (self._input,) = [each.name for each in self._session.get_inputs()]

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        return self.outputs(images)[0]

    def outputs(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return all outputs of the file for a batch; the logits are the first one."""
        return self._session.run(None, {self._input: images})

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """See `LoadedModel.runner`."""
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, np.ascontiguousarray(image))
        for output in self._session.get_outputs():
            binding.bind_output(output.name, "cpu")
        return lambda: self._session.run_with_iobinding(binding)

    def quantised_layers(self) -> tuple[int, int]:
        """Count the layers of the model that ONNX Runtime makes of the file when it loads it."""
        import onnx

        from nas.runtimes.onnxruntime.session import open_session

        with tempfile.TemporaryDirectory() as folder:
            optimised_path = Path(folder) / "optimised.onnx"
            open_session(self._path, 1, optimised_path=optimised_path)
            kinds = Counter(node.op_type for node in onnx.load(optimised_path).graph.node)
        int8_layers = sum(kinds[kind] for kind in _INT8_LAYERS)
        return int8_layers, int8_layers + sum(kinds[kind] for kind in _FLOAT_LAYERS)
