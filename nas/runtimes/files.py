"""`Files`: loads model files with a runtime in this process, and runs and times them.

The runtime is a module such as `nas.runtimes.onnxruntime.session`. It has `open_file(data,
threads=..., **options)`, which returns an object with `call()` and `run(inputs)`, and perhaps
`facts` of the file as JSON; and it may have `FUNCTIONS`, its other functions of a file by name. It
needs nothing of this package, because its text is sent to other devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.latency import timing


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

    def timing_context(self) -> AbstractContextManager[None]:
        """Return a context in which nothing disturbs timings of files."""
        return timing.pinned(self._threads)

    def close(self) -> None:
        """Close a connection to the device of the files, if there is one."""
        return


class File:
    """A file that a runtime has loaded. See `Files.load`.

    Attributes:
        facts: what the runtime says of the file.
    """

    facts: Mapping[str, Any]

    def __init__(self, files: Files, data: bytes, options: Mapping[str, Any]) -> None:
        self._files, self._data, self._options = files, data, options
        self._session = files.open(data, options)
        self.facts = getattr(self._session, "facts", {})

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
