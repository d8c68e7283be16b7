"""Loads, runs and times files on a device, as its standard input asks.

The text of this module is sent to the Python of the device, and nothing is written there. It needs
numpy and nothing of this package. A request is a line of JSON, with as many bytes behind it as its
`bytes` says; an answer likewise. The program ends with its input, that is, with the connection.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import select
import sys
import threading
import time
import types
from collections import OrderedDict
from importlib import import_module
from typing import Any

ATTEMPTS = 5
"""Attempts at a sample during which the system does not take the core away."""

CACHE_SHARE = 1 / 8
"""Largest size of the files that stay loaded, as a share of the memory: runtimes need as much again
for weights in another layout, and tensors."""


def fastest_cores(count: int) -> list[int]:
    """Return the numbers of the fastest cores that this process may use, the last ones first."""

    def max_khz(core: int) -> int:
        try:
            with open(f"/sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq") as file:
                return int(file.read())
        except (OSError, ValueError):
            return 0

    allowed = os.sched_getaffinity(0)
    return sorted(allowed, key=lambda core: (max_khz(core), core), reverse=True)[:count]


class Device:
    """What runs on the device.

    Args:
        session: text of the module that loads files, see `nas.runtimes.files`.
        speed: text of the module that reads the speed of the core, `nas.latency.core_speed`.
        threads: number of threads that run one file.
        packages: names of the packages of which the runtime may be one.
    """

    def __init__(self, session: str, speed: str, threads: int, packages: list[str]) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, fastest_cores(threads))
        self._threads, self._packages = threads, packages
        self._session = module("session", session)
        self._take_reading = module("core_speed", speed).CoreSpeed().read
        self._files: OrderedDict[str, Any] = OrderedDict()
        pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        self._max_bytes = CACHE_SHARE * pages * page

    def describe(self, data: bytes, digests: list[str]) -> dict[str, Any]:
        """Return the versions of Python and the packages, and the digests of some files."""
        import numpy

        versions = {}
        for name in self._packages:
            package = sys.modules.get(name)
            if package is not None:
                versions[name] = str(getattr(package, "__version__", "")) or version(name)
        return {
            "python": platform.python_version(),
            "numpy": numpy.__version__,
            "versions": versions,
            "digests": {path: digest_of(path) for path in digests},
        }

    def load(self, data: bytes, file: str, options: dict[str, Any]) -> dict[str, Any]:
        """Load a file, or load it anew while the old one is still there."""
        while self._files and len(data) + sum(n for _, n in self._files.values()) > self._max_bytes:
            self._files.popitem(last=False)
        session = self._session.open_file(data, threads=self._threads, **options)
        self._files[file] = session, len(data)
        return {"facts": getattr(session, "facts", {})}

    def time(self, data: bytes, file: str, calls: int) -> dict[str, Any]:
        """Return the seconds of one call, and the slower of readings of the speed around them."""
        call = self._loaded(file).call
        before = self._take_reading()
        for _ in range(ATTEMPTS):
            preemptions = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
            call()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            seconds = (time.perf_counter() - start) / calls
            if resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw == preemptions:
                break
        return {"seconds": seconds, "reading": max(before, self._take_reading())}

    def speed(self, data: bytes) -> dict[str, Any]:
        """Return a reading of the speed of the core."""
        return {"reading": self._take_reading()}

    def run(self, data: bytes, file: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the first output for inputs by name, with their types and shapes."""
        import numpy

        arrays: dict[str, Any] = {}
        start = 0
        for name, (dtype, shape) in inputs.items():
            count = 1
            for size in shape:
                count *= size
            array = numpy.frombuffer(data, dtype, count, start).reshape(shape)
            arrays[name], start = array, start + array.nbytes
        output = numpy.ascontiguousarray(self._loaded(file).run(arrays))
        return {"dtype": output.dtype.str, "shape": output.shape, "data": output.tobytes()}

    def call(self, data: bytes, function: str, options: dict[str, Any]) -> dict[str, Any]:
        """Return what a function of the session's `FUNCTIONS` returns for a file."""
        answer = self._session.FUNCTIONS[function](data, **options)
        return {"data": answer} if isinstance(answer, bytes) else {"answer": answer}

    def _loaded(self, file: str) -> Any:
        self._files.move_to_end(file)
        return self._files[file][0]


def module(name: str, text: str) -> Any:
    """Return a module with this text."""
    made = types.ModuleType(name)
    sys.modules[name] = made
    exec(compile(text, name, "exec"), made.__dict__)
    return made


def version(name: str) -> str:
    """Return the version of a package that does not say it itself."""
    try:
        return import_module("importlib.metadata").version(name.replace("_", "-"))
    except ImportError:  # Old Pythons lack the module, and boards' images a record of packages.
        return "unknown"


def digest_of(path: str) -> str:
    """Return the digest of a file of the device."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def answer_to(device: Device, request: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Return the answer to a request; what the runtime raises is one."""
    name = request.pop("do")
    if request.get("file") not in (None, *device._files) and name != "load":
        return {"unknown": request["file"]}
    try:
        return getattr(device, name)(data, **request)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0]}"}


def end_with_connection() -> None:
    """Wait until nobody can send a request any more, and end the process, whatever it does."""
    poll = select.poll()
    poll.register(0, 0)  # A hang-up is reported in any case.
    poll.poll()
    os._exit(1)


def main() -> None:
    """Answer requests until the input ends."""
    threading.Thread(target=end_with_connection, daemon=True).start()
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a runtime prints is no answer.
    device = None
    for line in iter(requests.readline, b""):
        request = json.loads(line.decode())
        data = requests.read(request.pop("bytes", 0))
        if device is None:
            device = Device(**request)
            answer: dict[str, Any] = {}
        else:
            answer = answer_to(device, request, data)
        output = answer.pop("data", b"")
        answer["bytes"] = len(output)
        answers.write(json.dumps(answer).encode() + b"\n" + output)
        answers.flush()


if __name__ == "__main__":
    main()
