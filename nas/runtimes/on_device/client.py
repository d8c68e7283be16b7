"""`DeviceFiles`: loads files on another device through a transport, and runs and times them there.

The Python of the device gets the text of `program`, and answers as long as the connection lasts.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import BoardLostError, DeviceError, MeasurementError, RequestError
from nas.files.documents import shortened
from nas.latency import core_speed, timing
from nas.latency.core_speed import CoreSpeed
from nas.runtimes.files import File, Files
from nas.transports import EndedProgramError, Program, transport_to
from nas.transports.facts import DeviceFacts

ANSWER_SECONDS = 300.0
"""Longest time in which a device may say nothing: it loads a large network, or runs it."""

START_SECONDS = 120.0
"""Longest time that the device may take to import the runtime."""

RECONNECT_SECONDS = 60.0
"""How long a lost device is connected to again: it may be starting anew."""

RECONNECT_PAUSE_SECONDS = 2.0
"""Pause before each of these attempts."""

_MAX_ANSWER_BYTES = 1 << 30
"""Largest data of an answer: an optimised model."""


class _ProgramEndedError(MeasurementError):
    """The program on the device ended, which a crash of the runtime does."""


class DeviceFiles(Files):
    """Loads files on a device.

    Its methods raise BoardLostError if the device is gone for more than `RECONNECT_SECONDS`,
    DeviceError if it answers what it should not, and MeasurementError with what the runtime says.

    Args:
        session: path of the runtime's module, as of `Files`. Its text is sent.
        threads: number of threads that run one file.
        address: address of the device.
        python: its Python, a name or a path.
        packages: names of the packages one of which the runtime is, as `import` takes them.
        install: what pip installs for it.
        delegate: `library` and `options` of a delegate that all files get; None for none.
    """

    def __init__(
        self,
        session: Path,
        threads: int,
        *,
        address: str,
        python: str,
        packages: Sequence[str],
        install: str,
        delegate: Mapping[str, Any] | None = None,
    ) -> None:
        self._session, self._threads = session, threads
        self.transport = transport_to(address)
        self._python, self._packages, self._install = python, packages, install
        self._delegate = delegate
        self._open = ExitStack()
        self._program: Program | None = None
        self._first: Mapping[str, Any] | None = None
        self._reading_s: float | None = None
        self._speed = CoreSpeed(self._read_speed)

    def load(self, data: bytes, **options: Any) -> FileOnDevice:
        """See `Files.load`."""
        if self._delegate is not None:
            options["delegate"] = self._delegate
        return FileOnDevice(self, data, options)

    def call(self, function: str, data: bytes, **options: Any) -> Any:
        """See `Files.call`."""
        answer, output = self.ask({"do": "call", "function": function, "options": options}, data)
        return answer.get("answer", output)

    def timing_context(self) -> AbstractContextManager[None]:
        """See `Files.timing_context`. The speed of the device's core is read."""
        return timing.reading(self._speed)

    def describe(self) -> Mapping[str, Any]:
        """Return `versions` of the runtime, `python`, `numpy`, and `digests` of the delegate."""
        if self._first is None:
            self._reconnected()
        assert self._first is not None
        return self._first

    def close(self) -> None:
        """Close the connection, which ends the program; the next use opens another one."""
        self._program = None
        self._open.close()

    def ask(
        self, request: Mapping[str, Any], data: bytes = b"", *, once: bool = False
    ) -> tuple[Mapping[str, Any], bytes]:
        """Return an answer of the device and its data.

        A lost device is connected to again. A program that ended is started once more, unless
        `once`: it may have been killed, and one that a file crashes ends again.
        """
        try:
            answer = self._exchange(self._connected(), request, data)
        except (BoardLostError, _ProgramEndedError) as error:
            if once and isinstance(error, _ProgramEndedError):
                raise
            answer = self._exchange(self._reconnected(), request, data)
        if "error" in answer[0]:
            raise MeasurementError(f"{self.transport.address}: {answer[0]['error']}")
        return answer

    def sample(
        self, file: str, calls: int, *, once: bool = False
    ) -> tuple[Mapping[str, Any], float]:
        """Return an answer with the seconds of a call, which the next reading belongs to."""
        answer, _ = self.ask({"do": "time", "file": file, "calls": calls}, once=once)
        if "unknown" in answer:
            return answer, math.nan
        self._reading_s = self._number(answer, "reading")
        return answer, self._number(answer, "seconds")

    def _read_speed(self) -> float:
        """Return the reading beside the latest sample, or take one."""
        if self._reading_s is None:
            return self._number(self.ask({"do": "speed"})[0], "reading")
        reading_s, self._reading_s = self._reading_s, None
        return reading_s

    def _number(self, answer: Mapping[str, Any], name: str) -> float:
        value = answer.get(name)
        if isinstance(value, float) and 0 < value < math.inf:
            return value
        raise self._unexpected(answer)

    def _connected(self) -> Program:
        if self._program is None:
            self._program = self._connect()
        return self._program

    def _reconnected(self) -> Program:
        """Return a new connection, after some attempts. Raises BoardLostError."""
        deadline = time.monotonic() + RECONNECT_SECONDS
        while True:
            self.close()
            try:
                return self._connected()
            except BoardLostError:
                # A device that never answered has another address than the user thinks.
                if self._first is None or time.monotonic() > deadline:
                    raise
                time.sleep(RECONNECT_PAUSE_SECONDS)

    def _connect(self) -> Program:
        text = resources.files(__package__).joinpath("program.py").read_bytes()
        command = [self._python, "-c", f"import sys; exec(sys.stdin.buffer.read({len(text)}))"]
        self._open.enter_context(self.transport)
        program = self._open.enter_context(self.transport.start(command))
        try:
            program.write(text)
            start = {
                "session": self._session.read_text("utf-8"),
                "speed": Path(core_speed.__file__).read_text("utf-8"),
                "threads": self._threads,
                "packages": self._packages,
            }
            self._exchange(program, start, limit_s=START_SECONDS)
        except (EndedProgramError, _ProgramEndedError) as error:
            raise self._unusable(program.end_reason()) from error
        digests = [] if self._delegate is None else [self._delegate["library"]]
        description, _ = self._exchange(program, {"do": "describe", "digests": digests})
        if "error" in description or not description.get("versions"):
            raise DeviceError(
                f"{self.transport.address}: {description.get('error', 'it has no runtime')}.",
                remedy="Name a file of the device with delegate=." if digests else "",
            )
        if self._delegate is not None:
            self._require_delegate(program, self._delegate)
        facts = DeviceFacts.of(self.transport)
        description = {**description, "processor": facts.processor}
        if self._first is not None and description != self._first:
            raise DeviceError(
                f"{self.transport.address} differs from what was used before: {description}, and "
                f"before {self._first}.",
                remedy="Start the command again, with equal devices.",
            )
        self._first, self.facts = description, facts
        return program

    def _require_delegate(self, program: Program, delegate: Mapping[str, Any]) -> None:
        """Raise DeviceError if the runtime there does not load the delegate."""
        request = {"do": "call", "function": "check_delegate", "options": {"delegate": delegate}}
        answer, _ = self._exchange(program, request)
        if "error" in answer:
            raise DeviceError(
                f"The delegate {delegate['library']} on {self.transport.address} does not load: "
                f"{answer['error']}.",
                remedy="Correct delegate= and delegate_options= behind the address.",
            )

    def _unusable(self, reason: str) -> DeviceError | RequestError:
        """Return the error for a device whose Python cannot run the program."""
        if "ModuleNotFoundError" in reason or "ImportError" in reason:
            return RequestError(
                f"{self._python} on {self.transport.address} lacks a package ({reason}).",
                remedy=f"There: {self._python} -m pip install {self._install} numpy. Or name "
                "another Python with ?python=PATH behind the address.",
            )
        if "not found" in reason or "No such file" in reason:
            return RequestError(
                f"{self.transport.address} has no {self._python} ({reason}).",
                remedy="Install Python 3 there, or name it with ?python=PATH behind the address.",
            )
        return DeviceError(
            f"{self._python} on {self.transport.address} cannot be used: {reason}.",
            remedy=f"Does `{self._python} -c 'import {self._packages[0]}'` work there? Some "
            "versions need a newer processor or system.",
        )

    def _exchange(
        self,
        program: Program,
        request: Mapping[str, Any],
        data: bytes = b"",
        *,
        limit_s: float = ANSWER_SECONDS,
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request, and return the answer and its data, after checking their form.

        Raises:
            _ProgramEndedError: the program there ended.
        """
        with suppress(EndedProgramError):
            program.write(json.dumps({**request, "bytes": len(data)}).encode() + b"\n" + data)
            if (line := program.read_line(limit_s=limit_s)) is not None:
                answer = self._checked(line)
                return answer, program.read_exactly(answer["bytes"], limit_s=limit_s)
        self._program = None
        raise _ProgramEndedError(f"{self.transport.address}: {program.end_reason()}.")

    def _checked(self, line: bytes) -> dict[str, Any]:
        """Return the answer in a line. Raises DeviceError for a line that is none."""
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = line.decode(errors="replace")
        size = answer.get("bytes") if isinstance(answer, dict) else None
        if type(size) is not int or not 0 <= size <= _MAX_ANSWER_BYTES:
            raise self._unexpected(answer)
        return answer

    def _unexpected(self, answer: Any) -> DeviceError:
        return DeviceError(
            f"{self.transport.address} answers {shortened(answer)}, which is no answer."
        )


class FileOnDevice(File):
    """A file that a device has loaded. See `Files.load`.

    Attributes:
        facts: what the runtime says of the file.
    """

    def __init__(self, files: DeviceFiles, data: bytes, options: Mapping[str, Any]) -> None:
        self._device, self._data, self._options = files, data, options
        text = json.dumps(options, sort_keys=True).encode()
        self._id = hashlib.sha256(data + text).hexdigest()
        self.reload()

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """See `File.evaluate`. The device repeats a sample during which it was preempted."""
        return [self._sample(calls) for _ in range(samples)]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """See `File.run`."""
        arrays = {name: np.ascontiguousarray(each) for name, each in inputs.items()}
        kinds = {name: (each.dtype.str, each.shape) for name, each in arrays.items()}
        request = {"do": "run", "file": self._id, "inputs": kinds}
        data = b"".join(each.tobytes() for each in arrays.values())
        answer, output = self._device.ask(request, data)
        if "unknown" in answer:
            self.reload()
            answer, output = self._device.ask(request, data)
        try:
            return np.frombuffer(output, answer["dtype"]).reshape(answer["shape"]).copy()
        except (KeyError, TypeError, ValueError):
            raise self._device._unexpected(answer) from None

    def reload(self) -> None:
        """See `File.reload`."""
        request = {"do": "load", "file": self._id, "options": self._options}
        self.facts = self._device.ask(request, self._data)[0].get("facts", {})

    def _sample(self, calls: int) -> float:
        answer, seconds = self._device.sample(self._id, calls)
        if "unknown" in answer:  # The device has made room for other files, or started anew.
            self.reload()
            answer, seconds = self._device.sample(self._id, calls, once=True)
            if "unknown" in answer:
                raise self._device._unexpected(answer)
        return seconds
