"""Signals that stop a command, and child processes that end with the process that started them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import FrameType

_STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals of Ctrl-C; of `kill`, service managers and batch systems; and of a closed terminal."""


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
