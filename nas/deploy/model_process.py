"""`ModelProcess`: an exported file, run by its own runtime in a process of its own.

A runtime that crashes or hangs ends its own process only, the memory that a file needs can be
measured, and the libraries of two runtimes do not meet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nas.deploy.formats import LoadedModel, ModelFormat
from nas.deploy.load import Load, LoadWindow, run_window
from nas.errors import ExportError, NasError
from nas.latency import timing
from nas.latency.timing import Timing
from nas.machine import this_machine
from nas.machine.processes import ChildProcess

LOAD_LIMIT_SECONDS = 180.0
"""How long a file may take to load; importing the slowest runtime takes 10 seconds."""

RUN_LIMIT_SECONDS = 120.0
"""How long one batch of images, or one sample of a latency, may take."""


@dataclass(frozen=True)
class LoadedFile:
    """What a runtime says of a file that it loaded.

    Attributes:
        versions: versions of the packages that run the file, by name.
        quantised_layers: number of convolutions and linear layers that run in int8, and of all;
            None if the runtime does not show them.
        peak_memory_bytes: memory that importing the runtime, loading the file and classifying one
            image took; None if the system does not say.
    """

    versions: dict[str, str] = field(default_factory=dict)
    quantised_layers: tuple[int, int] | None = None
    peak_memory_bytes: int | None = None


class ModelProcess:
    """An exported file, run by its own runtime in a process of its own.

    Use it as a context manager. The process starts when the file is loaded, and ends with the
    block.

    Args:
        model_file: format of the file. The process imports its class.
        path: path of the file.
        threads: number of threads that the runtime may use.
        cores: cores that the process uses; by default it chooses idle ones.

    Attributes:
        loaded: what the runtime said when it loaded the file; None before.
    """

    def __init__(
        self,
        model_file: ModelFormat,
        path: Path,
        *,
        threads: int = 1,
        cores: Sequence[int] | None = None,
    ) -> None:
        self.model_file, self.path, self.threads, self.cores = model_file, path, threads, cores
        self.loaded: LoadedFile | None = None
        self._process = ChildProcess()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def load(self, image: NDArray[np.float32]) -> LoadedFile:
        """Load the file and classify one image, `1 x C x H x W`, which calls of `time` repeat.

        Raises:
            ExportError: the runtime refuses the file, or its process could not be started, died or
                ran out of time.
        """
        kind = type(self.model_file)
        names = kind.__module__, kind.__qualname__
        self.loaded = self._call(
            _load,
            *names,
            self.path.absolute(),
            self.threads,
            self.cores,
            image,
            limit_s=LOAD_LIMIT_SECONDS,
        )
        return self.loaded

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits `N x classes` of normalised images `N x C x H x W`.

        Raises ExportError; see `load`.
        """
        logits: NDArray[np.float32] = self._call(
            _logits, images, limit_s=RUN_LIMIT_SECONDS, start=False
        )
        return logits

    def time(self) -> Timing:
        """Return a timing of one image at this moment. Raises ExportError; see `load`."""
        timed: Timing = self._call(_time, limit_s=RUN_LIMIT_SECONDS, start=False)
        return timed

    def run_window(self, load: Load, begin_s: float, end_s: float) -> LoadWindow:
        """Run a window of a load, see `nas.deploy.load.run_window`.

        Raises ExportError; see `load`.
        """
        remaining_s = max(0.0, load.start_s + load.seconds - time.monotonic())
        limit_s = remaining_s + RUN_LIMIT_SECONDS
        window: LoadWindow = self._call(
            _run_window, load, begin_s, end_s, limit_s=limit_s, start=False
        )
        return window

    def _call(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        try:
            return self._process.call(function, *arguments, **settings)
        except NasError as error:
            message, remedy = error.message, error.remedy
        except (ChildProcessError, TimeoutError) as error:
            message = f"the process that runs it {error}."
            remedy = "`nas doctor` shows the versions of the runtimes."
        except RuntimeError as error:
            message, remedy = str(error), ""
        raise ExportError(f"{self.path.name}: {message}", remedy=remedy)


# The process


@dataclass
class _Running:
    """The file that this process runs.

    Attributes:
        loaded: the file.
        image: the image whose time counts.
        threads: number of threads of the runtime.
    """

    loaded: LoadedModel
    image: NDArray[np.float32]
    threads: int


_running: _Running | None = None


def _load(
    module: str,
    name: str,
    path: Path,
    threads: int,
    cores: Sequence[int] | None,
    image: NDArray[np.float32],
) -> LoadedFile:
    global _running
    if cores is not None:
        os.sched_setaffinity(0, cores)
    # The module of a format may import its runtime, which counts.
    memory = _PeakMemory()
    kind: type[ModelFormat] = getattr(import_module(module), name)
    # Threads of a runtime stay on the cores on which it was loaded.
    with timing.pinned(threads):
        loaded = kind().load(path, threads)
        loaded.runner(image)()
    _running = _Running(loaded, image, threads)
    return LoadedFile(loaded.versions, loaded.quantised_layers(), memory.growth_bytes())


def _logits(images: NDArray[np.float32]) -> NDArray[np.float32]:
    assert _running is not None
    return _running.loaded.logits(images)


def _time() -> Timing:
    assert _running is not None
    with timing.pinned(_running.threads):
        return timing.measure(_running.loaded.evaluator(_running.image))


def _run_window(load: Load, begin_s: float, end_s: float) -> LoadWindow:
    assert _running is not None
    with timing.pinned(_running.threads):
        window = run_window(_running.loaded.runner(_running.image), load, begin_s, end_s)
        if hasattr(os, "sched_getaffinity"):
            window.clock_mhz = this_machine.clock_mhz(os.sched_getaffinity(0))
        return window


class _PeakMemory:
    """The peak of the memory of this process since this object was made."""

    def __init__(self) -> None:
        self._before = _memory_bytes("VmRSS")
        if self._before is not None:
            # Resets the peak, see proc_pid_clear_refs(5).
            Path("/proc/self/clear_refs").write_text("5")

    def growth_bytes(self) -> int | None:
        """Return how far the peak is above the memory at the start; None if it is not known."""
        peak = _memory_bytes("VmHWM")
        return None if self._before is None or peak is None else max(0, peak - self._before)


def _memory_bytes(key: str) -> int | None:
    """Return resident memory (`VmRSS`) or its peak (`VmHWM`); None if the system is not Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for line in status.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None
