"""Sharing the cores of a machine among the processes of one build.

One process at a time takes timings, alone on its timing cores. The other processes compile on other
cores meanwhile. On a machine of two cores each process compiles and times on a core of its own, so
that no core is idle while another one is timing.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

from nas.machine import this_machine

MAX_COMPILING_WORKERS = 2
"""Workers that compile while another one is timing: compiling a kernel takes about twice as long
as timing it."""

LOAD_SECONDS = 0.1
"""How long the load of the cores is observed, before idle ones are chosen."""

_CORES = Path("/sys/devices/system/cpu")

_TIMES = Path("/proc/stat")


class ProcessLock:
    """A lock shared by a process and the child processes that receive it when they start.

    The lock is reentrant within a process. The operating system releases it when its holder dies.
    The locked file has no name, so a killed process leaves no file behind.
    """

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self._file = tempfile.TemporaryFile() if file is None else file  # noqa: SIM115
        self._depth = 0

    def __reduce__(self) -> Any:
        # Only Linux pins processes to cores, so that only Linux has plans with locks.
        return _opened_lock, (f"/proc/{os.getpid()}/fd/{self._file.fileno()}",)

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


def _opened_lock(path: str) -> ProcessLock:
    """Return the lock of another process, by the path of its open file."""
    return ProcessLock(open(path, "r+b"))


@dataclass(frozen=True)
class CorePlan:
    """Which cores a process of a build uses.

    Args:
        timing_cores: cores on which it times.
        other_cores: cores for all its other work, at least one. They share no physical core with
            the cores on which another process may be timing.
        lock: lock that the timing process holds.
    """

    timing_cores: tuple[int, ...]
    other_cores: tuple[int, ...]
    lock: ProcessLock = field(default_factory=ProcessLock, compare=False)


_current_plan: CorePlan | None = None
"""The plan of this process; None if it has the machine to itself."""


def plan_workers(threads: int) -> list[CorePlan]:
    """Return the plan of each worker process of a build.

    Args:
        threads: number of threads that run one kernel.

    Returns:
        Plans that share a lock. There are none if no core is left to compile on, or a CPU quota
        allows none: one worker then has the machine to itself.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    allowed = frozenset(os.sched_getaffinity(0))
    timing_cores = _idlest_cores(allowed, threads)
    # Two hyper-threads of a core are not two cores.
    taken = {sibling for core in timing_cores for sibling in siblings(core)}
    other_cores = tuple(sorted(allowed - taken))
    spare = this_machine.allowed_cores() - threads
    if not other_cores or spare < 1:
        return []
    lock = ProcessLock()
    if len(timing_cores) == len(other_cores) == 1:
        return [CorePlan(own, own, lock) for own in (timing_cores, other_cores)]
    workers = 1 + min(MAX_COMPILING_WORKERS, len(other_cores), spare)
    return [CorePlan(timing_cores, other_cores, lock)] * workers


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


def cores_of_processes(processes: int, threads: int) -> list[tuple[int, ...]]:
    """Return cores for processes that run at the same time; no two processes share a core.

    Idle physical cores come first, and the second hyper-threads of cores last.

    Args:
        processes: number of processes; this process may use as many cores as all of them need.
        threads: number of threads of each.
    """
    allowed = frozenset(os.sched_getaffinity(0))
    loads = core_loads()

    def rank(core: int) -> tuple[int, float]:
        return sum(other < core for other in siblings(core) & allowed), loads.get(core, 1.0)

    cores = sorted(allowed, key=rank)
    return [tuple(sorted(cores[first * threads :][:threads])) for first in range(processes)]


def siblings(core: int, cores: Path = _CORES) -> set[int]:
    """Return the hyper-threads of a core, including itself; only itself if they are not known."""
    path = cores / f"cpu{core}" / "topology" / "thread_siblings_list"
    hyper_threads = {core}
    if path.exists():
        for part in path.read_text().strip().split(","):
            first, _, last = part.partition("-")
            hyper_threads |= set(range(int(first), int(last or first) + 1))
    return hyper_threads


def core_loads(times: Path = _TIMES) -> dict[int, float]:
    """Return the share of the next `LOAD_SECONDS` in which each core works, by its number.

    A core that is switched off is missing, and so may be others in a container.

    Args:
        times: file with the time that each core has spent at what: see proc(5), `/proc/stat`.
    """
    before = _core_times(times)
    time.sleep(LOAD_SECONDS)
    loads = {}
    for core, (idle, total) in _core_times(times).items():
        earlier_idle, earlier_total = before.get(core, (idle, total))
        loads[core] = 1 - (idle - earlier_idle) / max(1, total - earlier_total)
    return loads


def _core_times(times: Path) -> dict[int, tuple[int, int]]:
    """Return how long each core has idled, and since when it has been counted, in ticks."""
    if not times.exists():  # The system is not Linux.
        return {}
    cores = {}
    for number, text in re.findall(r"^cpu(\d+) (.+)$", times.read_text(), re.MULTILINE):
        # user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user and nice.
        ticks = [int(each) for each in text.split()[:8]]
        cores[int(number)] = sum(ticks[3:5]), sum(ticks)
    return cores


@cache
def _idlest_cores(cores: frozenset[int], count: int) -> tuple[int, ...]:
    """Return the least busy cores, chosen once so that all timings of a process use the same."""
    loads = core_loads() if len(cores) > count else {}
    return tuple(sorted(cores, key=lambda core: loads.get(core, 1.0))[:count])
