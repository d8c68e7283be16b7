"""Times TensorFlow Lite files on a board, in a process that a delegate may crash or block."""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nas.errors import DeviceError, MeasurementError, NasError, first_line
from nas.latency import timing
from nas.machine import this_machine
from nas.runtimes.boards.address import BoardDescription
from nas.runtimes.boards.tflite_protocol import PROTOCOL

CACHE_FRACTION = 1 / 8
"""Largest size of the files that stay loaded, as a fraction of the memory. LiteRT needs as much
again for weights in another layout, and tensors."""

CACHE_BYTES_WITHOUT_MEMORY = 64 << 20
"""The same where the size of the memory is not known."""


@dataclass(frozen=True)
class Delegate:
    """A library that runs operators of TensorFlow Lite files, such as an NPU's.

    Args:
        path: path of the library.
        options: its options, names with values.
    """

    path: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """File name of the library."""
        return Path(self.path).name

    @property
    def version(self) -> str:
        """What latencies depend on: the library's digest, and its options."""
        digest = hashlib.sha256(Path(self.path).read_bytes()).hexdigest()[:12]
        return " ".join([digest, *(f"{name}={value}" for name, value in self.options)])

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of LiteRT's `load_delegate`."""
        return {"library": self.path, "options": dict(self.options)}

    def load(self) -> Any:
        """Return LiteRT's object of the delegate, for one interpreter.

        Raises:
            DeviceError: the library does not load, or refuses its options.
        """
        load_delegate = _interpreter_module().load_delegate
        try:
            return load_delegate(**self.arguments)
        except (OSError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise DeviceError(f"The delegate {self.path} does not load: {reason}.") from error


def answer(delegate: Delegate | None, request: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    """Return the answer to a request of `nas.runtimes.boards.tflite_protocol`.

    Args:
        delegate: delegate for all files; None for none.
        request: the request.
        data: the file, if the request brings it.
    """
    try:
        if "describe" in request:
            return describe(delegate)
        if "speed" in request:
            return {"seconds": timing.read_speed(request["speed"])}
        return _loaded_files(delegate).time(data, **request)
    # LiteRT and delegates may raise anything; it becomes the answer.
    except Exception as error:
        return error_answer(error)


@cache
def _loaded_files(delegate: Delegate | None) -> LoadedFiles:
    return LoadedFiles(delegate)


class LoadedFiles:
    """The files that are loaded; the ones that were used last stay.

    Args:
        delegate: delegate for all files; None for none.
    """

    def __init__(self, delegate: Delegate | None) -> None:
        self._delegate = delegate
        self._loaded: OrderedDict[tuple[str, int, int], tuple[Any, int]] = OrderedDict()
        memory_bytes = this_machine.recorded_facts()["memory_bytes"]
        self._max_bytes = (
            memory_bytes * CACHE_FRACTION if memory_bytes else CACHE_BYTES_WITHOUT_MEMORY
        )

    def time(
        self, data: bytes, file: str, threads: int, batch: int, calls: int, samples: int
    ) -> dict[str, Any]:
        """Return seconds of one call, one value a sample, and the operators of a file."""
        key = file, threads, batch
        if key not in self._loaded:
            if not data:
                return {"unknown": file}
            self._load(key, data)
        self._loaded.move_to_end(key)
        session, _ = self._loaded[key]
        seconds: list[float] = []
        if samples:
            # Whoever asks takes readings beside each sample, and repeats those of a slowed core.
            with timing.pinned(threads), timing.reading(None):
                seconds = timing.undisturbed_samples(
                    partial(timing.call_seconds, session.call), calls, samples
                )
        return {"seconds": seconds, **session.facts}

    def _load(self, key: tuple[str, int, int], data: bytes) -> None:
        from nas.runtimes.litert.session import Session

        file, threads, batch = key
        if hashlib.sha256(data).hexdigest() != file:
            raise MeasurementError("The file did not arrive as it was sent.")
        # Make room first: both together may not fit.
        while self._loaded and len(data) + self._size() > self._max_bytes:
            self._loaded.popitem(last=False)
        delegate = None if self._delegate is None else self._delegate.arguments
        # The threads of XNNPACK stay on the cores on which the thread that made them was.
        with timing.pinned(threads):
            self._loaded[key] = Session(data, threads, batch, delegate), len(data)

    def _size(self) -> int:
        return sum(size for _, size in self._loaded.values())


def describe(delegate: Delegate | None) -> dict[str, Any]:
    """Return the description of this board, after loading its delegate."""
    name = _interpreter_module().__name__.partition(".")[0]
    package = name.replace("_", "-")
    try:
        versions = {package: version(package)}
    except PackageNotFoundError:  # A board's image may have no record of its packages.
        versions = {package: getattr(sys.modules[name], "__version__", "unknown")}
    if delegate is not None:
        delegate.load()
        versions[delegate.name] = delegate.version
    processor, features = this_machine.processor()
    described = BoardDescription(
        processor,
        features,
        this_machine.recorded_facts(),
        versions,
        delegate.name if delegate else "",
    )
    return {**asdict(described), "protocol": PROTOCOL}


def error_answer(error: Exception) -> dict[str, str]:
    """Return the answer that says why a request failed."""
    return {"error": str(error) if isinstance(error, NasError) else first_line(error)}


def _interpreter_module() -> Any:
    """Return the module of LiteRT's interpreter that `session` uses."""
    from nas.runtimes.litert import session

    return sys.modules[session.Interpreter.__module__]
