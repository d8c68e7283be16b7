"""Formats `openvino` and `openvino-int8`: OpenVINO's own files, `.xml` with `.bin` beside it.

The int8 file has the integers and scales of the `QuantisedNetwork`, as all int8 formats do, and not
those of NNCF's post-training quantisation. Of four small networks, quantised with the same 300
digits, all layers run in int8 and 0.96 to 0.99 of the images keep the class that float32 gives
them. With NNCF 3.4 it is 0.85 to 0.99, and up to 4 of 10 layers stay in float32; neither is always
faster.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.deploy.formats.base import (
    PREPROCESSING_KEY,
    LoadedModel,
    ModelFormat,
)
from nas.deploy.formats.onnx import make_proto

if TYPE_CHECKING:
    from nas.deploy.model import TrainedModel
    from nas.quantisation.network import QuantisedNetwork

_LAYERS = frozenset({"Convolution", "GroupConvolution", "FullyConnected", "MatMul"})
"""Types of convolutions and linear layers in a compiled model."""

_INT8_TYPES = frozenset({"i8", "u8"})
"""Types in which such a layer runs as int8."""


class OpenVino(ModelFormat):
    """The float32 network for any batch size. See `ModelFormat`."""

    name = "openvino"
    file_name = "model.xml"
    companions = ("model.bin",)
    packages = ("openvino",)
    extra = "openvino"

    def write(self, model: TrainedModel, quantised: QuantisedNetwork | None, path: Path) -> None:
        """See `ModelFormat.write`."""
        openvino = import_openvino()
        proto = make_proto(model, quantised)
        # `convert_model` would do the same, and tells its telemetry.
        network = openvino.Core().read_model(proto.SerializeToString())
        network.set_rt_info(model.preprocessing.embedded, PREPROCESSING_KEY)
        openvino.save_model(network, path, compress_to_fp16=False)

    def load(self, path: Path, threads: int = 1) -> OpenVinoModel:
        """See `ModelFormat.load`."""
        return OpenVinoModel(path, threads)


class OpenVinoInt8(OpenVino):
    """The int8 network for any batch size. See `ModelFormat`."""

    name = "openvino-int8"
    file_name = "model-int8.xml"
    companions = ("model-int8.bin",)
    precision = "int8"
    # OpenVINO adds integers where the simulation adds float32, as ONNX Runtime does; see
    # `nas.deploy.formats.onnx.OnnxInt8`.
    tolerance = 0.25


class OpenVinoModel(LoadedModel):
    """A network, compiled by OpenVINO for single images on this processor.

    Args:
        path: path of the `.xml` file.
        threads: number of threads that run one network.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._openvino = import_openvino()
        core = self._openvino.Core()
        network = core.read_model(path)
        _, *shape = network.input().partial_shape
        network.reshape([1, *shape])
        self._compiled = core.compile_model(
            network,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": threads,
                # Processors with bfloat16 would compute float32 layers in it.
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )
        self._request = self._compiled.create_infer_request()

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        outputs = []
        for image in images:
            self._set_image(image[None])
            self._request.infer()
            outputs.append(np.array(self._request.get_output_tensor().data))
        return np.concatenate(outputs)

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """See `LoadedModel.runner`."""
        self._set_image(image)
        return lambda: self._request.infer()

    def quantised_layers(self) -> tuple[int, int]:
        """Count the layers of the model that OpenVINO compiled, by the type in which they run."""
        facts = [op.get_rt_info() for op in self._compiled.get_runtime_model().get_ops()]
        layers = [fact for fact in facts if fact["layerType"].astype(str) in _LAYERS]
        types = [fact["runtimePrecision"].astype(str) for fact in layers]
        return sum(each in _INT8_TYPES for each in types), len(types)

    def _set_image(self, image: NDArray[np.float32]) -> None:
        tensor = self._openvino.Tensor(np.ascontiguousarray(image))
        self._request.set_input_tensor(tensor)


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which otherwise reports the import over the network.

    Without the package `openvino_telemetry`, OpenVINO and NNCF report nothing. A process that has
    imported it by itself keeps it.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
