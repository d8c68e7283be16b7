"""A table of two boards, one of which vanishes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

import nas.space
from nas.latency import LatencyTable, build_table, space_kernels
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.latency.worker_process import timers_for
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.runtimes.tvm.rpc.rpc_processes import Process


@pytest.mark.slow
def test_build_survives_the_loss_of_one_of_two_boards(
    farm: tuple[str, list[Process]],
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nas.latency.worker_process.RECONNECTIONS", 0)
    target, boards = farm
    space = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
    small = {k for k in space_kernels(space, "tvm") if not k.has_weights or k.weight_bytes < 4096}
    kernels = sorted(small, key=lambda kernel: kernel.text)[:20]
    assert len(kernels) == 20
    runtime = TvmRuntime(target=target)
    table = LatencyTable.open_or_create(tmp_path, runtime)
    with table.writing():
        # Timing the dispatch costs takes ten seconds and is not tested here.
        for part in TvmRuntime.capabilities.dispatch_parts:
            table.append(Record.from_timings("dispatch", [Timing((1.0,) * 10)], name=part))
    rows_at_death: list[int] = []

    def kill_one(done: int, total: int, name: str) -> None:
        # On a busy machine, the second board starts late.
        if done >= 4 and not rows_at_death and _busy(boards) == 2:
            boards[0].kill()
            rows_at_death.append(len(table))

    with timers_for(runtime) as timers:
        assert len(timers) == 2
        built = build_table(table, kernels, timers, progress=kill_one)
    assert rows_at_death, "both boards were never busy at the same time"
    assert 0 < rows_at_death[0] < len(kernels)
    assert built.added == len(kernels)
    records = [table.record(kernel) for kernel in kernels]
    for record in records:
        assert record is not None
        assert record.status != "failed" or "was lost" in (record.error or "")
    assert sum(record is not None and record.status != "failed" for record in records) >= 18
    lines = [json.loads(line) for line in table.path.read_text().splitlines()]
    assert lines[0]["target"] == f"rpc?{code}"


def _busy(boards: list[Process]) -> int:
    """Return the number of boards with a session, that is, with a process that serves it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        busy = sum(len(psutil.Process(board.pid).children()) > 0 for board in boards)
        if busy == len(boards):
            return busy
        time.sleep(0.1)
    return busy
