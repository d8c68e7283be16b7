"""Format `c`: an object file with the very kernels that the latency table timed, for C programs.

`model.o` holds code and weights, and needs nothing but a C library: no runtime, no allocation, no
file and no thread. `model.h` declares the function that runs the network, and `example.c` calls it.
"""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.deploy.cpp_example import write_source
from nas.deploy.formats.base import LoadedModel
from nas.deploy.formats.tvm import Tvm
from nas.errors import RequestError
from nas.latency.timing import Evaluate
from nas.runtimes.tvm.rpc import address as rpc_address

if TYPE_CHECKING:
    from nas.deploy.model import TrainedModel
    from nas.latency.runtime import Schedules
    from nas.runtimes.tvm.runtime import TvmRuntime

_SOURCES = Path(__file__).parents[1] / "c"

_OPTIONS = ("-O2", "-fPIC", "-std=c11")


class C(Tvm):
    """An object file for C programs, with kernels of a latency table. See `ModelFormat`."""

    name = "c"
    file_name = "model.o"
    companions = ("model.h", "example.c")
    packages = ()
    runtimes = ()

    def check_compiler(self, target: str) -> None:
        """See `Tvm.check_compiler`. Objects of macOS and Windows have other formats."""
        if not sys.platform.startswith("linux"):
            raise RequestError(
                f"Format 'c' is made on Linux, and this is {sys.platform}.",
                remedy="Export it there, or another format, such as onnx.",
            )
        compiler_for(target)

    def write_code(
        self, model: TrainedModel, runtime: TvmRuntime, schedules: Schedules, path: Path
    ) -> None:
        """See `Tvm.write_code`.

        Raises:
            RequestError: the table is one of several threads.
        """
        from nas.runtimes.tvm.c_network import write_object
        from nas.runtimes.tvm.network_function import ALIGNMENT_BYTES

        if runtime.threads != 1:
            raise RequestError(
                f"Format 'c' runs on one thread, and the run is for {runtime.threads}.",
                remedy="Export format tvm, or search with [device] threads = 1.",
            )
        compiler = compiler_for(runtime.target)
        name = f"nas_{model.network.graph.digest[:8]}"
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            templates = runtime.timer.templates
            network = write_object(
                model.graph, schedules, model.weights, templates, folder / "kernels.o", name
            )
            (folder / "weights.bin").write_bytes(network.weights.tobytes())
            for template in _SOURCES.glob("*.j2"):
                write_source(
                    template,
                    folder,
                    name=name,
                    how=model.preprocessing,
                    alignment=ALIGNMENT_BYTES,
                    workspace_bytes=network.workspace_bytes,
                )
            _run([*compiler, *_OPTIONS, "-c", "runtime.c"], folder)
            _run([*compiler, "-r", "-nostdlib", "-o", path.name, "runtime.o", "kernels.o"], folder)
            for file in (path.name, *self.companions):
                shutil.move(folder / file, path.with_name(file))

    def load(self, path: Path, threads: int = 1) -> _CModel:
        """See `ModelFormat.load`. A C compiler links a shared library of it.

        Raises:
            RequestError: there is no compiler.
        """
        return _CModel(path)


class _CModel(LoadedModel):
    """A network in an object file, linked into a library of this process."""

    def __init__(self, path: Path) -> None:
        header_file = path.with_name("model.h")
        header = header_file.read_text(encoding="utf-8") if header_file.exists() else ""
        name = _declared(r"int (\w+)_run\(", header)
        self._classes, size, self._alignment = (
            int(_declared(rf"{name}_{each} = (\d+)", header))
            for each in ("CLASSES", "WORKSPACE_BYTES", "ALIGNMENT")
        )
        with tempfile.TemporaryDirectory() as folder:
            source, library = _SOURCES / "timing.c", Path(folder) / "model.so"
            run = f"-DNAME={name}_run"
            files = [str(each) for each in (source, path.absolute())]
            command = [*compiler_for("cpu"), *_OPTIONS, "-D_POSIX_C_SOURCE=200809L", run]
            _run([*command, "-shared", "-o", library.name, *files, "-lm"], Path(folder))
            self._library = ctypes.CDLL(str(library))
        self._run = self._library[f"{name}_run"]
        self._workspace = self._aligned((size,), np.uint8)

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        results = []
        for image in images:
            arguments, output = self._arguments(image[None])
            if self._run(*arguments):
                raise RuntimeError("the function of the network refuses its arguments")
            results.append(output.copy())
        return np.stack(results)

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """See `LoadedModel.runner`."""
        arguments, _ = self._arguments(image)
        return lambda: self._run(*arguments)

    def evaluator(self, image: NDArray[np.float32]) -> Evaluate:
        """See `LoadedModel.evaluator`. The calls are timed in C."""
        arguments, _ = self._arguments(image)

        def evaluate(calls: int, samples: int) -> Sequence[float]:
            seconds = np.zeros(samples)
            self._library.time_calls(*arguments, calls, samples, _pointer(seconds))
            return [float(each) for each in seconds]

        return evaluate

    def _arguments(
        self, image: NDArray[np.float32]
    ) -> tuple[list[ctypes.c_void_p], NDArray[np.float32]]:
        """Return the arguments of the network for an image `1 x C x H x W`, and its output."""
        _, channels, height, width = image.shape
        values = self._aligned((height, width, channels), np.float32)
        values[...] = image[0].transpose(1, 2, 0)
        output = self._aligned((self._classes,), np.float32)
        return [_pointer(each) for each in (values, output, self._workspace)], output

    def _aligned(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """Return an array of zeros that begins where the network wants its arguments."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = np.zeros(size + self._alignment, np.uint8)
        start = -memory.ctypes.data % self._alignment
        return memory[start : start + size].view(dtype).reshape(shape)


def compiler_for(target: str) -> list[str]:
    """Return the command of a C compiler for a target. Raises RequestError if there is none."""
    from nas.runtimes.tvm.cross import c_compiler

    is_remote = rpc_address.is_remote(target)
    return c_compiler(rpc_address.parse(target).triple if is_remote else None)


def _run(command: Sequence[str], folder: Path) -> None:
    """Run a compiler. Raises RuntimeError with its first error if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise RuntimeError(f"{command[0]}: {lines[0].strip()[:300]}")


def _declared(pattern: str, header: str) -> str:
    """Return what the header of a model declares. Raises ValueError for another header."""
    if match := re.search(pattern, header):
        return match[1]
    raise ValueError("the model.h that belongs to it is not beside it")


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    """Return the address of an array, which keeps the array alive."""
    return array.ctypes.data_as(ctypes.c_void_p)
