"""How many evaluations each sampler needs where every architecture is known.

    python -m tests.benchmarks.samplers results/truth/*.json.gz --seeds 10 --out results/truth

Reads what `tests.benchmarks.truth` wrote and prints the hypervolume regret, in percent of the true
front's hypervolume, after 50, 100, 200 and 500 distinct evaluations: the mean over the seeds with
a 95% bootstrap interval. With `--cheap` latency may be asked of any number of architectures, as a
search with a latency table does; without it every objective is an evaluation. Rows of other runs
stay in the table, so that a slow sampler can be added later.
"""

import argparse
import gzip
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from nas import files
from nas.console import ProgressBars
from nas.errors import NasError
from nas.search import SAMPLERS
from nas.search.regret import Known, hypervolume_regret
from nas.space import load_space
from tests.benchmarks.truth import SCHEMA, all_of

AT = (50, 100, 200, 500)


def read(path: Path, *, cheap: bool = False) -> Known:
    """Spaces and values of a file; raises NasError where a space has changed since."""
    document = json.loads(gzip.decompress(path.read_bytes()))
    if document["schema"] != SCHEMA:
        raise NasError(f"{path} has schema {document['schema']}, not {SCHEMA}.")
    names = document["objectives"]
    spaces, values = [], {}
    for part in document["spaces"]:
        space = load_space(part["space"], **document["sizes"])
        everyone, digest = all_of(space)
        if digest != part["digest"]:
            raise NasError(f"{part['space']} is not the space that {path} is about.")
        columns = zip(*(part[name] for name in names), strict=True)
        for architecture, found in zip(everyone, columns, strict=True):
            values[architecture.digest] = found
        spaces.append(space)
    return Known(spaces, values, names, names[1:] if cheap else ())


_known: dict[tuple[str, bool], Known] = {}


def one(path: str, sampler: str, seed: int, cheap: bool) -> tuple[list[float], float]:
    """Regrets of a search, and the seconds it took."""
    if (path, cheap) not in _known:
        _known[path, cheap] = read(Path(path), cheap=cheap)
    known = _known[path, cheap]
    # Optuna's Gaussian process needs a second and more for a proposal when it knows dozens.
    at = AT[:1] if sampler == "gp" else AT
    start = time.perf_counter()
    found = hypervolume_regret(known, sampler, evaluations=at, seed=seed)
    return found, time.perf_counter() - start


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval of the mean."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(values, (4000, len(values))).mean(axis=1)
    return tuple(np.quantile(drawn, [0.025, 0.975]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth", nargs="+")
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS[1:]), choices=SAMPLERS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--cheap", action="store_true")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="folder of samplers.csv and its picture")
    given = parser.parse_args()
    for path in given.truth:
        read(Path(path))  # raises before anything is searched
    rows = []
    pool = ProcessPoolExecutor(given.processes, get_context("spawn"))
    total = len(given.truth) * len(given.samplers) * given.seeds
    with pool, ProgressBars() as bars:
        bars.begin("searches", "search")
        waiting = {
            (path, sampler): [
                pool.submit(one, path, sampler, seed, given.cheap) for seed in range(given.seeds)
            ]
            for path in given.truth
            for sampler in given.samplers
        }
        for (path, sampler), searches in waiting.items():
            done = []
            for each in searches:
                done.append(each.result())
                bars.advance(given.seeds * len(rows) // len(AT) + len(done), total)
            regrets = 100 * np.array([found for found, _ in done])
            seconds = np.mean([s for _, s in done])
            name = Path(path).name.removesuffix(".json.gz")
            texts = []
            for at, column in zip(AT, regrets.T, strict=False):
                low, high = interval(column)
                texts.append(f"{at}: {column.mean():6.2f} ({low:.2f} to {high:.2f})")
                rows.append(
                    {
                        "space": name,
                        "sampler": sampler,
                        "latency": "cheap" if given.cheap else "evaluated",
                        "evaluations": at,
                        "seeds": given.seeds,
                        "regret_percent": round(column.mean(), 4),
                        "low": round(low, 4),
                        "high": round(high, 4),
                    }
                )
            print(f"{name:<14}{sampler:<8}{'  '.join(texts)}  {seconds:.1f} s", flush=True)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        keep(pd.DataFrame(rows), given.out / "samplers.csv")


def keep(rows: pd.DataFrame, file: Path) -> None:
    """Writes the table and its picture; what other runs found of others stays."""
    who = ["space", "sampler", "latency"]
    if file.exists():
        before = pd.read_csv(file)
        ran = before.set_index(who).index.isin(rows.set_index(who).index)
        rows = pd.concat([before[~ran], rows])
    rows = rows.sort_values([*who, "evaluations"])
    files.replace(file, rows.to_csv(index=False))
    picture(rows, file.with_suffix(".png"))


def picture(rows: pd.DataFrame, path: Path) -> None:
    """Regret over evaluations, a panel a problem and a line a sampler."""
    from matplotlib import pyplot as plt

    problems = rows["space"].unique()
    figure, panels = plt.subplots(1, len(problems), figsize=(4 * len(problems), 3.6), squeeze=False)
    for axes, problem in zip(panels[0], problems, strict=True):
        of_problem = rows[rows["space"] == problem].groupby(["sampler", "latency"])
        for (sampler, latency), own in of_problem:
            shown = own[["regret_percent", "low", "high"]].clip(lower=0.01)
            label = f"{sampler}, latency known" if latency == "cheap" else sampler
            axes.fill_between(own["evaluations"], shown["low"], shown["high"], alpha=0.15, lw=0)
            axes.plot(own["evaluations"], shown["regret_percent"], "o-", markersize=3, label=label)
        axes.set(title=problem, xlabel="trials", xscale="log", yscale="log", ylim=(0.008, 60))
        axes.set_xticks(AT, [str(each) for each in AT])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("hypervolume regret, % (0.01: none)")
    panels[0][-1].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
