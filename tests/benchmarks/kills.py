"""Stop the quickstart in every stage and compare its result with that of an uninterrupted run.

    python -m tests.benchmarks.kills --kills 20

SIGKILL and SIGTERM alternate. The stops are spread over the stages, each at a random moment of its
stage. No process of a stopped run may be left.

Both runs use one latency table and one measurement log, because timings never repeat exactly. The
training, the search, the choice of the networks to measure and the front must be equal. Kills while
the table is built or networks are timed are tested in tests/job/test_faults.py.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

MAX_EXIT_SECONDS = 3.0
"""Time in which all processes of a stopped run must end. An import cannot be interrupted."""

MAX_STOP_DELAY_SECONDS = 4.0
"""Latest moment of a stop after the begin of its stage. Many stages take only a few seconds."""

MAX_WAIT_SECONDS = 600.0
"""Longest time to wait for the begin of a stage."""

COMMAND = [sys.executable, "-m", "nas", "quickstart", "--out", "run"]


def run_to_end(folder: Path) -> float:
    """Run the job, or the rest of it, and return its duration in seconds."""
    start = time.monotonic()
    with (folder / "log").open("wb") as out:
        subprocess.run(COMMAND, cwd=folder, check=True, stderr=out)
    return time.monotonic() - start


def stages_in_log(folder: Path) -> list[str]:
    """Return the stages that a finished job has begun, in order, as its log names them."""
    return [line for line in (folder / "log").read_text().splitlines() if line.endswith(" ...")]


def run_and_stop(folder: Path, stage: str, delay_seconds: float, number: signal.Signals) -> str:
    """Run the job and stop it some seconds after a stage has begun.

    Ends the benchmark with a message if a process or a traceback is left.

    Returns:
        The stage in which the job was stopped, or "had ended".
    """
    log = folder / "log"
    end = time.monotonic() + MAX_WAIT_SECONDS
    with log.open("wb") as out, subprocess.Popen(COMMAND, cwd=folder, stderr=out) as process:
        while process.poll() is None and stage not in log.read_text() and time.monotonic() < end:
            time.sleep(0.01)
        try:
            process.wait(delay_seconds)
        except subprocess.TimeoutExpired:
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(number)
            process.wait()
            _, alive = psutil.wait_procs(children, timeout=MAX_EXIT_SECONDS)
            messages = log.read_text().strip()
            if alive or "Traceback" in messages:
                sys.exit(f"{number.name} left {alive or messages}")
            stages = [line for line in messages.splitlines() if not line.startswith("stopped;")]
            return stages[-1] if stages else "start"
    return "had ended"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        uninterrupted, stopped = Path(name) / "uninterrupted", Path(name) / "stopped"
        uninterrupted.mkdir()
        stopped.mkdir()
        run_to_end(uninterrupted)
        shutil.copytree(uninterrupted / "latency_tables", stopped / "latency_tables")
        shutil.rmtree(uninterrupted / "run")
        seconds = run_to_end(uninterrupted)  # The stopped run has the table, too.
        stages = stages_in_log(uninterrupted)
        print(f"uninterrupted: {seconds:.0f} s, {len(stages)} stages", flush=True)
        for kill in range(arguments.kills):
            stage = stages[len(stages) * kill // arguments.kills]
            delay_seconds = float(rng.uniform(0, MAX_STOP_DELAY_SECONDS))
            number = (signal.SIGKILL, signal.SIGTERM)[kill % 2]
            where = run_and_stop(stopped, stage, delay_seconds, number)
            print(
                f"{number.name} {kill + 1}, {delay_seconds:.1f} s into {stage} {where}", flush=True
            )
            if (stopped / "run" / "job.toml").exists():
                shutil.copy(uninterrupted / "run" / "measurements.jsonl", stopped / "run")
        run_to_end(stopped)
        is_equal = True
        for table in ("trials.csv", "front.csv"):
            expected, rows = (
                pd.read_csv(folder / "run" / table).drop(columns="seconds")
                for folder in (uninterrupted, stopped)
            )
            comparison = "equal" if expected.equals(rows) else "DIFFERENT"
            print(f"{table}: {len(expected)} and {len(rows)} rows, {comparison}")
            is_equal &= expected.equals(rows)
        sys.exit(0 if is_equal else 1)


if __name__ == "__main__":
    main()
