"""SIGKILL to the real process in every stage, each followed by the same command."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

COMMAND = [sys.executable, "-m", "nas", "run", "job.toml", "--out", "out"]
MAX_WAIT_S = 120


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_when(folder: Path, condition: Callable[[], bool]) -> None:
    """Starts the job and kills it as soon as `condition` holds, which it must while it runs."""
    with subprocess.Popen(COMMAND, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + MAX_WAIT_S
        while process.poll() is None and time.monotonic() < end:
            if condition():
                process.send_signal(signal.SIGKILL)
                process.wait()
                return
            time.sleep(0.005)
        process.kill()
        assert process.stderr is not None
        pytest.fail(f"the job ended or hung before the moment to kill it: {process.stderr.read()}")


def finish(folder: Path) -> str:
    done = subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_job_killed_in_every_stage_gives_result_of_finished_job(job_folder, finished_job):
    out = job_folder / "out"
    tables = job_folder / "latency_tables"

    def rows() -> int:
        return sum(lines(path) for path in tables.glob("*.jsonl"))

    kill_when(job_folder, lambda: rows() >= 6)
    (table,) = tables.glob("*.jsonl")
    timed = table.read_bytes()
    with table.open("ab") as file:
        file.write(b'{"record": "kernel", "ker')  # what a kill in the middle of a write leaves
    kill_when(job_folder, lambda: rows() >= 12)
    assert table.read_bytes().startswith(timed), "a row that was measured was lost"

    # From here on the undisturbed run's table and measurements: timings never repeat exactly.
    shutil.copy(finished_job / "latency_tables" / table.name, table)
    kill_when(job_folder, lambda: lines(out / "supernets" / "shuffle" / "training.jsonl") >= 2)
    kill_when(job_folder, lambda: lines(out / "study.journal") >= 12)
    with (out / "study.journal").open("ab") as file:
        file.write(b'{"op_code": 4, "study')
    shutil.copy(finished_job / "results" / "mini" / "measurements.jsonl", out)
    with (out / "measurements.jsonl").open("ab") as file:
        file.write(b'{"schema": 1, "dig')
    message = finish(job_folder)
    assert message.count("half-written") == 2

    for name in ("trials.csv", "front.csv"):
        expected = pd.read_csv(finished_job / "results" / "mini" / name).drop(columns="seconds")
        rows = pd.read_csv(out / name).drop(columns="seconds")
        pd.testing.assert_frame_equal(rows, expected)


def test_job_killed_while_measuring_keeps_its_measurements(job_folder_with_table, finished_job):
    out = job_folder_with_table / "out"
    kill_when(job_folder_with_table, lambda: lines(out / "measurements.jsonl") >= 1)
    log = (out / "measurements.jsonl").read_bytes()
    whole = log[: log.rindex(b"\n") + 1]
    finish(job_folder_with_table)
    assert (out / "measurements.jsonl").read_bytes().startswith(whole)
    expected_run = finished_job / "results" / "mini"
    digests, expected = (
        pd.read_csv(f / "trials.csv")["digest"].tolist() for f in (out, expected_run)
    )
    assert digests == expected
    measured, wanted = (
        {json.loads(line)["digest"] for line in (f / "measurements.jsonl").read_text().splitlines()}
        for f in (out, expected_run)
    )
    assert measured == wanted
