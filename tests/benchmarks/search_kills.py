"""Kills a search at random moments and compares its end with that of an undisturbed one.

    python -m tests.benchmarks.search_kills --kills 100 --trials 300

Every kill is a SIGKILL to the real process, some milliseconds after it has begun to search; then
the same command is started again. One worker and one seed: what was evaluated, in which order, and
the front must be equal. Prints what was lost: evaluations that were made again.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nas.errors import NasError
from nas.search import Infeasible, Objective, search
from nas.space import load_space

SPACES = ("mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny")
SECONDS = 0.01
"""That an evaluation takes."""


def searched(journal: Path | None, trials: int, calls: Path | None = None):
    """A search of three families with a limit, failures and infeasible networks in between."""
    spaces = [load_space(name, image_size=8, channels=1) for name in SPACES]

    def macs(batch):
        return [float(each.macs) for each in batch]

    def error(batch):
        (architecture,) = batch
        graph = architecture.graph
        if calls is not None:
            time.sleep(SECONDS)
            with calls.open("a") as file:
                file.write(f"{graph.digest}\n")
        if graph.params % 11 == 0:
            raise NasError("this one always fails")
        if graph.params % 7 == 0:
            return [Infeasible("never")]
        return [1 / np.log(graph.macs) + 0.02 * (graph.params % 5)]

    objectives = [
        Objective("macs", macs, cheap=True, limit=400_000.0),
        Objective("error", error),
    ]
    return search(spaces, objectives, trials=trials, seed=5, storage=journal)


def outcome(result):
    """Everything that must be equal."""
    trials = [(t.digest, t.state, t.values, t.error) for t in result.trials]
    return trials, [trial.digest for trial in result.front]


def killed_and_continued(folder: Path, trials: int, kills: int, seed: int):
    """The outcome of a search that was killed so often, and how many evaluations it made."""
    journal, calls = folder / "study.journal", folder / "calls"
    calls.touch()
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--child", folder]
    command += ["--trials", str(trials)]
    rng = np.random.default_rng(seed)
    made = 0
    for kill in range(kills):
        # Each kill falls within the share of the search that is its own, whatever it has to redo.
        before = len(calls.read_text().splitlines())
        wanted = int(trials * (kill + 1) / (kills + 1))
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and len(calls.read_text().splitlines()) < max(
                wanted, before
            ):
                time.sleep(0.001)
            time.sleep(float(rng.uniform(0, 3 * SECONDS)))
            process.send_signal(signal.SIGKILL)
        made += process.returncode == -signal.SIGKILL
        if sys.stderr.isatty():
            print(f"\rkill {kill + 1} of {kills}", end="", file=sys.stderr)
    subprocess.run(command, check=True, env=os.environ)
    result = searched(journal, trials)
    return outcome(result), len(calls.read_text().splitlines()), made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        searched(given.child / "study.journal", given.trials, given.child / "calls")
        return
    calm = outcome(searched(None, given.trials))
    with tempfile.TemporaryDirectory() as folder:
        found, calls, made = killed_and_continued(
            Path(folder), given.trials, given.kills, given.seed
        )
    asked = sum(1 for _, _, values, _ in calm[0] if "macs" in values and values["macs"] <= 400_000)
    same = found == calm
    print(
        f"{made} kills, {len(calm[0])} trials, {len(calm[1])} on the front: "
        f"{'equal' if same else 'DIFFERENT'}; {calls - asked} of {asked} evaluations were repeated"
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
