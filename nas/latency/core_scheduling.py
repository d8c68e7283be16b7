"""How processes of one build share a machine: one times, alone on its core, the others compile."""

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


class Lock:
    """A lock that a process shares with those that it is handed to when they are started.

    The system releases it when its holder dies. It locks a file without a name, so that a killed
    process leaves none behind. The process that holds the lock may take it again.
    """

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self._file = tempfile.TemporaryFile() if file is None else file  # noqa: SIM115
        self._depth = 0

    def __reduce__(self) -> Any:
        return _handed_over, (reduction.DupFd(self._file.fileno()),)

    def __enter__(self) -> None:
        import fcntl

        if self._depth == 0:
            # Not `flock`, whose lock belongs to the open file: all these processes share it.
            fcntl.lockf(self._file, fcntl.LOCK_EX)
        self._depth += 1

    def __exit__(self, *exception: object) -> None:
        import fcntl

        self._depth -= 1
        if self._depth == 0:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _handed_over(descriptor: Any) -> Lock:
    return Lock(os.fdopen(descriptor.detach(), "w+b"))


@dataclass(frozen=True)
class Plan:
    """Who runs where.

    Args:
        cores: that timings are taken on, one at a time.
        others: that share nothing with those, for everything else; at least one.
        lock: of whoever is timing.
    """

    cores: tuple[int, ...]
    others: tuple[int, ...]
    lock: Lock = field(default_factory=Lock, compare=False)


_joined: Plan | None = None
"""What this process follows."""


def plan(threads: int) -> Plan | None:
    """A plan for timings of `threads`; None where it leaves no core to compile on."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = frozenset(os.sched_getaffinity(0))
    cores = _idlest(allowed, threads)
    # Two hyper-threads of a core are not two cores.
    others = sorted(allowed - {sibling for core in cores for sibling in siblings(core)})
    return Plan(cores, tuple(others)) if others else None


def follow(plan: Plan) -> None:
    """Makes this process follow a plan from now on."""
    global _joined
    _joined = plan
    os.sched_setaffinity(0, plan.others)


@contextmanager
def turn(threads: int) -> Iterator[tuple[int, ...]]:
    """The cores to time on, which are this process's while inside; at once without a plan."""
    if _joined is None:
        yield _idlest(frozenset(os.sched_getaffinity(0)), threads)
        return
    with _joined.lock:
        yield _joined.cores


def siblings(core: int, cores: Path = _CORES) -> set[int]:
    """The hyper-threads of a core, itself among them; it alone where the system does not tell."""
    path = cores / f"cpu{core}" / "topology" / "thread_siblings_list"
    found = {core}
    if path.exists():
        for part in path.read_text().strip().split(","):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


@cache
def _idlest(cores: frozenset[int], count: int) -> tuple[int, ...]:
    """The least busy of the cores, found once, so that all timings of a process share them."""
    load = psutil.cpu_percent(interval=0.1, percpu=True)
    return tuple(sorted(cores, key=lambda core: load[core])[:count])
