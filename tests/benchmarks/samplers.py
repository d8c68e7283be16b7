"""Measure the hypervolume regret of each sampler on spaces whose true Pareto front is known.

    python -m tests.benchmarks.samplers results/truth/*.json.gz --seeds 10 --out results/truth

Reads the files that `tests.benchmarks.truth` wrote and prints the hypervolume regret, in percent of
the true front's hypervolume, after 50, 100, 200 and 500 distinct evaluations: the mean over the
seeds with a 95% bootstrap interval. With `--cheap` samplers may evaluate the latency of any number
of architectures, as in a search with a latency table; without it every latency costs a trial. With
`--rounds` the errors are scored as in a job: in rounds, on a part of the images where a network is
hopeless. Rows of other runs stay in the output file, so that a slow sampler can be added later.
"""

import argparse
import gzip
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas import files
from nas.display.console import ProgressBars
from nas.errors import NasError, RequestError
from nas.search import SAMPLERS
from nas.search.objectives import Estimate, Infeasible, IsHopeless, Objective, Score
from nas.search.pareto import Array, hypervolume, non_dominated
from nas.search.study import run_search
from nas.space import Architecture, SearchSpace, load_space
from nas.supernet.evaluation import largest_plausible_accuracy, round_ends, sampling_variance
from tests.benchmarks.truth import SCHEMA, enumerate_space

EVALUATIONS = (50, 100, 200, 500)
"""Numbers of completed trials after which the regret is measured."""

SCORE_IMAGES = 2000
"""Images of a score in rounds, the fewest of which a job scores in rounds."""

SHARED_DIFFICULTY = 0.8
"""Share of the variance of an image's difficulty that all networks have in common.

It is 0.80 to 0.88 in the three supernets of results/example: the tetrachoric correlation of the
answers of two networks.
"""

COLUMNS_OF_A_SEARCH = ["space", "sampler", "latency", "scores"]
"""The columns of the output file that say which searches a row is about."""


@dataclass(frozen=True)
class TabularBenchmark:
    """Search spaces with a table of the objectives of every architecture (as in NAS-Bench-101).

    Args:
        spaces: one or several.
        values: the `m` objectives of each of the `n` networks, by `Graph.digest`; all are
            minimised.
        names: of the objectives.
        cheap: names of the objectives that samplers may evaluate for any architecture.
        in_rounds: whether the first objective, an error, is scored in rounds.

    Raises:
        RequestError: an objective has the same value for all architectures.
    """

    spaces: Sequence[SearchSpace]
    values: Mapping[str, Sequence[float]]
    names: Sequence[str] = ("validation_error", "predicted_us")
    cheap: Sequence[str] = ()
    in_rounds: bool = False

    def __post_init__(self) -> None:
        if (self.best == self.reference).any():
            raise RequestError("An objective has the same value for all architectures.")

    @cached_property
    def points(self) -> Array:
        """The values of all networks, `n x m`."""
        return np.array(list(self.values.values()), dtype=float)

    @cached_property
    def best(self) -> Array:
        """The smallest value of each objective, `m`; it is normalised to 0."""
        return self.points.min(axis=0)

    @cached_property
    def reference(self) -> Array:
        """The largest value of each objective, `m`: the reference point, normalised to 1."""
        return self.points.max(axis=0)

    @cached_property
    def front(self) -> Array:
        """The true Pareto front, `f x m`."""
        return self.points[non_dominated(self.points)]

    def hypervolume(self, points: Array) -> float:
        """Return the normalised hypervolume of some networks' values, `k x m`."""
        front = points[non_dominated(points)]
        normalised = (front - self.best) / (self.reference - self.best)
        return hypervolume(normalised, [1.0] * len(self.names))

    def regret(self, points: Array) -> float:
        """Return the share of the true front's hypervolume that some networks' values miss."""
        return 1.0 - self.hypervolume(points) / self._true_hypervolume

    @cached_property
    def _true_hypervolume(self) -> float:
        return self.hypervolume(self.points)

    def objectives(self) -> list[Objective]:
        """Return objectives that look values up; a network without a row is infeasible."""

        def look_up(column: int, architecture: Architecture) -> Score:
            row = self.values.get(architecture.digest)
            return Infeasible("not in the table") if row is None else float(row[column])

        objectives = [
            Objective(
                name,
                lambda batch, column=column: [look_up(column, each) for each in batch],  # type: ignore[misc]
                cheap=name in self.cheap,
            )
            for column, name in enumerate(self.names)
        ]
        if self.in_rounds:
            objectives[0] = replace(objectives[0], score_in_rounds=self._score_in_rounds)
        return objectives

    def _score_in_rounds(self, architecture: Architecture, is_hopeless: IsHopeless) -> Score:
        """Return the error in the table, or that on the first images if it is hopeless.

        See `nas.supernet.evaluation.evaluate_in_rounds`.
        """
        row = self.values.get(architecture.digest)
        if row is None:
            return Infeasible("not in the table")
        is_correct = simulate_answers(architecture.digest, 1 - row[0])
        for end in round_ends(SCORE_IMAGES)[:-1]:
            correct = int(is_correct[:end].sum())
            if is_hopeless(1 - largest_plausible_accuracy(correct, end, SCORE_IMAGES)):
                variance = sampling_variance(correct, end, SCORE_IMAGES)
                return Estimate(1 - correct / end, variance=variance)
        return float(row[0])


def simulate_answers(digest: str, accuracy: float) -> NDArray[np.bool_]:
    """Return which of `SCORE_IMAGES` images a network is right about, as its accuracy says.

    Every image has a difficulty that is the same for all networks, see `SHARED_DIFFICULTY`, and one
    for this network.
    """
    common = np.random.default_rng(0).standard_normal(SCORE_IMAGES)
    own = np.random.default_rng([*hashlib.sha256(digest.encode()).digest()])
    difficulty = SHARED_DIFFICULTY**0.5 * common
    difficulty += (1 - SHARED_DIFFICULTY) ** 0.5 * own.standard_normal(SCORE_IMAGES)
    is_correct = np.zeros(SCORE_IMAGES, dtype=bool)
    is_correct[np.argsort(difficulty)[: round(accuracy * SCORE_IMAGES)]] = True
    return is_correct


def hypervolume_regret(
    benchmark: TabularBenchmark,
    sampler: str,
    *,
    evaluations: Sequence[int] = (50, 100, 200, 500),
    seed: int = 0,
) -> list[float]:
    """Run one search and return its regret after given numbers of distinct architectures.

    Args:
        benchmark: what is searched. A published table of results can be one, with a space that
            describes its choices.
        sampler: one of `nas.search.SAMPLERS`.
        evaluations: ascending numbers of completed trials.
        seed: of the search.

    Returns:
        A fraction of the true front's hypervolume for each number of evaluations.
    """
    result = run_search(
        benchmark.spaces,
        benchmark.objectives(),
        trials=max(evaluations),
        seed=seed,
        sampler=sampler,
    )
    completed = [trial for trial in result.trials if trial.state == "complete"]
    # A network that was scored on a part of the images is on no front.
    points = [
        [np.nan if trial.variances else trial.values[name] for name in benchmark.names]
        for trial in completed
    ]
    return [benchmark.regret(np.array(points[:count])) for count in evaluations]


def read_benchmark(
    path: Path, *, is_latency_cheap: bool = False, in_rounds: bool = False
) -> TabularBenchmark:
    """Read the spaces and the values of all architectures from a file.

    Raises:
        NasError: the file has another schema, or a space has changed since it was written.
    """
    document = json.loads(gzip.decompress(path.read_bytes()))
    if document["schema"] != SCHEMA:
        raise NasError(f"{path} has schema {document['schema']}, not {SCHEMA}.")
    names = document["objectives"]
    spaces, values = [], {}
    for part in document["spaces"]:
        space = load_space(part["space"], **document["sizes"])
        architectures, digest = enumerate_space(space)
        if digest != part["digest"]:
            raise NasError(f"The space {part['space']} has changed since {path} was written.")
        rows = zip(*(part[name] for name in names), strict=True)
        for architecture, row in zip(architectures, rows, strict=True):
            values[architecture.digest] = row
        spaces.append(space)
    cheap = names[1:] if is_latency_cheap else ()
    return TabularBenchmark(spaces, values, names, cheap, in_rounds)


_read_once = cache(read_benchmark)


def run_one_search(
    path: str, sampler: str, seed: int, evaluations: Sequence[int], **options: bool
) -> tuple[list[float], float]:
    """Return the regrets of one search, and the seconds it took; see `read_benchmark`."""
    benchmark = _read_once(Path(path), **options)
    # Optuna's Gaussian process needs more than a second for a proposal after a few dozen trials.
    evaluations = EVALUATIONS[:1] if sampler == "gp" else evaluations
    start = time.perf_counter()
    regrets = hypervolume_regret(benchmark, sampler, evaluations=evaluations, seed=seed)
    return regrets, time.perf_counter() - start


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the mean."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (4000, len(values))).mean(axis=1)
    return tuple(np.quantile(means, [0.025, 0.975]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth", nargs="+", help="files that tests.benchmarks.truth wrote")
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS[1:]), choices=SAMPLERS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--cheap", action="store_true", help="latency costs no trial")
    parser.add_argument("--rounds", action="store_true", help="score in rounds, as a job does")
    parser.add_argument("--trials", type=int, default=EVALUATIONS[-1], help="of each search")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="folder of samplers.csv and its figure")
    arguments = parser.parse_args()
    evaluations = [each for each in EVALUATIONS if each <= arguments.trials]
    options = {"is_latency_cheap": arguments.cheap, "in_rounds": arguments.rounds}
    for path in arguments.truth:
        read_benchmark(Path(path))  # raises before anything is searched
    rows = []
    pool = ProcessPoolExecutor(arguments.processes, get_context("spawn"))
    total = len(arguments.truth) * len(arguments.samplers) * arguments.seeds
    num_done = 0
    with pool, ProgressBars() as bars:
        bars.begin("searches", "run")
        searches = {
            (path, sampler): [
                pool.submit(run_one_search, path, sampler, seed, evaluations, **options)
                for seed in range(arguments.seeds)
            ]
            for path in arguments.truth
            for sampler in arguments.samplers
        }
        for (path, sampler), futures in searches.items():
            results = []
            for future in futures:
                results.append(future.result())
                num_done += 1
                bars.advance(num_done, total)
            regrets = 100 * np.array([regrets for regrets, _ in results])
            seconds = np.mean([seconds for _, seconds in results])
            name = Path(path).name.removesuffix(".json.gz")
            texts = []
            for count, column in zip(evaluations, regrets.T, strict=False):
                low, high = bootstrap_interval(column)
                texts.append(f"{count}: {column.mean():6.2f} ({low:.2f} to {high:.2f})")
                rows.append(
                    {
                        "space": name,
                        "sampler": sampler,
                        "latency": "cheap" if arguments.cheap else "evaluated",
                        "scores": "rounds" if arguments.rounds else "exact",
                        "evaluations": count,
                        "seeds": arguments.seeds,
                        "regret_percent": round(column.mean(), 4),
                        "low": round(low, 4),
                        "high": round(high, 4),
                    }
                )
            print(f"{name:<14}{sampler:<8}{'  '.join(texts)}  {seconds:.1f} s", flush=True)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        update_table(pd.DataFrame(rows), arguments.out / "samplers.csv")


def update_table(rows: pd.DataFrame, file: Path) -> None:
    """Write rows to a table, and draw those of exact scores. Rows of other searches stay in it."""
    if file.exists():
        previous = pd.read_csv(file)
        new = rows.set_index(COLUMNS_OF_A_SEARCH).index
        is_replaced = previous.set_index(COLUMNS_OF_A_SEARCH).index.isin(new)
        rows = pd.concat([previous[~is_replaced], rows])
    rows = rows.sort_values([*COLUMNS_OF_A_SEARCH, "evaluations"])
    files.replace(file, rows.to_csv(index=False))
    draw_figure(rows[rows["scores"] == "exact"], file.with_suffix(".png"))


def draw_figure(rows: pd.DataFrame, path: Path) -> None:
    """Draw the regret over the evaluations, with a panel for each problem."""
    from matplotlib import pyplot as plt

    problems = rows["space"].unique()
    figure, panels = plt.subplots(1, len(problems), figsize=(4 * len(problems), 3.6), squeeze=False)
    for axes, problem in zip(panels[0], problems, strict=True):
        of_problem = rows[rows["space"] == problem].groupby(["sampler", "latency"])
        for (sampler, latency), own in of_problem:
            # The axis is logarithmic, so a regret of zero is drawn at its lower end.
            shown = own[["regret_percent", "low", "high"]].clip(lower=0.01)
            label = f"{sampler}, latency known" if latency == "cheap" else sampler
            axes.fill_between(own["evaluations"], shown["low"], shown["high"], alpha=0.15, lw=0)
            axes.plot(own["evaluations"], shown["regret_percent"], "o-", markersize=3, label=label)
        axes.set(title=problem, xlabel="trials", xscale="log", yscale="log", ylim=(0.008, 60))
        axes.set_xticks(EVALUATIONS, [str(each) for each in EVALUATIONS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("hypervolume regret, % (0.01: none)")
    panels[0][-1].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
