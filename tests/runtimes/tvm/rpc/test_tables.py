"""Tables of boards, built through the command line and by several boards at once."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import nas.space
from nas.cli import main
from nas.latency import BuildProgress, LatencyTable, build_table, space_kernels
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.latency.worker_process import timers_for
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.runtimes.tvm.rpc.rpc_processes import Process

SPACE = """
from nas.space import SearchSpace, Stage

SPACE = SearchSpace(
    name="three_kernels",
    activation="relu",
    stages=(
        Stage("stem", "conv", width=8, stride=2, per_stage={"kernel": 3}),
        Stage("head", "pool_classifier", width=16),
    ),
)
"""


Command = Callable[..., tuple[int, dict, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs a command: exit status, JSON document, text on stderr."""

    def run(*options: str) -> tuple[int, dict, str]:
        monkeypatch.setattr(sys, "argv", ["nas", *options, "--json"])
        with pytest.raises(SystemExit) as exit_:
            main()
        # End the sessions, as the end of a process would.
        status = int(exit_.value.code or 0)
        del exit_
        gc.collect()
        captured = capsys.readouterr()
        return status, json.loads(captured.out or "{}"), captured.err

    return run


@pytest.mark.long
def test_table_of_a_board_is_built_from_the_command_line(
    server: str, code: str, tmp_path: Path, command: Command
) -> None:
    space = tmp_path / "three_kernels.py"
    space.write_text(SPACE)
    of = ("--space", str(space), "--image-size", "16", "--channels", "1", "--classes", "5")
    status, built, stderr = command(
        "table", "build", *of, "--target", server, "--out", str(tmp_path / "tables")
    )
    assert status == 0, stderr
    assert built["ok"] + built["unstable"] == built["kernels_needed"] > 0
    assert "latency table" in stderr
    (path,) = (tmp_path / "tables").glob("*.jsonl")
    assert LatencyTable.open(path).device.target == f"rpc?{code}"

    # At another address the board is the same, and nothing is missing.
    elsewhere = server.replace("127.0.0.1", "localhost")
    _, again, stderr = command(
        "table", "build", *of, "--target", elsewhere, "--out", str(tmp_path / "tables")
    )
    assert again["table"] == str(path), stderr
    assert again["ok"] + again["unstable"] + again["failed"] == 0

    # Commands that use the board need its address; the table holds the rest of the target.
    address = server.partition("?")[0]
    status, _, stderr = command("table", "check", str(path), *of, "--nets", "1")
    assert (status, "Add --target rpc://HOST:PORT" in stderr) == (2, True)
    status, checked, stderr = command(
        "table", "check", str(path), *of, "--nets", "1", "--target", address
    )
    assert status == 0, stderr
    assert checked["rows"][0]["measured_us"] > 0
    status, _, stderr = command(
        "table", "check", str(path), "--quick", "--target", "rpc://127.0.0.1:1"
    )
    assert (status, "no TVM RPC server at 127.0.0.1:1" in stderr) == (1, True)
    status, _, stderr = command("table", "build", *of, "--target", "rpc://nowhere")
    assert (status, "For example rpc://" in stderr) == (2, True)
    assert "Traceback" not in stderr


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
        for part in TvmRuntime.dispatch_parts:
            table.append(Record.from_timing("dispatch", Timing((1.0,) * 10), name=part))
    rows_at_death: list[int] = []

    def kill_one(progress: BuildProgress) -> None:
        # On a busy machine, the second board starts late.
        if progress.done >= 4 and not rows_at_death and _busy(boards) == 2:
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
        assert record.status in ("ok", "unstable") or "was lost" in (record.error or "")
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


@pytest.mark.slow
def test_build_without_a_tracker_fails_with_a_message(
    code: str, tmp_path: Path, command: Command
) -> None:
    status, _, stderr = command(
        *("table", "build", "--space", "mobilenet_tiny", "--out", str(tmp_path)),
        *("--target", f"rpc://127.0.0.1:1/pair?{code}"),
    )
    assert (status, "no TVM RPC tracker at 127.0.0.1:1" in stderr) == (1, True)
    assert "Traceback" not in stderr
