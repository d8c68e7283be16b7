"""A compiler that crashes, hangs, fails or is killed is one kernel's error; in real processes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

import nas.space
from nas.errors import BoardLostError, DeviceError, MeasurementError
from nas.latency import (
    LatencyTable,
    build_table,
    core_scheduling,
    open_runtime,
    space_kernels,
)
from nas.latency.kernel import Kernel
from nas.latency.timing import Timing
from nas.latency.worker_process import WorkerTimer, timers_for
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.fake_runtime import FakeRuntime, device, latency_us

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
KERNELS = space_kernels(SPACE, "tvm")
FINE, FAILS, CRASHES, HANGS, EXITS, ALSO_FINE = KERNELS[:6]


class Moody(FakeRuntime):
    """Does to some kernels what compilers do."""

    def time_kernel(self, kernel: Kernel) -> tuple[Mapping[str, Any], Timing]:
        if kernel == FAILS:
            raise ValueError("cannot tile this\nat all")
        if kernel == CRASHES:
            os.kill(os.getpid(), signal.SIGSEGV)
        if kernel == HANGS:
            ctypes.PyDLL(None).sleep(1000)  # type: ignore[attr-defined]  # keeps Python's lock
        if kernel == EXITS:
            os._exit(3)
        return super().time_kernel(kernel)


class Broken(FakeRuntime):
    """Cannot be opened in the worker."""

    def open(self) -> None:
        raise RuntimeError("no such compiler here")


def test_every_failure_is_the_kernels_own(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    table = LatencyTable.open_or_create(tmp_path, runtime)
    with WorkerTimer(Moody(), limit_s=3) as timer:
        built = build_table(table, KERNELS[:6], timer)
    assert (built.ok, built.failed) == (2, 4)

    def error(kernel: Kernel) -> str:
        record = table.record(kernel)
        assert record is not None
        return record.error or ""

    assert error(FAILS) == "ValueError: cannot tile this"
    assert error(CRASHES) == "the compiler's process was ended by SIGSEGV"
    assert error(EXITS) == "the compiler's process ended with status 3"
    assert error(HANGS).startswith("compiling and timing took more than 3 s")
    for kernel in (FINE, ALSO_FINE):
        assert table.latency_us(kernel) == latency_us(kernel)


def test_the_worker_ends_with_its_user() -> None:
    with WorkerTimer(Moody()) as timer:
        timer.time_kernel(FINE)
        children = psutil.Process().children(recursive=True)
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) == 1
    assert not workers[0].is_running()


def test_a_worker_killed_from_outside_is_replaced() -> None:
    with WorkerTimer(Moody()) as timer:
        timer.time_kernel(FINE)
        for child in psutil.Process().children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
                while child.status() != psutil.STATUS_ZOMBIE:
                    time.sleep(0.01)
                # Its other threads may hold the pipe a little longer.
                time.sleep(0.5)
        schedule, timing = timer.time_kernel(ALSO_FINE)
        assert (schedule, timing.latency_us) == ({"tile": 1}, latency_us(ALSO_FINE))
        assert timer.retime_kernel(FINE, {"tile": 1}).latency_us == latency_us(FINE)


def test_signals_to_a_whole_group_of_processes_leave_a_worker_to_its_user() -> None:
    with WorkerTimer(Moody()) as timer:
        timer.time_kernel(FINE)
        worker = timer._process
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(worker.pid, number)
        assert timer.time_kernel(ALSO_FINE)[1].latency_us == latency_us(ALSO_FINE)
        assert timer._process is worker


def test_a_timer_that_is_closed_while_its_worker_starts_leaves_none() -> None:
    timer = WorkerTimer(Moody())
    errors: list[Exception] = []

    def ask() -> None:
        try:
            timer.time_kernel(FINE)
        except MeasurementError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    timer.__exit__()
    thread.join()
    assert len(errors) == 1
    assert timer._process is None
    with pytest.raises(MeasurementError, match="the timer is closed"):
        timer.time_kernel(FINE)


TIMING_FOR_EVER = """
from tests.latency.test_worker_process import *
with timers_for(FakeRuntime()), WorkerTimer(Moody()) as timer:
    timer.time_kernel(FINE)
    print(timer._process.pid, flush=True)
    timer.time_kernel(HANGS)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux alone ends native code")
def test_a_user_that_is_killed_takes_its_worker_along_and_leaves_no_file(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", TIMING_FOR_EVER],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": path},
        stdout=-1,
        stderr=-1,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    started = psutil.Process(process.pid).children(recursive=True)
    assert int(line) in [each.pid for each in started]
    time.sleep(0.1)
    process.kill()
    _, said = process.communicate()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive
    assert said == ""
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_does_not_open_says_why() -> None:
    with (
        WorkerTimer(Broken()) as timer,
        pytest.raises(MeasurementError, match="did not start: RuntimeError: no such compiler here"),
    ):
        timer.time_dispatch()


def test_the_real_runtime_in_its_process() -> None:
    with WorkerTimer(open_runtime("tvm")) as timer:
        schedule, timing = timer.time_kernel(FINE)
        assert timing.latency_us > 0
        assert timer.retime_kernel(FINE, schedule).latency_us > 0
        assert set(timer.time_dispatch()) == set(TvmRuntime.dispatch_parts)


class Elsewhere(FakeRuntime):
    """A board at an address, which answers while `board` is there, and says what it is."""

    board: Path
    released = 0
    is_remote = True  # type: ignore[assignment]

    def open(self) -> None:
        if not self.board.exists():
            raise BoardLostError("There is no board.")
        self.fingerprint = device(processor=self.board.read_text())

    def release(self) -> None:
        self.released += 1

    def time_kernel(self, kernel: Kernel) -> tuple[Mapping[str, Any], Timing]:
        if kernel == FAILS:
            self.board.unlink()
        if not self.board.exists():
            raise BoardLostError("The board was lost.", remedy="Plug it in.")
        return super().time_kernel(kernel)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    monkeypatch.setattr("nas.latency.worker_process.PAUSE_SECONDS", 0.01)
    runtime = Elsewhere()
    runtime.board = tmp_path / "board"
    runtime.board.write_text(runtime.fingerprint.processor)
    return runtime


def test_a_board_that_comes_back_is_asked_again(
    board: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            board.board.write_text(board.fingerprint.processor)

    with WorkerTimer(board) as timer:
        assert board.released == 1
        timer.time_kernel(FINE)
        board.board.unlink()
        monkeypatch.setattr("nas.latency.worker_process.time.sleep", pause)
        assert timer.time_kernel(ALSO_FINE)[1].latency_us == latency_us(ALSO_FINE)
    assert pauses == [0.01, 0.02]


def test_a_board_that_stays_away_is_lost(board: Elsewhere) -> None:
    with WorkerTimer(board) as timer:
        timer.time_kernel(FINE)
        with pytest.raises(BoardLostError, match="There is no board") as caught:
            timer.time_kernel(FAILS)
    assert caught.value.exit_status == 1


def test_another_board_in_its_place_is_refused(board: Elsewhere) -> None:
    board.board.write_text("Another CPU 4-5-6")
    with (
        WorkerTimer(board) as timer,
        pytest.raises(DeviceError, match="processor is Another CPU 4-5-6, not Test CPU 1-2-3"),
    ):
        timer.time_kernel(FINE)


def test_a_timer_for_each_board(board: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Elsewhere, "device_count", 3)
    with timers_for(board) as timers:
        assert len(timers) == 3


@pytest.mark.parametrize(("others", "workers"), [((), 1), ((1,), 2), ((1, 2, 3, 4), 3)])
def test_workers_for_the_cores_that_a_processor_has(
    others: tuple[int, ...], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = core_scheduling.Plan((0,), others) if others else None
    monkeypatch.setattr(core_scheduling, "plan", lambda threads: plan)
    with timers_for(FakeRuntime()) as timers:
        assert len(timers) == workers
