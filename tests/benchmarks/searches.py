"""What a search costs beside its evaluations, by trial.

    python -m tests.benchmarks.searches --trials 1000 10000

Searches a space for two objectives that cost nothing, with the journal that jobs use (every trial
is on the disk before the next one starts), and prints milliseconds a trial without the objectives'
own, and the memory. Wants an idle core.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from nas.search import Objective, search
from nas.space import load_definition


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mobilenet")
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--trials", type=int, nargs="+", default=[1000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    given = parser.parse_args()
    space = load_definition(given.space)
    spent = 0.0

    def timed(work):
        def score(batch):
            nonlocal spent
            start = time.perf_counter()
            found = [work(each.graph) for each in batch]
            spent += time.perf_counter() - start
            return found

        return score

    def error(graph) -> float:
        return 1 / (1 + graph.macs**0.3 + 2 * graph.params**0.2 + (graph.macs % 97) / 300)

    objectives = [
        Objective("macs", timed(lambda graph: float(graph.macs)), cheap=True),
        Objective("error", timed(error)),
    ]
    for trials in given.trials:
        spent = 0.0
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()

            def run(trials=trials, folder=folder):
                return search(
                    space,
                    objectives,
                    trials=trials,
                    seed=given.seed,
                    sampler=given.sampler,
                    storage=Path(folder) / "study.journal",
                )

            if given.profile:
                import cProfile
                import pstats

                profile = cProfile.Profile()
                profile.runcall(run)
                pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
            else:
                run()
            seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        own, theirs = 1000 * (seconds - spent) / trials, 1000 * spent / trials
        print(
            f"{given.space}, {given.sampler}, {trials} trials: {own:.2f} ms a trial beside "
            f"{theirs:.2f} ms of objectives, {memory:.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
