"""How a command is stopped, and how the processes that it started end with it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import FrameType

_STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Ctrl-C; the request of `kill`, service managers and batch systems; a terminal that closes."""


def stop_as_by_ctrl_c() -> None:
    """Make SIGTERM and SIGHUP do what Ctrl-C does at that moment, from now on.

    A signal that whoever started this process had it ignore, as `nohup` does, stays ignored.
    """
    for number in _STOPPING:
        if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    # A shell lets its background jobs ignore Ctrl-C, but not SIGTERM.
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)


@contextmanager
def stopping_delayed() -> Iterator[None]:
    """Let signals that stop this process wait for the end of the block.

    A process that is started in the block never gets them: its parent decides what they mean.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(pipe: int) -> None:
    """End this process as soon as the parent does, which alone holds the other end of a pipe.

    On Linux the kernel kills this process, whatever it does. Elsewhere a thread ends it, which must
    wait for native code that holds the interpreter's lock.

    Args:
        pipe: the descriptor of the end to read from; nothing is ever written to the other one.
    """

    def end() -> None:
        wait([pipe])
        os._exit(1)

    if sys.platform != "linux":
        threading.Thread(target=end, daemon=True).start()
        return
    import fcntl

    # Not PR_SET_PDEATHSIG: it kills as soon as the thread ends that started this process.
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if wait([pipe], timeout=0):  # The parent ended before the kernel was asked.
        os._exit(1)
