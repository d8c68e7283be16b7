"""Kill the processes of a search at random moments, and check what they leave.

    python -m tests.benchmarks.search_kills --kills 100 --trials 300
    python -m tests.benchmarks.search_kills --workers 8 --kills 30 --outages 3 --trials 300

A kill is a SIGKILL to a real process, which another one replaces. The search of one process must
end with the trials, in their order, and the front of an uninterrupted one. Several processes share
a PostgreSQL server, which each of the --outages stops for a second, or --storage; at the end
exactly --trials architectures must be completed, none of them twice, and none may be running. The
benchmark prints the repeated evaluations, and exits with status 1 if anything is wrong.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import NasError
from nas.search import Infeasible, Objective, SearchResult, run_search
from nas.search.storage import Storage
from nas.search.trial_log import DEFAULT_STUDY_NAME
from nas.space import load_space
from tests.search.postgresql import Server, find_binaries, running_server

SPACES = [
    load_space(name, image_size=8, channels=1)
    for name in ("mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny")
]

MAX_MACS = 400_000.0


def run_test_search(
    location: Path | str | None,
    trials: int,
    evaluation_log: Path | None = None,
    seconds: float = 0.0,
    **settings: Any,
) -> SearchResult:
    """Search three spaces with a limit, in which some trials fail and some are infeasible.

    Args:
        location: location of the storage; None to keep the trials in memory.
        trials: number of trials to complete.
        evaluation_log: a file to which each evaluation appends a line.
        seconds: duration of an evaluation.
        settings: further arguments of `run_search`.
    """

    def macs(batch):
        return [float(each.macs) for each in batch]

    def error(batch):
        (architecture,) = batch
        graph = architecture.graph
        if evaluation_log is not None:
            with evaluation_log.open("a") as file:
                file.write(f"{graph.digest}\n")
        time.sleep(seconds)
        if graph.params % 11 == 0:
            raise NasError("this one always fails")
        if graph.params % 7 == 0:
            return [Infeasible("never")]
        return [1 / np.log(graph.macs) + 0.02 * (graph.params % 5)]

    objectives = [
        Objective("macs", macs, cheap=True, limit=MAX_MACS),
        Objective("error", error),
    ]
    return run_search(SPACES, objectives, trials=trials, seed=5, storage=location, **settings)


def summary(result: SearchResult) -> tuple[list, list]:
    """Return all that must be equal: the trials in order, and the digests of the front."""
    trials = [(t.digest, t.state, t.values, t.error) for t in result.trials]
    return trials, [trial.digest for trial in result.front]


def problems_of(location: Path | str, trials: int, workers: int) -> list[str]:
    """Return a sentence for each thing that was lost, duplicated or left running.

    Args:
        location: location of the storage.
        trials: number of trials that should be completed.
        workers: number of processes that searched at the same time.
    """
    storage = Storage(location)
    stored = storage.get_trials(storage.get_study_id(DEFAULT_STUDY_NAME))
    claims: dict[str, list] = {}
    for each in stored:
        claims.setdefault(each.user_attrs["digest"], []).append(each)
    problems = []
    completed = sum(each.state.name == "COMPLETE" for each in stored)
    if completed != trials:
        problems.append(f"{completed} trials are completed, not {trials}")
    for digest, own in claims.items():
        states = [each.state.name for each in own]
        ended = sum(state not in ("FAIL", "RUNNING") for state in states)
        if ended > 1:
            problems.append(f"{digest} has ended {ended} times")
        if "RUNNING" in states:
            problems.append(f"{digest} is running")
        elif not ended:
            # A released architecture is tried next, unless the search was over.
            since = max(each.datetime_complete for each in own)
            later = sum(each.datetime_start > since for each in stored)
            if later > workers:
                problems.append(f"{digest} was released and not tried again in {later} trials")
    return problems


@dataclass
class KilledSearch:
    """A search whose processes were killed and replaced.

    Attributes:
        kills: number of kills that met a running process.
        evaluations: number of evaluations that began.
        repeated: number of evaluations of an architecture that had been evaluated before.
        failed: number of processes that ended with an error.
    """

    kills: int
    evaluations: int
    repeated: int
    failed: int


def search_with_kills(
    location: Path | str,
    *,
    trials: int,
    kills: int,
    seed: int,
    workers: int = 1,
    sampler: str = "auto",
    seconds: float = 0.01,
    server: Server | None = None,
    outages: int = 0,
) -> KilledSearch:
    """Search with processes that are killed and replaced, and wait for the end.

    Args:
        location: location of the storage.
        trials: number of trials to complete.
        kills: number of kills.
        seed: seed of the moments of the kills and of the choice of the processes.
        workers: number of processes at a time.
        sampler: sampler of the search.
        seconds: duration of an evaluation.
        server: the server that each outage stops for a second.
        outages: number of outages.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        evaluation_log = Path(folder) / "evaluations"
        evaluation_log.touch()

        def start_worker() -> Any:
            process = context.Process(
                target=run_test_search,
                args=(location, trials, evaluation_log, seconds),
                kwargs={"sampler": sampler, "shared": workers > 1},
            )
            process.start()
            return process

        def evaluated() -> list[str]:
            return evaluation_log.read_text().splitlines()

        running = [start_worker() for _ in range(workers)]
        # The events are spread evenly over the evaluations.
        events = rng.permutation(["kill"] * kills + ["outage"] * outages)
        killed = 0
        for number, event in enumerate(events):
            target = max(len(evaluated()), trials * (number + 1) // (len(events) + 2))
            while len(evaluated()) < target and any(each.is_alive() for each in running):
                time.sleep(0.001)
            time.sleep(float(rng.uniform(0, 3 * seconds)))
            if event == "outage":
                assert server is not None
                server.stop(("fast", "immediate")[number % 2])
                time.sleep(1)
                server.start()
                continue
            victim = int(rng.integers(workers))
            running[victim].kill()
            running[victim].join()
            killed += running[victim].exitcode == -9
            running[victim] = start_worker()
            if sys.stderr.isatty():
                print(f"\revent {number + 1} of {len(events)}", end="", file=sys.stderr)
        for each in running:
            each.join()
        counts = Counter(evaluated())
    failed = sum(each.exitcode != 0 for each in running)
    return KilledSearch(killed, counts.total(), counts.total() - len(counts), failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--outages", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--seconds", type=float, default=0.01, help="duration of an evaluation")
    parser.add_argument("--storage", help="an address or `journal`; the latter for one process")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        location: Path | str = Path(folder) / "study.journal"
        server = None
        if options.storage not in (None, "journal"):
            location = options.storage
        elif options.storage is None and options.workers > 1:
            bin_folder = find_binaries()
            if bin_folder is None:
                parser.error("PostgreSQL is not installed; give --storage")
            server = stack.enter_context(running_server(bin_folder))
            location = server.new_database()
        killed = search_with_kills(
            location,
            trials=options.trials,
            kills=options.kills,
            seed=options.seed,
            workers=options.workers,
            sampler=options.sampler,
            seconds=options.seconds,
            server=server,
            outages=options.outages if server else 0,
        )
        if options.workers > 1:
            problems = problems_of(location, options.trials, options.workers)
        else:
            own, expected = (
                summary(run_test_search(each, options.trials, sampler=options.sampler))
                for each in (location, None)
            )
            problems = [] if own == expected else ["the trials or the front are DIFFERENT"]
    if killed.failed:
        problems.append(f"{killed.failed} processes failed")
    print(f"{killed.kills} kills, {killed.evaluations} evaluations, {killed.repeated} repeated")
    print("\n".join(problems) or "nothing was lost, duplicated or left running")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
