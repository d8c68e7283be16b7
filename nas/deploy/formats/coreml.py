"""Format `coreml`: a package for Apple's Core ML, written op by op without tracing.

The package is a folder, which macOS shows as one file. It maps an image `1 x C x H x W` to the
logits. Core ML exists on macOS only; elsewhere loading a package checks its structure.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
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
    export_errors,
    missing_op,
    package_versions,
)
from nas.errors import ExportError
from nas.graph import Graph, Op
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
        with export_errors("coremltools cannot convert the network"):
            import coremltools

            program = _program(model.graph, model.weights, model.preprocessing.output_name)
            # The progress bars of the conversion cannot be turned off.
            with redirect_stderr(io.StringIO()):
                package = coremltools.convert(
                    program,
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
        with export_errors(f"coremltools refuses {path}", remedy="Export the model again."):
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

    @property
    def versions(self) -> dict[str, str]:
        """See `LoadedModel.versions`."""
        return package_versions(CoreMl.packages)

    @property
    def ops(self) -> list[str]:
        """Types of the ops in the package, in order, without the constants."""
        (function,) = self._package.get_spec().mlProgram.functions.values()
        (block,) = function.block_specializations.values()
        return [op.type for op in block.operations if op.type != "const"]

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
        output: NDArray[np.float32] = self._package.predict({names.input_name: image})[
            names.output_name
        ]
        return output

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


def _program(graph: Graph, weights: Mapping[str, NDArray[np.float32]], output_name: str) -> Any:
    """Return a graph in coremltools' intermediate language, for one image."""
    import coremltools
    from coremltools.converters.mil import Builder

    specification = Builder.TensorSpec(shape=(1, *graph.input_shape))

    @Builder.program(input_specs=[specification], opset_version=coremltools.target.iOS15)
    def program(image: Any) -> Any:
        return _Writer(Builder, graph, weights).write(image, output_name)

    return program


class _Writer:
    """Writes the ops of a folded graph with coremltools' builder; all values are maps.

    Args:
        builder: coremltools' builder, which adds ops to the program that is being written.
        graph: folded graph.
        weights: its weights, see `nas.torch_network.folded_weights`.
    """

    def __init__(
        self, builder: Any, graph: Graph, weights: Mapping[str, NDArray[np.float32]]
    ) -> None:
        self._builder, self._graph, self._weights = builder, graph, weights

    def write(self, image: Any, output_name: str) -> Any:
        """Add all ops, and return the logits, `1 x classes`."""
        values = {0: image}
        for at, op in enumerate(self._graph.ops):
            if op.kind != "input":
                values[at] = self._write(op, [values[source] for source in op.inputs])
        logits = values[len(self._graph.ops) - 1]
        classes = self._graph.output_shape[0]
        return self._builder.reshape(x=logits, shape=[1, classes], name=output_name)

    def _write(self, op: Op, inputs: list[Any]) -> Any:
        build, x = self._builder, inputs[0]
        match op.kind:
            case "conv" | "linear":
                return self._layer(op, x)
            case "relu":
                return build.relu(x=x)
            case "relu6":
                return build.relu6(x=x)
            case "hard_sigmoid":
                return self._hard_sigmoid(x)
            case "hard_swish":
                return build.mul(x=x, y=self._hard_sigmoid(x))
            case "add":
                return build.add(x=x, y=inputs[1])
            case "multiply":
                return build.mul(x=x, y=inputs[1])
            case "concat":
                return build.concat(values=inputs, axis=1)
            case "slice":
                shape = [1, *op.shape]
                return build.slice_by_size(x=x, begin=[0, op.start, 0, 0], size=shape)
            case "shuffle":
                return self._shuffle(op, x)
            case "max_pool" | "avg_pool":
                return self._pool(op, x)
            case "global_pool":
                return build.reduce_mean(x=x, axes=[2, 3], keep_dims=True)
        raise missing_op("coreml", op)

    def _layer(self, op: Op, x: Any) -> Any:
        """Add a convolution, or a linear layer as the convolution of a map of one pixel."""
        weight = self._weights[op.slot_name]
        weight = weight.reshape(*weight.shape[:2], *weight.shape[2:] or (1, 1))
        bias = {"bias": self._weights[f"{op.slot_name}.bias"]} if op.bias else {}
        return self._builder.conv(
            x=x,
            weight=weight,
            strides=[op.stride] * 2,
            pad_type="custom",
            pad=[op.padding] * 4,
            groups=op.groups,
            **bias,
        )

    def _hard_sigmoid(self, x: Any) -> Any:
        return self._builder.sigmoid_hard(x=x, alpha=1 / 6, beta=0.5)

    def _shuffle(self, op: Op, x: Any) -> Any:
        c, h, w = op.shape
        parts = self._builder.reshape(x=x, shape=[1, op.groups, c // op.groups, h, w])
        interleaved = self._builder.transpose(x=parts, perm=[0, 2, 1, 3, 4])
        return self._builder.reshape(x=interleaved, shape=[1, c, h, w])

    def _pool(self, op: Op, x: Any) -> Any:
        overhangs = op.overhangs(*self._graph.ops[op.inputs[0]].shape[1:])
        if op.kind == "avg_pool" and overhangs and op.padding:
            # Core ML does not say what an average counts there.
            raise missing_op("coreml", op)
        pool = self._builder.max_pool if op.kind == "max_pool" else self._builder.avg_pool
        return pool(
            x=x,
            kernel_sizes=[op.kernel] * 2,
            strides=[op.stride] * 2,
            pad_type="custom",
            pad=[op.padding] * 4,
            ceil_mode=overhangs,
        )
