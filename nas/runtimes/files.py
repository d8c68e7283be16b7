"""`Files`: where a runtime loads, runs and times model files: in this process, or on a device.

The runtime is a module that imports nothing of this package, such as
`nas.runtimes.onnxruntime.session`. It has `open_file(data, threads=..., **options)`, which returns
an object with `call()` and `run(inputs)`, and `FUNCTIONS`, its other functions of a file by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.latency import timing


class File(ABC):
    """A file that a runtime has loaded."""

    @abstractmethod
    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Time the file on inputs that are in place. See `nas.latency.timing.Evaluate`."""

    @abstractmethod
    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the first output for inputs by name."""

    @abstractmethod
    def reload(self) -> None:
        """Load the file anew, so that its tensors lie elsewhere in memory."""


class Files(ABC):
    """Where model files are loaded."""

    @abstractmethod
    def load(self, data: bytes, **options: Any) -> File:
        """Load a file; the options are those of the runtime's `open_file`.

        Raises:
            Exception: the runtime cannot load it.
        """

    @abstractmethod
    def call(self, function: str, data: bytes = b"", **options: Any) -> Any:
        """Return what one of the runtime's `FUNCTIONS` returns for a file: bytes, or JSON."""


class LocalFiles(Files):
    """Files that are loaded in this process.

    Args:
        module: the runtime.
        threads: number of threads that run one file.
    """

    def __init__(self, module: ModuleType, threads: int) -> None:
        self._module, self._threads = module, threads

    def load(self, data: bytes, **options: Any) -> File:
        """See `Files.load`."""
        return _LocalFile(self, data, options)

    def call(self, function: str, data: bytes = b"", **options: Any) -> Any:
        """See `Files.call`."""
        arguments = (data,) if data else ()
        return self._module.FUNCTIONS[function](*arguments, **options)

    def open(self, data: bytes, options: Mapping[str, Any]) -> Any:
        """Return what the runtime makes of a file."""
        # The threads of a runtime stay on the cores on which the thread that made them was.
        with timing.pinned(self._threads) if self._threads > 1 else nullcontext():
            return self._module.open_file(data, threads=self._threads, **options)


class _LocalFile(File):
    def __init__(self, files: LocalFiles, data: bytes, options: Mapping[str, Any]) -> None:
        self._files, self._data, self._options = files, data, options
        self._session = files.open(data, options)

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """See `File.evaluate`."""
        return timing.call_seconds(self._session.call, calls, samples)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """See `File.run`."""
        output: NDArray[np.float32] = self._session.run(inputs)
        return output

    def reload(self) -> None:
        """See `File.reload`. The new tensors lie elsewhere because the old ones are still there."""
        self._session = self._files.open(self._data, self._options)
