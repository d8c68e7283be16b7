"""Format `coreml`: a package for Apple's Core ML, converted by coremltools.

The package is a folder, which macOS shows as one file. It maps an image `1 x C x H x W` to the
logits. Core ML exists on macOS only; elsewhere loading a package checks its structure.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas import __version__
from nas.deploy.formats.base import (
    PREPROCESSING_KEY,
    LoadedModel,
    ModelFormat,
    missing_op,
)
from nas.errors import ExportError
from nas.run.model_card import PREPROCESSING

if TYPE_CHECKING:
    from nas.deploy.model import TrainedModel
    from nas.quantisation.network import QuantisedNetwork


class CoreMl(ModelFormat):
    """A package for Core ML, of float32. See `ModelFormat`."""

    name = "coreml"
    file_name = "model.mlpackage"
    packages = ("coremltools",)
    extra = "coreml"

    @property
    def runs_here(self) -> bool:
        """Whether this is macOS."""
        return sys.platform == "darwin"

    def write(self, model: TrainedModel, quantised: QuantisedNetwork | None, path: Path) -> None:
        """See `ModelFormat.write`. Writes a folder."""
        import coremltools

        _register_shuffle()
        names = model.preprocessing
        image = coremltools.TensorType(names.input_name, (1, *model.graph.input_shape))
        # The progress bars of the conversion cannot be turned off.
        with redirect_stderr(io.StringIO()):
            package = coremltools.convert(
                _traced(model),
                inputs=[image],
                outputs=[coremltools.TensorType(names.output_name)],
                convert_to="mlprogram",
                minimum_deployment_target=coremltools.target.iOS15,
                compute_precision=coremltools.precision.FLOAT32,
                skip_model_load=True,
            )
        package.user_defined_metadata[PREPROCESSING_KEY] = model.preprocessing.embedded
        package.version = __version__
        package.save(str(path))

    def load(self, path: Path, threads: int = 1) -> CoreMlModel:
        """Load a package; on other systems than macOS only check its structure.

        Raises:
            ExportError: the package is damaged, or its input, output or classes are not those that
                its preprocessing says.
        """
        import coremltools

        package = coremltools.models.MLModel(
            str(path),
            skip_model_load=not self.runs_here,
            compute_units=coremltools.ComputeUnit.CPU_ONLY,
        )
        return CoreMlModel(package, path, runs_here=self.runs_here)


class CoreMlModel(LoadedModel):
    """A package, loaded by Core ML, or only read where there is no Core ML.

    Args:
        package: the package, as coremltools reads it.
        path: path of the package, for messages.
        runs_here: whether Core ML has loaded it.
    """

    def __init__(self, package: Any, path: Path, *, runs_here: bool) -> None:
        self._package, self._runs_here = package, runs_here
        text = package.user_defined_metadata.get(PREPROCESSING_KEY, "")
        self._preprocessing = PREPROCESSING.parse(text.encode(), f"The preprocessing in {path}")
        self._check_structure(path)

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        return np.concatenate([self._run(image[None]) for image in images])

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """See `LoadedModel.runner`."""
        return lambda: self._run(image)

    def _run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self._runs_here:
            raise ExportError("Core ML runs on macOS only.", remedy="Verify the model on a Mac.")
        names = self._preprocessing
        return self._package.predict({names.input_name: image})[names.output_name]

    def _check_structure(self, path: Path) -> None:
        """Raise ExportError if input, output and preprocessing disagree."""
        description = self._package.get_spec().description
        values = self._preprocessing
        size = values.image_size
        expected = (
            {values.input_name: [1, values.channels, size, size]},
            {values.output_name: [1, len(values.classes)]},
        )
        actual = _shapes(description.input), _shapes(description.output)
        if actual != expected:
            raise ExportError(
                f"{path} has inputs and outputs {actual}, and its preprocessing says {expected}.",
                remedy="Export the model again.",
            )


def _shapes(features: Any) -> dict[str, list[int]]:
    """Return the shapes of inputs or outputs by name."""
    return {each.name: list(each.type.multiArrayType.shape) for each in features}


def _traced(model: TrainedModel) -> Any:
    """Return a model as torch traces it, for one image.

    Raises:
        ExportError: the model has a pool of which Core ML does not say what an average counts.
    """
    import torch

    from nas.deploy.torch_source import folded_module

    graph = model.graph
    for op in graph.ops:
        is_counted = op.kind == "avg_pool" and op.padding > 0
        if is_counted and op.overhangs(*graph.ops[op.inputs[0]].shape[1:]):
            raise missing_op("coreml", op)
    return torch.jit.trace(folded_module(model), torch.zeros(1, *graph.input_shape))


def _register_shuffle() -> None:
    """Tell coremltools how channels are shuffled, which it does not know."""
    from coremltools.converters.mil import Builder, register_torch_op

    @register_torch_op(torch_alias=["channel_shuffle"], override=True)
    def native_channel_shuffle(context: Any, node: Any) -> None:
        x, groups = context[node.inputs[0]], context[node.inputs[1]].val
        n, c, h, w = x.shape
        parts = Builder.reshape(x=x, shape=[n, groups, c // groups, h, w])
        interleaved = Builder.transpose(x=parts, perm=[0, 2, 1, 3, 4])
        context.add(Builder.reshape(x=interleaved, shape=[n, c, h, w], name=node.name))
