"""What training finalists gives: start, teacher, and the order after a few epochs.

    python -m tests.benchmarks.finalists results/overnight --out FOLDER --epochs 30

Three questions about a finished run, each answered on its own supernets and images:

- Start and teacher: networks spread over the front are trained from the supernet's weights and from
  scratch, each with the largest subnet as the teacher and without. Trainings without a teacher have
  `--epochs`; those with one have as many as fit into the same time, by the ratio of their steps.
- Order: of `--nets` networks whose predicted latencies are within 5%, spread over the supernet's
  scores, a training alone (from scratch, without a teacher, `--epochs`) gives the order. Kendall's
  tau with it is printed for the supernet's scores, and for `--finetune` epochs from the supernet.

Accuracies are those on the hold-out images; the test images are not read. Each process has one
thread. What is in FOLDER is not trained again.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch

from nas import jsonl
from nas.console import ProgressBars, print_table
from nas.deploy.retrain import Retraining, prepare
from nas.job.folder import installed_versions
from nas.report.front import representatives
from nas.report.run import open_run
from nas.statistics import Interval, bootstrap_indices, kendall_tau, kendall_taus
from nas.supernet import evaluate
from nas.supernet.evaluation import calibrated_state, evaluate_network
from nas.supernet.standalone import NetworkTrainer
from nas.this_machine import processor

LATENCY_RANGE = 1.05
"""Ratio of the largest to the smallest predicted latency of networks that are ordered."""

_TIMED_STEPS = 8

RESULTS = "finalists.jsonl"


@dataclass(frozen=True)
class Training:
    """One training of one network.

    Attributes:
        digest: digest of the network.
        start: "supernet" or "scratch".
        teacher: whether it learns from the supernet's largest network.
        epochs: passes over the images.
        seed: seed of the training.
        average: whether the moving average of the weights is the result.
    """

    digest: str
    start: str
    teacher: bool
    epochs: int
    seed: int
    average: bool = True


class Experiment:
    """The run with its data, supernets and recipe, the same in every process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.run = open_run(options.run, options.data)
        self.setup: Retraining = prepare(
            self.run, list(self.run.record.spaces or {}), options.epochs
        )

    def trainer(self, training: Training) -> NetworkTrainer:
        setup, network = self.setup, self.run.architecture(training.digest)
        settings = replace(setup.settings, epochs=training.epochs)
        if not training.average:
            settings = replace(settings, average=0.0)
        start = None
        if training.start == "supernet":
            supernet = setup.supernets[network.space.name]
            start = calibrated_state(supernet, network.graph, setup.data)
        teacher = setup.teacher[1] if training.teacher else None
        return NetworkTrainer(network.graph, setup.data, settings, training.seed, start, teacher)

    def train(self, training: Training) -> dict[str, float]:
        """Return the accuracies of a network after its training, and the seconds it took."""
        started = time.monotonic()
        trainer = self.trainer(training)
        for step in range(trainer.steps):
            trainer.step(step)
        network = trainer.finish()
        seconds = round(time.monotonic() - started, 1)
        data = self.setup.data
        accuracies = {p: evaluate_network(network, data, p) for p in ("search", "holdout")}
        return {**accuracies, "seconds": seconds}

    def teacher_cost(self, digest: str) -> float:
        """Return how many times as long a step takes with a teacher, measured in turns."""
        trainers = [self.trainer(Training(digest, "scratch", each, 1, 0)) for each in (False, True)]
        seconds: list[list[float]] = [[], []]
        for step in range(_TIMED_STEPS + 1):
            for trainer, durations in zip(trainers, seconds, strict=True):
                started = time.perf_counter()
                trainer.step(step % trainer.steps)
                durations.append(time.perf_counter() - started)
        return median(seconds[1][1:]) / median(seconds[0][1:])

    def scores(self, digests: list[str], part: str) -> list[float]:
        """Return the supernets' accuracies of some networks."""
        networks = [self.run.architecture(digest) for digest in digests]
        return [
            evaluate(self.setup.supernets[each.space.name], [each], self.setup.data, part)[0]
            for each in networks
        ]


def networks_of_equal_latency(rows, count: int) -> list[str]:
    """Return networks within `LATENCY_RANGE`, spread over the supernet's scores.

    The range is the one with the most candidates.
    """
    rows = rows[rows["state"] == "complete"].sort_values("predicted_us")
    latencies = rows["predicted_us"].to_numpy()
    ends = np.searchsorted(latencies, LATENCY_RANGE * latencies, side="right")
    first = int(np.argmax(ends - np.arange(len(latencies))))
    own = rows.iloc[first : ends[first]].sort_values("validation_accuracy")
    chosen = np.linspace(0, len(own) - 1, min(count, len(own))).round().astype(int)
    return own.iloc[chosen]["digest"].tolist()


_experiment: list[Experiment] = []


def _prepare(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    _experiment.append(Experiment(options))


def _train(training: Training) -> dict[str, float]:
    return _experiment[0].train(training)


def train_all(trainings: list[Training], options: argparse.Namespace) -> dict[Training, dict]:
    """Return the results of all trainings; those in the file are not repeated."""
    path = options.out / RESULTS
    jsonl.repair(path, b'{"digest": ')
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    names = Training.__dataclass_fields__
    results = {Training(**{name: row[name] for name in names}): row for row in rows}
    missing = [each for each in dict.fromkeys(trainings) if each not in results]
    pool = ProcessPoolExecutor(options.processes, get_context("spawn"), _prepare, (options,))
    with pool, ProgressBars() as bars:
        bars.begin("trainings", "training")
        waiting = {pool.submit(_train, each): each for each in missing}
        for number, done in enumerate(as_completed(waiting), start=1):
            row = {**asdict(waiting[done]), **done.result()}
            jsonl.append(path, row)
            results[waiting[done]] = row
            bars.advance(number, len(missing))
    return results


def tau_with_interval(scores: list[float], standalone: list[float]) -> Interval | None:
    tau = kendall_tau(scores, standalone)
    if tau is None:
        return None
    indices = bootstrap_indices(len(scores), np.random.default_rng(0))
    return Interval.from_resamples(tau, kendall_taus(scores, standalone, indices))


def plan_variants(experiment: Experiment, options: argparse.Namespace) -> dict[str, list[Training]]:
    """Return the trainings of each variant of start and teacher, all of the same duration."""
    variants: dict[str, list[Training]] = {}
    run = experiment.run
    for digest in representatives(run.front, run.record.job.search, options.picks):
        cost = experiment.teacher_cost(digest)
        for start in ("supernet", "scratch"):
            for teacher in (False, True):
                epochs = max(1, round(options.epochs / cost)) if teacher else options.epochs
                name = f"from {start}, {'teacher' if teacher else 'labels'}"
                variants.setdefault(name, []).extend(
                    Training(digest, start, teacher, epochs, seed) for seed in range(options.seeds)
                )
    return variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder with its supernets")
    parser.add_argument("--data", help="where the images are, if they were moved")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picks", type=int, default=4, help="networks for start and teacher")
    parser.add_argument("--nets", type=int, default=12, help="networks that are ordered")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--finetune", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    experiment = Experiment(options)
    ordered = networks_of_equal_latency(experiment.run.trials, options.nets)
    variants = plan_variants(experiment, options)
    # One list of trainings a seed, so that two seeds can be compared.
    alone = [
        [Training(d, "scratch", False, options.epochs, seed, average=False) for d in ordered]
        for seed in range(options.seeds)
    ]
    tuned = {
        f"{epochs} epochs, {'teacher' if teacher else 'labels'}": [
            Training(digest, "supernet", teacher, epochs, 0) for digest in ordered
        ]
        for epochs in options.finetune
        for teacher in (False, True)
    }
    groups = [*variants.values(), *alone, *tuned.values()]
    results = train_all([training for own in groups for training in own], options)

    def accuracies(own: list[Training]) -> list[float]:
        return [results[each]["holdout"] for each in own]

    picks = list(dict.fromkeys(each.digest for own in variants.values() for each in own))
    before = experiment.scores(picks, "holdout")
    print(f"{len(picks)} finalists, {options.seeds} seeds, {experiment.setup.data.counts}")
    print_table(
        ["variant", "epochs", "hold-out"],
        [("supernet, untrained", "", f"{mean(before):.2%}")]
        + [
            (name, f"{mean(each.epochs for each in own):.0f}", f"{mean(accuracies(own)):.2%}")
            for name, own in variants.items()
        ],
    )
    standalone = np.mean([accuracies(own) for own in alone], axis=0).tolist()
    print(
        f"{len(ordered)} networks of equal latency, alone {min(standalone):.2%} to "
        f"{max(standalone):.2%} after {options.epochs} epochs"
    )
    orders = {"supernet, search images": experiment.scores(ordered, "search")}
    orders |= {name: accuracies(own) for name, own in tuned.items()}
    taus = {name: tau_with_interval(scores, standalone) for name, scores in orders.items()}
    if len(alone) > 1:
        taus["two seeds alone"] = tau_with_interval(accuracies(alone[0]), accuracies(alone[1]))
    print_table(
        ["order by", "Kendall's tau", "95% interval"],
        [
            (name, f"{tau.value:.2f}", f"{tau.low:.2f} to {tau.high:.2f}")
            for name, tau in taus.items()
            if tau is not None
        ],
    )
    document = {
        "command": {**vars(options), "out": None, "run": options.run.name, "data": None},
        "versions": installed_versions(),
        "machine": {"processor": processor()[0], "cores": os.cpu_count()},
        "images": experiment.setup.data.counts,
        "recipe": experiment.setup.settings.identity(),
        "supernet": before,
        "variants": {name: [results[each] for each in own] for name, own in variants.items()},
        "standalone": dict(zip(ordered, standalone, strict=True)),
        "orders": orders,
        "kendall_tau": {name: tau and asdict(tau) for name, tau in taus.items()},
    }
    (options.out / "finalists.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
