"""Format `tvm`: a shared library with the very kernels that the latency table timed.

The library holds the weights, and runs on processors like the one of the table. Its function
`main` maps an image `1 x H x W x C` to the logits, and `preprocessing` returns the preprocessing
as JSON; `nas.runtimes.tvm.library` shows how to call them without this package.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from nas.deploy.formats.base import (
    PREPROCESSING_KEY,
    LoadedModel,
    ModelFormat,
    export_errors,
    package_versions,
)
from nas.errors import RequestError

if TYPE_CHECKING:
    from nas.deploy.model import TrainedModel
    from nas.latency import LatencyTable
    from nas.quantisation.network import QuantisedNetwork
    from nas.runtimes.tvm.library import Library


class Tvm(ModelFormat):
    """A shared library compiled by TVM from the schedules of a latency table. See `ModelFormat`."""

    name = "tvm"
    file_name = "model.so"
    packages = ("tvm",)
    device: ClassVar = {"runtime": "tvm", "target": "cpu", "dtype": "float32"}

    def write(self, model: TrainedModel, quantised: QuantisedNetwork | None, path: Path) -> None:
        """See `ModelFormat.write`.

        Raises:
            RequestError: the model has no latency table, or one of another kind of device.
            TableDeviceError: the table was measured on another machine.
            MissingKernelError: the table lacks a kernel of the network.
            ExportError: TVM cannot compile the network.
        """
        from nas.runtimes.tvm.runtime import TvmRuntime

        table = _require_table(model)
        device = table.device
        self.check_device(device.runtime, device.target, device.dtype)
        runtime = TvmRuntime(target=device.target, threads=device.threads, dtype=device.dtype)
        runtime.open()
        device.require_match(runtime.fingerprint, str(table.path))
        with export_errors("TVM cannot compile the network"):
            runtime.write_library(
                model.graph,
                table.schedules(),
                model.weights,
                path,
                {PREPROCESSING_KEY: model.preprocessing.embedded},
            )

    def load(self, path: Path, threads: int = 1) -> _TvmModel:
        """See `ModelFormat.load`."""
        from nas.runtimes.tvm.library import Library

        with export_errors(f"TVM cannot load {path}"):
            return _TvmModel(Library(path, threads))


class _TvmModel(LoadedModel):
    """A library, loaded by TVM."""

    def __init__(self, library: Library) -> None:
        self._library = library

    @property
    def versions(self) -> dict[str, str]:
        """See `LoadedModel.versions`."""
        return package_versions(("tvm", "tvm_ffi"))

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        return np.concatenate([self._library.run(image[None]) for image in images])

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """See `LoadedModel.runner`."""
        return self._library.runner(image)


def _require_table(model: TrainedModel) -> LatencyTable:
    """Return the latency table of a model. Raises RequestError if there is none."""
    table = model.table
    if table is None:
        raise RequestError(
            "Format 'tvm' compiles the schedules of a latency table, and there is no table.",
            remedy="Build one on the device: nas table build --runtime tvm --space "
            f"{model.architecture.space.name}",
        )
    return table
