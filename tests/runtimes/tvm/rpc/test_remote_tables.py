"""Tables of boards: built through the command line, and by several boards at once."""

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
from nas.latency import LatencyTable, Progress, build_table, space_kernels
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
    """Runs a command; returns its status, its JSON document, and what it said to the person."""

    def run(*options: str) -> tuple[int, dict, str]:
        monkeypatch.setattr(sys, "argv", ["nas", *options, "--json"])
        with pytest.raises(SystemExit) as exit_:
            main()
        # A process of its own would have ended its sessions.
        status = int(exit_.value.code or 0)
        del exit_
        gc.collect()
        said = capsys.readouterr()
        return status, json.loads(said.out or "{}"), said.err

    return run


def test_a_table_of_a_board_from_the_command_line(
    server: str, code: str, tmp_path: Path, command: Command
) -> None:
    space = tmp_path / "three_kernels.py"
    space.write_text(SPACE)
    of = ("--space", str(space), "--image-size", "16", "--channels", "1", "--classes", "5")
    status, built, said = command(
        "table", "build", *of, "--target", server, "--out", str(tmp_path / "tables")
    )
    assert status == 0, said
    assert built["ok"] + built["unstable"] == built["kernels_needed"] > 0
    assert "latency table" in said
    (path,) = (tmp_path / "tables").glob("*.jsonl")
    assert LatencyTable.open(path).device.target == f"rpc?{code}"

    # Behind another address it is the same board, and nothing is missing.
    elsewhere = server.replace("127.0.0.1", "localhost")
    _, again, said = command(
        "table", "build", *of, "--target", elsewhere, "--out", str(tmp_path / "tables")
    )
    assert again["table"] == str(path), said
    assert again["ok"] + again["unstable"] + again["failed"] == 0

    # Whoever needs the board says where it is; what it is, the table knows.
    address = server.partition("?")[0]
    status, _, said = command("table", "check", str(path), *of, "--nets", "1")
    assert (status, "Add --target rpc://HOST:PORT" in said) == (2, True)
    status, checked, said = command(
        "table", "check", str(path), *of, "--nets", "1", "--target", address
    )
    assert status == 0, said
    assert checked["rows"][0]["measured_us"] > 0
    status, _, said = command("table", "verify", str(path), "--target", "rpc://127.0.0.1:1")
    assert (status, "no TVM RPC server at 127.0.0.1:1" in said) == (1, True)
    status, _, said = command("table", "build", *of, "--target", "rpc://nowhere")
    assert (status, "For example rpc://" in said) == (2, True)
    assert "Traceback" not in said


def test_two_boards_of_which_one_dies(
    farm: tuple[str, list[Process]],
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nas.latency.worker_process.RECONNECTIONS", 0)
    target, boards = farm
    space = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
    small = {k for k in space_kernels(space, "tvm") if not k.has_weights or k.weight_bytes < 4096}
    kernels = sorted(small, key=lambda kernel: kernel.text)[:10]
    assert len(kernels) == 10
    runtime = TvmRuntime(target=target)
    table = LatencyTable.open_or_create(tmp_path, runtime)
    with table.writing():
        # They take ten seconds, and are no part of this.
        for part in TvmRuntime.dispatch_parts:
            table.append(Record.of_timing("dispatch", Timing((1.0,) * 10), name=part))
    rows_at_death: list[int] = []

    def kill_one(progress: Progress) -> None:
        if progress.done == 4:
            assert _busy(boards) == 2
            boards[0].kill()
            rows_at_death.append(len(table))

    with timers_for(runtime) as timers:
        assert len(timers) == 2
        built = build_table(table, kernels, timers, progress=kill_one)
    assert 0 < rows_at_death[0] < len(kernels)
    assert built.added == len(kernels)
    records = [table.record(kernel) for kernel in kernels]
    for record in records:
        assert record is not None
        assert record.status in ("ok", "unstable") or "was lost" in (record.error or "")
    assert sum(record is not None and record.status != "failed" for record in records) >= 8
    lines = [json.loads(line) for line in table.path.read_text().splitlines()]
    assert lines[0]["target"] == f"rpc?{code}"


def _busy(boards: list[Process]) -> int:
    """How many of the boards have a session, that is, a process that serves it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = sum(len(psutil.Process(b.pid).children()) > 0 for b in boards)
        if found == len(boards):
            return found
        time.sleep(0.1)
    return found


def test_a_tracker_that_is_gone_stops_a_build_in_words(
    code: str, tmp_path: Path, command: Command
) -> None:
    status, _, said = command(
        *("table", "build", "--space", "mobilenet_tiny", "--out", str(tmp_path)),
        *("--target", f"rpc://127.0.0.1:1/pair?{code}"),
    )
    assert (status, "no TVM RPC tracker at 127.0.0.1:1" in said) == (1, True)
    assert "Traceback" not in said
