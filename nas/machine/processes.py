"""Signals that stop a command, and child processes that end with the process that started them."""

from __future__ import annotations

import atexit
import os
import pickle
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
from typing import IO, Any, NamedTuple

from nas.errors import NasError, first_line

_STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals of Ctrl-C; of `kill`, service managers and batch systems; and of a closed terminal."""

START_LIMIT_SECONDS = 120.0
"""How long a `ChildProcess` may take to start: it imports the module of the first function."""

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


def python_command(*arguments: str) -> list[str]:
    """Return the command that runs Python with arguments in a child of this process.

    With -P, files of the working directory do not take the place of packages.
    """
    return [sys.executable, "-P", *arguments]


def python_environment() -> dict[str, str]:
    """Return the environment in which Python imports the modules that this process can import."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class _Child(NamedTuple):
    """A process that was started, this end of its pipe, and the file with what it wrote."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    output: IO[bytes]

    def is_running(self) -> bool:
        """Whether the process has not ended."""
        # It sends nothing unasked: if there is something to read, it is the end of the pipe.
        return self.process.poll() is None and not self.pipe.poll(0)

    def end_text(self) -> str:
        """Return how the process ended, as a predicate, with the last line that it wrote."""
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "ended"
        text = f"ended with status {code}"
        if code < 0:
            text = f"was ended by {signal.Signals(-code).name}"
        self.output.seek(0)
        lines = self.output.read().decode(errors="replace").strip().splitlines()
        return f"{text}: {lines[-1].strip()[-_MAX_SHOWN_CHARACTERS:]}" if lines else text

    def end(self) -> None:
        """End the process."""
        # The process first: its end wakes another thread that waits for an answer.
        self.process.kill()
        self.process.communicate()
        self.pipe.close()
        self.output.close()
        atexit.unregister(self.end)


class ChildProcess:
    """A Python process that calls functions for this one, ends with it, and may crash or hang.

    The process starts with the first call and stays. After a crash or a time-out, the next call
    starts another one.

    Unlike a process of `multiprocessing`, it imports the modules of the functions but not the main
    module, so that scripts without a main guard and notebooks may start it anywhere. It receives no
    stop signals: this process decides what Ctrl-C means. Threads call one after the other.
    """

    def __init__(self) -> None:
        self._calling, self._starting = threading.Lock(), threading.Lock()
        self._is_closed = False
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """Number of the process; None if there is none."""
        return self._child.process.pid if self._child else None

    @property
    def is_running(self) -> bool:
        """Whether there is a process that has not ended."""
        return self._child is not None and self._child.is_running()

    def call(
        self, function: Callable[..., Any], *arguments: Any, limit_s: float, start: bool = True
    ) -> Any:
        """Return a function's result.

        Args:
            function: function at the top level of a module.
            arguments: its arguments. They and the result must be picklable.
            limit_s: seconds that the call may take. The start of the process is not included.
            start: whether to start a process if none runs.

        Raises:
            ChildProcessError: the process died or did not start. The text is a predicate, such as
                `was ended by SIGABRT`, and has the last line that the process wrote.
            TimeoutError: the call took too long, and the process was ended: `took more than 9 s`.
            NasError: the function raised it.
            RuntimeError: the function raised another exception, which is the text.
        """
        with self._calling:
            if start and not self.is_running:
                self._start(function.__module__)
            child = self._child
            if child is None:
                raise ChildProcessError("has ended")
            succeeded, answer = self._exchange(child, (function, arguments), limit_s)
        if not succeeded:
            raise answer
        return answer

    def _exchange(self, child: _Child, message: Any, limit_s: float) -> Any:
        """Send a message, and return the answer."""
        is_late = threading.Event()

        def end_late() -> None:
            is_late.set()
            child.process.kill()

        # A stopped process takes no message that is larger than the pipe, and may send half of one.
        watch = threading.Timer(limit_s, end_late)
        watch.daemon = True
        watch.start()
        try:
            child.pipe.send(message)
            if child.pipe.poll(limit_s):
                return child.pipe.recv()
        except (EOFError, OSError):
            if is_late.is_set():
                self.close()
                raise TimeoutError(f"took more than {limit_s:.4g} s") from None
            if self._child is not child:
                raise ChildProcessError("was closed") from None
            text = child.end_text()
            self.close()
            raise ChildProcessError(text) from None
        # An answer that nobody has read must not become that of the next call.
        except BaseException:
            self.close()
            raise
        finally:
            watch.cancel()
        self.close()
        raise TimeoutError(f"took more than {limit_s:.4g} s")

    def _start(self, module: str) -> None:
        """Start a process that has imported a module."""
        self.close()
        # A signal meanwhile would leave a process that nobody can end.
        with delayed_stop_signals(), self._starting:
            if self._is_closed:
                raise ChildProcessError("is closed")
            pipe, child_pipe = Pipe()
            output = tempfile.TemporaryFile()  # noqa: SIM115
            code = "from nas.machine.processes import spawn_main; spawn_main()"
            try:
                with child_pipe:
                    process = subprocess.Popen(
                        python_command("-c", code, str(child_pipe.fileno())),
                        stdin=subprocess.PIPE,
                        stdout=output,
                        stderr=output,
                        pass_fds=[child_pipe.fileno()],
                        env=python_environment(),
                    )
            except OSError as error:
                raise ChildProcessError(f"could not be started: {error.strerror}") from error
            child = self._child = _Child(process, pipe, output)
            atexit.register(child.end)
        self._exchange(child, module, START_LIMIT_SECONDS)

    def close(self, *, for_good: bool = False) -> None:
        """End the process.

        Args:
            for_good: whether no call may start another, not even one that is waiting now.
        """
        with self._starting:
            self._is_closed |= for_good
            child, self._child = self._child, None
        if child is not None:
            child.end()


def spawn_main() -> None:
    """Run the process of a `ChildProcess`: answer calls until the other process ends."""
    exit_with_parent(sys.stdin.fileno())
    pipe = Connection(int(sys.argv[1]))
    import_module(pipe.recv())
    pipe.send(None)
    while True:
        try:
            message = pipe.recv_bytes()
        except (EOFError, OSError):
            os._exit(0)
        answer: tuple[bool, Any]
        try:
            # This imports the module of the function. What it raises is an answer, too.
            function, arguments = pickle.loads(message)
            answer = True, function(*arguments)
        except NasError as error:
            answer = False, error
        # A function may raise anything; it becomes the answer.
        except Exception as error:
            answer = False, RuntimeError(first_line(error))
        try:
            pipe.send(answer)
        except Exception as error:  # Pickling may raise anything, too.
            pipe.send((False, RuntimeError(f"the answer cannot be sent: {first_line(error)}")))
