"""Compare two ways to share a job's budget, by accuracy at equal latency.

    python -m tests.benchmarks.budget_shares --data ../shared/data/cifar10 --budget 1h --out FOLDER

Runs one job twice on the same data, spaces and latency table, which is made before and costs
neither anything:

- `search`: supernets get 75% of the budget that measuring the front leaves, the search all the
  rest, and no finalist is trained. A user of this run deploys the weights of the supernet.
- `finalists`: the search ends when its model expects too little, and finalists are trained with
  their share of the budget and what the search left.

Accuracies are those on the hold-out images, which no stage uses to decide anything. Each finalist
is compared with the most accurate network of `search` that was measured as fast, or faster. With
`--train-search` these networks are trained afterwards for as many epochs as the finalists, beyond
the budget: the rest of the difference is that of the fronts and of the starting weights. Finished
runs in the folder are used again. `--finalists RUN` takes a finished job on the same data and
spaces in the place of the second one.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd

from nas.console import ProgressBars
from nas.formatting import format_duration
from nas.job import JobSettings, run_job
from nas.job.context import JobContext
from nas.job.planning import MAX_TRIALS, MIN_TRIALS_PER_SPACE
from nas.job.progress import JobProgress
from nas.job.retraining import retrain_run
from nas.latency import build_table
from nas.latency.worker_process import timers_for
from nas.records import JobPlan, read_run
from nas.report.run import open_run

TRAINING_SHARE = 0.75
"""Share of the supernets in what measuring the front leaves of the budget of `search`."""

LATENCY_TOLERANCE = 1.03
"""Latency of a network of `search` over that of a finalist up to which it counts as equally fast.

Both were measured in runs of their own.
"""

NEVER = 100_000_000
"""A stall that no search reaches."""


def plan_search(job: JobContext) -> JobPlan:
    """Return the plan of `search`: all trials that fit, and no finalist."""
    missing, costs = job.measure_costs()
    measure_s = costs.measuring_s(job.settings.finish.measure)
    left_s = job.settings.budget_s - costs.table_s - measure_s
    supernets_s = TRAINING_SHARE * left_s
    own_s = supernets_s / len(costs.epoch_s)
    epochs = {name: round(own_s / seconds, 2) for name, seconds in costs.epoch_s.items()}
    fewest = MIN_TRIALS_PER_SPACE * len(epochs)
    return JobPlan(
        kernels=missing,
        epochs=epochs,
        supernet_seconds=own_s,
        trials=int(np.clip((left_s - supernets_s) / costs.trial_s, fewest, MAX_TRIALS)),
        measure=job.settings.finish.measure,
        seconds={},
    )


def make_settings(options: argparse.Namespace, name: str) -> JobSettings:
    search = {"stall": NEVER} if name == "search" else {}
    return JobSettings.model_validate(
        {
            "name": name,
            "seed": options.seed,
            "budget": options.budget,
            "data": {
                "source": options.data,
                "validation_fraction": options.validation_fraction,
                "image_size": options.image_size,
            },
            "device": {"tables": str(options.out / "latency_tables")},
            "space": [{"name": each} for each in options.space],
            "search": search,
            "finish": {"measure": options.measure, "export": []},
        }
    )


def complete_table(job: JobContext) -> None:
    """Time all kernels and dispatch costs that the table of both runs lacks."""
    job.progress.begin("latency table", "timing")
    with timers_for(job.runtime) as timers:
        build_table(
            job.table, job.kernels, timers, progress=lambda p: job.progress.advance(p.done, p.total)
        )


def compare(finalists: pd.DataFrame, others: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return each finalist beside the most accurate other network that is as fast."""
    others = others.dropna(subset=[column, "measured_us"])
    rows = []
    for _, each in finalists.sort_values("measured_us").iterrows():
        as_fast = others[others["measured_us"] <= LATENCY_TOLERANCE * each["measured_us"]]
        best = as_fast.loc[as_fast[column].idxmax()] if len(as_fast) else None
        rows.append(
            {
                "finalist": each["id"],
                "us": each["measured_us"],
                "supernet": each["holdout_accuracy"],
                "trained": each["trained_accuracy"],
                "other": "none" if best is None else best["id"],
                "other_us": np.nan if best is None else best["measured_us"],
                "other_accuracy": np.nan if best is None else best[column],
            }
        )
    table = pd.DataFrame(rows)
    return table.assign(gain_points=100 * (table["trained"] - table["other_accuracy"]))


def show(table: pd.DataFrame, title: str) -> None:
    """Print a comparison and its mean gain."""
    print(f"{title}: mean gain {table['gain_points'].mean():.2f} points of hold-out accuracy")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4f}"))


def describe(folder: Path) -> str:
    """Return the plan of a run, and the time of each stage."""
    record = read_run(folder)
    assert record.plan is not None
    assert record.search is not None
    stages = ", ".join(f"{name} {format_duration(s.seconds)}" for name, s in record.stages.items())
    total = format_duration(sum(s.seconds for s in record.stages.values()))
    return (
        f"{record.name}: {total} ({stages}); epochs {record.plan.epochs}, "
        f"{len(open_run(folder).trials)} trials ({record.search.ended}), "
        f"{record.plan.retrain} finalists for {record.plan.retrain_epochs} epochs"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--validation-fraction", type=float, default=0.2)
    parser.add_argument("--budget", default="1h", help="of each of the two jobs")
    parser.add_argument("--space", action="append", help="by default the three tiny spaces")
    parser.add_argument("--measure", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-search", action="store_true", help="beyond the budget")
    parser.add_argument("--finalists", type=Path, help="folder of a finished job with finalists")
    parser.add_argument("--out", type=Path, required=True, help="folder of both runs")
    options = parser.parse_args()
    options.space = options.space or ["mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny"]
    with ProgressBars() as bars:
        progress: JobProgress = bars
        complete_table(JobContext(make_settings(options, "search"), progress))
        with patch.object(JobContext, "plan", plan_search):
            run_job(make_settings(options, "search"), options.out / "search", progress=progress)
        if options.finalists is None:
            settings = make_settings(options, "finalists")
            run_job(settings, options.out / "finalists", progress=progress)
    folders = {
        "search": options.out / "search",
        "finalists": options.finalists or options.out / "finalists",
    }
    runs = {name: open_run(folder) for name, folder in folders.items()}
    for folder in folders.values():
        print(describe(folder))
    finalists = runs["finalists"].trials.dropna(subset=["trained_accuracy"])
    rows = compare(finalists, runs["search"].trials, "holdout_accuracy")
    show(rows, "against the weights of the supernet in `search`, at equal latency")
    if options.train_search:
        plan = runs["finalists"].record.plan
        assert plan is not None
        picks = sorted({each for each in rows["other"] if each != "none"})
        with ProgressBars() as bars:
            retrain_run(options.out / "search", picks, epochs=plan.retrain_epochs, progress=bars)
        trained = open_run(options.out / "search").trials
        rows = compare(finalists, trained, "trained_accuracy")
        show(rows, "against networks of `search` that were trained beyond the budget")


if __name__ == "__main__":
    main()
