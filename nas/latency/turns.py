"""How processes of one build share a machine: one times, alone on its core, the others compile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
from filelock import FileLock

LOOK_SECONDS = 1e-3
"""Between two looks at whether it is this process's turn."""

_CORES = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Plan:
    """Who runs where.

    Args:
        cores: that timings are taken on, one at a time.
        others: that share nothing with those, for everything else; at least one.
        lock_path: of a file that whoever is timing has locked. The system unlocks it when a process
            dies.
    """

    cores: tuple[int, ...]
    others: tuple[int, ...]
    lock_path: str


_joined: tuple[Plan, FileLock] | None = None
"""What this process follows."""


def plan(threads: int, lock_path: str) -> Plan | None:
    """A plan for timings of `threads`; None where it leaves no core to compile on."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = frozenset(os.sched_getaffinity(0))
    cores = _idlest(allowed, threads)
    # Two hyper-threads of a core are not two cores.
    others = sorted(allowed - {sibling for core in cores for sibling in siblings(core)})
    return Plan(cores, tuple(others), lock_path) if others else None


def follow(plan: Plan) -> None:
    """Makes this process follow a plan from now on."""
    global _joined
    _joined = plan, FileLock(plan.lock_path, poll_interval=LOOK_SECONDS)
    os.sched_setaffinity(0, plan.others)


@contextmanager
def turn(threads: int) -> Iterator[tuple[int, ...]]:
    """The cores to time on, which are this process's while inside; at once without a plan."""
    if _joined is None:
        yield _idlest(frozenset(os.sched_getaffinity(0)), threads)
        return
    followed, lock = _joined
    with lock:
        yield followed.cores


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
