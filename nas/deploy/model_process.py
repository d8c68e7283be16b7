"""`ModelProcess`: an exported file, run by its own runtime in a process of its own.

A runtime that crashes or hangs ends its own process only, the memory that a file needs can be
measured, and the libraries of two runtimes do not meet.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from nas.deploy.formats import LoadedModel, ModelFormat
from nas.deploy.load import Load, LoadWindow, run_window
from nas.errors import ExportError, NasError
from nas.latency import timing
from nas.latency.timing import Timing
from nas.machine import this_machine
from nas.machine.processes import ChildProcess

if TYPE_CHECKING:
    from nas.run.model_card import ExportedFile

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

    versions: dict[str, str]
    quantised_layers: tuple[int, int] | None
    peak_memory_bytes: int | None


class ModelProcess:
    """An exported file, run by its own runtime in a process of its own.

    Use it as a context manager. The process starts by `start` or when the file is loaded, and
    ends with the block.

    Args:
        model_file: format of the file. It is sent to the process.
        path: path of the file.
        threads: number of threads that the runtime may use.
        cores: cores that the process uses; by default it chooses idle ones.
        device: another device that runs the file, see `ModelFormat.load_on`; empty for this one.

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
        device: str = "",
    ) -> None:
        self.model_file, self.path, self.threads, self.cores = model_file, path, threads, cores
        self.device = device
        self.loaded: LoadedFile | None = None
        self._process = ChildProcess()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; no call starts another, not even one of another thread."""
        self._process.close(for_good=True)

    @property
    def can_run(self) -> bool:
        """Whether the file is run by the device of this process."""
        if self.device:
            return self.model_file.runs_on(self.device)
        return self.model_file.can_run(self.path)

    def start(self) -> None:
        """Start the process, which `load` does otherwise. Raises ExportError; see `load`."""
        self._call(_is_ready, start=True)

    def load(self, image: NDArray[np.float32]) -> LoadedFile:
        """Load the file and classify one image, `1 x C x H x W`, which calls of `time` repeat.

        Raises:
            ExportError: the runtime refuses the file, or its process could not be started, died or
                ran out of time.
        """
        versions, layers, memory_bytes = self._call(
            _load,
            self.model_file,
            self.path.absolute(),
            self.threads,
            self.cores,
            self.device,
            image,
            limit_s=LOAD_LIMIT_SECONDS,
            start=True,
        )
        own = self.model_file.versions if versions is None else dict(versions)
        self.loaded = LoadedFile(own, layers, memory_bytes)
        return self.loaded

    def described(self, file: ExportedFile, **measured: Any) -> ExportedFile:
        """Return the record of the loaded file with what its runtime said and what was measured."""
        return file.model_copy(update={**vars(self.loaded), **measured})

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits `N x classes` of a batch of normalised images, `N x C x H x W`.

        Raises ExportError; see `load`.
        """
        return self._call(_logits, images)

    def learn_speed(self) -> None:
        """Learn the speed of the core, for which the first `time` waits for half a second else.

        Raises ExportError; see `load`.
        """
        if not self.device:
            self._call(timing.learn_speed, self.threads)

    def time(self, *, again: bool = False) -> Timing:
        """Return a timing of one image at this moment. Raises ExportError; see `load`.

        Args:
            again: whether the file is loaded again before, see `CompiledNetwork.reloaded`.
        """
        return self._call(_time, again, limit_s=LOAD_LIMIT_SECONDS)

    def run_window(self, load: Load, begin_s: float, end_s: float) -> LoadWindow:
        """Run a window of a load, see `nas.deploy.load.run_window`.

        Raises ExportError; see `load`.
        """
        remaining_s = max(0.0, load.start_s + load.seconds - time.monotonic())
        limit_s = remaining_s + RUN_LIMIT_SECONDS
        return self._call(_run_window, load, begin_s, end_s, limit_s=limit_s)

    def _call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        limit_s: float = RUN_LIMIT_SECONDS,
        start: bool = False,
    ) -> Any:
        try:
            return self._process.call(function, *arguments, limit_s=limit_s, start=start)
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
        load: function that loads the file.
        loaded: the file.
        image: the image whose time counts.
        threads: number of threads of the runtime.
    """

    load: Callable[[], LoadedModel]
    loaded: LoadedModel
    image: NDArray[np.float32]
    threads: int


_running: _Running
"""It is there after `_load`."""


def _is_ready() -> bool:
    return True


def _load(
    model_file: ModelFormat,
    path: Path,
    threads: int,
    cores: Sequence[int] | None,
    device: str,
    image: NDArray[np.float32],
) -> tuple[Mapping[str, str] | None, tuple[int, int] | None, int | None]:
    """Load a file; return versions, quantised layers and memory, see `LoadedFile`."""
    global _running
    if cores is not None:
        os.sched_setaffinity(0, cores)
    before_bytes = None if device else _memory_bytes("VmRSS")
    if before_bytes is not None:
        Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
    load = partial(model_file.open, path, threads, device)
    # Threads of a runtime stay on the cores on which it was loaded.
    with timing.pinned(threads):
        loaded = load()
        loaded.runner(image)()
    _running = _Running(load, loaded, image, threads)
    peak_bytes = _memory_bytes("VmHWM")
    own_bytes = None
    if before_bytes is not None and peak_bytes is not None:
        own_bytes = max(0, peak_bytes - before_bytes)
    return loaded.versions, loaded.quantised_layers(), own_bytes


def _logits(images: NDArray[np.float32]) -> NDArray[np.float32]:
    return _running.loaded.logits(images)


def _time(again: bool) -> Timing:
    with _running.loaded.timing_context(_running.threads):
        if again and not _running.loaded.reload():
            _running.loaded = _running.load()
        return timing.measure(_running.loaded.evaluator(_running.image))


def _run_window(load: Load, begin_s: float, end_s: float) -> LoadWindow:
    with timing.pinned(_running.threads):
        window = run_window(_running.loaded.runner(_running.image), load, begin_s, end_s)
        if hasattr(os, "sched_getaffinity"):
            window.clock_mhz = this_machine.clock_mhz(os.sched_getaffinity(0))
        return window


def _memory_bytes(key: str) -> int | None:
    """Return resident memory (`VmRSS`) or its peak (`VmHWM`); None if the system is not Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (kilobytes,) = re.findall(rf"^{key}:\s*(\d+)", status.read_text(), re.MULTILINE)
    return int(kilobytes) * 1024
