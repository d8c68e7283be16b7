"""A job that is killed in every stage, and continued with the same command."""

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

from tests.job.runs import MAX_WAIT_S, count_lines

COMMAND = [sys.executable, "-m", "nas", "run", "job.toml", "--out", "out"]


def kill_when(folder: Path, condition: Callable[[], bool]) -> None:
    """Start the job and kill it when `condition` holds; fail if it ends before."""
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


@pytest.mark.slow
def test_job_killed_in_every_stage_gives_result_of_finished_job(job_folder, finished_job):
    out = job_folder / "out"
    tables = job_folder / "latency_tables"

    def count_rows() -> int:
        return sum(count_lines(path) for path in tables.glob("*.jsonl"))

    kill_when(job_folder, lambda: count_rows() >= 6)
    (table,) = tables.glob("*.jsonl")
    timed = table.read_bytes()
    with table.open("ab") as file:
        file.write(b'{"record": "kernel", "ker')  # As after a kill during a write.
    kill_when(job_folder, lambda: count_rows() >= 12)
    assert table.read_bytes().startswith(timed), "a finished timing was lost"

    # Use the timings of the finished job from here on, because no two timings are equal.
    shutil.copy(finished_job / "latency_tables" / table.name, table)
    training = out / "supernets" / "shuffle" / "training.jsonl"
    kill_when(job_folder, lambda: count_lines(training) >= 2)
    kill_when(job_folder, lambda: count_lines(out / "study.journal") >= 12)
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


@pytest.mark.slow
def test_job_killed_while_measuring_keeps_its_measurements(job_folder_with_table, finished_job):
    out = job_folder_with_table / "out"
    kill_when(job_folder_with_table, lambda: count_lines(out / "measurements.jsonl") >= 1)
    log = (out / "measurements.jsonl").read_bytes()
    whole = log[: log.rindex(b"\n") + 1]
    finish(job_folder_with_table)
    assert (out / "measurements.jsonl").read_bytes().startswith(whole)
    runs = (out, finished_job / "results" / "mini")
    digests, expected_digests = (pd.read_csv(run / "trials.csv")["digest"].tolist() for run in runs)
    assert digests == expected_digests
    measured, expected_measured = (measured_digests(run) for run in runs)
    assert measured == expected_measured


def measured_digests(run: Path) -> set[str]:
    lines = (run / "measurements.jsonl").read_text().splitlines()
    return {json.loads(line)["digest"] for line in lines}
