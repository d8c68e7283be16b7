"""Accuracy of supernets after equally many steps, by batch size and learning rate.

    python -m tests.benchmarks.batches ../shared/data/cifar10 --jobs 8

A step on a GPU takes as long with 256 images as with 64, most of it for launches. So the question
for a time budget is what a batch gains at equal steps, and at which learning rate. Prints the
accuracies of the largest, the smallest and eight random networks on the hold-out images.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

import nas
from nas.supernet.evaluation import evaluate
from nas.supernet.recipe import Recipe
from nas.supernet.training import train
from tests.supernet.scrambled_supernet import space_on


class Case(NamedTuple):
    """A training: training images, batch size, learning rate, and steps over those of others."""

    images: int
    batch: int
    rate: float
    share: float = 1.0


CASES = (
    Case(30_000, 64, 0.1),
    Case(30_000, 256, 0.1),
    Case(30_000, 256, 0.2),
    Case(30_000, 256, 0.4),
    Case(30_000, 1024, 0.4, 2 / 3),
    Case(1000, 64, 0.1),
    Case(1000, 256, 0.1),
    Case(1000, 256, 0.2),
)


def result(case: Case, source: Path, space: str, steps: int) -> str:
    """Train a supernet and return its accuracies in a line."""
    data = nas.load_dataset(source, metric="accuracy")
    chosen = np.random.default_rng(0).permutation(len(data.train))[: case.images]
    data = replace(data, train=data.train.take(chosen))
    loaded = space_on(data, space)
    steps = max(1, round(steps * case.share))
    epochs = steps * case.batch / len(data.train)
    settings = Recipe(epochs=epochs, batch_size=case.batch, learning_rate=case.rate)
    with tempfile.TemporaryDirectory() as folder:
        supernet = train(loaded, data, Path(folder) / "supernet", settings, seed=0)
    rng = np.random.default_rng(1)
    members = [loaded.largest, loaded.smallest, *(loaded.sample(rng) for _ in range(8))]
    largest, smallest, *random = evaluate(supernet, members, data, "holdout")
    return (
        f"{len(data.train)} images, batch {case.batch}, rate {case.rate}, {steps} steps: largest "
        f"{largest:.1%}, smallest {smallest:.1%}, random {mean(random):.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--space", default="mobilenet_32")
    parser.add_argument("--steps", type=int, default=765)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    options = parser.parse_args()
    run = partial(result, source=options.source, space=options.space, steps=options.steps)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        for line in pool.map(run, CASES):
            print(line, flush=True)


if __name__ == "__main__":
    main()
