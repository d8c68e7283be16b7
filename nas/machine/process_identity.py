"""What identifies a process among those of all machines, and whether it is still running."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Return the host, the process ID and the start time of this process.

    Together they identify the process among all processes of all machines.
    """
    # Not cached: a fork is another process.
    return {"host": host(), "pid": os.getpid(), "started": _start_time(os.getpid())}


def is_alive(process: Mapping[str, Any]) -> bool:
    """Whether a process of this machine, as `this_process` described it, is still running."""
    import psutil

    try:
        candidate = psutil.Process(process["pid"])
        is_same = abs(_start_time(candidate.pid) - process["started"]) < 0.5
        return bool(is_same and candidate.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # The process exists and belongs to another user.
        return True


@cache
def host() -> str:
    """Return an identifier of the set of processes that this process can see.

    It contains the name of the machine and its last boot. A container has process IDs of its own
    even if it shares the machine's name, so it counts as another host.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot_id} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        import psutil

        return f"{socket.gethostname()} {round(psutil.boot_time())}"


def _start_time(pid: int) -> float:
    """Return the start time of a process in seconds.

    On Linux the time counts from the boot, so a change of the wall clock does not affect it.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        import psutil

        return float(psutil.Process(pid).create_time())
    # The process name in parentheses may contain spaces. The start time is the 20th field after it.
    return int(text.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
