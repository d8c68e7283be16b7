"""Detection of dead processes: whether the process that evaluates a trial is still alive."""

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

HEARTBEAT_INTERVAL_SECONDS = 10.0

HEARTBEAT_TIMEOUT_SECONDS = 60.0
"""A process on another machine counts as dead after so long without a heartbeat."""


def this_process() -> dict[str, Any]:
    """Return the host, the process ID and the start time of this process.

    Together they identify the process among all processes of all machines.
    """
    # Not cached: a fork is another process.
    return {"host": _host(), "pid": os.getpid(), "started": _start_time(psutil.Process())}


def is_alive(process: Mapping[str, Any]) -> bool:
    """Whether a process of this machine, as `this_process` described it, is still running."""
    try:
        candidate = psutil.Process(process["pid"])
        is_same = abs(_start_time(candidate) - process["started"]) < 0.5
        return bool(is_same and candidate.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # The process exists and belongs to another user.
        return True


@contextmanager
def repeat_in_background(action: Callable[[], object], interval_seconds: float) -> Iterator[None]:
    """Call `action` at regular intervals from a thread while the context is active."""
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(interval_seconds):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        # A thread that waits for a storage is left behind; it ends when the storage answers.
        thread.join(timeout=1)


class LivenessMonitor:
    """Decides whether the processes that evaluate trials are dead.

    A process of this machine is dead if the operating system no longer lists it. Of a process on
    another machine, only the heartbeats in the storage are known. It counts as dead if their number
    has not changed for `HEARTBEAT_TIMEOUT_SECONDS`. This process's own clock measures that time, so
    the clocks of the machines need not agree.
    """

    def __init__(self) -> None:
        self._last_change: dict[int, tuple[int, float]] = {}

    def is_dead(
        self,
        trial_id: int,
        process: Mapping[str, Any],
        heartbeats: int,
        available_since: float = -float("inf"),
    ) -> bool:
        """Whether the process that evaluates a trial counts as dead.

        Args:
            trial_id: the trial's ID in the storage.
            process: the process's description of itself, see `this_process`.
            heartbeats: number of the trial's heartbeats in the storage.
            available_since: time from which on the storage has been available, by
                `time.monotonic`. No process can record heartbeats in a storage that is not
                available, so the timeout starts at this time at the earliest.
        """
        if process["host"] == _host():
            return not is_alive(process)
        last_heartbeats, changed_at = self._last_change.get(trial_id, (-1, 0.0))
        if heartbeats != last_heartbeats:
            self._last_change[trial_id] = heartbeats, time.monotonic()
            return False
        silence_seconds = time.monotonic() - max(changed_at, available_since)
        return silence_seconds > HEARTBEAT_TIMEOUT_SECONDS


@cache
def _host() -> str:
    """Return an identifier of the set of processes that this process can see.

    It contains the name of the machine and its last boot. A container has process IDs of its own
    even if it shares the machine's name, so it counts as another host.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot_id} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {round(psutil.boot_time())}"


def _start_time(process: psutil.Process) -> float:
    """Return the start time of a process in seconds.

    On Linux the time counts from the boot, so a change of the wall clock does not affect it.
    """
    try:
        text = Path(f"/proc/{process.pid}/stat").read_text()
    except OSError:
        return float(process.create_time())
    # The process name in parentheses may contain spaces. The start time is the 20th field after it.
    return int(text.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
