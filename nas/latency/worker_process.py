"""Compiling and timing kernels in a separate process, which may crash, hang or be killed.

A bug in a compiler can end the process in which it runs. That process is a worker: the request that
ended it becomes an error, the next kernel gets a new worker, and the build of a table goes on.

A remote device may vanish and come back. The worker, and with it the connection, is then started
again a few times before the device counts as lost.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from multiprocessing.connection import Connection
from typing import Any, Self

from nas import processes
from nas.errors import BoardLostError, DeviceError, MeasurementError, NasError, first_line
from nas.latency import core_scheduling
from nas.latency.core_scheduling import CorePlan
from nas.latency.device import Fingerprint
from nas.latency.kernel import Kernel
from nas.latency.runtime import Runtime, Schedule
from nas.latency.timing import Timing
from nas.processes import ChildProcess

KERNEL_LIMIT_SECONDS = 120.0
"""How long one kernel may take to compile and time; the slowest of our spaces takes three."""

DISPATCH_LIMIT_FACTOR = 5
"""The dispatch costs may take this many times longer: megabytes of weights go to the device."""

_DISPATCH_REQUESTS = ("time_dispatch", "time_miss_curves")

START_SECONDS = 120.0
"""How long a worker may take to start: it imports the runtime."""

RECONNECTIONS = 3
"""How often a vanished device is connected to again before it counts as lost."""

RECONNECTION_PAUSE_SECONDS = 2.0
"""Pause before the first reconnection; each later pause is longer by as much."""


class WorkerTimer:
    """A `KernelTimer` that runs a runtime in a worker process.

    Use it as a context manager. The worker starts with the first request.

    Args:
        runtime: opened runtime; it is sent to the worker, which opens it there. A device with one
            user at a time is released for the worker.
        limit_s: seconds that one kernel may take.
        plan: how the workers of one machine share its cores; None if there is only one.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        limit_s: float = KERNEL_LIMIT_SECONDS,
        plan: CorePlan | None = None,
    ) -> None:
        self._device = runtime.fingerprint
        self._runtime = runtime
        self._limit_s, self._plan = limit_s, plan
        self._is_closed, self._starting = False, threading.Lock()
        runtime.release()
        self._process: ChildProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._starting:
            self._is_closed = True
        self._stop()

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """See `Runtime.time_kernel`.

        Raises:
            MeasurementError: the kernel cannot be timed, or the worker died or ran out of time.
            BoardLostError: the device is gone.
            DeviceError: the device is not equal to the runtime's.
        """
        schedule, samples = self._request("time_kernel", kernel.text)
        return schedule, Timing(*samples)

    def retime_kernel(self, kernel: Kernel, schedule: Schedule) -> Timing:
        """See `Runtime.retime_kernel`, and `time_kernel` for the errors."""
        return Timing(*self._request("retime_kernel", kernel.text, dict(schedule)))

    def time_dispatch(self) -> Mapping[str, Timing]:
        """See `Runtime.time_dispatch`, and `time_kernel` for the errors."""
        return self._time_parts("time_dispatch")

    def time_miss_curves(self) -> Mapping[str, Timing]:
        """See `Runtime.time_miss_curves`, and `time_kernel` for the errors."""
        return self._time_parts("time_miss_curves")

    def _time_parts(self, request: str) -> Mapping[str, Timing]:
        timings = self._request(request)
        return {part: Timing(*timing) for part, timing in timings.items()}

    def _request(self, request: str, *arguments: Any) -> Any:
        """Return the worker's answer, after reconnecting to the device if it vanished."""
        for attempt in range(1, RECONNECTIONS + 1):
            try:
                return self._request_once(request, *arguments)
            except BoardLostError:
                self._stop()
                if self._is_closed:
                    raise
                time.sleep(RECONNECTION_PAUSE_SECONDS * attempt)
        return self._request_once(request, *arguments)

    def _request_once(self, request: str, *arguments: Any) -> Any:
        worker = self._running_worker()
        try:
            worker.pipe.send((request, *arguments))
            is_dispatch = request in _DISPATCH_REQUESTS
            limit_s = self._limit_s * (DISPATCH_LIMIT_FACTOR if is_dispatch else 1)
            kind, answer = worker.receive(limit_s)
        except TimeoutError as error:
            self._stop()
            if self._runtime.is_remote:
                # Starting a worker shows whether the kernel hangs or the device vanished.
                self._running_worker()
            raise MeasurementError(
                f"compiling and timing took more than {limit_s:.0f} s",
                remedy="Time it again with --retry-failed on an idle machine.",
            ) from error
        except (EOFError, OSError) as error:
            raise MeasurementError(f"the compiler's process {self._end_reason()}") from error
        if kind != "done":
            raise _unpacked_error(kind, answer)
        return answer

    def _running_worker(self) -> ChildProcess:
        """Return a worker that is ready; start one if there is none."""
        worker = self._process
        # A worker sends nothing unasked: if there is something to read, it is the end of the pipe.
        if worker is not None and worker.is_running and not worker.pipe.poll(0):
            return worker
        self._stop()
        worker = self._start_worker()
        try:
            kind, answer = worker.receive(START_SECONDS)
        except TimeoutError:
            kind, answer = "error", ("it took too long", "")
        except (EOFError, OSError) as error:
            raise MeasurementError(
                f"the compiler's process, while it started, {self._end_reason()}"
            ) from error
        if kind != "ready":
            self._stop()
            if kind == "error":
                answer = (f"the compiler's process did not start: {answer[0]}", answer[1])
            raise _unpacked_error(kind, answer)
        differences = self._device.differences(Fingerprint.from_json(answer))
        if differences:
            self._stop()
            raise DeviceError(
                f"A device is not equal to the others: {'; '.join(differences)}.",
                remedy="Use one address or tracker key for equal boards only.",
            )
        return worker

    def _start_worker(self) -> ChildProcess:
        """Return a worker that is starting, unless another thread closes this timer."""
        # A signal meanwhile would leave a worker that nobody can stop.
        with processes.delayed_stop_signals(), self._starting:
            if self._is_closed:
                raise MeasurementError("the timer is closed")
            self._process = ChildProcess(_serve, self._runtime, self._plan)
        return self._process

    def _end_reason(self) -> str:
        """Return how the worker ended, as a predicate, and forget the worker."""
        process = self._process
        if process is None:
            return "ended"
        text = process.end_text_with_output()
        self._stop()
        return text

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()


@contextmanager
def timers_for(runtime: Runtime) -> Iterator[list[WorkerTimer]]:
    """Yield one `WorkerTimer` for each of the equal devices of a runtime, and stop them at the end.

    If `Runtime.compiles_beside_timing`, there are several if this machine has the cores: while one
    of them times alone on a core, the others compile.

    Args:
        runtime: opened runtime.
    """
    with ExitStack() as stack:
        plans: Sequence[CorePlan | None] = [None] * runtime.device_count
        if runtime.compiles_beside_timing:
            plans = core_scheduling.plan_workers(runtime.fingerprint.threads) or plans
        yield [stack.enter_context(WorkerTimer(runtime, plan=plan)) for plan in plans]


def _serve(pipe: Connection, runtime: Runtime, plan: CorePlan | None) -> None:
    """Run the worker: answer requests until its parent ends."""
    if plan is not None:
        core_scheduling.apply_plan(plan)
    try:
        _answer_all(pipe, runtime)
    # The parent has closed its end.
    except (EOFError, OSError):
        os._exit(0)


def _answer_all(pipe: Connection, runtime: Runtime) -> None:
    """Open the runtime and answer requests. Raises EOFError or OSError when the pipe is closed."""
    try:
        runtime.open()
        start: Any = ("ready", runtime.fingerprint.to_json())
    except Exception as error:
        pipe.send(_packed_error(error))
        return
    pipe.send(start)
    while True:
        request, *arguments = pipe.recv()
        try:
            answer = ("done", _answer(runtime, request, arguments))
        # A compiler may raise anything; it becomes the answer.
        except Exception as error:
            answer = _packed_error(error)
        pipe.send(answer)


def _answer(runtime: Runtime, request: str, arguments: list[Any]) -> Any:
    if request in _DISPATCH_REQUESTS:
        timings = getattr(runtime, request)()
        return {part: astuple(timing) for part, timing in timings.items()}
    kernel = Kernel.parse(arguments[0])
    if request == "retime_kernel":
        return astuple(runtime.retime_kernel(kernel, arguments[1]))
    schedule, timing = runtime.time_kernel(kernel)
    return dict(schedule), astuple(timing)


_ERROR_KINDS: Mapping[str, type[NasError]] = {
    "lost": BoardLostError,
    "device": DeviceError,
    "error": MeasurementError,
}
"""Errors that the parent process tells apart, by their names in messages; a subclass comes before
its base class."""


def _packed_error(error: Exception) -> tuple[str, tuple[str, str]]:
    """Return the kind of an error, and its message in one line and its remedy."""
    for kind, category in _ERROR_KINDS.items():
        if isinstance(error, category):
            return kind, (error.message, error.remedy)
    return "error", (first_line(error), "")


def _unpacked_error(kind: str, content: tuple[str, str]) -> NasError:
    """Return the error that `_packed_error` packed."""
    message, remedy = content
    return _ERROR_KINDS[kind](message, remedy=remedy)
