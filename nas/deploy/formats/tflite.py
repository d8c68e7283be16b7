"""The formats `tflite` and `tflite-int8`: TensorFlow Lite files, which LiteRT runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nas import files
from nas.deploy.formats.base import (
    PREPROCESSING_KEY,
    LoadedModel,
    ModelFormat,
)
from nas.deploy.formats.on_device import ModelOnDevice
from nas.errors import ExportError

if TYPE_CHECKING:
    from nas.deploy.model import TrainedModel
    from nas.quantisation.network import QuantisedNetwork
    from nas.runtimes.file_runtime import FileRuntime
    from nas.runtimes.files import File

_WEIGHTED_OPERATORS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})


class TfLite(ModelFormat):
    """A float32 model. LiteRT, TensorFlow Lite and the compilers of many NPUs read the file."""

    name = "tflite"
    file_name = "model.tflite"
    packages = ("ai_edge_litert",)
    runtimes: tuple[str, ...] = ("litert",)
    requirements = ("ai-edge-litert>=2.3,<3",)
    extra = "tflite"

    def write(self, model: TrainedModel, quantised: QuantisedNetwork | None, path: Path) -> None:
        """See `ModelFormat`."""
        from nas import tflite_model

        data = tflite_model.model(model.graph, model.weights, metadata=_metadata(model))
        files.replace(path, data)

    def load(self, path: Path, threads: int = 1) -> LiteRtModel:
        """See `ModelFormat`."""
        return LiteRtModel(path, threads)

    def load_on(self, device: str, path: Path, threads: int = 1) -> LoadedModel:
        """See `ModelFormat.load_on`. A delegate of the device takes what it can."""

        def load(runtime: FileRuntime, shape: Sequence[int]) -> File:
            return runtime.files.load(path.read_bytes())

        def inputs(image: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
            return {"image": image.transpose(0, 2, 3, 1)}

        return ModelOnDevice(self.runtimes[0], device, threads, load, inputs)


class TfLiteInt8(TfLite):
    """An int8 model, whose input and output are float32."""

    name = "tflite-int8"
    file_name = "model-int8.tflite"
    precision = "int8"
    runtimes = ("litert", "ethos_u")
    # A value in the middle of two integers is rounded to either, which changes values behind it: by
    # 0.16 in a MobileNetV3 of 7.8 million multiply-accumulates. A wrong scale or layout gives 1
    # and more.
    tolerance = 0.5

    def write(self, model: TrainedModel, quantised: QuantisedNetwork | None, path: Path) -> None:
        """See `ModelFormat`. Raises ExportError for a network without convolutions.

        Files that the device of the model needs instead of this one are written beside it.
        """
        from nas import tflite_model

        assert quantised is not None
        if not any(op.kind == "conv" for op in quantised.graph.ops):
            raise ExportError(
                "The network has no convolution that could run in int8.",
                remedy="Export it as 'tflite'.",
            )
        files.replace(path, tflite_model.quantised_model(quantised, metadata=_metadata(model)))
        if model.runtime is not None:
            for suffix, data in model.runtime.device_files(quantised).items():
                name = f"{path.stem}{suffix}"
                files.replace(path.with_name(name), data)
                self.device_files += (name,)


class LiteRtModel(LoadedModel):
    """A TensorFlow Lite file in LiteRT's interpreter, with its XNNPACK kernels.

    Args:
        path: the file.
        threads: number of threads that run one operator.
    """

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
        self._interpreter.allocate_tensors()
        (image,) = self._interpreter.get_input_details()
        (logits,) = self._interpreter.get_output_details()
        self._input, self._output = image["index"], logits["index"]

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel`."""
        return self.runner(images)()

    def runner(self, image: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
        """See `LoadedModel`. The image may be a batch of them."""
        interpreter = self._interpreter
        batch = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
        interpreter.resize_tensor_input(self._input, batch.shape, strict=True)
        interpreter.allocate_tensors()

        def classify() -> NDArray[np.float32]:
            interpreter.set_tensor(self._input, batch)
            interpreter.invoke()
            return interpreter.get_tensor(self._output)

        return classify

    def quantised_layers(self) -> tuple[int, int]:
        """See `LoadedModel`. LiteRT runs a layer in the type of its tensors."""
        tensors = {each["index"]: each["dtype"] for each in self._interpreter.get_tensor_details()}
        # The only list of operators is one that the package calls experimental.
        layers = [
            [tensors[index] for index in operator["inputs"][:2]]
            for operator in self._interpreter._get_ops_details()
            if operator["op_name"] in _WEIGHTED_OPERATORS
        ]
        return sum(types == [np.int8, np.int8] for types in layers), len(layers)


def _metadata(model: TrainedModel) -> dict[str, str]:
    return {PREPROCESSING_KEY: model.preprocessing.embedded}
