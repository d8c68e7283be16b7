"""Whether the process that is at a trial still lives."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import psutil

BEAT_S = 10.0
"""Between two signs of life of a process that is at a trial."""

SILENCE_S = 60.0
"""Without a sign of life for so long, a process of another machine counts as dead."""


@cache
def this_process() -> dict[str, Any]:
    """Host, number and start of this process: what tells it from any other."""
    own = psutil.Process()
    return {"host": _host(), "pid": own.pid, "started": round(own.create_time(), 2)}


class Watcher:
    """Judges processes by what they are seen to do, without comparing clocks.

    A process of this machine is dead when the operating system does not know it. Of another one,
    only the beats in the storage are seen: when their number has not changed for `SILENCE_S` of
    this process's own clock, it counts as dead.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, float]] = {}

    def is_dead(self, trial: int, process: Mapping[str, Any], beats: int) -> bool:
        """Whether the process of a trial is dead, as far as one can tell now."""
        if process["host"] == _host():
            return not _lives(process)
        known, since = self._seen.get(trial, (-1, 0.0))
        if beats != known:
            self._seen[trial] = beats, time.monotonic()
            return False
        return time.monotonic() - since > SILENCE_S


@cache
def _host() -> str:
    """This machine since it was started; in a container of its own, another one."""
    return f"{socket.gethostname()} {round(psutil.boot_time())}"


def _lives(process: Mapping[str, Any]) -> bool:
    try:
        found = psutil.Process(process["pid"])
        same = abs(found.create_time() - process["started"]) < 1.0
        return bool(same and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
