"""Compares ways of training the finalists of runs, from their supernets' weights.

    python -m tests.benchmarks.finalists RUN... --rates 0.25 1 2 --epochs 40

The network that `nas select` picks from each run, or the one of `--pick`, is trained on the
training images and on all but the test images, with the run's teacher and without it. Prints the
accuracies on the test images, with learning rates as factors of the default one.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

from nas.deploy.retrain import Retraining, finalist
from nas.opened_run import open_run
from nas.supernet.evaluation import predict_network
from nas.supernet.standalone import train_standalone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--pick", help="beginning of a network's digest; by default nas select's")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.25, 1.0, 2.0])
    parser.add_argument("--epochs", type=float, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    print("| run | network | images | teacher | rate | seed | test |")
    print("|---|---|---|---|---|---|---|")
    for path in arguments.runs:
        run = open_run(path)
        name, architecture = finalist(run, arguments.pick or run.pick().id)
        setup = Retraining(run, arguments.epochs)
        start, recipe = setup.start(name, architecture)
        _, teacher = setup.teacher or (None, None)
        parts = {"training": run.data, "all": run.data.for_refit()}
        for (part, data), taught, rate, seed in product(
            parts.items(), (teacher, None), arguments.rates, arguments.seeds
        ):
            network = train_standalone(
                architecture.graph,
                data,
                replace(recipe, learning_rate=rate * recipe.learning_rate),
                seed=seed,
                start=start,
                teacher=taught,
            )
            classes = predict_network(network, run.data, run.data.test)
            accuracy = run.data.score(classes, run.data.test.labels)
            print(
                f"| {path} | {name} | {part} | {'no' if taught is None else 'yes'} | {rate:g} "
                f"| {seed} | {accuracy:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
