"""Stops the quickstart in every stage and compares its end with that of an undisturbed run.

    python -m tests.benchmarks.kills --kills 20

Every other stop is a SIGKILL, the others are SIGTERM. The stops are spread over the stages, each at
a random moment of its stage. No process of a stopped run may stay.

Both runs use one latency table and one measurement log, since timings never repeat exactly; the
training, the search, its proposals, the choice of what to measure and the front must repeat. Kills
while the table is built or networks are timed are tested in tests/job/test_kill.py.
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

ENDED_WITHIN_S = 3.0
"""How long a process tree may take to end: a process that is importing ends after the import."""

LONGEST_S = 4.0
"""A stop comes at most so long after its stage began: many stages take only a few seconds."""

PATIENCE_S = 600.0
"""How long a stage may take to begin."""

COMMAND = [sys.executable, "-m", "nas", "quickstart", "--out", "run"]


def finish(folder: Path) -> float:
    start = time.monotonic()
    with (folder / "log").open("wb") as out:
        subprocess.run(COMMAND, cwd=folder, check=True, stderr=out)
    return time.monotonic() - start


def stages_of(folder: Path) -> list[str]:
    """The stages that a finished job says to have begun, in order."""
    return [line for line in (folder / "log").read_text().splitlines() if line.endswith(" ...")]


def stop_in(folder: Path, stage: str, seconds: float, number: signal.Signals) -> str:
    """Runs the job, stops it so long after a stage began, and says where; or that it had ended."""
    log = folder / "log"
    end = time.monotonic() + PATIENCE_S
    with log.open("wb") as out, subprocess.Popen(COMMAND, cwd=folder, stderr=out) as process:
        while process.poll() is None and stage not in log.read_text() and time.monotonic() < end:
            time.sleep(0.01)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            tree = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(number)
            process.wait()
            _, alive = psutil.wait_procs(tree, timeout=ENDED_WITHIN_S)
            said = log.read_text().strip()
            if alive or "Traceback" in said:
                sys.exit(f"{number.name} left {alive or said}")
            stages = [line for line in said.splitlines() if not line.startswith("stopped;")]
            return stages[-1] if stages else "start"
    return "had ended"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        calm, killed = Path(name) / "calm", Path(name) / "killed"
        calm.mkdir()
        killed.mkdir()
        finish(calm)
        shutil.copytree(calm / "latency_tables", killed / "latency_tables")
        shutil.rmtree(calm / "run")
        seconds = finish(calm)  # with the table, as the killed run has it
        stages = stages_of(calm)
        print(f"undisturbed: {seconds:.0f} s, {len(stages)} stages", flush=True)
        for kill in range(arguments.kills):
            stage = stages[len(stages) * kill // arguments.kills]
            after = float(rng.uniform(0, LONGEST_S))
            number = (signal.SIGKILL, signal.SIGTERM)[kill % 2]
            said = stop_in(killed, stage, after, number)
            print(f"{number.name} {kill + 1}, {after:.1f} s into {stage} {said}", flush=True)
            if (killed / "run" / "job.toml").exists():
                shutil.copy(calm / "run" / "measurements.jsonl", killed / "run")
        finish(killed)
        same = True
        for table in ("trials.csv", "front.csv"):
            a, b = (pd.read_csv(f / "run" / table).drop(columns="seconds") for f in (calm, killed))
            print(f"{table}: {len(a)} and {len(b)} rows, {'equal' if a.equals(b) else 'DIFFERENT'}")
            same &= a.equals(b)
        sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
