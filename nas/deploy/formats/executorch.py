"""Format `executorch`: a program for ExecuTorch, whose layers run in XNNPACK.

The program has a method `forward`, which maps an image `1 x C x H x W` to the logits, and a method
`preprocessing`, which returns the preprocessing as JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas import files
from nas.deploy.formats.base import (
    PREPROCESSING_KEY,
    LoadedModel,
    ModelFormat,
)

if TYPE_CHECKING:
    from torch import Tensor

    from nas.deploy.model import TrainedModel
    from nas.quantisation.network import QuantisedNetwork


class ExecuTorch(ModelFormat):
    """A program for ExecuTorch with XNNPACK. See `ModelFormat`."""

    name = "executorch"
    file_name = "model.pte"
    packages = ("executorch",)
    extra = "executorch"

    def write(self, model: TrainedModel, quantised: QuantisedNetwork | None, path: Path) -> None:
        """See `ModelFormat.write`."""
        files.replace(path, _program(model))

    def load(self, path: Path, threads: int = 1) -> _ExecuTorchModel:
        """See `ModelFormat.load`."""
        return _ExecuTorchModel(path, threads)


class _ExecuTorchModel(LoadedModel):
    """A program, loaded by ExecuTorch's runtime for Python."""

    def __init__(self, path: Path, threads: int) -> None:
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        # ExecuTorch 1.4 has no other way to set the number of threads.
        portable_lib._unsafe_reset_threadpool(threads)
        self._program = Runtime.get().load_program(path.read_bytes())
        self._forward = self._program.load_method("forward")

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        outputs = [self._forward.execute([_tensor(image[None])])[0] for image in images]
        return np.concatenate([output.numpy() for output in outputs])

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """See `LoadedModel.runner`."""
        inputs = [_tensor(image)]
        return lambda: self._forward.execute(inputs)


def _program(model: TrainedModel) -> bytes:
    """Return the program of a model, with its convolutions and activations lowered to XNNPACK."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from nas.deploy.torch_source import folded_module

    # Strides decide about the layout, and those of an image with one channel fit both layouts.
    image = torch.zeros(1, *model.graph.input_shape)
    exported = torch.export.export(folded_module(model), (image,))
    lowered: Any = to_edge_transform_and_lower(
        exported,
        partitioner=[XnnpackPartitioner()],
        constant_methods={PREPROCESSING_KEY: model.preprocessing.embedded},
    )
    return lowered.to_executorch().buffer


def _tensor(image: NDArray[np.float32]) -> Tensor:
    """Return an image as a tensor whose strides say that it is not channels-last."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(image)).flatten().view(image.shape)
