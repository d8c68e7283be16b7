"""Kill a search at random moments and compare its result with that of an uninterrupted one.

    python -m tests.benchmarks.search_kills --kills 100 --trials 300

Every kill is a SIGKILL to a real process, some milliseconds after it has begun to search. Then the
same command is started again. With one process and one seed, the trials, their order and the front
must be equal. The benchmark prints how many evaluations were repeated.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.errors import NasError
from nas.search import Infeasible, Objective, SearchResult, run_search
from nas.space import load_space

SPACES = ("mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny")

EVALUATION_SECONDS = 0.01

MAX_MACS = 400_000.0


def run_test_search(
    journal: Path | None, trials: int, evaluation_log: Path | None = None
) -> SearchResult:
    """Search three spaces with a limit, in which some trials fail and some are infeasible.

    Args:
        journal: the journal of the search, or None to keep the trials in memory.
        trials: number of trials to complete.
        evaluation_log: a file to which each evaluation appends a line, after
            `EVALUATION_SECONDS`; without it evaluations take no time.
    """
    spaces = [load_space(name, image_size=8, channels=1) for name in SPACES]

    def macs(batch):
        return [float(each.macs) for each in batch]

    def error(batch):
        (architecture,) = batch
        graph = architecture.graph
        if evaluation_log is not None:
            with evaluation_log.open("a") as file:
                file.write(f"{graph.digest}\n")
            time.sleep(EVALUATION_SECONDS)
        if graph.params % 11 == 0:
            raise NasError("this one always fails")
        if graph.params % 7 == 0:
            return [Infeasible("never")]
        return [1 / np.log(graph.macs) + 0.02 * (graph.params % 5)]

    objectives = [
        Objective("macs", macs, cheap=True, limit=MAX_MACS),
        Objective("error", error),
    ]
    return run_search(spaces, objectives, trials=trials, seed=5, storage=journal)


def summary(result: SearchResult) -> tuple[list, list]:
    """Return all that must be equal: the trials in order, and the digests of the front."""
    trials = [(t.digest, t.state, t.values, t.error) for t in result.trials]
    return trials, [trial.digest for trial in result.front]


@dataclass
class KilledSearch:
    """A search that was killed and resumed.

    Attributes:
        summary: see `summary`.
        evaluations: number of evaluations that began, repeated ones included.
        kills: number of kills that met a running process.
    """

    summary: tuple[list, list]
    evaluations: int
    kills: int


def search_with_kills(folder: Path, trials: int, kills: int, seed: int) -> KilledSearch:
    """Kill a search a number of times, at moments spread evenly over its evaluations."""
    journal, evaluation_log = folder / "study.journal", folder / "evaluations"
    evaluation_log.touch()
    command = [sys.executable, "-m", "tests.benchmarks.search_kills", "--child", folder]
    command += ["--trials", str(trials)]
    rng = np.random.default_rng(seed)
    num_killed = 0

    def num_evaluations() -> int:
        return len(evaluation_log.read_text().splitlines())

    for kill in range(kills):
        target = max(num_evaluations(), int(trials * (kill + 1) / (kills + 1)))
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and num_evaluations() < target:
                time.sleep(0.001)
            time.sleep(float(rng.uniform(0, 3 * EVALUATION_SECONDS)))
            process.send_signal(signal.SIGKILL)
        num_killed += process.returncode == -signal.SIGKILL
        if sys.stderr.isatty():
            print(f"\rkill {kill + 1} of {kills}", end="", file=sys.stderr)
    subprocess.run(command, check=True)
    return KilledSearch(summary(run_test_search(journal, trials)), num_evaluations(), num_killed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder = arguments.child
        run_test_search(folder / "study.journal", arguments.trials, folder / "evaluations")
        return
    uninterrupted = summary(run_test_search(None, arguments.trials))
    with tempfile.TemporaryDirectory() as folder:
        killed = search_with_kills(Path(folder), arguments.trials, arguments.kills, arguments.seed)
    trials, front = uninterrupted
    needed = sum(values.get("macs", np.inf) <= MAX_MACS for _, _, values, _ in trials)
    is_equal = killed.summary == uninterrupted
    print(
        f"{killed.kills} kills, {len(trials)} trials, {len(front)} on the front: "
        f"{'equal' if is_equal else 'DIFFERENT'}; "
        f"{killed.evaluations - needed} of {needed} evaluations were repeated"
    )
    sys.exit(0 if is_equal else 1)


if __name__ == "__main__":
    main()
