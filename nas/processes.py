"""Signals that stop a command, and child processes that end with the process that started them."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import IO, Any

from nas.errors import first_line

_STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals of Ctrl-C; of `kill`, service managers and batch systems; and of a closed terminal."""

START_LIMIT_SECONDS = 120.0
"""How long a `FunctionProcess` may take to start: it imports the module of the function."""

_MAX_SHOWN_CHARACTERS = 200
"""Longest end of the last line of a process's stderr that a message repeats."""


def handle_stop_signals_like_ctrl_c() -> None:
    """Make SIGTERM and SIGHUP do what Ctrl-C does at the moment they arrive.

    A signal that is ignored when this process starts, as by `nohup`, stays ignored.
    """
    for number in _STOP_SIGNALS:
        if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _handle_like_ctrl_c)


def _handle_like_ctrl_c(number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    # A shell makes its background jobs ignore Ctrl-C. They still have to obey SIGTERM.
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)


@contextmanager
def delayed_stop_signals() -> Iterator[None]:
    """Delay signals that stop this process until the end of the block.

    A process that is started in the block never receives them: its parent decides what they mean.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def exit_with_parent(pipe: int) -> None:
    """End this process as soon as its parent ends.

    On Linux the kernel kills this process, whatever it does. On other systems a thread ends it,
    which has to wait for native code that holds the interpreter's lock.

    Args:
        pipe: descriptor of the reading end of a pipe. Only the parent holds the writing end, and
            never writes to it.
    """

    def exit_at_end_of_pipe() -> None:
        wait([pipe])
        os._exit(1)

    if sys.platform != "linux":
        threading.Thread(target=exit_at_end_of_pipe, daemon=True).start()
        return
    import fcntl

    # PR_SET_PDEATHSIG would kill this process when the thread that started it ends.
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if wait([pipe], timeout=0):  # The parent ended before the kernel was asked.
        os._exit(1)


def end_text(code: int) -> str:
    """Return how a process with this exit code ended: `was ended by SIGABRT`."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code}"


class FunctionProcess:
    """A Python process that calls a function for this one, and may crash or hang.

    The process starts with the first call and stays. After a crash or a time-out, the next call
    starts another one. Unlike a process of `multiprocessing`, it does not import the main module,
    so that scripts and notebooks may start it anywhere. Threads call one after the other.

    Args:
        function: function at the top level of a module, which the process imports. Arguments and
            results must be picklable.
        limit_s: seconds that a call may take.
    """

    def __init__(self, function: Callable[..., Any], limit_s: float) -> None:
        self._function, self._limit_s = function, limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._stderr: IO[bytes] | None = None

    def call(self, *arguments: Any) -> Any:
        """Return the function's result.

        Raises:
            ChildProcessError: the process died. The text is a predicate, such as `crashed: its
                process was ended by SIGABRT`, and has the last line that the process wrote.
            TimeoutError: the call took too long, and the process was killed: `took more than 9 s`.
            Exception: whatever the function raised.
        """
        with self._lock:
            try:
                pipe = self._running_process()
                pipe.send(arguments)
                succeeded, answer = self._answer(pipe, self._limit_s)
            except (EOFError, ConnectionError):
                raise ChildProcessError(f"crashed: its process {self._end()}") from None
            # An answer that nobody has read must not become that of the next call.
            except BaseException:
                self.close()
                raise
        if not succeeded:
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            atexit.unregister(self.close)
        for resource in (self._pipe, self._stderr):
            if resource is not None:
                resource.close()
        self._process = self._pipe = self._stderr = None

    def _running_process(self) -> Connection:
        """Return the pipe to the process; start one unless it runs."""
        if self._pipe is not None and self._process is not None and self._process.poll() is None:
            return self._pipe
        self.close()
        pipe, child_pipe = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        names = self._function.__module__, self._function.__qualname__
        # With -P, files of the working directory do not take the place of packages.
        command = [sys.executable, "-P", "-c", "from nas import processes; processes.serve()"]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        # Ctrl-C reaches all processes of a terminal; this process decides what it means.
        with delayed_stop_signals(), child_pipe:
            self._process = subprocess.Popen(
                [*command, str(child_pipe.fileno()), *names],
                stdin=subprocess.PIPE,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=[child_pipe.fileno()],
                env=environment,
            )
            self._pipe = pipe
            atexit.register(self.close)
        self._answer(pipe, START_LIMIT_SECONDS)
        return pipe

    def _answer(self, pipe: Connection, limit_s: float) -> Any:
        """Return what the process sends. Raises EOFError or ConnectionError if it ends."""
        if not pipe.poll(limit_s):
            raise TimeoutError(f"took more than {limit_s:.4g} s")
        return pipe.recv()

    def _end(self) -> str:
        """Return how the process ended, as a predicate with its last words, and forget it."""
        assert self._process is not None
        assert self._stderr is not None
        text = end_text(self._process.wait())
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        written = next((line.strip() for line in reversed(lines) if line.strip()), "")
        self.close()
        return f"{text}: {written[-_MAX_SHOWN_CHARACTERS:]}" if written else text


def serve() -> None:
    """Run the process of a `FunctionProcess`: answer calls until the other process ends."""
    number, module, name = sys.argv[1:]
    exit_with_parent(sys.stdin.fileno())
    function: Any = import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    with Connection(int(number)) as pipe:
        pipe.send("ready")
        while True:
            try:
                arguments = pipe.recv()
            except (EOFError, OSError):
                return
            try:
                answer = True, function(*arguments)
            # A function may raise anything; it becomes the answer.
            except Exception as error:
                answer = False, error
            try:
                pipe.send(answer)
            except Exception as error:  # Pickling may raise anything, too.
                pipe.send((False, RuntimeError(f"the answer cannot be sent: {first_line(error)}")))
