"""Kernels compiled and timed in a process of their own, which may crash, hang or be killed.

A compiler that runs into its own bug takes its process along. Here that process is a worker: what
it was asked for becomes an error, the next kernel gets a new worker, and a table's build goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

from nas.errors import MeasurementError, first_line
from nas.latency.kernel import Kernel
from nas.latency.runtimes import Runtime, open_runtime
from nas.latency.timing import Timing

LIMIT_SECONDS = 120.0
"""How long one kernel may take to compile and time; the slowest of our spaces take three."""

START_SECONDS = 120.0
"""How long a worker may take to start: it imports the runtime."""

Opener = Callable[[str, str, int, str], Runtime]
"""Opens a runtime from its name, target, threads and dtype; importable by the worker."""


def opened(name: str, target: str, threads: int, dtype: str) -> Runtime:
    """The usual opener: `nas.latency.runtimes.open_runtime`."""
    return open_runtime(name, target=target, threads=threads, dtype=dtype)


class IsolatedTimer:
    """A `Timer` behind a process boundary.

    Use it as a context manager; the worker starts with the first kernel.

    Args:
        runtime: what the worker opens again, on the same device and settings.
        limit_s: seconds for one kernel.
        opener: how the worker opens it.
    """

    def __init__(
        self, runtime: Runtime, *, limit_s: float = LIMIT_SECONDS, opener: Opener = opened
    ) -> None:
        device = runtime.fingerprint
        self._settings = (device.runtime, device.target, device.threads, device.dtype)
        self._limit_s, self._opener = limit_s, opener
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def time_kernel(self, kernel: Kernel) -> tuple[Mapping[str, Any], Timing]:
        """See `Runtime.time_kernel`.

        Raises MeasurementError for a kernel that cannot be timed, or on which the worker died or
        ran out of time.
        """
        schedule, samples = self._ask("time_kernel", kernel.text)
        return schedule, Timing(samples)

    def retime_kernel(self, kernel: Kernel, schedule: Mapping[str, Any]) -> Timing:
        """See `Runtime.retime_kernel`. Raises MeasurementError as `time_kernel` does."""
        return Timing(self._ask("retime_kernel", kernel.text, dict(schedule)))

    def time_dispatch(self) -> Mapping[str, Timing]:
        """See `Runtime.time_dispatch`. Raises MeasurementError as `time_kernel` does."""
        return {part: Timing(samples) for part, samples in self._ask("time_dispatch").items()}

    def _ask(self, request: str, *arguments: Any) -> Any:
        pipe = self._started()
        try:
            pipe.send((request, *arguments))
            if not pipe.poll(self._limit_s):
                self._stop()
                raise MeasurementError(
                    f"compiling and timing took more than {self._limit_s:.0f} s",
                    remedy="Time it again with --retry-failed on an idle machine.",
                )
            kind, answer = pipe.recv()
        except (EOFError, OSError) as error:
            raise MeasurementError(f"the compiler's process {self._ended()}") from error
        if kind == "error":
            raise MeasurementError(answer)
        return answer

    def _started(self) -> Connection:
        """The pipe to a worker that is ready."""
        pipe, process = self._pipe, self._process
        # A worker says nothing unasked: if there is something to read, it is its end.
        if pipe is not None and process is not None and process.is_alive() and not pipe.poll(0):
            return pipe
        self._stop()
        # Spawned, not forked: threads of torch or TVM do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._opener, self._settings), daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            ready = self._pipe.poll(START_SECONDS) and self._pipe.recv()
        except (EOFError, OSError) as error:
            raise MeasurementError(
                f"the compiler's process {self._ended()} at its start"
            ) from error
        if ready != "ready":
            self._stop()
            raise MeasurementError(
                f"the compiler's process did not start: {ready or 'it took too long'}"
            )
        return self._pipe

    def _ended(self) -> str:
        """How the worker ended, in words; it is gone afterwards."""
        process = self._process
        if process is None:
            return "ended"
        process.join(5)
        code = process.exitcode
        self._stop()
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with status {code}"

    def _stop(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._pipe = self._process = None


def _serve(pipe: Connection, opener: Opener, settings: tuple[str, str, int, str]) -> None:
    """The worker: answers until its pipe closes, which it also does when the parent dies."""
    # Ctrl-C goes to all processes of a terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        runtime = opener(*settings)
    except Exception as error:
        pipe.send(_words(error))
        return
    pipe.send("ready")
    while True:
        try:
            request, *arguments = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            pipe.send(("done", _answer(runtime, request, arguments)))
        # A compiler may raise anything; it becomes the answer.
        except Exception as error:
            pipe.send(("error", _words(error)))


def _answer(runtime: Runtime, request: str, arguments: list[Any]) -> Any:
    if request == "time_dispatch":
        return {part: timing.samples_us for part, timing in runtime.time_dispatch().items()}
    kernel = Kernel.parse(arguments[0])
    if request == "retime_kernel":
        return runtime.retime_kernel(kernel, arguments[1]).samples_us
    schedule, timing = runtime.time_kernel(kernel)
    return dict(schedule), timing.samples_us


def _words(error: Exception) -> str:
    """The first line of an error, with its kind where it is none of ours."""
    return error.message if isinstance(error, MeasurementError) else first_line(error)
