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
from typing import Any

from nas.errors import first_line

_STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals of Ctrl-C; of `kill`, service managers and batch systems; and of a closed terminal."""

START_LIMIT_SECONDS = 120.0
"""How long a `FunctionProcess` may take to start: it imports the module of the function."""

END_SECONDS = 5.0
"""How long a process may take to end after it has closed its pipe."""

_MAX_SHOWN_CHARACTERS = 200
"""Longest end of the last line of a process that a message repeats."""


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


def python_command(*arguments: str) -> list[str]:
    """Return the command that runs Python with arguments in a child of this process.

    With -P, files of the working directory do not take the place of packages.
    """
    return [sys.executable, "-P", *arguments]


def python_environment() -> dict[str, str]:
    """Return the environment in which Python imports the modules that this process can import."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class ChildProcess:
    """A Python process that runs a function with a pipe to this process, and ends with it.

    Unlike a process of `multiprocessing`, it imports the module of the function but not the main
    module, so that scripts without a main guard and notebooks may start it anywhere. It receives no
    stop signals: this process decides what Ctrl-C means.

    Args:
        function: function at the top level of a module. Its first argument is its end of the pipe,
            a `Connection`.
        arguments: its further arguments, which must be picklable.

    Attributes:
        pipe: this end of the pipe.
    """

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        self.pipe, child_pipe = Pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        with delayed_stop_signals(), child_pipe:
            code = "from nas.processes import spawn_main; spawn_main()"
            self._process = subprocess.Popen(
                python_command("-c", code, str(child_pipe.fileno())),
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=self._output,
                pass_fds=[child_pipe.fileno()],
                env=python_environment(),
            )
            atexit.register(self.close)
        try:
            self.pipe.send((function.__module__, function.__qualname__))
            self.pipe.send(arguments)
        # The process has ended. Who waits for its answer learns how.
        except ConnectionError:
            pass
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def receive(self, limit_s: float) -> Any:
        """Return what the process sends next.

        Raises:
            TimeoutError: it sent nothing in time: `took more than 9 s`.
            EOFError, ConnectionError: it has ended.
        """
        if not self.pipe.poll(limit_s):
            raise TimeoutError(f"took more than {limit_s:.4g} s")
        return self.pipe.recv()

    def end_text(self) -> str:
        """Return how a process ended that has closed its end of the pipe; see `end_text`."""
        try:
            return end_text(self._process.wait(END_SECONDS))
        except subprocess.TimeoutExpired:
            return "ended"

    def output(self) -> str:
        """Return what the process wrote to stdout and stderr."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace").strip()

    def end_text_with_output(self) -> str:
        """Return how the process ended, with the last line that it wrote."""
        text, last_line = self.end_text(), self.output().rpartition("\n")[2].strip()
        return f"{text}: {last_line[-_MAX_SHOWN_CHARACTERS:]}" if last_line else text

    def close(self) -> None:
        """End the process."""
        # The process first: its end wakes another thread that waits for an answer.
        self._process.kill()
        self._process.communicate()
        self.pipe.close()
        self._output.close()
        atexit.unregister(self.close)


def spawn_main() -> None:
    """Run the process of a `ChildProcess`."""
    exit_with_parent(sys.stdin.fileno())
    with Connection(int(sys.argv[1])) as pipe:
        module, name = pipe.recv()
        function: Any = _imported(module, name)
        function(pipe, *pipe.recv())


def _imported(module: str, name: str) -> Any:
    """Return an object at the top level of a module, or in a class of it."""
    item: Any = import_module(module)
    for part in name.split("."):
        item = getattr(item, part)
    return item


class FunctionProcess:
    """A Python process that calls a function for this one, and may crash or hang.

    The process starts with the first call and stays. After a crash or a time-out, the next call
    starts another one. See `ChildProcess`. Threads call one after the other.

    Args:
        function: function at the top level of a module, which the process imports. Arguments and
            results must be picklable.
        limit_s: seconds that a call may take.
    """

    def __init__(self, function: Callable[..., Any], limit_s: float) -> None:
        self._function, self._limit_s = function, limit_s
        self._lock = threading.Lock()
        self._process: ChildProcess | None = None

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
                process = self._running_process()
                process.pipe.send(arguments)
                succeeded, answer = process.receive(self._limit_s)
            except (EOFError, ConnectionError):
                assert self._process is not None
                text = self._process.end_text_with_output()
                self.close()
                raise ChildProcessError(f"crashed: its process {text}") from None
            # An answer that nobody has read must not become that of the next call.
            except BaseException:
                self.close()
                raise
        if not succeeded:
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _running_process(self) -> ChildProcess:
        """Return the process; start one unless it runs."""
        if self._process is None or not self._process.is_running:
            self.close()
            with delayed_stop_signals():
                names = self._function.__module__, self._function.__qualname__
                self._process = ChildProcess(_answer_calls, *names)
            self._process.receive(START_LIMIT_SECONDS)
        return self._process


def _answer_calls(pipe: Connection, module: str, name: str) -> None:
    """Run the process of a `FunctionProcess`: answer calls until the other process ends."""
    function = _imported(module, name)
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
