"""Balanced accuracy of networks trained on imbalanced classes, with and without corrected logits.

    python -m tests.benchmarks.imbalance ../shared/data/cifar10 --seeds 3

The training images are cut so that each class has fewer than the one before, the last one a 50th of
the first (the profile of Cui et al. 2019, "Class-balanced loss based on effective number of
samples"). Search and hold-out images stay balanced. With `--jobs 6`, six processes train at once,
which fills a GPU better than one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np

import nas
from nas.data import ImageDataset
from nas.data.dataset import Metric
from nas.supernet.evaluation import evaluate, evaluate_network
from nas.supernet.recipe import Recipe
from nas.supernet.standalone import train_standalone
from nas.supernet.training import train
from tests.supernet.scrambled_supernet import space_on

METRICS: tuple[Metric, ...] = ("accuracy", "balanced_accuracy")


def cut(data: ImageDataset, largest: int, ratio: float, seed: int) -> ImageDataset:
    """Return the dataset with fewer and fewer training images from class to class."""
    rng = np.random.default_rng(seed)
    steps = np.arange(len(data.classes)) / (len(data.classes) - 1)
    counts = (largest * ratio**-steps).round().astype(int)
    chosen = np.concatenate(
        [
            rng.permutation(np.flatnonzero(data.train.labels == label))[:count]
            for label, count in enumerate(counts)
        ]
    )
    return replace(data, train=data.train.take(chosen))


def train_networks(arguments: argparse.Namespace, seed: int, metric: Metric) -> dict[str, float]:
    """Train with a metric; return the balanced accuracy on the hold-out images by network."""
    whole = nas.load_dataset(arguments.source, metric="accuracy")
    data = cut(whole, arguments.largest, arguments.ratio, seed)
    space = space_on(data, arguments.space)
    results = {}
    for name, value in accuracies(data, space, metric, arguments, seed):
        results[name] = value
        print(f"seed {seed}, {metric}, {name}: {value:.1%} ({len(data.train)} images)", flush=True)
    return results


def accuracies(
    data: ImageDataset,
    space: nas.SearchSpace,
    metric: Metric,
    arguments: argparse.Namespace,
    seed: int,
) -> Iterator[tuple[str, float]]:
    """Yield the balanced accuracy on the hold-out images of each network by its name."""
    own = replace(data, metric=metric)
    judge = replace(data, metric="balanced_accuracy")
    settings = Recipe(epochs=arguments.epochs, longest_seconds=arguments.longest_seconds)
    network = train_standalone(space.largest.graph, own, settings, seed=seed)
    yield "trained alone", evaluate_network(network, judge, "holdout")
    with tempfile.TemporaryDirectory() as folder:
        supernet = train(space, own, Path(folder) / "supernet", settings, seed=seed, progress=False)
    members = {"largest subnet": space.largest, "smallest subnet": space.smallest}
    yield from zip(members, evaluate(supernet, members.values(), judge, "holdout"), strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--space", default="mobilenet_tiny")
    parser.add_argument("--largest", type=int, default=2000, help="images of the first class")
    parser.add_argument("--ratio", type=float, default=50, help="first class over last class")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--longest-seconds", type=float, help="of the training of a supernet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="processes that train at once")
    arguments = parser.parse_args()
    runs = [(seed, metric) for seed in range(arguments.seeds) for metric in METRICS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, context) as pool:
        futures = [pool.submit(train_networks, arguments, *run) for run in runs]
        results = [(metric, each.result()) for (_, metric), each in zip(runs, futures, strict=True)]
    print("balanced accuracy, means of all seeds:")
    for name in results[0][1]:
        plain, corrected = (
            mean(values[name] for metric, values in results if metric == wanted)
            for wanted in METRICS
        )
        print(f"{name}: {plain:.1%}, with corrected logits {corrected:.1%}")


if __name__ == "__main__":
    main()
