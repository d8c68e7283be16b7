"""Format `tvm`: a shared library with the very kernels that the latency table timed.

The library holds the weights, and runs on processors like the one of this machine. Its function
`main` maps an image `1 x H x W x C` to the logits, and `preprocessing` returns the preprocessing
as JSON; `nas.runtimes.tvm.library` shows how to call them without this package.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from nas.deploy.formats.base import (
    PREPROCESSING_KEY,
    LoadedModel,
    ModelFormat,
)
from nas.deploy.script_loaders import import_tvm
from nas.errors import RequestError
from nas.latency.timing import Evaluate
from nas.runtimes.tvm.kit.address import is_kit

if TYPE_CHECKING:
    from nas.deploy.model import TrainedModel
    from nas.latency.runtime import Schedules
    from nas.quantisation.network import QuantisedNetwork
    from nas.runtimes.tvm.library import Library
    from nas.runtimes.tvm.runtime import TvmRuntime


class Tvm(ModelFormat):
    """A shared library compiled by TVM from the schedules of a latency table. See `ModelFormat`."""

    name = "tvm"
    file_name = "model.so"
    packages: tuple[str, ...] = ("tvm", "tvm_ffi")
    runtimes: tuple[str, ...] = ("tvm",)
    # Version 0.1.15 of the second one crashes parts of the first one.
    requirements: tuple[str, ...] = (
        "apache-tvm>=0.27,<0.28",
        "apache-tvm-ffi>=0.1.14.post0,<0.1.15",
    )
    device: ClassVar = {"runtime": "tvm", "dtype": "float32"}

    def check_device(self, runtime: str, target: str, dtype: str, threads: int = 1) -> None:
        """See `ModelFormat.check_device`."""
        if (runtime, target) == ("tvm", "cuda"):
            raise RequestError(
                f"Format '{self.name}' holds code for processors; the run is for target 'cuda'.",
                remedy="Export another format, such as onnx, which ONNX Runtime runs on GPUs.",
            )
        super().check_device(runtime, target, dtype, threads)
        self.check_compiler(target)

    def check_compiler(self, target: str) -> None:
        """Raise RequestError if nothing is installed that makes the file for a target.

        Also for another device than this machine.
        """
        if is_kit(target):
            raise RequestError(
                f"Format 'tvm' needs TVM's runtime, which '{target}' is not expected to have.",
                remedy="Export format c.",
            )
        if target.startswith("cpu") and not _has_compiler():
            raise RequestError(
                "Format 'tvm' needs a C++ compiler to link a library, and none is installed.",
                remedy="Install g++ or clang++, or export another format, such as onnx.",
            )

    def write(self, model: TrainedModel, quantised: QuantisedNetwork | None, path: Path) -> None:
        """See `ModelFormat.write`. Kernels that the table lacks are timed and added to it first.

        Raises:
            RequestError: the model has no latency table, or one of another kind of device.
            TableDeviceError: the table was measured on another machine.
            MissingKernelError: a kernel of the network cannot be timed.
            ExportError: TVM cannot compile the network.
        """
        from nas.latency import LatencyTable
        from nas.latency.build import add_missing_kernels
        from nas.runtimes.tvm.runtime import TvmRuntime

        if model.table is None:
            raise RequestError(
                f"Format '{self.name}' compiles the schedules of a latency table; there is none.",
                remedy="Build one on the device: nas table build --runtime tvm --space "
                f"{model.architecture.space.name}",
            )
        device = model.table.device
        self.check_device(device.runtime, device.target, device.dtype, device.threads)
        runtime = model.runtime
        if not isinstance(runtime, TvmRuntime) or is_kit(device.target):
            own = TvmRuntime.for_target(device.target)
            runtime = own(target=device.target, threads=device.threads, dtype=device.dtype)
        assert isinstance(runtime, TvmRuntime)
        runtime.open()
        # The code for another device needs no connection to it.
        is_other = is_kit(device.target)
        table = LatencyTable.open(model.table.path, runtime=None if is_other else runtime)
        add_missing_kernels(table, [model.graph], runtime)
        self.write_code(model, runtime, table.schedules(), path)

    def write_code(
        self, model: TrainedModel, runtime: TvmRuntime, schedules: Schedules, path: Path
    ) -> None:
        """Compile a model for the device of an open runtime. See `write`."""
        texts = {PREPROCESSING_KEY: model.preprocessing.embedded}
        runtime.write_library(model.graph, schedules, model.weights, path, texts)

    def can_run(self, path: Path) -> bool:
        """See `ModelFormat.can_run`: a library may be of another architecture."""
        return machine_of(path) == machine_of(Path(sys.executable))

    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        """See `ModelFormat.load`."""
        import_tvm()
        from nas.runtimes.tvm.library import Library

        return _TvmModel(Library(path, threads))


class _TvmModel(LoadedModel):
    """A library, loaded by TVM."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        return np.concatenate([self._library.run(image[None]) for image in images])

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """See `LoadedModel.runner`."""
        return self._library.runner(image)

    def evaluator(self, image: NDArray[np.float32]) -> Evaluate:
        """See `LoadedModel.evaluator`. A call from Python takes 0.6 us, a tiny network as long."""
        return self._library.evaluator(image)


def _has_compiler() -> bool:
    """Return whether TVM finds a compiler to link with, without importing TVM."""
    named = (os.environ.get(name) for name in ("CXX", "CC"))
    usual = ("g++", "gcc", "clang++", "clang", "c++", "cc")
    return os.name == "nt" or any(each and shutil.which(each) for each in (*named, *usual))


def machine_of(path: Path) -> bytes:
    """Return for which processors a program or a library is, as its first bytes say.

    These are the class and the machine in the header of ELF files.
    """
    with path.open("rb") as file:
        header = file.read(20)
    return header[4:6] + header[18:20] if header.startswith(b"\x7fELF") else b""
