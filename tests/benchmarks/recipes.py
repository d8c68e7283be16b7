"""Which way of training a supernet ranks networks best, at an equal time budget.

    python -m tests.benchmarks.recipes --data ../shared/data/cifar10 --space mobilenet \
        --images 10000 --minutes 10 --epochs 12 --out FOLDER

Draws networks, trains each alone once, trains a supernet by every recipe for as many whole epochs
as the minutes allow by its own steps, and prints Kendall's tau of its scores with the truth, with a
bootstrap interval, beside that of counting. Every process has one thread, so minutes are those of
one core; as many run at once as there are cores. What is in FOLDER is not trained again.
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

from nas.console import Bars
from nas.data import Images, load_dataset
from nas.job.folder import versions
from nas.latency.device import processor
from nas.space import load_space
from nas.supernet import TrainingSettings, evaluate, measure_step, train
from nas.supernet.ground_truth import draw, ranked, train_each_alone
from nas.supernet.ranking import rank

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


class Setting:
    """What all recipes have in common: the same in every process."""

    def __init__(self, given: argparse.Namespace) -> None:
        data = load_dataset(given.data, image_size=given.image_size)
        self.data = replace(
            data,
            train=some(data.train, given.images),
            search=some(data.search, given.validation),
        )
        self.space = load_space(
            given.space,
            image_size=data.image_size,
            channels=data.channels,
            classes=len(data.classes),
        )
        self.plain = TrainingSettings(
            epochs=given.epochs,
            batch_size=given.batch,
            learning_rate=given.learning_rate,
            label_smoothing=0.1,
        )
        self.drawn = draw(self.space, given.nets, seed=given.seed, how=given.draw)
        self.out, self.seed, self.minutes = given.out, given.seed, given.minutes
        self.training_seed = given.seed if given.training_seed is None else given.training_seed

    def alone(self, number: int) -> float:
        """What one of the drawn networks reaches."""
        return train_each_alone(
            self.space, [self.drawn[number]], self.data, self.out, self.plain, seed=self.seed
        )[0]

    def recipe(self, name: str) -> tuple[int, list[float]]:
        """Epochs of a recipe's supernet, and its scores of the drawn networks."""
        settings = replace(self.plain, **RECIPES[name])
        folder = self.out / name.replace(", ", "-").replace(" ", "-")
        if self.training_seed != self.seed:
            folder = folder.with_name(f"{folder.name}-seed-{self.training_seed}")
        kept = folder / "epochs.json"
        if not kept.is_file():
            step = measure_step(self.space, self.data, settings, steps=12)
            folder.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(step.epochs_within(60 * self.minutes)))
        epochs = json.loads(kept.read_text())
        trained = replace(settings, epochs=epochs)
        supernet = train(self.space, self.data, folder, trained, seed=self.training_seed)
        return epochs, evaluate(supernet, self.drawn, self.data)


def some(images: Images, count: int | None) -> Images:
    """As many of them, always the same; all for None."""
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    return Images(images.pixels[chosen], images.labels[chosen])


_setting: list[Setting] = []


def _prepare(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    _setting.append(Setting(given))


def _alone(number: int) -> float:
    return _setting[0].alone(number)


def _recipe(name: str) -> tuple[int, list[float]]:
    return _setting[0].recipe(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--space", default="mobilenet")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, help="of the training split; all by default")
    parser.add_argument("--validation", type=int, help="images that score a supernet")
    parser.add_argument("--minutes", type=float, default=30, help="of training for each recipe")
    parser.add_argument("--nets", type=int, default=20)
    parser.add_argument("--draw", default="spread", choices=["spread", "uniform"])
    parser.add_argument("--epochs", type=int, default=20, help="of training alone")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--training-seed", type=int, help="of the supernets; by default --seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    setting = Setting(given)
    print(
        f"{given.space}, {setting.data.counts}, {len(setting.drawn)} networks, {given.epochs} "
        f"epochs alone, {given.processes} processes of one thread",
        flush=True,
    )
    numbers = range(len(setting.drawn))
    pool = ProcessPoolExecutor(given.processes, get_context("spawn"), _prepare, (given,))
    with pool, Bars() as bars:
        bars.begin("alone", "network")
        waiting = {pool.submit(_alone, number): number for number in numbers}
        alone = {}
        for done in as_completed(waiting):
            alone[waiting[done]] = done.result()
            bars.advance(len(alone), len(numbers), "")
        bars.begin("recipes", "recipe")
        trained = {pool.submit(_recipe, name): name for name in given.recipes}
        rows = {}
        for done in as_completed(trained):
            name = trained[done]
            epochs, scores = done.result()
            found = rank([ranked(setting.drawn[at], scores[at], alone[at]) for at in numbers])
            tau = found.kendall_tau
            text = f"{tau.value:.3f} ({tau.low:.3f} to {tau.high:.3f})" if tau else "no ranking"
            rows[name] = {"epochs": epochs, "scores": scores, **found.to_json()}
            bars.advance(len(rows), len(trained), "")
            print(
                f"{name:<42}{epochs:>4} epochs  tau {text:<26} scores {min(scores):.3f} to "
                f"{max(scores):.3f}  picking loses {100 * found.regret['supernet']:.2f} points",
                flush=True,
            )
            counted = found.counted_tau
    for name, value in counted.items():
        print(f"counting {name:<33} tau {'undefined' if value is None else f'{value.value:.3f}'}")
    document = {
        "command": {**vars(given), "out": None, "data": Path(given.data).name},
        "versions": versions(),
        "machine": {"processor": processor()[0], "cores": os.cpu_count()},
        "images": setting.data.counts,
        "networks": [
            {"architecture": each.to_json(), "holdout_accuracy": alone[at]}
            for at, each in enumerate(setting.drawn)
        ],
        "counted_tau": {name: each and asdict(each) for name, each in counted.items()},
        "recipes": {name: rows[name] for name in given.recipes},
    }
    file = given.out / f"recipes-{setting.training_seed}.json"
    file.write_text(json.dumps(document, indent=1) + "\n")
    picture(document, file.with_suffix(".png"))


def picture(document, path: Path) -> None:
    """Kendall's tau of every recipe with its interval, and of what can be counted."""
    from matplotlib import pyplot as plt

    taus = {name: row["kendall_tau"] for name, row in document["recipes"].items()}
    counted = {f"counting {name}": each for name, each in document["counted_tau"].items()}
    known = {name: each for name, each in {**taus, **counted}.items() if each}
    order = sorted(known, key=lambda name: known[name]["value"])
    figure, axes = plt.subplots(figsize=(7, 0.32 * len(order) + 1))
    for at, name in enumerate(order):
        colour = "#999999" if name in counted else "#1f77b4"
        tau = known[name]
        axes.plot([tau["low"], tau["high"]], [at, at], color=colour, linewidth=2)
        axes.plot(tau["value"], at, "o", color=colour)
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel("Kendall's tau with training alone, 95% bootstrap interval")
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
