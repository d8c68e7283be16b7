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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nas.deploy.formats import LoadedModel, ModelFormat
from nas.errors import ExportError, NasError, first_line
from nas.latency import timing
from nas.processes import ChildProcess

LOAD_LIMIT_SECONDS = 180.0
"""How long a file may take to load; importing the slowest runtime takes 10 seconds."""

RUN_LIMIT_SECONDS = 120.0
"""How long one batch of images, or one sample of a latency, may take."""

_SHOWN_ERROR_CHARACTERS = 500
"""Longest end of what a runtime wrote to stderr that a message repeats."""


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

    Attributes:
        loaded: what the runtime said when it loaded the file; None before.
    """

    def __init__(self, model_file: ModelFormat, path: Path, *, threads: int = 1) -> None:
        self.model_file, self.path, self.threads = model_file, path, threads
        self.loaded: LoadedFile | None = None
        self._process: ChildProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def load(self, image: NDArray[np.float32]) -> LoadedFile:
        """Load the file and classify one image, `1 x C x H x W`, which calls of `time` repeat.

        Raises:
            ExportError: the runtime refuses the file, or its process could not be started, died or
                ran out of time.
        """
        format_class = type(self.model_file)
        names = format_class.__module__, format_class.__qualname__
        try:
            self._process = ChildProcess(_serve, *names, self.path.absolute(), self.threads)
        except OSError as error:
            raise ExportError(
                f"{self.path.name}: the process that runs it could not be started: "
                f"{error.strerror}.",
                remedy="Free memory or end other processes, and run the same command again.",
            ) from error
        answer, _ = self._request("load", image, limit_s=LOAD_LIMIT_SECONDS)
        layers = answer["quantised_layers"]
        self.loaded = LoadedFile(
            versions=answer["versions"],
            quantised_layers=None if layers is None else (layers[0], layers[1]),
            peak_memory_bytes=answer["peak_memory_bytes"],
        )
        return self.loaded

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits `N x classes` of normalised images `N x C x H x W`.

        Raises ExportError; see `load`.
        """
        _, logits = self._request("logits", images, limit_s=RUN_LIMIT_SECONDS)
        assert logits is not None
        return logits

    def time(self) -> float:
        """Return the median seconds of one image in a few undisturbed samples.

        Raises ExportError; see `load`.
        """
        answer, _ = self._request("time", limit_s=RUN_LIMIT_SECONDS)
        return float(answer["seconds"])

    def _request(
        self, name: str, array: NDArray[np.float32] | None = None, *, limit_s: float
    ) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
        process = self._process
        assert process is not None
        try:
            process.pipe.send((name, array))
            answer, result = process.receive(limit_s)
        except TimeoutError:
            raise self._end_error(f"did not answer within {limit_s:.0f} s") from None
        except (EOFError, OSError):
            raise self._end_error(process.end_text()) from None
        if "error" in answer:
            raise ExportError(f"{self.path.name}: {answer['error']}", remedy=str(answer["remedy"]))
        return answer, result

    def _end_error(self, reason: str) -> ExportError:
        """End the process, and return the error for it with the end of what it wrote."""
        assert self._process is not None
        written = self._process.output()[-_SHOWN_ERROR_CHARACTERS:]
        self.close()
        return ExportError(
            f"{self.path.name}: the process that runs it {reason}."
            f"{f' It wrote: {written}' if written else ''}",
            remedy="`nas doctor` shows the versions of the runtimes.",
        )


# The process


def _serve(pipe: Connection, module: str, name: str, path: Path, threads: int) -> None:
    """Run the process: load a file when asked to, and answer requests until the pipe is closed."""
    # The module of a format may import its runtime, which counts.
    memory = _PeakMemory()
    model_file: ModelFormat = getattr(import_module(module), name)()
    loaded: LoadedModel | None = None
    image: NDArray[np.float32] | None = None
    run: Callable[[], object] | None = None
    while True:
        try:
            request, array = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)  # The parent has ended, or wants no more.
        answer: dict[str, Any] = {}
        result = None
        try:
            if request == "load":
                image = array
                assert image is not None
                # Threads of a runtime stay on the cores on which it was loaded.
                with timing.pinned(threads):
                    loaded = model_file.load(path, threads)
                    run = loaded.runner(image)
                    run()
                answer["peak_memory_bytes"] = memory.growth_bytes()
                answer["versions"] = loaded.versions
                answer["quantised_layers"] = loaded.quantised_layers()
            elif request == "logits":
                assert loaded is not None
                assert array is not None
                run = None  # Another batch size may need other buffers.
                result = loaded.logits(array)
            else:
                assert loaded is not None
                assert image is not None
                with timing.pinned(threads):
                    run = run or loaded.runner(image)
                    answer["seconds"] = _median_seconds(run)
        except NasError as error:
            answer, result = {"error": error.message, "remedy": error.remedy}, None
        # A runtime may raise anything; it becomes the answer.
        except Exception as error:
            answer, result = {"error": first_line(error), "remedy": ""}, None
        pipe.send((answer, result))


def _median_seconds(run: Callable[[], object]) -> float:
    """Return the median seconds of one call, of a few undisturbed samples."""

    def evaluate(calls: int, samples: int) -> Sequence[float]:
        seconds = []
        for _ in range(samples):
            run()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            seconds.append((time.perf_counter() - start) / calls)
        return seconds

    calls = timing.calls_per_sample(evaluate, timing.SAMPLE_SECONDS)
    return timing.median_seconds(evaluate, calls)


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
