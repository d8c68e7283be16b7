"""A whole job that is stopped, that has a full or read-only disk, or whose clock jumps.

`NAS_FAULTS=thorough` stops the job more often, and fills the disk page by page.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from nas import job as jobs
from nas.job import load_job
from tests.job.runs import MAX_WAIT_S, count_lines
from tests.latency.fake_runtime import use_fake_device
from tests.mini_job import write_job
from tests.small_disk import change, mounted, rerun_where_mounting_is_allowed

THOROUGH = os.environ.get("NAS_FAULTS") == "thorough"
PAGE_KB = 4
STEP_KB, MAX_DISK_KB = (PAGE_KB if THOROUGH else 24), 1200
ROUNDS_OF_STOPS = 8 if THOROUGH else 1
HALF_A_LINE = b'{"record": "kernel", "ker'
"""What a kill during a write leaves at the end of a log."""

MAX_END_S = 20
"""Seconds that a process tree may take to end: an importing process ends after the import."""

COMMAND = [sys.executable, "-m", "tests.faults", "run", "job.toml", "--out", "out"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def expected_run(tmp_path_factory):
    """Return the run folder of a job on the fake device that ran without a fault."""
    folder = tmp_path_factory.mktemp("expected_run")
    path = write_job(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_fake_device(patch)
        jobs.run_job(load_job(path), folder / "out", command="nas run job.toml --out out")
    return folder / "out"


def read_results(folder: Path) -> list[pd.DataFrame]:
    return [
        pd.read_csv(folder / name).drop(columns="seconds") for name in ("trials.csv", "front.csv")
    ]


def assert_same_result(folder: Path, expected: Path) -> None:
    for rows, expected_rows in zip(read_results(folder), read_results(expected), strict=True):
        pd.testing.assert_frame_equal(rows, expected_rows)


def assert_every_file_is_whole(folder: Path) -> None:
    """Check every file, except an incomplete last line of a log, which the next start cuts off."""
    for path in folder.rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            pd.read_csv(path)
        elif path.suffix in (".jsonl", ".journal"):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    json.loads(line)
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path
        elif path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                assert file.keys()


@pytest.mark.slow
def test_job_continues_each_time_the_disk_was_full(
    request, job_folder, fake_device, expected_run, invoke, monkeypatch
):
    disk = job_folder / "disk"
    disk.mkdir()
    if rerun_where_mounting_is_allowed(request, disk):
        return
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk / "cache"))
    keep_tables_in(job_folder, "disk/tables")
    refused_files = set()
    with mounted(disk, f"size={PAGE_KB}k"):
        for size in range(PAGE_KB, MAX_DISK_KB, STEP_KB):
            change(disk, f"size={size}k")
            done = invoke("run", "job.toml", "--out", "disk/out")
            assert_every_file_is_whole(disk)
            if done.returncode == 0:
                break
            refused_files.add(refused_file(done))
        assert done.returncode == 0, done.stderr
        assert_same_result(disk / "out", expected_run)
    assert all(path.startswith("disk/") for path in refused_files), refused_files
    assert len(refused_files) >= 3


@pytest.mark.parametrize("what", ["out", "tables"])
def test_read_only_disk_gives_one_message(request, job_folder, fake_device, invoke, what):
    disk = job_folder / "disk"
    disk.mkdir()
    if rerun_where_mounting_is_allowed(request, disk):
        return
    keep_tables_in(job_folder, "disk/tables" if what == "tables" else "tables")
    with mounted(disk, "size=1m,ro"):
        out = "disk/out" if what == "out" else "out"
        assert refused_file(invoke("run", "job.toml", "--out", out)).startswith("disk/")


def keep_tables_in(folder: Path, tables: str) -> None:
    with (folder / "job.toml").open("a") as file:
        file.write(f'\n[device]\ntables = "{tables}"\n')


def refused_file(done: subprocess.CompletedProcess[str]) -> str:
    """Return the file on the small disk that the only message of a failed command names."""
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("error: ")
    (path,) = {word.strip(".,:'") for word in message.split() if "disk/" in word}
    return path[path.index("disk/") :]


@pytest.fixture
def stoppable(job_folder, monkeypatch) -> Path:
    """Return the job folder for `COMMAND`, whose temporary files are in the subfolder `tmp`."""
    (job_folder / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(job_folder / "tmp"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    return job_folder


@pytest.mark.slow
def test_job_stopped_in_every_stage_leaves_no_process_and_gives_same_result(
    stoppable, expected_run
):
    out, tables = stoppable / "out", stoppable / "latency_tables"

    def count_timings() -> int:
        return sum(count_lines(path) for path in tables.glob("*.jsonl"))

    training = out / "supernets" / "shuffle" / "training.jsonl"
    measurements = out / "measurements.jsonl"
    stops: list[tuple[int, Callable[[], bool]]] = [
        (signal.SIGKILL, lambda: count_timings() >= 10),
        (signal.SIGTERM, lambda: count_timings() >= 40),
        (signal.SIGTERM, lambda: count_lines(training) >= 2),
        (signal.SIGHUP, lambda: count_lines(out / "study.journal") >= 12),
        (signal.SIGKILL, lambda: count_lines(measurements) >= 1),
    ]
    rng = np.random.default_rng(0)
    for number, moment in stops:
        before = {path: whole_lines(path) for path in tables.glob("*.jsonl")}
        stop_at(stoppable, number, moment)
        for path, lines in before.items():
            assert path.read_bytes().startswith(lines), "a finished timing was lost"
        for path in (*tables.glob("*.jsonl"), out / "study.journal"):
            if path.exists():
                with path.open("ab") as file:
                    file.write(HALF_A_LINE)
    measured = whole_lines(measurements)
    for _ in range(ROUNDS_OF_STOPS - 1):
        for entry in (out, tables):
            shutil.rmtree(entry)
        for number, moment in stops:
            stop_at(stoppable, number, moment, pause_s=rng.uniform(0, 1))
    done = subprocess.run(COMMAND, cwd=stoppable, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same_result(out, expected_run)
    if ROUNDS_OF_STOPS == 1:
        assert "half-written" in done.stderr
        assert measurements.read_bytes().startswith(measured), "a finished measurement was lost"


def whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def stop_at(folder: Path, number: int, moment: Callable[[], bool], pause_s: float = 0.0) -> None:
    """Start the job, stop it at a moment with a signal, and check what it leaves behind.

    Args:
        folder: folder of the job.
        number: number of the signal.
        moment: whether the moment has come.
        pause_s: seconds between the moment and the signal, in which the job may end by itself.
    """
    with subprocess.Popen(COMMAND, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + MAX_WAIT_S
        while not moment() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(pause_s)
        if pause_s and process.poll() == 0:
            return
        tree = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=MAX_WAIT_S)
    _, alive = psutil.wait_procs(tree, timeout=MAX_END_S)
    assert not alive, alive
    assert "Traceback" not in stderr
    if number == signal.SIGKILL:
        assert process.returncode == -number, stderr
    else:
        assert process.returncode == 1, stderr
        assert stderr.endswith("stopped; the same command continues\n")
    assert_every_file_is_whole(folder)
    # The cache of torch is there too, and all processes share it.
    left = [path for path in (folder / "tmp").iterdir() if "torchinductor" not in path.name]
    assert left == []
