"""Kills workers of one search at random moments, replaces them, and looks at what they left.

    python -m tests.benchmarks.workers --workers 8 --trials 300 --kills 30 --outages 2
    python -m tests.benchmarks.workers --storage journal

Every worker is a process of its own that searches in the same storage; a kill is a SIGKILL. Without
--storage a PostgreSQL server of its own is started, which --outages stops for a second each. In the
end exactly the wanted number of architectures must be completed, none twice, and none left running.
Prints what it cost, and exits with 1 if anything is wrong.
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
from nas.search import Infeasible, Objective, search
from nas.search.storage import Storage
from nas.space import load_space
from tests.search.postgresql import Server, binaries, serving

SPACE = load_space("squeezenet_tiny", image_size=8, channels=1)


def objectives(calls: Path, seconds: float):
    """With failures and infeasible networks in between; every evaluation leaves a line."""

    def macs(batch):
        return [float(each.macs) for each in batch]

    def error(batch):
        (architecture,) = batch
        graph = architecture.graph
        with calls.open("a") as file:
            file.write(f"{graph.digest} {os.getpid()}\n")
        time.sleep(seconds)
        if graph.params % 11 == 0:
            raise NasError("this one always fails")
        if graph.params % 7 == 0:
            return [Infeasible("never")]
        return [1 / np.log(graph.macs)]

    return [Objective("macs", macs, cheap=True), Objective("error", error)]


def work(where: Path | str, trials: int, sampler: str, calls: Path, seconds: float) -> None:
    search(
        SPACE,
        objectives(calls, seconds),
        trials=trials,
        seed=1,
        sampler=sampler,
        storage=where,
        shared=True,
        told=lambda sentence: print(f"{os.getpid()}: {sentence}", file=sys.stderr),
    )


@dataclass
class Account:
    """What is in a storage after a search.

    Attributes:
        states: of Optuna's trials.
        given_up: why, and how often.
        problems: sentences, none if all is well.
    """

    states: Counter[str] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def account(where: Path | str, trials: int, workers: int) -> Account:
    """Checks that nothing was lost, duplicated or left behind.

    Args:
        where: the storage.
        trials: that should be completed.
        workers: at the same time.
    """
    storage = Storage(where)
    found = storage.trials(storage._storage.get_study_id_from_name("search"))
    told = Account()
    ended, completed = Counter(), set()
    claims: dict[str, list] = {}
    for each in found:
        digest = each.user_attrs["digest"]
        claims.setdefault(digest, []).append(each)
        told.states[each.state.name] += 1
        if each.state.name == "FAIL":
            told.given_up[each.user_attrs.get("given_up", "for no reason")] += 1
        elif each.state.name != "RUNNING":
            ended[digest] += 1
            if each.state.name == "COMPLETE":
                completed.add(digest)
    if len(completed) != trials or told.states["COMPLETE"] != trials:
        told.problems.append(f"{len(completed)} architectures are completed, not {trials}")
    twice = [digest for digest, count in ended.items() if count > 1]
    if twice:
        told.problems.append(f"{len(twice)} architectures have ended twice")
    if told.states["RUNNING"]:
        told.problems.append(f"{told.states['RUNNING']} trials are running")
    for digest, tried in claims.items():
        if ended[digest]:
            continue
        # What was given up comes next, unless the search was over: then nothing new came either.
        since = max(each.datetime_complete for each in tried)
        later = sum(each.datetime_start > since for each in found)
        if later > workers:
            told.problems.append(f"{digest} was given up and not tried again in {later} trials")
    return told


@dataclass
class Survived:
    """How a search went: seconds, kills that met a worker, evaluations and those made again."""

    seconds: float
    kills: int
    evaluations: int
    repeated: int
    failed: int


def survived(
    where: Path | str,
    *,
    workers: int,
    trials: int,
    kills: int,
    seed: int,
    sampler: str = "random",
    seconds: float = 0.05,
    server: Server | None = None,
    outages: int = 0,
) -> Survived:
    """Searches with so many workers at a time, which are killed and replaced; waits for the end.

    Args:
        where: the storage.
        workers, trials, kills, outages: how many.
        seed: of who is killed and when.
        sampler: of the search.
        seconds: that an evaluation takes.
        server: what `outages` stop for a second.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    rng = np.random.default_rng(seed)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        calls = Path(folder) / "calls"
        calls.touch()

        def started():
            process = context.Process(target=work, args=(where, trials, sampler, calls, seconds))
            process.start()
            return process

        running = [started() for _ in range(workers)]
        # Each event falls within the share of the search that is its own.
        events = rng.permutation(["kill"] * kills + ["outage"] * outages)
        made = 0
        for number, event in enumerate(events):
            wanted = trials * (number + 1) / (len(events) + 2)
            while len(calls.read_text().splitlines()) < wanted and any(
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
            made += running[victim].exitcode == -9
            running[victim] = started()
            if sys.stderr.isatty():
                print(f"\revent {number + 1} of {len(events)}", end="", file=sys.stderr)
        for each in running:
            each.join()
        digests = Counter(line.split()[0] for line in calls.read_text().splitlines())
    return Survived(
        seconds=time.monotonic() - start,
        kills=made,
        evaluations=sum(digests.values()),
        repeated=sum(digests.values()) - len(digests),
        failed=sum(each.exitcode != 0 for each in running),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--outages", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--seconds", type=float, default=0.2, help="that an evaluation takes")
    parser.add_argument("--storage", help="an address, or `journal`; by default a server is made")
    given = parser.parse_args()
    with ExitStack() as stack:
        server = None
        if given.storage == "journal":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            where: Path | str = Path(folder) / "study.journal"
        elif given.storage:
            where = given.storage
        else:
            found = binaries()
            if found is None:
                parser.error("PostgreSQL is not installed; give --storage")
            server = stack.enter_context(serving(found))
            where = server.new_database()
        result = survived(
            where,
            workers=given.workers,
            trials=given.trials,
            kills=given.kills,
            seed=given.seed,
            sampler=given.sampler,
            seconds=given.seconds,
            server=server,
            outages=given.outages if server else 0,
        )
        left = account(where, given.trials, given.workers)
        backend = where.split(":")[0] if isinstance(where, str) else "journal"
    rows = {
        "storage": backend,
        "workers": given.workers,
        "kills": result.kills,
        "seconds": f"{result.seconds:.1f}",
        "evaluations": result.evaluations,
        "of these made again": result.repeated,
        **{f"trials {state.lower()}": count for state, count in sorted(left.states.items())},
        **{f"given up: {why}": count for why, count in left.given_up.most_common()},
    }
    for name, value in rows.items():
        print(f"{name:40} {value:>12}")
    problems = left.problems + ([f"{result.failed} workers failed"] if result.failed else [])
    print("\n".join(problems) or "nothing lost, duplicated or left behind")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
