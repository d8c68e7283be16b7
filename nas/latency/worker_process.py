"""Kernels compiled and timed in a process of their own, which may crash, hang or be killed.

A compiler that runs into its own bug takes its process along. Here that process is a worker: what
it was asked for becomes an error, the next kernel gets a new worker, and a table's build goes on.

A device elsewhere may vanish and come back. Then the worker is started again, and with it the
connection, a few times, before the device counts as lost.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

from nas import processes
from nas.errors import BoardLostError, DeviceError, MeasurementError, NasError, first_line
from nas.latency import core_scheduling
from nas.latency.device import Fingerprint
from nas.latency.kernel import Kernel
from nas.latency.runtime import Runtime
from nas.latency.timing import Timing

LIMIT_SECONDS = 120.0
"""How long one kernel may take to compile and time; the slowest of our spaces take three."""

DISPATCH_LIMIT = 5
"""How much longer everything beside the kernels may take: megabytes of weights go to the device."""

TRIAL_SECONDS = 15.0
"""How much longer tuning a kernel may take for each candidate; most take one or two."""

START_SECONDS = 120.0
"""How long a worker may take to start: it imports the runtime."""

MOST_COMPILERS = 2
"""Workers beside the one that is timing: compiling a kernel takes about twice as long."""

RECONNECTIONS = 3
"""How often a device that vanished is looked for again before it counts as lost."""

PAUSE_SECONDS = 2.0
"""Before it is looked for the first time; each later pause is as much longer."""


class WorkerTimer:
    """A `Timer` behind a process boundary.

    Use it as a context manager; the worker starts with the first kernel.

    Args:
        runtime: is sent to the worker, which opens it there. A device with one user at a time is
            released for the worker.
        limit_s: seconds for one kernel.
        plan: how workers of one machine share it; None for one that has it to itself.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        limit_s: float = LIMIT_SECONDS,
        plan: core_scheduling.Plan | None = None,
    ) -> None:
        self._device = runtime.fingerprint
        self._runtime = runtime
        self._limit_s, self._plan = limit_s, plan
        self._over, self._starting = False, threading.Lock()
        runtime.release()
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._starting:
            self._over = True
        self._stop()

    def time_kernel(self, kernel: Kernel) -> tuple[Mapping[str, Any], Timing]:
        """See `Runtime.time_kernel`.

        Raises MeasurementError for a kernel that cannot be timed, or on which the worker died or
        ran out of time; BoardLostError for a device that is gone, DeviceError for one that is
        another than the runtime's.
        """
        schedule, samples = self._ask("time_kernel", kernel.text)
        return schedule, Timing(*samples)

    def retime_kernel(self, kernel: Kernel, schedule: Mapping[str, Any]) -> Timing:
        """See `Runtime.retime_kernel`. Raises MeasurementError as `time_kernel` does."""
        return Timing(*self._ask("retime_kernel", kernel.text, dict(schedule)))

    def tune_kernel(self, kernel: Kernel, tuner: str, trials: int) -> Mapping[str, Any]:
        """See `Runtime.tune_kernel`. Raises MeasurementError as `time_kernel` does."""
        found: Mapping[str, Any] = self._ask("tune_kernel", kernel.text, tuner, trials)
        return found

    def time_dispatch(self) -> Mapping[str, Timing]:
        """See `Runtime.time_dispatch`. Raises MeasurementError as `time_kernel` does."""
        return {part: Timing(samples) for part, samples in self._ask("time_dispatch").items()}

    def _ask(self, request: str, *arguments: Any) -> Any:
        for pause in range(RECONNECTIONS):
            try:
                return self._asked(request, *arguments)
            except BoardLostError:
                self._stop()
                if self._over:
                    raise
                time.sleep(PAUSE_SECONDS * (1 + pause))
        return self._asked(request, *arguments)

    def _asked(self, request: str, *arguments: Any) -> Any:
        pipe = self._started()
        try:
            pipe.send((request, *arguments))
            limit_s = self._limit_s * (DISPATCH_LIMIT if request == "time_dispatch" else 1)
            if request == "tune_kernel":
                limit_s += TRIAL_SECONDS * arguments[2]
            if not pipe.poll(limit_s):
                self._stop()
                if self._runtime.is_remote:
                    # Is it the kernel, or does the device not answer any more?
                    self._started()
                raise MeasurementError(
                    f"compiling and timing took more than {limit_s:.0f} s",
                    remedy="Time it again with --retry-failed on an idle machine.",
                )
            kind, answer = pipe.recv()
        except (EOFError, OSError) as error:
            raise MeasurementError(f"the compiler's process {self._ended()}") from error
        if kind != "done":
            raise _error(kind, answer)
        return answer

    def _started(self) -> Connection:
        """The pipe to a worker that is ready."""
        pipe, process = self._pipe, self._process
        # A worker says nothing unasked: if there is something to read, it is its end.
        if pipe is not None and process is not None and process.is_alive() and not pipe.poll(0):
            return pipe
        self._stop()
        pipe = self._new_worker()
        try:
            in_time = pipe.poll(START_SECONDS)
            found: Any = pipe.recv() if in_time else ("error", ("it took too long", ""))
        except (EOFError, OSError) as error:
            raise MeasurementError(
                f"the compiler's process {self._ended()} at its start"
            ) from error
        kind, answer = found
        if kind != "ready":
            self._stop()
            if kind == "error":
                answer = (f"the compiler's process did not start: {answer[0]}", answer[1])
            raise _error(kind, answer)
        different = self._device.differences(Fingerprint.from_json(answer))
        if different:
            self._stop()
            raise DeviceError(
                f"A device is not what the others are: {'; '.join(different)}.",
                remedy="Boards behind one address or tracker key are equal; give others another.",
            )
        return pipe

    def _new_worker(self) -> Connection:
        """The pipe to a worker that is starting. Another thread may be closing this timer."""
        # Spawned, not forked: threads of torch or TVM do not survive a fork.
        context = multiprocessing.get_context("spawn")
        # A worker that is half started could not be stopped.
        with processes.delayed_stop_signals(), self._starting:
            if self._over:
                raise MeasurementError("the timer is closed")
            pipe, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, self._runtime, self._plan), daemon=True
            )
            process.start()
            # At exit Python sends SIGTERM to what still runs, which a worker never gets, and waits.
            atexit.register(process.kill)
            self._pipe, self._process = pipe, process
        theirs.close()
        return pipe

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
        pipe, process = self._pipe, self._process
        self._pipe = self._process = None
        # In this order: another thread that waits for an answer is woken by the end of the worker.
        if process is not None:
            process.kill()
            process.join()
            atexit.unregister(process.kill)
        if pipe is not None:
            pipe.close()


@contextmanager
def timers_for(runtime: Runtime) -> Iterator[list[WorkerTimer]]:
    """An `WorkerTimer` for each of the equal devices that a runtime has, stopped at the end.

    For this machine's processor there are several where it has the cores: while one of them times,
    alone on its core, the others compile.
    """
    with ExitStack() as stack:
        count, plan = runtime.device_count, None
        if count == 1 and runtime.fingerprint.target == "cpu":
            plan = core_scheduling.plan(runtime.fingerprint.threads)
            count = 1 + min(MOST_COMPILERS, len(plan.others)) if plan else 1
        yield [stack.enter_context(WorkerTimer(runtime, plan=plan)) for _ in range(count)]


def _serve(pipe: Connection, runtime: Runtime, plan: core_scheduling.Plan | None) -> None:
    """The worker: answers until its parent ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    processes.exit_with_parent(parent.sentinel)
    if plan is not None:
        core_scheduling.follow(plan)
    try:
        _answer_all(pipe, runtime)
    # The parent has closed its end.
    except (EOFError, OSError):
        os._exit(0)


def _answer_all(pipe: Connection, runtime: Runtime) -> None:
    """Open the runtime and answer requests. Raises EOFError or OSError once the pipe is closed."""
    try:
        runtime.open()
        start: Any = ("ready", runtime.fingerprint.to_json())
    except Exception as error:
        pipe.send(_kind_and_words(error))
        return
    pipe.send(start)
    while True:
        request, *arguments = pipe.recv()
        try:
            answer = ("done", _answer(runtime, request, arguments))
        # A compiler may raise anything; it becomes the answer.
        except Exception as error:
            answer = _kind_and_words(error)
        pipe.send(answer)


def _answer(runtime: Runtime, request: str, arguments: list[Any]) -> Any:
    if request == "time_dispatch":
        return {part: timing.samples_us for part, timing in runtime.time_dispatch().items()}
    kernel = Kernel.parse(arguments[0])
    if request == "retime_kernel":
        return astuple(runtime.retime_kernel(kernel, arguments[1]))
    if request == "tune_kernel":
        return dict(runtime.tune_kernel(kernel, arguments[1], arguments[2]))
    schedule, timing = runtime.time_kernel(kernel)
    return dict(schedule), astuple(timing)


_KINDS: Mapping[str, type[NasError]] = {
    "lost": BoardLostError,
    "device": DeviceError,
    "error": MeasurementError,
}
"""Errors that the worker's user tells apart, by what they are called on the way; in this order."""


def _kind_and_words(error: Exception) -> tuple[str, tuple[str, str]]:
    """What an error is called on the way, its message in a line, and its remedy."""
    for kind, category in _KINDS.items():
        if isinstance(error, category):
            return kind, (error.message, error.remedy)
    return "error", (first_line(error), "")


def _error(kind: str, words: tuple[str, str]) -> NasError:
    """The error that `_kind_and_words` took apart."""
    message, remedy = words
    return _KINDS[kind](message, remedy=remedy)
