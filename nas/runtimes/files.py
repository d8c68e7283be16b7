"""`Files`: loads model files with a runtime in this process, and runs and times them.

The runtime is a module such as `nas.runtimes.onnxruntime.session`. It has `open_file(data,
threads=..., **options)`, which returns an object with `call()` and `run(inputs)`, and may have
`FUNCTIONS`, its other functions of a file by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nas.latency import timing
from nas.latency.repeated_kernels import RepeatedKernelRuntime


class FileRuntime(RepeatedKernelRuntime):
    """A runtime that loads model files.

    Attributes:
        module: name of the module that loads them.
    """

    module: ClassVar[str]

    @cached_property
    def files(self) -> Files:
        """What loads files; the first use imports the runtime."""
        return Files(import_module(self.module), self.threads)


class Files:
    """Loads files.

    Args:
        module: the runtime.
        threads: number of threads that run one file.
    """

    def __init__(self, module: ModuleType, threads: int) -> None:
        self._module, self._threads = module, threads

    def load(self, data: bytes, **options: Any) -> File:
        """Load a file; the options are those of the runtime's `open_file`.

        Raises:
            Exception: the runtime cannot load it.
        """
        return File(self, data, options)

    def call(self, function: str, data: bytes, **options: Any) -> Any:
        """Return what one of the runtime's `FUNCTIONS` returns for a file."""
        return self._module.FUNCTIONS[function](data, **options)

    def open(self, data: bytes, options: Mapping[str, Any]) -> Any:
        """Return what the runtime makes of a file."""
        # The threads of a runtime stay on the cores on which the thread that made them was.
        with timing.pinned(self._threads) if self._threads > 1 else nullcontext():
            return self._module.open_file(data, threads=self._threads, **options)


class File:
    """A file that a runtime has loaded. See `Files.load`."""

    def __init__(self, files: Files, data: bytes, options: Mapping[str, Any]) -> None:
        self._files, self._data, self._options = files, data, options
        self._session = files.open(data, options)

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Time the file on inputs that are in place. See `nas.latency.timing.Evaluate`."""
        return timing.call_seconds(self._session.call, calls, samples)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the first output for inputs by name."""
        output: NDArray[np.float32] = self._session.run(inputs)
        return output

    def reload(self) -> None:
        """Load the file anew. Its tensors lie elsewhere, because the old ones are still there."""
        self._session = self._files.open(self._data, self._options)
