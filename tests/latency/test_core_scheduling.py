"""Processes that take turns at timing, each alone on the timing core."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from nas.latency import core_scheduling, timing
from nas.machine import this_machine

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="the system pins no threads"
)


def test_siblings_lists_hyper_threads(tmp_path: Path) -> None:
    for core, text in {0: "0,4\n", 1: "1-2", 2: "1-2"}.items():
        topology = tmp_path / f"cpu{core}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text)
    assert core_scheduling.siblings(0, tmp_path) == {0, 4}
    assert core_scheduling.siblings(1, tmp_path) == {1, 2}
    assert core_scheduling.siblings(7, tmp_path) == {7}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Return a function that gives the machine some cores, each with some hyper-threads."""

    def set_up(threads: int, cores: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(threads)))
        monkeypatch.setattr(
            core_scheduling, "_idlest_cores", lambda cores, count: tuple(sorted(cores)[:count])
        )
        monkeypatch.setattr(
            core_scheduling,
            "siblings",
            lambda core: {each for each in range(threads) if each % cores == core % cores},
        )

    return set_up


def test_workers_compile_on_other_cores_than_they_time_on(
    machine: Callable[[int, int], None],
) -> None:
    machine(4, 2)
    plan = core_scheduling.CorePlan((0,), (1, 3))
    assert core_scheduling.plan_workers(1) == [plan] * 3
    assert core_scheduling.plan_workers(2) == []
    machine(8, 8)
    plan = core_scheduling.CorePlan((0, 1), (2, 3, 4, 5, 6, 7))
    assert core_scheduling.plan_workers(2) == [plan] * 3


def test_two_workers_share_two_cores(machine: Callable[[int, int], None]) -> None:
    """Each has a core, and only one of them times at once."""
    machine(2, 2)
    first, second = core_scheduling.plan_workers(1)
    assert (first.timing_cores, first.other_cores) == ((0,), (0,))
    assert (second.timing_cores, second.other_cores) == ((1,), (1,))
    assert first.lock is second.lock
    machine(2, 1)
    assert core_scheduling.plan_workers(1) == []


def test_workers_keep_to_the_cpu_quota(
    machine: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond it, the system would stop them while one of them is timing."""
    for cores, workers in ((1, 0), (2, 2), (3, 3), (8, 3)):
        machine(8, 8)
        monkeypatch.setattr(this_machine, "allowed_cores", lambda cores=cores: cores)
        assert len(core_scheduling.plan_workers(1)) == workers


def test_processes_get_cores_of_their_own_and_hyper_threads_last(
    machine: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(8, 4)
    monkeypatch.setattr(core_scheduling, "core_loads", dict)
    cores = core_scheduling.cores_of_processes(4, threads=1)
    assert len({min(core_scheduling.siblings(core)) for (core,) in cores}) == 4
    every = core_scheduling.cores_of_processes(4, threads=2)
    assert sorted(core for own in every for core in own) == list(range(8))


def times(**idle: int) -> str:
    """Return a `/proc/stat` in which cores have idled some of 1000 ticks each."""
    lines = [f"{core} {900 - own} 20 30 {own - 7} 7 10 10 30 500 0\n" for core, own in idle.items()]
    return f"cpu  1 2 3 4 5 6 7 8 9 10\n{''.join(lines)}intr 12 0\nctxt 7\n"


@pytest.fixture
def stat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a `/proc/stat` of a machine whose second core is switched off."""
    path = tmp_path / "stat"
    path.write_text("".join(f"cpu{core} 0 0 0 0 0 0 0 0 0 0\n" for core in (0, 2, 3)))
    later = times(cpu0=300, cpu2=800, cpu3=550)
    monkeypatch.setattr(core_scheduling.time, "sleep", lambda _: path.write_text(later))
    return path


def test_loads_belong_to_the_numbers_of_the_cores(stat: Path, tmp_path: Path) -> None:
    loads = core_scheduling.core_loads(stat)
    assert loads == pytest.approx({0: 0.7, 2: 0.2, 3: 0.45})
    assert core_scheduling.core_loads(tmp_path / "missing") == {}


def test_idle_cores_are_chosen_where_a_core_is_switched_off(
    stat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = partial(core_scheduling.core_loads, stat)
    monkeypatch.setattr(core_scheduling, "core_loads", loads)
    monkeypatch.setattr(core_scheduling, "_idlest_cores", core_scheduling._idlest_cores.__wrapped__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3})
    monkeypatch.setattr(core_scheduling, "siblings", lambda core: {core})
    start = stat.read_text()
    with core_scheduling.reserved_cores(1) as cores:
        assert cores == (2,)
    stat.write_text(start)
    assert core_scheduling.cores_of_processes(3, threads=1) == [(2,), (3,), (0,)]
    stat.write_text(start)
    monkeypatch.setattr(this_machine, "allowed_cores", lambda: 3)
    assert core_scheduling.plan_workers(2)[0].timing_cores == (2, 3)
    monkeypatch.setattr(core_scheduling, "core_loads", lambda: pytest.fail("there is no choice"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    with core_scheduling.reserved_cores(1) as cores:
        assert cores == (3,)


def _time_for_ever(plan: core_scheduling.CorePlan, log: Path) -> None:
    core_scheduling.apply_plan(plan)
    outside = os.sched_getaffinity(0)
    with timing.pinned(1):
        with timing.pinned(1):
            pass
        log.write_text(f"{outside} {os.sched_getaffinity(0)}\n")
        time.sleep(1000)


def test_processes_of_a_plan_time_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed while it times releases the lock."""
    cores = os.sched_getaffinity(0)
    plan = core_scheduling.CorePlan((min(cores),), tuple(sorted(cores)))
    monkeypatch.setattr(core_scheduling, "_current_plan", plan)
    log, entered = tmp_path / "log", threading.Event()
    log.touch()

    def enter() -> None:
        with core_scheduling.reserved_cores(1):
            entered.set()

    other = multiprocessing.get_context("spawn").Process(target=_time_for_ever, args=(plan, log))
    other.start()
    thread = threading.Thread(target=enter)
    try:
        while not log.read_text().endswith("\n"):
            assert other.is_alive()
            time.sleep(0.02)
        thread.start()
        assert not entered.wait(0.2)
    finally:
        other.kill()
    thread.join()
    assert entered.is_set()
    assert log.read_text() == f"{cores} {{{min(cores)}}}\n"
