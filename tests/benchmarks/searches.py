"""Measure what a search costs in addition to its objectives, in milliseconds a trial.

    python -m tests.benchmarks.searches --trials 1000 10000

Searches a space for two synthetic objectives with the journal that jobs use (every trial is on the
disk before the next one starts). Prints milliseconds a trial without those of the objectives, and
the peak memory. Needs an idle core.
"""

import argparse
import cProfile
import pstats
import resource
import tempfile
import time
from pathlib import Path

from nas.search import Objective, run_search
from nas.space import load_definition


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mobilenet")
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--trials", type=int, nargs="+", default=[1000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    arguments = parser.parse_args()
    space = load_definition(arguments.space)
    objective_seconds = 0.0

    def timed(function):
        """Return the score function of an objective, whose time is added up."""

        def score(batch):
            nonlocal objective_seconds
            start = time.perf_counter()
            values = [function(each.graph) for each in batch]
            objective_seconds += time.perf_counter() - start
            return values

        return score

    def error(graph) -> float:
        return 1 / (1 + graph.macs**0.3 + 2 * graph.params**0.2 + (graph.macs % 97) / 300)

    objectives = [
        Objective("macs", timed(lambda graph: float(graph.macs)), cheap=True),
        Objective("error", timed(error)),
    ]
    for trials in arguments.trials:
        objective_seconds = 0.0
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()

            def run(trials=trials, folder=folder):
                return run_search(
                    space,
                    objectives,
                    trials=trials,
                    seed=arguments.seed,
                    sampler=arguments.sampler,
                    storage=Path(folder) / "study.journal",
                )

            if arguments.profile:
                profile = cProfile.Profile()
                profile.runcall(run)
                pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
            else:
                run()
            seconds = time.perf_counter() - start
        memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        search_ms = 1000 * (seconds - objective_seconds) / trials
        objectives_ms = 1000 * objective_seconds / trials
        print(
            f"{arguments.space}, {arguments.sampler}, {trials} trials: {search_ms:.2f} ms a trial, "
            f"without {objectives_ms:.2f} ms of objectives; {memory_mib:.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
