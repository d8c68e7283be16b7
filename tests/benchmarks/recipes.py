"""Ranking quality of supernets that are trained with different recipes in equal time.

    python -m tests.benchmarks.recipes --data ../shared/data/cifar10 --space mobilenet \
        --images 10000 --minutes 10 --epochs 12 --out FOLDER

Draws networks and trains each of them standalone. Then trains one supernet with each recipe, for as
many whole epochs as fit into the minutes at the recipe's own step time. Prints Kendall's tau of
each supernet's scores with the standalone accuracies, with its bootstrap interval, and the tau of
MACs, parameters and depth as baselines. Each process has one thread, so that the minutes are those
of one core, and there are as many processes as cores. What is in FOLDER is not trained again.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from nas.console import ProgressBars
from nas.data import Images, load_dataset
from nas.job.folder import installed_versions
from nas.latency.device import processor
from nas.space import load_space
from nas.supernet import TrainingSettings, evaluate, measure_step, train
from nas.supernet.ground_truth import (
    draw_architectures,
    make_ranked_network,
    train_each_standalone,
)
from nas.supernet.ranking import compute_ranking

RECIPES = {
    "sandwich": {},
    "sandwich, 1 random": {"random_subnets": 1},
    "sandwich, not distilled": {"distil": False},
    "sandwich, averaged": {"average": 0.99},
    "sandwich, no smoothing": {"label_smoothing": 0.0},
    "sandwich, faster": {"learning_rate": 0.3},
    "sandwich, no smoothing, faster": {"label_smoothing": 0.0, "learning_rate": 0.3},
    "sandwich, 1 random, no smoothing": {"random_subnets": 1, "label_smoothing": 0.0},
    "sandwich, 1 random, no smoothing, faster": {
        "random_subnets": 1,
        "label_smoothing": 0.0,
        "learning_rate": 0.3,
    },
    "progressive": {"progressive": 0.5},
    "best-up": {"subnets": "best_up", "random_subnets": 1},
    "worst-up": {"subnets": "worst_up", "random_subnets": 1},
    "fair": {"subnets": "fair"},
    "single path": {"subnets": "single"},
}


class Experiment:
    """Data, space, networks and settings that all recipes share, the same in every process."""

    def __init__(self, options: argparse.Namespace) -> None:
        data = load_dataset(options.data, image_size=options.image_size)
        self.data = replace(
            data,
            train=take_images(data.train, options.images),
            search=take_images(data.search, options.validation),
        )
        self.space = load_space(
            options.space,
            image_size=data.image_size,
            channels=data.channels,
            classes=len(data.classes),
        )
        self.plain = TrainingSettings(
            epochs=options.epochs,
            batch_size=options.batch,
            learning_rate=options.learning_rate,
            label_smoothing=0.1,
        )
        self.drawn = draw_architectures(
            self.space, options.nets, seed=options.seed, method=options.draw
        )
        self.out, self.seed, self.minutes = options.out, options.seed, options.minutes
        self.training_seed = (
            options.seed if options.training_seed is None else options.training_seed
        )

    def train_network(self, number: int) -> float:
        """Return the standalone accuracy of one of the drawn networks."""
        return train_each_standalone(
            self.space, [self.drawn[number]], self.data, self.out, self.plain, seed=self.seed
        )[0]

    def train_recipe(self, name: str) -> tuple[int, list[float]]:
        """Return the epochs of a recipe's supernet, and its scores of the drawn networks."""
        settings = replace(self.plain, **RECIPES[name])
        folder = self.out / name.replace(", ", "-").replace(" ", "-")
        if self.training_seed != self.seed:
            folder = folder.with_name(f"{folder.name}-seed-{self.training_seed}")
        epochs_file = folder / "epochs.json"
        if not epochs_file.is_file():
            step = measure_step(self.space, self.data, settings, steps=12)
            folder.mkdir(parents=True, exist_ok=True)
            epochs_file.write_text(json.dumps(step.epochs_within(60 * self.minutes)))
        epochs = json.loads(epochs_file.read_text())
        trained = replace(settings, epochs=epochs)
        supernet = train(self.space, self.data, folder, trained, seed=self.training_seed)
        return epochs, evaluate(supernet, self.drawn, self.data)


def take_images(images: Images, count: int | None) -> Images:
    """Return a random sample of images, always the same one; all images if `count` is None."""
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    return Images(images.pixels[chosen], images.labels[chosen])


_experiment: list[Experiment] = []


def _prepare(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    _experiment.append(Experiment(options))


def _train_network(number: int) -> float:
    return _experiment[0].train_network(number)


def _train_recipe(name: str) -> tuple[int, list[float]]:
    return _experiment[0].train_recipe(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--space", default="mobilenet")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, help="number of training images; all by default")
    parser.add_argument(
        "--validation", type=int, help="number of validation images; all by default"
    )
    parser.add_argument("--minutes", type=float, default=30, help="training time of each recipe")
    parser.add_argument("--nets", type=int, default=20)
    parser.add_argument("--draw", default="spread", choices=["spread", "uniform"])
    parser.add_argument("--epochs", type=int, default=20, help="epochs of standalone training")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--training-seed", type=int, help="of the supernets; --seed by default")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    experiment = Experiment(options)
    print(
        f"{options.space}, {experiment.data.counts}, {len(experiment.drawn)} networks, "
        f"{options.epochs} epochs standalone, {options.processes} processes of one thread",
        flush=True,
    )
    numbers = range(len(experiment.drawn))
    pool = ProcessPoolExecutor(options.processes, get_context("spawn"), _prepare, (options,))
    with pool, ProgressBars() as bars:
        bars.begin("standalone", "network")
        waiting = {pool.submit(_train_network, number): number for number in numbers}
        standalone = {}
        for done in as_completed(waiting):
            standalone[waiting[done]] = done.result()
            bars.advance(len(standalone), len(numbers), "")
        bars.begin("recipes", "recipe")
        trained = {pool.submit(_train_recipe, name): name for name in options.recipes}
        rows = {}
        for done in as_completed(trained):
            name = trained[done]
            epochs, scores = done.result()
            ranking = compute_ranking(
                [
                    make_ranked_network(experiment.drawn[at], scores[at], standalone[at])
                    for at in numbers
                ]
            )
            tau = ranking.kendall_tau
            text = f"{tau.value:.3f} ({tau.low:.3f} to {tau.high:.3f})" if tau else "no ranking"
            rows[name] = {"epochs": epochs, "scores": scores, **ranking.to_json()}
            bars.advance(len(rows), len(trained), "")
            print(
                f"{name:<42}{epochs:>4} epochs  tau {text:<26} scores {min(scores):.3f} to "
                f"{max(scores):.3f}  choosing loses {100 * ranking.regret['supernet']:.2f} points",
                flush=True,
            )
            baselines = ranking.baseline_tau
    for name, value in baselines.items():
        print(f"baseline {name:<33} tau {'undefined' if value is None else f'{value.value:.3f}'}")
    document = {
        "command": {**vars(options), "out": None, "data": Path(options.data).name},
        "versions": installed_versions(),
        "machine": {"processor": processor()[0], "cores": os.cpu_count()},
        "images": experiment.data.counts,
        "networks": [
            {"architecture": each.to_json(), "holdout_accuracy": standalone[at]}
            for at, each in enumerate(experiment.drawn)
        ],
        "counted_tau": {name: each and asdict(each) for name, each in baselines.items()},
        "recipes": {name: rows[name] for name in options.recipes},
    }
    file = options.out / f"recipes-{experiment.training_seed}.json"
    file.write_text(json.dumps(document, indent=1) + "\n")
    draw_figure(document, file.with_suffix(".png"))


def draw_figure(document, path: Path) -> None:
    """Draw Kendall's tau of each recipe and each baseline, with its interval."""
    from matplotlib import pyplot as plt

    taus = {name: row["kendall_tau"] for name, row in document["recipes"].items()}
    baselines = {f"baseline {name}": each for name, each in document["counted_tau"].items()}
    known = {name: each for name, each in {**taus, **baselines}.items() if each}
    order = sorted(known, key=lambda name: known[name]["value"])
    figure, axes = plt.subplots(figsize=(7, 0.32 * len(order) + 1))
    for at, name in enumerate(order):
        colour = "#999999" if name in baselines else "#1f77b4"
        tau = known[name]
        axes.plot([tau["low"], tau["high"]], [at, at], color=colour, linewidth=2)
        axes.plot(tau["value"], at, "o", color=colour)
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel("Kendall's tau with standalone training, 95% bootstrap interval")
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
