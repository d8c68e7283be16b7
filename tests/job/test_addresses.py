"""Whole jobs for a device with an address: this machine behind a real OpenSSH server."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from nas.latency import LatencyTable
from nas.run.run import Run
from tests.job.runs import edit
from tests.mini_job import write_job
from tests.transports.servers import emulated, loopback

OUT = Path("results/mini")
COMMAND = (sys.executable, "-P", "-m", "nas", "run", "job.toml", "--json")

HAS_COMPILER = platform.machine() == "x86_64" and find_spec("ziglang") is not None


def write(folder: Path, runtime: str, target: str, formats: list[str]) -> None:
    device = f'\n[device]\nruntime = "{runtime}"\ntarget = "{target}"\n'
    path = write_job(folder, spaces=("mobile",), extra=device)
    changes = {"trials = 30": "trials = 12", "measure = 10": "measure = 3"}
    edit(path, {**changes, "retrain = 0": "retrain = 1", "export = []": f"export = {formats}"})


def run() -> dict[str, object]:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def kill_after(seconds: float) -> None:
    """Start the job, and kill its process after some seconds."""
    with subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        try:
            job.wait(seconds)
        except subprocess.TimeoutExpired:
            job.send_signal(signal.SIGKILL)


def kill_programs() -> None:
    """Kill the programs of kits that run where a transport puts them."""
    folder = str(Path.home() / ".cache" / "nas")
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.name() == "kit" and each.cwd().startswith(folder):
                each.kill()


def check(address: str, formats: list[str]) -> None:
    """Check that a finished job has measured networks, and files that were tried on the device."""
    opened = Run(OUT)
    assert len(opened.trials.dropna(subset="measured_us")) >= 3
    (table,) = Path("latency_tables").glob("*.jsonl")
    assert {each.status for each in LatencyTable.open(table).records("kernel")} <= {
        "ok",
        "unstable",
        "disturbed",
    }
    assert address not in table.read_text()
    (card,) = OUT.glob("models/*/card.json")
    tried = json.loads(card.read_text())["on_device"]
    assert tried["errors"] == {}
    assert [each["format"] for each in tried["files"]] == formats
    for each in tried["files"]:
        assert each["difference"] <= each["tolerance"]
        assert each["latency"]["fastest_us"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_job_of_onnx_runtime_ends_with_files_that_were_tried_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with loopback() as target:
        write(tmp_path, "onnxruntime", target, ["onnx", "onnx-int8"])
        kill_after(20)
        run()
    check(target.partition("?")[0], ["onnx", "onnx-int8"])


@pytest.mark.long
@pytest.mark.qemu
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    "NAS_ARM64_BOARD" not in os.environ, reason="needs an arm64 board of .ci/arm64-board"
)
@pytest.mark.parametrize(
    ("runtime", "formats"), [("onnxruntime", ["onnx", "onnx-int8"]), ("tvm", ["c"])]
)
def test_job_for_an_emulated_arm_board_ends_with_files_that_were_tried_there(
    runtime: str, formats: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with emulated() as address:
        write(tmp_path, runtime, address, formats)
        kill_after(60)
        run()
    check(address, formats)
    assert [*Path("latency_tables").glob("aarch64-*.jsonl")]


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not HAS_COMPILER, reason="ziglang compiles the program of this test for x86-64")
def test_job_of_tvm_goes_on_after_ends_of_either_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with loopback() as target:
        address = target.partition("?")[0]
        write(tmp_path, "tvm", address, ["c"])
        for seconds in (8, 20, 35, 50, 60, 12, 15, 20):
            kill_after(seconds)
            kill_programs()
        run()
        check(address, ["c"])
