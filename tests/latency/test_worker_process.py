"""Compilers that crash, hang, fail or are killed in real worker processes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import nas.space
from nas.errors import BoardLostError, DeviceError, MeasurementError
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build_table, core_scheduling, space_kernels, worker_process
from nas.latency.timing import Timing
from nas.latency.worker_process import WorkerTimer, timers_for
from tests.latency.fake_runtime import FakeRuntime, device, latency_us

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
KERNELS = space_kernels(SPACE, "tvm")
FINE, FAILS, CRASHES, HANGS, EXITS, ALSO_FINE = KERNELS[:6]


class FailingRuntime(FakeRuntime):
    """A runtime whose compiler fails, crashes, hangs or exits at some kernels."""

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


class UnopenableRuntime(FakeRuntime):
    """A runtime that cannot be opened in the worker."""

    def open(self) -> None:
        raise RuntimeError("no such compiler here")


@pytest.mark.slow
def test_failure_of_a_worker_fails_only_its_kernel(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    table = LatencyTable.open_or_create(tmp_path, runtime)
    with WorkerTimer(FailingRuntime(), limit_s=3) as timer:
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


def test_closed_timer_starts_no_worker() -> None:
    with WorkerTimer(FakeRuntime()) as timer:
        pass
    with pytest.raises(MeasurementError, match="the timer is closed"):
        timer.time_kernel(FINE)
    assert timer._process.pid is None


UNGUARDED = """
print("main", flush=True)
from tests.latency.fake_runtime import FakeRuntime, latency_us
from nas.latency.worker_process import WorkerTimer
import nas
kernel = nas.space_kernels(nas.load_space("mobilenet_tiny", image_size=8, channels=1), "tvm")[0]
with WorkerTimer(FakeRuntime()) as timer:
    assert timer.time_kernel(kernel)[1].latency_us == latency_us(kernel)
print("timed")
"""


def test_worker_does_not_import_the_main_module(tmp_path: Path) -> None:
    """A script without a main guard would run again in each worker, and one from stdin fail."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-"],
        input=UNGUARDED,
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("main\ntimed\n", "")


class NotImportable:
    """A class that no other process can import, like one of a notebook's cells."""

    __module__ = "__main__"


def test_runtime_of_the_main_module_is_named() -> None:
    runtime = FakeRuntime()
    runtime.own = NotImportable()  # type: ignore[attr-defined]
    sys.modules["__main__"].NotImportable = NotImportable  # type: ignore[attr-defined]
    try:
        with WorkerTimer(runtime) as timer, pytest.raises(MeasurementError, match="NotImportable"):
            timer.time_kernel(FINE)
    finally:
        del sys.modules["__main__"].NotImportable  # type: ignore[attr-defined]


def test_runtime_that_does_not_open_gives_reason() -> None:
    with (
        WorkerTimer(UnopenableRuntime()) as timer,
        pytest.raises(MeasurementError, match="did not start: RuntimeError: no such compiler here"),
    ):
        timer.time_dispatch()


class CurveRuntime(FakeRuntime):
    """A runtime with a miss curve."""

    def time_miss_curve(self) -> Mapping[str, Timing]:
        return {"weights_4mib": Timing((12.0,))}


def test_worker_answers_all_requests() -> None:
    runtime = CurveRuntime()
    with WorkerTimer(runtime) as timer:
        schedule, timing = timer.time_kernel(FINE)
        assert (schedule, timing) == runtime.time_kernel(FINE)
        assert timer.retime_kernel(FINE, schedule) == timing
        assert timer.time_dispatch() == runtime.time_dispatch()
        assert timer.time_miss_curve() == runtime.time_miss_curve()


class InThisProcess:
    """Calls functions as `ChildProcess` does, without a process."""

    is_running = False

    def call(
        self, function: Callable[..., Any], *arguments: Any, limit_s: float, start: bool = True
    ) -> Any:
        self.is_running = True
        return function(*arguments)

    def close(self, *, for_good: bool = False) -> None:
        self.is_running = False


class RemoteRuntime(FakeRuntime):
    """A remote board that answers while the file `board` exists, which holds its processor."""

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
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteRuntime:
    monkeypatch.setattr(worker_process, "RECONNECTION_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(worker_process, "ChildProcess", InThisProcess)
    runtime = RemoteRuntime()
    runtime.board = tmp_path / "board"
    runtime.board.write_text(runtime.fingerprint.processor)
    return runtime


def test_returning_board_is_asked_again(
    board: RemoteRuntime, monkeypatch: pytest.MonkeyPatch
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
    assert pauses[:2] == [0.01, 0.02]


def test_absent_board_is_lost(board: RemoteRuntime) -> None:
    with WorkerTimer(board) as timer:
        timer.time_kernel(FINE)
        with pytest.raises(BoardLostError, match="There is no board") as caught:
            timer.time_kernel(FAILS)
    assert caught.value.exit_status == 1


def test_different_board_at_the_address_is_refused(board: RemoteRuntime) -> None:
    board.board.write_text("Another CPU 4-5-6")
    with (
        WorkerTimer(board) as timer,
        pytest.raises(DeviceError, match="processor is Another CPU 4-5-6, not Test CPU 1-2-3"),
    ):
        timer.time_kernel(FINE)


@pytest.mark.parametrize(("plans", "workers"), [(0, 1), (2, 2), (3, 3)])
def test_timers_for_starts_a_worker_for_each_plan_or_board(
    plans: int, workers: int, board: RemoteRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = core_scheduling.CorePlan((0,), (0,))
    monkeypatch.setattr(core_scheduling, "plan_workers", lambda threads: [plan] * plans)
    with timers_for(FakeRuntime()) as timers:
        assert len(timers) == workers
    monkeypatch.setattr(RemoteRuntime, "devices", [board] * workers)
    with timers_for(board) as timers:
        assert len(timers) == workers
