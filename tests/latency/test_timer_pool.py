"""Builds on several fake devices, some of which vanish."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import nas.space
from nas.errors import BoardLostError, DeviceError
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build_table, space_kernels
from nas.latency.timer_pool import TimerPool
from nas.latency.timing import Timing
from tests.latency.fake_runtime import FakeRuntime, latency_us

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
KERNELS = space_kernels(SPACE, "tvm")[:12]


class Board(FakeRuntime):
    """A device that is lost at its `last` timing, or at a `deadly` kernel."""

    def __init__(self, name: str, *, last: int = 1000, deadly: Kernel | None = None) -> None:
        super().__init__()
        self.board, self.last, self.deadly = name, last, deadly
        self.calls = 0
        self.threads: set[int] = set()

    def _call(self, kernel: Kernel) -> None:
        self.calls += 1
        self.threads.add(threading.get_ident())
        time.sleep(0.002)
        if self.calls >= self.last or kernel == self.deadly:
            self.last = 0
            raise BoardLostError(f"{self.board} was lost.")

    def time_kernel(self, kernel: Kernel) -> tuple[Mapping[str, Any], Timing]:
        self._call(kernel)
        return super().time_kernel(kernel)

    def retime_kernel(self, kernel: Kernel, schedule: Mapping[str, Any]) -> Timing:
        self._call(kernel)
        return super().retime_kernel(kernel, schedule)


def status(table: LatencyTable) -> dict[str, str | None]:
    return {r.name: r.error for r in table.records("kernel")}


def test_boards_share_kernels(tmp_path: Path) -> None:
    boards = [Board("a"), Board("b"), Board("c")]
    table = LatencyTable.open_or_create(tmp_path, boards[0])
    seen: list[int] = []
    built = build_table(table, KERNELS, boards, progress=lambda done, *_: seen.append(done))
    assert (built.ok, built.added) == (len(KERNELS), len(KERNELS))
    assert seen == list(range(1, 2 * len(KERNELS) + 1))
    assert all(board.calls > 2 for board in boards)
    assert sum(board.calls for board in boards) == 2 * len(KERNELS)
    assert threading.get_ident() not in set.union(*(board.threads for board in boards))
    for kernel in KERNELS:
        assert LatencyTable.open(table.path).latency_us(kernel) == latency_us(kernel)


@pytest.mark.parametrize("last", [1, 3, 6])
def test_kernel_of_lost_board_moves_to_another(tmp_path: Path, last: int) -> None:
    boards = [Board("a", last=last), Board("b")]
    table = LatencyTable.open_or_create(tmp_path, boards[0])
    built = build_table(table, KERNELS, boards)
    assert (built.ok, built.failed) == (len(KERNELS), 0)
    assert boards[0].calls == last
    assert set(status(table).values()) == {None}


def test_kernel_that_loses_two_boards_is_recorded_as_failed(tmp_path: Path) -> None:
    boards = [Board(name, deadly=KERNELS[4]) for name in "abc"]
    table = LatencyTable.open_or_create(tmp_path, boards[0])
    built = build_table(table, KERNELS, boards)
    assert (built.ok, built.failed) == (len(KERNELS) - 1, 1)
    error = status(table)[KERNELS[4].text]
    assert error in ("a was lost.", "b was lost.", "c was lost.")
    assert sum(board.last == 0 for board in boards) == 2


@pytest.mark.parametrize("names", ["a", "ab"])
def test_build_stops_without_boards_and_continues_later(tmp_path: Path, names: str) -> None:
    boards = [Board(name, last=4) for name in names]
    table = LatencyTable.open_or_create(tmp_path, boards[0])
    with pytest.raises(BoardLostError, match=r"No board is left.*a was lost") as caught:
        build_table(table, KERNELS, boards)
    assert caught.value.exit_status == 1
    errors = status(table)
    failed = [name for name, error in errors.items() if error is not None]
    assert len(failed) == 1
    assert len(errors) == 3 * len(names) + 1
    built = build_table(table, KERNELS, Board("new"))
    assert built.ok == len(KERNELS) - 1
    assert build_table(table, KERNELS, Board("new"), retry_failed=True).ok == 1


@pytest.mark.parametrize("left", [2, len(KERNELS) - 1])
def test_loss_at_a_later_timing_keeps_what_was_timed(tmp_path: Path, left: int) -> None:
    """All kernels are timed once, and `left` of them twice."""
    board = Board("a", last=len(KERNELS) + left + 1)
    table = LatencyTable.open_or_create(tmp_path, board)
    with pytest.raises(BoardLostError, match="No board is left"):
        build_table(table, KERNELS, board)
    assert set(status(table).values()) == {None}
    records = [table.record(kernel) for kernel in KERNELS]
    assert sum(record is not None and record.complete for record in records) == left
    assert build_table(table, KERNELS, Board("new")).ok == len(KERNELS) - left


def test_dispatch_is_timed_on_a_remaining_board(tmp_path: Path) -> None:
    class Deaf(Board):
        def time_dispatch(self) -> Mapping[str, Timing]:
            raise BoardLostError("a was lost.")

    table = LatencyTable.open_or_create(tmp_path, FakeRuntime())
    with pytest.raises(BoardLostError, match="No board is left"):
        build_table(table, [], [Deaf("a")])
    build_table(table, [], [Deaf("a"), Board("b")])
    assert not table.lacks_dispatch()


def test_unequal_board_stops_the_build(tmp_path: Path) -> None:
    class Other(Board):
        def time_kernel(self, kernel: Kernel) -> tuple[Mapping[str, Any], Timing]:
            raise DeviceError("A device is not equal to the others.")

    table = LatencyTable.open_or_create(tmp_path, FakeRuntime())
    with pytest.raises(DeviceError, match="not equal to the others"):
        build_table(table, KERNELS, [Board("a"), Other("b")])


def test_stopped_iteration_does_not_wait_for_running_calls() -> None:
    released = threading.Event()

    def ask(timer: object, kernel: Kernel) -> None:
        if kernel == KERNELS[1]:
            released.wait()

    for kernel, _ in TimerPool([Board("a"), Board("b")]).each(KERNELS[:2], ask):
        assert kernel == KERNELS[0]
        break
    released.set()


def test_kernel_returns_to_its_last_board_unless_that_is_lost() -> None:
    boards = [Board("a"), Board("b")]
    timers = TimerPool(boards)

    def name(timer: Any, kernel: Kernel) -> str:
        timer.retime_kernel(kernel, {"tile": 1})
        return str(timer.board)

    first = dict(timers.each(KERNELS, name))
    assert set(first.values()) == {"a", "b"}
    for _ in range(3):
        assert dict(timers.each(list(reversed(KERNELS)), name)) == first
    boards[0].last = 0
    assert set(dict(timers.each(KERNELS, name)).values()) == {"b"}
