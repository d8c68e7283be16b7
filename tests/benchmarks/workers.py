"""Kill workers of one search at random moments, replace them, and check the storage at the end.

    python -m tests.benchmarks.workers --workers 8 --trials 300 --kills 30 --outages 2
    python -m tests.benchmarks.workers --storage journal

Every worker is a process that searches in the same storage; a kill is a SIGKILL. Without --storage
the benchmark starts a PostgreSQL server, and each of the --outages stops it for a second. At the
end exactly --trials architectures must be completed, none of them twice, and none may be running.
The benchmark prints the repeated evaluations, and exits with status 1 if anything is wrong.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nas.errors import NasError
from nas.search import Infeasible, Objective, run_search
from nas.search.storage import Storage
from nas.search.trial_log import DEFAULT_STUDY_NAME
from nas.space import load_space
from tests.search.postgresql import Server, find_binaries, running_server

SPACE = load_space("squeezenet_tiny", image_size=8, channels=1)


def make_objectives(evaluation_log: Path, seconds: float) -> list[Objective]:
    """Return objectives with which some trials fail and some are infeasible.

    Args:
        evaluation_log: a file to which each evaluation appends a line.
        seconds: duration of an evaluation.
    """

    def macs(batch):
        return [float(each.macs) for each in batch]

    def error(batch):
        (architecture,) = batch
        graph = architecture.graph
        with evaluation_log.open("a") as file:
            file.write(f"{graph.digest} {os.getpid()}\n")
        time.sleep(seconds)
        if graph.params % 11 == 0:
            raise NasError("this one always fails")
        if graph.params % 7 == 0:
            return [Infeasible("never")]
        return [1 / np.log(graph.macs)]

    return [Objective("macs", macs, cheap=True), Objective("error", error)]


def run_worker(
    location: Path | str, trials: int, sampler: str, evaluation_log: Path, seconds: float
) -> None:
    run_search(
        SPACE,
        make_objectives(evaluation_log, seconds),
        trials=trials,
        seed=1,
        sampler=sampler,
        storage=location,
        shared=True,
        on_message=lambda sentence: print(f"{os.getpid()}: {sentence}", file=sys.stderr),
    )


@dataclass
class StorageCheck:
    """The content of a storage after a search.

    Attributes:
        states: number of trials by Optuna's state.
        releases: number of released trials by the reason of the release.
        problems: a sentence for each problem.
    """

    states: Counter[str] = field(default_factory=Counter)
    releases: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def check_storage(location: Path | str, trials: int, workers: int) -> StorageCheck:
    """Check that nothing was lost, duplicated or left running.

    Args:
        location: location of the storage.
        trials: number of trials that should be completed.
        workers: number of workers that searched at the same time.
    """
    storage = Storage(location)
    stored = storage.get_trials(storage._storage.get_study_id_from_name(DEFAULT_STUDY_NAME))
    check = StorageCheck()
    ended, completed = Counter(), set()
    claims: dict[str, list] = {}
    for each in stored:
        digest = each.user_attrs["digest"]
        claims.setdefault(digest, []).append(each)
        check.states[each.state.name] += 1
        if each.state.name == "FAIL":
            check.releases[each.user_attrs.get("given_up", "without a reason")] += 1
        elif each.state.name != "RUNNING":
            ended[digest] += 1
            if each.state.name == "COMPLETE":
                completed.add(digest)
    if len(completed) != trials or check.states["COMPLETE"] != trials:
        check.problems.append(f"{len(completed)} architectures are completed, not {trials}")
    repeated = [digest for digest, count in ended.items() if count > 1]
    if repeated:
        check.problems.append(f"{len(repeated)} architectures have ended twice")
    if check.states["RUNNING"]:
        check.problems.append(f"{check.states['RUNNING']} trials are running")
    for digest, released in claims.items():
        if ended[digest] or any(each.state.name == "RUNNING" for each in released):
            continue
        # A released architecture is tried next, unless the search was over.
        since = max(each.datetime_complete for each in released)
        later = sum(each.datetime_start > since for each in stored)
        if later > workers:
            check.problems.append(f"{digest} was released and not tried again in {later} trials")
    return check


@dataclass
class KilledSearch:
    """A search whose workers were killed and replaced.

    Attributes:
        seconds: duration of the search.
        kills: number of kills that met a running worker.
        evaluations: number of evaluations that began.
        repeated: number of evaluations of an architecture that had been evaluated before.
        failed_workers: number of workers that ended with an error.
    """

    seconds: float
    kills: int
    evaluations: int
    repeated: int
    failed_workers: int


def search_with_kills(
    location: Path | str,
    *,
    workers: int,
    trials: int,
    kills: int,
    seed: int,
    sampler: str = "random",
    seconds: float = 0.05,
    server: Server | None = None,
    outages: int = 0,
) -> KilledSearch:
    """Search with several workers, which are killed and replaced, and wait for the end.

    Args:
        location: location of the storage.
        workers: number of workers at a time.
        trials: number of trials to complete.
        kills: number of kills.
        seed: seed of the moments of the kills and of the choice of the workers.
        sampler: sampler of the search.
        seconds: duration of an evaluation.
        server: the server that each outage stops for a second.
        outages: number of outages.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    rng = np.random.default_rng(seed)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        evaluation_log = Path(folder) / "evaluations"
        evaluation_log.touch()

        def start_worker():
            process = context.Process(
                target=run_worker, args=(location, trials, sampler, evaluation_log, seconds)
            )
            process.start()
            return process

        running = [start_worker() for _ in range(workers)]
        # The events are spread evenly over the evaluations.
        events = rng.permutation(["kill"] * kills + ["outage"] * outages)
        num_killed = 0
        for number, event in enumerate(events):
            target = trials * (number + 1) / (len(events) + 2)
            while len(evaluation_log.read_text().splitlines()) < target and any(
                each.is_alive() for each in running
            ):
                time.sleep(0.002)
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
            num_killed += running[victim].exitcode == -9
            running[victim] = start_worker()
            if sys.stderr.isatty():
                print(f"\revent {number + 1} of {len(events)}", end="", file=sys.stderr)
        for each in running:
            each.join()
        digests = Counter(line.split()[0] for line in evaluation_log.read_text().splitlines())
    return KilledSearch(
        seconds=time.monotonic() - start,
        kills=num_killed,
        evaluations=sum(digests.values()),
        repeated=sum(digests.values()) - len(digests),
        failed_workers=sum(each.exitcode != 0 for each in running),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--outages", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--seconds", type=float, default=0.2, help="duration of an evaluation")
    parser.add_argument("--storage", help="an address or `journal`; by default a server is started")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        server = None
        if arguments.storage == "journal":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            location: Path | str = Path(folder) / "study.journal"
        elif arguments.storage:
            location = arguments.storage
        else:
            bin_folder = find_binaries()
            if bin_folder is None:
                parser.error("PostgreSQL is not installed; give --storage")
            server = stack.enter_context(running_server(bin_folder))
            location = server.new_database()
        result = search_with_kills(
            location,
            workers=arguments.workers,
            trials=arguments.trials,
            kills=arguments.kills,
            seed=arguments.seed,
            sampler=arguments.sampler,
            seconds=arguments.seconds,
            server=server,
            outages=arguments.outages if server else 0,
        )
        check = check_storage(location, arguments.trials, arguments.workers)
        backend = location.split(":")[0] if isinstance(location, str) else "journal"
    rows = {
        "storage": backend,
        "workers": arguments.workers,
        "kills": result.kills,
        "seconds": f"{result.seconds:.1f}",
        "evaluations": result.evaluations,
        "of these repeated": result.repeated,
        **{f"trials {state.lower()}": count for state, count in sorted(check.states.items())},
        **{f"released: {reason}": n for reason, n in check.releases.most_common()},
    }
    for name, value in rows.items():
        print(f"{name:40} {value:>12}")
    problems = check.problems
    if result.failed_workers:
        problems.append(f"{result.failed_workers} workers failed")
    print("\n".join(problems) or "nothing was lost, duplicated or left running")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
