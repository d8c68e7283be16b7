"""Measure when the model ends a search, and what the search misses then.

    python -m tests.benchmarks.search_ends results/truth/*.json.gz --seeds 10 --counts

Reads the files that `tests.benchmarks.truth` wrote, searches each problem until the model ends the
search (see `nas.search.stopping`), and then once more with `--trials` trials. Prints the trials
until the end, the regret then (the share of the true front's hypervolume that is missed), the share
of searches with at most 0.5%, and the regret of the longer search. With `--counts`, MACs and
parameters take the place of the latency too, which gives other problems over the same spaces.
Latency and counts cost no trial, as in a job.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nas.search import run_search
from nas.search.regret import TabularBenchmark
from nas.search.stopping import REASON
from tests.benchmarks.samplers import read_benchmark

MAX_REGRET = 0.005
"""The regret that a search may have at its end."""


def problems(path: Path, *, with_counts: bool) -> Iterator[tuple[str, TabularBenchmark]]:
    """Yield a file's problem, and those in which a count takes the place of the latency."""
    name = path.name.removesuffix(".json.gz")
    benchmark = read_benchmark(path, is_latency_cheap=True)
    yield name, benchmark
    graphs = {a.digest: a.graph for space in benchmark.spaces for a in space.enumerate()}
    for count in ("macs", "params") if with_counts else ():
        values = {
            digest: (row[0], float(getattr(graphs[digest], count)))
            for digest, row in benchmark.values.items()
        }
        names = (benchmark.names[0], count)
        yield f"{name}, {count}", TabularBenchmark(benchmark.spaces, values, names, (count,))


def run(benchmark: TabularBenchmark, seed: int, trials: int) -> tuple[int, bool, float, float]:
    """Return the trials at the end, whether the model ended it, and the regrets then and later."""
    searches = [
        run_search(benchmark.spaces, benchmark.objectives(), trials=trials, seed=seed, stall=stall)
        for stall in ("auto", None)
    ]
    regrets = []
    for search in searches:
        done = [trial for trial in search.trials if trial.state == "complete"]
        points = np.array([[trial.values[name] for name in benchmark.names] for trial in done])
        regrets.append(benchmark.regret(points))
    ended = searches[0]
    return ended.progress.completed, ended.stop_reason == REASON, *regrets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth", nargs="+", type=Path, help="files of tests.benchmarks.truth")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=500, help="limit, and the longer search")
    parser.add_argument("--counts", action="store_true", help="also MACs and parameters")
    arguments = parser.parse_args()
    for path in arguments.truth:
        for name, benchmark in problems(path, with_counts=arguments.counts):
            rows = [run(benchmark, seed, arguments.trials) for seed in range(arguments.seeds)]
            completed, by_model, regrets, later = (
                np.array(column) for column in zip(*rows, strict=True)
            )
            print(
                f"{name:<20} ended by the model {by_model.sum()} of {len(rows)}, after "
                f"{np.median(completed):.0f} trials ({completed.min()} to {completed.max()}); "
                f"regret {100 * regrets.mean():.2f}%, at most {100 * regrets.max():.2f}%, "
                f"{np.mean(regrets <= MAX_REGRET):.0%} within {MAX_REGRET:.1%}; after "
                f"{arguments.trials} trials {100 * later.mean():.2f}%",
                flush=True,
            )


if __name__ == "__main__":
    main()
