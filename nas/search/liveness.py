"""Whether the process that is at a trial still lives."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil

BEAT_S = 10.0
"""Between two signs of life of a process that is at a trial."""

SILENCE_S = 60.0
"""Without a sign of life for so long, a process of another machine counts as dead."""


def this_process() -> dict[str, Any]:
    """Host, number and start of this process: what tells it from any other."""
    # A fork is another process, so this is not kept.
    return {"host": _host(), "pid": os.getpid(), "started": _started(psutil.Process())}


def lives(process: Mapping[str, Any]) -> bool:
    """Whether what `this_process()` was in a process of this machine is still running."""
    try:
        found = psutil.Process(process["pid"])
        same = abs(_started(found) - process["started"]) < 0.5
        return bool(same and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's: there is one
        return True


@contextmanager
def meanwhile(action: Callable[[], object], every_s: float) -> Iterator[None]:
    """While this lasts, a thread calls `action` every so many seconds, until it returns True."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every_s):
            if action() is True:
                return

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        # Where a storage hangs, so does the thread; it ends by itself.
        thread.join(timeout=1)


class Watcher:
    """Judges processes by what they are seen to do, without comparing clocks.

    A process of this machine is dead when the operating system does not know it. Of another one,
    only the beats in the storage are seen: when their number has not changed for `SILENCE_S` of
    this process's own clock, it counts as dead.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, float]] = {}

    def is_dead(
        self, trial: int, process: Mapping[str, Any], beats: int, heard_since: float = -float("inf")
    ) -> bool:
        """Whether the process of a trial is dead, as far as one can tell now.

        Args:
            trial: its number in the storage.
            process: `this_process()` there.
            beats: of the trial, as they stand in the storage.
            heard_since: when the storage began to answer, by `time.monotonic`: before that nobody
                could be heard, which is no sign of death.
        """
        if process["host"] == _host():
            return not lives(process)
        known, since = self._seen.get(trial, (-1, 0.0))
        if beats != known:
            self._seen[trial] = beats, time.monotonic()
            return False
        return time.monotonic() - max(since, heard_since) > SILENCE_S


@cache
def _host() -> str:
    """This machine since it was started, as far as its processes see each other.

    A container has processes of its own even where it shares the name: it counts as another one.
    """
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {round(psutil.boot_time())}"


def _started(process: psutil.Process) -> float:
    """When a process was started: on Linux by a clock that nobody sets, seconds since the boot."""
    try:
        text = Path(f"/proc/{process.pid}/stat").read_text()
    except OSError:
        return float(process.create_time())
    # The name in parentheses may hold anything; the start is the 20th word after it.
    return int(text.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
