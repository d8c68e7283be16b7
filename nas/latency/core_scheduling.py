"""Sharing the cores of a machine among the processes of one build.

One process at a time takes timings, alone on the timing cores. The other processes compile on the
remaining cores meanwhile.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import reduction
from pathlib import Path
from typing import IO, Any

import psutil

_CORES = Path("/sys/devices/system/cpu")


class ProcessLock:
    """A lock shared by a process and the child processes that receive it when they start.

    The lock is reentrant within a process. The operating system releases it when its holder dies.
    The locked file has no name, so a killed process leaves no file behind.
    """

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self._file = tempfile.TemporaryFile() if file is None else file  # noqa: SIM115
        self._depth = 0

    def __reduce__(self) -> Any:
        return _unpickled_lock, (reduction.DupFd(self._file.fileno()),)

    def __enter__(self) -> None:
        import fcntl

        if self._depth == 0:
            # Not `flock`: its lock belongs to the open file, which all these processes share.
            fcntl.lockf(self._file, fcntl.LOCK_EX)
        self._depth += 1

    def __exit__(self, *exception: object) -> None:
        import fcntl

        self._depth -= 1
        if self._depth == 0:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _unpickled_lock(descriptor: Any) -> ProcessLock:
    return ProcessLock(os.fdopen(descriptor.detach(), "w+b"))


@dataclass(frozen=True)
class CorePlan:
    """Which cores the processes of a build use.

    Args:
        timing_cores: cores of the process that is timing.
        other_cores: cores for all other work, at least one; they share no physical core with the
            timing cores.
        lock: lock that the timing process holds.
    """

    timing_cores: tuple[int, ...]
    other_cores: tuple[int, ...]
    lock: ProcessLock = field(default_factory=ProcessLock, compare=False)


_current_plan: CorePlan | None = None
"""The plan of this process; None if it has the machine to itself."""


def plan_cores(threads: int) -> CorePlan | None:
    """Return a plan for timings that use `threads` cores; None if no core is left to compile on."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = frozenset(os.sched_getaffinity(0))
    timing_cores = _idlest_cores(allowed, threads)
    # Two hyper-threads of a core are not two cores.
    taken = {sibling for core in timing_cores for sibling in siblings(core)}
    other_cores = sorted(allowed - taken)
    return CorePlan(timing_cores, tuple(other_cores)) if other_cores else None


def apply_plan(plan: CorePlan) -> None:
    """Make this process follow a plan from now on."""
    global _current_plan
    _current_plan = plan
    os.sched_setaffinity(0, plan.other_cores)


@contextmanager
def reserved_cores(threads: int) -> Iterator[tuple[int, ...]]:
    """Reserve cores to time on, and yield them.

    A process with a plan waits until no other process of the plan is timing.
    """
    if _current_plan is None:
        yield _idlest_cores(frozenset(os.sched_getaffinity(0)), threads)
        return
    with _current_plan.lock:
        yield _current_plan.timing_cores


def siblings(core: int, cores: Path = _CORES) -> set[int]:
    """Return the hyper-threads of a core, including itself; only itself if they are not known."""
    path = cores / f"cpu{core}" / "topology" / "thread_siblings_list"
    hyper_threads = {core}
    if path.exists():
        for part in path.read_text().strip().split(","):
            first, _, last = part.partition("-")
            hyper_threads |= set(range(int(first), int(last or first) + 1))
    return hyper_threads


@cache
def _idlest_cores(cores: frozenset[int], count: int) -> tuple[int, ...]:
    """Return the least busy cores, chosen once so that all timings of a process use the same."""
    load = psutil.cpu_percent(interval=0.1, percpu=True)
    return tuple(sorted(cores, key=lambda core: load[core])[:count])
